"""The STAC item of a bundle: what the backbone is, as catalogues read it (MLM and file extensions)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch

from geokr_core.backbone.bundle import LICENCE, LOADER, MODEL_CARD, WEIGHTS
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.step.digests import sha256

_MLM_SCHEMA: Final = "https://stac-extensions.github.io/mlm/v1.3.0/schema.json"
_FILE_SCHEMA: Final = "https://stac-extensions.github.io/file/v2.1.0/schema.json"


def stac_item(description: Mapping[str, Any], dataset: LevirKR, weights: Path) -> dict[str, Any]:
    """A STAC item with the Machine Learning Model extension; place and time are those of the training chips."""
    west, south, east, north = _bounds(dataset.catalogue)
    start, end = _period(dataset.catalogue)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    scaling: list[dict[str, Any]] = [
        # MLM normalises what it calls the band's values: here 0 to 255, so the statistics are scaled back.
        {"type": "z-score", "mean": round(mean * 255, 4), "stddev": round(std * 255, 4)}
        for mean, std in zip(description["mean"], description["std"], strict=True)
    ]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [_MLM_SCHEMA, _FILE_SCHEMA],
        "id": description["model_name"],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [west, south, east, north],
        "properties": {
            "title": description["model_name"],
            "description": description["description"],
            "license": LICENCE,
            "datetime": None,
            "start_datetime": start,
            "end_datetime": end,
            "gsd": description["gsd_m_min"],
            "bands": [
                {"name": band, "description": f"{reach} micrometres" if reach else band}
                for band, reach in description["band_range_um"].items()
            ],
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
        },
        "links": [],
        "assets": {
            "weights": {
                "href": f"./{WEIGHTS}",
                "type": "application/vnd.safetensors",
                "title": "Weights with torchvision's key names",
                "roles": ["mlm:model", "mlm:weights", "data"],
                "file:size": weights.stat().st_size,
                # A multihash: 0x12 says SHA-256, 0x20 its length in bytes.
                "file:checksum": f"1220{sha256(weights)}",
            },
            "loader": {
                "href": f"./{LOADER}",
                "type": "text/x-python",
                "title": "Loads the weights into torchvision, timm and segmentation-models-pytorch",
                "roles": ["mlm:source_code", "code"],
            },
            "model_card": {
                "href": f"./{MODEL_CARD}",
                "type": "text/markdown",
                "title": "Model card",
                "roles": ["metadata"],
            },
        },
    }


def _bounds(catalogue: pd.DataFrame) -> tuple[float, float, float, float]:
    lon, lat = catalogue["lon"].astype(float), catalogue["lat"].astype(float)
    values = (lon.min(), lat.min(), lon.max(), lat.max())
    west, south, east, north = (round(float(value), 4) for value in values)
    return west, south, east, north


def _period(catalogue: pd.DataFrame) -> tuple[str, str]:
    """First and last acquisition; the extension's own stand-in for "any time" where no chip has a date."""
    acquired = pd.to_datetime(catalogue["acquired"], errors="coerce", format="mixed", utc=True).dropna()
    if acquired.empty:
        return "1900-01-01T00:00:00Z", "9999-12-31T23:59:59Z"
    return f"{acquired.min():%Y-%m-%dT%H:%M:%SZ}", f"{acquired.max():%Y-%m-%dT%H:%M:%SZ}"
