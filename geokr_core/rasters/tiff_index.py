"""The list of strips or tiles in a TIFF's first directory, and whether it fits the size that the directory declares.

GDAL only warns where the two disagree, and then puts pixels in places where they do not belong: with another width the
second row of tiles is shown to the right of the first. Pixels are not read here.

Source of tags and types: TIFF Revision 6.0, sections 2, 8 and 15; BigTIFF as in libtiff's design note.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR = 256, 257, 258, 259, 262, 277, 284
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_SIZES = 273, 278, 279
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_SIZES = 322, 323, 324, 325
_WANTED = {
    _WIDTH,
    _LENGTH,
    _BITS,
    _COMPRESSION,
    _PHOTOMETRIC,
    _SAMPLES,
    _PLANAR,
    _STRIP_OFFSETS,
    _ROWS_PER_STRIP,
    _STRIP_SIZES,
    _TILE_WIDTH,
    _TILE_LENGTH,
    _TILE_OFFSETS,
    _TILE_SIZES,
}

_NUMPY_TYPES = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}

_UNCOMPRESSED, _YCBCR = 1, 6

_PADDING_BYTES = 16
"""Some writers round the length of a strip up."""


class TiffIndexError(ValueError):
    """The directory is damaged, or contradicts itself."""


@dataclass(frozen=True)
class TiffIndex:
    """Strips or tiles of the first directory.

    Attributes:
        num_blocks: how many there are, planes of separate bands counted each.
        num_stored: how many of them hold bytes; the others are sparse.
    """

    num_blocks: int
    num_stored: int


def read_index(path: Path) -> TiffIndex:
    """Read the list and hold it against the declared size.

    Raises:
        TiffIndexError: the list is too short or too long for the declared size, is cut off, or the strips or tiles of
            uncompressed pixels are not as long as their pixels.
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            fields = _fields(stream, path.stat().st_size)
            return _checked(fields)
    except (struct.error, KeyError, IndexError, ZeroDivisionError) as error:
        raise TiffIndexError("its directory is damaged; fetch the file again") from error


def _fields(stream: BinaryIO, size: int) -> dict[int, np.ndarray]:
    head = stream.read(16)
    order = {b"II": "<", b"MM": ">"}[head[:2]]
    big = struct.unpack(order + "H", head[2:4])[0] == 43
    word, entry = ("Q", "HHQ8s") if big else ("I", "HHI4s")
    # Beyond the end nothing is read, and the list is found too short.
    stream.seek(min(struct.unpack(order + word, head[8:16] if big else head[4:8])[0], size))
    number = struct.unpack(order + ("Q" if big else "H"), stream.read(8 if big else 2))[0]
    length = struct.calcsize(order + entry)
    if number * length > size:
        raise TiffIndexError(
            f"its directory lists {number} fields, more than its {size} bytes can hold; fetch it again"
        )
    entries = stream.read(number * length)
    fields: dict[int, np.ndarray] = {}
    for tag, kind, count, value in struct.iter_unpack(order + entry, entries):
        if tag not in _WANTED:
            continue
        if tag in fields:
            raise TiffIndexError(f"its directory holds field {tag} twice; write it anew, e.g. with gdal_translate")
        dtype = np.dtype(order + _NUMPY_TYPES[kind])
        if count * dtype.itemsize > size:
            raise TiffIndexError(
                f"field {tag} lists {count} numbers, more than its {size} bytes can hold; fetch it again"
            )
        if count * dtype.itemsize > len(value):
            stream.seek(min(struct.unpack(order + word, value)[0], size))
            value = stream.read(count * dtype.itemsize)
        fields[tag] = np.frombuffer(value, dtype, count) if len(value) >= count * dtype.itemsize else np.empty(0, dtype)
    return fields


def _checked(fields: dict[int, np.ndarray]) -> TiffIndex:
    width, length = int(fields[_WIDTH][0]), int(fields[_LENGTH][0])
    samples = int(fields[_SAMPLES][0]) if _SAMPLES in fields else 1
    planes = samples if _PLANAR in fields and int(fields[_PLANAR][0]) == 2 else 1
    tiled = _TILE_WIDTH in fields
    columns = int(fields[_TILE_WIDTH][0]) if tiled else width
    rows = int(fields[_TILE_LENGTH][0]) if tiled else _rows_per_strip(fields, length)
    down = math.ceil(length / rows)
    expected = math.ceil(width / columns) * down * planes
    offsets = fields.get(_TILE_OFFSETS, fields.get(_STRIP_OFFSETS))
    sizes = fields.get(_TILE_SIZES, fields.get(_STRIP_SIZES))
    what = "tiles" if tiled else "strips"
    for listed in (offsets, sizes):
        if listed is not None and len(listed) != expected:
            raise TiffIndexError(
                f"{length} x {width} pixels make {expected} {what}, but {len(listed)} are listed: the header is damaged. "
                "Fetch the file again."
            )
    if sizes is None:
        return TiffIndex(expected, expected)
    if not _is_as_long_as_its_pixels(fields, sizes, samples // planes, (rows, columns, down), length, tiled):
        raise TiffIndexError(
            f"its {what} are not as long as {rows} x {columns} uncompressed pixels: the header is damaged. Fetch the file again."
        )
    return TiffIndex(expected, int((sizes > 0).sum()))


def _rows_per_strip(fields: dict[int, np.ndarray], length: int) -> int:
    return min(int(fields[_ROWS_PER_STRIP][0]), length) if _ROWS_PER_STRIP in fields else length


def _is_as_long_as_its_pixels(
    fields: dict[int, np.ndarray],
    sizes: np.ndarray,
    samples: int,
    block: tuple[int, int, int],
    length: int,
    tiled: bool,
) -> bool:
    compression = int(fields[_COMPRESSION][0]) if _COMPRESSION in fields else _UNCOMPRESSED
    photometric = int(fields[_PHOTOMETRIC][0]) if _PHOTOMETRIC in fields else 0
    if compression != _UNCOMPRESSED or photometric == _YCBCR:
        return True
    rows, columns, down = block
    bits = int(fields[_BITS][0]) if _BITS in fields else 1
    line = math.ceil(columns * samples * bits / 8)
    least = np.full(len(sizes), rows * line)
    if not tiled:
        least[down - 1 :: down] = (length - (down - 1) * rows) * line
    stored = sizes.astype(np.float64)
    return bool(((stored == 0) | ((stored >= least) & (stored <= rows * line + _PADDING_BYTES))).all())
