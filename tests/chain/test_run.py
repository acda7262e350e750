"""The chain: what counts as current, and that the three tables of steps are one."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from affine import Affine

from geokr_core import cli
from geokr_core.audit.config import MapAuditConfig
from geokr_core.chain import versioning
from geokr_core.chain.contents import Contents
from geokr_core.chain.freshness import fingerprint, is_current
from geokr_core.chain.outdated_inputs import outdated_inputs
from geokr_core.chain.params import Params, load_params
from geokr_core.chain.refusals import refuse_early
from geokr_core.chain.run import run as run_chain
from geokr_core.chain.run import run_step
from geokr_core.chain.scene_by_scene import finish_scenes, is_complete, run_scene, scene_ids
from geokr_core.chain.status import status
from geokr_core.chain.steps import STEPS, Folders, Step, steps_of
from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.errors import ConfigError, GeoKRError, MissingInputError
from geokr_core.step.files import write_json
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import write_raster

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def params(tmp_path: Path) -> Params:
    import numpy as np

    rng = np.random.default_rng(0)
    utm = Affine(16, 0, 500000, 0, -16, 3300000)
    for name in ("a", "b"):
        write_raster(
            tmp_path / "scenes" / f"{name}.tif", rng.integers(0, 255, (3, 64, 64), np.uint8), "EPSG:32648", utm
        )
    codes = rng.choice(np.array([10, 20, 60], np.uint8), (80, 80))
    write_raster(tmp_path / "lc" / "t.tif", codes, "EPSG:32648", Affine(30, 0, 499990, 0, -30, 3300010))
    (tmp_path / "tasks").mkdir()
    return Params.model_validate(
        {
            "store": tmp_path / "store",
            "scenes": {
                "folder": tmp_path / "scenes",
                "collections": [{"name": "c", "files": "*.tif", "bands": ["red", "green", "blue"], "land_cover": "gl"}],
            },
            "land_cover": {
                "folder": tmp_path / "lc",
                "products": [{"name": "gl", "files": "*.tif", "legend": "globeland30", "year": 2020}],
            },
            "chips": {"size_px": 16, "stride_px": 16},
            "evaluation": {"folder": tmp_path / "tasks", "tasks": [{"name": "t"}]},
            "champion": {"primary": [{"task": "t"}]},
        }
    )


def run(params: Params, *names: str) -> list[bool]:
    return [run_step(name, params, RecordingReporter()).was_current for name in names]


def with_section(params: Params, section: str, **values: object) -> Params:
    return params.model_copy(update={section: getattr(params, section).model_copy(update=values)})


def test_a_second_run_does_nothing_and_a_changed_parameter_redoes_what_depends_on_it(params: Params) -> None:
    names = ("scenes", "land_cover", "chips", "proportions")
    assert run(params, *names) == [False] * 4
    assert run(params, *names) == [True] * 4
    assert run(with_section(params, "chips", stride_px=24), *names) == [True, True, False, False]


def test_an_edited_legend_file_redoes_the_index(params: Params, tmp_path: Path) -> None:
    legend = tmp_path / "own.yaml"
    text = "{name: own, licence: x, source: x, nodata: [0], classes: [{code: 10, name: a, common: forest}, {code: 20, name: b}, {code: 60, name: c}]}"
    legend.write_text(text)
    product = params.land_cover.products[0].model_copy(update={"legend": str(legend)})
    own = with_section(params, "land_cover", products=(product,))
    assert run(own, "land_cover") == [False]
    assert run(own, "land_cover") == [True]
    legend.write_text(text.replace("forest", "water"))
    assert run(own, "land_cover") == [False]


def test_outputs_changed_behind_its_back_are_made_again(params: Params) -> None:
    run(params, "scenes", "land_cover", "chips")
    before = run_step("chips", params, RecordingReporter()).data_version
    (params.store / "chips" / "a.npy").unlink()
    outcome = run_step("chips", params, RecordingReporter())
    assert not outcome.was_current
    assert outcome.data_version == before


def test_a_missing_input_says_what_to_run(params: Params) -> None:
    with pytest.raises(MissingInputError, match=r"chips: no such folder; run `geokr chips` first, or `geokr run`"):
        run(params, "proportions")
    with pytest.raises(MissingInputError, match=r"tasks: the folder is empty; point `evaluation\.folder`"):
        fingerprint(params, Step("x", "x", (), (), ("evaluation",), STEPS["scenes"].run, ""))


def test_a_section_that_is_missing_is_named_and_whether_its_defaults_will_do(params: Params) -> None:
    with pytest.raises(ConfigError, match=r"no section `map_audit`.*; `map_audit: \{\}` takes its defaults"):
        run(params, "map_audit")
    without = params.model_copy(update={"evaluation": None, "champion": None})
    with pytest.raises(ConfigError, match=r"no section `evaluation`, and this needs one; docs/parameters\.md"):
        run(without, "evaluation")


def test_who_names_another_network_need_not_train_one(params: Params, tmp_path: Path) -> None:
    run(params, "scenes", "land_cover", "chips")
    elsewhere = {"bundle": str(tmp_path / "elsewhere")}
    given = Params.model_validate(params.model_dump() | {"embeddings": elsewhere, "land_cover_shares": elsewhere})
    with pytest.raises(MissingInputError, match="elsewhere"):  # the bundle itself is what is missing, not the chain's
        run(given, "embeddings")
    assert STEPS["land_cover_shares"].inputs_in(given) == ("levir_kr", "chips", "scenes")
    table = {"architecture": "squeezenet1_1", "weights": "imagenet"}
    assert STEPS["embeddings"].inputs_in(Params.model_validate(params.model_dump() | {"embeddings": table})) == (
        "chips",
    )
    own = Params.model_validate(params.model_dump() | {"embeddings": {}, "land_cover_shares": {}})
    assert STEPS["embeddings"].inputs_in(own) == ("backbone", "chips")
    left_out = params.model_copy(update={"embeddings": None, "land_cover_shares": None})
    assert [step.inputs_in(left_out) for step in STEPS.values()], "Dagster asks every step, wanted or not"
    assert "backbone" in STEPS["embeddings"].inputs_in(left_out)
    with pytest.raises(MissingInputError, match="geokr backbone"):
        run(own, "embeddings")


def test_who_runs_one_step_is_told_what_before_it_is_out_of_date(params: Params) -> None:
    run(params, "scenes", "land_cover", "chips")
    corrected = [params.scenes.collections[0].model_copy(update={"bands": ("blue", "green", "red")})]
    other = with_section(params, "scenes", collections=tuple(corrected))
    for name in ("chips", "proportions"):  # what is read directly, and through another step
        heard = RecordingReporter()
        run_step(name, other, heard)
        (warning,) = heard.warnings
        assert warning.startswith(
            f'{name}: made from what is out of date: scenes (scenes.collections.c.bands: ["red", '
        )
        assert warning.endswith("Run `geokr scenes` first, or `geokr run` for the whole chain.")
    for name in ("scenes", "chips", "proportions"):
        heard = RecordingReporter()
        run_step(name, other, heard)
        assert heard.warnings == []


def test_an_output_that_dvc_brought_is_not_judged_by_the_record_of_another_one(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(params, "scenes", "land_cover", "chips")
    monkeypatch.setattr(versioning, "is_versioned", lambda file: True)
    monkeypatch.setattr(versioning, "recorded_versions", lambda: {"chips": Contents(params.store).version(chips)})
    chips, other = params.store / "chips", with_section(params, "chips", stride_px=24)
    assert "chips" in outdated_inputs(other, ["proportions"], Contents(params.store))  # as DVC recorded it here
    (chips / "a.parquet").unlink()  # `dvc checkout` of another commit gives other files than the last run here
    assert "chips" not in outdated_inputs(other, ["proportions"], Contents(params.store))


def test_scene_by_scene_ends_where_the_whole_step_does(params: Params) -> None:
    run(params, "scenes", "land_cover")
    reporter = RecordingReporter()
    assert scene_ids(params) == ["a", "b"]
    for name in ("chips", "proportions"):
        run_scene(name, "a", params, reporter)
        assert not finish_scenes(name, params, reporter)
        run_scene(name, "b", params, reporter)
        assert not is_current(params, STEPS[name])
        assert finish_scenes(name, params, reporter)
        assert is_complete(name, params)
        assert is_current(params, STEPS[name])
    assert run(params, "chips", "proportions") == [True, True]
    for name, suffix in (("chips", ".npy"), ("proportions", ".parquet")):
        written = params.store / name / f"a{suffix}"
        before = written.stat().st_mtime_ns
        assert run_scene(name, "a", params, reporter).was_current
        assert written.stat().st_mtime_ns == before
        assert not run_scene(name, "a", params, reporter, force=True).was_current
        assert written.stat().st_mtime_ns != before
        before = written.stat().st_mtime_ns
        run_step(name, params, reporter, force=True)
        assert written.stat().st_mtime_ns != before, "forced means every scene"
    with pytest.raises(MissingInputError, match="scene 'c' is not among the 2 usable scenes"):
        run_scene("chips", "c", params, reporter)


def test_dvc_yaml_has_the_steps_edges_and_parameters_of_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.repo import Repo

    monkeypatch.chdir(ROOT)
    params = load_params(Path("params.yaml"))
    folders = Folders(params)
    stages = {stage.name: stage for stage in Repo(str(ROOT)).index.stages}
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(declared) == [step.name for step in steps_of(params)]
    for step in steps_of(params):
        stage = stages[step.name]
        sources = {str(getattr(params, source).folder) for source in step.sources}
        inputs = {str(folders[name]) for name in step.inputs_in(params)}
        found = {dep.def_path for dep in stage.deps if not dep.def_path.endswith("params.yaml")}
        assert found == sources | inputs, step.name
        assert [out.def_path for out in stage.outs] == [str(folders[step.name])]
        assert declared[step.name]["params"] == list(step.sections)
        assert declared[step.name]["cmd"] == f"geokr {step.command} --params params.yaml"


def test_the_command_line_has_a_command_for_every_step() -> None:
    commands = {
        command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback
    }
    assert {step.command for step in STEPS.values()} <= commands
    told = {
        command.name or getattr(command.callback, "__name__", ""): command.help
        for command in cli.app.registered_commands
    }
    assert all(str(told[step.command]).startswith(step.purpose) for step in STEPS.values())


def test_a_stopped_run_says_what_is_kept(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(STEPS, "chips", replace(STEPS["chips"], run=stop))
    reporter = RecordingReporter()
    with pytest.raises(KeyboardInterrupt):
        run_chain(params, reporter, steps=["scenes", "land_cover", "chips"])
    assert reporter.warnings[-1] == (
        "Stopped in chips. Kept: the output of scenes, land_cover; of chips: scenes cut so far. "
        "Run the same command again to resume."
    )


def test_everything_refusable_is_refused_before_anything_runs(params: Params, tmp_path: Path) -> None:
    refused = {
        "scenes": params.scenes.model_copy(update={"folder": tmp_path / "nowhere"}),
        "evaluation": params.evaluation.model_copy(update={"folder": tmp_path / "no_tasks"}),
        "pretraining": params.pretraining.model_copy(update={"initial_weights": tmp_path / "no.safetensors"}),
        "land_cover": params.land_cover.model_copy(
            update={"products": (params.land_cover.products[0].model_copy(update={"legend": "globeland31"}),)}
        ),
    }
    for section, value in refused.items():
        with pytest.raises(GeoKRError, match="nowhere|no_tasks|no.safetensors|globeland31"):
            run_chain(params.model_copy(update={section: value}), RecordingReporter())
        assert not any((params.store / name).exists() for name in STEPS), section


def test_who_wants_the_data_set_alone_needs_no_evaluation(params: Params) -> None:
    alone = params.model_copy(update={"evaluation": None, "champion": None})
    assert [step.name for step in steps_of(alone)][-1] == "backbone"
    assert [one.state for one in status(alone)][:2] == ["to do", "to do"]
    with pytest.raises(ConfigError, match="no section `evaluation`"):
        run(alone, "evaluation")


def test_a_look_writes_nothing_and_reads_no_source_before_anything_was_made(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object) -> str:
        raise AssertionError("a source was read as a whole")

    monkeypatch.setattr("geokr_core.rasters.checksums.file_md5", unreadable)
    found = {one.step: one for one in status(params)}
    assert found["scenes"].state == "to do"
    assert found["scenes"].reasons == ("it has not run yet",)
    assert not params.store.exists()


def test_what_lies_in_the_store_of_another_parameter_file_is_missed_by_name(params: Params, tmp_path: Path) -> None:
    task = {"name": "east", "kind": "land_cover_mapping", "levir_kr": str(tmp_path / "other" / "levir_kr")}
    content = params.model_dump(mode="json") | {
        "evaluation": {"folder": str(tmp_path / "tasks"), "tasks": [task], "seeds": [0]},
        "champion": {"primary": [{"task": "east", "metric": "cell_accuracy"}]},
    }
    (tmp_path / "tasks" / "east").mkdir()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "other.yaml").write_text(f"extends: mine.yaml\nstore: {tmp_path / 'other'}\n")
    asked = load_params(tmp_path / "mine.yaml")
    found = {one.step: one for one in status(asked)}
    assert found["evaluation"].state == "blocked"
    assert "other/levir_kr: not made yet; `geokr run --until levir-kr --params" in found["evaluation"].reasons[0]
    assert "other.yaml` makes it" in found["evaluation"].reasons[0]
    assert found["report"].state == "blocked"
    (tmp_path / "other" / "levir_kr").mkdir(parents=True)
    assert {one.step: one for one in status(asked)}["evaluation"].state == "to do"


def test_who_maps_levir_krs_alone_needs_no_folder_of_labelled_sets(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geokr_core.evaluation.opening.open_task", lambda *_: None)
    mapped = tmp_path / "mapped"
    tasks = [{"name": "east", "kind": "land_cover_mapping", "levir_kr": str(mapped)}]
    content = params.model_dump(mode="json") | {
        "evaluation": {"tasks": tasks, "seeds": [0]},
        "champion": {"primary": [{"task": "east", "metric": "cell_accuracy"}]},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    asked = load_params(tmp_path / "mine.yaml")
    with pytest.raises(MissingInputError, match="mapped: not made yet; run the chain that makes it"):
        refuse_early(asked, ["evaluation"])
    mapped.mkdir()
    with pytest.raises(MissingInputError, match="mapped: the folder is empty"):
        refuse_early(asked, ["evaluation"])
    (mapped / "manifest.json").write_text("{}")
    refuse_early(asked, ["evaluation"])
    content["evaluation"]["tasks"] = [*tasks, {"name": "scenes"}]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="folder"):
        load_params(tmp_path / "mine.yaml")


def test_an_audit_asks_another_network_again_when_that_one_has_changed(params: Params, tmp_path: Path) -> None:
    other = tmp_path / "other" / "embeddings"
    section = MapAuditConfig(other_embeddings=(other,))
    asked = params.model_copy(update={"embeddings": EmbeddingsConfig(), "map_audit": section})
    step, folders = STEPS["map_audit"], Folders(asked)
    assert step.outdated is not None
    assert step.reads_elsewhere(asked) == (other,)
    folders["map_audit"].mkdir(parents=True)
    other.mkdir(parents=True)
    write_json(folders["map_audit"] / "audit.json", {"other_networks": [{"model_version": "1"}]})
    for version, told in (("1", None), ("2", f"{other} is of version 2, the audit asked 1")):
        write_json(other / "embeddings.json", {"model_version": version})
        assert step.outdated(asked, folders) == told
    alone = asked.model_copy(update={"map_audit": MapAuditConfig()})
    assert step.outdated(alone, folders) is None


def test_a_run_stops_after_the_step_that_is_named(params: Params) -> None:
    outcomes = run_chain(params, until="land_cover")  # there are no labelled sets, and none are asked for
    assert [outcome.step for outcome in outcomes] == ["scenes", "land_cover"]
    assert [outcome.step for outcome in run_chain(params, steps=["scenes", "land_cover"], until="land-cover")] == [
        "scenes",
        "land_cover",
    ]
    with pytest.raises(ConfigError, match=r"until 'pretraining': no such step would be run"):  # its command is meant
        run_chain(params, steps=["scenes"], until="pretrain")
    with pytest.raises(ConfigError, match=r"until 'chip': no such step would be run; choose one of scenes"):
        run_chain(params, until="chip")


def test_a_step_that_does_not_exist_is_named(params: Params) -> None:
    with pytest.raises(ConfigError, match="'chip' is no step of the chain; the steps are world, scenes"):
        run_chain(params, steps=["chip"])
