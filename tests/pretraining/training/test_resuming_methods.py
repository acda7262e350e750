"""Every method runs in the one loop and resumes to the same bytes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from short_runs import Killed, short_config

from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.step.digests import data_version
from geokr_core.step.files import read_json
from geokr_core.step.reporter import RecordingReporter


class KillerOfOne(RecordingReporter):
    """Dies at one step of the run whose figures bear a name."""

    def __init__(self, name: str, step: int) -> None:
        super().__init__()
        self.name, self.step = name, step

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        if step == self.step and any(key.startswith(self.name) for key in values):
            raise Killed


CAREFUL = {
    "head_warmup_steps": 2,
    "warmup_steps": 1,
    "layer_decay": 0.7,
    "backbone_learning_rate_factor": 0.1,
    "anchor": "features",
    "anchor_weight": 1.0,
    "interpolation": 0.5,
    "gradient_clip_norm": 0.5,
}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("majority", {}),
        ("dense", {}),
        ("corrected", {}),
        ("joint", {"accumulation_parts": 2}),
        ("simclr", {}),
        ("moco", {"memory_bank_size": 20}),
        ("geokr", {**CAREFUL, "accumulation_parts": 2, "deliver": "best"}),
    ],
)
def test_each_method_resumes_to_the_same_bytes(
    method: str, settings: dict[str, Any], data: LevirKR, tmp_path: Path
) -> None:
    variant = {"name": "judged", "method": method, "settings": settings}
    config = short_config(variants=("geokr", variant), checkpoint_every=2)
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", KillerOfOne("judged", 5))
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", reporter)
    assert any("judged-seed0: resuming after step 4" in message for message in reporter.infos)
    assert any("geokr-seed0: finished before" in message for message in reporter.infos)
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "resumed")
    run = next(run for run in read_json(tmp_path / "straight/runs.json") if run["variant"] == "judged")
    assert run["method"] == method
    assert (run["validation_kl"] is None) == (method in {"simclr", "moco"})


def test_a_damaged_checkpoint_costs_some_steps_and_not_the_run(data: LevirKR, tmp_path: Path) -> None:
    config = short_config(checkpoint_every=2)
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", KillerOfOne("loss", 5))
    older, newer = sorted((tmp_path / "ck").rglob("checkpoint_*.safetensors"))
    newer.write_bytes(newer.read_bytes()[:1000])
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", reporter)
    assert any("passing over a checkpoint" in warning for warning in reporter.warnings)
    assert any("resuming after step 2" in message for message in reporter.infos)
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "resumed")
    assert not older.exists()
