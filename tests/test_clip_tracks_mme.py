"""The processor's labels and masks, with the camera's motion and without."""

import pytest
import torch
from conftest import moving_texture

from mme_hf import MMEVideoProcessor, build_tracker
from mme_hf.motion import StoredTracker, extract_motion
from mme_hf.motion.report import ClipObserver, health_of
from mme_hf.trajectories_mme import TRACK_FILTERS

SMALL = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}, "num_frames": 4, "frame_stride": 2}
PAN = (2.0, 1.0)


def panned_frames(follows=False):
    """Return 9 raw frames of a texture that passes by PAN px a frame, behind an object that stays in its place."""
    frames = torch.from_numpy(moving_texture(9, 64, 64, velocity=PAN)).permute(0, 3, 1, 2).clone()
    if follows:
        frames[:, :, 16:48, 16:48] = torch.from_numpy(moving_texture(1, 32, 32, seed=5)).permute(0, 3, 1, 2)
    return frames


def position_labels(frames, **options):
    """Return labels of `position` in pixels: (tokens that count, 2 components, steps * points)."""
    processor = MMEVideoProcessor(**SMALL, motion_targets={"position": {"normalization": "fixed", "scale_px": 1.0}})
    batch = processor(frames, return_targets=True, return_tensors="pt", **options)
    return batch["labels"][0][batch["target_mask"][0, :, 0]].unflatten(-1, (2, -1))


def test_the_processor_makes_labels_of_what_the_camera_leaves():
    kept, removed = (position_labels(panned_frames(), camera_motion=choice) for choice in ("keep", "remove"))
    assert kept.shape == removed.shape and len(kept) > 8
    assert (kept.mean((0, 2)) - torch.tensor(PAN)).abs().max() < 0.1
    assert removed.abs().mean() < 0.1


def test_it_does_so_with_stored_tracks_too():
    class Video:
        num_frames = 9

        def frames_at(self, indices):
            return panned_frames()[list(indices)]

    tracker = StoredTracker(extract_motion(Video(), build_tracker("dis")))
    kept, removed = (
        position_labels(panned_frames(), tracker=tracker, camera_motion=choice) for choice in ("keep", "remove")
    )
    assert (kept.mean((0, 2)) - torch.tensor(PAN)).abs().max() < 0.1
    assert removed.abs().mean() < 0.1


def test_shape_is_still_read_where_the_points_are():
    processor = MMEVideoProcessor(**SMALL, motion_targets=["shape_along_track", "flow"])
    kept, removed = (
        processor(panned_frames(), return_targets=True, return_tensors="pt", camera_motion=choice)["labels"]
        for choice in ("keep", "remove")
    )
    size = processor.motion_target_config()["shape_along_track"]["size"]
    assert torch.equal(kept[..., :size], removed[..., :size])
    assert removed[..., size:].abs().mean() < 0.1 * kept[..., size:].abs().mean()


def test_motion_masks_go_to_what_moves_against_the_background():
    # The camera follows an object: in the frame all but the object moves.
    masks = {}
    for choice in ("keep", "remove"):
        processor = MMEVideoProcessor(**SMALL, mask_type="motion", mask_ratio=0.25, motion_mask_strength=4.0)
        batch = processor(
            panned_frames(follows=True),
            return_targets=True,
            return_tensors="pt",
            camera_motion=choice,
            generator=torch.Generator().manual_seed(0),
        )
        masks[choice] = batch["bool_masked_pos"].view(2, 4, 4)[0]
    # The object lies in the four patches in the middle, a quarter of the 16.
    assert masks["keep"][1:3, 1:3].sum() <= 1 and masks["remove"][1:3, 1:3].sum() >= 3


def test_without_the_package_the_option_is_a_named_error(monkeypatch):
    tracker = build_tracker("dis")
    monkeypatch.delitem(TRACK_FILTERS, "remove_camera_motion")
    position_labels(panned_frames(), tracker=tracker)
    with pytest.raises(ValueError, match=r"camera_motion \('remove'\) is not available: .*pip install mme_hf"):
        position_labels(panned_frames(), tracker=tracker, camera_motion="remove")


def test_the_option_is_saved_and_checked(tmp_path):
    MMEVideoProcessor(**SMALL, camera_motion="remove").save_pretrained(tmp_path)
    assert MMEVideoProcessor.from_pretrained(tmp_path).camera_motion == "remove"
    with pytest.raises(ValueError, match=r"camera_motion \('off'\) is unknown. Choose one of \['keep', 'remove'\]"):
        MMEVideoProcessor(camera_motion="off")


def test_the_health_report_says_when_the_camera_is_hardly_ever_found():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (9, 3, 64, 64), dtype=torch.uint8, generator=generator)
    processor = MMEVideoProcessor(**SMALL, motion_targets=["position"], camera_motion="remove")
    for frames, expected in ((noise, True), (panned_frames(), False)):
        observer = ClipObserver(processor)
        observer(frames)
        warnings = health_of(observer.clips, processor).warnings
        assert any("camera_motion is 'remove'" in warning for warning in warnings) is expected
