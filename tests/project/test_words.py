"""Plain English: phrases that a reader has to read twice stay out of code, tests and documents."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PLAIN = {
    "told apart": "distinguished",
    "of its own": "separate",
    "nobody": "no one",
    "set aside": "quarantined",
    "held to": "trained against, or compared with",
    "gone on with": "resumed",
    "handed round": "permuted",
    "said of": "outputs, or about",
    "perhaps empty": "may be empty",
    "what a person must know": "warnings",
    "bears the name": "is named",
    "speaks first": "takes precedence",
    "take stock": "inventory",
    "passed over": "skipped",
    "lie on each other": "are aligned",
}
FOLDERS = ("geokr_core", "geokr_assets", "tests", "docs", "docker", "params")
ENDINGS = {".py", ".pyi", ".md", ".yaml", ".j2", ".html", ".toml"}


def _texts() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (path for path in (PROJECT / folder).rglob("*") if path.suffix in ENDINGS)
    yield from (path for path in PROJECT.iterdir() if path.suffix in ENDINGS)


def found(text: str) -> list[str]:
    """Phrases of the list in a text, also over the end of a line."""
    words = " ".join(re.sub(r"[\s#]+", " ", text).split()).lower()
    return [phrase for phrase in PLAIN if re.search(rf"\b{phrase}\b", words)]


def test_no_text_has_to_be_read_twice() -> None:
    texts = {str(path.relative_to(PROJECT)): path.read_text(encoding="utf-8") for path in _texts()}
    del texts["tests/project/test_words.py"]
    stumbles = [f"{name}: {phrase!r}: write {PLAIN[phrase]}" for name in texts for phrase in found(texts[name])]
    assert stumbles == []


@pytest.mark.parametrize("text", ["It has a folder of its own.", "told\n# apart", "Nobody"])
def test_a_phrase_is_found_wherever_a_line_ends(text: str) -> None:
    assert len(found(text)) == 1
