"""The page ``docs/parameters.md``, written from the sections' own fields."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from geokr_core.chain.params import EXTENDS, Params
from geokr_core.evaluation.task_kinds import TaskConfig
from geokr_core.step.explain import section_of


def parameters_reference() -> str:
    """All parameters with types, defaults and meaning as Markdown; ``docs/parameters.md`` holds exactly this text."""
    lines = ["# Parameters", "", "What each key of `params.yaml` means. Made by `geokr parameters`; do not edit.", ""]
    lines += [
        f"A file other than `params.yaml` may begin with `{EXTENDS}: other.yaml`, a file in the same folder: it then gives "
        "only what differs. Sections are laid over each other key by key, lists are replaced as a whole.",
        "",
    ]
    lines += _section_reference("top level", Params)
    return "\n".join(lines).rstrip() + "\n"


def _section_reference(title: str, model: type[BaseModel], besides: type[BaseModel] | None = None) -> list[str]:
    """The table of a section, and of those within it; fields that ``besides`` has are left out."""
    lines = [
        f"## {title}",
        "",
        (model.__doc__ or "").splitlines()[0],
        "",
        "| key | default | meaning |",
        "|---|---|---|",
    ]
    nested: list[str] = []
    if model is TaskConfig:
        for kind, variant in TaskConfig.variants().items():
            nested += _section_reference(f"{title}, kind {kind}", variant, besides=TaskConfig)
    for name, field in model.model_fields.items():
        if besides is not None and name in besides.model_fields:
            continue
        section = section_of(model, name)
        if section is not None:
            nested += _section_reference(f"{title}.{name}".removeprefix("top level."), section)
        if field.is_required():
            default = "required"
        elif section is None:
            default = f"`{_plain(field.default)}`"
        else:
            default = "may be left out" if field.default is None else ""
        lines.append(
            f"| `{name}` | {default} | {field.description or (section.__doc__ or '').splitlines()[0] if section else field.description or ''} |"
        )
    return [*lines, "", *nested]


def _plain(value: Any) -> str:
    return (
        yaml.safe_dump(
            list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value,
            default_flow_style=True,
        )
        .split("\n...")[0]
        .strip()
    )
