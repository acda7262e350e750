"""The model card of a backbone: what it saw, how it was trained, what it scores, how to use it. Markdown, for people.

One text for two places: the bundle's ``MODEL_CARD.md``, written before anything is evaluated, and ``README.md`` of a registered
version, with scores. A shorter one is the page of a version in the registry.

Not here: where scores come from (``registry.evidence``), the same facts for catalogues (``backbone.stac_item``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from geokr_core import __version__
from geokr_core.networks.architectures import spec_of

PAGE_ROWS: Final = 12
"""Scores on the registry's page, which holds 5000 characters; the card has all of them."""

MEASURED_ONCE: Final = "measured once"
NO_DIFFERENCE: Final = "no difference shown"

_TEMPLATES: Final = Path(__file__).parent / "templates"

_LOADERS: Final[Mapping[str, tuple[str, str]]] = {
    "torchvision": ("torchvision", "into_torchvision(FOLDER)"),
    "timm": ("timm", "into_timm(FOLDER)"),
    "smp": ("segmentation-models-pytorch", 'into_smp(FOLDER, decoder="Unet", classes=6)'),
}
"""Title and call of each library that weights can be loaded into."""

_HUB_TASKS: Final[Mapping[str, str]] = {
    "scene_classification": "image-classification",
    "segmentation": "image-segmentation",
    "cloud_snow": "image-segmentation",
    "detection": "object-detection",
}
"""What a hub calls each kind of task."""

_NO_RECIPE: Final = frozenset(
    {"threads", "log_every", "checkpoint_every", "keep_checkpoints", "examples_every", "compile", "device"}
    | {"variants", "seeds"}
)
"""Settings of the pretraining that say how it ran, or what else was trained, and not what the weights learned."""


@dataclass(frozen=True)
class Comparison:
    """The backbone beside another start, on the same labels and test items.

    Attributes:
        other: the other start, in words.
        value: what that one reaches.
        difference: by how much the backbone is better; below zero it is worse.
        ci_low: lower bound of its 95 % interval; None where it was measured once.
        ci_high: upper bound.
        items_overlap: whether the intervals over test items overlap all the same.
    """

    other: str
    value: float
    difference: float
    ci_low: float | None
    ci_high: float | None
    items_overlap: bool = False

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.ci_low is None or self.ci_high is None:
            return MEASURED_ONCE
        return "ahead" if self.ci_low > 0 else "behind" if self.ci_high < 0 else NO_DIFFERENCE

    @property
    def text(self) -> str:
        """Difference, interval and verdict."""
        interval = "" if self.ci_low is None else f" [{self.ci_low:+.3f}, {self.ci_high:+.3f}]"
        doubt = (
            " (other test images could undo it)" if self.items_overlap and self.verdict in ("ahead", "behind") else ""
        )
        return f"{self.difference:+.3f}{interval}, {self.verdict}{doubt}"


@dataclass(frozen=True)
class Score:
    """One figure of an evaluation.

    Attributes:
        task: name of the labelled set.
        kind: of the task.
        data_version: of the labelled set.
        how: protocol, features and labels, in words.
        metric: its name.
        words: the metric in words.
        value: mean over seeds.
        ci_low: lower bound of its 95 % interval over seeds; None where it was measured once.
        ci_high: upper bound.
        num_seeds: independent repetitions.
        comparisons: the other starts.
        task_words: the task as it is read; empty: by its name.
    """

    task: str
    kind: str
    data_version: str
    how: str
    metric: str
    words: str
    value: float
    ci_low: float | None
    ci_high: float | None
    num_seeds: int
    comparisons: tuple[Comparison, ...] = ()
    task_words: str = ""

    @property
    def title(self) -> str:
        """The task, for people."""
        return self.task_words or self.task

    @property
    def text(self) -> str:
        """Value and interval."""
        return f"{self.value:.3f}" + ("" if self.ci_low is None else f" [{self.ci_low:.3f}, {self.ci_high:.3f}]")


def model_card(description: Mapping[str, Any], scores: Sequence[Score] = ()) -> str:
    """The card, with the header that hubs read.

    Args:
        description: content of ``backbone.json``, of this or an earlier version.
        scores: of an evaluation of this backbone; none: it says where they are to be found.
    """
    header = {
        "license": str(description["licence"]).lower(),
        "library_name": "pytorch",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["remote-sensing", "earth-observation", "land-cover", "backbone", str(description["architecture"])],
        **({"model-index": [_model_index(str(description["model_name"]), scores)]} if scores else {}),
    }
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{text}---\n\n{_render('model_card.md.jinja', description, scores)}"


