"""A refused section in plain words: where, what was found, what was expected, and what was probably meant."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ValidationError

Keys = tuple[int | str, ...]


@dataclass(frozen=True)
class Problem:
    """One wrong value.

    Attributes:
        path: its keys, from the outermost.
        message: what is wrong with it.
        is_length: whether it is but the number of entries.
    """

    path: Keys
    message: str
    is_length: bool = False

    def __str__(self) -> str:
        """Key and message in one line."""
        return f"{'.'.join(map(str, self.path)) or '(the whole)'}: {self.message}"


def explain(error: ValidationError, model: type[BaseModel] | None = None, content: Any = None) -> str:
    """A refusal as lines that a user can act on.

    Args:
        error: what pydantic raised.
        model: the section that was validated, to suggest keys.
        content: what was validated, to tell keys from pydantic's names of alternatives.
    """
    found = problems(error, model, content)
    return "\n  ".join([f"{len(found)} wrong value(s):", *map(str, found)])


def problems(error: ValidationError, model: type[BaseModel] | None = None, content: Any = None) -> list[Problem]:
    """Every wrong value of a refusal, once; arguments as for `explain`."""
    grouped: dict[Keys, list[tuple[Keys, Mapping[str, Any]]]] = {}
    for raw in error.errors():
        real, alternative = _split(raw["loc"], content, raw["type"])
        grouped.setdefault(alternative or real, []).append((real, dict(raw)))
    result: list[Problem] = []
    for raws in grouped.values():
        result += _of_one_place(raws, model)
    # A list counts as too short once its entries are wrong: these tell enough.
    return [one for one in result if not (one.is_length and any(_is_below(other.path, one.path) for other in result))]


def _is_below(path: Keys, above: Keys) -> bool:
    return len(path) > len(above) and path[: len(above)] == above


def _split(location: Keys, content: Any, kind: str) -> tuple[Keys, Keys]:
    """The keys of a location without pydantic's names of alternatives, and the place where alternatives begin, if any."""
    real: list[int | str] = []
    alternative: Keys = ()
    value = content
    for number, part in enumerate(location):
        last = number == len(location) - 1
        inner = _part_of(value, part)
        if inner is not _ABSENT:
            value = inner
        elif content is not None and not (last and kind in ("missing", "extra_forbidden")):
            alternative = alternative or tuple(real)
            continue
        real.append(part)
    return tuple(real), alternative


_ABSENT: Final = object()


def _part_of(value: Any, part: int | str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part, _ABSENT)
    if isinstance(part, str) or not isinstance(value, list | tuple):
        return _ABSENT
    return value[part] if part < len(value) else _ABSENT


def _of_one_place(raws: Sequence[tuple[Keys, Mapping[str, Any]]], model: type[BaseModel] | None) -> list[Problem]:
    deeper = [(path, raw) for path, raw in raws if len(path) > min(len(path) for path, _ in raws)]
    if deeper and isinstance(raws[0][1]["input"] if len(raws) == 1 else _widest(raws), Mapping):
        raws = deeper  # a section was given: what is wrong within it tells more than that it is no list
    if len(raws) == 1:
        return _single(*raws[0], model)
    if len({path for path, _ in raws}) > 1:
        return [problem for path, raw in raws for problem in _single(path, raw, model)]
    path, first = raws[0]
    wanted = list(dict.fromkeys(_expected(raw) for _, raw in raws if raw["type"] not in _KINDS_OF_NOTHING))
    meant = "".join(_meant(raw) for _, raw in raws if raw["type"] == "literal_error")
    return [Problem(path, f"expected {' or '.join(wanted)}{_found(first)}{'.' if meant else ''}{meant}")]


_KINDS_OF_NOTHING: Final = frozenset({"none_required"})


def _widest(raws: Iterable[tuple[Keys, Mapping[str, Any]]]) -> Any:
    return min(raws, key=lambda entry: len(entry[0]))[1]["input"]


