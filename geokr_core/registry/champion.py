"""The challenger that becomes champion, or does not: scored alike, the alias moved, the reasons kept; taken back; compared.

The rule and the record that it compares are in ``geokr_core.registry.promotion``.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from geokr_core.backbone.bundle import MODEL_CARD, open_bundle, verify_bundle
from geokr_core.backbone.card import model_card
from geokr_core.backbone.loader import geokr_backbone
from geokr_core.errors import MissingInputError, RegistryError
from geokr_core.evaluation.cells import labels_name
from geokr_core.evaluation.config import Criterion, EvaluationConfig
from geokr_core.evaluation.output import RESULTS
from geokr_core.evaluation.scorecard import CriterionScore, Scorecard
from geokr_core.registry.config import ChampionConfig
from geokr_core.registry.evidence import DECISION, EVIDENCE, SCORES, keep_record, kept_record, scores_of
from geokr_core.registry.promotion import Verdict, decide, margins_of, require_evaluated, write_decision
from geokr_core.registry.standing import CHALLENGER, CHAMPION, REPLACED_TAG
from geokr_core.registry.versions import aliases_of, describe, drop_tags, fetch, register_once, resolve, version_numbers
from geokr_core.step.files import whole_folder
from geokr_core.step.reporter import LOG, Reporter
from geokr_core.step.summary import Number, Summary
from geokr_core.tracking.server import Connection, connect, lock, refusals
from geokr_core.tracking.tracked_run import DATA_VERSION_TAG, TrackedRun, current_run, metric_key, track_step

_PROMOTED_TAG: Final = "promoted_because"
_RESTORED_TAG: Final = "restored_because"
_WITHDRAWN_TAG: Final = "withdrawn_because"
_REFUSED_TAG: Final = "refused_because"
_OUTCOMES: Final = (_PROMOTED_TAG, _RESTORED_TAG, _WITHDRAWN_TAG, _REFUSED_TAG)
"""What became of a version last: one of these."""


def promote(
    config: ChampionConfig,
    evaluation: EvaluationConfig,
    inputs: Mapping[str, Path],
    cells: Path,
    out: Path,
    reporter: Reporter = LOG,
) -> Summary:
    """Register the backbone as challenger; make it champion if it is better beyond noise and worse on nothing.

    Both sides are scored as the bundles that are delivered, on today's data by today's settings: figures that were kept
    are used where they were measured so, and measured again otherwise. Registered twice, the same bundle stays one
    version. Run again on the same registry and inputs, the decision is the same, byte for byte.

    Args:
        config: primary criteria, guards and margins.
        evaluation: settings of the evaluation.
        inputs: folders ``backbone``, ``evaluation`` and ``report``.
        cells: folder of finished cells of the evaluation.
        out: folder that gets ``decision.json`` and the model card with the scores of the evaluation; replaced as a whole.
        reporter: hears what is decided.

    Returns:
        Whether it was promoted, and both sides criterion by criterion.

    Raises:
        MissingInputError: an input has not been made.
        BackboneError: the bundle is damaged.
        EvaluationError: a criterion cannot be measured on one of the two. It never counts as 0.
        RegistryError: MLflow cannot be reached, or the evaluation is of another bundle.
    """
    bundle = open_bundle(inputs["backbone"])
    verify_bundle(bundle.folder)
    results, report = inputs["evaluation"] / RESULTS, inputs["report"] / "report.html"
    require_evaluated(results, bundle.bundle_data_version)
    if not report.is_file():
        raise MissingInputError(f"{report}: no report of the evaluation; run `geokr report` first.")
    judge = _Judge(evaluation, config.criteria, cells, reporter)
    with refusals(f"Promoting {bundle.model_name}"), _run_for_promotion(config, reporter) as run:
        challenger = judge.score(bundle.folder)
        connection, run_id = connect(), str(run.run_id)
        with lock(connection.locks / "promotion.lock", reporter):
            for path in (results, report):
                connection.client.log_artifact(run_id, str(path), EVIDENCE)
            scores = scores_of(inputs["evaluation"])
            version = register_once(connection, bundle, run_id, scores)
            keep_record(connection.client, version, SCORES, challenger.as_text())
            _enter(connection, version, run_id, challenger)
            decision = _Contest(connection, bundle.model_name, int(version.version), config, judge).settle(challenger)
    with whole_folder(out) as folder:
        write_decision(folder, decision)
        (folder / MODEL_CARD).write_text(model_card(geokr_backbone.describe(bundle.folder), scores), encoding="utf-8")
    reporter.info(decision["reason"])
    return _promotion_summary(decision)


@contextmanager
def _run_for_promotion(config: ChampionConfig, reporter: Reporter) -> Iterator[TrackedRun]:
    current = current_run.get()
    if current is not None and current.run_id is not None:
        yield current
        return
    with track_step("champion", {"champion": config.model_dump(mode="json")}, {}, reporter) as run:
        if run.run_id is None:
            raise MlflowException("no run could be opened.")
        yield run


def _enter(connection: Connection, version: ModelVersion, run_id: str, card: Scorecard) -> None:
    """Give the version its scores and the alias of the challenger."""
    # The source of a version is its logged model; the field `model_id` comes back empty from a database.
    logged = str(version.source).removeprefix("models:/")
    # A promotion that was killed goes on in the same run and enters them again: with the same time they are the same rows.
    begun_ms = connection.client.get_run(run_id).info.start_time
    for name, score in card.scores.items():
        connection.client.log_metric(
            run_id,
            metric_key(name),
            score.value,
            timestamp=begun_ms,
            model_id=logged,
            dataset_name=name.partition("/")[0],
            dataset_digest=score.data_version,
        )
    connection.client.set_registered_model_alias(version.name, CHALLENGER, str(version.version))


@dataclass(frozen=True)
class _Judge:
    """Scores bundles by the same criteria."""

    evaluation: EvaluationConfig
    criteria: tuple[Criterion, ...]
    cells: Path
    reporter: Reporter

    def score(self, bundle: Path) -> Scorecard:
        from geokr_core.evaluation.scorecard import score_backbone

        return score_backbone(bundle, self.evaluation, self.criteria, self.cells, self.reporter)


@dataclass(frozen=True)
class _Contest:
    """One version against the champion of its model."""

    connection: Connection
    name: str
    version: int
    config: ChampionConfig
    judge: _Judge

    def settle(self, challenger: Scorecard) -> dict[str, Any]:
        """Compare, and move the alias if the challenger wins.

        The lock keeps other promotions on this machine away. For those on other machines, the champion is looked up
        again right before the alias moves, and right after it.
        """
        for _ in range(3):
            champion = aliases_of(self.connection.client, self.name).get(CHAMPION)
            if champion == self.version:
                return self._already_champion(challenger)
            if (withdrawn := self._tags(self.version).get(_WITHDRAWN_TAG)) is not None:
                reason = (
                    f"it was champion before and was withdrawn ({withdrawn}); `geokr rollback --to` can bring it back"
                )
                withdrawn_verdict = Verdict(False, reason)
                return self._refused(withdrawn_verdict, self._decision(challenger, champion, None, withdrawn_verdict))
            other = None if champion is None else self._scorecard_of(champion, challenger)
            verdict = decide(self.config, challenger, other)
            decision = self._decision(challenger, champion, other, verdict)
            if not verdict.promoted:
                return self._refused(verdict, decision)
            reasons = {_PROMOTED_TAG: verdict.reason, REPLACED_TAG: "none" if champion is None else str(champion)}
            self._tag(self.version, reasons)
            if self._moved_from(champion):
                _keep_one_outcome(self.connection.client, self.name, self.version, _PROMOTED_TAG)
                record = json.dumps(decision, sort_keys=True)
                keep_record(self.connection.client, self._of(self.version), DECISION, record)
                describe(self.connection.client, self.name, self.version, _page(decision))
                return decision
            drop_tags(self.connection.client, self.name, self.version, *reasons)
            self.judge.reporter.warning(f"The champion of {self.name} changed meanwhile; comparing again.")
        raise RegistryError(
            f"The champion of {self.name} changed three times during this promotion. Nothing was promoted; "
            "run `geokr promote` again when no other promotion is going on."
        )

    def _moved_from(self, champion: int | None) -> bool:
        """Move the alias to this version, unless it is no longer where it was; whether it is here now."""
        client = self.connection.client
        if aliases_of(client, self.name).get(CHAMPION) != champion:
            return False
        client.set_registered_model_alias(self.name, CHAMPION, str(self.version))
        return aliases_of(client, self.name).get(CHAMPION) == self.version

    def _refused(self, verdict: Verdict, decision: dict[str, Any]) -> dict[str, Any]:
        self._tag(self.version, {_REFUSED_TAG: verdict.reason})
        drop_tags(self.connection.client, self.name, self.version, _PROMOTED_TAG, _RESTORED_TAG)
        describe(self.connection.client, self.name, self.version, _page(decision))
        return decision

    def _of(self, version: int) -> ModelVersion:
        return self.connection.client.get_model_version(self.name, str(version))

    def _tags(self, version: int) -> Mapping[str, str]:
        return dict(self._of(version).tags)

    def _tag(self, version: int, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self.connection.client.set_model_version_tag(self.name, str(version), key, value)

    def _already_champion(self, challenger: Scorecard) -> dict[str, Any]:
        """The decision that made it champion, as long as it rests on the same figures and rule."""
        found = kept_record(self.connection.client, self._of(self.version), DECISION)
        if found is not None:
            decision = dict(json.loads(found))
            same = decision["challenger"] == _record(self.version, challenger)
            if same and decision["rule"] == self.config.model_dump(mode="json"):
                return decision
        return self._decision(challenger, self.version, challenger, Verdict(False, "it is the champion already"))

    def _scorecard_of(self, champion: int, challenger: Scorecard) -> Scorecard:
        """The champion's scores if they were measured on today's data by today's settings; measured again otherwise."""
        text = kept_record(self.connection.client, self._of(champion), SCORES)
        recorded = None if text is None else Scorecard.from_text(text)
        if recorded is not None and recorded.covers(challenger):
            return recorded
        self.judge.reporter.info(f"{self.name}: judging champion {champion} again, on the challenger's data.")
        with tempfile.TemporaryDirectory() as folder:
            card = self.judge.score(fetch(self.connection, self.name, champion, Path(folder)))
        keep_record(self.connection.client, self._of(champion), SCORES, card.as_text())
        return card

    def _decision(
        self, challenger: Scorecard, champion: int | None, other: Scorecard | None, verdict: Verdict
    ) -> dict[str, Any]:
        tags = self._tags(self.version)
        outcome = f"was promoted: {verdict.reason}." if verdict.promoted else f"was not promoted: {verdict.reason}."
        return {
            "model_name": self.name,
            "data_version": tags[DATA_VERSION_TAG],
            "levir_kr_data_version": tags["geokr/levir_kr_data_version"],
            "rule": self.config.model_dump(mode="json"),
            "challenger": _record(self.version, challenger),
            "champion": None if champion is None or other is None else _record(champion, other),
            "margins": [_finite(asdict(margin)) for margin in verdict.margins],
            "promoted": verdict.promoted,
            "delta": verdict.gain,
            "delta_ci_low": verdict.ci_low,
            "delta_ci_high": verdict.ci_high,
            "champion_version": self.version if verdict.promoted else champion,
            "reason": f"Version {self.version} of {self.name} {outcome}",
        }


