"""A run of Dagster that failed, as the sensor of failed runs gets it. Found through ``pythonpath``."""

import dagster as dg


def context_of_a_failed_run(instance: dg.DagsterInstance, reason: str) -> dg.RunFailureSensorContext:
    """What the sensor is given of a run of ``whole_chain`` whose step ``refuses`` failed with a reason."""

    @dg.op
    def refuses() -> None:
        raise dg.Failure(description=reason)

    @dg.job
    def whole_chain() -> None:
        refuses()

    done = whole_chain.execute_in_process(instance=instance, raise_on_error=False)
    return dg.build_run_status_sensor_context(
        sensor_name="failed_runs",
        dagster_instance=instance,
        dagster_run=done.dagster_run,
        dagster_event=done.get_run_failure_event(),
    ).for_run_failure()
