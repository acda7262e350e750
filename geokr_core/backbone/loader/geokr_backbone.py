"""Loads this backbone into torchvision, timm or segmentation-models-pytorch.

This file lies beside the weights it loads. To import it, torch and safetensors are enough; the library a backbone is
loaded into is imported only by the function that bears its name.

    import geokr_backbone
    network = geokr_backbone.into_timm()
    features = network(geokr_backbone.preprocess(images))  # uint8 (B, C, H, W) in, float32 (B, D) out

Every loader is strict: a weight that is missing, left over or of another shape is an error. No file here is a pickle.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent

LOADS_INTO = {
    "torchvision": ("resnet18", "resnet50", "vgg16_bn", "squeezenet1_1"),
    "timm": ("resnet18", "resnet50", "vgg16_bn"),
    "smp": ("resnet18", "resnet50", "vgg16_bn"),
}
"""Which architectures each library has. ``smp`` is segmentation-models-pytorch."""


_NEEDED = ("architecture", "bands", "mean", "std", "golden_tolerance", "sha256")


class BundleError(ValueError):
    """The files are damaged, or what was asked for does not fit this backbone."""


def describe(folder: str | Path = HERE) -> dict[str, Any]:
    """What ``backbone.json`` says: architecture, bands, preprocessing, origin.

    Args:
        folder: where the bundle lies; the folder of this file unless given. So for every function here.

    Raises:
        BundleError: there is no readable ``backbone.json``.
    """
    path = Path(folder) / "backbone.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{path}: no such file; name the folder that the backbone was downloaded to.") from error
    except ValueError as error:
        raise BundleError(f"{path}: not readable as JSON ({error}); download the backbone again.") from error
    missing = [key for key in _NEEDED if not isinstance(description, dict) or key not in description]
    if missing:
        raise BundleError(f"{path}: no description of a backbone, {missing[0]!r} is missing; download it again.")
    return dict(description)


def load_state_dict(folder: str | Path = HERE) -> dict[str, Tensor]:
    """The weights by torchvision's key names, without the classifier.

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
        BundleError: another data type, number of dimensions or number of bands.
    """
    description = describe(folder)
    bands = description["bands"]
    found = images_uint8_nchw
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


def into_torchvision(folder: str | Path = HERE) -> nn.Module:
    """The backbone as a torchvision network in eval mode whose output is the pooled last stage, (B, feature_dim).

    Put a layer of your own in place of ``fc`` (ResNet), or behind the network, to fine-tune it.

    Raises:
        BundleError: see `load_state_dict`.
        RuntimeError: the weights do not fit torchvision's network.
        ImportError: torchvision is not installed.
    """
    import torchvision

    architecture, num_bands = _architecture(folder, "torchvision")
    network: nn.Module = getattr(torchvision.models, architecture)(weights=None)
    if architecture.startswith("resnet"):
        network.fc = nn.Identity()
        network.conv1 = _for_bands(network.conv1, num_bands)
    else:
        features = network.features
        if not isinstance(features, nn.Sequential):
            raise BundleError(
                f"This torchvision builds {architecture} in another way; use the version named in the model card."
            )
        features[0] = _for_bands(features[0], num_bands)
        if architecture.startswith("vgg"):
            # torchvision pools to 7x7 for its classifier; a feature vector at any image size needs 1x1.
            network.avgpool, network.classifier = nn.AdaptiveAvgPool2d(1), nn.Identity()
        else:
            network.classifier = nn.AdaptiveAvgPool2d(1)
    network.load_state_dict(load_state_dict(folder), strict=True)
    return network.eval()


def into_timm(folder: str | Path = HERE) -> nn.Module:
    """The backbone as a timm network in eval mode with ``num_classes=0``: its output is (B, feature_dim).

    ``network.forward_intermediates`` gives the stage maps for dense tasks; ``network.reset_classifier(num_classes)``
    puts a classifier on a ResNet.

    Raises:
        BundleError: timm does not have the architecture, or see `load_state_dict`.
        RuntimeError: the weights do not fit timm's network.
        ImportError: timm is not installed.
    """
    architecture, num_bands = _architecture(folder, "timm")
    import timm

    network: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=0, in_chans=num_bands)
    if architecture.startswith("vgg"):
        # timm keeps the two fully connected layers before the classifier, for which a backbone has no weights.
        network.pre_logits = nn.Identity()
    network.load_state_dict(load_state_dict(folder), strict=True)
    return network.eval()


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
    architecture, num_bands = _architecture(folder, "smp")
    import segmentation_models_pytorch as smp

    build = getattr(smp, decoder, None)
    if not isinstance(build, type):
        raise BundleError(
            f"segmentation-models-pytorch has no model {decoder!r}; Unet, FPN and DeepLabV3Plus are some."
        )
    network: nn.Module = build(
        encoder_name=architecture, encoder_weights=None, in_channels=num_bands, classes=classes, **options
    )
    # The encoder's own load_state_dict drops classifier keys and then passes `strict` on.
    network.get_submodule("encoder").load_state_dict(load_state_dict(folder), strict=True)
    return network.eval()


def verify(folder: str | Path = HERE) -> None:
    """Check that every file is the one that was built, and that the weights give the golden features.

    Runs in fp32 on the CPU. Needs torchvision.

    Raises:
        BundleError: a file is missing or changed, the preprocessing or the features differ from the golden ones.
        RuntimeError: the weights do not fit torchvision's network.
    """
    folder = Path(folder)
    description = describe(folder)
    for name, digest in sorted(description["sha256"].items()):
        _check_digest(folder, name, digest)
    golden = load_file(folder / "golden.safetensors")
    prepared = preprocess(golden["images"], folder)
    if not torch.allclose(prepared, golden["input"], rtol=0, atol=1e-5):
        raise BundleError(f"{folder}: preprocessing does not give the golden input; mean, std or bands were changed.")
    network = into_torchvision(folder)
    with torch.inference_mode():
        features = network(golden["input"])
    expected = golden["features"]
    # Other processors sum in another order, which shifts the last digits in proportion to the largest feature.
    limit = description["golden_tolerance"] * max(1.0, float(expected.abs().max()))
    error = float((features - expected).abs().max()) if features.shape == expected.shape else float("inf")
    if not error <= limit:
        raise BundleError(
            f"{folder}: the features differ from the golden ones by {error:.3g} (allowed: {limit:.3g}). "
            "Weights or architecture are not those of the bundle; download it again."
        )


def _architecture(folder: str | Path, library: str) -> tuple[str, int]:
    description = describe(folder)
    architecture = str(description["architecture"])
    if architecture not in LOADS_INTO[library]:
        others = [f"into_{name}" for name, known in LOADS_INTO.items() if architecture in known]
        raise BundleError(
            f"{library} has no {architecture} that these weights fit (it has: {', '.join(LOADS_INTO[library])}). "
            f"What works: {', '.join(others) or 'load_state_dict, for a network of your own'}."
        )
    return architecture, len(description["bands"])


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
