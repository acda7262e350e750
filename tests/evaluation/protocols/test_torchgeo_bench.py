"""The protocols of torchgeo-bench, by their definitions: against scikit-learn always, against torchgeo-bench where it is installed."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.bench_rows import COLUMNS, bench_rows
from geokr_core.evaluation.cells import Cell, Start
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.measuring import Measured
from geokr_core.evaluation.opening import open_task
from geokr_core.evaluation.protocols.probe import stratified_holdout
from geokr_core.evaluation.protocols.torchgeo_bench import C_RANGE, accuracy_interval, knn5, linear
from geokr_core.testing import make_image_set

CLASSES = 4


def clouds(items: int, seed: int, spread: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (N, 12) around a centre a class, and labels."""
    centres = np.random.default_rng(0).normal(size=(CLASSES, 12))
    rng = np.random.default_rng(seed)
    labels = np.arange(items) % CLASSES
    return (centres[labels] + spread * rng.normal(size=(items, 12))).astype(np.float32), labels


def test_knn_is_that_of_five_euclidean_neighbours() -> None:
    (known, labels), (asked, _) = clouds(200, 1), clouds(300, 2)
    theirs = KNeighborsClassifier(5, algorithm="brute").fit(known, labels).predict(asked)
    assert (knn5(known, labels, asked).predicted == theirs).all()
    assert (knn5(known[:3], labels[:3], asked).predicted < 3).all()  # fewer items than neighbours


def test_logistic_regression_is_that_of_the_c_that_is_best_on_held_out_items() -> None:
    (known, labels), (asked, truth) = clouds(160, 1), clouds(2000, 2)
    found = linear(known, labels, asked, CLASSES, seed=3)
    fitting, held_out = stratified_holdout(labels, 3, 0.2)
    assert (found.num_train, found.num_validation) == (len(fitting), len(held_out))
    scores = {
        float(c): LogisticRegression(C=c, max_iter=5000, tol=1e-8)
        .fit(known[fitting], labels[fitting])
        .score(known[held_out], labels[held_out])
        for c in np.logspace(*C_RANGE)
    }
    assert scores[found.best_c] == max(scores.values())
    theirs = LogisticRegression(C=found.best_c, max_iter=5000, tol=1e-8).fit(known, labels)
    assert abs((found.predicted == truth).mean() - theirs.score(asked, truth)) <= 0.002


def test_one_label_a_class_leaves_nothing_to_choose_c_on() -> None:
    known, labels = clouds(CLASSES, 1)
    with pytest.raises(EvaluationError, match="ask for 2 labels a class"):
        linear(known, labels, known, CLASSES, seed=0)


def test_the_interval_covers_the_share_and_depends_on_the_seed_alone() -> None:
    correct = np.arange(400) % 4 != 0
    low, high = accuracy_interval(correct, 0)
    assert 0.69 < low < 0.75 < high < 0.81
    assert accuracy_interval(correct, 0) == (low, high)
    assert accuracy_interval(correct, 1) != (low, high)


def test_a_cell_becomes_a_row_in_the_columns_of_torchgeo_bench(tmp_path: Path) -> None:
    make_image_set(tmp_path / "set", classes=("a", "b"), images_per_class=12)
    config = EvaluationConfig.model_validate(
        {"folder": tmp_path, "tasks": [{"name": "set"}], "protocols": ["torchgeo_bench_knn5", "torchgeo_bench_linear"]}
    )
    task = open_task(config.tasks[0], config)
    start = Start("random", 0, "squeezenet1_1", None, (0.5,) * 3, (0.2,) * 3)
    measured = []
    for protocol in config.protocols:
        cell = Cell("set", "random", protocol, "last", "all", 0)
        measured.append(Measured(cell, task.measure(cell, start), 1.0, digest="0123"))
    rows = bench_rows(measured, "squeezenet1_1")
    assert tuple(rows.columns) == COLUMNS
    assert list(rows["method"]) == ["knn5", "linear"]
    assert (rows["feature_dim"] == 512).all()
    assert rows["best_c"].notna().tolist() == [False, True]
    assert rows["metric_value"].between(rows["ci_lower"], rows["ci_upper"]).all()
    assert bench_rows([], "squeezenet1_1").empty


@pytest.mark.slow
def test_figures_are_those_of_torchgeo_bench_itself() -> None:
    """Within 0.2 points on the same features, by its own classes; skipped where it is not installed (Python 3.12)."""
    theirs = pytest.importorskip("torchgeo_bench.linear")
    results = pytest.importorskip("torchgeo_bench.results")
    import torch

    (known, labels), (asked, truth) = clouds(160, 1), clouds(2000, 2)
    found = linear(known, labels, asked, CLASSES, seed=0)
    model = theirs.LogisticRegression(C=found.best_c, max_iter=4000, tol=1e-6)
    model.fit(torch.from_numpy(known), torch.from_numpy(labels))
    assert abs((found.predicted == truth).mean() - (model.predict(torch.from_numpy(asked)) == truth).mean()) <= 0.002
    assert set(pd.DataFrame([results.EvaluationResult.__annotations__]).columns) == set(COLUMNS)
