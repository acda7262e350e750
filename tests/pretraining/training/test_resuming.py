"""A run that was killed, damaged or changed is resumed to the same bytes, or is trained again."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from short_runs import Killed, Killer, checkpointed_config

from geokr_core.errors import TrainingError
from geokr_core.levir_kr.dataset import LevirKR
from geokr_core.networks.distributed import ProcessGroup
from geokr_core.pretraining.pretrain import forget_finished, pretrain
from geokr_core.pretraining.runs import runs_of
from geokr_core.pretraining.training import loop, resuming
from geokr_core.pretraining.training.checkpoint import load_checkpoint, save_checkpoint
from geokr_core.pretraining.training.resuming import save
from geokr_core.pretraining.training.state import Run, State, begin
from geokr_core.step.digests import data_version
from geokr_core.step.reporter import RecordingReporter

NUM_CHIPS = 96


RESUMED = [
    # BatchNorm averaged, two views, AdamW in bf16: weights lie channels_last, moments must come back the same way.
    {"architecture": "resnet18", "batch_size": 4, "precision": "bf16"},
    # A teacher that gathers its own statistics, Adam, released schedule, a point of the curves across the break.
    {"architecture": "resnet18", "batch_size": 4, "preset": "paper", "precision": "fp32", "log_every": 3},
]


@pytest.mark.parametrize("changes", RESUMED, ids=["geokr", "paper"])
def test_a_resumed_run_ends_with_the_same_bytes(changes: dict[str, Any], data: LevirKR, tmp_path: Path) -> None:
    config = checkpointed_config(**({"steps": 7, "log_every": 1, "checkpoint_every": 4} | changes))
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", Killer(6))
    assert not (tmp_path / "resumed").exists()
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", reporter)
    assert any("resuming after step 4" in message for message in reporter.infos)
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "resumed")


SCRIPT = """
import os, signal, sys
from pathlib import Path
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.pretrain import pretrain
from geokr_core.step.reporter import RecordingReporter

class Killer(RecordingReporter):
    def metrics(self, values, step):
        if step == int(os.environ["KILLED_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)

config = PretrainingConfig.model_validate_json(sys.argv[1])
pretrain(config, *(Path(p) for p in sys.argv[2:]), Killer())
"""


@pytest.mark.parametrize("killed_at", [3, 6, 12])  # before the first checkpoint, right after one, at the last step
def test_a_run_killed_for_real_resumes_to_the_same_bytes(killed_at: int, data: LevirKR, tmp_path: Path) -> None:
    config = checkpointed_config(log_every=1, checkpoint_every=5)
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    arguments = [config.model_dump_json(), str(data.folder), str(tmp_path / "resumed"), str(tmp_path / "ck")]
    environment = {**os.environ, "KILLED_AT": str(killed_at)}
    died = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], check=False, env=environment)
    assert died.returncode == -signal.SIGKILL
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", reporter)
    checkpoint = (killed_at - 1) // 5 * 5
    assert [step for step, _ in reporter.points] == list(range(checkpoint + 1, 13)), killed_at
    for name in ("geokr-seed0/backbone.safetensors", "history.csv"):
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


FINISHES = """
import os, signal, sys
from pathlib import Path
from geokr_core.step.files import whole_folder

with whole_folder(Path(sys.argv[1])) as folder:
    (folder / "backbone.safetensors").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_process_killed_as_it_finished_left_is_swept(data: LevirKR, tmp_path: Path) -> None:
    config = checkpointed_config()
    (run,) = runs_of(config, data, tmp_path / "ck")
    died = subprocess.run([sys.executable, "-c", FINISHES, str(run.folder / "finished")], check=False)
    assert died.returncode == -signal.SIGKILL
    assert list(run.folder.iterdir())
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    assert [path.name for path in run.folder.iterdir()] == ["finished"]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # seven trainings that save after each step: slow beside other work, and never stuck
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(data: LevirKR, tmp_path: Path) -> None:
    config = checkpointed_config(architecture="resnet18", steps=40, log_every=1, checkpoint_every=1)
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    arguments = [config.model_dump_json(), str(data.folder), str(tmp_path / "resumed"), str(tmp_path / "ck")]
    waits = []
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], env={**os.environ, "KILLED_AT": "0"})
        before = set((tmp_path / "ck").rglob("checkpoint_*"))
        while process.poll() is None and set((tmp_path / "ck").rglob("checkpoint_*")) <= before:
            time.sleep(0.005)
        waits.append(random.uniform(0, 0.5))
        time.sleep(waits[-1])  # in a step, in the middle of writing a checkpoint, between the two
        process.kill()
        process.wait()
    pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", RecordingReporter())
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "resumed"), waits


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["convnext_tiny", "swin_t", "vit_small_patch16_224"])
def test_networks_that_drop_layers_at_random_resume_to_the_same_bytes(
    architecture: str, data: LevirKR, tmp_path: Path
) -> None:
    config = checkpointed_config(architecture=architecture, steps=4, batch_size=4, log_every=1, checkpoint_every=2)
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", Killer(3))
    pretrain(config, data.folder, tmp_path / "resumed", tmp_path / "ck", RecordingReporter())
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "resumed")


