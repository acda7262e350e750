"""What decides between challenger and champion: their scorecards, and the rule. No MLflow and no torch here.

Both backbones are scored alike, by ``evaluate.score_backbone``, on the same data with the same settings and seeds. The
registry that keeps versions and moves aliases is ``registry``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from geokr_core.errors import MissingInputError, RegistryError
from geokr_core.evaluation.config import Criterion
from geokr_core.evaluation.scorecard import Scorecard
from geokr_core.evaluation.statistics import percentile_interval, t_interval
from geokr_core.registry.config import ChampionConfig
from geokr_core.step.files import write_json

_DECIMALS: Final = 9
"""Figures are compared after rounding, so that 0.91 beats 0.90 by 0.01 and not by a little more."""

MIN_SEEDS: Final = 2
"""Fewer seeds tell nothing of the noise that a gain must exceed."""


@dataclass(frozen=True)
class Margin:
    """How the challenger stands to the champion by one criterion.

    Attributes:
        name: of the criterion.
        role: whether a gain counts, or only a loss.
        challenger: mean over seeds.
        champion: mean over seeds.
        difference: by how much the challenger is better, the mean of the differences seed by seed.
        ci_low: lower bound of its 95 % t-interval over seeds; NaN for a single seed.
        ci_high: upper bound.
    """

    name: str
    role: Literal["primary", "guard"]
    challenger: float
    champion: float
    difference: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger becomes champion, why, and by how much (all empty without a champion).

    Attributes:
        promoted: the outcome.
        reason: in words.
        margins: criterion by criterion.
        gain: mean difference over the primary criteria, seed by seed; None without a champion.
        ci_low: lower bound of its 95 % t-interval; None without a champion.
        ci_high: upper bound.
    """

    promoted: bool
    reason: str
    margins: tuple[Margin, ...] = ()
    gain: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None


def require_evaluated(results: Path, bundle_data_version: str) -> None:
    """Check that the evaluation on which the report rests is of this very bundle and holds no broken score.

    Raises:
        MissingInputError: there is no such file.
        RegistryError: it was measured on another bundle, or holds a value that is not a number. Nothing missing ever
            counts as 0.
    """
    if not results.is_file():
        raise MissingInputError(f"{results}: no results of an evaluation; run `geokr evaluate` first.")
    table = pd.read_parquet(results, columns=["value", "backbone_version"])
    if table.empty or not all(math.isfinite(value) for value in table["value"]):
        raise RegistryError(
            f"{results}: {int((~table['value'].map(math.isfinite)).sum())} of {len(table)} values are not a number. "
            "Look at that task's evaluation; a score that could not be computed decides nothing."
        )
    measured = sorted(set(table["backbone_version"].astype(str)))
    if measured != [bundle_data_version]:
        raise RegistryError(
            f"{results}: measured on the bundle {', '.join(measured)}, but the one to promote is {bundle_data_version}. "
            "Run `geokr evaluate` on the present bundle first."
        )


def margins_of(config: ChampionConfig, challenger: Scorecard, champion: Scorecard) -> tuple[Margin, ...]:
    """Differences criterion by criterion, primary ones first.

    Raises:
        RegistryError: a criterion was not measured alike on both.
    """
    return tuple(
        _margin(criterion, role, challenger, champion) for role, criteria in _roles(config) for criterion in criteria
    )


def _roles(config: ChampionConfig) -> tuple[tuple[Literal["primary", "guard"], tuple[Criterion, ...]], ...]:
    return ("primary", config.primary), ("guard", config.guards)


def _margin(
    criterion: Criterion, role: Literal["primary", "guard"], challenger: Scorecard, champion: Scorecard
) -> Margin:
    ours, theirs = challenger.scores[criterion.name], champion.scores[criterion.name]
    if not ours.comparable_with(theirs):
        raise RegistryError(
            f"Champion and challenger were not measured alike on {criterion.name}: data {theirs.data_version} and "
            f"{ours.data_version}, settings {theirs.settings} and {ours.settings}. Evaluate both again."
        )
    estimate = t_interval(list(ours.gains_over(theirs).values()))
    return Margin(
        criterion.name,
        role,
        ours.value,
        theirs.value,
        round(estimate.mean, _DECIMALS),
        estimate.ci_low,
        estimate.ci_high,
    )


