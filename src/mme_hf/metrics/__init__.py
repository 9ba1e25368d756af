"""Metrics of the `evaluate` library that come with the package, since those of the Hub need the network.

Each file is a module for `evaluate.load`, which copies it into its cache: it can import nothing of ours. `predictions`
are scores, a list of one number per class for each video; `references` are the numbers of the right classes.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluate import EvaluationModule

METRICS = ("calibration_error", "confusion_matrix", "mean_class_accuracy", "top_k_accuracy")


@cache
def load_metric(name: str) -> EvaluationModule:
    """Return a metric of this folder, without the network.

    Args:
        name: One of `METRICS`.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in METRICS:
        raise ValueError(f"metric {name!r} is none of the package: {', '.join(METRICS)}.")
    return _evaluate_library().load(str(Path(__file__).with_name(f"{name}.py")), keep_in_memory=True)


def _evaluate_library() -> ModuleType:
    # Python looks first in the folder of the script that it runs, and examples/ has an evaluate.py of its own.
    everywhere = sys.path[:]
    sys.path[:] = [folder for folder in everywhere if not Path(folder, "evaluate.py").is_file()]
    try:
        import evaluate
    finally:
        sys.path[:] = everywhere
    return evaluate
