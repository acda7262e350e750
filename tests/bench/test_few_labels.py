"""The study of few labels: both arms begin alike, each label is of the pool, and the labels needed are counted as the page says."""

import numpy as np
import pytest

from geokr_core.bench.few_labels import FIRST_LABELS, MOST_LABELS, STEP, Labelled, courses, labels_needed, mean_course
from geokr_core.search.index import build_index


@pytest.mark.parametrize(
    ("level", "needed"),
    [
        (0.5, 10),
        (0.7, 15),
        (0.75, 25),  # had at 15, lost at 20
        (0.85, 30),  # reached at 15, lost again: what stays counts
        (0.95, 35),
    ],
)
def test_the_labels_needed_are_those_from_which_the_level_is_kept(level: float, needed: int) -> None:
    assert labels_needed(level, {10: 0.6, 15: 0.9, 20: 0.7, 25: 0.8, 30: 0.9}) == needed


def test_classes_are_averaged_where_all_were_measured() -> None:
    assert mean_course([{10: 0.5, 15: 0.7}, {15: 0.9, 20: 1.0}]) == {15: pytest.approx(0.8)}


def test_both_arms_learn_what_is_looked_for_from_the_pool_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(3), 120)
    vectors = (np.eye(3)[classes] @ rng.normal(size=(3, 8)) + rng.normal(0, 0.4, (360, 8))).astype(np.float32)
    labelled = Labelled(vectors, classes, np.arange(360) % 2 == 0)
    archive = labelled.as_archive()
    asked: list[set[str]] = []

    def watched(labels, found, index):  # type: ignore[no-untyped-def]
        from geokr_core.search.labels import learn

        asked.append(set(labels["chip_id"]))
        return learn(labels, found, index)

    monkeypatch.setattr("geokr_core.bench.few_labels.learn", watched)
    found = courses(archive, build_index(archive), classes == 1, labelled.in_training, seed=0)
    assert list(found["random"].balanced) == [MOST_LABELS]
    assert list(found["uncertain"].balanced) == list(range(FIRST_LABELS, MOST_LABELS + 1, STEP))
    assert found["random"].balanced[MOST_LABELS] > 0.8
    assert found["uncertain"].balanced[MOST_LABELS] > 0.8
    in_pool = set(archive.chips["chip_id"][labelled.in_training])
    assert all(labels <= in_pool for labels in asked)
    assert asked[1] <= asked[0], "both begin with the same chips"
    assert [len(labels) for labels in asked[1:]] == list(range(FIRST_LABELS, MOST_LABELS + 1)), "one label at a time"


def test_int8_is_quantised_scene_by_scene() -> None:
    vectors = np.concatenate([np.linspace(0, 1, 50), np.linspace(0, 1000, 50)])[:, None].astype(np.float32)
    archive = Labelled(vectors, np.zeros(100, dtype=np.int64), np.arange(100) < 50).as_archive()
    assert np.abs(archive.vectors - vectors)[:50].max() < 0.003
