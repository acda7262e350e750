"""Backbones: torchvision and timm networks without their classifier, their stage maps, and their weights on disk.

Key names are the upstream's own, so that the weights load elsewhere without this project. The heads on top live in
``methods.network``; the bundle around the weights in ``bundle``.

Input of every backbone: float32 (B, C, H, W), ``(x / 255 - mean) / std`` with the channel statistics of Levir-KR.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError  # only to recognise it: nothing here unpickles objects
from typing import Any, Final, Literal, get_args

import torch
import torchvision
from safetensors import SafetensorError, safe_open
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
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "resnet101": (256, 512, 1024, 2048),
    "vgg16_bn": (128, 256, 512, 512),
    "squeezenet1_1": (128, 256, 384, 512),
    "convnext_tiny": (96, 192, 384, 768),
    "swin_t": (96, 192, 384, 768),
    "vit_small_patch16_224": (384, 384, 384, 384),
}
"""Channels of the four stage maps of each architecture. Strides are 4, 8, 16, 32; SqueezeNet's last two are both 16, and
all four of the vision transformer's, which are every third of its blocks."""

_STAGE_ENDS: Final[Mapping[str, tuple[int, int, int, int]]] = {
    # Index into `features` of the last module of a stage. VGG: the 2nd to 5th max pooling, so that strides match
    # ResNet's. SqueezeNet has three poolings only: its stages end where the width or the resolution changes next.
    "VGG": (13, 23, 33, 43),
    "SqueezeNet": (4, 7, 10, 12),
    "ConvNeXt": (1, 3, 5, 7),
    "SwinTransformer": (1, 3, 5, 7),
}

_VIT_STAGE_BLOCKS: Final = (2, 5, 8, 11)

_MIN_SIZE_PX: Final[Mapping[str, int]] = {
    "VGG": 32, "SqueezeNet": 17, "ConvNeXt": 32, "SwinTransformer": 8, "VisionTransformer": 16,
}  # fmt: skip
"""Smallest image that is more than nothing after the last pooling; ResNet pads and takes any."""

_CLASSIFIER_PREFIXES: Final = ("fc.", "classifier.", "head.", "head_dist.")

_FIRST_LAYER: Final[Mapping[str, str]] = {
    "ResNet": "conv1", "VGG": "features.0", "SqueezeNet": "features.0", "ConvNeXt": "features.0.0",
    "SwinTransformer": "features.0.0", "VisionTransformer": "patch_embed.proj",
}  # fmt: skip

_RGB: Final = ("red", "green", "blue")
"""Order of the input channels of weights trained on photographs."""
_BANDS_KEY: Final = "bands"
"""Entry of a safetensors header: names of the input channels, with commas between."""


def build(architecture: str, in_channels: int = 3) -> nn.Module:
    """A freshly initialised network whose classifier is gone.

    Called on images, it returns the pooled last stage, float (B, D) with D = ``feature_dim(architecture)``.

    Args:
        architecture: a key of `STAGE_CHANNELS`. ``vit_small_patch16_224`` is timm's, with patches of 16 px and position
            embeddings that are interpolated to the size of the image; all others are torchvision's.
        in_channels: bands of the input. Other than 3, the first convolution is made anew, initialised as
            torchvision initialises its convolutions; its key keeps its name.

    Returns:
        The network, in train mode. Its state has the upstream's keys less ``fc.*``, ``classifier.*`` or ``head.*``.

    Raises:
        BackboneError: the architecture is not known, or there is no band.
    """
    _require_known(architecture)
    if in_channels < 1:
        raise BackboneError(f"A backbone needs at least one input band, found in_channels={in_channels}.")
    module = _vision_transformer() if architecture.startswith("vit") else _torchvision_network(architecture)
    if in_channels != 3:
        name = _FIRST_LAYER[type(module).__name__]
        module.set_submodule(name, _first_convolution(module.get_submodule(name), in_channels))
    return module


