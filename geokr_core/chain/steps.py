"""The table of steps: which step follows which, with what configuration, into which folder.

This table is the one truth. The command line runs it, ``dvc.yaml`` and the Dagster asset graph are held equal to it
by tests. What a step does is written in the package that it calls; nothing of it is written here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from geokr_core.chain.params import Params
from geokr_core.errors import ConfigError
from geokr_core.step.reporter import Reporter
from geokr_core.step.summary import Summary


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
    from geokr_core.world.generate import generate_world

    if params.world is None:
        raise ConfigError("The parameter file has no section `world`.")
    return generate_world(params.world, out, reporter)


def _scenes(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.scenes.inventory import take_inventory

    return take_inventory(params.scenes, out, reporter)


def _land_cover(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.land_cover.tile_index import index_products

    return index_products(params.land_cover, out, reporter)


def _chips(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.chips.cut import cut_chips

    return cut_chips(params.chips, params.scenes.folder, folders["scenes"], out, reporter)


def _proportions(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.proportions.count import count_proportions

    source = params.land_cover.folder
    return count_proportions(params.proportions, source, folders["land_cover"], folders["chips"], out, reporter)


def _levir_kr(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.levir_kr.freeze import freeze

    return freeze(params.levir_kr, folders["chips"], folders["proportions"], out, reporter)


def _pretraining(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.pretraining.pretrain import pretrain

    return pretrain(params.pretraining, folders["levir_kr"], out, folders.checkpoints / "pretraining", reporter)


def _backbone(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.backbone.build import build_bundle

    return build_bundle(params.backbone, folders["levir_kr"], folders["pretraining"], out, reporter)


def _evaluation(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.evaluation.evaluate import evaluate

    cells = folders.checkpoints / "evaluation"
    return evaluate(params.evaluation, folders["backbone"], folders["pretraining"], out, cells, reporter)


def _report(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.report.page import write_report

    inputs = {name: folders[name] for name in ("levir_kr", "pretraining", "backbone", "evaluation")}
    return write_report(params.report, inputs, out, reporter, params.file)


def _champion(params: Params, folders: Folders, out: Path, reporter: Reporter) -> Summary:
    from geokr_core.registry.champion import promote

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
