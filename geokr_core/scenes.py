"""Raw scenes: which files make a scene, what its grid and bands are, and how its pixels are read.

`take_inventory` looks at headers only and refuses, by name and reason, every scene that could not give correct
labels. `open_scene` reads pixels strip by strip with their validity. Nothing is resampled or written back here.
"""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from geokr_core.config import SceneCollection, ScenesConfig, as_plain
from geokr_core.errors import ConfigError, MissingInputError, SceneRefusedError
from geokr_core.files import file_md5, text_digest, whole_folder, write_json
from geokr_core.grid import Grid
from geokr_core.raster_files import RASTER_ERRORS, cause_of, open_raster, refuse_flood, unopened
from geokr_core.reporter import Reporter
from geokr_core.summary import Summary

WORLD_MARKER = "world.json"
"""A file beside the scene folder that says that the scenes are generated."""

# GF1_WFV1_E106.6_N29.7_20180807_L1A0003376167…: satellite, sensor, centre, date (METHOD: names as delivered).
_GAOFEN = re.compile(r"(?P<sensor>GF\d[A-D]?_[A-Z]+\d?)_[EW]\d+\.\d_[NS]\d+\.\d_(?P<date>\d{8})_L\d")


@dataclass(frozen=True)
class Scene:
    """A scene that may be cut.

    Attributes:
        scene_id: unique name made from the path below the scene folder.
        collection: name of its collection.
        files: paths relative to the scene folder; one, or one a band.
        bands: common band names in the order they are read.
        grid: where its pixels lie.
        gsd_m: ground sampling distance at its centre in metres.
        acquired: ISO date, or empty where unknown.
        sensor: satellite and sensor, or the collection's name.
        land_cover: name of the product of its ground.
        nodata: value that marks no data where all bands have it and the file is silent, or None.
        max_abs_latitude_deg: chips beyond are not cut.
        md5: digest of its files' bytes.
    """

    scene_id: str
    collection: str
    files: tuple[str, ...]
    bands: tuple[str, ...]
    grid: Grid
    gsd_m: float
    acquired: str
    sensor: str
    land_cover: str
    nodata: float | None
    max_abs_latitude_deg: float
    md5: str


@dataclass(frozen=True)
class _Candidate:
    scene_id: str
    collection: SceneCollection
    files: tuple[str, ...]
    missing: tuple[str, ...] = ()


def discover(config: ScenesConfig) -> list[_Candidate]:
    """Group the files below the scene folder into candidate scenes.

    Raises:
        MissingInputError: the folder is missing, or a collection's glob matches nothing.
        ConfigError: one file belongs to two collections.
    """
    if not config.folder.is_dir():
        raise MissingInputError(f"{config.folder}: no such scene folder; point `scenes.folder` at your scenes.")
    found: list[_Candidate] = []
    owner: dict[str, str] = {}
    for collection in config.collections:
        candidates = _candidates(config.folder, collection)
        if not candidates:
            some = sorted(p.relative_to(config.folder).as_posix() for p in config.folder.rglob("*") if p.is_file())[:3]
            raise MissingInputError(
                f"{config.folder}: no file matches `{collection.files}` of collection {collection.name!r}. "
                f"The folder holds {', '.join(some) + ' …' if some else 'no file at all'}; mend `scenes.collections`."
            )
        for file in (f for candidate in candidates for f in candidate.files):
            if owner.setdefault(file, collection.name) != collection.name:
                raise ConfigError(
                    f"{file}: matched by the collections {owner[file]} and {collection.name}; give each its own files."
                )
        found += candidates
    return sorted(found, key=lambda c: c.scene_id)


def _candidates(folder: Path, collection: SceneCollection) -> list[_Candidate]:
    if collection.band_files is None:
        paths = sorted(p.relative_to(folder).as_posix() for p in folder.glob(collection.files) if p.is_file())
        return [_Candidate(_scene_id(p), collection, (p,)) for p in paths]
    before, after = collection.files.split("{band}")
    tokens = "|".join(re.escape(token) for token in collection.band_files)
    pattern = re.compile(f"(?s:{_glob_regex(before)})(?P<band>{tokens})(?s:{_glob_regex(after)})\\Z")
    scenes: dict[str, dict[str, str]] = {}
    for path in sorted(p.relative_to(folder).as_posix() for p in folder.glob(before + "*" + after) if p.is_file()):
        if match := pattern.match(path):
            key = path[: match.start("band")] + path[match.end("band") :]
            scenes.setdefault(key, {})[match["band"]] = path
    result = []
    for key, by_band in scenes.items():
        missing = tuple(token for token in collection.band_files if token not in by_band)
        files = tuple(by_band[token] for token in collection.band_files if token in by_band)
        result.append(_Candidate(_scene_id(key), collection, files, missing))
    return result


