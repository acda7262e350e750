"""The four kinds of task in one evaluation: what is written, what is kept, and what each start may be."""

import math
import shutil
from pathlib import Path

import pandas as pd
import pytest

from geokr_core.backbone.build import build_bundle
from geokr_core.backbone.config import BackboneConfig
from geokr_core.errors import BackboneError
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.evaluate import evaluate
from geokr_core.evaluation.learning.mask_task import MaskTask
from geokr_core.evaluation.output import Judged
from geokr_core.networks.network import build
from geokr_core.pictures.charts import initialisation_styles
from geokr_core.report.config import ReportConfig
from geokr_core.report.headline import Primary, headline
from geokr_core.report.page import write_report
from geokr_core.report.tasks import task_sections
from geokr_core.step.files import read_json, write_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_box_set, make_image_set, make_levir_kr, make_mask_set, make_pretraining

TASKS = (
    {"name": "scenes", "kind": "scene_classification", "image_size_px": 32},
    {"name": "masks", "kind": "segmentation", "crop_size_px": 32, "decoder_channels": 32, "show_images": True},
    {"name": "sky", "kind": "cloud_snow", "crop_size_px": 32, "decoder_channels": 32},
    {"name": "boxes", "kind": "detection", "image_size_px": 64, "decoder_channels": 32},
)


class Store:
    """Folders of one evaluation."""

    def __init__(self, made: Path, root: Path) -> None:
        self.made, self.out, self.cells = made, root / "evaluation", root / "cells"

    def run(self, **changes: object) -> RecordingReporter:
        fields = {
            "folder": self.made / "sets",
            "tasks": TASKS,
            "precision": "fp32",
            "initialisations": ["random", "geokr"],
            "protocols": ["fine_tune"],
            "labels_per_class": ["50%", "all"],
            "label_fractions": [0.5, 1.0],
            "seeds": [0],
            "fine_tune_steps": 2,
            "batch_size": 2,
            "threads": 1,
        }
        reporter = RecordingReporter()
        config = EvaluationConfig.model_validate(fields | changes)
        evaluate(config, self.made / "backbone", self.made / "pretraining", self.out, self.cells, reporter)
        return reporter


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    dataset = make_levir_kr(root, num_chips=16)
    make_pretraining(root / "pretraining", dataset, seed=30)
    build_bundle(BackboneConfig(), dataset.folder, root / "pretraining", root / "backbone", RecordingReporter())
    make_image_set(root / "sets" / "scenes", images_per_class=8)
    make_mask_set(root / "sets" / "masks")
    make_mask_set(root / "sets" / "sky", sky=True)
    make_box_set(root / "sets" / "boxes")
    return root


