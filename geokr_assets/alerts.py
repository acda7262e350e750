"""What is told to people when a run fails: a message to a web hook, if one is configured.

``$GEOKR_ALERT_WEBHOOK`` names the address; it gets ``{"text": …}`` by POST, which Slack, Mattermost, Teams and most others
take. Without it there is no sensor. For mail use `dagster.make_email_on_run_failure_sensor` in a code location beside this one.
"""

import os
from typing import Final

import dagster as dg

WEBHOOK_VARIABLE: Final = "GEOKR_ALERT_WEBHOOK"
"""Environment variable with the address that is told of failed runs."""

UI_VARIABLE: Final = "GEOKR_DAGSTER_UI_URL"
"""Environment variable with the address of the Dagster UI, for links."""

_TIMEOUT_S: Final = 10.0


def message_of(job: str, run_id: str, reason: str) -> str:
    """What is told of a failed run."""
    address = os.environ.get(UI_VARIABLE, "").rstrip("/")
    link = f" {address}/runs/{run_id}" if address else f" Run {run_id}."
    return f"GeoKR: {job} failed: {reason}{link}"


def build_alerts() -> list[dg.SensorDefinition]:
    """The sensor of failed runs, where an address is configured."""
    return [_tell_of_failure] if os.environ.get(WEBHOOK_VARIABLE) else []


@dg.run_failure_sensor(
    name="failed_runs",
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"Tells the web hook in ${WEBHOOK_VARIABLE} of every failed run, with the reason.",
)
def _tell_of_failure(context: dg.RunFailureSensorContext) -> None:
    import requests

    steps = [event.step_failure_data for event in context.get_step_failure_events()]
    reasons = [
        str(data.user_failure_data.description)
        for data in steps
        if data is not None and data.user_failure_data is not None and data.user_failure_data.description
    ]
    reason = reasons[0] if reasons else context.failure_event.message or "the log has the reason"
    run = context.dagster_run
    text = message_of(run.job_name, run.run_id, reason)
    try:
        answer = requests.post(os.environ[WEBHOOK_VARIABLE], json={"text": text}, timeout=_TIMEOUT_S)
    except requests.RequestException as error:
        # The address is a secret: who knows it can write to the channel. The error names it.
        raise dg.Failure(f"The web hook in ${WEBHOOK_VARIABLE} cannot be reached ({type(error).__name__}).") from None
    if not answer.ok:
        raise dg.Failure(f"The web hook in ${WEBHOOK_VARIABLE} answers {answer.status_code} {answer.reason}.")
