"""Say what happens in videos: `python examples/predict.py VIDEO... --model_name_or_path MODEL`.

    python examples/predict.py clip.mp4 folder https://host/film.mp4 --model_name_or_path outputs/finetune
    ffmpeg -i rtsp://camera -f mpegts - | python examples/predict.py - --model_name_or_path outputs/finetune

A window slides over each video, and one clip of each window is classified; the score of a video is their mean. Of a
video of any length only a few clips are in memory at a time. Files are opened for random access; URLs and '-' (standard
input) are streams, read once, in order, and told about as they come: Ctrl-C ends an endless one. The terminal shows the
best labels, a picture when each was seen, and `--json FILE` takes all of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from mme_hf import VideoReadError, open_video
from mme_hf.charts import clock, draw_timeline
from mme_hf.data import load_folder_records
from mme_hf.data.bad_videos import printable
from mme_hf.data.sliding_windows import SlidingWindows, WindowClip
from mme_hf.training import parse_arguments, set_up_logging
from mme_hf.training.classifiers import load_classifier
from mme_hf.training.judging_arguments import PredictionArguments
from mme_hf.training.labelled_data import label_names_of
from mme_hf.training.prediction import scores_of
from mme_hf.training.processes import use_all_cores
from mme_hf.training.setup import check_output_dir, check_output_file
from mme_hf.video.stream import stream_frames
from mme_hf.wording import counted, percent

BAR_WIDTH = 30
MAX_SPANS_SHOWN = 20
MAX_PICTURES, PICTURE_HEIGHT_PX = 10, 120


@dataclass
class WatchedVideo:
    """What was seen in one video: the time and the scores of each window."""

    name: str
    is_stream: bool
    times: list[tuple[float, float]] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)

    @property
    def mean_scores(self) -> torch.Tensor:
        """Mean over windows, shape (classes,)."""
        return torch.stack(self.scores).mean(0)

    def spans(self) -> list[tuple[float, float, int, float]]:
        """Return (start, end, label, mean score) of each run of windows with the same best label."""
        best = [int(scores.argmax()) for scores in self.scores]
        spans = []
        for label, group in groupby(range(len(best)), key=best.__getitem__):
            windows = list(group)
            mean = float(torch.stack([self.scores[window][label] for window in windows]).mean())
            spans.append((self.times[windows[0]][0], self.times[windows[-1]][1], label, mean))
        return spans


class StandardInput:
    """What is piped in, as it arrives. Ctrl-C is its end: what FFmpeg calls cannot raise it."""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end."""
        try:
            return sys.stdin.buffer.read1(size)
        except KeyboardInterrupt:
            return b""


