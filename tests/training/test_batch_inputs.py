"""Inputs made on the device of the model, from what the workers send."""

from itertools import islice

import pytest
import torch
from conftest import moving_texture, write_video

from mme_hf import MMEVideoProcessor
from mme_hf.data import ClipSampling, build_clip_loader, load_folder_records
from mme_hf.training import BatchInputs

SMALL = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "num_frames": 4, "frame_stride": 2}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Three videos, one of them too short for the full stride, and a file that is none."""
    folder = tmp_path_factory.mktemp("videos")
    for index, length in enumerate((20, 7, 20)):
        write_video(folder / f"{index}.mp4", moving_texture(length, 48, 64, seed=index))
    (folder / "bad.mp4").write_bytes(b"")
    return load_folder_records(folder)


def batches_of(records, processor, targets_on, **options):
    loader = build_clip_loader(records, processor, targets_on=targets_on, seed=3, **{"batch_size": 4, **options})
    return list(islice(loader, 3))


@pytest.mark.parametrize("mask_type", ["tube", "motion"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_batches_are_those_that_workers_make(records, mask_type, num_workers):
    processor = MMEVideoProcessor(**SMALL, mask_type=mask_type, tracker="torch")
    inputs_of = BatchInputs(processor, "cpu")
    sampling = ClipSampling(samples_per_video=2)
    ready = batches_of(records, processor, "workers", sampling=sampling)
    raw = batches_of(records, processor, "device", sampling=sampling, num_workers=num_workers)
    made = list(inputs_of.each(raw))
    for by_workers, sent, by_device in zip(ready, raw, made, strict=True):
        assert "inputs" not in sent
        for name in ("sources", "bad_videos", "num_records", "next_cursor"):
            assert by_workers[name] == by_device[name]
        for name, tensor in by_workers["inputs"].items():
            torch.testing.assert_close(by_device["inputs"][name], tensor, atol=1e-5, rtol=1e-5)
        same = inputs_of(by_workers)
        assert all(same[name] is tensor for name, tensor in by_workers["inputs"].items())


def test_a_batch_of_bad_videos_alone_has_no_clip_but_every_tensor(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"")
    processor = MMEVideoProcessor(**SMALL, tracker="torch", mask_type="motion")
    records = load_folder_records(tmp_path)
    (expected, *_), (batch, *_) = (
        batches_of(records, processor, targets_on, batch_size=1) for targets_on in ("workers", "device")
    )
    assert batch["raw_clips"] == [] and len(batch["bad_videos"]) == 1
    inputs = BatchInputs(processor, "cpu")(batch)
    assert list(inputs) == list(expected["inputs"])
    for name, tensor in expected["inputs"].items():
        assert inputs[name].shape == tensor.shape and inputs[name].dtype == tensor.dtype


def test_a_run_of_stored_tracks_does_not_call_its_tracker_for_a_batch_of_no_clips():
    def tracker(frames, points_xy, *, start_frames, num_steps):
        raise ImportError("not installed")

    inputs = BatchInputs(MMEVideoProcessor(**SMALL, tracker=tracker), "cpu")({"raw_clips": []})
    # 2 tubelets of 2 x 2 tokens; 108 values of shape and 32 of position.
    assert inputs["labels"].shape == (0, 8, 140) and inputs["target_mask"].shape == (0, 8, 2)


def test_a_place_that_is_none_is_named(records):
    with pytest.raises(ValueError, match=r"targets_on \('gpu'\) must be 'workers' or 'device'"):
        build_clip_loader(records, MMEVideoProcessor(**SMALL), batch_size=1, targets_on="gpu")
