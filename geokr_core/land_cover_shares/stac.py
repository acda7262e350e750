"""Maps as STAC 1.1: an item a scene with its three files, and a collection; linked to the network's MLM item.

Extensions: Projection, Classification. Checked against the core schemas, which pystac carries; nothing is requested here.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyproj
import pystac
from pystac.validation import validate_dict

from geokr_core.embeddings.stac import relative
from geokr_core.errors import PredictionError
from geokr_core.land_cover_shares.head import Head
from geokr_core.land_cover_shares.maps import NODATA, STEPS
from geokr_core.land_cover_shares.outputs import CLASSES, COLLECTION_FILE, INTERVALS, ITEM, SHARES
from geokr_core.levir_kr.stac_export import CLASSIFICATION, FILE, PROJECTION, joint_bbox, within_half_turn
from geokr_core.rasters.grid import Grid
from geokr_core.scenes.scene import Scene
from geokr_core.step.digests import file_md5, multihash
from geokr_core.step.files import write_json

COG: Final = "image/tiff; application=geotiff; profile=cloud-optimized"
_FIRST, _LAST = "1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z"
"""The interval of an item whose acquisition date is unknown: STAC wants one, and ``geokr:acquired_unknown`` says so."""


def map_item(scene: Scene, grid: Grid, coarse_px: int, files: Mapping[str, Path], head: Head, model: str) -> str:
    """The STAC item of a scene's maps, as JSON text.

    Args:
        scene: which scene.
        grid: of the maps' cells.
        coarse_px: scene pixels along a pixel of the intervals.
        files: the maps, by ending; they may still bear other names.
        head: what made them.
        model: href of the network's own STAC item; empty where it has none.

    Raises:
        PredictionError: the item is not valid STAC.
    """
    geometry, box = within_half_turn(scene.grid.footprint())
    day = scene.acquired[:10]
    moment = datetime.fromisoformat(day).replace(tzinfo=UTC) if day else None
    unknown = {"start_datetime": _FIRST, "end_datetime": _LAST, "geokr:acquired_unknown": True}
    item = pystac.Item(
        id=scene.scene_id,
        geometry=geometry,
        bbox=list(box),
        datetime=moment,
        properties={
            **({} if day else unknown),
            "title": f"Land-cover shares of scene {scene.scene_id}, predicted by {head.about['model']}",
            "platform": scene.sensor,
            **_projection(grid),
            "geokr:model": head.about["model"],
            "geokr:model_version": head.about["model_version"],
            "geokr:confidence": head.about["confidence"],
        },
        stac_extensions=[PROJECTION, CLASSIFICATION, FILE],
        collection="land_cover_shares",
    )
    shares = [_band(name, grid.gsd_m) for name in head.classes]
    ends = [_band(f"{end}_{name}", scene.gsd_m * coarse_px) for end in ("low", "high") for name in head.classes]
    classes = [
        {"value": k, "name": name, "description": name.replace("_", " "), "color_hint": colour.lstrip("#").upper()}
        for k, (name, colour) in enumerate(zip(head.classes, head.colours, strict=True))
    ]
    largest = {"data_type": "uint8", "nodata": NODATA, "classification:classes": classes}
    _add(item, SHARES, "Share of each class in a cell", files, {"bands": shares})
    _add(item, CLASSES, "Class of the largest share in a cell", files, largest)
    _add(item, INTERVALS, "Lower and upper ends of the shares in a chip-sized square", files, {"bands": ends})
    content: dict[str, Any] = item.to_dict(include_self_link=False, transform_hrefs=False)
    collection = [{"rel": rel, "href": f"./{COLLECTION_FILE}"} for rel in ("root", "parent", "collection")]
    content["links"] = [{**link, "type": "application/json"} for link in collection]
    if model:
        content["links"].append({"rel": "derived_from", "href": model, "type": "application/geo+json"})
    _validate(content)
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _band(name: str, gsd_m: float) -> dict[str, Any]:
    own = {"name": name, "data_type": "uint8", "nodata": NODATA, "unit": "1"}
    return own | {"raster:scale": 1 / STEPS, "raster:offset": 0.0, "gsd": round(gsd_m, 4)}


def _projection(grid: Grid) -> dict[str, Any]:
    authority = pyproj.CRS.from_wkt(grid.wkt).to_authority(min_confidence=100)
    named: dict[str, Any] = {"proj:code": None, "proj:wkt2": pyproj.CRS.from_wkt(grid.wkt).to_wkt("WKT2_2019")}
    named = named if authority is None else {"proj:code": ":".join(authority)}
    return named | {"proj:shape": [grid.height, grid.width], "proj:transform": list(tuple(grid.transform)[:6])}


def _add(item: pystac.Item, ending: str, title: str, files: Mapping[str, Path], fields: dict[str, Any]) -> None:
    path = files[ending]
    told = {"file:size": path.stat().st_size, "file:checksum": multihash("md5", file_md5(path))}
    asset = pystac.Asset(
        href=f"./{item.id}{ending}", title=title, media_type=COG, roles=["data"], extra_fields=fields | told
    )
    item.add_asset(ending.split(".")[1], asset)


def write_collection(folder: Path, scene_ids: Sequence[str], head: Head, bundle: Path) -> None:
    """Write the collection of all items.

    Args:
        folder: of the maps; the items lie there.
        scene_ids: the scenes that have maps.
        head: what made them.
        bundle: of the network.

    Raises:
        PredictionError: the collection is not valid STAC.
        OSError: the file system refused.
    """
    items = [json.loads((folder / f"{scene_id}{ITEM}").read_text(encoding="utf-8")) for scene_id in scene_ids]
    properties = [item["properties"] for item in items]
    first = min(part.get("start_datetime") or part["datetime"] for part in properties)
    last = max(part.get("end_datetime") or part["datetime"] for part in properties)
    box = joint_bbox([tuple(item["bbox"]) for item in items])
    links = [
        {"rel": "root", "href": f"./{COLLECTION_FILE}", "type": "application/json"},
        {"rel": "derived_from", "href": model_href(bundle, folder), "type": "application/geo+json"},
        *({"rel": "item", "href": f"./{scene}{ITEM}", "type": "application/geo+json"} for scene in scene_ids),
    ]
    collection = {
        "type": "Collection",
        "stac_version": pystac.get_stac_version(),
        "stac_extensions": [],
        "id": "land_cover_shares",
        "title": f"Land-cover shares predicted by {head.about['model']}",
        "description": f"Shares of {', '.join(head.classes)} in {len(items)} scenes, with intervals that cover "
        f"{head.about['confidence']:.0%} of chips.",
        "license": "other",
        "extent": {"spatial": {"bbox": [list(box)]}, "temporal": {"interval": [[first, last]]}},
        "links": links,
    }
    _validate(collection)
    write_json(folder / COLLECTION_FILE, collection)


def model_href(bundle: Path, folder: Path) -> str:
    """The network's own STAC item, as links of a file in ``folder`` spell it."""
    from geokr_core.backbone.bundle import STAC_ITEM

    return relative(bundle / STAC_ITEM, folder)


def _validate(content: dict[str, Any]) -> None:
    try:
        validate_dict(content, extensions=[])
    except pystac.STACValidationError as error:
        raise PredictionError(f"{content['id']}: not valid STAC: {error}") from error
