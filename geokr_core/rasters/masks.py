"""Where a raster holds data: the union of all the ways in which its file declares that it does not.

GDAL honours one way only: a mask inside the file hides the declared nodata value, and this hides the alpha band. Here a cell
counts as missing if any of them says so. Nodata values are given to the caller, who knows what they mean for its bands.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from geokr_core.rasters.open_raster import opened_raster, surroundings

SIDE_FILES = (".msk", ".aux.xml", ".ovr")
"""Endings of files that belong to the raster beside them: its mask, what a viewer noted, its overviews."""


@dataclass(frozen=True)
class Opened:
    """An open raster, its path, and the open mask beside it, if there is one."""

    path: Path
    dataset: Any
    mask: Any | None


def mask_beside(path: Path) -> Path | None:
    """The mask file of a raster, named as GDAL names it; None where there is none."""
    mask = path.with_name(f"{path.name}.msk")
    return mask if mask.is_file() else None


def open_with_mask(path: Path, stack: ExitStack) -> Opened:
    """Open a raster, and the mask beside it where there is one, until ``stack`` closes.

    Raises:
        RasterioIOError: one of the two cannot be opened, or the mask is not of this raster.
    """
    stack.enter_context(surroundings(path))
    return opened_with_mask(path, stack)


def opened_with_mask(path: Path, stack: ExitStack) -> Opened:
    """`open_with_mask` for a caller who is in `surroundings`, and again wherever it reads.

    Raises:
        RasterioIOError: as by `open_with_mask`.
    """
    dataset = stack.enter_context(opened_raster(path))
    beside = mask_beside(path)
    if beside is None:
        return Opened(path, dataset, None)
    mask = stack.enter_context(opened_raster(beside))
    if mask.shape != dataset.shape or mask.count not in (1, dataset.count):
        raise RasterioIOError(
            f"{beside.name}: {mask.count} x {mask.height} x {mask.width} found, expected a mask of {path.name} with "
            f"{dataset.height} x {dataset.width} pixels; remove it if it belongs to another file"
        )
    return Opened(path, dataset, mask)


class DeclaredMask:
    """Everything but nodata values of single bands by which a file says where it holds no data.

    That is: its internal mask, the mask beside it, its alpha band, and the values of GDAL's ``NODATA_VALUES`` tag, which mark a
    pixel where all bands have theirs.
    """

    def __init__(self, opened: Opened, indexes: Sequence[int], *, alpha_is_data: bool = False) -> None:
        """Find out what a file declares.

        Args:
            opened: the raster and its mask.
            indexes: bands that are read, from 1.
            alpha_is_data: whether a band tagged as alpha is data like any other.
        """
        self._opened, self._indexes = opened, list(indexes)
        dataset = opened.dataset
        flags = [set(found) for found in dataset.mask_flag_enums]
        # What is neither of GDAL's other kinds is a mask inside the file. A shared one is read once.
        other = {MaskFlags.all_valid, MaskFlags.nodata, MaskFlags.alpha}
        internal = [i for i in self._indexes if not flags[i - 1] & other]
        shared = bool(internal) and all(MaskFlags.per_dataset in flags[i - 1] for i in internal)
        self._internal = internal[:1] if shared else internal
        colours = dataset.colorinterp
        self._alpha = 0 if alpha_is_data or ColorInterp.alpha not in colours else colours.index(ColorInterp.alpha) + 1
        self._filler = _filler(dataset)

    def __bool__(self) -> bool:
        """Whether the file declares anything."""
        return bool(self._internal or self._alpha or self._filler or self._opened.mask is not None)

    def read(self, window: Window, shape: tuple[int, int]) -> np.ndarray | None:
        """Where a window holds data, bool of ``shape``; None where the file declares nothing.

        Raises:
            RasterioError: the file is corrupt or cut off there.
        """
        dataset, valid = self._opened.dataset, None
        if self._internal:
            masks = dataset.read_masks(self._internal, window=window, out_shape=(len(self._internal), *shape))
            valid = both(valid, (masks > 0).all(axis=0))
        if (beside := self._opened.mask) is not None:
            bands = [1] if beside.count == 1 else self._indexes
            masks = beside.read(bands, window=window, out_shape=(len(bands), *shape))
            valid = both(valid, (masks > 0).all(axis=0))
        if self._alpha:
            valid = both(valid, dataset.read(self._alpha, window=window, out_shape=shape) > 0)
        if self._filler:
            filled = np.ones(shape, dtype=bool)
            for band, value in enumerate(self._filler, start=1):
                filled &= dataset.read(band, window=window, out_shape=shape) == value
            valid = both(valid, ~filled)
        return valid


def both(valid: np.ndarray | None, more: Any) -> np.ndarray:
    """Where ``valid`` and ``more`` hold data, bool; a ``valid`` of None holds it everywhere."""
    return np.asarray(more if valid is None else valid & more)


def _filler(dataset: Any) -> tuple[Any, ...]:
    """The values of the data set's ``NODATA_VALUES`` tag as stored; empty where there is none that can occur."""
    words = str(dataset.tags().get("NODATA_VALUES", "")).split()
    if len(words) != dataset.count:
        return ()
    try:
        values = [stored_value(float(word), dtype) for word, dtype in zip(words, dataset.dtypes, strict=True)]
    except ValueError:
        return ()
    return () if any(value is None for value in values) else tuple(values)


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
