"""Fetching from a real HTTP server on loopback that serves a catalogue and rasters, and fails as servers do."""

import hashlib
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pystac
import pytest
import rasterio
import shapely
import yaml
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import geometry_mask
from rasterio.warp import transform_bounds
from typer.testing import CliRunner

from geokr_core.acquisition.catalogues import FetchConfig, load_catalogues
from geokr_core.acquisition.fetching import fetch
from geokr_core.acquisition.plan import safe_name, window_of
from geokr_core.acquisition.search import Area
from geokr_core.acquisition.web import verify_multihash
from geokr_core.chips.config import ChipsConfig
from geokr_core.chips.cut import cut_chips
from geokr_core.cli import app
from geokr_core.errors import AcquisitionError, ConfigError
from geokr_core.land_cover.config import LandCoverConfig
from geokr_core.land_cover.legend import load_legend
from geokr_core.land_cover.tile_index import index_products
from geokr_core.levir_kr.config import LevirKRConfig
from geokr_core.levir_kr.freeze import freeze
from geokr_core.levir_kr.stac_export import export_stac
from geokr_core.proportions.config import ProportionsConfig
from geokr_core.proportions.count import count_proportions
from geokr_core.rasters.grid import Grid, reproject
from geokr_core.scenes.config import ScenesConfig
from geokr_core.scenes.inventory import take_inventory
from geokr_core.step.digests import multihash
from geokr_core.step.reporter import RecordingReporter

UTM = "EPSG:32612"
WEST_M, NORTH_M, SIZE_PX = 300_000.0, 4_140_000.0, 1024
CODES = np.array([10, 30, 40, 50, 80], dtype=np.uint8)
BANDS = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08"}
FIRST = "S2A_12SUG_20210704_0_L2A"


@dataclass
class Server:
    """What is served and what was asked.

    Attributes:
        files: bytes by path.
        failures: (status, headers) answered before the file is, by path, the first one first.
        cuts: how many more answers break off half-way, by path.
        no_ranges: paths whose ranges are ignored.
        cut_over: bytes of an answer above which it may break off.
        hold: large answers wait for this event, by path.
        redirects: path to another address.
        log: (method, path, range, headers) of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)
    no_ranges: set[str] = field(default_factory=set)
    redirects: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    cut_over: int = 1000
    hold: dict[str, threading.Event] = field(default_factory=dict)
    log: list[tuple[str, str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def json(self, path: str, value: Any) -> None:
        self.files[path] = json.dumps(value).encode()

    def bytes_sent(self, path: str) -> int:
        return sum(int(h.get("x-sent", 0)) for _, p, _, h in self.log if p == path)

    def requests_for(self, path: str) -> list[tuple[str, str]]:
        return [(method, span) for method, p, span, _ in self.log if p == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        self._answer(send=True, body=body)

    def _answer(self, *, send: bool, body: dict[str, Any] | None = None) -> None:
        state: Server = self.server.state
        path = self.path.partition("?")[0]
        headers = {k.lower(): v for k, v in self.headers.items()}
        entry = (self.command, path, headers.get("range", ""), headers | {"query": self.path.partition("?")[2]})
        state.log.append(entry)
        waiting = state.failures.get(path) or state.failures.get("*")
        if waiting:
            status, extra = waiting.pop(0)
            return self._reply(status, b"", extra, send)
        if path in state.redirects:
            return self._reply(302, b"", {"Location": state.redirects[path]}, send)
        if path == "/search" and body is not None:
            return self._reply(200, search(state, body), {"Content-Type": "application/geo+json"}, send)
        data = state.files.get(path)
        if data is None:
            return self._reply(404, b"no such file", {}, send)
        extra = {"ETag": '"1"', "Content-Type": state.types.get(path, "image/tiff")}
        span = headers.get("range", "")
        status, part = 200, data
        if path in state.no_ranges:
            span = ""
        else:
            extra["Accept-Ranges"] = "bytes"
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
            status, part = 206, data[start:stop]
            extra["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        if path in state.hold and entry[2] not in ("", "bytes=0-15") and start > len(data) // 4:
            state.hold[path].wait(60)
        entry[3]["x-sent"] = str(len(part) if send else 0)
        if send and len(part) > state.cut_over and state.cuts.get(path, 0) > 0:
            state.cuts[path] -= 1
            self.send_response(status)
            for key, value in {**extra, "Content-Length": str(len(part))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return None
        return self._reply(status, part, extra, send)

    def _reply(self, status: int, data: bytes, headers: dict[str, str], send: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if send:
            self.wfile.write(data)


@contextmanager
def serving() -> Iterator[Server]:
    state = Server()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.state = state  # type: ignore[attr-defined]
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def cog(pixels: np.ndarray, crs: str, transform: Affine, folder: Path, driver: str = "COG", **options: Any) -> bytes:
    """A cloud-optimised GeoTIFF in memory."""
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    path = folder / ("made.jp2" if driver.startswith("JP2") else "made.tif")
    with rasterio.open(
        path,
        "w",
        driver=driver,
        count=len(pixels),
        height=pixels.shape[1],
        width=pixels.shape[2],
        dtype=pixels.dtype,
        crs=CRS.from_user_input(crs),
        transform=transform,
        **options,
    ) as target:
        target.write(pixels)
    data = path.read_bytes()
    path.unlink()
    return data


def scene_pixels(seed: int, size: int = SIZE_PX) -> dict[str, np.ndarray]:
    """Four bands, smooth enough to compress and different everywhere."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(300, 4000, size=(4, size // 8, size // 8), dtype=np.uint16)
    fine = coarse.repeat(8, axis=1).repeat(8, axis=2) + rng.integers(0, 40, size=(4, size, size), dtype=np.uint16)
    return dict(zip(BANDS, fine, strict=True))


