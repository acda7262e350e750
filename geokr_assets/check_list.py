"""Which finding of ``geokr_core.chain.checks`` is asked of which asset, and whether it stops what follows.

Blocking checks guard correctness: what fails them must not reach training or a user, so the run ends there. The
others judge quality: they warn, and a person decides. A new check is a line in `CHECKS` and a function in the core.
This list does not load Dagster, because the training process reads it too; ``checks`` turns it into asset checks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from geokr_core.chain.params import Params
from geokr_core.chain.steps import Folders

if TYPE_CHECKING:
    # At run time the core's checks are imported by the function that uses them: they load pandas.
    from geokr_core.chain.checks import Finding

IN_OWN_PROCESS = ("pretraining",)
"""Steps whose checks are made where the step runs, and come back through Pipes."""


Arguments = tuple[object, ...]


@dataclass(frozen=True)
class Check:
    """One check of one asset.

    Attributes:
        name: the function of `geokr_core.chain.checks` that judges; also the name in the browser.
        step: the asset.
        blocking: whether a failure stops everything that follows.
        description: what it guards against, in Markdown.
        arguments: what the function gets, from the parameters and, for partitioned assets, the scene.
        wanted: whether the parameters switch it on.
    """

    name: str
    step: str
    blocking: bool
    description: str
    arguments: Callable[[Params, Folders, str], Arguments]
    wanted: Callable[[Params], bool] = lambda params: True

    @property
    def severity(self) -> Literal["ERROR", "WARN"]:
        """ERROR for what must not be, WARN for what a person should look at."""
        return "ERROR" if self.blocking else "WARN"

    def judge(self, params: Params, scene_id: str = "") -> "Finding":
        """Look at what the step wrote.

        Raises:
            MissingInputError: the step has written nothing yet.
        """
        from geokr_core.chain import checks

        finding: Finding = getattr(checks, self.name)(*self.arguments(params, Folders(params), scene_id))
        return finding


CHECKS = (
    Check(
        "quarantined_scenes", "scenes", False,
        "At most a twentieth of the scenes is refused by the inventory. The table names each with its reason.",
        lambda params, folders, scene: (folders["scenes"],),
    ),
    Check(
        "chips_show_their_ground", "chips", True,
        "A sample of chips, read again straight from the raw scene at the recorded transform, is **the same bytes**. "
        "Guards against images that are shifted against their labels.",
        lambda params, folders, scene: (folders["chips"], folders["scenes"], params.scenes.folder, scene),
    ),
    Check(
        "fractions_sum_to_one", "proportions", True,
        "The land-cover fractions of every chip lie in 0–1 and sum to 1. Guards against lost or double-counted classes.",
        lambda params, folders, scene: (folders["proportions"], folders["chips"], scene),
    ),
    Check(
        "land_cover_lies_on_image", "proportions", False,
        "Mutual information between the image and its land cover peaks where neither is shifted. Warns of a wrong datum, a "
        "wrong pixel registration, a scene that was badly orthorectified. Switched on by `alignment.check: true`.",
        lambda params, folders, scene: (
            params.alignment, params.chips.bands, params.scenes.folder, folders["scenes"], params.land_cover.folder,
            folders["land_cover"], folders["chips"], folders["proportions"], scene,
        ),
        wanted=lambda params: params.alignment.check,
    ),
    Check(
        "quarantined_scenes", "levir_kr", False,
        "At most a twentieth of the scenes is missing from Levir-KR, whether the inventory, the cutting or the counting "
        "set it aside.",
        lambda params, folders, scene: (folders["scenes"], folders["chips"], folders["proportions"]),
    ),
    Check(
        "labels_vary", "levir_kr", False,
        "The mean land cover of the training chips has an entropy of at least 0.5 nat. Where nearly all ground is of one "
        "class, there is little to learn.",
        lambda params, folders, scene: (folders["levir_kr"],),
    ),
    Check(
        "weights_are_finite", "pretraining", True,
        "Every weight is a finite number. A diverged training never becomes a backbone.",
        lambda params, folders, scene: (folders["pretraining"],),
    ),
    Check(
        "teacher_is_apart", "pretraining", True,
        "The averaged teacher shares no storage with the student, and moved. A teacher that *is* the student agrees "
        "with it always and teaches nothing.",
        lambda params, folders, scene: (folders["pretraining"],),
    ),
    Check(
        "holds_against_champion", "champion", False,
        "The new backbone is not worse than the champion on the same data.",
        lambda params, folders, scene: (folders["champion"],),
    ),
)  # fmt: skip


def of_step(step: str, params: Params) -> list[Check]:
    """The checks of an asset, but those that are switched off."""
    return [check for check in CHECKS if check.step == step and check.wanted(params)]
