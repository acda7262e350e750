"""Broken and malicious GeoTIFFs from a seed, and a worker that drives the real chain over them.

Run as a program (``python hostile_rasters.py --help``) it is the worker: a separate process, so that a crash, a hang
or a flood of memory inside GDAL shows as the death of the worker and not of the test run.
"""

import argparse
import faulthandler
import json
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.rpc import RPC
from rasterio.windows import Window

SIDE_PX, CHIP_PX = 64, 32
BANDS = ("red", "green", "blue")
SCENE_PLACE = Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_500_000.0)
TILE_PLACE = Affine(30.0, 0.0, 499_000.0, 0.0, -30.0, 5_501_000.0)
UTM, TILE_CRS = "EPSG:32632", "EPSG:25832"
KILL_AFTER_SECONDS = 90.0
"""Wall time; what is asserted is processor time, which does not depend on who else runs on the machine."""

Rng = np.random.Generator


# --- Seeds: small valid scenes, one of each kind of file -------------------------------------------------------------


def _pixels(count: int, dtype: str) -> np.ndarray:
    rng = np.random.default_rng(len(dtype) + count)
    row, col = np.indices((SIDE_PX, SIDE_PX))
    base = np.stack([60 + 40 * k + row + col + rng.normal(0, 6, row.shape) for k in range(count)])
    if dtype == "uint8":
        return base.clip(1, 254).astype(np.uint8)
    return (base * 20).astype(dtype)


def _write(path: Path, count: int, dtype: str, options: dict[str, Any], extra: str) -> None:
    pixels = _pixels(count, dtype)
    place: dict[str, Any] = {"crs": CRS.from_user_input(UTM)}
    if extra == "gcps":
        corners = [(r, c, *(SCENE_PLACE @ (c, r))) for r, c in ((0, 0), (0, 64), (64, 0), (64, 64))]
        place["gcps"] = [GroundControlPoint(row=r, col=c, x=x, y=y) for r, c, x, y in corners]
    elif extra != "rpcs":
        place["transform"] = SCENE_PLACE
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", count=count, height=SIDE_PX, width=SIDE_PX, dtype=dtype, **place, **options
        ) as target,
    ):
        target.write(pixels)
        if extra == "mask":
            mask = np.full((SIDE_PX, SIDE_PX), 255, np.uint8)
            mask[40:, 40:] = 0
            target.write_mask(mask)
        if extra == "alpha":
            target.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
            target.write(np.full((SIDE_PX, SIDE_PX), 255, np.uint8), 4)
        if extra == "overviews":
            target.build_overviews([2, 4], Resampling.average)
        if extra == "tags":
            target.update_tags(NOTE="x" * 3000, AREA_OR_POINT="Area")
        if extra == "rpcs":
            line = [1.0] + [0.01 * k for k in range(19)]
            target.rpcs = RPC(
                height_off=100,
                height_scale=500,
                lat_off=49.6,
                lat_scale=0.1,
                long_off=9.0,
                long_scale=0.1,
                line_off=32,
                line_scale=32,
                samp_off=32,
                samp_scale=32,
                err_bias=1,
                err_rand=1,
                line_num_coeff=line,
                line_den_coeff=line,
                samp_num_coeff=line,
                samp_den_coeff=line,
            )


_TILED = {"tiled": True, "blockxsize": 32, "blockysize": 32}
SEEDS: dict[str, tuple[int, str, dict[str, Any], str]] = {
    "stripped": (3, "uint8", {"blockysize": 8}, ""),
    "tiled": (3, "uint8", _TILED, ""),
    "deflate": (3, "uint8", {**_TILED, "compress": "deflate"}, ""),
    "lzw_predictor": (3, "uint16", {**_TILED, "compress": "lzw", "predictor": 2}, ""),
    "zstd": (3, "int16", {"compress": "zstd", "blockysize": 16}, ""),
    "packbits": (3, "uint8", {"compress": "packbits", "blockysize": 16}, ""),
    "lerc": (3, "float32", {**_TILED, "compress": "lerc_deflate"}, ""),
    "jpeg": (3, "uint8", {**_TILED, "compress": "jpeg", "photometric": "ycbcr"}, ""),
    "jpeg_strips": (3, "uint8", {"compress": "jpeg", "blockysize": 16}, ""),
    "bigtiff": (3, "uint16", {**_TILED, "bigtiff": "yes", "compress": "deflate"}, ""),
    "float_predictor": (
        3,
        "float32",
        {**_TILED, "compress": "deflate", "predictor": 3, "nodata": -12345.678901234},
        "",
    ),
    "planar": (3, "uint16", {**_TILED, "interleave": "band", "compress": "deflate", "nodata": 65535}, ""),
    "mask": (3, "uint8", {**_TILED, "compress": "deflate"}, "mask"),
    "alpha": (4, "uint8", {**_TILED, "compress": "deflate"}, "alpha"),
    "overviews": (3, "uint8", {**_TILED, "compress": "deflate"}, "overviews"),
    "tags": (3, "uint8", {"blockysize": 64}, "tags"),
    "gcps": (3, "uint8", {**_TILED}, "gcps"),
    "rpcs": (3, "uint8", {**_TILED}, "rpcs"),
    "big_endian": (3, "uint16", {"endianness": "big", "blockysize": 16}, ""),
    "esri_citation": (3, "uint8", {"geotiff_keys_flavor": "esri_pe", "blockysize": 16}, ""),
}


