"""The evaluation as a whole: what it writes, that it resumes, and that it fails where it cannot judge."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from geokr_core.backbone.build import build_bundle
from geokr_core.backbone.bundle import open_bundle
from geokr_core.backbone.config import BackboneConfig
from geokr_core.errors import BackboneError, EvaluationError
from geokr_core.evaluation.cells import Cell, Measurement, Start
from geokr_core.evaluation.config import Criterion, EvaluationConfig
from geokr_core.evaluation.evaluate import evaluate
from geokr_core.evaluation.results import RESULT_COLUMNS
from geokr_core.evaluation.scorecard import score_backbone
from geokr_core.evaluation.starts import Starts
from geokr_core.evaluation.tasks.scene_classification import SceneClassification
from geokr_core.step.digests import data_version
from geokr_core.step.files import read_json, write_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_image_set, make_levir_kr, make_pretraining, record_files, redescribe


class Store:
    """Folders of one evaluation."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sets, self.backbone, self.pretraining = root / "sets", root / "backbone", root / "pretraining"
        self.out, self.cells = root / "evaluation", root / "cells"

    def run(self, config: EvaluationConfig) -> RecordingReporter:
        reporter = RecordingReporter()
        evaluate(config, self.backbone, self.pretraining, self.out, self.cells, reporter)
        return reporter


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, three pretraining runs (geokr 0 and 1, shuffled 0) and a labelled set. Nothing was learned."""
    root = tmp_path_factory.mktemp("made")
    dataset = make_levir_kr(root, num_chips=16)
    # Other seeds than those of the random networks: equal ones would be the very same weights.
    pretraining = make_pretraining(root / "pretraining", dataset, seed=30)
    runs = read_json(pretraining / "runs.json")
    for variant, seed in (("geokr", 1), ("shuffled", 0)):
        extra = make_pretraining(root / f"{variant}{seed}", dataset, seed=10 + seed + len(variant))
        shutil.move(extra / "geokr-seed0", pretraining / f"{variant}-seed{seed}")
        runs.append(runs[0] | {"variant": variant, "seed": seed, "folder": f"{variant}-seed{seed}"})
    write_json(pretraining / "runs.json", runs)
    record_files(pretraining)
    build_bundle(BackboneConfig(), dataset.folder, pretraining, root / "backbone", RecordingReporter())
    make_image_set(root / "sets" / "fields", images_per_class=12, contrast=0.04)
    return root


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    for name in ("backbone", "pretraining", "sets"):
        shutil.copytree(made / name, tmp_path / name)
    return Store(tmp_path)


def config_of(store: Store, **changes: object) -> EvaluationConfig:
    fields = {
        "folder": store.sets,
        "tasks": [{"name": "fields", "image_size_px": 32}],
        "precision": "fp32",
        "initialisations": ["random", "geokr", "shuffled", "colour_histogram"],
        "protocols": ["linear_probe"],
        "labels_per_class": [2, 4],
        "seeds": [0, 1],
        "fine_tune_steps": 2,
        "batch_size": 4,
        "threads": 1,
    }
    return EvaluationConfig.model_validate(fields | changes)


@pytest.fixture(scope="module")
def judged(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A finished evaluation, to be read only."""
    store = Store(tmp_path_factory.mktemp("judged"))
    store.sets, store.backbone, store.pretraining = made / "sets", made / "backbone", made / "pretraining"
    config = config_of(
        store, protocols=["linear_probe", "fine_tune"], features=["last", "multi"], fine_tune_labels_per_class=[4]
    )
    store.run(config)
    return store


