"""A web page that shows what models make of a video: `python examples/demo.py`, then open the address it prints.

    python examples/demo.py --pretraining_model outputs/pretrain --model_name_or_path outputs/finetune-tiny

Upload a video or pick a sample clip (extra `samples`): the page shows its most likely labels, the motion of its points,
what the model sees of it, and the motion that the model predicts in the holes. Either model may be left out; the page
then says what it cannot show, and how to make it. Needs `pip install 'mme_hf[demo]'`.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mme_hf import VideoReadError
from mme_hf.data import load_sample_records
from mme_hf.demonstration import SEEDS, Demonstration
from mme_hf.drawing import direction_wheel
from mme_hf.motion import TRACKERS
from mme_hf.training.processes import use_all_cores
from mme_hf.visualization import COLOR_WORDS

try:
    import gradio as gr
except ImportError:
    sys.exit("demo.py: error: gradio is not installed. Install it: pip install 'mme_hf[demo]'")

NUM_LABELS = 5
WHEEL_SIDE_PX = 40
# Uploads and what was made of them are deleted when they are so old.
KEPT_SECONDS = 3600
INTRODUCTION = """# Masked Motion Encoding
A model sees a few patches of a clip and predicts how the points in the holes move. Choose a video and
press **Show**."""
NO_CLASSIFIER = """**No labels: no classifier is loaded.** Make one of your own classes, and start this page with it:
```
accelerate launch examples/finetune.py \\
    --train_dir my_actions/train \\
    --output_dir outputs/finetune
python examples/demo.py \\
    --model_name_or_path outputs/finetune
```"""
NO_PRETRAINED = """**No predicted motion: no pre-trained model is loaded.** Make one, in minutes on the sample clips,
and start this page with it:
```
accelerate launch examples/pretrain.py
python examples/demo.py \\
    --pretraining_model outputs/pretrain
```"""
STYLE = """
.legend { display: flex; gap: 0.8em; align-items: center; font-size: 0.9em; }
.legend img { flex: none; }
pre { overflow-x: auto; }
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretraining_model", help="Pre-trained model: a folder, or a name on the Hub.")
    parser.add_argument("--model_name_or_path", help="Classifier: a folder, or a name on the Hub.")
    parser.add_argument("--tracker", choices=sorted(TRACKERS), help="How points are followed. Default: the model's.")
    parser.add_argument("--server_name", default="127.0.0.1", help="Address to listen at; 0.0.0.0 for all machines.")
    parser.add_argument("--server_port", type=int, help="Port. Default: the first free one from 7860 on.")
    parser.add_argument("--share", action="store_true", help="Let gradio make a public address for three days.")
    return parser.parse_args(argv)


@contextmanager
def shown_as_message(video: str | None) -> Iterator[None]:
    """What is wrong with a video or a control, on the page and in one line."""
    try:
        if video is None:
            raise ValueError("No video is chosen. Upload one, or pick a sample clip.")
        yield
    except VideoReadError as error:
        # Where the server keeps an upload means nothing to who sent it.
        cause = str(error.cause or error).replace(str(video), Path(video).name)
        raise gr.Error(f"This video cannot be read: {cause}", duration=None, print_exception=False) from error
    except ValueError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def sample_clips() -> list[str]:
    """Return the sample clips, none where they are not installed."""
    try:
        return [video["path"] for video in load_sample_records().dataset["video"]]
    except ValueError:
        return []


