"""A bundle in environments that hold one library from the package index and nothing of this project: the golden features, everywhere.

TerraTorch and rslearn are given what the guide shows, taken from its page.
"""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from installing import made, output_of

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

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "serve-and-fine-tune.md"
_TERRATORCH_SCRIPT = """
import json
import sys

import torch
from safetensors.torch import load_file
from terratorch.tasks import ClassificationTask

golden = load_file(f"{sys.argv[1]}/bundle/golden.safetensors")
model = ClassificationTask(**json.loads(sys.argv[2])).model.eval()
with torch.inference_mode():
    found = model.encoder(golden["input"])[-1].mean(dim=(2, 3))
    assert model(golden["input"]).output.shape == (len(found), 10)
    try:
        model(torch.zeros(1, 4, 64, 64))
    except RuntimeError as error:
        print("refused:", str(error).splitlines()[0])
print(float((found - golden["features"]).abs().max()))
"""
_RSLEARN_SCRIPT = """
import json
import sys

folder, own, encoder = sys.argv[1:4]
sys.path[:0] = [f"{folder}/bundle", own]
import torch
from jsonargparse import ArgumentParser
from rslearn.models.singletask import SingleTaskModel
from rslearn.train.model_context import ModelContext, RasterImage
from safetensors.torch import load_file

parser = ArgumentParser()
parser.add_subclass_arguments(SingleTaskModel, "model")
decoder = [
    {"class_path": "rslearn.models.pooling_decoder.PoolingDecoder", "init_args": {"in_channels": 512, "out_channels": 10}},
    {"class_path": "rslearn.train.tasks.classification.ClassificationHead"},
]
asked = {"class_path": "rslearn.models.singletask.SingleTaskModel", "init_args": {**json.loads(encoder), "decoder": decoder}}
model = parser.instantiate_classes(parser.parse_object({"model": asked})).model.eval()
context = lambda images: ModelContext([{"image": RasterImage(one.float()[:, None])} for one in images], [])
golden = load_file(f"{folder}/bundle/golden.safetensors")
with torch.inference_mode():
    found = model.encoder[0](context(golden["images"])).feature_maps[-1].mean(dim=(2, 3))
    try:
        model(context(torch.zeros(1, 4, 64, 64)))
    except ValueError as error:
        print("refused:", error)
target = {"class": torch.tensor(1), "valid": torch.tensor(1.0)}
sum(model(context(golden["images"]), [target] * len(found)).loss_dict.values()).backward()
assert model.encoder[0].network.conv1.weight.grad is not None
print(float((found - golden["features"]).abs().max()))
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


def shown_in_guide(heading: str, language: str) -> str:
    """The first piece of some language below a heading of the guide."""
    below = GUIDE.read_text(encoding="utf-8").split(f"\n### {heading}\n")[1]
    return below.split(f"```{language}\n")[1].split("```")[0]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_terratorch_takes_what_the_guide_shows(delivered: Path, tmp_path: Path) -> None:
    asked = yaml.safe_load(shown_in_guide("TerraTorch", "yaml"))["model"]
    assert asked["class_path"] == "terratorch.tasks.ClassificationTask"
    # The page has a bundle of four bands, this one has three.
    size = json.loads((delivered / "for-timm" / "config.json").read_text())["pretrained_cfg"]["input_size"]
    options = asked["init_args"]["model_args"]
    options["backbone_in_chans"] = size[0]
    options["backbone_pretrained_cfg_overlay"] |= {
        "file": str(delivered / "for-timm" / "model.safetensors"),
        "input_size": size,
    }
    python = made(tmp_path, TORCH, "terratorch")
    *_, refused, difference = output_of(python, _TERRATORCH_SCRIPT, str(delivered), json.dumps(asked["init_args"]))
    assert refused.startswith("refused: ")
    assert float(difference) <= 1e-4


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_rslearn_takes_what_the_guide_shows(delivered: Path, tmp_path: Path) -> None:
    (tmp_path / "geokr_rslearn.py").write_text(shown_in_guide("rslearn", "python"))
    encoder = yaml.safe_load(shown_in_guide("rslearn", "yaml"))
    encoder["encoder"][0]["init_args"]["folder"] = str(delivered / "bundle")
    # rslearn imports wandb where it trains, and asks for it and timm under [extra] only.
    python = made(tmp_path, TORCH, "rslearn", "timm", "wandb")
    arguments = (str(delivered), str(tmp_path), json.dumps(encoder))
    *_, refused, difference = output_of(python, _RSLEARN_SCRIPT, *arguments)
    assert refused == "refused: 4 bands, the backbone has 3"
    assert float(difference) <= 1e-4
