"""The code of grid motion: exact, small, and quick to undo.

Displacements are in steps of 1/64 px. Each is replaced by its difference from left + upper - upper left neighbour,
which is small and undone by two running sums; the differences are split into two planes of bytes and deflated. With
1/64 px steps 10 s of Kinetics take about half a megabyte (tests/golden/test_golden_stored.py holds the limit).
"""

import zlib

import numpy as np

STEPS_PER_PX = 64
MAX_DISPLACEMENT_PX = (2**15 - 1) / STEPS_PER_PX
_DEFLATE_LEVEL = 6


def encode_chunk(values: np.ndarray, is_lost: np.ndarray) -> bytes:
    """Return the code of a chunk, exact.

    Args:
        values: Displacements in steps of 1 / 64 px, x then y, int16, shape (pairs, 2, rows, columns).
        is_lost: Whether the tracker lost the point, bool, shape (pairs, rows, columns).
    """
    # Modulo 2**16 throughout: what overflows on the way there does so on the way back.
    residual = values.astype(np.uint16)
    for axis in (-1, -2):
        residual = np.diff(residual, axis=axis, prepend=np.uint16(0))
    signed = residual.view(np.int16)
    zigzag = ((signed << 1) ^ (signed >> 15)).view(np.uint16)  # 0, -1, 1, -2, ... -> 0, 1, 2, 3, ...
    planes = ((zigzag & 0xFF).astype(np.uint8), (zigzag >> 8).astype(np.uint8), np.packbits(is_lost))
    return zlib.compress(b"".join(plane.tobytes() for plane in planes), _DEFLATE_LEVEL)


def decode_chunk(code: bytes, num_pairs: int, grid_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return what `encode_chunk` was given.

    Args:
        code: The code.
        num_pairs: Pairs of frames in it.
        grid_size: (rows, columns) of the grid.

    Raises:
        ValueError: If the code is damaged or holds another number of values.
    """
    rows, columns = grid_size
    num_points = num_pairs * rows * columns
    num_values = 2 * num_points
    data = np.frombuffer(_inflated(code, 2 * num_values + -(-num_points // 8), num_pairs, grid_size), dtype=np.uint8)
    zigzag = data[:num_values].astype(np.uint16) | (data[num_values : 2 * num_values].astype(np.uint16) << 8)
    residual = (zigzag >> 1) ^ (-(zigzag & 1).view(np.int16)).view(np.uint16)
    values = residual.reshape(num_pairs, 2, rows, columns)
    for axis in (-2, -1):
        values = np.cumsum(values, axis=axis, dtype=np.uint16)
    is_lost = np.unpackbits(data[2 * num_values :], count=num_points).astype(bool)
    return values.view(np.int16), is_lost.reshape(num_pairs, rows, columns)


def _inflated(code: bytes, num_bytes: int, num_pairs: int, grid_size: tuple[int, int]) -> bytes:
    inflate = zlib.decompressobj()
    try:
        # One byte more tells a code that is too long, without unpacking whatever else it may hold.
        data = inflate.decompress(code, num_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"a chunk of stored tracks is damaged ({error}). Extract these tracks again.") from error
    if len(data) != num_bytes:
        held = f"more than {num_bytes}" if len(data) > num_bytes else len(data)
        raise ValueError(
            f"a chunk of stored tracks holds {held} bytes; {num_pairs} pairs of {grid_size[0]}x{grid_size[1]} points "
            f"need {num_bytes}. Extract these tracks again."
        )
    if not inflate.eof or inflate.unused_data:
        raise ValueError(
            "a chunk of stored tracks is damaged (incomplete or has something after its end). Extract these tracks "
            "again."
        )
    return data
