"""The report: it says the numbers it was given, says plainly what they do not show, and stands alone."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geokr_core.backbone.build import build_bundle
from geokr_core.backbone.config import BackboneConfig
from geokr_core.errors import DamagedOutputError, MissingInputError
from geokr_core.evaluation.charts import comparison_chart
from geokr_core.evaluation.output import Judged
from geokr_core.evaluation.statistics import differences, summarise
from geokr_core.levir_kr.dataset import write_manifest
from geokr_core.pictures.charts import chart_legend, initialisation_styles
from geokr_core.pretraining.charts import pretraining_chart
from geokr_core.report import page as template_module
from geokr_core.report.config import ReportConfig
from geokr_core.report.headline import headline, primaries
from geokr_core.report.page import write_report
from geokr_core.report.sections import example_rows
from geokr_core.step.digests import data_version
from geokr_core.step.files import read_json, write_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.step.summary import Summary
from geokr_core.testing import make_levir_kr, make_pretraining
from tests.report.evaluations import PRIMARY, results_of, write_evaluation


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
            "variant": "geokr",
            "seed": 0,
            "step": [10, 20],
            "train_kl": [0.9, 0.43],
            "validation_kl": [np.nan, 0.57],
            "learning_rate": [1e-3, 1e-4],
        }
    ).to_csv(pretraining / "history.csv", index=False)
    results = results_of(
        geokr=[0.7113, 0.7213, 0.7313], random=[0.5113, 0.5213, 0.5313], colour_histogram=[0.7311, 0.7211, 0.7111]
    )
    evaluation = write_evaluation(root / "evaluation", results)
    return {
        "levir_kr": dataset.folder,
        "pretraining": pretraining,
        "backbone": root / "backbone",
        "evaluation": evaluation,
    }


def written(inputs: dict[str, Path], out: Path, **config: object) -> tuple[str, Summary]:
    summary = write_report(ReportConfig.model_validate(config), inputs, out, RecordingReporter())
    return (out / "report.html").read_text(encoding="utf-8"), summary


@pytest.fixture(scope="module")
def page(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report"
    written(inputs, out, num_example_chips=5)
    return out


def test_page_and_text_name_the_parameter_file_they_were_made_with(inputs: dict[str, Path], tmp_path: Path) -> None:
    write_report(ReportConfig(num_example_chips=0), inputs, tmp_path / "out", RecordingReporter(), "params/study.yaml")
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "geokr run --params params/study.yaml" in text
        assert "--params params.yaml" not in text


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
    inside = {target for target in targets if target.startswith("#")}
    assert inside == {f"#{name}" for name in re.findall(r'<h2 id="([a-z-]+)"', text)}
    assert all(target.startswith("data:image/") for target in set(targets) - inside)
    assert "<script" not in text
    assert "<link" not in text
    assert not re.search(r"url\(|@import|https?:", text)


def test_what_was_done_with_the_backbone_has_a_section_where_it_was_done(
    page: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    audit = tmp_path / "map_audit"
    found = {"average_precision": 0.875, "precision_at_100": 0.99, "num_planted": 30.0, "plantings": 5.0}
    result = {"num_chips": 600, "num_flagged": 100, "planted_fraction": 0.05, "planted": {"<gross>": found}}
    write_json(audit / "audit.json", {**result, "kinds": {"single": 60}, "confusions": []})
    (audit / "gallery.png").write_bytes(b"picture")
    text, _ = written({**inputs, "map_audit": audit}, tmp_path / "out")
    assert '<a href="#applications">' in text
    assert "<td>&lt;gross&gt;</td><td>0.88</td>" in text or "<td>&lt;gross&gt;</td><td>0.87</td>" in text
    assert "## In use: vectors, audit, maps" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert read_json(tmp_path / "out" / "report.json")["applications"][0]["title"] == "Where image and map disagree"
    assert "In use: vectors" not in (page / "report.html").read_text(encoding="utf-8")


def test_every_table_scrolls_by_itself_where_it_is_wider_than_a_phone() -> None:
    template = Path(template_module.__file__).parent / "templates" / "report.html.j2"
    tables = [line for line in template.read_text(encoding="utf-8").splitlines() if "<table" in line]
    assert len(tables) >= 5
    assert [line for line in tables if not line.startswith('<div class="wide')] == []


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
    assert text.count("The data are generated") == 1
    manifest = inputs["levir_kr"] / "manifest.json"
    content = read_json(manifest)
    write_manifest(manifest.parent, content | {"generated_world": False})
    try:
        text, _ = written(inputs, tmp_path / "report", num_example_chips=0)
    finally:
        write_json(manifest, content)
    assert "The data are generated" not in text


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


@pytest.mark.parametrize(
    "name", ["results.parquet", "summary_table.csv", "differences.csv", "confusion.json", "evaluation.json"]
)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[1, 2", b"PAR1 nothing PAR1"])
def test_a_damaged_file_of_the_evaluation_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    folder = write_evaluation(tmp_path / "evaluation", results_of(geokr=[0.5, 0.6], random=[0.4, 0.5]))
    Judged.read(folder)
    (folder / name).write_bytes(content)

    with pytest.raises(DamagedOutputError, match=rf"{name}: cannot be read.*geokr evaluate --force"):
        Judged.read(folder)


def test_an_evaluation_of_an_earlier_version_can_still_be_read(tmp_path: Path) -> None:
    results = results_of(geokr=[0.5, 0.6], random=[0.4, 0.5])
    folder = write_evaluation(tmp_path / "evaluation", results)
    now = Judged.read(folder)
    results.assign(seconds=1.0).to_parquet(folder / "results.parquet", index=False)
    differences(results).drop(columns="items_overlap").to_csv(folder / "differences.csv", index=False)
    for name in ("summary_table.csv", "label_efficiency.csv"):
        (folder / name).unlink()
    earlier = Judged.read(folder)

    assert headline(earlier, PRIMARY) == headline(now, PRIMARY)
    assert earlier.metrics.of("fields", "accuracy").words == "accuracy"


def test_a_card_shows_what_was_measured_several_times_before_what_was_measured_once(tmp_path: Path) -> None:
    all_labels = results_of(geokr=[0.8], random=[0.7])
    five = results_of(geokr=[0.6, 0.61, 0.62], random=[0.5, 0.51, 0.52]).assign(
        labels_per_class="5", label_fraction=0.1
    )
    once = Judged.read(write_evaluation(tmp_path / "once", all_labels))
    both = Judged.read(write_evaluation(tmp_path / "both", pd.concat([all_labels, five], ignore_index=True)))

    assert [primary.labels for primary in primaries(once)] == ["all"]
    assert [primary.labels for primary in primaries(both)] == ["5"]


def test_examples_show_rare_classes_and_no_chip_twice() -> None:
    proportions = np.zeros((50, 3))
    proportions[:, 0] = 1.0
    proportions[7] = [0.2, 0.8, 0.0]
    rows = example_rows(proportions, 6)

    assert 7 in rows
    assert len(set(rows)) == 6
    assert len(example_rows(proportions, 80)) == 50
    assert len(example_rows(proportions, 0)) == 0


def test_the_first_screen_is_the_answer_in_one_sentence_and_a_card_a_task(page: Path) -> None:
    text = (page / "report.html").read_text(encoding="utf-8")
    cards = text[: text.index('id="comparison"')]
    # three pairs, each 0.2 apart
    assert "Fields, linear probe on the last stage, all labels: GeoKR is ahead of random weights: +0.200" in cards
    assert cards.count('<section class="card') == 1
    assert "Ahead, but not clearly of colour histogram" in cards
    assert cards.count('class="bar"') == cards.count('class="whisker"') == 3
    assert 'alt="Map of the chips' in cards
    assert '<figure class="chip">' in cards


def test_bars_of_a_card_are_as_long_as_the_scores(page: Path) -> None:
    text = (page / "report.html").read_text(encoding="utf-8")
    text = text[: text.index('id="comparison"')]
    lengths = [float(length) for length in re.findall(r'class="bar" style="width:([\d.]+)%', text)]
    whiskers = re.findall(r'class="whisker" style="left:([\d.]+)%;width:([\d.]+)%', text)
    # the widest is the upper end of 0.7213 ± 0.0248
    assert lengths == pytest.approx([100 * mean / 0.7461 for mean in (0.7213, 0.5213, 0.7211)], abs=0.05)
    assert float(whiskers[0][0]) + float(whiskers[0][1]) == pytest.approx(100.0, abs=0.05)


def test_the_same_facts_stand_beside_the_page_for_programs(page: Path) -> None:
    facts = read_json(page / "report.json")
    (task,) = facts["tasks"]
    assert (task["task"], task["metric"], task["standing"]) == ("fields", "accuracy", "ahead")
    assert [(one["start"], round(one["mean"], 4)) for one in task["starts"]] == [
        ("geokr", 0.7213),
        ("random", 0.5213),
        ("colour_histogram", 0.7211),
    ]
    assert facts["confusion"][0]["counts"] == [[41, 9], [13, 37]]
    assert facts["dataset"]["num_chips"] == "24"
    assert sum(facts["dataset"]["classes"].values()) == pytest.approx(1.0, abs=1e-3)
    text = (page / "report.html").read_text(encoding="utf-8")
    assert facts["learnt"] in text
    assert all(sentence in text for sentence in facts["sentences"])


# --- any number of initialisations ------------------------------------------------------------------------------------

TWELVE = (
    "geokr",
    "simclr",
    "moco",
    "dense",
    "no_teacher",
    "paper",
    "majority",
    "imagenet_gentle",
    "shuffled",
    "random",
    "imagenet",
    "colour_histogram",
)


def twelve() -> pd.DataFrame:
    """Twelve initialisations, of which `no_teacher` is the best one and GeoKR, simclr and ImageNet are fine-tuned."""
    values = {name: [0.50, 0.51, 0.52] for name in TWELVE} | {"geokr": [0.70, 0.71, 0.72]}
    values["no_teacher"] = [0.80, 0.81, 0.82]
    probed = results_of(**values)
    few = probed.assign(labels_per_class="5", label_fraction=0.1, value=probed["value"] - 0.1)
    tuned = results_of(geokr=[0.6] * 3, simclr=[0.61] * 3, imagenet=[0.4] * 3).assign(protocol="fine_tune")
    second = probed.assign(metric="macro_f1", value=0.1234)
    return pd.concat([probed, few, tuned, second], ignore_index=True)


@pytest.fixture(scope="module")
def many(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The texts of a report on twelve initialisations, whose pretraining left a correction and a calibration."""
    root = tmp_path_factory.mktemp("many")
    shutil.copytree(inputs["pretraining"], root / "pretraining")
    runs = read_json(root / "pretraining" / "runs.json")
    (root / "pretraining" / "no_teacher-seed0").mkdir()
    runs.append(runs[0] | {"variant": "no_teacher", "folder": "no_teacher-seed0"})
    write_json(root / "pretraining" / "runs.json", runs)
    matrix = {"ground_classes": ["forest", "bare_land"], "reported_classes": ["forest", "bare_land"]}
    write_json(
        root / "pretraining" / "no_teacher-seed0" / "correction.json", matrix | {"matrix": [[0.91, 0.09], [0.22, 0.78]]}
    )
    tenths = [
        {"num_chips": 3, "predicted": 0.1, "label": 0.2},
        {"num_chips": 1, "predicted": 0.8, "label": 0.5},
    ]
    calibration = [{"class": "bare_land", "predicted": 0.275, "label": 0.2754, "bins": tenths}]
    write_json(root / "pretraining" / "geokr-seed0" / "calibration.json", calibration)
    evaluation = write_evaluation(root / "evaluation", twelve())
    write_json(evaluation / "evaluation.json", {"initialisations": list(reversed(TWELVE))})
    written(inputs | {"evaluation": evaluation, "pretraining": root / "pretraining"}, root / "out", num_example_chips=0)
    return {name: (root / "out" / f"report.{name}").read_text(encoding="utf-8") for name in ("html", "md")}


