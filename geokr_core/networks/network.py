"""Building a network of the table and walking through its stages."""

from typing import get_args

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from geokr_core.errors import BackboneError
from geokr_core.networks.architectures import (
    FIRST_LAYER,
    MIN_SIZE_PX,
    STAGE_CHANNELS,
    STAGE_ENDS,
    VIT_STAGE_BLOCKS,
    Features,
    require_known,
)


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
    require_known(architecture)
    if in_channels < 1:
        raise BackboneError(f"A backbone needs at least one input band, found in_channels={in_channels}.")
    module = _vision_transformer() if architecture.startswith("vit") else _torchvision_network(architecture)
    if in_channels != 3:
        name = FIRST_LAYER[type(module).__name__]
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
    smallest = MIN_SIZE_PX.get(type(module).__name__, 1)
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
            images, indices=list(VIT_STAGE_BLOCKS), norm=True, intermediates_only=True
        )
        return found
    ends = STAGE_ENDS.get(type(module).__name__)
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
