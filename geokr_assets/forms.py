"""Launchpad forms: the fields of a step's section, to lay other values over the parameter file for one run.

A form is made from the section itself, so that its fields, defaults, bounds and descriptions are those of the parameter
file. A value given counts in the fingerprint of the output like any other, and the output is not recorded in ``dvc.lock``,
which speaks for the file.
"""

import types
import typing
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from geokr_assets.resources import StepConfig
from geokr_core.chain.params import Params
from geokr_core.chain.steps import STEPS
from geokr_core.step.explain import section_of

_PLAIN: Final = (bool, int, float, str)
_BOUNDS: Final = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


@cache
def form_of(step: str) -> type[StepConfig]:
    """The run configuration of a step: ``force``, and every field of its section as an optional value.

    Lists are lists; what has no counterpart in Dagster's configuration (sections within a section) is YAML text.
    """
    fields: dict[str, Any] = {}
    for _, name, field in _fields(step):
        kind, is_yaml = _form_type(field.annotation)
        fields[name] = (kind | None, Field(default=None, description=_described(field, is_yaml=is_yaml)))
    made: type[StepConfig] = create_model(f"{step.title().replace('_', '')}Form", __base__=StepConfig, **fields)
    return made


def overrides_of(step: str, config: StepConfig) -> list[str]:
    """What a filled form lays over the parameter file, as ``section.key=value``."""
    given = []
    for section, name, field in _fields(step):
        value = getattr(config, name, None)
        if value is not None:
            is_yaml = _form_type(field.annotation)[1]
            text = value if is_yaml else yaml.safe_dump(value, default_flow_style=True).split("\n...")[0].strip()
            given.append(f"{section}.{name}={text}")
    return given


def _fields(step: str) -> list[tuple[str, str, FieldInfo]]:
    """Section, name and description of each field of a step."""
    found = []
    for section in STEPS[step].sections:
        model = section_of(Params, section)
        if model is not None:
            found += [(section, name, field) for name, field in model.model_fields.items()]
    return found


def _form_type(annotation: Any) -> tuple[Any, bool]:
    """The type of a form's field, and whether it is YAML text."""
    inner = [part for part in typing.get_args(annotation) if part is not type(None)]
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _form_type(inner[0])
    if origin in (types.UnionType, typing.Union) and len(inner) == 1:
        return _form_type(inner[0])
    if annotation in _PLAIN:
        return annotation, False
    if annotation is Path or (origin is typing.Literal and all(isinstance(part, str) for part in inner)):
        return str, False
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        kind, is_yaml = _form_type(inner[0])
        if not is_yaml and kind in _PLAIN:
            return list[kind], False  # type: ignore[valid-type]
    return str, True


def _described(field: FieldInfo, *, is_yaml: bool) -> str:
    """What a field means, its choices, bounds and default."""
    parts = [field.description or ""]
    choices = _choices(field.annotation)
    if choices:
        parts.append(f"one of {', '.join(map(str, choices))}")
    for limit in field.metadata:
        parts += [f"{words} {getattr(limit, key):g}" for key, words in _BOUNDS.items() if hasattr(limit, key)]
    if is_yaml:
        parts.append("as YAML")
    default = field.get_default(call_default_factory=False)
    if not field.is_required() and not isinstance(default, BaseModel):
        parts.append(f"default {_shown(default)}")
    return "; ".join(part for part in (*parts, "empty: as in the parameter file") if part)


def _choices(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    return next((found for part in typing.get_args(annotation) if (found := _choices(part))), ())


def _shown(default: Any) -> str:
    if default is None:
        return "null"
    plain = list(default) if isinstance(default, tuple) else str(default) if isinstance(default, Path) else default
    try:
        return yaml.safe_dump(plain, default_flow_style=True).split("\n...")[0].strip()
    except yaml.YAMLError:
        return str(default)
