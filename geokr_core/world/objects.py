"""The detection set of the generated world: aeroplanes, ships and storage tanks drawn on fitting ground, with boxes."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from geokr_core.step.files import write_json
from geokr_core.world import terrain
from geokr_core.world.noise import STREAM_TASK, Noise, generator
from geokr_core.world.surface import reflectance

NUM_IMAGES = 20
NUM_TEST = 7
SIZE_PX = 256
CATEGORIES = ("airplane", "ship", "storage_tank")
"""Category names; the identifier of each is its position counted from 1."""

_FINE = 4
"""Shapes are drawn this many times larger and shrunk, so that their edges are smooth."""

_GSD_M = 2.0
_MAX_TRIES = 60
_MARGIN_PX = 4.0

Colour = tuple[int, int, int]

_GROUND: Mapping[str, tuple[int, int]] = {
    "airplane": (terrain.ARTIFICIAL, terrain.GRASS),
    "ship": (terrain.WATER, terrain.BARE),
    "storage_tank": (terrain.BARE, terrain.CULTIVATED),
}
"""Land cover under the objects, and that of the rest of the picture."""


def write_detection(seed: int, folder: Path) -> int:
    """Write images, boxes in COCO form and split files.

    Returns:
        Number of images.

    Raises:
        OSError: the file system refused.
    """
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    names: list[str] = []
    (folder / "images").mkdir(parents=True)
    for number in range(NUM_IMAGES):
        name = f"image_{number:03d}.png"
        category = number % len(CATEGORIES)
        picture, boxes = _picture(seed, number, CATEGORIES[category])
        Image.fromarray(picture).save(folder / "images" / name, format="PNG")
        names.append(name)
        images.append({"id": number + 1, "file_name": name, "width": SIZE_PX, "height": SIZE_PX})
        for left, top, width, height in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": category + 1,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CATEGORIES)]
    write_json(folder / "annotations.json", {"images": images, "annotations": annotations, "categories": categories})
    for split, entries in (("train", names[:-NUM_TEST]), ("test", names[-NUM_TEST:])):
        (folder / f"split_{split}.txt").write_text("".join(f"{entry}\n" for entry in entries), encoding="utf-8")
    return NUM_IMAGES


def _picture(seed: int, number: int, category: str) -> tuple[np.ndarray, list[tuple[float, float, float, float]]]:
    """One image, uint8 (H, W, 3), and its boxes: left, top, width and height in pixels."""
    rng = generator(seed, STREAM_TASK, "detection image", number)
    picture, stands = _background(seed, rng, category)
    large = Image.fromarray(picture).resize((SIZE_PX * _FINE, SIZE_PX * _FINE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(large)
    boxes: list[tuple[float, float, float, float]] = []
    wanted = int(rng.integers(3, 9))
    for _ in range(_MAX_TRIES):
        size = float(rng.uniform(16, 34))
        centre = rng.uniform(size, SIZE_PX - size, size=2)  # no shape reaches further than its size
        parts = _SHAPES[category](rng, size)
        outline = _placed(parts[0][0], centre, float(rng.uniform(0, 2 * math.pi)))
        turn = outline[1]
        box = _box([_placed(points, centre, turn)[0] for points, _ in parts])
        left, top, width, height = (int(value) for value in box)
        on_ground = bool(stands[top : top + height + 1, left : left + width + 1].all())
        if len(boxes) >= wanted or not on_ground or not _fits(box, boxes):
            continue
        shadow = _placed(parts[0][0], centre + 2.0, turn)[0]
        draw.polygon(_flat(shadow), fill=(40, 42, 46))
        for points, colour in parts:
            draw.polygon(_flat(_placed(points, centre, turn)[0]), fill=colour)
        boxes.append(box)
    shrunk = large.resize((SIZE_PX, SIZE_PX), Image.Resampling.BOX)
    grain = rng.normal(0, 2.5, size=(SIZE_PX, SIZE_PX, 3))
    return np.rint(np.asarray(shrunk, dtype=np.float64) + grain).clip(0, 255).astype(np.uint8), boxes


def _background(seed: int, rng: np.random.Generator, category: str) -> tuple[np.ndarray, np.ndarray]:
    """Ground of two classes, uint8 (H, W, 3), and where objects may stand, bool (H, W)."""
    noise = Noise(seed, (STREAM_TASK, terrain.TASK_REGION.index))
    left, top = rng.uniform(-60_000, 60_000, size=2)
    steps = np.arange(SIZE_PX, dtype=np.float32) * np.float32(_GSD_M)
    x, y = np.meshgrid(steps + np.float32(left), np.float32(top) - steps)
    under, beside = _GROUND[category]
    field = noise.octaves("stand", x, y, 500.0, 3)
    stands = field > np.quantile(field, float(rng.uniform(0.1, 0.3)))
    codes = np.where(stands, np.uint8(under), np.uint8(beside))
    ground = reflectance(codes, x, y, _GSD_M, float(rng.uniform(0.3, 0.9)), noise)
    if category == "airplane":
        ground[stands] = _apron(noise, x[stands], y[stands])
    rgb = ground[..., 2::-1] * np.float32(rng.uniform(700, 1000)) + np.float32(rng.uniform(5, 25))
    return np.rint(rgb.clip(0, 255)).astype(np.uint8), stands


def _apron(noise: Noise, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Concrete in slabs, float32 (N, 4)."""
    slab = noise.per_cell("slab", np.floor(x / 24), np.floor(y / 24))
    joint = (x % 24 < 2) | (y % 24 < 2)
    light = (0.13 + 0.03 * slab + 0.012 * noise.values("stain", x, y, 60.0)) * np.where(joint, 0.75, 1.0)
    return np.repeat(light.astype(np.float32)[:, None], 4, axis=1)


