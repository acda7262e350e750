"""Steps that are run a scene at a time: one scene's output, its outcome, and putting all of them together."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from geokr_core.chain.params import Params
from geokr_core.chain.run import Outcome, run_step
from geokr_core.chain.steps import Folders
from geokr_core.errors import MissingInputError
from geokr_core.step.digests import file_md5, text_digest
from geokr_core.step.reporter import Reporter


def scene_ids(params: Params) -> list[str]:
    """Usable scenes of the inventory, in order.

    Raises:
        MissingInputError: the inventory has not been taken.
    """
    from geokr_core.scenes.inventory import usable_scenes

    return list(usable_scenes(Folders(params)["scenes"]))


def run_scene(
    name: str,
    scene_id: str,
    params: Params,
    reporter: Reporter,
    *,
    force: bool = False,
    scenes: Mapping[str, Any] | None = None,
) -> Outcome:
    """Run ``chips`` or ``proportions`` for one scene. After the last one call `finish_scenes`.

    Args:
        name: ``chips`` or ``proportions``.
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
    from geokr_core.chips import cut
    from geokr_core.proportions import count
    from geokr_core.scenes.inventory import usable_scenes

    folders = Folders(params)
    scenes = usable_scenes(folders["scenes"]) if scenes is None else scenes
    if scene_id not in scenes:
        raise MissingInputError(
            f"scene {scene_id!r} is not among the {len(scenes)} usable scenes of the inventory; run `geokr scenes` and look at its quarantine."
        )
    out, was_current = folders[name], False
    if name == "chips":
        scene = scenes[scene_id]
        was_current = not force and cut.is_scene_current(params.chips, scene, out)
        cut.cut_scene(params.chips, params.scenes.folder, folders["scenes"], scene, out, force=force)
    elif (folders["chips"] / f"{scene_id}.parquet").exists():
        index, shards = folders["land_cover"], folders["chips"]
        was_current = not force and count.is_scene_current(params.proportions, index, shards, scene_id, out)
        source = params.land_cover.folder
        count.count_scene(params.proportions, source, index, shards, scene_id, out, force=force)
    outcome = replace(scene_outcome(name, scene_id, params), was_current=was_current)
    for warning in outcome.summary.warnings:
        reporter.warning(f"quarantined: {warning}")
    return outcome


def finish_scenes(name: str, params: Params, reporter: Reporter) -> bool:
    """Count ``chips`` or ``proportions`` as run for the whole archive if every scene is current.

    Looks at every scene: call it once after many scenes, not after each.

    Returns:
        Whether every scene is current.
    """
    if not is_complete(name, params):
        return False
    run_step(name, params, reporter)
    return True


def scene_outcome(name: str, scene_id: str, params: Params) -> Outcome:
    """What ``chips`` or ``proportions`` have of one scene at present, without running anything.

    Raises:
        MissingInputError: nothing, the scene is still to do.
    """
    from geokr_core.chips import read
    from geokr_core.proportions import count

    folders = Folders(params)
    if name == "chips" or not (folders["chips"] / f"{scene_id}.parquet").exists():
        summary = read.scene_summary(folders["chips"], scene_id)
    else:
        summary = count.scene_summary(folders[name], folders["chips"], scene_id)
    return Outcome(name, folders[name], scene_version(name, scene_id, params), summary, False)


def scene_version(name: str, scene_id: str, params: Params) -> str:
    """Data version of one scene's files in the output of ``chips`` or ``proportions``."""
    folder = Folders(params)[name]
    files = [folder / f"{scene_id}{suffix}" for suffix in (".npy", ".parquet", ".quarantine.json")]
    return text_digest([(path.name, file_md5(path)) for path in files if path.exists()])


def is_complete(name: str, params: Params) -> bool:
    """Whether every usable scene is current in ``chips`` or ``proportions``, so that the step as a whole is done."""
    from geokr_core.chips import cut as cutting
    from geokr_core.chips.read import shard_ids
    from geokr_core.proportions import count
    from geokr_core.scenes.inventory import usable_scenes

    folders = Folders(params)
    scenes = usable_scenes(folders["scenes"]).values()
    cut = all(cutting.is_scene_current(params.chips, scene, folders["chips"]) for scene in scenes)
    if name == "chips" or not cut:
        return cut
    return all(
        count.is_scene_current(params.proportions, folders["land_cover"], folders["chips"], scene_id, folders[name])
        for scene_id in shard_ids(folders["chips"])
    )
