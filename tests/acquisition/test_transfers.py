"""Servers that are busy, break off, ignore ranges or deliver other bytes than announced."""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from geokr_core.acquisition.web import verify_multihash
from geokr_core.errors import AcquisitionError
from geokr_core.step.digests import multihash
from tests.acquisition.served import BLUE, FIRST, NORTH_M, SIZE_PX, UTM, WEST_M, Loop, cog, run, whole_assets


def test_busy_servers_are_waited_for_as_long_as_they_ask(loop: Loop, tmp_path: Path) -> None:
    loop.server.failures[BLUE] = [(429, {"Retry-After": "1"}), (503, {})]
    loop.server.failures["/search"] = [(503, {"Retry-After": "1"})]
    started = time.monotonic()
    run(loop.one_scene(collections=["s2"]), tmp_path)
    assert time.monotonic() - started >= 2.0


def test_a_server_that_stays_busy_is_named_and_the_rest_is_kept(loop: Loop, tmp_path: Path) -> None:
    loop.server.failures[BLUE] = [(503, {})] * 50
    with pytest.raises(AcquisitionError, match=r"1 of 3 items.*B02\.tif: no usable answer after 4 attempt"):
        run(loop.config(), tmp_path)
    assert len(loop.server.requests_for(BLUE)) == 4
    second = "S2A_12SUG_20210719_0_L2A"
    assert len(list((tmp_path / "scenes" / "s2" / second).glob("*.tif"))) == 5
    loop.server.failures.clear()
    assert run(loop.config(), tmp_path).numbers["num_broken_items"] == 0
    loop.server.failures[f"/data/{FIRST}/B02.tif"] = [(503, {})] * 50
    summary = run(loop.config(skip_broken=True, bbox=loop.middle(0.005)), tmp_path / "skipping")
    assert summary.numbers["num_broken_items"] == 1
    assert "B02.tif" in summary.warnings[0]


def test_connections_that_break_are_taken_up_again(loop: Loop, tmp_path: Path) -> None:
    loop.server.cuts[BLUE] = 2
    run(loop.one_scene(), tmp_path / "cut")
    assert loop.server.cuts[BLUE] == 0
    run(loop.one_scene(), tmp_path / "smooth")
    name = f"scenes/s2/{FIRST}/{FIRST}_blue.tif"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "smooth" / name).read_bytes()


def test_whole_assets_are_verified_and_cut_to_the_same_window(loop: Loop, tmp_path: Path) -> None:
    digest = hashlib.sha256(loop.server.files[BLUE]).hexdigest()
    loop.server.cuts[BLUE], loop.server.cut_over = 1, len(loop.server.files[BLUE]) - 1
    run(whole_assets(loop, "1220" + digest), tmp_path / "whole")
    resumed = [span for _, span in loop.server.requests_for(BLUE) if span.endswith("-") and span != "bytes=0-"]
    assert resumed, "the download began anew instead of going on"
    record = json.loads((tmp_path / "whole" / "scenes" / "s2" / FIRST / f"{FIRST}_blue.tif.record.json").read_text())
    assert record["catalogue_checksum_verified"] is True
    assert record["sha256"] == hashlib.sha256((tmp_path / "whole" / record["path"]).read_bytes()).hexdigest()
    run(loop.one_scene(), tmp_path / "window")
    with (
        rasterio.open(tmp_path / "whole" / record["path"]) as one,
        rasterio.open(tmp_path / "window" / record["path"]) as two,
    ):
        assert one.transform == two.transform
        np.testing.assert_array_equal(one.read(), two.read())


@pytest.mark.parametrize("name", ["sha256", "md5", "sha1", "sha512"])
def test_multihashes_of_every_listed_kind_are_understood(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    verify_multihash(tmp_path / "file", multihash(name, hashlib.new(name, b"abc").hexdigest()), "file")
    with pytest.raises(AcquisitionError, match=f"{name} .* found"):
        verify_multihash(tmp_path / "file", multihash(name, hashlib.new(name, b"abd").hexdigest()), "file")


def test_a_wrong_checksum_leaves_no_file(loop: Loop, tmp_path: Path) -> None:
    with pytest.raises(AcquisitionError, match=r"B02\.tif: sha256 .* announced by the catalogue"):
        run(whole_assets(loop, "1220" + "0" * 64), tmp_path)
    assert not list((tmp_path / "scenes").rglob("*.tif*"))
    assert not list((tmp_path / "scenes").rglob(".*"))


def test_files_that_are_no_cog_and_servers_without_ranges_are_downloaded_whole(loop: Loop, tmp_path: Path) -> None:
    pixels = loop.world["pixels"][FIRST]["blue"]
    transform = Affine(10, 0, WEST_M, 0, -10, NORTH_M)
    # One block of the whole image: reading a window would transfer all of it, and with overhead.
    loop.server.files[BLUE] = cog(
        pixels, UTM, transform, tmp_path, driver="GTiff", tiled=True, blockxsize=SIZE_PX, blockysize=SIZE_PX, nodata=0
    )
    green = f"/data/{FIRST}/B03.tif"
    loop.server.no_ranges.add(green)
    nir = f"/data/{FIRST}/B08.tif"
    lossless = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
    loop.server.files[nir] = cog(loop.world["pixels"][FIRST]["nir"], UTM, transform, tmp_path, **lossless)
    run(loop.one_scene(), tmp_path / "got")
    whole = "whole file, cut here"
    for band, how in (("blue", whole), ("green", whole), ("nir", whole), ("red", "window")):
        path = tmp_path / "got" / "scenes" / "s2" / FIRST / f"{FIRST}_{band}.tif"
        assert json.loads(path.with_name(path.name + ".record.json").read_text())["how"] == how
        with rasterio.open(path) as source:
            col, row = round((source.transform.c - WEST_M) / 10), round((NORTH_M - source.transform.f) / 10)
            expected = loop.world["pixels"][FIRST][band][row : row + source.height, col : col + source.width]
            np.testing.assert_array_equal(source.read(1), expected)
    assert run(loop.one_scene(), tmp_path / "got").numbers["num_files_finished_before"] == 6


def test_a_login_page_is_not_taken_for_a_raster(loop: Loop, tmp_path: Path) -> None:
    loop.server.files[BLUE] = b"<html>please sign in</html>"
    loop.server.types[BLUE] = "text/html"
    with pytest.raises(AcquisitionError, match=r"not a GeoTIFF or JPEG 2000 but text/html that begins with b'<html>"):
        run(loop.one_scene(), tmp_path)
