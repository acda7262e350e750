"""The one door through which label files are read: texts, tables, JSON and XML, in the encodings that people save them in.

Files that operating systems and archives leave behind are no labels and no images: they are skipped everywhere
(``step.found_files``).
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree  # entities are refused below

from geokr_core.errors import EvaluationError
from geokr_core.rasters.image_files import IMAGE_SUFFIXES
from geokr_core.step.found_files import is_leftover

MAX_LABEL_BYTES: Final = 2 << 30
"""Largest label file: one is held in memory as a whole."""

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_XML_DECLARATION: Final = re.compile(r"^\s*<\?xml[^>]*?\?>")
_XML_ENCODING: Final = re.compile(rb"^\s*<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"']")


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, in order of names; nothing where there is no such folder."""
    return sorted(path for path in folder.iterdir() if not is_leftover(path.name)) if folder.is_dir() else []


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder in order of names."""
    return [path for path in entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def read_text(path: Path, encoding: str | None = None) -> str:
    """The text of a label file: UTF-8, or what its byte-order mark or ``encoding`` says.

    Raises:
        EvaluationError: it cannot be read, is too large, or is in none of these encodings.
    """
    try:
        size = path.stat().st_size
        if size > MAX_LABEL_BYTES:
            raise EvaluationError(f"{path}: {size} bytes, expected at most {MAX_LABEL_BYTES}. Split the file.")
        content = path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read ({error.strerror or error}). Fetch the file again.") from error
    marked = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    wanted = marked or encoding or "utf-8"
    try:
        return content.decode(wanted)
    except (UnicodeError, LookupError) as error:
        raise EvaluationError(
            f"{path}: not {wanted.upper().removesuffix('-SIG')} ({error}). Save the file as UTF-8 text."
        ) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text that are not blank, without blanks at their ends.

    Raises:
        EvaluationError: see `read_text`.
    """
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a table with a line of headings, parted by commas, semicolons or tabs; headings in lower case.

    Raises:
        EvaluationError: see `read_text`; a row has more cells than there are headings, or two headings are the same.
    """
    text = read_text(path)
    first = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    rows = []
    try:
        headings = [str(name).strip().lower() for name in reader.fieldnames or ()]
        if twice := [name for name in dict.fromkeys(headings) if name and headings.count(name) > 1]:
            raise EvaluationError(f"{path}: the column {twice[0]!r} is there twice; expected it once. Remove one.")
        for row in reader:
            if None in row:
                raise EvaluationError(
                    f"{path}, line {reader.line_num}: has more cells than the headings. Put names that hold "
                    f"{delimiter!r} between double quotes."
                )
            cells = {str(name).strip().lower(): (value or "").strip() for name, value in row.items()}
            if any(cells.values()):
                rows.append(cells)
    except csv.Error as error:
        raise EvaluationError(f"{path}: not a table ({error}). Save it as CSV in UTF-8.") from error
    return rows


def read_json_labels(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        EvaluationError: see `read_text`; or it is not JSON, or gives a key twice, of which JSON would believe the last.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:  # also numbers of more digits than Python converts
        raise EvaluationError(f"{path}: not JSON ({error}); expected labels. Fetch the file again.") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in content if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is given twice in one place")
    return content


def number_of(value: Any) -> float:
    """A number of a label file. What only Python takes for one, such as ``1_0`` or ``true``, is none.

    Raises:
        ValueError: it is no number, or too large for one.
        TypeError: it is neither a number nor text.
    """
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        raise ValueError(f"{value!r} is no number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("a number of more than 308 digits") from error


def whole_number_of(value: Any) -> int:
    """A whole number of a label file. A fraction is none: it would be cut to another item's number.

    Raises:
        ValueError: it is no whole number.
        TypeError: it is neither a number nor text.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = number_of(value)
    if not number.is_integer() or abs(number) > _EXACT:
        raise ValueError(f"{value!r} is no whole number")
    return int(number)


_EXACT: Final = 2**53
"""Up to here every whole number is a float."""

_FLAGS: Final = {"": False, "0": False, "false": False, "1": True, "true": True}


def flag_of(value: Any, name: str) -> bool:
    """What a label file says of an object by 0 or 1, as a number or as text; nothing at all means 0.

    Args:
        value: as it was read.
        name: of the flag, for the message.

    Raises:
        ValueError: it is something else.
    """
    text = "" if value is None else str(value).strip().lower()
    if text not in _FLAGS:
        raise ValueError(f"{name} is {value!r}, neither 0 nor 1")
    return _FLAGS[text]


def class_name(name: Any, which: str) -> str:
    """The name of a class as a file gives it, without blanks at its ends.

    Args:
        name: as it was read.
        which: file and class, for the message.

    Raises:
        EvaluationError: it is empty, no text that can be written, or what YAML makes of ``yes``, ``no`` and ``null``.
    """
    text = "" if name is None or isinstance(name, bool) else str(name).strip()
    if not text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise EvaluationError(f"{which} is named {name!r}; expected text. In YAML, write names such as 'no' in quotes.")
    return text


def class_names(names: Iterable[Any], where: Path) -> tuple[str, ...]:
    """Names of the classes 0, 1, … as a file lists them.

    Raises:
        EvaluationError: see `class_name`; or two classes have the same.
    """
    found: list[str] = []
    for number, name in enumerate(names):
        text = class_name(name, f"{where}: class {number}")
        if text in found:
            raise EvaluationError(
                f"{where}: classes {found.index(text)} and {number} are both named {text!r}; rename one."
            )
        found.append(text)
    return tuple(found)


def read_xml_labels(path: Path) -> ElementTree.Element:
    """The root of an XML file, in whatever encoding it declares.

    Raises:
        EvaluationError: see `read_text`; it is not XML, or declares entities.
    """
    with path.open("rb") as stream:
        declared = _XML_ENCODING.match(stream.read(200))
    text = _XML_DECLARATION.sub("", read_text(path, declared[1].decode("ascii") if declared else None), count=1)
    if "<!ENTITY" in text:
        raise EvaluationError(f"{path}: declares XML entities, which labels have no use for; refused.")
    try:
        return ElementTree.fromstring(text)  # noqa: S314  entities are refused above
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: not XML ({error}); expected labels. Fetch the file again.") from error


def named(names: Iterable[str], limit: int = 10) -> str:
    """Some names for a message."""
    listed = list(names)
    return ", ".join(listed[:limit]) + (", …" if len(listed) > limit else "")
