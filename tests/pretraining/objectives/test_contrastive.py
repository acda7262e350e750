"""Contrastive methods compare chips and read no land cover; the joint method does both."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from short_runs import inputs_at, short_config, short_run
from torch.nn import functional as F

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks.augmentation import cells_under
from geokr_core.pretraining.contrast import SIMILARITY_TEMPERATURE, NTXent, ProjectionHead
from geokr_core.pretraining.network import Network
from geokr_core.pretraining.objectives.land_cover import LandCoverObjective
from geokr_core.pretraining.training import loop
from geokr_core.pretraining.training.loop import (
    reading,
    train,
)
from geokr_core.pretraining.training.state import begin
from geokr_core.step.reporter import RecordingReporter


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_contrastive_views_are_crops_of_their_own(method: str, data: LevirKR) -> None:
    seen = inputs_at(short_run(data, method))
    pairs = zip(seen.student.flatten(1), seen.teacher.flatten(1), strict=True)
    alike = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]
    assert np.median(alike) < 0.8


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_contrastive_methods_read_no_land_cover(method: str, data: LevirKR) -> None:
    run = short_run(data, method, precision="fp32")
    other = replace(run, labels=torch.rand_like(run.labels), weights=None)
    gradients = []
    for one in (run, other):
        torch.manual_seed(0)
        state = begin(one)
        loop.gradients(one, state, reading(one)(1), one.normalisation())
        gradients.append([p.grad for p in state.student.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_simclr_learns_to_tell_chips_apart(data: LevirKR, tmp_path: Path) -> None:
    settings = {"architecture": "resnet18", "crop_area_fraction": (0.5, 1.0), "learning_rate": 2e-3}
    run = short_run(data, "simclr", steps=60, batch_size=16, log_every=15, **settings)
    state, _ = train(replace(run, folder=tmp_path), RecordingReporter())
    guessing = np.log(2 * 16 - 1)  # which of the 31 other views is it
    assert float(state.history[-1]["loss"] or 0) < guessing - 0.1


def test_joint_learns_land_cover_and_tells_chips_apart(data: LevirKR, tmp_path: Path) -> None:
    settings = {"architecture": "resnet18", "learning_rate": 2e-3, "crop_area_fraction": (1.0, 1.0)}
    run = replace(short_run(data, "joint", steps=60, batch_size=16, log_every=15, **settings), folder=tmp_path)
    state, _ = train(run, RecordingReporter())
    first, last = state.history[0], state.history[-1]
    for term in ("contrast_loss", "train_kl"):
        assert (last[term] or 0) < 0.8 * (first[term] or 0), term


def test_joint_holds_each_of_two_crops_to_the_land_cover_of_its_own_ground(data: LevirKR) -> None:
    run = short_run(data, "joint")
    shown, batch = inputs_at(run), reading(run)(1)
    num_chips = len(batch.rows)
    assert (len(shown.student), len(shown.labels)) == (2 * num_chips, 2 * num_chips)
    assert shown.geometry.boxes is not None
    assert not torch.equal(*shown.geometry.boxes.chunk(2)), "both views show the same crop"
    assert batch.cells is not None
    expected = cells_under(batch.cells.repeat(2, 1, 1, 1), shown.geometry, 1)[:, 0, 0]
    torch.testing.assert_close(shown.labels, expected / expected.sum(dim=1, keepdim=True))
    network = Network("squeezenet1_1", 3, len(data.classes), run.recipe).eval()
    terms = LandCoverObjective(run.recipe, torch.device("cpu")).losses(network, network, network, shown, 1)
    alone = LandCoverObjective(short_config(consistency="none").recipe(), torch.device("cpu")).losses(
        network, network, network, shown, 1
    )
    torch.testing.assert_close(terms[1], alone[1])
    torch.testing.assert_close(terms[0], alone[0] + run.recipe.contrast_weight * terms[-1])


def test_moco_compares_with_what_it_remembers(data: LevirKR) -> None:
    run = short_run(data, "moco", memory_bank_size=20, precision="fp32")
    torch.manual_seed(0)
    state = begin(run)
    before = state.objective.state()["bank"].clone()
    loop.gradients(run, state, reading(run)(1), run.normalisation())
    changed = (state.objective.state()["bank"] != before).any(dim=1)
    assert changed.tolist() == [True] * 8 + [False] * 12


def test_contrast_is_the_librarys_to_the_last_bit() -> None:
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead

    torch.manual_seed(0)
    theirs = SimCLRProjectionHead(12, 12, 8)
    torch.manual_seed(0)
    ours = ProjectionHead(12, 8)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    crops = [torch.randn(16, 12, requires_grad=True) for _ in range(2)]
    found = []
    for head, loss in ((ours, NTXent(0.2, distributed=False)), (theirs, NTXentLoss(0.2))):
        value = loss(*(head(crop) for crop in crops))
        gradients = torch.autograd.grad(value, [*crops, *head.parameters()])
        found.append([value, *gradients])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


CROPS_OF_ALL = """
import sys, torch, torch.distributed as dist
from geokr_core.pretraining.contrast import NTXent
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
crops = [torch.randn(6, 5, requires_grad=True) for _ in range(2)]
value = NTXent(0.2, distributed=True)(*(crop[3 * rank : 3 * rank + 3] for crop in crops))
gradients = torch.autograd.grad(value, crops)
torch.save([value.detach(), *gradients], f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()  # left alone, its threads may outlive the interpreter, which then aborts
"""


def test_two_processes_compare_with_each_others_chips(tmp_path: Path) -> None:
    (tmp_path / "crops.py").write_text(CROPS_OF_ALL)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, str(tmp_path / "crops.py"), str(tmp_path)], check=True, timeout=200)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.manual_seed(0)
    crops = [torch.randn(6, 5, requires_grad=True) for _ in range(2)]
    value = NTXent(0.2, distributed=False)(*crops)
    # Gradients of processes are averaged after this, as the values are here.
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, value.detach())
    for place, gradient in enumerate(torch.autograd.grad(value, crops), 1):
        torch.testing.assert_close((parts[0][place] + parts[1][place]) / 2, gradient)


def test_the_contrastive_library_makes_no_calls() -> None:
    script = """
import socket
def refuse(*arguments, **options): raise SystemExit("called out")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch
from torch.nn import functional as F
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import MoCoProjectionHead, SimCLRProjectionHead
loss = NTXentLoss(0.2, memory_bank_size=(16, 8))
loss(torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)).backward()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]