def legend() -> str:
    """Return HTML that says what colours mean."""
    file = io.BytesIO()
    direction_wheel(2 * WHEEL_SIDE_PX).save(file, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    words = COLOR_WORDS.replace("ring", "ring (to the right: red)")
    return f'<div class="legend"><img src="{source}" width="{WHEEL_SIDE_PX}" alt="Ring of colours">{words}</div>'


def player(name: str) -> gr.Video:
    """Return a place for a short film under its name: gradio's own label would cover a corner of it."""
    gr.Markdown(f"### {name}")
    return gr.Video(show_label=False, interactive=False, autoplay=True, loop=True)


class Page:
    """The page, and what its button does.

    Args:
        demonstration: Makes what is shown.
        folder: For the files of the last run; gradio copies them before the next.
    """

    def __init__(self, demonstration: Demonstration, folder: str | Path):
        self.demonstration = demonstration
        self.folder = Path(folder)
        self.results: list[Any] = []

    def build(self) -> gr.Blocks:
        """Return the page; `launch()` opens it."""
        with gr.Blocks(
            title="Masked Motion Encoding", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)
        ) as page:
            gr.Markdown(INTRODUCTION)
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    controls, button = self._controls()
                with gr.Column(scale=3, min_width=300):
                    steps = self._results()
            self._connect(controls, button, steps)
        return page

    def _controls(self) -> tuple[dict[str, Any], gr.Button]:
        controls = {"video": gr.Video(sources=["upload"], label="Video", height=260, elem_id="video")}
        if samples := sample_clips():
            gr.Examples(samples, inputs=controls["video"], label="Sample clips", cache_examples=False)
        controls["start"] = gr.Slider(0, 1, value=0, step=0.1, label="The clip begins at (seconds)")
        controls["without_camera"] = gr.Checkbox(False, label="Take the camera's motion out of the tracks")
        with gr.Accordion("Mask", open=False, visible=self.demonstration.pretrained is not None):
            ratio = self.demonstration.processor.mask_ratio
            controls["mask_ratio"] = gr.Slider(0.1, 0.95, value=ratio, step=0.05, label="Share of patches to hide")
            controls["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=SEEDS[-1])
        return controls, gr.Button("Show", variant="primary")

    def _results(self) -> list[tuple[Callable[..., Any], list[Any]]]:
        """Return what is to be done, in order, and what each fills."""
        steps = []
        with gr.Row():
            with gr.Column(min_width=280):
                gr.Markdown("### What happens")
                if self.demonstration.classifier is None:
                    gr.Markdown(NO_CLASSIFIER, container=True)
                else:
                    labels = gr.Label(num_top_classes=NUM_LABELS, show_label=False)
                    steps.append((self.show_labels, [labels, gr.Markdown()]))
            with gr.Column(min_width=280):
                steps.append((self.show_tracks, [player("How points move"), gr.Markdown()]))
        gr.HTML(legend())
        if self.demonstration.pretrained is None:
            gr.Markdown(NO_PRETRAINED, container=True)
            return steps
        with gr.Row():
            with gr.Column(scale=1, min_width=220):
                seen = player("What the model sees")
            with gr.Column(scale=2, min_width=280):
                motion = player("Motion in the holes: true and predicted")
        steps.append((self.show_hidden_motion, [seen, motion, gr.Markdown()]))
        return steps

    def _connect(self, controls: dict[str, Any], button: gr.Button, steps: list) -> None:
        inputs = list(controls.values())
        filled = [output for _, outputs in steps for output in outputs]
        # Nothing of the last video stays beside the new one.
        controls["video"].change(lambda: [None] * len(filled), None, filled, queue=False, show_progress="hidden")
        controls["video"].change(self.show_length, controls["video"], controls["start"], show_progress="hidden")
        event = None
        for function, outputs in steps:
            listen = button.click if event is None else event.success
            # One at a time: the files have the same names every time.
            scrolls = event is None
            event = listen(
                function, inputs, outputs, concurrency_limit=1, concurrency_id="show", scroll_to_output=scrolls
            )

    def show_length(self, video: str | None) -> Any:
        """Return the slider for the start, as long as the video."""
        if video is None:
            return gr.Slider(maximum=1, value=0)
        with shown_as_message(video):
            return gr.Slider(maximum=max(0.1, round(self.demonstration.seconds(video), 1)), value=0)

    def show_labels(self, video: str | None, start: float, *_: Any) -> tuple[dict[str, float], str]:
        """Return the scores of the classes, and of what they are."""
        with shown_as_message(video):
            scores, span = self.demonstration.labels(video, start)
        return scores, f"Frames from {span}."

    def show_tracks(self, video: str | None, start: float, without_camera: bool, *_: Any) -> tuple[str, str]:
        """Return a file with the tracks of the clip, and a sentence about it."""
        path = self.folder / "tracks.mp4"
        with shown_as_message(video):
            words = self.demonstration.draw_tracks(video, start, path, without_camera=without_camera)
        return str(path), words

    def show_hidden_motion(
        self, video: str | None, start: float, _: bool, mask_ratio: float, seed: float | None
    ) -> tuple[str, str, str]:
        """Return files with the clip as the model sees it and the motion in its holes, and a sentence about it."""
        paths = (self.folder / "seen.mp4", self.folder / "motion.mp4")
        with shown_as_message(video):
            words = self.demonstration.draw_hidden_motion(
                video, start, paths, mask_ratio=mask_ratio, seed=0 if seed is None else seed
            )
        return str(paths[0]), str(paths[1]), words


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    use_all_cores()
    try:
        demonstration = Demonstration(args.pretraining_model, args.model_name_or_path, tracker=args.tracker)
    except ValueError as error:
        sys.exit(f"demo.py: error: {error}")
    # Fonts of the system: gradio's own are fetched from the network.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    listen = {"server_name": args.server_name, "server_port": args.server_port, "share": args.share}
    with tempfile.TemporaryDirectory() as folder:
        try:
            Page(demonstration, folder).build().launch(**listen, theme=theme, css=STYLE, footer_links=[])
        except OSError as error:  # the port is taken
            sys.exit(f"demo.py: error: {error}")


if __name__ == "__main__":
    main()