def test_results_hold_every_cell_once_and_sorted(judged: Store) -> None:
    results = pd.read_parquet(judged.out / "results.parquet")
    cells = results[results["metric"] == "accuracy"]
    counts = cells.groupby(["initialisation", "protocol", "features"]).size().to_dict()

    assert tuple(results.columns) == RESULT_COLUMNS
    networks = ("geokr", "random", "shuffled")
    assert counts == (
        {(name, "linear_probe", features): 4 for name in networks for features in ("last", "multi")}
        | {(name, "fine_tune", "last"): 2 for name in networks}
        | {("colour_histogram", "linear_probe", "histogram"): 4}
    )
    keys = ["task", "initialisation", "protocol", "features", "labels_per_class", "seed", "metric"]
    assert not results.duplicated(keys).any()
    assert results[keys].to_numpy().tolist() == sorted(results[keys].to_numpy().tolist())
    assert results["value"].between(0, 1).all()
    assert (results["n"] == 18).all()
    assert set(results["backbone_version"]) == {data_version(judged.backbone)}
    assert set(results["data_version"]) == {data_version(judged.sets / "fields")}
    assert set(results["label_fraction"]) == {6 / 18, 12 / 18}


def test_tables_beside_the_results_agree_with_them(judged: Store) -> None:
    results = pd.read_parquet(judged.out / "results.parquet")
    probed = results.query("protocol == 'linear_probe' and features == 'last' and labels_per_class == '4'")
    accuracy = probed.query("metric == 'accuracy'").pivot_table(index="seed", columns="initialisation", values="value")
    metrics = read_json(judged.out / "metrics.json")
    table = pd.read_csv(judged.out / "differences.csv", dtype={"labels_per_class": str})
    row = table.query(
        "protocol == 'linear_probe' and features == 'last' and labels_per_class == '4' and metric == 'accuracy'"
        " and contrast == 'geokr - random'"
    )
    summary = pd.read_csv(judged.out / "summary_table.csv", dtype={"labels_per_class": str})

    assert metrics["fields/linear_probe/last/4/geokr/accuracy"] == pytest.approx(accuracy["geokr"].mean(), abs=1e-6)
    assert row["mean"].tolist() == pytest.approx([(accuracy["geokr"] - accuracy["random"]).mean()], abs=1e-6)
    assert len(metrics) == len(summary)
    confusion = read_json(judged.out / "confusion.json")["fields"]
    assert sorted(confusion) == ["colour_histogram", "geokr", "random", "shuffled"]
    assert confusion["geokr"]["labels"] == ["Field", "Forest", "Water"]
    assert (confusion["geokr"]["protocol"], confusion["geokr"]["features"]) == ("linear_probe", "last")
    assert (confusion["geokr"]["labels_per_class"], confusion["geokr"]["seed"]) == ("4", 0)
    matrix = np.array(confusion["geokr"]["matrix"])
    assert matrix.trace() / matrix.sum() == pytest.approx(accuracy["geokr"][0])


def test_a_variant_of_any_name_is_judged_drawn_and_compared_where_both_were_measured(store: Store) -> None:
    runs = read_json(store.pretraining / "runs.json")
    write_json(store.pretraining / "runs.json", [*runs, runs[-1] | {"variant": "no_teacher"}])
    store.run(
        config_of(
            store,
            initialisations=["random", "geokr", "no_teacher"],
            protocols=["linear_probe", "fine_tune"],
            fine_tune_initialisations=["random", "geokr"],
            labels_per_class=[4],
        )
    )
    table = pd.read_csv(store.out / "differences.csv")

    assert set(zip(table["protocol"], table["contrast"], strict=True)) == {
        ("linear_probe", "geokr - no_teacher"),
        ("linear_probe", "geokr - random"),
        ("fine_tune", "geokr - random"),
    }


def test_two_starts_side_by_side_are_probed_never_tuned_and_compared_with_each_of_them(store: Store) -> None:
    both = ["geokr+colour_histogram", "geokr+geokr"]
    store.run(
        config_of(
            store,
            initialisations=["geokr", "colour_histogram", *both],
            protocols=["linear_probe", "fine_tune"],
            features=["last"],
            labels_per_class=[4],
        )
    )
    results = pd.read_parquet(store.out / "results.parquet")
    table = pd.read_csv(store.out / "differences.csv")

    assert set(results[results["initialisation"].isin(both)]["protocol"]) == {"linear_probe"}
    probed = table[(table["protocol"] == "linear_probe") & (table["metric"] == "accuracy")].set_index("contrast")
    assert {"geokr+colour_histogram - geokr", "geokr+colour_histogram - colour_histogram"} <= set(probed.index)
    # A copy of the same numbers adds nothing: one of 18 test images at most, for a penalty that counts them once.
    assert abs(probed.loc["geokr+geokr - geokr", "mean"]) < 1.5 / 18
    # What geokr+colours scores is neither's alone.
    assert len(set(results["network"])) == 2 * 3 + 1


