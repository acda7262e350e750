"""The card is enough: its example runs as it stands, from a file to features, and hubs can read its header."""

import contextlib
import io
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from affine import Affine

from geokr_core.backbone.build import build_bundle
from geokr_core.backbone.bundle import MODEL_CARD
from geokr_core.backbone.card import PAGE_ROWS, Comparison, Score, model_card, registry_page, taught
from geokr_core.backbone.config import BackboneConfig
from geokr_core.backbone.loader import geokr_backbone
from geokr_core.networks.network import build
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr, redescribe, write_raster


def example_of(card: str) -> str:
    """The first block of Python."""
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]


@pytest.mark.parametrize(
    ("stretch", "dtype"),
    [
        ({"kind": "percentile", "low": 2.0, "high": 98.0}, "uint16"),
        ({"kind": "fixed", "low": [0.0], "high": [0.3]}, "float32"),
        ({"kind": "none"}, "uint8"),
    ],
)
def test_the_example_of_the_card_runs_as_it_stands(
    stretch: dict[str, Any], dtype: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle, tmp_path / "my-backbone")
    redescribe(tmp_path / "my-backbone", stretch=stretch)
    values = np.random.default_rng(0).gamma(4.0, 300.0, size=(3, 90, 120))
    pixels = values / 1e4 if dtype == "float32" else values.clip(0, np.iinfo(dtype).max)
    write_raster(tmp_path / "scene.tif", pixels.astype(dtype), "EPSG:32648", Affine(10, 0, 5e5, 0, -10, 3.3e6))
    description = read_json(tmp_path / "my-backbone" / "backbone.json")
    example, side = example_of(model_card(description)), description["chip_size_px"]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "geokr_backbone", raising=False)
    sys.path_importer_cache.pop("my-backbone", None)  # of another run of this test, in another folder
    shown, names = io.StringIO(), {}
    with contextlib.redirect_stdout(shown):
        exec(compile(example, "MODEL_CARD.md", "exec"), names)  # noqa: S102  # our own text, as a reader would run it
    monkeypatch.delitem(sys.modules, "geokr_backbone")

    assert Path(names["geokr_backbone"].__file__).resolve() == tmp_path / "my-backbone" / "geokr_backbone.py"
    assert shown.getvalue() == "(1, 512)\n"
    scene = pixels.astype(dtype)
    limits = None if dtype == "uint8" else geokr_backbone.stretch_limits(scene, tmp_path / "my-backbone")
    prepared = geokr_backbone.prepare(scene, tmp_path / "my-backbone", limits=limits)[..., :side, :side]
    with torch.inference_mode():
        assert torch.allclose(names["features"], geokr_backbone.load(bundle)(prepared), atol=1e-4)


def comparison(other: str, difference: float, low: float | None, high: float | None, **more: Any) -> Comparison:
    return Comparison(other, 0.8 - difference, difference, low, high, **more)


def score(task: str, kind: str, *comparisons: Comparison) -> Score:
    how = "linear probe on last stage, all labels"
    return Score(task, kind, "0.dir", how, "accuracy", "accuracy", 0.8, 0.79, 0.81, 3, comparisons)


