"""The index of tiles: which files are tiles, which cannot be used, and what is remembered of them."""

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from pydantic import ValidationError

from geokr_core.errors import LandCoverError
from geokr_core.land_cover.slots import UNKNOWN
from geokr_core.step.digests import data_version
from tests.land_cover.test_product import index, opened, tile, whole


def test_copies_are_left_out_and_different_files_on_one_grid_are_named(tmp_path: Path) -> None:
    first = tile(tmp_path / "lc" / "b" / "n48_30_2020lc030.tif", 20)
    (tmp_path / "lc" / "a").mkdir()
    (tmp_path / "lc" / "a" / "n48_30_2020lc030.tif").write_bytes(first.read_bytes())
    warnings = index(tmp_path).warnings
    assert any("left out: a copy" in w and "b/n48_30_2020lc030.tif" in w for w in warnings)
    assert [t.file for t in opened(tmp_path).tiles] == ["a/n48_30_2020lc030.tif"]
    # Tiles that were cut to one window, or two versions of one map: both stay, in the order of their names.
    tile(first, 30)
    (warning,) = index(tmp_path).warnings
    assert "exactly the grid of a/n48_30_2020lc030.tif in 2020" in warning
    assert "b/n48_30_2020lc030.tif" in warning
    assert [t.file[0] for t in opened(tmp_path).tiles] == ["a", "b"]
    # The same grid in another year is another edition.
    first.rename(tmp_path / "lc" / "b" / "n48_30_2010lc030.tif")
    assert index(tmp_path).warnings == ()
    assert opened(tmp_path).years == (2010, 2020)


def test_an_unreadable_tile_is_named(tmp_path: Path) -> None:
    path = tile(tmp_path / "lc" / "good.tif", np.random.default_rng(0).choice(np.array([10, 20], np.uint8), (512, 512)))
    (tmp_path / "lc" / "bad.tif").write_bytes(b"II*\0" + os.urandom(64))
    with pytest.raises(LandCoverError, match=r"bad\.tif: cannot be opened"):
        index(tmp_path, year=2020)
    (tmp_path / "lc" / "bad.tif").unlink()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    index(tmp_path, year=2020)
    (one,) = opened(tmp_path).tiles
    with pytest.raises(LandCoverError, match=r"good\.tif: unreadable at lines 0–511"):
        whole(tmp_path, one)


