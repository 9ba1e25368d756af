import io
import json
import pickle

import numpy as np
import PIL.Image
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoVideoProcessor, VideoMAEVideoProcessor
from transformers.video_utils import VideoMetadata

import mme_hf
from mme_hf.motion import build_tracker
from mme_hf.motion_targets_mme import REFERENCE_MOTION, histogram_of_gradients
from mme_hf.trajectories_mme import TRACKERS, ClipGeometry, grid_points
from mme_hf.video_inputs_mme import normalize_frames
from mme_hf.video_processing_mme import MMEVideoProcessor
from mme_hf.video_reading_mme import VIDEO_OPENERS

SMALL = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "num_frames": 4, "frame_stride": 2}


@pytest.fixture
def processor():
    return MMEVideoProcessor(**SMALL)


@pytest.fixture
def opener(monkeypatch):
    monkeypatch.setitem(VIDEO_OPENERS, "auto", mme_hf.open_video)


def noise(num_frames, height=40, width=56, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, 3, height, width), dtype=torch.uint8, generator=generator)


def sliding_texture(num_frames, height, width, dx, dy=0.0):
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [(generator.uniform(-0.5, 0.5, 2), generator.uniform(0, 6.28)) for _ in range(60)]
    frames = [
        sum(np.sin(f[0] * (x - dx * t) + f[1] * (y - dy * t) + phase) for f, phase in waves) for t in range(num_frames)
    ]
    grey = np.clip(127 + 22 * np.stack(frames), 0, 255).astype(np.uint8)
    return torch.from_numpy(grey)[:, None].repeat(1, 3, 1, 1)


@pytest.fixture(scope="module")
def video_file(tmp_path_factory):
    """A 30-frame mp4 whose brightness tells the frame: 8 x index."""
    import av

    path = tmp_path_factory.mktemp("video") / "steps.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 8 * index, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shown(pixel_values, processor):
    """Return the frame numbers that the brightness of pixels (1, T, C, H, W) tells."""
    mean, std = torch.tensor(processor.image_mean).view(3, 1, 1), torch.tensor(processor.image_std).view(3, 1, 1)
    return ((pixel_values[0] * std + mean) * 255 / 8).mean((1, 2, 3)).round().int().tolist()


# --- pixels


@pytest.mark.parametrize("size", [(256, 340), (128, 170), (300, 224), (225, 301), (224, 224)])
def test_pixels_equal_transformers_own(size):
    ours = MMEVideoProcessor()
    theirs = VideoMAEVideoProcessor(image_mean=ours.image_mean, image_std=ours.image_std)
    frames = noise(16, *size)
    expected = theirs(frames, return_tensors="pt")["pixel_values"]
    for given in (frames, frames.permute(0, 2, 3, 1).contiguous()):
        pixels = ours(given, return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 16, 3, 224, 224) and pixels.is_contiguous()
        assert (pixels - expected).abs().max() * 0.225 < 2 / 255


@pytest.mark.parametrize(
    "changes",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"do_resize": False},
        {"do_center_crop": False},
        {"do_center_crop": False, "do_resize": False},
        {"size": {"height": 36, "width": 33}},
        {"resample": 3},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
    ],
)
def test_every_switch_does_what_it_does_in_transformers(processor, changes):
    theirs = VideoMAEVideoProcessor(
        **{
            "size": SMALL["size"],
            "crop_size": SMALL["crop_size"],
            "image_mean": processor.image_mean,
            "image_std": processor.image_std,
            **changes,
        }
    )
    ours = processor(noise(4), return_tensors="pt", **changes)["pixel_values"]
    expected = theirs(noise(4), return_tensors="pt")["pixel_values"]
    assert ours.dtype == expected.dtype
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)


def test_float_frames_are_rescaled_only_if_asked(processor):
    frames = noise(4)
    expected = processor(frames, return_tensors="pt", do_resize=False)["pixel_values"]
    unit = processor(frames / 255, return_tensors="pt", do_resize=False, do_rescale=False)["pixel_values"]
    torch.testing.assert_close(unit, expected, atol=1e-4, rtol=1e-4)


def test_floats_that_were_rescaled_before_are_pointed_out_once(processor, caplog):
    frames = noise(4) / 255
    frames[0] = 0  # as a video that fades in
    processor(noise(4).float())
    processor(frames, do_rescale=False)
    assert not caplog.records
    processor([frames, frames])
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "do_rescale is on, and floating point frames in [0, 1] are given"
    ]
    frames[1, 0, 20, 20] = float("nan")
    with pytest.raises(ValueError, match="a video holds values that are not finite"):
        processor(frames)


@pytest.mark.parametrize("device", ["cpu", "meta"])  # "meta" goes the way of accelerators
def test_frames_of_the_caller_are_not_normalised_in_place(processor, device):
    frames = torch.ones(4, 3, 32, 32, device=device)
    version = frames._version
    assert normalize_frames(frames, processor) is not frames
    assert frames._version == version


def test_a_crop_box_is_cut_out_exactly_and_may_change_the_aspect(processor):
    frames = noise(4)
    cut = processor(frames, crop_box=(8, 4, 32, 32), return_tensors="pt", do_normalize=False)["pixel_values"]
    torch.testing.assert_close(cut[0], frames[:, :, 4:36, 8:40] / 255)
    flipped = processor(frames, crop_box=(8, 4, 32, 32), flip=True, return_tensors="pt", do_normalize=False)
    torch.testing.assert_close(flipped["pixel_values"], cut.flip(-1))
    assert processor(frames, crop_box=(0, 0, 56, 20), return_tensors="pt")["pixel_values"].shape == (1, 4, 3, 32, 32)


# --- inputs


