"""The table of task kinds: what a kind says of itself is all that the chain needs, also where a package brings it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from geokr_core.backbone.build import build_bundle
from geokr_core.backbone.config import BackboneConfig
from geokr_core.errors import ConfigError
from geokr_core.evaluation.charts import comparison_chart
from geokr_core.evaluation.config import Criterion, EvaluationConfig
from geokr_core.evaluation.evaluate import evaluate
from geokr_core.evaluation.metrics import Metric, TaskMetrics
from geokr_core.evaluation.output import Judged
from geokr_core.evaluation.scorecard import score_backbone
from geokr_core.evaluation.statistics import differences, headline_rows, label_efficiency, summarise
from geokr_core.evaluation.task_kinds import KINDS, DetectionConfig, TaskConfig, kind_of
from geokr_core.pictures.charts import initialisation_styles
from geokr_core.registry.config import ChampionConfig
from geokr_core.registry.promotion import decide
from geokr_core.report.headline import headline, primaries
from geokr_core.report.tasks import difference_tables, losses, score_tables, task_sections
from geokr_core.step.files import read_json, write_json
from geokr_core.step.plugins import plugins
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr, make_pretraining

TOY = '''
"""A kind of task of somebody's own: how far a network is from a number."""

from pydantic import Field

from geokr_core.evaluation.cells import Measurement, Score
from geokr_core.evaluation.metrics import Metric
from geokr_core.evaluation.task_kinds import TaskConfig, TaskKind


class GuessConfig(TaskConfig):
    """A number to be guessed."""

    number: float = Field(0.5, ge=0, le=1)


class Guess:
    def __init__(self, task, evaluation):
        self.name, self.data_version, self.bands = task.name, "d.dir", ("red", "green", "blue")
        self.notes, self.budget, self.number = ("a note",), {"guesses": 1}, task.number

    def settings(self, cell):
        return {"number": self.number}

    def require(self, cell):
        pass

    def measure(self, cell, start):
        miss = abs(self.number - (0.4 if cell.initialisation == "geokr" else 0.1)) + 0.001 * cell.seed
        scores = (Score("miss", miss, miss - 0.001, miss + 0.001), Score("luck", 0.5, 0.4, 0.6))
        return Measurement(scores, 10, 1.0, ("a", "b"), (), {"miss": (miss, None)}, (miss,) * 200)


