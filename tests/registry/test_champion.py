"""Promotion, taking back and comparing against a real MLflow with SQLite in a temporary folder."""

import fcntl
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from geokr_core import registry
from geokr_core.errors import MissingInputError, RegistryError
from geokr_core.evaluation.config import EvaluationConfig, TaskConfig
from geokr_core.evaluation.scorecard import Scorecard
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.registry.champion import _promotion_summary
from geokr_core.registry.config import ChampionConfig
from geokr_core.registry.evidence import SCORES, keep_record, kept_record
from geokr_core.registry.promotion import decide
from geokr_core.step.digests import data_version

if TYPE_CHECKING:
    from tests.registry.conftest import Shop

UNREACHABLE = "http://127.0.0.1:9"
CHAMPION = ChampionConfig(primary=({"task": "scenes"},))


def scores_of_version(server: MlflowClient, version: ModelVersion) -> Scorecard:
    text = kept_record(server, version, SCORES)
    assert text is not None
    return Scorecard.from_text(text)


def aliases(server: MlflowClient, name: str) -> dict[str, int]:
    return {key: int(value) for key, value in server.get_registered_model(name).aliases.items()}


def test_first_backbone_becomes_champion_with_its_evidence(
    shop: "Shop", server: MlflowClient, dataset: LevirKR
) -> None:
    decision = shop.promote(0, [0.5, 0.7])

    assert decision["promoted"] is True
    assert decision["champion"] is None
    assert aliases(server, shop.name) == {"challenger": 1, "champion": 1}
    version = server.get_model_version(shop.name, "1")
    assert version.tags["geokr/data_version"] == data_version(shop.bundle(0))
    assert version.tags["geokr/levir_kr_data_version"] == dataset.data_version
    score = scores_of_version(server, version).scores["scenes/linear_probe/last/all/accuracy"]
    assert (score.value, score.data_version) == (pytest.approx(0.6), shop.today)
    assert version.tags["promoted_because"] == "there was no champion yet"
    assert version.tags["replaced_version"] == "none"
    evidence = {info.path for info in server.list_artifacts(version.run_id, "evidence")}
    names = ("report.html", "results.parquet", "scores.json", "decision.json")
    assert evidence == {f"evidence/{name}" for name in names}
    assert version.tags["geokr/evaluation_run"] == version.run_id
    assert len(version.tags) == 5, "the page shows every tag as a row"
    logged = server.get_logged_model(str(version.source).removeprefix("models:/"))
    assert logged.params["legend_hash"] == dataset.manifest["legend_hash"]
    assert logged.params["bands"] == "red,green,blue"
    (metric,) = [metric for metric in logged.metrics if metric.key == "scenes/linear_probe/last/all/accuracy"]
    assert (metric.value, metric.dataset_name, metric.dataset_digest) == (pytest.approx(0.6), "scenes", shop.today)


def test_the_page_of_a_version_reads_like_a_card_and_its_card_has_the_scores(
    shop: "Shop", server: MlflowClient
) -> None:
    shop.promote(0, [0.5, 0.7])
    page = server.get_model_version(shop.name, "1").description
    assert page.index("was promoted") < page.index(f"# {shop.name}") < page.index("## Scores")
    row = "| scenes | linear probe on last stage, all labels | accuracy | 0.810 [0.800, 0.820] |"
    assert row in page
    assert "Behind: ImageNet weights on scenes" in page
    assert "---\nlicense" not in page, "MLflow shows a YAML header as a heading"
    assert len(page) < 4900, "cut off"
    registry.download(f"{shop.name}@champion", shop.folder / "downloaded")
    card = (shop.folder / "downloaded" / "README.md").read_text(encoding="utf-8")
    assert card == (shop.folder / "champion" / "MODEL_CARD.md").read_text(encoding="utf-8")
    header, body = card.removeprefix("---\n").split("\n---\n", 1)
    (model,) = yaml.safe_load(header)["model-index"]
    (result,) = model["results"]
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"name": "scenes", "type": "scenes", "revision": shop.today}
    assert result["metrics"][0]["value"] == 0.81
    assert "-0.090 [-0.100, -0.080], behind" in body
    assert "ImageNet weights reach 0.900" in body[body.index("### Where it loses") :]


