"""Parts of a step, such as the trainings of a pretraining: one run each below the step's, named, with data sets and links."""

import json
from contextlib import nullcontext
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from geokr_core import registry
from geokr_core.step.reporter import Part, RecordingReporter, Reporter, Source
from geokr_core.step.summary import Summary

LEVIR_KR = Source("levir_kr", "0" * 32 + ".dir", "data/store/levir_kr", "training", 480)


def part(seed: int, *, is_kept: bool = False, mark: str = "") -> Part:
    name = f"geokr · resnet18 · 200 steps · seed {seed}"
    return Part(
        name,
        f"geokr-seed{seed}",
        f"{mark}print{seed}",
        {"seed": seed, "pretraining": {"steps": 200}},
        f"Seed {seed}.",
        is_kept,
    )


def train(reporter: Reporter, one: Part) -> None:
    with reporter.part(one) as told:
        told.source(LEVIR_KR)
        for step in (1, 2) if not one.is_kept else ():
            told.metrics({f"{one.key}/loss": 1.0 / step, f"{one.key}/bias/forest": 0.1}, step)
        told.figures({"validation_kl": 0.5})


def below(server: MlflowClient, run_id: str | None) -> list[Any]:
    experiment = server.get_experiment_by_name("geokr")
    return server.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'", order_by=["start_time ASC"]
    )


def test_each_part_is_a_run_below_the_steps_with_plain_curves_and_its_data(server: MlflowClient) -> None:
    listener = RecordingReporter()
    with registry.track_step("pretraining", {}, {}, listener, "pretraining · resnet18 · 200 steps · 2 runs") as run:
        for seed in (0, 1):
            train(run.reporter, part(seed))
        run.finish(Summary({"num_runs": 2, "seconds": 3.0}), "abc.dir")
    parent = server.get_run(str(run.run_id))
    assert parent.info.run_name == "pretraining · resnet18 · 200 steps · 2 runs"
    assert "loss" not in parent.data.metrics, "curves of several trainings in one run cannot be compared"
    assert "seconds" not in parent.data.metrics, "the page shows the duration"
    found = below(server, run.run_id)
    assert [one.info.run_name for one in found] == [part(0).name, part(1).name]
    for seed, one in enumerate(found):
        assert one.info.status == "FINISHED"
        assert one.data.tags["mlflow.note.content"] == f"Seed {seed}."
        assert one.data.params["seed"] == str(seed)
        assert not {"geokr/parent_key", "geokr/process"} & one.data.tags.keys(), "notes of a run that is going on"
        shown = {name: value for name, value in one.data.metrics.items() if not name.startswith("system/")}
        assert shown == {"loss": 0.5, "validation_bias_forest": 0.1, "result/validation_kl": 0.5}
        (read,) = one.inputs.dataset_inputs
        assert (read.dataset.name, read.dataset.digest) == ("levir_kr", LEVIR_KR.data_version)
        assert json.loads(read.dataset.profile) == {"num_rows": 480}
        assert [(tag.key, tag.value) for tag in read.tags] == [("mlflow.data.context", "training")]
    # Whoever else listens hears every curve under its own name.
    assert {name for _, values in listener.points for name in values} >= {"geokr-seed0/loss", "geokr-seed1/loss"}


def test_a_part_that_dies_after_it_told_its_figures_tells_them_once(server: MlflowClient) -> None:
    for dies in (True, False):
        with (
            pytest.raises(KeyboardInterrupt) if dies else nullcontext(),
            registry.track_step("pretraining", {}, {}, RecordingReporter()) as run,
            run.reporter.part(part(0, mark="dies")) as told,
        ):
            told.figures({"validation_kl": 0.5})
            if dies:
                raise KeyboardInterrupt
    (one,) = below(server, run.run_id)
    assert [point.value for point in server.get_metric_history(one.info.run_id, "result/validation_kl")] == [0.5]


def test_a_part_that_is_kept_links_to_the_run_that_trained_it(server: MlflowClient) -> None:
    with registry.track_step("pretraining", {}, {}, RecordingReporter()) as first:
        train(first.reporter, part(0, mark="kept"))
    with registry.track_step("pretraining", {}, {}, RecordingReporter()) as second:
        train(second.reporter, part(0, mark="kept", is_kept=True))
    (trained,), (kept,) = below(server, first.run_id), below(server, second.run_id)
    assert kept.data.tags["geokr/trained_in"] == trained.info.run_id
    note = kept.data.tags["mlflow.note.content"]
    assert f"/runs/{trained.info.run_id}?workflowType=machine_learning)" in note
    assert note.endswith("\n\nSeed 0.")
    assert kept.data.metrics["result/validation_kl"] == trained.data.metrics["result/validation_kl"]


def test_a_part_that_was_killed_is_resumed_below_the_step_that_resumes_it(server: MlflowClient) -> None:
    runs = []
    with pytest.raises(KeyboardInterrupt), registry.track_step("pretraining", {}, {}, RecordingReporter()) as first:
        runs.append(first.run_id)
        with first.reporter.part(part(0, mark="killed")) as told:
            told.metrics({"loss": 1.0}, 1)
            raise KeyboardInterrupt
    (killed,) = below(server, runs[0])
    assert killed.info.status == "KILLED"
    with registry.track_step("pretraining", {"one more": "variant"}, {}, RecordingReporter()) as second:
        train(second.reporter, part(0, mark="killed"))
    (resumed,) = below(server, second.run_id)
    assert resumed.info.run_id == killed.info.run_id
    assert resumed.info.status == "FINISHED"
    assert {point.step for point in server.get_metric_history(resumed.info.run_id, "loss")} == {1, 2}


def test_parts_of_a_time_without_a_server_lie_below_their_step_once_it_is_back(
    server: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise MlflowException("connection reset")

    listener = RecordingReporter()
    with monkeypatch.context() as away:
        away.setattr("geokr_core.tracking.tracked_run.connect", lost)
        away.setattr("geokr_core.tracking.delivery.connect", lost)
        with registry.track_step("pretraining", {"away": 1}, {}, listener, "while away") as run:
            for seed in (0, 1):
                train(run.reporter, part(seed, mark="away"))
        assert run.run_id is None
    assert len(listener.warnings) == 1, "said once, not once a part"
    registry.deliver_kept(RecordingReporter())
    (parent,) = server.search_runs(
        [server.get_experiment_by_name("geokr").experiment_id], "attributes.run_name = 'while away'"
    )
    found = below(server, parent.info.run_id)
    assert sorted(one.info.run_name for one in found) == [part(0).name, part(1).name]
    assert all(one.data.metrics["loss"] == 0.5 for one in found)
    assert all(one.inputs.dataset_inputs[0].dataset.name == "levir_kr" for one in found)


def test_the_experiment_says_what_its_runs_are(server: MlflowClient) -> None:
    with registry.track_step("backbone", {}, {}, RecordingReporter()):
        pass
    tags = server.get_experiment_by_name("geokr").tags
    assert "one run for each variant and seed" in tags["mlflow.note.content"]
    assert tags["mlflow.experimentKind"] == "custom_model_development"
