import pytest
import torch

from mme_hf.padding import pad_clips


def test_clips_are_padded_at_the_end():
    short, long = torch.full((1, 3, 2, 4), 5.0), torch.full((3, 3, 2, 4), 7.0)
    batch = pad_clips([short, long])
    assert batch["pixel_values"].shape == (2, 3, 3, 2, 4)
    assert batch["pixel_values"][:, :, 0, 0, 0].tolist() == [[5, 0, 0], [7, 7, 7]]
    assert batch["frame_mask"].tolist() == [[True, False, False], [True, True, True]]
    assert pad_clips([short.half()])["pixel_values"].dtype == torch.half


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], r"clips have the shapes \[\]"),
        ([(2, 3, 8, 8), (2, 3, 8, 9)], r"\(2, 3, 8, 9\).*Resize or crop them to one size"),
        ([(1, 2, 3, 8, 8)], r"\(1, 2, 3, 8, 8\).*expected \(frames, channels, height, width\)"),
        ([(2, 3, 8, 8), (0, 3, 8, 8)], r"at least one frame in each"),
    ],
)
def test_clips_that_cannot_be_a_batch_are_named(shapes, message):
    with pytest.raises(ValueError, match=message):
        pad_clips([torch.zeros(shape) for shape in shapes])
