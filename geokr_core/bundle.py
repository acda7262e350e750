"""The bundle that is delivered: weights, preprocessing, golden features, model card, STAC item and a loader.

A bundle is a folder that explains and checks itself and that loads where this project is not installed
(``loader/geokr_backbone.py`` is copied into it). Which bundle is champion is decided in ``registry``.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from geokr_core.backbone import build, feature_dim, load_weights, pooled
from geokr_core.config import BackboneConfig
from geokr_core.errors import BackboneError, MissingInputError
from geokr_core.files import data_version, read_json, whole_file, whole_folder, write_json
from geokr_core.levir_kr import LevirKR, open_levir_kr
from geokr_core.loader import geokr_backbone
from geokr_core.pictures import png
from geokr_core.reporter import Reporter
from geokr_core.summary import Summary

WEIGHTS: Final = "backbone.safetensors"
DESCRIPTION: Final = "backbone.json"
GOLDEN: Final = "golden.safetensors"
MODEL_CARD: Final = "MODEL_CARD.md"
STAC_ITEM: Final = "mlm.json"
LOADER: Final = "geokr_backbone.py"
BUNDLE_FILES: Final = (WEIGHTS, DESCRIPTION, GOLDEN, MODEL_CARD, STAC_ITEM, LOADER)

NORMALISATION: Final = "x = (uint8 / 255 - mean) / std, each band with its own mean and std"
LICENCE: Final = "Apache-2.0"
GOLDEN_TOLERANCE: Final = 1e-4
"""Largest difference of golden features, relative to the largest one: processors differ in the last digits of fp32."""

_GOLDEN_SEED: Final = 20_260_101
_GOLDEN_SHAPE: Final = (4, 64)
"""Images and side in pixels; 64 px is the least that leaves VGG's last pooling more than one cell."""

_BAND_RANGE_UM: Final[Mapping[str, str]] = {
    "coastal": "0.40-0.45", "blue": "0.45-0.50", "green": "0.50-0.60", "yellow": "0.58-0.62", "red": "0.60-0.70",
    "pan": "0.50-0.70", "rededge": "0.70-0.79", "nir": "0.75-1.00", "nir08": "0.75-0.90", "nir09": "0.85-1.05",
    "cirrus": "1.35-1.40", "swir16": "1.55-1.75", "swir22": "2.10-2.30", "lwir": "10.5-12.5",
    "lwir11": "10.5-11.5", "lwir12": "11.5-12.5",
}  # fmt: skip
"""Wavelengths in micrometres that go by each common name: STAC Electro-Optical extension 1.1, "Common Band Names"."""

_MLM_SCHEMA: Final = "https://stac-extensions.github.io/mlm/v1.3.0/schema.json"
_FILE_SCHEMA: Final = "https://stac-extensions.github.io/file/v2.1.0/schema.json"


