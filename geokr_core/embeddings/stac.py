"""Embeddings as STAC: an item a scene, a collection, and a data card, with the fields of the Embedding extension.

The extension is a proposal (geo-embeddings/embeddings-stac-specification, v0.0.1). Its schema is not requested here. The
collection is checked against the core schemas, which pystac carries; items, of which there may be thousands, in the tests.
"""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
import pandas as pd
import pystac
import shapely
from pystac.validation import validate_dict

from geokr_core.backbone.bundle import STAC_ITEM
from geokr_core.embeddings.outputs import CARD_FILE, CELL_MAP, COLLECTION_FILE, ITEM, NETWORK_FILE
from geokr_core.embeddings.quantisation import Quantised
from geokr_core.errors import EmbeddingsError
from geokr_core.levir_kr.stac_export import FILE, PARQUET, joint_bbox, on_one_turn, within_half_turn
from geokr_core.scenes.scene_outputs import CUT_FILE, PIXELS, TABLE
from geokr_core.step.digests import file_md5, multihash
from geokr_core.step.files import read_json, whole_file, write_json

EMBEDDING: Final = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"

_FIRST, _LAST = "1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z"
"""The interval of an item whose acquisition date is unknown: STAC wants one, and ``geokr:acquired_unknown`` says so."""


def scene_item(
    scene_id: str,
    rows: pd.DataFrame,
    quantised: Quantised,
    network: Mapping[str, Any],
    files: Mapping[str, Path],
    chips: str,
) -> str:
    """The STAC item of a scene's vectors, as JSON text; links are relative to the folder of embeddings.

    Args:
        scene_id: which scene.
        rows: of its chips, `table.CHIP_COLUMNS`.
        quantised: its vectors.
        network: what made them; see `encoder.described`.
        files: table of vectors, and map of cells where there is one, by ending; they may still bear other names.
        chips: folder of shards, relative to the folder of embeddings.
    """
    footprints = on_one_turn(shapely.from_wkb(rows["footprint"].to_numpy()))
    geometry, box = within_half_turn(shapely.MultiPoint(shapely.get_coordinates(footprints)).convex_hull)
    moment, span = _when(rows)
    quantisation = {
        "method": "linear, a scale and an offset a dimension: value = code * scale + offset",
        "original_dtype": "float32",
        "quantized_dtype": "int8",
        "scale": [float(value) for value in quantised.scale],
        "offset": [float(value) for value in quantised.offset],
    }
    item = pystac.Item(
        id=scene_id,
        geometry=geometry,
        bbox=list(box),
        datetime=moment,
        properties={
            **span,
            "title": f"{len(rows)} chips of scene {scene_id} as vectors of {network['model']}",
            "platform": str(rows["sensor"].iloc[0]),
            "gsd": round(float(rows["gsd_m"].median()), 4),
            "emb:quantization": quantisation,
            "emb:runtime_parameters": {
                "model": network["model"],
                "model_version": network["model_version"],
                "features": network["features"],
            },
            "geokr:num_chips": len(rows),
        },
        stac_extensions=[EMBEDDING, FILE],
        collection="embeddings",
    )
    table = files[TABLE]
    item.add_asset(
        "embeddings",
        pystac.Asset(
            href=f"./{scene_id}{TABLE}",
            title="A vector a chip, with its place (GeoParquet)",
            media_type=PARQUET,
            roles=["data"],
            extra_fields={
                "data_type": "int8",
                "file:size": table.stat().st_size,
                "file:checksum": multihash("md5", file_md5(table)),
            },
        ),
    )
    if CELL_MAP in files:
        cells = files[CELL_MAP]
        told = {
            "data_type": "int8",
            "file:size": cells.stat().st_size,
            "file:checksum": multihash("md5", file_md5(cells)),
        }
        item.add_asset(
            "cells",
            pystac.Asset(
                href=f"./{scene_id}{CELL_MAP}",
                title="Vectors of the cells of the chips, a band a dimension; scale and offset of each are in the file",
                media_type="image/tiff; application=geotiff; profile=cloud-optimized",
                roles=["data"],
                extra_fields=told,
            ),
        )
    content: dict[str, Any] = item.to_dict(include_self_link=False, transform_hrefs=False)
    content["links"] = [
        {"rel": rel, "href": f"./{COLLECTION_FILE}", "type": "application/json"}
        for rel in ("root", "parent", "collection")
    ]
    content["links"].append(
        {"rel": "emb:source-data", "href": f"{chips}/{scene_id}{PIXELS}", "title": "The chips that were embedded"}
    )
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _when(rows: pd.DataFrame) -> tuple[datetime | None, dict[str, Any]]:
    known = sorted({str(day)[:10] for day in rows["acquired"] if day})
    if len(known) == 1:
        return datetime.fromisoformat(known[0]).replace(tzinfo=UTC), {}
    if known:
        return None, {"start_datetime": f"{known[0]}T00:00:00Z", "end_datetime": f"{known[-1]}T23:59:59Z"}
    return None, {"start_datetime": _FIRST, "end_datetime": _LAST, "geokr:acquired_unknown": True}


