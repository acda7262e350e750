"""The headline says what came out and how sure that is, and claims nothing else."""

import pytest

from geokr_core.report.headline import Primary
from tests.report.evaluations import results_of, said_of


def test_headline_tells_a_clear_gain() -> None:
    text = said_of(results_of(geokr=[0.70, 0.71, 0.72], random=[0.50, 0.51, 0.52], shuffled=[0.55] * 3))

    assert "accuracy of 0.710 [0.685, 0.735]" in text
    assert "GeoKR is ahead by +0.200 [+0.200, +0.200], over 3 pairs." in text
    assert "shuffled land cover it is 0.550" in text
    assert "No colour histogram was evaluated" in text


def test_headline_tells_when_nothing_is_shown() -> None:
    text = said_of(results_of(geokr=[0.70, 0.60, 0.65], random=[0.60, 0.70, 0.64]))

    assert "includes zero, so no difference is shown" in text
    assert "ahead" not in text


def test_headline_tells_of_overlap_beside_a_paired_gain() -> None:
    text = said_of(results_of(geokr=[0.60, 0.70, 0.80], random=[0.55, 0.65, 0.75]))

    assert "ahead by +0.050 [+0.050, +0.050], over 3 pairs, although the two intervals overlap." in text


def test_headline_trusts_no_gain_that_other_test_images_could_undo() -> None:
    # All labels and one pretraining: the seeds agree to the last digit, the 100 test images do not make it certain.
    results = results_of(half_width=0.08, geokr=[0.70] * 3, random=[0.66] * 3, colour_histogram=[0.65] * 3)
    text = said_of(results)

    assert "[+0.040, +0.040], over 3 pairs, but the intervals over test images overlap" in text
    assert "does not surely clear it" in text


def test_intervals_never_leave_the_range_of_a_score() -> None:
    text = said_of(results_of(geokr=[0.90, 0.99], random=[0.02, 0.10]))

    assert "0.945 [0.373, 1.000]" in text
    assert "0.060 [0.000, 0.568]" in text


def test_headline_tells_a_loss() -> None:
    text = said_of(results_of(geokr=[0.50, 0.51, 0.52], random=[0.60, 0.61, 0.62]))

    assert "GeoKR is behind by −0.100" in text


@pytest.mark.parametrize(
    ("histogram", "said"),
    [
        ([0.60, 0.61, 0.62], "GeoKR clears it by +0.100"),
        ([0.69, 0.72, 0.71], "GeoKR does not clear it"),
        ([0.80, 0.81, 0.82], "GeoKR does not clear it (−0.100"),
    ],
)
def test_headline_holds_the_result_against_the_colour_histogram(histogram: list[float], said: str) -> None:
    assert said in said_of(results_of(geokr=[0.70, 0.71, 0.72], colour_histogram=histogram))


def test_headline_claims_nothing_from_one_seed() -> None:
    text = said_of(results_of(geokr=[0.9], random=[0.5], colour_histogram=[0.6]))

    assert "no interval and no conclusion" in text
    assert "ahead" not in text
    assert "clears" not in text


def test_headline_of_one_pretraining_takes_no_interval_from_a_difference() -> None:
    results = results_of(geokr=[0.7] * 3, random=[0.50, 0.51, 0.52])
    seeds = results["seed"].astype(str)
    results["network"] = results["initialisation"] + "-" + seeds.where(results["initialisation"] == "random", "0")
    text = said_of(results)

    assert "ahead by +0.190 [+0.165, +0.215], over 3 pairs (one GeoKR, 3 times random weights)." in text
    assert "measured once" not in text
    assert text.endswith(
        "One GeoKR backbone stands in all of these pairs: its own score has no interval, and a difference without one is no conclusion."
    )


def test_headline_without_the_backbone_says_so() -> None:
    assert "was not evaluated" in said_of(results_of(random=[0.5, 0.6]))


def test_headline_names_the_other_variants_in_one_sentence() -> None:
    text = said_of(
        results_of(
            geokr=[0.70, 0.71, 0.72],
            simclr=[0.50, 0.51, 0.52],
            moco=[0.69, 0.70, 0.71],
            dense=[0.8] * 3,
            no_teacher=[0.71, 0.72, 0.70],
        )
    )

    assert (
        "Among the other variants GeoKR is ahead of simclr (+0.200) and moco (+0.010, though other test images could "
        "undo it); behind dense (−0.090); not distinguishable from no teacher (+0.000)."
    ) in text


@pytest.mark.parametrize(
    ("task", "said"), [("eurosat", "EuroSAT"), ("UCMerced", "UC Merced"), ("crop_types", "crop types")]
)
def test_headline_calls_published_sets_as_their_authors_do(task: str, said: str) -> None:
    assert Primary(task, "linear_probe", "last", "all").words.startswith(f"{said}, ")
