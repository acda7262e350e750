"""The bytes of a TIFF, and where the fields of its first directory lie in them."""

import struct
from typing import Any

TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {1: "B", 3: "H", 4: "I", 12: "d", 16: "Q"}

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR, PREDICTOR = 273, 277, 278, 279, 284, 317
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES, EXTRA_SAMPLES, SAMPLE_FORMAT = 322, 323, 324, 325, 338, 339
PIXEL_SCALE, TIEPOINTS, TRANSFORMATION, GEO_KEYS, GEO_DOUBLES, GEO_ASCII = 33550, 33922, 34264, 34735, 34736, 34737
JPEG_TABLES, RPC_TAG, GDAL_METADATA, GDAL_NODATA, XMP = 347, 50844, 42112, 42113, 700


class Tiff:
    """Bytes of a TIFF, classic or big, and where the fields of its first directory lie."""

    def __init__(self, content: bytes) -> None:
        self.data = bytearray(content)
        self.order = "<" if content[:2] == b"II" else ">"
        self.big = self._get("H", 2) == 43
        word = "Q" if self.big else "I"
        self.ifd_pointer = 8 if self.big else 4
        self.ifd = self._get(word, self.ifd_pointer)
        number = self._get("Q" if self.big else "H", self.ifd)
        first, size = self.ifd + (8 if self.big else 2), 20 if self.big else 12
        self.entries = {self._get("H", first + k * size): first + k * size for k in range(number)}
        self.next_ifd = first + number * size

    def _get(self, code: str, at: int) -> int:
        return int(struct.unpack_from(self.order + code, self.data, at)[0])

    def put(self, code: str, at: int, *values: float) -> None:
        struct.pack_into(f"{self.order}{len(values)}{code}", self.data, at, *values)

    def where(self, tag: int) -> tuple[int, int, int]:
        """Type, count and place of the values of a field."""
        at = self.entries[tag]
        kind = self._get("H", at + 2)
        count = self._get("Q" if self.big else "I", at + 4)
        value = at + (12 if self.big else 8)
        if count * TYPE_BYTES[kind] > (8 if self.big else 4):
            value = self._get("Q" if self.big else "I", value)
        return kind, count, value

    def values(self, tag: int) -> list[Any]:
        kind, count, value = self.where(tag)
        return list(struct.unpack_from(f"{self.order}{count}{_CODES[kind]}", self.data, value))

    def set(self, tag: int, *values: float) -> None:
        """Overwrite the first values of a field; one value of another size changes the field's type."""
        kind, count, value = self.where(tag)
        code = _CODES.get(kind, "B")
        limit = 2 ** (8 * TYPE_BYTES[kind])
        if code != "d" and any(v >= limit for v in values):
            self.put("H", self.entries[tag] + 2, 4)
            self.put("I", self.entries[tag] + (12 if self.big else 8), *(int(v) & 0xFFFFFFFF for v in values[:1]))
            return
        self.put(code, value, *values[:count])

    def text(self, tag: int, text: bytes) -> None:
        """Overwrite a text field, cut or filled with spaces to its length."""
        _, count, value = self.where(tag)
        self.data[value : value + count] = text[: count - 1].ljust(count - 1) + b"\0"


def has(tiff: Tiff, *tags: int) -> list[int]:
    return [tag for tag in tags if tag in tiff.entries]
