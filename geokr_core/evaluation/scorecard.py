"""A backbone's scores by the criteria of a promotion."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from geokr_core import __version__
from geokr_core.backbone.bundle import WEIGHTS, Bundle, open_bundle
from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import Cell, Features
from geokr_core.evaluation.config import Criterion, EvaluationConfig
from geokr_core.evaluation.measuring import kept_or_measured
from geokr_core.evaluation.opening import open_task, require_measurable
from geokr_core.evaluation.starts import start_of
from geokr_core.step.digests import text_digest
from geokr_core.step.reporter import Reporter


@dataclass(frozen=True)
class CriterionScore:
    """One criterion measured on one backbone, with all that two values must share to be compared.

    Attributes:
        per_seed: value of each evaluation seed, 0–1.
        data_version: data version of the downstream set.
        settings: digest of every setting that the value depends on.
        replicates: mean over seeds of the value on resampled test items, the same resamples for every backbone; empty
            where the task gives none for this metric.
        higher_is_better: False where less of the metric is better.
    """

    per_seed: Mapping[str, float]
    data_version: str
    settings: str
    replicates: tuple[float, ...] = ()
    higher_is_better: bool = True

    @property
    def value(self) -> float:
        """Mean over seeds."""
        return math.fsum(self.per_seed.values()) / len(self.per_seed)

    def gains_over(self, other: "CriterionScore") -> dict[int, float]:
        """By how much this is better than ``other``, by seed.

        Raises:
            EvaluationError: the two were not measured with the same seeds.
        """
        if self.per_seed.keys() != other.per_seed.keys():
            raise EvaluationError(
                f"Found seeds {sorted(self.per_seed)} on one side and {sorted(other.per_seed)} on the other; a gain "
                "needs the same seeds on both. Evaluate both again."
            )
        seeds = sorted(self.per_seed, key=int)
        return {int(seed): self._sign * (self.per_seed[seed] - other.per_seed[seed]) for seed in seeds}

    def resampled_gains_over(self, other: "CriterionScore") -> np.ndarray:
        """The same on resampled test items, averaged over seeds; empty where one side has none."""
        if not (self.replicates and other.replicates):
            return np.zeros(0)
        return self._sign * np.subtract(self.replicates, other.replicates)

    @property
    def _sign(self) -> int:
        return 1 if self.higher_is_better else -1

    def comparable_with(self, other: "CriterionScore") -> bool:
        """Whether both were measured on the same data, by the same settings, with the same seeds."""
        mine = (self.data_version, self.settings, sorted(self.per_seed), len(self.replicates))
        return mine == (other.data_version, other.settings, sorted(other.per_seed), len(other.replicates))


@dataclass(frozen=True)
class Scorecard:
    """All criteria of one backbone.

    Attributes:
        scores: by name of the criterion (`Criterion.name`).
    """

    scores: Mapping[str, CriterionScore]

    def covers(self, other: "Scorecard") -> bool:
        """Whether every criterion of ``other`` is here, measured alike."""
        return all(
            name in self.scores and self.scores[name].comparable_with(score) for name, score in other.scores.items()
        )

    def as_text(self) -> str:
        """As the value of a tag."""
        return json.dumps({name: asdict(score) for name, score in self.scores.items()}, sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read back `as_text`."""
        found = json.loads(text).items()
        return cls(
            {
                name: CriterionScore(**{**score, "replicates": tuple(score.get("replicates", ()))})
                for name, score in found
            }
        )


def score_backbone(
    bundle_folder: Path, config: EvaluationConfig, criteria: Sequence[Criterion], cells: Path, reporter: Reporter
) -> Scorecard:
    """Measure one bundle by some criteria, on the present data.

    Args:
        bundle_folder: the bundle, of any age.
        config: where the sets lie, seeds and budget.
        criteria: which figures.
        cells: folder that keeps finished cells; those that an evaluation of the same weights has left are not repeated.
        reporter: hears every score.

    Returns:
        Each criterion's value by seed, with the data and a digest of the settings it was measured with.

    Raises:
        EvaluationError: a set, a criterion or the bundle cannot be judged.
        MissingInputError: there is no bundle, or a set is missing.
        BackboneError: weights and architecture do not fit together.
    """
    bundle = open_bundle(bundle_folder)
    scores: dict[str, CriterionScore] = {}
    with reporter.progress(f"scoring {bundle.model_name}", len(criteria)) as advance:
        for criterion in criteria:
            scores[criterion.name] = _criterion_score(bundle, config, criterion, cells, reporter)
            advance(1)
    return Scorecard(scores)


def _criterion_score(
    bundle: Bundle, config: EvaluationConfig, criterion: Criterion, cells: Path, reporter: Reporter
) -> CriterionScore:
    section = next((task for task in config.tasks if task.name == criterion.task), None)
    if section is None:
        raise EvaluationError(
            f"champion: task {criterion.task!r} found, expected one of evaluation.tasks "
            f"({', '.join(task.name for task in config.tasks)}). Correct one of the two sections."
        )
    features: Features = "last" if criterion.protocol == "fine_tune" else criterion.features
    plan = [
        Cell(criterion.task, "geokr", criterion.protocol, features, criterion.labels_per_class, seed)
        for seed in config.seeds_of(section)
    ]
    task = open_task(section, config)
    require_measurable(task, bundle, plan, reporter)
    per_seed, replicates = {}, []
    for cell in plan:
        start = start_of(bundle, "geokr", cell.seed, bundle.folder / WEIGHTS)
        found = kept_or_measured(task, cell, start, cells, reporter)[0].measurement
        values = {score.metric: score.value for score in found.scores}
        if criterion.metric not in values:
            raise EvaluationError(
                f"{criterion.name}: {criterion.task} gives {', '.join(values)}, not {criterion.metric!r}; "
                "correct `metric` in section `champion`."
            )
        per_seed[str(cell.seed)] = values[criterion.metric]
        if found.replicates and found.scores[0].metric == criterion.metric:
            replicates.append(found.replicates)
    higher_is_better = config.metrics.of(criterion.task, criterion.metric).higher_is_better
    settings = text_digest(
        [criterion.model_dump(mode="json"), [dict(task.settings(cell)) for cell in plan], __version__]
    )
    resampled = np.mean(replicates, axis=0).round(6).tolist() if len(replicates) == len(plan) else ()
    return CriterionScore(per_seed, task.data_version, settings, tuple(resampled), higher_is_better)
