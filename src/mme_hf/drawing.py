"""Tracks, histograms and words drawn on frames, and the files they are written to. Pillow only; nothing of ours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Drawn at this many times the final size and reduced: Pillow's lines are not smoothed.
OVERSAMPLING = 3
# A track that moves less than this a step is drawn as a faint dot.
STATIC_STEP_PX = 0.05
# How far tracks may reach, in distances of points: a fast one (0.9 of those that move are slower), and the fastest
# (0.99 are slower).
FAST_REACH, FASTEST_REACH = 1.7, 10.0
# Times that tracks are drawn longer than they are, in steps that a reader can undo in the head.
LENGTH_FACTORS = (1, 2, 4, 8, 16)
# Shorter tracks in the picture have less colour, so that what trembles does not look like what moves.
FULL_COLOR_PX, MIN_COLOR = 5.0, 0.25
REST_COLOR = (150, 150, 150)
INK, PAPER = (30, 30, 30), (255, 255, 255)
FONT_SIZE_PX = 13
MARGIN_PX = 6


def length_factor(way_px: np.ndarray, spacing_px: float, num_steps: int) -> int:
    """Return how many times longer tracks must be drawn to be seen.

    Args:
        way_px: How far each point goes, shape (points,).
        spacing_px: Distance between neighbouring points.
        num_steps: Steps of the tracks.
    """
    moving = way_px[way_px > STATIC_STEP_PX * num_steps]
    if not len(moving):
        return 1
    fast, fastest = np.quantile(moving, (0.9, 0.99)) / spacing_px
    limit = min(FAST_REACH / fast, FASTEST_REACH / fastest)
    return max((factor for factor in LENGTH_FACTORS if factor <= limit), default=1)


def direction_colors(vectors: np.ndarray) -> np.ndarray:
    """Return a colour of the hue wheel for the direction of each vector (..., 2), uint8 (..., 3): right is red."""
    hue = (np.arctan2(-vectors[..., 1], vectors[..., 0]) / (2 * np.pi)) % 1.0
    # Three raised cosines: every hue is light enough to stand out on a dimmed frame.
    shifts = np.array([0.0, 1 / 3, 2 / 3])
    waves = 0.5 + 0.5 * np.cos(2 * np.pi * (hue[..., None] - shifts))
    return (70 + 185 * np.clip(1.35 * waves, 0, 1)).astype(np.uint8)


def faded(frame: np.ndarray) -> np.ndarray:
    """Return a frame uint8 (H, W, 3) with less colour and light, for lines to be drawn on."""
    grey = frame.mean(-1, keepdims=True)
    return (0.62 * (0.3 * frame + 0.7 * grey) + 8).astype(np.uint8)


def draw_tracks(
    frame: np.ndarray,
    points_xy: np.ndarray,
    is_visible: np.ndarray,
    *,
    size: tuple[int, int],
    factor: int = 1,
    anchor: int = 0,
) -> Image.Image:
    """Return a picture of tracks over a frame, coloured by direction, from thin and dark to a dot where they arrive.

    What hardly moves is greyer, what rests a grey dot.

    Args:
        frame: uint8 (H, W, 3).
        points_xy: Positions in pixels of the frame, shape (L + 1, P, 2).
        is_visible: Where a track ends is the last position of an unbroken run of True, shape (L + 1, P).
        size: (height, width) of the picture.
        factor: Times that ways are drawn longer than they are.
        anchor: The position that is drawn where it is: 0 for a track that leaves it, -1 for one that arrives there.
    """
    scale = size[1] / frame.shape[1] * OVERSAMPLING
    canvas = Image.fromarray(faded(frame)).resize((size[1] * OVERSAMPLING, size[0] * OVERSAMPLING), Image.BILINEAR)
    pen = ImageDraw.Draw(canvas)
    num_seen = np.cumprod(is_visible, axis=0).sum(0)  # positions from the start to where it is lost
    places = points_xy[anchor] + factor * (points_xy - points_xy[anchor])
    places = (places + 0.5) * scale
    way = np.zeros((points_xy.shape[1], 2))
    for point, count in enumerate(num_seen):
        if count:
            way[point] = points_xy[count - 1, point] - points_xy[0, point]
    is_static = np.hypot(*way.T) <= STATIC_STEP_PX * (len(points_xy) - 1)
    strength = np.hypot(*way.T) * factor * size[1] / frame.shape[1] / FULL_COLOR_PX
    colors = _mixed(REST_COLOR, direction_colors(way), strength.clip(MIN_COLOR, 1)[:, None])
    # Moving points last, so that nothing hides them.
    for point in np.argsort(~is_static, kind="stable"):
        count = num_seen[point]
        if count < (2 if anchor == 0 else len(points_xy)) and len(points_xy) > 1:
            continue
        if is_static[point]:
            _dot(pen, places[anchor, point], 0.7 * OVERSAMPLING, REST_COLOR)
        else:
            _draw_track(pen, places[:count, point], colors[point], 0.8 + 0.7 * min(strength[point], 1))
    return canvas.resize((size[1], size[0]), Image.LANCZOS)


def _draw_track(pen: ImageDraw.ImageDraw, places: np.ndarray, color: np.ndarray, dot_radius: float) -> None:
    """Draw a line that grows wider and lighter from where it starts, thin and dark, to the dot where it arrives."""
    for step, (start, end) in enumerate(pairwise(places), start=1):
        share = step / (len(places) - 1)
        shade = tuple((color * (0.45 + 0.55 * share)).astype(int).tolist())
        width = dot_radius * (0.5 + 0.5 * share) * OVERSAMPLING
        pen.line([tuple(start), tuple(end)], fill=shade, width=round(width))
        _dot(pen, end, width / 2, shade)
    _dot(pen, places[-1], dot_radius * OVERSAMPLING, tuple(color.tolist()))


def annotated(image: Image.Image, text: str) -> Image.Image:
    """Return a picture with a line of words in its lower left corner."""
    image = image.copy()
    pen = ImageDraw.Draw(image)
    text = _fitting(text, image.width - 2 * MARGIN_PX)
    place = (MARGIN_PX // 2, image.height - FONT_SIZE_PX - MARGIN_PX)
    left, top, right, bottom = pen.textbbox(place, text, _font())
    pen.rectangle((left - 3, top - 2, right + 3, bottom + 2), fill=INK)
    pen.text(place, text, PAPER, _font())
    return image


def draw_histograms(frame: np.ndarray, histograms: np.ndarray, *, size: tuple[int, int]) -> Image.Image:
    """Return a picture of histograms of gradients: in each cell a bar along the edge for every bin.

    Args:
        frame: uint8 (H, W, 3).
        histograms: Of all channels, shape (channels * bins, rows, columns) or (bins, rows, columns) of their sum.
        size: (height, width) of the picture.
    """
    bins, rows, columns = histograms.shape
    canvas = Image.fromarray(faded(frame) // 2).resize((size[1] * OVERSAMPLING, size[0] * OVERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    side = size[1] * OVERSAMPLING / columns
    largest = max(float(np.quantile(histograms.max(0), 0.97)), 1e-6)
    strength = np.clip(histograms / largest, 0, 1)
    angles = np.arange(bins) * np.pi / bins
    # An edge runs across its gradient.
    along = np.stack([-np.sin(angles), np.cos(angles)], -1) * side * 0.48
    for row in range(rows):
        for column in range(columns):
            center = np.array([(column + 0.5) * side, (row + 0.5) * side])
            for number in np.argsort(strength[:, row, column]):
                value = float(strength[number, row, column])
                if value > 0.08:
                    reach = along[number] * np.sqrt(value)
                    shade = int(90 + 165 * value)
                    ends = [tuple(center - reach), tuple(center + reach)]
                    pen.line(ends, fill=(shade, shade, int(0.75 * shade)), width=OVERSAMPLING)
    return canvas.resize((size[1], size[0]), Image.LANCZOS)


def picture(frame: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Return a frame uint8 (H, W, 3) as a picture of (height, width)."""
    return Image.fromarray(frame).resize((size[1], size[0]), Image.BICUBIC)


