"""What was quarantined, by which step and why: one table over the inventory, the cutting and the counting."""

from collections.abc import Sequence
from pathlib import Path

from geokr_core.scenes.inventory import read_inventory, refused_without_inventory
from geokr_core.scenes.scene_outputs import quarantine_reason, quarantined_in
from geokr_core.step.markdown import plain

COLUMNS = ("scene", "step", "reason")


def quarantined(scenes: Path, *later: Path) -> Sequence[dict[str, str]]:
    """Every scene that was quarantined.

    Args:
        scenes: folder of the inventory.
        later: folders of the steps after it, in their order; those that do not exist are skipped.

    Returns:
        Rows with the keys of `COLUMNS`, in the order of the steps and then of the scenes. Where the last inventory found no
        usable scene and left nothing, each scene with its reason.

    Raises:
        MissingInputError: the inventory has not been taken.
        DamagedOutputError: a quarantine record cannot be read.
    """
    if none_usable := refused_without_inventory(scenes):
        return [{"scene": scene, "step": "scenes", "reason": reason} for scene, reason in none_usable]
    table = read_inventory(scenes)
    refused = table[table["status"] != "usable"]
    rows = [
        {"scene": str(scene), "step": "scenes", "reason": str(reason)}
        for scene, reason in zip(refused["scene_id"], refused["reason"], strict=True)
    ]
    usable = set(table["scene_id"]) - set(refused["scene_id"])
    for folder in later:
        # A scene that left the archive leaves its record until the step runs again.
        rows += [
            {"scene": scene, "step": folder.name, "reason": quarantine_reason(folder, scene) or ""}
            for scene in quarantined_in(folder)
            if scene in usable
        ]
    return rows


def markdown(rows: Sequence[dict[str, str]], max_rows: int = 50) -> str:
    """The table in Markdown, so that long reasons wrap instead of being cut off.

    Args:
        rows: of `quarantined`.
        max_rows: rows shown; a line says how many more there are.
    """
    if not rows:
        return "No scene is quarantined."
    lines = ["| scene | step | reason |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(plain(row[column]) for column in COLUMNS)} |" for row in rows[:max_rows]]
    more = f"\n\n… and {len(rows) - max_rows} more: `geokr quarantine` lists all." if len(rows) > max_rows else ""
    return f"{len(rows)} scene(s) quarantined; all others go on.\n\n" + "\n".join(lines) + more


def quarantine_of(scene_id: str, *folders: Path) -> str | None:
    """Why a scene was quarantined by a step that wrote into ``folders``, or None if it was not.

    Raises:
        DamagedOutputError: its record cannot be read.
    """
    for folder in folders:
        if (reason := quarantine_reason(folder, scene_id)) is not None:
            return reason
    return None
