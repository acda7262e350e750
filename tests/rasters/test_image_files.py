"""The door for images and masks: pictures as every viewer shows them, masks as they are, and nothing a file can talk into."""

import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.enums import ColorInterp

from geokr_core.rasters import image_files
from geokr_core.rasters.image_files import UnusableImageError, read_image, read_in_threads, read_mask
from geokr_core.testing import write_raster

PLACE = Affine(30, 0, 500000, 0, -30, 5000000)
RAMP = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
CODES = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4)


def tif(path: Path, pixels: np.ndarray, **profile: object) -> Path:
    return write_raster(path, np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels, None, PLACE, **profile)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


# How each EXIF orientation is shown (EXIF 2.32, 4.6.4): the array that a viewer shows, from the array that is stored.
SHOWN = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", SHOWN)
def test_a_picture_stands_as_its_exif_says_and_a_mask_too(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = saved(tmp_path / "a.png", Image.fromarray(RAMP), exif=exif)
    mask = saved(tmp_path / "m.png", Image.fromarray(CODES), exif=exif)

    assert np.array_equal(read_image(path).pixels, SHOWN[orientation](RAMP))
    assert np.array_equal(read_mask(mask, holds_codes=True).values, SHOWN[orientation](CODES))


def test_a_tiff_that_asks_to_be_turned_is_refused(tmp_path: Path) -> None:
    upright, turned = tmp_path / "1.tif", tmp_path / "6.tif"
    for path, orientation in ((upright, 1), (turned, 6)):
        Image.fromarray(RAMP).save(path, tiffinfo={274: orientation})

    assert np.array_equal(read_image(upright).pixels, RAMP)
    with pytest.raises(UnusableImageError, match="orientation tag is 6"):
        read_image(turned)
    with pytest.raises(UnusableImageError, match="orientation tag is 6"):
        read_mask(turned, holds_codes=False)


def test_pictures_become_red_green_and_blue_or_stay_grey(tmp_path: Path) -> None:
    rgb = Image.fromarray(np.full((4, 4, 3), (200, 100, 50), np.uint8))
    forms = {
        "rgb.png": rgb,
        "rgba.png": rgb.convert("RGBA"),
        "palette.png": rgb.quantize(4),
        "palette.bmp": rgb.quantize(4),
        "cmyk.jpg": rgb.convert("CMYK"),
    }
    for name, image in forms.items():
        picture = read_image(saved(tmp_path / name, image))
        assert picture.valid is None
        assert picture.as_rgb8()[1, 1].tolist() == pytest.approx([200, 100, 50], abs=4), name
    grey = read_image(saved(tmp_path / "grey.png", Image.fromarray(CODES)))
    assert (grey.pixels.shape, grey.is_grey) == ((6, 4, 1), True)
    with pytest.raises(UnusableImageError, match="mode L.*expected 8-bit RGB"):
        grey.as_rgb8()
    assert np.array_equal(
        read_image(saved(tmp_path / "bits.png", Image.fromarray(CODES > 5))).pixels[..., 0], (CODES > 5) * 255
    )


def test_transparent_pixels_and_missing_ones_are_not_valid(tmp_path: Path) -> None:
    alpha = np.full((6, 4), 255, np.uint8)
    alpha[0, 1] = 0
    seen = alpha != 0
    rgba = Image.fromarray(np.dstack([RAMP, alpha]))
    assert np.array_equal(read_image(saved(tmp_path / "rgba.png", rgba)).valid, seen)
    la = Image.merge("LA", [Image.fromarray(CODES), Image.fromarray(alpha)])
    assert np.array_equal(read_image(saved(tmp_path / "la.png", la)).valid, seen)

    measured = np.full((6, 4, 2), 5.0, np.float32)
    measured[0, 1] = -1
    measured[2, 2, 0] = -1  # one band is there: the pixel means something
    assert np.array_equal(read_image(tif(tmp_path / "n.tif", measured, nodata=-1)).valid, seen)
    measured[0, 1] = np.nan
    assert np.array_equal(read_image(tif(tmp_path / "nan.tif", measured, nodata=np.nan)).valid, seen)


def test_a_mask_inside_a_raster_and_its_nodata_both_count(tmp_path: Path) -> None:
    path = tif(tmp_path / "a.tif", np.where(CODES == 9, 0, 7).astype(np.uint8), nodata=0)
    inside = np.full((6, 4), 255, np.uint8)
    inside[5] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as target:
        target.write_mask(inside)
    expected = (CODES != 9) & (np.arange(6) < 5)[:, None]

    assert np.array_equal(read_image(path).valid, expected)
    mask = read_mask(path, holds_codes=True)
    assert (mask.nodata, np.array_equal(mask.known, inside != 0)) == (0, True)


def test_a_fourth_byte_is_transparency_only_where_the_bands_say_so(tmp_path: Path) -> None:
    pixels = np.full((4, 4, 4), 255, np.uint8)
    pixels[0, 0, 3] = 0
    path = tif(tmp_path / "a.tif", pixels)
    with rasterio.open(path, "r+") as target:
        target.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    picture = read_image(path)

    assert (picture.pixels.shape, picture.last_is_alpha, picture.valid) == ((4, 4, 4), True, None)
    without = picture.without_alpha()
    assert without.pixels.shape == (4, 4, 3)
    assert without.valid is not None
    assert np.argwhere(~without.valid).tolist() == [[0, 0]]
    assert picture.as_rgb8().shape == (4, 4, 3)
    near_infrared = tif(
        tmp_path / "b.tif", np.full((4, 4, 4), 90, np.uint8)
    )  # GDAL takes a fourth byte for transparency
    with rasterio.open(near_infrared) as source:
        assert source.colorinterp[-1] == ColorInterp.alpha
    with pytest.raises(UnusableImageError, match=r"found 4 band\(s\) of uint8"):
        read_image(near_infrared).as_rgb8()


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_codes_of_every_type_are_what_the_file_holds(tmp_path: Path, kind: str) -> None:
    low, high = (-7, 9) if kind.startswith("float") else (np.iinfo(kind).min, np.iinfo(kind).max)
    codes = np.array([[low, 0], [1, high]]).astype(kind)

    assert np.array_equal(read_mask(tif(tmp_path / "m.tif", codes), holds_codes=True).values, codes)


def test_grey_masks_in_every_form_hold_the_same_codes(tmp_path: Path) -> None:
    grey = Image.fromarray(CODES)
    palette = grey.copy()
    palette.putpalette([value for k in range(256) for value in (255 - k, k // 2, 7)])
    forms = {
        "l.png": grey,
        "p.png": palette,
        "la.png": grey.convert("LA"),
        "rgb.png": grey.convert("RGB"),
        "rgba.png": grey.convert("RGBA"),
        "i16.png": Image.fromarray(CODES.astype(np.uint16)),
        "l.bmp": grey,
    }
    for name, image in forms.items():
        mask = read_mask(saved(tmp_path / name, image), holds_codes=True)
        assert np.array_equal(mask.values, CODES), name
        assert mask.known is None
    sixteen = np.array([[0, 70], [300, 65535]], np.uint16)
    path = saved(tmp_path / "sixteen.png", Image.fromarray(sixteen))
    assert np.array_equal(read_mask(path, holds_codes=True).values, sixteen)
    bits = saved(tmp_path / "bits.png", Image.fromarray(CODES > 5))
    assert np.array_equal(read_mask(bits, holds_codes=True).values, CODES > 5)


def test_colours_and_codes_are_not_taken_for_each_other(tmp_path: Path) -> None:
    colours = saved(tmp_path / "c.png", Image.fromarray(RAMP))
    with pytest.raises(UnusableImageError, match="in colour, but its classes are given as codes"):
        read_mask(colours, holds_codes=True)
    palette = Image.fromarray(CODES % 2)
    palette.putpalette([10, 20, 30, 40, 50, 60] + [0] * 762)
    for name in ("p.png", "p.bmp"):
        found = read_mask(saved(tmp_path / name, palette), holds_codes=False).values
        assert found[0, 1].tolist() == [40, 50, 60]
    assert np.array_equal(
        read_mask(saved(tmp_path / "l.png", Image.fromarray(CODES)), holds_codes=False).values, np.dstack([CODES] * 3)
    )
    with pytest.raises(UnusableImageError, match="of uint16, expected colours"):
        read_mask(tif(tmp_path / "c16.tif", RAMP.astype(np.uint16)), holds_codes=False)
    with pytest.raises(UnusableImageError, match="complex"):
        read_mask(tif(tmp_path / "cx.tif", CODES.astype(np.complex64)), holds_codes=True)
    with pytest.raises(UnusableImageError, match="mask of 5 bands"):
        read_mask(tif(tmp_path / "five.tif", np.dstack([CODES] * 5)), holds_codes=True)


def test_sixteen_bits_of_colour_are_never_cut_to_eight(tmp_path: Path) -> None:
    # Pillow cannot write such a file: one pixel of 16 bits red, green, blue after PNG (Third Edition), 11.2.
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = (1).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
    path = tmp_path / "a.png"
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + b"\x01\x02" * 3)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)

    for read in (read_image, lambda path: read_mask(path, holds_codes=False)):
        with pytest.raises(UnusableImageError, match="16 bits a channel"):
            read(path)


def test_what_has_other_bands_is_named_for_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(UnusableImageError, match=r"found 13 band\(s\) of uint16, expected 8-bit RGB"):
        read_image(tif(tmp_path / "a.tif", np.zeros((4, 4, 13), np.uint16))).as_rgb8()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif"])
def test_no_file_makes_a_reader_start_another_program_or_read_another_format(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", never)
    (tmp_path / name).write_bytes(POSTSCRIPT)
    gif = tmp_path / f"gif_{name}"
    Image.fromarray(CODES).save(gif, format="GIF")
    for path in (tmp_path / name, gif):
        with pytest.raises(UnusableImageError, match="cannot be read as an image"):
            read_image(path)
        with pytest.raises(UnusableImageError, match="cannot be read as an image"):
            read_mask(path, holds_codes=True)


def test_what_is_too_large_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tmp_path / "large.tif"
    profile = {"driver": "GTiff", "width": 60_000, "height": 60_000, "count": 3, "dtype": "uint8", "tiled": True}
    with rasterio.open(large, "w", **profile, compress="deflate", sparse_ok=True, BIGTIFF="YES"):
        pass
    assert large.stat().st_size < 2_000_000
    with pytest.raises(UnusableImageError, match=r"60000|unpack"):
        read_image(large)
    wide = saved(tmp_path / "wide.png", Image.fromarray(np.zeros((300, 300, 3), np.uint8)))
    monkeypatch.setattr(image_files, "MAX_IMAGE_BYTES", 300_000)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was unpacked"))
    with pytest.raises(UnusableImageError, match="declares 300 x 300 px"):
        read_image(wide)


def test_damaged_files_are_named_and_never_a_traceback(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = {
        "a.png": saved(tmp_path / "a.png", Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))),
        "a.jpg": saved(tmp_path / "a.jpg", Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))),
        "a.bmp": saved(tmp_path / "a.bmp", Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8))),
        "a.tif": tif(tmp_path / "a.tif", rng.integers(0, 255, (40, 40, 3), dtype=np.uint8), compress="deflate"),
    }
    refused = 0
    for path in whole.values():
        content = path.read_bytes()
        for _ in range(40):
            damaged = bytearray(content)
            for place in rng.integers(0, len(damaged), 8):
                damaged[place] = rng.integers(0, 256)
            path.write_bytes(bytes(damaged[: rng.integers(1, len(damaged) + 1)]))
            for read in (read_image, lambda path: read_mask(path, holds_codes=True)):
                try:
                    read(path)
                except UnusableImageError:
                    refused += 1
    assert refused > 200


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif"):
        with pytest.raises(UnusableImageError, match="no such file"):
            read_image(tmp_path / name)


