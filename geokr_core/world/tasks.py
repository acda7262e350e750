"""The four labelled downstream sets of the generated world, from a region and with a look that no scene has.

Scene classification, segmentation and cloud and snow are rendered here from the same surfaces as the scenes, over
other ground, light, air and calibration. The set for detection, with its drawn objects, is in ``objects``.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from PIL import Image

from geokr_core.step.reporter import Reporter
from geokr_core.step.threads import in_order, usable_cores
from geokr_core.world import atmosphere, terrain
from geokr_core.world.atmosphere import Look
from geokr_core.world.config import WorldConfig
from geokr_core.world.land_cover import COLOURS
from geokr_core.world.noise import STREAM_TASK, Noise, generator
from geokr_core.world.objects import write_detection
from geokr_core.world.surface import NUM_BANDS, reflectance
from geokr_core.world.terrain import TASK_REGION

SCENE_CLASSES: Mapping[str, int] = {
    "Bare": terrain.BARE,
    "Cropland": terrain.CULTIVATED,
    "Forest": terrain.FOREST,
    "Grassland": terrain.GRASS,
    "Snow": terrain.SNOW,
    "Urban": terrain.ARTIFICIAL,
    "Water": terrain.WATER,
    "Wetland": terrain.WETLAND,
}
"""Class folders of the scene-classification set and the land cover that dominates their images."""

SEGMENTATION_CLASSES: Mapping[str, int] = {**SCENE_CLASSES, "Shrubland": terrain.SHRUB}
"""Classes of the segmentation masks; their colours are those of the land-cover product."""

SCENE_SIZE_PX = 64
SEGMENTATION_SIZE_PX = 192
CLOUD_SIZE_PX = 128
NUM_SEGMENTATION = 12
NUM_CLOUD_SNOW = 12
NUM_TEST = 4
"""Images for testing in each of the two small sets."""

_TASK_YEAR = 2021.0
_NUM_ACQUISITIONS = 10
_REACH_M = 60_000.0
_CLOUD_GSD_M = 30.0
_SEGMENTATION_GSD_M = 6.0
_TRIES = 24


@dataclass(frozen=True)
class Acquisition:
    """A day and a camera from which several labelled images come.

    Attributes:
        look: light and air.
        gsd_m: side of a pixel.
        black: reflectance of 0 in the 8-bit picture.
        white: reflectance of 255 in the 8-bit picture.
    """

    look: Look
    gsd_m: float
    black: float
    white: float


def write_tasks(config: WorldConfig, folder: Path, reporter: Reporter) -> int:
    """Write the four sets below ``folder``.

    Returns:
        Number of images written.

    Raises:
        OSError: the file system refused.
    """
    sets: dict[str, Callable[[Path], int]] = {
        "scene_classification": lambda to: _write_scene_classification(config.seed, config.task_images_per_class, to),
        "segmentation": lambda to: _write_segmentation(config.seed, to),
        "detection": lambda to: write_detection(config.seed, to),
        "cloud_snow": lambda to: _write_cloud_snow(config.seed, to),
    }
    num_images = 0
    with reporter.progress("labelled sets", len(sets)) as advance:
        for written in in_order(lambda name: sets[name](folder / name), sets, usable_cores()):
            num_images += written
            advance(1)
    return num_images


def as_rgb8(reflectance_values: np.ndarray, black: float, white: float) -> np.ndarray:
    """An 8-bit picture of reflectance.

    Args:
        reflectance_values: float32 (..., 4): blue, green, red, near infrared.
        black: reflectance of 0.
        white: reflectance of 255.

    Returns:
        uint8 (..., 3): red, green, blue.
    """
    scaled = (reflectance_values[..., 2::-1] - np.float32(black)) * np.float32(255 / (white - black))
    return np.asarray(np.rint(scaled.clip(0, 255)).astype(np.uint8))


def _acquisition(seed: int, name: str, index: int, gsd_m: float | None = None) -> Acquisition:
    rng = generator(seed, STREAM_TASK, name, index)
    look = Look(
        greenness=float(rng.uniform(0.2, 0.9)),
        sun_azimuth_deg=float(rng.uniform(110, 200)),
        light=float(rng.uniform(0.85, 1.15)),
        tint=tuple(rng.uniform(0.93, 1.07, size=4).tolist()),
        haze=float(rng.uniform(0.5, 1.8)),
    )
    drawn_gsd_m = float(rng.choice([7.0, 8.0, 10.0, 12.0]))
    return Acquisition(look, gsd_m or drawn_gsd_m, float(rng.uniform(0.0, 0.02)), float(rng.uniform(0.25, 0.33)))


def _region_noise(seed: int) -> Noise:
    return Noise(seed, (STREAM_TASK, TASK_REGION.index))


def _windows(centres: np.ndarray, size_px: int, gsd_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Plane coordinates of square windows around centres (N, 2): x and y, float32 (N, size, size)."""
    steps = (np.arange(size_px) - (size_px - 1) / 2) * gsd_m
    x = centres[:, 0, None, None] + steps[None, None, :] + np.zeros((1, size_px, 1))
    y = centres[:, 1, None, None] - steps[None, :, None] + np.zeros((1, 1, size_px))
    return x.astype(np.float32), y.astype(np.float32)


