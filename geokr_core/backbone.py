"""Backbones: torchvision networks without their classifier, their stage maps, and their weights on disk.

Key names are torchvision's own, so that the weights load elsewhere without this project. The head that predicts
proportions lives in ``pretrain``; the bundle around the weights in ``bundle``.

Input of every backbone: float32 (B, C, H, W), ``(x / 255 - mean) / std`` with the channel statistics of Levir-KR.
"""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # only to recognise it: nothing here unpickles objects
from typing import Any, Final, Literal, get_args

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from geokr_core.config import Architecture
from geokr_core.errors import BackboneError
from geokr_core.files import whole_file

Features = Literal["last", "multi"]
"""``last``: pooled last stage; ``multi``: all four stages, pooled and set side by side."""

STAGE_CHANNELS: Final[Mapping[str, tuple[int, int, int, int]]] = {
    "resnet18": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "vgg16_bn": (128, 256, 512, 512),
    "squeezenet1_1": (128, 256, 384, 512),
}
"""Channels of the four stage maps of each architecture. Strides are 4, 8, 16, 32; SqueezeNet's last two are both 16."""

_STAGE_ENDS: Final[Mapping[str, tuple[int, int, int, int]]] = {
    # Index into `features` of the last module of a stage. VGG: the 2nd to 5th max pooling, so that strides match
    # ResNet's. SqueezeNet has three poolings only: its stages end where the width or the resolution changes next.
    "VGG": (13, 23, 33, 43),
    "SqueezeNet": (4, 7, 10, 12),
}

_MIN_SIZE_PX: Final[Mapping[str, int]] = {"VGG": 32, "SqueezeNet": 17}
"""Smallest image that is more than nothing after the last pooling; ResNet pads and takes any."""

_CLASSIFIER_PREFIXES: Final = ("fc.", "classifier.")


def build(architecture: str, in_channels: int = 3) -> nn.Module:
    """A freshly initialised torchvision network whose classifier is gone.

    Called on images, it returns the pooled last stage, float (B, D) with D = ``feature_dim(architecture)``.

    Args:
        architecture: one of ``resnet18``, ``resnet50``, ``vgg16_bn``, ``squeezenet1_1``.
        in_channels: bands of the input. Other than 3, the first convolution is made anew, initialised as
            torchvision initialises it; its key keeps its name.

    Returns:
        The network, in train mode. Its state has torchvision's keys less ``fc.*`` or ``classifier.*``.

    Raises:
        BackboneError: the architecture is not known, or there is no band.
    """
    _require_known(architecture)
    if in_channels < 1:
        raise BackboneError(f"A backbone needs at least one input band, found in_channels={in_channels}.")
    module: nn.Module = getattr(torchvision.models, architecture)(weights=None)
    if isinstance(module, torchvision.models.ResNet):
        module.fc = nn.Identity()
        if in_channels != 3:
            module.conv1 = _first_convolution(module.conv1, in_channels)
    elif isinstance(module, torchvision.models.VGG):
        # torchvision pools VGG to 7x7 for its classifier; without it, a vector is wanted, at any image size.
        module.avgpool = nn.AdaptiveAvgPool2d(1)
        module.classifier = nn.Identity()
    else:
        module.classifier = nn.AdaptiveAvgPool2d(1)
    if in_channels != 3 and isinstance(features := getattr(module, "features", None), nn.Sequential):
        features[0] = _first_convolution(features[0], in_channels)
    return module


def _first_convolution(old: nn.Module, in_channels: int) -> nn.Conv2d:
    if not isinstance(old, nn.Conv2d):
        raise BackboneError(f"Expected the first layer to be a convolution, found {type(old).__name__}.")
    new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def stages(module: nn.Module, images: Tensor) -> list[Tensor]:
    """The four stage maps of a backbone.

    Args:
        module: what `build` returned.
        images: float32 (B, C, H, W), normalised.

    Returns:
        Four maps (B, C_i, H_i, W_i) with C_i as in `STAGE_CHANNELS`, finest first. The last one is what is pooled.

    Raises:
        BackboneError: the module is none of ours, or the images are too small for it.
    """
    smallest = _MIN_SIZE_PX.get(type(module).__name__, 1)
    if min(images.shape[2:]) < smallest:
        raise BackboneError(
            f"Images of {images.shape[2]} x {images.shape[3]} px are too small for {type(module).__name__}, which needs "
            f"{smallest} px: cut larger chips (`chips.size_px`) or choose a ResNet."
        )
    if isinstance(module, torchvision.models.ResNet):
        x = module.maxpool(module.relu(module.bn1(module.conv1(images))))
        maps = []
        for layer in (module.layer1, module.layer2, module.layer3, module.layer4):
            x = layer(x)
            maps.append(x)
        return maps
    ends = _STAGE_ENDS.get(type(module).__name__)
    features = getattr(module, "features", None)
    if ends is None or not isinstance(features, nn.Sequential):
        known = ", ".join(STAGE_CHANNELS)
        raise BackboneError(f"{type(module).__name__} has no known stages; build the backbone as one of {known}.")
    x, maps = images, []
    for index, layer in enumerate(features):
        x = layer(x)
        if index in ends:
            maps.append(x)
    return maps


