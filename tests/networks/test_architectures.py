"""The table of architectures: names that are taken, rows from outside, and refusals while the parameter file is read."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from pydantic import ValidationError

from geokr_core.errors import BackboneError
from geokr_core.networks import architectures
from geokr_core.networks.architecture import ArchitectureSpec, Upstream
from geokr_core.networks.architectures import ARCHITECTURES, spec_of
from geokr_core.networks.network import build, stages
from geokr_core.pretraining.config import PretrainingConfig

TOY = """
from geokr_core.networks.architecture import ArchitectureSpec, Stage


def tiny():
    from torch import nn

    def block(inputs, outputs, stride):
        return nn.Sequential(nn.Conv2d(inputs, outputs, stride, stride), nn.BatchNorm2d(outputs), nn.ReLU())

    parts = nn.Sequential(block(3, 8, 4), block(8, 12, 2), block(12, 16, 2), block(16, 24, 2))
    network = nn.Sequential()
    network.body, network.pool, network.flat = parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
    return network


SPEC = ArchitectureSpec(
    "tiny",
    upstreams=(),
    build=tiny,
    stages=(Stage("body.0", 8, 4), Stage("body.1", 12, 8), Stage("body.2", 16, 16), Stage("body.3", 24, 32)),
    first_layer="body.0.0",
    stem=("body.0.0",),
    chain=("body",),
    min_size_px=32,
)


def spec():
    return SPEC
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user, which Python finds."""
    name = f"toy_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(TOY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.mark.parametrize("name", ["SPEC", "spec"])
def test_an_architecture_of_a_users_module_is_built_and_walked(name: str, toy: str) -> None:
    import torch

    architecture = f"{toy}:{name}"
    assert PretrainingConfig(architecture=architecture).architecture == architecture
    network = build(architecture, 5).eval()
    images = torch.randn(2, 5, 64, 64)
    with torch.inference_mode():
        maps = stages(network, images)
        assert torch.equal(network(images), maps[-1].mean(dim=(2, 3)))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 16, 16), (12, 8, 8), (16, 4, 4), (24, 2, 2)]
    assert spec_of(architecture).name == architecture


def test_an_architecture_of_an_installed_package_is_known_by_its_name(
    toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("tiny_net", f"{toy}:SPEC", architectures.PLUGIN_GROUP)
    for place in ("geokr_core.networks.architectures.plugins", "geokr_core.step.plugins.plugins"):
        monkeypatch.setattr(place, lambda group: {point.name: point})
    assert PretrainingConfig(architecture="tiny_net").architecture == "tiny_net"
    assert spec_of("tiny_net").stage_channels == (8, 12, 16, 24)
    architectures._from_outside.cache_clear()


@pytest.mark.parametrize(
    ("architecture", "complaint"),
    [
        ("resnet19", r"did you mean 'resnet18'"),
        ("efficientnet_lite0", r"did you mean 'tf_efficientnet_lite0'"),
        ("alexnet", r"'alexnet' is not known\. Choose one of resnet18, "),
        ("no_such_module:SPEC", r"cannot be imported \(No module named 'no_such_module'\)"),
        ("json:SPEC", r"cannot be imported \(module 'json' has no attribute 'SPEC'\)"),
        ("json:JSONEncoder", r"found JSONEncoder, expected an ArchitectureSpec"),
        ("json:dumps", r"calling it without arguments fails"),
        (":SPEC", r"cannot be imported"),
    ],
)
def test_what_is_no_architecture_is_refused_while_parameters_are_read(architecture: str, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        PretrainingConfig(architecture=architecture)
    with pytest.raises(BackboneError, match=complaint):
        build(architecture)


def test_a_row_that_says_too_little_is_refused() -> None:
    stages_of = ARCHITECTURES["resnet18"].stages
    with pytest.raises(BackboneError, match="neither of `upstreams` and `build`"):
        ArchitectureSpec("x", upstreams=(), stages=stages_of, first_layer="a", stem=(), chain=("a",))
    with pytest.raises(BackboneError, match="neither of `chain` and `intermediates`"):
        ArchitectureSpec("x", upstreams=(Upstream("timm", "x"),), stages=stages_of, first_layer="a", stem=())


def test_the_table_is_read_without_torch() -> None:
    code = (
        "import sys, geokr_core.networks.architectures as a; a.spec_of('swin_t'); "
        "print([m for m in ('torch', 'torchvision', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
