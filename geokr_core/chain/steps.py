"""The table of steps: which step follows which, with what configuration, into which folder.

This table is the one truth. The command line is made from it, ``dvc.yaml`` and the Dagster asset graph are kept equal
to it by tests. What a step does is written in the package that it calls (``calls``); no other module of the chain knows
a step by name. Reading the table imports nothing heavy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from geokr_core.chain import calls
from geokr_core.step.reporter import Reporter
from geokr_core.step.summary import Summary

if TYPE_CHECKING:
    from geokr_core.chain.params import Params
    from geokr_core.scenes.scene import Scene
    from geokr_core.scenes.scene_outputs import SceneOutputs


@dataclass(frozen=True)
class Folders:
    """Where each step of one parameter file reads and writes."""

    params: "Params"

    def __getitem__(self, step: str) -> Path:
        """The output folder of ``step``."""
        folder = STEPS[step].folder if step in STEPS else None
        return self.params.store / step if folder is None else folder(self.params)

    def state(self, step: str) -> Path:
        """Where the fingerprint and the summary of ``step`` are kept: beside the outputs, never inside."""
        return self.params.store / ".state" / step

    @property
    def checkpoints(self) -> Path:
        """Half-done training, kept outside the outputs so that DVC's clearing of outputs does not lose it."""
        return self.params.store / ".checkpoints"


Runner = Callable[["Params", Folders, Path, Reporter], Summary]


class SceneStep(Protocol):
    """How a step that keeps one output a scene is run a scene at a time."""

    def outputs(self, folders: Folders) -> "SceneOutputs":
        """Where the outputs lie, and what is recorded of them."""

    def is_current(self, params: "Params", folders: Folders, scene: "Scene") -> bool:
        """Whether the scene's output is what its inputs and the parameters give."""

    def run(self, params: "Params", folders: Folders, scene: "Scene", reporter: Reporter, *, force: bool) -> None:
        """Make the scene's output unless it is current."""

    def summary(self, params: "Params", folders: Folders, scene_id: str) -> Summary:
        """What the scene's output shows, or why there is none."""


def _always(params: "Params") -> bool:
    return True


def _none(params: "Params") -> tuple[()]:
    return ()


@dataclass(frozen=True)
class Step:
    """One step of the chain.

    Attributes:
        name: asset key, DVC stage, output folder and, where it has one, section of the parameter file.
        command: what the command line calls it.
        inputs: steps whose output it reads.
        also_reads: further steps whose output it reads where the parameter file asks for them.
        spares: those of ``inputs`` that it does not read, because the parameter file names something else instead.
        sections: sections of the parameter file it depends on.
        sources: folders of raw data it reads, as ``section`` names that have a ``folder``.
        run: calls the one function of the step.
        purpose: one sentence for help texts and the Dagster UI.
        writes: what its output holds, for help texts.
        example: options that show what the command is good for.
        resumes: what is kept when it is stopped before its end.
        tracked: whether a materialisation opens an MLflow run.
        names_file: whether its output tells the name of the parameter file.
        distributed: whether the processes of ``torchrun`` work on it together.
        scenes: how it is run a scene at a time; None where it is run for the whole archive only.
        kept_by_scene: the outputs of a step that is run for the whole archive and still keeps one a scene, so that it makes
            only those of new scenes.
        forget: drops what is remembered or finished outside the output, so that it is read and made again.
        folder: where its output lies, if not in the store; others may put files there, too.
        data_files: folders of built-in data files that it reads, below the package.
        outdated: says why an output is not true any more although nothing that it was made from has changed; or nothing.
        extras: what must be installed beyond the core, asked before anything else.
        refuse: refuses, before anything runs, what can be known to be refused later.
        reads_elsewhere: folders of other parameter files' stores that it reads.
        is_wanted: whether a parameter file asks for the step.
        subject: what a run of it is about, in a few words for the name of its MLflow run.
    """

    name: str
    command: str
    inputs: tuple[str, ...]
    sections: tuple[str, ...]
    sources: tuple[str, ...]
    run: Runner
    purpose: str
    writes: str = ""
    example: str = ""
    resumes: str = ""
    tracked: bool = False
    names_file: bool = False
    distributed: bool = False
    scenes: SceneStep | None = None
    kept_by_scene: "Callable[[Folders], SceneOutputs] | None" = None
    forget: Callable[["Params", Folders], None] | None = None
    folder: Callable[["Params"], Path] | None = None
    data_files: tuple[str, ...] = ()
    also_reads: tuple[str, ...] = ()
    spares: Callable[["Params"], tuple[str, ...]] = _none
    outdated: Callable[["Params", Folders], str | None] | None = None
    extras: tuple[str, ...] = ()
    refuse: Callable[["Params"], None] | None = None
    reads_elsewhere: "Callable[[Params], tuple[Path, ...]]" = _none
    is_wanted: Callable[["Params"], bool] = _always
    subject: Callable[["Params"], str] | None = None

    def inputs_in(self, params: "Params") -> tuple[str, ...]:
        """Steps whose output it reads, as a parameter file has them."""
        spared = self.spares(params)
        also = (name for name in self.also_reads if STEPS[name].is_wanted(params))
        return (*(name for name in self.inputs if name not in spared), *also)

    def outputs(self, folders: Folders) -> "SceneOutputs | None":
        """Its outputs by scene; None where it makes its output as a whole."""
        if self.scenes is not None:
            return self.scenes.outputs(folders)
        return None if self.kept_by_scene is None else self.kept_by_scene(folders)


