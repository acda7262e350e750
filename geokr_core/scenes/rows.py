"""A scene as a row of the inventory, and back. The columns are the fields of `Scene`; nothing spells them again.

The grid stands as its own columns, ``status`` and ``reason`` behind the collection, the footprint at the end. Every column has
a value in every row, also of a refused scene: what is not known is empty, zero or NaN.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

import numpy as np

from geokr_core.rasters.grid import Grid
from geokr_core.scenes.scene import Scene

USABLE, QUARANTINED = "usable", "quarantined"
"""What ``status`` of a row says."""

LISTS = ("files", "bands", "transform", "scales", "offsets")
"""Columns that hold lists."""

_BLANK: Mapping[Any, Any] = {
    str: "",
    float: np.nan,
    float | None: np.nan,
    bool: False,
    tuple[str, ...]: [],
    tuple[float, ...]: [],
}
_NO_GRID: Mapping[str, Any] = {"crs_wkt": "", "transform": [], "height": 0, "width": 0}
_HINTS = get_type_hints(Scene)


def row_of(scene: Scene) -> dict[str, Any]:
    """The row of a usable scene."""
    return _row({field.name: getattr(scene, field.name) for field in fields(scene)}, USABLE, "")


def refused_row(reason: str, **known: Any) -> dict[str, Any]:
    """The row of a scene that cannot be used.

    Args:
        reason: why, in words.
        known: fields of `Scene` that are known all the same.
    """
    return _row({name: known.get(name, _BLANK.get(kind)) for name, kind in _HINTS.items()}, QUARANTINED, reason)


def _row(values: Mapping[str, Any], status: str, reason: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in values.items():
        if name == "grid":
            row |= _NO_GRID if value is None else value.columns()
        else:
            row[name] = list(value) if isinstance(value, tuple) else np.nan if value is None else value
        if name == "collection":
            row |= {"status": status, "reason": reason}
    return row | {"geometry": None if values["grid"] is None else values["grid"].footprint()}


def scene_of(row: Mapping[Any, Any]) -> Scene:
    """The scene of a usable row."""
    values = {name: _value(row[name], kind) for name, kind in _HINTS.items() if name != "grid"}
    return Scene(**values, grid=Grid.of_columns(row))


def _value(cell: Any, kind: Any) -> Any:
    if kind == float | None:
        return None if np.isnan(cell) else float(cell)
    if kind == tuple[float, ...]:
        return tuple(float(value) for value in cell)
    return tuple(cell) if kind == tuple[str, ...] else kind(cell)
