"""Folders of classes as people have them: leftovers, releases with three splits, faults that may be skipped."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.sets.classes import ImageSet, read_image_set
from geokr_core.testing import make_image_set, write_raster


def read(folder: Path, **fields: object) -> ImageSet:
    return read_image_set(folder, 32, 1, **fields)  # type: ignore[arg-type]


def test_leftovers_are_neither_images_nor_classes(tmp_path: Path) -> None:
    folder = make_image_set(tmp_path / "set" / "inner", splits=False)
    before = read(tmp_path / "set")
    for name in ("._Field_000.png", "Thumbs.db", ".DS_Store"):
        (folder / "Field" / name).write_bytes(b"\x00\x05\x16\x07Mac OS X")
    for name in ("__MACOSX/inner/Field/._Field_000.png", "inner/__MACOSX/x.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"")
    after = read(tmp_path / "set")

    assert after.classes == before.classes == ("Field", "Forest", "Water")
    assert np.array_equal(after.images, before.images)


def test_split_files_of_a_spreadsheet_are_read(tmp_path: Path) -> None:
    folder = make_image_set(tmp_path / "set")
    before = read(folder)
    path = folder / "split_train.txt"
    path.write_bytes(path.read_text().replace("\n", "\r\n").replace("/", "\\").encode("utf-8-sig"))

    assert np.array_equal(read(folder).images, before.images)


@pytest.mark.parametrize(
    ("names", "num_test"), [(("train", "val", "test"), 6), (("train", "valid"), 3), (("train", "validation"), 3)]
)
def test_folders_of_splits_are_tested_on_as_they_say(tmp_path: Path, names: tuple[str, ...], num_test: int) -> None:
    make_image_set(tmp_path / "flat", splits=False)
    numbers = dict(zip(names, (range(5), range(5, 6), range(6, 8)), strict=False))
    for split, chosen in numbers.items():
        for name in ("Field", "Forest", "Water"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for k in chosen:
                (tmp_path / "flat" / name / f"{name}_{k:03d}.png").rename(tmp_path / "set" / split / name / f"{k}.png")
    found = read(tmp_path / "set")

    assert (len(found.train_rows), len(found.test_rows)) == (15, num_test)
    assert any("not used here: 3" in note for note in found.notes) is (len(names) == 3)


def grey(path: Path) -> None:
    Image.open(path).convert("L").save(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:80])


def lose(path: Path) -> None:
    path.unlink()


def postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")


def many_bands(path: Path) -> None:
    from affine import Affine

    path.unlink()
    tif = write_raster(path.with_suffix(".tif"), np.zeros((13, 8, 8), np.uint16), None, Affine.identity())
    split = path.parent.parent / "split_train.txt"
    split.write_text(split.read_text().replace(path.name, tif.name))


@pytest.mark.parametrize("damage", [grey, cut, lose, postscript, many_bands])
def test_every_fault_of_an_image_is_an_error_by_name_or_left_out_and_counted(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = make_image_set(tmp_path / "set")
    damage(folder / "Water" / "Water_001.png")
    with pytest.raises(EvaluationError, match="Water_001"):
        read(folder)
    found = read(folder, bad_items="skip")

    assert (len(found.train_rows), len(found.test_rows)) == (11, 12)
    assert len(found.notes) == 1


def test_a_class_that_only_has_faulty_images_is_an_error_all_the_same(tmp_path: Path) -> None:
    folder = make_image_set(tmp_path / "set")
    for k in range(4):
        cut(folder / "Water" / f"Water_{k:03d}.png")
    with pytest.raises(EvaluationError, match="'Water' has no training image"):
        read(folder, bad_items="skip")


def test_a_set_that_is_grey_throughout_is_read_as_such(tmp_path: Path) -> None:
    folder = make_image_set(tmp_path / "set")
    for path in folder.rglob("*.png"):
        grey(path)
    found = read(folder)

    assert (found.images[..., 0] == found.images[..., 2]).all()
    assert found.notes == (
        "grey images, read as equal red, green and blue: 24 (Field_000.png, Field_001.png, Field_002.png, …)",
    )


def test_thirteen_bands_are_named_for_what_they_are(tmp_path: Path) -> None:
    from affine import Affine

    for name in ("A", "B"):
        for k in range(2):
            write_raster(tmp_path / "set" / name / f"{k}.tif", np.zeros((13, 8, 8), np.uint16), None, Affine.identity())
    with pytest.raises(EvaluationError, match=r"0\.tif: found 13 band\(s\) of uint16, expected 8-bit RGB"):
        read(tmp_path / "set")
    with pytest.raises(EvaluationError, match=r"no training image \(.*not readable as 8-bit RGB: 4 \(0\.tif, "):
        read(tmp_path / "set", bad_items="skip")
