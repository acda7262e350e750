"""How a scene's pixels are read: strips of full-width lines as stored, where they hold data, where they are clouded.

A scene with a map grid is read as it is, never resampled. A scene in sensor geometry is carried to its map grid on the
way (``rpc``). What counts as no data: the file's own nodata value, mask (inside or beside the file) or alpha band, NaN
and infinity, and the collection's ``nodata`` where every band has it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from geokr_core.errors import SceneRefusedError
from geokr_core.rasters.grid import Grid
from geokr_core.rasters.open_raster import RASTER_ERRORS, cause_of, open_raster
from geokr_core.scenes.clouds import CloudMask, whole_factor
from geokr_core.scenes.orthorectify import Orthorectifier, Terrain
from geokr_core.scenes.rpc_files import rpcs_of
from geokr_core.scenes.scene import Scene


@dataclass(frozen=True)
class _Opened:
    """An open raster, its path, and the open mask beside it, if there is one."""

    path: Path
    dataset: Any
    mask: Any | None


def mask_beside(path: Path) -> Path | None:
    """The mask file of a raster, named as GDAL names it; None where there is none."""
    mask = path.with_name(f"{path.name}.msk")
    return mask if mask.is_file() else None


def open_with_mask(path: Path, stack: ExitStack) -> _Opened:
    """Open a raster, and the mask beside it where there is one, until ``stack`` closes.

    Raises:
        RasterioIOError: one of the two cannot be opened.
        SceneRefusedError: the mask is none of this raster.
    """
    dataset = stack.enter_context(open_raster(path))
    beside = mask_beside(path)
    if beside is None:
        return _Opened(path, dataset, None)
    mask = stack.enter_context(open_raster(beside))
    if mask.shape != dataset.shape or mask.count not in (1, dataset.count):
        raise SceneRefusedError(
            f"{beside.name}: {mask.count} x {mask.height} x {mask.width} found, expected a mask of {path.name} with "
            f"{dataset.height} x {dataset.width} pixels; remove it if it belongs to another file"
        )
    return _Opened(path, dataset, mask)


class _File:
    """Wanted bands of one open file, and how the file marks what holds no data."""

    def __init__(self, opened: "_Opened", indexes: Sequence[int], masked: bool) -> None:
        self.opened, self.indexes = opened, list(indexes)
        self.dataset = dataset = opened.dataset
        flags = [set(dataset.mask_flag_enums[i - 1]) if masked else {MaskFlags.all_valid} for i in indexes]
        nodata = [
            dataset.nodatavals[i - 1] if MaskFlags.nodata in f else None for i, f in zip(indexes, flags, strict=True)
        ]
        self.nodata = [
            None if v is None else stored_value(v, dataset.dtypes[i - 1]) for i, v in zip(indexes, nodata, strict=True)
        ]
        # Reading a mask costs as much as reading a band, so only a file that has one is asked.
        own = [i for i, f in zip(indexes, flags, strict=True) if not f & {MaskFlags.all_valid, MaskFlags.nodata}]
        shared = all(MaskFlags.per_dataset in f for f in flags)
        self._mask_indexes = own[:1] if shared else own
        colours = dataset.colorinterp
        self._alpha = colours.index(ColorInterp.alpha) + 1 if masked and ColorInterp.alpha in colours and not own else 0

    def read(self, window: Window, out: np.ndarray) -> np.ndarray | None:
        """Fill ``out``, (C, h, w), from a window; where its masks let it hold data, bool (h, w), None for everywhere."""
        self.dataset.read(self.indexes, window=window, out=out)
        shape = out.shape[1:]
        valid: np.ndarray | None = None
        if self._mask_indexes:
            masks = self.dataset.read_masks(
                self._mask_indexes, window=window, out_shape=(len(self._mask_indexes), *shape)
            )
            valid = _both(valid, (masks > 0).all(axis=0))
        if (beside := self.opened.mask) is not None:
            bands = [1] if beside.count == 1 else self.indexes
            masks = beside.read(bands, window=window, out_shape=(len(bands), *shape))
            valid = _both(valid, (masks > 0).all(axis=0))
        if self._alpha:
            valid = _both(valid, self.dataset.read(self._alpha, window=window, out_shape=shape) > 0)
        return valid


def _both(valid: np.ndarray | None, more: Any) -> np.ndarray:
    return np.asarray(more if valid is None else valid & more)


def stored_value(value: float, dtype: str | np.dtype) -> Any:
    """A value as the raster type stores it, so that comparing copies no pixels; None where the type cannot hold it.

    NaN gives None as well: what is not finite never holds data.
    """
    kind = np.dtype(dtype)
    if not np.isfinite(value):
        return None
    if kind.kind == "f":
        return kind.type(value)
    info = np.iinfo(kind)
    return kind.type(int(value)) if float(value).is_integer() and info.min <= value <= info.max else None


class SceneReader:
    """An open scene; see `open_scene`."""

    def __init__(
        self, scene: Scene, opened: Mapping[int, _Opened], bands: Sequence[str], cloud: CloudMask | None = None
    ) -> None:
        """Take the open files of ``scene`` by their place among its files, the bands wanted, and the open cloud mask."""
        positions = [scene.bands.index(name) for name in bands]
        if len(scene.files) == 1:
            colours = opened[0].dataset.colorinterp
            # All bands used as data, one of them tagged alpha: then it is no mask.
            masked = not (len(scene.bands) == len(colours) and ColorInterp.alpha in colours)
            self._files = [_File(opened[0], [p + 1 for p in positions], masked)]
        else:
            self._files = [_File(opened[p], [1], True) for p in positions]
        kinds = [file.dataset.dtypes[i - 1] for file in self._files for i in file.indexes]
        self._dtype = np.result_type(*kinds)
        self._num_bands = len(kinds)
        self._scene, self._cloud = scene, cloud
        self._nodata = None if scene.nodata is None else stored_value(scene.nodata, self._dtype)
        self._ortho: Orthorectifier | None = None
        if scene.orthorectified:
            source = self._files[0].dataset
            rpcs, _ = rpcs_of(source, self._files[0].opened.path)
            if rpcs is None:
                raise SceneRefusedError("its RPCs have vanished since the inventory; run `geokr scenes` again")
            self._ortho = Orthorectifier(
                rpcs,
                source.shape,
                scene.grid,
                terrain_of(scene),
                self._num_bands,
                self._dtype,
                self._read_window,
            )

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
        try:
            if self._ortho is not None:
                return self._ortho.read(row, height, decimation)
            shape = (max(1, height // decimation), max(1, width // decimation))
            return self._read_window(Window(0, row, width, height), shape)
        except RASTER_ERRORS as error:
            raise SceneRefusedError(
                f"unreadable at lines {row}–{row + height - 1}: the file is corrupt or cut off ({cause_of(error)}); fetch it again"
            ) from error

    def read_cloud(self, row: int, height: int) -> np.ndarray | None:
        """Where full-width lines show cloud or its shadow, by the classification that the product brings.

        Args:
            row: first line.
            height: number of lines.

        Returns:
            bool (H, W), or None where the product brings no classification.

        Raises:
            SceneRefusedError: the classification is corrupt or cut off there.
        """
        if self._cloud is None:
            return None
        try:
            return self._cloud.read(row, height, self._scene.grid.width)
        except RASTER_ERRORS as error:
            raise SceneRefusedError(
                f"cloud mask unreadable at lines {row}–{row + height - 1}: it is corrupt or cut off ({cause_of(error)})"
            ) from error

    def _read_window(self, window: Window, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """A window of the files at a shape: pixels (C, h, w) and bool (h, w)."""
        data = np.empty((self._num_bands, *shape), dtype=self._dtype)
        valid: np.ndarray | None = None
        band = 0
        for file in self._files:
            part = data[band : band + len(file.indexes)]
            band += len(file.indexes)
            if (found := file.read(window, part)) is not None:
                valid = _both(valid, found)
        if self._dtype.kind == "f":
            valid = _both(valid, np.isfinite(data).all(axis=0))
        if self._nodata is not None:
            valid = _both(valid, (data != self._nodata).any(axis=0))
        nodata = [value for file in self._files for value in file.nodata]
        for values, marked in zip(data, nodata, strict=True):
            if marked is not None and marked != 0:
                valid = _both(valid, values != marked)
        # 0 is also what deep water and shadow measure: it marks no data only where all bands have it, as in a margin.
        if zero := [band for band, value in enumerate(nodata) if value is not None and value == 0]:
            valid = _both(valid, np.logical_or.reduce([data[band] != 0 for band in zero]))
        return data, np.ones(shape, dtype=bool) if valid is None else valid


def terrain_of(scene: Scene) -> Terrain:
    """Height of the ground that a scene is orthorectified with."""
    return Terrain(scene.rpc_height_m, Path(scene.dem) if scene.dem else None)


@contextmanager
def open_scene(folder: Path, scene: Scene, bands: Sequence[str]) -> Iterator[SceneReader]:
    """Open a scene for reading, in the process that reads it.

    Args:
        folder: the scene folder.
        scene: from the inventory.
        bands: common names of the bands wanted, in the order wanted.

    Raises:
        SceneRefusedError: a file cannot be opened, a wanted band is not there, or the cloud mask does not fit.
    """
    if missing := [name for name in bands if name not in scene.bands]:
        raise SceneRefusedError(
            f"band(s) {', '.join(missing)} not among its bands {', '.join(scene.bands)}; mend `chips.bands`"
        )
    needed = {scene.bands.index(name) for name in bands} if len(scene.files) > 1 else {0}
    with ExitStack() as stack:
        try:
            opened = {place: open_with_mask(folder / scene.files[place], stack) for place in sorted(needed)}
            cloud = None
            if scene.cloud_mask:
                mask = stack.enter_context(open_raster(folder / scene.cloud_mask))
                grid = Grid(mask.crs, mask.transform, mask.height, mask.width)
                cloud = CloudMask(mask, scene.product, whole_factor(scene.grid, grid))
            # In here as well: what a file says of its masks and colours is read from it only when asked for.
            reader = SceneReader(scene, opened, bands, cloud)
        except RASTER_ERRORS as error:
            raise SceneRefusedError(f"cannot be opened any more: {cause_of(error)}") from error
        yield reader
