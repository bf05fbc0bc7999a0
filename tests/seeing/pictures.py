"""Pictures of a coloured shape with a digit on it, and what is to be said of them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw, ImageFont

COLOURS: Final = {
    "red": (214, 32, 38), "green": (36, 150, 58), "blue": (34, 72, 205), "yellow": (246, 214, 30),
    "orange": (245, 134, 24), "purple": (128, 44, 160), "black": (18, 18, 20), "white": (250, 250, 250),
}  # fmt: skip
SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "heart")
#: Of a picture as it is drawn, and as it is kept.
_SCALE: Final = 2
SIZE: Final = 64


@dataclass(frozen=True)
class Content:
    colour: str
    shape: str
    digit: int

    @property
    def caption(self) -> str:
        return f"This is a picture of a {self.colour} {self.shape} with the digit {self.digit} on it."


def any_content(rng: random.Random) -> Content:
    return Content(rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.randrange(10))


def draw(content: Content, rng: random.Random) -> Image.Image:
    """RGB, 64 x 64. `rng` decides place, size, turn, shades and noise."""
    side = SIZE * _SCALE
    shade = rng.randrange(120, 200)
    background = tuple(shade + rng.randrange(-8, 9) for _ in range(3))
    image = Image.new("RGB", (side, side), background)
    painter = ImageDraw.Draw(image)
    radius = rng.uniform(0.34, 0.44) * side
    centre = tuple(side / 2 + rng.uniform(-0.06, 0.06) * side for _ in range(2))
    turn = rng.uniform(-0.2, 0.2)
    colour = tuple(min(255, max(0, value + rng.randrange(-12, 13))) for value in COLOURS[content.colour])
    painter.polygon([_turned(x, y, turn, radius, centre) for x, y in outline(content.shape)], fill=colour)
    _write(image, content, rng, radius, centre)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def outline(shape: str) -> list[tuple[float, float]]:
    """Corners within the unit circle, y down."""
    around = [2 * math.pi * i / 60 for i in range(60)]
    if shape == "circle":
        return [(0.88 * math.cos(a), 0.88 * math.sin(a)) for a in around]
    if shape == "heart":
        return [
            (
                0.95 * math.sin(a) ** 3,
                -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16,
            )
            for a in around
        ]
    if shape == "star":
        radii = [1.0 if i % 2 == 0 else 0.52 for i in range(10)]
        return [(r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate(radii)]
    if shape == "cross":
        a, b = 0.34, 0.93
        return [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
            (-a, -a),
        ]
    corners = {"square": 4, "triangle": 3}[shape]
    first = math.pi / 4 if shape == "square" else 0.0
    return [
        (math.sin(first + 2 * math.pi * i / corners), -math.cos(first + 2 * math.pi * i / corners))
        for i in range(corners)
    ]


def _turned(x: float, y: float, turn: float, radius: float, centre: tuple[float, ...]) -> tuple[float, float]:
    return (
        centre[0] + radius * (x * math.cos(turn) - y * math.sin(turn)),
        centre[1] + radius * (x * math.sin(turn) + y * math.cos(turn)),
    )


def _write(image: Image.Image, content: Content, rng: random.Random, radius: float, centre: tuple[float, ...]) -> None:
    is_light = content.colour in ("yellow", "orange", "white")
    font = ImageFont.load_default(radius * rng.uniform(0.85, 1.0))
    mask = Image.new("L", image.size)
    place = (centre[0], centre[1] + (0.12 * radius if content.shape == "triangle" else 0.0))
    ImageDraw.Draw(mask).text(place, str(content.digit), fill=255, font=font, anchor="mm", stroke_width=2)
    mask = mask.rotate(rng.uniform(-10, 10), center=place)
    image.paste((0, 0, 0) if is_light else (255, 255, 255), mask=mask)
