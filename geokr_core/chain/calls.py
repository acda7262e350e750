"""The call behind each row of the table of steps: which function of which package, with which folders.

Packages are imported when a step runs, so that reading the table costs nothing. What a step does is written there.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, get_args

from geokr_core.errors import ConfigError, MissingExtraError, MissingInputError, RegistryError
from geokr_core.step.extras import require_extra
from geokr_core.step.files import read_json
from geokr_core.step.reporter import Reporter
from geokr_core.step.summary import Summary

if TYPE_CHECKING:
    from geokr_core.chain.params import Params
    from geokr_core.scenes.scene import Scene
    from geokr_core.scenes.scene_outputs import SceneOutputs

T = TypeVar("T")


class Folders(Protocol):
    """Where each step reads and writes: what a call needs of ``steps.Folders``, which stands above this module."""

    def __getitem__(self, step: str) -> Path:
        """The output folder of ``step``."""

    @property
    def checkpoints(self) -> Path:
        """Half-done training."""


def need(section: T | None, name: str) -> T:
    """A section that a parameter file may leave out.

    Raises:
        ConfigError: it was left out.
    """
    if section is None:
        defaults = f"`{name}: {{}}` takes its defaults, and " if _has_defaults(name) else ""
        raise ConfigError(
            f"The parameter file has no section `{name}`, and this needs one; {defaults}docs/parameters.md describes it."
        )
    return section


def _has_defaults(name: str) -> bool:
    """Whether a section asks for nothing that only people can know."""
    from geokr_core.chain.params import Params

    kinds = [kind for kind in get_args(Params.model_fields[name].annotation) if kind is not type(None)]
    return not any(field.is_required() for kind in kinds for field in kind.model_fields.values())


def world(params: "Params", folders: Folders, out: Path, reporter: Reporter) -> Summary:
    """Generate the world."""
    from geokr_core.world.generate import generate_world

    return generate_world(need(params.world, "world"), out, reporter)


def world_folder(params: "Params") -> Path:
    """Where the generated world lies."""
    return need(params.world, "world").folder


def scenes(params: "Params", folders: Folders, out: Path, reporter: Reporter) -> Summary:
    """Take the inventory."""
    from geokr_core.scenes.inventory import take_inventory

    return take_inventory(params.scenes, out, reporter)


def land_cover(params: "Params", folders: Folders, out: Path, reporter: Reporter) -> Summary:
    """Index the land-cover tiles."""
    from geokr_core.land_cover.tile_index import index_products

    return index_products(params.land_cover, out, reporter)


def chips(params: "Params", folders: Folders, out: Path, reporter: Reporter) -> Summary:
    """Cut all scenes."""
    from geokr_core.chips.cut import cut_chips

    return cut_chips(params.chips, params.scenes.folder, folders["scenes"], out, reporter)


class ChipsOfScene:
    """Cutting a scene at a time."""

    def outputs(self, folders: Folders) -> "SceneOutputs":
        """Where the shards lie, and what is recorded of them."""
        from geokr_core.scenes.scene_outputs import chip_outputs

        return chip_outputs(folders["chips"])

    def is_current(self, params: "Params", folders: Folders, scene: "Scene") -> bool:
        """Whether the scene's shard, or its refusal, is what its pixels and the parameters give."""
        from geokr_core.chips.cut import is_scene_current

        return is_scene_current(params.chips, scene, folders["chips"])

    def run(self, params: "Params", folders: Folders, scene: "Scene", reporter: Reporter, *, force: bool) -> None:
        """Cut the scene unless its shard is current."""
        from geokr_core.chips.cut import cut_scene

        cut_scene(
            params.chips,
            params.scenes.folder,
            folders["scenes"],
            scene,
            folders["chips"],
            force=force,
            reporter=reporter,
        )

    def summary(self, params: "Params", folders: Folders, scene_id: str) -> Summary:
        """What the scene's shard shows, or why there is none."""
        from geokr_core.chips.read import scene_summary

        return scene_summary(folders["chips"], scene_id)


def proportions(params: "Params", folders: Folders, out: Path, reporter: Reporter) -> Summary:
    """Count the land cover of all scenes."""
    from geokr_core.proportions.count import count_proportions

    source = params.land_cover.folder
    return count_proportions(params.proportions, source, folders["land_cover"], folders["chips"], out, reporter)


