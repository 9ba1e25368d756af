"""What a classifier trains on: clips mixed with each other, labels as shares."""

import pytest
import torch

from mme_hf.data.ordering import RecordCursor
from mme_hf.training.mixing import MixedInputs, UnlabelledVideoError


def batch(labels, *, place=4, size=8):
    """Clips whose every pixel is the number of the clip, so that a mixture shows what it is made of."""
    clips = torch.arange(len(labels), dtype=torch.float32)[:, None, None, None, None].expand(-1, 2, 3, size, size)
    return {
        "pixel_values": clips.clone(),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "sources": [f"video {label}" for label in labels],
        "next_cursor": RecordCursor(0, place, place),
    }


def test_smoothing_spreads_a_share_of_each_label():
    # 1 - 0.1 and its part of 0.1 / 4 for the class itself, 0.1 / 4 for each other.
    inputs = MixedInputs("cpu", num_classes=4, mixup_alpha=0, cutmix_alpha=0)(batch([2]))
    assert torch.allclose(inputs["labels"], torch.tensor([[0.025, 0.025, 0.925, 0.025]]))
    assert torch.equal(inputs["pixel_values"], batch([2])["pixel_values"])


def test_blended_clips_have_blended_labels():
    inputs = MixedInputs("cpu", num_classes=3, cutmix_alpha=0, label_smoothing=0)(batch([0, 1, 2]))
    # Clip n is blended with clip n - 1 by one share, which clip 1 tells: it is share * 1 + (1 - share) * 0.
    pixels = inputs["pixel_values"][:, 0, 0, 0, 0]
    share = pixels[1].item()
    assert 0 < share < 1
    assert torch.allclose(pixels, torch.tensor([(1 - share) * 2, share, 2 * share + (1 - share)]))
    assert (inputs["pixel_values"] == pixels[:, None, None, None, None]).all()
    rows = [[share, 0, 1 - share], [1 - share, share, 0], [0, 1 - share, share]]
    assert torch.allclose(inputs["labels"], torch.tensor(rows))


def test_a_pasted_rectangle_counts_by_its_area_and_is_the_same_in_all_frames():
    mixed = MixedInputs("cpu", num_classes=2, mixup_alpha=0, label_smoothing=0)
    areas = set()
    for place in range(6):
        inputs = mixed(batch([0, 1], place=place))
        pixels = inputs["pixel_values"]
        area = (pixels[0] == 1).float().mean().item()
        areas.add(area)
        assert torch.allclose(inputs["labels"], torch.tensor([[1 - area, area], [area, 1 - area]]))
        assert (pixels[:, :1] == pixels).all()
        assert set(pixels.unique().tolist()) <= {0.0, 1.0}
    assert len(areas) > 1


def test_a_clip_is_mixed_with_another_video_not_with_its_own_copies():
    mixed = MixedInputs("cpu", num_classes=3, cutmix_alpha=0, label_smoothing=0, clips_per_video=2)
    inputs = mixed(batch([0, 0, 1, 1, 2, 2]))
    assert ((inputs["labels"] > 0).sum(1) == 2).all()
    assert torch.allclose(inputs["labels"].sum(1), torch.ones(6))


def test_the_place_in_the_run_decides_and_nothing_else():
    mixed = MixedInputs("cpu", num_classes=3, seed=5)
    first = mixed(batch([0, 1, 2], place=7))
    state = torch.get_rng_state()
    torch.rand(3)
    again = MixedInputs("cpu", num_classes=3, seed=5)(batch([0, 1, 2], place=7))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other_place, other_seed = (
        mixed(batch([0, 1, 2], place=8)),
        MixedInputs("cpu", num_classes=3)(batch([0, 1, 2], place=7)),
    )
    assert not torch.equal(first["labels"], other_place["labels"])
    assert not torch.equal(first["labels"], other_seed["labels"])
    torch.set_rng_state(state)
    expected = torch.rand(2)
    torch.set_rng_state(state)
    mixed(batch([0, 1, 2]))
    assert torch.equal(torch.rand(2), expected)  # what the model draws does not depend on it


def test_both_ways_of_mixing_are_drawn():
    mixed = MixedInputs("cpu", num_classes=2)
    is_pasted = [
        set(mixed(batch([0, 1], place=place))["pixel_values"].unique().tolist()) <= {0.0, 1.0} for place in range(40)
    ]
    # Each with probability 1/2: fewer than 8 of one in 40 has a chance below 1 in 10 000.
    assert 8 <= sum(is_pasted) <= 32


def test_a_batch_without_clips_or_with_one_is_left_as_it_is():
    mixed = MixedInputs("cpu", num_classes=2, label_smoothing=0)
    empty = mixed(batch([]))
    assert empty["pixel_values"].shape == (0, 2, 3, 8, 8) and empty["labels"].shape == (0, 2)
    assert torch.equal(mixed(batch([1]))["labels"], torch.tensor([[0.0, 1.0]]))


def test_a_video_without_a_label_is_named():
    with pytest.raises(UnlabelledVideoError, match="video -1 has no label"):
        MixedInputs("cpu", num_classes=2)(batch([0, -1]))
