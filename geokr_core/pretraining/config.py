"""The section `pretraining` of the parameter file: how a backbone is trained."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from geokr_core.networks.architectures import ARCHITECTURES, Architecture
from geokr_core.pretraining.recipe import Recipe, RecipeOverrides
from geokr_core.pretraining.recipes import is_method, resolve, unknown_method
from geokr_core.step.explain import problems
from geokr_core.step.section import Section, Share

_STRENGTHS = ("crop_area_fraction", "jitter", "grey_fraction")
"""Fields of the section that say how strongly chips are varied."""


def _each_once(seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if seeds is not None and len(set(seeds)) < len(seeds):
        raise ValueError("each seed once")
    return seeds


class VariantConfig(Section):
    """A pretraining that differs from the others by its method, or by single settings."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="name of its runs, curves and rows")
    method: str = Field(
        "geokr",
        description="see `pretraining.variants`; left out: the method that the variant is named after, else `geokr`",
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="null: those of the section"
    )
    settings: dict[str, Any] = Field({}, description="fields of `pretraining` that hold for this variant alone")

    _seeds_once = field_validator("seeds")(_each_once)

    @model_validator(mode="before")
    @classmethod
    def _named_after_its_method(cls, content: Any) -> Any:
        """A variant called `simclr` that trains something else would put its name above another method's scores."""
        if isinstance(content, dict) and "method" not in content and is_method(str(content.get("name"))):
            return {**content, "method": str(content["name"])}
        return content

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if not is_method(method):
            raise ValueError(unknown_method(method))
        return method


class RunSettings(Section):
    """What is trained, for how long and on what: all of the section that no recipe decides."""

    # Not `threads` and `device`: sums over several threads are added up in another order, and weights differ in their last
    # digits (measured). Finished runs are named by both.
    without_effect: ClassVar[frozenset[str]] = frozenset(
        {"checkpoint_every", "keep_checkpoints", "examples_every", "runs_at_once"}
    )
    code_version: ClassVar[int] = 3  # 2: `preset: geokr` is land cover of cells and contrast; 3: with gentle crops

    preset: Literal["geokr", "averaged_teacher", "continued", "enlarged", "paper"] = Field(
        "geokr",
        description="recipe that every method but `paper` starts from; `averaged_teacher`: the chip's proportions and an averaged teacher; `continued` and `enlarged` train given weights further, see docs/pretraining.md",
    )
    architecture: Architecture = Field(
        "resnet18",
        description=f"backbone: {', '.join(f'`{name}`' for name in ARCHITECTURES)}, or another one, see docs/architectures.md",
    )
    initial_weights: Literal["imagenet"] | Path | None = Field(
        None,
        description="file of weights to start from, by the upstream's key names; `imagenet`: torchvision's own, from its cache (nothing is downloaded); null: random",
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="one pretraining a seed; the first one becomes the backbone"
    )
    variants: tuple[str | VariantConfig, ...] = Field(
        ("geokr",),
        min_length=1,
        description="methods to train, by name, or as `{name, method, seeds, settings}` where single fields differ; the methods stand in docs/pretraining.md",
    )
    steps: int = Field(200, ge=1, description="optimiser steps; an epoch is num_train / batch_size of them")
    batch_size: int = Field(128, ge=2, description="chips a step, over all processes and accumulated parts together")
    accumulation_parts: int = Field(1, ge=1, description="parts that a process cuts its share of a batch into")
    crop_area_fraction: tuple[Share, Share] | None = Field(
        None, description="least and largest share of a chip that a random crop shows; [1, 1]: whole chips"
    )
    jitter: float | None = Field(
        None,
        ge=0,
        le=1,
        description="brightness, contrast and saturation vary by ± this share; null: as the recipe says",
    )
    grey_fraction: float | None = Field(None, ge=0, le=1, description="share of chips that lose their colour")
    shuffle_window_chips: int | None = Field(
        None,
        ge=1,
        description="for archives larger than memory: chips are shuffled within windows of whole shards of about this many chips; null: over all",
    )
    threads: int = Field(1, ge=1, description="threads on a CPU; the last digits of the results depend on them")
    runs_at_once: int = Field(
        1,
        ge=1,
        description="trainings that a CPU makes side by side, each in a separate process with `threads` threads",
    )
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints; one is due every five minutes, too")
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints of a running training that are kept")
    deliver: Literal["last", "best"] = Field(
        "last", description="network of the last step, or of the least validation KL that was measured"
    )
    log_every: int = Field(10, ge=1, description="steps between points of the curves")
    validate_every: int | None = Field(
        None, ge=1, description="steps between measurements on held-out chips; null: four in a run"
    )
    examples_every: int = Field(200, ge=0, description="steps between pictures of example chips; 0: none")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 where the processor computes in it, fp32 elsewhere, which is faster there"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: Literal["auto", "on", "off"] = Field("auto", description="`torch.compile`; auto: on a GPU only")

    _seeds_once = field_validator("seeds")(_each_once)

    @field_validator("crop_area_fraction")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError("`crop_area_fraction` must name the smaller share first")
        return value

    @field_validator("variants", mode="before")
    @classmethod
    def _known_methods(cls, value: Any) -> Any:
        for name in value if isinstance(value, list | tuple) else ():
            if isinstance(name, str) and not is_method(name):
                raise ValueError(unknown_method(name))
        return value


