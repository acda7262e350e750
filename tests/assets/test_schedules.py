import datetime as dt

import dagster as dg
import pytest

from geokr_assets.resources import ParamsFile
from geokr_assets.schedules import reevaluation
from geokr_core.chain.contents import Contents
from geokr_core.chain.freshness import inputs_of
from geokr_core.chain.params import Params
from geokr_core.chain.record import Record, write_record
from geokr_core.chain.steps import STEPS, Folders
from geokr_core.step.digests import file_md5, folder_version, text_digest
from geokr_core.step.files import write_json

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
