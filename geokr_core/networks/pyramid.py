"""A backbone as a feature pyramid: what decoders of segmentation and detection stand on.

The weights and their keys are those of the bundle; nothing is renamed. How a decoder or a detector is built on the
levels is written in the tasks.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from geokr_core.networks.architecture import ArchitectureSpec
from geokr_core.networks.network import feature_maps, spec_of_network

_STRIDES = (4, 8, 16, 32)


class Pyramid(nn.Module):
    """The levels of a backbone, finest first, each half as fine as the one before: strides 2, 4, 8, 16 and 32.

    Level k has ``ceil(size / stride)`` cells a side; a map of another size is stretched to it (bilinear). So a level
    that is a cell short, as SqueezeNet's are, which convolves without padding, is stretched by less than a cell, and the maps
    of a vision transformer, which all have stride 16, to strides 4, 8, 16 and 32. Where the backbone has no map at stride 2,
    that level has no channels: decoders go on from the one above. Of two stages with one stride the later one counts;
    SqueezeNet ends at stride 16.

    Attributes:
        network: the backbone, with its own keys.
        channels: of each level.
        strides: of each level.
    """

    def __init__(self, network: nn.Module, *, dilated: bool = False) -> None:
        """Wrap a backbone.

        Args:
            network: what ``network.build`` returned.
            dilated: let the last level have the stride of the one before (16): by dilated convolutions in place of
                strided ones where the architecture allows it (its weights fit as they are), else by stretching.

        Raises:
            BackboneError: the network is none of ours.
        """
        super().__init__()
        spec = spec_of_network(network)
        self.network = network
        self._chosen, strides = _levels_of(spec)
        maps = [*([spec.finest] if spec.finest else []), *spec.stages]
        self._has_finest = spec.finest is not None
        self.channels: tuple[int, ...] = tuple(maps[k].channels for k in self._chosen)
        if spec.finest is None:
            self.channels, strides = (0, *self.channels), (2, *strides)
        if dilated and strides[-1] == _STRIDES[-1]:
            strides = (*strides[:-1], strides[-2])
            if spec.dilates:
                _dilate(network, spec)
        self.strides: tuple[int, ...] = strides

    def forward(self, images: Tensor) -> list[Tensor]:
        """The levels (B, C_k, H_k, W_k) of normalised float32 images (B, C, H, W)."""
        found = feature_maps(self.network, images)
        maps = [found[k] for k in self._chosen]
        if not self._has_finest:
            maps.insert(0, maps[0].new_zeros(len(images), 0, *self._size(images, 0)))
        sizes = [self._size(images, k) for k in range(len(maps))]
        return [
            level if tuple(level.shape[2:]) == size or level.shape[1] == 0 else _stretched(level, size)
            for level, size in zip(maps, sizes, strict=True)
        ]

    def _size(self, images: Tensor, level: int) -> tuple[int, int]:
        height, width = (-(-size // self.strides[level]) for size in images.shape[2:])
        return height, width


def _stretched(level: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(level, size=size, mode="bilinear", align_corners=False)


def _levels_of(spec: ArchitectureSpec) -> tuple[list[int], tuple[int, ...]]:
    """Which maps are levels, and at which strides."""
    maps = [*([spec.finest] if spec.finest else []), *spec.stages]
    strides = [stage.stride for stage in maps]
    if len(set(strides)) == 1:
        return list(range(len(maps))), _STRIDES
    last = {stride: k for k, stride in enumerate(strides)}
    return sorted(last.values()), tuple(sorted(last))


def _dilate(network: nn.Module, spec: ArchitectureSpec) -> None:
    """Replace the stride of the last stage by dilation, as in DeepLab: the same weights look at the same neighbours.

    The strided convolution itself still sees neighbours of the finer grid; those after it are two cells apart in it. A
    strided pooling is left out.
    """
    dilation = 1
    for module in _last_stage(network, spec):
        if isinstance(module, nn.MaxPool2d):
            module.kernel_size = module.stride = 1
        elif not isinstance(module, nn.Conv2d):
            continue
        elif module.stride != (1, 1):
            module.stride, dilation = (1, 1), 2
        elif module.kernel_size != (1, 1):
            height, width = (dilation * (size // 2) for size in module.kernel_size)
            module.dilation, module.padding = (dilation, dilation), (height, width)


def _last_stage(network: nn.Module, spec: ArchitectureSpec) -> list[nn.Module]:
    """The modules behind the end of the third stage, in order."""
    named = list(network.named_modules())
    before = max(k for k, (name, _) in enumerate(named) if f"{name}.".startswith(f"{spec.stages[-2].end}."))
    last = max(k for k, (name, _) in enumerate(named) if f"{name}.".startswith(f"{spec.stages[-1].end}."))
    return [module for _, module in named[before + 1 : last + 1]]
