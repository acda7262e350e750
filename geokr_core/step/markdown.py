"""Text of files and of strangers within Markdown: shown as it is, and never a picture, a link, HTML or a cell of a table."""

import re
from typing import Final

_ACTIVE: Final = re.compile(r"[\\\[\]<>&`|]")
"""What begins something other than text: a picture that a browser would fetch, a link, a tag, code, a column."""


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line.

    Args:
        text: anything, such as a file name, or a message about a file.
    """
    return _ACTIVE.sub(lambda found: f"\\{found[0]}", " ".join(text.split()))