Shape = list[tuple[np.ndarray, Colour]]


def _airplane(rng: np.random.Generator, size: float) -> Shape:
    white = int(rng.integers(215, 250))
    body = np.array([(-0.5, -0.045), (0.42, -0.045), (0.5, 0), (0.42, 0.045), (-0.5, 0.045)])
    wings = np.array([(0.12, 0), (-0.12, 0.46), (-0.2, 0.46), (-0.06, 0), (-0.2, -0.46), (-0.12, -0.46)])
    tail = np.array([(-0.36, 0), (-0.48, 0.17), (-0.53, 0.17), (-0.46, 0), (-0.53, -0.17), (-0.48, -0.17)])
    paint = (white, white, white)
    return [(wings * size, paint), (tail * size, paint), (body * size, (white - 15, white - 15, white))]


def _ship(rng: np.random.Generator, size: float) -> Shape:
    hulls: tuple[Colour, ...] = ((150, 60, 50), (90, 95, 105), (190, 190, 185), (60, 85, 120))
    hull = np.array([(-0.5, -0.12), (0.3, -0.13), (0.5, 0), (0.3, 0.13), (-0.5, 0.12)])
    deck = np.array([(-0.2, -0.07), (0.25, -0.07), (0.25, 0.07), (-0.2, 0.07)])
    bridge = np.array([(-0.44, -0.09), (-0.28, -0.09), (-0.28, 0.09), (-0.44, 0.09)])
    colour = hulls[int(rng.integers(len(hulls)))]
    return [(hull * size, colour), (deck * size, (170, 150, 120)), (bridge * size, (235, 235, 230))]


def _storage_tank(rng: np.random.Generator, size: float) -> Shape:
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * 0.5
    rim = int(rng.integers(205, 245))
    roof = rim - int(rng.integers(15, 70))
    return [(circle * size, (rim, rim, rim)), (circle * size * 0.82, (roof, roof, roof))]


_SHAPES: Mapping[str, Callable[[np.random.Generator, float], Shape]] = {
    "airplane": _airplane,
    "ship": _ship,
    "storage_tank": _storage_tank,
}


def _placed(points: np.ndarray, centre: np.ndarray, turn: float) -> tuple[np.ndarray, float]:
    cos, sin = math.cos(turn), math.sin(turn)
    return points @ np.array([[cos, sin], [-sin, cos]]) + centre, turn


def _flat(points: np.ndarray) -> list[float]:
    return [float(value) for value in (points * _FINE).ravel()]


def _box(outlines: list[np.ndarray]) -> tuple[float, float, float, float]:
    points = np.concatenate(outlines)
    low, high = points.min(axis=0), points.max(axis=0)
    left, top, right, bottom = (round(float(value), 1) for value in (*low, *high))
    return left, top, round(right - left, 1), round(bottom - top, 1)


def _fits(box: tuple[float, float, float, float], others: list[tuple[float, float, float, float]]) -> bool:
    """Whether a box lies apart from the others."""
    left, top, width, height = box
    return all(
        left > x + w + _MARGIN_PX
        or x > left + width + _MARGIN_PX
        or top > y + h + _MARGIN_PX
        or y > top + height + _MARGIN_PX
        for x, y, w, h in others
    )
