"""The documents keep their word: every code block is run or read by what it is for, every link and name is there."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from functools import reduce
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
import yaml
from document_workspace import make_workspace
from documents import (
    DOCUMENTS,
    PAGES,
    ROOT,
    Block,
    Command,
    Script,
    anchors_of,
    blocks_in,
    blocks_of,
    check_flags,
    code_spans,
    commands_of,
    figures_of,
    files_in,
    flags_in,
    is_in,
    known_flags,
    prose_of,
    relative_links,
    script_of,
)
from runs import new_accelerator

import mme_hf
from mme_hf.training import PretrainingArguments, parse_arguments
from mme_hf.training.finetuning_arguments import FinetuningArguments

# Added to a documented command, where the last of a flag counts, so that it takes seconds. What is documented stays.
_SHORT_LOOP = (
    "--max_train_steps 1 --warmup_steps 0 --per_device_train_batch_size 2 --samples_per_video 1 --mixed_precision no "
    "--gradient_accumulation_steps 1 --dataloader_num_workers 0 --no_with_tracking"
)
_SMALL_CLIPS = "--image_size 32 --num_frames 4"
_SMALL_MODEL = (
    '{"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, '
    '"decoder_hidden_size": 24, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 24}'
)
SHORTENED_BY = {
    "pretrain.py": f"{_SHORT_LOOP} {_SMALL_CLIPS} --num_eval_clips 1 --num_baseline_clips 1 --max_eval_videos 1",
    "finetune.py": f"{_SHORT_LOOP} {_SMALL_CLIPS} --samples_per_video 2",
    "evaluate.py": "--num_eval_segments 1 --num_eval_crops 1 --mixed_precision no --dataloader_num_workers 0",
    "predict.py": "--mixed_precision no",
    "probe.py": (
        "--num_train_views 1 --num_eval_segments 1 --num_eval_crops 1 --num_seeds 1 --shots 3 "
        "--dataloader_num_workers 0"
    ),
    "extract_features.py": "--dataloader_num_workers 0",
    "extract_trajectories.py": "",
    "visualize_motion.py": f"{_SMALL_CLIPS} --frame_stride 2 --width 320",
    "convert_checkpoint.py": "",
    "mme_hf.motion.report": "--num_clips 2 --image_size 32 --num_frames 4",
    "mme_hf.data.prepare": "",
    "mme_hf.model_card": "",
}
# Scripts whose first import needs what is not always there.
NEEDS = {"examples/demo.py": "gradio"}
# What a block of Python may import that is not always there, with what that needs in turn.
OPTIONAL = {"onnxruntime": ("onnx", "onnxscript"), "peft": (), "torchao": ()}
# Flags that name what must be there before a command runs.
INPUTS = (
    "--pretraining_model",
    "--train_dir",
    "--validation_dir",
    "--model_name_or_path",
    "--checkpoint",
    "--root",
    "--config",
)
# Of these a quick test runs the first command there is, inside the tests' process; the slow tests run all commands,
# each as a process of its own.
QUICK = (
    "pretrain.py",
    "evaluate.py",
    "predict.py",
    "extract_features.py",
    "extract_trajectories.py",
    "visualize_motion.py",
    "mme_hf.motion.report",
    "mme_hf.data.prepare",
)


@pytest.fixture(scope="session")
def workspace_template(tmp_path_factory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("documents") / "template")


@pytest.fixture
def workspace(workspace_template, tmp_path, monkeypatch) -> Path:
    """A folder with what the documents name: videos, models, the repository's folders. It is the current one."""
    folder = tmp_path / "workspace"
    shutil.copytree(workspace_template, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def all_commands() -> list[Command]:
    blocks = [block for page in PAGES for block in blocks_of(page) if block.language == "bash"]
    return [command for block in blocks for command in commands_of(block)]


def why_not_run(command: Command) -> str | None:
    """Return why a command is read by its parser but never started; None where it is started."""
    script = script_of(command)
    words = set(command.words)
    if script is None:
        return None if command.words[:2] == ("python", "-c") else "a program of others"
    if any("://" in word for word in words) or command.is_piped:
        return "needs a network or another program"
    if "--push_to_hub" in words:
        return "needs the Hub"
    if words & {"--num_machines", "--multi_gpu"} or re.search(r"--num_processes ([3-9]|\d\d)", " ".join(command.words)):
        return "needs several devices or machines"
    if script.target == "examples/demo.py":
        return "serves a page until it is stopped"
    if script.target.startswith("benchmarks/"):
        return "writes its results into the repository"
    return None


def _name(script: Script) -> str:
    return script.target.rpartition("/")[2]


def shortened(command: Command) -> tuple[list[str], dict[str, str]]:
    """Return words and environment that run a documented command in seconds, on the CPU."""
    script = script_of(command)
    environment = {
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **command.environment,
    }
    if script is None:
        return [sys.executable, *command.words[1:]], environment
    name = _name(script)
    words = shlex.split(SHORTENED_BY[name])
    if name == "pretrain.py" and "--model_name_or_path" not in script.arguments:
        words += ["--model_options", _SMALL_MODEL]
    launcher = {"python": [sys.executable], "accelerate": [sys.executable, "-m", "accelerate.commands.launch"]}
    launcher["torchrun"] = [sys.executable, "-m", "torch.distributed.run"]
    program = script.launcher[0]
    rest = script.launcher[2:] if program == "accelerate" else script.launcher[1:]
    return [*launcher[program], *rest, script.target, *script.arguments, *words], environment


def run_as_process(command: Command, folder: Path) -> None:
    words, environment = shortened(command)
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, f"{command.where}: {shlex.join(words)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


def run_here(command: Command) -> None:
    """Run a documented command inside this process, which saves the seconds of a start."""
    words, environment = shortened(command)
    script = script_of(command)
    words = words[words.index(script.target) :]
    run = runpy.run_module if script.launcher[-1:] == ("-m",) else runpy.run_path
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.dict(os.environ, environment),
        mock.patch("mme_hf.training.processes.use_all_cores"),
        new_accelerator(),
    ):
        run(script.target, run_name="__main__")


