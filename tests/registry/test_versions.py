"""What is registered, and what a download gives, against a real MLflow with SQLite in a temporary folder."""

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import invocations
from safetensors.torch import load_file

from geokr_core import registry
from geokr_core.backbone.bundle import BUNDLE_FILES, open_bundle, verify_bundle
from geokr_core.errors import BackboneError, RegistryError
from geokr_core.step.digests import data_version

if TYPE_CHECKING:
    from tests.registry.conftest import Shop


def test_mlflow_command_downloads_a_usable_bundle_without_pickle(shop: "Shop", tmp_path: Path) -> None:
    shop.promote(0, [0.5])
    target = tmp_path / "downloaded"
    command = [sys.executable, "-m", "mlflow", "artifacts", "download"]
    subprocess.run([*command, "-u", f"models:/{shop.name}@champion", "-d", str(target)], check=True, cwd=tmp_path)
    verify_bundle(target)
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert set(BUNDLE_FILES) <= found
    assert found - set(BUNDLE_FILES) == {
        "MLmodel",
        "README.md",
        "backbone_pyfunc.py",
        "conda.yaml",
        "python_env.yaml",
        "requirements.txt",
        "registered_model_meta",
    }
    for path in target.rglob("*"):
        assert path.suffix not in {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"}
        if path.is_file():
            assert path.read_bytes()[:2] not in {b"\x80\x04", b"\x80\x05", b"PK"}
    assert str(Path(registry.__file__).parent) not in (target / "MLmodel").read_text(encoding="utf-8")


def test_served_model_gives_the_golden_features_and_refuses_other_bands(shop: "Shop", tmp_path: Path) -> None:
    import mlflow.pyfunc

    shop.promote(0, [0.5])
    client = MlflowClient(tracking_uri=registry.tracking_uri())
    place = client.get_model_version_download_uri(shop.name, "1")
    served = mlflow.pyfunc.load_model(place)
    golden = load_file(shop.bundle(0) / "golden.safetensors")
    images = golden["images"].numpy()
    assert np.allclose(served.predict(images), golden["features"].numpy(), atol=1e-3)
    stretched = {"bits": 16, "low": [0.0] * 3, "high": [255.0] * 3}
    assert np.allclose(served.predict(images.astype(np.int32), params=stretched), golden["features"].numpy(), atol=1e-3)
    for odd, complaint in (
        (images[:, :2], "3 bands red, green, blue"),
        (images.astype(np.int32) * 1000, "bits=16"),
        (images / 255, "fractions"),
    ):
        with pytest.raises(MlflowException, match=complaint):
            served.predict(odd)
    # As `mlflow models serve` answers a request.
    request = {"inputs": images[:1].tolist()}
    answer = invocations(json.dumps(request), "application/json", served, served.metadata.get_input_schema())
    assert np.allclose(json.loads(answer.response)["predictions"], golden["features"][:1].numpy(), atol=1e-3)
    for request in ({"inputs": (images[:1] * 1.5).tolist()}, {"inputs": images[:1].tolist(), "params": {"bits": 12}}):
        with pytest.raises(MlflowException, match=r"found fractions|expected 8 or 16") as refused:
            invocations(json.dumps(request), "application/json", served, served.metadata.get_input_schema())
        assert refused.value.get_http_status_code() == 400
    schema = served.metadata.signature
    assert [spec.name for spec in schema.params.params] == ["bits", "low", "high"]
    assert "red, green, blue" in served.metadata.metadata["input"]


def test_download_gives_the_bundle_that_was_registered(shop: "Shop", tmp_path: Path) -> None:
    shop.promote(0, [0.5])
    shop.promote(1, [0.4])
    champion = registry.download(f"{shop.name}@champion", tmp_path / "first")
    second = registry.download(f"{shop.name}/2", tmp_path / "second")
    assert open_bundle(champion).bundle_data_version == data_version(shop.bundle(0))
    assert open_bundle(second).bundle_data_version == data_version(shop.bundle(1))
    # Into a folder that holds a bundle: replaced.
    registry.download(f"models:/{shop.name}/2", champion)
    assert open_bundle(champion).bundle_data_version == data_version(shop.bundle(1))


def test_download_names_what_there_is(shop: "Shop", tmp_path: Path) -> None:
    shop.promote(0, [0.5])
    target = tmp_path / "target"
    with pytest.raises(RegistryError, match=rf"No model 'nothing' .*{shop.name}"):
        registry.download("nothing@champion", target)
    with pytest.raises(RegistryError, match=r"no alias 'champ'; there: challenger \(version 1\), champion"):
        registry.download(f"{shop.name}@champ", target)
    with pytest.raises(RegistryError, match="no version 7; there: 1"):
        registry.download(f"{shop.name}/7", target)
    with pytest.raises(RegistryError, match="expected NAME@ALIAS or NAME/VERSION"):
        registry.download(shop.name, target)
    assert not target.exists()


def test_download_leaves_other_folders_alone(shop: "Shop", tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(RegistryError, match="something else lies there"):
        registry.download(f"{shop.name}@champion", tmp_path / "home")
    assert (tmp_path / "home" / "letter.txt").exists()


def test_download_without_a_registry_creates_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RegistryError, match="no registry there"):
        registry.download("geokr-resnet18@champion", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_damaged_download_is_refused_and_changes_nothing(shop: "Shop", tmp_path: Path, server: MlflowClient) -> None:
    shop.promote(0, [0.5])
    place = Path(server.get_model_version_download_uri(shop.name, "1").removeprefix("file://"))
    weights = place / "backbone.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(BackboneError, match="changed or damaged"):
        registry.download(f"{shop.name}@champion", tmp_path / "target")
    assert not (tmp_path / "target").exists()