def _torchvision_network(architecture: str) -> nn.Module:
    module: nn.Module = getattr(torchvision.models, architecture)(weights=None)
    if isinstance(module, torchvision.models.ResNet):
        module.fc = nn.Identity()
    elif isinstance(module, torchvision.models.VGG):
        # torchvision pools VGG to 7x7 for its classifier; without it, a vector is wanted, at any image size.
        module.avgpool = nn.AdaptiveAvgPool2d(1)
        module.classifier = nn.Identity()
    elif isinstance(module, torchvision.models.ConvNeXt):
        module.classifier = nn.Flatten(1)
    elif isinstance(module, torchvision.models.SwinTransformer):
        module.head = nn.Identity()
    else:
        module.classifier = nn.AdaptiveAvgPool2d(1)
    return module


def _vision_transformer() -> nn.Module:
    import timm

    # Mean of the patch tokens: land cover is what the whole image shows. `fc_norm=False` keeps the norm's upstream key.
    module: nn.Module = timm.create_model(
        "vit_small_patch16_224", pretrained=False, num_classes=0, global_pool="avg", fc_norm=False,
        dynamic_img_size=True, dynamic_img_pad=True,
    )  # fmt: skip
    return module


def _first_convolution(old: nn.Module, in_channels: int) -> nn.Conv2d:
    if not isinstance(old, nn.Conv2d):
        raise BackboneError(f"Expected the first layer to be a convolution, found {type(old).__name__}.")
    new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def depth_of(architecture: str, key: str) -> int:
    """Which stage of a backbone a parameter belongs to: 0 the first layer, 1 to 4 the stages (a norm after them: 4).

    Args:
        architecture: a key of `STAGE_CHANNELS`.
        key: name of the parameter in the backbone.

    Raises:
        BackboneError: the architecture is not known.
    """
    _require_known(architecture)
    number = int(found.group(1)) if (found := re.search(r"(?:layer|features\.|blocks\.)(\d+)", key)) else None
    if architecture.startswith("resnet"):
        return number if number is not None and key.startswith("layer") else 0
    if architecture.startswith("vit"):
        after = 4 if key.startswith("norm") else 0
        return after if number is None else 1 + sum(number > end for end in _VIT_STAGE_BLOCKS)
    if number is None:
        return 4
    kinds = {"vgg16_bn": "VGG", "squeezenet1_1": "SqueezeNet", "convnext_tiny": "ConvNeXt", "swin_t": "SwinTransformer"}
    return 0 if number == 0 else min(4, 1 + sum(number > end for end in _STAGE_ENDS[kinds[architecture]]))


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
    if type(module).__name__ == "VisionTransformer":
        found: list[Tensor] = module.forward_intermediates(  # type: ignore[operator]
            images, indices=list(_VIT_STAGE_BLOCKS), norm=True, intermediates_only=True
        )
        return found
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
    if isinstance(module, torchvision.models.SwinTransformer):
        maps[-1] = module.norm(maps[-1])
        maps = [x.permute(0, 3, 1, 2) for x in maps]
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


def save_weights(module: nn.Module, path: Path, bands: Sequence[str] = ()) -> None:
    """Write the state of a module as safetensors, whole or not at all; the same state gives the same bytes.

    Args:
        module: any module; floating-point tensors are written as float32, counters as they are.
        path: the file to write.
        bands: common names of what its input channels are, kept in the file's header; none: it has no say in them.

    Raises:
        OSError: the file system refused.
    """
    state = {
        key: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in module.state_dict().items()
    }
    with whole_file(path) as partial:
        # One entry and no more: safetensors writes several in an order that changes from process to process.
        save_file(state, partial, metadata={_BANDS_KEY: ",".join(bands)} if bands else {"format": "pt"})


