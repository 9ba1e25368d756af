"""A classifier that is to be used as it is, with the processor that makes its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..modeling_mme import MMEForVideoClassification
from ..video_processing_mme import MMEVideoProcessor
from .labelled_data import processor_of
from .trained_models import load_trained

if TYPE_CHECKING:
    from .judging_arguments import EvaluationArguments, PredictionArguments


def load_classifier(
    args: EvaluationArguments | PredictionArguments,
) -> tuple[MMEForVideoClassification, MMEVideoProcessor]:
    """Return the classifier that `model_name_or_path` names, and its processor, changed by the flags that are given.

    Raises:
        ValueError: If there is none, it has no trained head, or it tells no classes.
    """
    name = args.model_name_or_path
    kind, remedy = "trained classifier", "Fine-tune it first."
    model = load_trained(MMEForVideoClassification, "model_name_or_path", name, kind=kind, remedy=remedy)
    if model.config.problem_type == "regression":
        raise ValueError(f"model_name_or_path ({name!r}) predicts values (regression), not classes.")
    return model, processor_of(name, model.config, args)
