"""The table of architectures: channels, ends of stages, first layer, smallest input. Free of torch."""

import re
from collections.abc import Mapping
from typing import Final, Literal, get_args

from geokr_core.errors import BackboneError

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

STAGE_ENDS: Final[Mapping[str, tuple[int, int, int, int]]] = {
    # Index into `features` of the last module of a stage. VGG: the 2nd to 5th max pooling, so that strides match
    # ResNet's. SqueezeNet has three poolings only: its stages end where the width or the resolution changes next.
    "VGG": (13, 23, 33, 43),
    "SqueezeNet": (4, 7, 10, 12),
    "ConvNeXt": (1, 3, 5, 7),
    "SwinTransformer": (1, 3, 5, 7),
}

VIT_STAGE_BLOCKS: Final = (2, 5, 8, 11)

MIN_SIZE_PX: Final[Mapping[str, int]] = {
    "VGG": 32, "SqueezeNet": 17, "ConvNeXt": 32, "SwinTransformer": 8, "VisionTransformer": 16,
}  # fmt: skip
"""Smallest image that is more than nothing after the last pooling; ResNet pads and takes any."""

CLASSIFIER_PREFIXES: Final = ("fc.", "classifier.", "head.", "head_dist.")

FIRST_LAYER: Final[Mapping[str, str]] = {
    "ResNet": "conv1", "VGG": "features.0", "SqueezeNet": "features.0", "ConvNeXt": "features.0.0",
    "SwinTransformer": "features.0.0", "VisionTransformer": "patch_embed.proj",
}  # fmt: skip


def depth_of(architecture: str, key: str) -> int:
    """Which stage of a backbone a parameter belongs to: 0 the first layer, 1 to 4 the stages (a norm after them: 4).

    Args:
        architecture: a key of `STAGE_CHANNELS`.
        key: name of the parameter in the backbone.

    Raises:
        BackboneError: the architecture is not known.
    """
    require_known(architecture)
    number = int(found.group(1)) if (found := re.search(r"(?:layer|features\.|blocks\.)(\d+)", key)) else None
    if architecture.startswith("resnet"):
        return number if number is not None and key.startswith("layer") else 0
    if architecture.startswith("vit"):
        after = 4 if key.startswith("norm") else 0
        return after if number is None else 1 + sum(number > end for end in VIT_STAGE_BLOCKS)
    if number is None:
        return 4
    kinds = {"vgg16_bn": "VGG", "squeezenet1_1": "SqueezeNet", "convnext_tiny": "ConvNeXt", "swin_t": "SwinTransformer"}
    return 0 if number == 0 else min(4, 1 + sum(number > end for end in STAGE_ENDS[kinds[architecture]]))


def feature_dim(architecture: str, features: Features = "last") -> int:
    """Length of the vectors that `pooled` gives.

    Raises:
        BackboneError: the architecture is not known.
    """
    require_known(architecture)
    channels = STAGE_CHANNELS[architecture]
    return channels[-1] if features == "last" else sum(channels)


def require_known(architecture: str) -> None:
    """Refuse an architecture that the table does not hold.

    Raises:
        BackboneError: it is not known.
    """
    known = get_args(Architecture)
    if architecture not in known:
        raise BackboneError(f"Architecture {architecture!r} is not known; choose one of {', '.join(known)}.")


Architecture = Literal[
    "resnet18", "resnet34", "resnet50", "resnet101", "vgg16_bn", "squeezenet1_1", "convnext_tiny", "swin_t",
    "vit_small_patch16_224",
]  # fmt: skip

VGG_POOLS = (6, 13, 23, 33, 43)
SQUEEZENET_ENDS = (1, 4, 7, 12)
"""SqueezeNet's last two stages have one resolution: the later one stands for both."""
