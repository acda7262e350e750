"""Which check is asked of which step, and whether it stops what follows.

Blocking checks guard correctness: what fails them must not reach training or a user. The others judge quality: they warn,
and a person decides. A new check is an entry in `CHECKS` and a function in ``checks`` or ``delivery_checks``; these are
imported when a check is made, because they load pandas.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from geokr_core.chain.params import Params
from geokr_core.chain.steps import Folders

if TYPE_CHECKING:
    from geokr_core.chain.checks import Finding

Arguments = tuple[object, ...]


def _always(params: Params) -> bool:
    return True


@dataclass(frozen=True)
class Check:
    """One check of one step.

    Attributes:
        name: the function that judges; also the name in the browser.
        step: the step.
        blocking: whether a failure stops everything that follows.
        description: what it guards against, in Markdown.
        arguments: what the function gets, from the parameters and, for steps that run scene by scene, the scene.
        module: where the function lies, in ``geokr_core.chain``.
        wanted: whether the parameters switch it on.
        max_scenes: scenes that are looked at after a run over the whole archive, evenly spread over it, where looking costs as
            much as the work itself; None means all.
    """

    name: str
    step: str
    blocking: bool
    description: str
    arguments: Callable[[Params, Folders, str], Arguments]
    module: str = "checks"
    wanted: Callable[[Params], bool] = _always
    max_scenes: int | None = None

    @property
    def severity(self) -> Literal["ERROR", "WARN"]:
        """ERROR for what must not be, WARN for what a person should look at."""
        return "ERROR" if self.blocking else "WARN"

    def judge(self, params: Params, scene_id: str = "") -> "Finding":
        """Look at what the step wrote.

        Raises:
            MissingInputError: the step has written nothing yet.
        """
        module = importlib.import_module(f"geokr_core.chain.{self.module}")
        finding: Finding = getattr(module, self.name)(*self.arguments(params, Folders(params), scene_id))
        return finding


CHECKS = (
    Check(
        name="raw_data_are_there",
        step="world",
        blocking=True,
        description="The generated world has scenes, land cover and labelled sets.",
        arguments=lambda params, folders, scene: (folders["world"],),
        module="delivery_checks",
    ),
    Check(
        name="quarantined_scenes",
        step="scenes",
        blocking=False,
        description="No scene is refused by the inventory. The table names each that is, with its reason.",
        arguments=lambda params, folders, scene: (0.0, folders["scenes"]),
    ),
    Check(
        name="every_product_has_tiles",
        step="land_cover",
        blocking=False,
        description="Each land-cover product has tiles. Scenes of a product without tiles get no labels.",
        arguments=lambda params, folders, scene: (folders["land_cover"],),
        module="delivery_checks",
    ),
    Check(
        name="chips_show_their_ground",
        step="chips",
        blocking=True,
        description="A sample of chips, read again straight from the raw scene at the recorded transform, is **the same "
        "bytes**. Guards against images that are shifted against their labels.",
        arguments=lambda params, folders, scene: (
            folders["chips"],
            folders["scenes"],
            params.scenes.folder,
            scene,
        ),
        max_scenes=100,
    ),
    Check(
        name="scene_is_usable",
        step="chips",
        blocking=False,
        description="The scene is not quarantined; one that is, is named with its reason.",
        arguments=lambda params, folders, scene: (scene, folders["chips"]),
        module="delivery_checks",
    ),
    Check(
        name="fractions_sum_to_one",
        step="proportions",
        blocking=True,
        description="The land-cover fractions of every chip lie in 0–1 and sum to 1. Guards against lost or double-counted "
        "classes.",
        arguments=lambda params, folders, scene: (folders["proportions"], folders["chips"], scene),
    ),
    Check(
        name="scene_is_usable",
        step="proportions",
        blocking=False,
        description="Neither cutting nor counting quarantined the scene; one that is quarantined is named with its reason.",
        arguments=lambda params, folders, scene: (scene, folders["chips"], folders["proportions"]),
        module="delivery_checks",
    ),
    Check(
        name="land_cover_lies_on_image",
        step="proportions",
        blocking=False,
        description="Mutual information between the image and its land cover peaks where neither is shifted. Warns of a wrong "
        "datum, a wrong pixel registration, a scene that was badly orthorectified. Switched on by `alignment.check: true`.",
        arguments=lambda params, folders, scene: (
            params.alignment,
            params.chips.bands,
            params.scenes.folder,
            folders["scenes"],
            params.land_cover.folder,
            folders["land_cover"],
            folders["chips"],
            folders["proportions"],
            scene,
        ),
        wanted=lambda params: params.alignment.check,
        max_scenes=100,
    ),
    Check(
        name="quarantined_scenes",
        step="levir_kr",
        blocking=False,
        description="At most a twentieth of the scenes is missing from Levir-KR, whether the inventory, the cutting or the "
        "counting quarantined it.",
        arguments=lambda params, folders, scene: (
            0.05,
            folders["scenes"],
            folders["chips"],
            folders["proportions"],
        ),
    ),
    Check(
        name="labels_vary",
        step="levir_kr",
        blocking=False,
        description="The mean land cover of the training chips has an entropy of at least 0.5 nat. Where nearly all ground is "
        "of one class, there is little to learn.",
        arguments=lambda params, folders, scene: (folders["levir_kr"],),
    ),
    Check(
        name="weights_are_finite",
        step="pretraining",
        blocking=True,
        description="Every weight is a finite number. A diverged training never becomes a backbone.",
        arguments=lambda params, folders, scene: (folders["pretraining"],),
    ),
    Check(
        name="teacher_is_apart",
        step="pretraining",
        blocking=True,
        description="The averaged teacher shares no storage with the student, and moved. A teacher that *is* the student "
        "agrees with it always and teaches nothing.",
        arguments=lambda params, folders, scene: (folders["pretraining"],),
    ),
    Check(
        name="bundle_is_whole",
        step="backbone",
        blocking=True,
        description="Every file has the sha256 that is recorded, and loading gives the golden features, as at a receiver's.",
        arguments=lambda params, folders, scene: (folders["backbone"],),
        module="delivery_checks",
    ),
    Check(
        name="every_chip_has_a_vector",
        step="embeddings",
        blocking=False,
        description="Every chip that was cut has a vector, all of one network.",
        arguments=lambda params, folders, scene: (folders["embeddings"], folders["chips"]),
        module="delivery_checks",
    ),
    Check(
        name="audit_finds_planted_errors",
        step="map_audit",
        blocking=False,
        description="The audit finds errors that it planted itself at more than twice the rate of chance.",
        arguments=lambda params, folders, scene: (folders["map_audit"],),
        module="delivery_checks",
    ),
    Check(
        name="intervals_cover_what_they_say",
        step="land_cover_shares",
        blocking=False,
        description="On places that were held out and not used to calibrate them, intervals cover about as many shares as they "
        "promise, and the maps are nearer to the land cover than its mean is.",
        arguments=lambda params, folders, scene: (folders["land_cover_shares"],),
        module="delivery_checks",
    ),
    Check(
        name="scores_are_numbers",
        step="evaluation",
        blocking=True,
        description="Every score is a finite number. A task that could not be judged is no score of 0.",
        arguments=lambda params, folders, scene: (folders["evaluation"],),
        module="delivery_checks",
    ),
    Check(
        name="report_stands_alone",
        step="report",
        blocking=False,
        description="The report is one file that loads nothing from elsewhere.",
        arguments=lambda params, folders, scene: (folders["report"],),
        module="delivery_checks",
    ),
    Check(
        name="holds_against_champion",
        step="champion",
        blocking=False,
        description="The new backbone is not worse than the champion on the same data.",
        arguments=lambda params, folders, scene: (folders["champion"],),
    ),
    Check(
        name="promotion_stands",
        step="champion",
        blocking=False,
        description="The registry still holds the recorded version, its files and the alias.",
        arguments=lambda params, folders, scene: (folders["champion"],),
        module="delivery_checks",
    ),
)
"""All checks, in the order of the chain."""


def of_step(step: str, params: Params) -> list[Check]:
    """The checks of a step, without those that are switched off."""
    return [check for check in CHECKS if check.step == step and check.wanted(params)]
