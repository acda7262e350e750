"""Names for the parameter file, of folders and files as they are found."""

import re
from collections import Counter
from collections.abc import Sequence


def identifier(text: str, otherwise: str) -> str:
    """Lower case, with underscores for whatever is no letter or digit; ``otherwise`` where nothing is left."""
    return re.sub(r"[^a-z0-9]+", "_", text.casefold()).strip("_") or otherwise


def distinct(names: Sequence[str]) -> list[str]:
    """The names in their order; the second and later of one name bear its number."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(f"{name}_{seen[name]}" if seen[name] > 1 else name)
    return found
