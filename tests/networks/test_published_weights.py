"""Published weights compute what they were trained to compute: outputs are compared, for keys alone do not tell."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch.nn import functional as F

from geokr_core.backbone.loader import geokr_backbone
from geokr_core.networks.network import build, feature_maps, pooled, stages
from geokr_core.networks.weights import load_initial_weights, load_weights

RGB = ("red", "green", "blue")


@pytest.fixture
def images() -> torch.Tensor:
    """Normalised as these weights want it, in odd sizes: padding shows at the borders."""
    generator = torch.Generator().manual_seed(0)
    return F.interpolate(torch.randn(2, 3, 12, 14, generator=generator), (96, 112), mode="bilinear")


@pytest.fixture
def lite0(real_data: Path) -> Path:
    return real_data / "weights" / "imagenet_efficientnet_lite0" / "tf_efficientnet_lite0_features.safetensors"


@pytest.fixture
def mobilenet(real_data: Path) -> Path:
    return real_data / "weights" / "imagenet_mobilenet_v2" / "mobilenet_v2_features.safetensors"


def _share(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def test_efficientnet_lite0_gives_the_maps_of_timms(lite0: Path, images: torch.Tensor) -> None:
    network = build("tf_efficientnet_lite0").eval()
    load_initial_weights(network, lite0, "tf_efficientnet_lite0", RGB)
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    theirs.load_state_dict(load_file(lite0), strict=True)
    with torch.inference_mode():
        for found, expected in zip(feature_maps(network, images), theirs(images), strict=True):
            assert torch.equal(found, expected)


def test_efficientnet_lite0_begins_as_tensorflow_computes_it(lite0: Path, images: torch.Tensor) -> None:
    state = load_file(lite0)
    network = build("tf_efficientnet_lite0").eval()
    load_weights(network, lite0)
    # TensorFlow's SAME of an even size and stride 2 pads below and at the right alone; its epsilon is 1e-3.
    x = F.conv2d(F.pad(images, (0, 1, 0, 1)), state["conv_stem.weight"], stride=2)
    mean, variance, scale, shift = (
        state[f"bn1.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
    )
    expected = ((x - mean) / (variance + 1e-3).sqrt() * scale + shift).clamp(0, 6)
    with torch.inference_mode():
        found = network.bn1(network.conv_stem(images))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_lookalikes_take_every_key_of_efficientnet_lite0_and_compute_something_else(
    lite0: Path, images: torch.Tensor
) -> None:
    network = build("tf_efficientnet_lite0").eval()
    load_weights(network, lite0)
    other = timm.create_model("efficientnet_lite0", features_only=True).eval()
    other.load_state_dict(load_file(lite0), strict=True)
    with torch.inference_mode():
        assert _share(other(images)[-1], stages(network, images)[-1]) > 0.05


def test_mobilenet_v2_gives_the_features_of_torchvisions(mobilenet: Path, images: torch.Tensor) -> None:
    network = build("mobilenet_v2").eval()
    load_initial_weights(network, mobilenet, "mobilenet_v2", RGB)
    theirs = torchvision.models.mobilenet_v2(weights=None).features.eval()
    theirs.load_state_dict({k.removeprefix("features."): v for k, v in load_file(mobilenet).items()}, strict=True)
    with torch.inference_mode():
        assert torch.equal(pooled(network, images), theirs(images).mean(dim=(2, 3)))


@pytest.mark.parametrize("architecture", ["mobilenet_v2", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("library", ["timm", "smp"])
def test_other_libraries_compute_the_same_from_them(
    architecture: str, library: str, lite0: Path, mobilenet: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    from geokr_core.backbone.build import build_bundle
    from geokr_core.backbone.config import BackboneConfig
    from geokr_core.networks.weights import save_weights
    from geokr_core.step.reporter import RecordingReporter
    from geokr_core.testing import make_levir_kr, make_pretraining, record_files

    dataset = make_levir_kr(tmp_path, num_chips=16)
    pretraining = make_pretraining(tmp_path / "pretraining", dataset, architecture=architecture)
    network = build(architecture).eval()
    load_initial_weights(network, mobilenet if architecture == "mobilenet_v2" else lite0, architecture, RGB)
    save_weights(network, pretraining / "geokr-seed0" / "backbone.safetensors", dataset.bands)
    record_files(pretraining)
    build_bundle(BackboneConfig(), dataset.folder, pretraining, tmp_path / "b", RecordingReporter())
    with torch.inference_mode():
        expected = pooled(network, images)
        if library == "timm":
            found = geokr_backbone.into_timm(tmp_path / "b")(images)
        else:
            found = geokr_backbone.into_smp(tmp_path / "b").get_submodule("encoder")(images)[-1].mean(dim=(2, 3))
    assert _share(found, expected) < 1e-5
