"""Small, valid data for tests of this project and of those who build on it. Nothing here is used by the chain."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
import shapely
import yaml
from affine import Affine
from rasterio.crs import CRS

from geokr_core.land_cover.legend import COMMON_LEGENDS
from geokr_core.levir_kr.config import LevirKRConfig
from geokr_core.levir_kr.dataset import CELLS_FILE, LevirKR, open_levir_kr, write_manifest
from geokr_core.levir_kr.freeze import freeze
from geokr_core.step.digests import file_md5
from geokr_core.step.files import read_json, write_json
from geokr_core.step.reporter import RecordingReporter


def make_levir_kr(
    store: Path,
    *,
    num_chips: int = 64,
    chip_size_px: int = 32,
    seed: int = 0,
    num_scenes: int = 2,
    validation_fraction: float = 0.2,
    cells_per_side: int = 8,
    unknown_columns: int = 0,
) -> LevirKR:
    """Write a small learnable Levir-KR with its shards: every class has its own colour and texture.

    Args:
        store: folder that gets ``chips``, ``proportions`` and ``levir_kr``.
        num_chips: chips over all scenes.
        chip_size_px: side of a chip.
        seed: same seed, same bytes.
        num_scenes: shards to spread the chips over.
        validation_fraction: share of places held out.
        cells_per_side: sub-cells along each side of a chip in ``cells.npy``; 0: no such file.
        unknown_columns: columns of sub-cells at the left of every chip whose land cover ``cells.npy`` does not know.

    Returns:
        The opened data set, frozen into ``store / "levir_kr"``.
    """
    rng = np.random.default_rng(seed)
    legend = COMMON_LEGENDS["globeland30"]
    chips, proportions = store / "chips", store / "proportions"
    colours = rng.uniform(40, 215, size=(len(legend.classes), 3))
    for scene, rows in enumerate(np.array_split(np.arange(num_chips), num_scenes)):
        _write_scene(store, f"scene{scene}", len(rows), chip_size_px, colours, legend.classes, rng)
    stretch = {"stretch": "percentile", "stretch_low": 2.0, "stretch_high": 98.0}
    cut = {"bands": ["red", "green", "blue"], "size_px": chip_size_px, "config": stretch, "generated_world": True}
    write_json(chips / "cut.json", cut)
    write_json(
        proportions / "legend.json",
        {"legend": legend.name, "digest": legend.digest, "classes": legend.classes, "colours": legend.colours}
        | {"products": [], "config": {}},
    )
    config = LevirKRConfig(validation_fraction=validation_fraction, place_size_deg=0.5)
    freeze(config, chips, proportions, store / "levir_kr", RecordingReporter())
    if cells_per_side:
        _write_cells(store / "levir_kr", cells_per_side, unknown_columns)
    return open_levir_kr(store / "levir_kr")


def _write_cells(folder: Path, side: int, unknown_columns: int) -> None:
    """Add ``cells.npy``: the vertical bands of `_write_scene`, as sub-cells see them."""
    frozen = open_levir_kr(folder)
    ends = np.cumsum(frozen.proportions.astype(np.float64), axis=1)
    starts = np.concatenate([np.zeros((len(ends), 1)), ends[:, :-1]], axis=1)
    edges = np.arange(side + 1) / side
    shared = np.minimum(ends[:, None, :], edges[1:, None]) - np.maximum(starts[:, None, :], edges[:-1, None])
    columns = np.floor(np.clip(shared, 0.0, None) * side * 255.0 + 1e-6).astype(np.uint8)
    columns[:, :unknown_columns] = 0
    np.save(folder / CELLS_FILE, np.repeat(columns[:, None], side, axis=1))
    write_manifest(folder, {**frozen.manifest, "cells_per_side": side})


def _write_scene(
    store: Path, scene_id: str, num: int, size: int, colours: np.ndarray, classes: tuple[str, ...], rng: Any
) -> None:
    chips, proportions, num_classes = store / "chips", store / "proportions", len(classes)
    labels = rng.dirichlet(np.full(num_classes, 0.25), size=num)
    # Vertical bands of each class as wide as its share, so that the label can be read off the pixels.
    edges = np.cumsum(labels, axis=1) * size
    column_class = (np.arange(size)[None, :, None] >= edges[:, None, :]).sum(axis=2).clip(0, num_classes - 1)
    noise = rng.normal(0, 12, size=(num, size, size, 3))
    images = (colours[column_class][:, None].repeat(size, axis=1) + noise).clip(0, 255).astype(np.uint8)
    chips.mkdir(parents=True, exist_ok=True)
    proportions.mkdir(parents=True, exist_ok=True)
    np.save(chips / f"{scene_id}.npy", images)
    ids = [f"{scene_id}-{k:05d}" for k in range(num)]
    lon, lat = rng.uniform(0, 20, num), rng.uniform(0, 20, num)
    pd.DataFrame(
        {
            "chip_id": ids,
            "scene_id": scene_id,
            "shard": f"{scene_id}.npy",
            "row": np.arange(num),
            "gsd_m": 16.0,
            "acquired": "2020-07-01",
            "lon": lon,
            "lat": lat,
            "valid_fraction": 1.0,
            "footprint": [shapely.to_wkb(shapely.box(x, y, x + 0.01, y + 0.01)) for x, y in zip(lon, lat, strict=True)],
        }
    ).to_parquet(chips / f"{scene_id}.parquet", index=False)
    tile = {"product": "globeland30", "edition_year": 2020, "known_fraction": 1.0}
    other = dict.fromkeys(("excluded_fraction", "sea_fraction", "unknown_fraction", "outside_fraction"), 0.0)
    shares = {f"fraction_{name}": labels[:, k] for k, name in enumerate(classes)}
    pd.DataFrame({"chip_id": ids} | tile | other | {"num_cells": 290.0, "gap_days": 0.0} | shares).to_parquet(
        proportions / f"{scene_id}.parquet", index=False
    )


def write_raster(
    path: Path, pixels: np.ndarray, crs: str | None, transform: Affine, named: tuple[str, ...] = (), **profile: Any
) -> Path:
    """Write a GeoTIFF, or a raster of another `driver`.

    Args:
        path: file to write; its folder is made.
        pixels: (C, H, W) or (H, W), any raster type.
        crs: authority code or WKT; None leaves it out.
        transform: from (col, row) to (x, y).
        named: names of the bands, or none.
        profile: more creation options, e.g. ``nodata`` or ``driver``.

    Returns:
        The path.
    """
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    with rasterio.open(
        path,
        "w",
        count=count,
        height=height,
        width=width,
        dtype=pixels.dtype,
        crs=None if crs is None else CRS.from_user_input(crs),
        transform=transform,
        **({"driver": "GTiff"} | profile),
    ) as target:
        target.write(pixels)
        if named:
            target.descriptions = named
    return path


def make_small_archive(
    folder: Path, *, num_scenes: int, scene_size_px: int = 96, shift_px: tuple[int, int] = (0, 0), seed: int = 0
) -> Path:
    """Write many small scenes and one land-cover tile of their ground, for whatever must work with many scenes.

    Scenes lie side by side in EPSG:32652 at 30 m, the tile in degrees. Every class has its own colour.

    Args:
        folder: gets ``scenes/*.tif``, ``land_cover/tile.tif`` (GlobeLand30 codes) and ``params.yaml``.
        num_scenes: how many.
        scene_size_px: width and height of each.
        shift_px: (columns, rows) by which the image's content is moved against its georeference: a known mistake.
        seed: same seed, same bytes.

    Returns:
        The parameter file; its paths are absolute.
    """
    from scipy.ndimage import gaussian_filter

    from geokr_core.rasters.grid import Grid

    rng = np.random.default_rng(seed)
    columns = math.ceil(math.sqrt(num_scenes))
    west, north, gsd_m, cell_deg = 500_000.0, 4_150_000.0, 30.0, 0.0003
    codes = np.array([10, 20, 30, 60, 80, 90], dtype=np.uint8)
    colours = np.array(
        [[180, 160, 80], [30, 90, 40], [140, 180, 90], [20, 40, 110], [200, 190, 200], [230, 200, 150]],
        dtype=np.float64,
    )
    size = columns * scene_size_px + 64
    whole = Grid(CRS.from_epsg(32652), _north_up(west - 32 * gsd_m, north + 32 * gsd_m, gsd_m), size, size)
    left, bottom, right, top = whole.footprint().bounds
    shape = (math.ceil((top - bottom) / cell_deg), math.ceil((right - left) / cell_deg))
    noise = np.stack([gaussian_filter(rng.standard_normal(shape).astype(np.float32), 4) for _ in codes])
    tile, tile_grid = noise.argmax(axis=0), _north_up(left, top, cell_deg)
    write_raster(folder / "land_cover" / "tile.tif", codes[tile], "EPSG:4326", tile_grid, tiled=True)
    for index in range(num_scenes):
        x = west + (index % columns) * scene_size_px * gsd_m
        y = north - (index // columns) * scene_size_px * gsd_m
        grid = Grid(whole.crs, _north_up(x, y, gsd_m), scene_size_px, scene_size_px)
        row, col = np.mgrid[:scene_size_px, :scene_size_px] + 0.5
        xy = np.stack([x + (col - shift_px[0]) * gsd_m, y - (row - shift_px[1]) * gsd_m], axis=-1)
        lon, lat = np.moveaxis(grid.lonlat(xy), -1, 0)
        classes = tile[((top - lat) / cell_deg).astype(int), ((lon - left) / cell_deg).astype(int)]
        pixels = (colours[classes] + rng.normal(0, 6, (scene_size_px, scene_size_px, 3))).clip(1, 255)
        path = folder / "scenes" / f"scene_{index:04d}.tif"
        write_raster(path, np.moveaxis(pixels, -1, 0).astype(np.uint8), "EPSG:32652", grid.transform)
    collection = {"name": "small", "files": "*.tif", "bands": ["red", "green", "blue"], "land_cover": "globe"}
    product = {"name": "globe", "files": "tile.tif", "legend": "globeland30", "year": 2020}
    content = {
        "store": str(folder / "store"),
        "scenes": {"folder": str(folder / "scenes"), "collections": [collection]},
        "land_cover": {"folder": str(folder / "land_cover"), "products": [product]},
        "chips": {"size_px": 32, "stride_px": 32},
        "levir_kr": {"place_size_deg": 0.05},
        "evaluation": {"folder": str(folder / "tasks"), "tasks": [{"name": "scene_classification"}]},
        "champion": {"primary": [{"task": "scene_classification"}]},
    }
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _north_up(left: float, top: float, size: float) -> Affine:
    return Affine(size, 0.0, left, 0.0, -size, top)


def make_pretraining(folder: Path, dataset: LevirKR, *, architecture: str = "squeezenet1_1", seed: int = 0) -> Path:
    """Write what a pretraining leaves behind, with random weights: nothing was learned.

    Args:
        folder: folder to write into.
        dataset: the data set it names.
        architecture: the network.
        seed: of the weights.

    Returns:
        ``folder``.
    """
    import torch

    from geokr_core.networks.network import build
    from geokr_core.networks.weights import save_weights

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(architecture, len(dataset.bands))
    run = folder / "geokr-seed0"
    run.mkdir(parents=True, exist_ok=True)
    save_weights(network, run / "backbone.safetensors")
    result = {"variant": "geokr", "seed": 0, "folder": run.name, "architecture": architecture}
    description = {
        "config": {"architecture": architecture, "steps": 1},
        "bands": list(dataset.bands),
        "mean": [round(float(value), 6) for value in dataset.channel_mean],
        "std": [round(float(value), 6) for value in dataset.channel_std],
        "classes": list(dataset.classes),
        "data_version": dataset.data_version,
    }
    write_json(run / "run.json", result | description)
    write_json(folder / "runs.json", [result])
    record_files(folder)
    return folder


def record_files(pretraining: Path) -> None:
    """Record the files of every run as they are now, as a pretraining does when a run ends.

    Args:
        pretraining: folder of ``runs.json`` and the runs.
    """
    runs = [
        {**run, "files": {path.name: file_md5(path) for path in sorted((pretraining / run["folder"]).iterdir())}}
        for run in read_json(pretraining / "runs.json")
    ]
    write_json(pretraining / "runs.json", runs)


def redescribe(bundle: Path, **changes: object) -> None:
    """Change what a bundle says about itself, digest included, so that only what it says is wrong.

    Args:
        bundle: the folder.
        changes: fields of ``backbone.json``.
    """
    from geokr_core.backbone.loader.geokr_backbone import description_digest

    description = {**read_json(bundle / "backbone.json"), **changes}
    write_json(bundle / "backbone.json", {**description, "description_sha256": description_digest(description)})


def make_image_set(
    folder: Path,
    *,
    classes: tuple[str, ...] = ("Field", "Forest", "Water"),
    images_per_class: int = 8,
    image_size_px: int = 32,
    seed: int = 0,
    splits: bool = True,
    contrast: float = 1.0,
) -> Path:
    """Write a small scene-classification set whose classes differ in colour and in the direction of their stripes.

    Args:
        folder: the set's folder.
        classes: class names.
        images_per_class: of each, half of them for training.
        image_size_px: side of the PNG images.
        seed: same seed, same bytes.
        splits: write ``split_train.txt`` and ``split_test.txt``.
        contrast: factor on what tells the classes apart; at 1 everything tells them, at 0 nothing does.

    Returns:
        ``folder``.
    """
    from PIL import Image

    rng = np.random.default_rng(seed)
    row, column = np.indices((image_size_px, image_size_px))
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for index, name in enumerate(classes):
        angle = np.pi * index / len(classes)
        phases = 2 * np.pi * (index / len(classes) + np.arange(3) / 3)
        colour = np.array([120.0, 120.0, 120.0]) + 60.0 * contrast * np.cos(phases)
        (folder / name).mkdir(parents=True)
        for number in range(images_per_class):
            across = row * np.cos(angle) + column * np.sin(angle)
            stripes = 35.0 * contrast * np.sin(0.8 * across + rng.uniform(0, 2 * np.pi))
            pixels = colour + stripes[..., None] + rng.normal(0, 8, size=(image_size_px, image_size_px, 3))
            file = f"{name}_{number:03d}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / file)
            lists["train" if number < images_per_class // 2 else "test"].append(f"{name}/{file}")
    if splits:
        _write_split(folder, lists["train"], lists["test"])
    return folder


def make_mask_set(
    folder: Path,
    *,
    num_images: int = 8,
    num_test: int = 3,
    image_size_px: tuple[int, int] = (48, 56),
    seed: int = 0,
    sky: bool = False,
) -> Path:
    """Write a small segmentation or cloud set whose classes differ in brightness: blobs on ground.

    Args:
        folder: the set's folder.
        num_images: images, the last ones for testing.
        num_test: of them for testing.
        image_size_px: height and width.
        seed: same seed, same bytes.
        sky: masks of the five sky codes and four-band float32 images, instead of two colours and 8-bit RGB.

    Returns:
        ``folder``.
    """
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    num_classes = 5 if sky else 2
    names = []
    for number in range(num_images):
        field = gaussian_filter(rng.normal(size=image_size_px), 5, mode="wrap")
        edges = np.quantile(field, np.linspace(0, 1, num_classes + 1)[1:-1])
        classes = np.searchsorted(edges, field).astype(np.uint8)
        light = 0.15 + 0.7 * classes / (num_classes - 1)
        if sky:
            bands = np.stack([light * gain for gain in (1.0, 0.9, 0.8, 0.7)]) + rng.normal(0, 0.02, (4, *image_size_px))
            names.append(f"patch_{number:03d}.tif")
            transform = Affine(30, 0, 500000, 0, -30, 5000000)
            named = ("blue", "green", "red", "nir")
            write_raster(folder / "images" / names[-1], bands.astype(np.float32), "EPSG:32632", transform, named=named)
            write_raster(folder / "masks" / names[-1], classes, "EPSG:32632", transform)
            continue
        pixels = 255 * light[..., None] * np.array([1.0, 0.8, 0.6]) + rng.normal(0, 6, (*image_size_px, 3))
        names.append(f"image_{number:03d}.png")
        masks = classes[..., None] * np.array([250, 100, 10])
        for part, content in (("images", pixels.clip(0, 255)), ("masks", masks)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content.astype(np.uint8)).save(folder / part / names[-1])
    if not sky:
        (folder / "palette.csv").write_text("class,red,green,blue\nground,0,0,0\nblob,250,100,10\n", encoding="utf-8")
    _write_split(folder, names[:-num_test], names[-num_test:])
    return folder


def make_box_set(
    folder: Path, *, num_images: int = 10, num_test: int = 4, image_size_px: int = 64, seed: int = 0
) -> Path:
    """Write a small detection set in COCO form: bright squares (``square``) and dark bars (``bar``) on grey ground.

    Args:
        folder: the set's folder.
        num_images: images, the last ones for testing.
        num_test: of them for testing.
        image_size_px: side of the images.
        seed: same seed, same bytes.

    Returns:
        ``folder``.
    """
    from PIL import Image

    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = []
    names: list[str] = []
    for number in range(num_images):
        pixels = rng.normal(120, 8, (image_size_px, image_size_px, 3))
        for category, (width, height, value) in enumerate(((18, 18, 230), (26, 9, 20)), start=1):
            # One in the upper and one in the lower half, so that they never cover each other.
            half = image_size_px // 2
            left = int(rng.integers(2, image_size_px - width - 2))
            top = int(rng.integers(2, half - height - 2)) + half * ((number + category) % 2)
            pixels[top : top + height, left : left + width] = value
            box = {"bbox": [left, top, width, height], "area": width * height, "iscrowd": 0}
            marks.append({"id": len(marks) + 1, "image_id": number, "category_id": category, **box})
        names.append(f"image_{number:03d}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / names[-1])
        images.append({"id": number, "file_name": names[-1], "width": image_size_px, "height": image_size_px})
    categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "bar"}]
    write_json(folder / "annotations.json", {"images": images, "annotations": marks, "categories": categories})
    _write_split(folder, names[:-num_test], names[-num_test:])
    return folder


def _write_split(folder: Path, train: list[str], test: list[str]) -> None:
    for split, names in (("train", train), ("test", test)):
        (folder / f"split_{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
