"""How a scene's pixels are read: strips of full-width lines as stored, where they hold data, where they are clouded.

A scene with a map grid is read as it is, never resampled. A scene in sensor geometry is carried to its map grid on the
way (``orthorectify``). What counts as no data is the union of all that is declared: the file's nodata values, its masks
(``rasters.masks``), NaN and infinity, and the collection's ``nodata`` where every band has it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from geokr_core.errors import GeoKRError, SceneRefusedError
from geokr_core.rasters.grid import Grid
from geokr_core.rasters.masks import DeclaredMask, Opened, both, open_with_mask, stored_value
from geokr_core.rasters.open_raster import FILE_ERRORS, cause_of, open_raster
from geokr_core.scenes.clouds import CloudMask, whole_factor
from geokr_core.scenes.orthorectify import Orthorectifier, Terrain
from geokr_core.scenes.products.families import family
from geokr_core.scenes.rpc_files import rpcs_of
from geokr_core.scenes.scene import Scene


class _File:
    """Wanted bands of one open file, and how the file marks what holds no data."""

    def __init__(self, opened: Opened, indexes: Sequence[int], *, alpha_is_data: bool) -> None:
        self.opened, self.indexes = opened, list(indexes)
        self.dataset = dataset = opened.dataset
        declared = [(dataset.nodatavals[i - 1], dataset.dtypes[i - 1]) for i in indexes]
        self.nodata = [None if value is None else stored_value(value, dtype) for value, dtype in declared]
        self._mask = DeclaredMask(opened, indexes, alpha_is_data=alpha_is_data)

    def read(self, window: Window, out: np.ndarray) -> np.ndarray | None:
        """Fill ``out``, (C, h, w), from a window; where its masks let it hold data, bool (h, w), None for everywhere."""
        self.dataset.read(self.indexes, window=window, out=out)
        return self._mask.read(window, (out.shape[1], out.shape[2]))


class SceneReader:
    """An open scene; see `open_scene`."""

    def __init__(
        self, scene: Scene, opened: Mapping[int, Opened], bands: Sequence[str], cloud: CloudMask | None = None
    ) -> None:
        """Take the open files of ``scene`` by their place among its files, the bands wanted, and the open cloud mask."""
        positions = [scene.bands.index(name) for name in bands]
        if len(scene.files) == 1:
            colours = opened[0].dataset.colorinterp
            # All bands used as data, one of them tagged alpha: then it is no mask.
            alpha_is_data = len(scene.bands) == len(colours) and ColorInterp.alpha in colours
            self._files = [_File(opened[0], [p + 1 for p in positions], alpha_is_data=alpha_is_data)]
        else:
            self._files = [_File(opened[p], [1], alpha_is_data=False) for p in positions]
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
        except GeoKRError:
            raise
        except FILE_ERRORS as error:
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
        except FILE_ERRORS as error:
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
                valid = both(valid, found)
        if self._dtype.kind == "f":
            valid = both(valid, np.isfinite(data).all(axis=0))
        if self._nodata is not None:
            valid = both(valid, (data != self._nodata).any(axis=0))
        nodata = [value for file in self._files for value in file.nodata]
        for values, marked in zip(data, nodata, strict=True):
            if marked is not None and marked != 0:
                valid = both(valid, values != marked)
        # 0 is also what deep water and shadow measure: it marks no data only where all bands have it, as in a margin.
        if zero := [band for band, value in enumerate(nodata) if value is not None and value == 0]:
            valid = both(valid, np.logical_or.reduce([data[band] != 0 for band in zero]))
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
                cloud = CloudMask(mask, family(scene.product), whole_factor(scene.grid, Grid.of(mask)))
            # In here as well: what a file says of its masks and colours is read from it only when asked for.
            reader = SceneReader(scene, opened, bands, cloud)
        except GeoKRError:
            raise
        except FILE_ERRORS as error:
            raise SceneRefusedError(f"cannot be opened any more: {cause_of(error)}") from error
        yield reader
