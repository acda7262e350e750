"""A backbone of four convolutions."""

from geokr_core.networks.architectures import ArchitectureSpec, Stage


def _network():
    from torch import nn

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, stride, stride), nn.BatchNorm2d(outputs), nn.ReLU())

    network = nn.Sequential()
    network.body = nn.Sequential(block(3, 8, 4), block(8, 12, 2), block(12, 16, 2), block(16, 24, 2))
    network.pool, network.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
    return network


TOY_NET = ArchitectureSpec(
    "toy_net",
    upstreams=(),
    build=_network,
    stages=(Stage("body.0", 8, 4), Stage("body.1", 12, 8), Stage("body.2", 16, 16), Stage("body.3", 24, 32)),
    first_layer="body.0.0",
    stem=("body.0.0",),
    chain=("body",),
    min_size_px=32,
)