def _ground(
    codes: np.ndarray, x: np.ndarray, y: np.ndarray, height: np.ndarray, acquisition: Acquisition, noise: Noise
) -> np.ndarray:
    """Lit reflectance under a clear sky, float32 (N, H, W, 4)."""
    painted = reflectance(codes, x, y, acquisition.gsd_m, acquisition.look.greenness, noise)
    relief = TASK_REGION.climate.relief
    return atmosphere.lit(painted, height, acquisition.gsd_m, relief, acquisition.look.sun_azimuth_deg)


def _write_scene_classification(seed: int, images_per_class: int, folder: Path) -> int:
    noise = _region_noise(seed)
    splits: dict[str, list[str]] = {"train": [], "test": []}
    files: dict[int, list[tuple[str, str, int]]] = {index: [] for index in range(_NUM_ACQUISITIONS)}
    for name, code in SCENE_CLASSES.items():
        rng = generator(seed, STREAM_TASK, "scene split", code)
        in_test = set(rng.permutation(images_per_class)[: images_per_class // 2].tolist())
        for number in range(images_per_class):
            path = f"{name}/{name}_{number:04d}.png"
            splits["test" if number in in_test else "train"].append(path)
            files[number % _NUM_ACQUISITIONS].append((path, name, number))
    for index, entries in files.items():
        acquisition = _acquisition(seed, "scene acquisition", index)
        pictures = _class_pictures(seed, acquisition, [(name, number) for _, name, number in entries], noise)
        for (path, _, _), picture in zip(entries, pictures, strict=True):
            _write_png(folder / path, picture)
    _write_splits(folder, splits)
    return sum(len(entries) for entries in files.values())


def _class_pictures(
    seed: int, acquisition: Acquisition, wanted: Sequence[tuple[str, int]], noise: Noise
) -> Sequence[np.ndarray]:
    """Pictures in which one class covers most of the ground, among its natural neighbours: uint8 (64, 64, 3) each."""
    if not wanted:
        return []
    draws = [generator(seed, STREAM_TASK, "scene image", SCENE_CLASSES[name], number) for name, number in wanted]
    centres = np.array([rng.uniform(-_REACH_M, _REACH_M, size=2) for rng in draws])
    shares = np.array([rng.uniform(0.65, 1.0) for rng in draws])
    x, y = _windows(centres, SCENE_SIZE_PX, acquisition.gsd_m)
    height = terrain.elevation(noise, x, y)
    codes = terrain.land_cover_truth(TASK_REGION, noise, x, y, _TASK_YEAR, height)
    frame = noise.octaves("frame", x, y, 450.0, 3)
    for image, (name, _) in enumerate(wanted):
        codes[image][frame[image] >= np.quantile(frame[image], 1 - shares[image])] = SCENE_CLASSES[name]
    ground = _ground(codes, x, y, height, acquisition, noise)
    # Slopes, undergrowth and damp make one image of a class lighter or darker than the next.
    light = np.array([rng.uniform(0.88, 1.14) for rng in draws], dtype=np.float32)[:, None, None, None]
    return list(as_rgb8(atmosphere.through_air(ground * light, acquisition.look), acquisition.black, acquisition.white))


def _write_segmentation(seed: int, folder: Path) -> int:
    noise = _region_noise(seed)
    names = [f"image_{number:03d}.png" for number in range(NUM_SEGMENTATION)]
    palette = np.zeros((256, 3), dtype=np.uint8)
    for code in SEGMENTATION_CLASSES.values():
        palette[code] = COLOURS[code]
    for number, name in enumerate(names):
        acquisition = _acquisition(seed, "segmentation acquisition", number, _SEGMENTATION_GSD_M)
        x, y, codes = _mixed_window(generator(seed, STREAM_TASK, "segmentation image", number), noise)
        height = terrain.elevation(noise, x, y)
        ground = _ground(codes, x, y, height, acquisition, noise)
        air = atmosphere.through_air(ground, acquisition.look)
        _write_png(folder / "images" / name, as_rgb8(air[0], acquisition.black, acquisition.white))
        _write_png(folder / "masks" / name, palette[codes[0]])
    with (folder / "palette.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["class", "red", "green", "blue"])
        table.writerows([name, *COLOURS[code]] for name, code in SEGMENTATION_CLASSES.items())
    _write_splits(folder, {"train": names[:-NUM_TEST], "test": names[-NUM_TEST:]})
    return NUM_SEGMENTATION


def _mixed_window(rng: np.random.Generator, noise: Noise) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A window with several classes: x, y and codes, each (1, H, W); the most varied one of a few tries."""
    best: tuple[float, np.ndarray] = (-1.0, np.zeros(2))
    for _ in range(_TRIES):
        centre = rng.uniform(-_REACH_M, _REACH_M, size=2)
        x, y = _windows(centre[None], 24, _SEGMENTATION_GSD_M * SEGMENTATION_SIZE_PX / 24)
        _, counts = np.unique(terrain.land_cover_truth(TASK_REGION, noise, x, y, _TASK_YEAR), return_counts=True)
        share = counts / counts.sum()
        variety = float(-(share * np.log(share)).sum())
        if variety > best[0]:
            best = (variety, centre)
    x, y = _windows(best[1][None], SEGMENTATION_SIZE_PX, _SEGMENTATION_GSD_M)
    return x, y, terrain.land_cover_truth(TASK_REGION, noise, x, y, _TASK_YEAR)


def _write_cloud_snow(seed: int, folder: Path) -> int:
    names = [f"patch_{number:03d}.tif" for number in range(NUM_CLOUD_SNOW)]
    for number, name in enumerate(names):
        patch, mask = _cloud_patch(seed, number)
        _write_patch(folder / "images" / name, np.moveaxis(patch, -1, 0), number)
        _write_patch(folder / "masks" / name, mask[None], number)
    _write_splits(folder, {"train": names[:-NUM_TEST], "test": names[-NUM_TEST:]})
    return NUM_CLOUD_SNOW


def _cloud_patch(seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Reflectance float32 (H, W, 4) and sky mask uint8 (H, W); of a few tries the one with most of the codes."""
    noise = _region_noise(seed)
    rng = generator(seed, STREAM_TASK, "cloud patch", number)
    drawn = _acquisition(seed, "cloud acquisition", number, _CLOUD_GSD_M)
    look = Look(
        greenness=drawn.look.greenness,
        sun_azimuth_deg=drawn.look.sun_azimuth_deg,
        light=drawn.look.light,
        tint=drawn.look.tint,
        haze=drawn.look.haze,
        cloudiness=float(rng.uniform(0.4, 0.75)),
        snow_height=float(rng.uniform(0.3, 1.3)),
    )
    best: tuple[int, np.ndarray] = (-1, np.zeros(2))
    for _ in range(_TRIES):
        centre = rng.uniform(-_REACH_M, _REACH_M, size=2)
        x, y = _windows(centre[None], 24, _CLOUD_GSD_M * CLOUD_SIZE_PX / 24)
        _, mask = _sky(np.zeros((*x.shape, NUM_BANDS), dtype=np.float32), None, x, y, look, noise)
        least = int(np.bincount(mask.ravel(), minlength=5).min())
        if least > best[0]:
            best = (least, centre)
    x, y = _windows(best[1][None], CLOUD_SIZE_PX, _CLOUD_GSD_M)
    height = terrain.elevation(noise, x, y)
    codes = terrain.land_cover_truth(TASK_REGION, noise, x, y, _TASK_YEAR, height)
    ground = _ground(codes, x, y, height, Acquisition(look, _CLOUD_GSD_M, drawn.black, drawn.white), noise)
    ground, mask = _sky(ground, codes, x, y, look, noise)
    return atmosphere.through_air(ground, look)[0].clip(0, 1), mask[0]


def _sky(
    ground: np.ndarray, codes: np.ndarray | None, x: np.ndarray, y: np.ndarray, look: Look, noise: Noise
) -> tuple[np.ndarray, np.ndarray]:
    """Snow, then clouds and their shadows over it; the mask names what is seen from above."""
    height = terrain.elevation(noise, x, y)
    codes = terrain.land_cover_truth(TASK_REGION, noise, x, y, _TASK_YEAR, height) if codes is None else codes
    ground, has_snow = atmosphere.snowed(ground, height, noise, x, y, look.snow_height)
    ground, mask = atmosphere.clouded(ground, noise, x, y, look)
    mask[(mask == atmosphere.CLEAR) & (has_snow | (codes == terrain.SNOW))] = atmosphere.SNOW
    return ground, mask


def _write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")


def _write_patch(path: Path, bands: np.ndarray, number: int) -> None:
    zone = int(TASK_REGION.lon // 6) + 31
    size_m = CLOUD_SIZE_PX * _CLOUD_GSD_M
    profile = {
        "driver": "GTiff",
        "dtype": bands.dtype.name,
        "count": bands.shape[0],
        "height": bands.shape[1],
        "width": bands.shape[2],
        "crs": terrain.zone_crs(zone, south=False),
        "transform": Affine(_CLOUD_GSD_M, 0.0, 300_000.0 + number * size_m, 0.0, -_CLOUD_GSD_M, 5_250_000.0),
        "compress": "deflate",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **profile) as target:
        target.write(bands)


def _write_splits(folder: Path, splits: Mapping[str, Sequence[str]]) -> None:
    for name, entries in splits.items():
        (folder / f"split_{name}.txt").write_text("".join(f"{entry}\n" for entry in sorted(entries)), encoding="utf-8")