def run_python(block: Block, namespace: dict) -> None:
    # Empty lines before it, so that a traceback names the line of the page.
    exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec"), namespace)


def missing_for(block: Block) -> set[str]:
    """Return the optional packages that a block of Python imports and that are not installed."""
    imports = [node for node in ast.walk(ast.parse(block.text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = [[node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names] for node in imports]
    wanted = {name.split(".")[0] for names in modules for name in names} & OPTIONAL.keys()
    wanted |= {other for name in wanted for other in OPTIONAL[name]}
    return {name for name in wanted if importlib.util.find_spec(name) is None}


def check_recipe(block: Block) -> None:
    """Have a parser of ours read a recipe."""
    Path("recipe.yaml").write_text(block.text)
    kind = FinetuningArguments if "finetune" in block.text else PretrainingArguments
    parse_arguments(kind, ["--config", "recipe.yaml"])


# --- that the tests see what there is to see ---


def test_blocks_are_found_with_their_lines():
    text = "a\n```python\nb = 1\n```\n\n```bash\nc \\\n  d  # e\n```\n"
    assert [(block.line, block.language, block.text) for block in blocks_in(text, "p")] == [
        (3, "python", "b = 1\n"),
        (7, "bash", "c \\\n  d  # e\n"),
    ]


@pytest.mark.parametrize(
    "text",
    ["```\na\n```\n", "```shell\na\n```\n", "* b\n  ```python\n  a\n  ```\n", "```python\na\n", "~~~\n", "<pre>"],
)
def test_a_block_that_nothing_would_run_is_an_error(text):
    with pytest.raises(ValueError, match="must be one of|fences make|<pre>"):
        blocks_in(text, "p")


def test_commands_are_read_as_a_shell_reads_them():
    text = (
        '# no\npip install -e ".[test]" && pytest\n'
        "A=1 torchrun \\\n  x.py --y '{\"z\": 1}'  # two\n"
        "ffmpeg -i u - | python p.py -\n"
    )
    commands = commands_of(Block("p", 1, "bash", text))
    assert [command.words for command in commands] == [
        ("pip", "install", "-e", ".[test]"),
        ("pytest",),
        ("torchrun", "x.py", "--y", '{"z": 1}'),
        ("ffmpeg", "-i", "u", "-"),
        ("python", "p.py", "-"),
    ]
    assert commands[2].environment == {"A": "1"}
    assert [command.is_piped for command in commands] == [False, False, False, True, True]


def test_a_block_that_imports_what_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    block = Block("p", 1, "python", "import torch\n\nfrom peft import LoraConfig\nimport onnxruntime.tools as tools\n")
    assert missing_for(block) == {"peft", "onnxruntime", "onnx", "onnxscript"}
    assert missing_for(Block("p", 1, "python", "import torch\nfrom mme_hf import peft\n")) == set()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("make all", "no test knows the program 'make'"),
        ("pip install -e '.[sample]'", "no extra \\['sample'\\]"),
        ("accelerate launch --num_proceses 2 examples/pretrain.py", "num_proceses"),
        ("python examples/predict.py a.mp4 --model_name outputs/x", "--model_name is no flag"),
        ("accelerate launch examples/pretrain.py --config examples/configs/none.yaml", "is not a file"),
        ("python examples/convert_checkpoint.py a.pth", "output_dir"),
        ("python -m mme_hf.data.prepare ucf101", "root"),
        ("python benchmarks/compare_targets.py --steps 3", "ends with: 2"),
        ("python docs/make_pictures.py --fast", "takes no words"),
        ("python examples/no_such_script.py", "no_such_script"),
    ],
)
def test_a_wrong_command_is_an_error(workspace, line, message):
    (command,) = commands_of(Block("p", 1, "bash", line))
    with pytest.raises((ValueError, OSError), match=message):
        check_flags(script_of(command), command.where)


def test_links_and_anchors_of_every_kind_are_seen():
    text = 'a [b](c.md#d) ![e](f/g.png "title") [h](https://i) [j](#k) `[l](m)`\n[n]: o.md\n<img src="p.png">\n'
    assert relative_links(text) == ["c.md#d", "f/g.png", "#k", "o.md", "p.png"]
    text = "# A `b.py`: c's\n```bash\n# no\n```\n## D\n## D\n## [e](f) g_h\n"
    assert anchors_of(text) == {"a-bpy-cs", "d", "d-1", "e-g_h"}


def test_files_and_flags_of_a_span_are_seen():
    assert files_in("python examples/a.py --b c") == ["examples/a.py"]
    assert files_in("configs/a-{b,c}.yaml") == ["configs/a-b.yaml", "configs/a-c.yaml"]
    assert files_in("outputs/docs/x") == []
    assert flags_in("--no_flip --a_b '{\"c\": 1}' x--f") == ["no_flip", "a_b"]
    assert flags_in("tensorboard --logdir x") == []


# --- what the documents say ---


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_ones_that_their_programs_take(page, workspace):
    blocks = [block for block in blocks_of(page) if block.language == "bash"]
    for command in [command for block in blocks for command in commands_of(block)]:
        script = script_of(command)
        if script and script.target not in NEEDS:
            check_flags(script, command.where)
            assert why_not_run(command) or _name(script) in SHORTENED_BY, f"{command.where}: nothing runs it"
            _check_inputs(command, script)


@pytest.mark.parametrize("target", NEEDS)
def test_commands_with_needs_are_ones_that_their_programs_take(target, workspace):
    pytest.importorskip(NEEDS[target])
    scripts = {command: script_of(command) for command in all_commands()}
    commands = [command for command, script in scripts.items() if script and script.target == target]
    for command in commands:
        check_flags(scripts[command], command.where)
        _check_inputs(command, scripts[command])
    assert commands


def _check_inputs(command: Command, script: Script) -> None:
    """Expect what a command reads to be in the workspace: then the slow test that runs it is of what the page says."""
    if why_not_run(command) == "needs the Hub":
        return
    for name, value in pairwise((*script.arguments, "")):
        assert name not in INPUTS or Path(value).exists(), f"{command.where}: {name} {value}"
        is_file = name.endswith((".mp4", ".pth")) and "://" not in name
        assert not is_file or Path(name).exists(), f"{command.where}: {name}"


def test_every_script_that_is_documented_is_started_by_a_command():
    assert [name for name in SHORTENED_BY if not any(_runs(command, name) for command in all_commands())] == []


def test_few_commands_are_only_read():
    only_read = {(_name(script_of(command)), why_not_run(command)) for command in all_commands() if script_of(command)}
    assert {pair for pair in only_read if pair[1]} == {
        ("extract_trajectories.py", "needs the Hub"),
        ("finetune.py", "needs the Hub"),
        ("pretrain.py", "needs the Hub"),
        ("pretrain.py", "needs several devices or machines"),
        ("demo.py", "serves a page until it is stopped"),
        ("predict.py", "needs a network or another program"),
        ("bench_training_step.py", "writes its results into the repository"),
        ("bench_targets_on_device.py", "writes its results into the repository"),
        ("bench_torch_tracker.py", "writes its results into the repository"),
    }


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.language != "bash" for block in blocks_of(page))])
def test_python_and_recipes_run(page, workspace):
    namespace: dict = {"__name__": "__main__"}
    missing: set[str] = set()
    with mock.patch.dict(mme_hf.MOTION_TARGETS):
        for block in blocks_of(page):
            if block.language == "python":
                needed = missing_for(block)
                missing |= needed
                if not needed:
                    run_python(block, namespace)
            elif block.language == "yaml":
                check_recipe(block)
    if missing:
        pytest.skip(f"all other blocks ran; not installed: {', '.join(sorted(missing))}")