def test_an_evaluation_made_anew_renews_card_and_page(shop: "Shop", server: MlflowClient) -> None:
    shop.promote(0, [0.5, 0.7])
    inputs = shop.inputs(0, [0.5, 0.7])
    summary = inputs["evaluation"] / "summary_table.csv"
    summary.write_text(summary.read_text(encoding="utf-8").replace("0.81", "0.815"), encoding="utf-8")
    evaluation = EvaluationConfig(folder=shop.folder, tasks=(TaskConfig(name="scenes"),))
    registry.promote(CHAMPION, evaluation, inputs, shop.folder / "cells", shop.folder / "champion", shop.reporter)
    assert "0.815 [" in server.get_model_version(shop.name, "1").description
    registry.download(f"{shop.name}@champion", shop.folder / "downloaded")
    assert "0.815 [" in (shop.folder / "downloaded" / "README.md").read_text(encoding="utf-8")


def test_what_was_refused_once_may_win_when_it_is_measured_anew(shop: "Shop", server: MlflowClient) -> None:
    shop.promote(0, [0.5, 0.7])
    assert shop.promote(1, [0.4, 0.6])["promoted"] is False
    assert "refused_because" in server.get_model_version(shop.name, "2").tags
    assert shop.promote(1, [0.6, 0.801])["promoted"] is True
    accepted = server.get_model_version(shop.name, "2")
    assert "refused_because" not in accepted.tags
    assert "was promoted" in accepted.description


def test_better_replaces_worse_and_equal_do_not(shop: "Shop", server: MlflowClient) -> None:
    shop.promote(0, [0.5, 0.7])

    better = shop.promote(1, [0.6, 0.801])
    assert (better["promoted"], better["delta"], better["champion_version"]) == (True, 0.1005, 2)
    assert aliases(server, shop.name) == {"challenger": 2, "champion": 2}
    assert server.get_model_version(shop.name, "2").tags["replaced_version"] == "1"

    worse = shop.promote(2, [0.4, 0.5])
    assert (worse["promoted"], worse["delta"], worse["champion_version"]) == (False, -0.2505, 2)
    assert "worse by more than 0.01 on scenes/linear_probe/last/all/accuracy by 0.2505" in worse["reason"]
    assert aliases(server, shop.name) == {"challenger": 3, "champion": 2}
    refused = server.get_model_version(shop.name, "3")
    assert refused.tags["refused_because"] in worse["reason"]
    page, _, card = refused.description.partition("\n\n<!-- model card -->\n\n")
    assert page.startswith(worse["reason"])
    assert "| scenes, linear probe, last stage, all labels, accuracy | 0.4500 | 0.7005, -0.2505 (" in page
    assert card.startswith(f"# {shop.name}")

    equal = shop.promote(0, [0.6, 0.801])
    # Registered before with other scores, it is judged by what it reaches today.
    assert (equal["promoted"], equal["delta"]) == (False, 0.0)
    assert "equal" in equal["reason"]
    assert aliases(server, shop.name) == {"challenger": 1, "champion": 2}


def test_a_gain_within_noise_does_not_count(shop: "Shop") -> None:
    shop.promote(0, [0.50, 0.60, 0.70])
    noisy = shop.promote(1, [0.62, 0.61, 0.69])  # better by 0.04 on average, but not on every draw of labels
    assert noisy["promoted"] is False
    assert "95 % interval" in noisy["reason"]
    assert noisy["delta_ci_low"] < 0 < noisy["delta"]
    assert shop.promote(2, [0.54, 0.645, 0.742])["promoted"] is True  # as much better, on every draw


def test_one_seed_tells_nothing_of_noise(shop: "Shop") -> None:
    shop.promote(0, [0.5])
    decision = shop.promote(1, [0.9])
    assert decision["promoted"] is False
    assert "which is within noise: evaluate with 2 seeds or more" in decision["reason"]
    assert decision["delta_ci_low"] is None


def test_gain_must_exceed_what_is_asked(shop: "Shop") -> None:
    asked = ChampionConfig(primary=({"task": "scenes"},), min_gain=0.01)
    shop.promote(0, [0.90, 0.80])
    # 0.91 - 0.90 is a little more than 0.01 in binary: that must not count.
    assert shop.promote(1, [0.91, 0.81], asked)["promoted"] is False
    assert shop.promote(1, [0.92, 0.82], asked)["promoted"] is True


