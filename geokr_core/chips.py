"""Cut scenes into chips: one scene in, one shard out.

A chip is a square window of the scene's own grid, never resampled; the transform in its row is that of exactly the
pixels in the shard. The shard's table is written last and is the mark that the shard is whole.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from geokr_core.config import ChipsConfig, as_plain
from geokr_core.errors import ConfigError, MissingInputError, SceneRefusedError
from geokr_core.files import read_json, text_digest, whole_file, write_json
from geokr_core.grid import METRES_PER_DEGREE, unwrap_lon
from geokr_core.reporter import Reporter
from geokr_core.scenes import Scene, SceneReader, open_scene, usable_scenes
from geokr_core.summary import Summary

_STRETCH_PIXELS = 1_000_000
"""Pixels of a scene from which the stretch is measured, at most."""

_SATURATED = 250
"""8-bit value from which a pixel counts as saturated if it holds in every band."""

_DARK = 20
"""Mean 8-bit brightness below which a pixel counts as dark: shadow or water. Recorded, never a reason to drop."""

_MARK = b"geokr_inputs"


@dataclass(frozen=True)
class Stretch:
    """How a scene's values became 8 bits: ``(value - low) / (high - low)``, clipped to 0–1, times 255, rounded.

    Attributes:
        low: value of each band that became 0.
        high: value of each band that became 255.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def apply(self, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Stretch pixels.

        Args:
            pixels: any numeric (C, H, W) as stored.
            valid: bool (H, W); pixels without data become 0.

        Returns:
            uint8 (H, W, C).
        """
        out = np.empty((*pixels.shape[1:], pixels.shape[0]), dtype=np.uint8)
        for band, values in enumerate(pixels):
            out[..., band] = self._to_bytes(values, band)
        out[~valid] = 0
        return out

    def _to_bytes(self, values: np.ndarray, band: int) -> np.ndarray:
        if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
            # Every value that 8 or 16 bits can hold is stretched once; looking it up is several times faster.
            lowest = np.iinfo(values.dtype).min
            table = self._scale(np.arange(lowest, np.iinfo(values.dtype).max + 1), band)
            return np.asarray(table[values.astype(np.int32) - lowest if lowest else values])
        # Pixels without data may be NaN, which no integer can hold; the caller overwrites them.
        return self._scale(np.nan_to_num(values), band)

    def _scale(self, values: np.ndarray, band: int) -> np.ndarray:
        low = np.float32(self.low[band])
        unit = (values.astype(np.float32) - low) / (np.float32(self.high[band]) - low)
        return np.asarray(np.rint(unit.clip(0.0, 1.0) * 255.0).astype(np.uint8))


@dataclass(frozen=True)
class SceneCut:
    """What became of one scene: its chips, or the reason why there are none."""

    scene_id: str
    num_chips: int
    reason: str = ""


def cut_chips(config: ChipsConfig, source: Path, scenes: Path, out: Path, reporter: Reporter) -> Summary:
    """Cut every usable scene. Scenes whose shard is current are passed over, so a killed run goes on where it was.

    Args:
        config: size, stride, bands, stretch and quality thresholds.
        source: the raw scene folder.
        scenes: the inventory's folder.
        out: folder of shards.
        reporter: hears each scene that is quarantined.

    Returns:
        Counts, and a table of quarantined scenes.

    Raises:
        MissingInputError: no inventory.
        ConfigError: the stretch does not suit the data.
        SceneRefusedError: not one scene gave a chip; lists the reasons.
    """
    usable = usable_scenes(scenes)
    cuts = []
    with reporter.progress("chips", len(usable)) as advance:
        for scene in usable.values():
            cuts.append(cut_scene(config, source, scenes, scene, out))
            if cuts[-1].reason:
                reporter.warning(f"scene {scene.scene_id} quarantined: {cuts[-1].reason}")
            advance(1)
    _drop_vanished(out, set(usable))
    quarantined = [cut for cut in cuts if cut.reason]
    if len(quarantined) == len(cuts):
        reasons = "\n".join(f"  {cut.scene_id}: {cut.reason}" for cut in quarantined[:10])
        raise SceneRefusedError(f"{source}: none of {len(cuts)} scenes gave a chip:\n{reasons}")
    num_chips = sum(cut.num_chips for cut in cuts)
    return Summary(
        numbers={
            "num_chips": num_chips,
            "num_shards": len(cuts) - len(quarantined),
            "num_quarantined": len(quarantined),
            "megabytes": round(num_chips * config.size_px**2 * len(config.bands) / 1e6, 2),
        },
        table=[{"scene": cut.scene_id, "chips": cut.num_chips, "quarantined": cut.reason} for cut in cuts[:50]],
        picture_png=_preview(out, cuts, config),
        warnings=[f"{cut.scene_id}: {cut.reason}" for cut in quarantined],
    )


def cut_scene(config: ChipsConfig, source: Path, scenes: Path, scene: Scene, out: Path) -> SceneCut:
    """Cut one scene into its shard, or write down why that cannot be.

    Args:
        config: how to cut.
        source: the raw scene folder.
        scenes: the inventory's folder.
        scene: from the inventory.
        out: folder of shards; gets ``<scene_id>.npy`` and ``<scene_id>.parquet``, or ``<scene_id>.quarantine.json``.

    Returns:
        The number of chips, or the reason of the quarantine.

    Raises:
        ConfigError: the stretch does not suit the data.
        OSError: the file system refused; an earlier shard is left as it was.
    """
    _write_cut(config, scenes, out)
    mark = _mark(config, scene)
    if (done := _current(out, scene.scene_id, mark)) is not None:
        return done
    refusal = out / f"{scene.scene_id}.quarantine.json"
    try:
        with open_scene(source, scene, config.bands) as reader:
            stretch = _measure_stretch(config, scene, reader)
            images, rows = _cut(config, scene, reader, stretch)
    except SceneRefusedError as error:
        (out / f"{scene.scene_id}.parquet").unlink(missing_ok=True)
        (out / f"{scene.scene_id}.npy").unlink(missing_ok=True)
        write_json(refusal, {"scene_id": scene.scene_id, "reason": str(error), "inputs": mark})
        return SceneCut(scene.scene_id, 0, str(error))
    # The old table goes first: never a table beside pixels that it does not describe.
    (out / f"{scene.scene_id}.parquet").unlink(missing_ok=True)
    with whole_file(out / f"{scene.scene_id}.npy") as partial, partial.open("wb") as stream:
        np.save(stream, images, allow_pickle=False)
    table = pa.Table.from_pandas(rows, preserve_index=False)
    with whole_file(out / f"{scene.scene_id}.parquet") as partial:
        pq.write_table(
            table.replace_schema_metadata({**(table.schema.metadata or {}), _MARK: mark.encode()}),
            partial,
            compression="zstd",
        )
    refusal.unlink(missing_ok=True)
    return SceneCut(scene.scene_id, len(rows))


def is_scene_current(config: ChipsConfig, scene: Scene, out: Path) -> bool:
    """Whether the scene's shard, or its refusal, is what its pixels and ``config`` give."""
    return _current(out, scene.scene_id, _mark(config, scene)) is not None


def _mark(config: ChipsConfig, scene: Scene) -> str:
    return text_digest([scene.md5, as_plain(config), scene.bands, scene.nodata, scene.max_abs_latitude_deg])


def _current(out: Path, scene_id: str, mark: str) -> SceneCut | None:
    refusal, table = out / f"{scene_id}.quarantine.json", out / f"{scene_id}.parquet"
    if refusal.exists():
        record = read_json(refusal)
        return SceneCut(scene_id, 0, record["reason"]) if record["inputs"] == mark else None
    if not table.exists() or not (out / f"{scene_id}.npy").exists():
        return None
    header = pq.read_metadata(table)
    return SceneCut(scene_id, header.num_rows) if (header.metadata or {}).get(_MARK) == mark.encode() else None


def _write_cut(config: ChipsConfig, scenes: Path, out: Path) -> None:
    path = out / "cut.json"
    generated = bool(read_json(scenes / "inventory.json")["generated_world"])
    content = {
        "bands": list(config.bands),
        "size_px": config.size_px,
        "config": as_plain(config),
        "generated_world": generated,
    }
    if not path.exists() or read_json(path) != content:
        write_json(path, content)


def _drop_vanished(out: Path, scene_ids: set[str]) -> None:
    for path in out.iterdir():
        name = path.name.removesuffix(".quarantine.json")
        stem = name if name != path.name else path.stem
        if path.name != "cut.json" and stem not in scene_ids:
            path.unlink()


def _measure_stretch(config: ChipsConfig, scene: Scene, reader: SceneReader) -> Stretch:
    decimation = max(1, int(np.ceil(np.sqrt(scene.grid.height * scene.grid.width / _STRETCH_PIXELS))))
    pixels, valid = reader.read(0, scene.grid.height, decimation=decimation)
    if not valid.any():
        raise SceneRefusedError("no pixel holds data")
    num_bands = len(config.bands)
    if config.stretch == "none":
        if pixels.dtype != np.uint8:
            raise ConfigError(
                f"scene {scene.scene_id}: stored as {pixels.dtype}; `chips.stretch: none` needs uint8. Choose `percentile`."
            )
        return Stretch((0.0,) * num_bands, (255.0,) * num_bands)
    values = pixels[:, valid].astype(np.float64)
    axis = None if config.stretch == "joint_percentile" else 1
    low, high = np.percentile(values, [config.stretch_low, config.stretch_high], axis=axis)
    low, high = np.broadcast_to(low, num_bands), np.broadcast_to(high, num_bands)
    if (high <= low).any():
        flat = config.bands[int(np.argmax(high <= low))]
        raise SceneRefusedError(
            f"band {flat} has no contrast: percentiles {config.stretch_low} and {config.stretch_high} are both {float(low.min()):g}"
        )
    return Stretch(tuple(float(v) for v in low), tuple(float(v) for v in high))


def _cut(config: ChipsConfig, scene: Scene, reader: SceneReader, stretch: Stretch) -> tuple[np.ndarray, pd.DataFrame]:
    size, stride, grid = config.size_px, config.stride_px, scene.grid
    if grid.height < size or grid.width < size:
        raise SceneRefusedError(f"{grid.height} x {grid.width} pixels: smaller than one chip of {size} x {size}")
    columns = np.arange(0, grid.width - size + 1, stride)
    images: list[np.ndarray] = []
    kept: list[pd.DataFrame] = []
    # Line by line: windows in scan order are read more than ten times faster than windows at random.
    for row in range(0, grid.height - size + 1, stride):
        pixels, valid = reader.read(row, size)
        line = stretch.apply(pixels, valid)
        quality = _quality(line, valid, columns, size)
        good = quality["valid_fraction"] >= config.min_valid_fraction
        good &= quality["saturated_fraction"] <= config.max_saturated_fraction
        images += [line[:, col : col + size] for col in columns[good]]
        kept.append(pd.DataFrame({"pixel_row": row, "pixel_col": columns, **quality})[good])
    if not images:
        raise SceneRefusedError(
            f"no chip of {size} x {size} pixels passes: too little data (min_valid_fraction {config.min_valid_fraction}) or saturated everywhere"
        )
    rows = _describe(config, scene, stretch, pd.concat(kept, ignore_index=True))
    near = rows["lat"].abs().to_numpy() <= scene.max_abs_latitude_deg
    if not near.any():
        raise SceneRefusedError(
            f"all chips lie beyond {scene.max_abs_latitude_deg} degrees of latitude (max_abs_latitude_deg)"
        )
    rows = rows[near].reset_index(drop=True)
    return np.stack(images)[near], rows.assign(row=np.arange(len(rows)))


def _quality(line: np.ndarray, valid: np.ndarray, columns: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Fractions and contrast of all chips of a line at once, by running sums.

    Args:
        line: uint8 (size, W, C), stretched.
        valid: bool (size, W).
        columns: int (N,), first column of each chip.
        size: side of a chip in pixels.

    Returns:
        float64 (N,) each; those but ``valid_fraction`` are of the valid pixels.
    """
    # Band by band: numpy reduces a last axis of three or four ten times slower.
    bands = [line[..., band] for band in range(line.shape[-1])]
    brightness = np.asarray(np.add.reduce([band.astype(np.float32) for band in bands]) / np.float32(len(bands)))
    saturated = np.asarray(np.minimum.reduce(bands) >= _SATURATED)

    def total(values: np.ndarray) -> np.ndarray:
        running = np.concatenate([[0.0], np.cumsum(np.where(valid, values, 0).sum(axis=0, dtype=np.float64))])
        return np.asarray(running[columns + size] - running[columns])

    number = np.maximum(total(np.ones_like(valid)), 1.0)
    mean = total(brightness) / number
    return {
        "valid_fraction": total(np.ones_like(valid)) / size**2,
        "dark_fraction": total(brightness < _DARK) / number,
        "saturated_fraction": total(saturated) / number,
        "contrast": np.sqrt(np.maximum(total(brightness**2) / number - mean**2, 0.0)).round(6),
    }


def _describe(config: ChipsConfig, scene: Scene, stretch: Stretch, kept: pd.DataFrame) -> pd.DataFrame:
    """Catalogue rows of the chips kept: where each lies, and how its pixels came to be."""
    grid, size = scene.grid, config.size_px
    top, left = kept["pixel_row"].to_numpy(), kept["pixel_col"].to_numpy()
    outlines = grid.lonlat(grid.outlines_xy(top, left, size, segments=1))
    if not np.isfinite(outlines).all():
        raise SceneRefusedError("some chips have no place on Earth: their corners do not map to longitude and latitude")
    outlines[..., 0] = unwrap_lon(outlines[..., 0], outlines[:, :1, 0])
    centre = outlines[:, :4].mean(axis=1)
    a, b, c, d, e, f = tuple(grid.transform)[:6]
    transforms = np.stack(
        [np.full(len(kept), v) for v in (a, b)]
        + [a * left + b * top + c]
        + [np.full(len(kept), v) for v in (d, e)]
        + [d * left + e * top + f],
        axis=1,
    )
    return kept.assign(
        chip_id=[f"{scene.scene_id}-r{r:06d}c{k:06d}" for r, k in zip(top, left, strict=True)],
        scene_id=scene.scene_id,
        shard=f"{scene.scene_id}.npy",
        size_px=size,
        crs_wkt=grid.wkt,
        transform=list(transforms),
        gsd_m=_gsd_m(outlines, size),
        acquired=scene.acquired,
        sensor=scene.sensor,
        bands=pd.Series([list(config.bands)] * len(kept)),
        stretch_low=pd.Series([list(stretch.low)] * len(kept)),
        stretch_high=pd.Series([list(stretch.high)] * len(kept)),
        land_cover=scene.land_cover,
        lon=unwrap_lon(centre[:, 0], 0.0),
        lat=centre[:, 1],
        footprint=shapely.to_wkb(shapely.polygons(outlines)),
    )


def _gsd_m(outlines: np.ndarray, size_px: int) -> np.ndarray:
    """Metres a pixel from lon/lat outlines (N, 5, 2), as the square root of the ground area on the sphere."""
    lat = np.radians(outlines[:, :4, 1].mean(axis=1, keepdims=True))
    x = (outlines[..., 0] - outlines[:, :1, 0]) * METRES_PER_DEGREE * np.cos(lat)
    y = (outlines[..., 1] - outlines[:, :1, 1]) * METRES_PER_DEGREE
    area = 0.5 * np.abs((x[:, :-1] * y[:, 1:] - x[:, 1:] * y[:, :-1]).sum(axis=1))
    return np.asarray(np.round(np.sqrt(area) / size_px, 4))


def reread(row: Mapping[Any, Any], source: Path, scene: Scene) -> np.ndarray:
    """Read one chip's pixels again from the raw files, by its recorded transform alone.

    An independent way to the same bytes: the window is found from CRS coordinates, not from the pixel offsets that
    cutting used, so that a shard whose pixels and georeference disagree is found out.

    Args:
        row: a catalogue row with ``transform``, ``size_px``, ``bands``, ``stretch_low``, ``stretch_high``.
        source: the raw scene folder.
        scene: from the inventory.

    Returns:
        uint8 (H, W, C).

    Raises:
        SceneRefusedError: the pixels cannot be read any more.
    """
    size = int(row["size_px"])
    _, _, x, _, _, y = row["transform"]
    col, line = ~scene.grid.transform @ (float(x), float(y))
    with open_scene(source, scene, list(row["bands"])) as reader:
        pixels, valid = reader.read(round(line), size)
    part = slice(round(col), round(col) + size)
    return Stretch(tuple(row["stretch_low"]), tuple(row["stretch_high"])).apply(pixels[:, :, part], valid[:, part])


def read_rows(chips: Path, scene_id: str) -> pd.DataFrame:
    """The catalogue rows of one scene's shard.

    Raises:
        MissingInputError: the scene has no shard.
    """
    path = chips / f"{scene_id}.parquet"
    if not path.is_file():
        raise MissingInputError(f"{path}: scene {scene_id} has no shard; run `geokr chips` first.")
    return pd.read_parquet(path)


def shard_ids(chips: Path) -> list[str]:
    """Scenes that have a shard, in order.

    Raises:
        MissingInputError: there is not one shard.
    """
    found = sorted(path.stem for path in chips.glob("*.parquet"))
    if not found:
        raise MissingInputError(f"{chips}: no shard; run `geokr chips` first.")
    return found


def scene_summary(chips: Path, scene_id: str) -> Summary:
    """What one scene's shard shows for itself, or why there is none."""
    refusal = chips / f"{scene_id}.quarantine.json"
    if refusal.exists():
        reason = json.loads(refusal.read_text(encoding="utf-8"))["reason"]
        return Summary({"num_chips": 0, "quarantined": reason}, warnings=[f"{scene_id}: {reason}"])
    from geokr_core.pictures import as_rgb, mosaic, png

    rows = read_rows(chips, scene_id)
    images = np.load(chips / f"{scene_id}.npy", mmap_mode="r", allow_pickle=False)
    chosen = np.linspace(0, len(images) - 1, min(24, len(images))).astype(int)
    return Summary(
        numbers={
            "num_chips": len(rows),
            "gsd_m": float(rows["gsd_m"].median()),
            "valid_fraction": round(float(rows["valid_fraction"].mean()), 4),
            "contrast": round(float(rows["contrast"].mean()), 2),
        },
        picture_png=png(mosaic(as_rgb(images[chosen], tuple(rows["bands"].iloc[0])), columns=8)),
    )


def _preview(out: Path, cuts: list[SceneCut], config: ChipsConfig) -> bytes:
    from geokr_core.pictures import as_rgb, mosaic, png

    shards = [cut for cut in cuts if not cut.reason]
    chosen = [shards[i] for i in np.linspace(0, len(shards) - 1, min(24, len(shards))).astype(int)]
    tiles = []
    for cut in chosen:
        shard = np.load(out / f"{cut.scene_id}.npy", mmap_mode="r", allow_pickle=False)
        tiles.append(shard[len(shard) // 2])
    return png(mosaic(as_rgb(np.stack(tiles), config.bands), columns=8))