def test_a_tile_without_a_place_on_the_earth_is_refused(tmp_path: Path) -> None:
    tile(tmp_path / "lc" / "map.tif", crs='LOCAL_CS["drawing board",UNIT["metre",1]]')
    with pytest.raises(LandCoverError, match=r"map\.tif: no (way|CRS)"):
        index(tmp_path, year=2020)
    tile(tmp_path / "lc" / "map.tif", 10, "EPSG:3035", Affine(100, 0, 9e7, 0, -100, 9e7))
    with pytest.raises(LandCoverError, match=r"map\.tif: its grid has no place on the earth"):
        index(tmp_path, year=2020)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_what_may_be_shares_is_not_taken_for_codes(tmp_path: Path, dtype: str) -> None:
    tile(tmp_path / "lc" / "map.tif", np.full((8, 8), 20, dtype))
    with pytest.raises(LandCoverError, match=rf"map\.tif: {dtype} found, expected whole-number codes.*gdal_translate"):
        index(tmp_path, year=2020)


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ("/etc/*.tif", "is absolute"),
        ("../*.tif", "leaves the folder"),
        ("a/../../*.tif", "leaves the folder"),
        ("", "is empty"),
        ("**.tif", "stands alone"),
    ],
)
def test_tiles_lie_below_the_folder(tmp_path: Path, files: str, fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        index(tmp_path, files=files)


def test_the_index_is_the_same_bytes_with_and_without_memory(tmp_path: Path) -> None:
    tile(tmp_path / "lc" / "n48_30_2020lc030.tif")
    index(tmp_path)
    version = data_version(tmp_path / "index")
    index(tmp_path)
    assert data_version(tmp_path / "index") == version
    next((tmp_path / ".state" / "checksums").iterdir()).unlink()
    os.utime(tmp_path / "lc" / "n48_30_2020lc030.tif")
    index(tmp_path)
    assert data_version(tmp_path / "index") == version


def masked(path: Path, hidden: slice) -> None:
    mask = np.ones((8, 8), bool)
    mask[hidden] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as target:
        target.write_mask(mask)


@pytest.mark.parametrize("beside", ["internal mask", "mask file", "alpha"])
def test_a_tile_may_say_no_data_in_several_ways_at_once(tmp_path: Path, beside: str) -> None:
    """GDAL honours the first alone: an alpha band beside a declared code, or a declared code beside a mask, would be lost."""
    codes = np.full((1, 8, 8), 20, np.uint8)
    codes[0, :2] = 77  # a filler that no legend knows
    alpha = np.full((1, 8, 8), 255, np.uint8)
    alpha[0, 6:] = 0
    path = tmp_path / "lc" / "a.tif"
    if beside == "alpha":
        tile(path, np.concatenate([codes, alpha]), nodata=77, photometric="MINISBLACK", ALPHA="YES")
    else:
        tile(path, codes, nodata=77)
    if beside == "internal mask":
        masked(path, slice(6, 8))
    elif beside == "mask file":
        tile(tmp_path / "lc" / "mask.tif", alpha).rename(tmp_path / "lc" / "a.tif.msk")
    index(tmp_path, year=2020)
    (one,) = opened(tmp_path).tiles
    unknown = whole(tmp_path, one) == UNKNOWN
    assert unknown.all(axis=1).tolist() == [True] * 2 + [False] * 4 + [True] * 2
    assert not unknown[2:6].any()


@pytest.mark.parametrize("files", ["**/*", "*.tif"])
def test_leftovers_among_tiles_are_passed_over_with_a_warning(tmp_path: Path, files: str) -> None:
    tile(tmp_path / "lc" / "a.tif", np.full((1, 8, 8), 20, np.uint8))
    (tmp_path / "lc" / "._a.tif").write_bytes(bytes(126))
    (tmp_path / "lc" / "a.tif.aux.xml").write_text("<PAMDataset/>")
    summary = index(tmp_path, files=files, year=2020)
    assert summary.numbers["num_tiles"] == 1
    assert any("skipped (1 file(s), e.g. ._a.tif)" in warning for warning in summary.warnings)


def test_a_tile_that_is_listed_but_not_there_is_an_error(tmp_path: Path) -> None:
    tile(tmp_path / "lc" / "a.tif", np.full((1, 8, 8), 20, np.uint8))
    (tmp_path / "lc" / "b.tif").symlink_to("unfetched.tif")
    with pytest.raises(LandCoverError, match=r"b\.tif: a link to unfetched\.tif, where there is nothing.*1 such tile"):
        index(tmp_path, files="**/*.tif", year=2020)
    (tmp_path / "lc" / "b.tif").unlink()
    (tmp_path / "lc" / "disk2").symlink_to(tmp_path / "unmounted")
    with pytest.raises(LandCoverError, match="disk2: a link to"):
        index(tmp_path, files="**/*.tif", year=2020)


def test_tiles_behind_a_linked_folder_are_found_once(tmp_path: Path) -> None:
    tile(tmp_path / "disk" / "a.tif", np.full((1, 8, 8), 20, np.uint8))
    (tmp_path / "lc").mkdir()
    (tmp_path / "lc" / "archive").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "lc")
    assert index(tmp_path, files="**/*.tif", year=2020).numbers["num_tiles"] == 1


@pytest.mark.parametrize("error", [TypeError("data type 'x' not understood"), ValueError(), MemoryError()])
def test_whatever_a_library_raises_over_a_tile_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from geokr_core.land_cover import tile_index

    def broken(*_: object) -> object:
        raise error

    tile(tmp_path / "lc" / "a.tif", np.full((1, 8, 8), 20, np.uint8))
    monkeypatch.setattr(tile_index, "_num_bands", broken)
    with pytest.raises(LandCoverError, match=rf"a\.tif: cannot be read: {type(error).__name__}"):
        index(tmp_path, year=2020)
