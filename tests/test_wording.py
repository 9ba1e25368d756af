"""Numbers in sentences."""

from mme_hf.wording import counted


def test_one_is_singular():
    assert [counted(number, "video") for number in (0, 1, 2)] == ["0 videos", "1 video", "2 videos"]
