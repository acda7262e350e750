"""The teacher is a separate network, moves as its formula says and only when it should."""

import pytest
import torch
from torch import nn

from geokr_core.errors import TrainingError
from geokr_core.pretraining.training.teacher import (
    Teacher,
    released_update_steps,
    scaled_update_steps,
    warmed_up_momentum,
)


def _student() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _train_step(student: nn.Module) -> None:
    student.train()
    optimiser = torch.optim.SGD(student.parameters(), lr=0.1)
    student(torch.randn(8, 3)).square().sum().backward()
    optimiser.step()


def _pointers(module: nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in module.state_dict().values()}


@pytest.mark.parametrize("policy", ["averaged", "copied", "own"])
def test_teacher_shares_no_memory_and_asks_for_no_gradient(policy: str) -> None:
    student = _student()
    teacher = Teacher(student, policy)
    teacher.update(student, 0.5)
    assert _pointers(student).isdisjoint(_pointers(teacher.network))
    assert not teacher.shares_storage_with(student)
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert all(p.requires_grad for p in student.parameters())
    assert not teacher(torch.randn(4, 3)).requires_grad


def test_shared_memory_is_noticed() -> None:
    student = _student()
    teacher = Teacher(student, "averaged")
    teacher.network[0].weight = student[0].weight
    assert teacher.shares_storage_with(student)


def test_teacher_differs_after_one_step() -> None:
    student = _student()
    teacher = Teacher(student, "averaged")
    assert teacher.max_difference(student) == 0.0
    _train_step(student)
    teacher.update(student, 0.9)
    assert teacher.max_difference(student) > 0.0


def test_update_is_the_closed_form_on_known_numbers() -> None:
    student = nn.Linear(2, 1)
    with torch.no_grad():
        student.weight.copy_(torch.tensor([[1.0, -2.0]]))
        student.bias.fill_(10.0)
    teacher = Teacher(student, "averaged")
    with torch.no_grad():
        student.weight.copy_(torch.tensor([[3.0, 2.0]]))
        student.bias.fill_(0.0)
    teacher.update(student, 0.75)
    # 0.75 * (1, -2) + 0.25 * (3, 2); 0.75 * 10 + 0.25 * 0
    torch.testing.assert_close(teacher.network.weight, torch.tensor([[1.5, -1.0]]))
    torch.testing.assert_close(teacher.network.bias, torch.tensor([7.5]))
    teacher.update(student, 0.75)
    torch.testing.assert_close(teacher.network.weight, torch.tensor([[1.875, -0.25]]))


@pytest.mark.parametrize(
    ("policy", "mean", "var", "count"),
    [
        ("averaged", [2.0, 4.0], [1.5, 3.0], 7),  # 0.5 * (0, 0) + 0.5 * (4, 8); 0.5 * (1, 1) + 0.5 * (2, 5)
        ("copied", [4.0, 8.0], [2.0, 5.0], 7),
        ("own", [0.0, 0.0], [1.0, 1.0], 0),
    ],
)
def test_batchnorm_policies_on_numbers(policy: str, mean: list[float], var: list[float], count: int) -> None:
    student = nn.BatchNorm1d(2)
    teacher = Teacher(student, policy)
    student.running_mean.copy_(torch.tensor([4.0, 8.0]))
    student.running_var.copy_(torch.tensor([2.0, 5.0]))
    student.num_batches_tracked.fill_(7)
    teacher.update(student, 0.5)
    torch.testing.assert_close(teacher.network.running_mean, torch.tensor(mean))
    torch.testing.assert_close(teacher.network.running_var, torch.tensor(var))
    assert teacher.network.num_batches_tracked.dtype == torch.int64
    assert int(teacher.network.num_batches_tracked) == count


def test_own_statistics_are_gathered_from_the_teachers_own_batches() -> None:
    teacher = Teacher(nn.BatchNorm1d(1), "own")
    teacher(torch.tensor([[1.0], [3.0]]))
    # torch's momentum of 0.1 on batch mean 2 and unbiased variance 2, from 0 and 1
    torch.testing.assert_close(teacher.network.running_mean, torch.tensor([0.2]))
    torch.testing.assert_close(teacher.network.running_var, torch.tensor([1.1]))


@pytest.mark.parametrize("policy", ["averaged", "copied"])
def test_predicting_leaves_averaged_and_copied_statistics_alone(policy: str) -> None:
    teacher = Teacher(nn.BatchNorm1d(1), policy)
    teacher(torch.tensor([[1.0], [3.0]]))
    assert float(teacher.network.running_mean) == 0.0