@pytest.mark.parametrize("name", QUICK)
def test_the_first_command_of_a_script_runs(name, workspace):
    run_here(next(command for command in all_commands() if _runs(command, name)))


def test_a_command_runs_as_a_process(workspace):
    run_as_process(next(command for command in all_commands() if _runs(command, "convert_checkpoint.py")), workspace)
    assert (workspace / "outputs/mme-published/config.json").exists()


def _runs(command: Command, name: str) -> bool:
    script = script_of(command)
    return script is not None and _name(script) == name and why_not_run(command) is None


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.language == "bash" for block in blocks_of(page))])
def test_all_commands_of_a_page_run(page, workspace):
    for block in blocks_of(page):
        if block.language == "bash":
            for command in commands_of(block):
                if why_not_run(command) is None:
                    run_as_process(command, workspace)


def test_the_two_commands_are_the_first():
    (first, *_) = blocks_of("README.md")
    assert first.text == (
        'pip install -e ".[samples]" && accelerate launch examples/pretrain.py\n'
        'pip install -e ".[test]" && pytest -n 2\n'
    )


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_anchors_resolve(name):
    document = ROOT / name
    for link in relative_links(document.read_text()):
        target, _, anchor = link.partition("#")
        path = document.parent / target if target else document
        assert path.exists(), f"{name}: {link}"
        assert not anchor or anchor in anchors_of(path.read_text()), f"{name}: {link} has no such heading"


