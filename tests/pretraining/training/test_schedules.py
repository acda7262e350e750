"""Learning rates, momentum, ramps and parameter groups, step by step."""

import itertools
from pathlib import Path

import pytest
from short_runs import checkpointed_config, checkpointed_run

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pretraining.network import Network
from geokr_core.pretraining.objectives.land_cover import consistency_weight
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.pretraining.recipes import PAPER
from geokr_core.pretraining.training.loop import learning_rate
from geokr_core.pretraining.training.state import make_optimiser
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter

NUM_CHIPS = 96


def test_learning_rate_warms_up_and_falls_to_nothing(data: LevirKR) -> None:
    run = checkpointed_run(data, steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(step, run) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert max(rates) == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5, abs=0.02)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
    assert 0 < rates[-1] < 0.001


def test_paper_learning_rate_falls_by_a_tenth_each_epoch(data: LevirKR) -> None:
    num_train = len(data.rows_of("train"))
    run = checkpointed_run(data, preset="paper", steps=1000, batch_size=8)
    last_of_first_epoch = num_train // 8 if num_train % 8 == 0 else num_train // 8 + 1
    assert learning_rate(1, run) == pytest.approx(1e-3)
    assert learning_rate(last_of_first_epoch, run) == pytest.approx(1e-3)
    assert learning_rate(last_of_first_epoch + 1, run) == pytest.approx(9e-4)
    assert learning_rate(1 + 10 * num_train // 8 + 1, run) == pytest.approx(1e-3 * 0.9**10)


def test_consistency_ramps_up_and_stays(data: LevirKR) -> None:
    recipe = checkpointed_config(steps=100).recipe().model_copy(update={"consistency_weight": 2.0})
    weights = [consistency_weight(step, recipe) for step in range(1, 101)]
    assert weights[0] < 0.04
    assert all(a <= b for a, b in itertools.pairwise(weights))
    assert weights[29:] == [2.0] * 71
    assert consistency_weight(1, PAPER) == 1.0


def test_norms_and_biases_are_not_decayed(data: LevirKR) -> None:
    student = Network("resnet18", 3, 10)
    decayed, plain = make_optimiser(student, checkpointed_config().recipe()).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.02, 0.0)
    names = {id(p): name for name, p in student.named_parameters()}
    assert {names[id(p)] for p in plain["params"]} == {
        name for name in names.values() if ".bn" in name or "downsample.1" in name or name.endswith("bias")
    }
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_teacher_momentum_warms_up_each_step_and_the_released_schedule_does_not(data: LevirKR, tmp_path: Path) -> None:
    warmed_up, constant = [1 / 2, 2 / 3, 3 / 4], [0.95, 0.95, 0.95]
    for changes, momenta, updates in (
        ({"preset": "averaged_teacher"}, warmed_up, 3),
        ({"preset": "paper"}, constant, 3),
        ({"preset": "paper", "teacher_schedule": "released"}, constant, 1),
    ):
        reporter = RecordingReporter()
        config = checkpointed_config(**changes, steps=3, log_every=1)
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
        assert [values["teacher_momentum"] for _, values in reporter.points] == pytest.approx(momenta)
        assert read_json(tmp_path / "out/runs.json")[0]["teacher_updates"] == updates
