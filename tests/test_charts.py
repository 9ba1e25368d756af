import numpy as np
import pytest
from PIL import Image

from mme_hf.charts import clock, draw_confusion, draw_timeline


@pytest.mark.parametrize("num_classes", [2, 25, 400])
def test_a_confusion_matrix_fits_on_a_screen_whatever_its_size(tmp_path, num_classes):
    counts = np.eye(num_classes, dtype=np.int64) * 9
    counts[0, 1] = 3
    names = [f"a class with a name that is much too long {number}" for number in range(num_classes)]
    draw_confusion(tmp_path / "confusion.png", counts, names, title="mine")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 200 and max(picture.size) < 2000


def test_a_timeline_shows_the_frames_above_the_labels(tmp_path):
    times = [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0)]
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.9, 0.0]])
    options = {"title": "a.mp4", "label_names": ["a", "b", "c"]}
    red = [np.full((60, 80, 3), (255, 0, 0), np.uint8)] * 4
    heights = []
    for pictures in ((), red):
        draw_timeline(tmp_path / "timeline.png", times, scores, pictures=pictures, **options)
        with Image.open(tmp_path / "timeline.png") as picture:
            pixels = np.asarray(picture.convert("RGB"))
            heights.append(picture.height)
        assert (pixels == (255, 0, 0)).all(-1).any() == bool(pictures)
    assert heights[1] > heights[0] + 100


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["日本", "$x_{$", "a $5 b $6"])
def test_any_name_can_be_drawn_without_a_warning(tmp_path, name):
    draw_confusion(tmp_path / "confusion.png", np.eye(2, dtype=np.int64), [name, "b"], title=name)
    draw_timeline(tmp_path / "t.png", [(0.0, 2.0), (2.0, 4.0)], np.eye(2), title=name, label_names=[name, "b"])
    assert all((tmp_path / file).stat().st_size > 1000 for file in ("confusion.png", "t.png"))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0:00"), (65, "1:05"), (65.04, "1:05"), (59.96, "1:00"), (1.5, "0:01.5"), (3661, "1:01:01")],
)
def test_times_are_told_as_on_a_clock(seconds, expected):
    assert clock(seconds) == expected
    assert clock(seconds, tenths=True) == expected + ("" if "." in expected else ".0")