def make_seeds(folder: Path) -> dict[str, bytes]:
    """Bytes of every seed by name."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = {}
    for name, (count, dtype, options, extra) in SEEDS.items():
        path = folder / f"{name}.tif"
        _write(path, count, dtype, options, extra)
        seeds[name] = path.read_bytes()
        for left in folder.iterdir():
            left.unlink()
    return seeds


# --- Mutations ------------------------------------------------------------------------------------------------------

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
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
        if count * _TYPE_BYTES[kind] > (8 if self.big else 4):
            value = self._get("Q" if self.big else "I", value)
        return kind, count, value

    def values(self, tag: int) -> list[Any]:
        kind, count, value = self.where(tag)
        return list(struct.unpack_from(f"{self.order}{count}{_CODES[kind]}", self.data, value))

    def set(self, tag: int, *values: float) -> None:
        """Overwrite the first values of a field; one value of another size changes the field's type."""
        kind, count, value = self.where(tag)
        code = _CODES.get(kind, "B")
        limit = 2 ** (8 * _TYPE_BYTES[kind])
        if code != "d" and any(v >= limit for v in values):
            self.put("H", self.entries[tag] + 2, 4)
            self.put("I", self.entries[tag] + (12 if self.big else 8), *(int(v) & 0xFFFFFFFF for v in values[:1]))
            return
        self.put(code, value, *values[:count])

    def text(self, tag: int, text: bytes) -> None:
        """Overwrite a text field, cut or filled with spaces to its length."""
        _, count, value = self.where(tag)
        self.data[value : value + count] = text[: count - 1].ljust(count - 1) + b"\0"


def _has(tiff: Tiff, *tags: int) -> list[int]:
    return [tag for tag in tags if tag in tiff.entries]


def truncate(tiff: Tiff, rng: Rng) -> str:
    end = int(rng.integers(0, len(tiff.data)))
    del tiff.data[end:]
    return f"cut at {end}"


def flip_anywhere(tiff: Tiff, rng: Rng) -> str:
    places = [int(p) for p in rng.integers(0, len(tiff.data), int(rng.integers(1, 9)))]
    for at in places:
        tiff.data[at] ^= 1 << int(rng.integers(8))
    return f"bits flipped in bytes {places}"


def flip_directory(tiff: Tiff, rng: Rng) -> str:
    places = [int(p) for p in rng.integers(tiff.ifd, tiff.next_ifd + 4, int(rng.integers(1, 4)))]
    for at in places:
        tiff.data[at] ^= 1 << int(rng.integers(8))
    return f"bits flipped in the directory at {places}"


def flip_fields(tiff: Tiff, rng: Rng) -> str:
    """Flip bits in the values of one field, georeference above all."""
    tag = int(rng.choice(_has(tiff, PIXEL_SCALE, TIEPOINTS, GEO_KEYS, GEO_DOUBLES, GEO_ASCII, RPC_TAG, JPEG_TABLES)))
    kind, count, value = tiff.where(tag)
    at = value + int(rng.integers(0, count * _TYPE_BYTES[kind]))
    tiff.data[at] ^= 1 << int(rng.integers(8))
    return f"bit flipped in tag {tag} at {at}"


def flip_data(tiff: Tiff, rng: Rng) -> str:
    (offsets_tag,) = _has(tiff, STRIP_OFFSETS, TILE_OFFSETS)
    (bytes_tag,) = _has(tiff, STRIP_BYTES, TILE_BYTES)
    offsets, sizes = tiff.values(offsets_tag), tiff.values(bytes_tag)
    block = int(rng.integers(len(offsets)))
    places = [offsets[block] + int(p) for p in rng.integers(0, sizes[block], 3)]
    for at in places:
        tiff.data[at] ^= 1 << int(rng.integers(8))
    return f"bits flipped in block {block}"


