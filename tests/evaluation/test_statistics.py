"""Means, intervals and differences against numbers worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.statistics import (
    BOOTSTRAP_RESAMPLES,
    _macro_f1_of_pairs,
    bootstrap_rows,
    contrasts,
    differences,
    flat_metrics,
    headline_rows,
    label_efficiency,
    labels_order,
    macro_f1_interval,
    paired_difference,
    summarise,
    t_interval,
    wilson_interval,
)


def results(
    *rows: tuple[str, str, str, int, float], metric: str = "accuracy", protocol: str = "linear_probe"
) -> pd.DataFrame:
    columns = ["initialisation", "features", "labels_per_class", "seed", "value"]
    return pd.DataFrame(rows, columns=columns).assign(task="set", protocol=protocol, metric=metric)


def test_t_interval_of_three_values() -> None:
    # mean 0.6, s = 0.1, t(0.975, 2) = 4.302653: half width 4.302653 * 0.1 / sqrt(3) = 0.248414
    estimate = t_interval([0.5, 0.6, 0.7])

    assert (estimate.mean, estimate.n_seeds) == (pytest.approx(0.6), 3)
    assert estimate.ci_low == pytest.approx(0.6 - 0.248414, abs=1e-5)
    assert estimate.ci_high == pytest.approx(0.6 + 0.248414, abs=1e-5)


@pytest.mark.parametrize("num_values", [2, 3, 5, 10])
def test_t_interval_has_the_digits_of_the_formula(num_values: int) -> None:
    values = np.random.default_rng(num_values).random(num_values)
    half = stats.t.ppf(0.975, num_values - 1) * values.std(ddof=1) / math.sqrt(num_values)
    found = t_interval(values.tolist())

    bounds = (found.mean, found.ci_low, found.ci_high)
    assert bounds == pytest.approx((values.mean(), values.mean() - half, values.mean() + half), rel=0, abs=1e-14)


def test_t_interval_of_two_values() -> None:
    # s = 0.1 * sqrt(2), half width t(0.975, 1) * s / sqrt(2) = 12.706205 * 0.1
    assert t_interval([0.4, 0.6]).ci_high == pytest.approx(0.5 + 1.2706205, abs=1e-5)


def test_equal_values_have_an_interval_of_no_width_and_a_single_value_has_none() -> None:
    equal, single = t_interval([0.7, 0.7, 0.7]), t_interval([0.7])

    assert (equal.ci_low, equal.ci_high) == (pytest.approx(0.7), pytest.approx(0.7))
    assert math.isnan(single.ci_low)
    assert math.isnan(single.ci_high)


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf]])
def test_a_missing_score_never_enters_a_mean(values: list[float]) -> None:
    with pytest.raises(EvaluationError, match="finite"):
        t_interval(values)


def test_wilson_interval_against_the_formula() -> None:
    # centre (p + z²/2n) / (1 + z²/n), half width z / (1 + z²/n) * sqrt(p (1 - p) / n + z² / 4n²); z = 1.959964
    z, n, p = 1.959964, 50, 0.8
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))

    assert wilson_interval(40, 50) == (pytest.approx(centre - half, abs=1e-6), pytest.approx(centre + half, abs=1e-6))


def test_macro_f1_of_coded_pairs_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for num_classes in (2, 3, 7):
        truth, predicted = rng.integers(0, num_classes, (2, 40))
        predicted[predicted == num_classes - 1] = 0  # a class that is never predicted
        expected = f1_score(truth, predicted, labels=range(num_classes), average="macro", zero_division=0.0)
        coded = (truth * num_classes + predicted).astype(np.int32)

        assert float(_macro_f1_of_pairs(num_classes)(coded)) == pytest.approx(expected)
        assert _macro_f1_of_pairs(num_classes)(np.stack([coded, coded]), axis=-1).tolist() == pytest.approx(
            [expected] * 2
        )


def test_bootstrap_interval_holds_the_score_and_narrows_with_items() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 2000)
    predicted = np.where(rng.random(2000) < 0.7, truth, (truth + 1) % 3)
    score = f1_score(truth, predicted, average="macro")
    few_low, few_high = macro_f1_interval(truth[:80], predicted[:80], 3, seed=0)
    low, high = macro_f1_interval(truth, predicted, 3, seed=0)

    assert low < score < high
    assert high - low < 0.3 * (few_high - few_low)
    assert (low, high) == macro_f1_interval(truth, predicted, 3, seed=0)


def test_summary_keeps_cells_apart_and_sorts_labels_by_size() -> None:
    summary = summarise(
        results(
            ("geokr", "last", "all", 0, 0.8),
            ("geokr", "last", "25", 0, 0.6),
            ("geokr", "last", "25", 1, 0.8),
            ("geokr", "last", "5", 0, 0.5),
            ("geokr", "multi", "5", 0, 0.9),
        )
    )

    assert summary[["features", "labels_per_class", "n_seeds"]].to_numpy().tolist() == [
        ["last", "5", 1],
        ["last", "25", 2],
        ["last", "all", 1],
        ["multi", "5", 1],
    ]
    assert summary["mean"].tolist() == pytest.approx([0.5, 0.7, 0.8, 0.9])
    assert flat_metrics(summary)["set/linear_probe/last/25/geokr/accuracy"] == pytest.approx(0.7)


def test_differences_are_taken_seed_by_seed_within_the_same_cell() -> None:
    table = differences(
        results(
            ("geokr", "last", "5", 0, 0.70),
            ("geokr", "last", "5", 1, 0.60),
            ("geokr", "last", "5", 2, 0.80),
            ("random", "last", "5", 2, 0.60),
            ("random", "last", "5", 0, 0.50),
            ("random", "last", "5", 1, 0.40),
            ("random", "last", "all", 0, 0.99),
            ("random", "multi", "5", 0, 0.99),
            ("colour_histogram", "histogram", "5", 0, 0.65),
            ("colour_histogram", "histogram", "5", 1, 0.65),
            ("colour_histogram", "histogram", "5", 2, 0.65),
        )
    ).set_index("contrast")

    # Seed by seed geokr is 0.2 ahead of random: no spread at all, although each of them spreads by 0.1.
    assert sorted(table.index) == ["geokr - colour_histogram", "geokr - random"]
    assert table.loc["geokr - random", ["mean", "ci_low", "ci_high"]].tolist() == pytest.approx([0.2, 0.2, 0.2])
    assert table.loc["geokr - colour_histogram", "mean"] == pytest.approx(0.05)
    assert table.loc["geokr - colour_histogram", "ci_low"] == pytest.approx(0.05 - 0.248414, abs=1e-5)


def test_one_network_on_all_labels_is_one_measurement_whatever_the_seeds() -> None:
    def rows(protocol: str) -> pd.DataFrame:
        table = results(
            *(("geokr", "last", "all", seed, 0.80 + 0.01 * seed) for seed in range(3)),
            *(("imagenet", "last", "all", seed, 0.70 + 0.001 * (seed == 2)) for seed in range(3)),
            *(("imagenet", "last", "5", seed, 0.60 + 0.1 * seed) for seed in range(3)),
            protocol=protocol,
        )
        networks = table["initialisation"].where(table["initialisation"] == "imagenet", table["seed"].astype(str))
        return table.assign(network=networks)

    frozen = summarise(rows("linear_probe")).set_index(["initialisation", "labels_per_class"])
    assert frozen.loc[("imagenet", "all"), "n_seeds"] == 1
    assert math.isnan(frozen.loc[("imagenet", "all"), "ci_low"])
    assert frozen.loc[("imagenet", "all"), "mean"] == pytest.approx(0.7 + 0.001 / 3)
    assert frozen.loc[("imagenet", "5"), "n_seeds"] == 3
    assert frozen.loc[("geokr", "all"), "n_seeds"] == 3
    tuned = summarise(rows("fine_tune")).set_index(["initialisation", "labels_per_class"])
    assert tuned.loc[("imagenet", "all"), "n_seeds"] == 3  # its head and its batches are drawn

    same = rows("linear_probe")
    same.loc[(same["initialisation"] == "geokr") & (same["seed"] == 2), "network"] = (
        "0"  # two pretrainings for three seeds
    )
    compared = differences(same).set_index("contrast")
    # Seeds 0 and 2 are one pair: (0.100 + 0.119) / 2 and 0.110.
    assert compared.loc["geokr - imagenet", "n_seeds"] == 2
    assert compared.loc["geokr - imagenet", "mean"] == pytest.approx((0.1095 + 0.11) / 2)


def test_everything_is_compared_with_geokr_and_what_was_trained_with_imagenet_and_simclr_too() -> None:
    names = ["geokr", "simclr", "no_teacher", "shuffled", "random", "imagenet", "colour_histogram"]

    assert contrasts(names) == [
        *(("geokr", name) for name in names[1:]),
        ("simclr", "imagenet"),
        ("no_teacher", "imagenet"),
        ("no_teacher", "simclr"),
    ]
    assert contrasts(["random", "imagenet", "simclr"]) == [("simclr", "imagenet")]
    assert contrasts(["random", "simclr", "simclr"]) == []
    assert contrasts(["joint", "simclr"]) == [("joint", "simclr")]
    beside = ["geokr", "imagenet", "imagenet+geokr", "imagenet+random"]
    assert contrasts(beside) == [
        ("geokr", "imagenet"),
        ("imagenet+geokr", "imagenet"),
        ("imagenet+geokr", "geokr"),
        ("imagenet+random", "imagenet"),
    ]


def test_differences_know_any_variant_and_its_distance_from_imagenet() -> None:
    table = differences(
        results(
            *(("geokr", "last", "5", seed, 0.70) for seed in (0, 1)),
            ("simclr", "last", "5", 0, 0.60),
            ("simclr", "last", "5", 1, 0.62),
            ("shuffled", "last", "5", 0, 0.50),
            ("shuffled", "last", "5", 1, 0.50),
            *(("imagenet", "last", "5", seed, 0.65) for seed in (0, 1)),
        )
    ).set_index("contrast")

    assert sorted(table.index) == [
        "geokr - imagenet",
        "geokr - shuffled",
        "geokr - simclr",
        "simclr - imagenet",
    ]
    assert table.loc["geokr - simclr", "mean"] == pytest.approx(0.09)
    assert table.loc["simclr - imagenet", "mean"] == pytest.approx(-0.04)


def test_a_cell_of_one_side_alone_has_no_difference() -> None:
    probed = results(*((name, "last", "5", seed, 0.6) for name in ("geokr", "simclr", "imagenet") for seed in (0, 1)))
    tuned = results(*((name, "last", "5", seed, 0.7) for name in ("geokr", "imagenet") for seed in (0, 1)))
    table = differences(pd.concat([probed, tuned.assign(protocol="fine_tune")]))
    cells = set(zip(table["protocol"], table["contrast"], strict=True))

    assert cells == {
        ("linear_probe", "geokr - simclr"),
        ("linear_probe", "geokr - imagenet"),
        ("linear_probe", "simclr - imagenet"),
        ("fine_tune", "geokr - imagenet"),
    }
    assert (table["mean"] == 0.0).all()


@pytest.mark.parametrize("missing", ["geokr", "simclr", "imagenet"])
def test_variants_of_other_seeds_are_no_pairs(missing: str) -> None:
    rows = [(name, "last", "5", seed, 0.6) for name in ("geokr", "simclr", "imagenet") for seed in (0, 1)]
    with pytest.raises(EvaluationError, match="same seeds"):
        differences(results(*(row for row in rows if (row[0], row[3]) != (missing, 1))))


def test_overlap_of_intervals_over_items_is_told_of_each_difference() -> None:
    table = results(
        ("geokr", "last", "5", 0, 0.70),
        ("simclr", "last", "5", 0, 0.66),
        ("imagenet", "last", "5", 0, 0.60),
        ("colour_histogram", "histogram", "5", 0, 0.69),
    )
    table = table.assign(ci_low=table["value"] - 0.025, ci_high=table["value"] + 0.025)
    compared = differences(table)

    assert dict(zip(compared["contrast"], compared["items_overlap"], strict=True)) == {
        "geokr - simclr": True,
        "geokr - imagenet": False,
        "geokr - colour_histogram": True,
        "simclr - imagenet": False,
    }


def test_scores_of_other_seeds_are_no_pairs() -> None:
    with pytest.raises(EvaluationError, match=r"\[0, 1\].*\[0, 2\]"):
        paired_difference({0: 0.5, 1: 0.5}, {0: 0.4, 2: 0.4})


def test_nothing_to_compare_gives_an_empty_table_with_its_columns() -> None:
    table = differences(results(("random", "last", "5", 0, 0.5)))

    assert table.empty
    assert "ci_low" in table.columns


def test_labels_are_ordered_by_size_numbers_before_shares_before_all() -> None:
    assert sorted(["all", "10%", "5", "2.5%", "20"], key=labels_order) == ["5", "20", "2.5%", "10%", "all"]


def test_a_task_is_spoken_of_by_its_first_metric() -> None:
    table = pd.DataFrame(
        {
            "task": ["a", "a", "b", "b", "c"],
            "metric": ["macro_f1", "accuracy", "ap50", "map", "miou"],
            "value": range(5),
        }
    )
    assert headline_rows(table)["value"].tolist() == [1, 3, 4]


def test_resamples_are_the_same_for_everyone_and_draw_with_replacement() -> None:
    rows = bootstrap_rows(30)

    assert rows.shape == (BOOTSTRAP_RESAMPLES, 30)
    assert np.array_equal(rows, bootstrap_rows(30))
    assert (np.sort(rows, axis=1) != np.arange(30)).any()
    assert (rows.min(), rows.max()) == (0, 29)


def replicates(**values: list[list[float]]) -> pd.DataFrame:
    rows = [
        {
            "task": "set",
            "protocol": "linear_probe",
            "features": "last",
            "labels_per_class": "all",
            "metric": "accuracy",
            "initialisation": name,
            "seed": seed,
            "replicates": tuple(numbers),
        }
        for name, of_seeds in values.items()
        for seed, numbers in enumerate(of_seeds)
    ]
    return pd.DataFrame(rows)


def test_resamples_of_two_initialisations_are_subtracted_in_pairs() -> None:
    # Both swing by 0.4 together: apart their intervals are wide, their difference is always 0.1.
    swing = np.linspace(0.3, 0.7, 50).tolist()
    table = results(
        ("geokr", "last", "all", 0, 0.6),
        ("random", "last", "all", 0, 0.5),
        ("geokr", "last", "all", 1, 0.6),
        ("random", "last", "all", 1, 0.5),
    )
    known = replicates(geokr=[[v + 0.1 for v in swing]] * 2, random=[swing] * 2)
    found = differences(table, known).iloc[0]

    assert (found["items_ci_low"], found["items_ci_high"]) == (pytest.approx(0.1), pytest.approx(0.1))
    assert math.isnan(differences(table).iloc[0]["items_ci_low"])
    assert math.isnan(differences(table, known[known["seed"] == 0].iloc[:1]).iloc[0]["items_ci_low"])


def curve(name: str, *values: tuple[float, float]) -> list[dict[str, object]]:
    return [
        {
            "task": "set",
            "protocol": "fine_tune",
            "features": "last",
            "metric": "miou",
            "initialisation": name,
            "label_fraction": fraction,
            "labels_per_class": str(fraction),
            "seed": 0,
            "value": value,
        }
        for fraction, value in values
    ]


def test_label_efficiency_is_interpolated_over_the_logarithm_of_the_labels() -> None:
    table = pd.DataFrame(
        [
            *curve("geokr", (0.01, 0.2), (0.1, 0.4), (1.0, 0.6)),
            *curve("random", (0.01, 0.1), (0.1, 0.2), (1.0, 0.5)),
            *curve("imagenet", (0.01, 0.3), (0.1, 0.5), (1.0, 0.7)),
            *curve("shuffled", (0.01, 0.1), (0.1, 0.1), (1.0, 0.15)),
        ]
    )
    found = label_efficiency(table).set_index("initialisation")

    assert set(found["ours"]) == {"geokr"}
    assert found.loc["random", "target"] == 0.5
    assert found.loc["random", "needed_label_fraction"] == pytest.approx(10**-0.5)  # half way between 10 and 100 %
    assert math.isnan(found.loc["imagenet", "needed_label_fraction"])
    assert found.loc["shuffled", "needed_label_fraction"] == pytest.approx(0.01)
    assert label_efficiency(pd.DataFrame(curve("random", (0.1, 0.2), (1.0, 0.3)))).empty


def test_label_efficiency_of_variants_stands_beside_imagenet_and_that_of_geokr_beside_the_histogram() -> None:
    colours = [row | {"features": "histogram"} for row in curve("colour_histogram", (0.1, 0.2), (1.0, 0.4))]
    table = pd.DataFrame(
        [
            *curve("geokr", (0.1, 0.4), (1.0, 0.6)),
            *curve("dense", (0.1, 0.3), (1.0, 0.5)),
            *curve("moco", (1.0, 0.9)),  # one amount of labels tells nothing of fewer
            *curve("shuffled", (0.1, 0.3), (1.0, 0.5)),
            *curve("imagenet", (0.1, 0.3), (1.0, 0.4)),
            *colours,
        ]
    )
    found = label_efficiency(table).set_index(["ours", "initialisation"])

    assert sorted(found.index) == [
        ("dense", "imagenet"),
        ("geokr", "colour_histogram"),
        ("geokr", "dense"),
        ("geokr", "imagenet"),
        ("geokr", "moco"),
        ("geokr", "shuffled"),
    ]
    assert found.loc[("dense", "imagenet"), "needed_label_fraction"] == pytest.approx(10**-0.5)
    assert found.loc[("geokr", "colour_histogram"), "needed_label_fraction"] == pytest.approx(0.1)
    assert math.isnan(found.loc[("geokr", "moco"), "needed_label_fraction"])
