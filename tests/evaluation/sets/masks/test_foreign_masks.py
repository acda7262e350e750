"""Masks as people have them: codes of any size, declared nodata, palettes, bands that nothing names, layouts of one's own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.enums import ColorInterp

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.config import TaskConfig
from geokr_core.evaluation.sets.masks.layout import IGNORED, layouts_of, read_palette
from geokr_core.evaluation.sets.masks.read import MaskSet, read_mask_set
from geokr_core.testing import write_raster

PLACE = Affine(30, 0, 500000, 0, -30, 5000000)
SIZE = (8, 16)
GREY = np.full((*SIZE, 3), 90, np.uint8)


def read(folder: Path, kind: str = "segmentation", **fields: object) -> MaskSet:
    return read_mask_set(folder, TaskConfig.model_validate({"name": folder.name, "kind": kind, **fields}), kind, 1)


def bars(*codes: float, dtype: str = "uint8") -> np.ndarray:
    """A mask of upright bars of equal width."""
    return np.array(codes)[np.arange(SIZE[1]) * len(codes) // SIZE[1]][None].repeat(SIZE[0], axis=0).astype(dtype)


def make(
    folder: Path, mask: np.ndarray, palette: str | bytes = "class,code\nwater,0\nland,1\n", **profile: object
) -> Path:
    """Four images with one mask, as TIFF where it is not 8-bit or has a profile."""
    (folder / "images").mkdir(parents=True)
    for k in range(4):
        Image.fromarray(GREY).save(folder / "images" / f"i{k}.png")
        write_raster(folder / "masks" / f"i{k}.tif", mask, None, PLACE, **profile)
    (folder / "palette.csv").write_bytes(palette.encode() if isinstance(palette, str) else palette)
    return folder


def counts(found: MaskSet) -> dict[str, int]:
    """Pixels of an image of each class, and of none."""
    counted = np.bincount(found.masks[0].ravel(), minlength=256)
    return {name: int(counted[k]) for k, name in enumerate(found.classes)} | {"ignored": int(counted[IGNORED])}


@pytest.mark.parametrize(
    ("codes", "dtype"),
    [
        ((0, 1, -9999, -9999), "int16"),
        ((0, 1, 65535, 65535), "uint16"),
        ((0, 1, 4294967295, 4294967295), "uint32"),
        ((0, 1, -1, -1), "float32"),
        ((0, 1, np.nan, np.nan), "float32"),
        ((0, 1, -128, -128), "int8"),
    ],
)
def test_declared_nodata_is_no_label_whatever_its_number(tmp_path: Path, codes: tuple[float, ...], dtype: str) -> None:
    folder = make(tmp_path / "set", bars(*codes, dtype=dtype), nodata=codes[2])

    assert counts(read(folder)) == {"water": 32, "land": 32, "ignored": 64}


def test_a_listed_code_is_a_class_even_where_the_file_declares_it_as_nodata(tmp_path: Path) -> None:
    palette = "class,code\nwater,0\nland,1\nunknown,-9999\n"
    folder = make(tmp_path / "set", bars(0, 1, -9999, -9999, dtype="int16"), palette, nodata=-9999)

    assert counts(read(folder)) == {"water": 32, "land": 32, "unknown": 64, "ignored": 0}


@pytest.mark.parametrize(
    ("codes", "dtype", "shown"),
    [
        ((0, 1, 7, 7), "uint8", "7"),
        ((0, 1, -9999, -9999), "int16", "-9999"),
        ((0, 1, 70000, 70000), "uint32", "70000"),
        ((0, 1, 0.5, 0.5), "float32", "0.5"),
        ((0, 1, 256, 257), "uint16", "256"),
        ((0, 1, 65536, 65537), "int32", "65536"),
    ],
)
def test_unknown_codes_are_never_clipped_or_rounded_into_a_class(
    tmp_path: Path, codes: tuple[float, ...], dtype: str, shown: str
) -> None:
    folder = make(tmp_path / "set", bars(*codes, dtype=dtype))
    with pytest.raises(EvaluationError, match=rf"64 pixel\(s\) of . unknown colour\(s\), mostly {shown}"):
        read(folder)
    found = read(folder, bad_items="skip")

    assert counts(found) == {"water": 32, "land": 32, "ignored": 64}
    assert any("masks with unknown colours, those pixels left out: 4" in note for note in found.notes)


def test_codes_beyond_sixteen_bits_are_classes_like_others(tmp_path: Path) -> None:
    palette = "class,code\nwater,-70000\nland,70000\nland,70001\n"
    folder = make(tmp_path / "set", bars(-70000, 70000, 70001, 70001, dtype="int32"), palette)

    assert counts(read(folder)) == {"water": 32, "land": 96, "ignored": 0}


@pytest.mark.parametrize("ignored", [[255], [[255, 255, 255]]])
@pytest.mark.parametrize("kind", ["segmentation", "cloud_snow"])
def test_the_code_that_a_refusal_names_can_be_ignored(tmp_path: Path, ignored: list[object], kind: str) -> None:
    folder = make(tmp_path / "set", bars(0, 1, 255, 255))
    with pytest.raises(EvaluationError, match="mostly 255.*`ignored_colours`"):
        read(folder, kind)
    assert counts(read(folder, kind, ignored_colours=ignored))["ignored"] == 64
    with pytest.raises(EvaluationError, match="the masks hold codes"):
        read(folder, kind, ignored_colours=[[1, 2, 3]])


def test_grey_means_a_colour_where_the_palette_lists_colours(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", bars(0, 9, 200, 200), "class,red,green,blue\na,0,0,0\nb,9,9,9\n")
    assert counts(read(folder, ignored_colours=[200])) == {"a": 32, "b": 32, "ignored": 64}


def test_ground_that_an_image_declares_missing_is_not_labelled(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", bars(0, 1))
    for path in list((folder / "images").iterdir()):
        path.unlink()
        pixels = np.full((3, *SIZE), 0.5, np.float32)
        pixels[:, 0] = -1
        write_raster(path.with_suffix(".tif"), pixels, None, PLACE, nodata=-1)
    found = read(folder)

    assert counts(found) == {"water": 56, "land": 56, "ignored": 16}
    assert (found.masks[0][0] == IGNORED).all()
    assert set(np.unique(found.images[0]).tolist()) == {0.0, 0.5}


def four_bands(
    folder: Path, colours: list[ColorInterp] | None = None, named: tuple[str, ...] = (), fourth: int = 90
) -> Path:
    make(folder, bars(0, 1))
    for path in list((folder / "images").iterdir()):
        path.unlink()
        pixels = np.repeat(GREY[..., :1], 4, axis=-1).copy()
        pixels[..., 3] = fourth
        pixels[0, 0, 3] = 0
        write_raster(path.with_suffix(".tif"), np.moveaxis(pixels, -1, 0), None, PLACE, named=named)
        if colours:
            with rasterio.open(path.with_suffix(".tif"), "r+") as target:
                target.colorinterp = colours
    return folder


def test_four_bands_that_nothing_names_are_asked_for(tmp_path: Path) -> None:
    folder = four_bands(tmp_path / "set")
    for kind in ("segmentation", "cloud_snow"):
        with pytest.raises(EvaluationError, match="4 bands, and nothing says which; name them in `bands`"):
            read(folder, kind)
    assert read(folder, bands=["blue", "green", "red", "nir"]).bands == ("blue", "green", "red", "nir")


def test_bands_that_the_files_name_are_taken(tmp_path: Path) -> None:
    assert read(four_bands(tmp_path / "a", named=("nir", "red", "green", "blue"))).bands == (
        "nir",
        "red",
        "green",
        "blue",
    )
    with pytest.raises(EvaluationError, match="nothing says which"):
        read(four_bands(tmp_path / "b", named=("B8", "B4", "B3", "B2")))


def test_transparency_is_a_band_only_where_the_task_says_so(tmp_path: Path) -> None:
    folder = four_bands(
        tmp_path / "set", [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha], fourth=255
    )
    found = read(folder)
    assert (found.bands, found.images[0].shape[-1], int((found.masks[0] == IGNORED).sum())) == (
        ("red", "green", "blue"),
        3,
        1,
    )
    found = read(folder, bands=["blue", "green", "red", "nir"])
    assert (found.images[0].shape[-1], int((found.masks[0] == IGNORED).sum())) == (4, 0)


def test_one_grey_image_among_colour_ones_is_a_fault_and_a_grey_set_is_none(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", bars(0, 1))
    Image.fromarray(GREY[..., 0]).save(folder / "images" / "i1.png")
    with pytest.raises(EvaluationError, match=r"i1\.png.*mode L.*expected 8-bit RGB"):
        read(folder)
    found = read(folder, bad_items="skip")
    assert (len(found.images), found.notes[1]) == (3, "items left out: grey among colour images: 1 (i1.png)")
    for path in (folder / "images").iterdir():
        Image.fromarray(GREY[..., 0]).save(path)
    found = read(folder)
    assert (found.bands, found.images[0].shape[-1]) == (("red", "green", "blue"), 3)


def lose_image(folder: Path) -> None:
    (folder / "images" / "i1.png").unlink()


def lose_mask(folder: Path) -> None:
    (folder / "masks" / "i1.tif").unlink()


def cut_image(folder: Path) -> None:
    (folder / "images" / "i1.png").write_bytes((folder / "images" / "i1.png").read_bytes()[:45])


def cut_mask(folder: Path) -> None:
    (folder / "masks" / "i1.tif").write_bytes((folder / "masks" / "i1.tif").read_bytes()[:100])


def postscript(folder: Path) -> None:
    (folder / "images" / "i1.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")


def complex_mask(folder: Path) -> None:
    write_raster(folder / "masks" / "i1.tif", bars(0, 1).astype(np.complex64), None, PLACE)


def many_bands(folder: Path) -> None:
    write_raster(folder / "masks" / "i1.tif", np.stack([bars(0, 1)] * 5), None, PLACE)


def nothing_labelled(folder: Path) -> None:
    write_raster(folder / "masks" / "i1.tif", bars(9, 9), None, PLACE, nodata=9)


def other_bands(folder: Path) -> None:
    (folder / "images" / "i1.png").unlink()
    write_raster(folder / "images" / "i1.tif", np.zeros((2, *SIZE), np.uint8), None, PLACE)


@pytest.mark.parametrize(
    "damage",
    [lose_image, lose_mask, cut_image, cut_mask, postscript, complex_mask, many_bands, nothing_labelled, other_bands],
)
def test_every_fault_of_an_item_is_an_error_by_name_or_left_out_and_counted(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = make(tmp_path / "set", bars(0, 1))
    damage(folder)
    with pytest.raises(EvaluationError, match=r"i1\.(png|tif)"):
        read(folder)
    found = read(folder, bad_items="skip")

    assert found.names == ("i0", "i2", "i3")
    assert any("left out" in note and ": 1 (i1." in note for note in found.notes)


def test_two_masks_of_one_name_are_a_fault(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", bars(0, 1))
    Image.fromarray(bars(1, 0)).save(folder / "masks" / "i1.png")
    with pytest.raises(EvaluationError, match="same name as another one but for its ending"):
        read(folder)
    assert len(read(folder, bad_items="skip").images) == 4


def test_leftovers_are_no_items(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", bars(0, 1))
    for name in ("images/._i0.png", "masks/._i0.tif", "images/Thumbs.db", "__MACOSX/images/i0.png"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"Mac OS X")
    assert len(read(folder).images) == 4


def test_links_are_followed_and_dead_ones_are_faults(tmp_path: Path) -> None:
    real = make(tmp_path / "real", bars(0, 1))
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("images", "masks", "palette.csv"):
        (folder / name).symlink_to(real / name)
    assert len(read(folder).images) == 4
    (real / "images" / "i9.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(EvaluationError, match=r"i9\.png: a link to"):
        read(folder)
    assert len(read(folder, bad_items="skip").images) == 4


@pytest.mark.parametrize("form", ["masks/{split}", "{split}/masks"])
def test_folders_of_splits_are_a_split(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "set"
    for split, number in (("train", 3), ("valid", 1), ("test", 2)):
        for k in range(number):
            masks, images = (folder / form.replace("masks", kind).format(split=split) for kind in ("masks", "images"))
            images.mkdir(parents=True, exist_ok=True)
            Image.fromarray(GREY).save(images / f"{k}.png")
            write_raster(masks / f"{k}.tif", bars(0, 1), None, PLACE)
    (folder / "palette.csv").write_text("class,code\nwater,0\nland,1\n")
    found = read(folder)

    assert {split: len(rows) for split, rows in found.rows.items()} == {"train": 3, "val": 1, "test": 2}


def test_a_layout_of_ones_own_is_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for place in ("north", "south"):
        for k in range(2):
            (folder / "rgb" / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(GREY).save(folder / "rgb" / place / f"{k}_rgb.png")
            write_raster(folder / "truth" / place / f"{k}_truth.tif", bars(10, 20, 30, 0), None, PLACE)
    layout = tmp_path / "mine.yaml"
    layout.write_text(
        """
