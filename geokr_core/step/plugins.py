"""Parts that a user's own package brings: found by entry points, imported when one is first used.

A package names its parts in its ``pyproject.toml``::

    [project.entry-points."geokr.tasks"]
    change_detection = "my_package.change:KIND"

Groups are listed in `GROUPS`. What an entry point has to name is written where the part is used. A name of our own always
wins: nothing that is installed beside the project changes what it does.
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from geokr_core.errors import ConfigError

GROUPS: Final = ("geokr.architectures", "geokr.legends", "geokr.methods", "geokr.scene_products", "geokr.tasks")
"""Groups of entry points, one a kind of part."""


@cache
def plugins(group: str) -> Mapping[str, EntryPoint]:
    """What installed packages bring of one kind, by name; nothing is imported.

    Args:
        group: one of `GROUPS`.
    """
    return {
        point.name: point for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value))
    }


def load_plugin(group: str, name: str) -> Any:
    """Import one part.

    Args:
        group: one of `GROUPS`.
        name: one of ``plugins(group)``.

    Returns:
        The object that its entry point names.

    Raises:
        ConfigError: no installed package brings it, or it cannot be imported.
    """
    point = plugins(group).get(name)
    if point is None:
        raise ConfigError(
            f"{group}: no installed package brings {name!r}; known: {', '.join(plugins(group)) or 'none'}."
        )
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{group}: {name!r} of {point.value} cannot be imported: {error}") from error
