"""The cards on top of the page: where GeoKR stands, in words that follow from the intervals."""

import pandas as pd
import pytest

from geokr_core.evaluation.output import Judged
from geokr_core.evaluation.statistics import differences, summarise
from geokr_core.pictures.charts import initialisation_styles
from geokr_core.report.cards import Card, cards, learnt
from tests.report.evaluations import results_of


def judged_of(results: pd.DataFrame, **kinds: str) -> Judged:
    nothing = pd.DataFrame()
    facts = {name: {"kind": kind} for name, kind in kinds.items()}
    return Judged(
        results,
        summarise(results),
        differences(results),
        nothing,
        nothing,
        {},
        facts,
        cells=(),
        gallery={},
        settings={},
    )


def card_of(**values: list[float]) -> Card:
    results = results_of(**values)
    (card,) = cards(judged_of(results), initialisation_styles(results["initialisation"]))
    return card


UP, LOW, SAME = [0.70, 0.71, 0.72], [0.50, 0.51, 0.52], [0.71, 0.70, 0.72]


@pytest.mark.parametrize(
    ("values", "standing", "verdict"),
    [
        ({"geokr": UP, "random": LOW}, "ahead", "GeoKR is ahead of every start"),
        ({"geokr": LOW, "random": UP}, "behind", "GeoKR is behind random weights"),
        ({"geokr": UP, "random": SAME}, "open", "No clear difference between the starts"),
        ({"geokr": UP, "random": LOW, "imagenet": SAME}, "ahead", "Ahead, but not clearly of ImageNet weights"),
        (
            {"geokr": LOW, "random": LOW, "imagenet": UP, "shuffled": [0.80, 0.81, 0.82]},
            "behind",
            "GeoKR is behind shuffled land cover and 1 more",
        ),
        ({"geokr": [0.7], "random": [0.5]}, "open", "Measured once, so no conclusion yet"),
        ({"random": LOW, "imagenet": UP}, "open", "The pretrained backbone was not evaluated"),
        ({"geokr": UP}, "open", "Evaluated alone: nothing to compare with"),
    ],
)
def test_the_verdict_follows_from_the_paired_intervals(
    values: dict[str, list[float]], standing: str, verdict: str
) -> None:
    card = card_of(**values)
    assert (card.standing, card.verdict) == (standing, verdict)
    assert len(verdict.split()) <= 9


def test_less_is_better_turns_the_verdict_round() -> None:
    results = results_of(geokr=LOW, random=UP).assign(metric="over_screening")
    judged = judged_of(results, fields="cloud_snow")
    (card,) = cards(judged, initialisation_styles(results["initialisation"]))
    assert "less is better" in card.metric
    assert card.standing == "ahead"


def test_tasks_come_in_the_order_of_their_kinds() -> None:
    names = ("a_detector", "b_clouds", "z_scenes", "unknown")
    results = pd.concat([results_of(name, geokr=UP, random=LOW) for name in names], ignore_index=True)
    judged = judged_of(results, a_detector="detection", b_clouds="cloud_snow", z_scenes="scene_classification")
    found = cards(judged, initialisation_styles(results["initialisation"]))
    assert [card.task for card in found] == ["z_scenes", "a_detector", "b_clouds", "unknown"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"geokr": UP, "random": LOW}, "GeoKR is ahead of random weights: +0.200 [+0.200, +0.200] in accuracy."),
        ({"geokr": UP, "random": UP, "shuffled": LOW}, "GeoKR is ahead of shuffled land cover: +0.200"),
        ({"geokr": LOW, "random": UP}, "GeoKR is behind random weights: −0.200 [−0.200, −0.200] in accuracy."),
        ({"geokr": [0.7], "random": [0.5]}, "differs from random weights by +0.200 in accuracy, measured once"),
        ({"geokr": UP, "colour_histogram": LOW}, "compared with no start that says what the land cover taught"),
    ],
)
def test_what_was_learnt_is_one_sentence(values: dict[str, list[float]], sentence: str) -> None:
    results = results_of(**values)
    said = learnt(judged_of(results), initialisation_styles(results["initialisation"]))
    assert sentence in said
    assert said.count("GeoKR") == 1


def test_a_probed_task_that_was_fine_tuned_says_what_came_of_it() -> None:
    probed = results_of(geokr=UP, random=LOW)
    tuned = results_of(geokr=LOW, random=UP).assign(protocol="fine_tune", labels_per_class="5")
    not_ours = tuned[tuned["initialisation"] == "random"]

    def said(*parts: pd.DataFrame) -> str | None:
        results = pd.concat(parts, ignore_index=True)
        (card,) = cards(judged_of(results), initialisation_styles(results["initialisation"]))
        return card.fine_tuned

    assert said(probed, tuned) == (
        "Fine-tuning, 5 labels a class: GeoKR is behind random weights: −0.200 [−0.200, −0.200] in accuracy."
    )
    assert said(probed) is None
    assert said(probed, not_ours) is None
    assert said(tuned) is None
