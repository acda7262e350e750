"""Sets of masks: every layout is recognised, and nothing bad passes in silence."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from PIL import Image

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.config import TaskConfig
from geokr_core.evaluation.sets.masks.layout import IGNORED
from geokr_core.evaluation.sets.masks.read import MaskSet, read_mask_set
from geokr_core.testing import make_mask_set, write_raster

PLACE = Affine(30, 0, 500000, 0, -30, 5000000)


def picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def tif(path: Path, pixels: np.ndarray) -> None:
    write_raster(path, np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels, None, PLACE)


def painted(*colours: tuple[int, int, int]) -> np.ndarray:
    """A mask of vertical bars of the colours, 8 x 16 px."""
    return np.array(colours, dtype=np.uint8)[np.arange(16) * len(colours) // 16][None].repeat(8, axis=0)


GREY = np.full((8, 16, 3), 100, np.uint8)


def dubai(folder: Path) -> None:
    for tile in range(1, 5):
        root = folder / "Semantic segmentation dataset" / f"Tile {tile}"
        picture(root / "images" / "image_part_001.jpg", GREY)
        picture(
            root / "masks" / "image_part_001.png", painted((60, 16, 152), (226, 169, 41), (155, 155, 155), (0, 0, 0))
        )


def potsdam(folder: Path) -> None:
    for tile in ("2_10", "2_13"):
        tif(folder / "2_Ortho_RGB" / f"top_potsdam_{tile}_RGB.tif", GREY)
        tif(folder / "5_Labels_all" / f"top_potsdam_{tile}_label.tif", painted((255, 255, 255), (255, 0, 0)))


def vaihingen(folder: Path) -> None:
    for area in (1, 2):
        tif(folder / "top" / f"top_mosaic_09cm_area{area}.tif", GREY)
        tif(folder / "gts_for_participants" / f"top_mosaic_09cm_area{area}.tif", painted((0, 0, 255), (255, 255, 0)))


def gid(folder: Path) -> None:
    for k in range(4):
        tif(folder / "image_RGB" / f"GF2_PMS{k}.tif", GREY)
        tif(folder / "label_5classes" / f"GF2_PMS{k}_label.tif", painted((255, 0, 0), (0, 0, 255), (0, 0, 0)))


def loveda(folder: Path) -> None:
    for split in ("Train", "Val"):
        for part in ("Rural", "Urban"):
            picture(folder / split / part / "images_png" / f"{split}{part}.png", GREY)
            codes = np.repeat(np.arange(8, dtype=np.uint8), 2)[None].repeat(8, axis=0)
            picture(folder / split / part / "masks_png" / f"{split}{part}.png", codes)


@pytest.mark.parametrize(
    ("write", "name", "shown", "num_test"),
    [
        (dubai, "dubai", True, 1),
        (potsdam, "potsdam", False, 1),
        (vaihingen, "vaihingen", False, 1),
        (gid, "gid", False, 1),
        (loveda, "loveda", False, 2),
    ],
)
def test_published_layouts_are_recognised(
    tmp_path: Path, write: Callable[[Path], None], name: str, shown: bool, num_test: int
) -> None:
    write(tmp_path / "set")
    found = read(tmp_path / "set")

    assert found.layout == name
    assert found.may_be_shown is shown
    assert len(found.rows["test"]) == num_test
    assert not set(found.rows["train"]) & set(found.rows["test"])
    assert len(found.bands) == 3


def read(folder: Path, *, sky: bool = False, **fields: object) -> MaskSet:
    kind = "cloud_snow" if sky else "segmentation"
    return read_mask_set(folder, TaskConfig.model_validate({"name": folder.name, "kind": kind, **fields}), kind, 1)


def test_colours_become_classes_and_unlabelled_ones_nothing(tmp_path: Path) -> None:
    dubai(tmp_path / "set")
    found = read(tmp_path / "set")

    assert found.classes[found.masks[0][0, 0]] == "building"
    assert found.classes[found.masks[0][0, 4]] == "water"
    assert (found.masks[0][0, 8:] == IGNORED).all()


def biome(folder: Path) -> None:
    for split in ("train", "val", "test"):
        tif(folder / split / "Images" / f"{split}_1.tif", np.full((8, 16, 4), 0.3, np.float32))
        tif(
            folder / split / "Masks" / f"{split}_1.tif",
            np.repeat(np.array([64, 128, 192, 255, 0, 128, 255, 64], np.uint8), 2)[None].repeat(8, axis=0),
        )


def cloudsen12(folder: Path) -> None:
    for split, scene in (("train", "a"), ("test", "b")):
        tif(folder / split / scene / "S2L1C.tif", np.full((8, 16, 13), 3000, np.uint16))
        tif(
            folder / split / scene / "labels" / "manual_hq.tif",
            np.repeat(np.arange(4, dtype=np.uint8), 4)[None].repeat(8, axis=0),
        )


def levir_cs(folder: Path) -> None:
    for k in range(4):
        tif(folder / "data" / f"GF1_{k}.tif", np.full((8, 16, 4), 30, np.uint8))
        tif(
            folder / "data" / f"GF1_{k}_label.tif",
            np.repeat(np.array([0, 128, 255, 0], np.uint8), 4)[None].repeat(8, axis=0),
        )


@pytest.mark.parametrize(
    ("write", "name", "present"),
    [(biome, "l8_biome", {0, 1, 2, 3}), (cloudsen12, "cloudsen12", {0, 1, 2, 3}), (levir_cs, "levir_cs", {0, 1, 4})],
)
def test_sky_layouts_are_recognised_and_share_one_list_of_classes(
    tmp_path: Path, write: Callable[[Path], None], name: str, present: set[int]
) -> None:
    write(tmp_path / "set")
    found = read(tmp_path / "set", sky=True)

    assert found.layout == name
    assert found.classes == ("clear", "cloud", "thin_cloud", "shadow", "snow")
    assert set(np.unique(found.masks[0]).tolist()) - {IGNORED} == present
    assert {"red", "green", "blue"} <= set(found.bands)


def test_split_files_count_and_a_test_image_is_never_learnt_from(tmp_path: Path) -> None:
    folder = make_mask_set(tmp_path / "set")
    found = read(folder)
    assert [found.names[k] for k in found.rows["test"]] == ["image_005", "image_006", "image_007"]

    with (folder / "split_train.txt").open("a") as stream:
        stream.write("image_007.png\n")
    with pytest.raises(EvaluationError, match="two splits"):
        read(folder)


def test_groups_are_never_torn_apart(tmp_path: Path) -> None:
    dubai(tmp_path / "set")
    found = read(tmp_path / "set", test_groups=["Tile 1", "Tile 2"])
    assert (len(found.rows["train"]), len(found.rows["test"])) == (2, 2)
    with pytest.raises(EvaluationError, match="names 'Tile 9'"):
        read(tmp_path / "set", test_groups=["Tile 9"])
    with pytest.raises(EvaluationError, match="some to learn from"):
        read(tmp_path / "set", test_groups=["Tile 1", "Tile 2", "Tile 3", "Tile 4"])


def lose_mask(folder: Path) -> None:
    (folder / "masks" / "image_001.png").unlink()


def lose_image(folder: Path) -> None:
    (folder / "images" / "image_001.png").unlink()


def break_image(folder: Path) -> None:
    (folder / "images" / "image_001.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")


def strange_colour(folder: Path) -> None:
    mask = np.array(Image.open(folder / "masks" / "image_001.png"))
    mask[:3, :3] = (1, 2, 3)
    picture(folder / "masks" / "image_001.png", mask)


def other_size(folder: Path) -> None:
    picture(folder / "masks" / "image_001.png", np.zeros((10, 10, 3), np.uint8))


@pytest.mark.parametrize(
    ("damage", "said", "noted", "num_left"),
    [
        (lose_mask, "no such mask", "mask missing: 1 (image_001.png)", 7),
        (break_image, "cannot be read", "not readable: 1 (image_001.png)", 7),
        (other_size, "its mask 10 x 10", "differ in size: 1 (image_001.png)", 7),
        (strange_colour, r"9 pixel\(s\) of 1 unknown colour\(s\), mostly \(1, 2, 3\)", "unknown colours", 8),
    ],
)
def test_what_is_bad_is_an_error_or_counted_and_reported(
    tmp_path: Path, damage: Callable[[Path], None], said: str, noted: str, num_left: int
) -> None:
    folder = make_mask_set(tmp_path / "set")
    damage(folder)
    with pytest.raises(EvaluationError, match=said):
        read(folder)
    found = read(folder, bad_items="skip")

    assert any(noted in note for note in found.notes)
    assert len(found.images) == num_left


def test_a_mask_without_its_image_is_noticed(tmp_path: Path) -> None:
    dubai(tmp_path / "set")
    (tmp_path / "set" / "Semantic segmentation dataset" / "Tile 2" / "images" / "image_part_001.jpg").unlink()
    with pytest.raises(EvaluationError, match="no such image"):
        read(tmp_path / "set")


def test_declared_colours_are_ignored_and_unknown_pixels_never_learnt(tmp_path: Path) -> None:
    folder = make_mask_set(tmp_path / "set")
    strange_colour(folder)
    for found in (read(folder, ignored_colours=[(1, 2, 3)]), read(folder, bad_items="skip")):
        assert (found.masks[1][:3, :3] == IGNORED).all()
        assert (found.masks[1][4:, 4:] != IGNORED).all()


def test_pixels_that_are_not_finite_are_not_learnt_from(tmp_path: Path) -> None:
    biome(tmp_path / "set")
    pixels = np.full((8, 16, 4), 0.3, np.float32)
    pixels[0, 1] = np.nan
    tif(tmp_path / "set" / "train" / "Images" / "train_1.tif", pixels)
    with pytest.raises(EvaluationError, match="not finite"):
        read(tmp_path / "set", sky=True)
    found = read(tmp_path / "set", sky=True, bad_items="skip")

    assert found.masks[0][0, 1] == IGNORED
    assert np.isfinite(found.images[0]).all()


def test_an_image_with_other_bands_is_noticed(tmp_path: Path) -> None:
    folder = make_mask_set(tmp_path / "set", sky=True)
    tif(folder / "images" / "patch_001.tif", np.zeros((48, 56, 3), np.float32))
    with pytest.raises(EvaluationError, match=r"has 3 band\(s\), expected 4"):
        read(folder, sky=True)
    assert len(read(folder, sky=True, bad_items="skip").images) == 7


def test_shrinking_takes_means_of_the_image_and_the_middle_of_the_mask(tmp_path: Path) -> None:
    folder = make_mask_set(tmp_path / "set")
    whole, half = read(folder), read(folder, downscale=2)

    assert half.images[0].shape == (24, 28, 3)
    assert half.images[0][3, 4].tolist() == np.rint(whole.images[0][6:8, 8:10].mean(axis=(0, 1))).tolist()
    assert np.array_equal(half.masks[0], whole.masks[0][1::2, 1::2])


def test_folders_that_are_no_set_are_refused_with_words(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no such folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="do not lie as"):
        read(tmp_path / "empty")
    with pytest.raises(EvaluationError, match="layout 'x' is not known"):
        read(tmp_path / "empty", layout="x")
    folder = make_mask_set(tmp_path / "set")
    (folder / "palette.csv").write_text("class,red\nground,0\n")
    with pytest.raises(EvaluationError, match="not readable as a palette"):
        read(folder)
