"""The table of architectures: one `ArchitectureSpec` a backbone, and how an architecture from outside is found.

Everything that differs between backbones stands here and nowhere else; ``network``, ``weights``, ``pyramid`` and the loader
of a bundle read it. Free of torch, because the parameter file is checked by it.

Not here: building a network (``network``), its weights (``weights``).
"""

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator

from geokr_core.errors import BackboneError, ConfigError
from geokr_core.networks.architecture import ArchitectureSpec, ImageNetWeights, Stage, Upstream
from geokr_core.step.plugins import load_plugin, plugins

PLUGIN_GROUP: Final = "geokr.architectures"

Features = Literal["last", "multi"]
"""``last``: pooled last stage; ``multi``: all four stages, pooled and put side by side."""


def _resnet(name: str, channels: tuple[int, int, int, int], file: str) -> ArchitectureSpec:
    return ArchitectureSpec(
        name,
        upstreams=(
            Upstream("torchvision", name, replaced={"fc": "identity"}),
            Upstream("timm", name, options={"num_classes": 0}),
            Upstream("smp", name, inside="encoder"),
        ),
        stages=(
            Stage("layer1", channels[0], 4),
            Stage("layer2", channels[1], 8),
            Stage("layer3", channels[2], 16),
            Stage("layer4", channels[3], 32),
        ),
        first_layer="conv1",
        stem=("conv1", "bn1"),
        finest=Stage("relu", 64, 2),
        chain=("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),
        dilates=True,
        bf16_min_size_px=17,
        classifier=("fc.",),
        imagenet=ImageNetWeights(file),
    )


_VGG16_BN = ArchitectureSpec(
    "vgg16_bn",
    upstreams=(
        # torchvision pools to 7 x 7 for its classifier, timm keeps two fully connected layers before it; without them, a
        # vector is wanted, at any image size.
        Upstream("torchvision", "vgg16_bn", replaced={"avgpool": "average_pool", "classifier": "identity"}),
        Upstream("timm", "vgg16_bn", options={"num_classes": 0}, replaced={"pre_logits": "identity"}),
        Upstream("smp", "vgg16_bn", inside="encoder"),
    ),
    # The 2nd to 5th max pooling, so that strides match ResNet's.
    stages=(
        Stage("features.13", 128, 4),
        Stage("features.23", 256, 8),
        Stage("features.33", 512, 16),
        Stage("features.43", 512, 32),
    ),
    first_layer="features.0",
    stem=("features.0",),
    finest=Stage("features.6", 64, 2),
    chain=("features",),
    dilates=True,
    min_size_px=32,
    imagenet=ImageNetWeights("vgg16_bn-6c64b313.pth"),
)

_SQUEEZENET1_1 = ArchitectureSpec(
    "squeezenet1_1",
    upstreams=(Upstream("torchvision", "squeezenet1_1", replaced={"classifier": "average_pool"}),),
    # It has three poolings only: its stages end where the width or the resolution changes next.
    stages=(
        Stage("features.4", 128, 4),
        Stage("features.7", 256, 8),
        Stage("features.10", 384, 16),
        Stage("features.12", 512, 16),
    ),
    first_layer="features.0",
    stem=("features.0",),
    finest=Stage("features.1", 64, 2),
    chain=("features",),
    min_size_px=17,
    imagenet=ImageNetWeights("squeezenet1_1-b8a52dc0.pth"),
)


def _convnext_tiny_in_timm() -> dict[str, str]:
    parts = {
        "layer_scale": "gamma",
        "block.0.": "conv_dw.",
        "block.2.": "norm.",
        "block.3.": "mlp.fc1.",
        "block.5.": "mlp.fc2.",
    }
    found = {}
    for stage, num_blocks in enumerate((3, 3, 9, 3)):
        found[f"features.{2 * stage}."] = f"stages.{stage}.downsample." if stage else "stem."
        for block in range(num_blocks):
            for ours, theirs in parts.items():
                found[f"features.{2 * stage + 1}.{block}.{ours}"] = f"stages.{stage}.blocks.{block}.{theirs}"
    return found


_CONVNEXT_TINY = ArchitectureSpec(
    "convnext_tiny",
    upstreams=(
        # The classifier begins with a norm, which is not the backbone's.
        Upstream("torchvision", "convnext_tiny", replaced={"classifier": "flatten"}),
        Upstream(
            "timm",
            "convnext_tiny",
            options={"num_classes": 0},
            replaced={"head.norm": "identity"},
            renamed=_convnext_tiny_in_timm(),
        ),
    ),
    stages=(
        Stage("features.1", 96, 4),
        Stage("features.3", 192, 8),
        Stage("features.5", 384, 16),
        Stage("features.7", 768, 32),
    ),
    first_layer="features.0.0",
    stem=("features.0",),
    chain=("features",),
    min_size_px=32,
    imagenet=ImageNetWeights("convnext_tiny-983f1562.pth"),
)

_SWIN_T = ArchitectureSpec(
    "swin_t",
    upstreams=(Upstream("torchvision", "swin_t", replaced={"head": "identity"}),),
    stages=(
        Stage("features.1", 96, 4),
        Stage("features.3", 192, 8),
        Stage("features.5", 384, 16),
        Stage("norm", 768, 32),
    ),
    first_layer="features.0.0",
    stem=("features.0",),
    chain=("features", "norm"),
    channels_first=False,
    min_size_px=8,
    classifier=("head.",),
    imagenet=ImageNetWeights("swin_t-704ceda3.pth"),
)


def _mobilenet_v2_in_timm() -> dict[str, str]:
    found = {"features.0.0.": "conv_stem.", "features.0.1.": "bn1."}
    first = {"0.0.": "conv_dw.", "0.1.": "bn1.", "1.": "conv_pw.", "2.": "bn2."}
    others = {"0.0.": "conv_pw.", "0.1.": "bn1.", "1.0.": "conv_dw.", "1.1.": "bn2.", "2.": "conv_pwl.", "3.": "bn3."}
    places = [(group, block) for group, size in enumerate((1, 2, 3, 4, 3, 3, 1)) for block in range(size)]
    for number, (group, block) in enumerate(places, start=1):
        for ours, theirs in (first if group == 0 else others).items():
            found[f"features.{number}.conv.{ours}"] = f"blocks.{group}.{block}.{theirs}"
    return found | {"features.18.0.": "conv_head.", "features.18.1.": "bn2."}


_MOBILENET_V2 = ArchitectureSpec(
    "mobilenet_v2",
    upstreams=(
        Upstream("torchvision", "mobilenet_v2", replaced={"classifier": "identity"}),
        Upstream("timm", "mobilenetv2_100", options={"num_classes": 0}, renamed=_mobilenet_v2_in_timm()),
        Upstream("smp", "mobilenet_v2", inside="encoder"),
    ),
    stages=(
        Stage("features.3", 24, 4),
        Stage("features.6", 32, 8),
        Stage("features.13", 96, 16),
        Stage("features.18", 1280, 32),
    ),
    first_layer="features.0.0",
    stem=("features.0",),
    finest=Stage("features.1", 16, 2),
    chain=("features",),
    dilates=True,
    imagenet=ImageNetWeights("mobilenet_v2-7ebf99e0.pth"),
)

_TF_EFFICIENTNET_LITE0 = ArchitectureSpec(
    "tf_efficientnet_lite0",
    # Padding and the epsilon of BatchNorm are TensorFlow's. timm's `efficientnet_lite0` and segmentation-models-pytorch's
    # `timm-tf_efficientnet_lite0` take the same weights under the same keys and compute something else.
    upstreams=(
        Upstream(
            "timm",
            "tf_efficientnet_lite0",
            options={"num_classes": 0},
            replaced={"conv_head": "identity", "bn2": "identity"},
        ),
        Upstream("smp", "tu-tf_efficientnet_lite0", inside="encoder.model"),
    ),
    stages=(
        Stage("blocks.1", 24, 4),
        Stage("blocks.2", 40, 8),
        Stage("blocks.4", 112, 16),
        Stage("blocks.6", 320, 32),
    ),
    first_layer="conv_stem",
    stem=("conv_stem", "bn1"),
    finest=Stage("blocks.0", 16, 2),
    chain=("conv_stem", "bn1", "blocks"),
    dilates=True,
    classifier=("conv_head.", "bn2.", "classifier."),
    imagenet=ImageNetWeights("tf_efficientnet_lite0-0aa007d2.pth", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
)

_VIT_SMALL_PATCH16_224 = ArchitectureSpec(
    "vit_small_patch16_224",
    upstreams=(
        # Mean of the patch tokens: land cover is what the whole image shows. `fc_norm=False` keeps the norm's upstream key.
        Upstream(
            "timm",
            "vit_small_patch16_224",
            options={
                "num_classes": 0,
                "global_pool": "avg",
                "fc_norm": False,
                "dynamic_img_size": True,
                "dynamic_img_pad": True,
            },
        ),
    ),
    # Every third of its blocks.
    stages=(
        Stage("blocks.2", 384, 16),
        Stage("blocks.5", 384, 16),
        Stage("blocks.8", 384, 16),
        Stage("blocks.11", 384, 16),
    ),
    first_layer="patch_embed.proj",
    stem=("patch_embed",),
    intermediates=(2, 5, 8, 11),
    min_size_px=16,
    classifier=("head.", "head_dist."),
    imagenet=ImageNetWeights(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
)

ARCHITECTURES: Final[Mapping[str, ArchitectureSpec]] = {
    spec.name: spec
    for spec in (
        _resnet("resnet18", (64, 128, 256, 512), "resnet18-f37072fd.pth"),
        _resnet("resnet34", (64, 128, 256, 512), "resnet34-b627a593.pth"),
        _resnet("resnet50", (256, 512, 1024, 2048), "resnet50-11ad3fa6.pth"),
        _resnet("resnet101", (256, 512, 1024, 2048), "resnet101-cd907fc2.pth"),
        _VGG16_BN,
        _SQUEEZENET1_1,
        _CONVNEXT_TINY,
        _SWIN_T,
        _VIT_SMALL_PATCH16_224,
        _MOBILENET_V2,
        _TF_EFFICIENTNET_LITE0,
    )
}
"""The architectures that come with the project, by name."""


def spec_of(architecture: str) -> ArchitectureSpec:
    """The row of an architecture.

    Args:
        architecture: a key of `ARCHITECTURES`; a name that an installed package gives in the entry-point group
            ``geokr.architectures``; or ``module:name`` of an `ArchitectureSpec`, or of a function that returns one.

    Returns:
        The row, under the name that was asked for.

    Raises:
        BackboneError: it is not known, or what was imported is no row.
    """
    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture]
    return _from_outside(architecture)


@cache
def _from_outside(architecture: str) -> ArchitectureSpec:
    if ":" in architecture:
        found = _imported(architecture)
    elif architecture in plugins(PLUGIN_GROUP):
        try:
            found = load_plugin(PLUGIN_GROUP, architecture)
        except ConfigError as error:
            raise BackboneError(str(error)) from error
    else:
        known = [*ARCHITECTURES, *plugins(PLUGIN_GROUP)]
        close = difflib.get_close_matches(architecture, known, n=1)
        raise BackboneError(
            f"Architecture {architecture!r} is not known{f'; did you mean {close[0]!r}?' if close else '.'} Choose one of "
            f"{', '.join(known)}, or name one of your own as `module:name`."
        )
    if callable(found):
        try:
            found = found()
        except TypeError as error:
            raise BackboneError(
                f"Architecture {architecture!r}: calling it without arguments fails ({error}); expected an "
                "ArchitectureSpec or a function that returns one."
            ) from error
    if not isinstance(found, ArchitectureSpec):
        raise BackboneError(
            f"Architecture {architecture!r}: found {type(found).__name__}, expected an ArchitectureSpec or a function "
            "that returns one; see docs/architectures.md."
        )
    return replace(found, name=architecture)


def _imported(reference: str) -> Any:
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BackboneError(
            f"Architecture {reference!r} cannot be imported ({error}); expected `module:name` of a module that Python "
            "finds (installed, or its folder in PYTHONPATH)."
        ) from error


def _known(architecture: str) -> str:
    try:
        spec_of(architecture)
    except BackboneError as error:
        raise ValueError(str(error)) from error
    return architecture


Architecture = Annotated[str, AfterValidator(_known)]
"""Name of an architecture, as `spec_of` takes it, in a parameter file."""


def feature_dim(architecture: str, features: Features = "last") -> int:
    """Length of the vectors that ``network.pooled`` gives.

    Raises:
        BackboneError: the architecture is not known.
    """
    channels = spec_of(architecture).stage_channels
    return channels[-1] if features == "last" else sum(channels)
