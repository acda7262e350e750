"""A bundle in the forms of others gives its golden features there, and says no where it cannot."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from geokr_core.backbone.build import build_bundle
from geokr_core.backbone.config import BackboneConfig
from geokr_core.backbone.export import export_onnx, export_timm, run_onnx
from geokr_core.errors import BackboneError, MissingExtraError, MissingInputError
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr, make_pretraining


def bundled(folder: Path, architecture: str) -> Path:
    dataset = make_levir_kr(folder / "store", num_chips=16, cells_per_side=0)
    pretraining = make_pretraining(folder / "pretraining", dataset, architecture=architecture)
    config = BackboneConfig(model_name="tiny")
    build_bundle(config, dataset.folder, pretraining, folder / "bundle", RecordingReporter())
    return folder / "bundle"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled(tmp_path_factory.mktemp("export"), "resnet18")


def test_timm_opens_the_folder_by_one_line(bundle: Path, tmp_path: Path) -> None:
    import timm

    assert export_timm(bundle, tmp_path / "for-timm") <= 1e-4
    golden = load_file(bundle / "golden.safetensors")
    network = timm.create_model(f"local-dir:{tmp_path / 'for-timm'}", pretrained=True).eval()
    with torch.inference_mode():
        assert torch.allclose(network(golden["input"]), golden["features"], atol=1e-4)
    config = timm.data.resolve_model_data_config(network)
    described = json.loads((bundle / "backbone.json").read_text())
    assert config["mean"] == pytest.approx(described["mean"])
    assert config["std"] == pytest.approx(described["std"])
    assert timm.create_model(f"local-dir:{tmp_path / 'for-timm'}", pretrained=True, num_classes=5)(
        golden["input"]
    ).shape == (4, 5)


def test_what_cannot_be_exported_is_named(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingInputError, match="geokr backbone"):
        export_timm(tmp_path / "nothing", tmp_path / "out")
    squeezenet = bundled(tmp_path, "squeezenet1_1")
    with pytest.raises(BackboneError, match="timm has no squeezenet1_1"):
        export_timm(squeezenet, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("geokr_core.step.extras._is_installed", lambda module: module != "onnx")
    with pytest.raises(MissingExtraError, match=r"geokr\[onnx\]"):
        export_onnx(bundle, tmp_path / "out.onnx")


@pytest.mark.slow
def test_onnx_runtime_gives_the_golden_features_of_pixels_of_any_size(bundle: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert export_onnx(bundle, tmp_path / "backbone.onnx") <= 1e-4
    golden = load_file(bundle / "golden.safetensors")
    found = run_onnx(tmp_path / "backbone.onnx", golden["images"].numpy()[:1])
    assert np.abs(found - golden["features"].numpy()[:1]).max() <= 1e-4
    assert run_onnx(tmp_path / "backbone.onnx", np.zeros((2, 3, 96, 128), dtype=np.uint8)).shape == (2, 512)
    told = {entry.key: entry.value for entry in onnx.load(tmp_path / "backbone.onnx").metadata_props}
    assert told["bands"] == "red, green, blue"
    assert [path.name for path in tmp_path.glob("backbone*")] == ["backbone.onnx"]
    with pytest.raises(Exception, match="INVALID_ARGUMENT|invalid dimensions|Got invalid"):
        run_onnx(tmp_path / "backbone.onnx", np.zeros((1, 4, 64, 64), dtype=np.uint8))
