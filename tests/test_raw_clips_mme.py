"""Clips cut one by one and worked on together give what each gives alone, anywhere."""

import io
import pickle
from dataclasses import replace

import pytest
import torch
from conftest import moving_texture
from teachers import save_teacher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mme_hf import MMEVideoProcessor, build_tracker, clip_tracks_mme, point_tracking_mme, raw_clips_mme
from mme_hf.motion import StoredTracker, extract_motion
from mme_hf.raw_clips_mme import join_raw_clips

SMALL = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "num_frames": 4, "frame_stride": 2}
# Frames of each clip of a batch: stride 2 needs 9, stride 1 needs 7, below that the last frame is repeated. So three
# plans, one of them met three times, not in a row.
LENGTHS = (9, 7, 12, 3, 9)
CUTS = [{"crop_box": (2 * i, i, 40 + i, 38), "flip": bool(i % 2)} for i in range(len(LENGTHS))]
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def videos():
    return [
        torch.from_numpy(moving_texture(length, 48, 64, velocity=(1.0 + i, -0.5), seed=i)).permute(0, 3, 1, 2)
        for i, length in enumerate(LENGTHS)
    ]


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    """All of them, position in a normalisation that looks at the whole clip."""
    names = ("shape", "shape_along_track", "flow", "pixels")
    teacher = save_teacher(tmp_path_factory.mktemp("teacher"))
    return {
        **{name: {} for name in names},
        "position": {"normalization": "robust_clip"},
        "features": {"teacher": teacher, "image_size_px": 32},
    }


def generators():
    return [torch.Generator().manual_seed(seed) for seed in range(len(LENGTHS))]


def one_by_one(processor, **options):
    """Return the inputs that each clip gives alone."""
    batches = [
        processor(video, return_targets=True, generator=generator, return_tensors="pt", **cut, **options)
        for video, cut, generator in zip(videos(), CUTS, generators(), strict=True)
    ]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def cut_all(processor, **options):
    return join_raw_clips(
        [
            processor.cut_raw_clips(video, generator=generator, **cut, **options)
            for video, cut, generator in zip(videos(), CUTS, generators(), strict=True)
        ]
    )


def assert_same(inputs, expected, tolerance=1e-5):
    assert list(inputs) == list(expected)
    for name, tensor in expected.items():
        assert inputs[name].dtype == tensor.dtype
        if name == "labels":
            torch.testing.assert_close(inputs[name], tensor, atol=tolerance, rtol=tolerance)
        else:
            assert torch.equal(inputs[name], tensor), name


@pytest.mark.parametrize("tracker", ["torch", "dis"])
@pytest.mark.parametrize("camera_motion", ["keep", "remove"])
@pytest.mark.parametrize("mask_type", ["tube", "motion"])  # the others differ from "tube" in `build_mask` alone
def test_short_and_long_clips_together_give_what_each_gives_alone(targets, mask_type, camera_motion, tracker):
    options = {"mask_type": mask_type, "camera_motion": camera_motion, "tracker": tracker, "motion_targets": targets}
    processor = MMEVideoProcessor(**SMALL, **options)
    clips = cut_all(processor)
    assert sorted(own.places for own in clips) == [(0, 2, 4), (1,), (3,)]
    assert all(own.frames.dtype == torch.uint8 for own in clips)
    assert_same(processor.inputs_from_raw_clips(clips), one_by_one(processor))


