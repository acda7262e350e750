"""Levels of a backbone: sizes that decoders rely on, and weights that stay the bundle's."""

import pytest
import torch

from geokr_core.errors import BackboneError
from geokr_core.networks.architectures import ARCHITECTURES, spec_of
from geokr_core.networks.network import build, feature_maps, stages
from geokr_core.networks.pyramid import Pyramid


@pytest.mark.parametrize("dilated", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_levels_are_halves_of_each_other_at_any_size(architecture: str, dilated: bool) -> None:
    with torch.device("meta"):
        pyramid = Pyramid(build(architecture), dilated=dilated).eval()
        levels = pyramid(torch.empty(1, 3, 70, 101))

    assert tuple(level.shape[1] for level in levels) == pyramid.channels
    expected = [(-(-70 // s), -(-101 // s)) for s in pyramid.strides]
    assert [tuple(level.shape[2:]) for level in levels] == expected
    wanted = (2, 4, 8, 16) if architecture == "squeezenet1_1" else (2, 4, 8, 16, 16 if dilated else 32)
    assert pyramid.strides == wanted


@pytest.mark.parametrize("architecture", ["resnet18", "convnext_tiny", "vgg16_bn", "mobilenet_v2"])
def test_levels_are_the_stages_of_the_bundle_and_keys_stay(architecture: str) -> None:
    torch.manual_seed(0)
    network = build(architecture).eval()
    keys = list(network.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = stages(network, images)
        found = Pyramid(network)(images)

    assert len(found) == 5
    assert all(torch.equal(level, stage) for level, stage in zip(found[1:], wanted, strict=True))
    assert found[0].shape[1] == (spec_of(architecture).finest.channels if architecture != "convnext_tiny" else 0)
    assert list(network.state_dict()) == keys


def test_squeezenets_later_stage_of_two_at_one_stride_is_the_level() -> None:
    torch.manual_seed(0)
    network = build("squeezenet1_1").eval()
    images = torch.randn(1, 3, 63, 63)  # comes out at 31, 15, 7 and 3 cells: one short of the levels from the second on
    with torch.inference_mode():
        maps, levels = feature_maps(network, images), Pyramid(network)(images)
        assert [level.shape[1] for level in levels] == [64, 128, 256, 512]
        last = torch.nn.functional.interpolate(maps[-1], size=(4, 4), mode="bilinear", align_corners=False)
    assert torch.equal(levels[-1], last)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "mobilenet_v2"])
def test_dilation_keeps_shapes_of_weights_and_looks_at_the_same_neighbours(architecture: str) -> None:
    torch.manual_seed(0)
    network = build(architecture).eval()
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    images = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        before = stages(network, images)[-1]
        after = Pyramid(network, dilated=True)(images)[-1]

    assert {key: value.shape for key, value in network.state_dict().items()} == shapes
    # The strided cells are every second one of the dilated ones.
    assert torch.allclose(after[..., ::2, ::2], before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))


def test_dilated_vgg_ends_before_its_last_pooling() -> None:
    torch.manual_seed(0)
    network = build("vgg16_bn").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        pooled = stages(network, images)[-1]
        last = Pyramid(network, dilated=True)(images)[-1]
    assert torch.equal(torch.nn.functional.max_pool2d(last, 2), pooled)


def test_a_network_without_stages_is_refused() -> None:
    with pytest.raises(BackboneError, match="no known stages"):
        Pyramid(torch.nn.Identity())
