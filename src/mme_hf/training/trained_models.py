"""A model that is to be used as it is: every weight of it must be in the checkpoint."""

from __future__ import annotations

from ..modeling_mme import MMEPreTrainedModel
from .model_names import NOT_LOADED, check_model_name


def load_trained(
    model_class: type[MMEPreTrainedModel], flag: str, name: str, *, kind: str, remedy: str
) -> MMEPreTrainedModel:
    """Return a model in evaluation mode.

    Args:
        model_class: Of the model.
        flag: That names it, for the messages.
        name: Folder or Hub name.
        kind: What a checkpoint with all weights is, for the message.
        remedy: What to do where it is not.

    Raises:
        ValueError: If there is no such model, or weights are missing; names the first.
    """
    check_model_name(flag, name)
    try:
        model, loading = model_class.from_pretrained(name, output_loading_info=True)
    except NOT_LOADED as error:
        raise ValueError(f"{flag} ({name!r}) cannot be opened: {error}") from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ValueError(f"{flag} ({name!r}) is no {kind}: it has no {missing[0]!r}. {remedy}")
    return model.eval()
