"""How the files of a set with masks lie: a description in YAML, and finding a set's images and masks by it.

A description names files by templates below the set's folder, or below a folder in it, without their endings. ``{name}``
stands for a part of a file or folder name, ``{path}`` for any folders, ``*`` and ``**/`` for the same where their value
does not matter. An image belongs to the mask with the same values. ``{split}`` is looked up in ``splits``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import Field, ValidationError, model_validator

from geokr_core.errors import ConfigError, EvaluationError
from geokr_core.evaluation.labelled.findings import Findings
from geokr_core.evaluation.labelled.label_files import entries, read_table, read_text
from geokr_core.evaluation.labelled.splits import Part, part_of
from geokr_core.rasters.image_files import IMAGE_SUFFIXES
from geokr_core.step.explain import explain
from geokr_core.step.found_files import find_files
from geokr_core.step.section import Section
from geokr_core.step.strict_yaml import parse_yaml

IGNORED: Final = 255
"""Mask value of pixels that are neither learnt from nor scored."""
MAX_CLASSES: Final = 254

Byte = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[int, int, int]
Code = tuple[Byte, Byte, Byte] | int
"""What a mask holds: a colour (red, green, blue) or a number."""

_FIELD: Final = re.compile(r"\{(\w+)\}|(\*\*/)|(\*)")


class ImageFiles(Section):
    """Where the images of a layout lie."""

    files: str
    bands: tuple[tuple[str, ...], ...] = Field((), description="common names in file order, one list a number of bands")


class MaskLayout(Section):
    """How the files of a set lie, and what its masks hold."""

    name: str
    kind: str = Field(description="kind of task whose sets may lie like this")
    masks: tuple[str, ...] = Field(min_length=1, description="templates of the masks; the first that is met counts")
    images: tuple[ImageFiles, ...] = Field(min_length=1, description="the first that belongs to a mask counts")
    complete: bool = Field(False, description="whether an image without a mask is a fault")
    group: str = Field("{name}", description="what must not be torn apart between training and test")
    splits: dict[str, Part] = Field({}, description="values of `{split}` that count, and what they mean")
    test_groups: tuple[str, ...] = Field((), description="groups of the published test split")
    classes: dict[str, tuple[Code, ...]] = Field({}, description="what masks hold of each class")
    ignored: tuple[Code, ...] = Field((), description="what masks hold where nothing is labelled")
    palette: str | None = Field(None, description="table in the set's folder that lists the classes instead")
    research_only: bool = Field(False, description="whether its terms forbid showing its images in a report")

    @model_validator(mode="after")
    def _codes_have_one_meaning(self) -> Self:
        codes = [*(code for held in self.classes.values() for code in held), *self.ignored]
        if twice := [code for code in dict.fromkeys(codes) if codes.count(code) > 1]:
            raise ValueError(f"`classes` and `ignored` list {twice[0]} twice; a code has one meaning")
        if len({isinstance(code, tuple) for code in codes}) > 1:
            raise ValueError("`classes` and `ignored` list numbers and colours; a mask holds one of the two")
        return self


@dataclass(frozen=True)
class Item:
    """An image and its mask.

    Attributes:
        image: file of the image.
        mask: file of the mask.
        name: of the item.
        group: what must not be torn apart between training and test, e.g. the tile it was cut from.
        part: where the set itself puts it, or None.
    """

    image: Path
    mask: Path
    name: str
    group: str
    part: Part | None = None


@dataclass(frozen=True)
class FoundSet:
    """A recognised set.

    Attributes:
        name: of the layout.
        classes: class names; a mask value is the place in it.
        codes: what masks hold → class, or `IGNORED`; all are colours, or all are numbers.
        items: of the whole set.
        bands: common names in file order, one tuple a number of bands; empty where the layout does not know them.
        may_be_shown: whether its terms let its images appear in a report.
    """

    name: str
    classes: tuple[str, ...]
    codes: Mapping[Code, int]
    items: Sequence[Item]
    bands: tuple[tuple[str, ...], ...]
    may_be_shown: bool


@cache
def layouts_of(kind: str) -> Mapping[str, MaskLayout]:
    """Our own descriptions for a kind of task by name, in the order in which they are tried."""
    files = resources.files("geokr_core.evaluation.sets.masks") / "layouts"
    found = [
        MaskLayout.model_validate(
            {"name": path.name.removesuffix(".yaml"), **parse_yaml(path.read_text("utf-8"), path.name)}
        )
        for path in files.iterdir()
        if path.name.endswith(".yaml")
    ]
    # What any folder of images and masks satisfies comes last.
    found.sort(key=lambda layout: (layout.name == "folder", layout.name))
    return {layout.name: layout for layout in found if layout.kind == kind}


def recognise(folder: Path, wanted: str, kind: str, findings: Findings) -> FoundSet:
    """Find out how a set's files lie.

    Args:
        folder: of the set.
        wanted: name of a layout, the path of a description (it ends in ``.yaml``), or ``auto``.
        kind: of the task.
        findings: what is wrong with single files.

    Raises:
        EvaluationError: the folder is missing, or is none of the layouts; a description or a palette is broken.
    """
    if not folder.is_dir():
        raise EvaluationError(
            f"{folder}: no such folder; point `evaluation.folder` at the folder of the labelled sets and name its "
            "subfolders in `evaluation.tasks`."
        )
    known = layouts_of(kind)
    if wanted.endswith(".yaml"):
        known = {wanted: read_layout(Path(wanted), kind)}
    elif wanted != "auto" and wanted not in known:
        raise EvaluationError(
            f"layout {wanted!r} is not known for this kind of task; choose auto, {', '.join(known)}, or the path of a "
            "description that ends in .yaml."
        )
    there = find_files(folder, "**")
    for name, reason in there.unreachable.items():
        findings.found("files left out: not to be reached", folder / name, f"{reason}.")
    below = [path for name in there.files if (path := folder / name).suffix.lower() in IMAGE_SUFFIXES]
    for name, layout in known.items():
        if wanted in {"auto", name} and (found := _found(folder, below, layout, findings)) is not None:
            return found
    expected = wanted if wanted != "auto" else f"one of {', '.join(known)}"
    raise EvaluationError(
        f"{folder}: its files do not lie as the layout {expected} has them; expected at least images/ and masks/ with "
        "files of the same names, and palette.csv. docs/tasks.md shows every layout."
    )


def read_layout(path: Path, kind: str) -> MaskLayout:
    """A description that a user wrote.

    Raises:
        EvaluationError: it is missing, no YAML, gives a key or a code twice, or describes no layout.
    """
    try:
        content = parse_yaml(read_text(path), "this file")
        given = {"name": path.stem, "kind": kind, **(content or {})}
        return MaskLayout.model_validate(given)
    except ValidationError as error:
        raise EvaluationError(f"{path}: describes no layout: {explain(error, MaskLayout, given)}") from error
    except (ConfigError, TypeError) as error:
        raise EvaluationError(f"{path}: describes no layout: {error}") from error


def _found(folder: Path, files: Sequence[Path], layout: MaskLayout, findings: Findings) -> FoundSet | None:
    for root in (folder, *(path for path in entries(folder) if path.is_dir())):
        palette = root / layout.palette if layout.palette else None
        masks, images = _matched(root, files, layout)
        if masks[1] and (palette is None or palette.is_file()):
            items = list(_paired(root, layout, masks, images, findings))
            listed = read_palette(palette) if palette is not None else layout.classes
            codes: dict[Code, int] = {code: k for k, held in enumerate(listed.values()) for code in held}
            codes |= dict.fromkeys(layout.ignored, IGNORED)
            return FoundSet(layout.name, tuple(listed), codes, items, images[2], may_be_shown=not layout.research_only)
    return None


_Fields = Mapping[str, str]
_Files = list[tuple[Path, _Fields]]


def _matched(
    root: Path, files: Sequence[Path], layout: MaskLayout
) -> tuple[tuple[str, _Files], tuple[str, _Files, tuple[tuple[str, ...], ...]]]:
    """The templates of masks and of images that count, with their files; and the bands of the images."""
    masks = next(((t, found) for t in layout.masks if (found := _matches(root, files, t, layout))), ("", []))
    best: tuple[str, _Files, tuple[tuple[str, ...], ...]] | None = None
    for option in layout.images if masks[1] else ():
        found = _matches(root, files, option.files, layout)
        shared = _shared(masks[0], option.files)
        if {_key(fields, shared) for _, fields in found} & {_key(fields, shared) for _, fields in masks[1]}:
            return masks, (option.files, found, option.bands)
        best = (option.files, found, option.bands) if best is None or (found and not best[1]) else best
    return masks, best or ("", [], ())


def _matches(root: Path, files: Sequence[Path], template: str, layout: MaskLayout) -> _Files:
    pattern = _pattern(template)
    found: _Files = []
    for path in files:
        if not path.is_relative_to(root):
            continue
        hit = pattern.fullmatch(path.relative_to(root).with_suffix("").as_posix())
        if hit is not None and ("split" not in hit.groupdict() or hit["split"] in layout.splits):
            found.append((path, hit.groupdict()))
    return found


@cache
def _pattern(template: str) -> re.Pattern[str]:
    def part(hit: re.Match[str]) -> str:
        if hit[1]:
            return f"(?P<{hit[1]}>{'(?:[^/]+/)*' if hit[1] == 'path' else '[^/]+'})"
        return "(?:[^/]+/)*" if hit[2] else "[^/]+"

    pieces, end = [], 0
    for hit in _FIELD.finditer(template):
        pieces += [re.escape(template[end : hit.start()]), part(hit)]
        end = hit.end()
    return re.compile("".join([*pieces, re.escape(template[end:])]))


def _shared(first: str, second: str) -> tuple[str, ...]:
    return tuple(
        sorted({hit[1] for hit in _FIELD.finditer(first)} & {hit[1] for hit in _FIELD.finditer(second)} - {None})
    )


def _key(fields: _Fields, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(fields[name] for name in names)


def _paired(
    root: Path,
    layout: MaskLayout,
    masks: tuple[str, _Files],
    images: tuple[str, _Files, Any],
    findings: Findings,
) -> Iterator[Item]:
    """Images and masks with the same values. What lacks its other half is an item all the same: reading it says so."""
    shared = _shared(masks[0], images[0] or layout.images[0].files)
    by_key: list[dict[tuple[str, ...], tuple[Path, _Fields]]] = [{}, {}]
    for half, files in enumerate((masks[1], images[1])):
        for path, fields in files:
            if _key(fields, shared) in by_key[half]:
                message = (
                    "has the same name as another one but for its ending; expected one image and one mask an item."
                )
                findings.found("images or masks of one name, the first one taken", path, message)
                continue
            by_key[half][_key(fields, shared)] = (path, fields)
    keys = by_key[0].keys() | (by_key[1].keys() if layout.complete else set())

    def place(key: tuple[str, ...]) -> tuple[int, Path]:
        path, fields = by_key[1].get(key) or by_key[0][key]
        return list(layout.splits).index(fields["split"]) if "split" in fields else 0, path

    for key in sorted(keys, key=place):
        mask, image = by_key[0].get(key), by_key[1].get(key)
        there = mask or image
        assert there is not None  # each key is of one of them  # noqa: S101
        fields = {**(image[1] if image else {}), **(mask[1] if mask else {})}
        group = layout.group.format_map(fields)
        yield Item(
            image=image[0] if image else _expected(root, images[0] or layout.images[0].files, fields, there[0]),
            mask=mask[0] if mask else _expected(root, masks[0], fields, there[0]),
            name=fields.get("name", group),
            group=group,
            part=_part(layout, fields, group),
        )


def _expected(root: Path, template: str, fields: _Fields, other: Path) -> Path:
    """Where a missing half should be."""
    place = template.replace("**/", "").replace("*", other.parent.name)
    return root / f"{place.format_map(fields)}{other.suffix}"


def _part(layout: MaskLayout, fields: _Fields, group: str) -> Part | None:
    if "split" in fields:
        return layout.splits[fields["split"]]
    if layout.test_groups:
        return "test" if group in layout.test_groups else "train"
    folders = [part for name in fields.get("path", "").split("/") if (part := part_of(name)) is not None]
    return folders[-1] if folders else None


def _decimal(text: str) -> int:
    """A whole number as people write it; Python also takes ``1_0`` for one."""
    if "_" in text:
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def read_palette(path: Path) -> dict[str, tuple[Code, ...]]:
    """What masks hold of each class, from a table with the columns class, red, green, blue, or class, code.

    A class may have several rows, one a colour or code.

    Raises:
        EvaluationError: it is no such table, or lists a colour or code twice, or too few or too many classes.
    """
    listed: dict[str, tuple[Code, ...]] = {}
    seen: set[Code] = set()
    for number, row in enumerate(read_table(path), start=2):
        try:
            code: Code
            red_green_blue = (row["code"],) if "code" in row else (row["red"], row["green"], row["blue"])
            numbers = tuple(_decimal(text) for text in red_green_blue)
            code = numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])
            name = row["class"]
        except (KeyError, ValueError) as error:
            raise EvaluationError(
                f"{path}: not readable as a palette (row {number}: {error}); expected the columns class, red, green, blue, "
                "or class, code, with whole numbers."
            ) from error
        if not name or code in seen or (isinstance(code, tuple) and not all(0 <= part <= 255 for part in code)):
            raise EvaluationError(
                f"{path}, row {number}: found class {name!r} with {code}; expected a name, and a colour of 0–255 or a code that "
                "no other row has."
            )
        seen.add(code)
        listed[name] = (*listed.get(name, ()), code)
    if not 2 <= len(listed) <= MAX_CLASSES:
        raise EvaluationError(
            f"{path}: found {len(listed)} class(es), expected 2 to {MAX_CLASSES}, each with its own name."
        )
    return listed
