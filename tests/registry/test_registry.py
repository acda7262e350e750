"""Tracking, registry and promotion against a real MLflow with SQLite in a temporary folder."""

import fcntl
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from safetensors.torch import load_file

from geokr_core import registry as registry
from geokr_core.backbone.build import build_bundle
from geokr_core.backbone.bundle import BUNDLE_FILES, verify_bundle
from geokr_core.backbone.config import BackboneConfig
from geokr_core.errors import BackboneError, MissingInputError, RegistryError
from geokr_core.evaluation.config import Criterion, EvaluationConfig, TaskConfig
from geokr_core.evaluation.scorecard import CriterionScore, Scorecard
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.registry.config import ChampionConfig
from geokr_core.registry.promotion import decide
from geokr_core.step.digests import data_version, file_md5
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.step.summary import Summary
from geokr_core.testing import make_levir_kr, make_pretraining

UNREACHABLE = "http://127.0.0.1:9"
TODAY, YESTERDAY = "11111111111111111111111111111111.dir", "00000000000000000000000000000000.dir"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LevirKR:
    return make_levir_kr(tmp_path_factory.mktemp("store"), num_chips=24)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for the module: MLflow takes seconds to create one. Each test has a model name of its own."""
    return tmp_path_factory.mktemp("mlflow") / "mlflow.db"


@pytest.fixture(autouse=True)
def server(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("GEOKR_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    monkeypatch.delenv("GEOKR_MLFLOW_UI_URL", raising=False)
    return MlflowClient(tracking_uri=f"sqlite:///{database}")


@pytest.fixture(scope="module")
def bundles(dataset: LevirKR, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three bundles with different weights, under the name ``template``."""
    made = []
    for seed in range(3):
        folder = tmp_path_factory.mktemp("bundle")
        pretraining = make_pretraining(folder / "pretraining", dataset, seed=seed)
        config = BackboneConfig(model_name="template")
        build_bundle(config, dataset.folder, pretraining, folder / "backbone", RecordingReporter())
        made.append(folder / "backbone")
    return made


Scores = Sequence[float] | Mapping[str, Sequence[float]]
"""One value a seed, for every task or by task."""
CHAMPION = ChampionConfig(primary=({"task": "scenes"},))


def data_version_of_bundle(bundle: Path) -> str:
    """What a bundle is told by, whichever name it bears."""
    return file_md5(bundle / "backbone.safetensors")


class Shop:
    """Promotes bundles of one model with made-up scores."""

    def __init__(self, name: str, bundles: Sequence[Path], folder: Path) -> None:
        self.name, self.bundles, self.folder = name, bundles, folder
        self.reporter = RecordingReporter()
        self.today, self.settings = TODAY, "settings"
        self.scores: dict[str, Scores] = {}
        self.scored: list[str] = []

    def bundle(self, number: int) -> Path:
        """The bundle under this shop's own model name; backbone.json is the only file that bears no digest."""
        folder = self.folder / f"backbone{number}"
        if not folder.exists():
            shutil.copytree(self.bundles[number], folder)
            text = (folder / "backbone.json").read_text(encoding="utf-8")
            (folder / "backbone.json").write_text(text.replace('"template"', f'"{self.name}"'), encoding="utf-8")
        return folder

    def score(self, bundle: Path, _: EvaluationConfig, criteria: Sequence[Criterion], *__: object) -> Scorecard:
        """Stands in for the evaluation, whose own tests are elsewhere: made-up scores, on today's data."""
        verify_bundle(bundle)
        assert sorted(path.name for path in bundle.iterdir()) == sorted(BUNDLE_FILES)
        version = data_version_of_bundle(bundle)
        self.scored.append(version)
        scores = self.scores[version]
        per_task = scores if isinstance(scores, Mapping) else {criterion.task: scores for criterion in criteria}
        return Scorecard(
            {
                criterion.name: CriterionScore(
                    {str(seed): value for seed, value in enumerate(per_task[criterion.task])}, self.today, self.settings
                )
                for criterion in criteria
            }
        )

    def inputs(self, number: int, scores: Scores, **changed: Any) -> dict[str, Path]:
        inputs = {name: self.folder / name for name in ("evaluation", "report")}
        for folder in inputs.values():
            folder.mkdir(exist_ok=True)
        (inputs["report"] / "report.html").write_text(f"<html>{scores}</html>", encoding="utf-8")
        row = {"value": 0.5, "backbone_version": data_version(self.bundle(number))} | changed
        pd.DataFrame([row]).to_parquet(inputs["evaluation"] / "results.parquet")
        self.scores[data_version_of_bundle(self.bundle(number))] = scores
        return inputs | {"backbone": self.bundle(number)}

    def promote(
        self, number: int, scores: Scores, champion: ChampionConfig = CHAMPION, **changed: Any
    ) -> dict[str, Any]:
        evaluation = EvaluationConfig(folder=self.folder, tasks=(TaskConfig(name="scenes"),))
        out = self.folder / "champion"
        inputs = self.inputs(number, scores, **changed)
        registry.promote(champion, evaluation, inputs, self.folder / "cells", out, self.reporter)
        return dict(read_json(out / "decision.json"))