def _page(decision: Mapping[str, Any]) -> str:
    """What became of a version, and its scores, in Markdown: the top of its page in the registry."""
    margins = {margin["name"]: margin for margin in decision["margins"]}
    rows = [
        f"| {_in_words(name)} | {score.value:.4f} | {_beside(margins.get(name))} |"
        for name, score in sorted(_scores_of(decision).items())
    ]
    table = [
        "| criterion | this version | the champion it met, and the difference (95 % interval) |",
        "|---|---|---|",
        *rows,
    ]
    return f"{decision['reason']}\n\n" + "\n".join(table)


def _in_words(name: str) -> str:
    """A criterion's name as people read it: ``scenes/linear_probe/last/all/accuracy`` without codes."""
    from geokr_core.evaluation.charts import FEATURE_NAMES, PROTOCOL_NAMES, task_words

    task, protocol, *features, labels, metric = name.split("/")
    seen = [FEATURE_NAMES.get(part, part) for part in features]
    words = [task_words(task), PROTOCOL_NAMES.get(protocol, protocol), *seen, labels_name(labels)]
    return ", ".join([*words, metric.replace("_", " ")])


def _scores_of(decision: Mapping[str, Any]) -> Mapping[str, CriterionScore]:
    return Scorecard.from_text(json.dumps(decision["challenger"]["scores"])).scores


