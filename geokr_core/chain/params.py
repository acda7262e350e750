"""The whole parameter file: every step's section under its name, and the reader of ``params.yaml``.

A section of the file bears the name of the step it belongs to and is defined in that step's package. Unknown keys are
errors: a typo never passes silently. Paths are relative to the working directory. Nothing here opens a raster or
imports torch.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, Field, PrivateAttr, ValidationError, model_validator

from geokr_core.backbone.config import BackboneConfig
from geokr_core.chips.config import ChipsConfig
from geokr_core.errors import ConfigError
from geokr_core.evaluation.config import UNTRAINED, EvaluationConfig
from geokr_core.land_cover.config import LandCoverConfig
from geokr_core.levir_kr.config import LevirKRConfig
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.proportions.config import AlignmentConfig, ProportionsConfig
from geokr_core.registry.config import ChampionConfig
from geokr_core.report.config import ReportConfig
from geokr_core.scenes.config import ScenesConfig
from geokr_core.step.section import Section
from geokr_core.world.config import WorldConfig

PARAMS_VARIABLE = "GEOKR_PARAMS"
"""Environment variable that names another parameter file than ``params.yaml``."""

DEFAULT_PARAMS = Path("params.yaml")

EXTENDS = "extends"
"""Key of a parameter file that names another one beside it, whose values hold where the file gives none."""


class Params(Section):
    """A whole parameter file."""

    _file: Path = PrivateAttr(DEFAULT_PARAMS)
    _overridden: bool = PrivateAttr(False)

    store: Path = Field(Path("data/store"), description="where the chain writes")
    world: WorldConfig | None = None
    scenes: ScenesConfig
    land_cover: LandCoverConfig
    chips: ChipsConfig = ChipsConfig()
    proportions: ProportionsConfig = ProportionsConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    levir_kr: LevirKRConfig = LevirKRConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    backbone: BackboneConfig = BackboneConfig()
    evaluation: EvaluationConfig | None = None
    report: ReportConfig = ReportConfig()
    champion: ChampionConfig | None = None

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        products = [p.name for p in self.land_cover.products]
        for collection in self.scenes.collections:
            if collection.land_cover not in products:
                raise ValueError(
                    f"scenes.collections.{collection.name}.land_cover: {collection.land_cover!r} is none of land_cover.products {products}"
                )
        return self

    @model_validator(mode="after")
    def _evaluation_fits(self) -> Self:
        if self.evaluation is None:
            if self.champion is not None:
                raise ValueError(
                    "section `champion` chooses by figures of section `evaluation`, which is missing; give both or neither"
                )
            return self
        trained = [variant.name for variant in self.pretraining.named_variants]
        for name in self.evaluation.initialisations:
            if name not in (*UNTRAINED, *trained):
                raise ValueError(
                    f"evaluation.initialisations asks for {name!r}: expected one of {', '.join(UNTRAINED)}, or a variant of "
                    f"pretraining ({', '.join(trained)}); add it to pretraining.variants"
                )
        if self.champion is not None:
            _require_criteria(self.champion, self.evaluation)
        return self

    @property
    def path(self) -> Path:
        """The file that was read."""
        return self._file

    @property
    def is_overridden(self) -> bool:
        """Whether values were set over those of the file."""
        return self._overridden

    @property
    def file(self) -> str:
        """The file that was read: its path below the working directory, else its name alone. It changes no figure."""
        path = self._file
        below = path.resolve().is_relative_to(Path.cwd())
        return path.resolve().relative_to(Path.cwd()).as_posix() if below else path.name

    @property
    def uses_world(self) -> bool:
        """Whether any source lies inside the generated world, so that it must be generated first."""
        if self.world is None:
            return False
        sources = [self.scenes.folder, self.land_cover.folder]
        if self.evaluation is not None:
            sources.append(self.evaluation.folder)
        return any(source.is_relative_to(self.world.folder) for source in sources)


def _require_criteria(champion: ChampionConfig, evaluation: EvaluationConfig) -> None:
    """Refuse criteria that the evaluation does not measure, or measures with different seeds."""
    for criterion in champion.criteria:
        try:
            evaluation.require_measured(criterion)
        except ValueError as error:
            raise ValueError(f"champion: {error}") from error
    seeds_of = {task.name: evaluation.seeds_of(task) for task in evaluation.tasks}
    primary = {criterion.task: seeds_of[criterion.task] for criterion in champion.primary}
    if len({frozenset(seeds) for seeds in primary.values()}) > 1:
        raise ValueError(
            f"champion.primary: the mean over several criteria is taken seed by seed, but their tasks have different "
            f"seeds: {', '.join(f'{task} {list(seeds)}' for task, seeds in primary.items())}; give them the same "
            "`seeds`, or make one of them a guard"
        )


def params_path(option: Path | None = None) -> Path:
    """The parameter file to use: the option, else ``$GEOKR_PARAMS``, else ``params.yaml``."""
    return option or Path(os.environ.get(PARAMS_VARIABLE, "") or DEFAULT_PARAMS)


def load_params(path: Path | None = None, overrides: Sequence[str] = ()) -> Params:
    """Read a parameter file.

    Args:
        path: the file; see `params_path` for the default.
        overrides: ``section.key=value`` entries, the value in YAML, applied over the file.

    Returns:
        The checked parameters.

    Raises:
        ConfigError: the file, or one that it extends, is missing, not YAML, or holds a wrong key or value; the message names
            each.
    """
    path = params_path(path)
    content = _read(path)
    for override in overrides:
        _apply(content, override)
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        raise ConfigError(_explain(path, error)) from error
    params._file, params._overridden = path, bool(overrides)
    return params


def _read(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a parameter file, laid over that of the file it `EXTENDS`, which lies beside it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        remedy = (
            f"{extending[-1]} extends it; names are relative to that file's folder."
            if extending
            else f"Run from the project's folder, or name a file with --params or ${PARAMS_VARIABLE}."
        )
        raise ConfigError(f"{path}: no such parameter file. {remedy}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: expected a mapping of sections (scenes, land_cover, …), found {type(content).__name__}."
        )
    base = content.pop(EXTENDS, None)
    if base is None:
        return content
    if path.resolve() == DEFAULT_PARAMS.resolve():
        raise ConfigError(
            f"{path}: `{EXTENDS}` is for other parameter files. DVC reads this one itself, and would not see what "
            f"{base} holds; write the values here."
        )
    others = [p.name for p in (*extending, path)]
    if not isinstance(base, str) or not base.strip(".") or Path(base).name != base or base in others:
        raise ConfigError(
            f"{path}: `{EXTENDS}: {base}` must name another parameter file of the same folder, and none that extends this one."
        )
    return _laid_over(_read(path.parent / base, (*extending, path)), content)


def _laid_over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Sections key by key; lists and single values are replaced as a whole."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _laid_over(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def _apply(content: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator:
        raise ConfigError(f"--set {override}: expected section.key=value, e.g. pretraining.steps=400.")
    *parents, last = key.split(".")
    node: Any = content
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {parent!r} is not a section.")
    node[last] = yaml.safe_load(value)


def _explain(path: Path, error: ValidationError) -> str:
    below = yaml.safe_load(path.read_text(encoding="utf-8")).get(EXTENDS)
    also = f", or what it extends ({below})" if below else ""
    lines = [f"{path}{also}: {error.error_count()} wrong value(s):"]
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {place}: unknown key.{_suggest(problem['loc'])}")
        elif problem["type"] == "missing":
            lines.append(f"  {place}: missing; it must be given.")
        else:
            # A rule over a whole section names what it found itself; the section need not be shown.
            found = "" if isinstance(problem["input"], dict) else f" (found {problem['input']!r})"
            lines.append(f"  {place}: {problem['msg'].removeprefix('Value error, ')}{found}")
    return "\n".join(lines)


def _suggest(location: tuple[int | str, ...]) -> str:
    model: Any = Params
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        model = section_of(model, part)
        if model is None:
            return ""
    known = list(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f" Did you mean `{close[0]}`?" if close else f" Known here: {', '.join(known)}."


def section_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The section's model below a union, a list or a mapping of the field `name`; None where the field is no section."""
    if name not in model.model_fields:
        return None
    pending: list[Any] = [model.model_fields[name].annotation]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        pending.extend(getattr(annotation, "__args__", ()))
    return None
