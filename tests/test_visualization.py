"""Pictures: what a reader must be able to see in them, asked of their pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from mme_hf import MMEConfig, MMEForPreTraining, MMEVideoProcessor
from mme_hf.drawing import (
    annotated,
    direction_colors,
    draw_histograms,
    draw_tracks,
    length_factor,
    save_animation,
    table,
)
from mme_hf.hog_mme import histogram_of_gradients
from mme_hf.motion.measures import ObservedClip
from mme_hf.trajectories_mme import Trajectories, grid_points
from mme_hf.visualization import (
    changes_scene,
    clip_animation,
    clip_sheet,
    draw_motion_prediction,
    liveliest_clip,
    tracks_factor,
    tracks_sheet,
)

GREY = np.full((32, 32, 3), 100, np.uint8)


def moving_tracks(step_xy, *, num_starts=2, num_steps=4, side=32) -> Trajectories:
    steps = torch.arange(num_steps + 1)[:, None, None] * torch.tensor(step_xy, dtype=torch.float32)
    points = (grid_points(side, side) + steps).expand(num_starts, -1, -1, -1)
    return Trajectories(points, torch.ones(points.shape[:-1], dtype=torch.bool), (side, side))


def observed(tracks: Trajectories) -> ObservedClip:
    frames = torch.full((8, 3, 32, 32), 100, dtype=torch.uint8)
    return ObservedClip("folder/clip.mp4", frames, tracks, start_frames=(0, 3))


def colored(image: Image.Image) -> np.ndarray:
    """Return where a picture on grey is not grey, bool (H, W)."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    return pixels.max(-1) - pixels.min(-1) > 40


def small_processor(**options) -> MMEVideoProcessor:
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return MMEVideoProcessor(**size, num_frames=4, frame_stride=2, **options)


def test_opposite_directions_have_unlike_colors():
    turns = np.arange(8) / 8 * 2 * np.pi
    colors = direction_colors(np.stack([np.cos(turns), np.sin(turns)], -1)).astype(int)
    assert (np.abs(colors[:4] - colors[4:]).sum(-1) > 200).all()


@pytest.mark.parametrize("way, factor", [(0.3, 16), (1.0, 8), (3.0, 4), (13.0, 1), (40.0, 1)])
def test_slow_tracks_are_drawn_longer(way, factor):
    # Reach of 1.7 spacings of 8 px: 13.6 px.
    assert length_factor(np.full(100, way), 8.0, 4) == factor


def test_tracks_are_lines_as_long_as_the_factor_says():
    points = np.array([[[8.0, 16.0]], [[9.0, 16.0]], [[10.0, 16.0]]])  # 2 px to the right
    lengths = {}
    for factor in (1, 4):
        image = draw_tracks(GREY, points, np.ones((3, 1), bool), size=(320, 320), factor=factor)
        rows, columns = np.nonzero(colored(image))
        lengths[factor] = columns.max() - columns.min()
        assert rows.max() - rows.min() < 8
    # 10 px of the picture for one of the frame.
    assert lengths[4] - lengths[1] == pytest.approx(60, abs=3)


def test_points_at_rest_are_faint_dots_and_lost_ones_nothing():
    points = np.repeat(np.array([[[8.0, 8.0], [24.0, 24.0]]]), 3, axis=0)
    visible = np.array([[True, False]] * 3)
    image = np.asarray(draw_tracks(GREY, points, visible, size=(320, 320))).astype(int)
    background = image[0, 0]
    changed = np.abs(image - background).sum(-1) > 30
    assert changed[75:95, 75:95].any() and not changed[200:].any()
    assert not colored(Image.fromarray(image.astype(np.uint8))).any()


def test_a_track_ends_where_its_point_is_lost():
    points = np.stack([np.array([[4.0 + 6 * step, 16.0]]) for step in range(5)])
    visible = np.array([[True], [True], [False], [True], [True]])
    _, columns = np.nonzero(colored(draw_tracks(GREY, points, visible, size=(320, 320))))
    assert 100 <= columns.max() <= 112  # 10 px: the second position


def test_a_track_tells_where_it_ends():
    points = np.stack([np.array([[6.0 + 4 * step, 16.0]]) for step in range(6)])  # 20 px to the right
    image = np.asarray(draw_tracks(GREY, points, np.ones((6, 1), bool), size=(320, 320))).astype(int)
    tail, head = image[:, 65:100], image[:, 230:275]
    assert head.max() > 1.3 * tail.max()
    assert colored(Image.fromarray(head.astype(np.uint8))).any(1).sum() > 2  # the dot is wider than the line


def test_what_trembles_has_less_color_than_what_moves():
    ways = np.array([0.4, 2.0])  # px in two steps: 1 and 5 px of the picture
    points = np.stack([np.stack([np.array([8.0, 24.0]) + share * ways, [16.0, 16.0]], -1) for share in (0, 0.5, 1)])
    image = np.asarray(draw_tracks(GREY, points, np.ones((3, 2), bool), size=(80, 80))).astype(int)
    saturation = image.max(-1) - image.min(-1)
    assert 0 < saturation[:, :40].max() < 0.5 * saturation[:, 40:].max()


def test_a_picture_can_have_words_in_its_corner():
    image = Image.new("RGB", (120, 60), (90, 90, 90))
    changed = (np.asarray(annotated(image, "found in 3 of 8 steps, and more than fits")) != 90).any(-1)
    assert changed[40:, :110].any() and not changed[:35].any()
    assert not (np.asarray(image) != 90).any()


