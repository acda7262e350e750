"""What can be wrong with a GeoTIFF: each mutation damages one at random, from a seed."""

import struct
from collections.abc import Callable

import numpy as np

from tests.rasters.hostile.tiff_fields import (
    BITS,
    COMPRESSION,
    EXTRA_SAMPLES,
    GDAL_METADATA,
    GDAL_NODATA,
    GEO_ASCII,
    GEO_DOUBLES,
    GEO_KEYS,
    JPEG_TABLES,
    LENGTH,
    PHOTOMETRIC,
    PIXEL_SCALE,
    PLANAR,
    PREDICTOR,
    ROWS_PER_STRIP,
    RPC_TAG,
    SAMPLE_FORMAT,
    SAMPLES,
    STRIP_BYTES,
    STRIP_OFFSETS,
    TIEPOINTS,
    TILE_BYTES,
    TILE_LENGTH,
    TILE_OFFSETS,
    TILE_WIDTH,
    TRANSFORMATION,
    TYPE_BYTES,
    WIDTH,
    XMP,
    Tiff,
    has,
)

Rng = np.random.Generator


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
    tag = int(rng.choice(has(tiff, PIXEL_SCALE, TIEPOINTS, GEO_KEYS, GEO_DOUBLES, GEO_ASCII, RPC_TAG, JPEG_TABLES)))
    kind, count, value = tiff.where(tag)
    at = value + int(rng.integers(0, count * TYPE_BYTES[kind]))
    tiff.data[at] ^= 1 << int(rng.integers(8))
    return f"bit flipped in tag {tag} at {at}"


def flip_data(tiff: Tiff, rng: Rng) -> str:
    (offsets_tag,) = has(tiff, STRIP_OFFSETS, TILE_OFFSETS)
    (bytes_tag,) = has(tiff, STRIP_BYTES, TILE_BYTES)
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
    tag = int(rng.choice(has(tiff, *_HOSTILE)))
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
    tag = int(rng.choice(has(tiff, PIXEL_SCALE, TIEPOINTS) or [GEO_KEYS]))
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
    at = tiff.entries[int(rng.choice(has(tiff, GDAL_METADATA) or has(tiff, EXTRA_SAMPLES, PHOTOMETRIC)))]
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


VRT = (
    '<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32632</SRS><GeoTransform>500000,10,0,5500000,0,-10</GeoTransform>'
    + "".join(
        f'<VRTRasterBand dataType="Byte" band="{k}"><SimpleSource><SourceFilename relativeToVRT="1">good.tif</SourceFilename>'
        f"<SourceBand>{k}</SourceBand></SimpleSource></VRTRasterBand>"
        for k in (1, 2, 3)
    )
    + "</VRTDataset>"
)
_OTHERS = (
    VRT.encode(),
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