def noise(tiff: Tiff, rng: Rng) -> str:
    start = int(rng.integers(8, len(tiff.data)))
    length = int(rng.integers(1, 400))
    tiff.data[start : start + length] = rng.bytes(len(tiff.data[start : start + length]))
    return f"noise at {start}"


_HOSTILE: dict[int, tuple[float, ...]] = {
    WIDTH: (0, 1, 31, 65, 60_000, 2**20, 2**31, 2**31 - 1, 2**32 - 1),
    LENGTH: (0, 1, 31, 65, 60_000, 2**20, 2**31, 2**31 - 1, 2**32 - 1),
    BITS: (0, 1, 3, 7, 12, 13, 17, 24, 33, 64, 128, 65535),
    COMPRESSION: (0, 1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34712, 34887, 34925, 50000, 50001, 50002, 9999, 65535),
    PHOTOMETRIC: (0, 1, 2, 3, 4, 5, 6, 8, 32803, 65535),
    SAMPLES: (0, 1, 2, 4, 5, 300, 5000, 65535),
    ROWS_PER_STRIP: (0, 1, 3, 65, 60_000, 2**31, 2**32 - 1),
    PLANAR: (0, 1, 2, 3, 65535),
    PREDICTOR: (0, 1, 2, 3, 4, 65535),
    TILE_WIDTH: (0, 1, 15, 16, 48, 64, 4096, 65520, 2**20, 2**31),
    TILE_LENGTH: (0, 1, 15, 16, 48, 64, 4096, 65520, 2**20, 2**31),
    STRIP_OFFSETS: (0, 1, 8, 2**31, 2**32 - 1),
    TILE_OFFSETS: (0, 1, 8, 2**31, 2**32 - 1),
    STRIP_BYTES: (0, 1, 7, 10**6, 2**31, 2**32 - 1),
    TILE_BYTES: (0, 1, 7, 10**6, 2**31, 2**32 - 1),
    SAMPLE_FORMAT: (0, 1, 2, 3, 4, 5, 6, 65535),
    EXTRA_SAMPLES: (0, 1, 2, 3, 65535),
}


def rewrite_field(tiff: Tiff, rng: Rng) -> str:
    tag = int(rng.choice(_has(tiff, *_HOSTILE)))
    value = _HOSTILE[tag][int(rng.integers(len(_HOSTILE[tag])))]
    _, count, _ = tiff.where(tag)
    whole = tag in (BITS, SAMPLE_FORMAT) or bool(rng.integers(2))
    values = [value] * count if whole else [value]
    tiff.set(tag, *values)
    return f"tag {tag} = {value} x {len(values)}"


def absurd_size(tiff: Tiff, rng: Rng) -> str:
    width, length = (int(v) for v in rng.choice([60_000, 2**17, 2**20, 2**31 - 1, 2**31, 64], 2))
    tiff.set(WIDTH, width)
    tiff.set(LENGTH, length)
    if ROWS_PER_STRIP in tiff.entries and rng.integers(2):
        tiff.set(ROWS_PER_STRIP, length)
    if TILE_WIDTH in tiff.entries and rng.integers(2):
        tiff.set(TILE_WIDTH, 65520)
        tiff.set(TILE_LENGTH, int(rng.choice([32, 65520])))
    return f"{width} x {length}"


def field_count(tiff: Tiff, rng: Rng) -> str:
    tag = int(rng.choice(list(tiff.entries)))
    count = int(rng.choice([0, 1, 2**16, 2**28, 2**31 - 1, 2**32 - 1]))
    tiff.put("Q" if tiff.big else "I", tiff.entries[tag] + 4, count)
    return f"count of tag {tag} = {count}"


def field_type(tiff: Tiff, rng: Rng) -> str:
    tag, kind = int(rng.choice(list(tiff.entries))), int(rng.choice([0, 1, 2, 5, 7, 11, 12, 13, 18, 99]))
    tiff.put("H", tiff.entries[tag] + 2, kind)
    return f"type of tag {tag} = {kind}"


def field_offset(tiff: Tiff, rng: Rng) -> str:
    tag = int(rng.choice(list(tiff.entries)))
    value = int(rng.choice([0, 4, tiff.ifd, len(tiff.data) - 1, len(tiff.data), 2**31, 2**32 - 1]))
    tiff.put("Q" if tiff.big else "I", tiff.entries[tag] + (12 if tiff.big else 8), value)
    return f"value of tag {tag} = {value}"


