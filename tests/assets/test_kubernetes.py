"""The configuration files for Kubernetes: they agree with each other, and Dagster's packages for it take them where these are installed."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster._core.instance.config import dagster_instance_config_schema

from geokr_assets.executors import NAMES

DOCKER = Path(__file__).parents[2] / "docker"


def _documents(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DOCKER / path).read_text(encoding="utf-8")))


def _yaml(path: str) -> dict[str, Any]:
    (content,) = _documents(path)
    return content


def _as_dagster_spells(values: Any) -> Any:
    """Settings of the chart under the names that it gives them in ``dagster.yaml``."""
    if not isinstance(values, dict):
        return values
    return {re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", k): _as_dagster_spells(v) for k, v in values.items()}


def test_the_instance_on_kubernetes_is_that_of_compose_but_for_where_runs_go() -> None:
    kubernetes, compose = _yaml("kubernetes/dagster.yaml"), _yaml("dagster.yaml")
    for section in ("storage", "retention", "run_retries", "telemetry"):
        assert kubernetes[section] == compose[section], section
    assert kubernetes["concurrency"]["pools"] == compose["concurrency"]["pools"]
    launcher = kubernetes["run_launcher"]
    assert (launcher["module"], launcher["class"]) == ("dagster_k8s", "K8sRunLauncher")


def test_the_chart_makes_the_same_instance() -> None:
    kubernetes, values = _yaml("kubernetes/dagster.yaml"), _yaml("kubernetes/values.yaml")
    assert values["telemetry"] == kubernetes["telemetry"]
    assert _as_dagster_spells(values["dagsterDaemon"]["runMonitoring"]) == kubernetes["run_monitoring"]
    added = values["additionalInstanceConfig"]
    # The chart writes these sections itself where they are on, and Dagster takes no section twice.
    assert not values["dagsterDaemon"]["runRetries"]["enabled"]
    assert not values["dagsterDaemon"]["runCoordinator"]["enabled"]
    assert added == {name: kubernetes[name] for name in ("concurrency", "run_retries")}
    for kind, days in kubernetes["retention"].items():
        purged = _as_dagster_spells(values["retention"][kind])["purge_after_days"]
        assert purged == {**days["purge_after_days"], "started": 90}


def test_every_pod_has_the_archive_and_the_environment() -> None:
    # Without them a pod would find nothing.
    values, celery = _yaml("kubernetes/values.yaml"), _yaml("celery/values.yaml")
    launcher = _yaml("kubernetes/dagster.yaml")["run_launcher"]["config"]
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    assert deployment["dagsterApiGrpcArgs"] == ["--module-name", "geokr_assets.definitions", "--location-name", "geokr"]
    assert celery["runLauncher"]["type"] == "CeleryK8sRunLauncher"
    of_chart = [
        values["runLauncher"]["config"]["k8sRunLauncher"],
        celery["runLauncher"]["config"]["celeryK8sRunLauncher"],
        deployment,
    ]
    for pod in of_chart:
        assert pod["volumes"] == launcher["volumes"]
        assert pod["volumeMounts"] == launcher["volume_mounts"]
        assert [entry["name"] for entry in pod["envConfigMaps"]] == launcher["env_config_maps"]
    made = {document["kind"]: document["metadata"]["name"] for document in _documents("kubernetes/environment.yaml")}
    assert launcher["env_config_maps"] == [made["ConfigMap"]]
    assert launcher["volumes"][0]["persistentVolumeClaim"]["claimName"] == made["PersistentVolumeClaim"]
    assert launcher["postgres_password_secret"] == values["global"]["postgresqlSecretName"]


def test_pods_are_told_of_executors_that_exist() -> None:
    environment = next(one["data"] for one in _documents("kubernetes/environment.yaml") if one["kind"] == "ConfigMap")
    assert environment["GEOKR_EXECUTOR"] in NAMES
    assert all(isinstance(value, str) for value in environment.values())
    assert int(environment["GEOKR_SCENES_PER_RUN"]) > 0
    assert int(environment["GEOKR_TRAINING_PROCESSES"]) > 0


@pytest.fixture
def in_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that the settings name."""
    for name in re.findall(r"env: (\w+)", (DOCKER / "kubernetes" / "dagster.yaml").read_text(encoding="utf-8")):
        monkeypatch.setenv(name, "5432" if name.endswith("PORT") else "geokr")


def _taken(schema: Any, config: dict[str, Any]) -> None:
    result = process_config(resolve_to_config_type(schema), config)
    assert result.success, result.errors


@pytest.mark.usefixtures("in_a_pod")
def test_dagster_takes_the_settings_of_the_instance() -> None:
    _taken(dagster_instance_config_schema(), _yaml("kubernetes/dagster.yaml"))
    _taken(dagster_instance_config_schema(), _yaml("kubernetes/values.yaml")["additionalInstanceConfig"])


# --- where dagster-k8s is installed ----------------------------------------------------------------------------------


def _launcher_of(values: dict[str, Any]) -> dict[str, Any]:
    """What the chart writes of its launcher's values; its workers and queues are its own."""
    kept = {"volumes": "volumes", "volumeMounts": "volume_mounts", "resources": "resources"}
    config = {kept[name]: value for name, value in values.items() if name in kept}
    assert set(values) - set(kept) <= {"envConfigMaps", "workerQueues"}
    return {**config, "env_config_maps": [entry["name"] for entry in values["envConfigMaps"]]}


@pytest.mark.usefixtures("in_a_pod")
def test_the_launchers_take_their_configuration() -> None:
    dagster_k8s = pytest.importorskip("dagster_k8s", reason="dagster-k8s is not installed")
    schema = dagster_k8s.K8sRunLauncher.config_type()
    own = _yaml("kubernetes/dagster.yaml")["run_launcher"]["config"]
    _taken(schema, own)
    of_chart = _launcher_of(_yaml("kubernetes/values.yaml")["runLauncher"]["config"]["k8sRunLauncher"])
    by_chart = {name: own[name] for name in ("service_account_name", "instance_config_map", "postgres_password_secret")}
    _taken(schema, {**by_chart, **of_chart})
    dagster_celery_k8s = pytest.importorskip("dagster_celery_k8s", reason="dagster-celery-k8s is not installed")
    of_celery = _launcher_of(_yaml("celery/values.yaml")["runLauncher"]["config"]["celeryK8sRunLauncher"])
    _taken(dagster_celery_k8s.CeleryK8sRunLauncher.config_type(), {**by_chart, **of_celery})


def test_kubernetes_knows_every_field() -> None:
    models = pytest.importorskip("dagster_k8s.models", reason="dagster-k8s is not installed")
    import kubernetes.client as kinds

    def known(kind: type, content: dict[str, Any]) -> None:
        models.k8s_model_from_dict(kind, models.k8s_snake_case_dict(kind, content))

    config_map, claim = _documents("kubernetes/environment.yaml")
    known(kinds.V1ConfigMap, config_map)
    known(kinds.V1PersistentVolumeClaim, claim)
    values = _yaml("kubernetes/values.yaml")
    launcher = values["runLauncher"]["config"]["k8sRunLauncher"]
    known(kinds.V1ResourceRequirements, launcher["resources"])
    for pod in (launcher, *values["dagster-user-deployments"]["deployments"]):
        for volume, mount, environment in zip(pod["volumes"], pod["volumeMounts"], pod["envConfigMaps"], strict=True):
            known(kinds.V1Volume, volume)
            known(kinds.V1VolumeMount, mount)
            known(kinds.V1ConfigMapEnvSource, environment)
