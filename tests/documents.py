"""The documents read by a program: their code blocks, commands, links, and names of flags, files and objects."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from configparser import ConfigParser
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from unittest import mock

from small_classifiers import load_script

from mme_hf.motion.report import ReportArguments
from mme_hf.training import ExtractionArguments, PretrainingArguments
from mme_hf.training.finetuning_arguments import FinetuningArguments
from mme_hf.training.judging_arguments import EvaluationArguments, PredictionArguments
from mme_hf.training.probe_arguments import FeatureExtractionArguments, ProbeArguments

ROOT = Path(__file__).parents[1]
# Whose code blocks are run.
PAGES = tuple(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
)
DOCUMENTS = (*PAGES, "CONTRIBUTING.md", "CHANGELOG.md")
LANGUAGES = ("bash", "python", "yaml")
_FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
# [text](target), ![text](target "title"), [label]: target, and src="target" or href="target" of HTML.
_LINK = re.compile(r"\]\(<?([^)>\s]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)|(?:src|href)=[\"']([^\"']+)", re.MULTILINE)
_FILE_IN_THE_REPOSITORY = re.compile(r"(?:examples|benchmarks|docs|src|tests|configs|\.ci)/[\w./-]*\w")
ARGUMENTS = (
    EvaluationArguments,
    ExtractionArguments,
    FeatureExtractionArguments,
    FinetuningArguments,
    PredictionArguments,
    PretrainingArguments,
    ProbeArguments,
    ReportArguments,
)
# Programs of others in our commands, whose flags are not checked.
_PROGRAMS_OF_OTHERS = {"pytest", "ruff", "tensorboard", "ffmpeg", "hf"}


@dataclass(frozen=True)
class Block:
    """A fenced code block: its language, its text, and where its first line is."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One program with its words, as a shell would start it.

    Attributes:
        where: Page and line of its block.
        environment: What is set before its name, as in `NAME=value program`.
        words: The program and its arguments.
        is_piped: Whether it reads from another program or writes to one.
    """

    where: str
    environment: dict[str, str] = field(hash=False)
    words: tuple[str, ...]
    is_piped: bool = False

    def __str__(self) -> str:
        return shlex.join(self.words)


@dataclass(frozen=True)
class Script:
    """A command of ours: a file of the repository or a module of the package, behind whatever launches it."""

    launcher: tuple[str, ...]
    target: str
    arguments: tuple[str, ...]


def blocks_of(page: str) -> list[Block]:
    """Return the code blocks of a page, in order.

    Raises:
        ValueError: If one has no language, or one that nothing here knows how to check.
    """
    return blocks_in((ROOT / page).read_text(), page)


def blocks_in(text: str, page: str) -> list[Block]:
    """Return the code blocks of a text; see `blocks_of`."""
    found = []
    for match in _FENCED.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        if match[1] not in LANGUAGES:
            raise ValueError(f"{page}:{line}: the language of a code block ({match[1]!r}) must be one of {LANGUAGES}.")
        found.append(Block(page, line, match[1], match[2]))
    if "<pre" in text:
        raise ValueError(f"{page}: code in <pre> would not be run. Use a fenced block.")
    num_fences = len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE))
    if num_fences != 2 * len(found):
        raise ValueError(f"{page}: {num_fences} fences make {len(found)} blocks. Begin each at the start of a line.")
    return found


def prose_of(page: str) -> str:
    """Return a page without its code blocks, line by line where it was."""
    text = (ROOT / page).read_text()
    return _FENCED.sub(lambda match: "\n" * match[0].count("\n"), text)


def commands_of(block: Block) -> list[Command]:
    """Return the commands of a shell block, in order; comments are left out."""
    commands = []
    for line in block.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        is_piped = False
        for word in [*lexer, "&&"]:
            if word not in ("&&", ";", "|"):
                words.append(word)
            elif words:
                is_piped = is_piped or word == "|"
                commands.append(_command(str(block), words, is_piped=is_piped))
                words = []
    return commands


def _command(where: str, words: Sequence[str], *, is_piped: bool) -> Command:
    environment = {}
    while re.match(r"[A-Z_]+=", words[0]):
        name, value = words[0].split("=", 1)
        environment[name] = value
        words = words[1:]
    return Command(where, environment, tuple(words), is_piped)


def script_of(command: Command) -> Script | None:
    """Return the script that a command starts; None for a program of others or a line of Python.

    Raises:
        ValueError: If the program is not known here, or its launcher does not take the flags.
    """
    program, *words = command.words
    if program == "pip":
        _check_pip(command)
        return None
    if program in _PROGRAMS_OF_OTHERS:
        return None
    if program == "python" and words[:1] == ["-c"]:
        compile(words[1], command.where, "exec")
        return None
    if program == "python" and words[:1] == ["-m"]:
        return Script(("python", "-m"), words[1], tuple(words[2:]))
    if program == "python":
        return Script(("python",), words[0], tuple(words[1:]))
    if program == "accelerate" and words[:1] == ["launch"]:
        return _launched(command, _accelerate_parser(), words[1:], ("accelerate", "launch"))
    if program == "torchrun":
        return _launched(command, _torchrun_parser(), words, ("torchrun",))
    raise ValueError(f"{command.where}: no test knows the program {program!r}, of `{command}`.")


def _launched(
    command: Command, parser: argparse.ArgumentParser, words: Sequence[str], program: tuple[str, ...]
) -> Script:
    with mock.patch.object(parser, "error", side_effect=lambda text: _refuse(f"{command.where}: `{command}`: {text}")):
        args = parser.parse_args(list(words))
    own = words[: len(words) - len(args.training_script_args) - 1]
    return Script((*program, *own), args.training_script, tuple(args.training_script_args))


def _accelerate_parser() -> argparse.ArgumentParser:
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser()


def _torchrun_parser() -> argparse.ArgumentParser:
    from torch.distributed.run import get_args_parser

    return get_args_parser()


def _check_pip(command: Command) -> None:
    """Raise ValueError for an extra of ours that is not there."""
    metadata = ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    for word in command.words:
        for extra in re.findall(r"(?:\.|mme_hf)\[(.+)\]", word):
            if missing := set(extra.split(",")) - set(metadata["options.extras_require"]):
                raise ValueError(f"{command.where}: setup.cfg has no extra {sorted(missing)}.")


def _refuse(message: str) -> None:
    raise ValueError(message)


def module_of(script: Script) -> ModuleType:
    """Return the module that a script is, imported but not run."""
    if script.launcher[-1:] == ("-m",):
        return importlib.import_module(script.target)
    path = ROOT / script.target
    with mock.patch.object(sys, "path", [str(path.parent), *sys.path]):  # where Python looks for what it imports
        return load_script(path)


class _Parsed(BaseException):
    """Raised when a script has read its command line; nothing of ours catches it."""


def check_flags(script: Script, where: str) -> None:
    """Have the script's own parser read its words, recipe included, and stop it there.

    Raises:
        ValueError: If it refuses them, or takes none at all and is given some.
    """
    module = module_of(script)
    line = f"{where}: `{shlex.join((script.target, *script.arguments))}`"
    name = next((name for name in ("parse_arguments", "_parse") if hasattr(module, name)), None)
    owner, name = (module, name) if name else (argparse.ArgumentParser, "parse_args")
    if owner is not module and not hasattr(module, "argparse"):
        if script.arguments:
            raise ValueError(f"{line}: the script takes no words.")
        return
    original = getattr(owner, name)

    def parse_and_stop(*args, **kwargs):
        original(*args, **kwargs)
        raise _Parsed

    words = [script.target, *script.arguments]
    with mock.patch.object(owner, name, parse_and_stop), mock.patch.object(sys, "argv", words):
        try:
            module.main()
        except _Parsed:
            return
        except SystemExit as stop:
            raise ValueError(f"{line} ends with: {stop.code}") from stop
    raise ValueError(f"{line} never read its command line.")


def relative_links(text: str) -> list[str]:
    """Return the targets of links and images that are no addresses, with their anchors; code holds none."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = [next(filter(None, groups)) for groups in _LINK.findall(text)]
    return [target for target in targets if not re.match(r"[a-z+]+:", target)]