def test_paired_draws_are_the_same_for_every_initialisation(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[tuple[object, int], set[tuple[int, ...]]] = {}
    draw = SceneClassification.draw_labels

    def noted(task: SceneClassification, labels: object, seed: int, of: object) -> np.ndarray:
        rows = draw(task, labels, seed, of)  # type: ignore[arg-type]
        drawn.setdefault((labels, seed), set()).add(tuple(rows.tolist()))
        return rows

    monkeypatch.setattr(SceneClassification, "draw_labels", noted)
    store.run(config_of(store))

    assert {key: len(rows) for key, rows in drawn.items()} == {(2, 0): 1, (2, 1): 1, (4, 0): 1, (4, 1): 1}


def test_a_killed_evaluation_goes_on_and_gives_the_same_scores(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(store, initialisations=["geokr", "colour_histogram"])
    measured: list[object] = []
    measure = SceneClassification.measure

    def counted(task: SceneClassification, cell: object, start: object) -> object:
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(cell)
        return measure(task, cell, start)  # type: ignore[arg-type]

    monkeypatch.setattr(SceneClassification, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        store.run(config)
    assert not store.out.exists()
    assert len(list(store.cells.iterdir())) == 3

    measured[:] = [None] * 4  # past the kill
    store.run(config)
    assert len(measured) == 4 + 5
    resumed = pd.read_parquet(store.out / "results.parquet")
    shutil.rmtree(store.cells)
    store.run(config)
    pd.testing.assert_frame_equal(resumed, pd.read_parquet(store.out / "results.parquet"))


def test_only_what_changed_is_measured_again(store: Store) -> None:
    config = config_of(store, initialisations=["random", "colour_histogram"], seeds=[0], labels_per_class=[2])
    store.run(config)
    cells = set(store.cells.iterdir())
    store.run(config_of(store, initialisations=["random", "colour_histogram"], seeds=[0], labels_per_class=[2, 4]))
    assert len(set(store.cells.iterdir()) - cells) == 2

    cells = set(store.cells.iterdir())
    store.run(config.model_copy(update={"match_statistics": False}))
    assert len(set(store.cells.iterdir()) - cells) == 1  # colours do not care

    cells = set(store.cells.iterdir())
    next((store.sets / "fields" / "Water").iterdir()).touch()
    (store.sets / "fields" / "SOURCE.txt").write_text("changed")
    store.run(config)
    assert len(set(store.cells.iterdir()) - cells) == 2


def test_other_weights_are_never_taken_for_the_same_cell(store: Store) -> None:
    config = config_of(store, initialisations=["geokr"], seeds=[0], labels_per_class=[2])
    store.run(config)
    path = store.pretraining / "geokr-seed0" / "backbone.safetensors"
    save_file({key: value * 1.5 for key, value in load_file(path).items()}, path)
    record_files(store.pretraining)
    store.run(config)

    assert len(list(store.cells.iterdir())) == 2


def test_a_broken_kept_cell_is_measured_again(store: Store) -> None:
    config = config_of(store, initialisations=["colour_histogram"], seeds=[0], labels_per_class=[2])
    store.run(config)
    before = pd.read_parquet(store.out / "results.parquet")["value"].tolist()
    next(store.cells.iterdir()).write_text('{"cell": ')
    reporter = store.run(config)

    assert any("measured again" in warning for warning in reporter.warnings)
    assert pd.read_parquet(store.out / "results.parquet")["value"].tolist() == before


def test_measured_again_the_evaluation_is_the_same_bytes(store: Store) -> None:
    config = config_of(store, initialisations=["geokr"], protocols=["linear_probe", "fine_tune"], seeds=[0])
    found, versions = [], []
    for _ in range(2):
        store.run(config)
        found.append({path.name: path.read_bytes() for path in store.out.iterdir()})
        versions.append(data_version(store.out))
        shutil.rmtree(store.cells)

    assert versions[0] == versions[1]
    assert found[0] == found[1]
    assert not any(str(store.root).encode() in content for content in found[0].values())


def test_seeds_go_to_their_pretraining_and_sharing_is_said(store: Store) -> None:
    three = config_of(store, initialisations=["geokr"], seeds=[0, 1, 2], labels_per_class=[2])
    generated = store.run(three)
    files = [read_json(path) for path in store.cells.iterdir()]

    assert len(files) == 3
    said = "3 evaluation seeds share 2 pretraining(s)"
    assert any(said in line for line in generated.infos)
    assert not generated.warnings, "of a generated world no one concludes anything"
    redescribe(store.backbone, generated_world=False)
    assert any(said in warning for warning in store.run(three).warnings)
    starts = Starts(open_bundle(store.backbone), store.pretraining, config_of(store))
    weights = [starts.of("geokr", seed).weights for seed in (0, 1, 2)]
    assert [path.parent.name for path in weights if path] == ["geokr-seed0", "geokr-seed1", "geokr-seed0"]
    assert not store.run(config_of(store, initialisations=["geokr"], labels_per_class=[2])).warnings


def corrupt_image(store: Store) -> None:
    next((store.sets / "fields" / "Water").iterdir()).write_bytes(b"\x89PNG\r\n\x1a\nbroken")


def lose_class(store: Store) -> None:
    path = store.sets / "fields" / "split_train.txt"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "Water" not in line))


def poison_weights(store: Store) -> None:
    path = store.pretraining / "geokr-seed0" / "backbone.safetensors"
    state = load_file(path)
    first = next(iter(state))
    save_file(state | {first: torch.full_like(state[first], torch.nan)}, path)
    record_files(store.pretraining)


def damage_weights(store: Store) -> None:
    path = store.pretraining / "geokr-seed0" / "backbone.safetensors"
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def damage_bundle(store: Store) -> None:
    path = store.backbone / "backbone.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")