def _single(path: Keys, raw: Mapping[str, Any], model: type[BaseModel] | None) -> list[Problem]:
    kind = raw["type"]
    if kind == "extra_forbidden":
        return [Problem(path, f"unknown key.{_key_meant(path, model)}")]
    if kind == "missing":
        return [Problem(path, "missing; it must be given.")]
    if kind in ("value_error", "assertion_error"):
        cause = raw.get("ctx", {}).get("error")
        if isinstance(cause, ValidationError):
            return [Problem((*path, *inner.path), inner.message) for inner in problems(cause)]
        # A rule over a whole section names what it found itself; the section need not be shown.
        message = str(raw["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
        is_told = isinstance(raw["input"], Mapping) or repr(raw["input"]) in message
        return [Problem(path, message + ("" if is_told else _found(raw)))]
    meant = _meant(raw)
    message = f"expected {_expected(raw)}{_found(raw)}{'.' if meant else ''}{meant}"
    return [Problem(path, message, kind == "too_short")]


def _found(raw: Mapping[str, Any]) -> str:
    value = raw["input"]
    shown = "nothing" if value is None else repr(value)
    return f" (found {shown if len(shown) <= 80 else shown[:77] + '…'})"


_WORDS: Final[Mapping[str, str]] = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "none_required": "nothing",
    "dict_type": "a section (`key: value`)",
    "model_type": "a section (`key: value`)",
    "model_attributes_type": "a section (`key: value`)",
    "mapping_type": "a section (`key: value`)",
    "date_type": "a date such as 2021-06-30",
    "date_parsing": "a date such as 2021-06-30",
    "date_from_datetime_parsing": "a date such as 2021-06-30",
    "date_from_datetime_inexact": "a date such as 2021-06-30",
}
_LIMITS: Final[Mapping[str, tuple[str, str]]] = {
    "greater_than_equal": ("at least {}", "ge"),
    "greater_than": ("more than {}", "gt"),
    "less_than_equal": ("at most {}", "le"),
    "less_than": ("less than {}", "lt"),
    "multiple_of": ("a multiple of {}", "multiple_of"),
    "too_short": ("at least {} entries", "min_length"),
    "too_long": ("at most {} entries", "max_length"),
    "string_too_short": ("at least {} characters", "min_length"),
    "string_pattern_mismatch": ("text of the form {}", "pattern"),
}


def _expected(raw: Mapping[str, Any]) -> str:
    """What would have been right, in words; pydantic's own where it has a rule that is not known here."""
    kind, context = str(raw["type"]), raw.get("ctx", {})
    if kind in ("literal_error", "enum"):
        names = _names(raw)
        return f"`{names[0]}`" if len(names) == 1 else f"one of {', '.join(names)}"
    if kind in ("tuple_type", "list_type", "set_type", "iterable_type"):
        value = raw["input"]
        return "a list" + (f" such as [{value}]" if isinstance(value, int | float | str) else "")
    if kind in _LIMITS:
        words, key = _LIMITS[kind]
        limit = context.get(key)
        shown = f"{limit:g}" if isinstance(limit, float) else str(limit)
        return words.format(shown) if limit != 1 else words.format(shown).replace("entries", "entry")
    return _WORDS.get(kind) or str(raw["msg"]).removeprefix("Input should be ")


def _names(raw: Mapping[str, Any]) -> list[str]:
    return re.findall(r"'([^']*)'", str(raw.get("ctx", {}).get("expected", ""))) or [str(raw["ctx"]["expected"])]


def _meant(raw: Mapping[str, Any]) -> str:
    if raw["type"] not in ("literal_error", "enum"):
        return ""
    close = difflib.get_close_matches(str(raw["input"]), _names(raw), n=1)
    return f" Did you mean `{close[0]}`?" if close else ""


def _key_meant(path: Keys, model: type[BaseModel] | None) -> str:
    """Which key an unknown one probably is: of the same section, or of another one."""
    if model is None:
        return ""
    section: type[BaseModel] | None = model
    for part in path[:-1]:
        if isinstance(part, str) and section is not None:
            section = section_of(section, part)
    if section is None:
        return ""
    key, known = str(path[-1]), list(section.model_fields)
    elsewhere = [
        f"{name}.{key}"
        for name in model.model_fields
        if (other := section_of(model, name)) is not None and other is not section and key in other.model_fields
    ]
    close = difflib.get_close_matches(key, known, n=1)
    if len(path) == 1 and elsewhere:
        close = []
    if close:
        return f" Did you mean `{close[0]}`?"
    if elsewhere:
        return f" Did you mean {' or '.join(f'`{name}`' for name in elsewhere)}?"
    return f" Known here: {', '.join(known)}."


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
