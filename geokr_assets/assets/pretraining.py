"""Group ``pretraining``: from the data set to the backbone that others can load."""

import dagster as dg

from geokr_assets.assets.step_asset import declare, step_asset
from geokr_assets.materialise import Materialised, pretrain_in_own_process
from geokr_assets.resources import ParamsFile, StepConfig
from geokr_core.chain.params import Params

GROUP = "pretraining"


def build(params: Params) -> list[dg.AssetsDefinition]:
    """Assets of the group."""
    return [
        _pretraining(params),
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


def _pretraining(params: Params) -> dg.AssetsDefinition:
    @declare(
        params,
        "pretraining",
        group=GROUP,
        kinds={"pytorch", "mlflow"},
        description="A **student** network predicts the land-cover proportions of each chip; its running average, the "
        "**teacher**, keeps it from believing every error of the product.\n\nRuns in a process of its own, so that its "
        "memory and its libraries end with it. Terminate the run to stop it: the next one goes on from the last "
        "checkpoint. Curves and system load are in MLflow.",
    )
    def pretraining(
        context: dg.AssetExecutionContext, config: StepConfig, params_file: ParamsFile, pipes: dg.PipesSubprocessClient
    ) -> Materialised:
        return pretrain_in_own_process(context, params_file, pipes, force=config.force).get_materialize_result()

    return pretraining
