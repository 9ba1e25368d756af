"""The comparison that `pytest tests/conformance` ends with counts what was reported."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

CONFORMANCE = Path(__file__).parent / "conformance"
sys.path.append(str(CONFORMANCE))

import archive  # noqa: E402
import bar  # noqa: E402

OURS, THEIRS = "MMEModelTest", "VideoMAEModelTest"
PEERS = [name for pair in bar.PEERS.items() for name in pair]
PROCESSORS = {"MMEVideoProcessorTest": {"a": "passed"}, "VideoMAEVideoProcessorTest": {"a": "passed"}}


def outcomes_of(*reports):
    outcomes = {}
    for class_name, test, when, outcome in reports:
        bar.record(outcomes, f"file.py::{class_name}::{test}", when, outcome)
    return outcomes


def test_a_test_has_one_outcome_and_a_failure_in_any_phase_is_it():
    outcomes = outcomes_of(
        (OURS, "good", "setup", "passed"),
        (OURS, "good", "call", "passed"),
        (OURS, "good", "teardown", "passed"),
        (OURS, "bad", "call", "failed"),
        (OURS, "unclean", "call", "passed"),
        (OURS, "unclean", "teardown", "failed"),
        (OURS, "left_out", "setup", "skipped"),
        (OURS, "gave_up", "call", "skipped"),
        (OURS, "gave_up", "teardown", "passed"),
    )
    assert bar.summary(outcomes) == [f"{OURS}: 1 passed, 2 failed, 2 skipped"]


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_what_only_videomae_passes_is_a_problem(outcome):
    theirs = {"a": "passed", "b": "failed", "c": "skipped"}
    good = {OURS: {"a": "passed", "b": outcome, "c": "passed"}, THEIRS: theirs, **PROCESSORS}
    assert bar.problems(good) == []
    bad = {OURS: {"a": outcome, "b": "passed", "c": "passed"}, THEIRS: theirs, **PROCESSORS}
    assert bar.problems(bad) == [f"{THEIRS} passes a; {OURS} does not ({outcome})."]


def test_a_part_of_a_run_is_not_compared():
    both = {OURS: {"a": "passed"}, THEIRS: {"a": "passed"}}
    assert bar.not_compared({**both, **PROCESSORS}) == []
    assert len(bar.not_compared(both)) == len(bar.not_compared({**both, OURS: {}, **PROCESSORS})) == 1
    assert len(bar.not_compared({**PROCESSORS, **both, THEIRS: {"a": "passed", "b": "passed"}})) == 1


def test_without_the_package_index_the_reason_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setattr(archive, "_reasons", [])
    with pytest.raises(archive.Unavailable, match="No matching distribution found for transformers==") as error:
        archive.fetch(tmp_path)
    assert not list(tmp_path.iterdir())
    archive.skip_all(str(error.value))
    with pytest.raises(pytest.skip.Exception, match=r"are not to be had: (.|\n)*No matching distribution"):
        archive.import_common("test_modeling_common")


@pytest.fixture
def run_of_the_folder(monkeypatch):
    """The `conftest.py` of the folder, as a run that must not leave anything out has it."""
    monkeypatch.setenv("MME_REQUIRE_CONFORMANCE", "1")
    specification = importlib.util.spec_from_file_location("conformance_conftest", CONFORMANCE / "conftest.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_gate_fails_without_the_package_index(run_of_the_folder, tmp_path, monkeypatch):
    def fetch(cache):
        raise archive.Unavailable("No matching distribution")

    monkeypatch.setattr(archive, "fetch", fetch)
    config = SimpleNamespace(cache=SimpleNamespace(mkdir=lambda name: tmp_path / name))
    with pytest.raises(pytest.UsageError, match="No matching distribution"):
        run_of_the_folder.pytest_configure(config)


@pytest.mark.parametrize(
    ("outcome", "names", "status"),
    [("passed", PEERS, 0), ("failed", PEERS, 1), ("passed", (OURS, THEIRS), 1)],
    ids=["as good", "worse", "a part"],
)
def test_the_gate_fails_where_videomae_passes_more_or_a_part_is_left_out(run_of_the_folder, outcome, names, status):
    plugin = run_of_the_folder._Bar()
    for name in names:
        result = outcome if name == OURS else "passed"
        plugin.pytest_runtest_logreport(SimpleNamespace(nodeid=f"file.py::{name}::a", when="call", outcome=result))
    session = SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    plugin.pytest_sessionfinish(session)
    assert session.exitstatus == status and len(plugin.problems) == status
