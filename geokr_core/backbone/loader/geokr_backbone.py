"""Loads this backbone into torchvision, timm or segmentation-models-pytorch.

This file lies beside the weights it loads. To import it, torch and safetensors are enough; the library a backbone is
loaded into is imported only by the function that bears its name.

    import geokr_backbone
    network = geokr_backbone.load()
    features = network(geokr_backbone.preprocess(images))  # uint8 (B, C, H, W) in, float32 (B, D) out

Every loader is strict: a weight that is missing, left over or of another shape is an error. No file here is a pickle. Which
networks of which libraries the weights fit stands in ``backbone.json``.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent

FORMAT_VERSIONS = (1, 2)
"""Formats of ``backbone.json`` that this file reads. Since format 2 it names the networks and holds its own digest."""

_NEEDED = ("format_version", "architecture", "bands", "mean", "std", "golden_tolerance", "sha256")


class BundleError(ValueError):
    """The files are damaged, or what was asked for does not fit this backbone."""


def describe(folder: str | Path = HERE) -> dict[str, Any]:
    """What ``backbone.json`` says: architecture, networks, bands, preprocessing, origin.

    Args:
        folder: where the bundle lies; the folder of this file unless given. So for every function here.

    Returns:
        Its content; for a bundle of an older format with what newer ones add.

    Raises:
        BundleError: there is no readable ``backbone.json``, its format is not known here, or it was changed.
    """
    path = Path(folder) / "backbone.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{path}: no such file; name the folder that the backbone was downloaded to.") from error
    except ValueError as error:
        raise BundleError(f"{path}: not readable as JSON ({error}); download the backbone again.") from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if version is not None and (not isinstance(version, int) or version not in FORMAT_VERSIONS):
        raise BundleError(
            f"{path}: written in format {version!r}, and this loader reads the formats "
            f"{', '.join(map(str, FORMAT_VERSIONS))}. Use the geokr_backbone.py that lies beside the weights, or a newer "
            "version of what reads them."
        )
    missing = [key for key in _NEEDED if not isinstance(description, dict) or description.get(key) is None]
    if missing:
        raise BundleError(f"{path}: no description of a backbone, {missing[0]!r} is missing; download it again.")
    if version == 1:
        return {**description, "network": _network_of_format_1(str(description["architecture"]))}
    if description.get("description_sha256") != description_digest(description):
        raise BundleError(f"{path}: changed or damaged since it was written; download the backbone again.")
    return dict(description)


def description_digest(description: dict[str, Any]) -> str:
    """SHA-256 of everything in ``backbone.json`` but this digest itself, in hex."""
    content = {key: value for key, value in description.items() if key != "description_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_state_dict(folder: str | Path = HERE) -> dict[str, Tensor]:
    """The weights by the key names of the library that they come from, without the classifier.

    Raises:
        BundleError: the weights are missing or not those that ``backbone.json`` names.
    """
    _check_digest(Path(folder), "backbone.safetensors", describe(folder)["sha256"].get("backbone.safetensors", ""))
    return load_file(Path(folder) / "backbone.safetensors")


def preprocess(images_uint8_nchw: Tensor, folder: str | Path = HERE) -> Tensor:
    """Scale and normalise images as they were in pretraining: ``(x / 255 - mean) / std`` for each band.

    Args:
        images_uint8_nchw: uint8 (B, C, H, W), the bands in the order of ``describe()["bands"]``.
        folder: see `describe`.

    Returns:
        float32 (B, C, H, W) on the same device.

    Raises:
        BundleError: no tensor, another data type, number of dimensions or number of bands.
    """
    description = describe(folder)
    bands = description["bands"]
    found = images_uint8_nchw
    if not isinstance(found, Tensor):
        raise BundleError(f"Expected a torch tensor of uint8, found {type(found).__name__}; use torch.from_numpy.")
    if found.dtype != torch.uint8:
        raise BundleError(f"Expected uint8 images (0 to 255), found {found.dtype}; stretch them to 8 bits first.")
    if found.ndim != 4 or found.shape[1] != len(bands):
        raise BundleError(
            f"Expected images of shape (B, {len(bands)}, H, W) with the bands {', '.join(bands)} in this order, "
            f"found {tuple(found.shape)}; select or reorder bands, and put them before height and width."
        )
    mean = torch.tensor(description["mean"], device=found.device).view(1, -1, 1, 1)
    std = torch.tensor(description["std"], device=found.device).view(1, -1, 1, 1)
    return (found.float() / 255 - mean) / std


def load(folder: str | Path = HERE) -> nn.Module:
    """The backbone in eval mode, as the library that it was trained with builds it; its output is (B, feature_dim).

    Raises:
        BundleError: no library has the architecture, or see `load_state_dict`.
        RuntimeError: the weights do not fit the library's network.
        ImportError: the library is not installed.
    """
    description = describe(folder)
    rows = description["network"]["loads_into"]
    if not rows:
        raise BundleError(
            f"No library has {description['architecture']}: build that network yourself, for {len(description['bands'])} bands "
            "and without its classifier, and fill it with `load_into(network)`."
        )
    return into_timm(folder) if rows[0]["library"] == "timm" else into_torchvision(folder)


def load_into(network: nn.Module, folder: str | Path = HERE) -> nn.Module:
    """Fill a network of your own, strictly, and put it into eval mode.

    Raises:
        BundleError: see `load_state_dict`.
        RuntimeError: the weights do not fit it.
    """
    network.load_state_dict(load_state_dict(folder), strict=True)
    return network.eval()


def into_torchvision(folder: str | Path = HERE) -> nn.Module:
    """The backbone as a torchvision network in eval mode whose output is the pooled last stage, (B, feature_dim).

    Put a layer of your own in place of ``fc`` (ResNet), or behind the network, to fine-tune it.

    Raises:
        BundleError: torchvision does not have the architecture, or see `load_state_dict`.
        RuntimeError: the weights do not fit torchvision's network.
        ImportError: torchvision is not installed.
    """
    description, row = _row(folder, "torchvision")
    import torchvision

    _require_plain(row, row["name"] in torchvision.models.list_models())
    network: nn.Module = getattr(torchvision.models, row["name"])(weights=None, **row["options"])
    first = description["network"]["first_layer"]
    network.set_submodule(first, _for_bands(network.get_submodule(first), len(description["bands"])))
    return _filled(network, row, folder)


def into_timm(folder: str | Path = HERE) -> nn.Module:
    """The backbone as a timm network in eval mode whose output is the pooled last stage, (B, feature_dim).

    ``network.forward_intermediates`` gives the stage maps for dense tasks; ``network.reset_classifier(num_classes)``
    puts a classifier on a ResNet.

    Raises:
        BundleError: timm does not have the architecture, or see `load_state_dict`.
        RuntimeError: the weights do not fit timm's network.
        ImportError: timm is not installed.
    """
    description, row = _row(folder, "timm")
    import timm

    _require_plain(row, timm.is_model(row["name"]))
    network: nn.Module = timm.create_model(
        row["name"], pretrained=False, in_chans=len(description["bands"]), **row["options"]
    )
    return _filled(network, row, folder)


def into_smp(folder: str | Path = HERE, decoder: str = "Unet", classes: int = 1, **options: Any) -> nn.Module:
    """A segmentation-models-pytorch network in eval mode whose encoder is the backbone; its decoder is untrained.

    Args:
        folder: see `describe`.
        decoder: a model class of segmentation-models-pytorch, e.g. ``Unet``, ``FPN``, ``DeepLabV3Plus``.
        classes: number of output channels.
        options: further arguments of that class.

    Raises:
        BundleError: the library lacks the architecture or the decoder, or see `load_state_dict`.
        RuntimeError: the weights do not fit the encoder.
        ImportError: segmentation-models-pytorch is not installed.
    """
    description, row = _row(folder, "smp")
    import segmentation_models_pytorch as smp

    _require_plain(row, row["name"] in smp.encoders.get_encoder_names() or _is_timms(row["name"]))
    build = getattr(smp, decoder, None)
    if not isinstance(build, type):
        raise BundleError(
            f"segmentation-models-pytorch has no model {decoder!r}; Unet, FPN and DeepLabV3Plus are some."
        )
    network: nn.Module = build(
        encoder_name=row["name"],
        encoder_weights=None,
        in_channels=len(description["bands"]),
        classes=classes,
        **{**row["options"], **options},
    )
    return _filled(network, row, folder)


def check_files(folder: str | Path = HERE) -> None:
    """Check that every file is the one that was built.

    Raises:
        BundleError: a file is missing or changed.
    """
    for name, digest in sorted(describe(folder)["sha256"].items()):
        _check_digest(Path(folder), name, digest)


def verify(folder: str | Path = HERE, network: nn.Module | None = None) -> None:
    """Check that every file is the one that was built, and that the weights give the golden features.

    Runs in fp32 on the CPU. Needs the library that the backbone was trained with.

    Args:
        folder: see `describe`.
        network: filled with the weights, for an architecture that no library has; None: what `load` gives.

    Raises:
        BundleError: a file is missing or changed, the preprocessing or the features differ from the golden ones.
        RuntimeError: the weights do not fit the library's network.
    """
    folder = Path(folder)
    check_files(folder)
    golden = load_file(folder / "golden.safetensors")
    prepared = preprocess(golden["images"], folder)
    if not torch.allclose(prepared, golden["input"], rtol=0, atol=1e-5):
        raise BundleError(f"{folder}: preprocessing does not give the golden input; mean, std or bands were changed.")
    network = load(folder) if network is None else network
    with torch.inference_mode():
        features = network(golden["input"])
    expected = golden["features"]
    # Other processors sum in another order, which shifts the last digits in proportion to the largest feature.
    limit = describe(folder)["golden_tolerance"] * max(1.0, float(expected.abs().max()))
    error = float((features - expected).abs().max()) if features.shape == expected.shape else float("inf")
    if not error <= limit:
        raise BundleError(
            f"{folder}: the features differ from the golden ones by {error:.3g} (allowed: {limit:.3g}). "
            "Weights or architecture are not those of the bundle; download it again."
        )


def _row(folder: str | Path, library: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The description, and what it says about the network of one library."""
    description = describe(folder)
    rows = {row["library"]: row for row in description["network"]["loads_into"]}
    if library not in rows:
        works = [f"into_{name}" for name in rows] or ["load_into, for a network of your own"]
        raise BundleError(
            f"{library} has no {description['architecture']} that these weights fit. What works: {', '.join(works)}."
        )
    return description, rows[library]