@dataclass(frozen=True)
class Bundle:
    """A backbone bundle as ``backbone.json`` describes it.

    Attributes:
        folder: where its files lie.
        model_name: name in the model registry.
        architecture: torchvision's name of the network.
        bands: common band names in channel order.
        mean: float32 (C,), of the training chips scaled to 0-1.
        std: float32 (C,), likewise.
        chip_size_px: side of the chips it was trained on.
        gsd_m_min: finest ground sampling distance it was trained on, in metres.
        gsd_m_max: coarsest one.
        legend_hash: digest of the legend whose proportions it learned.
        data_version: data version of the Levir-KR it was trained on.
        feature_dim: length of its feature vectors.
    """

    folder: Path
    model_name: str
    architecture: str
    bands: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    chip_size_px: int
    gsd_m_min: float
    gsd_m_max: float
    legend_hash: str
    data_version: str
    feature_dim: int

    @property
    def bundle_data_version(self) -> str:
        """DVC's hash of the bundle itself, by which the registry and the results know it."""
        return data_version(self.folder)

    def require_bands(self, bands: Sequence[str]) -> None:
        """Refuse images of other bands, or of the same bands in another order.

        Raises:
            BackboneError: they differ from `bands`.
        """
        if tuple(bands) != self.bands:
            raise BackboneError(
                f"{self.folder}: the backbone reads the bands {', '.join(self.bands)} in this order, "
                f"found {', '.join(bands) or 'none'}. Select or reorder the bands, or pretrain with `chips.bands` as "
                "found."
            )


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle without checking its bytes; see `verify_bundle` for that.

    Raises:
        MissingInputError: there is none in ``folder``.
        BackboneError: its ``backbone.json`` is damaged.
    """
    if not (folder / DESCRIPTION).is_file():
        raise MissingInputError(f"{folder}: no backbone bundle there ({DESCRIPTION}); run `geokr backbone` first.")
    try:
        content = geokr_backbone.describe(folder)
        return Bundle(
            folder=folder,
            model_name=str(content["model_name"]),
            architecture=str(content["architecture"]),
            bands=tuple(content["bands"]),
            mean=np.asarray(content["mean"], dtype=np.float32),
            std=np.asarray(content["std"], dtype=np.float32),
            chip_size_px=int(content["chip_size_px"]),
            gsd_m_min=float(content["gsd_m_min"]),
            gsd_m_max=float(content["gsd_m_max"]),
            legend_hash=str(content["legend_hash"]),
            data_version=str(content["data_version"]),
            feature_dim=int(content["feature_dim"]),
        )
    except (KeyError, TypeError, geokr_backbone.BundleError) as error:
        raise BackboneError(
            f"{folder / DESCRIPTION}: damaged or of another kind ({error}); build or download it again."
        ) from error


def verify_bundle(folder: Path) -> None:
    """Check a bundle as a receiver would: every file's sha256, strict loading, golden features.

    Uses this project's own copy of the loader, never the one inside ``folder``.

    Raises:
        MissingInputError: there is no bundle in ``folder``.
        BackboneError: a file is missing or changed, or the golden features do not come out.
    """
    open_bundle(folder)
    try:
        geokr_backbone.verify(folder)
    except (geokr_backbone.BundleError, SafetensorError, KeyError, RuntimeError) as error:
        raise BackboneError(f"The bundle is refused: {error}") from error


def build_bundle(config: BackboneConfig, levir_kr: Path, pretraining: Path, out: Path, reporter: Reporter) -> Summary:
    """Bundle the backbone of the first ``geokr`` run.

    Args:
        config: name and description.
        levir_kr: the frozen data set it was trained on.
        pretraining: folder that `geokr_core.pretrain.pretrain` wrote.
        out: the bundle; replaced as a whole, the same bytes for the same inputs.
        reporter: hears which run was taken.

    Returns:
        Size, parameters and feature length; a table of the files; the first layer's filters as picture.

    Raises:
        MissingInputError: an input has not been made.
        BackboneError: bands, statistics or data version of run and data set differ, the weights do not fit the
            architecture, or their features are not finite.
    """
    dataset = open_levir_kr(levir_kr)
    run = _first_run(pretraining)
    _require_same_data(run, dataset)
    architecture = str(run["architecture"])
    module = build(architecture, len(dataset.bands))
    load_weights(module, run["folder"] / WEIGHTS)
    module.eval()
    reporter.info(f"backbone: {architecture} of run {run['folder'].name}")
    with whole_folder(out) as folder:
        shutil.copyfile(run["folder"] / WEIGHTS, folder / WEIGHTS)
        shutil.copyfile(Path(geokr_backbone.__file__), folder / LOADER)
        _write_golden(module, dataset, folder / GOLDEN)
        description = _describe(config, dataset, run, module)
        _write_text(folder / MODEL_CARD, _model_card(description, dataset))
        write_json(folder / STAC_ITEM, _stac_item(description, dataset, folder / WEIGHTS))
        digests = {name: _sha256(folder / name) for name in BUNDLE_FILES if name != DESCRIPTION}
        write_json(folder / DESCRIPTION, {**description, "sha256": digests})
        verify_bundle(folder)
    return _summary(out, description, module)


def _first_run(pretraining: Path) -> dict[str, Any]:
    """What ``runs.json`` and ``run.json`` say about the run that becomes the backbone; ``folder`` as a path."""
    if not (pretraining / "runs.json").is_file():
        raise MissingInputError(f"{pretraining}: no pretraining there (runs.json); run `geokr pretrain` first.")
    runs = [entry for entry in read_json(pretraining / "runs.json") if entry["variant"] == "geokr"]
    if not runs:
        raise BackboneError(
            f"{pretraining}: no run of the variant `geokr`; add it to `pretraining.variants` and pretrain again."
        )
    folder = pretraining / f"geokr-seed{runs[0]['seed']}"
    if not (folder / "run.json").is_file():
        raise MissingInputError(f"{folder}: the run is incomplete (run.json); run `geokr pretrain` again.")
    return {**read_json(folder / "run.json"), **runs[0], "folder": folder}


def _require_same_data(run: Mapping[str, Any], dataset: LevirKR) -> None:
    if tuple(run["bands"]) != dataset.bands:
        raise BackboneError(
            f"{run['folder']}: pretrained on the bands {', '.join(run['bands'])}, but {dataset.folder} has "
            f"{', '.join(dataset.bands)}. Run `geokr pretrain` on this data set, or `geokr levir-kr` with those bands."
        )
    same_statistics = all(
        np.allclose(run[key], measured, rtol=0, atol=1e-5)
        for key, measured in (("mean", dataset.channel_mean), ("std", dataset.channel_std))
    )
    if run["data_version"] != dataset.data_version or not same_statistics:
        raise BackboneError(
            f"{run['folder']}: pretrained on Levir-KR {run['data_version']}, but {dataset.folder} is now "
            f"{dataset.data_version}. Run `geokr pretrain` again, so that the bundle names the data it was trained on."
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, whatever the number of cores: the golden features must be the same bytes in each run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _write_golden(module: nn.Module, dataset: LevirKR, path: Path) -> None:
    num_images, side = _GOLDEN_SHAPE
    shape = (num_images, len(dataset.bands), side, side)
    images = torch.from_numpy(np.random.default_rng(_GOLDEN_SEED).integers(0, 256, size=shape, dtype=np.uint8))
    mean = torch.from_numpy(dataset.channel_mean).view(1, -1, 1, 1)
    std = torch.from_numpy(dataset.channel_std).view(1, -1, 1, 1)
    prepared: Tensor = (images.float() / 255 - mean) / std
    with _one_thread(), torch.inference_mode():
        features = pooled(module, prepared, "last").clone()
    if not bool(torch.isfinite(features).all()):
        raise BackboneError(
            "The pretrained network gives features that are not finite; look at the curves of the pretraining, "
            "lower `pretraining.learning_rate` and pretrain again."
        )
    with whole_file(path) as partial:
        save_file({"images": images, "input": prepared.contiguous(), "features": features}, partial)


def _describe(config: BackboneConfig, dataset: LevirKR, run: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    manifest = dataset.manifest
    architecture = str(run["architecture"])
    return {
        "format_version": 1,
        "model_name": config.model_name,
        "description": config.description,
        "architecture": architecture,
        "feature_dim": feature_dim(architecture),
        "num_parameters": sum(parameter.numel() for parameter in module.parameters()),
        "bands": list(dataset.bands),
        "band_range_um": {band: _BAND_RANGE_UM.get(band) for band in dataset.bands},
        "scale": "uint8/255",
        "mean": [round(float(value), 6) for value in dataset.channel_mean],
        "std": [round(float(value), 6) for value in dataset.channel_std],
        "normalisation": NORMALISATION,
        "input": "float32 (B, C, H, W)",
        "chip_size_px": dataset.chip_size_px,
        "gsd_m_min": float(manifest["gsd_m_min"]),
        "gsd_m_max": float(manifest["gsd_m_max"]),
        "legend": manifest["legend"],
        "legend_hash": manifest["legend_hash"],
        "classes": list(dataset.classes),
        "data_version": dataset.data_version,
        "num_chips": int(manifest["num_chips"]),
        "generated_world": bool(manifest.get("generated_world", False)),
        "golden_tolerance": GOLDEN_TOLERANCE,
        "pretraining": {"variant": run["variant"], "seed": run["seed"], "config": run["config"]},
        "licence": LICENCE,
    }


def _model_card(description: Mapping[str, Any], dataset: LevirKR) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loaders = {"torchvision": "into_torchvision()"}
    if description["architecture"] in geokr_backbone.LOADS_INTO["timm"]:
        loaders["timm"] = "into_timm()"
    if description["architecture"] in geokr_backbone.LOADS_INTO["smp"]:
        loaders["segmentation-models-pytorch"] = 'into_smp(decoder="Unet", classes=6)'
    products = [
        str(product["name"]) if isinstance(product, Mapping) else str(product)
        for product in dataset.manifest["products"]
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  # Markdown of our own fields, not HTML
    )
    return environment.get_template("model_card.md.jinja").render(description, loaders=loaders, products=products)


def _stac_item(description: Mapping[str, Any], dataset: LevirKR, weights: Path) -> dict[str, Any]:
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
                "file:checksum": f"1220{_sha256(weights)}",
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


def _summary(out: Path, description: Mapping[str, Any], module: nn.Module) -> Summary:
    files = [out / name for name in BUNDLE_FILES]
    return Summary(
        numbers={
            "model_name": str(description["model_name"]),
            "architecture": str(description["architecture"]),
            "parameters_million": round(description["num_parameters"] / 1e6, 3),
            "size_mb": round(sum(path.stat().st_size for path in files) / 1e6, 3),
            "feature_dim": int(description["feature_dim"]),
            "num_bands": len(description["bands"]),
            "gsd_m_min": float(description["gsd_m_min"]),
            "gsd_m_max": float(description["gsd_m_max"]),
        },
        table=[
            {"file": path.name, "size_kb": round(path.stat().st_size / 1e3, 1), "sha256": _sha256(path)[:16]}
            for path in files
        ],
        picture_png=_filters_picture(module),
    )


def _filters_picture(module: nn.Module) -> bytes:
    """The first layer's filters side by side: noise here means that nothing was learned."""
    weights = next(layer.weight for layer in module.modules() if isinstance(layer, nn.Conv2d)).detach()
    shown = weights[:64, :3] if weights.shape[1] >= 3 else weights[:64, :1].expand(-1, 3, -1, -1)
    low, high = shown.amin(dim=(1, 2, 3), keepdim=True), shown.amax(dim=(1, 2, 3), keepdim=True)
    scaled = (255 * (shown - low) / (high - low).clamp_min(1e-12)).byte()
    tiles = nn.functional.pad(scaled.repeat_interleave(6, dim=2).repeat_interleave(6, dim=3), (1, 1, 1, 1), value=255)
    side = tiles.shape[-1]
    rows = tiles.permute(0, 2, 3, 1).reshape(4, -1, side, side, 3)
    return png(rows.permute(0, 2, 1, 3, 4).reshape(4 * side, -1, 3).contiguous().numpy())


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_text(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
