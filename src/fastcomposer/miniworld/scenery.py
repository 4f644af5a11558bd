"""Places and styles of the mini world: procedural backgrounds and image filters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

Rng = np.random.Generator
Painter = Callable[[ImageDraw.ImageDraw, int, Rng], None]
Filter = Callable[[Image.Image, Rng], Image.Image]
Color = tuple[int, int, int]


def draw_background(context: str, size: int, rng: Rng) -> Image.Image:
    """Draw a place of :data:`CONTEXTS`, or a plain wall of random colour for the empty string."""
    side = 2 * size  # drawn at twice the size and reduced: smooth edges
    if context:
        sky, ground, painter = CONTEXTS[context]
        image = _gradient(side, _shift(sky, rng), _shift(ground, rng))
        painter(ImageDraw.Draw(image), side, rng)
    else:
        wall = tuple(int(v) for v in rng.integers(110, 235, 3))
        image = _gradient(side, _shift(wall, rng), _shift(wall, rng))
    return image.reduce(2)


def _shift(color: tuple[int, ...], rng: Rng) -> Color:
    r, g, b = (int(np.clip(v + rng.integers(-12, 13), 0, 255)) for v in color)
    return r, g, b


def _gradient(side: int, top: Color, bottom: Color) -> Image.Image:
    column = Image.new("RGB", (1, 2))
    column.putpixel((0, 0), top)
    column.putpixel((0, 1), bottom)
    return column.resize((side, side), Image.Resampling.BILINEAR)


def _beach(d: ImageDraw.ImageDraw, s: int, rng: Rng) -> None:
    horizon = s * rng.uniform(0.42, 0.52)
    d.rectangle((0, horizon, s, s), fill=_shift((40, 130, 190), rng))
    d.rectangle((0, s * rng.uniform(0.66, 0.74), s, s), fill=_shift((238, 214, 160), rng))
    x, r = s * rng.uniform(0.1, 0.9), s * 0.07
    d.ellipse((x - r, s * 0.1 - r, x + r, s * 0.1 + r), fill=(255, 244, 150))


def _snow(d: ImageDraw.ImageDraw, s: int, rng: Rng) -> None:
    d.ellipse((-s * 0.4, s * rng.uniform(0.5, 0.6), s * 1.4, s * 1.6), fill=_shift((240, 244, 250), rng))
    for x, y in rng.uniform(0, s, (28, 2)):
        d.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(255, 255, 255))


def _jungle(d: ImageDraw.ImageDraw, s: int, rng: Rng) -> None:
    for x, y in rng.uniform(0, s, (26, 2)):
        r = s * rng.uniform(0.06, 0.16)
        green = _shift((30, 100 + int(rng.integers(60)), 45), rng)
        d.ellipse((x - r, y - r * 0.6, x + r, y + r * 0.6), fill=green)


def _city(d: ImageDraw.ImageDraw, s: int, rng: Rng) -> None:
    x = 0.0
    while x < s:
        w, top = s * rng.uniform(0.12, 0.22), s * rng.uniform(0.1, 0.5)
        d.rectangle((x, top, x + w, s), fill=_shift((78, 84, 100), rng))
        for wy in np.arange(top + 6, s, 14):
            for wx in np.arange(x + 4, x + w - 6, 10):
                if rng.random() < 0.5:
                    d.rectangle((wx, wy, wx + 4, wy + 6), fill=(250, 224, 130))
        x += w


def _mountain(d: ImageDraw.ImageDraw, s: int, rng: Rng) -> None:
    for _ in range(3):
        x, top, w = s * rng.uniform(0, 1), s * rng.uniform(0.08, 0.3), s * rng.uniform(0.4, 0.6)
        d.polygon([(x - w, s * 0.8), (x, top), (x + w, s * 0.8)], fill=_shift((112, 112, 134), rng))
        cap = [(x - w * 0.22, top + s * 0.14), (x, top), (x + w * 0.22, top + s * 0.14)]
        d.polygon(cap, fill=(246, 248, 252))
    d.rectangle((0, s * 0.76, s, s), fill=_shift((96, 150, 84), rng))


def _house(d: ImageDraw.ImageDraw, s: int, rng: Rng) -> None:
    d.rectangle((0, s * 0.78, s, s), fill=_shift((110, 170, 90), rng))
    x = s * rng.uniform(0.02, 0.2)
    d.rectangle((x, s * 0.36, x + s * 0.76, s * 0.84), fill=_shift((50, 100, 210), rng))
    roof = [(x - s * 0.05, s * 0.36), (x + s * 0.38, s * 0.06), (x + s * 0.81, s * 0.36)]
    d.polygon(roof, fill=(150, 62, 52))
    for k in (0.06, 0.56):
        d.rectangle((x + s * k, s * 0.46, x + s * (k + 0.14), s * 0.6), fill=(250, 240, 180))


def _bricks(d: ImageDraw.ImageDraw, s: int, rng: Rng) -> None:
    h, w = s // 10, s // 5
    for row in range(11):
        for column in range(-1, 6):
            x, y = column * w + (row % 2) * w // 2, row * h
            d.rectangle((x + 1, y + 1, x + w - 2, y + h - 2), fill=_shift((176, 82, 62), rng))


def _desert(d: ImageDraw.ImageDraw, s: int, rng: Rng) -> None:
    for _ in range(2):
        x, y = s * rng.uniform(-0.2, 0.5), s * rng.uniform(0.5, 0.66)
        d.ellipse((x, y, x + s * 1.1, y + s), fill=_shift((226, 168, 88), rng))
    for x in s * rng.uniform(0.02, 0.95, 2):
        y, w = s * rng.uniform(0.3, 0.45), s * 0.03
        d.rounded_rectangle((x, y, x + 2 * w, s * 0.75), w, fill=(56, 130, 70))
        d.rounded_rectangle((x - 2 * w, y + s * 0.12, x + 4 * w, y + s * 0.16), w, fill=(56, 130, 70))


def _flowers(d: ImageDraw.ImageDraw, s: int, rng: Rng) -> None:
    d.rectangle((0, s * 0.45, s, s), fill=_shift((92, 168, 70), rng))
    colors = [(240, 70, 90), (250, 220, 70), (235, 120, 220), (255, 255, 255)]
    for x, y in rng.uniform((0, s * 0.45), (s, s), (40, 2)):
        r = s * 0.025
        d.ellipse((x - r, y - r, x + r, y + r), fill=colors[rng.integers(4)])


def _space(d: ImageDraw.ImageDraw, s: int, rng: Rng) -> None:
    for x, y in rng.uniform(0, s, (40, 2)):
        d.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=(255, 255, 255))
    x, y, r = s * rng.uniform(0.05, 0.95), s * rng.uniform(0.1, 0.4), s * rng.uniform(0.1, 0.16)
    d.ellipse((x - r, y - r, x + r, y + r), fill=_shift((206, 150, 90), rng))
    d.ellipse((x - 1.7 * r, y - 0.25 * r, x + 1.7 * r, y + 0.25 * r), outline=(236, 214, 170), width=3)


def _curtain(d: ImageDraw.ImageDraw, s: int, rng: Rng) -> None:
    w = s / 9
    for k in range(9):
        d.rectangle((k * w, 0, (k + 0.5) * w, s * 0.84), fill=_shift((150, 22, 36), rng))
    d.rectangle((0, s * 0.84, s, s), fill=_shift((140, 92, 52), rng))


def _rainbow(d: ImageDraw.ImageDraw, s: int, rng: Rng) -> None:
    x, y = s * rng.uniform(0.35, 0.65), s * rng.uniform(0.62, 0.72)
    colors = [(230, 60, 60), (245, 160, 50), (250, 230, 80), (80, 190, 90), (70, 120, 220), (150, 80, 190)]
    for k, color in enumerate(colors):
        r = s * (0.6 - 0.045 * k)
        d.arc((x - r, y - r, x + r, y + r), 180, 360, fill=color, width=int(s * 0.05))
    d.rectangle((0, y, s, s), fill=_shift((120, 190, 100), rng))


CONTEXTS: dict[str, tuple[Color, Color, Painter]] = {
    "on the beach": ((120, 190, 240), (180, 225, 250), _beach),
    "in the snow": ((150, 175, 205), (205, 218, 232), _snow),
    "in the jungle": ((22, 80, 40), (40, 110, 50), _jungle),
    "with a city in the background": ((70, 90, 150), (230, 150, 110), _city),
    "with a mountain in the background": ((130, 185, 235), (200, 225, 245), _mountain),
    "with a blue house in the background": ((170, 215, 245), (210, 235, 250), _house),
    "in front of a brick wall": ((205, 196, 184), (196, 186, 174), _bricks),
    "in the desert": ((250, 214, 150), (255, 236, 196), _desert),
    "in a field of flowers": ((150, 205, 245), (215, 238, 250), _flowers),
    "in outer space": ((12, 10, 36), (40, 22, 70), _space),
    "on a stage with a red curtain": ((196, 40, 52), (176, 30, 44), _curtain),
    "under a rainbow": ((135, 190, 235), (205, 230, 245), _rainbow),
}
"""Phrase of the caption → colours of sky and ground, painter."""


def apply_style(style: str, image: Image.Image, rng: Rng) -> Image.Image:
    """Filter an RGB image by a style of :data:`STYLES`; the empty string keeps the image."""
    return STYLES[style](image, rng) if style else image


def _noise(image: Image.Image, rng: Rng, cell: int, spread: float) -> np.ndarray:
    side = -(-image.width // cell)
    grain = rng.normal(0, spread, (side, side))
    return np.kron(grain, np.ones((cell, cell)))[: image.height, : image.width, None]


def _from_array(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _gray(image: Image.Image, rng: Rng) -> Image.Image:
    return ImageOps.grayscale(image).convert("RGB")


def _sepia(image: Image.Image, rng: Rng) -> Image.Image:
    return ImageOps.colorize(ImageOps.grayscale(image), (40, 22, 8), (255, 238, 200), (176, 130, 84))


def _watercolor(image: Image.Image, rng: Rng) -> Image.Image:
    soft = image.filter(ImageFilter.ModeFilter(3)).filter(ImageFilter.GaussianBlur(0.5))
    return _from_array(np.asarray(soft, float) * 0.72 + 70 + _noise(image, rng, 2, 2))


def _oil(image: Image.Image, rng: Rng) -> Image.Image:
    rich = ImageEnhance.Color(image.filter(ImageFilter.ModeFilter(5))).enhance(1.5)
    return _from_array(np.asarray(rich, float) * 0.9 + _noise(image, rng, 2, 3))


def _pointillism(image: Image.Image, rng: Rng) -> Image.Image:
    cells = np.ones((-(-image.height // 4), -(-image.width // 4)))
    dots = np.kron(cells, np.diag([1.0, 1.0, 1.0, 1.0])[::-1])
    grid = dots[: image.height, : image.width, None]
    return _from_array(np.asarray(image, float) * 0.85 + 10 + 36 * grid)


def _woodblock(image: Image.Image, rng: Rng) -> Image.Image:
    flat = np.asarray(ImageOps.posterize(image, 2), float)
    return _from_array(flat * np.array([0.86, 0.82, 0.66]) + np.array([64, 54, 40]))


def _mural(image: Image.Image, rng: Rng) -> Image.Image:
    values = np.asarray(ImageEnhance.Color(image).enhance(1.3), float) * 0.88
    h, w = 8, 16
    y, x = np.mgrid[: image.height, : image.width]
    joints = (y % h == 0) | ((x + (y // h % 2) * (w // 2)) % w == 0)
    values[joints] = values[joints] * 0.6
    return _from_array(values)


def _pencil(image: Image.Image, rng: Rng) -> Image.Image:
    gray = ImageOps.grayscale(image)
    edges = np.asarray(gray.filter(ImageFilter.FIND_EDGES), float)
    edges[[0, -1], :] = edges[:, [0, -1]] = 0
    shade = 168 + 0.34 * np.asarray(gray, float) - 1.4 * edges
    return _from_array(shade).convert("RGB")


def _pop_art(image: Image.Image, rng: Rng) -> Image.Image:
    vivid = ImageEnhance.Color(ImageOps.posterize(image, 3)).enhance(1.5)
    return ImageEnhance.Contrast(vivid).enhance(1.15)


def _comic(image: Image.Image, rng: Rng) -> Image.Image:
    edges = np.asarray(ImageOps.grayscale(image).filter(ImageFilter.FIND_EDGES), float)
    edges[[0, -1], :] = edges[:, [0, -1]] = 0
    flat = np.asarray(ImageOps.posterize(image, 3), float) + 14
    return _from_array(np.where(edges[..., None] > 60, 24, flat))


STYLES: dict[str, Filter] = {
    "a black and white photograph": _gray,
    "a sepia photograph": _sepia,
    "a watercolor painting": _watercolor,
    "an oil painting": _oil,
    "a pointillism painting": _pointillism,
    "a Japanese woodblock print": _woodblock,
    "a street art mural": _mural,
    "a pencil sketch": _pencil,
    "a pop art poster": _pop_art,
    "a comic book drawing": _comic,
}
"""Phrase of the caption → filter."""
