"""A bundle in environments that hold one library from the package index and nothing of this project: the golden features, everywhere."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from installing import uv_command

from geokr_core.backbone.build import build_bundle
from geokr_core.backbone.config import BackboneConfig
from geokr_core.backbone.export import export_onnx, export_timm
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr, make_pretraining

TORCH = f"torch=={version('torch')}"
LIBRARIES: dict[str, tuple[tuple[str, ...], str]] = {
    "timm": (
        (TORCH, "timm", "safetensors"),
        'network = timm.create_model(f"local-dir:{folder}/for-timm", pretrained=True).eval()',
    ),
    "torchvision": (
        (TORCH, "torchvision", "safetensors", "numpy"),
        'network = geokr_backbone.into_torchvision(f"{folder}/bundle")',
    ),
    "segmentation_models_pytorch": (
        (TORCH, "segmentation-models-pytorch", "safetensors", "numpy"),
        'encoder = geokr_backbone.into_smp(f"{folder}/bundle").encoder.eval()\n'
        "network = lambda images: encoder(images)[-1].mean(dim=(2, 3))",
    ),
    "torchgeo": (
        (TORCH, "torchgeo", "safetensors", "requests"),  # TorchGeo 0.8.1 imports requests and does not ask for it
        "from torchgeo.models import resnet18\n"
        'weights = geokr_backbone.torchgeo_weights(f"{folder}/bundle")\n'
        'assert weights.meta["in_chans"] == 3 and weights.meta["model"] == "resnet18"\n'
        'assert torch.allclose(weights.transforms(golden["images"].float()), golden["input"], atol=1e-5)\n'
        "network = resnet18(weights=weights, num_classes=0).eval()",
    ),
}
_TORCH_SCRIPT = """
import sys

folder, library = sys.argv[1:3]
sys.path.insert(0, f"{folder}/bundle")
for name in ("geokr_core", "mlflow", "dagster"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} is here: this environment is not clean")
import importlib
import torch
from safetensors.torch import load_file
globals()[library] = importlib.import_module(library)
import geokr_backbone
golden = load_file(f"{folder}/bundle/golden.safetensors")
%s
with torch.inference_mode():
    found = network(golden["input"])
    try:
        network(torch.zeros(1, 4, 64, 64))
    except (RuntimeError, ValueError) as error:
        print("refused:", str(error).splitlines()[0])
    else:
        raise SystemExit("four bands were taken for three")
print(float((found - golden["features"]).abs().max()))
"""
_ONNX_SCRIPT = """
import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder = sys.argv[1]
session = onnxruntime.InferenceSession(f"{folder}/backbone.onnx", providers=["CPUExecutionProvider"])
images, features = np.load(f"{folder}/images.npy"), np.load(f"{folder}/features.npy")
try:
    session.run(["features"], {"images": np.zeros((1, 4, 64, 64), dtype=np.uint8)})
except Exception as error:
    print("refused:", str(error).splitlines()[0])
else:
    raise SystemExit("four bands were taken for three")
print(float(np.abs(session.run(["features"], {"images": images})[0] - features).max()))
"""


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``bundle`` and ``for-timm``."""
    folder = tmp_path_factory.mktemp("delivered")
    dataset = make_levir_kr(folder / "store", num_chips=16, cells_per_side=0)
    pretraining = make_pretraining(folder / "pretraining", dataset, architecture="resnet18")
    build_bundle(BackboneConfig(model_name="tiny"), dataset.folder, pretraining, folder / "bundle", RecordingReporter())
    export_timm(folder / "bundle", folder / "for-timm")
    return folder


def made(folder: Path, *packages: str) -> Path:
    """The interpreter of a new environment with some packages; skips where the package index cannot be reached."""
    uv, python = uv_command(), folder / "env" / "bin" / "python"
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(folder / "env")],
        [uv, "pip", "install", "--quiet", "--python", str(python), *packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
        if "error sending request" in done.stderr or "Failed to fetch" in done.stderr:
            pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    return python


def output_of(python: Path, script: str, *arguments: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-I", "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_alone_gives_the_golden_features(delivered: Path, library: str, tmp_path: Path) -> None:
    packages, opening = LIBRARIES[library]
    python = made(tmp_path, *packages)
    refused, difference = output_of(python, _TORCH_SCRIPT % opening, str(delivered), library)
    assert refused.startswith("refused: ")
    assert float(difference) <= 1e-4


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_onnx_runtime_alone_gives_the_golden_features(delivered: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    import numpy as np
    from safetensors.numpy import load_file

    golden = load_file(delivered / "bundle" / "golden.safetensors")
    export_onnx(delivered / "bundle", tmp_path / "backbone.onnx")
    for name in ("images", "features"):
        np.save(tmp_path / f"{name}.npy", golden[name])
    refused, difference = output_of(made(tmp_path, "onnxruntime", "numpy"), _ONNX_SCRIPT, str(tmp_path))
    assert refused.startswith("refused: ")
    assert float(difference) <= 1e-4