def load_weights(module: nn.Module, path: Path, *, drop_classifier: bool = False) -> None:
    """Load weights into a module, strictly: every key must be there, no other, each of the right shape.

    Args:
        module: the module to fill.
        path: a ``.safetensors`` file; also ``.pth`` or ``.pt`` as torchvision keeps them, read with torch's
            restricted unpickler (tensors only, nothing is executed).
        drop_classifier: leave out ``fc.*``, ``classifier.*`` and ``head.*``, as files of ImageNet weights hold them.

    Raises:
        BackboneError: the file is missing or unreadable, or does not fit; the message says where they differ.
    """
    state = _read_state(path)
    if drop_classifier:
        state = {key: value for key, value in state.items() if not key.startswith(_CLASSIFIER_PREFIXES)}
    _require_fit(module, state, path)
    module.load_state_dict(state, strict=True)


def _require_fit(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    complaints = _differences(module.state_dict(), state)
    if complaints:
        raise BackboneError(
            f"{path} does not fit {type(module).__name__}: {'; '.join(complaints)}. "
            "Weights must have the upstream's key names for the very architecture and number of bands."
        )


def load_initial_weights(
    module: nn.Module, weights: Path | Literal["imagenet"], architecture: str, bands: Sequence[str]
) -> None:
    """Start a backbone from given weights, whatever bands the data has.

    The rule for the first layer, where the data has other bands than the file: a band of the same name keeps its
    filters, every other band gets the mean of the file's, and where the number of bands differs, from F to C, all are
    scaled by F / C, so that the sum over the bands stays as large as the later layers expect. Weights that were saved
    here say which bands they are for; a file that does not say so and has three is taken for red, green and blue.

    Args:
        module: what `build` returned.
        weights: a file as for `load_weights`, a classifier in it is left out; ``imagenet``: see `imagenet_weights`.
        architecture: of the module.
        bands: common names of the data's bands.

    Raises:
        BackboneError: the weights are missing or unreadable, or do not fit.
    """
    path = imagenet_weights(architecture) if weights == "imagenet" else weights
    state = {k: v for k, v in _read_state(path).items() if not k.startswith(_CLASSIFIER_PREFIXES)}
    key, theirs = _FIRST_LAYER[type(module).__name__] + ".weight", _bands_of(path)
    if key in state and state[key].ndim == 4 and state[key].shape[1] == len(theirs):
        state[key] = _filters_for(bands, theirs, state[key])
    _require_fit(module, state, path)
    module.load_state_dict(state, strict=True)


def _bands_of(path: Path) -> Sequence[str]:
    """Bands that a readable file of weights is for."""
    if path.suffix in {".pth", ".pt"}:
        return _RGB
    with safe_open(path, framework="pt") as stored:
        said = (stored.metadata() or {}).get(_BANDS_KEY)
    return said.split(",") if said else _RGB


def _filters_for(ours: Sequence[str], theirs: Sequence[str], filters: Tensor) -> Tensor:
    mean = filters.mean(dim=1)
    chosen = [filters[:, theirs.index(band)] if band in theirs else mean for band in ours]
    return torch.stack(chosen, dim=1) * (len(theirs) / len(ours))


def imagenet_weights(architecture: str) -> Path:
    """The file of torchvision's ImageNet weights in its cache. Nothing is downloaded.

    Raises:
        BackboneError: torchvision has none for the architecture, or they are not in the cache.
    """
    _require_known(architecture)
    if architecture.startswith("vit"):
        raise BackboneError(f"torchvision has no weights for {architecture}; name a file in `initial_weights`.")
    url = str(torchvision.models.get_model_weights(architecture).DEFAULT.url)
    path = Path(str(torch.hub.get_dir())) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.is_file():
        raise BackboneError(
            f"{path}: torchvision's ImageNet weights of {architecture} are not there, and nothing is downloaded. Put the "
            "file there, set TORCH_HOME to where it is, or name a file in `initial_weights`."
        )
    return path


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