def _filled(network: nn.Module, row: dict[str, Any], folder: str | Path) -> nn.Module:
    """Cut what stands behind the last stage, and load the weights under the library's names."""
    for name, kind in row["replaced"].items():
        network.set_submodule(name, _REPLACEMENTS[kind]())
    state = {_renamed(key, row["renamed"]): value for key, value in load_state_dict(folder).items()}
    inner = network.get_submodule(row["inside"])
    wanted = inner.state_dict()
    for key, value in state.items():
        # Scales of channels are vectors in one library and (C, 1, 1) in another.
        if key in wanted and value.squeeze().shape == wanted[key].squeeze().shape:
            state[key] = value.view_as(wanted[key])
    inner.load_state_dict(state, strict=True)
    return network.eval()


_REPLACEMENTS: dict[str, Any] = {
    "identity": nn.Identity,
    "average_pool": lambda: nn.AdaptiveAvgPool2d(1),
    "flatten": lambda: nn.Flatten(1),
}


def _is_timms(name: str) -> bool:
    """Whether an encoder of segmentation-models-pytorch is a network of timm."""
    import timm

    return name.startswith("tu-") and bool(timm.is_model(name.removeprefix("tu-")))


def _renamed(key: str, beginnings: dict[str, str]) -> str:
    found = next((beginning for beginning in beginnings if key.startswith(beginning)), "")
    return beginnings[found] + key.removeprefix(found) if found else key