def _beside(margin: Mapping[str, Any] | None) -> str:
    if margin is None:
        return "none"
    low, high = margin["ci_low"], margin["ci_high"]
    interval = "" if low is None or high is None else f" ({low:+.4f} … {high:+.4f})"
    return f"{margin['champion']:.4f}, {margin['difference']:+.4f}{interval}"


def _keep_one_outcome(client: MlflowClient, name: str, version: int, outcome: str) -> None:
    drop_tags(client, name, version, *(tag for tag in _OUTCOMES if tag != outcome))


def _record(version: int, card: Scorecard) -> dict[str, Any]:
    """For people to read: without the hundreds of resampled values, which stay in the version's record."""
    scores = json.loads(card.as_text())
    for score in scores.values():
        del score["replicates"]
    return {"version": version, "scores": scores}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no word for NaN: a bound that is none is null."""
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}


def _promotion_summary(decision: Mapping[str, Any]) -> Summary:
    numbers: dict[str, Number] = {
        "reason": str(decision["reason"]),
        "promoted": bool(decision["promoted"]),
        "version": str(decision["challenger"]["version"]),  # as text: a number would be drawn as a curve
    }
    if decision["champion_version"] is not None:
        numbers["champion_version"] = str(decision["champion_version"])
    for name in ("delta", "delta_ci_low", "delta_ci_high"):
        if decision[name] is not None:
            numbers[name] = float(decision[name])
    table: list[dict[str, Number]]
    if decision["margins"]:
        # Names of criteria are codes for programs; the table is for people.
        rows = [{"criterion": _in_words(str(row["name"])), **row} for row in decision["margins"]]
        table = [{key: _shown_figure(value) for key, value in row.items() if key != "name"} for row in rows]
    else:
        table = [
            {"criterion": _in_words(name), "challenger": _shown_figure(score.value)}
            for name, score in _scores_of(decision).items()
        ]
    return Summary(numbers=numbers, table=table)


def _shown_figure(value: Number | None) -> Number:
    """To four decimals, which is more than any test set can tell; blank where there is none."""
    return "" if value is None else round(value, 4) if isinstance(value, float) else value


def rollback(name: str, because: str, to: int | None, reporter: Reporter = LOG) -> int:
    """Give the alias of the champion back to the one before, or to a version by number.

    The version that is left is marked as withdrawn, so that no promotion makes it champion again; a version that is
    returned to loses that mark.

    Args:
        name: the registered model.
        because: why, kept as a tag.
        to: version to return to; None: the one that the present champion replaced.
        reporter: hears what was done.

    Returns:
        The version that is champion now.

    Raises:
        RegistryError: there is no such model, version, champion or predecessor, or MLflow cannot be reached.
    """
    with refusals(f"Rolling back {name}"):
        connection = connect()
        client = connection.client
        with lock(connection.locks / "promotion.lock", reporter):
            _, champion = resolve(client, f"{name}@{CHAMPION}")
            target = _predecessor(client, name, champion) if to is None else resolve(client, f"{name}/{to}")[1]
            if target == champion:
                raise RegistryError(f"Version {target} of {name} is the champion already; nothing to roll back.")
            client.set_model_version_tag(name, str(champion), _WITHDRAWN_TAG, because)
            _keep_one_outcome(client, name, champion, _WITHDRAWN_TAG)
            client.set_model_version_tag(name, str(target), _RESTORED_TAG, f"version {champion}: {because}")
            _keep_one_outcome(client, name, target, _RESTORED_TAG)
            client.set_registered_model_alias(name, CHAMPION, str(target))
            describe(client, name, champion, f"Withdrawn: {because}.")
            describe(client, name, target, f"Champion again since version {champion} was withdrawn: {because}.")
    reporter.info(f"{name}: version {target} is champion again; version {champion} is withdrawn ({because}).")
    return target


def _predecessor(client: MlflowClient, name: str, champion: int) -> int:
    replaced = client.get_model_version(name, str(champion)).tags.get(REPLACED_TAG, "none")
    if replaced == "none":
        numbers = version_numbers(client, name)
        raise RegistryError(
            f"Champion {champion} of {name} replaced no other; name a version with `--to` (there: "
            f"{', '.join(map(str, numbers))})."
        )
    return int(replaced)


def compare(
    references: tuple[str, str],
    config: ChampionConfig,
    evaluation: EvaluationConfig,
    cells: Path,
    reporter: Reporter = LOG,
) -> Summary:
    """Score two registered backbones alike and set them side by side.

    Args:
        references: ``name@alias`` or ``name/version``, the first to be compared with the second.
        config: the criteria.
        evaluation: where the sets lie, seeds and budget.
        cells: folder that keeps finished cells.
        reporter: hears every score.

    Returns:
        One row a criterion: both means, the mean difference seed by seed with its 95 % interval; as numbers, what the
        rule of promotion would say.

    Raises:
        RegistryError: there is no such model, alias or version, or MLflow cannot be reached.
        BackboneError: a download is damaged.
        EvaluationError: a criterion cannot be measured on one of the two.
    """
    judge = _Judge(evaluation, config.criteria, cells, reporter)
    cards = []
    with refusals(f"Comparing {' with '.join(references)}"):
        connection = connect()
        for reference in references:
            with tempfile.TemporaryDirectory() as folder:
                cards.append(judge.score(fetch(connection, *resolve(connection.client, reference), Path(folder))))
    verdict = decide(config, cards[0], cards[1])
    table: list[dict[str, Number]] = [
        {
            "criterion": margin.name,
            "role": margin.role,
            references[0]: round(margin.challenger, 4),
            references[1]: round(margin.champion, 4),
            "difference": round(margin.difference, 4),
            "ci_low": round(margin.ci_low, 4),
            "ci_high": round(margin.ci_high, 4),
        }
        for margin in margins_of(config, cards[0], cards[1])
    ]
    return Summary({"would_be_promoted": verdict.promoted, "reason": verdict.reason}, table)
