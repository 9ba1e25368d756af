"""Counting the pictures of an MPEG-4 part 2 stream (DivX, Xvid) that a decoder shows, from their headers alone.

AVI files of this kind put a P- and a B-picture into one packet ("packed bitstream") and a placeholder into the next,
or mark a repeated picture as not coded. Decoders show neither, so packets and frames do not correspond one to one.

Source: ISO/IEC 14496-2, sections 6.2.3 (video object layer) and 6.2.5 (video object plane).
"""

from collections.abc import Iterable

_PICTURE_START = b"\x00\x00\x01\xb6"
_LAYER_START = b"\x00\x00\x01"
_LAYER_CODES = range(0x20, 0x30)
_HEADER_BYTES = 16


class _Bits:
    """Bits of a header, most significant first; reads past the end give zeros."""

    def __init__(self, data: bytes):
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            return 0
        return (self._value >> self._left) & ((1 << count) - 1)


def count_shown_pictures(packets: Iterable, extradata: bytes = b"") -> int:
    """Return how many pictures in `packets` a decoder shows.

    Args:
        packets: Objects that `bytes` turns into the data of one packet, in decoding order.
        extradata: Stream headers kept apart from the packets, if any.
    """
    time_bits = _time_increment_bits(extradata)
    num_pictures = 0
    for packet in packets:
        data = bytes(packet)
        time_bits = time_bits or _time_increment_bits(data)
        start = data.find(_PICTURE_START)
        while start >= 0:
            header = data[start + 4 : start + 4 + _HEADER_BYTES]
            num_pictures += _is_coded(header, time_bits)
            start = data.find(_PICTURE_START, start + 4)
    return num_pictures


def _time_increment_bits(data: bytes) -> int:
    """Return the width of a picture's time field, which the layer header sets; 0 if `data` holds no such header."""
    start = data.find(_LAYER_START)
    while start >= 0:
        if start + 3 < len(data) and data[start + 3] in _LAYER_CODES:
            return _parse_layer(_Bits(data[start + 4 : start + 4 + 2 * _HEADER_BYTES]))
        start = data.find(_LAYER_START, start + 3)
    return 0


def _parse_layer(bits: _Bits) -> int:
    bits.read(1 + 8)  # random_accessible_vol, video_object_type_indication
    if bits.read(1):  # is_object_layer_identifier
        bits.read(4 + 3)
    if bits.read(4) == 15:  # aspect_ratio_info: extended_PAR
        bits.read(8 + 8)
    if bits.read(1):  # vol_control_parameters
        bits.read(2 + 1)
        if bits.read(1):  # vbv_parameters
            bits.read(79)
    bits.read(2 + 1)  # video_object_layer_shape, marker
    resolution = bits.read(16)
    return max((resolution - 1).bit_length(), 1)


def _is_coded(header: bytes, time_bits: int) -> bool:
    bits = _Bits(header)
    bits.read(2)  # vop_coding_type
    while bits.read(1):  # modulo_time_base: a run of ones for whole seconds
        pass
    bits.read(1 + time_bits + 1)  # marker, vop_time_increment, marker
    return bits.read(1) == 1
