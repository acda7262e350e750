"""Schedules: what is looked at again from time to time, and trained again once a person has approved it."""

import dagster as dg
from dagster._core.storage.tags import SCHEDULE_NAME_TAG

from geokr_assets.jobs import approve_pretraining, pretrain_again, reevaluate
from geokr_assets.resources import ParamsFile
from geokr_core.chain.freshness import fingerprint, is_current
from geokr_core.chain.steps import STEPS
from geokr_core.errors import MissingInputError

APPROVAL_TAG = "geokr/approved_by_run"
"""Of a scheduled training: the run of `approve_pretraining` that stands for a person's word."""


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


@dg.schedule(
    name="monthly_pretraining",
    job=pretrain_again,
    cron_schedule="0 6 1 * *",
    execution_timezone="UTC",
    # Twice a person decides: who turns it on, and who approves each training.
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="On the first of a month at 6:00 UTC: train on Levir-KR as it is now, judge and promote, if it changed since the last training "
    "and a person has launched the job `approve_pretraining` since then. An approval counts for one training.",
)
def monthly_pretraining(
    context: dg.ScheduleEvaluationContext, params_file: ParamsFile
) -> dg.RunRequest | dg.SkipReason:
    """Ask for a training, or say why there is none."""
    params, training = params_file.load(), STEPS["pretraining"]
    try:
        if is_current(params, training):
            return dg.SkipReason("Neither Levir-KR nor the section `pretraining` changed since the last training.")
        inputs = fingerprint(params, training)
    except MissingInputError as error:
        return dg.SkipReason(f"There is nothing to train on yet: {error}")
    approval = _approval(context.instance)
    if approval is None:
        return dg.SkipReason(
            f"Levir-KR or the section `pretraining` changed, but no one has approved a training since: launch the job `{approve_pretraining.name}`."
        )
    return dg.RunRequest(run_key=f"{approval}-{inputs}", tags={APPROVAL_TAG: approval})


def _approval(instance: dg.DagsterInstance) -> str | None:
    """The newest approval, unless a scheduled training has used it."""
    succeeded = dg.RunsFilter(job_name=approve_pretraining.name, statuses=[dg.DagsterRunStatus.SUCCESS])
    approvals = instance.get_runs(succeeded, limit=1)
    if not approvals:
        return None
    used = dg.RunsFilter(tags={SCHEDULE_NAME_TAG: "monthly_pretraining", APPROVAL_TAG: approvals[0].run_id})
    return None if instance.get_runs(used, limit=1) else approvals[0].run_id