@pytest.mark.parametrize("length", [19, 12, 3])
def test_the_needed_frames_alone_give_what_all_frames_give(length):
    processor = MMEVideoProcessor(**{**SMALL, "frame_stride": 6}, tracker="torch")
    video = torch.from_numpy(moving_texture(length, 48, 64)).permute(0, 3, 1, 2)
    needed = processor.raw_frames_for(length)
    # Inputs 0, 6, 12, 18 and tracks of 4 steps from 0 and 12; stride 3: 0, 3, 6, 9 and from 0 and 6; all of 3 frames.
    expected = {19: [*range(5), 6, *range(12, 17), 18], 12: [0, 1, 2, 3, 4, 6, 7, 8, 9, 10], 3: [0, 1, 2]}
    assert needed == expected[length]
    options = {"return_targets": True, "return_tensors": "pt"}
    whole = processor(video, generator=torch.Generator().manual_seed(0), **options)
    named = {"video_metadata": {"frames_indices": [5 + frame for frame in needed]}}
    alone = processor(video[needed], generator=torch.Generator().manual_seed(0), **named, **options)
    assert_same(alone, whole, tolerance=0)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([0, 1, 2, 3, 4, 6, 7, 8, 18], r"5 raw frames are missing, the first is frame 12"),
        ([0, 1, 2], r"has 3 frames_indices for 9 raw frames"),
        ([0, 1, 2, 3, 4, 4, 5, 6, 7], r"for each, ascending"),
    ],
)
def test_frames_that_are_not_those_needed_are_refused(numbers, message):
    processor = MMEVideoProcessor(**{**SMALL, "frame_stride": 6})
    video = torch.zeros(9, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        processor(video, return_targets=True, video_metadata={"frames_indices": numbers})


def test_batches_of_batches_keep_their_order():
    processor = MMEVideoProcessor(**SMALL)
    clips = [
        processor.cut_raw_clips(video, generator=generator, **cut)
        for video, cut, generator in zip(videos(), CUTS, generators(), strict=True)
    ]
    joined = join_raw_clips([join_raw_clips(clips[:2]), [], join_raw_clips(clips[2:])])
    assert_same(processor.inputs_from_raw_clips(joined), one_by_one(processor))


def test_clips_travel_between_processes():
    processor = MMEVideoProcessor(**SMALL, mask_type="motion")
    clips = pickle.load(io.BytesIO(pickle.dumps(cut_all(processor))))
    assert_same(processor.inputs_from_raw_clips(clips), one_by_one(processor))


def test_given_masks_are_kept():
    processor = MMEVideoProcessor(**SMALL, mask_type="motion")
    mask = torch.tensor([True, False, False, True] * 2)
    inputs = processor.inputs_from_raw_clips(cut_all(processor, bool_masked_pos=mask))
    assert torch.equal(inputs["bool_masked_pos"], mask.expand(len(LENGTHS), -1))
    assert inputs["masked_indices"].tolist() == [[0, 3, 4, 7]] * len(LENGTHS)


def test_as_many_tokens_are_hidden_as_the_clip_was_cut_for():
    processor = MMEVideoProcessor(**SMALL, mask_type="motion", mask_ratio=0.75)
    inputs = processor.inputs_from_raw_clips(processor.cut_raw_clips(videos()[0], mask_ratio=0.5))
    assert inputs["bool_masked_pos"].sum() == 4  # of 2 x 2 x 2 tokens
    assert inputs["masked_indices"].tolist() == [inputs["bool_masked_pos"][0].nonzero()[:, 0].tolist()]


def test_tracks_of_a_clips_own_tracker_travel_with_it():
    class Video:
        num_frames = LENGTHS[0]

        def frames_at(self, indices):
            return videos()[0][list(indices)]

    tracker = StoredTracker(extract_motion(Video(), build_tracker("dis")))
    processor = MMEVideoProcessor(**SMALL)
    options = {"crop_box": (4, 2, 40, 40), "flip": True, "generator": torch.Generator().manual_seed(0)}
    expected = processor(videos()[0], return_targets=True, tracker=tracker, return_tensors="pt", **options)
    options["generator"].manual_seed(0)
    clips = processor.cut_raw_clips(videos()[0], tracker=tracker, **options)
    assert_same(processor.inputs_from_raw_clips(clips), expected, tolerance=0)
    (other,) = processor.cut_raw_clips(videos()[0], generator=torch.Generator())
    assert len(join_raw_clips([clips, [other]])) == 2  # followed already, and still to be followed


class Products(TorchDispatchMode):
    """Notes of matrix products and convolutions how exactly they were computed."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("mm", "bmm", "addmm", "convolution"):
            matmul = getattr(torch.backends.mkldnn, "matmul", None)  # from torch 2.9 on
            self.found.add(matmul.fp32_precision if matmul else torch.get_float32_matmul_precision())
        return function(*args, **kwargs or {})


def test_how_a_model_is_computed_does_not_reach_labels(targets):
    options = {"tracker": "torch", "mask_type": "motion", "motion_targets": targets, "camera_motion": "remove"}
    processor = MMEVideoProcessor(**SMALL, **options)
    clips = cut_all(processor)
    expected = processor.inputs_from_raw_clips(clips)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # of float32 as bfloat16, on what can
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.enable_grad(), Products() as products:
            inputs = processor.inputs_from_raw_clips(clips)
        assert products.found in ({"ieee"}, {"highest"}) and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert_same(inputs, expected, tolerance=0)
    assert inputs["labels"].dtype == torch.float32 and not any(tensor.requires_grad for tensor in inputs.values())


class NothingIsAsked(TorchDispatchMode):
    """Fails where the values of a tensor decide what is done next: on a GPU that would wait for it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for index in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique") and not by_mask, name
        return function(*args, **(kwargs or {}))


def test_nothing_is_asked_of_the_device(targets, monkeypatch):
    # On a GPU these do not ask either: they assert there.
    for module in (point_tracking_mme, clip_tracks_mme, raw_clips_mme):
        monkeypatch.setattr(module, "check_finite", lambda name, values: None)
    options = {"mask_type": "motion", "camera_motion": "remove", "tracker": "torch"}
    # The teacher is another's model, which may ask what it likes.
    targets = {name: own for name, own in targets.items() if name != "features"}
    processor = MMEVideoProcessor(**SMALL, **options, motion_targets=targets)
    clips = cut_all(processor)
    with NothingIsAsked():
        processor.inputs_from_raw_clips(clips)


def test_all_is_made_on_the_device_of_the_frames(targets):
    # Pretended tensors of a GPU: torch refuses what would mix them with others of the CPU. The teacher is a real model.
    targets = {name: own for name, own in targets.items() if name != "features"}
    options = {"mask_type": "motion", "camera_motion": "remove", "tracker": "torch"}
    processor = MMEVideoProcessor(**SMALL, **options, motion_targets=targets)
    clips = cut_all(processor)[1:]  # two plans, so that their parts are put in order too
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_gpu = [own._each(lambda tensor: torch.empty_like(tensor, device="cuda")) for own in clips]
        inputs = processor.inputs_from_raw_clips(on_gpu)
        assert {tensor.device.type for tensor in inputs.values()} == {"cuda"}


@NEEDS_CUDA
@pytest.mark.parametrize("mask_type", ["tube", "motion"])
def test_a_gpu_gives_the_same_numbers_without_waiting(targets, mask_type):
    options = {"tracker": "torch", "mask_type": mask_type, "camera_motion": "remove"}
    processor = MMEVideoProcessor(**SMALL, **options, motion_targets=targets)
    expected = one_by_one(processor)
    clips = [own.pin_memory().to("cuda") for own in cut_all(processor)]
    processor.inputs_from_raw_clips(clips)  # loads the teacher and whatever CUDA loads at first
    torch.cuda.set_sync_debug_mode("error")
    try:
        inputs = processor.inputs_from_raw_clips(clips)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    inputs = {name: tensor.cpu() for name, tensor in inputs.items()}
    # Single points may be judged otherwise on the two; the tracker's own tests bound how many.
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
    if mask_type == "tube":
        assert torch.equal(inputs["masked_indices"], expected["masked_indices"])
    assert ((inputs["labels"] - expected["labels"]).abs() < 1e-3).float().mean() > 0.99


def test_what_cannot_be_put_together_is_named():
    processor = MMEVideoProcessor(**SMALL)
    with pytest.raises(ValueError, match="there is no clip to make inputs of"):
        processor.inputs_from_raw_clips([])
    clips = [
        processor.cut_raw_clips(videos()[0], generator=torch.Generator(), mask_ratio=ratio) for ratio in (0.3, 0.6)
    ]
    with pytest.raises(ValueError, match=r"masked_indices differs in shape between videos: \[\(2,\), \(4,\)\]"):
        processor.inputs_from_raw_clips(join_raw_clips(clips))


def test_a_tracker_that_takes_a_batch_for_one_clip_is_named():
    class First:
        name, options = "first", {}

        def __call__(self, frames, points_xy, **options):
            return build_tracker("dis")(frames[0], points_xy, **options)

    with pytest.raises(ValueError, match=r"tracker \('first'\) returned tracks of shape \(2, 5, 16, 2\) for frames"):
        MMEVideoProcessor(**SMALL)(videos()[0], return_targets=True, tracker=First())


class LosesPoints:
    """Right tracks of which every ninth point is lost from its third position on, and is then `place`."""

    name, options = "loses", {}

    def __init__(self, place, *, is_honest=True):
        self.place, self.is_honest = place, is_honest

    def __call__(self, frames, points_xy, **options):
        tracks = build_tracker("dis")(frames, points_xy, **options)
        lost = torch.zeros_like(tracks.is_visible)
        lost[..., 2:, ::9] = True
        positions = (
            tracks.points_xy if self.place is None else tracks.points_xy.masked_fill(lost[..., None], self.place)
        )
        return replace(tracks.hide(lost) if self.is_honest else tracks, points_xy=positions)


@pytest.mark.parametrize("camera_motion", ["keep", "remove"])
def test_a_tracker_may_put_lost_points_nowhere(targets, camera_motion):
    options = {"mask_type": "motion", "mask_ratio": 0.5, "camera_motion": camera_motion, "motion_targets": targets}
    size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    processor = MMEVideoProcessor(**{**SMALL, **size}, **options)
    video = torch.from_numpy(moving_texture(9, 64, 64, velocity=(1.5, -0.5))).permute(0, 3, 1, 2)
    expected, inputs = (
        processor(
            video,
            return_targets=True,
            tracker=LosesPoints(place),
            generator=torch.Generator().manual_seed(0),
            return_tensors="pt",
        )
        for place in (None, torch.nan)
    )
    counts = inputs["target_mask"]
    assert torch.equal(counts, expected["target_mask"]) and 0 < counts.float().mean() < 1
    assert torch.equal(inputs["bool_masked_pos"], expected["bool_masked_pos"])
    sizes = [target["size"] for target in processor.motion_target_config().values()]
    counts = counts.repeat_interleave(torch.tensor(sizes), dim=-1)
    assert torch.equal(inputs["labels"][counts], expected["labels"][counts]) and inputs["labels"].isfinite().all()


def test_a_visible_point_that_is_nowhere_is_an_error():
    with pytest.raises(ValueError, match=r"tracker \('loses'\) returned as positions of visible points"):
        MMEVideoProcessor(**SMALL)(
            videos()[0], return_targets=True, tracker=LosesPoints(torch.nan, is_honest=False), return_tensors="pt"
        )
