"""The architecture, held by tests: who imports whom, and what importing the package costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "mme_hf"
CORE = sorted(path.stem for path in SOURCE.glob("*_mme.py"))
# What a part may import of ours, besides itself. Anything not listed may import everything public.
ALLOWED = {
    "names_mme": set(),
    "configuration_mme": {"names_mme", "videomae_weights_mme"},
    "video_pipeline_mme": set(),
    "video_reading_mme": set(),
    "tokens_mme": set(),
    "layers_mme": {"configuration_mme", "tokens_mme"},
    "attention_mme": {"configuration_mme", "layers_mme"},
    "outputs_mme": set(),
    "videomae_weights_mme": set(),
    "modeling_mme": {
        "attention_mme",
        "configuration_mme",
        "layers_mme",
        "names_mme",
        "outputs_mme",
        "tokens_mme",
        "videomae_weights_mme",
    },
    "trajectories_mme": set(),
    "point_tracking_mme": {"trajectories_mme"},
    "masking_mme": set(),
    "hog_mme": set(),
    "motion_clip_mme": {"point_tracking_mme", "trajectories_mme"},
    "position_target_mme": {"motion_clip_mme", "trajectories_mme"},
    "shape_targets_mme": {"hog_mme", "motion_clip_mme", "point_tracking_mme", "trajectories_mme"},
    "appearance_targets_mme": {"motion_clip_mme", "point_tracking_mme", "trajectories_mme"},
    "motion_targets_mme": {
        "appearance_targets_mme",
        "hog_mme",
        "motion_clip_mme",
        "position_target_mme",
        "shape_targets_mme",
        "trajectories_mme",
    },
    "video_inputs_mme": {"point_tracking_mme", "trajectories_mme", "video_reading_mme"},
    "clip_tracks_mme": {"motion_targets_mme", "point_tracking_mme", "trajectories_mme", "video_inputs_mme"},
    "raw_clips_mme": {
        "clip_tracks_mme",
        "masking_mme",
        "motion_targets_mme",
        "point_tracking_mme",
        "trajectories_mme",
        "video_inputs_mme",
        "video_options_mme",
    },
    "frame_sampling_mme": set(),
    "video_options_mme": {"frame_sampling_mme", "masking_mme", "motion_targets_mme", "names_mme", "trajectories_mme"},
    "video_processing_mme": {
        "frame_sampling_mme",
        "motion_targets_mme",
        "names_mme",
        "raw_clips_mme",
        "video_inputs_mme",
        "video_options_mme",
        "video_pipeline_mme",
        "video_reading_mme",
    },
    "remote_code": {"modeling_mme", "video_pipeline_mme", "video_processing_mme"},
    "padding": set(),
    "presets": {"configuration_mme"},
    "video": set(),
    "wording": set(),
    "motion": {"point_tracking_mme", "trajectories_mme", "wording"},
    "charts": set(),
    "hub": set(),
    "metrics": set(),
    "data": {"_version", "frame_sampling_mme", "hub", "motion", "raw_clips_mme", "video", "video_processing_mme"},
    "checkpoint_layouts": {"modeling_mme"},
    "checkpoints": {"checkpoint_layouts", "configuration_mme", "modeling_mme"},
    "drawing": set(),
    "hidden_motion": {
        "drawing",
        "modeling_mme",
        "motion_clip_mme",
        "motion_targets_mme",
        "trajectories_mme",
        "video_processing_mme",
    },
    "visualization": {
        "drawing",
        "hidden_motion",
        "modeling_mme",
        "motion",
        "motion_targets_mme",
        "trajectories_mme",
        "video_processing_mme",
    },
}
# Run by hand (`python -m mme_hf.motion.report`) and by the examples; named after what they are about, they may import
# all that is public, as the examples may. Nothing of ours may import them.
COMMANDS = {SOURCE / "motion" / "report.py", SOURCE / "data" / "prepare.py"}
CORE_PACKAGES = {"torch", "torchvision", "numpy", "transformers", "huggingface_hub"}
# Tried one after the other inside functions; the file is of use without them.
TRIED = {"video_reading_mme": {"av", "torchcodec"}}


def imports_of(path: Path) -> tuple[set[str], set[str]]:
    """Return (our parts, other packages) that a file imports anywhere in it, under TYPE_CHECKING too."""
    package = path.relative_to(SOURCE).parts[:-1]
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            parts = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            names = [parts[0]] if parts[0] else [alias.name for alias in node.names]
            ours |= set(names)
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split(".")[0])
    return ours, others


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_go_one_way(part):
    files = sorted((SOURCE / part).rglob("*.py")) or [SOURCE / f"{part}.py"]
    for path in sorted(set(files) - COMMANDS):
        ours, others = imports_of(path)
        assert ours - {part} <= ALLOWED[part], f"{path} imports {sorted(ours - ALLOWED[part] - {part})}"
        assert "mme_hf" not in others, f"{path} imports the package by name"


def test_nothing_of_ours_imports_a_command():
    names = {path.stem for path in COMMANDS}
    for path in set(SOURCE.rglob("*.py")) - COMMANDS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not names & {*(node.module or "").split("."), *(alias.name for alias in node.names)}, path


def test_every_core_file_is_in_the_table():
    assert set(CORE) <= set(ALLOWED)


def test_every_file_and_part_has_its_place_in_the_description():
    text = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text()
    structure = text.split("## Structure")[1].split("```")[1]
    parts = {path.stem for path in SOURCE.glob("*.py")} | {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    parts -= {"__init__"}
    assert parts - set(re.findall(r"\w+", structure)) == set()
    # And nothing that is no more.
    assert set(re.findall(r"\w+_mme\b", structure)) <= parts


@pytest.mark.parametrize("name", CORE)
def test_the_core_depends_on_what_a_remote_code_repository_may_need(name):
    _, others = imports_of(SOURCE / f"{name}.py")
    assert others <= CORE_PACKAGES | TRIED.get(name, set()) | set(sys.stdlib_module_names), sorted(others)


def test_importing_the_package_loads_no_video_library():
    heavy = ["cv2", "decord", "av", "torchcodec", "datasets", "matplotlib"]
    # Registering a pipeline takes transformers.pipelines, which in some versions loads av.
    code = (
        f"import sys, transformers.pipelines; before = set(sys.modules); import mme_hf; "
        f"print([name for name in {heavy} if name in set(sys.modules) - before])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_files_and_functions_keep_to_their_budgets():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        limit = 700 if path.name == "modeling_mme.py" else 400
        assert text.count("\n") <= limit, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 60, f"{path}:{node.lineno} {node.name}"
    for path in (SOURCE.parents[1] / "examples").glob("*.py"):
        assert path.read_text().count("\n") <= 300, path
