"""The pretraining methods: one registry, one loop (``training``), and what each method's step does.

A method is a name for a few settings laid over the preset, so that two methods differ in these and in nothing else:
same chips, same steps, same backbone, same loop. What they switch on is in ``land_cover`` (everything that learns from
a product), ``correction`` (the product's confusions) and ``contrastive`` (baselines that see no product).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from geokr_core.config import Method as MethodName


@dataclass(frozen=True)
class Method:
    """One way to pretrain.

    Attributes:
        summary: what it does, in a line.
        changes: fields of the recipe that it sets over the preset; what the parameter file names wins over them.
        required: fields that make the method what it is; they win over everything.
        preset: preset that it starts from whatever the parameter file says; None: the parameter file's.
    """

    summary: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    required: Mapping[str, Any] = field(default_factory=dict)
    preset: Literal["paper"] | None = None


_CONTRASTIVE: Final = {
    "crop_area_fraction": (0.2, 1.0),
    "jitter": 0.4,
    "grey_fraction": 0.2,
}
"""Chen and others 2020 as far as whole bands allow it: strong crops, colour jitter, every fifth chip grey. No blur."""

_NO_LAND_COVER: Final = {
    "consistency": "none",
    "label_follows_crop": False,
    "dense_weight": 0.0,
    "correction": False,
    "contrast_weight": 0.0,
    "transfer": "student",
}

METHODS: Final[Mapping[MethodName, Method]] = {
    "geokr": Method("Land-cover proportions and an averaged teacher; the recipe of `pretraining.preset`."),
    "paper": Method("The method as it was first published, whatever the preset.", preset="paper"),
    "shuffled": Method(
        "Control: land cover is handed round among the training chips, so that it says nothing about them.",
        required={"labels": "shuffled"},
    ),
    "majority": Method(
        "Baseline: only the class that covers most of the ground, as a usual classification.",
        required={"labels": "majority"},
    ),
    "dense": Method("Land cover of every feature-map cell besides that of the chip.", {"dense_weight": 1.0}),
    "corrected": Method("A learned matrix takes up the classes that the product confuses.", {"correction": True}),
    "joint": Method(
        "Land cover and contrast: two crops of a chip, each held to its own land cover and told from all other chips.",
        _CONTRASTIVE | {"contrast_weight": 1.0, "consistency": "none", "transfer": "student"},
    ),
    "distilled": Method(
        "Control: what the preset holds the backbone to its start by, and no land cover; needs an anchor.",
        required={"land_cover_weight": 0.0, "dense_weight": 0.0, "correction": False, "contrast_weight": 0.0}
        | {"label_follows_crop": False},
    ),
    "simclr": Method(
        "Baseline without land cover: two views of a chip are told from all other chips of the batch.",
        _CONTRASTIVE,
        _NO_LAND_COVER | {"objective": "simclr"},
    ),
    "moco": Method(
        "Baseline without land cover: a view is matched with the averaged network's, against a memory of chips.",
        _CONTRASTIVE | {"teacher_momentum": 0.99, "batchnorm": "averaged", "teacher_schedule": "every_step"},
        _NO_LAND_COVER | {"objective": "moco"},
    ),
}
"""Every method by its name in the parameter file; `config.Method` lists the same."""
