import datetime as dt
import logging
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from geokr_assets.jobs import approve_pretraining
from geokr_assets.resources import ParamsFile
from geokr_assets.schedules import APPROVAL_TAG, monthly_pretraining, reevaluation
from geokr_core.chain.contents import Contents
from geokr_core.chain.freshness import inputs_of
from geokr_core.chain.params import Params, load_params
from geokr_core.chain.record import Record, write_record
from geokr_core.chain.steps import STEPS, Folders
from geokr_core.step.digests import file_md5, folder_version, text_digest
from geokr_core.step.files import write_json
from tests.assets.conftest import write_params

MONDAY = dt.datetime(2026, 11, 23, 5, tzinfo=dt.UTC)


def _tick(params_file: ParamsFile, at: dt.datetime = MONDAY) -> dg.RunRequest | dg.SkipReason:
    context = dg.build_schedule_context(scheduled_execution_time=at)
    answer = reevaluation(context, params_file=params_file)
    assert isinstance(answer, (dg.RunRequest, dg.SkipReason))
    return answer


def _run_key(answer: dg.RunRequest | dg.SkipReason) -> str:
    assert isinstance(answer, dg.RunRequest)
    assert answer.run_key
    return answer.run_key


@pytest.fixture
def backbone(params: Params) -> Params:
    """A project with something to evaluate."""
    for step in ("backbone", "pretraining"):
        write_json(Folders(params)[step] / "made.json", {"step": step})
    return params


def _evaluate(params: Params) -> None:
    """Leave behind what an evaluation leaves behind."""
    out = Folders(params)["evaluation"]
    write_json(out / "metrics.json", {})
    inputs = inputs_of(params, STEPS["evaluation"], Contents(params.store))
    files = {"metrics.json": file_md5(out / "metrics.json")}
    record = Record(inputs, text_digest(inputs), folder_version(files), files)
    write_record(Folders(params).state("evaluation"), record, {})


def test_without_a_backbone_there_is_nothing_to_evaluate(params_file: ParamsFile, params: Params) -> None:
    answer = _tick(params_file)
    assert isinstance(answer, dg.SkipReason)
    assert "nothing to evaluate yet" in str(answer.skip_message)


def test_an_evaluation_that_is_up_to_date_is_not_repeated(params_file: ParamsFile, backbone: Params) -> None:
    _evaluate(backbone)
    answer = _tick(params_file)
    assert isinstance(answer, dg.SkipReason)
    assert "Neither the backbone nor the labelled sets changed" in str(answer.skip_message)


def test_a_new_backbone_and_new_labels_are_evaluated(params_file: ParamsFile, backbone: Params) -> None:
    _evaluate(backbone)
    write_json(Folders(backbone)["backbone"] / "made.json", {"step": "another"})
    first = _run_key(_tick(params_file))
    write_json(backbone.evaluation.folder / "new_labels.json", {})
    second = _run_key(_tick(params_file))
    assert first != second


def test_a_tick_evaluated_twice_is_one_run_and_a_failed_one_is_tried_next_week(
    params_file: ParamsFile, backbone: Params
) -> None:
    assert _run_key(_tick(params_file)) == _run_key(_tick(params_file))
    assert _run_key(_tick(params_file)) != _run_key(_tick(params_file, MONDAY + dt.timedelta(days=7)))


@pytest.fixture
def data_set(params: Params) -> Params:
    """A project with something to train on, whose last training was on something else."""
    write_json(Folders(params)["levir_kr"] / "made.json", {"step": "levir_kr"})
    return params


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance that a schedule finds by its reference, as the daemon's does."""
    (tmp_path / "instance").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "instance")) as instance:
        yield instance


def _first(params_file: ParamsFile, instance: dg.DagsterInstance) -> dg.RunRequest | dg.SkipReason:
    at = dt.datetime(2026, 12, 1, 6, tzinfo=dt.UTC)
    with dg.build_schedule_context(instance=instance, scheduled_execution_time=at) as context:
        answer = monthly_pretraining(context, params_file=params_file)
    assert isinstance(answer, (dg.RunRequest, dg.SkipReason))
    return answer


