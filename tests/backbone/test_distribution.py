"""The loader as ``geokr-backbone``: small, and enough to get the features of a bundle."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from installing import uv_command

from geokr_core import __version__
from geokr_core.backbone.build import build_bundle
from geokr_core.backbone.config import BackboneConfig
from geokr_core.backbone.loader import geokr_backbone
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr, make_pretraining

PACKAGE = Path(__file__).resolve().parents[2] / "packages" / "geokr-backbone"
LOADER = Path(geokr_backbone.__file__).read_bytes()


def build(source: Path, to: Path, *target: str) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", *target, "-d", str(to)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    (made,) = to.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(PACKAGE, tmp_path_factory.mktemp("wheel"), "-t", "wheel")


def test_the_wheel_holds_the_loader_alone_and_is_small(wheel: Path) -> None:
    assert wheel.name == f"geokr_backbone-{__version__}-py3-none-any.whl"
    assert wheel.stat().st_size <= 60_000
    with zipfile.ZipFile(wheel) as archive:
        modules = [name for name in archive.namelist() if ".dist-info" not in name]
        assert modules == ["geokr_backbone.py"]
        assert archive.read("geokr_backbone.py") == LOADER
        assert any(name.endswith("LICENSE") for name in archive.namelist())


def test_a_source_distribution_builds_the_same_wheel(tmp_path: Path) -> None:
    archive = build(PACKAGE, tmp_path / "sdist", "-t", "sdist")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    again = build(tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path / "wheel", "-t", "wheel")
    with zipfile.ZipFile(again) as opened_wheel:
        assert opened_wheel.read("geokr_backbone.py") == LOADER


def test_what_it_asks_for_is_torch_safetensors_and_numpy() -> None:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == __version__
    assert {name.partition(">")[0] for name in project["dependencies"]} == {"torch", "safetensors", "numpy"}


_USER = """
import sys

for name in ("geokr_core", "geokr_assets", "mlflow", "timm", "rasterio", "pandas"):
    sys.modules[name] = None  # cannot be imported from here on
sys.path.insert(0, sys.argv[1])
import geokr_backbone
assert geokr_backbone.__file__.startswith(sys.argv[1]), geokr_backbone.__file__
assert "torchvision" not in sys.modules
import torch
from safetensors.torch import load_file
folder = sys.argv[2]
geokr_backbone.verify(folder)
golden = load_file(f"{folder}/golden.safetensors")
with torch.inference_mode():
    found = geokr_backbone.load(folder)(geokr_backbone.prepare(golden["images"].numpy(), folder))
print(float((found - golden["features"]).abs().max() / golden["features"].abs().max()))
"""


def test_installed_by_itself_it_gives_the_golden_features_of_a_bundle(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    subprocess.run(
        [uv_command(), "pip", "install", "--quiet", "--offline", "--no-deps", "--target", str(target), str(wheel)],
        check=True,
        timeout=120,
    )
    assert {path.name for path in target.iterdir() if not path.name.startswith(".")} == {
        "geokr_backbone.py",
        f"geokr_backbone-{__version__}.dist-info",
    }
    dataset = make_levir_kr(tmp_path / "store", num_chips=16)
    pretraining = make_pretraining(tmp_path / "p", dataset)
    build_bundle(BackboneConfig(), dataset.folder, pretraining, tmp_path / "bundle", RecordingReporter())
    command = [sys.executable, "-I", "-c", _USER, str(target), str(tmp_path / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-4
