"""Whether the registry still holds what a promotion recorded, and models in a registry that lists only some of them."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from geokr_core import registry
from geokr_core.errors import RegistryError

if TYPE_CHECKING:
    from tests.registry.conftest import Shop


def test_what_was_recorded_is_asked_of_the_registry(
    shop: "Shop", server: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = shop.promote(0, [0.5, 0.5])
    assert registry.changed_since(recorded) is None
    assert "another backbone" in str(registry.changed_since({**recorded, "data_version": "other.dir"}))
    server.delete_registered_model_alias(shop.name, "champion")
    assert "has no champion; recorded is version 1" in str(registry.changed_since(recorded))
    server.set_registered_model_alias(shop.name, "champion", "1")
    refused = shop.promote(1, [0.4, 0.4])
    assert registry.changed_since(refused) is None
    assert registry.changed_since(recorded) is None, "the alias has not moved"
    server.set_registered_model_alias(shop.name, "champion", "2")
    assert "has version 2 as champion; recorded is version 1" in str(registry.changed_since(recorded))
    server.delete_model_version(shop.name, "1")
    assert f"has no version 1 of {shop.name}" in str(registry.changed_since(recorded))
    # Another place has never heard of it, and asking creates nothing there.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    assert "There is no registry" in str(registry.changed_since(recorded))
    assert not (tmp_path / "elsewhere.db").exists()


def test_a_registry_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:9 cannot be reached"):
        registry.changed_since({"model_name": "m", "challenger": {"version": 1}})


def test_a_version_whose_files_are_gone_is_registered_anew(shop: "Shop", server: MlflowClient, tmp_path: Path) -> None:
    recorded = shop.promote(0, [0.5, 0.5])
    shutil.rmtree(Path(server.get_model_version_download_uri(shop.name, "1").removeprefix("file://")))
    assert "files of version 1" in str(registry.changed_since(recorded))
    assert shop.promote(0, [0.5, 0.5])["challenger"]["version"] == 2
    registry.download(f"{shop.name}@challenger", tmp_path / "whole")


def test_a_model_beyond_the_first_page_of_the_registry_is_found(
    shop: "Shop", server: MlflowClient, tmp_path: Path
) -> None:
    for number in range(101):  # MLflow lists 100 models at once, newest names last
        server.create_registered_model(f"a-{number:03d}")
    shop.promote(0, [0.5, 0.5])
    assert shop.name not in {model.name for model in server.search_registered_models()}
    assert shop.promote(0, [0.5, 0.5])["challenger"]["version"] == 1, "registered twice"
    registry.download(f"{shop.name}@champion", tmp_path / "found")
    with pytest.raises(RegistryError, match=r"No model 'nothing' .*a-000, .*a-049, …\."):
        registry.download("nothing@champion", tmp_path / "nothing")
