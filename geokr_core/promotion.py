"""What decides between challenger and champion: the primary metric, its record, and the rule. No MLflow here.

The registry that keeps versions and moves aliases is ``registry``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import pandas as pd

from geokr_core.config import ChampionConfig, EvaluationConfig
from geokr_core.errors import MissingInputError, RegistryError
from geokr_core.files import read_json, text_digest, write_json

_PREFIX: Final = "geokr/evaluation/"
_DECIMALS: Final = 9
"""Differences are compared after rounding, so that 0.91 beats 0.90 by 0.01 and not by a little more."""


@dataclass(frozen=True)
class Judgement:
    """The primary metric of one backbone, with all that two values must share to be compared.

    Attributes:
        task: name of the downstream set.
        protocol: ``linear_probe`` or ``fine_tune``.
        features: ``last`` or ``multi``.
        labels_per_class: a number or ``all``.
        metric: ``accuracy`` or ``macro_f1``, a fraction 0-1.
        value: mean over seeds.
        per_seed: value of each evaluation seed.
        task_data_version: data version of the downstream set.
        settings: digest of the settings of the evaluation that bear on the value; see `settings_digest`.
        origin: ``evaluation`` where the bundle's own evaluation gave it, ``re-scored`` where promotion had to measure
            again.
    """

    task: str
    protocol: str
    features: str
    labels_per_class: str
    metric: str
    value: float
    per_seed: Mapping[str, float]
    task_data_version: str
    settings: str
    origin: str = "evaluation"

    def comparable_with(self, other: "Judgement") -> bool:
        """Whether both values are of the same task, on the same data, by the same settings."""
        return (self.task_data_version, self.settings) == (other.task_data_version, other.settings)

    def as_tags(self) -> dict[str, str]:
        """As tags of a model version, one a field."""
        values = {"value": repr(self.value), "per_seed": _seeds_text(self.per_seed)}
        return {f"{_PREFIX}{name}": values.get(name, str(getattr(self, name))) for name in self.__dataclass_fields__}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self | None:
        """Read back `as_tags`; None where the version bears no complete record."""
        found = {name: tags.get(f"{_PREFIX}{name}") for name in cls.__dataclass_fields__}
        if any(value is None for value in found.values()):
            return None
        texts = {name: str(value) for name, value in found.items()}
        per_seed = dict(pair.split("=") for pair in texts.pop("per_seed").split())
        value = float(texts.pop("value"))
        return cls(value=value, per_seed={seed: float(number) for seed, number in per_seed.items()}, **texts)

    def as_record(self, version: int) -> dict[str, Any]:
        """As an entry of ``decision.json``."""
        return {
            "version": version,
            "value": round(self.value, _DECIMALS),
            "per_seed": {seed: round(value, _DECIMALS) for seed, value in self.per_seed.items()},
            "task_data_version": self.task_data_version,
            "settings": self.settings,
            "origin": self.origin,
        }


def _seeds_text(per_seed: Mapping[str, float]) -> str:
    return " ".join(f"{seed}={value!r}" for seed, value in per_seed.items())


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger becomes champion, by how much it is better (None without a champion), and why."""

    promoted: bool
    delta: float | None
    reason: str


def settings_digest(champion: ChampionConfig, evaluation: EvaluationConfig) -> str:
    """Digest of the settings that bear on the primary metric; paths, threads and devices do not."""
    settings: dict[str, Any] = {
        "task": champion.task,
        "protocol": champion.protocol,
        "features": champion.features,
        "labels_per_class": str(champion.labels_per_class),
        "metric": champion.metric,
        "seeds": list(evaluation.seeds),
        "match_statistics": evaluation.match_statistics,
        "precision": evaluation.precision,
        "image_size_px": [task.image_size_px or 64 for task in evaluation.tasks if task.name == champion.task],
    }
    # Scene classification has no settings of its own but the size; of the other kinds every one bears on the score.
    own = [task for task in evaluation.tasks if task.name == champion.task and task.kind != "scene_classification"]
    if any(task.batchnorm for task in evaluation.tasks if task.name == champion.task):
        settings["batchnorm"] = [task.batchnorm for task in evaluation.tasks if task.name == champion.task]
    if own:
        settings["tasks"] = [task.model_dump(mode="json", exclude={"show_images"}) for task in own]
    if evaluation.fine_tune_learning_rates and champion.protocol == "fine_tune":
        settings["learning_rates"] = [*evaluation.fine_tune_learning_rates, evaluation.validation_fraction]
    if champion.protocol == "fine_tune":
        settings["steps"] = evaluation.fine_tune_steps
        settings["learning_rate"] = evaluation.fine_tune_learning_rate
        settings["batch_size"] = evaluation.batch_size
    return text_digest(settings)