class Prediction:
    """One run over all videos that are named."""

    def __init__(self, args: PredictionArguments):
        self.args = args
        check_output_dir(args.output_dir)
        if args.json:
            check_output_file(args.json, "json")
        self.accelerator = Accelerator(mixed_precision=args.mixed_precision)
        set_up_logging(is_main_process=True)
        use_all_cores()
        self.model, self.processor = load_classifier(args)
        self.model.to(self.accelerator.device)
        self.label_names = label_names_of(self.model.config)
        self.windows = SlidingWindows(
            self.processor.num_frames,
            self.processor.frame_stride,
            self.processor.frame_sampling,
            seconds=args.window_seconds,
            step=args.window_step,
        )
        self.results: list[dict] = []
        self.pictures: set[Path] = set()

    def run(self) -> bool:
        """Tell about every video; return whether all could be read, and drawn."""
        for name in self.args.videos:
            try:
                files = self._files(name)
            except ValueError as error:
                self._report_error(name, str(error))
                continue
            for file in files:
                try:
                    video = self._watch(file)
                except (VideoReadError, OSError, ValueError) as error:
                    self._report_error(file, str(getattr(error, "cause", error)))
                else:
                    self._tell(video)
        if self.args.json:
            path = Path(self.args.json)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.results, indent=2) + "\n", encoding="utf-8")
        return not any({"error", "timeline_error"} & result.keys() for result in self.results)

    def _files(self, name: str) -> list[str]:
        if not Path(name).is_dir():
            return [name]
        records = load_folder_records(name, flag="video")
        for path, cause in records.missing_files:
            self._report_error(path, cause)
        return [video["path"] for video in records.dataset["video"]]

    def _watch(self, name: str) -> WatchedVideo:
        is_stream = name == "-" or "://" in name
        video = WatchedVideo("standard input" if name == "-" else name, is_stream)
        with suppress(KeyboardInterrupt) if is_stream else nullcontext():
            clips = self._stream_clips(name, video.name) if is_stream else self._file_clips(name)
            # What comes slowly is told at once.
            size = 1 if is_stream else self.args.per_device_eval_batch_size
            for group in iter(lambda: tuple(islice(clips, size)), ()):
                for clip, scores in zip(group, self._scores(group), strict=True):
                    video.times.append((clip.start_seconds, clip.end_seconds))
                    video.scores.append(scores)
                    if is_stream:
                        label = int(scores.argmax())
                        print(self._span_line(*video.times[-1], label, float(scores[label])), flush=True)
        if not video.scores:
            raise VideoReadError(video.name, "it was stopped before the first window was full.")
        return video

    def _file_clips(self, name: str) -> Iterator[WindowClip]:
        with open_video(name, backend=self.args.reader) as reader:
            yield from self.windows.of_video(reader)

    def _stream_clips(self, name: str, shown_name: str) -> Iterator[WindowClip]:
        print(f"{shown_name}, as it comes:")
        return self.windows.of_stream(stream_frames(StandardInput() if name == "-" else name, shown_name))

    @torch.no_grad()
    def _scores(self, clips: tuple[WindowClip, ...]) -> torch.Tensor:
        inputs = [self.processor(clip.frames, do_sample_frames=False, return_tensors="pt") for clip in clips]
        pixel_values = torch.cat([one["pixel_values"] for one in inputs]).to(self.accelerator.device)
        with self.accelerator.autocast():
            logits = self.model(pixel_values).logits
        return scores_of(logits, self.model.config.problem_type).cpu()

    def _tell(self, video: WatchedVideo) -> None:
        end, num_windows = video.times[-1][1], len(video.times)
        print(f"{video.name}: {end:.1f} s, {counted(num_windows, 'window')}")
        top = self._top(video.mean_scores)
        width = max(len(name) for name, _ in top)
        for name, score in top:
            print(f"  {name:<{width}}  {bar(score)} {percent(score):>7}")
        result = {"video": video.name, "seconds": round(end, 3), "predictions": as_dicts(top)}
        result["windows"] = [
            {"start_seconds": round(start, 3), "end_seconds": round(end, 3), "predictions": as_dicts(self._top(scores))}
            for (start, end), scores in zip(video.times, video.scores, strict=True)
        ]
        self.results.append(result)
        if num_windows > 1:
            if not video.is_stream:  # of which each window has been told
                self._tell_when(video)
            try:
                result["timeline"] = str(self._draw(video))
                print(f"  timeline: {result['timeline']}")
            except (VideoReadError, OSError) as error:  # the disk, or a frame that no window took
                result["timeline_error"] = str(getattr(error, "cause", error))
                print(f"{printable(video.name)}: not drawn: {result['timeline_error']}", file=sys.stderr)
        print(flush=True)

    def _tell_when(self, video: WatchedVideo) -> None:
        spans = video.spans()
        print("  best label over time:")
        for span in spans[:MAX_SPANS_SHOWN]:
            print(self._span_line(*span))
        if len(spans) > MAX_SPANS_SHOWN:
            print(f"    ... and {len(spans) - MAX_SPANS_SHOWN} more")

    def _span_line(self, start: float, end: float, label: int, score: float) -> str:
        times = f"{clock(start, tenths=True):>8} - {clock(end, tenths=True):<8}"
        return f"    {times}  {self.label_names[label]}  {percent(score, 0)}"

    def _top(self, scores: torch.Tensor) -> list[tuple[str, float]]:
        best = scores.topk(min(self.args.top_k, len(scores)))
        return [
            (self.label_names[label], score)
            for score, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _draw(self, video: WatchedVideo) -> Path:
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        stem = "stream" if video.is_stream else Path(video.name).stem
        path, number = folder / f"{stem}_timeline.png", 2
        while path in self.pictures:  # files of one name in several folders
            path, number = folder / f"{stem}_{number}_timeline.png", number + 1
        self.pictures.add(path)
        scores = torch.stack(video.scores).numpy()
        title = video.name if video.is_stream else Path(video.name).name
        pictures = [] if video.is_stream else self._pictures(video.name)
        draw_timeline(path, video.times, scores, self.label_names, title=title, pictures=pictures)
        return path

    def _pictures(self, name: str) -> list[np.ndarray]:
        with open_video(name, backend=self.args.reader) as reader:
            height, width = reader.frames_at([0]).shape[-2:]
            # Fewer of wide ones, or the strip would be flat.
            num_pictures = max(4, min(MAX_PICTURES, round(MAX_PICTURES * height / width)))
            places = [(2 * number + 1) * reader.num_frames // (2 * num_pictures) for number in range(num_pictures)]
            frames = reader.frames_at(places)
        size = (PICTURE_HEIGHT_PX, max(1, round(width * PICTURE_HEIGHT_PX / height)))
        small = torch.nn.functional.interpolate(frames.float(), size, mode="bilinear", antialias=True)
        return list(small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())

    def _report_error(self, name: str, cause: str) -> None:
        print(f"{printable(name)}: not read: {cause}\n", file=sys.stderr, flush=True)
        self.results.append({"video": name, "error": cause})


def bar(score: float) -> str:
    """Return a bar of blocks, an eighth of a character exact."""
    eighths = round(min(max(score, 0.0), 1.0) * BAR_WIDTH * 8)
    blocks = "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")
    return f"{blocks:<{BAR_WIDTH}}"


def as_dicts(top: list[tuple[str, float]]) -> list[dict]:
    return [{"label": name, "score": round(score, 6)} for name, score in top]


def main() -> None:
    """Run the script; a mistake in the arguments ends it with one line, unreadable videos with exit status 1."""
    try:
        prediction = Prediction(parse_arguments(PredictionArguments, positional="videos"))
    except ValueError as error:
        sys.exit(f"predict.py: error: {error}")
    try:
        is_complete = prediction.run()
    except OSError as error:  # the disk is full, for one
        sys.exit(f"predict.py: stopped: {error}")
    if not is_complete:
        sys.exit(1)


if __name__ == "__main__":
    main()
