"""How many of transformers' tests our classes pass, beside VideoMAE's in the same run."""

from collections import Counter
from collections.abc import Mapping

# Ours -> those of transformers that they are compared with.
PEERS = {"MMEModelTest": "VideoMAEModelTest", "MMEVideoProcessorTest": "VideoMAEVideoProcessorTest"}
Outcomes = Mapping[str, Mapping[str, str]]  # class -> test -> passed, failed or skipped


def record(outcomes: dict[str, dict[str, str]], nodeid: str, when: str, outcome: str) -> None:
    """Note what one of a test's three reports (setup, call, teardown) says of it; a failure in any of them stays."""
    if when != "call" and outcome == "passed":
        return
    *_, class_name, test = nodeid.split("::")
    tests = outcomes.setdefault(class_name, {})
    if tests.get(test) != "failed":
        tests[test] = outcome


def summary(outcomes: Outcomes) -> list[str]:
    """Return a line of counts for each class."""
    lines = []
    for name, tests in sorted(outcomes.items()):
        counts = Counter(tests.values())
        lines.append(f"{name}: " + ", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "failed", "skipped")))
    return lines


def not_compared(outcomes: Outcomes) -> list[str]:
    """Return why pairs of classes cannot be compared: a part of the run was left out, or broke off."""
    return [
        f"{ours} and {theirs} did not run the same tests, so they are not compared."
        for ours, theirs in PEERS.items()
        if not outcomes.get(ours) or set(outcomes[ours]) != set(outcomes.get(theirs, ()))
    ]


def problems(outcomes: Outcomes) -> list[str]:
    """Return each test that VideoMAE's classes pass and ours do not; without any, ours pass at least as many."""
    return [
        f"{theirs} passes {test}; {ours} does not ({outcomes.get(ours, {}).get(test, 'not run')})."
        for ours, theirs in PEERS.items()
        for test, outcome in sorted(outcomes.get(theirs, {}).items())
        if outcome == "passed" and outcomes.get(ours, {test: "passed"}).get(test) != "passed"
    ]
