"""Presets are what they are named for, and the parameter file overrules them."""

import pytest
from short_runs import checkpointed_config


def test_presets_are_what_they_are_named_for() -> None:
    paper, ours = checkpointed_config(preset="paper", steps=200).recipe(), checkpointed_config(steps=200).recipe()
    assert (paper.optimiser, paper.learning_rate, paper.weight_decay) == ("adam", 1e-3, 0.0)
    assert (paper.consistency, paper.reduction, paper.batchnorm) == ("ce_student_teacher", "per_element", "own")
    assert (paper.teacher_schedule, paper.teacher_momentum, paper.two_views) == ("released_scaled", 0.95, False)
    assert (ours.consistency, ours.reduction, ours.batchnorm) == ("kl_teacher_student", "per_sample", "averaged")
    assert (paper.transfer, ours.transfer) == ("teacher", "teacher")
    assert [checkpointed_config(steps=n).recipe().teacher_momentum for n in (10, 200, 300, 10_000)] == pytest.approx(
        [0.97, 0.97, 0.98, 0.99]
    )


@pytest.mark.parametrize("preset", ["paper", "averaged_teacher", "geokr"])
def test_a_given_field_overrules_the_preset_even_if_it_is_zero(preset: str) -> None:
    given = {
        "learning_rate": 0.5,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "consistency": "none",
        "consistency_weight": 0.0,
        "teacher_momentum": 0.0,
        "teacher_schedule": "every_step",
        "batchnorm": "copied",
        "reduction": "per_sample",
        "two_views": False,
        "transfer": "student",
        "label_weighting": False,
    }
    recipe = checkpointed_config(preset=preset, **given).recipe()
    assert {name: getattr(recipe, name) for name in given} == given
