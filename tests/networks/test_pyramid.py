"""Levels of a backbone: sizes that decoders rely on, and weights that stay the bundle's."""

import pytest
import torch

from geokr_core.errors import BackboneError
from geokr_core.networks.network import build, stages
from geokr_core.networks.pyramid import Pyramid


@pytest.mark.parametrize(
    ("architecture", "dilated"),
    [("resnet18", False), ("resnet18", True), ("squeezenet1_1", False), ("vgg16_bn", True)],
)
def test_levels_are_halves_of_each_other_at_any_size(architecture: str, dilated: bool) -> None:
    pyramid = Pyramid(build(architecture), architecture, dilated=dilated).eval()
    with torch.inference_mode():
        levels = pyramid(torch.randn(1, 3, 70, 101))

    assert tuple(level.shape[1] for level in levels) == pyramid.channels
    expected = [(-(-70 // s), -(-101 // s)) for s in pyramid.strides]
    assert [tuple(level.shape[2:]) for level in levels] == expected
    assert pyramid.strides[-1] == (16 if dilated or architecture == "squeezenet1_1" else 32)


@pytest.mark.parametrize("architecture", ["resnet18", "squeezenet1_1"])
def test_levels_are_the_stages_of_the_bundle_and_keys_stay(architecture: str) -> None:
    torch.manual_seed(0)
    network = build(architecture).eval()
    keys = list(network.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = stages(network, images)[-1]
        found = Pyramid(network, architecture)._maps(images)[-1]

    assert torch.equal(found, wanted)
    assert list(network.state_dict()) == keys


def test_dilation_keeps_shapes_of_weights_and_looks_at_the_same_neighbours() -> None:
    torch.manual_seed(0)
    network = build("resnet18").eval()
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    images = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        before = stages(network, images)[-1]
        after = Pyramid(network, "resnet18", dilated=True)(images)[-1]

    assert {key: value.shape for key, value in network.state_dict().items()} == shapes
    # The strided cells are every second one of the dilated ones.
    assert torch.allclose(after[..., ::2, ::2], before, rtol=1e-3, atol=1e-4)


def test_a_network_without_stages_is_refused() -> None:
    with pytest.raises(BackboneError, match="no known stages"):
        Pyramid(torch.nn.Identity(), "transformer")