def test_every_kind_of_input_gives_the_same_pixels(processor):
    frames = noise(4)
    channels_last = frames.permute(0, 2, 3, 1).contiguous()
    pil = [PIL.Image.fromarray(frame.numpy()) for frame in channels_last]
    inputs = [
        frames.numpy(),
        np.frombuffer(frames.numpy().tobytes(), np.uint8).reshape(frames.shape),  # read-only
        channels_last,
        channels_last.numpy(),
        list(frames),
        list(channels_last.numpy()),
        pil,
        tuple(pil),
        [frames],
        frames[None],
        frames[None].numpy(),
    ]
    expected = processor(frames, return_tensors="pt")["pixel_values"]
    for given in inputs:
        assert torch.equal(processor(given, return_tensors="pt")["pixel_values"], expected)
    assert processor([frames, pil, channels_last.numpy()], return_tensors="pt")["pixel_values"].shape[0] == 3


def half_transparent(frames):
    return torch.cat([frames, torch.full_like(frames[:, :1], 128)], dim=1)


def test_grey_and_transparent_frames_become_rgb(processor):
    grey = noise(4)[:, :1]
    expected = processor(grey.repeat(1, 3, 1, 1), return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(grey, return_tensors="pt")["pixel_values"], expected)
    opaque = torch.cat([noise(4), torch.full((4, 1, 40, 56), 255, dtype=torch.uint8)], dim=1)
    expected = processor(noise(4), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processor(opaque, return_tensors="pt")["pixel_values"], expected, atol=0.03, rtol=0)
    images = [PIL.Image.fromarray(frame.numpy()) for frame in half_transparent(noise(4)).permute(0, 2, 3, 1)]
    expected = processor(half_transparent(noise(4)), return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(images, return_tensors="pt")["pixel_values"], expected)
    mixed = [images[0], *(PIL.Image.fromarray(frame.numpy()) for frame in noise(4)[1:].permute(0, 2, 3, 1))]
    assert torch.equal(processor(mixed, return_tensors="pt")["pixel_values"][:, 0], expected[:, 0])
    half = torch.cat([noise(9), torch.full((9, 1, 40, 56), 51, dtype=torch.uint8)], dim=1)  # 51 / 255 = 0.2, on white
    on_white = (0.8 * 255 + 0.2 * noise(9)).round().to(torch.uint8)
    for raw, rgb in ((half, on_white), (half.permute(0, 2, 3, 1), on_white), (noise(9)[:, :1], noise(9)[:, :1])):
        batch = processor(raw, return_targets=True, return_tensors="pt")
        expected = processor(rgb.expand(-1, 3, -1, -1), return_targets=True, return_tensors="pt")
        assert torch.equal(batch["labels"], expected["labels"])


@pytest.mark.parametrize(("frames", "num_channels"), [(noise(4)[:, :1], 1), (half_transparent(noise(4)), 4)])
def test_frames_of_other_channels_are_normalised_by_one_number_or_not_at_all(processor, frames, num_channels):
    with pytest.raises(ValueError, match=f"frames have {num_channels} channels; image_mean and image_std are for 3"):
        processor(frames, do_convert_rgb=False)
    for options in ({"image_mean": 0.5, "image_std": 0.5}, {"do_normalize": False}):
        batch = processor(frames, do_convert_rgb=False, return_tensors="pt", **options)
        assert batch["pixel_values"].shape == (1, 4, num_channels, 32, 32)


def test_tensors_that_numpy_does_not_take_are_read(processor):
    frames, leaf = noise(4).float(), noise(4).float().requires_grad_()
    for given, whole in ((list(frames.bfloat16()), frames.bfloat16()), (leaf, frames), (list(leaf), frames)):
        pixels = processor(given, return_tensors="pt")["pixel_values"]
        assert torch.equal(pixels, processor(whole, return_tensors="pt")["pixel_values"]) and not pixels.requires_grad


def test_the_layout_of_arrays_is_not_that_of_decoded_frames(processor, video_file, opener):
    expected = processor(video_file, return_tensors="pt")["pixel_values"]
    given = processor(video_file, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    assert torch.equal(given, expected)


def test_mirrored_views_of_arrays_are_read(processor):
    bgr = noise(4).permute(0, 2, 3, 1).numpy()
    expected = processor(np.ascontiguousarray(bgr[..., ::-1]), return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(bgr[..., ::-1], return_tensors="pt")["pixel_values"], expected)
    assert torch.equal(processor([frame[..., ::-1] for frame in bgr], return_tensors="pt")["pixel_values"], expected)


def test_paths_bytes_and_decoders_give_the_middle_of_the_video(processor, video_file, opener):
    torchcodec = pytest.importorskip("torchcodec.decoders")
    data = video_file.read_bytes()
    # 4 frames at stride 2 span 7 of 30: the first is (30 - 7) // 2 = 11.
    others = (bytearray(data), memoryview(data), io.BytesIO(data), torchcodec.VideoDecoder(str(video_file)))
    for source in (str(video_file), video_file, data, *others):
        pixels = processor(source, return_tensors="pt")["pixel_values"]
        assert shown(pixels, processor) == [11, 13, 15, 17]
    assert processor([video_file, data], return_tensors="pt")["pixel_values"].shape == (2, 4, 3, 32, 32)


def test_arrays_of_the_right_length_are_taken_whole_and_longer_ones_sampled(processor):
    frames = torch.arange(30, dtype=torch.uint8).mul(8).view(30, 1, 1, 1).expand(30, 3, 32, 48)
    assert shown(processor(frames[:4], return_tensors="pt")["pixel_values"], processor) == [0, 1, 2, 3]
    assert shown(processor(frames, return_tensors="pt")["pixel_values"], processor) == [11, 13, 15, 17]
    every = processor(frames[:9], return_tensors="pt", do_sample_frames=False)["pixel_values"]
    assert every.shape[1] == 9


def test_the_pipelines_arguments_are_honoured(processor):
    frames = noise(30)
    batch = processor(frames, num_frames=8, do_sample_frames=True, return_tensors="pt")
    assert set(batch) == {"pixel_values"} and batch["pixel_values"].shape[1] == 8


@pytest.mark.parametrize(
    ("total", "expected"),
    [(30, [11, 13, 15, 17]), (7, [0, 2, 4, 6]), (6, [1, 2, 3, 4]), (4, [0, 1, 2, 3]), (2, [0, 1, 1, 1]), (1, [0] * 4)],
)
def test_short_videos_take_the_largest_stride_that_fits_then_repeat_the_last_frame(processor, total, expected):
    assert processor.sample_frames(VideoMetadata(total_num_frames=total)).tolist() == expected


def test_fps_sets_the_distance_of_frames(processor):
    metadata = VideoMetadata(total_num_frames=100, fps=30)
    assert np.diff(processor.sample_frames(metadata, fps=10)).tolist() == [3, 3, 3]
    assert np.diff(processor.sample_frames(metadata, fps=40)).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"fps \(60\) cannot be met: the video has 30 frames per second"):
        processor.sample_frames(metadata, fps=60)
    with pytest.raises(ValueError, match="needs the video's frame rate"):
        processor(noise(30), fps=10)
    batch = processor(noise(30), fps=10, video_metadata={"total_num_frames": 30, "fps": 30}, return_metadata=True)
    assert np.diff(batch["video_metadata"][0].frames_indices).tolist() == [3, 3, 3]
    nested = processor([noise(30)] * 2, fps=15, video_metadata=[[metadata]] * 2, return_metadata=True)
    assert np.diff(nested["video_metadata"][1].frames_indices).tolist() == [2, 2, 2]