def test_without_a_data_set_there_is_nothing_to_train_on(params_file: ParamsFile, kept: dg.DagsterInstance) -> None:
    assert "nothing to train on yet" in str(_first(params_file, kept))


def test_no_training_begins_that_no_one_approved_and_an_approval_counts_once(
    params_file: ParamsFile, data_set: Params, kept: dg.DagsterInstance
) -> None:
    instance = kept
    assert "launch the job `approve_pretraining`" in str(_first(params_file, instance))
    approval = approve_pretraining.execute_in_process(instance=instance).run_id
    asked = _first(params_file, instance)
    assert _run_key(asked).startswith(approval)
    assert isinstance(asked, dg.RunRequest)
    assert _run_key(_first(params_file, instance)) == asked.run_key  # a tick that is evaluated twice is one run
    tags = {**asked.tags, "dagster/schedule_name": "monthly_pretraining"}
    instance.add_run(dg.DagsterRun(job_name="pretrain_again", tags=tags))
    assert tags[APPROVAL_TAG] == approval
    assert "no one has approved" in str(_first(params_file, instance))
    again = approve_pretraining.execute_in_process(instance=instance).run_id
    assert _run_key(_first(params_file, instance)).startswith(again)


@pytest.mark.slow
def test_the_daemon_fires_the_week_with_the_clock_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster's own scheduler over three Mondays: a run, a skip for what is up to date, and a run for new labels."""
    from dagster._core.test_utils import create_test_daemon_workspace_context
    from dagster._core.workspace.load_target import ModuleTarget
    from dagster._scheduler.scheduler import launch_scheduled_runs

    project, backbone = tmp_path, load_params(write_params(tmp_path))
    for step in ("backbone", "pretraining"):
        write_json(Folders(backbone)[step] / "made.json", {"step": step})
    assert backbone.evaluation is not None
    write_json(backbone.evaluation.folder / "labels.json", {})
    monkeypatch.setenv("GEOKR_PARAMS", str(project / "params.yaml"))
    home = project / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text("run_launcher: {module: dagster._core.test_utils, class: MockedRunLauncher}\n")
    target = ModuleTarget("geokr_assets.definitions", None, str(Path(__file__).parents[2]), "geokr")
    log, now = logging.getLogger("scheduler"), dt.datetime.now(dt.UTC)
    next_monday = (now + dt.timedelta(days=7 - now.weekday())).replace(hour=5, minute=0, second=0, microsecond=0)
    with (
        dg.DagsterInstance.from_config(str(home)) as instance,
        create_test_daemon_workspace_context(target, instance) as workspace,
    ):
        location = next(iter(workspace.create_request_context().get_code_location_entries().values())).code_location
        assert location is not None
        schedule = location.get_repository("__repository__").get_schedule("reevaluation")
        instance.start_schedule(schedule)

        def monday(number: int) -> tuple[str, str]:
            """Let the scheduler see the clock an hour after a Monday's tick; its state and what it says."""
            at = next_monday + dt.timedelta(days=7 * number, hours=1)
            list(launch_scheduled_runs(workspace, log, at, {}))
            (tick, *_) = instance.get_ticks(schedule.get_remote_origin_id(), schedule.selector_id, limit=1)
            return tick.status.value, tick.skip_reason or ""

        state, _ = monday(0)
        assert state == "SUCCESS"
        (run,) = instance.get_runs(dg.RunsFilter(job_name="reevaluate"))
        assert run.tags["dagster/run_key"].startswith(f"{next_monday:%Y-%m-%d}-")
        _evaluate(backbone)
        state, reason = monday(1)
        assert (state, "Neither the backbone nor the labelled sets changed" in reason) == ("SKIPPED", True)
        write_json(backbone.evaluation.folder / "new_labels.json", {})
        state, _ = monday(2)
        assert state == "SUCCESS"
        assert len(instance.get_runs(dg.RunsFilter(job_name="reevaluate"))) == 2
        # A clock that is set back, and forth again, fires no tick a second time; the next week does.
        for number in (0, 2, 1, 2):
            monday(number)
        assert len(instance.get_runs(dg.RunsFilter(job_name="reevaluate"))) == 2
        state, _ = monday(3)
        assert state == "SUCCESS"
        assert len(instance.get_runs(dg.RunsFilter(job_name="reevaluate"))) == 3
