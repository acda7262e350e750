"""The rule of promotion on scorecards: both kinds of noise must be beaten. What the registry does is tested there."""

import numpy as np
import pytest

from geokr_core.evaluation.scorecard import CriterionScore, Scorecard
from geokr_core.registry.config import ChampionConfig
from geokr_core.registry.promotion import decide

CONFIG = ChampionConfig.model_validate({"primary": [{"task": "fields"}]})
NAME = CONFIG.primary[0].name


def card(*values: float, resampled: np.ndarray | None = None) -> Scorecard:
    replicates = () if resampled is None else tuple(resampled.tolist())
    per_seed = {str(seed): value for seed, value in enumerate(values)}
    return Scorecard({NAME: CriterionScore(per_seed, "data", "settings", replicates)})


def test_the_same_gain_on_every_seed_is_noise_where_other_test_items_would_undo_it() -> None:
    """A probe on all labels gives every seed the same value: three seeds agree on one lucky test image."""
    wobble = np.random.default_rng(0).normal(0, 0.01, 200)
    champion = card(0.9, 0.9, 0.9, resampled=np.full(200, 0.9))
    lucky = decide(CONFIG, card(0.902, 0.902, 0.902, resampled=0.902 + wobble), champion)
    assert not lucky.promoted
    assert "but not with other test items (95 % interval -0.0" in lucky.reason
    better = decide(CONFIG, card(0.95, 0.95, 0.95, resampled=0.95 + wobble), champion)
    assert better.promoted
    unchecked = decide(CONFIG, card(0.902, 0.902, 0.902), card(0.9, 0.9, 0.9))  # a metric without resamples
    assert unchecked.promoted
    assert "with other test items not checked" in unchecked.reason


@pytest.mark.parametrize("resampled", [None, np.linspace(0.4, 0.6, 200)])
def test_scorecards_come_back_from_their_text(resampled: np.ndarray | None) -> None:
    once = card(0.5, 0.6, resampled=resampled)
    assert Scorecard.from_text(once.as_text()) == once
    assert once.covers(Scorecard.from_text(once.as_text()))
    assert not once.covers(card(0.5, 0.6, resampled=np.zeros(7)))
