"""What the demo shows of a clip is what is in it: asked of scores, and of the pixels of the films."""

import shutil
from itertools import chain

import numpy as np
import pytest
import torch
from conftest import moving_texture, write_video
from small_models import save_small_predictor, save_sure_classifier

from mme_hf import MMEForVideoClassification, MMEVideoProcessor, VideoReadError, open_video
from mme_hf import demonstration as module
from mme_hf.demonstration import Demonstration, explained_in_words, hidden_motion_animation, read_clip
from mme_hf.hidden_motion import HiddenMotion, visible_frames

SIZE = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
# Mean level of a channel, to tell colour from grey.
GREY = 40


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return save_small_predictor(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_sure_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def demonstration(pretrained, classifier):
    return Demonstration(str(pretrained), str(classifier))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """30 frames of 48 x 64 that move to the right by 1.5 px each."""
    frames = moving_texture(30, 48, 64, velocity=(1.5, 0.0))
    return write_video(tmp_path_factory.mktemp("videos") / "right.mp4", frames, fps=10)


def film(path) -> np.ndarray:
    """Return all frames of a file, (T, H, W, 3)."""
    with open_video(path) as reader:
        return reader.frames_at(range(reader.num_frames)).permute(0, 2, 3, 1).numpy().astype(int)


def colored(frames: np.ndarray) -> np.ndarray:
    """Return the pixels that are not grey, (number, 3)."""
    return frames[frames.max(-1) - frames.min(-1) > GREY]


class CountingReader:
    """A long video of large frames that remembers which were asked for, and how many at once."""

    num_frames, average_fps = 1_000_000, 25.0

    def __init__(self):
        self.reads = []

    def frames_at(self, indices):
        self.reads.append(list(indices))
        return torch.zeros(len(indices), 3, 64, 96, dtype=torch.uint8)


@pytest.mark.parametrize("start, first", [(0, 0), (1.2, 12), (99, 22), (-3, 0)])
def test_labels_are_of_the_clip_that_begins_where_it_is_told_to(demonstration, classifier, video, start, first):
    scores, span = demonstration.labels(video, start)
    # By hand: a window of 4 frames 2 apart is 8 frames long, of 30 at 10 a second.
    assert str(span) == f"{first / 10:.2f} s to {(first + 8) / 10:.2f} s"
    with open_video(video) as reader:
        frames = reader.frames_at(range(first, first + 8, 2))
    processor = MMEVideoProcessor.from_pretrained(classifier)
    model = MMEForVideoClassification.from_pretrained(classifier).eval()
    with torch.no_grad():
        inputs = processor(frames, do_sample_frames=False, return_tensors="pt")
        expected = model(**inputs).logits[0].softmax(-1)
    assert list(scores) == ["fall", "jump", "run"]
    torch.testing.assert_close(torch.tensor(list(scores.values())), expected, atol=0.01, rtol=0)
    assert expected.std() > 0.1  # or any scores would do


def test_a_classifier_of_segments_is_shown_the_whole_video(classifier, video, tmp_path):
    MMEForVideoClassification.from_pretrained(classifier).save_pretrained(tmp_path)
    MMEVideoProcessor.from_pretrained(classifier, frame_sampling="segments").save_pretrained(tmp_path)
    assert str(Demonstration(classifier=str(tmp_path)).labels(video, 1.2)[1]) == "0.00 s to 3.00 s"


def test_tracks_to_the_right_are_red_and_nothing_is_left_without_the_camera(video, tmp_path):
    demonstration = Demonstration()
    size = {"size": {"shortest_edge": 96}, "crop_size": {"height": 96, "width": 96}}  # points enough for a camera
    demonstration.processor = MMEVideoProcessor(num_frames=4, frame_stride=2, **size)
    words = demonstration.draw_tracks(video, 1.0, tmp_path / "tracks.mp4")
    # 2 tubelets 4 raw frames apart, the last one followed as far: 9 frames of 0.1 s.
    assert words.startswith("1.00 s to 1.90 s, ")
    tracks = film(tmp_path / "tracks.mp4")
    assert tracks.shape == (9, 420, 420, 3)
    assert not len(colored(tracks[0]))
    red, _, blue = colored(tracks[3]).mean(0)
    assert red > blue + GREY
    demonstration.draw_tracks(video, 1.0, tmp_path / "less.mp4", without_camera=True)
    assert len(colored(film(tmp_path / "less.mp4")[3])) < 0.2 * len(colored(tracks[3]))


def test_films_play_in_browsers(demonstration, video, tmp_path):
    import av

    if "libx264" not in av.codecs_available:
        pytest.skip("this build of FFmpeg cannot write H.264")
    demonstration.draw_tracks(video, 0, tmp_path / "tracks.mp4")
    with av.open(str(tmp_path / "tracks.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")


@pytest.mark.parametrize("ratio, hidden", [(0.5, 2), (0.75, 3)])
def test_holes_are_as_many_as_asked_for(demonstration, video, tmp_path, ratio, hidden):
    paths = (tmp_path / "seen.mp4", tmp_path / "motion.mp4")
    words = demonstration.draw_hidden_motion(video, 0, paths, mask_ratio=ratio)
    assert f"{100 * ratio:.0f} % of the patches are hidden" in words
    seen = film(paths[0])
    is_hole = (abs(seen - 128) < 8).all(-1)
    # A tube mask of 2 x 2 patches: whole quarters of the picture are grey, the same in every frame.
    quarters = is_hole.reshape(4, 2, 140, 2, 140).mean((2, 4))
    assert ((quarters > 0.9).sum((1, 2)) == hidden).all()
    # 2 tubelets, of which each track of 4 steps grows and stays.
    assert len(film(paths[1])) == 2 * 2 * 4


def test_a_seed_decides_the_mask(demonstration, video, tmp_path):
    films = []
    for name, seed in (("a", 0), ("b", 0), ("c", 5)):
        demonstration.draw_hidden_motion(video, 0, (tmp_path / f"{name}.mp4", tmp_path / "m.mp4"), seed=seed)
        films.append((tmp_path / f"{name}.mp4").read_bytes())
    assert films[0] == films[1] != films[2]
    for seed in (-1, 2**32, 1.5, True):
        with pytest.raises(ValueError, match=rf"seed \({seed}\)"):
            demonstration.draw_hidden_motion(video, 0, (tmp_path / "a.mp4", tmp_path / "m.mp4"), seed=seed)


# By hand: 4 frames 2 apart need 9, those beside each other 5; of a shorter video all there are.
@pytest.mark.parametrize("num_frames, num_shown", [(2, 2), (4, 4), (8, 5), (9, 9)])
def test_short_videos_are_shown_without_copies_of_their_last_frame(demonstration, tmp_path, num_frames, num_shown):
    video = write_video(tmp_path / "short.mp4", moving_texture(num_frames, 48, 64))
    demonstration.draw_tracks(video, 0, tmp_path / "tracks.mp4")
    assert len(film(tmp_path / "tracks.mp4")) == num_shown
    demonstration.draw_hidden_motion(video, 0, (tmp_path / "seen.mp4", tmp_path / "motion.mp4"))
    assert len(demonstration.labels(video, 0)[0]) == 3


@pytest.mark.parametrize("height, width", [(16, 16), (96, 40), (8, 200)])
def test_frames_of_any_shape_are_shown(demonstration, tmp_path, height, width):
    video = write_video(tmp_path / "odd.mp4", moving_texture(5, height, width))
    demonstration.draw_tracks(video, 0, tmp_path / "tracks.mp4")
    demonstration.draw_hidden_motion(video, 0, (tmp_path / "seen.mp4", tmp_path / "motion.mp4"))
    sizes = [film(tmp_path / f"{name}.mp4").shape[1:3] for name in ("tracks", "seen", "motion")]
    assert sizes == [(420, 420), (280, 280), (280, 568)]


def test_only_the_clip_is_decoded_and_large_frames_not_all_at_once(monkeypatch):
    reader = CountingReader()
    monkeypatch.setattr(module, "MAX_BYTES_AT_ONCE", 4 * 3 * 64 * 96)
    processor = MMEVideoProcessor(num_frames=4, frame_stride=2, **SIZE)
    frames, span = read_clip(reader, processor, 1000.0)
    # By hand: input frames 0, 2, 4, 6, and tracks of 4 steps from frame 4.
    assert [*chain(*reader.reads)] == [*range(25_000, 25_009)] and str(span) == "1000.00 s to 1000.36 s"
    assert [len(read) for read in reader.reads] == [1, 4, 4]
    assert frames.shape == (9, 3, 32, 48)


def test_large_frames_made_small_are_those_that_the_processor_makes(video):
    processor = MMEVideoProcessor(num_frames=4, frame_stride=2, **SIZE)
    with open_video(video) as reader:
        small, _ = read_clip(reader, processor, 0)
        raw = reader.frames_at(range(9))
    ours, expected = (processor(frames, return_tensors="pt")["pixel_values"] for frames in (small, raw))
    assert (ours - expected).abs().max() < 0.03  # one level of 255 is 0.018


def test_a_single_frame_and_what_is_no_video_are_refused_in_words(demonstration, tmp_path):
    photo = write_video(tmp_path / "photo.mp4", np.zeros((1, 64, 64, 3), np.uint8))
    for show in (
        demonstration.seconds,
        lambda path: demonstration.labels(path, 0),
        lambda path: demonstration.draw_tracks(path, 0, tmp_path / "t.mp4"),
    ):
        with pytest.raises(ValueError, match="has one frame, in which nothing can move"):
            show(photo)
    for name, content in (("empty.mp4", b""), ("text.mp4", b"no video at all\n" * 100)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoReadError):
            demonstration.seconds(tmp_path / name)


def test_models_that_cannot_do_it_are_refused(pretrained, classifier, tmp_path):
    with pytest.raises(ValueError, match="is no pre-trained model"):
        Demonstration(str(classifier))
    with pytest.raises(ValueError, match="is no trained classifier"):
        Demonstration(classifier=str(pretrained))
    with pytest.raises(ValueError, match=r"pretraining_model .* there is no such folder"):
        Demonstration(str(tmp_path / "none"))


@pytest.mark.parametrize("options", [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 100}])
def test_frames_are_seen_as_they_were_however_pixels_are_scaled(options):
    processor = MMEVideoProcessor(num_frames=4, **SIZE, **options)
    frames = torch.arange(250, 254, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 32, 32)
    pixels = processor(frames, do_sample_frames=False, return_tensors="pt")["pixel_values"][0]
    assert [*visible_frames(pixels, processor)[:, 5, 5, 1]] == [250, 251, 252, 253]


def test_a_processor_may_have_no_options_for_its_tracker(pretrained, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "pretrained")
    MMEVideoProcessor.from_pretrained(folder, tracker_options=None).save_pretrained(folder)
    assert Demonstration(str(folder)).processor.tracker_options is None


def moved(*steps_x: float) -> np.ndarray:
    """Return tracks of one point that goes by these steps to the right, (L + 1, 1, 2)."""
    return np.array([[[x, 0.0]] for x in np.cumsum([0.0, *steps_x])])


@pytest.mark.parametrize(
    "target, predicted, share, words",
    [
        # By hand: 1 - ((2 - 1)^2 + (2 - 1)^2) / (2^2 + 2^2)
        ((2, 2), (1, 1), 0.75, "explains 75.0 % of the motion"),
        ((2, 2), (0, 0), 0.0, "no better than saying that nothing moves"),
        ((2, 2), (-2, -2), -3.0, "no better than saying that nothing moves"),
        ((0, 0), (1, 1), float("nan"), "Nothing moves in the holes"),
    ],
)
def test_a_share_of_the_motion_is_explained(target, predicted, share, words):
    frames, hidden = np.zeros((2, 8, 8, 3), np.uint8), np.ones((1, 8, 8), bool)
    motion = HiddenMotion(frames, hidden, moved(*target), moved(*predicted), np.zeros(1, int), factor=1)
    np.testing.assert_allclose(motion.explained_share, share)
    assert words in explained_in_words(motion.explained_share)


def test_true_and_predicted_motion_stand_side_by_side_in_their_tubelet():
    frames = np.full((4, 32, 32, 3), 100, np.uint8)
    hidden = np.zeros((2, 32, 32), bool)
    hidden[1, :, 16:] = True
    right = np.array([[[16.0, 16.0]], [[20.0, 16.0]]])
    motion = HiddenMotion(frames, hidden, right, right[::-1] * [1, 1], np.array([1]), factor=1)
    pictures = [np.asarray(image).astype(int) for image in hidden_motion_animation(motion)]
    assert len(pictures) == 2 * 2 and pictures[0].shape == (280, 568, 3)
    assert not len(colored(pictures[0]))  # the point belongs to the second tubelet
    true, predicted = pictures[-1][:, :280], pictures[-1][:, 288:]
    (red, green, _), (red_left, green_left, _) = colored(true).mean(0), colored(predicted).mean(0)
    assert red > green + GREY and green_left > red_left + GREY  # to the right is red, to the left cyan
    # The hole is greyer than the frame, on the predicted side alone.
    assert predicted[40, 200, 0] > predicted[40, 40, 0] and true[40, 200, 0] == true[40, 40, 0]
