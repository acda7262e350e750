"""What the server of these tests serves: two scenes, a land-cover tile, an API and a static catalogue, and how they are fetched."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from geokr_core.acquisition.catalogues import FetchConfig
from geokr_core.acquisition.fetching import fetch
from geokr_core.step.reporter import RecordingReporter
from tests.acquisition.catalogue_server import Server

UTM = "EPSG:32612"
WEST_M, NORTH_M, SIZE_PX = 300_000.0, 4_140_000.0, 1024
CODES = np.array([10, 30, 40, 50, 80], dtype=np.uint8)
BANDS = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08"}
FIRST = "S2A_12SUG_20210704_0_L2A"
BLUE = f"/data/{FIRST}/B02.tif"


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


def run(config: FetchConfig, out: Path) -> Any:
    return fetch(config, out, RecordingReporter())


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def whole_assets(loop: Loop, checksum: str | None) -> FetchConfig:
    catalogue = loop.catalogue()
    catalogue["collections"][0] = {**catalogue["collections"][0], "whole_assets": True, "bands": {"blue": "B02"}}
    catalogue["collections"][0].pop("quality")
    items = json.loads(loop.server.files["/items"])
    if checksum is not None:
        items[0]["assets"]["B02"]["file:checksum"] = checksum
    loop.server.json("/items", items)
    return loop.one_scene(catalogue=catalogue)
