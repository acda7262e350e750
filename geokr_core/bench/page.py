"""A page whose figures stand between two marks, and are written anew by the bench that measures them."""

from collections.abc import Callable
from pathlib import Path

from geokr_core.step.files import whole_file


def written_between(page: Path, begin: str, end: str) -> Callable[[str], None]:
    """The function that replaces what stands between two marks; what stands around them is read now, before anything is measured.

    Args:
        page: a Markdown file that holds both marks.
        begin: the first mark.
        end: the second one.

    Raises:
        OSError: the page cannot be read.
        ValueError: it lacks a mark.
    """
    text = page.read_text(encoding="utf-8")
    before, after = text[: text.index(begin) + len(begin)], text[text.index(end) :]

    def write(content: str) -> None:
        with whole_file(page) as partial:
            partial.write_text(f"{before}{content}{after}", encoding="utf-8")

    return write
