"""Fetches transformers' tests before ours are collected, and holds ours to VideoMAE's outcomes.

`pytest tests/conformance` runs this folder; a plain `pytest` does not enter it (`norecursedirs` in pyproject.toml), as
it needs the package index. Without the index it is skipped. With MME_REQUIRE_CONFORMANCE=1, which the gate sets, it
then fails, and so does a run that leaves out a part of the comparison.
"""

import os

import archive
import bar
import pytest

IS_REQUIRED = os.environ.get("MME_REQUIRE_CONFORMANCE") == "1"


def pytest_configure(config):
    try:
        folder = archive.fetch(config.cache.mkdir("transformers"))
    except archive.Unavailable as error:
        if IS_REQUIRED:
            raise pytest.UsageError(str(error)) from error
        archive.skip_all(str(error))
        return
    archive.make_importable(folder)
    for name in archive.marks(folder):
        config.addinivalue_line("markers", f"{name}: of transformers' tests")
    # Its workers report to the process that starts them.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Bar())


class _Bar:
    """Counts outcomes as they are reported, and fails the run where VideoMAE's are better."""

    def __init__(self):
        self.outcomes = {}
        self.problems = []

    def pytest_runtest_logreport(self, report):
        bar.record(self.outcomes, report.nodeid, report.when, report.outcome)

    def pytest_sessionfinish(self, session):
        self.problems = bar.problems(self.outcomes)
        if IS_REQUIRED:
            self.problems += bar.not_compared(self.outcomes)
        if self.problems and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        for line in [*bar.summary(self.outcomes), *self.problems]:
            terminalreporter.write_line(line)
