"""The STAC item of a bundle: what the backbone is, as catalogues read it (MLM and file extensions)."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pystac
import torch
from pystac.validation import validate_dict

from geokr_core.backbone.bundle import LOADER, MODEL_CARD, WEIGHTS
from geokr_core.errors import BackboneError
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.step.digests import multihash, sha256

MLM_SCHEMA: Final = "https://stac-extensions.github.io/mlm/v1.3.0/schema.json"
FILE_SCHEMA: Final = "https://stac-extensions.github.io/file/v2.1.0/schema.json"

ANY_TIME: Final = (datetime(1900, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))


def stac_item(description: Mapping[str, Any], dataset: LevirKR, weights: Path) -> dict[str, Any]:
    """A STAC item with the Machine Learning Model extension; place and time are those of the training chips.

    Args:
        description: content of ``backbone.json``.
        dataset: the data set it was trained on.
        weights: file of the weights.

    Returns:
        The item as JSON-able values, its hrefs relative to the bundle.

    Raises:
        BackboneError: it is not valid STAC. The core schemas are checked, which pystac carries; those of the extensions
            would have to be downloaded.
    """
    west, south, east, north = bounds(dataset.catalogue)
    start, end = period(dataset.catalogue)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    bands = [
        {"name": band, "description": f"{reach} micrometres" if reach else band}
        for band, reach in description["band_range_um"].items()
    ]
    item = pystac.Item(
        id=description["model_name"],
        geometry={"type": "Polygon", "coordinates": [ring]},
        bbox=[west, south, east, north],
        datetime=None,
        start_datetime=start,
        end_datetime=end,
        properties={
            "title": description["model_name"],
            "description": description["description"],
            "license": description["licence"],
            "gsd": description["gsd_m_min"],
            "bands": bands,
            **_model(description, weights),
        },
        stac_extensions=[MLM_SCHEMA, FILE_SCHEMA],
    )
    for name, asset in _assets(weights, bands).items():
        item.add_asset(name, asset)
    content: dict[str, Any] = item.to_dict(include_self_link=False, transform_hrefs=False)
    try:
        validate_dict(content, extensions=[])
    except pystac.STACValidationError as error:
        raise BackboneError(f"The STAC item of the bundle is not valid: {error}") from error
    return content


def _model(description: Mapping[str, Any], weights: Path) -> dict[str, Any]:
    """Fields of the Machine Learning Model extension."""
    scaling: list[dict[str, Any]] = [
        # MLM normalises what it calls the band's values: here 0 to 255, so the statistics are scaled back.
        {"type": "z-score", "mean": round(mean * 255, 4), "stddev": round(std * 255, 4)}
        for mean, std in zip(description["mean"], description["std"], strict=True)
    ]
    return {
        "mlm:name": description["model_name"],
        "mlm:architecture": description["architecture"],
        "mlm:tasks": ["scene-classification", "semantic-segmentation", "object-detection", "similarity-search"],
        "mlm:framework": "PyTorch",
        "mlm:framework_version": torch.__version__.split("+")[0],
        "mlm:total_parameters": description["num_parameters"],
        "mlm:memory_size": weights.stat().st_size,
        "mlm:pretrained": True,
        "mlm:pretrained_source": f"Levir-KR {description['data_version']}",
        "mlm:accelerator": None,
        "mlm:input": [
            {
                "name": "image",
                "description": description["normalisation"],
                "bands": list(description["bands"]),
                "input": {
                    "shape": [-1, len(description["bands"]), -1, -1],
                    "dim_order": ["batch", "channel", "height", "width"],
                    "data_type": "float32",
                },
                "value_scaling": scaling,
                "resize_type": None,
            }
        ],
        "mlm:output": [
            {
                "name": "features",
                "description": "global average of the last stage",
                "tasks": ["similarity-search"],
                "result": {
                    "shape": [-1, description["feature_dim"]],
                    "dim_order": ["batch", "channel"],
                    "data_type": "float32",
                },
            }
        ],
    }


def _assets(weights: Path, bands: list[dict[str, str]]) -> dict[str, pystac.Asset]:
    return {
        "weights": pystac.Asset(
            href=f"./{WEIGHTS}",
            title="Weights by the key names of the library that they come from",
            media_type="application/vnd.safetensors",
            roles=["mlm:model", "mlm:weights", "data"],
            extra_fields={
                # MLM looks for bands among the properties, where STAC allows them only if an asset has them, too.
                "bands": bands,
                "file:size": weights.stat().st_size,
                "file:checksum": multihash("sha256", sha256(weights)),
            },
        ),
        "loader": pystac.Asset(
            href=f"./{LOADER}",
            title="Loads the weights into the libraries that have the network",
            media_type="text/x-python",
            roles=["mlm:source_code", "code"],
        ),
        "model_card": pystac.Asset(
            href=f"./{MODEL_CARD}",
            title="Model card",
            media_type="text/markdown",
            roles=["metadata"],
        ),
    }


def bounds(catalogue: pd.DataFrame) -> tuple[float, float, float, float]:
    """West, south, east and north of the chips' centres, in degrees."""
    lon, lat = catalogue["lon"].astype(float), catalogue["lat"].astype(float)
    values = (lon.min(), lat.min(), lon.max(), lat.max())
    west, south, east, north = (round(float(value), 4) for value in values)
    return west, south, east, north


def period(catalogue: pd.DataFrame) -> tuple[datetime, datetime]:
    """First and last acquisition (UTC); the extension's own stand-in for "any time" where no chip has a date."""
    acquired = pd.to_datetime(catalogue["acquired"], errors="coerce", format="mixed", utc=True).dropna()
    if acquired.empty:
        return ANY_TIME
    return acquired.min().to_pydatetime().replace(microsecond=0), acquired.max().to_pydatetime().replace(microsecond=0)
