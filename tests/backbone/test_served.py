"""A backbone as MLflow serves it: golden features for what it expects, a sentence for everything else."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file

from geokr_core.backbone.build import build_bundle
from geokr_core.backbone.config import BackboneConfig
from geokr_core.backbone.loader.backbone_pyfunc import Backbone
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr, make_pretraining


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    dataset = make_levir_kr(root, num_chips=16)
    build_bundle(
        BackboneConfig(), dataset.folder, make_pretraining(root / "p", dataset), root / "b", RecordingReporter()
    )
    return root / "b"


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (np.zeros((1, 3, 64, 64), np.uint8), "found uint8; normalise them with geokr_backbone.preprocess"),
        (np.zeros((1, 3, 64, 64), np.uint16), "found uint16"),
        (np.zeros((1, 4, 64, 64), np.float32), r"expected images of shape \(B, 3, H, W\), found \(1, 4, 64, 64\)"),
        (np.zeros((3, 64, 64), np.float32), r"found \(3, 64, 64\)"),
        (np.full((1, 3, 64, 64), np.nan, np.float32), "not finite"),
    ],
)
def test_served_backbone_refuses_odd_images_by_name(images: np.ndarray, complaint: str, bundle: Path) -> None:
    served = Backbone()
    served.load_context(SimpleNamespace(artifacts={"geokr_backbone.py": str(bundle / "geokr_backbone.py")}))
    golden = load_file(bundle / "golden.safetensors")
    np.testing.assert_allclose(served.predict(None, golden["input"].numpy()), golden["features"].numpy(), atol=1e-3)
    with pytest.raises(ValueError, match=f"(?i){complaint}"):
        served.predict(None, images)
