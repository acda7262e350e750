"""What follows by itself: automation conditions and freshness of assets, and the two switches that turn automation on.

``data_set_follows``
    On from the start. Freezes Levir-KR again when scenes or proportions have changed, embeds the chips of new scenes and audits the
    map anew, each once someone has made it for the first time.
``training_follows``
    Off until someone turns it on, because it spends hours of computing: trains, bundles, judges and reports again when the
    data set has changed.
"""

from datetime import timedelta

import dagster as dg

from geokr_assets.materialise import handling_of
from geokr_core.chain.params import Params
from geokr_core.chain.steps import steps_of


def freshness_of(step: str) -> dg.FreshnessPolicy | None:
    """How old an asset may be, where it should be looked at from time to time though nothing below it changes."""
    days = handling_of(step).fresh_for_days
    if days is None:
        return None
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(days=days), warn_window=timedelta(days=days // 3))


def condition_of(step: str) -> dg.AutomationCondition | None:  # type: ignore[type-arg]  # dagster leaves it open
    """When an asset is made by itself: after one that it reads was, but never for the first time."""
    if not handling_of(step).follows:
        return None
    return (dg.AutomationCondition.eager() & ~dg.AutomationCondition.missing()).with_label("after what it reads")


def build_automation(params: Params) -> list[dg.SensorDefinition]:
    """The switches, for the assets that a parameter file asks for."""
    following = {step.name: handling_of(step.name).follows for step in steps_of(params)}
    data_set = [step for step, switch in following.items() if switch == "data_set_follows"]
    training = [step for step, switch in following.items() if switch == "training_follows"]
    return [
        dg.AutomationConditionSensorDefinition(
            "data_set_follows",
            target=dg.AssetSelection.assets(*data_set),
            default_status=dg.DefaultSensorStatus.RUNNING,
            description="Freezes Levir-KR, embeds new scenes and audits the map again when scenes or proportions have changed. It "
            "never makes one of them for the first time.",
        ),
        dg.AutomationConditionSensorDefinition(
            "training_follows",
            target=dg.AssetSelection.assets(*training),
            default_status=dg.DefaultSensorStatus.STOPPED,
            description="Trains, judges and reports again when Levir-KR has changed. Off: it spends hours of computing.",
        ),
    ]