def write_collection(
    folder: Path, scene_ids: Sequence[str], network: Mapping[str, Any], chips: Path, bundle: Path | None
) -> int:
    """Write the collection of all items and the data card.

    Args:
        folder: of the embeddings; the items lie there.
        scene_ids: the scenes.
        network: what made the vectors; see `encoder.described`.
        chips: folder of shards.
        bundle: of the network, where it has one.

    Returns:
        The number of chips.

    Raises:
        EmbeddingsError: the collection is not valid STAC.
        OSError: the file system refused.
    """
    items = [json.loads((folder / f"{scene_id}{ITEM}").read_text(encoding="utf-8")) for scene_id in scene_ids]
    properties = [item["properties"] for item in items]
    num_chips = sum(int(part["geokr:num_chips"]) for part in properties)
    box = joint_bbox([tuple(item["bbox"]) for item in items])
    first = min(part.get("start_datetime") or part["datetime"] for part in properties)
    last = max(part.get("end_datetime") or part["datetime"] for part in properties)
    cut = read_json(chips / CUT_FILE)
    size, stride = int(cut["size_px"]), int(cut.get("config", {}).get("stride_px", cut["size_px"]))
    model = f"./{NETWORK_FILE}" if bundle is None else relative(bundle / STAC_ITEM, folder)
    facts = {
        "network": network,
        "num_chips": num_chips,
        "num_scenes": len(items),
        "bbox": [round(value, 4) for value in box],
        "period": (None if last == _LAST else first[:10], None if last == _LAST else last[:10]),
        "chip_size_px": size,
        "stride_px": stride,
        "gsd_m": sorted({part["gsd"] for part in properties}),
        "generated_world": bool(cut.get("generated_world")),
    }
    collection = {
        "type": "Collection",
        "stac_version": pystac.get_stac_version(),
        "stac_extensions": [EMBEDDING],
        "id": "embeddings",
        "title": f"Vectors of {network['model']}",
        "description": f"{num_chips} chips of {len(items)} scenes, embedded by {network['model']}. {CARD_FILE} says more.",
        "license": "other",
        "extent": {"spatial": {"bbox": [list(box)]}, "temporal": {"interval": [[first, last]]}},
        "emb:type": "chip",
        "emb:dimensions": int(network["num_dimensions"]),
        "data_type": "int8",
        "gsd": float(np.median([part["gsd"] for part in properties])),
        "emb:chip_layout": {"layout_type": "regular_grid", "chip_size": [size, size], "stride": [stride, stride]},
        "emb:fit_for_use": ["retrieval", "classification"],
        "item_assets": {"embeddings": {"type": PARQUET, "roles": ["data"], "data_type": "int8"}},
        "links": [
            {"rel": "root", "href": f"./{COLLECTION_FILE}", "type": "application/json"},
            {"rel": "emb:model", "href": model, "type": "application/json", "title": str(network["model"])},
            {"rel": "emb:source-data", "href": relative(chips / CUT_FILE, folder), "type": "application/json"},
            *({"rel": "item", "href": f"./{scene}{ITEM}", "type": "application/geo+json"} for scene in scene_ids),
        ],
    }
    _validate(collection)
    write_json(folder / COLLECTION_FILE, collection)
    with whole_file(folder / CARD_FILE) as partial:
        partial.write_text(_card(facts), encoding="utf-8")
    return num_chips


def relative(path: Path, folder: Path) -> str:
    """A path as links of a file in ``folder`` spell it."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _card(facts: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("geokr_core.embeddings", "templates"),
        autoescape=jinja2.select_autoescape(("html",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("data_card.md.jinja").render(facts)


def _validate(content: dict[str, Any]) -> None:
    try:
        validate_dict(content, extensions=[])
    except pystac.STACValidationError as error:
        raise EmbeddingsError(f"{content['id']}: not valid STAC: {error}") from error
