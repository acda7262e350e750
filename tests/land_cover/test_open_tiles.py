"""Tiles that stay open between scenes: opened once, never believed once they are other files, and closed in the end."""

import os
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.errors import RasterioError, RasterioIOError

from geokr_core.land_cover.open_tiles import close_tiles, open_tile
from geokr_core.testing import write_raster

AT = Affine(30, 0, 500000, 0, -30, 3300000)


@pytest.fixture(autouse=True)
def _closed() -> None:
    close_tiles()


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the rasters that GDAL opened, in order."""
    seen: list[str] = []
    real = rasterio.open

    def counted(path: Path, *args: object, **more: object) -> object:
        if not args:
            seen.append(Path(path).name)
        return real(path, *args, **more)

    monkeypatch.setattr(rasterio, "open", counted)
    return seen


def tile(path: Path, code: int = 20) -> Path:
    return write_raster(path, np.full((8, 8), code, np.uint8), "EPSG:32648", AT)


def code_of(path: Path) -> int:
    with open_tile(path) as opened:
        return int(opened.dataset.read(1)[0, 0])


def test_a_tile_is_opened_once_for_many_scenes(tmp_path: Path, opens: list[str]) -> None:
    path = tile(tmp_path / "a.tif")
    opens.clear()
    assert {code_of(path) for _ in range(5)} == {20}
    assert opens == ["a.tif"]
    close_tiles()
    code_of(path)
    assert opens == ["a.tif", "a.tif"]


@pytest.mark.parametrize("way", ["in place", "by another file", "with its old time"])
def test_a_tile_that_was_replaced_is_read_anew(tmp_path: Path, way: str) -> None:
    path, other = tile(tmp_path / "a.tif", 20), tile(tmp_path / "b.tif", 60)
    before = path.stat()
    assert code_of(path) == 20
    if way == "in place":
        path.write_bytes(other.read_bytes())
    else:
        other.replace(path)
    if way == "with its old time":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert code_of(path) == 60


def test_a_mask_that_came_or_went_is_seen(tmp_path: Path) -> None:
    path = tile(tmp_path / "a.tif")
    with open_tile(path) as opened:
        assert opened.mask is None
    mask = tile(tmp_path / "mask.tif", 255).rename(tmp_path / "a.tif.msk")
    with open_tile(path) as opened:
        assert opened.mask is not None
    mask.unlink()
    with open_tile(path) as opened:
        assert opened.mask is None


def test_a_tile_that_vanished_or_failed_is_not_believed_again(tmp_path: Path, opens: list[str]) -> None:
    path = tile(tmp_path / "a.tif")
    opens.clear()
    with pytest.raises(RasterioError, match="damaged here"), open_tile(path):
        raise RasterioError("damaged here")
    code_of(path)
    assert opens == ["a.tif", "a.tif"]
    path.unlink()
    with pytest.raises(RasterioIOError, match="no such regular file"):
        code_of(path)


def test_no_more_than_a_few_tiles_stay_open_and_each_thread_has_its_own(tmp_path: Path, opens: list[str]) -> None:
    paths = [tile(tmp_path / f"{number}.tif") for number in range(12)]
    opens.clear()
    for path in (*paths, paths[-1]):
        code_of(path)
    assert len(opens) == 12
    held = {str(fd.resolve()) for fd in Path("/proc/self/fd").iterdir()}
    assert len({str(path) for path in paths} & held) == 8
    thread = Thread(target=code_of, args=(paths[-1],))
    thread.start()
    thread.join()
    assert len(opens) == 13
