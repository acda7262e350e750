"""The bundle that is delivered: weights, preprocessing, golden features, model card, STAC item and a loader.

A bundle is a folder that explains and checks itself and that loads where this project is not installed
(``loader/geokr_backbone.py`` is copied into it). Which bundle is champion is decided in ``registry``.
"""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from geokr_core.backbone.bundle import (
    BUNDLE_FILES,
    DESCRIPTION,
    FORMAT_VERSION,
    GOLDEN,
    GOLDEN_TOLERANCE,
    LOADER,
    MODEL_CARD,
    NORMALISATION,
    STAC_ITEM,
    WEIGHTS,
    verify_bundle,
)
from geokr_core.backbone.card import model_card
from geokr_core.backbone.config import BackboneConfig
from geokr_core.backbone.loader import geokr_backbone
from geokr_core.backbone.stac_item import ANY_TIME, bounds, period, stac_item
from geokr_core.errors import BackboneError, MissingInputError
from geokr_core.levir_kr.dataset import LevirKR, open_levir_kr
from geokr_core.networks.architecture import ArchitectureSpec
from geokr_core.networks.architectures import feature_dim, spec_of
from geokr_core.networks.network import build, pooled
from geokr_core.networks.runtime import one_thread
from geokr_core.networks.weights import load_weights, require_unchanged
from geokr_core.pictures.images import png
from geokr_core.step.digests import sha256
from geokr_core.step.files import read_json, whole_file, whole_folder, write_json
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.step.summary import Summary

_GOLDEN_SEED: Final = 20_260_101
_GOLDEN_SHAPE: Final = (4, 64)
"""Images and side in pixels; 64 px is the least that leaves VGG's last pooling more than one cell."""

_ABOUT_THE_RUN: Final = ("variant", "seed", "config", "validation_kl", "validation_constant_kl")

_BAND_RANGE_UM: Final[Mapping[str, str]] = {
    "coastal": "0.40-0.45",
    "blue": "0.45-0.50",
    "green": "0.50-0.60",
    "yellow": "0.58-0.62",
    "red": "0.60-0.70",
    "pan": "0.50-0.70",
    "rededge": "0.70-0.79",
    "nir": "0.75-1.00",
    "nir08": "0.75-0.90",
    "nir09": "0.85-1.05",
    "cirrus": "1.35-1.40",
    "swir16": "1.55-1.75",
    "swir22": "2.10-2.30",
    "lwir": "10.5-12.5",
    "lwir11": "10.5-11.5",
    "lwir12": "11.5-12.5",
}
"""Wavelengths in micrometres that go by each common name: STAC Electro-Optical extension 1.1, "Common Band Names"."""