def _glob_regex(glob: str) -> str:
    return re.sub(r"^\(\?s:(.*)\)\\[Zz]$", r"\1", fnmatch.translate(glob))


def _scene_id(path: str) -> str:
    stem = re.sub(r"\.(tiff?|jp2|img)$", "", path, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")


def inspect(folder: Path, candidate: _Candidate) -> Scene:
    """Read the headers of a candidate and refuse it if correct chips are impossible.

    Raises:
        SceneRefusedError: a band file is missing, a file is unreadable or of another format, there is no CRS or no
            geotransform, files of one scene lie on different grids, or the number of bands is not the expected one.
    """
    if candidate.missing:
        raise SceneRefusedError(f"band file(s) for {', '.join(candidate.missing)} missing beside {candidate.files[0]}")
    headers = [_header(folder / file) for file in candidate.files]
    grid = headers[0].grid
    for file, header in zip(candidate.files, headers, strict=True):
        if header.grid != grid:
            raise SceneRefusedError(
                f"{file}: grid differs from {candidate.files[0]}; the files of a scene must share CRS, transform and size"
            )
    bands = _band_names(candidate, headers)
    if fault := grid.fault():
        raise SceneRefusedError(f"{candidate.files[0]}: {fault}")
    collection, name = candidate.collection, Path(candidate.files[0]).name
    gaofen = _GAOFEN.search(name)
    digest = "".join(file_md5(folder / file) for file in candidate.files)
    return Scene(
        scene_id=candidate.scene_id,
        collection=collection.name,
        files=candidate.files,
        bands=bands,
        grid=grid,
        gsd_m=round(grid.gsd_m, 4),
        acquired=_acquired(collection.acquired, gaofen) or headers[0].acquired,
        sensor=gaofen["sensor"] if gaofen else collection.name,
        land_cover=collection.land_cover,
        nodata=collection.nodata,
        max_abs_latitude_deg=collection.max_abs_latitude_deg,
        md5=digest if len(candidate.files) == 1 else text_digest(digest),
    )


def _acquired(configured: date | None, gaofen: re.Match[str] | None) -> str:
    if configured is not None:
        return configured.isoformat()
    if gaofen is None:
        return ""
    digits = gaofen["date"]
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:])).isoformat()
    except ValueError as error:
        raise SceneRefusedError(
            f"its name carries the date {digits}, which does not exist; give `acquired` for its collection"
        ) from error


@dataclass(frozen=True)
class _Header:
    grid: Grid
    count: int
    colours: tuple[ColorInterp, ...]
    acquired: str = ""


def _header(path: Path) -> _Header:
    try:
        with open_raster(path) as source:
            refuse_flood(source, path)
            if source.crs is None:
                if source.gcps[0]:
                    raise SceneRefusedError(
                        f"{path.name}: only ground control points; warp the scene to a map grid first, e.g. with gdalwarp."
                    )
                raise SceneRefusedError(
                    f"{path.name}: no CRS; without it land cover cannot be looked up. Assign one, e.g. with gdal_edit."
                )
            # Test rpcs first: a raw product often carries a made-up CRS beside its RPCs.
            if source.transform == Affine.identity():
                how = "only RPCs (not orthorectified)" if source.rpcs else "no geotransform"
                raise SceneRefusedError(
                    f"{path.name}: {how}; orthorectify the scene to a map grid first. Files beside it (.tfw, .aux.xml) are "
                    "not read: gdal_translate writes what they say into the file."
                )
            if source.transform.is_degenerate:
                raise SceneRefusedError(f"{path.name}: degenerate geotransform {tuple(source.transform)[:6]}")
            if any(np.dtype(kind).kind == "c" for kind in source.dtypes):
                raise SceneRefusedError(
                    f"{path.name}: complex pixels ({source.dtypes[0]}); expected integers or floats"
                )
            grid = Grid(
                CRS.from_wkt(source.crs.to_wkt()), Affine(*tuple(source.transform)[:6]), source.height, source.width
            )
            # GDAL's own tag, "2021-07-04 18:12:01": `geokr fetch` writes it.
            tagged = re.match(r"\d{4}-\d{2}-\d{2}", source.tags(ns="IMAGERY").get("ACQUISITIONDATETIME", ""))
            acquired = tagged[0] if tagged else ""
            return _Header(grid, source.count, tuple(source.colorinterp), acquired)
    except RASTER_ERRORS as error:
        raise SceneRefusedError(unopened(path.name, error)) from error


