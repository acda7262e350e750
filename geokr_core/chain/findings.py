"""What the checks found, kept beside the outcome of a step, so that a door which did not run the step shows it too."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from geokr_core.chain.check_list import Check, of_step
from geokr_core.chain.checks import Finding
from geokr_core.chain.params import Params
from geokr_core.chain.steps import STEPS, Folders
from geokr_core.errors import GeoKRError
from geokr_core.step.files import read_json, write_json
from geokr_core.step.reporter import Reporter

_FILE: Final = "checks.json"
_MAX_SCENES: Final = 50
"""Scenes recorded one by one of a check that they fail; the finding over all counts the others."""


@dataclass(frozen=True)
class Judged:
    """A check of a step and what it found.

    Attributes:
        check: the check.
        finding: what it found.
        scene_id: of which scene; empty for the step as a whole.
    """

    check: Check
    finding: Finding
    scene_id: str = ""


def record_findings(step: str, params: Params, data_version: str, reporter: Reporter) -> Sequence[Judged]:
    """Make all checks of a step and keep what they find under ``<store>/.state/<step>``.

    Args:
        step: a step that has been run.
        params: the parameter file.
        data_version: of its output: what is found belongs to that.
        reporter: is warned of each check that fails, or that could not be made.
    """
    found = [judged for check in of_step(step, params) for judged in _judged(check, params)]
    for judged in found:
        if not judged.finding.passed and not judged.scene_id:
            reporter.warning(f"check {judged.check.name} of {step}: {judged.finding.message}")
    rows = [{"check": judged.check.name, "scene": judged.scene_id, **_plain(judged.finding)} for judged in found]
    write_json(Folders(params).state(step) / _FILE, {"data_version": data_version, "findings": rows})
    return found


def recorded_findings(step: str, params: Params, data_version: str) -> Sequence[Judged]:
    """What is recorded of the checks of a step's output; empty where that is of another data version, or nothing is."""
    path = Folders(params).state(step) / _FILE
    if not path.is_file():
        return ()
    content = read_json(path)
    checks = {check.name: check for check in of_step(step, params)}
    if content["data_version"] != data_version:
        return ()
    return [
        Judged(checks[row["check"]], _finding(row), row["scene"])
        for row in content["findings"]
        if row["check"] in checks
    ]


def _judged(check: Check, params: Params) -> Iterator[Judged]:
    """The finding of a check; of a step that runs scene by scene, of the scenes that fail and of all together."""
    if STEPS[check.step].scenes is None:
        yield Judged(check, _finding_of(check, params))
        return
    from geokr_core.scenes.inventory import usable_scenes

    looked_at = _sample(list(usable_scenes(Folders(params)["scenes"])), check.max_scenes)
    found = {scene_id: _finding_of(check, params, scene_id) for scene_id in looked_at}
    failed = {scene_id: finding for scene_id, finding in found.items() if not finding.passed}
    for scene_id in list(failed)[:_MAX_SCENES]:
        yield Judged(check, failed[scene_id], scene_id)
    yield Judged(check, over_scenes({scene_id: finding.message for scene_id, finding in failed.items()}, len(found)))


def _finding_of(check: Check, params: Params, scene_id: str = "") -> Finding:
    """What the check found. One that cannot be made does not undo the step, whose output is complete."""
    try:
        return check.judge(params, scene_id)
    except GeoKRError as error:
        return Finding(False, f"could not be checked: {error}")


def _sample(scene_ids: Sequence[str], size: int | None) -> Sequence[str]:
    """At most ``size`` of the scenes, evenly spread."""
    if size is None or len(scene_ids) <= size:
        return scene_ids
    return [scene_ids[k * len(scene_ids) // size] for k in range(size)]


def over_scenes(failed: dict[str, str], num_scenes: int) -> Finding:
    """One finding over many scenes.

    Args:
        failed: what was found of each scene that fails.
        num_scenes: how many were looked at.
    """
    rows = [{"scene": scene_id, "finding": message} for scene_id, message in list(failed.items())[:_MAX_SCENES]]
    first = next(iter(failed.values()), "")
    message = f"{num_scenes - len(failed)} of {num_scenes} scene(s) pass." + (f" {first}" if first else "")
    return Finding(not failed, message, {"num_scenes": num_scenes, "num_failed": len(failed)}, rows)


def _plain(finding: Finding) -> dict[str, Any]:
    return {name: value for name, value in asdict(finding).items() if name != "picture_png"}


def _finding(row: dict[str, Any]) -> Finding:
    return Finding(row["passed"], row["message"], row["numbers"], row["table"])