def test_curves_are_passed_on_before_a_checkpoint_says_that_they_were(data: LevirKR, tmp_path: Path) -> None:
    class Listener(RecordingReporter):
        passed_on: ClassVar[list[tuple[int, list[str]]]] = []

        def flush(self) -> None:
            kept = [path.name for path in (tmp_path / "ck").rglob("checkpoint_*")]
            self.passed_on.append((self.points[-1][0], kept))

    pretrain(
        checkpointed_config(steps=6, log_every=1, checkpoint_every=2),
        data.folder,
        tmp_path / "out",
        tmp_path / "ck",
        Listener(),
    )
    assert Listener.passed_on == [(2, []), (4, ["checkpoint_00000002.safetensors"])]


def test_weights_that_an_infinite_gradient_spoiled_are_never_saved(
    data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses_of = loop.losses_of

    def steep(run: Run, state: State, seen: Any, step: int) -> torch.Tensor:
        losses = losses_of(run, state, seen, step)
        if step == 4:  # the root of nothing: a finite loss whose gradient is not
            losses = losses + torch.sqrt((next(state.student.parameters()) * 0).sum())
        return losses

    monkeypatch.setattr(loop, "losses_of", steep)
    config = checkpointed_config(steps=8, checkpoint_every=2, log_every=8)
    with pytest.raises(TrainingError, match="norm of the gradients is nan at step 4"):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    assert [path.name for path in (tmp_path / "ck").rglob("checkpoint_*")] == ["checkpoint_00000002.safetensors"]
    monkeypatch.undo()
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    assert len(list((tmp_path / "ck").rglob("not_finite_step_000004.safetensors"))) == 1
    assert not list((tmp_path / "ck").rglob("checkpoint_*"))


def test_a_damaged_checkpoint_ahead_does_not_cost_those_that_are_written(data: LevirKR, tmp_path: Path) -> None:
    config = checkpointed_config(steps=8, checkpoint_every=2, keep_checkpoints=1, log_every=1)
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", Killer(3))
    (folder,) = (path for path in (tmp_path / "ck").iterdir() if path.is_dir())
    (folder / "checkpoint_00000007.safetensors").write_bytes(b"damaged")
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", Killer(5))
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any("resuming after step 4" in message for message in reporter.infos)


def test_processes_that_would_go_on_from_different_steps_stop(data: LevirKR, tmp_path: Path) -> None:
    class Apart(ProcessGroup):
        def mean(self, value: torch.Tensor) -> torch.Tensor:
            return (value + 0) / 2  # the other process found a checkpoint after no step

    config = checkpointed_config(steps=8, checkpoint_every=2, log_every=1)
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", Killer(3))
    (run,) = runs_of(config, data, tmp_path / "ck")
    with pytest.raises(TrainingError, match="would resume after step 2, others after another one"):
        resuming.resume(replace(run, processes=Apart()), begin(run), RecordingReporter())


def test_finished_runs_of_a_killed_step_are_not_trained_again(data: LevirKR, tmp_path: Path) -> None:
    config = checkpointed_config(seeds=(0, 1, 2), steps=3, log_every=1)
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())

    class DiesInSecondRun(RecordingReporter):
        def metrics(self, values: Mapping[str, float], step: int) -> None:
            if "geokr-seed1/loss" in values:
                raise Killed

    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", DiesInSecondRun())
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert not any("loss" in values for _, values in reporter.points)
    assert any("geokr-seed0: finished before" in message for message in reporter.infos)
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "out")


