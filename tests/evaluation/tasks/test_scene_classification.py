"""Reading labelled folders, drawing labels and scoring; every damage to a set is refused by name."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import Cell, Start
from geokr_core.evaluation.config import EvaluationConfig, TaskConfig
from geokr_core.evaluation.opening import open_task
from geokr_core.evaluation.protocols.probe import extract_features
from geokr_core.evaluation.sets.classes import read_image_set
from geokr_core.evaluation.starts import running, task_normalisation
from geokr_core.evaluation.tasks.scene_classification import SceneClassification
from geokr_core.testing import make_image_set


def opened(folder: Path, **changes: object) -> SceneClassification:
    fields = {"folder": folder.parent, "tasks": [{"name": folder.name, "image_size_px": 32}], "precision": "fp32"}
    config = EvaluationConfig.model_validate(fields | changes)
    task = open_task(config.tasks[0], config)
    assert isinstance(task, SceneClassification)
    return task


def cell(task: SceneClassification, **changes: object) -> Cell:
    fields = {
        "task": task.name,
        "initialisation": "random",
        "protocol": "linear_probe",
        "features": "last",
        "labels_per_class": "all",
        "seed": 0,
    }
    return Cell(**(fields | changes))  # type: ignore[arg-type]


def start(**changes: object) -> Start:
    fields = {
        "initialisation": "random",
        "seed": 0,
        "architecture": "squeezenet1_1",
        "weights": None,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
    }
    return Start(**(fields | changes))  # type: ignore[arg-type]


def test_reads_the_given_split(tmp_path: Path) -> None:
    folder = make_image_set(tmp_path / "set", images_per_class=6)
    first = (folder / "split_train.txt").read_text().splitlines()[0]
    found = read_image_set(folder, 32)

    assert found.classes == ("Field", "Forest", "Water")
    assert found.images.shape == (18, 32, 32, 3)
    assert found.labels[found.train_rows].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert found.labels[found.test_rows].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert np.array_equal(found.images[0], np.asarray(Image.open(folder / first)))
    assert found.notes == ()


def test_class_folders_may_lie_in_a_folder_of_images(tmp_path: Path) -> None:
    make_image_set(tmp_path / "set" / "Images", splits=False)
    found = read_image_set(tmp_path / "set", 32)

    assert found.classes == ("Field", "Forest", "Water")


def test_without_split_files_every_class_is_halved_once_and_for_all(tmp_path: Path) -> None:
    folder = make_image_set(tmp_path / "set", images_per_class=7, splits=False)
    found, again = read_image_set(folder, 32), read_image_set(folder, 32)

    assert np.bincount(found.labels[found.train_rows]).tolist() == [4, 4, 4]
    assert np.bincount(found.labels[found.test_rows]).tolist() == [3, 3, 3]
    assert np.array_equal(found.images, again.images)
    assert any("halved" in note for note in found.notes)


def test_images_of_other_sizes_are_resized_and_counted(tmp_path: Path) -> None:
    folder = make_image_set(tmp_path / "set", images_per_class=4)
    odd = folder / "Water" / "Water_000.png"
    Image.open(odd).resize((31, 40)).save(odd)

    assert read_image_set(folder, 32).notes == ("1 of 12 images were resized to 32 × 32 px",)
    found = read_image_set(folder, 16)
    assert found.images.shape == (12, 16, 16, 3)
    assert "12 of 12 images were resized to 16 × 16 px; 1 of them" in found.notes[0]


def damage_missing(folder: Path) -> None:
    (folder / "Water" / "Water_001.png").unlink()


def damage_truncated(folder: Path) -> None:
    path = folder / "Water" / "Water_001.png"
    path.write_bytes(path.read_bytes()[:200])


def damage_text(folder: Path) -> None:
    (folder / "Water" / "Water_001.png").write_text("not an image")


def damage_grey(folder: Path) -> None:
    path = folder / "Water" / "Water_001.png"
    Image.open(path).convert("L").save(path)


def damage_no_training(folder: Path) -> None:
    path = folder / "split_train.txt"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("Water")))


def damage_no_test(folder: Path) -> None:
    path = folder / "split_test.txt"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("Water")))


def damage_leak(folder: Path) -> None:
    leaked = (folder / "split_test.txt").read_text().splitlines()[0]
    with (folder / "split_train.txt").open("a") as lines:
        lines.write(f"{leaked}\n")


def damage_repeated(folder: Path) -> None:
    path = folder / "split_test.txt"
    path.write_text(path.read_text() + path.read_text().splitlines()[0])


def damage_outside(folder: Path) -> None:
    with (folder / "split_train.txt").open("a") as lines:
        lines.write("../secrets.png\n")


def damage_one_split(folder: Path) -> None:
    (folder / "split_test.txt").unlink()


def damage_empty_split(folder: Path) -> None:
    (folder / "split_test.txt").write_text("\n")


def damage_one_class(folder: Path) -> None:
    for name in ("Field", "Forest"):
        for path in (folder / name).iterdir():
            path.unlink()
        (folder / name).rmdir()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_missing, "Water_001.png.*no such file"),
        (damage_truncated, "Water_001.png.*cannot be read"),
        (damage_text, "Water_001.png.*cannot be read"),
        (damage_grey, "Water_001.png.*mode L.*expected 8-bit RGB"),
        (damage_no_training, "'Water' has no training image"),
        (damage_no_test, "'Water' has no test image"),
        (damage_leak, "Field_004.png.*disjoint"),
        (damage_repeated, "more than once"),
        (damage_outside, "secrets.*<Class>/<file>"),
        (damage_one_split, "split_train.txt alone"),
        (damage_empty_split, "split_test.txt.*empty"),
        (damage_one_class, "found 1 class folder"),
    ],
)
def test_a_damaged_set_is_refused_by_name(tmp_path: Path, damage: object, said: str) -> None:
    folder = make_image_set(tmp_path / "set")
    assert callable(damage)
    damage(folder)

    with pytest.raises(EvaluationError, match=said):
        read_image_set(folder, 32)


def test_a_missing_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no such folder"):
        read_image_set(tmp_path / "nowhere", 32)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="0 class folder"):
        read_image_set(tmp_path / "empty", 32)


def test_draws_depend_on_the_seed_alone_and_grow_by_adding(tmp_path: Path) -> None:
    folder = make_image_set(tmp_path / "set", images_per_class=20)
    task, other = opened(folder), opened(folder, precision="bf16")
    (only,) = task.set.rounds
    two, five = task.draw_labels(2, 1, only), task.draw_labels(5, 1, only)

    assert np.bincount(task.set.labels[five]).tolist() == [5, 5, 5]
    assert np.array_equal(five, other.draw_labels(5, 1, only))
    assert set(two) < set(five) <= set(task.set.train_rows)
    assert not np.array_equal(five, task.draw_labels(5, 2, only))
    assert np.array_equal(task.draw_labels("all", 1, only), task.set.train_rows)


def test_more_labels_than_there_are_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    task = opened(make_image_set(tmp_path / "set", images_per_class=8))

    with pytest.raises(EvaluationError, match=r"'Field' has 4 training image\(s\), but 5 labels"):
        task.require(cell(task, labels_per_class=5))


def test_histogram_probe_tells_colours_apart_and_its_table_adds_up(tmp_path: Path) -> None:
    task = opened(make_image_set(tmp_path / "set", images_per_class=20))
    found = task.measure(
        cell(task, initialisation="colour_histogram", features="histogram", labels_per_class=5),
        start(initialisation="colour_histogram"),
    )
    accuracy, macro_f1 = found.scores
    table = np.array(found.confusion)

    assert accuracy.value == pytest.approx(table.trace() / table.sum())
    assert accuracy.value > 0.9
    assert table.sum(axis=1).tolist() == [10, 10, 10]
    assert (found.n, found.label_fraction) == (30, 0.5)
    assert accuracy.ci_low < accuracy.value <= accuracy.ci_high
    assert (accuracy.metric, macro_f1.metric) == ("accuracy", "macro_f1")


def test_scores_of_a_hand_made_confusion(tmp_path: Path) -> None:
    task = opened(make_image_set(tmp_path / "set", classes=("a", "b"), images_per_class=8))
    # truth a a a a b b b b, predicted a a a b b b a a: accuracy 5/8, F1 of a 2*3/(4+5) = 2/3, of b 2*2/(4+3) = 4/7
    found = task._score(np.array([0, 0, 0, 1, 1, 1, 0, 0]), label_fraction=0.25, seed=0)

    assert found.confusion == ((3, 1), (2, 2))
    assert [score.value for score in found.scores] == pytest.approx([5 / 8, (2 / 3 + 4 / 7) / 2])
    assert found.label_fraction == 0.25


def test_one_extraction_serves_all_cells_of_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = opened(make_image_set(tmp_path / "set"))
    calls: list[str] = []
    extract = extract_features

    def counted(*arguments: object) -> np.ndarray:
        calls.append(str(arguments[3]))
        return extract(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("geokr_core.evaluation.tasks.scene_classification.extract_features", counted)
    few = cell(task, labels_per_class=2)
    task.measure(cell(task, features="multi", labels_per_class=2), start())
    task.measure(few, start())
    assert calls == ["multi"]
    with running(task._evaluation) as runtime:
        kept, fresh = (each._features("last", start(), runtime) for each in (task, opened(tmp_path / "set")))
    assert kept == pytest.approx(fresh, abs=1e-6)
    task.measure(cell(task, labels_per_class=2, seed=1), start(seed=1))
    assert calls[-1] == "last"
    assert len(calls) == 3


def test_a_network_is_given_as_it_began_whatever_became_of_the_last_one(tmp_path: Path) -> None:
    task = opened(make_image_set(tmp_path / "set"))
    with running(task._evaluation) as runtime:
        changed, _ = task._start_network(start(), runtime)
        began = {name: tensor.clone() for name, tensor in changed.state_dict().items()}
        for parameter in changed.parameters():
            parameter.data.zero_()
        again, other = (task._start_network(asked, runtime)[0].state_dict() for asked in (start(), start(seed=1)))
    assert all(torch.equal(again[name], tensor) for name, tensor in began.items())
    assert not all(torch.equal(other[name], tensor) for name, tensor in began.items())


def test_matched_statistics_make_the_brightness_of_a_set_irrelevant(tmp_path: Path) -> None:
    bright = make_image_set(tmp_path / "bright")
    dull = make_image_set(tmp_path / "dull")
    for path in sorted(dull.rglob("*.png")):
        Image.fromarray(np.asarray(Image.open(path)) // 2).save(path)

    def apart(*, match: bool) -> float:
        parts = []
        for folder in (bright, dull):
            task = opened(folder, match_statistics=match)
            with running(task._evaluation) as runtime:
                parts.append(task._features("last", start(), runtime))
        return float(np.abs(parts[0] - parts[1]).max() / np.abs(parts[0]).max())

    assert apart(match=True) < 0.05
    assert apart(match=False) > 0.2


def test_settings_hold_what_a_cell_depends_on_and_nothing_else(tmp_path: Path) -> None:
    task = opened(make_image_set(tmp_path / "set"))
    slower = opened(tmp_path / "set", fine_tune_steps=7)
    probed, tuned = cell(task), cell(task, protocol="fine_tune")

    assert task.settings(probed) == slower.settings(probed)
    assert task.settings(tuned) != slower.settings(tuned)
    assert task.settings(probed) != opened(tmp_path / "set", match_statistics=False).settings(probed)


@pytest.mark.parametrize("protocol", ["linear_probe", "knn"])
def test_a_change_of_how_features_are_scaled_disowns_scores_from_before(tmp_path: Path, protocol: str) -> None:
    task = opened(make_image_set(tmp_path / "set"))
    assert task.settings(cell(task, protocol=protocol))["standardised_by"] == "train"


def test_task_of_the_configuration_is_opened_by_name(tmp_path: Path) -> None:
    make_image_set(tmp_path / "mine")
    config = EvaluationConfig(folder=tmp_path, tasks=(TaskConfig(name="mine", image_size_px=32),))

    assert open_task(config.tasks[0], config).bands == ("red", "green", "blue")


def test_a_share_of_the_labels_is_taken_of_every_class(tmp_path: Path) -> None:
    task = opened(make_image_set(tmp_path / "set", images_per_class=40))
    (only,) = task.set.rounds
    drawn = {share: task.draw_labels(share, 1, only) for share in ("1%", "10%", "50%")}
    counts = {share: np.bincount(task.set.labels[rows]).tolist() for share, rows in drawn.items()}

    assert counts == {"1%": [1, 1, 1], "10%": [2, 2, 2], "50%": [10, 10, 10]}
    assert set(drawn["10%"]) <= set(drawn["50%"])


def test_folders_of_training_and_test_images_are_a_split(tmp_path: Path) -> None:
    folder = make_image_set(tmp_path / "flat", splits=False)
    for split, numbers in (("train", range(5)), ("val", range(5, 8))):
        for name in ("Field", "Forest", "Water"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number in numbers:
                file = f"{name}_{number:03d}.png"
                (folder / name / file).rename(tmp_path / "set" / split / name / file)
    found = read_image_set(tmp_path / "set", 32)

    assert (len(found.train_rows), len(found.test_rows)) == (15, 9)
    assert np.bincount(found.labels[found.test_rows]).tolist() == [3, 3, 3]
    (tmp_path / "set" / "val" / "Unheard").mkdir()
    with pytest.raises(EvaluationError, match="'Unheard', which the training folder lacks"):
        read_image_set(tmp_path / "set", 32)


def test_a_folder_that_holds_nothing_but_the_set_is_stepped_into(tmp_path: Path) -> None:
    make_image_set(tmp_path / "AID" / "AID", splits=False)
    assert read_image_set(tmp_path / "AID", 32).classes == ("Field", "Forest", "Water")


def test_bands_follow_the_order_that_the_network_reads(tmp_path: Path) -> None:
    task = opened(make_image_set(tmp_path / "set"))
    turned = dataclasses.replace(start(), bands=("blue", "green", "red"))
    with running(task._evaluation) as runtime:
        normalisation = task_normalisation(turned, task._task_statistics, task.bands, task._evaluation, runtime)
        assert torch.equal(normalisation.mean, task._task_statistics.mean.flip(0))
    assert np.array_equal(task._images(turned), task.set.images[..., ::-1])
    assert turned.identity() != start().identity()


def test_learning_rate_is_chosen_on_labelled_images_and_never_on_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = opened(
        make_image_set(tmp_path / "set", images_per_class=20),
        fine_tune_learning_rates=(1e-7, 2e-3),
        fine_tune_steps=4,
        batch_size=4,
        threads=1,
    )
    asked: list[tuple[float, set[int]]] = []
    learnt = SceneClassification._learnt

    def noted(self: SceneClassification, *arguments: object) -> np.ndarray:
        asked.append((float(arguments[5]), set(np.asarray(arguments[4]).tolist())))  # type: ignore[arg-type]
        return learnt(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SceneClassification, "_learnt", noted)
    found = task.measure(cell(task, protocol="fine_tune", labels_per_class="all"), start())

    assert [rate for rate, _ in asked[:2]] == [1e-7, 2e-3]
    assert found.details == {"learning_rate": asked[2][0]}
    assert len(asked) == 3
    assert asked[0][1] <= set(task.set.train_rows.tolist())
    assert asked[0][1] == asked[1][1]
    assert asked[2][1] == set(task.set.test_rows.tolist())


def test_a_head_that_begins_as_the_linear_probe_predicts_as_it_does_until_it_learns(tmp_path: Path) -> None:
    """Standardisation, weights and labels are those of the probe: with a learning rate of next to nothing the scores are one."""
    folder = make_image_set(tmp_path / "set", images_per_class=20)
    begun, drawn, learning = (
        opened(folder, tasks=[{"name": "set", "image_size_px": 32, **section}], fine_tune_steps=2, batch_size=4)
        for section in (
            {"head": "linear_probe", "learning_rates": [1e-12]},
            {"learning_rates": [1e-12]},
            {"head": "linear_probe", "learning_rates": [1e-2]},
        )
    )
    asked = {"protocol": "fine_tune", "labels_per_class": 2}
    probed = begun.measure(cell(begun, labels_per_class=2), start())

    assert begun.measure(cell(begun, **asked), start()).confusion == probed.confusion
    assert drawn.measure(cell(drawn, **asked), start()).confusion != probed.confusion
    assert learning.measure(cell(learning, **asked), start()).confusion != probed.confusion
    assert len({str(task.settings(cell(task, **asked))) for task in (begun, drawn, learning)}) == 3
    assert begun.settings(cell(begun)) == drawn.settings(cell(drawn))
    assert begun.budget["head"] == "begins as the linear probe"
    assert "head" not in drawn.budget


def test_the_learning_rates_of_a_task_go_before_those_of_the_evaluation(tmp_path: Path) -> None:
    folder = make_image_set(tmp_path / "set")
    own = opened(folder, tasks=[{"name": "set", "image_size_px": 32, "learning_rates": [3e-4]}], fine_tune_steps=1)

    assert own.measure(cell(own, protocol="fine_tune"), start()).details == {"learning_rate": 3e-4}
    assert own.budget["learning rates"] == [3e-4]


def folded(folder: Path, folds: int = 4, **changes: object) -> SceneClassification:
    return opened(folder, tasks=[{"name": folder.name, "image_size_px": 32, "folds": folds}], **changes)


def test_folds_test_on_every_image_once_and_on_none_that_was_learnt_from(tmp_path: Path) -> None:
    task = folded(make_image_set(tmp_path / "set", images_per_class=9))
    labels = task.set.labels

    assert sorted(task.set.test_rows.tolist()) == list(range(27))
    for each in task.set.rounds:
        assert not set(each.train_rows) & set(each.test_rows)
        assert len(each.train_rows) + len(each.test_rows) == 27
        assert np.bincount(labels[each.test_rows]).tolist() in ([2, 2, 2], [3, 2, 2], [2, 3, 2], [2, 2, 3], [3, 3, 3])
        assert set(task.draw_labels(5, 1, each)) <= set(each.train_rows)


def test_folds_are_the_same_for_every_start_and_seed_and_no_split_file_counts(tmp_path: Path) -> None:
    folder = make_image_set(tmp_path / "set")
    first = folded(folder)
    for path in folder.glob("split_*.txt"):
        path.unlink()
    second = folded(folder)

    assert all(
        np.array_equal(one.test_rows, other.test_rows)
        for one, other in zip(first.set.rounds, second.set.rounds, strict=True)
    )
    assert "4 folds" in str(first.notes)


@pytest.mark.parametrize("protocol", ["linear_probe", "knn"])
def test_what_is_said_of_a_fold_was_learnt_from_the_others(tmp_path: Path, protocol: str) -> None:
    task = folded(make_image_set(tmp_path / "set", images_per_class=8))
    # Each image's own number as its features: only an image that was learnt from can be known by it.
    numbers = np.eye(24, dtype=np.float32)
    task._kept = type(task._kept)(lambda *_: (numbers,))
    known = task.measure(cell(task, protocol=protocol), start())

    assert known.n == 24
    assert np.array(known.confusion).sum(axis=1).tolist() == [8, 8, 8]
    assert known.scores[0].value <= 0.5


def test_the_score_of_folds_is_that_of_all_their_images(tmp_path: Path) -> None:
    folder = make_image_set(tmp_path / "set", images_per_class=8, contrast=0.3)
    task = folded(folder)
    found = task.measure(
        cell(task, initialisation="colour_histogram", features="histogram", labels_per_class=3),
        start(initialisation="colour_histogram"),
    )
    table = np.array(found.confusion)

    assert found.scores[0].value == pytest.approx(table.trace() / 24)
    assert found.label_fraction == pytest.approx(3 / 6)
    assert found.n == 24


def test_a_learning_rate_is_chosen_for_each_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = folded(make_image_set(tmp_path / "set"), folds=2, fine_tune_learning_rates=[1e-4, 1e-3], fine_tune_steps=1)
    learnt: list[tuple[set[int], set[int]]] = []

    def remembered(_c: object, _s: object, rows: np.ndarray, _of: object, asked: np.ndarray, *_: object) -> np.ndarray:
        learnt.append((set(rows.tolist()), set(asked.tolist())))
        return task.set.labels[asked]

    monkeypatch.setattr(task, "_learnt", remembered)
    found = task.measure(cell(task, protocol="fine_tune", features="none"), start())

    assert found.details == {"learning_rate": [1e-4, 1e-4]}
    for number, each in enumerate(task.set.rounds):
        asked = learnt[3 * number : 3 * number + 3]  # two rates on held-out labelled images, then the test images
        assert asked[0][1] <= set(each.train_rows.tolist())
        assert asked[2] == (set(each.train_rows.tolist()), set(each.test_rows.tolist()))


def test_folds_are_part_of_what_a_score_depends_on(tmp_path: Path) -> None:
    folder = make_image_set(tmp_path / "set")
    whole, four, two = opened(folder), folded(folder), folded(folder, folds=2)

    assert "folds" not in whole.settings(cell(whole))
    assert four.settings(cell(four)) != two.settings(cell(two))
    assert four.budget["cross-validation"] == "4 folds"


def test_fewer_images_than_folds_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="'Field' has 3 images .*at least 5, one for each of the `folds`"):
        folded(make_image_set(tmp_path / "set", images_per_class=3), folds=5)
