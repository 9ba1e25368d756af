"""See what is tracked in a video, and what a model predicts of it: `python examples/visualize_motion.py VIDEO`.

    python examples/visualize_motion.py my_video.mp4 --output_dir pictures --start 2.5
    python examples/visualize_motion.py my_video.mp4 --checkpoint outputs/pretrain

It writes the tracks over the clip as mp4 and GIF, with the motion of the camera and without; a PNG of frames, tracks
and histograms of gradients; the health of these tracks as text; and, with a checkpoint, a PNG of what the model sees,
the tracks it is to predict, and those it predicts.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch

from mme_hf import MMEForPreTraining, MMEVideoProcessor, VideoReadError, open_video
from mme_hf.drawing import save_animation
from mme_hf.motion import TRACKERS, build_ready_tracker
from mme_hf.motion.camera_motion import remove_camera_motion
from mme_hf.motion.report import ClipObserver, health_of
from mme_hf.training.parsing import mapping_of
from mme_hf.training.setup import check_output_dir
from mme_hf.training.trained_models import load_trained
from mme_hf.visualization import clip_animation, clip_sheet, draw_motion_prediction

# The GIF is for a web page: fewer frames and pixels than the mp4.
GIF_FRAMES_PER_SECOND = 10
MIN_WIDTH = 100


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", help="A video file.")
    parser.add_argument("--output_dir", default="outputs/motion", help="Folder for the pictures.")
    parser.add_argument("--checkpoint", help="Folder or Hub name of a pre-trained model, to see what it predicts.")
    parser.add_argument("--start", type=float, default=None, help="Where to begin, in seconds. Default: the middle.")
    trackers = ", ".join(sorted(set(TRACKERS) - {"stored"}))  # which would need tracks of this video
    parser.add_argument("--tracker", help=f"How points are followed: {trackers}. Default: the processor's.")
    parser.add_argument(
        "--tracker_options", help='Options of the tracker, as JSON: \'{"weights": "raft_small.pth"}\' for raft.'
    )
    parser.add_argument("--num_frames", type=int, help="Input frames of the clip. Default: the processor's.")
    parser.add_argument("--frame_stride", type=int, help="Raw frames from one input frame to the next.")
    parser.add_argument("--image_size", type=int, help="Side of the square frames in pixels.")
    parser.add_argument("--width", type=int, default=840, help="Width of the GIF in pixels.")
    parser.add_argument("--picture_format", choices=("png", "jpg"), default="png", help="jpg is small, for a web page.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the mask.")
    args = parser.parse_args(argv)
    if args.tracker_options is not None:
        args.tracker_options = mapping_of("tracker_options", args.tracker_options)
    if args.width < MIN_WIDTH:
        raise ValueError(f"width ({args.width}) must be at least {MIN_WIDTH} pixels.")
    if args.start is not None and not math.isfinite(args.start):
        raise ValueError(f"start ({args.start}) must be a number of seconds.")
    return args


def model_of(args: argparse.Namespace) -> MMEForPreTraining | None:
    """Return the checkpoint's model, None where there is no checkpoint."""
    if not args.checkpoint:
        return None
    kind, remedy = "pre-trained model", "Name what examples/pretrain.py saved: a classifier has no decoder."
    return load_trained(MMEForPreTraining, "checkpoint", args.checkpoint, kind=kind, remedy=remedy)


def processor_of(args: argparse.Namespace) -> MMEVideoProcessor:
    """Return the checkpoint's processor, or the default one, with the changes that the flags ask for."""
    options = {name: getattr(args, name) for name in ("tracker", "tracker_options", "num_frames", "frame_stride")}
    options = {name: value for name, value in options.items() if value is not None}
    if args.image_size:
        options |= {
            "size": {"shortest_edge": args.image_size},
            "crop_size": {"height": args.image_size, "width": args.image_size},
        }
    if args.checkpoint:
        return MMEVideoProcessor.from_pretrained(args.checkpoint, **options)
    return MMEVideoProcessor(**options)


def read_clip(args: argparse.Namespace, processors: list[MMEVideoProcessor]) -> tuple[torch.Tensor, float, int]:
    """Return raw frames for a clip of each processor, uint8 (T, 3, H, W), their rate, and the number of the first."""
    with open_video(args.video) as reader:
        if reader.num_frames < 2:
            raise ValueError(f"{args.video} has one frame, in which nothing can move.")
        # Of fewer frames than its own a processor would take a slower clip.
        window = max(processor.raw_window_for(reader.num_frames) for processor in processors)
        latest = reader.num_frames - window
        first = latest // 2 if args.start is None else round(args.start * reader.average_fps)
        if not 0 <= first <= latest:
            raise ValueError(
                f"start ({args.start}) leaves no {window} frames of {args.video}: it has {reader.num_frames} at "
                f"{reader.average_fps:.3g} a second. Start between 0 and {latest / reader.average_fps:.2f}."
            )
        return reader.frames_at(range(first, first + window)), reader.average_fps, first


def draw(args: argparse.Namespace) -> list[Path]:
    """Write everything and return the paths."""
    model, processor = model_of(args), processor_of(args)
    build_ready_tracker(processor.tracker, **processor.tracker_options)
    check_output_dir(args.output_dir)
    folder, stem = Path(args.output_dir), Path(args.video).stem
    # Tracks as long as from one tubelet to the next follow points through the whole clip without a gap.
    between_tubelets = {"trajectory_num_steps": processor.tubelet_size * processor.frame_stride}
    continuous = MMEVideoProcessor(**{**processor.to_dict(), "motion_targets": {"position": {}}, **between_tubelets})
    shown = [continuous] if model is None else [continuous, processor]
    raw_frames, frames_per_second, first = read_clip(args, shown)
    observer = ClipObserver(continuous)
    observer(raw_frames, source=args.video, generator=torch.Generator().manual_seed(args.seed))
    (clip,) = observer.clips
    folder.mkdir(parents=True, exist_ok=True)
    without_camera = remove_camera_motion(clip.tracks, clip.frames, clip.start_frames)

    paths = [
        folder / f"{stem}_{name}" for name in ("tracks.mp4", "tracks.gif", f"tracks.{args.picture_format}", "health.md")
    ]
    pictures = clip_animation(clip, without_camera)
    save_animation(paths[0], pictures, frames_per_second)
    every = max(1, round(frames_per_second / GIF_FRAMES_PER_SECOND))
    size = (args.width, round(args.width * pictures[0].height / pictures[0].width))
    save_animation(paths[1], [image.resize(size) for image in pictures[::every]], frames_per_second / every)
    title = f"{Path(args.video).name}, from {first / frames_per_second:.2f} s, {frames_per_second:.3g} frames a second"
    sheet = clip_sheet(clip, without_camera, continuous, title=title)
    sheet.save(paths[2], optimize=True, quality=80)
    paths[3].write_text(health_of([clip], continuous).to_markdown() + "\n", encoding="utf-8")
    if model is not None:
        paths.append(folder / f"{stem}_prediction.png")
        generator = torch.Generator().manual_seed(args.seed)
        inputs = processor(raw_frames, return_targets=True, generator=generator, return_tensors="pt")
        draw_motion_prediction(model, processor, inputs, paths[-1], title=f"{stem}, predicted by {args.checkpoint}")
    return paths


def main(argv: list[str] | None = None) -> None:
    try:
        paths = draw(parse_arguments(argv))
    except (ValueError, OSError, VideoReadError) as error:
        sys.exit(f"visualize_motion.py: error: {error}")
    print("\n".join(str(path) for path in paths))


if __name__ == "__main__":
    main()
