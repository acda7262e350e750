"""What is said about one architecture: the values that a row of the table is made of. Free of torch.

Not here: the rows (``architectures``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from geokr_core.errors import BackboneError

Library = Literal["torchvision", "timm", "smp"]
"""A library that builds networks; ``smp`` is segmentation-models-pytorch."""

Replacement = Literal["identity", "average_pool", "flatten"]


@dataclass(frozen=True)
class Upstream:
    """A network of a library that the weights of an architecture fit.

    Attributes:
        library: which library.
        name: of the function in ``torchvision.models``, of the model for ``timm.create_model``, or of the encoder for
            segmentation-models-pytorch.
        options: further arguments to build it with.
        replaced: modules behind the last stage by name, and what takes their place, so that the network, called on
            images, returns the pooled last stage.
        renamed: how keys of the delivered weights begin, and how they begin in this network; other keys are the same.
        inside: name of the module that the weights are loaded into; empty: the network itself.
    """

    library: Library
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    replaced: Mapping[str, Replacement] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    inside: str = ""


@dataclass(frozen=True)
class Stage:
    """A feature map of a backbone.

    Attributes:
        end: name of the module that gives it.
        channels: of the map.
        stride: pixels of the image a cell, along each axis.
    """

    end: str
    channels: int
    stride: int


@dataclass(frozen=True)
class ImageNetWeights:
    """Published weights trained on ImageNet-1k: red, green and blue scaled to 0-1, then normalised.

    Attributes:
        file: name of the file in torch's cache, behind whose hyphen stand the first digits of its SHA-256; None: there is
            none that a backbone can start from.
        mean: channel means that such weights are trained with: red, green, blue.
        std: channel standard deviations, likewise.
    """

    file: str | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ArchitectureSpec:
    """One architecture.

    Attributes:
        name: what parameter files and bundles call it.
        upstreams: networks of libraries that its weights load into. It is built from the first one, which is torchvision's
            or timm's, and its weights bear that one's key names.
        stages: its four stage maps, finest first; the last one is pooled.
        first_layer: name of the convolution that sees the bands.
        stem: names of the modules before the first stage, which learn as the first layer does.
        finest: map at stride 2, which decoders of masks use beside the stages; None where there is none.
        chain: modules that, called one after the other on images, lead through all stages; a stage may end within one that
            is sequential. Empty: the network has timm's ``forward_intermediates``, and `intermediates` is given.
        intermediates: indices of the four stages for ``forward_intermediates``.
        channels_first: whether maps are (B, C, H, W); else (B, H, W, C).
        dilates: whether the strided layers of the last stage can be dilated instead.
        min_size_px: smallest image that is more than nothing after the last stage.
        bf16_min_size_px: smallest image whose gradients torch computes rightly in bfloat16 on the CPU: below it, dense
            3 x 3 convolutions of stride 2 see maps of one cell, for which torch 2.15 returns uninitialised memory as
            gradient of the weights (found by comparing with float32). 0: any.
        classifier: beginnings of keys that files of published weights hold and a backbone does not.
        imagenet: published weights and the preprocessing that they are trained with.
        build: for networks of no library: gives a network for three bands, its classifier gone. `upstreams` is then empty.
    """

    name: str
    upstreams: tuple[Upstream, ...]
    stages: tuple[Stage, Stage, Stage, Stage]
    first_layer: str
    stem: tuple[str, ...]
    finest: Stage | None = None
    chain: tuple[str, ...] = ()
    intermediates: tuple[int, ...] = ()
    channels_first: bool = True
    dilates: bool = False
    min_size_px: int = 1
    bf16_min_size_px: int = 0
    classifier: tuple[str, ...] = ("classifier.",)
    imagenet: ImageNetWeights = ImageNetWeights()
    build: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        """Refuse a row that says too little.

        Raises:
            BackboneError: it names no way to build the network, or none through its stages.
        """
        if (self.build is None) == (not self.upstreams):
            raise BackboneError(
                f"Architecture {self.name}: found {'both' if self.upstreams else 'neither of'} `upstreams` and `build`; "
                "expected one of them: the networks of libraries that it is, or a function that builds it."
            )
        if bool(self.chain) == bool(self.intermediates):
            raise BackboneError(
                f"Architecture {self.name}: found {'both' if self.chain else 'neither of'} `chain` and `intermediates`; "
                "expected one of them: how its stages are reached."
            )

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the four stage maps."""
        return tuple(stage.channels for stage in self.stages)

    @property
    def libraries(self) -> tuple[Library, ...]:
        """Libraries that its weights load into, the one that it is built from first."""
        return tuple(upstream.library for upstream in self.upstreams)
