"""Mapping: cells that show their class are mapped, few chips are drawn in pairs, and ground that cannot be judged is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from geokr_core.errors import EvaluationError, MissingInputError
from geokr_core.evaluation.cells import Cell, Start, labels_name
from geokr_core.evaluation.config import Criterion, EvaluationConfig, TaskConfig
from geokr_core.evaluation.evaluate import _plan
from geokr_core.evaluation.learning.ground import cut_in_cells
from geokr_core.evaluation.opening import open_task
from geokr_core.evaluation.sets.masks.layout import IGNORED
from geokr_core.evaluation.statistics import labels_order
from geokr_core.evaluation.tasks.land_cover_mapping import LandCoverMapping
from geokr_core.networks.network import build, cell_features, pooled
from geokr_core.testing import make_levir_kr, make_mask_set


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 chips whose vertical bands show their class by colour, half of the places held out."""
    store = tmp_path_factory.mktemp("ground")
    return make_levir_kr(store, num_chips=120, chip_size_px=64, validation_fraction=0.5).folder


def opened(ground: Path, evaluation: dict[str, object] | None = None, **changes: object) -> LandCoverMapping:
    section = {"name": "ground", "kind": "land_cover_mapping", "levir_kr": ground, "draws": 2} | changes
    config = EvaluationConfig.model_validate(
        {"folder": ground, "tasks": [section], "precision": "fp32", "threads": 1} | (evaluation or {})
    )
    task = open_task(config.tasks[0], config)
    assert isinstance(task, LandCoverMapping)
    return task


def cell(**changes: object) -> Cell:
    fields: dict[str, object] = {"task": "ground", "initialisation": "random", "protocol": "linear_probe"}
    return Cell(**(fields | {"features": "multi", "labels_per_class": "16 chips", "seed": 0} | changes))  # type: ignore[arg-type]


def start(**changes: object) -> Start:
    fields = {"initialisation": "random", "seed": 0, "architecture": "squeezenet1_1", "weights": None}
    return Start(**(fields | {"mean": (0.5,) * 3, "std": (0.2,) * 3} | changes))  # type: ignore[arg-type]


def test_cells_that_show_their_class_are_mapped_and_strange_labels_are_not(ground: Path) -> None:
    task = opened(ground)
    colours = start(initialisation="colour_histogram")
    found = task.measure(cell(initialisation="colour_histogram", features="histogram"), colours)
    assert [score.metric for score in found.scores] == ["miou", "cell_accuracy"]
    assert found.scores[0].value > 0.8
    assert found.scores[0].ci_low <= found.scores[0].value <= found.scores[0].ci_high
    assert len(found.replicates) == 200
    assert np.sum(found.confusion) == task._task.draws * found.n
    task.train.classes[task.train.classes >= 0] = np.random.default_rng(0).permutation(task.train.labels)
    strange = task.measure(cell(initialisation="colour_histogram", features="histogram"), colours)
    assert strange.scores[0].value < 0.5 * found.scores[0].value


def test_the_score_is_that_of_each_cell_by_hand(ground: Path) -> None:
    task = opened(ground, draws=1)
    right = task._confusions(task.test.labels)
    assert task._scored(right[None], 1.0).scores[0].value == 1.0
    wrong = task._confusions((task.test.labels + 1) % len(task.classes))
    assert task._scored(wrong[None], 1.0).scores[0].value == 0.0
    both = task._scored(np.stack([right, wrong]), 1.0)
    assert (both.scores[0].value, both.scores[1].value) == (0.5, 0.5)


def test_masks_that_people_drew_are_mapped_as_products_are(tmp_path: Path) -> None:
    make_mask_set(tmp_path / "ground", num_images=6, num_test=2, image_size_px=(70, 140))
    task = opened(tmp_path, levir_kr=None, chip_size_px=32, cells_per_side=4, label_chips=[2])
    # Of 70 x 140 px, 64 x 128 are whole chips.
    assert (task.train.images.shape, task.test.images.shape) == ((32, 32, 32, 3), (16, 32, 32, 3))
    found = task.measure(
        cell(initialisation="colour_histogram", features="histogram"), start(initialisation="colour_histogram")
    )
    assert found.scores[0].value > 0.8, "the classes differ in brightness"
    assert task.notes[0].startswith("layout ")
    before = task.data_version
    (tmp_path / "ground/masks").joinpath("more.txt").write_text("changed")
    assert opened(tmp_path, levir_kr=None, chip_size_px=32, cells_per_side=4).data_version != before