def test_bars_of_histograms_run_along_edges():
    frame = np.zeros((32, 32, 3), np.uint8)
    frame[:, 20:] = 255  # a vertical edge
    histograms = histogram_of_gradients(torch.from_numpy(frame).permute(2, 0, 1)[None])[0]
    image = draw_histograms(frame, histograms.unflatten(0, (3, -1)).sum(0).numpy(), size=(320, 320))
    cell = np.asarray(image).astype(int)[80:160, 160:240].sum(-1)  # the cell that holds the edge
    bright = cell > 0.8 * cell.max()
    rows, columns = np.nonzero(bright)
    assert np.ptp(rows) > 50 and np.ptp(columns) < 15


def test_sheets_say_factor_and_source():
    tracks = moving_tracks((0.5, 0.0))
    assert tracks_factor(tracks) == 4
    sheet = tracks_sheet([observed(tracks)] * 2)
    assert sheet.height > 2 * 280 and colored(sheet).any()


def test_clips_without_tracks_are_left_out():
    with pytest.raises(ValueError, match="no clip has tracks"):
        tracks_sheet([observed(None)])


def test_a_clip_is_shown_with_and_without_the_camera():
    tracks, still = moving_tracks((1.0, 0.0)), moving_tracks((0.0, 0.0))
    sheet = np.asarray(clip_sheet(observed(tracks), still, small_processor()))
    rows = [colored(Image.fromarray(sheet[25 + 286 * row : 25 + 286 * row + 280, 30:])) for row in range(3)]
    assert [row.mean() > 0.01 for row in rows] == [False, True, False]


def test_an_animation_has_every_raw_frame_once():
    # Tracks over frames 0 to 4 and 3 to 7 of the 8.
    pictures = clip_animation(observed(moving_tracks((1.0, 0.0))), moving_tracks((0.0, 0.0)))
    assert len(pictures) == 8 and len({image.size for image in pictures}) == 1
    panels = [image.crop((0, 0, image.width, 305)) for image in pictures]  # without the ring of directions below
    assert not colored(panels[0]).any() and colored(panels[2]).any()


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])
def test_animations_can_be_read_again(tmp_path, name):
    pictures = [Image.new("RGB", (41, 33), (index * 60, 0, 0)) for index in range(4)]
    save_animation(tmp_path / name, pictures, 10.0)
    if name.endswith("gif"):
        image = Image.open(tmp_path / name)
        assert (image.n_frames, image.size, image.info["duration"]) == (4, (41, 33), 100)
    else:
        from mme_hf import open_video

        with open_video(tmp_path / name) as reader:
            assert reader.num_frames == 4 and reader.average_fps == pytest.approx(10.0)
            assert reader.frames_at([3]).shape == (1, 3, 32, 40)


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in .gif or .mp4"):
        save_animation(tmp_path / "a.avi", [Image.new("RGB", (8, 8))], 10.0)


def test_long_words_fit_into_a_table():
    sheet = table([[Image.new("RGB", (60, 60))]], title="a title much too long for this " * 3, footer="words " * 30)
    assert sheet.width < 100


@pytest.fixture
def model_and_inputs():
    processor = small_processor()
    frames = torch.randint(0, 256, (processor.raw_window(), 3, 32, 32), dtype=torch.uint8)
    inputs = processor(frames, return_targets=True, return_tensors="pt")
    config = MMEConfig(
        image_size=32,
        num_frames=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        decoder_hidden_size=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        motion_targets=processor.motion_target_config(),
    )
    return MMEForPreTraining(config), processor, inputs


def test_target_and_prediction_are_drawn(model_and_inputs, tmp_path):
    model, processor, inputs = model_and_inputs
    # A target that moves to the right everywhere; what an untrained model predicts is nearly still.
    first = processor.motion_target_config()["shape"]["size"]
    inputs["labels"][..., first : first + 16] = 2.0
    inputs["labels"][..., first + 16 :] = 0.0
    inputs["target_mask"][...] = True
    model.train()
    draw_motion_prediction(model, processor, inputs, tmp_path / "new" / "motion.png", title="a clip")
    assert model.training
    sheet = Image.open(tmp_path / "new" / "motion.png")
    assert colored(sheet.crop((30, 25 + 2 * 286, sheet.width, 25 + 3 * 286))).mean() > 0.01


def test_the_liveliest_clip_is_chosen(model_and_inputs):
    model, _, inputs = model_and_inputs
    still = {**inputs, "labels": torch.zeros_like(inputs["labels"])}
    inputs["target_mask"][...] = True
    batches = [{"inputs": still, "sources": ["still"]}, {"inputs": inputs, "sources": ["lively"]}]
    assert liveliest_clip(batches, model.config.motion_targets)[1] == "lively"
    # Of the liveliest the last frames are another scene.
    cut = {**inputs, "pixel_values": inputs["pixel_values"] * 0.01, "labels": 2 * inputs["labels"]}
    cut["pixel_values"][:, -1:] += 1
    batches.append({"inputs": cut, "sources": ["cut"]})
    assert liveliest_clip(batches, model.config.motion_targets)[1] == "lively"
    assert liveliest_clip(batches[2:], model.config.motion_targets)[1] == "cut"
    assert not changes_scene(torch.rand(1, 3, 8, 8)) and not changes_scene(torch.zeros(8, 3, 8, 8))
    with pytest.raises(ValueError, match="no clip to choose from"):
        liveliest_clip([], model.config.motion_targets)