_NEVER = (
    "weights",
    "weights_backbone",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
)
"""Arguments that would make a library read other files or ask the network."""


def _require_plain(row: dict[str, Any], known: bool) -> None:
    """Refuse a description that asks a library for anything but one of its networks, untrained."""
    bad = [name for name in row["options"] if name in _NEVER]
    if bad or not known:
        asked = f"the option {bad[0]!r}" if bad else f"{row['name']!r}"
        raise BundleError(
            f"backbone.json asks {row['library']} for {asked}, which this version of it does not have or which is not "
            "allowed here; use the version named in the model card, or do not use this bundle."
        )


def _network_of_format_1(architecture: str) -> dict[str, Any]:
    """What ``backbone.json`` of format 2 says about the architectures that bundles of format 1 can have."""

    def row(library: str, inside: str = "", **parts: dict[str, Any]) -> dict[str, Any]:
        common: dict[str, Any] = {"library": library, "name": architecture, "inside": inside, "renamed": {}}
        return {**common, "options": parts.get("options", {}), "replaced": parts.get("replaced", {})}

    timm, smp = row("timm", options={"num_classes": 0}), row("smp", "encoder")
    if architecture in ("resnet18", "resnet50"):
        rows = [row("torchvision", replaced={"fc": "identity"}), timm, smp]
        return {"first_layer": "conv1", "loads_into": rows}
    if architecture == "vgg16_bn":
        cut = {"avgpool": "average_pool", "classifier": "identity"}
        timm["replaced"] = {"pre_logits": "identity"}
        rows = [row("torchvision", replaced=cut), timm, smp]
        return {"first_layer": "features.0", "loads_into": rows}
    if architecture == "squeezenet1_1":
        rows = [row("torchvision", replaced={"classifier": "average_pool"})]
        return {"first_layer": "features.0", "loads_into": rows}
    return {"first_layer": "", "loads_into": []}


def _for_bands(first: nn.Module | Tensor, num_bands: int) -> nn.Conv2d:
    if not isinstance(first, nn.Conv2d):
        raise BundleError(f"Expected the network to begin with a convolution, found {type(first).__name__}.")
    if first.in_channels == num_bands:
        return first
    return nn.Conv2d(
        num_bands,
        first.out_channels,
        kernel_size=(first.kernel_size[0], first.kernel_size[1]),
        stride=(first.stride[0], first.stride[1]),
        padding=first.padding if isinstance(first.padding, str) else (first.padding[0], first.padding[1]),
        bias=first.bias is not None,
    )


def _check_digest(folder: Path, name: str, expected: str) -> None:
    if Path(name).name != name:
        raise BundleError(f"{folder}: backbone.json names a file outside the bundle ({name!r}); do not use it.")
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{path}: the file is missing; download the backbone again, all of its files.")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise BundleError(
            f"{path}: the file was changed or damaged: its sha256 is {digest.hexdigest()}, backbone.json says "
            f"{expected}. Download the backbone again."
        )