@pytest.mark.parametrize(("policy", "in_train_mode"), [("averaged", False), ("copied", False), ("own", True)])
def test_teacher_keeps_its_mode_and_is_no_child_of_the_student(policy: str, in_train_mode: bool) -> None:
    student = _student()
    student.teacher = Teacher(student, policy)
    student.train()
    assert student.teacher.network.training is in_train_mode
    student.eval()
    assert student.teacher.network.training is in_train_mode
    assert not [key for key in student.state_dict() if "teacher" in key]
    assert len(list(student.parameters())) == 6


def test_a_call_restores_the_declared_mode() -> None:
    teacher = Teacher(nn.BatchNorm1d(1), "averaged")
    teacher.network.train()
    teacher(torch.tensor([[1.0], [3.0]]))
    assert float(teacher.network.running_mean) == 0.0


def test_momentum_outside_the_unit_interval_is_refused() -> None:
    student = _student()
    with pytest.raises(TrainingError, match="0-1, found 99"):
        Teacher(student, "averaged").update(student, 99)


def test_warmed_up_momentum_makes_the_teacher_the_mean_of_all_students_so_far() -> None:
    student = nn.Linear(1, 1, bias=False)
    values = [2.0, 5.0, -1.0, 8.0]
    student.weight.data.fill_(values[0])
    teacher = Teacher(student, "averaged")
    for updates, value in enumerate(values[1:]):
        student.weight.data.fill_(value)
        teacher.update(student, warmed_up_momentum(0.99, updates))
    assert float(teacher.network.weight.detach()) == pytest.approx(sum(values) / len(values))


def test_warmed_up_momentum_ends_at_the_momentum_asked_for() -> None:
    assert [warmed_up_momentum(0.8, n) for n in (0, 1, 2, 3, 100)] == pytest.approx([1 / 2, 2 / 3, 3 / 4, 0.8, 0.8])


# The published run: 1 431 950 images, 10 epochs.
@pytest.mark.parametrize(
    ("batch_size", "num_steps", "first"),
    [
        (8, 1_789_938, [1, 1001, 21001, 41001, 61001, 122001, 183001]),
        (16, 894_969, [1, 501, 10501, 20501, 30501, 61001]),
        (256, 55_936, [1, 32, 657, 1282, 1907, 3813]),
    ],
)
def test_released_schedule_is_the_published_one(batch_size: int, num_steps: int, first: list[int]) -> None:
    steps = released_update_steps(batch_size, num_steps)
    assert steps[: len(first)] == first
    assert len(steps) == 33


def _as_published(batch_size: int, num_steps: int) -> list[int]:
    """The rule as it is told, step by step."""
    entries, period, moves = [500, 10500, 20500, 30500], 500, []
    for step in range(1, num_steps + 1):
        if step % int(period / batch_size * 16) == 1:
            moves.append(step)
            period = entries.pop(0) if entries else period
    return moves


@pytest.mark.parametrize("batch_size", [8, 24, 100, 256, 1000])
def test_released_schedule_equals_the_rule_played_step_by_step(batch_size: int) -> None:
    assert released_update_steps(batch_size, 30_000) == _as_published(batch_size, 30_000)


def test_released_schedule_of_a_batch_beyond_the_first_period_still_moves() -> None:
    assert released_update_steps(16_000, 20) == [1, 2, 11]
    assert released_update_steps(8, 1) == [1]


@pytest.mark.parametrize("num_steps", [200, 1000, 55_936])
def test_a_scaled_schedule_leaves_as_much_of_the_start_as_the_published_run(num_steps: int) -> None:
    steps = scaled_update_steps(num_steps)
    assert steps == sorted(set(steps))
    assert (len(steps), steps[0]) == (33, 1)
    assert steps[-1] <= num_steps
    # Of the published run, 16 images a step: moves at 1, 501, 10501, 20501, 30501, 61001, then every 30,500.
    assert steps[5] == 1 + int(61_000 / 894_968 * num_steps)
    assert steps[-1] / num_steps == pytest.approx(884_501 / 894_968, abs=0.01)


def test_a_scaled_schedule_of_a_run_of_few_steps_moves_at_each() -> None:
    assert scaled_update_steps(1) == [1]
    assert scaled_update_steps(5) == [1, 2, 3, 4, 5]
