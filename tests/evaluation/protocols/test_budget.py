"""Which labels are drawn and held out: the same for every initialisation, and never a test item."""

import numpy as np
import pytest

from geokr_core.evaluation.cells import fraction_of_labels, labels_of_fraction
from geokr_core.evaluation.config import EvaluationConfig, TaskConfig
from geokr_core.evaluation.protocols.budget import budget_of, drawn, held_out
from geokr_core.evaluation.protocols.fine_tuning import choose

ROWS = np.arange(100, 200)


def test_larger_draws_contain_smaller_ones_and_one_item_is_the_least() -> None:
    draws = [set(drawn(ROWS, fraction, seed=3)) for fraction in (0.001, 0.01, 0.1, 1.0)]

    assert [len(draw) for draw in draws] == [1, 1, 10, 100]
    assert draws[0] <= draws[1] <= draws[2] <= draws[3] == set(ROWS)
    assert draws[2] != set(drawn(ROWS, 0.1, seed=4))


def test_held_out_items_are_labelled_ones_unless_the_set_has_its_own() -> None:
    fitting, spared = held_out(ROWS, np.array([], dtype=np.int64), 0.2, seed=0)
    assert (len(fitting), len(spared)) == (80, 20)
    assert set(fitting) | set(spared) == set(ROWS)
    assert not set(fitting) & set(spared)

    own = np.array([7, 8])
    fitting, spared = held_out(ROWS, own, 0.2, seed=0)
    assert (len(fitting), spared.tolist()) == (100, [7, 8])
    assert len(held_out(ROWS[:1], np.array([], dtype=np.int64), 0.2, seed=0)[1]) == 0


def test_a_grid_of_one_is_taken_without_training_for_it() -> None:
    def fails(rate: float) -> float:
        raise AssertionError(rate)

    assert choose([0.1], fails) == 0.1
    assert choose([0.1, 0.2, 0.3], {0.1: 0.5, 0.2: 0.7, 0.3: 0.7}.__getitem__) == 0.2


def test_a_task_has_its_own_budget_or_the_general_one() -> None:
    evaluation = EvaluationConfig.model_validate(
        {
            "folder": ".",
            "tasks": [{"name": "a", "kind": "detection", "steps": 7}],
            "fine_tune_steps": 50,
            "batch_size": 16,
        }
    )
    found = budget_of(evaluation.tasks[0], evaluation, frozen_by_default=True)

    assert (found.steps, found.batch_size, found.learning_rates) == (7, 16, (5e-4,))
    assert found.frozen_batchnorm
    section = TaskConfig.model_validate({"name": "a", "kind": "detection", "batchnorm": "learned"})
    assert not budget_of(section, evaluation, frozen_by_default=True).frozen_batchnorm


def test_shares_have_one_spelling() -> None:
    assert [labels_of_fraction(f) for f in (0.01, 0.025, 0.1, 1.0)] == ["1%", "2.5%", "10%", "all"]
    assert [fraction_of_labels(name) for name in ("1%", "2.5%", "all")] == pytest.approx([0.01, 0.025, 1.0])
    with pytest.raises(ValueError, match="no share"):
        fraction_of_labels(5)


def test_a_setting_of_another_kind_of_task_is_refused() -> None:
    with pytest.raises(ValueError, match="'detector' is of no use"):
        TaskConfig.model_validate({"name": "a", "kind": "segmentation", "detector": "retinanet"})
