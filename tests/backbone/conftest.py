"""A bundle of the smallest architecture with random weights, to be read and copied, never changed."""

from pathlib import Path

import pytest

from geokr_core.backbone.build import build_bundle
from geokr_core.backbone.config import BackboneConfig
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr, make_pretraining


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    dataset = make_levir_kr(root, num_chips=16)
    pretraining = make_pretraining(root / "p", dataset, architecture="squeezenet1_1")
    build_bundle(BackboneConfig(), dataset.folder, pretraining, root / "b", RecordingReporter())
    return root / "b"
