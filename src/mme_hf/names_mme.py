"""Misspelt names, refused with what was probably meant."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches

# Likeness from which a name is one of ours misspelt and nobody else's: "fram_stride" has 0.96; "min_frames", an option
# of other processors in transformers, 0.8 with "num_frames".
_MISSPELT = 0.85
# Keys of a saved file that say where its remote code is, filled by importing `mme_hf`: the package needs none, and in a
# folder that it saves they would name files that are not there.
KEYS_NOT_KEPT: set[str] = set()


def check_names(
    owner: str,
    given: Iterable[str],
    known: Collection[str],
    *,
    misspelt_only: bool = False,
    error: type[Exception] = ValueError,
) -> None:
    """Raise an error that names the first name nobody knows, and those it may have been meant for.

    Args:
        owner: What takes the names, for the message.
        given: Names to check. Those with a leading underscore are private to transformers and pass.
        known: Names that exist.
        misspelt_only: Whether a name that resembles none of `known` passes too.
        error: Class of the error.
    """
    for name in given:
        if name in known or name.startswith("_"):
            continue
        close = get_close_matches(name, known, cutoff=_MISSPELT if misspelt_only else 0.6)
        if close:
            raise error(f"{owner} has no option {name}. Did you mean {' or '.join(close)}?")
        if not misspelt_only:
            raise error(f"{owner} has no option {name}. Its options are {', '.join(sorted(known))}.")
