"""`--help` of every script explains every flag."""

import argparse
import importlib
import sys
from unittest import mock

import pytest
from documents import ARGUMENTS, Script, module_of
from transformers import HfArgumentParser

# Those that have a parser of their own, with what they need.
SCRIPTS = {
    "examples/convert_checkpoint.py": None,
    "examples/demo.py": "gradio",
    "examples/visualize_motion.py": None,
    "mme_hf.data.prepare": None,
    "mme_hf.model_card": None,
}


class _Parsing(BaseException):
    """Raised in place of parsing; nothing of ours catches it."""


def unexplained(parser: argparse.ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if not (action.help or "").strip()]


def test_a_flag_without_a_word_is_seen():
    parser = argparse.ArgumentParser()
    parser.add_argument("--told", help="What it does.")
    parser.add_argument("--untold")
    assert unexplained(parser) == ["untold"]


@pytest.mark.parametrize("arguments_class", ARGUMENTS)
def test_every_field_is_explained(arguments_class):
    parser = HfArgumentParser(arguments_class)
    # `--no_x`, which the parser adds to `--x`, is explained there.
    assert [name for name in unexplained(parser) if not name.startswith("no_")] == []


@pytest.mark.parametrize("target", SCRIPTS)
def test_every_flag_is_explained(target):
    if SCRIPTS[target]:
        pytest.importorskip(SCRIPTS[target])
    launcher = ("python",) if target.endswith(".py") else ("python", "-m")
    module = module_of(Script(launcher, target, ()))
    parsers = []

    def keep_and_stop(parser, *_, **__):
        parsers.append(parser)
        raise _Parsing

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", keep_and_stop),
        mock.patch.object(sys, "argv", [target]),
        pytest.raises(_Parsing),
    ):
        module.main()
    (parser,) = parsers
    assert len(parser._actions) > 1 and unexplained(parser) == []


@pytest.mark.parametrize("command", ["mme_hf.data.prepare", "mme_hf.model_card", "mme_hf.motion.report"])
def test_the_help_of_a_command_of_the_package_shows_how_it_is_run(command, capsys):
    module = importlib.import_module(command)
    with mock.patch.object(sys, "argv", [module.__file__, "--help"]), pytest.raises(SystemExit):
        module.main()
    assert capsys.readouterr().out.startswith(f"usage: python -m {command} [")
