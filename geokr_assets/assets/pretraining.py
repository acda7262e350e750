"""Group ``pretraining``: from the data set to the backbone that others can load."""

import dagster as dg

from geokr_assets.assets.step_asset import step_asset
from geokr_core.chain.params import Params

GROUP = "pretraining"


def build(params: Params) -> list[dg.AssetsDefinition]:
    """Assets of the group."""
    return [
        step_asset(
            params,
            "pretraining",
            group=GROUP,
            kinds={"pytorch", "mlflow"},
            description="A network learns from chips without human labels: to predict the land cover of each **cell** from all "
            "of its stages, and to tell crops of one chip from those of all others. Other methods are a line in "
            "`pretraining.variants`.\n\nRuns in a separate process, so that its "
            "memory and its libraries end with it. Terminate the run to stop it: it saves a checkpoint, and the next run "
            "resumes from there. Curves and system load are in MLflow.",
        ),
        step_asset(
            params,
            "backbone",
            group=GROUP,
            kinds={"pytorch", "safetensors"},
            description="What a downstream team gets: weights under torchvision's names, which bands and scaling they want, "
            "an example input with its features to prove that loading worked, a model card, and a loader that needs "
            "nothing of this project. No pickle.",
        ),
    ]
