"""Schedules: what is looked at again from time to time."""

import dagster as dg

from geokr_assets.jobs import reevaluate
from geokr_assets.resources import ParamsFile
from geokr_core.chain.freshness import fingerprint, is_current
from geokr_core.chain.steps import STEPS
from geokr_core.errors import MissingInputError


@dg.schedule(
    name="reevaluation",
    job=reevaluate,
    cron_schedule="0 5 * * 1",
    execution_timezone="UTC",
    # It spends hours of computing, so a person turns it on.
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Every Monday at 5:00 UTC: judge the backbone again if it, the labelled sets or the evaluation's parameters "
    "changed since the last evaluation, and let the better one of challenger and champion win.",
)
def reevaluation(context: dg.ScheduleEvaluationContext, params_file: ParamsFile) -> dg.RunRequest | dg.SkipReason:
    """Ask for a re-evaluation, or say why there is nothing to evaluate."""
    params, evaluation = params_file.load(), STEPS["evaluation"]
    try:
        if is_current(params, evaluation):
            return dg.SkipReason("Neither the backbone nor the labelled sets changed since the last evaluation.")
        inputs = fingerprint(params, evaluation)
    except MissingInputError as error:
        return dg.SkipReason(f"There is nothing to evaluate yet: {error}")
    # One run a tick and state of the inputs, however often the tick is evaluated; a failed one is tried next week.
    return dg.RunRequest(run_key=f"{context.scheduled_execution_time:%Y-%m-%d}-{inputs}")
