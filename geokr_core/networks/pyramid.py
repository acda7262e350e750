"""A backbone as a feature pyramid: what decoders of segmentation and detection stand on.

The weights and their keys are those of the bundle; nothing is renamed. How a decoder or a detector is built on the
levels is written in the tasks.
"""

from collections.abc import Sequence

import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from geokr_core.errors import BackboneError
from geokr_core.networks.architectures import SQUEEZENET_ENDS, STAGE_CHANNELS, VGG_POOLS


class Pyramid(nn.Module):
    """The levels of a backbone, finest first, each half as fine as the one before: strides 2, 4, 8, 16 and 32.

    SqueezeNet ends at stride 16. Level k has ``ceil(size / stride)`` cells a side: SqueezeNet convolves without padding
    and comes out a cell short, so its levels are stretched to that size, by less than a cell.

    Attributes:
        network: the backbone, with its own keys.
        channels: of each level.
        strides: of each level.
    """

    def __init__(self, network: nn.Module, architecture: str, *, dilated: bool = False) -> None:
        """Wrap a backbone.

        Args:
            network: what ``backbone.build`` returned.
            architecture: its name.
            dilated: let the last level keep the stride of the one before (16), by dilated convolutions in place of
                strided ones where the network has them; its weights fit as they are.

        Raises:
            BackboneError: the network is none of ours.
        """
        super().__init__()
        if architecture not in STAGE_CHANNELS:
            raise BackboneError(f"{architecture!r} has no known stages; choose one of {', '.join(STAGE_CHANNELS)}.")
        stages = STAGE_CHANNELS[architecture]
        self.network = network
        self._dilated = dilated
        if isinstance(network, torchvision.models.SqueezeNet):
            self.channels: tuple[int, ...] = (64, stages[0], stages[1], stages[3])
            self.strides: tuple[int, ...] = (2, 4, 8, 16)
            return
        self.channels = (64, *stages)
        self.strides = (2, 4, 8, 16, 16 if dilated else 32)
        if dilated and isinstance(network, torchvision.models.ResNet):
            _dilate(network.layer4)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The levels (B, C_k, H_k, W_k) of normalised float32 images (B, C, H, W)."""
        maps = self._maps(images)
        sizes = [tuple(-(-size // stride) for size in images.shape[2:]) for stride in self.strides]
        return [
            level if tuple(level.shape[2:]) == size
            else F.interpolate(level, size=size, mode="bilinear", align_corners=False)
            for level, size in zip(maps, sizes, strict=True)
        ]  # fmt: skip

    def _maps(self, images: Tensor) -> list[Tensor]:
        network = self.network
        if isinstance(network, torchvision.models.ResNet):
            maps = [network.relu(network.bn1(network.conv1(images)))]
            x = network.maxpool(maps[0])
            for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
                x = layer(x)
                maps.append(x)
            return maps
        features = network.features
        if not isinstance(features, nn.Sequential):
            raise BackboneError(f"{type(network).__name__} has no known stages.")
        ends: Sequence[int] = VGG_POOLS if isinstance(network, torchvision.models.VGG) else SQUEEZENET_ENDS
        x, maps = images, []
        for index, layer in enumerate(features):
            if self._dilated and index == VGG_POOLS[-1]:
                maps.append(x)  # without the last pooling
                break
            x = layer(x)
            if index in ends:
                maps.append(x)
        return maps


def _dilate(layer: nn.Module) -> None:
    """Replace a ResNet layer's stride by dilation, as in DeepLab: the same weights look at the same neighbours.

    The strided convolution itself still sees neighbours of the finer grid; those after it are two cells apart in it.
    """
    for module in layer.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if module.stride != (1, 1):
            module.stride = (1, 1)
        elif module.kernel_size == (3, 3):
            module.dilation = module.padding = (2, 2)
