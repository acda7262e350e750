"""A refused section in plain words, and YAML in which no mistake passes silently."""

import math
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from geokr_core.errors import ConfigError
from geokr_core.step.explain import explain
from geokr_core.step.section import Section, as_plain, effective
from geokr_core.step.strict_yaml import read_yaml


class Inner(Section):
    """Within."""

    name: str
    share: float = Field(0.5, lt=1)


class Outer(Section):
    """A section with one of everything."""

    seeds: tuple[int, ...] = (0,)
    variants: tuple[Literal["geokr", "shuffled"] | Inner, ...] = Field(("geokr",), min_length=1)
    labels: int | Literal["all"] = "all"
    inner: Inner = Inner(name="a")
    steps: int | None = Field(None, ge=1)
    folder: Path | None = None
    weights: Literal["imagenet"] | Path | None = None
    is_kept: bool = True
    rate: float = 0.1
    codes: dict[str, tuple[int, ...]] = Field({})


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ({"seeds": 0}, ["seeds: expected a list such as [0] (found 0)"]),
        (
            {"variants": ["shufled"]},
            [
                "variants.0: expected one of geokr, shuffled or a section (`key: value`) (found 'shufled'). "
                "Did you mean `shuffled`?"
            ],
        ),
        ({"variants": [{"name": "x", "shar": 1}]}, ["variants.0.shar: unknown key. Did you mean `share`?"]),
        ({"variants": []}, ["variants: expected at least 1 entry (found [])"]),
        ({"labels": "al"}, ["labels: expected a whole number or `all` (found 'al'). Did you mean `all`?"]),
        (
            {"inner": {"share": 1.5}},
            ["inner.name: missing; it must be given.", "inner.share: expected less than 1 (found 1.5)"],
        ),
        ({"inner": 3}, ["inner: expected a section (`key: value`) (found 3)"]),
        ({"share": 0.1}, ["share: unknown key. Did you mean `inner.share` or `variants.share`?"]),
        ({"step": 3}, ["step: unknown key. Did you mean `steps`?"]),
        ({"steps": "many"}, ["steps: expected a whole number (found 'many')"]),
        ({"rate": math.inf}, ["rate: expected a finite number (found inf)"]),
    ],
)
def test_every_refusal_says_what_was_found_and_what_was_meant(content: dict[str, object], lines: list[str]) -> None:
    with pytest.raises(ValidationError) as refused:
        Outer.model_validate(content)
    told = explain(refused.value, Outer, content).splitlines()
    assert told[0] == f"{len(lines)} wrong value(s):"
    assert sorted(line.strip() for line in told[1:]) == sorted(
        line.replace("`inner.share` or `variants.share`", "`variants.share` or `inner.share`") for line in lines
    )


@pytest.mark.parametrize(
    "content",
    [
        {"steps": True},
        {"rate": False},
        {"seeds": [False]},
        {"labels": True},
        {"codes": {"water": [True]}},
        {"inner": {"share": False}},
    ],
    ids=str,
)
def test_yes_and_no_are_not_taken_for_numbers(content: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="expected no truth value .found (True|False)"):
        Outer.model_validate(content)
    assert not Outer.model_validate({"is_kept": False, "variants": [{"name": "a"}]}).is_kept


@pytest.mark.parametrize("content", [{"folder": ""}, {"folder": " "}, {"weights": ""}], ids=str)
def test_an_empty_path_is_not_taken_for_the_working_directory(content: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="expected a path .found"):
        Outer.model_validate(content)
    assert Outer.model_validate({"folder": "."}).folder == Path()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"store: a\nchips: {}\nstore: b\n", "`store` is given twice, in line 1 and in line 3"),
        (b"chips:\n  size_px: 16\n  size_px: 32\n", "`size_px` is given twice, in line 2 and in line 3"),
        ("store: a".encode("utf-16"), "UTF-16 text, expected UTF-8"),
        ("a: 1\nstore: käse".encode("cp1252"), "line 2 is not UTF-8 text (byte 0xe4)"),
        ("store: 数据".encode("gbk"), "line 1 is not UTF-8 text"),
        (b"chips:\n\tsize_px: 3\n", "line 2, column 1: .*tabs cannot indent"),
        (b"a: [1, 2\n", "not valid YAML: line 2"),
        (b"a: 1\nsteps: 010\n", "line 2: YAML reads 010 as 8"),
        (b"steps: 1:30\n", "line 1: YAML reads 1:30 as 90"),
        (b"a: !!python/object:os.system {}\n", "not valid YAML"),
    ],
)
def test_a_broken_file_is_refused_by_line(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace(")", r"\)")) as refused:
        read_yaml(path)
    assert str(path) in str(refused.value)


def test_a_mark_of_utf_8_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xef\xbb\xbfbase: &b {a: 1}\nother: {<<: *b, c: 2}\n")
    assert read_yaml(path) == {"base": {"a": 1}, "other": {"a": 1, "c": 2}}


def test_fields_without_effect_are_left_out_also_within() -> None:
    class Tuned(Section):
        """One field of two counts."""

        without_effect = frozenset({"threads"})
        steps: int = 3
        threads: int = 2

    class Whole(Section):
        """Holds others."""

        parts: tuple[Tuned, ...] = (Tuned(),)

    assert effective(Whole()) == {"parts": [{"steps": 3}]}


def test_fields_that_were_added_later_and_say_nothing_are_told_nowhere_also_within() -> None:
    class Grown(Section):
        """One field came later."""

        silent_unless_given = frozenset({"head"})
        steps: int = 3
        head: str | None = None

    class Whole(Section):
        """Holds others."""

        parts: tuple[Grown, ...] = (Grown(), Grown(head="probe"))
        by_name: dict[str, Grown]

    whole = Whole(by_name={"a": Grown()})
    told = {"parts": [{"steps": 3}, {"steps": 3, "head": "probe"}], "by_name": {"a": {"steps": 3}}}
    assert as_plain(whole) == told
    assert effective(whole) == told
