"""The whole parameter file: every step's section under its name, and the reader of ``params.yaml``.

A section of the file is named after the step it belongs to and is defined in that step's package. Unknown keys are
errors: a typo never passes silently. Paths are relative to the working directory. Nothing here opens a raster or
imports torch.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from geokr_core.audit.config import MapAuditConfig
from geokr_core.backbone.config import BackboneConfig
from geokr_core.chips.config import ChipsConfig
from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.errors import ConfigError
from geokr_core.evaluation.config import UNTRAINED, EvaluationConfig, parts_of
from geokr_core.land_cover.config import LandCoverConfig
from geokr_core.land_cover_shares.config import LandCoverSharesConfig
from geokr_core.levir_kr.config import LevirKRConfig
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.proportions.config import AlignmentConfig, ProportionsConfig
from geokr_core.registry.config import ChampionConfig
from geokr_core.report.config import ReportConfig
from geokr_core.scenes.config import ScenesConfig
from geokr_core.step.explain import Problem, problems
from geokr_core.step.section import Section
from geokr_core.step.strict_yaml import parse_yaml, read_yaml
from geokr_core.world.config import WorldConfig

PARAMS_VARIABLE = "GEOKR_PARAMS"
"""Environment variable that names another parameter file than ``params.yaml``."""

DEFAULT_PARAMS = Path("params.yaml")

EXTENDS = "extends"
"""Key of a parameter file that names another one beside it, whose values hold where the file gives none."""


class Params(Section):
    """A whole parameter file."""

    _file: Path = PrivateAttr(DEFAULT_PARAMS)
    _overridden: bool = PrivateAttr(True)  # until a file was read: what Python made is no file's

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
    embeddings: EmbeddingsConfig | None = None
    map_audit: MapAuditConfig | None = None
    land_cover_shares: LandCoverSharesConfig | None = None
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
    def _audit_has_vectors(self) -> Self:
        if self.map_audit is not None and self.embeddings is None:
            raise ValueError(
                "section `map_audit` reads embeddings: give the section `embeddings`, too (`embeddings: {}`)"
            )
        wants_cells = self.map_audit is not None and self.map_audit.cells is not None
        if wants_cells and self.embeddings is not None and not self.embeddings.cells:
            raise ValueError("map_audit.cells reads vectors of cells: set `embeddings.cells: true`")
        if wants_cells and not self.proportions.cells_per_side:
            raise ValueError(
                "map_audit.cells reads land cover of cells: `proportions.cells_per_side` is 0, set it to 8"
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
            if unknown := [part for part in parts_of(name) if part not in (*UNTRAINED, *trained)]:
                raise ValueError(
                    f"evaluation.initialisations asks for {unknown[0]!r}: expected one of {', '.join(UNTRAINED)}, a variant of "
                    f"pretraining ({', '.join(trained)}), or two of these joined by `+`; add it to pretraining.variants"
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
        """Whether values are others than those of the file: set over them, or made in Python without one."""
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


def load_params(path: Path | str | None = None, overrides: Sequence[str] = ()) -> Params:
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
    path = params_path(None if path is None else Path(path))
    content, bases = _read(path)
    given = {_apply(content, override): override for override in overrides}
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        raise ConfigError(_refusal(path, bases, given, problems(error, Params, content))) from error
    params._file, params._overridden = path, bool(overrides)
    return params


def _read(path: Path, extending: tuple[Path, ...] = ()) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The content of a parameter file, laid over that of the file it `EXTENDS`, which lies beside it; names of the latter."""
    try:
        content = read_yaml(path)
    except FileNotFoundError as error:
        remedy = (
            f"{extending[-1]} extends it; names are relative to that file's folder."
            if extending
            else f"Run from the project's folder, or name a file with --params or ${PARAMS_VARIABLE}."
        )
        raise ConfigError(f"{path}: no such parameter file. {remedy}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: a folder, expected a parameter file such as {path / DEFAULT_PARAMS}.") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise ConfigError(f"{path}: expected a mapping of sections (scenes, land_cover, …), found {found}.")
    base = content.pop(EXTENDS, None)
    if base is None:
        return content, ()
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
    below, bases = _read(path.parent / base, (*extending, path))
    return _laid_over(below, content), (base, *bases)


def _laid_over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Sections key by key; lists and single values are replaced as a whole."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _laid_over(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def _apply(content: dict[str, Any], override: str) -> tuple[str, ...]:
    """Set a value over those of the file, and return its keys.

    Raises:
        ConfigError: it is not of the form ``section.key=value``.
    """
    key, separator, value = override.partition("=")
    keys = tuple(key.strip().split("."))
    if not separator or not all(keys):
        raise ConfigError(f"--set {override}: expected section.key=value, e.g. pretraining.steps=400.")
    node: Any = content
    for number, parent in enumerate(keys[:-1]):
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            place = ".".join(keys[: number + 1])
            raise ConfigError(
                f"--set {override}: `{place}` is not a section but a value; set it as a whole: {place}=…."
            )
    node[keys[-1]] = parse_yaml(value, f"--set {override}")
    return keys


def _refusal(path: Path, bases: Sequence[str], given: Mapping[tuple[str, ...], str], found: Sequence[Problem]) -> str:
    """Wrong values, each under the file or the option that it comes from."""
    options: dict[str, list[Problem]] = {}
    in_files: list[Problem] = []
    for problem in found:
        keys = tuple(map(str, problem.path))
        origins = [text for place, text in given.items() if keys[: len(place)] == place]
        (options.setdefault(f"--set {origins[-1]}", []) if origins else in_files).append(problem)
    also = f", or what it extends ({', '.join(bases)})" if bases else ""
    files = {f"{path}{also}": in_files} if in_files else {}
    return "\n".join(
        f"{origin}: {len(wrong)} wrong value(s):" + "".join(f"\n  {problem}" for problem in wrong)
        for origin, wrong in {**options, **files}.items()
    )