def pooled(module: nn.Module, images: Tensor, features: Features = "last") -> Tensor:
    """Feature vectors of images.

    Args:
        module: what `build` returned.
        images: float32 (B, C, H, W), normalised.
        features: ``last`` or ``multi``.

    Returns:
        float (B, D) with D = ``feature_dim(architecture, features)``.

    Raises:
        BackboneError: the module or the kind of features is not known, or the images are too small.
    """
    if features not in get_args(Features):
        raise BackboneError(f"Features {features!r} are not known; choose one of {', '.join(get_args(Features))}.")
    maps = stages(module, images)
    chosen = maps[-1:] if features == "last" else maps
    return torch.cat([F.adaptive_avg_pool2d(x, 1).flatten(1) for x in chosen], dim=1)


def feature_dim(architecture: str, features: Features = "last") -> int:
    """Length of the vectors that `pooled` gives.

    Raises:
        BackboneError: the architecture is not known.
    """
    _require_known(architecture)
    channels = STAGE_CHANNELS[architecture]
    return channels[-1] if features == "last" else sum(channels)


def _require_known(architecture: str) -> None:
    known = get_args(Architecture)
    if architecture not in known:
        raise BackboneError(f"Architecture {architecture!r} is not known; choose one of {', '.join(known)}.")


def save_weights(module: nn.Module, path: Path) -> None:
    """Write the state of a module as safetensors, whole or not at all; the same state gives the same bytes.

    Args:
        module: any module; floating-point tensors are written as float32, counters as they are.
        path: the file to write.

    Raises:
        OSError: the file system refused.
    """
    state = {
        key: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in module.state_dict().items()
    }
    with whole_file(path) as partial:
        save_file(state, partial, metadata={"format": "pt"})


def load_weights(module: nn.Module, path: Path, *, drop_classifier: bool = False) -> None:
    """Load weights into a module, strictly: every key must be there, no other, each of the right shape.

    Args:
        module: the module to fill.
        path: a ``.safetensors`` file; also ``.pth`` or ``.pt`` as torchvision keeps them, read with torch's
            restricted unpickler (tensors only, nothing is executed).
        drop_classifier: leave out ``fc.*`` and ``classifier.*``, as files of ImageNet weights hold them.

    Raises:
        BackboneError: the file is missing or unreadable, or does not fit; the message says where they differ.
    """
    state = _read_state(path)
    if drop_classifier:
        state = {key: value for key, value in state.items() if not key.startswith(_CLASSIFIER_PREFIXES)}
    complaints = _differences(module.state_dict(), state)
    if complaints:
        raise BackboneError(
            f"{path} does not fit {type(module).__name__}: {'; '.join(complaints)}. "
            "Weights must have torchvision's key names for the very architecture and number of bands."
        )
    module.load_state_dict(state, strict=True)


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BackboneError(f"{path}: no such weights file; check the path, or leave it out to start from scratch.")
    if path.suffix in {".pth", ".pt"}:
        # weights_only: a checkpoint that carries code or foreign objects is refused, not run.
        try:
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            raise BackboneError(
                f"{path}: holds more than plain tensors and is refused. Save the `state_dict()` of the network alone."
            ) from error
        except (RuntimeError, ValueError, EOFError, OSError) as error:
            raise BackboneError(f"{path}: not a readable file of tensors ({error}); download it anew.") from error
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise BackboneError(f"{path}: expected a flat mapping of names to tensors; save `state_dict()` alone.")
        return dict(content)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"{path}: not a readable safetensors file ({error}); write or download it anew.") from error


def _differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    complaints = []
    missing = [key for key in wanted if key not in found]
    extra = [key for key in found if key not in wanted]
    if missing:
        complaints.append(f"{len(missing)} key(s) missing, such as {_sample(missing)}")
    if extra:
        complaints.append(f"{len(extra)} key(s) unknown, such as {_sample(extra)}")
        if all(key.startswith(_CLASSIFIER_PREFIXES) for key in extra):
            complaints.append("those belong to a classifier: delete them, a backbone ends before it")
    reshaped = [key for key in wanted if key in found and wanted[key].shape != found[key].shape]
    if reshaped:
        key = reshaped[0]
        complaints.append(
            f"{len(reshaped)} shape(s) differ, such as {key}: "
            f"found {tuple(found[key].shape)}, expected {tuple(wanted[key].shape)}"
        )
        if wanted[key].ndim == 4 and wanted[key].shape[1] != found[key].shape[1] and len(reshaped) == 1:
            complaints.append(
                f"the file is for {found[key].shape[1]} bands and the data has {wanted[key].shape[1]}: "
                "choose `chips.bands` to match, or other weights"
            )
    return complaints


def _sample(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