def build_bundle(
    config: BackboneConfig, levir_kr: Path, pretraining: Path, out: Path, reporter: Reporter = LOG
) -> Summary:
    """Bundle the backbone of the first ``geokr`` run.

    Args:
        config: name and description.
        levir_kr: the frozen data set it was trained on.
        pretraining: folder that `geokr_core.pretraining.pretrain.pretrain` wrote.
        out: the bundle; replaced as a whole, the same bytes for the same inputs.
        reporter: hears which run was taken.

    Returns:
        Size, parameters and feature length; a table of the files; the first layer's filters as picture.

    Raises:
        MissingInputError: an input has not been made.
        BackboneError: bands, statistics or data version of run and data set differ, the weights are not those that the
            run recorded or do not fit the architecture, or their features are not finite.
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
        _write_text(folder / MODEL_CARD, model_card(description))
        write_json(folder / STAC_ITEM, stac_item(description, dataset, folder / WEIGHTS))
        digests = {name: sha256(folder / name) for name in BUNDLE_FILES if name != DESCRIPTION}
        description = {**description, "sha256": digests}
        digest = geokr_backbone.description_digest(description)
        write_json(folder / DESCRIPTION, {**description, "description_sha256": digest})
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
    # Runs of earlier versions recorded nothing of their files.
    for name, md5 in runs[0].get("files", {}).items():
        require_unchanged(folder / name, md5)
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


def _write_golden(module: nn.Module, dataset: LevirKR, path: Path) -> None:
    num_images, side = _GOLDEN_SHAPE
    shape = (num_images, len(dataset.bands), side, side)
    images = torch.from_numpy(np.random.default_rng(_GOLDEN_SEED).integers(0, 256, size=shape, dtype=np.uint8))
    mean = torch.from_numpy(dataset.channel_mean).view(1, -1, 1, 1)
    std = torch.from_numpy(dataset.channel_std).view(1, -1, 1, 1)
    prepared: Tensor = (images.float() / 255 - mean) / std
    with one_thread(), torch.inference_mode():
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
        "format_version": FORMAT_VERSION,
        "model_name": config.model_name,
        "description": config.description,
        "architecture": architecture,
        "network": loading(spec_of(architecture)),
        "feature_dim": feature_dim(architecture),
        "num_parameters": sum(parameter.numel() for parameter in module.parameters()),
        "bands": list(dataset.bands),
        "band_range_um": {band: _BAND_RANGE_UM.get(band) for band in dataset.bands},
        "scale": "uint8/255",
        "mean": [round(float(value), 6) for value in dataset.channel_mean],
        "std": [round(float(value), 6) for value in dataset.channel_std],
        "normalisation": NORMALISATION,
        "stretch": _stretch(manifest["config"]["chips"]),
        "input": "float32 (B, C, H, W)",
        "chip_size_px": dataset.chip_size_px,
        "gsd_m_min": float(manifest["gsd_m_min"]),
        "gsd_m_max": float(manifest["gsd_m_max"]),
        "legend": manifest["legend"],
        "legend_hash": manifest["legend_hash"],
        "classes": list(dataset.classes),
        "data_version": dataset.data_version,
        "num_chips": int(manifest["num_chips"]),
        "seen": _seen(dataset),
        "generated_world": bool(manifest.get("generated_world", False)),
        "golden_tolerance": GOLDEN_TOLERANCE,
        "pretraining": {key: run.get(key) for key in _ABOUT_THE_RUN},
        "versions": _versions(spec_of(architecture)),
        "licence": config.licence,
    }


def _stretch(chips: Mapping[str, Any]) -> dict[str, Any]:
    """How scenes became 8 bits, for the loader's ``prepare``: percentiles, or physical values; see ``chips.stretch``."""
    kind = str(chips.get("stretch", "not recorded"))
    if kind == "fixed":
        limits = chips["stretch_fixed"]
        return {"kind": kind, "low": list(limits["low"]), "high": list(limits["high"])}
    if "percentile" in kind:
        return {"kind": kind, "low": float(chips["stretch_low"]), "high": float(chips["stretch_high"])}
    return {"kind": kind}


def loading(spec: ArchitectureSpec) -> dict[str, Any]:
    """What a bundle says about its network, so that its loader needs no table of architectures."""
    return {
        "first_layer": spec.first_layer,
        "loads_into": [asdict(upstream) for upstream in spec.upstreams],
    }


def _seen(dataset: LevirKR) -> dict[str, Any]:
    """Where and when the training chips were taken, and which products labelled them."""
    moments = period(dataset.catalogue)
    days = (None, None) if moments == ANY_TIME else tuple(moment.date().isoformat() for moment in moments)
    return {
        "num_scenes": int(dataset.manifest["num_scenes"]),
        "bbox": list(bounds(dataset.catalogue)),
        "first_day": days[0],
        "last_day": days[1],
        "products": [
            str(product["name"]) if isinstance(product, Mapping) else str(product)
            for product in dataset.manifest["products"]
        ],
    }


def _versions(spec: ArchitectureSpec) -> dict[str, str]:
    """Versions of torch and of the libraries that the weights load into, as far as they are installed."""
    names = {"torchvision": "torchvision", "timm": "timm", "smp": "segmentation-models-pytorch"}
    found = {}
    for name in ("torch", *(names[library] for library in spec.libraries)):
        with suppress(PackageNotFoundError):
            found[name] = version(name).partition("+")[0]
    return found


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
            {"file": path.name, "size_kb": round(path.stat().st_size / 1e3, 1), "sha256": sha256(path)[:16]}
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


def _write_text(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
