"""Two processes that train together learn what one process learns from the same batches."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import make_levir_kr

SCRIPT = """
import hashlib, json, sys
from pathlib import Path
from geokr_core.pretraining import pretrain as step
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.step.reporter import RecordingReporter

config, levir_kr, out, checkpoints = sys.argv[1:]
trained = step.train

def train(run, reporter):
    state, clock = trained(run, reporter)
    networks = {"teacher": state.teacher.network, "student": state.student}
    digests = {
        name: hashlib.sha256(b"".join(v.numpy().tobytes() for v in network.state_dict().values())).hexdigest()
        for name, network in networks.items()
    }
    Path(checkpoints, f"rank{run.processes.rank}.json").write_text(json.dumps(digests))
    return state, clock

step.train = train
step.pretrain(PretrainingConfig.model_validate_json(config), Path(levir_kr), Path(out), Path(checkpoints), RecordingReporter())
"""


def _history(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("architecture", ["squeezenet1_1", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_learns_and_agree_on_the_teacher(architecture: str, tmp_path: Path) -> None:
    data = make_levir_kr(tmp_path / "store", num_chips=48, chip_size_px=32)
    config = PretrainingConfig(
        preset="averaged_teacher",
        architecture=architecture,
        steps=6,
        batch_size=8,
        log_every=1,
        precision="fp32",
        device="cpu",
        threads=1,
    )  # type: ignore[arg-type]
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "ck2").mkdir()
    arguments = [config.model_dump_json(), str(data.folder), str(tmp_path / "two"), str(tmp_path / "ck2")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [*launcher, str(tmp_path / "script.py"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"ck2/rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    two = _history(tmp_path / "two")
    assert len(two) == 6
    if architecture == "resnet18":  # BatchNorm sees half a batch in each process, so that the curves differ a little
        return
    pretrain(config, data.folder, tmp_path / "one", tmp_path / "ck1", RecordingReporter())
    for ours, theirs in zip(_history(tmp_path / "one"), two, strict=True):
        for column in ("loss", "supervised_loss", "train_kl", "gradient_norm"):
            assert float(theirs[column]) == pytest.approx(float(ours[column]), rel=2e-4), (ours["step"], column)


def test_processes_that_cannot_share_a_batch_are_refused(tmp_path: Path) -> None:
    from geokr_core.errors import ConfigError
    from geokr_core.networks.distributed import ProcessGroup
    from geokr_core.pretraining.runs import runs_of

    data = make_levir_kr(tmp_path, num_chips=24)
    config = PretrainingConfig(architecture="squeezenet1_1", batch_size=9, steps=2, device="cpu")
    with pytest.raises(ConfigError, match="9 chips cannot be shared evenly among 2 processes"):
        list(runs_of(config, data, tmp_path / "ck", ProcessGroup(rank=0, size=2)))