_TABLE = (
    Step(
        name="world",
        command="world",
        inputs=(),
        sections=("world",),
        sources=(),
        run=calls.world,
        purpose="Generate a small world: scenes, land cover and labelled sets, so that the chain runs offline.",
        writes="scenes, land-cover tiles and labelled sets",
        example="--seed 8 --out data/another-world",
        resumes="nothing",
        folder=calls.world_folder,
        is_wanted=lambda params: params.uses_world,
    ),
    Step(
        name="scenes",
        command="scenes",
        inputs=(),
        sections=("scenes",),
        sources=("scenes",),
        run=calls.scenes,
        forget=calls.forget_scenes,
        purpose="Inventory the raw scenes: grid, bands, date and footprint of each; refuse what cannot be used.",
        writes="inventory.parquet, one row a scene; quarantined scenes with their reasons",
        example="--set scenes.folder=archive/scenes",
        resumes="scenes inspected so far",
    ),
    Step(
        name="land_cover",
        command="land-cover",
        inputs=(),
        sections=("land_cover",),
        sources=("land_cover",),
        run=calls.land_cover,
        forget=calls.forget_land_cover,
        purpose="Index the tiles of the land-cover products by their real footprint and check their legends.",
        writes="tiles.parquet, one row a tile; products.json with the legends",
        example="--set land_cover.folder=archive/land_cover",
        resumes="tiles read so far",
        data_files=("land_cover/legends",),
        refuse=calls.refuse_legends,
    ),
    Step(
        name="chips",
        command="chips",
        inputs=("scenes",),
        sections=("chips",),
        sources=("scenes",),
        run=calls.chips,
        purpose="Cut each scene into chips in its own grid: one scene in, one shard out.",
        writes="a shard of chips and an index a scene",
        example="--set chips.size_px=96",
        resumes="scenes cut so far",
        scenes=calls.ChipsOfScene(),
    ),
    Step(
        name="proportions",
        command="proportions",
        inputs=("chips", "land_cover"),
        sections=("proportions",),
        sources=("land_cover",),
        run=calls.proportions,
        purpose="Count the land cover under each chip, exactly, on the product's own grid.",
        writes="a Parquet file a scene, one row a chip and one column a class",
        example="--set proportions.edge_segments=16",
        resumes="scenes counted so far",
        scenes=calls.ProportionsOfScene(),
    ),
    Step(
        name="levir_kr",
        command="levir-kr",
        inputs=("chips", "proportions"),
        sections=("levir_kr",),
        sources=(),
        run=calls.levir_kr,
        purpose="Freeze Levir-KR: the chips and proportions that training may use, with hashes and a split by place.",
        writes="catalogue of chips with split, channel statistics and a manifest of hashes",
        example="--set levir_kr.validation_fraction=0.2",
        resumes="nothing, which is soon made again",
        tracked=True,
        refuse=calls.refuse_audit,
    ),
    Step(
        name="pretraining",
        command="pretrain",
        inputs=("levir_kr", "chips"),
        sections=("pretraining",),
        sources=(),
        run=calls.pretraining,
        purpose="Pretrain the backbone on land cover and contrast, and the variants that it is compared with.",
        writes="a folder of weights a variant and seed; runs.json; history.csv",
        example="--set pretraining.steps=400",
        resumes="finished runs, and the last checkpoint of the present one",
        tracked=True,
        distributed=True,
        forget=calls.forget_pretraining,
        subject=calls.training_subject,
        refuse=calls.refuse_weights,
    ),
    Step(
        name="backbone",
        command="backbone",
        inputs=("levir_kr", "pretraining"),
        sections=("backbone",),
        sources=(),
        run=calls.backbone,
        purpose="Bundle the pretrained backbone: weights, preprocessing, golden features, model card, loader.",
        writes="weights, backbone.json, golden features, MODEL_CARD.md and the loader",
        resumes="nothing, which is soon made again",
        tracked=True,
        data_files=("backbone/templates", "backbone/loader"),
        subject=calls.model_subject,
    ),
    Step(
        name="embeddings",
        command="embed",
        inputs=("backbone", "chips"),
        sections=("embeddings",),
        sources=(),
        run=calls.embeddings,
        spares=calls.spared_by_embeddings,
        purpose="Embed every chip of the archive: a vector with its place, as GeoParquet and STAC.",
        writes="a GeoParquet file and a STAC item a scene, a collection, DATA_CARD.md",
        example="--set embeddings.features=multi",
        resumes="scenes embedded so far",
        kept_by_scene=calls.outputs_of_embeddings,
        data_files=("embeddings/templates",),
        outdated=calls.embeddings_outdated,
        is_wanted=lambda params: params.embeddings is not None,
    ),
    Step(
        name="map_audit",
        command="audit",
        inputs=("embeddings", "chips", "proportions", "scenes", "land_cover"),
        sections=("map_audit", "levir_kr"),
        sources=("scenes", "land_cover"),
        run=calls.map_audit,
        purpose="Rank the places where image and land-cover map disagree, and test the ranking with planted errors.",
        writes="audit.parquet, one row a chip, the worst first; audit.json with what was found of planted errors; gallery.png; "
        "maps/<scene>.disagreement.tif, the score and both sides' shares as COG; with `map_audit.cells` also cells.parquet and "
        "maps/<scene>.cells.disagreement.tif",
        example="--set map_audit.num_folds=10",
        resumes="nothing, which is soon made again",
        tracked=True,
        subject=calls.network_subject,
        outdated=calls.audit_outdated,
        reads_elsewhere=calls.vectors_elsewhere,
        is_wanted=lambda params: params.map_audit is not None,
    ),
    Step(
        name="land_cover_shares",
        command="predict",
        inputs=("backbone", "levir_kr", "chips", "scenes"),
        sections=("land_cover_shares", "chips"),
        sources=("scenes",),
        run=calls.land_cover_shares,
        spares=calls.spared_by_shares,
        purpose="Map the share of each land-cover class in every scene, with intervals from held-out places.",
        writes="maps of shares, largest class and intervals a scene (COG), STAC, land_cover_shares.json with error and coverage, held_out.png with chips by product and by map",
        example="--set land_cover_shares.confidence=0.8",
        resumes="scenes mapped so far",
        tracked=True,
        kept_by_scene=calls.outputs_of_shares,
        outdated=calls.shares_outdated,
        subject=calls.maps_subject,
        is_wanted=lambda params: params.land_cover_shares is not None,
    ),
    Step(
        name="evaluation",
        command="evaluate",
        inputs=("backbone", "pretraining"),
        sections=("evaluation",),
        sources=("evaluation",),
        run=calls.evaluation,
        purpose="Judge the backbone on labelled downstream sets against other initialisations.",
        writes="results.parquet, one row a score; summary_table.csv, differences.csv and other tables",
        example="--set evaluation.seeds=[0,1,2,3,4]",
        resumes="cells measured so far",
        tracked=True,
        is_wanted=lambda params: params.evaluation is not None,
        refuse=calls.refuse_tasks,
        reads_elsewhere=calls.frozen_elsewhere,
        subject=calls.model_subject,
    ),
    Step(
        name="report",
        command="report",
        inputs=("levir_kr", "pretraining", "backbone", "evaluation"),
        also_reads=("embeddings", "map_audit", "land_cover_shares"),
        sections=("report",),
        sources=(),
        run=calls.report,
        purpose="Write one self-contained page: tables, curves, example chips, confusion matrices.",
        writes="report.html, report.md, report.json",
        resumes="nothing, which is soon made again",
        tracked=True,
        names_file=True,
        data_files=("report/templates",),
        is_wanted=lambda params: params.evaluation is not None,
        subject=calls.model_subject,
    ),
    Step(
        name="champion",
        command="promote",
        inputs=("backbone", "evaluation", "report"),
        sections=("champion",),
        sources=(),
        run=calls.champion,
        purpose="Register the backbone as challenger and promote it if it beats the champion on the same data.",
        writes="decision.json; a version and aliases in the MLflow registry",
        example="--set champion.min_gain=0.01",
        resumes="cells measured so far",
        tracked=True,
        is_wanted=lambda params: params.evaluation is not None and params.champion is not None,
        outdated=calls.champion_outdated,
        extras=("mlflow", "evaluate"),
        refuse=calls.refuse_without_registry,
        subject=calls.model_subject,
    ),
)

STEPS: Mapping[str, Step] = {step.name: step for step in _TABLE}
"""All steps by name, each after those that it reads."""


def steps_of(params: "Params") -> list[Step]:
    """The steps that a parameter file asks for, in order."""
    return [step for step in STEPS.values() if step.is_wanted(params)]


def upstream_of(params: "Params", step: Step) -> tuple[str, ...]:
    """Steps whose output ``step`` reads: its inputs, and before them those that make the raw data of its sources."""
    folders = Folders(params)
    places = [source_folder(params, name) for name in step.sources]
    makers = [other for other in steps_of(params) if other.folder is not None]
    made = [maker.name for maker in makers if any(place.is_relative_to(folders[maker.name]) for place in places)]
    return (*made, *step.inputs_in(params))


def source_folder(params: "Params", name: str) -> Path:
    """The folder of raw data that a section points at.

    Raises:
        ConfigError: the parameter file has no such section.
    """
    folder: Path = calls.need(getattr(params, name), name).folder
    return folder
