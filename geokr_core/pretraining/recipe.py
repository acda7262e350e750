"""What a recipe is: every choice of a pretraining, each declared once.

The parameter file may overrule the fields of `Choices`; `RecipeOverrides` is made of them and is part of its section. What
presets and methods alone decide is added by `Recipe`. Free of torch, as everything that the parameter file reads.

Not here: the presets and methods that fill a recipe (``pretraining.recipes``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, create_model

from geokr_core.errors import ConfigError
from geokr_core.networks.strength import Strength
from geokr_core.step.section import Section

Consistency = Literal["kl_teacher_student", "kl_student_teacher", "ce_student_teacher", "none"]

Reduction = Literal["per_sample", "per_element"]
"""``per_sample``: mean over the batch; ``per_element``: divided by the number of classes too, as first published."""

BatchNormPolicy = Literal["averaged", "copied", "own"]
"""What becomes of the teacher's BatchNorm statistics.

``averaged``: a running average of the student's, like the weights; the teacher predicts in eval mode.
``copied``: the student's as they are at each update; eval mode.
``own``: the teacher stays in train mode, normalises with the statistics of each batch and gathers its own.
"""


class Choices(Section):
    """Choices of a recipe that the parameter file may overrule."""

    learning_rate: float = Field(gt=0, description="peak; null, here and below: as the recipe says")
    weight_decay: float = Field(ge=0, description="not applied to biases and normalisation weights")
    warmup_steps: int = Field(ge=0, description="steps over which the learning rate rises linearly")
    head_warmup_steps: int = Field(
        0, ge=0, description="first steps, in which only the head learns, to protect given weights"
    )
    backbone_learning_rate_factor: float = Field(
        1.0, gt=0, le=1, description="learning rate of the backbone, as a factor of the head's"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor of the learning rate from each stage to the one before it"
    )
    anchor: Literal["weights", "features", "stages", "cells"] = Field(
        "weights",
        description="what `anchor_weight` keeps close to the start: weights (L2-SP), pooled last stage, all pooled stages, or cells of the last stage",
    )
    anchor_weight: float = Field(0.0, ge=0, description="weight of the distance from the start; 0: none")
    anchor_zoom: float = Field(
        1.0, ge=1, le=8, description="the start sees each chip enlarged by this; not with `anchor: weights`"
    )
    interpolation: float = Field(1.0, ge=0, le=1, description="delivered weights = start + this × (trained − start)")
    gradient_clip_norm: float = Field(0.0, ge=0, description="gradients are scaled down to this norm; 0: never")
    labels: Literal["proportions", "shuffled", "majority"] = Field(
        "proportions", description="the chip's own land cover, another chip's (control), or its largest class alone"
    )
    label_resolution_m: float | None = Field(
        None,
        gt=0,
        description="land cover is averaged over squares of this side before it is learnt (control); null: as it is",
    )
    balance: Literal["none", "class", "sensor", "resolution"] = Field(
        "none", description="chips of rare largest classes, sensors or resolutions are seen more often"
    )
    balance_power: float = Field(1.0, ge=0, le=1, description="how much: 0 chips count alike, 1 groups do")
    max_pure_fraction: float = Field(
        1.0, gt=0, le=1, description="largest share of what is seen that is chips of (95 %) one class"
    )
    land_cover_weight: float = Field(1.0, ge=0, description="weight of the chip's land cover and of the teacher")
    consistency: Consistency = Field(
        description="loss between student and teacher; `ce_student_teacher` is the form first published"
    )
    consistency_weight: float = Field(ge=0, description="its weight once ramped up")
    teacher_momentum: float = Field(ge=0, le=1, description="share of the old teacher that stays at each update")
    teacher_schedule: Literal["every_step", "released", "released_scaled"] = Field(
        description="each step with warmed-up momentum, or the rare updates first published: by images seen, or at the same shares of the run"
    )
    batchnorm: BatchNormPolicy = Field(
        description="teacher's BatchNorm buffers: EMA of, or copies of, the student's, or its own"
    )
    reduction: Reduction = Field(description="mean over chips, or over chips and classes as first published")
    two_views: bool = Field(description="different augmentations for student and teacher")
    transfer: Literal["teacher", "student"] = Field(description="which of the two networks becomes the backbone")
    label_weighting: bool = Field(
        description="weight a chip's proportions by known fraction, voting cells and time gap; land cover of cells is not weighed"
    )
    label_follows_crop: bool = Field(
        description="a crop is labelled with the land cover of exactly its area; needs a Levir-KR with `cells.npy`"
    )
    cell_mean: bool = Field(
        False,
        description="the chip's proportions are predicted as the mean of what each cell is, read from all stages; needs `cells.npy`",
    )
    types_weight: float = Field(
        0.0, ge=0, description="weight of telling types of ground apart: clusters of land cover and place; 0: none"
    )
    num_types: int = Field(128, ge=2, description="how many types")
    types_land_cover: float = Field(
        1.0, ge=0, description="factor of land cover among what makes a type; 0: place alone"
    )
    types_place: float = Field(1.0, ge=0, description="factor of place among what makes a type; 0: land cover alone")
    dense_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the land cover of every cell that the data set knows, read from all stages; needs `cells.npy`",
    )
    correction: bool = Field(False, description="learn which classes the product confuses")
    correction_identity_weight: float = Field(
        0.05, ge=0, description="how much each share of a class that is confused costs"
    )
    correction_aggregation_weight: float = Field(
        0.1, ge=0, description="how much mixed and ragged land cover within a chip costs"
    )
    contrast_weight: float = Field(0.0, ge=0, description="weight of SimCLR's loss beside land cover; 0: none")
    contrast_softness: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the contrast's target that chips get by how alike their land cover is; 0: the other crop gets all",
    )
    temperature: float = Field(0.2, gt=0, description="of the contrastive losses")
    memory_bank_size: int = Field(4096, ge=1, description="chips that `moco` keeps as negatives")


if TYPE_CHECKING:

    class RecipeOverrides(Section):
        """Every field of `Choices`, or null. Made at run time; type checkers let any field pass."""

        model_config = ConfigDict(extra="allow")

else:
    RecipeOverrides = create_model(
        "RecipeOverrides",
        __base__=Section,
        **{
            name: (
                Annotated[field.annotation, *field.metadata] | None if field.metadata else field.annotation | None,
                Field(None, description=field.description),
            )
            for name, field in Choices.model_fields.items()
        },
    )


@dataclass(frozen=True)
class ObjectiveKind:
    """What must be known of an objective before torch is imported.

    Attributes:
        path: ``module:Class`` of the `Objective`.
        learns_land_cover: see `Objective.learns_land_cover`.
    """

    path: str
    learns_land_cover: bool


OBJECTIVES: Final[Mapping[str, ObjectiveKind]] = {
    "land_cover": ObjectiveKind("geokr_core.pretraining.objectives.land_cover:LandCoverObjective", True),
    "simclr": ObjectiveKind("geokr_core.pretraining.objectives.contrastive:SimCLRObjective", False),
    "moco": ObjectiveKind("geokr_core.pretraining.objectives.contrastive:MoCoObjective", False),
}
"""The objectives by the name that a recipe gives; any other is named ``module:Class`` itself."""


def objective_class(name: str) -> Any:
    """The `Objective` that a recipe names.

    Args:
        name: a key of `OBJECTIVES`, or ``module:Class``.

    Raises:
        ConfigError: there is no such class.
    """
    module, _, attribute = (OBJECTIVES[name].path if name in OBJECTIVES else name).partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"objective {name!r}: expected one of {', '.join(OBJECTIVES)}, or `module:Class` of an installed package ({error})."
        ) from error


_LATER: Final = frozenset(
    {
        "label_resolution_m",
        "cell_mean",
        "types_weight",
        "num_types",
        "types_land_cover",
        "types_place",
        "contrast_softness",
    }
)
"""Choices that were added when there were runs already; see `Recipe.described`."""


class Recipe(Choices):
    """Everything that a pretraining run does, nothing left open.

    Attributes:
        objective: what is learned: a key of `OBJECTIVES`, or ``module:Class``.
        optimiser: weight decay is decoupled with ``adamw``.
        learning_rate_schedule: ``cosine`` to zero after the warm-up; ``epoch_decay``: times 0.9 each epoch.
        ramp_steps: steps over which the consistency weight rises; 0: full weight at once.
        augmentation: how chips are varied.
    """

    objective: str = "land_cover"
    optimiser: Literal["adamw", "adam"]
    learning_rate_schedule: Literal["cosine", "epoch_decay"]
    ramp_steps: int = Field(ge=0)
    augmentation: Strength

    def described(self) -> dict[str, Any]:
        """Every field by its name, for people; those that came later say nothing at their default, as the runs before them did."""
        later = {name: Recipe.model_fields[name].default for name in _LATER}
        return {name: value for name, value in self.model_dump().items() if name not in later or value != later[name]}

    @property
    def needs_cells(self) -> bool:
        """Whether the land cover within chips must be known."""
        follows = self.label_follows_crop and self.augmentation.crops
        return follows or self.has_cell_head or self.label_resolution_m is not None

    @property
    def has_cell_head(self) -> bool:
        """Whether the head asks every cell, the chip's shares being their mean."""
        return self.has_land_cover_head and (self.dense_weight > 0 or self.cell_mean)

    @property
    def has_land_cover_head(self) -> bool:
        """Whether the head is linear and predicts classes; else it projects, and each view is cropped independently."""
        if self.objective in OBJECTIVES:
            return OBJECTIVES[self.objective].learns_land_cover
        learns: bool = objective_class(self.objective).learns_land_cover
        return learns

    @property
    def predicts_land_cover(self) -> bool:
        """Whether the head learns to predict land cover, the chip's or that of its cells."""
        return self.has_land_cover_head and (self.land_cover_weight > 0 or self.dense_weight > 0)

    @property
    def teacher_predicts(self) -> bool:
        """Whether the teacher must see the batch: for the consistency loss, or for separate BatchNorm statistics."""
        disagrees = self.consistency != "none" and self.consistency_weight > 0 and self.land_cover_weight > 0
        return disagrees or self.batchnorm == "own"

    @property
    def learns(self) -> bool:
        """Whether anything at all is learned."""
        others = (
            self.land_cover_weight,
            self.dense_weight,
            self.types_weight,
            self.contrast_weight,
            self.anchor_weight,
        )
        return not self.has_land_cover_head or any(weight > 0 for weight in others)
