"""The section of the page on what was done with the backbone: vectors of the archive, the audit of the map, maps of shares.

It reads what these steps publish beside their outputs; each part stands only where its step was run.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from geokr_core.errors import MissingInputError
from geokr_core.step.files import read_json

_CONFUSIONS: Final = 10
"""Pairs of classes that are shown, the commonest first."""


def applications(inputs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Parts of the section: ``title``, ``sentence``, ``rows`` (of text), ``picture`` (base64 of PNG, or empty), ``caption``.

    Args:
        inputs: folders by step; ``embeddings``, ``map_audit`` and ``land_cover_shares`` may be missing.

    Raises:
        MissingInputError: a step was asked for and has not been run.
    """
    parts = (
        ("embeddings", _vectors),
        ("map_audit", _audit),
        ("map_audit", _confusions),
        ("land_cover_shares", _shares),
    )
    return [make(inputs[step]) for step, make in parts if step in inputs]


def _read(path: Path, command: str) -> Any:
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; the report needs it. Run `geokr {command}` first.")
    return read_json(path)


def _part(title: str, sentence: str, rows: list[dict[str, str]], picture: Path | None = None, caption: str = "") -> Any:
    shown = "" if picture is None else base64.b64encode(picture.read_bytes()).decode()
    return {"title": title, "sentence": sentence, "rows": rows, "picture": shown, "caption": caption}


def _vectors(folder: Path) -> dict[str, Any]:
    network = _read(folder / "embeddings.json", "embed")
    items = list(folder.glob("*.stac.json"))
    num_chips = sum(int(read_json(path)["properties"]["geokr:num_chips"]) for path in items)
    sentence = (
        f"{num_chips} chips of {len(items)} scene(s) have a vector of {network['num_dimensions']} dimensions by {network['model']}. "
        "geokr search --like CHIP finds chips that look alike, and geokr search --page page.html writes a page to label them on."
    )
    return dict(_part("Vectors of the archive", sentence, []))


def _audit(folder: Path) -> dict[str, Any]:
    result = _read(folder / "audit.json", "audit")
    rows = [
        {
            "planted errors": kind,
            "average precision": f"{found['average_precision']:.2f}",
            "right in the first hundred": f"{found['precision_at_100']:.0%}",
            "errors planted": f"{found['num_planted']:.0f}",
            "draws": f"{found['plantings']:.0f}",
        }
        for kind, found in (
            *result["planted"].items(),
            *((f"{kind}, cell by cell", found) for kind, found in result.get("cells", {}).get("planted", {}).items()),
        )
    ]
    kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in result["kinds"].items())
    shifted = result.get("shifted_places", [])
    moved = f" In {len(shifted)} place(s) the map is shifted against the image." if shifted else ""
    sentence = (
        f"{result['num_chips']} chips were ranked by how far the map is from what their images say. Of the first {result['num_flagged']}: {kinds}."
        f"{moved} The audit planted errors by itself; the table says what it found of them, by chance {result['planted_fraction']:.0%}."
    )
    caption = "The first twenty: image, what the map says of it, what the image says"
    return dict(_part("Where image and map disagree", sentence, rows, folder / "gallery.png", caption))


def _confusions(folder: Path) -> dict[str, Any]:
    result = _read(folder / "audit.json", "audit")
    found = result["confusions"]
    rows = [
        {
            "the map says": pair["surplus_class"].replace("_", " "),
            "the image says": pair["missing_class"].replace("_", " "),
            "chips": str(pair["chips"]),
        }
        for pair in found[:_CONFUSIONS]
    ]
    others = f"; {len(found) - len(rows)} more pairs of classes are in audit.json" if len(found) > len(rows) else ""
    sentence = (
        f"Of the first {result['num_flagged']} chips: the class that the map has most too much of, and the one that it has most too "
        f"little of{others}."
    )
    return dict(_part("Which class became which", sentence, rows))


def _shares(folder: Path) -> dict[str, Any]:
    content = _read(folder / "land_cover_shares.json", "predict")
    judged = content["judgement"]
    coverage = judged["coverage"]
    covered = "was not measured, as a single place is held out" if coverage is None else f"is {coverage:.1%}"
    sentence = (
        f"On {judged['num_test_chips']} chips of held-out places, shares read from the image are off by {judged['residual']:.3f} (sum of absolute "
        f"differences, 0 to 2); the mean of the training chips, given to each, by {judged['baseline_residual']:.3f}. The coverage of the "
        f"{content['confidence']:.0%} intervals {covered}."
    )
    rows = [
        {"class": name.replace("_", " "), "coverage": f"{value:.1%}"}
        for name, value in judged["coverage_by_class"].items()
    ]
    caption = "Chips of held-out places: the image, what the product says of it, what the map says"
    return dict(_part("Maps of land-cover shares", sentence, rows, folder / "held_out.png", caption))