def field_number(tiff: Tiff, rng: Rng) -> str:
    """Turn one field into another, or write it twice."""
    tag, other = int(rng.choice(list(tiff.entries))), int(rng.choice([*tiff.entries, 0, 330, 513, 34665, 65535]))
    tiff.put("H", tiff.entries[tag], other)
    return f"tag {tag} became {other}"


def cyclic_directories(tiff: Tiff, rng: Rng) -> str:
    target = int(rng.choice([tiff.ifd, 8, tiff.ifd + 12, len(tiff.data) + 100]))
    tiff.put("Q" if tiff.big else "I", tiff.next_ifd, target)
    return f"next directory = {target} (this one: {tiff.ifd})"


def first_directory(tiff: Tiff, rng: Rng) -> str:
    target = int(rng.choice([0, 1, 2, 8, len(tiff.data) - 2, len(tiff.data), 2**32 - 1]))
    tiff.put("Q" if tiff.big else "I", tiff.ifd_pointer, target)
    return f"first directory = {target}"


def many_entries(tiff: Tiff, rng: Rng) -> str:
    number = int(rng.choice([0, 1, 200, 65535]))
    tiff.put("Q" if tiff.big else "H", tiff.ifd, number)
    return f"{number} entries"


_NUMBERS = (np.nan, np.inf, -np.inf, 0.0, 1e300, -1e300, 1e-300, 1e-12, 1e12, -10.0, 1.0, 5.0e6, 2e7, 360.0)


def place_numbers(tiff: Tiff, rng: Rng) -> str:
    """Georeference with NaN, infinity, zero or enormous numbers."""
    tag = int(rng.choice(_has(tiff, PIXEL_SCALE, TIEPOINTS) or [GEO_KEYS]))
    if tag == GEO_KEYS:
        return geo_keys(tiff, rng)
    values = tiff.values(tag)
    index = int(rng.integers(len(values)))
    values[index] = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
    tiff.set(tag, *values)
    return f"tag {tag}[{index}] = {values[index]}"


def place_matrix(tiff: Tiff, rng: Rng) -> str:
    """Pixel scale and tie points turned into a matrix of any numbers."""
    if PIXEL_SCALE not in tiff.entries:
        return geo_keys(tiff, rng)
    matrix = np.array([10.0, 0, 0, 5e5, 0, -10.0, 0, 5.5e6, 0, 0, 0, 0, 0, 0, 0, 1])
    for index in rng.choice([0, 1, 3, 4, 5, 7], int(rng.integers(1, 4)), replace=False):
        matrix[index] = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
    at = tiff.entries[TIEPOINTS]
    tiff.put("H", at, TRANSFORMATION)
    tiff.put("Q" if tiff.big else "I", at + 4, 16)
    tiff.put("Q" if tiff.big else "I", at + (12 if tiff.big else 8), len(tiff.data))
    tiff.data += struct.pack(f"{tiff.order}16d", *matrix)
    tiff.put("H", tiff.entries[PIXEL_SCALE], 65000)
    return f"matrix {matrix[[0, 1, 3, 4, 5, 7]].tolist()}"


def geo_keys(tiff: Tiff, rng: Rng) -> str:
    keys = tiff.values(GEO_KEYS)
    if rng.integers(2):
        index = int(rng.integers(len(keys)))
        keys[index] = int(
            rng.choice([0, 1, 2, 3, 32767, 65535, 4326, 4978, 3857, 2000, 32660, 32761, 5773, 104905]) % 65536
        )
        done = f"geo key word {index} = {keys[index]}"
    else:
        # The code of the CRS itself: other, strange or no such systems.
        index = next((k + 3 for k in range(4, len(keys), 4) if keys[k] == 3072), len(keys) - 1)
        keys[index] = int(rng.choice([4326, 4978, 3857, 27700, 3035, 54009, 32761, 2056, 5514, 1, 32767, 31700, 6677]))
        done = f"CRS code = {keys[index]}"
    tiff.set(GEO_KEYS, *keys)
    return done


_TEXTS = (
    b"nan(0x7ff8000000000000)",
    b"1e999",
    b"-1e999",
    b"abc",
    b"",
    b"\xff\xfe\x00\x01",
    b"0x1F",
    b"60",
    b"1,5",
    b"%n%s%n",
)