def test_a_finished_run_that_was_damaged_is_trained_again(data: LevirKR, tmp_path: Path) -> None:
    config = checkpointed_config(steps=3)
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    weights = tmp_path / "out/geokr-seed0/backbone.safetensors"
    right = weights.read_bytes()
    weights.write_bytes(right[:-4] + b"oops")  # in place: it is the kept file under its second name, too
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any("backbone.safetensors changed since it was written" in warning for warning in reporter.warnings)
    assert weights.read_bytes() == right


def test_what_is_forgotten_is_trained_again(data: LevirKR, tmp_path: Path) -> None:
    config, other = checkpointed_config(steps=3), checkpointed_config(steps=3, seeds=(1,))
    for chosen in (config, other):
        pretrain(chosen, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    forget_finished(config, data.folder, tmp_path / "ck")
    reporter = RecordingReporter()
    pretrain(checkpointed_config(steps=3, seeds=(0, 1)), data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert [m for m in reporter.infos if "finished before" in m] == ["geokr-seed1: finished before, kept"]


def test_what_several_processes_finished_is_forgotten_apart_from_what_one_did(
    data: LevirKR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = checkpointed_config(steps=3)
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    monkeypatch.setenv("WORLD_SIZE", "2")  # as under torchrun
    forget_finished(config, data.folder, tmp_path / "ck")
    monkeypatch.delenv("WORLD_SIZE")
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any("finished before, kept" in message for message in reporter.infos)


def test_a_variant_and_a_seed_more_train_nothing_again(data: LevirKR, tmp_path: Path) -> None:
    small, large = (
        checkpointed_config(steps=3),
        checkpointed_config(steps=3, seeds=(0, 1), variants=("geokr", "shuffled")),
    )
    pretrain(small, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    first = (tmp_path / "out/geokr-seed0/backbone.safetensors").read_bytes()
    reporter = RecordingReporter()
    pretrain(large, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert [m for m in reporter.infos if "finished before" in m] == ["geokr-seed0: finished before, kept"]
    assert (tmp_path / "out/geokr-seed0/backbone.safetensors").read_bytes() == first
    pretrain(large, data.folder, tmp_path / "afresh", tmp_path / "other-ck", RecordingReporter())
    assert data_version(tmp_path / "out") == data_version(tmp_path / "afresh")


@pytest.mark.parametrize("changes", [{"learning_rate": 2e-3}, {"log_every": 6}, {"seeds": (5,)}])
def test_half_done_work_of_other_parameters_is_not_used(changes: dict[str, Any], data: LevirKR, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        pretrain(checkpointed_config(), data.folder, tmp_path / "out", tmp_path / "ck", Killer(4))
    reporter = RecordingReporter()
    pretrain(checkpointed_config(**changes), data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any("other parameters or data" in warning for warning in reporter.warnings)
    assert reporter.points[-1][0] == 12
    assert len([step for step, _ in reporter.points]) == (2 if "log_every" in changes else 3)


def test_a_checkpoint_of_another_run_is_refused_and_said_so(data: LevirKR, tmp_path: Path) -> None:
    (run,) = runs_of(checkpointed_config(), data, tmp_path / "ck")
    save_checkpoint(run.folder / "checkpoint_00000009.safetensors", "another", {"x": torch.zeros(1)}, {"step": 9})
    reporter = RecordingReporter()
    state, _ = loop.train(run, reporter)
    assert any("run another" in w and "passing over" in w for w in reporter.warnings)
    assert state.step == 12
    assert [point["step"] for point in state.history] == [4, 8, 12]


@pytest.mark.parametrize("damage", [b"", b"half a file"])
def test_a_damaged_checkpoint_is_refused(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(damage)
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        load_checkpoint(path, "mine")


def test_a_single_bit_that_changed_in_a_checkpoint_is_found_and_the_one_before_is_used(
    data: LevirKR, tmp_path: Path
) -> None:
    config = checkpointed_config(steps=8, checkpoint_every=2, log_every=1)
    pretrain(config, data.folder, tmp_path / "straight", tmp_path / "straight-ck", RecordingReporter())
    with pytest.raises(Killed):
        pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", Killer(7))
    newest = max((tmp_path / "ck").rglob("checkpoint_*"))
    content = bytearray(newest.read_bytes())
    for place in (len(content) - 7, content.index(b"num_summed") + 15):  # in a weight, in a number of the header
        damaged = bytearray(content)
        damaged[place] ^= 1
        newest.write_bytes(damaged)
        with pytest.raises(TrainingError, match=r"not what was written|not a readable checkpoint"):
            load_checkpoint(newest, newest.parent.name)
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any(newest.name in w and "passing over" in w for w in reporter.warnings)
    assert any("resuming after step 4" in message for message in reporter.infos)
    assert data_version(tmp_path / "straight") == data_version(tmp_path / "out")


def test_checkpoints_of_the_first_format_are_still_read(tmp_path: Path) -> None:
    header = {"format": "1", "fingerprint": "mine", "scalars": '{"step": 3}'}
    save_file({"w": torch.ones(2)}, tmp_path / "c.safetensors", metadata=header)
    assert load_checkpoint(tmp_path / "c.safetensors", "mine").scalars == {"step": 3}


@pytest.mark.parametrize("damage", [b"", b"{", b'{"result": 3}', None], ids=["empty", "cut", "other", "digit"])
def test_a_damaged_record_of_a_finished_run_is_named_and_made_again(
    damage: bytes | None, data: LevirKR, tmp_path: Path
) -> None:
    config = checkpointed_config(steps=2)
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", RecordingReporter())
    right = data_version(tmp_path / "out")
    (record,) = (tmp_path / "ck").rglob("record.json")
    content = record.read_bytes()
    record.write_bytes(content.replace(b'"num_steps": 2', b'"num_steps": 3') if damage is None else damage)
    assert record.read_bytes() != content
    reporter = RecordingReporter()
    pretrain(config, data.folder, tmp_path / "out", tmp_path / "ck", reporter)
    assert any("record.json" in w and "geokr-seed0 is trained again" in w for w in reporter.warnings)
    assert data_version(tmp_path / "out") == right


def test_a_checkpoint_gives_back_every_bit(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last), "n": torch.tensor(7)}
    scalars = {"step": 3, "history": [{"loss": 0.1 + 0.2, "validation_kl": None}]}
    save_checkpoint(tmp_path / "c.safetensors", "mine", tensors, scalars)
    back = load_checkpoint(tmp_path / "c.safetensors", "mine")
    assert back.scalars == scalars
    assert all(torch.equal(back.tensors[name], value) for name, value in tensors.items())
    with pytest.raises(TrainingError, match=r"of format 2 and run mine, but the run now is yours"):
        load_checkpoint(tmp_path / "c.safetensors", "yours")


def test_torchs_own_random_state_is_part_of_a_checkpoint(data: LevirKR, tmp_path: Path) -> None:
    (run,) = runs_of(checkpointed_config(steps=1), data, tmp_path / "ck")
    state, _ = loop.train(run, RecordingReporter())
    torch.manual_seed(11)
    save(run, state)
    expected = torch.rand(3)
    torch.manual_seed(12)
    resuming.resume(run, begin(run), RecordingReporter())
    assert torch.equal(torch.rand(3), expected)


def test_training_leaves_the_callers_random_numbers_and_threads_alone(data: LevirKR, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    pretrain(
        checkpointed_config(steps=1, threads=threads + 1),
        data.folder,
        tmp_path / "out",
        tmp_path / "ck",
        RecordingReporter(),
    )
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == threads