class PretrainingConfig(RecipeOverrides, RunSettings):
    """How backbones are trained. A field left out takes the value of the preset and the method."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.preset in ("continued", "enlarged") and self.initial_weights is None:
            raise ValueError(
                f"`preset: {self.preset}` trains given weights further, but `initial_weights` names none; name a file or "
                "`imagenet`, or take `preset: geokr`"
            )
        if self.accumulation_parts > self.batch_size:
            raise ValueError(
                f"`accumulation_parts`: {self.batch_size} chips of a batch cannot be cut into {self.accumulation_parts} parts; "
                f"choose at most {self.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _variants_fit(self) -> Self:
        names = [variant.name for variant in self.named_variants]
        if "geokr" not in names or len(set(names)) < len(names):
            raise ValueError("`variants` must hold `geokr` and name each variant once")
        for variant in self.named_variants:
            if "variants" in variant.settings or "seeds" in variant.settings:
                raise ValueError(
                    f"variants.{variant.name}.settings: `variants` holds for the whole section, and `seeds` stands beside "
                    "`settings`, not within"
                )
            try:
                own = self.of_variant(variant) if variant.settings else self
            except ValidationError as error:
                wrong = "; ".join(map(str, problems(error, PretrainingConfig, variant.settings)))
                raise ValueError(f"variants.{variant.name}.settings: {wrong}") from error
            if complaint := _impossible(own, own.recipe(variant.method)):
                raise ValueError(f"variant {variant.name}: {complaint}")
        return self

    @classmethod
    def code_mark(cls) -> list[int]:
        """See `Section.code_mark`. Up to version 3 none: a run is named by its whole recipe, whatever its preset is called."""
        return [] if cls.code_version <= 3 else [cls.code_version]

    @property
    def named_variants(self) -> tuple[VariantConfig, ...]:
        """The variants, each with name, method and settings; one given as a method's name alone is named after it."""
        return tuple(v if isinstance(v, VariantConfig) else VariantConfig(name=v, method=v) for v in self.variants)

    def of_variant(self, variant: VariantConfig) -> "PretrainingConfig":
        """This section as one variant has it, with that variant alone under the name ``geokr``.

        Raises:
            ValidationError: the variant's settings hold an unknown field or a wrong value.
        """
        alone = VariantConfig(name="geokr", method=variant.method)
        return PretrainingConfig.model_validate({**dict(self), **variant.settings, "variants": (alone,)})

    def recipe(self, method: str = "geokr") -> Recipe:
        """The recipe of a method under this section's preset and fields.

        Raises:
            ConfigError: there is no such method.
        """
        values = {name: getattr(self, name) for name in (*RecipeOverrides.model_fields, *_STRENGTHS)}
        return resolve(self.preset, method, self.steps, {name: v for name, v in values.items() if v is not None})


def _impossible(config: PretrainingConfig, recipe: Recipe) -> str:
    """Why a recipe cannot be trained, whatever the data; empty where it can."""
    if not recipe.learns:
        return (
            "`land_cover_weight` is 0 and nothing stands beside it, so that nothing would be learned; give it a weight, or "
            "name one of `dense_weight`, `contrast_weight` and `anchor_weight`"
        )
    if recipe.types_weight > 0 and recipe.types_land_cover == 0 and recipe.types_place == 0:
        return "`types_land_cover` and `types_place` are both 0, so that all ground is of one type; give one of them a factor"
    if recipe.contrast_softness > 0 and recipe.contrast_weight == 0:
        return "`contrast_softness` softens a contrast that is not learned (`contrast_weight` is 0); give it a weight, or leave it out"
    if recipe.anchor_zoom > 1 and (recipe.anchor == "weights" or recipe.anchor_weight == 0):
        return (
            f"`anchor_zoom` {recipe.anchor_zoom:g} has nothing to enlarge, with the anchor `{recipe.anchor}` at weight "
            f"{recipe.anchor_weight:g}; choose `anchor: cells` (or `stages`, `features`) with an `anchor_weight`, or take the "
            "zoom out"
        )
    if config.shuffle_window_chips is not None and (recipe.balance != "none" or recipe.max_pure_fraction < 1):
        return (
            "`shuffle_window_chips` reads each shard once an epoch, and `balance` and `max_pure_fraction` would show some chips of "
            "it more often than others; choose one of the two"
        )
    if config.deliver == "best" and not recipe.predicts_land_cover:
        return "`deliver: best` chooses by the KL on held-out chips, and the method predicts no land cover; set `deliver: last`"
    if recipe.head_warmup_steps + recipe.warmup_steps > config.steps:
        return (
            f"head_warmup_steps {recipe.head_warmup_steps} and warmup_steps {recipe.warmup_steps} are more than the "
            f"{config.steps} steps of the run; shorten them or train longer"
        )
    return ""
