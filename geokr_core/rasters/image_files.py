"""The one door through which images without a place on Earth are read, and masks of labelled sets.

Formats are named to the readers: Pillow reads JPEG, PNG, BMP and WebP and nothing else, so that no file makes it start another
program; TIFF goes through ``rasters.open_raster``. Sizes are bounded by the header, before anything is unpacked.

What a picture looks like is decided once, here:

- It stands as every viewer shows it: EXIF orientation is applied. A TIFF that asks to be turned is refused, since viewers
  turn it and geographic software does not.
- Palette, CMYK and other colour pictures become 8-bit red, green and blue. Grey pictures stay one channel.
- An alpha channel, a mask inside the file and a declared nodata value say where nothing is known.
- More than 8 bits a colour channel are refused in PNG, which Pillow would cut to 8. Grey and TIFF keep theirs.
- A mask keeps its numbers as they are: nothing is clipped, cast or resampled.
"""

import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader

from geokr_core.errors import GeoKRError
from geokr_core.rasters.open_raster import RASTER_ERRORS, cause_of, open_raster, refuse_flood

RASTER_SUFFIXES: Final = frozenset({".tif", ".tiff"})
IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp"}) | RASTER_SUFFIXES

PICTURE_FORMATS: Final = ("JPEG", "PNG", "BMP", "WEBP")
"""What Pillow may take a file for, whatever its ending says."""

MAX_IMAGE_BYTES: Final = 1 << 30
"""Largest unpacked image: one is held in memory as a whole."""

LONE_GREY: Final = (
    "found a grey picture (mode L), expected 8-bit RGB as the other images have. Convert it to 8-bit RGB."
)
"""The fault of a grey picture in a set of colour pictures."""

_ORIENTATION: Final = 274
"""Tag of EXIF and TIFF that says how a picture is turned; 1 is upright."""
_PNG_BIT_DEPTH_AT: Final = 24