def land_cover_pixels(shape: tuple[int, int]) -> np.ndarray:
    """Blocks of codes; no two rows of blocks alike."""
    rng = np.random.default_rng(5)
    blocks = CODES[rng.integers(0, len(CODES), size=(-(-shape[0] // 24), -(-shape[1] // 24)))]
    return blocks.repeat(24, axis=0).repeat(24, axis=1)[: shape[0], : shape[1]]


def ground(size: int = SIZE_PX) -> tuple[float, float, float, float]:
    """West, south, east, north of the scenes in degrees."""
    return transform_bounds(UTM, "EPSG:4326", WEST_M, NORTH_M - 10 * size, WEST_M + 10 * size, NORTH_M)


def item(
    name: str, collection: str, when: str, bbox: tuple[float, ...], assets: dict[str, Any], **properties: Any
) -> Any:
    west, south, east, north = bbox
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "bbox": list(bbox),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": when, **properties},
        "links": [],
        "assets": {k: v if isinstance(v, dict) else {"href": v} for k, v in assets.items()},
    }


def fill(server: Server, folder: Path) -> dict[str, Any]:
    """Serve two scenes, a land-cover tile, an API at ``/`` and a static catalogue at ``/static/catalog.json``."""
    box = ground()
    items = []
    pixels = {}
    for number, (day, cloud) in enumerate((("2021-07-04", 3.0), ("2021-07-19", 40.0))):
        name = f"S2A_12SUG_{day.replace('-', '')}_0_L2A"
        pixels[name] = scene_pixels(number)
        transform = Affine(10, 0, WEST_M, 0, -10, NORTH_M)
        for band, key in BANDS.items():
            server.files[f"/data/{name}/{key}.tif"] = cog(
                pixels[name][band], UTM, transform, folder, nodata=0, blocksize=256, compress="deflate"
            )
        scl = (np.indices((SIZE_PX // 2, SIZE_PX // 2)).sum(axis=0) // 50 % 11).astype(np.uint8)
        server.files[f"/data/{name}/SCL.tif"] = cog(scl, UTM, Affine(20, 0, WEST_M, 0, -20, NORTH_M), folder)
        assets = {key: f"{server.url}/data/{name}/{key}.tif" for key in (*BANDS.values(), "SCL")}
        items.append(item(name, "sentinel-2-l2a", f"{day}T18:12:01Z", box, assets, **{"eo:cloud_cover": cloud}))
    step = 1 / 8000
    west, north = round(box[0] - 0.02, 3), round(box[3] + 0.02, 3)
    shape = (round((north - box[1] + 0.02) / step), round((box[2] - west + 0.02) / step))
    cover = land_cover_pixels(shape)
    cover_transform = Affine(step, 0, west, 0, -step, north)
    server.files["/data/cover.tif"] = cog(
        cover, "EPSG:4326", cover_transform, folder, nodata=0, blocksize=256, compress="deflate"
    )
    cover_box = (west, north - shape[0] * step, west + shape[1] * step, north)
    cover_item = item(
        "ESA_WorldCover_10m_2021_v200_N36W114",
        "esa-worldcover",
        "2021-01-01T00:00:00Z",
        cover_box,
        {"map": f"{server.url}/data/cover.tif"},
    )
    items.append(cover_item)
    _serve_api(server, items)
    _serve_static(server, items)
    return {"pixels": pixels, "cover": cover, "cover_transform": cover_transform, "items": items, "bbox": box}


def _serve_api(server: Server, items: list[Any]) -> None:
    core = "https://api.stacspec.org/v1.0.0"
    server.json("/items", items)
    server.json(
        "/",
        {
            "type": "Catalog",
            "stac_version": "1.0.0",
            "id": "api",
            "description": "An API.",
            "conformsTo": [f"{core}/core", f"{core}/item-search", f"{core}/collections"],
            "links": [
                {"rel": "self", "href": f"{server.url}/"},
                {"rel": "root", "href": f"{server.url}/"},
                {"rel": "search", "href": f"{server.url}/search", "method": "POST", "type": "application/geo+json"},
            ],
        },
    )


def search(server: Server, body: dict[str, Any]) -> bytes:
    """Item search, one item a page, with a next link as APIs give it."""
    found = [i for i in json.loads(server.files["/items"]) if i["collection"] in body["collections"]]
    page = int(body.get("token", 0))
    links = []
    if page + 1 < len(found):
        following = {**body, "token": page + 1}
        links = [{"rel": "next", "href": f"{server.url}/search", "method": "POST", "body": following}]
    return json.dumps({"type": "FeatureCollection", "features": found[page : page + 1], "links": links}).encode()


def _serve_static(server: Server, items: list[Any]) -> None:
    names = sorted({i["collection"] for i in items})
    children = [{"rel": "child", "href": f"./{name}/collection.json"} for name in names]
    # A circle, as careless catalogues have them.
    links = [*children, {"rel": "child", "href": "./catalog.json"}]
    catalogue = {"type": "Catalog", "stac_version": "1.0.0", "id": "static", "description": "Static.", "links": links}
    server.json("/static/catalog.json", catalogue)
    for name in names:
        mine = [i for i in items if i["collection"] == name]
        server.json(
            f"/static/{name}/collection.json",
            {
                "type": "Collection",
                "stac_version": "1.0.0",
                "id": name,
                "description": name,
                "license": "other",
                "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}},
                "links": [{"rel": "item", "href": f"./{i['id']}.json"} for i in mine],
            },
        )
        for entry in mine:
            relative = {k: {**a, "href": a["href"].replace(server.url, "../..")} for k, a in entry["assets"].items()}
            server.json(f"/static/{name}/{entry['id']}.json", {**entry, "assets": relative})


# --- what is asked of it ---


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, Any]]]:
    with serving() as server:
        yield server, fill(server, tmp_path_factory.mktemp("made"))


@dataclass
class Loop:
    server: Server
    world: dict[str, Any]

    def middle(self, half_deg: float = 0.012) -> tuple[float, float, float, float]:
        west, south, east, north = self.world["bbox"]
        x, y = (west + east) / 2, (south + north) / 2
        return (x - half_deg, y - half_deg, x + half_deg, y + half_deg)

    def catalogue(self, root: str = "/", **changes: Any) -> dict[str, Any]:
        scenes = {
            "name": "s2",
            "collection": "sentinel-2-l2a",
            "kind": "scenes",
            "bands": BANDS,
            "quality": "SCL",
            "land_cover": "worldcover_2021",
        }
        cover = {
            "name": "worldcover_2021",
            "collection": "esa-worldcover",
            "kind": "land_cover",
            "asset": "map",
            "legend": "worldcover",
            "year": 2021,
        }
        return {"name": "loop", "url": self.server.url + root, "collections": [scenes, cover], **changes}

    def config(self, root: str = "/", catalogue: dict[str, Any] | None = None, **changes: Any) -> FetchConfig:
        base: dict[str, Any] = {
            "catalogues": [catalogue or self.catalogue(root)],
            "collections": ["s2"],
            "bbox": self.middle(),
            "dates": ("2021-07-01", "2021-07-31"),
            "backoff_s": 0.01,
            "timeout_s": 10,
            "attempts": 4,
        }
        return FetchConfig.model_validate(base | changes)

    def one_scene(self, **changes: Any) -> FetchConfig:
        return self.config(**{"max_items": 1, **changes})


@pytest.fixture
def loop(prepared: tuple[Server, dict[str, Any]]) -> Iterator[Loop]:
    server, world = prepared
    before = dict(server.files)
    server.log.clear()
    yield Loop(server, world)
    server.files.clear()
    server.files.update(before)
    for state in (server.failures, server.cuts, server.no_ranges, server.redirects, server.types):
        state.clear()
    server.cut_over = 1000


BLUE = f"/data/{FIRST}/B02.tif"


def run(config: FetchConfig, out: Path) -> Any:
    return fetch(config, out, RecordingReporter())


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("root", ["/", "/static/catalog.json"])
def test_windows_hold_the_very_pixels_of_the_source_in_their_place(loop: Loop, tmp_path: Path, root: str) -> None:
    summary = run(loop.config(root), tmp_path)
    assert summary.numbers["num_items"] == 3
    west, south, east, north = loop.middle()
    for name, bands in loop.world["pixels"].items():
        for band, pixels in bands.items():
            with rasterio.open(tmp_path / "scenes" / "s2" / name / f"{name}_{band}.tif") as source:
                col, row = round((source.transform.c - WEST_M) / 10), round((NORTH_M - source.transform.f) / 10)
                assert (source.transform.a, source.transform.e) == (10.0, -10.0)
                np.testing.assert_array_equal(
                    source.read(1), pixels[row : row + source.height, col : col + source.width]
                )
                assert (source.nodata, source.crs.to_epsg()) == (0, 32612)
                bounds = transform_bounds(source.crs, "EPSG:4326", *source.bounds)
                assert source.width < 300
        # The whole box is there, and hardly more.
        assert bounds[0] <= west
        assert bounds[1] <= south
        assert bounds[2] >= east
        assert bounds[3] >= north
        with rasterio.open(tmp_path / "scenes" / "s2" / name / f"{name}_quality.tif") as source:
            assert source.transform.a == 20.0


def test_only_the_window_is_transferred(loop: Loop, tmp_path: Path) -> None:
    run(loop.one_scene(bbox=loop.middle(0.002)), tmp_path)
    assert 0 < loop.server.bytes_sent(BLUE) < len(loop.server.files[BLUE]) / 2


def test_fetched_files_go_through_the_chain_with_the_proportions_of_the_source(loop: Loop, tmp_path: Path) -> None:
    run(loop.config(), tmp_path / "got")
    sections = yaml.safe_load((tmp_path / "got" / "params-snippet.yaml").read_text())
    scenes, cover = (
        ScenesConfig.model_validate(sections["scenes"]),
        LandCoverConfig.model_validate(sections["land_cover"]),
    )
    reporter = RecordingReporter()
    store = tmp_path / "store"
    take_inventory(scenes, store / "scenes", reporter)
    index_products(cover, store / "land_cover", reporter)
    cut_chips(ChipsConfig(size_px=64, stride_px=64), scenes.folder, store / "scenes", store / "chips", reporter)
    count_proportions(
        ProportionsConfig(), cover.folder, store / "land_cover", store / "chips", store / "proportions", reporter
    )
    assert not reporter.warnings
    seen = 0
    for path in sorted((store / "chips").glob("*.parquet")):
        rows = pd.read_parquet(path).merge(pd.read_parquet(store / "proportions" / path.name), on="chip_id")
        assert set(rows["acquired"]) <= {"2021-07-04", "2021-07-19"}
        # No corner of a scene's window is without land cover, though the window is not the box.
        assert rows["unknown_fraction"].max() < 1e-9
        for _, row in rows.iterrows():
            seen += 1
            expected = _shares(loop.world, shapely.from_wkb(row["footprint"]))
            for code, name in COMMON_NAMES.items():
                assert row[f"fraction_{name}"] == pytest.approx(expected.get(code, 0.0), abs=0.01)
    assert seen >= 18
    # And on, with every column that the chain writes, into a STAC collection.
    config = LevirKRConfig(validation_fraction=0.0)
    freeze(config, store / "chips", store / "proportions", store / "levir_kr", reporter)
    assert export_stac(store / "levir_kr", store / "stac", reporter).numbers["num_items"] == 2
    items = [pystac.Item.from_file(str(path)) for path in sorted((store / "stac" / "items").glob("*.json"))]
    assert [item.datetime.date().isoformat() for item in items if item.datetime] == ["2021-07-04", "2021-07-19"]
    assert {item.properties["proj:code"] for item in items} == {UTM}
    bands = items[0].assets["chips"].extra_fields["raster:bands"]
    assert all(band["scale"] > 0 and 300 <= band["offset"] < 4000 for band in bands)


COMMON_NAMES = {10: "forest", 30: "grassland", 40: "cultivated_land", 50: "artificial_surfaces", 80: "water"}


def _shares(world: dict[str, Any], footprint: shapely.Polygon) -> dict[int, float]:
    """Shares of the codes of the source raster's cells whose centres lie in the footprint."""
    cover, transform = world["cover"], world["cover_transform"]
    inside = ~geometry_mask([footprint], cover.shape, transform)
    codes, counts = np.unique(cover[inside], return_counts=True)
    return dict(zip(codes.tolist(), (counts / counts.sum()).tolist(), strict=True))


def test_a_second_run_reads_nothing_and_changes_nothing(loop: Loop, tmp_path: Path) -> None:
    run(loop.one_scene(), tmp_path)
    before = contents(tmp_path)
    loop.server.log.clear()
    summary = run(loop.one_scene(), tmp_path)
    assert summary.numbers["num_files_finished_before"] == 6
    assert not [path for _, path, _, _ in loop.server.log if path.startswith("/data")]
    assert contents(tmp_path) == before


def test_a_file_that_was_changed_is_read_again(loop: Loop, tmp_path: Path) -> None:
    run(loop.one_scene(), tmp_path)
    before = contents(tmp_path)
    victim = tmp_path / "scenes" / "s2" / FIRST / f"{FIRST}_red.tif"
    victim.write_bytes(victim.read_bytes()[:-100])
    assert run(loop.one_scene(), tmp_path).numbers["num_files_finished_before"] == 5
    assert contents(tmp_path) == before


def test_killed_in_the_middle_and_run_again_gives_the_same_bytes(loop: Loop, tmp_path: Path) -> None:
    catalogues = tmp_path / "catalogues.yaml"
    catalogues.write_text(yaml.safe_dump({"catalogues": [loop.catalogue()]}, sort_keys=False))
    box = ",".join(map(str, loop.middle()))
    command = [
        sys.executable,
        "-m",
        "geokr_core.cli",
        "fetch",
        "-c",
        str(catalogues),
        "--collection",
        "s2",
        f"--bbox={box}",
        "--dates",
        "2021-07-01/2021-07-31",
        "--out",
        str(tmp_path / "killed"),
        "--yes",
        "--connections",
        "1",
    ]
    slow = f"/data/{FIRST}/B08.tif"
    loop.server.hold[slow] = threading.Event()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # Headers are read at once; the transfer of the last band of the first scene hangs, the bands before it are done.
    done = tmp_path / "killed" / "scenes" / "s2" / FIRST / f"{FIRST}_red.tif.record.json"
    deadline = time.monotonic() + 60
    while not done.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    assert done.exists()
    process.kill()
    process.wait()
    loop.server.hold.pop(slow).set()
    assert not (tmp_path / "killed" / "fetch.json").exists()
    loop.server.log.clear()
    run(loop.config(), tmp_path / "killed")
    assert not loop.server.requests_for(BLUE)
    run(loop.config(), tmp_path / "whole")
    names = set(contents(tmp_path / "killed")) - {"params-snippet.yaml"}
    assert names == set(contents(tmp_path / "whole")) - {"params-snippet.yaml"}
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


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


def _whole(loop: Loop, checksum: str | None) -> FetchConfig:
    catalogue = loop.catalogue()
    catalogue["collections"][0] = {**catalogue["collections"][0], "whole_assets": True, "bands": {"blue": "B02"}}
    catalogue["collections"][0].pop("quality")
    items = json.loads(loop.server.files["/items"])
    if checksum is not None:
        items[0]["assets"]["B02"]["file:checksum"] = checksum
    loop.server.json("/items", items)
    return loop.one_scene(catalogue=catalogue)


def test_whole_assets_are_verified_and_cut_to_the_same_window(loop: Loop, tmp_path: Path) -> None:
    digest = hashlib.sha256(loop.server.files[BLUE]).hexdigest()
    loop.server.cuts[BLUE], loop.server.cut_over = 1, len(loop.server.files[BLUE]) - 1
    run(_whole(loop, "1220" + digest), tmp_path / "whole")
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
        run(_whole(loop, "1220" + "0" * 64), tmp_path)
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


@pytest.mark.parametrize(
    "href", ["file:///etc/passwd", "/vsizip//etc/x.zip/a.tif", "s3://bucket/a.tif", "ftp://127.0.0.1/a.tif"]
)
def test_a_remote_catalogue_leads_to_no_other_kind_of_address(loop: Loop, tmp_path: Path, href: str) -> None:
    items = json.loads(loop.server.files["/items"])
    items[0]["assets"]["B02"]["href"] = href
    loop.server.json("/items", items)
    with pytest.raises(AcquisitionError, match=r"never opened|answered 404"):
        run(loop.one_scene(), tmp_path)


def test_a_remote_static_catalogue_leads_to_no_local_document(loop: Loop, tmp_path: Path) -> None:
    secret = tmp_path / "item.json"
    secret.write_text(json.dumps(loop.world["items"][0]))
    collection = json.loads(loop.server.files["/static/sentinel-2-l2a/collection.json"])
    collection["links"] = [{"rel": "item", "href": f"file://{secret}"}]
    loop.server.json("/static/sentinel-2-l2a/collection.json", collection)
    with pytest.raises(AcquisitionError, match=r"never followed|does not resolve"):
        run(loop.one_scene(root="/static/catalog.json"), tmp_path / "got")


@pytest.mark.parametrize("identifier", ["../../../escaped", "/etc/passwd", "a/b\\c:d", "..", "x" * 300, "ä ö"])
def test_ids_cannot_leave_the_folder(loop: Loop, tmp_path: Path, identifier: str) -> None:
    items = json.loads(loop.server.files["/items"])
    items[0]["id"] = identifier
    loop.server.json("/items", items)
    run(loop.one_scene(), tmp_path / "deep" / "got")
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["got"]
    assert len(list((tmp_path / "deep" / "got" / "scenes" / "s2").glob("*/*_blue.tif"))) == 1
    assert safe_name(identifier) != safe_name(identifier + "/")


def test_plans_beyond_the_limit_are_refused_before_anything_is_read(loop: Loop, tmp_path: Path) -> None:
    with pytest.raises(AcquisitionError, match=r"comes to 0\.00 GB of pixels, allowed are 1e-06"):
        run(loop.one_scene(max_gb=1e-6), tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_the_announced_size_bounds_the_download(loop: Loop, tmp_path: Path) -> None:
    config = _whole(loop, None)
    real = loop.server.files[BLUE]
    with pytest.raises(AcquisitionError, match="longer than the"):
        fetch(
            config,
            tmp_path,
            RecordingReporter(),
            confirm=lambda plan: bool(loop.server.files.update({BLUE: real * 3})) or True,
        )


def test_secrets_go_to_their_host_only_and_into_no_file_or_message(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LOOP_TOKEN", "s3cr3t-header")
    monkeypatch.setenv("LOOP_SIGNATURE", "sig=s3cr3t-query")
    access = {"headers": {"X-Key": "Bearer ${LOOP_TOKEN}"}, "asset_query": "${LOOP_SIGNATURE}"}
    with serving() as stranger:
        green = f"/data/{FIRST}/B03.tif"
        stranger.files[green] = loop.server.files[green]
        loop.server.redirects[green] = f"{stranger.url}{green}"
        config = loop.one_scene(catalogue=loop.catalogue(**access))
        with caplog.at_level(logging.DEBUG):
            run(config, tmp_path)
        assert stranger.log
        assert not [h for *_, h in stranger.log if "s3cr3t" in str(h)]
    blue = [h for _, path, _, h in loop.server.log if path == BLUE]
    assert blue
    assert all(h.get("x-key") == "Bearer s3cr3t-header" and "s3cr3t-query" in h["query"] for h in blue)
    assert all(h.get("user-agent", "").startswith("geokr/") for h in blue)
    assert not [name for name, data in contents(tmp_path).items() if b"s3cr3t" in data]
    loop.server.failures["*"] = [(403, {})] * 50
    with pytest.raises(AcquisitionError) as refusal:
        run(loop.one_scene(catalogue=loop.catalogue(**access), bbox=loop.middle(0.004)), tmp_path / "other")
    assert "s3cr3t" not in str(refusal.value)
    assert not [r for r in caplog.records if "s3cr3t" in r.getMessage()]
    monkeypatch.delenv("LOOP_TOKEN")
    with pytest.raises(ConfigError, match="set the environment variable LOOP_TOKEN"):
        run(config, tmp_path / "third")


def test_bands_of_two_grids_are_refused_by_name(loop: Loop, tmp_path: Path) -> None:
    catalogue = loop.catalogue()
    catalogue["collections"][0]["bands"] = {"red": "B04", "scl": "SCL"}
    with pytest.raises(AcquisitionError, match=r"band scl has pixels of 20\.0 m on another grid than red \(10\.0 m\)"):
        run(loop.one_scene(catalogue=catalogue), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dates": ("2020-07-01", "2020-07-31")}, "has nothing over"),
        ({"max_cloud_cover_percent": 1}, "at most 1 % cloud"),
        ({"bbox": (10.0, 50.0, 10.1, 50.1)}, "west,south,east,north"),
    ],
)
@pytest.mark.parametrize("root", ["/", "/static/catalog.json"])
def test_nothing_found_says_what_was_asked(loop: Loop, tmp_path: Path, changes: Any, message: str, root: str) -> None:
    with pytest.raises(AcquisitionError, match=message):
        run(loop.config(root, **changes), tmp_path)


def test_an_unknown_collection_is_named_with_those_that_are_there(loop: Loop, tmp_path: Path) -> None:
    catalogue = loop.catalogue("/static/catalog.json")
    catalogue["collections"][0]["collection"] = "sentinel-3"
    with pytest.raises(AcquisitionError, match="no collection 'sentinel-3'; it holds esa-worldcover, sentinel-2-l2a"):
        run(loop.config(catalogue=catalogue), tmp_path)


def test_a_local_catalogue_is_read_without_any_request(loop: Loop, tmp_path: Path) -> None:
    for path, data in loop.server.files.items():
        if path.startswith(("/static", "/data")):
            (tmp_path / "local" / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "local" / path[1:]).write_bytes(data)
    catalogue = {**loop.catalogue(), "url": str(tmp_path / "local" / "static" / "catalog.json")}
    run(loop.config(catalogue=catalogue), tmp_path / "local_got")
    assert not loop.server.log
    run(loop.config(), tmp_path / "remote_got")
    name = f"scenes/s2/{FIRST}/{FIRST}_nir.tif"
    assert (tmp_path / "local_got" / name).read_bytes() == (tmp_path / "remote_got" / name).read_bytes()


def test_a_box_across_the_antimeridian_is_one_window(tmp_path: Path) -> None:
    grid = Grid(CRS.from_epsg(32701), Affine(10, 0, 175_000, 0, -10, 8_010_000), 4000, 4000)
    west, south, east, north = 179.98, -18.1, -179.98, -18.05
    window = window_of(grid, Area.of((west, south, east, north)))
    assert window is not None
    row, col, height, width = window
    ring = np.array([[west, south], [west, north], [east, south], [east, north]])
    xy = reproject(ring, "EPSG:4326", grid.wkt)
    assert col <= (xy[:, 0].min() - 175_000) / 10 < col + 2
    assert col + width - 2 < (xy[:, 0].max() - 175_000) / 10 <= col + width
    assert row <= (8_010_000 - xy[:, 1].max()) / 10 < row + 2
    assert 400 < width < 450
    assert height < 600
    globe = Grid(CRS.from_epsg(4326), Affine(0.05, 0, -180, 0, -0.05, 90), 3600, 7200)
    with pytest.raises(AcquisitionError, match="fetch each side by itself"):
        window_of(globe, Area.of((west, south, east, north)))
    assert window_of(globe, Area.of((10.0, 20.0, 10.1, 20.1))) == (1398, 3800, 2, 2)


def test_the_plan_is_shown_and_a_dry_run_writes_nothing(loop: Loop, tmp_path: Path) -> None:
    catalogues = tmp_path / "catalogues.yaml"
    catalogues.write_text(yaml.safe_dump({"catalogues": [loop.catalogue()]}, sort_keys=False))
    box = ",".join(map(str, loop.middle()))
    arguments = [
        "fetch",
        "-c",
        str(catalogues),
        "--collection",
        "s2",
        f"--bbox={box}",
        "--dates",
        "2021-07-01/2021-07-31",
        "--out",
        str(tmp_path / "got"),
    ]
    dry = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert dry.exit_code == 0
    assert "MB to transfer for 11 files" in dry.stdout
    asked = CliRunner().invoke(app, arguments)
    assert isinstance(asked.exception, AcquisitionError)
    assert "pass --yes" in str(asked.exception)
    assert not (tmp_path / "got").exists()
    done = CliRunner().invoke(app, [*arguments, "--yes"])
    assert done.exit_code == 0
    assert len(list((tmp_path / "got").rglob("*.tif"))) == 11


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": (0, 5, 1, 4)}, "south < north"),
        ({"collections": ["s3"]}, "'s3' is none of"),
        ({"dates": ("2021-08-01", "2021-07-01")}, "lies after"),
    ],
)
def test_requests_that_cannot_be_meant_are_refused(loop: Loop, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loop.config(**changes)


def test_secrets_in_the_file_or_over_plain_http_are_refused(tmp_path: Path) -> None:
    collection = {"name": "m", "collection": "m", "kind": "land_cover", "asset": "a", "legend": "nlcd", "year": 2021}
    base = {"name": "c", "url": "https://stac.example/", "collections": [collection]}
    for changes, message in (
        ({"headers": {"Authorization": "Bearer abc"}}, "must take their values from"),
        ({"url": "http://stac.example/", "headers": {"Authorization": "${TOKEN}"}}, "must be https"),
        ({"url": "s3://bucket/catalog.json"}, "http, https or a local path expected"),
    ):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"catalogues": [base | changes]}))
        with pytest.raises(ConfigError, match=message):
            load_catalogues(tmp_path / "c.yaml")


def test_the_delivered_file_of_catalogues_is_valid() -> None:
    catalogues = load_catalogues(Path(__file__).resolve().parents[2] / "params" / "catalogues.yaml")
    names = {c.name for catalogue in catalogues for c in catalogue.collections}
    assert {"sentinel2_l2a", "landsat_c2_l2", "worldcover_2021", "io_lulc_2021"} <= names
    for catalogue in catalogues:
        for collection in catalogue.collections:
            if collection.legend:
                load_legend(collection.legend)