def decide(config: ChampionConfig, challenger: Scorecard, champion: Scorecard | None) -> Verdict:
    """The rule.

    The first backbone becomes champion. Another one must be better on the mean of the primary criteria by more than
    ``min_gain`` beyond both kinds of noise (the whole 95 % t-interval of the paired differences over seeds lies above it,
    and so does the one over resampled test items where tasks give it), and no criterion, primary or guard, may be worse
    by more than ``max_regression`` on average. Seeds alone would not do: a linear probe on all labels hardly moves with
    them, however few the test items are.

    Raises:
        RegistryError: the two were not measured on the same data by the same settings.
    """
    if champion is None:
        return Verdict(True, "there was no champion yet")
    margins = margins_of(config, challenger, champion)
    gains = _primary_gains(config, challenger, champion)
    estimate = t_interval(list(gains.values()))
    gain = round(estimate.mean, _DECIMALS)
    low, high = round(estimate.ci_low, _DECIMALS), round(estimate.ci_high, _DECIMALS)
    promoted, reason = _outcome(config, margins, gain, low, high, len(gains))
    items_low, items_high = _items_interval(config, challenger, champion)
    if promoted and math.isnan(items_low):
        reason = f"{reason}; with other test items not checked: not every primary metric can be resampled"
    elif promoted and items_low <= config.min_gain:
        promoted = False
        reason = (
            f"{reason}, but not with other test items (95 % interval {items_low:+.4f} … {items_high:+.4f} over resampled "
            f"ones; all of it above {config.min_gain:g} is asked)"
        )
    bounds = (low, high) if math.isfinite(low) else (None, None)
    return Verdict(promoted, reason, margins, gain, *bounds)


def _primary_gains(config: ChampionConfig, challenger: Scorecard, champion: Scorecard) -> dict[int, float]:
    """Mean difference over the primary criteria, by seed."""
    gains = [challenger.scores[c.name].gains_over(champion.scores[c.name]) for c in config.primary]
    return {seed: math.fsum(each[seed] for each in gains) / len(gains) for seed in sorted(gains[0])}


def _items_interval(config: ChampionConfig, challenger: Scorecard, champion: Scorecard) -> tuple[float, float]:
    """95 % interval of the same mean over resampled test items; NaN where a criterion has none."""
    gains = [challenger.scores[c.name].resampled_gains_over(champion.scores[c.name]) for c in config.primary]
    if not all(map(len, gains)):
        return math.nan, math.nan
    low, high = percentile_interval(np.mean(gains, axis=0).tolist())
    return round(low, _DECIMALS), round(high, _DECIMALS)


def _outcome(
    config: ChampionConfig, margins: tuple[Margin, ...], gain: float, low: float, high: float, num_seeds: int
) -> tuple[bool, str]:
    lost = [m for m in margins if m.difference < -config.max_regression]
    if lost:
        named = ", ".join(f"{m.name} by {-m.difference:.4f}" for m in lost)
        return False, f"worse by more than {config.max_regression:g} on {named}"
    if gain == 0:
        return False, "equal to the champion, which stays"
    by = f"{abs(gain):.4f} on the mean of {len(config.primary)} primary criteria over {num_seeds} seeds"
    if gain < 0:
        return False, f"worse by {by}"
    if num_seeds < MIN_SEEDS:
        return False, f"better by {by}, which is within noise: evaluate with {MIN_SEEDS} seeds or more"
    interval = f"95 % interval {low:+.4f} … {high:+.4f}"
    if low > config.min_gain:
        return True, f"better by {by} ({interval}, all above the {config.min_gain:g} asked)"
    return False, f"better by {by} only ({interval}; all of it above {config.min_gain:g} is asked)"


def write_decision(folder: Path, decision: Mapping[str, Any]) -> None:
    """Write ``decision.json``.

    Raises:
        OSError: the file system refused.
    """
    write_json(folder / "decision.json", dict(decision))