def test_every_page_is_in_the_index():
    listed = {link.partition("#")[0] for link in relative_links((ROOT / "docs" / "README.md").read_text())}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


@pytest.mark.parametrize("page", PAGES)
def test_files_flags_and_objects_that_the_prose_names_exist(page):
    flags = known_flags()
    for where, span in code_spans(page):
        for name in files_in(span):
            places = (ROOT / name, ROOT / "examples" / name)
            assert any(place.exists() for place in places), f"{where}: {name}"
        for flag in flags_in(span):
            assert flag in flags, f"{where}: --{flag}"
        if re.fullmatch(r"mme_hf(\.\w+)+(\(.*\))?", span) and not _is_command(span):
            _resolve(span.split("(")[0], where)


def _is_command(span: str) -> bool:
    return span in ("mme_hf.motion.report", "mme_hf.data.prepare", "mme_hf.model_card")


def _resolve(name: str, where: str) -> None:
    try:
        reduce(getattr, name.split(".")[1:], mme_hf)
    except AttributeError as error:
        raise AssertionError(f"{where}: {name}") from error


def test_figures_are_found_but_for_rounding():
    line = "| a `b-22` 3.1 | [12 and 0.43 x](../benchmarks/results/y.md) |"
    assert figures_of(line) == [("y.md", ["3.1", "12", "0.43"])]
    assert figures_of("in 1.5 h [4.6 minutes](benchmarks/results/y.md) of 3.3") == [("y.md", ["4.6"])]
    assert is_in("0.43", "a 0.425 b") and is_in("12", "|12.4|") and not is_in("0.43", "0.436 10.43 0.431.2")
    assert not is_in("12", "12.6 x112")


@pytest.mark.parametrize("page", PAGES)
def test_figures_are_those_of_the_benchmarks(page):
    for number, line in enumerate(prose_of(page).splitlines(), start=1):
        for name, figures in figures_of(line):
            text = (ROOT / "benchmarks" / "results" / name).read_text()
            missing = [figure for figure in figures if not is_in(figure, text)]
            assert not missing, f"{page}:{number}: {missing} not in {name}"


def test_recipes_named_by_the_table_are_all_there_are():
    named = {Path(name).name for _, span in code_spans("examples/README.md") for name in files_in(span)}
    recipes = {path.name for path in (ROOT / "examples" / "configs").glob("*.yaml")} - {"samples.yaml"}
    assert recipes <= named


def test_recipes_of_the_repository_are_yaml():
    for path in (ROOT / "examples" / "configs").glob("*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict), path