def test_the_card_says_how_it_was_made_and_what_it_was_tried_with(bundle: Path) -> None:
    card = (bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    for heading in (
        "From a file to features",
        "Preparing images",
        "What it saw",
        "Training recipe",
        "Licence",
        "Citation",
    ):
        assert f"\n## {heading}\n" in card
    assert "percentile 2 of the scene's" in card
    assert "| steps | 1 |" in card
    assert "from 2020-07-01" in card
    assert "10.1109/TGRS.2021.3115569" in card
    assert f"torch {torch.__version__.partition('+')[0]}, torchvision " in card
    assert "assume no advantage" in card
    assert "model-index" not in card, "nothing was measured yet"
    assert not re.search(r"\n{3,}", card)


def test_scores_stand_in_the_header_for_hubs_and_in_words_for_people(bundle: Path) -> None:
    scores = [
        score("scenes", "scene_classification", comparison("ImageNet weights", -0.1, -0.12, -0.08)),
        score("clouds", "cloud_snow", comparison("random weights", 0.2, 0.1, 0.3, items_overlap=True)),
        score("own", "own_kind", comparison("random weights", 0.0, -0.1, 0.1), comparison("other", 0.1, None, None)),
    ]
    card = model_card(read_json(bundle / "backbone.json"), scores)
    header = yaml.safe_load(card.split("---\n")[1])
    assert (header["pipeline_tag"], header["license"]) == ("image-feature-extraction", "apache-2.0")
    (model,) = header["model-index"]
    kinds = [result["task"]["type"] for result in model["results"]]
    assert kinds == ["image-classification", "image-segmentation", "image-feature-extraction"]
    assert model["results"][0]["metrics"][0]["args"] == {"ci_low": 0.79, "ci_high": 0.81, "num_seeds": 3}
    lines = card.splitlines()
    (row,) = [line for line in lines if line.startswith("| clouds |")]
    assert row.endswith(
        "| not measured | +0.200 [+0.100, +0.300], ahead (other test images could undo it) | not measured |"
    )
    assert "Comparisons: 4; no difference shown: 1; measured once, which shows nothing: 1." in lines
    losses = card[card.index("### Where it loses") : card.index("## Limits")]
    assert losses.count("\n- ") == 1
    assert "ImageNet weights reach 0.900, this backbone 0.800" in losses


def test_a_card_without_losses_or_without_other_starts_says_so(bundle: Path) -> None:
    description = read_json(bundle / "backbone.json")
    ahead = model_card(description, [score("scenes", "scene_classification", comparison("random", 0.2, 0.1, 0.3))])
    assert "In none of these comparisons does the interval show it behind." in ahead
    assert "No other start was measured beside it" in model_card(description, [score("scenes", "scene_classification")])


def test_the_page_of_the_registry_fits_whatever_was_measured(bundle: Path) -> None:
    many = [
        score(
            f"a_task_with_a_long_name_{number}",
            "scene_classification",
            *(comparison(f"other start {k}", -0.1, -0.2, -0.05) for k in range(6)),
        )
        for number in range(40)
    ]
    page = registry_page(read_json(bundle / "backbone.json"), many)
    assert page.count("| a_task_with") == PAGE_ROWS
    assert len(page) < 4000
    assert page.startswith("# geokr-resnet18\n")
    assert "and 66 more" in page


def test_cards_of_bundles_of_earlier_versions_can_be_written(bundle: Path) -> None:
    description = read_json(bundle / "backbone.json")
    old = {key: value for key, value in description.items() if key not in ("stretch", "seen", "versions")}
    old["pretraining"] = {key: old["pretraining"][key] for key in ("variant", "seed", "config")}
    card = model_card(old)
    assert "choose limits yourself" in card
    assert "Products:" not in card


@pytest.mark.parametrize(
    ("settings", "says", "does_not"),
    [
        (
            {"preset": "geokr"},
            ["Land cover of each cell", "10 classes", "all stages", "two crops of one chip"],
            ["teacher"],
        ),
        ({"preset": "averaged_teacher"}, ["Land cover of a chip", "running average"], ["cell", "crops"]),
        ({"method": "dense"}, ["each cell"], ["teacher", "crops"]),
        ({"method": "simclr"}, ["two crops", "No land cover was used"], ["shares", "teacher"]),
        ({"method": "majority"}, ["which one of 10 classes covers most", "two crops"], ["share", "teacher"]),
        ({"method": "shuffled"}, ["control: the land cover is that of other chips"], ["teacher"]),
    ],
)
def test_the_card_says_what_its_weights_learned_from(
    settings: dict[str, str], says: list[str], does_not: list[str]
) -> None:
    config = PretrainingConfig.model_validate({key: value for key, value in settings.items() if key != "method"})
    words = " ".join(taught(config.recipe(settings.get("method", "geokr")).model_dump(), 10))
    assert all(part in words for part in says), words
    assert not any(part in words for part in does_not), words


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("begun.pth", "the weights `begun.pth`."),
        ("squeezenet1_1-b8a52dc0.pth", "ImageNet weights, which learned from people's labels"),  # as published
    ],
)
def test_the_card_says_where_the_training_began(tmp_path: Path, name: str, says: str) -> None:
    dataset = make_levir_kr(tmp_path, num_chips=16)
    torch.save(build("squeezenet1_1").state_dict(), tmp_path / name)
    config = PretrainingConfig(
        architecture="squeezenet1_1",
        steps=1,
        batch_size=8,
        threads=1,
        examples_every=0,
        variants=("geokr",),
        initial_weights=tmp_path / name,
    )
    pretrain(config, dataset.folder, tmp_path / "p", tmp_path / "ck", RecordingReporter())
    build_bundle(BackboneConfig(), dataset.folder, tmp_path / "p", tmp_path / "b", RecordingReporter())
    card = (tmp_path / "b" / MODEL_CARD).read_text()
    assert f"It started from {says}" in card
    assert f"| initial_weights | {name} |" in card
    assert str(tmp_path) not in card


def test_the_card_says_that_the_training_began_at_random(bundle: Path) -> None:
    assert "It started from random weights." in model_card(read_json(bundle / "backbone.json"))