def section(text: str, title: str) -> str:
    """What stands below a heading of a Markdown text, up to the next one."""
    return re.split(r"\n#+ ", text[text.index(f"# {title}\n") :].lstrip("# "))[0]


def test_styles_are_in_a_stable_order_and_no_two_of_them_look_alike() -> None:
    others = [f"variant_{number}" for number in range(20)]
    styles = initialisation_styles(["random", *others, "colour_histogram", "geokr", *others, "imagenet", "shuffled"])

    assert list(styles) == ["geokr", *others, "shuffled", "random", "imagenet", "colour_histogram"]
    assert len({(style.colour, style.marker) for style in styles.values()}) == len(styles)
    assert len({(style.colour, style.shape, style.line) for style in styles.values()}) == len(styles)
    assert styles["variant_7"].label == "variant 7"
    assert (styles["geokr"].colour, styles["random"].colour) == ("#0b6e4f", "#7a7f87")
    assert styles["imagenet"].label == "ImageNet weights"


def test_a_chart_of_twelve_shows_every_one_apart_and_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []
    draw = chart_legend

    def noted(figure: object, handles: list[object]) -> None:
        named.extend(handle.get_label() for handle in handles)  # type: ignore[attr-defined]
        draw(figure, handles)  # type: ignore[arg-type]

    monkeypatch.setattr("geokr_core.evaluation.charts.chart_legend", noted)
    summary = summarise(twelve())
    drawing = comparison_chart(summary, "svg").decode()
    dots = re.findall(r'<use [^>]*y="([\d.]+)" style="fill', drawing.partition('id="legend_1"')[0])
    heights = np.sort([float(y) for y in dots])

    assert len(dots) == (summary["metric"] == "accuracy").sum() == 2 * 12 + 3
    assert np.diff(heights).min() > 5.5  # points, as large as a marker
    assert sorted(named) == sorted(style.label for style in initialisation_styles(TWELVE).values())