def swap_bands(store: Store) -> None:
    redescribe(store.backbone, bands=["nir", "red", "green"])


def lose_weights(store: Store) -> None:
    (store.pretraining / "geokr-seed0" / "backbone.safetensors").unlink()


def lose_variant(store: Store) -> None:
    path = store.pretraining / "runs.json"
    write_json(path, [run for run in read_json(path) if run["variant"] != "shuffled"])


def other_architecture(store: Store) -> None:
    path = store.pretraining / "runs.json"
    write_json(path, [run | {"architecture": "resnet18"} for run in read_json(path)])


def lose_set(store: Store) -> None:
    shutil.rmtree(store.sets / "fields")


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (corrupt_image, "cannot be read as an image"),
        (lose_class, "'Water' has no training image"),
        (poison_weights, "not finite for"),
        (swap_bands, "red, green, blue, but the backbone reads nir, red, green"),
        (lose_weights, "runs.json lists it"),
        (damage_weights, r"geokr-seed0/backbone.safetensors: damaged or replaced .*geokr pretrain --force"),
        (damage_bundle, r"backbone.safetensors: the file was changed or damaged.*geokr backbone --force"),
        (lose_variant, "asks for 'shuffled'"),
        (other_architecture, "is a resnet18, the bundle"),
        (lose_set, "no such folder"),
    ],
)
def test_what_cannot_be_judged_fails_and_leaves_no_results(store: Store, break_it: object, said: str) -> None:
    assert callable(break_it)
    break_it(store)

    with pytest.raises((EvaluationError, BackboneError), match=said):
        store.run(config_of(store, initialisations=["geokr", "shuffled"]))
    assert not store.out.exists()


