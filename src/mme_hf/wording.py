"""Numbers in sentences."""


def counted(number: int, noun: str) -> str:
    """Return "1 video", "2 videos": a number with its noun, for nouns whose plural is made with an s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percent(share: float, digits: int = 1) -> str:
    """Return "41.7 %": a share in [0, 1] in words."""
    return f"{100 * share:.{digits}f} %"
