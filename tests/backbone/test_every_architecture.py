"""Every architecture of the table goes from its first step to a bundle, into each library it claims, and to each task."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from geokr_core.backbone.bundle import WEIGHTS, open_bundle, verify_bundle
from geokr_core.bench.architectures import Made, deliver, differences, fine_tune_on_tasks, make_inputs
from geokr_core.evaluation.config import TaskConfig
from geokr_core.evaluation.learning.mask_network import MaskNetwork
from geokr_core.networks.architectures import ARCHITECTURES, spec_of
from geokr_core.networks.network import build

KINDS = {"scene_classification", "segmentation", "cloud_snow", "detection"}
QUICK = ("squeezenet1_1", "swin_t", "vit_small_patch16_224", "tf_efficientnet_lite0")
"""One for each way through the stages; the others go through the tasks in the slow run."""

LIMIT = 1e-5
"""In units of the largest feature: libraries order and fuse the same sums differently."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_inputs(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
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
