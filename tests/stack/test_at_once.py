"""Two of everything at once: two processes on one store, and two stores on one registry.

One process makes what there is to make and the other waits for it; the end is that of one alone.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked_runs import Undisturbed, command, metrics_that_came_twice, recorded, said, versions
from mlflow import MlflowClient
from mlflow_database import mlflow_server
from tiny_worlds import tiny_world

from geokr_core.chain.params import load_params
from geokr_core.chain.steps import Folders
from geokr_core.step.digests import data_version

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_two_runs_of_one_store_end_as_one(tmp_path: Path, empty_database: Path, undisturbed: Undisturbed) -> None:
    params = tiny_world(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    both = [command(tmp_path) for _ in range(2)]
    assert [one.wait(timeout=900) for one in both] == [0, 0], said(tmp_path)
    assert versions(params) == undisturbed.versions
    assert recorded(tmp_path / "mlflow.db") == undisturbed.recorded
    assert metrics_that_came_twice(tmp_path / "mlflow.db") == []
    assert not list(tmp_path.rglob("*.partial"))


def test_two_trainings_of_one_store_are_one(tmp_path: Path, empty_database: Path, undisturbed: Undisturbed) -> None:
    params = tiny_world(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    assert command(tmp_path, "run", "--until", "levir_kr").wait(timeout=600) == 0, said(tmp_path)
    both = [command(tmp_path, "pretrain") for _ in range(2)]
    assert [one.wait(timeout=600) for one in both] == [0, 0], said(tmp_path)
    assert "another process makes it" in said(tmp_path), "the second one did not wait"
    pretraining = Folders(load_params(params))["pretraining"]
    assert data_version(pretraining) == undisturbed.versions["pretraining"]
    runs, _ = recorded(tmp_path / "mlflow.db")
    wanted, _ = undisturbed.recorded
    trainings = {name for name in wanted if name.startswith("pretraining")}
    assert {name: runs[name] for name in trainings} == {name: wanted[name] for name in trainings}
    assert metrics_that_came_twice(tmp_path / "mlflow.db") == []


@pytest.mark.parametrize("machines", [1, 2])
def test_two_stores_that_promote_into_one_registry(
    tmp_path: Path,
    empty_database: Path,
    machines: int,
    record_property: Callable[[str, object], None],
) -> None:
    """On one machine a lock keeps them apart; processes of two machines, which share none, meet in the registry alone."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    stores = [tmp_path / name for name in ("first", "second")]
    for number, project in enumerate(stores):
        if number == 0:
            tiny_world(project)
        else:
            shutil.copytree(stores[0] / "world", project / "world")
            params = tiny_world(project)
            content = yaml.safe_load(params.read_text(encoding="utf-8"))
            content["pretraining"]["seeds"] = [7]  # another backbone of the same name
            params.write_text(yaml.safe_dump(content), encoding="utf-8")
        shutil.copy(empty_database, project / "mlflow.db")
        assert command(project, "run", "--until", "report").wait(timeout=900) == 0, said(project)
    with mlflow_server(tmp_path) as port:
        both = []
        for number, project in enumerate(stores):
            locks = tmp_path / f"machine{number % machines}"
            locks.mkdir(exist_ok=True)
            server = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "TMPDIR": str(locks)}
            both.append(command(project, "promote", **server))
        assert [one.wait(timeout=600) for one in both] == [0, 0], "\n".join(map(said, stores))
        client = MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
        decisions = [json.loads((one / "store/champion/decision.json").read_text(encoding="utf-8")) for one in stores]
        _assert_whole(client, decisions)
    record_property("promoted", sum(decision["promoted"] for decision in decisions))


def _assert_whole(client: MlflowClient, decisions: list[dict[str, Any]]) -> None:
    """One model, a version a store, one champion, and of each version all that belongs to it."""
    (model,) = client.search_registered_models()
    assert sorted(decision["challenger"]["version"] for decision in decisions) == [1, 2]
    promoted = {decision["challenger"]["version"] for decision in decisions if decision["promoted"]}
    champion = int(model.aliases["champion"])
    assert promoted == {champion}
    for decision in decisions:
        number = decision["challenger"]["version"]
        version = client.get_model_version(model.name, str(number))
        assert version.status == "READY"
        outcomes = {tag for tag in version.tags if tag.endswith("_because")}
        assert outcomes == {"promoted_because" if number == champion else "refused_because"}
        assert decision["reason"] in (version.description or "")
        kept = {Path(info.path).name for info in client.list_artifacts(str(version.run_id), "evidence")}
        assert kept == {"results.parquet", "report.html", "scores.json"} | (
            {"decision.json"} if number == champion else set()
        )
        assert client.get_run(str(version.run_id)).info.status == "FINISHED"