def table(
    rows: Sequence[Sequence[Image.Image]],
    *,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    title: str = "",
    footer: str = "",
    shows_wheel: bool = True,
) -> Image.Image:
    """Return pictures of one size side by side with words around them, and the wheel of directions at the bottom.

    Args:
        rows: Pictures.
        row_names: Written left of the rows, upwards.
        column_names: Written above the columns.
        title: Line at the top.
        footer: Words at the bottom, broken to the width.
        shows_wheel: Whether colours tell directions.
    """
    width, height = rows[0][0].size
    num_columns = max(map(len, rows))
    line = FONT_SIZE_PX + MARGIN_PX
    left = line if any(row_names) else MARGIN_PX
    top = MARGIN_PX + line * (bool(title) + bool(column_names))
    total_width = left + num_columns * (width + MARGIN_PX)
    wheel = 3 * line if shows_wheel else 0
    words = _broken(footer, total_width - left - wheel - 2 * MARGIN_PX)
    bottom = max(wheel, line * len(words)) + MARGIN_PX
    sheet = Image.new("RGB", (total_width, top + len(rows) * (height + MARGIN_PX) + bottom), PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((left, MARGIN_PX // 2), _fitting(title, total_width - left), INK, _font())
    for column, name in enumerate(column_names):
        pen.text((left + column * (width + MARGIN_PX), top - line), _fitting(name, width), INK, _font())
    for row, images in enumerate(rows):
        y = top + row * (height + MARGIN_PX)
        for column, image in enumerate(images):
            sheet.paste(image, (left + column * (width + MARGIN_PX), y))
        if row < len(row_names):
            strip = Image.new("RGB", (height, line), PAPER)
            words_here = _fitting(row_names[row], height)
            middle = (height - _font().getlength(words_here)) / 2
            ImageDraw.Draw(strip).text((middle, 0), words_here, INK, _font())
            sheet.paste(strip.rotate(90, expand=True), (0, y))
    y = top + len(rows) * (height + MARGIN_PX)
    if shows_wheel:
        sheet.paste(direction_wheel(wheel - MARGIN_PX), (left, y))
    for number, text in enumerate(words):
        pen.text((left + wheel + MARGIN_PX, y + number * line), text, INK, _font())
    return sheet


def save_animation(path: str | Path, pictures: Sequence[Image.Image], frames_per_second: float) -> None:
    """Write pictures of one size as .gif or .mp4, by the ending of `path`.

    Raises:
        ValueError: If it has another ending.
    """
    path = Path(path)
    if path.suffix.lower() == ".gif":
        frames = in_few_colors(pictures)
        duration = max(20, round(1000 / frames_per_second))
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, loop=0, optimize=True)
    elif path.suffix.lower() == ".mp4":
        _save_mp4(path, pictures, frames_per_second)
    else:
        raise ValueError(f"path ({str(path)!r}) must end in .gif or .mp4.")


def in_few_colors(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Return pictures of one size in 256 colours, the same for all: they would flicker otherwise."""
    palette = _palette(_side_by_side(pictures[:: max(1, len(pictures) // 6)]))
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in pictures]


def _save_mp4(path: Path, pictures: Sequence[Image.Image], frames_per_second: float) -> None:
    from fractions import Fraction

    import av

    # Every player knows H.264; builds of FFmpeg without it know MPEG-4.
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(frames_per_second).limit_denominator(1001))
        stream.width, stream.height = (side - side % 2 for side in pictures[0].size)  # as 4:2:0 needs
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        for image in pictures:
            cut = image.crop((0, 0, stream.width, stream.height))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(cut), format="rgb24")))
        container.mux(stream.encode())


def _palette(image: Image.Image) -> Image.Image:
    """Return 256 colours: those of the picture, and of directions, which are few of its pixels but say most."""
    turns = np.arange(40) / 40 * 2 * np.pi
    directions = direction_colors(np.stack([np.cos(turns), np.sin(turns)], -1))
    own = image.quantize(256 - len(directions) - 2, method=Image.Quantize.MEDIANCUT).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette([*own[: 3 * (256 - len(directions) - 2)], *directions.flatten().tolist(), *INK, *PAPER])
    return palette


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    joined = Image.new("RGB", (width * len(pictures), height))
    for index, image in enumerate(pictures):
        joined.paste(image, (index * width, 0))
    return joined


def _mixed(first: Sequence[int], second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return colours between two, uint8: the second where share is 1."""
    return (np.asarray(first) * (1 - share) + second * share).astype(np.uint8)


def _dot(pen: ImageDraw.ImageDraw, center: Sequence[float], radius: float, color: tuple[int, ...]) -> None:
    x, y = center
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


@cache
def _font() -> ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE_PX)


def direction_wheel(side: int) -> Image.Image:
    """Return a ring that has each colour where its direction points to, `side` pixels wide and high."""
    axis = np.linspace(-1, 1, side * OVERSAMPLING)
    vectors = np.stack(np.meshgrid(axis, axis), -1)
    radius = np.hypot(*np.moveaxis(vectors, -1, 0))
    ring = ((radius < 1) & (radius > 0.45))[..., None]
    image = Image.fromarray(np.where(ring, direction_colors(vectors), np.uint8(255)).astype(np.uint8))
    return image.resize((side, side), Image.LANCZOS)


def _fitting(text: str, width: int) -> str:
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _broken(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and _font().getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