masks: ["truth/{place}/{name}_truth"]
images: [{files: "rgb/{place}/{name}_rgb", bands: [[nir, red, green]]}]
group: "{place}"
test_groups: [south]
research_only: true
classes: {water: [10], land: [20, 30]}
ignored: [0]
"""
    )
    found = read(folder, layout=str(layout))

    assert counts(found) == {"water": 32, "land": 64, "ignored": 32}
    assert (found.bands, found.may_be_shown) == (("nir", "red", "green"), False)
    assert [len(found.rows[split]) for split in ("train", "val", "test")] == [2, 0, 2]
    sound = layout.read_text()
    for twice, message in (
        ("ignored: [0]\nignored: [9]", "`ignored` is given twice"),
        ("ignored: [10]", "list 10 twice; a code has one meaning"),
        ("ignored: [[0, 0, 0]]", "list numbers and colours"),
    ):
        layout.write_text(sound.replace("ignored: [0]", twice))
        with pytest.raises(EvaluationError, match=rf"(?s)mine\.yaml: describes no layout.*{message}"):
            read(folder, layout=str(layout))
    layout.write_text("masks: []\n")
    with pytest.raises(EvaluationError, match=r"mine\.yaml: describes no layout"):
        read(folder, layout=str(layout))


def test_our_own_layouts_are_sound() -> None:
    for kind, expected in (
        ("segmentation", ["dubai", "gid", "loveda", "potsdam", "vaihingen", "folder"]),
        ("cloud_snow", ["cloudsen12", "l8_biome", "levir_cs", "folder"]),
    ):
        assert list(layouts_of(kind)) == expected
        for layout in layouts_of(kind).values():
            codes = [code for held in layout.classes.values() for code in held]
            assert len(codes) == len(set(codes))
            assert len({isinstance(code, tuple) for code in (*codes, *layout.ignored)}) <= 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("class,code\nwater,0\n", "found 1 class"),
        ("class,code\nwater,0\nland,0\n", "no other row has"),
        ("class,code\nwater,0\nland,one\n", "not readable as a palette .row 3"),
        ("class,red,green,blue\nwater,0,0,0\nland,0,0,300\n", "colour of 0–255"),
        ("class,code\n" + "".join(f"c{k},{k}\n" for k in range(255)), "expected 2 to 254"),
        ("name,code\nwater,0\nland,1\n", "expected the columns class"),
    ],
)
def test_a_palette_that_cannot_be_meant_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "palette.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(EvaluationError, match=said):
        read_palette(path)


def test_a_colour_that_the_file_declares_as_nodata_is_no_label(tmp_path: Path) -> None:
    palette = "class,red,green,blue\nwater,0,0,255\nland,0,255,0\n"
    colours = np.full((3, *SIZE), 9, np.uint8)
    colours[:, :, :4], colours[:, :, 4:8] = np.array([0, 0, 255])[:, None, None], np.array([0, 255, 0])[:, None, None]
    folder = make(tmp_path / "set", colours, palette, nodata=9)
    assert counts(read(folder)) == {"water": 32, "land": 32, "ignored": 64}


def test_images_that_store_one_value_as_different_numbers_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", bars(0, 1))
    for k in range(4):
        (folder / "images" / f"i{k}.png").unlink()
        write_raster(folder / "images" / f"i{k}.tif", np.full((1, *SIZE), 90, np.uint16), None, PLACE)
        with rasterio.open(folder / "images" / f"i{k}.tif", "r+") as target:
            target.scales = (0.0001,)
    assert len(read(folder, bands=["red"]).images) == 4
    with rasterio.open(folder / "images" / "i3.tif", "r+") as target:
        target.offsets = (-0.1,)
    with pytest.raises(EvaluationError, match=r"different scales and offsets \(i0\.tif.*i3\.tif"):
        read(folder, bands=["red"])


def test_shrinking_happens_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "set", bars(0, 1))
    assert read(folder, downscale=4).images[0].shape == (2, 4, 3)
    with pytest.raises(EvaluationError, match="expected 16 px or more a side"):
        read(folder, downscale=16)