def test_a_soft_target_gives_crops_of_like_land_cover_their_share() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(4, 8), torch.randn(4, 8)
    forest, water = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    cover = torch.stack([forest, forest, water, water])
    softness, temperature = 0.4, 0.5
    views = F.normalize(torch.cat([first, second]), dim=1)
    logits = views @ views.T / temperature
    both = torch.cat([cover, cover])
    alike = both.sqrt() @ both.sqrt().T / SIMILARITY_TEMPERATURE
    itself = torch.eye(8, dtype=torch.bool)
    target = softness * alike.masked_fill(itself, -torch.inf).softmax(dim=1)
    target[torch.arange(8), torch.arange(8).roll(4)] += 1 - softness
    expected = -(target * logits.masked_fill(itself, -1e9).log_softmax(dim=1)).sum(dim=1).mean()
    found = NTXent(temperature, softness, distributed=False)(first, second, (cover, cover))
    torch.testing.assert_close(found, expected)
    assert found != NTXent(temperature, distributed=False)(first, second)
    # Where all land cover is alike, every crop gets the same soft share; where none is asked for, the hard target stays.
    torch.testing.assert_close(
        NTXent(temperature, 0.0, distributed=False)(first, second, (cover, cover)),
        NTXent(temperature, distributed=False)(first, second),
    )