def anchors_of(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    text = _FENCED.sub("", text)
    anchors: set[str] = set()
    for heading in re.findall(r"^#+\s+(.+?)\s*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = sum(1 for known in anchors if re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", known))
        anchors.add(f"{anchor}-{number}" if number else anchor)
    return anchors


def code_spans(page: str) -> Iterator[tuple[str, str]]:
    """Yield where it is, and the text, of each piece of code in the prose of a page."""
    for number, line in enumerate(prose_of(page).splitlines(), start=1):
        for span in re.findall(r"`([^`]+)`", line):
            yield f"{page}:{number}", span


def files_in(text: str) -> list[str]:
    """Return the files and folders of the repository that a piece of code names, braces expanded."""
    alternatives = re.search(r"\{([\w,-]+)\}", text)
    if alternatives:
        start, end = alternatives.span()
        return [name for word in alternatives[1].split(",") for name in files_in(text[:start] + word + text[end:])]
    return [match[0] for match in _FILE_IN_THE_REPOSITORY.finditer(text) if not text[: match.start()].endswith("/")]


def flags_in(text: str) -> list[str]:
    """Return the flags that a piece of code names; those of other programs are not looked at."""
    if text.split()[0] in _PROGRAMS_OF_OTHERS:
        return []
    return re.findall(r"(?<![\w-])--([A-Za-z]\w+)", text)


def figures_of(line: str) -> list[tuple[str, list[str]]]:
    """Return the files of results that a line links to, each with the figures that are said to stand there.

    These are the numbers with a point or two digits in the link's text, and in a row of a table those of the whole row.
    """
    line = re.sub(r"`[^`]*`", "", line)
    links = re.findall(r"\[([^\]]*)\]\([^)]*benchmarks/results/(\w+\.md)\)", line)
    row = re.sub(r"\]\([^)]*\)", "", line) if line.startswith("|") else None
    number = r"(?<![\w.])(?:\d+\.\d+|\d{2,})(?![\w.]*\d)"
    return [(name, re.findall(number, text if row is None else row)) for text, name in links]


def is_in(figure: str, text: str) -> bool:
    """Return whether a number stands in a text, there perhaps with more digits."""
    half_a_digit = 0.5 * 10.0 ** -len(figure.partition(".")[2])
    numbers = re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\d)", text)
    return any(abs(float(number) - float(figure)) <= half_a_digit + 1e-9 for number in numbers)


def known_flags() -> set[str]:
    """Return the flags of all scripts of ours, and of those that launch them."""
    flags = {"help"}
    for path in [
        *(ROOT / "examples").glob("*.py"),
        *(ROOT / "benchmarks").glob("*.py"),
        ROOT / "src/mme_hf/data/prepare.py",
        ROOT / "src/mme_hf/model_card.py",
    ]:
        flags |= set(re.findall(r"add_argument\(\s*\"--(\w+)\"", path.read_text()))
    for arguments_class in ARGUMENTS:
        names = {field.name for field in dataclasses.fields(arguments_class)}
        flags |= names | {f"no_{name}" for name in names}
    for parser in (_accelerate_parser(), _torchrun_parser()):
        options = [option for action in parser._actions for option in action.option_strings]
        flags |= {option.lstrip("-").replace("-", "_") for option in options}
    return flags