def registry_page(description: Mapping[str, Any], scores: Sequence[Score] = ()) -> str:
    """What the registry shows of a version below its verdict: the card in short.

    Args:
        description: content of ``backbone.json``.
        scores: of an evaluation.
    """
    return _render("registry_page.md.jinja", description, scores[:PAGE_ROWS])


def _model_index(name: str, scores: Sequence[Score]) -> dict[str, Any]:
    """The block of results that hubs read."""
    results = []
    for task in dict.fromkeys(score.task for score in scores):
        own = [score for score in scores if score.task == task]
        metrics = [
            {
                "type": score.metric,
                "name": f"{score.words}, {score.how}",
                "value": round(score.value, 4),
                "args": {
                    "ci_low": None if score.ci_low is None else round(score.ci_low, 4),
                    "ci_high": None if score.ci_high is None else round(score.ci_high, 4),
                    "num_seeds": score.num_seeds,
                },
            }
            for score in own
        ]
        results.append(
            {
                "task": {"type": _HUB_TASKS.get(own[0].kind, "image-feature-extraction"), "name": own[0].kind},
                "dataset": {"name": task, "type": task, "revision": own[0].data_version},
                "metrics": metrics,
            }
        )
    return {"name": name, "results": results}


def _render(template: str, description: Mapping[str, Any], scores: Sequence[Score]) -> str:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  # Markdown of our own fields, not HTML
    )
    facts = {"seen": None, "stretch": {"kind": "not recorded"}, "versions": {}, **description}
    return environment.get_template(template).render(
        facts,
        scores=scores,
        others=list(dict.fromkeys(one.other for score in scores for one in score.comparisons)),
        lost=[(score, one) for score in scores for one in score.comparisons if one.verdict == "behind"],
        undecided=sum(one.verdict == NO_DIFFERENCE for score in scores for one in score.comparisons),
        once=sum(one.verdict == MEASURED_ONCE for score in scores for one in score.comparisons),
        recipe=_recipe(description["pretraining"]["config"]),
        started=_started(description["pretraining"]["config"]),
        taught=taught(description["pretraining"]["config"], len(description["classes"])),
        loaders=dict(_LOADERS[row["library"]] for row in description["network"]["loads_into"]),
        geokr_version=__version__,
    )


def taught(config: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """What the weights learned, a sentence in Markdown for each thing; the last one may say that it was a control.

    Args:
        config: settings of the pretraining, its recipe resolved. A setting that earlier versions did not know counts as off.
        num_classes: of the land cover.
    """
    contrast = "**Contrast:** two crops of one chip get features that are alike, and unlike those of all other chips."
    objective = config.get("objective", "land_cover")
    if objective in ("simclr", "moco"):
        return contrast, "No land cover was used."
    if objective != "land_cover":
        return (f"What the objective `{objective}` asks.",)
    shares = f"which share of the ground each of {num_classes} classes covers"
    source = "A land-cover map has the answer"
    parts = []
    if config.get("land_cover_weight", 1.0) > 0:
        largest = config.get("labels") == "majority"
        asked = f"which one of {num_classes} classes covers most of the ground" if largest else shares
        teacher = (
            ""
            if config.get("consistency") == "none"
            else "; so has a teacher, the running average of the network itself"
        )
        parts.append(f"**Land cover of a chip:** {asked}. {source}{teacher}.")
    if config.get("dense_weight", 0.0) > 0:
        parts.append(
            f"**Land cover of each cell** of a grid over a chip: {shares}. {source}. The predictions are read from all stages of the network."
        )
    if config.get("contrast_weight", 0.0) > 0:
        parts.append(contrast)
    if config.get("labels") == "shuffled":
        parts.append("This is a control: the land cover is that of other chips, and says nothing of those it saw.")
    return (*parts,) or ("To stay near the weights that it started from.",)


def _started(config: Mapping[str, Any]) -> str:
    """Where the training began: ImageNet's weights come from people's labels, and a card may not hide that."""
    weights = config.get("initial_weights")
    if weights is None:
        return "It started from random weights."
    if weights["file"] == spec_of(config["architecture"]).imagenet.file:
        return "It started from ImageNet weights, which learned from people's labels of everyday pictures."
    return f"It started from the weights `{weights['file']}`."


def _recipe(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings of the pretraining that shaped the weights; of a file of initial weights its name alone."""
    weights = config.get("initial_weights")
    named = {**config, "initial_weights": None if weights is None else weights["file"]}
    return {
        key: str(value)
        for key, value in named.items()
        if key not in _NO_RECIPE and value is not None and not isinstance(value, Mapping)
    }
