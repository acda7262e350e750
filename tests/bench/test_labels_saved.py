"""Labels that a start saves: read off a course between its measurements, and told start by start."""

import math
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from geokr_core.bench.labels_saved import BEGIN, END, courses_of, labels_needed, page_of, write_page
from geokr_core.errors import EvaluationError


@pytest.mark.parametrize(
    ("level", "needed"),
    [(10.0, 1.0), (30.0, 4.0), (25.0, 2.0 * math.sqrt(2.0)), (29.0, 2.0 * 2.0**0.9), (41.0, math.inf)],
)
def test_labels_are_read_off_between_measurements_in_their_logarithm(level: float, needed: float) -> None:
    assert labels_needed({1: 10.0, 2: 20.0, 4: 30.0, 8: 28.0, 16: 40.0}, level) == pytest.approx(needed)


def _results(**scores: list[list[float]]) -> pd.DataFrame:
    """Scores by start, seed and number of chips (4, 16, 64)."""
    rows = [
        {
            "task": "east",
            "metric": "miou",
            "initialisation": start,
            "seed": seed,
            "labels_per_class": f"{count} chips",
            "value": value,
        }
        for start, seeds in scores.items()
        for seed, course in enumerate(seeds)
        for count, value in zip((4, 16, 64), course, strict=True)
    ]
    return pd.DataFrame([*rows, {**rows[0], "metric": "cell_accuracy"}, {**rows[0], "task": "other"}])


def test_the_factor_is_over_the_best_other_start_and_its_interval_over_seeds() -> None:
    courses = courses_of(
        _results(
            random=[[0.1, 0.2, 0.25], [0.1, 0.2, 0.25]],
            simclr=[[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]],
            dense=[[0.2, 0.3, 0.4], [0.3, 0.4, 0.5]],
            geokr=[[0.1, 0.2, 0.29], [0.1, 0.2, 0.31]],
        ),
        "east",
    )
    page = page_of(courses)
    # Seed 0 needs 16 of 64, a factor of 4; seed 1 needs 4, a factor of 16: 8 in the mean of logarithms.
    assert (
        "`dense` needs 16.0, 4.0 labelled chips (by seed) for what `simclr`, the best other start, has with 64" in page
    )
    assert "**8.0 times fewer**" in page
    assert "`geokr` does not reach in every seed" in page
    assert "| `random` | 10.0 ± 0.0 | 20.0 ± 0.0 | 25.0 ± 0.0 |" in page


def test_page_and_figure_are_written_between_their_markers(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    _results(simclr=[[0.1, 0.2, 0.3]], dense=[[0.2, 0.3, 0.4]]).to_parquet(tmp_path / "evaluation/results.parquet")
    page, picture = tmp_path / "page.md", tmp_path / "saved.png"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(tmp_path, "east", page, picture)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| start | 4 | 16 | 64 |")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert Image.open(picture).size[0] > 600
    with pytest.raises(EvaluationError, match="nowhere: no mean IoU from a number of labelled chips"):
        write_page(tmp_path, "nowhere", page, picture)
