"""The error that every reader raises for a video it cannot read."""


class VideoReadError(RuntimeError):
    """A video could not be opened or one of its frames could not be read.

    Attributes:
        source: The path, or "<bytes, N bytes>" and the like for what has no path.
        cause: What is wrong with it, in words. None if `source` is a whole message: PyTorch's `DataLoader` raises a
            worker's error again from its printed traceback alone.
    """

    def __init__(self, source: str, cause: str | None = None):
        # Both go to `args`, which is what pickle rebuilds the error from.
        super().__init__(source, cause)
        self.source = source
        self.cause = cause

    def __str__(self) -> str:
        if self.cause is None:
            return self.source
        return f"Cannot read video {self.source}: {self.cause}"


class FrameSizeError(VideoReadError):
    """The frames of a video are not all of one size, which no backend can mend."""