def test_the_pretraining_chart_names_a_variant_once(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []
    monkeypatch.setattr(
        "geokr_core.pretraining.charts.chart_legend", lambda _, handles: named.extend(h.get_label() for h in handles)
    )
    points = {"step": [10, 20], "validation_kl": [np.nan, 0.5], "learning_rate": [1e-3, 1e-4]}
    history = [
        pd.DataFrame(points | {"variant": name, "seed": seed, "train_kl": np.nan if name == "simclr" else 0.5})
        for name in ("geokr", "no_teacher", "simclr")
        for seed in range(3)
    ]
    pretraining_chart(pd.concat(history), 1.0, "png")

    assert named == ["GeoKR", "no teacher", "simclr (no KL)", "best constant"]


def test_tables_of_many_have_a_row_for_each_and_say_what_was_not_evaluated(many: dict[str, str]) -> None:
    glance = section(many["md"], "Every task at a glance")
    scores = section(many["md"], "fields: accuracy, mean and 95 % interval over seeds")

    for style in initialisation_styles(TWELVE).values():
        assert f"| {style.label} | " in glance
        assert f"| {style.label} | " in scores
        assert f"&nbsp;{style.label}</td>" in many["html"]
    asked_for = initialisation_styles(reversed(TWELVE))
    assert re.findall(r"^\| (.+?) \|", glance, flags=re.MULTILINE)[1:] == [s.label for s in asked_for.values()]
    assert "| no teacher | 0.710 [0.685, 0.735] | 0.810 [0.785, 0.835] | – |" in scores
    assert "| simclr | 0.410 [0.385, 0.435] | 0.510 [0.485, 0.535] | 0.610 [0.610, 0.610] |" in scores


def test_differences_hold_every_contrast_of_the_first_metric_alone(many: dict[str, str]) -> None:
    compared = section(many["md"][many["md"].index("## Paired differences") :], "fields: accuracy")
    contrasts = re.findall(r"^\| (.+? − .+?) \|", compared, flags=re.MULTILINE)

    assert len(contrasts) == 11 + 7 + 6  # GeoKR with all, then the others with ImageNet and with SimCLR
    assert "| GeoKR − no teacher | −0.100 behind [−0.100, −0.100] | −0.100 behind [−0.100, −0.100] | – |" in compared
    assert "| no teacher − ImageNet weights | +0.300 ahead" in compared
    assert "macro" not in compared


def test_every_cell_that_is_lost_has_a_sentence(many: dict[str, str]) -> None:
    said = section(many["md"], "Where GeoKR loses")

    assert re.findall(r"^- (.*)", said, flags=re.MULTILINE) == [
        "fields, linear probe, last stage, 5 labels a class, accuracy: GeoKR is behind no teacher by 0.100 [0.100, 0.100].",
        "fields, linear probe, last stage, all labels, accuracy: GeoKR is behind no teacher by 0.100 [0.100, 0.100].",
        "fields, fine-tuning, whole network, all labels, accuracy: GeoKR is behind simclr by 0.010 [0.010, 0.010] *.",
    ]
    assert all(sentence in many["html"] for sentence in ("GeoKR is behind no teacher by 0.100", "behind simclr by"))


def test_what_is_lost_by_another_metric_alone_is_said(inputs: dict[str, Path], tmp_path: Path) -> None:
    even = results_of(geokr=[0.5, 0.6, 0.7], moco=[0.51, 0.59, 0.7])
    behind = results_of(geokr=[0.5, 0.6, 0.7], moco=[0.6, 0.7, 0.81]).assign(metric="macro_f1")
    evaluation = write_evaluation(tmp_path / "evaluation", pd.concat([even, behind], ignore_index=True))
    text, _ = written({**inputs, "evaluation": evaluation}, tmp_path / "report", num_example_chips=0)
    assert "all labels, macro-averaged F1: GeoKR is behind moco by 0.103" in text


def test_nothing_lost_is_said_and_one_seed_says_nothing(inputs: dict[str, Path], tmp_path: Path) -> None:
    said = "In no comparison, by any metric, is another initialisation better"
    for scores, expected in (([0.5, 0.6], True), ([0.5], False)):
        evaluation = write_evaluation(tmp_path / "evaluation", results_of(geokr=scores, moco=scores))
        text, _ = written({**inputs, "evaluation": evaluation}, tmp_path / "report", num_example_chips=0)
        assert (said in text) is expected


def test_label_efficiency_names_who_needs_the_labels(many: dict[str, str]) -> None:
    table = section(many["md"][many["md"].index("## Label efficiency") :], "fields: accuracy")

    assert "| GeoKR, to reach no teacher | not reached for 0.810 with 100.0% |" in table
    assert "| no teacher, to reach ImageNet weights | 10.0% of the labels for 0.510 with 100.0% |" in table
    assert "shuffled land cover, to reach" not in table


def test_a_correction_and_a_calibration_are_shown_for_what_they_are(many: dict[str, str], page: Path) -> None:
    correction = section(many["md"], "Correction that no teacher, seed 0, learned")
    calibration = section(many["md"], "Calibration of GeoKR, seed 0")

    assert "a statement on product and network together" in correction.replace("\n", " ")
    assert "| bare land | 0.22 | 0.78 |" in correction
    assert re.findall(r'rgb\(11 110 79 / ([\d.]+)\)">(0\.\d\d)<', many["html"]) == [
        ("0.546", "0.91"),
        ("0.000", "0.09"),
        ("0.000", "0.22"),
        ("0.468", "0.78"),
    ]
    # (3 * |0.1 - 0.2| + 1 * |0.8 - 0.5|) / 4
    assert "| bare land | 0.275 | 0.275 | 0.150 |" in calibration
    without = (page / "report.html").read_text(encoding="utf-8")
    assert "Correction that" not in without
    assert "Calibration of" not in without


def test_pretrainings_that_several_variants_share_are_one_remark(many: dict[str, str]) -> None:
    assert "GeoKR and no teacher: 3 evaluation seeds share 1 pretraining(s)" in many["md"]
