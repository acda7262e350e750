"""The chain: which step follows which, with what configuration, into which folder.

This table is the one truth. The command line runs it, ``dvc.yaml`` and the Dagster asset graph are held equal to it
by tests. What a step does is written in the module that it calls; nothing of it is written here.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geokr_core import __version__
from geokr_core.config import Params, as_plain
from geokr_core.errors import ConfigError, MissingInputError
from geokr_core.files import data_version, file_md5, read_json, text_digest, write_json
from geokr_core.reporter import RecordingReporter, Reporter
from geokr_core.summary import Summary, read_summary, write_summary


@dataclass(frozen=True)
class Folders:
    """Where each step of one parameter file reads and writes."""

    params: Params

    def __getitem__(self, step: str) -> Path:
        """The output folder of ``step``."""
        if step == "world":
            if self.params.world is None:
                raise ConfigError("The parameter file has no section `world`: there is no generated world to make.")
            return self.params.world.folder
        return self.params.store / step

    def state(self, step: str) -> Path:
        """Where the fingerprint and the summary of ``step`` are kept: beside the outputs, never inside."""
        return self.params.store / ".state" / step

    @property
    def checkpoints(self) -> Path:
        """Half-done training, kept outside the outputs so that DVC's clearing of outputs does not lose it."""
        return self.params.store / ".checkpoints"


Runner = Callable[[Params, Folders, Path, Reporter], Summary]


@dataclass(frozen=True)
class Step:
    """One step of the chain.

    Attributes:
        name: asset key, DVC stage and output folder.
        command: what the command line calls it.
        inputs: steps whose output it reads.
        sections: sections of the parameter file it depends on.
        sources: folders of raw data it reads, as ``section`` names that have a ``folder``.
        run: calls the one function of the step.
        tracked: whether a materialisation opens an MLflow run.
        purpose: one sentence for help texts and the Dagster UI.
        names_file: whether its output tells the name of the parameter file.
    """

    name: str
    command: str
    inputs: tuple[str, ...]
    sections: tuple[str, ...]
    sources: tuple[str, ...]
    run: Runner
    purpose: str
    tracked: bool = False
    names_file: bool = False