class ProportionsOfScene:
    """Counting a scene at a time. A scene without a shard has nothing to count."""

    def outputs(self, folders: Folders) -> "SceneOutputs":
        """Where the proportions lie, and what is recorded of them."""
        from geokr_core.scenes.scene_outputs import proportion_outputs

        return proportion_outputs(folders["proportions"])

    def is_current(self, params: "Params", folders: Folders, scene: "Scene") -> bool:
        """Whether the scene's proportions, or its refusal, are what its chips, the index and the parameters give."""
        from geokr_core.proportions.count import is_scene_current

        index, shards, out = folders["land_cover"], folders["chips"], folders["proportions"]
        return not _has_shard(shards, scene.scene_id) or is_scene_current(
            params.proportions, index, shards, scene.scene_id, out
        )

    def run(self, params: "Params", folders: Folders, scene: "Scene", reporter: Reporter, *, force: bool) -> None:
        """Count the land cover of the scene's chips unless that is current."""
        from geokr_core.proportions.count import count_scene

        source, index, shards = params.land_cover.folder, folders["land_cover"], folders["chips"]
        if _has_shard(shards, scene.scene_id):
            out = folders["proportions"]
            count_scene(params.proportions, source, index, shards, scene.scene_id, out, force=force, reporter=reporter)

    def summary(self, params: "Params", folders: Folders, scene_id: str) -> Summary:
        """What the scene's proportions show; of a scene without a shard, why it has none."""
        from geokr_core.chips import read
        from geokr_core.proportions import count

        shards = folders["chips"]
        if not _has_shard(shards, scene_id):
            return read.scene_summary(shards, scene_id)
        return count.scene_summary(folders["proportions"], shards, scene_id)


def _has_shard(chips: Path, scene_id: str) -> bool:
    from geokr_core.scenes.scene_outputs import chip_outputs

    return chip_outputs(chips).whole(scene_id)


def levir_kr(params: "Params", folders: Folders, out: Path, reporter: Reporter) -> Summary:
    """Freeze the data set."""
    from geokr_core.levir_kr.freeze import freeze

    return freeze(params.levir_kr, folders["chips"], folders["proportions"], out, reporter)


def refuse_audit(params: "Params") -> None:
    """Refuse an audit that is missing, is another one than was meant, or is made by this very chain."""
    audit = params.levir_kr.audit
    if audit is None:
        return
    from geokr_core.levir_kr.audited import require_pinned

    own = (params.store / "map_audit").resolve()
    if audit.table.file.resolve().is_relative_to(own):
        raise ConfigError(
            f"levir_kr.audit.table.file: {audit.table.file} is what this chain itself makes after `levir_kr`: every run would change what "
            "the next one learns from. Copy it elsewhere (such as audits/first.parquet), and give the copy."
        )
    require_pinned(audit.table, "levir_kr.audit.table")
    if audit.judgements is not None:
        require_pinned(audit.judgements, "levir_kr.audit.judgements")


def pretraining(params: "Params", folders: Folders, out: Path, reporter: Reporter) -> Summary:
    """Pretrain each variant with each seed."""
    from geokr_core.pretraining.pretrain import pretrain

    return pretrain(params.pretraining, folders["levir_kr"], out, folders.checkpoints / "pretraining", reporter)


def forget_scenes(params: "Params", folders: Folders) -> None:
    """Forget what earlier inventories remember of the scenes' files."""
    from geokr_core.scenes.inventory import forget

    forget(params.scenes, folders["scenes"])


def forget_land_cover(params: "Params", folders: Folders) -> None:
    """Forget what earlier indices remember of the tiles' files."""
    from geokr_core.land_cover.tile_index import forget

    forget(params.land_cover, folders["land_cover"])


def forget_pretraining(params: "Params", folders: Folders) -> None:
    """Drop what is kept of finished runs."""
    from geokr_core.pretraining.pretrain import forget_finished

    forget_finished(params.pretraining, folders["levir_kr"], folders.checkpoints / "pretraining")


def backbone(params: "Params", folders: Folders, out: Path, reporter: Reporter) -> Summary:
    """Bundle the backbone."""
    from geokr_core.backbone.build import build_bundle

    return build_bundle(params.backbone, folders["levir_kr"], folders["pretraining"], out, reporter)


