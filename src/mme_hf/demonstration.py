"""What `examples/demo.py` shows of a clip of a video: labels, tracks, and the motion a model predicts in its holes.

Nothing here knows of a web page: files are written, scores and sentences returned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import PartialState
from PIL import Image
from torchvision.transforms.v2 import functional as tvF

from .clip_tracks_mme import clip_tracks, follow_points
from .data.sliding_windows import USUAL_FPS, SlidingWindows
from .drawing import draw_tracks, picture, save_animation
from .frame_sampling_mme import fitting_stride
from .hidden_motion import HiddenMotion, check_has_position, hidden_motion
from .modeling_mme import MMEForPreTraining
from .motion import build_ready_tracker
from .motion.measures import ObservedClip
from .training.classifiers import load_classifier
from .training.labelled_data import label_names_of
from .training.model_names import NOT_LOADED
from .training.prediction import scores_of
from .training.trained_models import load_trained
from .video import VideoReader, open_video
from .video_processing_mme import MMEVideoProcessor
from .visualization import last_frame, panel_size, times, tracks_factor, tracks_panel
from .wording import percent

# Frames of so many bytes are decoded before they are made small: a second of a phone's 4K is 1.5 GB.
MAX_BYTES_AT_ONCE = 64 * 2**20
# Slow enough for the eye to follow a step of a track.
STEPS_PER_SECOND = 10
# A player shows no more, and an mp4 cannot hold much less.
FRAME_RATES = (0.1, 60.0)
# What is shown alone may be larger than what is shown side by side.
TRACKS_WIDTH_PX, GAP_PX = 420, 8
SEEDS = range(2**32)


@dataclass(frozen=True)
class Span:
    """The part of a video that a picture or a score is of.

    Attributes:
        first: Its first frame.
        num_frames: How many follow, with that one.
        fps: Frames per second of the video.
    """

    first: int
    num_frames: int
    fps: float

    def __str__(self) -> str:
        return f"{self.first / self.fps:.2f} s to {(self.first + self.num_frames) / self.fps:.2f} s"


class Demonstration:
    """Shows what models make of a clip, as far as there are models.

    Args:
        pretrained: Name or folder of a pre-trained model; None for no predicted motion.
        classifier: Name or folder of a classifier; None for no labels.
        tracker: How points are followed; None for what the processor says.

    Attributes:
        pretrained: The model, or None.
        classifier: The classifier, or None.
        processor: Cuts the clips that tracks are drawn over: the pre-trained model's, else the classifier's, else the
            default one.

    Raises:
        ValueError: If a model cannot be opened, or is not what it has to be.
    """

    def __init__(self, pretrained: str | None = None, classifier: str | None = None, *, tracker: str | None = None):
        device = PartialState().device
        self.pretrained, self.classifier, self._classifier_processor, own = None, None, None, None
        if classifier is not None:
            flags = dict.fromkeys(("num_frames", "frame_stride", "frame_sampling", "image_size"))
            self.classifier, own = load_classifier(SimpleNamespace(model_name_or_path=classifier, **flags))
            self.classifier.to(device)
            self._classifier_processor = own
        if pretrained is not None:
            self.pretrained, own = load_pretrained(pretrained)
            self.pretrained.to(device)
        self.processor = own or MMEVideoProcessor()
        options = {} if tracker else self.processor.tracker_options or {}
        self._tracker = build_ready_tracker(tracker or self.processor.tracker, **options)

    def seconds(self, video: str | Path) -> float:
        """Return how long a video is, having read its first frame.

        Raises:
            VideoReadError: If it cannot be read.
            ValueError: If nothing can move in it.
        """
        with open_video(video) as reader:
            _check_moves(reader)
            reader.frames_at([0])
            return reader.num_frames / _fps(reader)

    def labels(self, video: str | Path, start_seconds: float) -> tuple[dict[str, float], Span]:
        """Return the score of each class that the classifier, which there must be, knows, and what it is the score of.

        That is the clip from `start_seconds` on, or all of the video where the classifier takes segments of it.

        Raises:
            VideoReadError: If the video cannot be read.
            ValueError: If nothing can move in it.
        """
        processor = self._classifier_processor
        windows = SlidingWindows(processor.num_frames, processor.frame_stride, processor.frame_sampling)
        with open_video(video) as reader:
            _check_moves(reader)
            span = _span(reader, windows.length(reader.num_frames, _fps(reader)), start_seconds)
            frames = _small_frames(reader, [span.first + frame for frame in windows.clip(span.num_frames)], processor)
        inputs = processor(frames, do_sample_frames=False, return_tensors="pt").to(self.classifier.device)
        with torch.no_grad():
            logits = self.classifier(**inputs).logits[0]
        scores = scores_of(logits, self.classifier.config.problem_type).tolist()
        names = label_names_of(self.classifier.config)
        return dict(zip(names, scores, strict=True)), span

    def draw_tracks(
        self, video: str | Path, start_seconds: float, path: str | Path, *, without_camera: bool = False
    ) -> str:
        """Write an mp4 of a clip with the tracks of its points, and return what it shows.

        Args:
            video: Where the clip is from.
            start_seconds: Where it begins, if it still fits there.
            path: File to write.
            without_camera: Whether to take the motion of the camera out of the tracks, where it is found.

        Raises:
            VideoReadError: If the video cannot be read.
            ValueError: If nothing can move in it.
        """
        with open_video(video) as reader:
            processor = _continuous(self.processor, reader.num_frames, without_camera)
            frames, span = read_clip(reader, processor, start_seconds)
        (clips,) = processor.cut_raw_clips(frames, tracker=self._tracker)
        followed = follow_points(clips.frames, clips.plan, self._tracker, processor)
        seen, drawn = (
            tracks.each(lambda tensor: tensor[0])
            for tracks in clip_tracks(followed, clips.frames, clips.plan, processor)
        )
        clip = ObservedClip(str(video), clips.frames[0], seen, clips.plan.starts)
        size, factor = panel_size(clips.frames.shape[-2:], TRACKS_WIDTH_PX), tracks_factor(seen)
        # Of a short video the last frames are copies.
        numbers = range(min(last_frame(clip) + 1, len(frames)))
        pictures = [tracks_panel(clip, drawn, number, size, factor) for number in numbers]
        save_animation(path, pictures, _shown_fps(span.fps))
        return f"{span}, the middle of the frame, as models are given it. Tracks are {times(factor)}."

    def draw_hidden_motion(
        self,
        video: str | Path,
        start_seconds: float,
        paths: tuple[str | Path, str | Path],
        *,
        mask_ratio: float | None = None,
        seed: int = 0,
    ) -> str:
        """Write two mp4 files, a clip as the model sees it and the motion in its holes, and return what they show.

        There must be a pre-trained model.

        Args:
            video: Where the clip is from.
            start_seconds: Where it begins, if it still fits there.
            paths: Files to write. The second has the true motion over the frame on the left, and the predicted one
                over what the model sees on the right.
            mask_ratio: Share of the tokens to hide, in (0, 1); None for the processor's.
            seed: Of the mask.

        Raises:
            VideoReadError: If the video cannot be read.
            ValueError: If nothing can move in it, or `mask_ratio` or `seed` cannot be used.
        """
        processor = self.processor
        # A range looks for what is no int in each of its numbers.
        if isinstance(seed, bool) or not isinstance(seed, Integral) or int(seed) not in SEEDS:
            raise ValueError(f"seed ({seed}) must be a whole number from 0 to {SEEDS[-1]}.")
        with open_video(video) as reader:
            frames, span = read_clip(reader, processor, start_seconds)
        inputs = processor(
            frames,
            return_targets=True,
            tracker=self._tracker,
            mask_ratio=processor.mask_ratio if mask_ratio is None else float(mask_ratio),
            generator=torch.Generator().manual_seed(int(seed)),
            return_tensors="pt",
        )
        motion = hidden_motion(self.pretrained, processor, inputs)
        size = panel_size(motion.frames.shape[1:3])
        seen = [picture(motion.seen_frame(index), size) for index in range(len(motion.frames))]
        stride = fitting_stride(len(frames), processor.num_frames, processor.frame_stride)
        save_animation(paths[0], seen, _shown_fps(span.fps / stride))
        save_animation(paths[1], list(hidden_motion_animation(motion)), STEPS_PER_SECOND)
        hidden = percent(float(inputs["bool_masked_pos"].float().mean()), 0)
        return (
            f"{span}. {hidden} of the patches are hidden. Tracks over {motion.num_steps} raw frames, "
            f"{times(motion.factor)}, in slow motion. {explained_in_words(motion.explained_share)}"
        )


def load_pretrained(name: str) -> tuple[MMEForPreTraining, MMEVideoProcessor]:
    """Return a pre-trained model that predicts motion, and its processor.

    Raises:
        ValueError: If there is none, or it has no trained decoder, or motion is not among what it predicts.
    """
    model = load_trained(
        MMEForPreTraining,
        "pretraining_model",
        name,
        kind="pre-trained model",
        remedy="Name what examples/pretrain.py saved; a classifier is for --model_name_or_path.",
    )
    try:
        processor = MMEVideoProcessor.from_pretrained(name)
    except NOT_LOADED as error:
        raise ValueError(f"pretraining_model ({name!r}) has no processor that can be opened: {error}") from error
    check_has_position(list(model.config.motion_targets))
    return model, processor


def read_clip(reader: VideoReader, processor: MMEVideoProcessor, start_seconds: float) -> tuple[torch.Tensor, Span]:
    """Return the raw frames of one clip, uint8 (T, 3, H, W), and where it lies.

    Args:
        reader: Of the video. No other frames are decoded than a seek needs.
        processor: Says how many raw frames a clip has, and how small large ones may be made.
        start_seconds: Where it begins; a later start than there are frames for becomes the last possible one.

    Raises:
        VideoReadError: If a frame cannot be decoded.
        ValueError: If nothing can move in the video, or `start_seconds` is no number.
    """
    _check_moves(reader)
    span = _span(reader, processor.raw_window_for(reader.num_frames), start_seconds)
    return _small_frames(reader, range(span.first, span.first + span.num_frames), processor), span


def hidden_motion_animation(motion: HiddenMotion) -> Iterator[Image.Image]:
    """Yield pictures of tubelet after tubelet: true tracks over the frame, predicted ones over what the model sees.

    Tracks grow by one step a picture, and stay as long again when they are whole.
    """
    size = panel_size(motion.frames.shape[1:3])
    frames_per_tubelet = len(motion.frames) // len(motion.is_hidden)
    for tubelet in range(len(motion.is_hidden)):
        sides = (
            (motion.frame(tubelet), motion.target_xy),
            (motion.seen_frame(tubelet * frames_per_tubelet), motion.predicted_xy),
        )
        for num_positions in range(2, motion.num_steps + 2):
            pair = Image.new("RGB", (2 * size[1] + GAP_PX, size[0]), "white")
            for side, (frame, points_xy) in enumerate(sides):
                points, is_drawn = motion.tracks_of(points_xy[:num_positions], tubelet)
                image = draw_tracks(frame, points, is_drawn, size=size, factor=motion.factor)
                pair.paste(image, (side * (size[1] + GAP_PX), 0))
            yield pair
        yield from [pair] * motion.num_steps


def explained_in_words(share: float) -> str:
    """Return what a model is worth on one clip, for someone who has never heard of an explained share."""
    if math.isnan(share):
        return "Nothing moves in the holes of this clip."
    if share <= 0:
        return (
            "The prediction is no better than saying that nothing moves "
            f"(explained share {percent(share)}): the model needs more training, or other videos."
        )
    return f"The prediction explains {percent(share)} of the motion in the holes (0 %: saying that nothing moves)."


def _check_moves(reader: VideoReader) -> None:
    if reader.num_frames < 2:
        raise ValueError("The video has one frame, in which nothing can move. Take one with at least two.")


def _fps(reader: VideoReader) -> float:
    fps = reader.average_fps
    return fps if fps and math.isfinite(fps) else USUAL_FPS


def _shown_fps(fps: float) -> float:
    return min(max(fps, FRAME_RATES[0]), FRAME_RATES[1])


def _span(reader: VideoReader, num_frames: int, start_seconds: float) -> Span:
    if not math.isfinite(start_seconds):
        raise ValueError(f"start ({start_seconds}) must be a number of seconds.")
    latest = reader.num_frames - num_frames
    return Span(min(max(0, round(start_seconds * _fps(reader))), latest), num_frames, _fps(reader))


def _small_frames(reader: VideoReader, indices: Sequence[int], processor: MMEVideoProcessor) -> torch.Tensor:
    """Return frames whose short side is at most what the processor makes it, so that few large ones are in memory."""
    side = (processor.size or {}).get("shortest_edge") if processor.do_resize else None
    per_read, parts = 1, []
    while indices:
        frames = reader.frames_at(indices[:per_read])
        indices, per_read = indices[per_read:], max(1, MAX_BYTES_AT_ONCE // frames[0].numel())
        parts.append(tvF.resize(frames, [side], antialias=True) if side and min(frames.shape[-2:]) > side else frames)
    return torch.cat(parts)


def _continuous(processor: MMEVideoProcessor, num_available: int, without_camera: bool) -> MMEVideoProcessor:
    """Return a processor whose tracks reach from each tubelet to the next: points are followed without a gap."""
    stride = max(1, min(processor.frame_stride, (num_available - 1) // processor.num_frames))
    return MMEVideoProcessor(
        **{
            **processor.to_dict(),
            "frame_stride": stride,
            "trajectory_num_steps": processor.tubelet_size * stride,
            "motion_targets": {"position": {}},
            "mask_type": "tube",
            "camera_motion": "remove" if without_camera else "keep",
        }
    )
