"""A real MLflow on SQLite, bundles to register, and a shop that promotes them with made-up scores."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow_database import database, server  # noqa: F401  # fixtures

from geokr_core import registry
from geokr_core.backbone.build import build_bundle
from geokr_core.backbone.bundle import BUNDLE_FILES, verify_bundle
from geokr_core.backbone.config import BackboneConfig
from geokr_core.evaluation import output
from geokr_core.evaluation.config import Criterion, EvaluationConfig, TaskConfig
from geokr_core.evaluation.scorecard import CriterionScore, Scorecard
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.registry.config import ChampionConfig
from geokr_core.step.digests import data_version, file_md5
from geokr_core.step.files import read_json, write_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr, make_pretraining, redescribe

UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LevirKR:
    return make_levir_kr(tmp_path_factory.mktemp("store"), num_chips=24)


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


TODAY = "11111111111111111111111111111111.dir"
"""Data version of the labelled sets in a `Shop`."""

Scores = Sequence[float] | Mapping[str, Sequence[float]]
"""One value a seed, for every task or by task."""
CHAMPION = ChampionConfig(primary=({"task": "scenes"},))


def data_version_of_bundle(bundle: Path) -> str:
    """What identifies a bundle, whichever name it bears."""
    return file_md5(bundle / "backbone.safetensors")


def write_tables_of_an_evaluation(folder: Path) -> None:
    """What the card reads: one cell of each of two starts, the backbone behind ImageNet."""
    cell = {
        "task": "scenes",
        "protocol": "linear_probe",
        "features": "last",
        "labels_per_class": "all",
        "metric": "accuracy",
    }
    means = {"geokr": (0.81, 0.80, 0.82), "imagenet": (0.90, 0.89, 0.91)}
    rows = [
        {**cell, "initialisation": name, "mean": mean, "ci_low": low, "ci_high": high, "n_seeds": 2}
        for name, (mean, low, high) in means.items()
    ]
    pd.DataFrame(rows).to_csv(folder / output.SUMMARY, index=False)
    difference = {"contrast": "geokr - imagenet", "mean": -0.09, "ci_low": -0.10, "ci_high": -0.08, "n_seeds": 2}
    pd.DataFrame([{**cell, **difference, "items_overlap": False}]).to_csv(folder / output.DIFFERENCES, index=False)
    facts = {"scenes": {"kind": "scene_classification", "data_version": TODAY}}
    write_json(folder / output.DETAILS, {"tasks": facts, "cells": []})
    for name in (output.CONFUSION, output.SETTINGS):
        write_json(folder / name, {})


class Shop:
    """Promotes bundles of one model with made-up scores."""

    def __init__(self, name: str, bundles: Sequence[Path], folder: Path) -> None:
        self.name, self.bundles, self.folder = name, bundles, folder
        self.reporter = RecordingReporter()
        self.today, self.settings = TODAY, "settings"
        self.scores: dict[str, Scores] = {}
        self.scored: list[str] = []

    def bundle(self, number: int) -> Path:
        """The bundle under this shop's own model name."""
        folder = self.folder / f"backbone{number}"
        if not folder.exists():
            shutil.copytree(self.bundles[number], folder)
            redescribe(folder, model_name=self.name)
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
        write_tables_of_an_evaluation(inputs["evaluation"])
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