def test_a_guard_that_falls_stops_a_gain_elsewhere(shop: "Shop") -> None:
    rule = ChampionConfig(
        primary=({"task": "scenes"},),
        guards=({"task": "clouds", "protocol": "fine_tune", "metric": "miou"},),
        max_regression=0.02,
    )
    shop.promote(0, {"scenes": [0.5, 0.6], "clouds": [0.70, 0.80]}, rule)
    lost = shop.promote(1, {"scenes": [0.7, 0.8], "clouds": [0.65, 0.76]}, rule)
    assert lost["promoted"] is False
    assert "worse by more than 0.02 on clouds/fine_tune/all/miou by 0.0450" in lost["reason"]
    kept = shop.promote(2, {"scenes": [0.7, 0.8], "clouds": [0.69, 0.78]}, rule)
    assert kept["promoted"] is True
    assert [(m["role"], m["difference"]) for m in kept["margins"]] == [("primary", 0.2), ("guard", -0.015)]


def test_primary_criteria_count_together(shop: "Shop") -> None:
    rule = ChampionConfig(primary=({"task": "scenes"}, {"task": "clouds"}), max_regression=0.05)
    shop.promote(0, {"scenes": [0.5, 0.6], "clouds": [0.5, 0.6]}, rule)
    decision = shop.promote(1, {"scenes": [0.7, 0.8], "clouds": [0.46, 0.56]}, rule)
    assert decision["promoted"] is True
    assert decision["delta"] == 0.08


def test_same_bundle_twice_is_one_version_and_the_same_decision(shop: "Shop", server: MlflowClient) -> None:
    shop.promote(0, [0.5, 0.5])
    shop.promote(1, [0.6, 0.6])
    first = (shop.folder / "champion" / "decision.json").read_bytes()
    shop.promote(1, [0.6, 0.6])
    assert (shop.folder / "champion" / "decision.json").read_bytes() == first
    assert len(server.search_model_versions(f"name = '{shop.name}'")) == 2

    refused = shop.promote(0, [0.5, 0.5])
    assert refused["promoted"] is False
    assert shop.promote(0, [0.5, 0.5]) == refused
    assert len(server.search_model_versions(f"name = '{shop.name}'")) == 2


def test_champion_judged_anew_is_not_promoted_again(shop: "Shop", server: MlflowClient) -> None:
    shop.promote(0, [0.5, 0.5])
    decision = shop.promote(0, [0.4, 0.4])
    assert decision["promoted"] is False
    assert "champion already" in decision["reason"]
    assert decision["champion_version"] == 1
    card = scores_of_version(server, server.get_model_version(shop.name, "1"))
    assert next(iter(card.scores.values())).value == 0.4


def test_scores_and_decisions_that_an_earlier_version_kept_as_tags_are_read(shop: "Shop", server: MlflowClient) -> None:
    decision = shop.promote(0, [0.3, 0.3])
    version = server.get_model_version(shop.name, "1")
    for name in ("scores", "decision"):
        text = kept_record(server, version, f"{name}.json")
        server.set_model_version_tag(shop.name, "1", f"geokr/{name}", text)
    shutil.rmtree(Path(server.get_run(version.run_id).info.artifact_uri.removeprefix("file://")) / "evidence")
    assert shop.promote(0, [0.3, 0.3]) == decision
    shop.promote(1, [0.2, 0.2])
    assert len(shop.scored) == 3, "the champion was scored again"


@pytest.mark.parametrize("changed", ["today", "settings"])
def test_champion_measured_otherwise_is_scored_again(shop: "Shop", server: MlflowClient, changed: str) -> None:
    shop.promote(0, [0.3, 0.3])
    setattr(shop, changed, "changed")
    shop.scores[shop.scored[0]] = [0.8, 0.8]  # what it reaches now
    # Against the 0.3 that was measured otherwise, 0.7 would win.
    decision = shop.promote(1, [0.7, 0.7])
    assert len(shop.scored) == 3
    assert decision["promoted"] is False
    assert aliases(server, shop.name)["champion"] == 1

    assert shop.promote(1, [0.7, 0.7]) == decision
    assert len(shop.scored) == 4, "the champion's new score was not kept"


def _two_versions(shop: "Shop", server: MlflowClient) -> Callable[[], None]:
    """Version 1 is champion, version 2 is not; and what makes it champion with 0.9, as another machine would."""
    shop.promote(0, [0.3, 0.3])
    shop.promote(1, [0.2, 0.2])
    second = server.get_model_version(shop.name, "2")
    text = scores_of_version(server, second).as_text().replace("0.2", "0.9")

    def wins() -> None:
        keep_record(server, second, SCORES, text)
        server.set_registered_model_alias(shop.name, "champion", "2")

    return wins