def read_judgement(
    results: Path, champion: ChampionConfig, evaluation: EvaluationConfig, bundle_data_version: str
) -> Judgement:
    """Take the primary metric out of the results of an evaluation.

    Args:
        results: ``results.parquet``.
        champion: which cell decides.
        evaluation: its seeds must all be there.
        bundle_data_version: data version of the bundle that is to be promoted.

    Returns:
        The mean over seeds of the initialisation ``geokr``.

    Raises:
        MissingInputError: there is no such file.
        RegistryError: the cell or one of its seeds is missing, there twice or not a number, or was measured on another
            bundle. Nothing missing ever counts as 0.
    """
    if not results.is_file():
        raise MissingInputError(f"{results}: no results of an evaluation; run `geokr evaluate` first.")
    table = pd.read_parquet(results)
    # A fine-tuned network has no choice of features: its rows need not repeat the linear probe's.
    wanted = {
        "initialisation": "geokr",
        "task": champion.task,
        "protocol": champion.protocol,
        "labels_per_class": str(champion.labels_per_class),
        "metric": champion.metric,
    } | ({"features": champion.features} if champion.protocol == "linear_probe" else {})
    rows = table
    for column, value in wanted.items():
        known = sorted(set(rows[column].astype(str)))
        rows = rows[rows[column].astype(str) == value]
        if rows.empty:
            raise RegistryError(
                f"{results}: no result with {column} = {value!r} (there: {', '.join(known) or 'no row at all'}). The "
                "primary metric of section `champion` must be among the cells of section `evaluation`; change one of "
                "them and run `geokr evaluate`."
            )
    _require_sound(results, rows, evaluation, bundle_data_version)
    rows = rows.sort_values("seed")
    per_seed = {str(int(seed)): float(value) for seed, value in zip(rows["seed"], rows["value"], strict=True)}
    return Judgement(
        task=champion.task,
        protocol=champion.protocol,
        features=champion.features,
        labels_per_class=str(champion.labels_per_class),
        metric=champion.metric,
        value=math.fsum(per_seed.values()) / len(per_seed),
        per_seed=per_seed,
        task_data_version=str(rows["data_version"].iloc[0]),
        settings=settings_digest(champion, evaluation),
    )


def _require_sound(results: Path, rows: pd.DataFrame, evaluation: EvaluationConfig, bundle_data_version: str) -> None:
    seeds = sorted(int(seed) for seed in rows["seed"])
    if seeds != sorted(set(evaluation.seeds)):
        raise RegistryError(
            f"{results}: the primary metric was measured with the seeds {seeds}, section `evaluation` asks for "
            f"{sorted(set(evaluation.seeds))}. Run `geokr evaluate`; a missing seed is never counted as 0."
        )
    if not all(math.isfinite(value) for value in rows["value"]):
        raise RegistryError(
            f"{results}: the primary metric is not a number for some seed: {rows['value'].tolist()}. "
            "Look at that task's evaluation; a score that could not be computed decides nothing."
        )
    measured = sorted(set(rows["backbone_version"].astype(str)))
    if measured != [bundle_data_version]:
        raise RegistryError(
            f"{results}: measured on the bundle {', '.join(measured)}, but the one to promote is {bundle_data_version}. "
            "Run `geokr evaluate` on the present bundle first."
        )
    if len(set(rows["data_version"])) != 1:
        raise RegistryError(f"{results}: the seeds were measured on different data; run `geokr evaluate --force`.")


def decide(challenger: Judgement, champion: Judgement | None, min_gain: float) -> Verdict:
    """The rule: the first backbone becomes champion; another one only if better by more than ``min_gain``.

    Raises:
        RegistryError: the two were not measured on the same data by the same settings.
    """
    if champion is None:
        return Verdict(True, None, "there was no champion yet")
    if not challenger.comparable_with(champion):
        raise RegistryError(
            f"Champion and challenger were not measured alike on {challenger.task}: data {champion.task_data_version} and "
            f"{challenger.task_data_version}, settings {champion.settings} and {challenger.settings}. Evaluate both again."
        )
    delta = round(challenger.value - champion.value, _DECIMALS)
    values = f"{challenger.metric} {challenger.value:.4f} against {champion.value:.4f} on {challenger.task}"
    if delta > min_gain:
        return Verdict(True, delta, f"better by {delta:.4f} (more than {min_gain:g} asked): {values}")
    if delta == 0:
        return Verdict(False, delta, f"equal to the champion, which stays: {values}")
    if delta < 0:
        return Verdict(False, delta, f"worse by {-delta:.4f}: {values}")
    return Verdict(False, delta, f"better by {delta:.4f} only, more than {min_gain:g} is asked: {values}")


def write_decision(folder: Path, decision: Mapping[str, Any]) -> None:
    """Write ``decision.json``.

    Raises:
        OSError: the file system refused.
    """
    write_json(folder / "decision.json", dict(decision))


def read_decision(folder: Path) -> dict[str, Any]:
    """Read what `write_decision` wrote.

    Raises:
        FileNotFoundError: there is none.
    """
    return dict(read_json(folder / "decision.json"))