def _band_names(candidate: _Candidate, headers: Sequence[_Header]) -> tuple[str, ...]:
    collection = candidate.collection
    if collection.band_files is not None:
        many = [f for f, h in zip(candidate.files, headers, strict=True) if h.count != 1]
        if many:
            raise SceneRefusedError(f"{many[0]}: {headers[0].count} bands found, expected one band a file")
        return tuple(collection.bands or ())
    header = headers[0]
    colours = [c for c in header.colours if c != ColorInterp.alpha]
    if collection.bands is None:
        known = {ColorInterp.red: "red", ColorInterp.green: "green", ColorInterp.blue: "blue"}
        return tuple(known.get(c, f"band{k}") for k, c in enumerate(colours, start=1))
    # A fourth band may be tagged as alpha though it holds near infrared: the user's list decides.
    if len(collection.bands) not in (header.count, len(colours)):
        raise SceneRefusedError(
            f"{candidate.files[0]}: {len(colours)} bands found, expected {len(collection.bands)} ({', '.join(collection.bands)}); "
            f"mend `bands` of collection {collection.name!r}"
        )
    return collection.bands


class SceneReader:
    """An open scene; see `open_scene`."""

    def __init__(self, scene: Scene, datasets: Sequence[Any], bands: Sequence[str]) -> None:
        """Take the open datasets of ``scene`` and the bands wanted."""
        self._scene = scene
        missing = [name for name in bands if name not in scene.bands]
        if missing:
            raise SceneRefusedError(
                f"band(s) {', '.join(missing)} not among its bands {', '.join(scene.bands)}; mend `chips.bands`"
            )
        positions = [scene.bands.index(name) for name in bands]
        if len(datasets) == 1:
            self._sources = [(datasets[0], [p + 1 for p in positions])]
            # All bands used as data, one of them tagged alpha: then it is no mask.
            colours = datasets[0].colorinterp
            self._masked = not (len(scene.bands) == len(colours) and ColorInterp.alpha in colours)
        else:
            self._sources = [(datasets[p], [1]) for p in positions]
            self._masked = True
        # Asking for the masks of files that have none costs as much as reading them.
        self._masked &= not all(_all_valid(source, indexes) for source, indexes in self._sources)

    def read(self, row: int, height: int, *, decimation: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Read full-width lines.

        Args:
            row: first line.
            height: number of lines.
            decimation: read every n-th pixel only.

        Returns:
            Pixels as stored, (C, H, W), and bool (H, W): True where every band holds data.

        Raises:
            SceneRefusedError: the file is corrupt or cut off there.
        """
        width = self._scene.grid.width
        window = Window(0, row, width, height)
        shape = (max(1, height // decimation), max(1, width // decimation))
        pixels, valid = [], np.ones(shape, dtype=bool)
        try:
            for source, indexes in self._sources:
                pixels.append(source.read(indexes, window=window, out_shape=(len(indexes), *shape)))
                if self._masked:
                    masks = source.read_masks(indexes, window=window, out_shape=(len(indexes), *shape))
                    valid &= (masks > 0).all(axis=0)
        except RASTER_ERRORS as error:
            raise SceneRefusedError(
                f"unreadable at lines {row}–{row + height - 1}: the file is corrupt or cut off ({cause_of(error)}); fetch it again"
            ) from error
        # One file is the rule, and copying it costs as much as reading it.
        data = pixels[0] if len(pixels) == 1 else np.concatenate(pixels)
        if data.dtype.kind == "f":
            valid &= np.isfinite(data).all(axis=0)
        if self._scene.nodata is not None:
            valid &= (data != self._scene.nodata).any(axis=0)
        return data, valid

    def read_cloud(self, row: int, height: int) -> np.ndarray | None:
        """Cloud mask of full-width lines, bool (H, W); None where the product brings no mask."""
        return None


def _all_valid(source: Any, indexes: Sequence[int]) -> bool:
    """Whether a file declares no missing pixels, so that there is no mask to read."""
    return all(MaskFlags.all_valid in source.mask_flag_enums[index - 1] for index in indexes)


@contextmanager
def open_scene(folder: Path, scene: Scene, bands: Sequence[str]) -> Iterator[SceneReader]:
    """Open a scene for reading, in the process that reads it.

    Args:
        folder: the scene folder.
        scene: from the inventory.
        bands: common names of the bands wanted, in the order wanted.

    Raises:
        SceneRefusedError: a file cannot be opened, or a wanted band is not there.
    """
    with ExitStack() as stack:
        try:
            datasets = [stack.enter_context(open_raster(folder / file)) for file in scene.files]
        except RASTER_ERRORS as error:
            raise SceneRefusedError(f"cannot be opened any more: {cause_of(error)}") from error
        yield SceneReader(scene, datasets, bands)


def take_inventory(config: ScenesConfig, out: Path, reporter: Reporter) -> Summary:
    """Take stock of the scene folder.

    Args:
        config: folder and collections.
        out: folder to write ``inventory.parquet`` (GeoParquet, one row a scene) and ``inventory.json`` into.
        reporter: hears each refusal.

    Returns:
        Counts, and a table of the refused scenes with their reasons.

    Raises:
        MissingInputError: no folder, or a collection without files.
        ConfigError: collections overlap.
        SceneRefusedError: not one scene is usable; lists the reasons.
    """
    rows: list[dict[str, Any]] = []
    candidates = discover(config)
    seen: dict[str, str] = {}
    with reporter.progress("scenes", len(candidates)) as advance:
        for candidate in candidates:
            rows.append(_inventory_row(config.folder, candidate, seen))
            advance(1)
    refused = [row for row in rows if row["status"] == "quarantined"]
    for row in refused:
        reporter.warning(f"scene {row['scene_id']} quarantined: {row['reason']}")
    if len(refused) == len(rows):
        reasons = "\n".join(f"  {row['scene_id']}: {row['reason']}" for row in refused[:10])
        raise SceneRefusedError(f"{config.folder}: none of {len(rows)} scenes is usable:\n{reasons}")
    with whole_folder(out) as folder:
        _write_inventory(rows, folder / "inventory.parquet")
        generated = (config.folder.parent / WORLD_MARKER).exists()
        write_json(
            folder / "inventory.json",
            {
                "num_scenes": len(rows),
                "num_quarantined": len(refused),
                "generated_world": generated,
                "collections": as_plain(config)["collections"],
            },
        )
    usable = [row for row in rows if row["status"] == "usable"]
    return Summary(
        numbers={
            "num_scenes": len(usable),
            "num_quarantined": len(refused),
            "megapixels": round(sum(row["height"] * row["width"] for row in usable) / 1e6, 2),
        },
        table=[{"scene": row["scene_id"], "reason": row["reason"]} for row in refused[:50]],
        warnings=[f"{row['scene_id']}: {row['reason']}" for row in refused],
    )


def _inventory_row(folder: Path, candidate: _Candidate, seen: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "scene_id": candidate.scene_id, "collection": candidate.collection.name, "status": "usable", "reason": "",
        "files": list(candidate.files), "bands": [], "crs_wkt": "", "transform": [], "height": 0, "width": 0, "gsd_m": np.nan,
        "acquired": "", "sensor": "", "land_cover": candidate.collection.land_cover, "nodata": np.nan,
        "max_abs_latitude_deg": candidate.collection.max_abs_latitude_deg, "md5": "", "geometry": None,
    }  # fmt: skip
    if (other := seen.setdefault(candidate.scene_id, candidate.files[0])) != candidate.files[0]:
        reason = f"{candidate.files[0]}: same scene id as {other}; rename one of them"
        return {**row, "status": "quarantined", "reason": reason}
    try:
        scene = inspect(folder, candidate)
    except SceneRefusedError as error:
        return {**row, "status": "quarantined", "reason": str(error)}
    return {
        **row, "bands": list(scene.bands), "crs_wkt": scene.grid.wkt, "transform": list(tuple(scene.grid.transform)[:6]),
        "height": scene.grid.height, "width": scene.grid.width, "gsd_m": scene.gsd_m, "acquired": scene.acquired,
        "sensor": scene.sensor, "nodata": np.nan if scene.nodata is None else scene.nodata, "md5": scene.md5,
        "geometry": scene.grid.footprint(),
    }  # fmt: skip


def _write_inventory(rows: list[dict[str, Any]], path: Path) -> None:
    import geopandas as gpd

    gpd.GeoDataFrame(rows, geometry="geometry", crs="EPSG:4326").to_parquet(path, index=False, compression="zstd")


def read_inventory(folder: Path) -> pd.DataFrame:
    """The inventory as a table, refused scenes included.

    Raises:
        MissingInputError: the inventory has not been taken.
    """
    path = folder / "inventory.parquet"
    if not path.is_file():
        raise MissingInputError(f"{path}: no inventory; run `geokr scenes` first.")
    return pd.read_parquet(path)


def usable_scenes(folder: Path) -> Mapping[str, Scene]:
    """Usable scenes of an inventory by scene id, in order.

    Raises:
        MissingInputError: the inventory has not been taken.
    """
    table = read_inventory(folder)
    return {str(row["scene_id"]): _scene_of(row) for row in table[table["status"] == "usable"].to_dict("records")}


def _scene_of(row: Mapping[Any, Any]) -> Scene:
    return Scene(
        scene_id=row["scene_id"],
        collection=row["collection"],
        files=tuple(row["files"]),
        bands=tuple(row["bands"]),
        grid=Grid(CRS.from_wkt(row["crs_wkt"]), Affine(*row["transform"]), int(row["height"]), int(row["width"])),
        gsd_m=float(row["gsd_m"]),
        acquired=row["acquired"],
        sensor=row["sensor"],
        land_cover=row["land_cover"],
        nodata=None if np.isnan(row["nodata"]) else float(row["nodata"]),
        max_abs_latitude_deg=float(row["max_abs_latitude_deg"]),
        md5=row["md5"],
    )