def test_a_cell_holds_the_shares_of_its_pixels_and_nothing_of_what_is_not_labelled() -> None:
    mask = np.zeros((10, 9), dtype=np.uint8)
    mask[:4, 4:8] = 1  # the upper right cell
    mask[4:8, :2] = IGNORED  # half of the lower left one
    image = np.arange(90, dtype=np.uint8).reshape(10, 9, 1)
    chips = cut_in_cells(image, mask, 2, chip_size_px=8, cells_per_side=2)
    assert np.array_equal(chips.images[0], image[:8, :8])
    assert chips.cells.tolist() == [[[[255, 0], [0, 255]], [[128, 0], [255, 0]]]]


def test_masks_that_cannot_be_cut_are_refused(tmp_path: Path) -> None:
    make_mask_set(tmp_path / "ground")
    with pytest.raises(EvaluationError, match=r"smaller than a chip of 64 px.*Lower `chip_size_px`"):
        opened(tmp_path, levir_kr=None)
    with pytest.raises(ValueError, match="20 px have no 8 cells of whole pixels"):
        opened(tmp_path, levir_kr=None, chip_size_px=20)


def test_how_masks_are_cut_says_nothing_of_a_levir_kr(ground: Path) -> None:
    assert opened(ground).settings(cell()) == opened(ground, chip_size_px=32).settings(cell())


def test_a_network_gives_features_of_cells_whose_mean_is_the_pooled_one() -> None:
    torch.manual_seed(0)
    network, images = build("resnet18").eval(), torch.randn(2, 3, 64, 64)
    cells = cell_features(network, images, 4)
    assert cells.shape == (2, 4, 4, 960)
    # Stages of 16, 8 and 4 cells a side are averaged over whole cells, so that nothing is lost.
    expected = pooled(network, images, "multi")
    assert torch.allclose(cells.mean(dim=(1, 2))[:, :448], expected[:, :448], atol=1e-5)


def test_the_last_stage_is_part_of_all_stages_that_are_kept(tmp_path: Path) -> None:
    small = make_levir_kr(tmp_path, num_chips=16, chip_size_px=32, validation_fraction=0.5, cells_per_side=4).folder
    task = opened(small, draws=1)
    everything = task.measure(cell(labels_per_class="4 chips"), start())
    last = task.measure(cell(labels_per_class="4 chips", features="last"), start())
    alone = opened(small, draws=1).measure(cell(labels_per_class="4 chips", features="last"), start())
    assert last.scores == alone.scores != everything.scores


def test_more_labels_contain_fewer_and_do_better_in_pairs_over_starts(ground: Path) -> None:
    task = opened(ground)
    four, many = (set(task.draw_chips(labels, 0, 0).tolist()) for labels in ("4 chips", "16 chips"))
    assert four < many
    assert set(task.draw_chips("4 chips", 0, 1).tolist()) != four
    assert set(task.draw_chips("4 chips", 1, 0).tolist()) != four
    colours = start(initialisation="colour_histogram")
    few, all_ = (
        task.measure(cell(initialisation="colour_histogram", features="histogram", labels_per_class=labels), colours)
        for labels in ("1 chips", "all")
    )
    assert few.scores[0].value < all_.scores[0].value
    assert all_.label_fraction == 1.0


def test_the_plan_asks_for_chips_by_number_and_for_no_fine_tuning(ground: Path) -> None:
    section = {"name": "ground", "kind": "land_cover_mapping", "levir_kr": ground, "label_chips": [4, "all"]} | {
        "features": ["multi"]
    }
    config = EvaluationConfig.model_validate(
        {"folder": ground, "tasks": [section], "protocols": ["linear_probe", "knn", "fine_tune"], "seeds": [0]}
        | {"labels_per_class": [25], "initialisations": ["random"]}
    )
    assert [(c.protocol, c.features, c.labels_per_class) for c in _plan(config, config.tasks[0])] == [
        ("linear_probe", "multi", "4 chips"),
        ("linear_probe", "multi", "all"),
    ]


def test_the_plan_asks_for_fine_tuning_where_the_task_says_for_how_long(ground: Path) -> None:
    section = {"name": "ground", "kind": "land_cover_mapping", "levir_kr": ground, "label_chips": [4, "all"]} | {
        "features": ["multi"],
        "fine_tune_steps": 5,
        "fine_tune_initialisations": ["random"],
    }
    config = EvaluationConfig.model_validate(
        {"folder": ground, "tasks": [section], "protocols": ["linear_probe"], "seeds": [0]}
        | {"initialisations": ["random", "colour_histogram", "geokr"]}
    )
    plan = [(c.initialisation, c.protocol, c.labels_per_class) for c in _plan(config, config.tasks[0])]
    tuned = [("random", "fine_tune", "4 chips"), ("random", "fine_tune", "all")]
    assert [cell for cell in plan if cell[1] == "fine_tune"] == tuned
    assert len(plan) == 2 * 3 + 2


