"""The report: it says the numbers it was given, says plainly what they do not show, and stands alone."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geokr_core.bundle import build_bundle
from geokr_core.config import BackboneConfig, ReportConfig
from geokr_core.errors import MissingInputError
from geokr_core.evaluate import RESULT_COLUMNS
from geokr_core.files import data_version, read_json, write_json
from geokr_core.report import Primary, example_rows, headline, write_report
from geokr_core.reporter import RecordingReporter
from geokr_core.summary import Summary
from geokr_core.testing import make_levir_kr, make_pretraining

PRIMARY = Primary("fields", "linear_probe", "last", "all")


def results_of(task: str = "fields", *, half_width: float = 0.02, **values: list[float]) -> pd.DataFrame:
    """Accuracy rows: a list of values a seed for each initialisation."""
    rows = [
        {
            "task": task, "dataset": task, "initialisation": name, "label_fraction": 1.0, "labels_per_class": "all",
            "protocol": "linear_probe", "features": "histogram" if name == "colour_histogram" else "last",
            "seed": seed, "metric": "accuracy", "value": value, "n": 100, "ci_low": value - half_width,
            "ci_high": value + half_width, "seconds": 1.0, "backbone_version": "b.dir", "data_version": "d.dir",
            "architecture": "squeezenet1_1",
        }
        for name, scores in values.items()
        for seed, value in enumerate(scores)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(RESULT_COLUMNS))


def write_evaluation(folder: Path, results: pd.DataFrame) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    results.to_parquet(folder / "results.parquet", index=False)
    matrix = {
        "protocol": "linear_probe", "features": "last", "labels_per_class": "all", "seed": 0,
        "labels": ["Field", "<b>Bold</b>"], "matrix": [[41, 9], [13, 37]],
    }  # fmt: skip
    tasks = sorted(set(results["task"]))
    write_json(folder / "confusion.json", {task: {"geokr": matrix, "random": matrix} for task in tasks})
    write_json(folder / "evaluation.json", {"seeds": [0, 1, 2]})
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    dataset = make_levir_kr(root, num_chips=24)
    pretraining = make_pretraining(root / "pretraining", dataset)
    build_bundle(BackboneConfig(), dataset.folder, pretraining, root / "backbone", RecordingReporter())
    figures = {"train_kl": 0.4321, "validation_kl": 0.5678, "constant_kl": 1.1, "num_steps": 20}
    write_json(pretraining / "runs.json", [run | figures for run in read_json(pretraining / "runs.json")])
    pd.DataFrame(
        {
            "variant": "geokr", "seed": 0, "step": [10, 20], "train_kl": [0.9, 0.43], "validation_kl": [np.nan, 0.57],
            "learning_rate": [1e-3, 1e-4],
        }
    ).to_csv(pretraining / "history.csv", index=False)  # fmt: skip
    results = results_of(
        geokr=[0.7113, 0.7213, 0.7313], random=[0.5113, 0.5213, 0.5313], colour_histogram=[0.7311, 0.7211, 0.7111]
    )
    evaluation = write_evaluation(root / "evaluation", results)
    return {
        "levir_kr": dataset.folder, "pretraining": pretraining, "backbone": root / "backbone", "evaluation": evaluation,
    }  # fmt: skip


def written(inputs: dict[str, Path], out: Path, **config: object) -> tuple[str, Summary]:
    summary = write_report(ReportConfig.model_validate(config), inputs, out, RecordingReporter())
    return (out / "report.html").read_text(encoding="utf-8"), summary


@pytest.fixture(scope="module")
def page(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report"
    written(inputs, out, num_example_chips=5)
    return out


def test_page_and_text_hold_the_numbers_of_the_results(page: Path) -> None:
    for name in ("report.html", "report.md"):
        text = (page / name).read_text(encoding="utf-8")
        # s = 0.01 over three seeds: half width 4.302653 * 0.01 / sqrt(3) = 0.0248
        assert "0.721" in text
        assert "[0.696, 0.746]" in text
        assert "[0.496, 0.546]" in text
        assert "+0.200" in text
        assert "0.432" in text
        assert "0.568" in text
        assert "1.100" in text


def test_page_shows_confusion_chips_and_provenance(page: Path, inputs: dict[str, Path]) -> None:
    text = (page / "report.html").read_text(encoding="utf-8")

    assert re.findall(r'style="background:rgb[^"]*">(\d+)</td>', text) == ["41", "9", "13", "37"]
    assert text.count('<figure class="chip">') == 5
    assert "24 chips of 32 × 32 px" in text
    assert "geokr run --params params.yaml" in text
    for folder in inputs.values():
        assert data_version(folder) in text


def test_bars_beside_a_chip_are_as_long_as_its_proportions(page: Path) -> None:
    text = (page / "report.html").read_text(encoding="utf-8")
    stacks = re.findall(r'<div class="stack">(.*?)</div></div>', text)
    for stack in stacks:
        lengths = [float(length) for length in re.findall(r"height:([\d.]+)%", stack)]
        assert sum(lengths) == pytest.approx(100.0, abs=0.1)
    assert len(stacks) == 5


def test_page_fetches_nothing_and_runs_nothing(page: Path) -> None:
    text = (page / "report.html").read_text(encoding="utf-8")
    targets = re.findall(r"""(?:src|href|action|data|poster|srcset)\s*=\s*["']([^"']*)""", text)

    assert targets
    assert all(target.startswith("data:image/") for target in targets)
    assert "<script" not in text
    assert "<link" not in text
    assert not re.search(r"url\(|@import|https?:", text)


def test_names_cannot_smuggle_markup_in(inputs: dict[str, Path], tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    evaluation = write_evaluation(tmp_path / "evaluation", results_of(evil, geokr=[0.5, 0.6], random=[0.4, 0.5]))
    text, _ = written({**inputs, "evaluation": evaluation}, tmp_path / "report", title="A & <i>B</i>")

    assert evil not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "A &amp; &lt;i&gt;B&lt;/i&gt;" in text
    assert "&lt;b&gt;Bold&lt;/b&gt;" in text


def test_same_inputs_give_the_same_bytes(page: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    written(inputs, tmp_path / "again", num_example_chips=5)

    assert data_version(tmp_path / "again") == data_version(page)


def test_generated_data_are_said_to_be_generated_and_only_they(inputs: dict[str, Path], tmp_path: Path) -> None:
    text, _ = written(inputs, tmp_path / "report", num_example_chips=0)
    assert "The data are generated." in text
    manifest = inputs["levir_kr"] / "manifest.json"
    content = read_json(manifest)
    write_json(manifest, content | {"generated_world": False})
    try:
        text, _ = written(inputs, tmp_path / "report", num_example_chips=0)
    finally:
        write_json(manifest, content)
    assert "The data are generated." not in text


def test_headline_tells_a_clear_gain() -> None:
    text = headline(results_of(geokr=[0.70, 0.71, 0.72], random=[0.50, 0.51, 0.52], shuffled=[0.55] * 3), PRIMARY)

    assert "accuracy of 0.710 [0.685, 0.735]" in text
    assert "GeoKR is ahead by +0.200 [+0.200, +0.200], paired over 3 seeds." in text
    assert "shuffled land cover it is 0.550" in text
    assert "No colour histogram was evaluated" in text


def test_headline_tells_when_nothing_is_shown() -> None:
    text = headline(results_of(geokr=[0.70, 0.60, 0.65], random=[0.60, 0.70, 0.64]), PRIMARY)

    assert "includes zero, so no difference is shown" in text
    assert "ahead" not in text


def test_headline_tells_of_overlap_beside_a_paired_gain() -> None:
    text = headline(results_of(geokr=[0.60, 0.70, 0.80], random=[0.55, 0.65, 0.75]), PRIMARY)

    assert "ahead by +0.050 [+0.050, +0.050], paired over 3 seeds, although the two intervals overlap." in text


def test_headline_trusts_no_gain_that_other_test_images_could_undo() -> None:
    # All labels and one pretraining: the seeds agree to the last digit, the 100 test images do not make it certain.
    results = results_of(half_width=0.08, geokr=[0.70] * 3, random=[0.66] * 3, colour_histogram=[0.65] * 3)
    text = headline(results, PRIMARY)

    assert "[+0.040, +0.040], paired over 3 seeds, but the intervals over test images overlap" in text
    assert "does not surely clear it" in text


def test_intervals_never_leave_the_range_of_a_score() -> None:
    text = headline(results_of(geokr=[0.90, 0.99], random=[0.02, 0.10]), PRIMARY)

    assert "0.945 [0.373, 1.000]" in text
    assert "0.060 [0.000, 0.568]" in text


def test_headline_tells_a_loss() -> None:
    text = headline(results_of(geokr=[0.50, 0.51, 0.52], random=[0.60, 0.61, 0.62]), PRIMARY)

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
    assert said in headline(results_of(geokr=[0.70, 0.71, 0.72], colour_histogram=histogram), PRIMARY)


def test_headline_claims_nothing_from_one_seed() -> None:
    text = headline(results_of(geokr=[0.9], random=[0.5], colour_histogram=[0.6]), PRIMARY)

    assert "no interval, and no claim" in text
    assert "ahead" not in text
    assert "clears" not in text


def test_headline_without_the_backbone_says_so() -> None:
    assert "was not evaluated" in headline(results_of(random=[0.5, 0.6]), PRIMARY)


def test_shared_pretrainings_are_said(page: Path) -> None:
    assert "3 evaluation seeds share 1 pretraining(s)" in (page / "report.html").read_text(encoding="utf-8")


def test_summary_shows_the_primary_means(inputs: dict[str, Path], tmp_path: Path) -> None:
    _, summary = written(inputs, tmp_path / "report", num_example_chips=0)

    assert summary.numbers["fields/geokr_accuracy"] == pytest.approx(0.7213)
    assert summary.numbers["fields/gain_over_random"] == pytest.approx(0.2)
    assert summary.picture_png is not None
    assert summary.picture_png.startswith(b"\x89PNG")
    assert len(summary.picture_png) < 200_000


def test_a_missing_input_is_named(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"results.parquet.*geokr evaluate"):
        written({**inputs, "evaluation": tmp_path}, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_examples_show_rare_classes_and_no_chip_twice() -> None:
    proportions = np.zeros((50, 3))
    proportions[:, 0] = 1.0
    proportions[7] = [0.2, 0.8, 0.0]
    rows = example_rows(proportions, 6)

    assert 7 in rows
    assert len(set(rows)) == 6
    assert len(example_rows(proportions, 80)) == 50
    assert len(example_rows(proportions, 0)) == 0
