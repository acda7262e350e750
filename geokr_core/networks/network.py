"""Building a network of the table and walking through its stages."""

from collections.abc import Iterator, Mapping
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geokr_core.errors import BackboneError
from geokr_core.networks.architecture import ArchitectureSpec, Stage, Upstream
from geokr_core.networks.architectures import Features, spec_of

_LAST_STAGE = 4


def build(architecture: str, in_channels: int = 3) -> nn.Module:
    """A freshly initialised network whose classifier is gone.

    Called on images, it returns the pooled last stage, float (B, D) with D = ``feature_dim(architecture)``.

    Args:
        architecture: as ``architectures.spec_of`` takes it.
        in_channels: bands of the input. Other than 3, the first convolution is made anew, initialised as
            torchvision initialises its convolutions; its key keeps its name.

    Returns:
        The network, in train mode. Its state has the upstream's keys less those of the classifier.

    Raises:
        BackboneError: the architecture is not known, there is no band, or the first layer is no convolution.
    """
    spec = spec_of(architecture)
    if in_channels < 1:
        raise BackboneError(f"A backbone needs at least one input band, found in_channels={in_channels}.")
    module: nn.Module = _upstream_network(spec.upstreams[0]) if spec.build is None else spec.build()
    if in_channels != 3:
        first = module.get_submodule(spec.first_layer)
        module.set_submodule(spec.first_layer, _first_convolution(first, in_channels))
    module.spec = spec  # type: ignore[assignment]  # a plain attribute; copies of the network keep it
    return module


def spec_of_network(module: nn.Module) -> ArchitectureSpec:
    """The row of the table that a network was built from.

    Raises:
        BackboneError: `build` did not build it.
    """
    spec = getattr(module, "spec", None)
    if not isinstance(spec, ArchitectureSpec):
        raise BackboneError(
            f"{type(module).__name__} has no known stages; build the backbone with `networks.network.build`."
        )
    return spec


def _upstream_network(upstream: Upstream) -> nn.Module:
    if upstream.library == "torchvision":
        import torchvision

        module: nn.Module = getattr(torchvision.models, upstream.name)(weights=None, **upstream.options)
    else:
        import timm

        module = timm.create_model(upstream.name, pretrained=False, **upstream.options)
    replacements: Mapping[str, nn.Module] = {
        "identity": nn.Identity(),
        "average_pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(1),
    }
    for name, kind in upstream.replaced.items():
        module.set_submodule(name, replacements[kind])
    return module


def _first_convolution(old: nn.Module, in_channels: int) -> nn.Conv2d:
    if not isinstance(old, nn.Conv2d):
        raise BackboneError(f"Expected the first layer to be a convolution, found {type(old).__name__}.")
    # Of the same class: timm has convolutions that pad as TensorFlow does.
    new = type(old)(in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)  # type: ignore[arg-type]
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
        Four maps (B, C_i, H_i, W_i) with channels and strides as in the table, finest first. The last one is what is
        pooled.

    Raises:
        BackboneError: `build` did not build the module, or the images are too small for it.
    """
    return feature_maps(module, images)[-_LAST_STAGE:]


def feature_maps(module: nn.Module, images: Tensor) -> list[Tensor]:
    """The stage maps of a backbone, before them the map at stride 2 where the architecture has one.

    Args:
        module: what `build` returned.
        images: float32 (B, C, H, W), normalised.

    Returns:
        Four or five maps (B, C_i, H_i, W_i), finest first.

    Raises:
        BackboneError: `build` did not build the module, or the images are too small for it.
    """
    spec = spec_of_network(module)
    if min(images.shape[2:]) < spec.min_size_px:
        raise BackboneError(
            f"Images of {images.shape[2]} x {images.shape[3]} px are too small for {spec.name}, which needs "
            f"{spec.min_size_px} px: cut larger chips (`chips.size_px`) or choose a ResNet."
        )
    if spec.intermediates:
        found: list[Tensor] = module.forward_intermediates(  # type: ignore[operator]
            images, indices=list(spec.intermediates), norm=True, intermediates_only=True
        )
        return found
    ends = {stage.end for stage in _maps_of(spec)}
    maps, x = [], images
    for name in spec.chain:
        for path, layer in _links(name, module.get_submodule(name), ends):
            x = layer(x)
            if path in ends:
                maps.append(x)
    return maps if spec.channels_first else [x.permute(0, 3, 1, 2) for x in maps]


def _maps_of(spec: ArchitectureSpec) -> tuple[Stage, ...]:
    return spec.stages if spec.finest is None else (spec.finest, *spec.stages)


def _links(name: str, module: nn.Module, ends: set[str]) -> Iterator[tuple[str, nn.Module]]:
    """A module of the chain, or its children where a stage ends within it."""
    if any(end.startswith(f"{name}.") for end in ends):
        for child, layer in module.named_children():
            yield from _links(f"{name}.{child}", layer, ends)
    else:
        yield name, module


def depths(module: nn.Module) -> dict[str, int]:
    """Which part of a backbone each parameter belongs to: 0 the first layer, 1 to 4 the stages (a norm after them: 4).

    Args:
        module: what `build` returned.

    Returns:
        The depth of each parameter, by its name.

    Raises:
        BackboneError: `build` did not build the module.
    """
    spec = spec_of_network(module)
    order = [name for name, _ in module.named_modules()]
    last_within = [
        max((k for k, name in enumerate(order) if f"{name}.".startswith(f"{stage.end}.")), default=len(order))
        for stage in spec.stages
    ]
    found = {}
    for key, _ in module.named_parameters():
        owner = key.rpartition(".")[0]
        in_stem = not owner or any(f"{owner}.".startswith(f"{name}.") for name in spec.stem)
        passed = sum(order.index(owner) > last for last in last_within)
        found[key] = 0 if in_stem else min(_LAST_STAGE, 1 + passed)
    return found


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


def on_grid(maps: Tensor, size: int) -> Tensor:
    """Maps (B, D, H, W) as (B, D, size, size): a finer grid is averaged over each cell, a coarser one interpolated."""
    if maps.shape[-1] >= size:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)


def cell_features(module: nn.Module, images: Tensor, cells_per_side: int, features: Features = "multi") -> Tensor:
    """Feature vectors of the cells of images: stage maps brought to one grid, side by side.

    Args:
        module: what `build` returned.
        images: float32 (B, C, H, W), normalised.
        cells_per_side: cells n along each side.
        features: ``last`` or ``multi``.

    Returns:
        float (B, n, n, D) with D = ``feature_dim(architecture, features)``.

    Raises:
        BackboneError: the module is not known, or the images are too small.
    """
    maps = stages(module, images)
    chosen = maps[-1:] if features == "last" else maps
    return torch.cat([on_grid(x, cells_per_side) for x in chosen], dim=1).permute(0, 2, 3, 1)