def nodata_text(tiff: Tiff, rng: Rng) -> str:
    if GDAL_NODATA not in tiff.entries:
        return rewrite_field(tiff, rng)
    text = _TEXTS[int(rng.integers(len(_TEXTS)))]
    tiff.text(GDAL_NODATA, text)
    return f"no data = {text!r}"


def _billion_laughs() -> bytes:
    lines = ['<!ENTITY a0 "ha">'] + [f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 12)]
    return f"<?xml version='1.0'?><!DOCTYPE GDALMetadata [{''.join(lines)}]><GDALMetadata>&a11;</GDALMetadata>".encode()


_XML = (
    _billion_laughs(),
    b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><GDALMetadata><Item name="a">&e;</Item></GDALMetadata>',
    b"<GDALMetadata>" + b"<Item>" * 400,
    b'<GDALMetadata><Item name="OFFSET" sample="0" role="offset">nan</Item></GDALMetadata>',
    b'<GDALMetadata><Item name="a" sample="4294967295" role="scale">1</Item></GDALMetadata>',
    b"<GDALMetadata><Item name='\xff\xfe' domain='\xc3\x28'>\x00\x01</Item></GDALMetadata>",
)


def metadata_text(tiff: Tiff, rng: Rng) -> str:
    """Hostile XML where GDAL keeps its metadata, short or 10 MB long; or the same as XMP."""
    at = tiff.entries[int(rng.choice(_has(tiff, GDAL_METADATA) or _has(tiff, EXTRA_SAMPLES, PHOTOMETRIC)))]
    which = int(rng.integers(len(_XML) + 1))
    text = _XML[which] if which < len(_XML) else b"<GDALMetadata>" + b"<Item name='a'>b</Item>" * 440_000
    tag = int(rng.choice([GDAL_METADATA, GDAL_METADATA, XMP]))
    tiff.put("H", at, tag)
    tiff.put("H", at + 2, 2 if tag == GDAL_METADATA else 7)
    tiff.put("Q" if tiff.big else "I", at + 4, len(text) + 1)
    tiff.put("Q" if tiff.big else "I", at + (12 if tiff.big else 8), len(tiff.data))
    tiff.data += text + b"\0"
    return f"XML {which} of {len(text)} bytes as tag {tag}"


_CITATIONS = (
    b'ESRI PE String = GEOGCS["x",DATUM["D",SPHEROID["s",6378137,298]],PRIMEM["G",0],UNIT["d",0.01745],'
    b'EXTENSION["PROJ4","+proj=longlat +nadgrids=http://127.0.0.1:9/a.gsb +no_defs"]]|',
    b'ESRI PE String = PROJCS["x",GEOGCS["x",DATUM["D",SPHEROID["s",0,0]],PRIMEM["G",0],UNIT["d",0]]]|',
    b"ESRI PE String = " + b"PROJCS[" * 60 + b"|",
    b"http://127.0.0.1:9/crs.wkt|",
    b"\xff\xfe\x00|%n%n%n|",
)


def citation(tiff: Tiff, rng: Rng) -> str:
    text = _CITATIONS[int(rng.integers(len(_CITATIONS)))]
    tiff.text(GEO_ASCII, text)
    return f"citation {text[:40]!r}"


_VRT = (
    '<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32632</SRS><GeoTransform>500000,10,0,5500000,0,-10</GeoTransform>'
    + "".join(
        f'<VRTRasterBand dataType="Byte" band="{k}"><SimpleSource><SourceFilename relativeToVRT="1">good.tif</SourceFilename>'
        f"<SourceBand>{k}</SourceBand></SimpleSource></VRTRasterBand>"
        for k in (1, 2, 3)
    )
    + "</VRTDataset>"
)
_OTHERS = (
    _VRT.encode(),
    b"",
    b"\0" * 4096,
    b"II*\0",
    b"MM\0*\0\0\0\x08",
    b"II+\0\x08\0\0\0" + b"\xff" * 8,
    b"<GDAL_WMS></GDAL_WMS>",
    b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
    b"PK\x03\x04" + b"\0" * 64,
    b"/vsicurl/http://127.0.0.1:9/a.tif",
    b"SIMPLE  =  T" + b" " * 2868,
)


def other_format(tiff: Tiff, rng: Rng) -> str:
    which = int(rng.integers(len(_OTHERS)))
    tiff.data[:] = _OTHERS[which]
    return f"other content {which}"