def test_earlier_results_stay_when_a_later_evaluation_fails(store: Store) -> None:
    config = config_of(store, initialisations=["colour_histogram"], seeds=[0], labels_per_class=[2])
    store.run(config)
    before = data_version(store.out)
    corrupt_image(store)
    with pytest.raises(EvaluationError):
        store.run(config)

    assert data_version(store.out) == before
    assert [path.name for path in store.root.iterdir() if path.name.startswith(".")] == []


def test_too_few_images_fail_before_the_first_cell_is_measured(store: Store) -> None:
    with pytest.raises(EvaluationError, match="7 labels a class"):
        store.run(config_of(store, labels_per_class=[2, 7]))
    assert not store.cells.exists()


def test_fine_tuning_that_is_not_finite_fails(store: Store) -> None:
    config = config_of(store, initialisations=["random"], protocols=["fine_tune"], fine_tune_learning_rate=1e30)

    with pytest.raises(EvaluationError, match="Fine-tuning met a loss"):
        store.run(config)
    assert not store.out.exists()


def test_an_evaluation_of_nothing_is_refused(store: Store) -> None:
    with pytest.raises(EvaluationError, match="no cell at all"):
        store.run(config_of(store, initialisations=["colour_histogram"], protocols=["fine_tune"]))


def test_score_of_a_bundle_is_what_the_evaluation_finds_for_the_same_weights(
    store: Store, judged: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights: list[Path | None] = []
    measure = SceneClassification.measure

    def noted(task: SceneClassification, cell: Cell, start: Start) -> Measurement:
        weights.append(start.weights)
        return measure(task, cell, start)

    monkeypatch.setattr(SceneClassification, "measure", noted)
    shutil.rmtree(store.pretraining)  # an old champion comes without its pretraining
    criterion = Criterion(task="fields", labels_per_class=4)
    card = score_backbone(store.backbone, config_of(store), (criterion,), tmp_path / "cells", RecordingReporter())
    score = card.scores["fields/linear_probe/last/4/accuracy"]
    results = pd.read_parquet(judged.out / "results.parquet")
    first = results.query(
        "initialisation == 'geokr' and protocol == 'linear_probe' and features == 'last'"
        " and labels_per_class == '4' and metric == 'accuracy' and seed == 0"
    )

    assert weights == [store.backbone / "backbone.safetensors"] * 2
    assert score.per_seed["0"] == pytest.approx(first["value"].item())
    assert score.data_version == first["data_version"].item()
    again = score_backbone(store.backbone, config_of(store), (criterion,), tmp_path / "cells", RecordingReporter())
    assert again == card
    assert len(weights) == 2, "finished cells are kept"
    for wrong, complaint in (({"task": "lakes"}, "'lakes'"), ({"task": "fields", "metric": "map"}, "not 'map'")):
        criteria = (Criterion(**wrong, labels_per_class=4),)
        with pytest.raises(EvaluationError, match=complaint):
            score_backbone(store.backbone, config_of(store), criteria, tmp_path / "cells", RecordingReporter())


def test_a_short_line_a_task_says_what_is_reached_with_the_most_labels(store: Store) -> None:
    config = config_of(
        store,
        initialisations=["random", "colour_histogram", "geokr"],
        protocols=["linear_probe"],
        labels_per_class=[2, "all"],
    )
    shown = evaluate(config, store.backbone, store.pretraining, store.out, store.cells)
    table = pd.read_csv(store.out / "summary_table.csv")
    of_all = table[(table["labels_per_class"] == "all") & (table["metric"] == "accuracy")].set_index("initialisation")
    ours, others = of_all.loc["geokr", "mean"], of_all.drop("geokr")["mean"]
    line = str(shown.numbers["fields: accuracy (linear probe, all labels)"])
    assert line.startswith(f"GeoKR {ours:.3f}")
    assert line.endswith(f"{others.max():.3f}")
    assert {"random": "random weights", "colour_histogram": "colour histogram"}[str(others.idxmax())] in line
    assert len(line) <= 69, "a longer one is cut on the page of the asset, at 1440 px"