KIND = TaskKind(
    opens="geokr_toy:Guess",
    parameters=GuessConfig,
    metrics=(Metric("miss", "miss of the number", higher_is_better=False),),
    metrics_per_class=(Metric("miss", "miss", higher_is_better=False),),
)
WRONG = 3
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with two entry points, installed for the time of a test."""
    site = tmp_path / "site"
    (site / "geokr_toy-1.dist-info").mkdir(parents=True)
    (site / "geokr_toy.py").write_text(TOY)
    (site / "geokr_toy-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: geokr-toy\nVersion: 1\n")
    (site / "geokr_toy-1.dist-info" / "entry_points.txt").write_text(
        "[geokr.tasks]\nguess = geokr_toy:KIND\nbroken = geokr_toy:WRONG\nabsent = geokr_toy:NOTHING\n"
    )
    monkeypatch.syspath_prepend(str(site))
    plugins.cache_clear()
    yield site
    plugins.cache_clear()
    sys.modules.pop("geokr_toy", None)


def config_of(folder: Path, *tasks: dict[str, object], **changes: object) -> EvaluationConfig:
    return EvaluationConfig.model_validate({"folder": folder, "tasks": tasks, "threads": 1, **changes})


def test_a_task_is_read_by_the_parameters_of_its_kind() -> None:
    config = config_of(Path(), {"name": "a"}, {"name": "b", "kind": "detection", "detector": "retinanet"})

    assert [type(task) for task in config.tasks] == [KINDS["scene_classification"].parameters, DetectionConfig]
    assert isinstance(TaskConfig(name="b", kind="detection"), DetectionConfig)
    assert config.model_dump(mode="json")["tasks"][1]["detector"] == "retinanet"


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"kind": "segmentaton"}, "did you mean 'segmentation'"),
        ({"kind": "tracking"}, "known: scene_classification, land_cover_mapping"),
        ({"steps": 3}, "'steps' is of no use to a task of kind 'scene_classification'"),
        ({"kind": "detection", "detecter": "retinanet"}, "no parameter 'detecter'; did you mean 'detector'"),
        ({"kind": "segmentation", "batch_size": 1}, "greater than or equal to 2"),
        ({"kind": "detection", "batch_size": 1, "batchnorm": "learned"}, "batch_size` of 2 or more"),
    ],
)
def test_what_a_kind_does_not_know_is_refused_at_load(task: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config_of(Path(), {"name": "set", **task})


def test_folds_and_a_yardstick_that_has_one_split_are_refused_together() -> None:
    task = {"name": "set", "folds": 5}
    with pytest.raises(ValidationError, match="'set' has `folds`, but torchgeo_bench_knn5"):
        EvaluationConfig.model_validate(
            {"folder": Path(), "tasks": [task], "protocols": ["linear_probe", "torchgeo_bench_knn5"]}
        )


def test_one_set_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="'set' is named more than once"):
        config_of(Path(), {"name": "set"}, {"name": "set", "kind": "detection"})


def test_a_criterion_must_name_a_task_and_one_of_its_metrics() -> None:
    config = config_of(Path(), {"name": "boxes", "kind": "detection"})
    config.require_measured(Criterion(task="boxes", metric="ap50"))

    with pytest.raises(ValueError, match="did you mean 'boxes'"):
        config.require_measured(Criterion(task="boxs"))
    with pytest.raises(ValueError, match=r"'ap_50' is none that boxes gives \(map, ap50\); did you mean 'ap50'"):
        config.require_measured(Criterion(task="boxes", metric="ap_50"))


def test_the_table_needs_neither_torch_nor_rasters() -> None:
    code = (
        "import sys, geokr_core.evaluation.config; "
        "print(sorted({'torch', 'rasterio', 'pandas', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_entry_point_that_is_no_kind_is_refused_by_name(toy: Path) -> None:
    with pytest.raises(ConfigError, match="'broken' names 3"):
        kind_of("broken")
    with pytest.raises(ConfigError, match="'absent' of geokr_toy:NOTHING cannot be imported"):
        kind_of("absent")
    with pytest.raises(ConfigError, match="'nowhere'"):
        kind_of("nowhere")


def test_a_kind_of_an_installed_package_works_from_the_parameter_file_to_the_promotion(
    toy: Path, tmp_path: Path
) -> None:
    dataset = make_levir_kr(tmp_path, num_chips=16)
    pretraining = make_pretraining(tmp_path / "pretraining", dataset, seed=30)
    build_bundle(BackboneConfig(), dataset.folder, pretraining, tmp_path / "backbone", RecordingReporter())
    config = config_of(tmp_path, {"name": "luck", "kind": "guess", "number": 0.4}, seeds=[0, 1], label_fractions=[1.0])
    out, cells = tmp_path / "out", tmp_path / "cells"
    summary = evaluate(config, tmp_path / "backbone", pretraining, out, cells, RecordingReporter())

    assert summary.numbers["luck/fine_tune/last/all/geokr/miss"] == pytest.approx(0.0005)
    sys.modules.pop("geokr_toy")
    judged = Judged.read(out)
    styles = initialisation_styles(judged.results["initialisation"])
    (primary,) = primaries(judged)
    text = headline(judged, primary)
    assert "a miss of the number (less is better) of 0.001" in text
    assert "GeoKR is ahead by −0.300" in text
    assert losses(judged, styles) == []
    assert [table.title for table in score_tables(judged, styles)] == [
        "luck: miss of the number, mean and 95 % interval over seeds",
        "luck: luck, mean and 95 % interval over seeds",
    ]
    assert difference_tables(judged, styles)[0].rows[0][1][0].verdict == "ahead"  # type: ignore[union-attr]
    assert task_sections(judged, styles)["per_class"][0]["table"].title == "luck: miss"

    criterion = Criterion(task="luck", protocol="fine_tune", metric="miss")
    config.require_measured(criterion)
    card = score_backbone(tmp_path / "backbone", config, (criterion,), cells, RecordingReporter())
    score = card.scores[criterion.name]
    worse = type(score)(
        {seed: value + 0.1 for seed, value in score.per_seed.items()},
        score.data_version,
        score.settings,
        tuple(value + 0.1 for value in score.replicates),
        higher_is_better=False,
    )
    rule = ChampionConfig(primary=(criterion,))
    better, lost = (type(card)({criterion.name: each}) for each in (score, worse))
    assert decide(rule, better, lost).promoted
    assert not decide(rule, lost, better).promoted
    assert type(card).from_text(card.as_text()) == card


def unknown_metric() -> pd.DataFrame:
    rows = [
        {
            "task": "fields",
            "initialisation": name,
            "protocol": "fine_tune",
            "features": "last",
            "labels_per_class": "all",
            "label_fraction": 1.0,
            "seed": seed,
            "metric": "sharpness",
            "value": value,
            "ci_low": value,
            "ci_high": value,
        }
        for name, value in (("geokr", 0.7), ("random", 0.5))
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows)


def test_a_metric_that_no_table_knows_never_ends_the_report() -> None:
    results = unknown_metric()
    nothing = pd.DataFrame()
    judged = Judged(results, summarise(results), differences(results), nothing, nothing, {}, {}, (), {}, {})
    styles = initialisation_styles(results["initialisation"])

    assert headline_rows(results)["metric"].tolist() == ["sharpness"] * 4
    assert comparison_chart(judged.summary, "png").startswith(b"\x89PNG")
    assert "reaches a sharpness of 0.700" in headline(judged, primaries(judged)[0])
    assert [table.title for table in difference_tables(judged, styles)] == ["fields: sharpness"]
    assert len(score_tables(judged, styles)) == 1


def test_less_of_an_error_is_reached_from_above() -> None:
    shares = (0.1, 0.5, 1.0)
    rows = [
        {
            "task": "t",
            "protocol": "fine_tune",
            "features": "last",
            "metric": "miss",
            "initialisation": name,
            "label_fraction": share,
            "labels_per_class": f"{share:.0%}",
            "seed": 0,
            "value": value,
        }
        for name, values in (("geokr", (0.5, 0.3, 0.2)), ("random", (0.9, 0.6, 0.3)))
        for share, value in zip(shares, values, strict=True)
    ]
    metrics = TaskMetrics({"t": (Metric("miss", "miss", higher_is_better=False),)})
    found = label_efficiency(pd.DataFrame(rows), metrics).iloc[0]

    assert (found["target"], found["needed_label_fraction"]) == (0.3, pytest.approx(0.5))


def test_a_kept_cell_that_was_altered_or_belongs_to_another_is_measured_again(toy: Path, tmp_path: Path) -> None:
    dataset = make_levir_kr(tmp_path, num_chips=16)
    pretraining = make_pretraining(tmp_path / "pretraining", dataset, seed=30)
    build_bundle(BackboneConfig(), dataset.folder, pretraining, tmp_path / "backbone", RecordingReporter())
    config = config_of(tmp_path, {"name": "luck", "kind": "guess"}, seeds=[0], label_fractions=[1.0])
    out, cells = tmp_path / "out", tmp_path / "cells"

    def run() -> tuple[RecordingReporter, bytes]:
        reporter = RecordingReporter()
        evaluate(config, tmp_path / "backbone", pretraining, out, cells, reporter)
        return reporter, (out / "results.parquet").read_bytes()

    _, before = run()
    first, second = sorted(cells.iterdir())
    whole = first.read_bytes()
    content = read_json(first)
    content["measurement"]["scores"][0]["value"] = 0.9999
    damages = [
        lambda: write_json(first, content),
        lambda: first.write_bytes(second.read_bytes()),
        lambda: first.write_bytes(b"\xff\xfe" + whole),
        lambda: first.write_bytes(b""),
        lambda: first.write_text("[]"),
        lambda: first.write_bytes(whole[: len(whole) // 2]),
    ]
    for damage in damages:
        damage()
        reporter, after = run()
        assert any(first.name in warning and "measured again" in warning for warning in reporter.warnings)
        assert after == before
        assert not run()[0].warnings


def test_a_costly_task_may_be_fine_tuned_from_fewer_starts_than_the_others() -> None:
    tasks = [
        {"name": "scenes", "fine_tune_initialisations": ["random", "geokr", "shuffled"]},
        {"name": "masks", "kind": "segmentation", "fine_tune_initialisations": []},
        {"name": "boxes", "kind": "detection"},
    ]
    starts = ["random", "geokr", "shuffled", "colour_histogram"]
    given = {"folder": ".", "tasks": tasks, "initialisations": starts, "fine_tune_initialisations": ["geokr"]}
    config = EvaluationConfig.model_validate(given)
    tuned = {task.name: [name for name in starts if config.is_fine_tuned(name, task)] for task in config.tasks}

    assert tuned == {"scenes": ["random", "geokr", "shuffled"], "masks": [], "boxes": ["geokr"]}
    with pytest.raises(ValidationError, match="'imagenet' is none of `initialisations`"):
        EvaluationConfig.model_validate({**given, "tasks": [{**tasks[1], "fine_tune_initialisations": ["imagenet"]}]})