def _world(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.world import generate_world

    if params.world is None:
        raise ConfigError("The parameter file has no section `world`.")
    return generate_world(params.world, out, reporter)


def _scenes(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.scenes import take_inventory

    return take_inventory(params.scenes, out, reporter)


def _land_cover(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.landcover import index_products

    return index_products(params.land_cover, out, reporter)


def _chips(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.chips import cut_chips

    return cut_chips(params.chips, params.scenes.folder, folders["scenes"], out, reporter)


def _proportions(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.proportions import count_proportions

    source = params.land_cover.folder
    return count_proportions(params.proportions, source, folders["land_cover"], folders["chips"], out, reporter)


def _levir_kr(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.levir_kr import freeze

    return freeze(params.levir_kr, folders["chips"], folders["proportions"], out, reporter)


def _pretraining(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.pretrain import pretrain

    return pretrain(params.pretraining, folders["levir_kr"], out, folders.checkpoints / "pretraining", reporter)


def _backbone(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.bundle import build_bundle

    return build_bundle(params.backbone, folders["levir_kr"], folders["pretraining"], out, reporter)


def _evaluation(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.evaluate import evaluate

    cells = folders.checkpoints / "evaluation"
    return evaluate(params.evaluation, folders["backbone"], folders["pretraining"], out, cells, reporter)


def _report(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.report import write_report

    inputs = {name: folders[name] for name in ("levir_kr", "pretraining", "backbone", "evaluation")}
    return write_report(params.report, inputs, out, reporter, params.file)


def _champion(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.registry import promote

    inputs = {name: folders[name] for name in ("backbone", "evaluation", "report")}
    return promote(params.champion, params.evaluation, inputs, folders.checkpoints / "evaluation", out, reporter)


SCENE_BY_SCENE = ("chips", "proportions")
"""Steps that keep one output a scene, and pass over scenes that are current."""

STEPS: Mapping[str, Step] = {
    step.name: step
    for step in (
        Step("world", "world", (), ("world",), (), _world,
             "Generate a small world: scenes, land cover and labelled sets, so that the chain runs offline."),
        Step("scenes", "scenes", (), ("scenes",), ("scenes",), _scenes,
             "Take stock of the raw scenes: grid, bands, date and footprint of each; refuse what cannot be used."),
        Step("land_cover", "land-cover", (), ("land_cover",), ("land_cover",), _land_cover,
             "Index the tiles of the land-cover products by their real footprint and check their legends."),
        Step("chips", "chips", ("scenes",), ("chips",), ("scenes",), _chips,
             "Cut each scene into chips in its own grid: one scene in, one shard out."),
        Step("proportions", "proportions", ("chips", "land_cover"), ("proportions",), ("land_cover",), _proportions,
             "Count the land cover under each chip, exactly, on the product's own grid."),
        Step("levir_kr", "levir-kr", ("chips", "proportions"), ("levir_kr",), (), _levir_kr,
             "Freeze Levir-KR: the chips and proportions that training may use, with hashes and a split by place.", tracked=True),
        Step("pretraining", "pretrain", ("levir_kr", "chips"), ("pretraining",), (), _pretraining,
             "Train a student to predict land-cover proportions beside its averaged teacher.", tracked=True),
        Step("backbone", "backbone", ("levir_kr", "pretraining"), ("backbone",), (), _backbone,
             "Bundle the pretrained backbone: weights, preprocessing, golden features, model card, loader.", tracked=True),
        Step("evaluation", "evaluate", ("backbone", "pretraining"), ("evaluation",), ("evaluation",), _evaluation,
             "Judge the backbone on labelled downstream sets against other initialisations.", tracked=True),
        Step("report", "report", ("levir_kr", "pretraining", "backbone", "evaluation"), ("report",), (), _report,
             "Write one self-contained page: tables, curves, example chips, confusion matrices.", tracked=True, names_file=True),
        Step("champion", "promote", ("backbone", "evaluation", "report"), ("champion",), (), _champion,
             "Register the backbone as challenger and promote it if it beats the champion on the same data.", tracked=True),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What `run_step` did.

    Attributes:
        step: name of the step.
        folder: where its output lies.
        data_version: of the output; of the scene's part of it where one scene was run.
        summary: numbers, table and picture.
        was_current: whether nothing had to be done.
        mlflow_url: page or URI of its MLflow run, if it opened one.
    """

    step: str
    folder: Path
    data_version: str
    summary: Summary
    was_current: bool
    mlflow_url: str | None = None


def steps_of(params: Params) -> list[Step]:
    """The steps of one parameter file in order: ``world`` only where a source lies in the generated world."""
    return [step for step in STEPS.values() if step.name != "world" or params.uses_world]


def upstream_of(params: Params, step: Step) -> tuple[str, ...]:
    """Steps whose output ``step`` reads, with ``world`` where one of its sources lies in the generated world."""
    return (("world",) if _reads_world(params, step) else ()) + step.inputs


def _reads_world(params: Params, step: Step) -> bool:
    if params.world is None:
        return False
    return any(getattr(params, name).folder.is_relative_to(params.world.folder) for name in step.sources)


def fingerprint(params: Params, step: Step) -> str:
    """Digest of everything a step's result depends on: its sections, its inputs' data versions, the code's version.

    Raises:
        MissingInputError: an input has not been made yet.
    """
    folders = Folders(params)
    inputs: dict[str, str] = {}
    for name in step.inputs:
        remedy = f"run `geokr {STEPS[name].command}` first, or `geokr run` for the whole chain"
        inputs[name] = require(folders[name], remedy)
    for name in step.sources:
        inputs[f"source:{name}"] = require(getattr(params, name).folder, f"point `{name}.folder` at your data")
    sections = {name: as_plain(getattr(params, name)) for name in step.sections}
    named = {"params_file": params.file} if step.names_file else {}
    return text_digest(
        {"inputs": inputs, "sections": sections, "files": _files_named(sections), "code": __version__, **named}
    )


def _files_named(value: Any) -> dict[str, str]:
    """md5 of every file that a section names (a legend, initial weights), by path: editing it changes the result."""
    if isinstance(value, str):
        return {value: file_md5(Path(value))} if value and Path(value).is_file() else {}
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {path: md5 for part in parts for path, md5 in _files_named(part).items()}


def require(folder: Path, remedy: str) -> str:
    """The data version of an input folder.

    Raises:
        MissingInputError: it is missing or empty.
    """
    if not folder.is_dir():
        raise MissingInputError(f"{folder}: no such folder; {remedy}.")
    if not any(folder.iterdir()):
        raise MissingInputError(f"{folder}: the folder is empty; {remedy}.")
    return data_version(folder)


def is_current(params: Params, step: Step) -> bool:
    """Whether the output of ``step`` is what its inputs and parameters give, unchanged since it was written."""
    folders = Folders(params)
    if not (folders.state(step.name) / "state.json").exists():
        return False
    return _recorded(folders, step.name, fingerprint(params, step)) is not None


def _recorded(folders: Folders, name: str, mark: str) -> Mapping[str, Any] | None:
    """What is recorded of the present output of a step, if it was made with the fingerprint ``mark`` and is unchanged."""
    record = folders.state(name) / "state.json"
    if not record.exists() or not folders[name].exists():
        return None
    state: Mapping[str, Any] = read_json(record)
    return state if state["fingerprint"] == mark and state["data_version"] == data_version(folders[name]) else None


def _forget_scenes(out: Path) -> None:
    """Take away the marks by which scenes are known as done, so that each is made again."""
    for pattern in ("*.parquet", "*.quarantine.json"):
        for mark in out.glob(pattern):
            mark.unlink()


def _forget_pretraining(params: Params, folders: Folders) -> None:
    from geokr_core.pretrain import forget_finished

    forget_finished(params.pretraining, folders["levir_kr"], folders.checkpoints / "pretraining")


def run_step(
    name: str, params: Params, reporter: Reporter, *, force: bool = False, tags: Mapping[str, str] | None = None
) -> Outcome:
    """Run one step unless its output is current.

    Args:
        name: a key of `STEPS`.
        params: the parameter file.
        reporter: who listens.
        force: run even if the output is current.
        tags: more tags for the MLflow run, e.g. the Dagster run.

    Returns:
        What was done; the summary is also kept under ``<store>/.state/<name>``.

    Raises:
        MissingInputError: an input or a source folder is missing.
        GeoKRError: whatever the step itself refuses.
    """
    step = STEPS[name]
    folders = Folders(params)
    out, state = folders[name], folders.state(name)
    mark = fingerprint(params, step)
    if not force and (current := _recorded(folders, name, mark)) is not None:
        reporter.info(f"{name}: up to date ({out})")
        return Outcome(name, out, current["data_version"], read_summary(state), True, current["mlflow_url"])
    if int(os.environ.get("RANK", "0")) > 0:  # started by torchrun: the first process alone records what was done
        return _assist(step, params, folders, out)
    if force and name in SCENE_BY_SCENE:
        _forget_scenes(out)
    if force and name == "pretraining":
        _forget_pretraining(params, folders)
    started = time.monotonic()
    with _tracked(step, params, reporter, mark, tags or {}) as run:
        summary = step.run(params, folders, out, run.reporter)
        seconds = round(time.monotonic() - started, 1)
        summary = replace(summary, numbers={**summary.numbers, "seconds": seconds})
        version = data_version(out)
        run.finish(summary, version)
    write_summary(state, summary)
    write_json(state / "state.json", {"fingerprint": mark, "data_version": version, "mlflow_url": run.url})
    reporter.info(f"{name}: done in {seconds} s → {out}")
    return Outcome(name, out, version, summary, False, run.url)


def _assist(step: Step, params: Params, folders: Folders, out: Path) -> Outcome:
    if step.name != "pretraining":
        raise ConfigError(f"torchrun: `{step.command}` runs in one process; only `geokr pretrain` can use several.")
    summary = step.run(params, folders, out, RecordingReporter())
    return Outcome(step.name, out, data_version(out), summary, False)


@dataclass(frozen=True)
class _Untracked:
    """A step that opens no MLflow run."""

    reporter: Reporter
    url: str | None = None

    def finish(self, summary: Summary, data_version: str) -> None:
        """Nothing to log to."""


@contextmanager
def _tracked(step: Step, params: Params, reporter: Reporter, mark: str, tags: Mapping[str, str]) -> Iterator[Any]:
    if not step.tracked:
        yield _Untracked(reporter)
        return
    from geokr_core.registry import FINGERPRINT_TAG, track_step

    parameters = {name: as_plain(getattr(params, name)) for name in step.sections}
    with track_step(step.name, parameters, {FINGERPRINT_TAG: mark, **tags}, reporter) as run:
        yield run


def scene_ids(params: Params) -> list[str]:
    """Usable scenes of the inventory, in order.

    Raises:
        MissingInputError: the inventory has not been taken.
    """
    from geokr_core.scenes import usable_scenes

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
        scenes: `geokr_core.scenes.usable_scenes`, where many scenes are run and the inventory was read already.

    Returns:
        What was done, with the data version of this scene's files. A quarantined scene is an outcome, not an error.

    Raises:
        MissingInputError: the scene is not in the inventory, or an input is missing.
        GeoKRError: whatever the step refuses beyond this one scene.
    """
    from geokr_core import chips, proportions
    from geokr_core.scenes import usable_scenes

    folders = Folders(params)
    scenes = usable_scenes(folders["scenes"]) if scenes is None else scenes
    if scene_id not in scenes:
        raise MissingInputError(
            f"scene {scene_id!r} is not among the {len(scenes)} usable scenes of the inventory; run `geokr scenes` and look at its quarantine."
        )
    out, was_current = folders[name], False
    if name == "chips":
        scene = scenes[scene_id]
        was_current = not force and chips.is_scene_current(params.chips, scene, out)
        chips.cut_scene(params.chips, params.scenes.folder, folders["scenes"], scene, out, force=force)
    elif (folders["chips"] / f"{scene_id}.parquet").exists():
        index, shards = folders["land_cover"], folders["chips"]
        was_current = not force and proportions.is_scene_current(params.proportions, index, shards, scene_id, out)
        source = params.land_cover.folder
        proportions.count_scene(params.proportions, source, index, shards, scene_id, out, force=force)
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
    from geokr_core import chips, proportions

    folders = Folders(params)
    if name == "chips" or not (folders["chips"] / f"{scene_id}.parquet").exists():
        summary = chips.scene_summary(folders["chips"], scene_id)
    else:
        summary = proportions.scene_summary(folders[name], folders["chips"], scene_id)
    return Outcome(name, folders[name], scene_version(name, scene_id, params), summary, False)


def scene_version(name: str, scene_id: str, params: Params) -> str:
    """Data version of one scene's files in the output of ``chips`` or ``proportions``."""
    folder = Folders(params)[name]
    files = [folder / f"{scene_id}{suffix}" for suffix in (".npy", ".parquet", ".quarantine.json")]
    return text_digest([(path.name, file_md5(path)) for path in files if path.exists()])


def is_complete(name: str, params: Params) -> bool:
    """Whether every usable scene is current in ``chips`` or ``proportions``, so that the step as a whole is done."""
    from geokr_core import chips, proportions
    from geokr_core.scenes import usable_scenes

    folders = Folders(params)
    scenes = usable_scenes(folders["scenes"]).values()
    cut = all(chips.is_scene_current(params.chips, scene, folders["chips"]) for scene in scenes)
    if name == "chips" or not cut:
        return cut
    return all(
        proportions.is_scene_current(
            params.proportions, folders["land_cover"], folders["chips"], scene_id, folders[name]
        )
        for scene_id in chips.shard_ids(folders["chips"])
    )


def describe(params: Params) -> Iterator[Mapping[str, Any]]:
    """One row a step: what it is, where its output lies, whether it is there. For ``geokr status``."""
    folders = Folders(params)
    for step in steps_of(params):
        try:
            current = "up to date" if is_current(params, step) else "to do"
        except MissingInputError as error:
            current = f"waits: {error}"
        yield {"step": step.name, "state": current, "output": str(folders[step.name])}
