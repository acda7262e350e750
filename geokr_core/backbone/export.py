"""A bundle in the forms of others: ONNX with the normalisation inside, and a folder that timm opens by one line.

Both are checked with the bundle's golden images before they are given away. Loading a bundle itself is the business of the loader.
"""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from geokr_core.backbone.bundle import GOLDEN, GOLDEN_TOLERANCE, WEIGHTS, Bundle, open_bundle
from geokr_core.backbone.loader import geokr_backbone
from geokr_core.errors import BackboneError
from geokr_core.networks.network import build
from geokr_core.networks.runtime import one_thread
from geokr_core.networks.weights import load_weights
from geokr_core.step.extras import require_extra
from geokr_core.step.files import whole_file, whole_folder

TIMM_WEIGHTS: Final = "model.safetensors"
TIMM_CONFIG: Final = "config.json"


class _WithNormalisation(nn.Module):
    """Pixels in, features out."""

    mean: Tensor
    std: Tensor

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.network = build(bundle.architecture, len(bundle.bands))
        load_weights(self.network, bundle.folder / WEIGHTS)
        self.register_buffer("mean", torch.from_numpy(bundle.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.from_numpy(bundle.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Features float32 (B, D) of images uint8 (B, C, H, W)."""
        features: Tensor = self.network((images.float() / 255 - self.mean) / self.std)
        return features


def export_onnx(folder: Path, out: Path) -> float:
    """Write a bundle as one ONNX file: ``images`` uint8 (B, C, H, W), any B, H and W, to ``features`` float32 (B, D).

    Args:
        folder: the bundle.
        out: the file; replaced.

    Returns:
        The largest difference to the golden features, as ONNX Runtime computes them.

    Raises:
        MissingExtraError: ``geokr[onnx]`` is not installed.
        MissingInputError: there is no bundle.
        BackboneError: the bundle is damaged, or the file does not give its golden features.
        OSError: the file system refused.
    """
    require_extra("onnx", "`geokr export --onnx`")
    bundle = open_bundle(folder)
    module = _WithNormalisation(bundle).eval()
    images = load_file(folder / GOLDEN)["images"]
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with whole_file(out) as partial, one_thread(), torch.inference_mode():
        torch.onnx.export(
            module,
            (images,),
            str(partial),
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes={"images": free},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        _describe(partial, bundle)
        found = run_onnx(partial, images.numpy())
        error = _require_golden(found, folder, "The ONNX file")
    return error


def _describe(path: Path, bundle: Bundle) -> None:
    """Write what a user must know into the file's own metadata."""
    import onnx

    model = onnx.load(path)
    told = {
        "model": bundle.model_name,
        "bands": ", ".join(bundle.bands),
        "input": "uint8 (B, C, H, W) as the training stretched its scenes; normalisation is inside",
        "data_version": bundle.bundle_data_version,
    }
    onnx.helper.set_model_props(model, told)
    onnx.save(model, path)


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    """Features float32 (B, D) of images uint8 (B, C, H, W), by ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["features"], {"images": images})[0]
    return found


def export_timm(folder: Path, out: Path) -> float:
    """Write a bundle as a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` opens.

    The same folder, uploaded to a hub, is opened by its name there. timm normalises by its data config, whose mean and std are the
    bundle's. Do not give ``in_chans``: timm would fold the first layer and say nothing.

    Args:
        folder: the bundle.
        out: the folder; replaced as a whole.

    Returns:
        The largest difference to the golden features, as timm computes them.

    Raises:
        MissingInputError: there is no bundle.
        BackboneError: the bundle is damaged, timm has no such network, or the folder does not give its golden features.
        OSError: the file system refused.
    """
    import timm

    bundle = open_bundle(folder)
    if "timm" not in bundle.libraries:
        raise BackboneError(f"timm has no {bundle.architecture} that these weights fit; `geokr export --onnx` works.")
    rows = geokr_backbone.describe(folder)["network"]["loads_into"]
    (row,) = [one for one in rows if one["library"] == "timm"]
    network = geokr_backbone.into_timm(folder)
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    description = _timm_config(bundle, row, network.default_cfg)
    with whole_folder(out) as unfinished:
        save_file(state, unfinished / TIMM_WEIGHTS, metadata={"format": "pt"})
        (unfinished / TIMM_CONFIG).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        golden = load_file(folder / GOLDEN)
        with one_thread(), torch.inference_mode():
            opened = timm.create_model(f"local-dir:{unfinished}", pretrained=True).eval()
            found = opened(golden["input"]).numpy()
        error = _require_golden(found, folder, "timm")
    return error


def _timm_config(bundle: Bundle, row: dict[str, Any], own: Any) -> dict[str, Any]:
    """Timm's ``config.json``; ``own`` is what the network says about itself, by which timm replaces first layer and classifier."""
    options = {name: value for name, value in row["options"].items() if name != "num_classes"}
    size, bands = bundle.chip_size_px, list(bundle.bands)
    # An unknown key inside of `pretrained_cfg` is an error there: what is ours stands beside it.
    return {
        "architecture": row["name"],
        "num_classes": 0,
        "num_features": bundle.feature_dim,
        "model_args": {"in_chans": len(bands), **options},
        "pretrained_cfg": {
            "input_size": [len(bands), size, size],
            "mean": [float(value) for value in bundle.mean],
            "std": [float(value) for value in bundle.std],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": 0,
            "fixed_input_size": False,
            "first_conv": own["first_conv"],
            "classifier": own["classifier"],
        },
        "geokr": {"model_name": bundle.model_name, "bands": bands, "data_version": bundle.bundle_data_version},
    }


def _require_golden(found: np.ndarray, folder: Path, who: str) -> float:
    expected = load_file(folder / GOLDEN)["features"].numpy()
    error = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    limit = GOLDEN_TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not error <= limit:
        raise BackboneError(
            f"{who} gives features that differ from the golden ones by {error:.3g} (allowed: {limit:.3g})."
        )
    return error
