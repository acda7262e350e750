"""RPCs as files beside a raw scene: ``.rpb`` (``lineOffset = …;``), ``.rpc`` and ``_rpc.txt`` (``LINE_OFF: …``).

Rasters are opened alone, so that nothing beside a file has an unseen say in it; these files are looked for and read here,
by name, and belong to the scene's digest. Either form may stand in either file.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.rpc import RPC

from geokr_core.errors import SceneRefusedError

_ENDINGS = (".rpb", ".RPB", ".rpc", ".RPC", "_rpc.txt", "_RPC.TXT", "_RPC.txt")
_MAX_BYTES = 1 << 20

_SINGLE = {
    "line_off": "lineOffset",
    "samp_off": "sampOffset",
    "lat_off": "latOffset",
    "long_off": "longOffset",
    "height_off": "heightOffset",
    "line_scale": "lineScale",
    "samp_scale": "sampScale",
    "lat_scale": "latScale",
    "long_scale": "longScale",
    "height_scale": "heightScale",
}
_SERIES = {
    "line_num_coeff": "lineNumCoef",
    "line_den_coeff": "lineDenCoef",
    "samp_num_coeff": "sampNumCoef",
    "samp_den_coeff": "sampDenCoef",
}
_NUM_TERMS = 20


def rpcs_of(source: Any, path: Path) -> tuple[RPC | None, Path | None]:
    """RPCs of an open raster: those in its tags, else those in a file beside it.

    Args:
        source: the open raster.
        path: its file.

    Returns:
        The RPCs, or None; and the file that they were read from, or None.

    Raises:
        SceneRefusedError: they are incomplete or hold something else than numbers.
    """
    try:
        found = source.rpcs
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise SceneRefusedError(f"{path.name}: its RPCs are damaged: {error}") from error
    if found is not None:
        return found, None
    beside = next((p for ending in _ENDINGS if (p := path.with_name(path.stem + ending)).is_file()), None)
    return (None, None) if beside is None else (read_rpcs(beside), beside)


def read_rpcs(path: Path) -> RPC:
    """Read an RPC file.

    Raises:
        SceneRefusedError: it cannot be read, misses a value, holds something else than numbers, or orders its terms as
            RPC00A does.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise SceneRefusedError(f"{path.name}: {path.stat().st_size} bytes; no RPC file is that large")
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SceneRefusedError(f"{path.name}: cannot be read: {error.strerror}") from error
    if (order := re.search(r'SpecId\s*=\s*"?(\w+)', text)) and order[1].upper() != "RPC00B":
        raise SceneRefusedError(f"{path.name}: terms in the order {order[1]}, expected RPC00B")
    try:
        values = _assignments(text) if "lineNumCoef" in text else _lines(text)
    except (KeyError, ValueError, IndexError) as error:
        raise SceneRefusedError(f"{path.name}: its RPCs are damaged or incomplete: {error}") from error
    if not all(np.isfinite(value).all() for value in values.values()):
        raise SceneRefusedError(f"{path.name}: its RPCs are damaged: not every value is finite")
    return RPC(**values, err_bias=None, err_rand=None)


def _assignments(text: str) -> dict[str, Any]:
    found = dict(re.findall(r"(\w+)\s*=\s*\(?([^;()]*)\)?\s*;", text))
    values: dict[str, Any] = {name: float(found[key]) for name, key in _SINGLE.items()}
    for name, key in _SERIES.items():
        values[name] = _twenty([float(term) for term in found[key].split(",")], key)
    return values


def _lines(text: str) -> dict[str, Any]:
    found = dict(re.findall(r"^\s*(\w+)\s*[:=]\s*(\S+)", text, flags=re.MULTILINE))
    values: dict[str, Any] = {name: float(found[name.upper()]) for name in _SINGLE}
    for name in _SERIES:
        values[name] = [float(found[f"{name.upper()}_{k}"]) for k in range(1, _NUM_TERMS + 1)]
    return values


def _twenty(terms: list[float], key: str) -> list[float]:
    if len(terms) != _NUM_TERMS:
        raise ValueError(f"{key} has {len(terms)} terms, expected {_NUM_TERMS}")
    return terms
