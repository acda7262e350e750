"""How a scene's pixels are read: strips of full-width lines as stored, where they hold data, where they are clouded.

A scene with a map grid is read as it is, never resampled. A scene in sensor geometry is carried to its map grid on the
way (``rpc``). What counts as no data: the file's own nodata value, mask (inside or beside the file) or alpha band, NaN
and infinity, and the collection's ``nodata`` where every band has it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError, RPCError
from rasterio.windows import Window

from geokr_core.clouds import CloudMask, whole_factor
from geokr_core.errors import SceneRefusedError
from geokr_core.grid import Grid
from geokr_core.raster_files import open_raster
from geokr_core.rpc import Orthorectifier, Terrain, rpcs_of
from geokr_core.scene import Scene


class _File:
    """Wanted bands of one open file, and how the file marks what holds no data."""

    def __init__(self, dataset: Any, indexes: Sequence[int], masked: bool) -> None:
        self.dataset, self.indexes = dataset, list(indexes)
        flags = [set(dataset.mask_flag_enums[i - 1]) if masked else {MaskFlags.all_valid} for i in indexes]
        nodata = [
            dataset.nodatavals[i - 1] if MaskFlags.nodata in f else None for i, f in zip(indexes, flags, strict=True)
        ]
        self._nodata = [
            None if v is None else stored_value(v, dataset.dtypes[i - 1]) for i, v in zip(indexes, nodata, strict=True)
        ]
        # Reading a mask costs as much as reading a band, so only a file that has one is asked.
        own = [i for i, f in zip(indexes, flags, strict=True) if not f & {MaskFlags.all_valid, MaskFlags.nodata}]
        shared = all(MaskFlags.per_dataset in f for f in flags)
        self._mask_indexes = own[:1] if shared else own
        colours = dataset.colorinterp
        self._alpha = colours.index(ColorInterp.alpha) + 1 if masked and ColorInterp.alpha in colours and not own else 0

    def read(self, window: Window, out: np.ndarray) -> np.ndarray | None:
        """Fill ``out``, (C, h, w), from a window; where it holds data, bool (h, w), None for everywhere."""
        self.dataset.read(self.indexes, window=window, out=out)
        shape = out.shape[1:]
        valid: np.ndarray | None = None
        for values, nodata in zip(out, self._nodata, strict=True):
            if nodata is not None:
                valid = _both(valid, values != nodata)
        if self._mask_indexes:
            masks = self.dataset.read_masks(
                self._mask_indexes, window=window, out_shape=(len(self._mask_indexes), *shape)
            )
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
        self, scene: Scene, datasets: Mapping[int, Any], bands: Sequence[str], cloud: CloudMask | None = None
    ) -> None:
        """Take the open datasets of ``scene`` by their place in its files, the bands wanted, and the open cloud mask."""
        positions = [scene.bands.index(name) for name in bands]
        if len(scene.files) == 1:
            colours = datasets[0].colorinterp
            # All bands used as data, one of them tagged alpha: then it is no mask.
            masked = not (len(scene.bands) == len(colours) and ColorInterp.alpha in colours)
            self._files = [_File(datasets[0], [p + 1 for p in positions], masked)]
        else:
            self._files = [_File(datasets[p], [1], True) for p in positions]
        kinds = [file.dataset.dtypes[i - 1] for file in self._files for i in file.indexes]
        self._dtype = np.result_type(*kinds)
        self._num_bands = len(kinds)
        self._scene, self._cloud = scene, cloud
        self._nodata = None if scene.nodata is None else stored_value(scene.nodata, self._dtype)
        self._ortho: Orthorectifier | None = None
        if scene.orthorectified:
            source = self._files[0].dataset
            rpcs = rpcs_of(source)
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
        except (RasterioError, RPCError) as error:
            raise SceneRefusedError(
                f"unreadable at lines {row}–{row + height - 1}: the file is corrupt or cut off ({error})"
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
        except RasterioError as error:
            raise SceneRefusedError(
                f"cloud mask unreadable at lines {row}–{row + height - 1}: it is corrupt or cut off ({error})"
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
            datasets = {
                place: stack.enter_context(open_raster(folder / scene.files[place])) for place in sorted(needed)
            }
            cloud = None
            if scene.cloud_mask:
                mask = stack.enter_context(open_raster(folder / scene.cloud_mask))
                grid = Grid(mask.crs, mask.transform, mask.height, mask.width)
                cloud = CloudMask(mask, scene.product, whole_factor(scene.grid, grid))
        except RasterioError as error:
            raise SceneRefusedError(f"cannot be opened: {error}") from error
        yield SceneReader(scene, datasets, bands, cloud)
