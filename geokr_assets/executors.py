"""Where the steps of a run are carried out, chosen by configuration: ``$GEOKR_EXECUTOR``.

The steps do not know where they run. ``in_process`` and ``multiprocess`` come with Dagster; the others come with
packages of Dagster's own that are not installed with this project, because most machines have no use for them. Where
a run as a whole is carried out is the run launcher's business and stands in ``dagster.yaml``: docs/scale-out.md.
"""

import importlib
import os
from collections.abc import Mapping
from typing import Any

import dagster as dg

from geokr_core.errors import ConfigError

EXECUTOR_VARIABLE = "GEOKR_EXECUTOR"
"""Environment variable that names the executor."""

BROKER_VARIABLE = "CELERY_BROKER_URL"
"""Environment variable: where Celery's tasks wait."""

RESULTS_VARIABLE = "CELERY_RESULT_BACKEND"
"""Environment variable: where Celery keeps what came of a task; without it, the broker, as far as it can: RabbitMQ sends it as messages."""

SILENCE_VARIABLE = "GEOKR_CELERY_SILENCE_SECONDS"
"""Environment variable: after so many seconds without a word, redis gives a step to another worker."""

SILENCE_SECONDS = 6 * 3600
"""Without that variable. Longer than any step should take: a step that outlasts it is begun a second time beside the first."""

SCENES_PER_RUN_VARIABLE = "GEOKR_SCENES_PER_RUN"
"""Environment variable: scenes that one run of a backfill, or of the sensor, takes at most."""

SCENES_PER_RUN = 50
"""Without that variable. Starting a run costs some 5 s, so 50 small scenes a run keep that to a tenth of a second each."""

TRAINING_PROCESSES_VARIABLE = "GEOKR_TRAINING_PROCESSES"
"""Environment variable: processes of one machine that a training is shared among, by ``torchrun``. One without it."""

MAX_LOST_PROCESSES = 5
"""A step that is lost with its process on a Celery worker once more has failed: most likely it asks for more memory than there is."""

# name: module, attribute, package that brings it
_ELSEWHERE: Mapping[str, tuple[str, str, str]] = {
    "k8s": ("dagster_k8s", "k8s_job_executor", "dagster-k8s"),
    "celery": ("dagster_celery", "celery_executor", "dagster-celery"),
    "celery_k8s": ("dagster_celery_k8s", "celery_k8s_job_executor", "dagster-celery-k8s"),
    "docker": ("dagster_docker", "docker_executor", "dagster-docker"),
}

NAMES = ("in_process", "multiprocess", *_ELSEWHERE)


def executor_named(name: str) -> dg.ExecutorDefinition:
    """An executor by its name.

    Args:
        name: one of `NAMES`.

    Raises:
        ConfigError: there is no such executor, or the package that brings it is not installed.
    """
    if name == "in_process":
        return dg.in_process_executor
    if name == "multiprocess":
        # A server that has loaded the code once forks each step: no second start of Python a step.
        preload = {"preload_modules": ["geokr_assets.definitions"]}
        return dg.multiprocess_executor.configured({"start_method": {"forkserver": preload}})
    if name not in _ELSEWHERE:
        raise ConfigError(f"${EXECUTOR_VARIABLE}: {name!r} found, expected one of {', '.join(NAMES)}.")
    module, attribute, package = _ELSEWHERE[name]
    try:
        found: dg.ExecutorDefinition = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ConfigError(
            f"${EXECUTOR_VARIABLE} asks for {name!r}, but {package} cannot be imported ({error}). Install the release of "
            f"{package} that belongs to dagster {dg.__version__} into the image of the code location; see docs/scale-out.md."
        ) from error
    return found.configured(celery_settings()) if name == "celery" and os.environ.get(BROKER_VARIABLE) else found


def celery_settings() -> dict[str, Any]:
    """Configuration of Celery's executor, for runs and workers alike, from the environment.

    Celery confirms a task by default when a worker takes it: a worker that is killed then takes the step with it into the
    grave, and its run waits for ever. Here a task is confirmed when it is done, and another worker gets it otherwise.

    Raises:
        ConfigError: no broker is named, or the silence is no number.
    """
    broker = os.environ.get(BROKER_VARIABLE)
    if not broker:
        raise ConfigError(
            f"${BROKER_VARIABLE} is not set; expected the broker's address, e.g. redis://127.0.0.1:6379/0."
        )
    silence = _positive(SILENCE_VARIABLE, SILENCE_SECONDS, "seconds, at least 1")
    return {
        "broker": broker,
        "backend": os.environ.get(RESULTS_VARIABLE) or _results_at(broker),
        "config_source": {
            "task_acks_late": True,
            "task_reject_on_worker_lost": True,
            # In Celery 5.7 and later a step whose process was lost comes again as a retry, which can be counted.
            "task_retry_on_worker_lost": True,
            # One step at a time: what a worker holds back cannot be taken by an idle one.
            "worker_prefetch_multiplier": 1,
            "broker_transport_options": {"visibility_timeout": silence},
            "result_backend_transport_options": {"visibility_timeout": silence},
            "broker_connection_retry_on_startup": True,
        },
    }


def _results_at(broker: str) -> str:
    """Where results go if nothing names a place; Celery takes no address of RabbitMQ for one that keeps results."""
    return "rpc://" if broker.partition("://")[0] in ("amqp", "amqps", "pyamqp", "pyamqps") else broker


def configured_executor() -> dg.ExecutorDefinition:
    """The executor that the environment asks for; in the run's own process where it is silent.

    Starting a process for each step costs more than most steps take, and training has a separate process anyway.

    Raises:
        ConfigError: as for `executor_named`.
    """
    return executor_named(os.environ.get(EXECUTOR_VARIABLE) or "in_process")


def scenes_per_run() -> int:
    """Scenes that one run takes at most.

    Raises:
        ConfigError: the environment names something that is no positive number.
    """
    return _positive(SCENES_PER_RUN_VARIABLE, SCENES_PER_RUN, "a number of scenes, at least 1")


def training_processes() -> int:
    """Processes that a training is shared among.

    Raises:
        ConfigError: the environment names something that is no positive number.
    """
    return _positive(TRAINING_PROCESSES_VARIABLE, 1, "a number of processes, at least 1")


def _positive(variable: str, default: int, expected: str) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"${variable}: {text!r} found, expected {expected}.")
    return int(text)