@pytest.fixture
def shop(request: pytest.FixtureRequest, bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    made = Shop(request.node.name.replace("_", "-").replace("[", "-").replace("]", ""), bundles, tmp_path)
    monkeypatch.setattr("geokr_core.evaluation.scorecard.score_backbone", made.score)
    return made


def aliases(server: MlflowClient, name: str) -> dict[str, int]:
    return {key: int(value) for key, value in server.get_registered_model(name).aliases.items()}


# --- promotion


def test_first_backbone_becomes_champion_with_its_evidence(shop: Shop, server: MlflowClient, dataset: LevirKR) -> None:
    decision = shop.promote(0, [0.5, 0.7])

    assert decision["promoted"] is True
    assert decision["champion"] is None
    assert aliases(server, shop.name) == {"challenger": 1, "champion": 1}
    version = server.get_model_version(shop.name, "1")
    assert version.tags["geokr/data_version"] == data_version(shop.bundle(0))
    assert version.tags["geokr/levir_kr_data_version"] == dataset.data_version
    assert version.tags["geokr/legend_hash"] == dataset.manifest["legend_hash"]
    score = Scorecard.from_text(version.tags["geokr/scores"]).scores["scenes/linear_probe/last/all/accuracy"]
    assert (score.value, score.data_version) == (pytest.approx(0.6), TODAY)
    assert version.tags["promoted_because"] == "there was no champion yet"
    assert version.tags["replaced_version"] == "none"
    evidence = {info.path for info in server.list_artifacts(version.run_id, "evidence")}
    assert evidence == {"evidence/report.html", "evidence/results.parquet"}
    assert version.tags["geokr/report"] == f"runs:/{version.run_id}/evidence/report.html"


def test_what_was_refused_once_may_win_when_it_is_measured_anew(shop: Shop, server: MlflowClient) -> None:
    shop.promote(0, [0.5, 0.7])
    assert shop.promote(1, [0.4, 0.6])["promoted"] is False
    assert "refused_because" in server.get_model_version(shop.name, "2").tags
    assert shop.promote(1, [0.6, 0.801])["promoted"] is True
    accepted = server.get_model_version(shop.name, "2")
    assert "refused_because" not in accepted.tags
    assert "was promoted" in accepted.description


def test_better_replaces_worse_and_equal_do_not(shop: Shop, server: MlflowClient) -> None:
    shop.promote(0, [0.5, 0.7])

    better = shop.promote(1, [0.6, 0.801])
    assert (better["promoted"], better["delta"], better["champion_version"]) == (True, 0.1005, 2)
    assert aliases(server, shop.name) == {"challenger": 2, "champion": 2}
    assert server.get_model_version(shop.name, "2").tags["replaced_version"] == "1"
    assert server.get_model_version(shop.name, "2").tags["delta"] == "0.1005"

    worse = shop.promote(2, [0.4, 0.5])
    assert (worse["promoted"], worse["delta"], worse["champion_version"]) == (False, -0.2505, 2)
    assert "worse by more than 0.01 on scenes/linear_probe/last/all/accuracy by 0.2505" in worse["reason"]
    assert aliases(server, shop.name) == {"challenger": 3, "champion": 2}
    refused = server.get_model_version(shop.name, "3")
    assert refused.tags["refused_because"] in worse["reason"]
    assert refused.tags["refused_delta"] == "-0.2505"
    told, _, card = refused.description.partition("\n\n<!-- model card -->\n\n")
    assert told == worse["reason"]
    assert card == (shop.bundle(2) / "MODEL_CARD.md").read_text(encoding="utf-8")[: len(card)]
    assert len(card) > 1000

    equal = shop.promote(0, [0.6, 0.801])
    # Registered before with other scores, it is judged by what it reaches today.
    assert (equal["promoted"], equal["delta"]) == (False, 0.0)
    assert "equal" in equal["reason"]
    assert aliases(server, shop.name) == {"challenger": 1, "champion": 2}


def test_a_gain_within_noise_does_not_count(shop: Shop) -> None:
    shop.promote(0, [0.50, 0.60, 0.70])
    noisy = shop.promote(1, [0.62, 0.61, 0.69])  # better by 0.04 on average, but not on every draw of labels
    assert noisy["promoted"] is False
    assert "95 % interval" in noisy["reason"]
    assert noisy["delta_ci_low"] < 0 < noisy["delta"]
    assert shop.promote(2, [0.54, 0.645, 0.742])["promoted"] is True  # as much better, on every draw


def test_one_seed_tells_nothing_of_noise(shop: Shop) -> None:
    shop.promote(0, [0.5])
    decision = shop.promote(1, [0.9])
    assert decision["promoted"] is False
    assert "cannot be told from noise: evaluate with 2 seeds or more" in decision["reason"]
    assert decision["delta_ci_low"] is None


def test_gain_must_exceed_what_is_asked(shop: Shop) -> None:
    asked = ChampionConfig(primary=({"task": "scenes"},), min_gain=0.01)
    shop.promote(0, [0.90, 0.80])
    # 0.91 - 0.90 is a little more than 0.01 in binary: that must not count.
    assert shop.promote(1, [0.91, 0.81], asked)["promoted"] is False
    assert shop.promote(1, [0.92, 0.82], asked)["promoted"] is True


def test_a_guard_that_falls_stops_a_gain_elsewhere(shop: Shop) -> None:
    rule = ChampionConfig(
        primary=({"task": "scenes"},), guards=({"task": "clouds", "protocol": "fine_tune", "metric": "miou"},),
        max_regression=0.02,
    )  # fmt: skip
    shop.promote(0, {"scenes": [0.5, 0.6], "clouds": [0.70, 0.80]}, rule)
    lost = shop.promote(1, {"scenes": [0.7, 0.8], "clouds": [0.65, 0.76]}, rule)
    assert lost["promoted"] is False
    assert "worse by more than 0.02 on clouds/fine_tune/all/miou by 0.0450" in lost["reason"]
    kept = shop.promote(2, {"scenes": [0.7, 0.8], "clouds": [0.69, 0.78]}, rule)
    assert kept["promoted"] is True
    assert [(m["role"], m["difference"]) for m in kept["margins"]] == [("primary", 0.2), ("guard", -0.015)]


def test_primary_criteria_count_together(shop: Shop) -> None:
    rule = ChampionConfig(primary=({"task": "scenes"}, {"task": "clouds"}), max_regression=0.05)
    shop.promote(0, {"scenes": [0.5, 0.6], "clouds": [0.5, 0.6]}, rule)
    decision = shop.promote(1, {"scenes": [0.7, 0.8], "clouds": [0.46, 0.56]}, rule)
    assert decision["promoted"] is True
    assert decision["delta"] == 0.08


def test_same_bundle_twice_is_one_version_and_the_same_decision(shop: Shop, server: MlflowClient) -> None:
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


def test_champion_judged_anew_is_not_promoted_again(shop: Shop, server: MlflowClient) -> None:
    shop.promote(0, [0.5, 0.5])
    decision = shop.promote(0, [0.4, 0.4])
    assert decision["promoted"] is False
    assert "champion already" in decision["reason"]
    assert decision["champion_version"] == 1
    text = server.get_model_version(shop.name, "1").tags["geokr/scores"]
    assert next(iter(Scorecard.from_text(text).scores.values())).value == 0.4


@pytest.mark.parametrize("changed", ["today", "settings"])
def test_champion_measured_otherwise_is_scored_again(shop: Shop, server: MlflowClient, changed: str) -> None:
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


def test_champion_that_changes_during_promotion_is_compared_again(
    shop: Shop, server: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.promote(0, [0.3, 0.3])
    shop.promote(1, [0.2, 0.2])
    text = server.get_model_version(shop.name, "2").tags["geokr/scores"].replace("0.2", "0.9")
    calls: list[Any] = []

    def decide_slowly(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:  # meanwhile, on another machine, version 2 wins with 0.9
            server.set_model_version_tag(shop.name, "2", "geokr/scores", text)
            server.set_registered_model_alias(shop.name, "champion", "2")
        return decide(*arguments)

    monkeypatch.setattr("geokr_core.registry.champion.decide", decide_slowly)
    decision = shop.promote(2, [0.5, 0.5])
    assert len(calls) == 2
    assert decision["promoted"] is False
    assert aliases(server, shop.name)["champion"] == 2


@pytest.mark.parametrize("act", ["promote", "rollback"])
def test_whoever_moves_the_champion_waits_for_others(
    shop: Shop, database: Path, server: MlflowClient, act: str
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


def test_rollback_restores_the_previous_champion_and_keeps_the_other_out(shop: Shop, server: MlflowClient) -> None:
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


def test_rollback_without_a_way_back_says_so(shop: Shop) -> None:
    with pytest.raises(RegistryError, match="No model"):
        registry.rollback("no-such-model", "why", None, shop.reporter)
    shop.promote(0, [0.5, 0.5])
    with pytest.raises(RegistryError, match=r"replaced no other; name a version with `--to` \(there: 1\)"):
        registry.rollback(shop.name, "why", None, shop.reporter)
    with pytest.raises(RegistryError, match="champion already"):
        registry.rollback(shop.name, "why", 1, shop.reporter)
    with pytest.raises(RegistryError, match="no version 7"):
        registry.rollback(shop.name, "why", 7, shop.reporter)


def test_compare_sets_two_versions_side_by_side(shop: Shop, server: MlflowClient) -> None:
    shop.promote(0, [0.5, 0.5])
    shop.promote(1, [0.6, 0.6])
    evaluation = EvaluationConfig(folder=shop.folder, tasks=(TaskConfig(name="scenes"),))
    pair = (f"{shop.name}/1", f"{shop.name}@champion")
    summary = registry.compare(pair, CHAMPION, evaluation, shop.folder / "cells", shop.reporter)
    (row,) = summary.table
    assert (row[pair[0]], row[pair[1]], row["difference"]) == (0.5, 0.6, -0.1)
    assert summary.numbers["would_be_promoted"] is False
    assert aliases(server, shop.name)["champion"] == 2, "comparing decides nothing"


def test_an_evaluation_of_another_bundle_or_with_a_broken_score_blocks(shop: Shop, server: MlflowClient) -> None:
    with pytest.raises(RegistryError, match=r"measured on the bundle old\.dir"):
        shop.promote(0, [0.5, 0.5], backbone_version="old.dir")
    with pytest.raises(RegistryError, match="1 of 1 values are not a number"):
        shop.promote(0, [0.5, 0.5], value=float("nan"))
    assert shop.name not in {model.name for model in server.search_registered_models()}


def test_missing_inputs_are_named(shop: Shop) -> None:
    inputs = shop.inputs(0, [0.5])
    evaluation = EvaluationConfig(folder=shop.folder, tasks=(TaskConfig(name="scenes"),))
    for path in (inputs["report"] / "report.html", inputs["evaluation"] / "results.parquet"):
        path.unlink()
        with pytest.raises(MissingInputError, match=path.name):
            registry.promote(CHAMPION, evaluation, inputs, shop.folder, shop.folder / "out", shop.reporter)


def test_an_evaluation_that_fails_blocks_and_leaves_the_champion(
    shop: Shop, server: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.promote(0, [0.3, 0.3])

    def fails(*_: object) -> None:
        raise MissingInputError("tasks/scenes: no such folder")

    monkeypatch.setattr("geokr_core.evaluation.scorecard.score_backbone", fails)
    # Neither a score of 0 nor an absent server.
    with pytest.raises(MissingInputError, match="tasks/scenes"):
        shop.promote(1, [0.7, 0.7])
    assert aliases(server, shop.name) == {"challenger": 1, "champion": 1}


def test_promotion_uses_the_run_that_is_open(shop: Shop, server: MlflowClient) -> None:
    with registry.track_step("champion", {}, {}, shop.reporter) as run:
        shop.promote(0, [0.5])
    assert server.get_model_version(shop.name, "1").run_id == run.run_id


def test_promotion_without_server_is_an_error_that_names_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # saves seconds
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:9 cannot be reached"):
        shop.promote(0, [0.5])
    assert not (shop.folder / "champion").exists()


# --- what is registered


def test_mlflow_command_downloads_a_usable_bundle_without_pickle(shop: Shop, tmp_path: Path) -> None:
    shop.promote(0, [0.5])
    target = tmp_path / "downloaded"
    command = [sys.executable, "-m", "mlflow", "artifacts", "download"]
    subprocess.run([*command, "-u", f"models:/{shop.name}@champion", "-d", str(target)], check=True, cwd=tmp_path)
    verify_bundle(target)
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert set(BUNDLE_FILES) <= found
    assert found - set(BUNDLE_FILES) == {
        "MLmodel", "backbone_pyfunc.py", "conda.yaml", "python_env.yaml", "requirements.txt", "registered_model_meta",
    }  # fmt: skip
    for path in target.rglob("*"):
        assert path.suffix not in {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"}
        if path.is_file():
            assert path.read_bytes()[:2] not in {b"\x80\x04", b"\x80\x05", b"PK"}
    assert str(Path(registry.__file__).parent) not in (target / "MLmodel").read_text(encoding="utf-8")


def test_served_model_gives_the_golden_features_and_refuses_other_bands(shop: Shop, tmp_path: Path) -> None:
    import mlflow.pyfunc

    shop.promote(0, [0.5])
    client = MlflowClient(tracking_uri=registry.tracking_uri())
    place = client.get_model_version_download_uri(shop.name, "1")
    served = mlflow.pyfunc.load_model(place)
    golden = load_file(shop.bundle(0) / "golden.safetensors")
    images = golden["input"].numpy()
    assert np.allclose(served.predict(images), golden["features"].numpy(), atol=1e-3)
    with pytest.raises(MlflowException, match="does not match expected shape"):
        served.predict(images[:, :2])


def test_download_gives_the_bundle_that_was_registered(shop: Shop, tmp_path: Path) -> None:
    shop.promote(0, [0.5])
    shop.promote(1, [0.4])
    champion = registry.download(f"{shop.name}@champion", tmp_path / "first")
    second = registry.download(f"{shop.name}/2", tmp_path / "second")
    assert data_version(champion) == data_version(shop.bundle(0))
    assert data_version(second) == data_version(shop.bundle(1))
    # Into a folder that holds a bundle: replaced.
    assert data_version(registry.download(f"models:/{shop.name}/2", champion)) == data_version(shop.bundle(1))


def test_download_names_what_there_is(shop: Shop, tmp_path: Path) -> None:
    shop.promote(0, [0.5])
    target = tmp_path / "target"
    with pytest.raises(RegistryError, match=rf"No model 'nothing' .*{shop.name}"):
        registry.download("nothing@champion", target)
    with pytest.raises(RegistryError, match=r"no alias 'champ'; there: challenger \(version 1\), champion"):
        registry.download(f"{shop.name}@champ", target)
    with pytest.raises(RegistryError, match="no version 7; there: 1"):
        registry.download(f"{shop.name}/7", target)
    with pytest.raises(RegistryError, match="expected NAME@ALIAS or NAME/VERSION"):
        registry.download(shop.name, target)
    assert not target.exists()


def test_download_leaves_other_folders_alone(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(RegistryError, match="something else lies there"):
        registry.download(f"{shop.name}@champion", tmp_path / "home")
    assert (tmp_path / "home" / "letter.txt").exists()


def test_download_without_a_registry_creates_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RegistryError, match="no registry there"):
        registry.download("geokr-resnet18@champion", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_damaged_download_is_refused_and_changes_nothing(shop: Shop, tmp_path: Path, server: MlflowClient) -> None:
    shop.promote(0, [0.5])
    place = Path(server.get_model_version_download_uri(shop.name, "1").removeprefix("file://"))
    weights = place / "backbone.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(BackboneError, match="changed or damaged"):
        registry.download(f"{shop.name}@champion", tmp_path / "target")
    assert not (tmp_path / "target").exists()


# --- tracking


def only_run(server: MlflowClient, run_id: str | None) -> Any:
    assert run_id is not None
    return server.get_run(run_id)


def test_tracked_step_records_everything(server: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_RUN_ID", "d-1")
    listener = RecordingReporter()
    parameters = {"pretraining": {"steps": 20, "seeds": [0, 1], "note": "n" * 2000}}
    with registry.track_step("pretraining", parameters, {"dagster/asset_key": "pretraining"}, listener) as run:
        run.reporter.info("hello")
        for step in range(30):
            run.reporter.metrics({"loss": 1.0 / (step + 1)}, step=step)
        time.sleep(0.4)  # for a sample of the system metrics
        numbers = {"loss": 0.03, "num_runs": 1, "done": True, "name": "x"}
        run.finish(Summary(numbers, [{"a": 1}], b"\x89PNG", ["careful"]), "abc.dir")

    found = only_run(server, run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "pretraining"
    assert server.get_experiment(found.info.experiment_id).name == "geokr"
    assert found.data.params["pretraining.steps"] == "20"
    assert found.data.params["pretraining.seeds"] == "[0, 1]"
    assert len(found.data.params["pretraining.note"]) == 500
    assert len(server.get_metric_history(run.run_id, "loss")) == 31
    # The closing figure ends the curve: at another step it would bend it, or MLflow would show the last point instead.
    assert [point.step for point in server.get_metric_history(run.run_id, "loss") if point.value == 0.03] == [29]
    assert found.data.metrics["loss"] == 0.03
    assert found.data.metrics["num_runs"] == 1
    assert "done" not in found.data.metrics
    assert any(name.startswith("system/") for name in found.data.metrics)
    assert found.data.tags["geokr/step"] == "pretraining"
    assert found.data.tags["geokr/data_version"] == "abc.dir"
    assert found.data.tags["dagster/run_id"] == "d-1"
    assert found.data.tags["dagster/asset_key"] == "pretraining"
    assert {info.path for info in server.list_artifacts(run.run_id)} == {
        "params.json", "summary.json", "table.csv", "preview.png", "log.txt",
    }  # fmt: skip
    place = Path(server.download_artifacts(run.run_id, "params.json"))
    assert json.loads(place.read_text(encoding="utf-8")) == parameters
    assert listener.infos == ["hello"]
    assert len(listener.points) == 30


def test_failed_step_is_a_failed_run_and_the_error_passes_on(server: MlflowClient) -> None:
    runs = []

    def fail() -> None:
        with registry.track_step("chips", {}, {}, RecordingReporter()) as run:
            runs.append(run.run_id)
            run.reporter.metrics({"loss": 1.0}, step=1)
            raise ValueError("no such band")

    with pytest.raises(ValueError, match="no such band"):
        fail()
    found = only_run(server, runs[0])
    assert found.info.status == "FAILED"
    assert found.data.tags["geokr/error"] == "ValueError: no such band"
    assert found.data.metrics["loss"] == 1.0, "the curve up to the failure is lost"


def test_interrupted_step_is_a_killed_run(server: MlflowClient) -> None:
    with pytest.raises(KeyboardInterrupt), registry.track_step("chips", {}, {}, RecordingReporter()) as run:
        raise KeyboardInterrupt
    assert only_run(server, run.run_id).info.status == "KILLED"


def test_a_step_that_is_gone_on_with_goes_on_with_its_run(server: MlflowClient) -> None:
    """A killed training that is resumed has one curve, not two halves in two runs."""

    def trained(mark: str, first: int, last: int, *, dies: bool = False) -> str | None:
        with registry.track_step(
            "pretraining", {"steps": 6}, {registry.FINGERPRINT_TAG: mark}, RecordingReporter()
        ) as run:
            for step in range(first, last + 1):
                run.reporter.metrics({"loss": 1.0 / step}, step)
            begun.append(run.run_id)
            if dies:
                raise KeyboardInterrupt
            return run.run_id

    begun: list[str | None] = []
    with pytest.raises(KeyboardInterrupt):
        trained("same", 1, 4, dies=True)
    resumed = trained("same", 3, 6)  # from its checkpoint at step 2
    assert resumed == begun[0]
    assert only_run(server, resumed).info.status == "FINISHED"
    assert "geokr/error" not in only_run(server, resumed).data.tags
    assert {m.step for m in server.get_metric_history(str(resumed), "loss")} == {1, 2, 3, 4, 5, 6}
    assert trained("same", 1, 6) != resumed, "a finished run is history"
    with pytest.raises(KeyboardInterrupt):
        trained("same", 1, 2, dies=True)
    assert trained("other parameters", 1, 6) not in begun[:-1]


def test_a_run_that_somebody_still_runs_is_left_alone_and_lines_of_both_attempts_stay(server: MlflowClient) -> None:
    tags = {registry.FINGERPRINT_TAG: "same"}
    with (
        registry.track_step("pretraining", {}, tags, RecordingReporter()) as running,
        registry.track_step("pretraining", {}, tags, RecordingReporter()) as beside,
    ):
        assert beside.run_id != running.run_id, "two processes would draw one curve"
    with pytest.raises(KeyboardInterrupt), registry.track_step("pretraining", {}, tags, RecordingReporter()) as first:
        first.reporter.warning("the first half")
        raise KeyboardInterrupt
    # As kill -9 leaves it: it says that it is running, of a process that is gone.
    server.update_run(str(first.run_id), status="RUNNING")
    server.set_tag(str(first.run_id), "geokr/process", f"{platform.node()}/{os.getpid()}/1.00")
    with registry.track_step("pretraining", {}, tags, RecordingReporter()) as second:
        second.reporter.warning("the second half")
    assert second.run_id == first.run_id
    logs = {item.path for item in server.list_artifacts(str(first.run_id)) if item.path.startswith("log")}
    assert logs == {"log.txt", "log_attempt_2.txt"}


def test_a_run_of_another_machine_is_gone_on_with_once_it_is_silent(server: MlflowClient) -> None:
    tags = {registry.FINGERPRINT_TAG: "elsewhere"}
    with pytest.raises(KeyboardInterrupt), registry.track_step("pretraining", {}, tags, RecordingReporter()) as first:
        raise KeyboardInterrupt
    server.update_run(str(first.run_id), status="RUNNING")
    server.set_tag(str(first.run_id), "geokr/process", "another-machine/1/1.00")
    with registry.track_step("pretraining", {}, tags, RecordingReporter()) as beside:
        assert beside.run_id != first.run_id
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geokr_core.tracking.runs._SILENCE_SECONDS", 0.0)
        with registry.track_step("pretraining", {}, tags, RecordingReporter()) as second:
            assert second.run_id == first.run_id


def test_absent_server_is_a_warning_and_the_step_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    listener = RecordingReporter()
    started = time.monotonic()
    with registry.track_step("pretraining", {"a": 1}, {}, listener) as run:
        run.reporter.metrics({"loss": 1.0}, step=1)
        run.finish(Summary({"loss": 1.0}), "abc.dir")
    assert time.monotonic() - started < 40
    assert (run.run_id, run.url) == (None, None)
    assert len(listener.warnings) == 1
    assert "http://127.0.0.1:9" in listener.warnings[0]
    assert "is kept in" in listener.warnings[0]
    assert listener.points == [(1, {"loss": 1.0})]


def test_server_lost_midway_is_one_warning_and_the_step_goes_on(
    server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = RecordingReporter()

    def lost(*_: object, **__: object) -> None:
        raise MlflowException("connection reset")

    with registry.track_step("pretraining", {}, {}, listener) as run:
        monkeypatch.setattr(MlflowClient, "log_batch", lost)
        for step in range(1200):
            run.reporter.metrics({"loss": 1.0}, step=step)
        run.finish(Summary({"loss": 0.5}), "abc.dir")
        monkeypatch.undo()
    assert len(listener.warnings) == 1
    assert "was lost: connection reset" in listener.warnings[0]
    # The server came back before the run ended: nothing is missing, and nothing is left behind.
    found = server.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["geokr/data_version"] == "abc.dir"
    assert len(server.get_metric_history(run.run_id, "loss")) == 1201
    assert any("is back" in message for message in listener.infos)
    assert not list((tmp_path / "spool").rglob("records.jsonl"))


def test_what_a_run_kept_is_delivered_by_the_next_one(
    server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise MlflowException("connection reset")

    with monkeypatch.context() as away, registry.track_step("pretraining", {}, {}, RecordingReporter()) as run:
        for name in ("log_batch", "log_artifact", "log_text", "set_terminated"):
            away.setattr(MlflowClient, name, lost)
        run.reporter.metrics({"loss": 2.0}, step=7)
        run.reporter.picture("examples/a.png", b"a picture")
        run.finish(Summary({"loss": 1.0}), "abc.dir")
    assert server.get_run(run.run_id).info.status == "RUNNING"
    gone = tmp_path / "spool" / next((tmp_path / "spool").glob("*")).name / "0123456789abcdef0123456789abcdef"
    gone.mkdir()
    (gone / "records.jsonl").write_text(
        '{"kind": "end", "key": "k", "status": "FINISHED", "end_ms": 1, "error": null}\n{"kind": "half'
    )
    listener = RecordingReporter()
    with registry.track_step("pretraining", {}, {}, listener):
        pass
    assert server.get_run(run.run_id).info.status == "FINISHED"
    assert [(m.step, m.value) for m in server.get_metric_history(run.run_id, "loss")] == [(7, 2.0), (7, 1.0)]
    assert [info.path for info in server.list_artifacts(run.run_id, "examples")] == ["examples/a.png"]
    # A run that no longer exists cannot be delivered to, and must not keep others from being tracked.
    assert any("not taken" in warning for warning in listener.warnings)


@pytest.mark.parametrize("back", ["meanwhile", "later"])
def test_a_run_that_begins_while_the_server_is_away_is_opened_when_it_is_back(
    back: str, server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dies(BaseException):
        pass

    tags = {registry.FINGERPRINT_TAG: "f1"}
    with pytest.raises(Dies), registry.track_step("pretraining", {"steps": 2}, tags, RecordingReporter()) as first:
        first.reporter.metrics({"loss": 2.0}, step=1)
        raise Dies
    listener = RecordingReporter()

    def refused(*_: object, **__: object) -> None:
        raise MlflowException("connection refused")

    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "get_experiment_by_name", refused)
        with registry.track_step("pretraining", {"steps": 2}, tags, listener) as run:
            assert (run.run_id, run.url) == (None, None)
            run.reporter.metrics({"loss": 1.0}, step=2)
            run.reporter.picture("examples/a.png", b"a picture")
            run.finish(Summary({"train_kl": 0.5}), "abc.dir")
            if back == "meanwhile":
                away.undo()
    assert len(listener.warnings) == 1
    assert any("is back" in message for message in listener.infos) == (back == "meanwhile")
    registry.deliver_kept(RecordingReporter())
    # The curve of the run that was killed goes on in it, and nothing is left behind.
    found = server.get_run(first.run_id)
    assert found.info.status == "FINISHED"
    assert [(m.step, m.value) for m in server.get_metric_history(first.run_id, "loss")] == [(1, 2.0), (2, 1.0)]
    assert found.data.metrics["train_kl"] == 0.5
    assert found.data.params["steps"] == "2"
    assert [info.path for info in server.list_artifacts(first.run_id, "examples")] == ["examples/a.png"]
    assert registry.deliver_kept(RecordingReporter()) == 0
    assert not list((tmp_path / "spool").rglob("records.jsonl"))


def test_a_run_that_was_opened_before_the_server_was_lost_again_is_not_opened_twice(
    server: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise MlflowException("connection reset")

    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "log_dict", lost)  # the run is there, its parameters are not yet all told
        with registry.track_step("pretraining", {"steps": 2}, {"mine": "twice"}, RecordingReporter()) as run:
            run.reporter.metrics({"loss": 1.0}, step=1)
    registry.deliver_kept(RecordingReporter())
    experiment = server.get_experiment_by_name(registry.EXPERIMENT)
    (found,) = server.search_runs([experiment.experiment_id], "tags.mine = 'twice'")
    assert found.info.status == "FINISHED"
    assert [info.path for info in server.list_artifacts(found.info.run_id)][-1] == "params.json"


def test_what_was_half_delivered_goes_to_its_run_even_if_that_was_gone_on_with_since(
    server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = {registry.FINGERPRINT_TAG: "half"}
    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "get_experiment_by_name", _refused)
        with registry.track_step("pretraining", {}, tags, RecordingReporter()) as first:
            first.reporter.metrics({"loss": 3.0}, step=1)
            first.reporter.picture("examples/a.png", b"a picture")
    (records,) = (tmp_path / "spool").rglob("records.jsonl")
    records.write_text(re.sub(r"\n[^\n]*\"kind\": \"end\"[^\n]*", "", records.read_text()))  # as a kill leaves it
    mark = '"geokr/process": "' + platform.node() + "/1/1.00"
    records.write_text(re.sub(r'"geokr/process": "[^"]*', mark, records.read_text()))
    with monkeypatch.context() as flaky:
        flaky.setattr(MlflowClient, "log_batch", _fails_with_metrics(MlflowClient.log_batch))
        with registry.track_step("pretraining", {}, tags, RecordingReporter()) as second:
            pass
    registry.deliver_kept(RecordingReporter())
    assert [(m.step, m.value) for m in server.get_metric_history(str(second.run_id), "loss")] == [(1, 3.0)]
    assert [info.path for info in server.list_artifacts(str(second.run_id), "examples")] == ["examples/a.png"]
    assert server.get_run(str(second.run_id)).data.tags["geokr/attempt"] == "2"
    assert not list((tmp_path / "spool").rglob("records.jsonl"))


def _refused(*_: object, **__: object) -> None:
    raise MlflowException("connection refused")


def _fails_with_metrics(log_batch: Callable[..., Any]) -> Callable[..., Any]:
    def flaky(client: MlflowClient, run_id: str, metrics: Sequence[Any] = (), **others: Any) -> Any:
        if metrics:
            raise MlflowException("timed out")
        return log_batch(client, run_id, **others)

    return flaky


def test_a_run_is_known_once_it_could_be_opened(server: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geokr_core.tracking.delivery._RETRY_SECONDS", 0.0)
    monkeypatch.setattr("geokr_core.tracking.tracked_run._FLUSH_SECONDS", 0.0)
    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "get_experiment_by_name", _refused)
        opened = registry.track_step("pretraining", {}, {}, RecordingReporter())
        run = opened.__enter__()
    assert run.run_id is None
    run.reporter.metrics({"loss": 1.0}, step=1)
    assert server.get_run(str(run.run_id)).info.status == "RUNNING"
    assert run.url == f"runs:/{run.run_id}"
    until = time.monotonic() + 30
    while not server.get_metric_history(str(run.run_id), "system/cpu_utilization_percentage"):
        assert time.monotonic() < until, "nothing shows that somebody runs it"
        time.sleep(0.1)
    opened.__exit__(None, None, None)
    assert server.get_run(str(run.run_id)).info.status == "FINISHED"


def test_a_folder_that_cannot_be_written_costs_the_records_and_not_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("GEOKR_SPOOL", str(tmp_path / "a_file"))
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", _refused)
    listener = RecordingReporter()
    with registry.track_step("pretraining", {}, {}, listener) as run:
        run.reporter.metrics({"loss": 1.0}, step=1)
    assert any("nothing is kept for MLflow" in warning for warning in listener.warnings)


def test_records_whose_opening_was_torn_are_not_lost(
    server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "get_experiment_by_name", _refused)
        with registry.track_step("pretraining", {}, {}, RecordingReporter()) as run:
            run.reporter.metrics({"loss": 5.25}, step=1)
    (records,) = (tmp_path / "spool").rglob("records.jsonl")
    records.write_text("\n{" + records.read_text().lstrip("\n"))  # the first line is no longer JSON
    registry.deliver_kept(RecordingReporter())
    experiment = server.get_experiment_by_name(registry.EXPERIMENT)
    (found,) = server.search_runs([experiment.experiment_id], "metrics.loss = 5.25")
    assert found.info.run_name == "unknown step"
    assert found.info.status == "FINISHED"


@pytest.mark.slow
def test_a_server_that_is_stopped_and_started_again_misses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("geokr_core.tracking.tracked_run._FLUSH_SECONDS", 0.0)
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", str(tmp_path / "artifacts"),
    ]  # fmt: skip

    @contextmanager
    def serving() -> Iterator[None]:
        with (tmp_path / "server.log").open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(480):
                with suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=1):  # noqa: S310
                    break
                time.sleep(0.25)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)

    listener = RecordingReporter()
    with ExitStack() as first:
        first.enter_context(serving())
        with registry.track_step("pretraining", {"steps": 3}, {}, listener) as run:
            assert run.run_id is not None
            run.reporter.metrics({"loss": 3.0}, step=1)
            first.close()
            for step in (2, 3):
                run.reporter.metrics({"loss": 4.0 - step}, step=step)
            run.reporter.picture("examples/a.png", b"a picture")
            run.finish(Summary({"train_kl": 0.5}, picture_png=b"curves"), "abc.dir")
    assert len(listener.warnings) == 1
    assert "is kept in" in listener.warnings[0]
    with pytest.raises(RegistryError):
        registry.deliver_kept(RecordingReporter())
    with serving():
        assert registry.deliver_kept(RecordingReporter()) > 3
        client = MlflowClient(tracking_uri=uri)
        found = client.get_run(run.run_id)
        assert found.info.status == "FINISHED"
        assert found.data.metrics["train_kl"] == 0.5
        assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")] == [
            (1, 3.0),
            (2, 2.0),
            (3, 1.0),
        ]
        paths = {info.path for info in client.list_artifacts(run.run_id)}
        assert {"examples", "preview.png", "summary.json"} <= paths


def test_passwords_in_the_tracking_uri_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # saves seconds
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")
    listener = RecordingReporter()
    with registry.track_step("pretraining", {}, {}, listener):
        pass
    assert "127.0.0.1:9" in listener.warnings[0]
    assert "s3cret" not in listener.warnings[0]


def test_points_of_curves_are_sent_when_they_are_flushed(server: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geokr_core.tracking.tracked_run._FLUSH_SECONDS", float("inf"))
    with registry.track_step("pretraining", {}, {}, RecordingReporter()) as run:
        assert run.run_id is not None
        run.reporter.metrics({"loss": 1.0}, step=1)
        assert server.get_metric_history(run.run_id, "loss") == []
        run.reporter.flush()
        assert [point.step for point in server.get_metric_history(run.run_id, "loss")] == [1]


def test_link_to_the_run_goes_where_people_open_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    with registry.track_step("chips", {}, {}, RecordingReporter()) as run:
        assert run.url == f"runs:/{run.run_id}"
    monkeypatch.setenv("GEOKR_MLFLOW_UI_URL", "https://mlflow.example.org/")
    with registry.track_step("chips", {}, {}, RecordingReporter()) as run:
        assert str(run.url).startswith("https://mlflow.example.org/#/experiments/")
        assert str(run.url).endswith(f"/runs/{run.run_id}")


def test_git_commit_is_told_with_whether_it_is_what_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert registry.git_sha() == "unknown"
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    (tmp_path / "f").write_text("1", encoding="utf-8")
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "add", "f"], check=True)
    subprocess.run(["git", *identity, "commit", "-qm", "x"], check=True)
    clean = registry.git_sha()
    assert len(clean) == 40
    (tmp_path / "untracked").write_text("1", encoding="utf-8")
    assert registry.git_sha() == clean
    (tmp_path / "f").write_text("2", encoding="utf-8")
    assert registry.git_sha() == f"{clean}+dirty"


@pytest.mark.slow
def test_two_processes_may_create_the_database_at_once(tmp_path: Path) -> None:
    code = """
from geokr_core.tracking.tracked_run import track_step
from geokr_core.step.reporter import RecordingReporter
listener = RecordingReporter()
with track_step("chips", {}, {}, listener) as run:
    pass
assert run.run_id, listener.warnings
"""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'fresh.db'}", "PATH": "/usr/bin:/bin"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [(process.communicate(timeout=300)[1], process.returncode)[1] for process in both] == [0, 0]
