"""A disk that is full or damaged ends in one sentence, and costs nothing that was written before."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geokr_core.errors import DatasetError, TrainingError
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks import weights
from geokr_core.pretraining import pretrain as module
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.step.digests import data_version
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr

CONFIG = PretrainingConfig(
    architecture="squeezenet1_1", steps=4, batch_size=4, log_every=1, checkpoint_every=2, device="cpu", examples_every=0
)


@pytest.fixture
def data(tmp_path: Path) -> LevirKR:
    return make_levir_kr(tmp_path / "store", num_chips=16, chip_size_px=32)


SCRIPT = """
import resource, sys
from pathlib import Path
import torch
from geokr_core.networks.weights import write_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    write_tensors(Path(sys.argv[1]), {"w": torch.zeros(1_000_000)}, {"format": "pt"})
except OSError as error:
    print(error.errno, error.filename)
"""


def test_what_the_system_refuses_bears_its_number_and_the_path(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"earlier")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{errno.EFBIG} {path}"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"earlier"


@pytest.mark.parametrize("broken", ["checkpoint_00000002", "backbone", "best"])
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    broken: str, data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, checkpoints = tmp_path / "out", tmp_path / "ck"
    config = CONFIG.model_copy(update={"deliver": "best", "validate_every": 1})
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    save_file = weights.save_file

    def full(tensors: Any, path: Path, metadata: Any = None) -> None:
        if broken in Path(path).name:
            Path(path).write_bytes(b"some of it")
            raise weights.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(TrainingError, match=rf"{broken}\S*: No space left on device. Checkpoints .* kept.*to resume"):
        pretrain(config, data.folder, out, checkpoints, RecordingReporter())
    assert not out.exists()
    assert not [path for path in checkpoints.rglob("*") if "partial" in path.name]
    monkeypatch.undo()
    pretrain(config, data.folder, out, checkpoints, RecordingReporter())
    assert data_version(out) == data_version(tmp_path / "straight")


def test_an_output_that_cannot_be_put_together_keeps_the_finished_runs(
    data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, checkpoints = tmp_path / "out", tmp_path / "ck"

    def refused(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))

    with monkeypatch.context() as patched:
        patched.setattr(module, "assemble", refused)
        with pytest.raises(TrainingError, match=re.escape(f"{out}: No space left on device. Checkpoints and finished")):
            pretrain(CONFIG, data.folder, out, checkpoints, RecordingReporter())
    reporter = RecordingReporter()
    pretrain(CONFIG, data.folder, out, checkpoints, reporter)
    assert reporter.infos == ["geokr-seed0: finished before, kept"]


def test_a_damaged_shard_is_named_before_anything_is_learned_from_it(data: LevirKR, tmp_path: Path) -> None:
    shard = data.chips_folder / list(data.manifest["shards"])[1]
    right = shard.read_bytes()
    pixels = np.load(shard, mmap_mode="r+")
    pixels[3, 0, 0, 0] ^= 1  # one bit: the shape is as it was
    pixels.flush()
    with pytest.raises(DatasetError, match=rf"1 file.* not what was frozen: \S*{shard.name}: .*geokr chips"):
        pretrain(CONFIG, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    assert not list((tmp_path / "ck").rglob("*.safetensors"))
    shard.write_bytes(right)
    pretrain(CONFIG, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