# --- targets


def test_raw_frames_give_all_that_pre_training_needs():
    processor = MMEVideoProcessor()
    assert processor.raw_window() == 61 and processor.raw_window(frame_stride=1) == 19
    batch = processor(noise(61, 64, 80), return_targets=True, return_tensors="pt")
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "pixel_values": (1, 16, 3, 224, 224),
        "bool_masked_pos": (1, 1568),
        "masked_indices": (1, 8 * int(0.7 * 196)),
        "labels": (1, 1568, 140),
        "target_mask": (1, 1568, 2),
    }
    assert batch["labels"].dtype == torch.float32 and batch["target_mask"].dtype == torch.bool
    assert torch.equal(batch["bool_masked_pos"][0].nonzero().squeeze(1), batch["masked_indices"][0])


def test_targets_belong_to_the_pixels_beside_them(processor):
    raw, box = noise(processor.raw_window(), 60, 80), (7, 9, 48, 40)
    batch = processor(raw, return_targets=True, crop_box=box, flip=True, return_tensors="pt")
    plain = processor(raw[:7:2], crop_box=box, flip=True, return_tensors="pt")
    assert torch.equal(batch["pixel_values"], plain["pixel_values"])
    histogram = histogram_of_gradients(batch["pixel_values"])[0, 1, :, 0, 2]  # first cell of the second token
    assert torch.equal(batch["labels"][0, 1, :108:4], histogram)

    frames = ClipGeometry(*box, 32, 32, is_flipped=True).apply_to_frames(raw)
    tracks = build_tracker("dis")(frames, grid_points(32, 32), start_frames=(0, 4), num_steps=4)
    scaled = (tracks.displacements / (0.2 * 32 / 112)).asinh()
    torch.testing.assert_close(batch["labels"][0, 0, 108::4][:4], scaled[0, :, 0, 0], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("flip", [False, True])
def test_displacements_are_rescaled_and_mirrored_with_the_crop(flip):
    # 1.5 px to the right and 0.5 down; the box of 96 x 64 becomes 64 x 64: x shrinks by 1.5, y stays.
    position = {"normalization": "fixed", "scale_px": 1.0}
    processor = MMEVideoProcessor(
        crop_size={"height": 64, "width": 64}, num_frames=2, motion_targets={"position": position}
    )
    raw = sliding_texture(processor.raw_window(), 96, 128, dx=1.5, dy=0.5)
    batch = processor(raw, return_targets=True, crop_box=(16, 16, 96, 64), flip=flip, return_tensors="pt")
    motion = batch["labels"][0][batch["target_mask"][0, :, 0]].unflatten(-1, (2, 4, 4))
    assert motion[:, 0].median().item() == pytest.approx(-1.0 if flip else 1.0, abs=0.1)
    assert motion[:, 1].median().item() == pytest.approx(0.5, abs=0.1)


def test_dis_then_augment_agrees_with_augment_then_dis():
    raw = sliding_texture(3, 96, 128, dx=1.0, dy=-0.6)
    geometry = ClipGeometry(16, 8, 96, 80, out_height=64, out_width=64, is_flipped=True)
    before = geometry.apply_to_trajectories(build_tracker("dis")(raw, grid_points(96, 128), num_steps=2))
    inside = before.is_visible.all(dim=1)[0] & ((before.points_xy[0, 0] - 32).abs() < 22).all(-1)
    after = build_tracker("dis")(geometry.apply_to_frames(raw), before.points_xy[0, 0][inside], num_steps=2)
    error = (after.points_xy[0, -1] - before.points_xy[0, -1][inside]).norm(dim=-1)
    assert inside.sum() > 20 and error.mean() < 0.2


def test_short_raw_clips_take_the_largest_stride_then_lose_tracks_that_touch_repeated_frames(processor):
    # 4 frames: the window is 9 at stride 2, 7 at stride 1.
    assert (processor.raw_window(), processor.raw_window(1)) == (9, 7)
    raw = noise(9)
    for num_raw, stride in ((9, 2), (8, 1), (7, 1)):
        batch = processor(raw[:num_raw], return_targets=True, return_tensors="pt")
        same = processor(raw[: 3 * stride + 1 : stride], return_tensors="pt")
        assert torch.equal(batch["pixel_values"], same["pixel_values"])
    still = noise(1).expand(6, -1, -1, -1)
    batch = processor(still, return_targets=True, return_tensors="pt")
    valid = batch["target_mask"][0].view(2, 4, 2)
    assert valid[0].all() and valid[1, :, 0].all() and not valid[1, :, 1].any()
    one = processor(still[:1], return_targets=True, return_tensors="pt")
    assert not one["target_mask"][..., 1].any() and one["target_mask"][..., 0].all()


def test_only_frames_that_a_sample_needs_are_resized_and_tracked():
    class Spy:
        name, options, calls = "spy", {}, []

        def __call__(self, frames, points_xy, *, start_frames, num_steps):
            self.calls.append((frames.shape[-4], list(start_frames)))
            return build_tracker("dis")(frames, points_xy, start_frames=start_frames, num_steps=num_steps)

    processor = MMEVideoProcessor(**{**SMALL, "num_frames": 16, "frame_stride": 4})
    expected = processor(noise(70), return_targets=True, return_tensors="pt", generator=torch.manual_seed(0))
    spied = processor(
        noise(70), return_targets=True, tracker=Spy(), return_tensors="pt", generator=torch.manual_seed(0)
    )
    assert Spy.calls == [(40, list(range(0, 40, 5)))]
    assert all(torch.equal(spied[name], expected[name]) for name in expected)
    processor(noise(70), return_targets=True, tracker=Spy(), motion_targets={"shape": {}})
    assert len(Spy.calls) == 1  # a shape alone needs no tracks


def test_a_batch_of_raw_clips_equals_the_clips_one_by_one(processor):
    clips, boxes, flips = [noise(9, seed=1), noise(9, 50, 48, seed=2)], [(0, 0, 40, 40), (5, 6, 40, 33)], [False, True]
    together = processor(
        clips,
        return_targets=True,
        crop_box=boxes,
        flip=flips,
        generator=torch.Generator().manual_seed(3),
        return_tensors="pt",
    )
    generator = torch.Generator().manual_seed(3)
    for index, (clip, box, flip) in enumerate(zip(clips, boxes, flips, strict=True)):
        one = processor(clip, return_targets=True, crop_box=box, flip=flip, generator=generator, return_tensors="pt")
        assert all(torch.equal(one[name][0], together[name][index]) for name in together)


def test_videos_on_disk_give_targets_from_their_middle(processor, video_file, opener):
    batch = processor(video_file, return_targets=True, return_tensors="pt")
    assert shown(batch["pixel_values"], processor) == [10, 12, 14, 16]  # a window of 9 in 30: from frame 10


def test_a_given_mask_is_used(processor):
    mask = torch.tensor([True, False] * 4)
    batch = processor(noise(9), return_targets=True, bool_masked_pos=mask, return_tensors="pt")
    assert torch.equal(batch["bool_masked_pos"][0], mask) and batch["masked_indices"].tolist() == [[0, 2, 4, 6]]


def test_reference_options_give_published_numerics(processor):
    still = noise(1).expand(9, -1, -1, -1)
    batch = processor(still, return_targets=True, return_tensors="pt", **REFERENCE_MOTION)
    assert batch["labels"][..., 108:].eq(0).all() and batch["target_mask"].all()
    reference = MMEVideoProcessor(**SMALL, **REFERENCE_MOTION)
    activations = {name: target["activation"] for name, target in reference.motion_target_config().items()}
    assert activations == {"shape": "sigmoid", "position": "tanh"}


def test_motion_guided_masks_hide_what_moves_whatever_the_targets_are(processor):
    raw = noise(1).expand(9, -1, -1, -1).clone()
    raw[:, :, :, 28:] = torch.stack([noise(1)[0, :, :, 28:].roll(frame, dims=1) for frame in range(9)])
    options = {"mask_type": "motion", "mask_ratio": 0.5, "return_targets": True, "return_tensors": "pt"}
    guided = MMEVideoProcessor(**SMALL, motion_targets={"shape": {}}, motion_mask_strength=4.0)
    generator = torch.Generator().manual_seed(0)
    masks = [guided(raw, generator=generator, **options)["bool_masked_pos"].view(2, 2, 2) for _ in range(8)]
    assert all(mask.sum() == 4 and torch.equal(mask[0], mask[1]) for mask in masks)
    hidden = torch.stack(masks).float().mean((0, 1))
    assert hidden[:, 1].sum() > hidden[:, 0].sum()
    plain = processor(raw, generator=torch.Generator().manual_seed(0), **options, motion_mask_strength=0)
    assert plain["masked_indices"].shape == (1, 4)
    with pytest.raises(ValueError, match=r"motion_mask_strength \(-1\) must be a finite number"):
        MMEVideoProcessor(**SMALL, mask_type="motion", motion_mask_strength=-1)


# --- saving


def test_saved_and_reloaded_exactly(tmp_path):
    changed = MMEVideoProcessor(
        **SMALL,
        mask_type="cube",
        mask_ratio=0.9,
        tracker_options={"preset": "medium", "finest_scale": None},
        motion_targets={"shape": {"num_bins": 6}, "position": {"weight": 2.0}},
    )
    for processor in (MMEVideoProcessor(), changed):
        processor.save_pretrained(tmp_path)
        for again in (MMEVideoProcessor.from_pretrained(tmp_path), AutoVideoProcessor.from_pretrained(tmp_path)):
            assert type(again) is MMEVideoProcessor and again.to_dict() == processor.to_dict()
            assert list(again.motion_targets) == list(processor.motion_targets)
            assert list(again.motion_target_config().items()) == list(processor.motion_target_config().items())
            assert again.motion_target_config() == processor.motion_target_config()
    names = set(json.loads((tmp_path / "video_preprocessor_config.json").read_text()))
    assert not names & {"generator", "crop_box", "flip", "return_targets"}


def test_a_tracker_object_is_saved_by_name_and_options(tmp_path):
    processor = MMEVideoProcessor(**SMALL, tracker=build_tracker("dis", preset="ultrafast", refinement_levels=(0,)))
    processor.save_pretrained(tmp_path)
    again = MMEVideoProcessor.from_pretrained(tmp_path)
    assert again.tracker == "dis" and again.tracker_options["preset"] == "ultrafast"
    assert repr(build_tracker(again.tracker, **again.tracker_options)) == repr(processor.tracker)


def test_calls_leave_no_trace(processor):
    before = json.dumps(processor.to_dict(), default=str)
    first = processor(noise(9), return_targets=True, return_tensors="pt", generator=torch.manual_seed(1))
    processor(noise(30), num_frames=8, mask_ratio=0.5, return_targets=True, motion_targets={"shape": {}})
    assert json.dumps(processor.to_dict(), default=str) == before
    second = processor(noise(9), return_targets=True, return_tensors="pt", generator=torch.manual_seed(1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_motion_target_config_is_in_label_order(processor):
    config = processor.motion_target_config()
    assert list(config) == ["shape", "position"]
    assert (config["shape"]["size"], config["position"]["size"]) == (108, 32)
    swapped = MMEVideoProcessor(**SMALL, motion_targets={"position": {}, "shape": {}})
    assert list(swapped.motion_target_config()) == ["position", "shape"]
    kwargs = {"return_targets": True, "return_tensors": "pt"}
    labels, other = processor(noise(9), **kwargs)["labels"], swapped(noise(9), **kwargs)["labels"]
    assert torch.equal(labels, other.roll(108, dims=-1))


# --- what goes wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 5}, r"num_frames \(5\) does not divide by tubelet_size \(2\)"),
        ({"patch_size": 12}, r"patch_size \(12\) does not divide by cell_size_px \(8\)"),
        ({"mask_ratio": 1.5}, r"mask_ratio \(1.5\) must be between 0 and 1"),
        ({"mask_type": "rows"}, r"mask_type \('rows'\) is unknown"),
        ({"point_layout": "random"}, r"point_layout \('random'\) is unknown"),
        ({"frame_stride": 0}, r"frame_stride \(0\) must be at least 1"),
        ({"trajectory_num_steps": 0}, r"trajectory_num_steps \(0\) must be at least 1"),
        ({"motion_targets": {"speed": {}}}, r"motion target \('speed'\) is unknown"),
        ({"motion_targets": {"shape": {"size": 3}}}, "motion target 'shape' has no option size"),
        ({"motion_targets": {}}, "motion_targets is empty"),
        ({"motion_targets": {"shape": {"num_bins": 0}}}, r"num_bins \(0\) must be a whole number of at least 2"),
        ({"motion_targets": {"position": {"weight": -1}}}, r"weight \(-1\) must be a finite number"),
        (
            {"motion_targets": {"shape": {"cell_size_px": 5}}},
            r"patch_size \(16\) does not divide by cell_size_px \(5\)",
        ),
        (
            {"motion_targets": {"position": {"cell_size_px": 16}}},
            r"'position': cell_size_px \(16\) .* the processor's cell_size_px \(8\).*set that of the processor to 16",
        ),
        ({"motion_targets": ["speed"]}, r"motion target \('speed'\) is unknown"),
        ({"motion_targets": ["shape", "shape"]}, "names a target twice"),
        ({"motion_targets": [3]}, "motion_targets has the entry 3"),
        ({"tracker": 3}, r"tracker \(3\) must be a name or a tracker"),
        ({"tracker": "x"}, r"tracker \('x'\) is unknown. Choose one of"),
        ({"tracker_options": {"foo": 1}}, "tracker 'dis' has no option foo. Its options are preset"),
        ({"size": {"shortest_edge": -3}}, r"size\['shortest_edge'\] \(-3\) must be at least 1"),
        ({"crop_size": {"height": 0, "width": 32}}, r"crop_size\['height'\] \(0\) must be at least 1"),
        ({"crop_size": 30}, r"crop_size 30x30 does not divide by patch_size \(16\)"),
        ({"image_std": [0.0, 0.0, 0.0]}, r"image_std \(\(0.0, 0.0, 0.0\)\) must be above 0"),
        ({"image_std": [0.5, -0.5, 0.5]}, r"image_std \(\(0.5, -0.5, 0.5\)\) must be above 0"),
        ({"image_std": [float("inf")] * 3}, r"image_std \(\(inf, inf, inf\)\) must be a finite number, or 3"),
        ({"image_mean": [float("nan")] * 3}, r"image_mean \(\(nan, nan, nan\)\) must be a finite number"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean \(\(0.5, 0.5\)\) must be a finite number, or 3: one for each"),
        ({"image_mean": [0.5] * 4}, r"image_mean \(\(0.5, 0.5, 0.5, 0.5\)\) must be a finite number, or 3"),
        ({"image_mean": None}, r"image_mean \(None\) must be a finite number"),
        ({"rescale_factor": 0.0}, r"rescale_factor \(0.0\) must be above 0"),
        ({"rescale_factor": float("inf")}, r"rescale_factor \(inf\) must be a finite number\."),
        ({"fps": -1}, r"fps \(-1\) must be a finite number above 0"),
        ({"fps": 0}, r"fps \(0\) must be a finite number above 0"),
        ({"data_format": "channels_last"}, r"data_format \('channels_last'\) cannot be had: pixel_values are"),
        ({"do_pad": True}, r"do_pad \(True\) cannot be had.*pad_clips"),
    ],
)
def test_wrong_options_fail_at_construction_and_in_the_call(options, message):
    with pytest.raises(ValueError, match=message):
        MMEVideoProcessor(**{**SMALL, **options})
    with pytest.raises(ValueError, match=message):
        MMEVideoProcessor(**SMALL)(noise(9), return_targets=True, **options)


@pytest.mark.parametrize(
    ("targets", "cell_size_px", "sizes"),
    [
        # 9 bins of 3 channels in 4 x 4 cells of 4 px, beside 4 steps of 2 components of 2 x 2 points.
        ({"shape": {"cell_size_px": 4}, "position": {"cell_size_px": 8}}, 8, [432, 32]),
        ({"shape": {"cell_size_px": 4}, "position": {}}, 16, [432, 8]),
    ],
)
def test_a_target_that_reads_no_tracks_has_cells_of_its_own(targets, cell_size_px, sizes):
    processor = MMEVideoProcessor(**SMALL, motion_targets=targets, cell_size_px=cell_size_px)
    assert [target["size"] for target in processor.motion_target_config().values()] == sizes
    inputs = processor(noise(9), return_targets=True, return_tensors="pt")
    assert inputs["labels"].shape[-1] == sum(sizes)


@pytest.mark.parametrize(
    "options",
    [
        {"image_mean": [0, 0, 0], "image_std": 1, "rescale_factor": 1},
        {"image_mean": (0.5,), "image_std": [0.5]},
        {"image_std": None, "image_mean": None, "do_normalize": False},
        {"data_format": "channels_first", "do_pad": False},
    ],
)
def test_options_that_work_are_taken_at_construction_and_in_the_call(processor, options, tmp_path):
    expected = processor(noise(4), return_tensors="pt", **options)["pixel_values"]
    MMEVideoProcessor(**SMALL, **options).save_pretrained(tmp_path)
    again = MMEVideoProcessor.from_pretrained(tmp_path)
    assert torch.equal(again(noise(4), return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize("option", [{"do_normalize": "false"}, {"do_resize": "no"}, {"do_rescale": 1}, {"fps": "3"}])
def test_options_of_the_wrong_type_are_refused_wherever_they_are_given(processor, option, tmp_path):
    processor.save_pretrained(tmp_path)
    (name,) = option
    for build in (
        lambda: processor(noise(4), **option),
        lambda: MMEVideoProcessor(**SMALL, **option),
        lambda: MMEVideoProcessor.from_pretrained(tmp_path, **option),
        lambda: MMEVideoProcessor.from_dict({**processor.to_dict(), **option}),
    ):
        with pytest.raises((StrictDataclassError, ValueError), match=name):
            build()


@pytest.mark.parametrize(
    "option", [{"bool_masked_pos": torch.ones(8, dtype=torch.bool)}, {"generator": torch.Generator()}]
)
def test_what_makes_masks_is_refused_where_none_are_made(processor, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} is for masks.*set return_targets=True"):
        processor(noise(9), **option)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": "8"}, r"num_frames \('8'\) must be a whole number"),
        ({"num_frames": None}, r"num_frames \(None\) must be a whole number"),
        ({"num_frames": True}, r"num_frames \(True\) must be a whole number"),
        ({"num_frames": 8.5}, r"num_frames \(8.5\) must be a whole number"),
        ({"image_std": [0.2, 0.0, 0.2]}, r"image_std \(\(0.2, 0.0, 0.2\)\) must be above 0"),
        ({"resample": 5}, r"resample \(5\) is no filter for tensors"),
        ({"resample": 1}, r"resample \(1\) is no filter for tensors"),  # Lanczos: on CPUs of new versions alone
        ({"rescale_factor": "x"}, r"rescale_factor \('x'\) must be a finite number"),
        ({"mask_ratio": "0.7"}, r"mask_ratio \('0.7'\) must be a number"),
        ({"size": {"shortest_edge": 32.5}}, r"size\['shortest_edge'\] \(32.5\) must be a whole number"),
        ({"crop_size": {"shortest_edge": 32}}, "must give 'height' and 'width'"),
        ({"tracker_options": 3}, r"tracker_options \(3\) must be a mapping"),
        ({"motion_targets": "position"}, r"motion_targets \('position'\) must be a list of names"),
        ({"motion_targets": {"shape": None}}, r"motion_targets\['shape'\] \(None\) must be a mapping"),
        ({"fram_stride": 2}, "MMEVideoProcessor has no option fram_stride. Did you mean frame_stride"),
        ({"foo": 2}, "MMEVideoProcessor has no option foo. Its options are"),
    ],
)
def test_options_of_the_wrong_type_or_name_fail_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        MMEVideoProcessor(**{**SMALL, **options})


def test_targets_may_be_a_list_of_names(processor):
    listed = MMEVideoProcessor(**SMALL, motion_targets=["position", "shape"])
    assert listed.motion_targets == {"position": {}, "shape": {}}
    assert processor(noise(9), return_targets=True, motion_targets=["position"])["labels"][0].shape == (8, 32)


@pytest.mark.parametrize(
    ("videos", "options", "message"),
    [
        (noise(9), {"crop_box": (30, 0, 30, 30)}, "crop_box .left 30, top 0, width 30, height 30. reaches outside"),
        (noise(9), {"crop_box": (-1, 0, 30, 30)}, "must not be negative"),
        (noise(9), {"crop_box": (0, 0, 0, 30)}, "^crop_box of width 0 and height 30 is empty; both must be at least 1"),
        (noise(9), {"resample": 9}, r"^resample \(9\) is no filter for tensors. Choose"),
        (noise(9), {"generator": 3}, r"generator \(3\) must be a torch.Generator, such as"),
        (noise(9), {"generator": 3, "mask_type": "motion"}, r"generator \(3\) must be a torch.Generator"),
        (noise(9), {"crop_box": (0, 0, 30.5, 30)}, "four whole numbers"),
        (noise(9), {"crop_box": [(0, 0, 9, 9)] * 2}, "crop_box has 2 entries for 1 videos"),
        (noise(9), {"crop_box": "abcd"}, r"crop_box \('abcd'\) must be four whole numbers"),
        (noise(9), {"crop_box": 5}, r"crop_box \(5\) must be four whole numbers"),
        (noise(9), {"crop_box": (1, 2, 3)}, r"crop_box \(\(1, 2, 3\)\) must be four whole numbers"),
        (noise(9), {"crop_box": (0, 0, float("nan"), 9)}, "four whole numbers"),
        (noise(9), {"crop_box": ["abcd"]}, "four whole numbers"),
        (noise(9), {"flip": [True, False]}, "flip has 2 entries for 1 videos"),
        (noise(9), {"flip": "yes"}, r"flip \('yes'\) must be True or False"),
        (noise(9), {"flip": 1}, r"flip \(1\) must be True or False"),
        (noise(9), {"flip": [1]}, r"flip \(1\) must be True or False"),
        (noise(9), {"fps": 10}, r"fps \(10\) cannot be met with return_targets=True.* choose frame_stride"),
        (noise(9)[:, 0], {}, r"shape \(1, 9, 40, 56\).* give grey frames as \(T, 1, H, W\)"),
        (noise(9)[:, :2], {}, r"shape \(9, 2, 40, 56\).* 1, 3 or 4 channels"),
        (noise(9)[:, :2], {"input_data_format": "channels_first"}, "1, 3 or 4 channels"),
        (noise(9), {"tracker": "sift"}, r"tracker \('sift'\) is unknown. Choose one of"),
        (noise(9), {"tracker_options": {"speed": 1}}, "tracker 'dis' has no option speed"),
        (noise(9).float(), {}, "raw frames have dtype torch.float32"),
        (noise(9).int(), {}, "dtype torch.int32; it must be uint8"),
        (noise(9), {"crop_size": {"height": 40, "width": 40}, "size": {"shortest_edge": 40}}, "40x40 does not divide"),
        (noise(9, 20, 30), {"do_resize": False}, "20x30 is smaller than the crop 32x32"),
        (noise(9), {"bool_masked_pos": torch.ones(7, dtype=torch.bool)}, "has 7 tokens; the clip has 2 x 2 x 2"),
        (noise(9), {"bool_masked_pos": torch.ones(8)}, "it must be bool"),
        (noise(0), {}, "no side empty"),
        (torch.zeros(4, 4), {}, "a video has shape"),
        ([], {}, "videos is an empty list"),
        (3, {}, "videos is a int"),
        ([noise(1)[0], noise(1, 8, 8)[0]], {}, "frames of a video differ in size"),
        ([PIL.Image.new("I;16", (56, 40), 4096)] * 9, {}, "PIL image of mode 'I;16'; it must have 8 bits"),
        ([PIL.Image.new("I", (56, 40), 4096)] * 9, {}, "PIL image of mode 'I'; it must have 8 bits"),
        (PIL.Image.new("F", (56, 40), 0.5), {}, "PIL image of mode 'F'; it must have 8 bits"),
    ],
)
def test_wrong_input_names_field_value_and_remedy(processor, videos, options, message):
    with pytest.raises(ValueError, match=message):
        processor(videos, return_targets=True, **options)


def test_strides_and_filters_that_cannot_be_are_refused_for_pixels_too(processor):
    with pytest.raises(ValueError, match=r"frame_stride \(0\) must be at least 1"):
        processor(noise(30), frame_stride=0)
    with pytest.raises(ValueError, match=r"resample \(9\) is no filter"):
        processor(noise(4), resample=9)


def test_an_empty_path_is_named(processor, opener):
    with pytest.raises(mme_hf.VideoReadError, match="the path is empty"):
        processor("")


def test_a_processor_survives_pickling(processor):
    again = pickle.loads(pickle.dumps(processor))
    assert again.to_dict() == processor.to_dict()


def test_unknown_options_are_refused(processor, tmp_path):
    with pytest.raises(TypeError, match="has no option stride"):
        processor(noise(4), stride=3)
    processor.save_pretrained(tmp_path)
    for load in (MMEVideoProcessor.from_pretrained, AutoVideoProcessor.from_pretrained):
        with pytest.raises(ValueError, match="has no option fram_stride. Did you mean frame_stride"):
            load(tmp_path, fram_stride=1)


def test_a_tracker_in_place_of_the_saved_one_must_be_there(processor, tmp_path, monkeypatch):
    processor.save_pretrained(tmp_path)
    for wrong, message in (
        ({"tracker": "nope"}, r"tracker \('nope'\) is unknown. Choose one of"),
        ({"tracker_options": {"speed": 1}}, "tracker 'dis' has no option speed"),
    ):
        with pytest.raises(ValueError, match=message):
            MMEVideoProcessor.from_pretrained(tmp_path, **wrong)
    monkeypatch.setitem(TRACKERS, "own", lambda strength=1: None)
    again = MMEVideoProcessor.from_pretrained(tmp_path, tracker="own", tracker_options={"strength": 2})
    assert (again.tracker, again.tracker_options) == ("own", {"strength": 2})


def test_the_keys_of_other_versions_and_trackers_do_not_keep_a_file_from_being_read(processor, tmp_path):
    options = {**processor.to_dict(), "tracker": "theirs", "processor_class": None, "option_of_tomorrow": 1}
    options |= {"auto_map": {"AutoVideoProcessor": "x.Y"}, "_processor_class": "P", "min_frames": 4, "foo": None}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(options))
    for load in (MMEVideoProcessor.from_pretrained, AutoVideoProcessor.from_pretrained):
        again = load(tmp_path, token=None, trust_remote_code=False, revision="main", local_files_only=True)
        assert again(noise(4), return_tensors="pt")["pixel_values"].shape == (1, 4, 3, 32, 32)
        with pytest.raises(ValueError, match=r"tracker \('theirs'\) is unknown"):
            again(noise(9), return_targets=True)
    with pytest.raises(ValueError, match="has no option fram_stride. Did you mean"):
        MMEVideoProcessor.from_dict({**options, "fram_stride": 2})


def test_a_target_that_only_its_author_has_keeps_nobody_from_making_pixels(processor, tmp_path):
    (position,) = MMEVideoProcessor(motion_targets=["position"]).to_dict()["motion_targets"]
    for targets in ([{"name": "theirs", "strength": 2}], [{**position, "option_of_tomorrow": 1}]):
        options = {**processor.to_dict(), "motion_targets": targets}
        (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(options))
        again = MMEVideoProcessor.from_pretrained(tmp_path)
        assert again(noise(4), return_tensors="pt")["pixel_values"].shape == (1, 4, 3, 32, 32)
        assert again.to_dict()["motion_targets"] == targets
        for ask in (lambda made=again: made(noise(9), return_targets=True), again.motion_target_config):
            with pytest.raises(
                ValueError, match=r"'theirs'\) is unknown. Choose among|has no option option_of_tomorrow"
            ):
                ask()
        # Known ones in their place, or a misspelt one of the user's own.
        batch = MMEVideoProcessor.from_pretrained(tmp_path, motion_targets=["position"])(noise(9), return_targets=True)
        assert "labels" in batch
        with pytest.raises(ValueError, match=r"motion target \('positon'\) is unknown"):
            MMEVideoProcessor.from_pretrained(tmp_path, motion_targets=["positon"])


def test_the_file_of_videomaes_processor_says_how_pixels_are_made_and_not_to_take_all_frames(tmp_path, opener):
    VideoMAEVideoProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    processor = MMEVideoProcessor.from_pretrained(tmp_path)
    assert list(processor.image_mean) == [0.5, 0.5, 0.5] and processor.size.shortest_edge == 32
    # 16 frames, 4 apart, our defaults.
    frames = noise(100)
    expected = VideoMAEVideoProcessor.from_pretrained(tmp_path)(frames[19:80:4], return_tensors="pt")["pixel_values"]
    assert (processor(frames, return_tensors="pt")["pixel_values"] - expected).abs().max() < 1e-5
    assert MMEVideoProcessor.from_pretrained(tmp_path, do_sample_frames=False).do_sample_frames is False
    processor = MMEVideoProcessor.from_pretrained(tmp_path)
    processor.do_sample_frames = False  # and what is saved of our own stays
    processor.save_pretrained(tmp_path)
    assert MMEVideoProcessor.from_pretrained(tmp_path).do_sample_frames is False


def test_flags_and_boxes_may_be_arrays(processor):
    clips, boxes, flips = [noise(4), noise(4)], [(0, 0, 40, 40), (8, 4, 32, 32)], [True, False]
    expected = processor(clips, crop_box=boxes, flip=flips, return_tensors="pt")["pixel_values"]
    for array in (np.array, torch.tensor):
        given = processor(clips, crop_box=array(boxes), flip=array(flips), return_tensors="pt")["pixel_values"]
        assert torch.equal(given, expected)
    one = processor(noise(4), crop_box=np.array(boxes[0]), flip=np.bool_(True), return_tensors="pt")["pixel_values"]
    assert torch.equal(one[0], expected[0])


@pytest.mark.parametrize("size", [(20, 30), (31, 200), (301, 97), (33, 33)])
def test_small_wide_portrait_and_odd_frames_work(processor, size):
    batch = processor(noise(9, *size), return_targets=True, return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 4, 3, 32, 32) and batch["labels"].isfinite().all()


def test_frames_of_all_of_a_video_where_the_processor_says_segments(tmp_path):
    # 20 frames in 4 parts of 5: their middles are at 2.5, 7.5, 12.5 and 17.5.
    processor = MMEVideoProcessor(num_frames=4, frame_stride=1, frame_sampling="segments")
    processor.save_pretrained(tmp_path)
    saved = MMEVideoProcessor.from_pretrained(tmp_path)
    metadata = VideoMetadata(total_num_frames=20, fps=10)
    assert saved.sample_frames(metadata).tolist() == [2, 7, 12, 17]
    assert saved.sample_frames(metadata, frame_sampling="dense").tolist() == [8, 9, 10, 11]
    assert saved.sample_frames(metadata, fps=5).tolist() == [6, 8, 10, 12]  # asked for, so it wins
    frames = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    options = {"do_resize": False, "do_center_crop": False, "do_normalize": False, "do_rescale": False}
    pixels = saved(frames, return_tensors="pt", **options)["pixel_values"]
    assert pixels[0, :, 0, 0, 0].tolist() == [2, 7, 12, 17]
    with pytest.raises(ValueError, match=r"frame_sampling \('sparse'\) is unknown. Choose one of"):
        MMEVideoProcessor(frame_sampling="sparse")
    with pytest.raises(ValueError, match=r"frame_sampling \('sparse'\) must be one of"):
        saved(frames, frame_sampling="sparse")


def test_a_saved_processor_says_all_of_its_targets_options_so_that_a_default_may_change(tmp_path):
    MMEVideoProcessor(motion_targets={"position": {"weight": 2.0}}, cell_size_px=4).save_pretrained(tmp_path)
    (saved,) = json.loads((tmp_path / "video_preprocessor_config.json").read_text())["motion_targets"]
    given = {"name": "position", "weight": 2.0}
    assert saved == {**saved, **given, "normalization": "arcsinh", "scale_px": None, "token_rule": "all"}
    loaded = MMEVideoProcessor.from_pretrained(tmp_path)
    # 16 cells of the processor's 4 px in a token, not 4 of the target's 8 px.
    assert loaded.motion_target_config()["position"]["size"] == 2 * 4 * 16
    assert loaded.to_dict() == MMEVideoProcessor(motion_targets={"position": {"weight": 2.0}}, cell_size_px=4).to_dict()


def test_targets_of_files_from_before_visible_tokens_were_predicted_have_no_weight_for_them(tmp_path):
    # The models beside them have no layers for it.
    MMEVideoProcessor(motion_targets=["shape", "position"]).save_pretrained(tmp_path)
    path = tmp_path / "video_preprocessor_config.json"
    options = json.loads(path.read_text())
    for target in options["motion_targets"]:
        assert target.pop("visible_weight") == 1.0
    path.write_text(json.dumps(options))
    targets = MMEVideoProcessor.from_pretrained(tmp_path).motion_target_config()
    assert [target["visible_weight"] for target in targets.values()] == [0.0, 0.0]