_PICTURE_ERRORS: Final = (
    OSError,  # among them Pillow's own
    SyntaxError,
    ValueError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""Everything that Pillow raises over a damaged file."""

_T = TypeVar("_T")
_R = TypeVar("_R")


class UnusableImageError(GeoKRError, ValueError):
    """An image or mask that cannot be used; the message says what was found, expected, and what to do, but no name."""


@dataclass(frozen=True)
class Picture:
    """An image.

    Attributes:
        pixels: (H, W, C), of the file's own type; grey pictures have one channel.
        valid: bool (H, W), where the file says that its pixels mean something; None: everywhere.
        is_grey: whether it is a grey picture, and not a raster of one band.
        last_is_alpha: whether the raster says of its last band that it is transparency, and it shows pixels or hides
            them. Of a fourth band of bytes GDAL says so unasked: near infrared has other values, too.
        band_names: what the raster calls its bands; empty where it does not name them all.
        scaling: scale and offset that the raster declares for each band; empty where its numbers stand for themselves.
    """

    pixels: np.ndarray
    valid: np.ndarray | None = None
    is_grey: bool = False
    last_is_alpha: bool = False
    band_names: tuple[str, ...] = ()
    scaling: tuple[tuple[float, float], ...] = ()

    def without_alpha(self) -> "Picture":
        """The same with its last band taken for transparency."""
        alpha = self.pixels[..., -1] != 0
        valid = alpha if self.valid is None else self.valid & alpha
        return Picture(self.pixels[..., :-1], None if valid.all() else valid, band_names=self.band_names[:-1])

    def of_bands(self, names: Sequence[str]) -> "Picture":
        """The same with these bands alone: by the names that the raster gives them, or all of as many.

        Args:
            names: e.g. ``red``, ``green``, ``blue``; capitals do not count.

        Raises:
            UnusableImageError: it names no such bands and has another number of them.
        """
        called = [name.lower() for name in self.band_names]
        if all(name in called for name in names):
            places = [called.index(name) for name in names]
            scaling = tuple(self.scaling[place] for place in places) if self.scaling else ()
            return Picture(self.pixels[..., places], self.valid, band_names=tuple(names), scaling=scaling)
        if self.pixels.shape[-1] != len(names):
            found = f", called {', '.join(self.band_names)}" if self.band_names else " without names"
            raise UnusableImageError(
                f"found {self.pixels.shape[-1]} band(s) of {self.pixels.dtype}{found}, expected {', '.join(names)} in this order, or "
                "a raster that names these. Select them, e.g. with `gdal_translate -b <red> -b <green> -b <blue>`."
            )
        return self

    def as_rgb8(self) -> np.ndarray:
        """8-bit red, green and blue, uint8 (H, W, 3).

        Raises:
            UnusableImageError: it is none of that.
        """
        picture = self.without_alpha() if self.last_is_alpha and self.pixels.shape[-1] == 4 else self
        channels, kind = picture.pixels.shape[-1], picture.pixels.dtype
        if picture.is_grey and kind == np.uint8:
            raise UnusableImageError(LONE_GREY)
        if channels != 3 or kind != np.uint8:
            raise UnusableImageError(
                f"found {channels} band(s) of {kind}, expected 8-bit RGB: three bands of uint8. Convert it, e.g. with "
                "`gdal_translate -ot Byte -scale -b <red> -b <green> -b <blue>`, for all images alike."
            )
        return np.ascontiguousarray(picture.pixels)


@dataclass(frozen=True)
class RawMask:
    """A mask as it is in the file.

    Attributes:
        values: (H, W) of codes of any type, or uint8 (H, W, 3) of colours.
        known: bool (H, W), where the file says that its pixels mean something; None: everywhere.
        nodata: the code, or the colour, that the file declares to mean nothing, or None.
    """

    values: np.ndarray
    known: np.ndarray | None = None
    nodata: float | tuple[int, int, int] | None = None


def read_image(path: Path) -> Picture:
    """Read an image: JPEG, PNG or BMP, or a TIFF of any bands and type.

    Raises:
        UnusableImageError: there is no such file, it cannot be read whole, is too large, or is in a form that could be
            misread.
    """
    if path.suffix.lower() in RASTER_SUFFIXES:
        with _opened_raster(path) as source:
            pixels = np.moveaxis(source.read(), 0, -1)
            if source.count == 1 and source.colorinterp[0] == ColorInterp.palette:
                return Picture(_colour_table(source.colormap(1))[pixels[..., 0]], _valid(source))
            scaling = tuple(zip(source.scales, source.offsets, strict=True))
            return Picture(
                pixels=pixels,
                valid=_valid(source),
                last_is_alpha=source.count > 1 and source.colorinterp[-1] == ColorInterp.alpha and _is_alpha(pixels),
                band_names=tuple(source.descriptions) if all(source.descriptions) else (),
                scaling=scaling if set(scaling) != {(1.0, 0.0)} else (),
            )
    with _opened_picture(path) as image:
        if image.mode in {"1", "L", "I", "I;16", "F"} and "transparency" not in image.info:
            grey = image.convert("L") if image.mode == "1" else image
            return Picture(np.asarray(grey)[..., None], is_grey=True)
        if image.mode == "LA" or image.mode == "L":
            grey, alpha = image.convert("LA").split()
            return Picture(np.asarray(grey)[..., None], _where(np.asarray(alpha)), is_grey=True)
        colours, alpha_values = _colours(image)
        return Picture(colours, alpha_values)


def read_mask(path: Path, *, holds_codes: bool) -> RawMask:
    """Read a mask as it is.

    Args:
        path: PNG, BMP, JPEG or TIFF.
        holds_codes: whether its classes are numbers (then the places of a palette are the codes) or colours.

    Raises:
        UnusableImageError: there is no such file, it cannot be read whole, is too large, or holds colours where codes are
            expected or the other way round.
    """
    if path.suffix.lower() in RASTER_SUFFIXES:
        with _opened_raster(path) as source:
            return _raster_mask(source, holds_codes)
    with _opened_picture(path) as image:
        if not holds_codes:
            if image.mode in {"I", "I;16", "F"}:
                raise UnusableImageError(
                    f"found a grey mask of mode {image.mode}, expected the colours of the palette."
                )
            return RawMask(*_colours(image))
        if image.mode in {"P", "1", "L", "I", "I;16", "F"}:
            values = np.asarray(image)
            return RawMask(values.astype(np.uint8) if image.mode == "1" else values)
        if image.mode in {"LA", "La", "PA"}:
            codes, alpha = image.split()
            return RawMask(np.asarray(codes), _where(np.asarray(alpha)))
        return _codes_of_grey(*_colours(image))


def read_in_threads(read: Callable[[_T], _R], items: Sequence[_T], threads: int) -> list[_R]:
    """Read items, some at a time, in their order. Warnings that do not concern labelled sets are not shown.

    Args:
        read: reads one; runs in a thread.
        items: to be read.
        threads: files decoded at a time.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # Patches cut from scenes need not say where they lie; what is too large is refused by our own bound.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return list(pool.map(read, items))


@contextmanager
def _opened_raster(path: Path) -> Iterator[DatasetReader]:
    _require_file(path)
    try:
        with open_raster(path) as source:
            refuse_flood(source, path)
            _require_small(source.width, source.height, sum(np.dtype(kind).itemsize for kind in source.dtypes))
            if (turned := _tiff_orientation(path)) != 1:
                raise UnusableImageError(
                    f"its orientation tag is {turned}: viewers turn it, geographic software does not. Write it upright, "
                    "with the tag 1 or without one."
                )
            yield source
    except (*RASTER_ERRORS, TypeError, OSError) as error:  # numpy has no name for some of GDAL's types
        raise UnusableImageError(f"cannot be read as an image ({cause_of(error)}). Fetch the file again.") from error


@contextmanager
def _opened_picture(path: Path) -> Iterator[Any]:
    """The decoded picture, upright."""
    _require_file(path)
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as image:
            _require_small(*image.size, 4 * len(image.getbands()))
            if image.format == "PNG" and image.mode not in {"I", "I;16"}:
                _require_8_bits(path)
            image.load()
            yield ImageOps.exif_transpose(image)
    except UnusableImageError:
        raise
    except _PICTURE_ERRORS as error:
        shown = str(error).replace(f"{path.parent}/", "") or type(error).__name__
        raise UnusableImageError(
            f"cannot be read as an image ({shown}); expected a whole JPEG, PNG, BMP or TIFF file. Fetch the file again."
        ) from error


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise UnusableImageError(
            "there is no such file; expected every image and mask of the set. Fetch the set again."
        )


def _require_small(width: int, height: int, bytes_a_pixel: int) -> None:
    if width * height * bytes_a_pixel > MAX_IMAGE_BYTES:
        raise UnusableImageError(
            f"declares {width} x {height} px of {bytes_a_pixel} bytes, expected at most {MAX_IMAGE_BYTES >> 20} MiB "
            "unpacked. Cut it into tiles."
        )


def _require_8_bits(path: Path) -> None:
    """Refuse a PNG in colour of 16 bits a channel: Pillow would cut it to 8 without a word."""
    with path.open("rb") as stream:
        depth = stream.read(_PNG_BIT_DEPTH_AT + 1)[-1]
    if depth > 8:
        raise UnusableImageError(
            f"found a PNG with {depth} bits a channel, of which only 8 could be read here, expected 8. Write it as TIFF, or "
            "convert it to 8 bits, for all images alike."
        )


def _tiff_orientation(path: Path) -> int:
    """Value of the orientation tag; 1 where there is none. GDAL does not tell."""
    with path.open("rb") as stream:
        header = stream.read(8)
        if 43 in header[2:4]:  # BigTIFF
            header += stream.read(8)
        directory = ImageFileDirectory_v2(header)
        stream.seek(directory.next)
        try:
            directory.load(stream)
            return int(directory.get(_ORIENTATION, 1))
        except _PICTURE_ERRORS:  # a directory that GDAL can read and Pillow cannot
            return 1


def _is_alpha(pixels: np.ndarray) -> bool:
    """Whether the last band holds nothing but all and nothing, as transparency does."""
    last = pixels[..., -1]
    return last.dtype.kind == "u" and bool(np.isin(last, (0, np.iinfo(last.dtype).max)).all())


def _where(alpha: np.ndarray) -> np.ndarray | None:
    """Where an alpha channel shows anything; None: everywhere."""
    shown = alpha != 0
    return None if shown.all() else shown


def _colours(image: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours uint8 (H, W, 3) of a picture, and where they are not transparent."""
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        pixels = np.asarray(image.convert("RGBA"))
        return np.ascontiguousarray(pixels[..., :3]), _where(pixels[..., 3])
    return np.asarray(image.convert("RGB")), None


def _codes_of_grey(colours: np.ndarray, known: np.ndarray | None, nodata: float | None = None) -> RawMask:
    """Codes of a mask that was stored as a grey picture in three equal channels."""
    if (colours != colours[..., :1]).any():
        raise UnusableImageError(
            "is in colour, but its classes are given as codes; expected one channel of codes. Name the colours in "
            "palette.csv (columns class, red, green, blue)."
        )
    return RawMask(colours[..., 0], known, nodata)


def _raster_mask(source: DatasetReader, holds_codes: bool) -> RawMask:
    if any("complex" in kind for kind in source.dtypes):
        raise UnusableImageError(f"found a mask of {source.dtypes[0]}, expected whole numbers or colours.")
    pixels, known = np.moveaxis(source.read(), 0, -1), _valid(source, honour_nodata=False)
    if source.count in {2, 4} and source.colorinterp[-1] == ColorInterp.alpha:
        shown = pixels[..., -1] != 0
        known, pixels = shown if known is None else known & shown, pixels[..., :-1]
    channels = pixels.shape[-1]
    if channels not in {1, 3}:
        raise UnusableImageError(f"found a mask of {channels} bands, expected one of codes or three of colours.")
    if holds_codes:
        if channels == 1:
            return RawMask(pixels[..., 0], known, source.nodata)
        return _codes_of_grey(pixels, known, source.nodata)
    if pixels.dtype != np.uint8:
        raise UnusableImageError(f"found a mask of {channels} band(s) of {pixels.dtype}, expected colours of uint8.")
    if channels == 1 and source.colorinterp[0] == ColorInterp.palette:
        return _palette_mask(pixels[..., 0], source.colormap(1), known, source.nodata)
    declared = source.nodatavals[:channels]
    shown = tuple(int(value) for value in declared if value is not None and float(value).is_integer()) * (4 - channels)
    nodata = (shown[0], shown[1], shown[2]) if len(shown) == 3 else None
    return RawMask(np.repeat(pixels, 3, axis=-1) if channels == 1 else pixels, known, nodata)


def _colour_table(colours: Mapping[int, Sequence[int]]) -> np.ndarray:
    """Colour of each place in a palette, uint8 (65536, 3) at most, (256, 3) usually."""
    table = np.zeros((max(256, *(place + 1 for place in colours)), 3), dtype=np.uint8)
    for place, colour in colours.items():
        table[place] = colour[:3]
    return table


def _palette_mask(
    codes: np.ndarray, colours: Mapping[int, Sequence[int]], known: np.ndarray | None, nodata: float | None
) -> RawMask:
    """Colours of a mask of places in a palette.

    A place that the file declares to mean nothing has a colour all the same, often the black that GDAL fills palettes with.
    Where another place has that colour, too, it is the place that counts.
    """
    table = _colour_table(colours)
    if nodata is None or nodata not in range(len(table)):
        return RawMask(table[codes], known)
    place = int(nodata)
    alike = (table == table[place]).all(axis=1) & (table.any(axis=1) | (np.arange(len(table)) == 0))
    if np.delete(alike, place).any():
        labelled = codes != place
        return RawMask(table[codes], labelled if known is None else known & labelled)
    red, green, blue = (int(part) for part in table[place])
    return RawMask(table[codes], known, (red, green, blue))


def _valid(source: DatasetReader, *, honour_nodata: bool = True) -> np.ndarray | None:
    """Where a raster's pixels mean something: a mask inside it and a declared nodata value both count; None: everywhere."""
    valid = np.ones(source.shape, dtype=bool)
    flags = source.mask_flag_enums[0]
    if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
        valid &= source.read_masks(1) != 0
    if honour_nodata and any(value is not None for value in source.nodatavals):
        missing = [
            band == value if value is None or value == value else np.isnan(band)
            for band, value in zip(source.read(), source.nodatavals, strict=True)
        ]
        valid &= ~np.all(missing, axis=0)
    return None if valid.all() else valid
