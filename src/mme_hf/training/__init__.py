"""What a training loop needs besides Accelerate: arguments, schedule, updates, exact checkpoints, evaluation."""

from .arguments import ExtractionArguments, PretrainingArguments
from .batch_inputs import BatchInputs
from .checkpointing import latest_checkpoint, save_result
from .evaluation import MeanPredictor, NothingToExplainError, explained_share
from .held_out import report_explained_share
from .optimization import (
    build_average,
    build_optimizer,
    build_scheduler,
    parameter_groups,
    scaled_learning_rate,
)
from .parsing import parse_arguments
from .progress import (
    ProgressReporter,
    announce_result,
    announce_run,
    describe_updates,
    put_earlier_run_aside,
    set_up_logging,
)
from .run_state import RunState
from .stopping import stopping_in_one_line
from .updates import NonFiniteLossError, UpdateReport, run_update

__all__ = [
    "BatchInputs",
    "ExtractionArguments",
    "MeanPredictor",
    "NonFiniteLossError",
    "NothingToExplainError",
    "PretrainingArguments",
    "ProgressReporter",
    "RunState",
    "UpdateReport",
    "announce_result",
    "announce_run",
    "build_average",
    "build_optimizer",
    "build_scheduler",
    "describe_updates",
    "explained_share",
    "latest_checkpoint",
    "parameter_groups",
    "parse_arguments",
    "put_earlier_run_aside",
    "report_explained_share",
    "run_update",
    "save_result",
    "scaled_learning_rate",
    "set_up_logging",
    "stopping_in_one_line",
]