def embeddings(params: "Params", folders: Folders, out: Path, reporter: Reporter) -> Summary:
    """Embed all scenes that are not current."""
    from geokr_core.embeddings.embed import embed_scenes

    section = need(params.embeddings, "embeddings")
    return embed_scenes(section, folders["backbone"], folders["chips"], out, reporter)


def spared_by_embeddings(params: "Params") -> tuple[str, ...]:
    """The chain's backbone is not read where another network is named: nothing need be trained to use a downloaded one."""
    section = params.embeddings  # which a parameter file may leave out: Dagster asks every step what it reads
    return () if section is None or (section.bundle is None and section.architecture is None) else ("backbone",)


def map_audit(params: "Params", folders: Folders, out: Path, reporter: Reporter) -> Summary:
    """Audit the land-cover map."""
    from geokr_core.audit.registration import Ground
    from geokr_core.audit.run import audit_map

    section, place = need(params.map_audit, "map_audit"), params.levir_kr.place_size_deg
    inputs = folders["embeddings"], folders["chips"], folders["proportions"]
    sources = params.scenes.folder, folders["scenes"], params.land_cover.folder, folders["land_cover"]
    return audit_map(section, place, *inputs, out, reporter, Ground(*sources, tuple(params.chips.bands)))


def vectors_elsewhere(params: "Params") -> tuple[Path, ...]:
    """Vectors of further networks that the audit asks."""
    return need(params.map_audit, "map_audit").other_embeddings or ()


def audit_outdated(params: "Params", folders: Folders) -> str | None:
    """Whether vectors of a further network are of another one by now."""
    others = vectors_elsewhere(params)
    if not others:
        return None
    from geokr_core.audit.networks import OTHER_NETWORKS
    from geokr_core.audit.output import RESULT_FILE
    from geokr_core.embeddings.embed import version_of_vectors

    asked = [one["model_version"] for one in read_json(folders["map_audit"] / RESULT_FILE)[OTHER_NETWORKS]]
    present = [version_of_vectors(folder) for folder in others]
    changed = [
        f"{folder} is of version {new}, the audit asked {old}"
        for folder, new, old in zip(others, present, asked, strict=True)
        if new != old
    ]
    return "; ".join(changed) or None


def land_cover_shares(params: "Params", folders: Folders, out: Path, reporter: Reporter) -> Summary:
    """Map the land-cover shares of all scenes that are not current."""
    from geokr_core.land_cover_shares.predict import Inputs, predict_shares

    section = need(params.land_cover_shares, "land_cover_shares")
    inputs = Inputs(params.scenes.folder, folders["scenes"], folders["levir_kr"], folders["backbone"])
    return predict_shares(section, params.chips, inputs, out, reporter)


def spared_by_shares(params: "Params") -> tuple[str, ...]:
    """The chain's backbone is not read where another bundle is named."""
    section = params.land_cover_shares
    return () if section is None or section.bundle is None else ("backbone",)


def outputs_of_shares(folders: Folders) -> "SceneOutputs":
    """Where the maps lie, and what is recorded of them."""
    from geokr_core.land_cover_shares.outputs import share_outputs

    return share_outputs(folders["land_cover_shares"])


def shares_outdated(params: "Params", folders: Folders) -> str | None:
    """Whether a bundle from outside the chain is another one by now."""
    section = need(params.land_cover_shares, "land_cover_shares")
    if section.bundle is None:
        return None
    from geokr_core.land_cover_shares.outputs import RESULT_FILE
    from geokr_core.step.digests import data_version

    used = str(read_json(folders["land_cover_shares"] / RESULT_FILE)["network"]["model_version"])
    present = data_version(section.bundle)
    return None if used == present else f"{section.bundle} is version {present}, the maps are of {used}"


def outputs_of_embeddings(folders: Folders) -> "SceneOutputs":
    """Where the vectors lie, and what is recorded of them."""
    from geokr_core.embeddings.outputs import embedding_outputs

    return embedding_outputs(folders["embeddings"])


def embeddings_outdated(params: "Params", folders: Folders) -> str | None:
    """Whether a bundle from outside the chain is another one by now."""
    section = need(params.embeddings, "embeddings")
    if section.bundle is None:
        return None
    from geokr_core.embeddings.embed import version_of_vectors
    from geokr_core.step.digests import data_version

    embedded, present = version_of_vectors(folders["embeddings"]), data_version(section.bundle)
    return None if embedded == present else f"{section.bundle} is version {present}, the vectors are of {embedded}"


