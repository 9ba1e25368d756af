"""Numbers in sentences."""


def counted(number: int, noun: str) -> str:
    """Return "1 video", "2 videos": a number with its noun, for nouns whose plural is made with an s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