def test_champion_that_changes_during_promotion_is_compared_again(
    shop: "Shop", server: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_wins = _two_versions(shop, server)
    calls: list[Any] = []

    def decide_slowly(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:  # meanwhile, on another machine, version 2 wins with 0.9
            second_wins()
        return decide(*arguments)

    monkeypatch.setattr("geokr_core.registry.champion.decide", decide_slowly)
    decision = shop.promote(2, [0.5, 0.5])
    assert len(calls) == 2
    assert decision["promoted"] is False
    assert aliases(server, shop.name)["champion"] == 2


def test_a_champion_that_another_machine_replaces_at_once_is_compared_with_that_one(
    shop: "Shop", server: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_wins = _two_versions(shop, server)
    move = MlflowClient.set_registered_model_alias
    moved: list[str] = []

    def move_and_lose(client: MlflowClient, name: str, alias: str, version: str) -> None:
        move(client, name, alias, version)
        if alias == "champion" and not moved:  # the other machine looked before, and moves after this one
            moved.append(version)
            second_wins()

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", move_and_lose)
    decision = shop.promote(2, [0.5, 0.5])
    assert moved == ["3"]
    assert decision["promoted"] is False
    assert aliases(server, shop.name)["champion"] == 2
    assert "promoted_because" not in server.get_model_version(shop.name, "3").tags


def test_a_model_that_another_machine_registers_first_is_used(
    shop: "Shop", server: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def unseen(client: MlflowClient, name: str) -> None:
        seen.append(name)
        if len(seen) == 1:
            client.create_registered_model(name)

    monkeypatch.setattr("geokr_core.registry.versions.registered", unseen)
    assert shop.promote(0, [0.5, 0.7])["promoted"] is True
    assert seen == [shop.name]
    assert aliases(server, shop.name) == {"challenger": 1, "champion": 1}


@pytest.mark.parametrize("act", ["promote", "rollback"])
def test_whoever_moves_the_champion_waits_for_others(
    shop: "Shop", database: Path, server: MlflowClient, act: str
) -> None:
    shop.promote(0, [0.3, 0.3])
    shop.promote(1, [0.4, 0.4])
    with (database.parent / "mlruns" / ".locks" / "promotion.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        target: Callable[[], object] = lambda: shop.promote(2, [0.5, 0.5])  # noqa: E731
        if act == "rollback":
            target = lambda: registry.rollback(shop.name, "it drifted", None, shop.reporter)  # noqa: E731
        thread = threading.Thread(target=target)
        thread.start()
        deadline = time.monotonic() + 30
        while not any("Another promotion" in line for line in shop.reporter.infos) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert any("Another promotion" in line for line in shop.reporter.infos)
        assert aliases(server, shop.name)["champion"] == 2
    thread.join(timeout=60)
    assert aliases(server, shop.name)["champion"] == (3 if act == "promote" else 1)


def test_rollback_restores_the_previous_champion_and_keeps_the_other_out(shop: "Shop", server: MlflowClient) -> None:
    shop.promote(0, [0.5, 0.5])
    shop.promote(1, [0.6, 0.6])
    assert registry.rollback(shop.name, "wrong bands in production", None, shop.reporter) == 1
    assert aliases(server, shop.name)["champion"] == 1
    assert server.get_model_version(shop.name, "2").tags["withdrawn_because"] == "wrong bands in production"

    again = shop.promote(1, [0.6, 0.6])
    assert again["promoted"] is False
    assert "withdrawn (wrong bands in production)" in again["reason"]
    assert aliases(server, shop.name)["champion"] == 1

    assert registry.rollback(shop.name, "it was the bands' order", 2, shop.reporter) == 2
    assert aliases(server, shop.name)["champion"] == 2
    assert "withdrawn_because" not in server.get_model_version(shop.name, "2").tags


def test_rollback_without_a_way_back_says_so(shop: "Shop") -> None:
    with pytest.raises(RegistryError, match="No model"):
        registry.rollback("no-such-model", "why", None, shop.reporter)
    shop.promote(0, [0.5, 0.5])
    with pytest.raises(RegistryError, match=r"replaced no other; name a version with `--to` \(there: 1\)"):
        registry.rollback(shop.name, "why", None, shop.reporter)
    with pytest.raises(RegistryError, match="champion already"):
        registry.rollback(shop.name, "why", 1, shop.reporter)
    with pytest.raises(RegistryError, match="no version 7"):
        registry.rollback(shop.name, "why", 7, shop.reporter)


def test_compare_sets_two_versions_side_by_side(shop: "Shop", server: MlflowClient) -> None:
    shop.promote(0, [0.5, 0.5])
    shop.promote(1, [0.6, 0.6])
    evaluation = EvaluationConfig(folder=shop.folder, tasks=(TaskConfig(name="scenes"),))
    pair = (f"{shop.name}/1", f"{shop.name}@champion")
    summary = registry.compare(pair, CHAMPION, evaluation, shop.folder / "cells", shop.reporter)
    (row,) = summary.table
    assert (row[pair[0]], row[pair[1]], row["difference"]) == (0.5, 0.6, -0.1)
    assert summary.numbers["would_be_promoted"] is False
    assert aliases(server, shop.name)["champion"] == 2, "comparing decides nothing"


def test_the_table_of_a_decision_names_criteria_in_words(shop: "Shop") -> None:
    for seed, scores in enumerate(([0.5, 0.5], [0.6, 0.6])):
        (row,) = _promotion_summary(shop.promote(seed, scores)).table
        assert str(row["criterion"]).startswith("scenes, linear probe, last stage, "), "no code with slashes"
        assert row["challenger"] == scores[0]
    assert row["champion"] == 0.5


def test_an_evaluation_of_another_bundle_or_with_a_broken_score_blocks(shop: "Shop", server: MlflowClient) -> None:
    with pytest.raises(RegistryError, match=r"measured on the bundle old\.dir"):
        shop.promote(0, [0.5, 0.5], backbone_version="old.dir")
    with pytest.raises(RegistryError, match="1 of 1 values are not a number"):
        shop.promote(0, [0.5, 0.5], value=float("nan"))
    assert shop.name not in {model.name for model in server.search_registered_models()}


def test_missing_inputs_are_named(shop: "Shop") -> None:
    inputs = shop.inputs(0, [0.5])
    evaluation = EvaluationConfig(folder=shop.folder, tasks=(TaskConfig(name="scenes"),))
    for path in (inputs["report"] / "report.html", inputs["evaluation"] / "results.parquet"):
        path.unlink()
        with pytest.raises(MissingInputError, match=path.name):
            registry.promote(CHAMPION, evaluation, inputs, shop.folder, shop.folder / "out", shop.reporter)


def test_an_evaluation_that_fails_blocks_and_leaves_the_champion(
    shop: "Shop", server: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.promote(0, [0.3, 0.3])

    def fails(*_: object) -> None:
        raise MissingInputError("tasks/scenes: no such folder")

    monkeypatch.setattr("geokr_core.evaluation.scorecard.score_backbone", fails)
    # Neither a score of 0 nor an absent server.
    with pytest.raises(MissingInputError, match="tasks/scenes"):
        shop.promote(1, [0.7, 0.7])
    assert aliases(server, shop.name) == {"challenger": 1, "champion": 1}


def test_promotion_uses_the_run_that_is_open(shop: "Shop", server: MlflowClient) -> None:
    with registry.track_step("champion", {}, {}, shop.reporter) as run:
        shop.promote(0, [0.5])
    assert server.get_model_version(shop.name, "1").run_id == run.run_id


def test_a_promotion_that_goes_on_in_its_run_enters_its_scores_once(shop: "Shop", server: MlflowClient) -> None:
    with registry.track_step("champion", {}, {}, shop.reporter) as run:
        for _ in range(2):  # killed before its end was recorded, and begun again
            shop.promote(0, [0.5])
    key = "scenes/linear_probe/last/all/accuracy"
    assert len(server.get_metric_history(str(run.run_id), key)) == 1
    version = server.get_model_version(shop.name, "1")
    logged = server.get_logged_model(str(version.source).removeprefix("models:/"))
    assert len([metric for metric in logged.metrics if metric.key == key]) == 1


def test_promotion_without_server_is_an_error_that_names_it(shop: "Shop", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # saves seconds
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:9 cannot be reached"):
        shop.promote(0, [0.5])
    assert not (shop.folder / "champion").exists()