Mutation = Callable[[Tiff, Rng], str]
MUTATIONS: tuple[Mutation, ...] = (
    truncate,
    flip_anywhere,
    flip_directory,
    flip_fields,
    flip_data,
    noise,
    rewrite_field,
    absurd_size,
    field_count,
    field_type,
    field_offset,
    field_number,
    cyclic_directories,
    first_directory,
    many_entries,
    place_numbers,
    place_matrix,
    geo_keys,
    nodata_text,
    metadata_text,
    citation,
    other_format,
    rewrite_field,
    flip_fields,
    truncate,
)


def mutate(seeds: dict[str, bytes], seed: int, index: int) -> tuple[str, bytes]:
    """Mutation ``index`` of ``seed``: what was done, and the file's bytes."""
    rng = np.random.default_rng([seed, index])
    name = list(seeds)[index % len(seeds)]
    mutation = MUTATIONS[(index // len(seeds) + index) % len(MUTATIONS)]
    tiff = Tiff(seeds[name])
    done = mutation(tiff, rng)
    return f"{name}: {mutation.__name__}: {done}", bytes(tiff.data)


# --- The worker: the real chain over mutated files, and independent checks of what comes out --------------------------


class Watch:
    """A reporter that times each unit of progress and kills the process when one takes too long."""

    def __init__(self, log: Path) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._log = log.open("w")

    def info(self, message: str) -> None:
        """Nothing to tell."""

    def warning(self, message: str) -> None:
        """Refusals are read from the files."""

    def metrics(self, values: Any, step: int) -> None:
        """There are none."""

    def arm(self, what: str) -> None:
        """So much longer, then the process ends with a traceback, even inside GDAL."""
        self._log.write(what + "\n")
        self._log.flush()
        faulthandler.dump_traceback_later(KILL_AFTER_SECONDS, exit=True)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        times = self.seconds[description] = [time.process_time()]
        self.arm(f"{description} 0")

        def advance(units: int) -> None:
            times.append(time.process_time())
            self.arm(f"{description} {len(times) - 1}")

        yield advance
        faulthandler.cancel_dump_traceback_later()


def memory_mib(field: str = "VmHWM") -> float:
    """Peak (or, with VmRSS, present) resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(field)


def write_good_scene(path: Path) -> None:
    _write(path, 3, "uint8", {**_TILED, "compress": "deflate"}, "")


def write_land_cover(path: Path) -> None:
    """100 x 100 cells of 30 m around the scenes, in patches of five cells."""
    rng = np.random.default_rng(5)
    codes = np.array([10, 20, 30, 40, 50, 60, 80, 90], np.uint8)[rng.integers(0, 8, (20, 20))]
    codes = codes.repeat(5, axis=0).repeat(5, axis=1)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=1,
        height=100,
        width=100,
        dtype="uint8",
        crs=CRS.from_user_input(TILE_CRS),
        transform=TILE_PLACE,
        nodata=0,
        tiled=True,
        blockxsize=64,
        blockysize=64,
        compress="deflate",
    ) as target:
        target.write(codes, 1)


def run_chain(scenes: Path, tiles: Path, store: Path, watch: Watch) -> None:
    """Inventory, chips, land cover and proportions over one folder of scenes."""
    from geokr_core.chips.config import ChipsConfig
    from geokr_core.chips.cut import cut_chips
    from geokr_core.land_cover.config import LandCoverConfig
    from geokr_core.land_cover.tile_index import index_products
    from geokr_core.proportions.config import ProportionsConfig
    from geokr_core.proportions.count import count_proportions
    from geokr_core.scenes.config import ScenesConfig
    from geokr_core.scenes.inventory import take_inventory

    collection = {"name": "hostile", "files": "*.tif", "bands": BANDS, "land_cover": "cover"}
    take_inventory(ScenesConfig(folder=scenes, collections=(collection,)), store / "scenes", watch)
    config = ChipsConfig(size_px=CHIP_PX, stride_px=CHIP_PX, bands=BANDS, min_valid_fraction=0.5)
    cut_chips(config, scenes, store / "scenes", store / "chips", watch)
    product = {"name": "cover", "files": "*.tif", "legend": "globeland30", "year": 2020}
    index_products(LandCoverConfig(folder=tiles, products=(product,)), store / "cover", watch)
    count_proportions(ProportionsConfig(), tiles, store / "cover", store / "chips", store / "proportions", watch)


def outcome(store: Path, scene_id: str) -> tuple[str, str]:
    """How far a scene came, and the reason written down where it was refused."""
    import pandas as pd

    inventory = pd.read_parquet(store / "scenes" / "inventory.parquet").set_index("scene_id")
    if inventory["status"][scene_id] == "quarantined":
        return "inventory", str(inventory["reason"][scene_id])
    for step in ("chips", "proportions"):
        record = store / step / f"{scene_id}.quarantine.json"
        if record.exists():
            return step, str(json.loads(record.read_text())["reason"])
    return "labelled", ""


def check_scene(scenes: Path, tiles: Path, store: Path, scene_id: str, alone: Path) -> list[str]:
    """Compare chips and labels with an independent reading of the same file; a list of what differs.

    The file is copied into a separate folder (``alone``), read as a whole by plain rasterio, and its land cover is
    counted by looking up many points, with nothing of the code under test but the stretch that the rows record.
    """
    import pandas as pd

    from geokr_core.chips.read import read_rows, reread
    from geokr_core.scenes.inventory import usable_scenes

    wrong: list[str] = []
    copy = alone / "alone.tif"
    copy.write_bytes((scenes / f"{scene_id}.tif").read_bytes())
    rows = read_rows(store / "chips", scene_id)
    images = np.load(store / "chips" / f"{scene_id}.npy")
    scene = usable_scenes(store / "scenes")[scene_id]
    with rasterio.open(copy, driver="GTiff") as source:
        pixels = source.read([1, 2, 3])
        is_mask = not (source.count == 3 and ColorInterp.alpha in source.colorinterp)
        valid = (source.read_masks([1, 2, 3]) > 0).all(axis=0) if is_mask else np.ones(source.shape, bool)
        transform, crs = source.transform, source.crs
    valid &= np.isfinite(pixels).all(axis=0)
    for index, row in enumerate(rows.to_dict("records")):
        top, left = int(row["pixel_row"]), int(row["pixel_col"])
        part = np.s_[top : top + CHIP_PX, left : left + CHIP_PX]
        low, high = (np.asarray(row[k], np.float32)[:, None, None] for k in ("stretch_low", "stretch_high"))
        with np.errstate(all="ignore"):
            values = np.nan_to_num(pixels[(slice(None), *part)]).astype(np.float32)
            expected = np.rint(((values - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)
        expected[:, ~valid[part]] = 0
        if not (images[index] == expected.transpose(1, 2, 0)).all():
            wrong.append(f"chip {index}: pixels differ from an independent reading")
        if not (reread(row, scenes, scene) == images[index]).all():
            wrong.append(f"chip {index}: pixels differ from reading by place")
        place = np.array(tuple(transform @ Affine.translation(left, top))[:6])
        if not np.allclose(row["transform"], place, rtol=1e-12, atol=0):
            wrong.append(f"chip {index}: {list(row['transform'])} is not its place {place.tolist()}")
        if CRS.from_wkt(row["crs_wkt"]) != CRS.from_wkt(crs.to_wkt()):
            wrong.append(f"chip {index}: another CRS than the file's")
    path = store / "proportions" / f"{scene_id}.parquet"
    if path.exists():
        wrong += check_labels(pd.read_parquet(path), rows, crs, tiles)
    return wrong


def check_labels(labels: Any, rows: Any, crs: CRS, tiles: Path) -> list[str]:
    """Compare proportions with the share of 48 x 48 points of each chip in each class."""
    import pyproj

    (tile,) = tiles.glob("*.tif")
    with rasterio.open(tile, driver="GTiff") as source:
        inverse, target, shape = ~source.transform, source.crs, source.shape
    carry = pyproj.Transformer.from_crs(crs.to_wkt(), target.to_wkt(), always_xy=True)
    steps = (np.arange(48) + 0.5) / 48 * CHIP_PX
    col, line = (v.ravel() for v in np.meshgrid(steps, steps))
    names = (
        "cultivated_land",
        "forest",
        "grassland",
        "shrubland",
        "wetland",
        "water",
        "artificial_surfaces",
        "bareland",
    )
    wrong = []
    for index in range(len(rows)):
        a, b, c, d, e, f = rows["transform"].iloc[index]
        x, y = carry.transform(a * col + b * line + c, d * col + e * line + f)
        tile_col, tile_row = inverse @ (np.asarray(x), np.asarray(y))
        inside = (tile_col >= 0) & (tile_row >= 0) & (tile_col < shape[1]) & (tile_row < shape[0])
        found = _codes_at(tile, tile_row[inside].astype(int), tile_col[inside].astype(int))
        label = labels.iloc[index]
        known = label["known_fraction"]
        total = sum(label[f"fraction_{n}"] for n in names)
        if not (np.isfinite(known) and (abs(total - 1.0) < 1e-6 or (total == 0.0 and known < 1e-6))):
            wrong.append(f"label {index}: fractions sum to {total}, known {known}")
        for name, code in zip(names, (10, 20, 30, 40, 50, 60, 80, 90), strict=True):
            share = float((found == code).sum()) / len(col)
            if not abs(share - label[f"fraction_{name}"] * known) <= 0.04:
                wrong.append(f"label {index}: {name} {label[f'fraction_{name}'] * known:.3f}, by points {share:.3f}")
    return wrong


def _codes_at(tile: Path, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Codes of some cells; blocks that hold none of them may be damaged."""
    if not len(rows):
        return np.zeros(0, np.uint8)
    top, left = int(rows.min()), int(cols.min())
    part = Window(left, top, int(cols.max()) - left + 1, int(rows.max()) - top + 1)
    with rasterio.open(tile, driver="GTiff") as source:
        return np.asarray(source.read(1, window=part)[rows - top, cols - left])


def good_digest(store: Path) -> dict[str, str]:
    """What became of the good scene, byte by byte."""
    from geokr_core.step.digests import file_md5

    return {f"{step}.{end}": file_md5(store / step / f"good.{end}") for step, end in _GOOD_FILES}


_GOOD_FILES = (("chips", "npy"), ("chips", "parquet"), ("proportions", "parquet"))


def work(folder: Path, seed: int, first: int, last: int, batch: int) -> dict[str, Any]:
    """Run the chain over mutations ``first`` to ``last`` of ``seed``, ``batch`` at a time beside one good scene."""
    seeds = make_seeds(folder / "seeds")
    watch = Watch(folder / "watch.log")
    tiles, alone = folder / "tiles", folder / "alone"
    for place in (tiles, alone):
        place.mkdir(parents=True)
    write_land_cover(tiles / "tile.tif")
    clean = folder / "clean"
    clean.mkdir()
    write_good_scene(clean / "good.tif")
    run_chain(clean, tiles, folder / "clean_store", watch)
    expected, base = good_digest(folder / "clean_store"), memory_mib()
    cases: list[dict[str, Any]] = []
    for start in range(first, last, batch):
        scenes, store = folder / f"in{start}", folder / f"store{start}"
        scenes.mkdir()
        write_good_scene(scenes / "good.tif")
        made = {}
        for index in range(start, min(start + batch, last)):
            made[f"m{index:05d}"], content = mutate(seeds, seed, index)
            (scenes / f"m{index:05d}.tif").write_bytes(content)
        run_chain(scenes, tiles, store, watch)
        if good_digest(store) != expected:
            raise AssertionError(f"the good scene changed beside mutations {start} to {start + batch}")
        slowest = _slowest(watch, store)
        for scene_id, what in made.items():
            end, reason = outcome(store, scene_id)
            watch.arm(f"check {scene_id}")
            wrong = check_scene(scenes, tiles, store, scene_id, alone) if end in ("labelled", "proportions") else []
            cases.append(
                {
                    "id": scene_id,
                    "what": what,
                    "end": end,
                    "reason": reason,
                    "wrong": wrong,
                    "seconds": slowest[scene_id],
                }
            )
        faulthandler.cancel_dump_traceback_later()
    return {"cases": cases, "base_mib": base, "peak_mib": memory_mib()}


def _slowest(watch: Watch, store: Path) -> dict[str, float]:
    """The longest that any step took over each scene."""
    import pandas as pd

    inventory = pd.read_parquet(store / "scenes" / "inventory.parquet")
    usable = inventory["scene_id"][inventory["status"] == "usable"]
    cut = [s for s in usable if (store / "chips" / f"{s}.parquet").exists()]
    result = dict.fromkeys(inventory["scene_id"], 0.0)
    for step, scene_ids in (("scenes", inventory["scene_id"]), ("chips", usable), ("proportions", sorted(cut))):
        for scene_id, seconds in zip(scene_ids, np.diff(watch.seconds[step]), strict=True):
            result[scene_id] = max(result[scene_id], float(seconds))
    return result


def main() -> None:
    """Parse the worker's arguments and run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=100)
    parser.add_argument("--batch", type=int, default=50)
    options = parser.parse_args()
    faulthandler.enable()
    # A guard of the machine, far above what is asserted: a flood must end this process and no other.
    resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
    options.folder.mkdir(parents=True, exist_ok=True)
    result = work(options.folder, options.seed, options.first, options.last, options.batch)
    (options.folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