@pytest.fixture(scope="module")
def judged(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """All four tasks, to be read only."""
    store = Store(made, tmp_path_factory.mktemp("judged"))
    store.run()
    return store


def test_every_task_has_its_cells_metrics_and_provenance(judged: Store) -> None:
    results = pd.read_parquet(judged.out / "results.parquet")
    first = {"scenes": "accuracy", "masks": "miou", "sky": "miou", "boxes": "map"}

    for task, metric in first.items():
        rows = results[(results["task"] == task) & (results["metric"] == metric)]
        assert len(rows) == 4
        assert rows["value"].between(0, 1).all()
        assert set(rows["labels_per_class"]) == {"50%", "all"}
    assert set(results[results["task"] == "sky"]["metric"]) >= {"cloud_precision", "cloud_recall", "under_screening"}
    for column in ("cell", "code_version", "data_version", "backbone_version"):
        assert (results[column].str.len() > 4).all()
    assert set(results["cell"]) == {path.stem for path in judged.cells.iterdir()}


def test_tables_hold_differences_over_items_classes_and_labels(judged: Store) -> None:
    differences = pd.read_csv(judged.out / "differences.csv", dtype={"labels_per_class": str})
    first = differences[differences["metric"].isin(["accuracy", "miou", "map"])]
    assert first["items_ci_low"].notna().all()
    assert (first["items_ci_low"] <= first["items_ci_high"]).all()

    classes = pd.read_csv(judged.out / "per_class.csv")
    assert set(classes[classes["task"] == "boxes"]["class"]) == {"square", "bar"}
    assert set(classes[classes["task"] == "sky"]["class"]) == {"clear", "cloud", "thin_cloud", "shadow", "snow"}
    efficiency = pd.read_csv(judged.out / "label_efficiency.csv")
    assert set(efficiency["task"]) == {"scenes", "masks", "sky", "boxes"}


def test_a_costly_task_may_have_fewer_seeds_and_label_fractions_than_the_others(made: Path, tmp_path: Path) -> None:
    store = Store(made, tmp_path)
    costly = {**TASKS[1], "seeds": [0], "label_fractions": [1.0]}
    store.run(tasks=(costly, TASKS[2]), initialisations=["random"], seeds=[0, 1])
    results = pd.read_parquet(store.out / "results.parquet")
    cells = results[results["metric"] == "miou"].groupby("task").size()
    assert cells.to_dict() == {"masks": 1, "sky": 4}


def test_report_shows_budgets_notes_and_only_allowed_pictures(judged: Store) -> None:
    found = Judged.read(judged.out)
    sections = task_sections(found, initialisation_styles(found.results["initialisation"]))

    assert [page["task"] for page in sections["budgets"]] == ["scenes", "masks", "boxes", "sky"]
    assert any("2 steps of 2 crops" in str(fact) for page in sections["budgets"] for fact in page["facts"])
    assert {page["task"] for page in sections["galleries"]} == {"masks"}
    assert [page["task"] for page in sections["screening"]] == ["sky"]
    assert {page["task"] for page in sections["per_class"]} == {"boxes", "masks", "scenes", "sky"}
    primary = Primary("masks", "fine_tune", "last", "all", "miou")
    assert "reaches a mean IoU of" in headline(found, primary)


def test_the_page_holds_every_section_and_no_other_address(judged: Store, tmp_path: Path) -> None:
    pretraining = tmp_path / "pretraining"
    shutil.copytree(judged.made / "pretraining", pretraining)
    figures = {"train_kl": 0.4, "validation_kl": 0.5, "constant_kl": 1.1, "num_steps": 2}
    write_json(pretraining / "runs.json", [run | figures for run in read_json(pretraining / "runs.json")])
    history = {
        "variant": ["geokr"],
        "seed": [0],
        "step": [2],
        "train_kl": [0.4],
        "validation_kl": [0.5],
        "learning_rate": [1e-3],
    }
    pd.DataFrame(history).to_csv(pretraining / "history.csv", index=False)
    inputs = {
        "levir_kr": judged.made / "levir_kr",
        "pretraining": pretraining,
        "backbone": judged.made / "backbone",
        "evaluation": judged.out,
    }
    summary = write_report(ReportConfig(num_example_chips=0), inputs, tmp_path / "report", RecordingReporter())
    for name in ("report.html", "report.md"):
        text = (tmp_path / "report" / name).read_text(encoding="utf-8")
        for said in ("Every task at a glance", "Label efficiency", "square", "thin cloud", "2 steps of 2 crops"):
            assert said in text
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "Over-screened" in page
    assert page.count("data:image/png;base64,") >= 6
    assert "https:" not in page
    assert {"masks/geokr_miou", "boxes/gain_over_random", "scenes/random_accuracy"} <= set(summary.numbers)


def test_a_killed_sweep_goes_on_and_a_changed_task_repeats_its_own_cells(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(made, tmp_path)
    measured: list[str] = []
    measure = MaskTask.measure

    def counted(task: MaskTask, cell: object, start: object) -> object:
        if len(measured) == 1 and measured[0] != "past":
            raise KeyboardInterrupt
        measured.append(task.name)
        return measure(task, cell, start)  # type: ignore[arg-type]

    monkeypatch.setattr(MaskTask, "measure", counted)
    some = {"tasks": [TASKS[1], TASKS[2]], "initialisations": ["random"]}
    with pytest.raises(KeyboardInterrupt):
        store.run(**some)
    assert not store.out.exists()

    measured[:] = ["past"]
    store.run(**some)
    assert measured[1:] == ["masks", "sky", "sky"]
    measured[:] = ["past"]
    store.run(tasks=[{**TASKS[1], "steps": 3}, TASKS[2]], initialisations=["random"])
    assert measured[1:] == ["masks", "masks"]


def test_imagenet_weights_come_from_a_given_file_with_or_without_classifier(made: Path, tmp_path: Path) -> None:
    import torchvision

    weights = tmp_path / "squeezenet1_1.pth"
    import torch

    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), weights)
    store = Store(made, tmp_path)
    common = {"tasks": [TASKS[0]], "protocols": ["linear_probe", "knn"], "labels_per_class": ["all"]}
    store.run(**common, initialisations=["imagenet", "geokr"], imagenet_weights={"squeezenet1_1": weights})
    results = pd.read_parquet(store.out / "results.parquet")
    assert set(results["initialisation"]) == {"imagenet", "geokr"}
    assert set(results["protocol"]) == {"linear_probe", "knn"}
    assert "geokr - imagenet" in set(pd.read_csv(store.out / "differences.csv")["contrast"])
    assert "imagenet_weights" not in read_json(store.out / "evaluation.json")

    with pytest.raises(BackboneError, match=r"none\.pth: no such file.*imagenet_weights\.squeezenet1_1"):
        store.run(**common, initialisations=["imagenet"], imagenet_weights={"squeezenet1_1": tmp_path / "none.pth"})
    other = tmp_path / "other.pth"
    backbone_keys = {f"x.{key}": value for key, value in build("squeezenet1_1").state_dict().items()}
    torch.save(backbone_keys, other)
    with pytest.raises(BackboneError, match="does not fit"):
        store.run(**common, initialisations=["imagenet"], imagenet_weights={"squeezenet1_1": other})


def test_imagenet_weights_that_are_nowhere_are_named(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(BackboneError, match="the ImageNet weights of squeezenet1_1 are not there"):
        Store(made, tmp_path).run(tasks=[TASKS[0]], initialisations=["imagenet"])


def test_a_score_without_an_interval_is_none_in_the_kept_cell(judged: Store) -> None:
    for path in judged.cells.iterdir():
        for score in read_json(path)["measurement"]["scores"]:
            assert score["ci_low"] is None or math.isfinite(score["ci_low"])
