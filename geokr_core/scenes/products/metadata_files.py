"""Metadata files as delivered, read as what they are: text that a stranger wrote.

XML with a document type declaration is refused, so that no entity is ever expanded and no other file or address is
read; a file larger than any real one is refused before it is read.
"""

from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from geokr_core.errors import SceneRefusedError

MAX_BYTES = 32 << 20
"""Metadata files of the products known here stay below 2 MB."""


def read_bytes(path: Path) -> bytes:
    """A metadata file's bytes.

    Raises:
        SceneRefusedError: it is missing, unreadable, or larger than `MAX_BYTES`.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SceneRefusedError(f"{path.name}: {path.stat().st_size} bytes; no metadata file is that large")
        return path.read_bytes()
    except OSError as error:
        raise SceneRefusedError(f"{path.name}: metadata cannot be read: {error.strerror}") from error


def read_xml(path: Path) -> ElementTree.Element:
    """The root element of an XML file.

    Raises:
        SceneRefusedError: it cannot be read, is not well-formed, or declares a document type (DTD, entities).
    """
    content = read_bytes(path)
    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = _refuse_doctype
    try:
        # A separate pass: the standard library's tree builder does not show declarations to its caller.
        guard.Parse(content, True)
        return ElementTree.fromstring(content)  # noqa: S314 - declarations were refused above
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise SceneRefusedError(f"{path.name}: not usable as XML: {error}") from error


def _refuse_doctype(*_: object) -> None:
    raise ValueError("it declares a document type; entities are never expanded")


def text_of(root: ElementTree.Element, tag: str) -> str:
    """Text of the first element of that name at any depth, namespaces apart; empty where there is none."""
    for element in root.iter():
        if isinstance(element.tag, str) and element.tag.rpartition("}")[2] == tag:
            return (element.text or "").strip()
    return ""
