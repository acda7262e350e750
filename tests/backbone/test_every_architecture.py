"""Every architecture of the table goes from its first step to a bundle, into each library it claims, and to each task."""

import importlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from geokr_core.backbone.bundle import WEIGHTS, open_bundle, verify_bundle
from geokr_core.backbone.loader import geokr_backbone
from geokr_core.bench.architectures import BEGIN, END, Made, deliver, differences, fine_tune_on_tasks, make_inputs
from geokr_core.evaluation.config import TaskConfig
from geokr_core.evaluation.learning.mask_network import MaskNetwork
from geokr_core.networks.architectures import ARCHITECTURES, spec_of
from geokr_core.networks.network import build

KINDS = {"scene_classification", "segmentation", "cloud_snow", "detection"}
QUICK = ("squeezenet1_1", "swin_t", "vit_small_patch16_224", "tf_efficientnet_lite0")
"""One for each way through the stages; the others go through the tasks in the slow run."""

LARGE = ("vgg16_bn", "resnet50", "resnet101")
"""Delivered in the slow run alone: ten to twenty seconds each, most of them for weights that are written and read."""

LIMIT = 1e-5
"""In units of the largest feature: libraries order and fuse the same sums differently."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_inputs(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in ARCHITECTURES]
)
def test_every_architecture_is_delivered_and_loads_into_each_library_it_claims(
    architecture: str, made: Made, tmp_path: Path
) -> None:
    bundle = deliver(architecture, made, tmp_path)
    verify_bundle(bundle)
    found = differences(bundle, tmp_path / "pretraining" / "geokr-seed0" / WEIGHTS)
    assert tuple(found) == open_bundle(bundle).libraries == spec_of(architecture).libraries != ()
    assert max(found.values()) <= LIMIT, found
    if architecture in QUICK:
        assert set(fine_tune_on_tasks(tmp_path, made)) == KINDS


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in QUICK])
def test_every_other_architecture_goes_through_every_task(architecture: str, made: Made, tmp_path: Path) -> None:
    deliver(architecture, made, tmp_path)
    assert set(fine_tune_on_tasks(tmp_path, made)) == KINDS


def _module_of_a_user(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"networks_of_{folder.name}".replace("-", "_")
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    return name


def test_the_example_of_the_page_is_delivered_through_its_library(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    architecture = f"{_module_of_a_user(tmp_path, example, monkeypatch)}:TINY"
    bundle = deliver(architecture, made, tmp_path)
    assert open_bundle(bundle).architecture == architecture
    assert differences(bundle, tmp_path / "pretraining" / "geokr-seed0" / WEIGHTS)["torchvision"] <= LIMIT


OWN = """
from geokr_core.networks.architecture import ArchitectureSpec, Stage


def tiny():
    from torch import nn

    network = nn.Sequential()
    network.body = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 12, 2, 2), nn.Conv2d(12, 16, 2, 2), nn.Conv2d(16, 24, 2, 2))
    network.pool, network.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
    return network


SPEC = ArchitectureSpec(
    "tiny",
    upstreams=(),
    build=tiny,
    stages=(Stage("body.0", 8, 4), Stage("body.1", 12, 8), Stage("body.2", 16, 16), Stage("body.3", 24, 32)),
    first_layer="body.0",
    stem=("body.0",),
    chain=("body",),
    min_size_px=32,
)
"""


def test_an_architecture_of_no_library_goes_all_the_way_and_is_filled_by_the_receiver(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _module_of_a_user(tmp_path, OWN, monkeypatch)
    bundle = deliver(f"{module}:SPEC", made, tmp_path)
    verify_bundle(bundle)
    with pytest.raises(geokr_backbone.BundleError, match=r"No library has .*load_into\(network\)"):
        geokr_backbone.load(bundle)
    assert "load_into(YourNetwork(), FOLDER)" in (bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    golden = load_file(bundle / "golden.safetensors")
    network = geokr_backbone.load_into(importlib.import_module(module).tiny(), bundle)
    with torch.inference_mode():
        assert torch.allclose(network(golden["input"]), golden["features"], atol=1e-5)
    geokr_backbone.verify(bundle, network)
    with pytest.raises(geokr_backbone.BundleError, match="features differ"):
        geokr_backbone.verify(bundle, importlib.import_module(module).tiny())
    assert set(fine_tune_on_tasks(tmp_path, made)) == KINDS


def test_the_page_lists_every_architecture_and_what_it_loads_into() -> None:
    page = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text(encoding="utf-8")
    lines = [line for line in page.split(BEGIN)[1].split(END)[0].splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0].strip("`") for row in cells] == list(ARCHITECTURES)
    for row in cells:
        spec = spec_of(row[0].strip("`"))
        named = {library for library, cell in zip(("torchvision", "timm", "smp"), row[6:9], strict=True) if cell != "–"}
        assert named == set(spec.libraries)
        assert row[3] == ", ".join(map(str, spec.stage_channels))
        assert row[9:] == ["yes"] * 4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_decoder_stands_on_every_architecture(architecture: str) -> None:
    with torch.device("meta"):
        network = build(architecture, 4)
        images, labels = torch.empty(2, 4, 64, 96), torch.empty(2, 64, 96, dtype=torch.long)
        for decoder in ("unet", "fpn", "deeplabv3plus"):  # the last one changes strides
            fields = {"name": "m", "kind": "segmentation", "decoder": decoder, "decoder_channels": 32}
            model = MaskNetwork(network, TaskConfig.model_validate(fields), 5, 0)
            logits = model(images)
            F.cross_entropy(logits, labels).backward()
            assert logits.shape == (2, 5, 64, 96)
            assert all(p.grad is not None for p in network.parameters()), decoder
            network.zero_grad()