def evaluation(params: "Params", folders: Folders, out: Path, reporter: Reporter) -> Summary:
    """Judge the backbone."""
    from geokr_core.evaluation.evaluate import evaluate

    cells = folders.checkpoints / "evaluation"
    section = need(params.evaluation, "evaluation")
    return evaluate(section, folders["backbone"], folders["pretraining"], out, cells, reporter)


def report(params: "Params", folders: Folders, out: Path, reporter: Reporter) -> Summary:
    """Write the page."""
    from geokr_core.report.page import write_report

    inputs = {name: folders[name] for name in ("levir_kr", "pretraining", "backbone", "evaluation")}
    wanted = (name for name in ("embeddings", "map_audit", "land_cover_shares") if getattr(params, name) is not None)
    inputs |= {name: folders[name] for name in wanted}
    return write_report(params.report, inputs, out, reporter, params.file)


def champion(params: "Params", folders: Folders, out: Path, reporter: Reporter) -> Summary:
    """Promote the backbone, or not."""
    from geokr_core.registry.champion import promote

    sections = need(params.champion, "champion"), need(params.evaluation, "evaluation")
    inputs = {name: folders[name] for name in ("backbone", "evaluation", "report")}
    return promote(*sections, inputs, folders.checkpoints / "evaluation", out, reporter)


def champion_outdated(params: "Params", folders: Folders) -> str | None:
    """What the registry says otherwise than the recorded decision."""
    try:
        require_extra("mlflow", "The registry")
        from geokr_core.registry.standing import changed_since

        return changed_since(read_json(folders["champion"] / "decision.json"))
    except (RegistryError, MissingExtraError) as error:
        return f"the registry cannot be asked whether it still holds: {error}"


def training_subject(params: "Params") -> str:
    """Which network is trained, how long and how often."""
    section = params.pretraining
    num_runs = sum(len(variant.seeds or section.seeds) for variant in section.named_variants)
    return f"{section.architecture} · {section.steps} steps · {num_runs} run{'s' if num_runs > 1 else ''}"


def model_subject(params: "Params") -> str:
    """Which backbone is built, judged or registered."""
    return params.backbone.model_name


def network_subject(params: "Params") -> str:
    """Whose features say what the images show: of embeddings, which an audit reads."""
    section = need(params.embeddings, "embeddings")
    return section.architecture or (params.backbone.model_name if section.bundle is None else section.bundle.name)


def maps_subject(params: "Params") -> str:
    """Whose features the maps of shares are made from."""
    bundle = need(params.land_cover_shares, "land_cover_shares").bundle
    return params.backbone.model_name if bundle is None else bundle.name


def refuse_legends(params: "Params") -> None:
    """Refuse legends that cannot be read."""
    from geokr_core.land_cover.legend import common_legend, load_legend

    common_legend(params.land_cover.legend, [load_legend(product.legend) for product in params.land_cover.products])


def refuse_weights(params: "Params") -> None:
    """Refuse initial weights that are not there."""
    for variant in params.pretraining.named_variants:
        weights = params.pretraining.of_variant(variant).initial_weights
        if weights not in (None, "imagenet") and not Path(weights).is_file():
            raise MissingInputError(f"{weights}: no such file; `pretraining.initial_weights` names it.")


def refuse_without_registry(params: "Params") -> None:
    """Refuse where MLflow, or what scores a backbone, is not installed."""
    require_extra("mlflow", "`geokr promote`")
    require_extra("evaluate", "`geokr promote`")


def frozen_elsewhere(params: "Params") -> tuple[Path, ...]:
    """Frozen data sets of other stores that tasks of the evaluation map."""
    tasks = need(params.evaluation, "evaluation").tasks
    return tuple(dict.fromkeys(folder for task in tasks if (folder := getattr(task, "levir_kr", None)) is not None))


def refuse_tasks(params: "Params") -> None:
    """Refuse labelled sets that are not there or cannot be read."""
    from geokr_core.evaluation.opening import open_task

    evaluation = need(params.evaluation, "evaluation")
    for task in evaluation.tasks:
        open_task(task, evaluation)
