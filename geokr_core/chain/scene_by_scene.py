"""Steps that are run a scene at a time: one scene's output, its outcome, and putting all of them together."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from geokr_core.chain.params import Params
from geokr_core.chain.run import Outcome, run_step
from geokr_core.chain.steps import STEPS, Folders, SceneStep
from geokr_core.errors import ConfigError, MissingInputError
from geokr_core.step.logs import log_fields
from geokr_core.step.reporter import Reporter


def scene_ids(params: Params) -> list[str]:
    """Usable scenes of the inventory, in order.

    Raises:
        MissingInputError: the inventory has not been taken.
    """
    from geokr_core.scenes.inventory import usable_scenes

    return list(usable_scenes(Folders(params)["scenes"]))


def foreseen_scene_ids(params: Params) -> list[str]:
    """Scenes that the first inventory will find, by the plan of the generated world or by the names of files.

    No file is read, so some may be refused later.

    Raises:
        MissingInputError: there is no scene folder, or a collection matches nothing in it.
        ConfigError: one file belongs to two collections.
    """
    from geokr_core.scenes.discovery import discover, scene_id_of

    if params.world is not None and params.scenes.folder.is_relative_to(params.world.folder):
        from geokr_core.world.generate import scene_names

        return sorted(scene_id_of(name) for name in scene_names(params.world))
    return list(dict.fromkeys(candidate.scene_id for candidate in discover(params.scenes).candidates))


def run_scene(
    name: str,
    scene_id: str,
    params: Params,
    reporter: Reporter,
    *,
    force: bool = False,
    scenes: Mapping[str, Any] | None = None,
) -> Outcome:
    """Run a step for one scene. After the last one call `finish_scenes`.

    Args:
        name: a step of `STEPS` that has ``scenes``.
        scene_id: which scene.
        params: the parameter file.
        reporter: who listens.
        force: run even if the scene is current.
        scenes: `geokr_core.scenes.inventory.usable_scenes`, where many scenes are run and the inventory was read already.

    Returns:
        What was done, with the data version of this scene's files. A quarantined scene is an outcome, not an error.

    Raises:
        MissingInputError: the scene is not in the inventory, or an input is missing.
        GeoKRError: whatever the step refuses beyond this one scene.
    """
    from geokr_core.scenes.inventory import usable_scenes

    folders, step = Folders(params), scene_step(name)
    scenes = usable_scenes(folders["scenes"]) if scenes is None else scenes
    if scene_id not in scenes:
        raise MissingInputError(
            f"scene {scene_id!r} is not among the {len(scenes)} usable scenes of the inventory; run `geokr scenes` and look at its quarantine."
        )
    scene = scenes[scene_id]
    was_current = not force and step.is_current(params, folders, scene)
    with log_fields(step=name, partition=scene_id):
        step.run(params, folders, scene, reporter, force=force)
        outcome = replace(scene_outcome(name, scene_id, params), was_current=was_current)
        for warning in outcome.summary.warnings:
            reporter.warning(f"quarantined: {warning}")
    return outcome


def finish_scenes(name: str, params: Params, reporter: Reporter) -> bool:
    """Count a step as run for the whole archive if every scene is current.

    Looks at every scene: call it once after many scenes, not after each.

    Returns:
        Whether every scene is current.
    """
    if not is_complete(name, params):
        return False
    run_step(name, params, reporter)
    return True


def scene_outcome(name: str, scene_id: str, params: Params) -> Outcome:
    """What a step has of one scene at present, without running anything.

    Raises:
        MissingInputError: nothing, the scene is still to do.
    """
    folders = Folders(params)
    summary = scene_step(name).summary(params, folders, scene_id)
    return Outcome(name, folders[name], scene_version(name, scene_id, params), summary, False)


def is_made(name: str, scene_id: str, params: Params) -> bool:
    """Whether a step has something of a scene, current or not: its output, or the reason why there is none.

    A scene that an earlier step quarantined is done with.
    """
    from geokr_core.scenes.quarantine import quarantine_of

    folders = Folders(params)
    if scene_step(name).outputs(folders).record(scene_id) is not None:
        return True
    before = [folders[other] for other in _before(name) if STEPS[other].scenes is not None]
    return quarantine_of(scene_id, *before) is not None


def scene_version(name: str, scene_id: str, params: Params) -> str:
    """Data version of one scene's files in the output of a step."""
    return scene_step(name).outputs(Folders(params)).version(scene_id)


def is_complete(name: str, params: Params) -> bool:
    """Whether every usable scene is current in a step, and in those that it reads, so that the step as a whole is done."""
    from geokr_core.scenes.inventory import usable_scenes

    folders = Folders(params)
    scenes = usable_scenes(folders["scenes"]).values()
    steps = [
        other.scenes for other in STEPS.values() if other.scenes is not None and other.name in (*_before(name), name)
    ]
    return all(step.is_current(params, folders, scene) for step in steps for scene in scenes)


def _before(name: str) -> set[str]:
    """All steps that ``name`` reads, and those that these read."""
    inputs = STEPS[name].inputs
    return set(inputs).union(*(_before(other) for other in inputs))


def scene_step(name: str) -> SceneStep:
    """How a step is run a scene at a time.

    Raises:
        ConfigError: it is run for the whole archive only.
    """
    step = STEPS[name].scenes
    if step is None:
        known = ", ".join(other.name for other in STEPS.values() if other.scenes is not None)
        raise ConfigError(f"{name} is run for the whole archive only; scene by scene run: {known}.")
    return step