def test_a_network_that_hardly_learns_on_maps_as_its_probe_and_one_that_learns_does_not(ground: Path) -> None:
    few = {"label_chips": [4], "max_chips": 24, "draws": 2}
    still = opened(ground, fine_tune_steps=1, fine_tune_learning_rate=1e-12, **few)
    moved = opened(ground, {"batch_size": 4}, fine_tune_steps=8, fine_tune_learning_rate=1e-3, **few)
    asked = cell(labels_per_class="4 chips")
    tuned = cell(labels_per_class="4 chips", protocol="fine_tune", features="last")

    assert still.measure(tuned, start()).confusion == still.measure(asked, start()).confusion
    assert moved.measure(tuned, start()).confusion != still.measure(asked, start()).confusion
    assert moved.measure(tuned, start()) == moved.measure(tuned, start()), "each draw begins with the start as it was"


def test_how_long_a_network_learns_says_nothing_of_its_probe(ground: Path) -> None:
    frozen, short, long = opened(ground), opened(ground, fine_tune_steps=5), opened(ground, fine_tune_steps=9)
    tuned = cell(protocol="fine_tune", features="last")

    assert frozen.settings(cell()) == short.settings(cell()) == long.settings(cell())
    assert short.settings(tuned) != long.settings(tuned)
    assert "fine-tuning" not in frozen.budget
    assert "5 steps" in str(short.budget["fine-tuning"])
    with pytest.raises(EvaluationError, match="with `fine_tune_steps`, by fine-tuning"):
        frozen.require(tuned)
    short.require(tuned)


def test_a_rate_without_steps_is_refused(ground: Path) -> None:
    with pytest.raises(ValueError, match="`fine_tune_learning_rate` does nothing without `fine_tune_steps`"):
        opened(ground, fine_tune_learning_rate=1e-3)


def test_rare_and_mixed_cells_take_no_part(ground: Path) -> None:
    everything, common = opened(ground, min_class_fraction=0.0), opened(ground, min_class_fraction=0.1)
    assert set(common.classes) < set(everything.classes)
    assert len(common.test.labels) < len(everything.test.labels)
    assert len(opened(ground, dominant_fraction=1.0).test.labels) < len(opened(ground).test.labels)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"min_class_fraction": 0.45}, "expected two or more"),
        ({"levir_kr": Path("/nowhere")}, "no frozen Levir-KR"),
    ],
)
def test_ground_that_cannot_be_judged_is_refused(ground: Path, changes: dict[str, object], complaint: str) -> None:
    with pytest.raises((EvaluationError, MissingInputError), match=complaint):
        opened(ground, **changes)


def test_a_data_set_without_cells_or_places_to_map_is_refused(tmp_path: Path) -> None:
    whole = make_levir_kr(tmp_path / "whole", num_chips=20, cells_per_side=0).folder
    with pytest.raises(EvaluationError, match=r"expected `cells.npy`"):
        opened(whole)
    kept = make_levir_kr(tmp_path / "kept", num_chips=20, validation_fraction=0.0).folder
    with pytest.raises(EvaluationError, match=r"20 of train, 0 of validation; expected chips of both"):
        opened(kept)


def test_what_cannot_be_drawn_or_probed_is_refused_before_it_is_measured(ground: Path) -> None:
    task = opened(ground)
    with pytest.raises(EvaluationError, match="1000 labelled chips are asked for"):
        task.require(cell(labels_per_class="1000 chips"))
    with pytest.raises(EvaluationError, match="judged by the linear probe"):
        task.require(cell(protocol="knn"))
    with pytest.raises(EvaluationError, match="judged by the linear probe"):
        task.require(cell(labels_per_class="10%"))
    assert TaskConfig.model_validate({"name": "a"}).kind == "scene_classification"


def test_chips_are_called_chips_and_sorted_by_number() -> None:
    assert [labels_name(labels) for labels in ("1 chips", "4 chips", "4")] == [
        "1 labelled chip",
        "4 labelled chips",
        "4 labels a class",
    ]
    assert sorted(["all", "64 chips", "4 chips"], key=labels_order) == ["4 chips", "64 chips", "all"]
    assert Criterion(task="ground", labels_per_class="64 chips", metric="miou").labels_per_class == "64 chips"
    with pytest.raises(ValueError, match="labels_per_class"):
        Criterion(task="ground", labels_per_class="many chips")