def test_only_so_many_items_are_read_at_a_time() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def read(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        return item * item

    assert read_in_threads(read, range(50), 2) == [k * k for k in range(50)]
    assert most <= 2


COLOURS = {0: (0, 0, 0, 255), 1: (0, 0, 255, 255), 2: (90, 90, 90, 255)}


def palette_tif(path: Path, codes: np.ndarray, **profile: object) -> Path:
    written = tif(path, codes, photometric="palette", **profile)
    with rasterio.open(written, "r+") as target:
        target.write_colormap(1, COLOURS)
    return written


def test_a_tiff_with_a_palette_is_shown_in_its_colours(tmp_path: Path) -> None:
    picture = read_image(palette_tif(tmp_path / "a.tif", np.array([[0, 1], [2, 1]], np.uint8)))
    assert picture.as_rgb8().tolist() == [[[0, 0, 0], [0, 0, 255]], [[90, 90, 90], [0, 0, 255]]]


def test_a_place_of_a_palette_that_is_declared_to_mean_nothing_takes_no_other_places_colour(tmp_path: Path) -> None:
    mask = read_mask(
        palette_tif(tmp_path / "a.tif", np.array([[0, 1], [255, 2]], np.uint8), nodata=255), holds_codes=False
    )
    assert mask.known is not None  # 255 is black as 0 is
    assert mask.known.tolist() == [[True, True], [False, True]]
    lone = read_mask(palette_tif(tmp_path / "b.tif", np.array([[0, 1], [2, 2]], np.uint8), nodata=2), holds_codes=False)
    assert (lone.known, lone.nodata) == (None, (90, 90, 90))


@pytest.mark.parametrize("bands", [1, 3])
def test_a_colour_that_is_declared_to_mean_nothing_is_told(tmp_path: Path, bands: int) -> None:
    pixels = np.zeros((2, 2, bands), np.uint8)
    assert read_mask(tif(tmp_path / "a.tif", pixels, nodata=255), holds_codes=False).nodata == (255, 255, 255)
    assert read_mask(tif(tmp_path / "b.tif", pixels), holds_codes=False).nodata is None
