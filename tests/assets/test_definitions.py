import ast
import functools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from geokr_assets.assets.step_asset import RAW
from geokr_assets.step_process import SECONDS_TO_STOP
from geokr_core.chain.params import load_params
from geokr_core.chain.steps import STEPS, steps_of, upstream_of
from geokr_core.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]

# key: (group, kinds, partitioned, pool, blocking checks, other checks)
EXPECTED = {
    "world": ("raw_data", {"python", "geotiff"}, False, "dvc", ["raw_data_are_there"], []),
    "scenes": ("raw_data", {"rasterio", "parquet"}, False, "dvc", [], ["quarantined_scenes"]),
    "land_cover": ("raw_data", {"rasterio", "parquet"}, False, "dvc", [], ["every_product_has_tiles"]),
    "chips": (
        "levir_kr",
        {"rasterio", "numpy", "parquet"},
        True,
        None,
        ["chips_show_their_ground"],
        ["scene_is_usable"],
    ),
    "proportions": ("levir_kr", {"rasterio", "parquet"}, True, None, ["fractions_sum_to_one"], ["scene_is_usable"]),
    "levir_kr": ("levir_kr", {"parquet", "dvc"}, False, "dvc", [], ["labels_vary", "quarantined_scenes"]),
    "pretraining": (
        "pretraining",
        {"pytorch", "mlflow"},
        False,
        "gpu",
        ["teacher_is_apart", "weights_are_finite"],
        [],
    ),
    "backbone": ("pretraining", {"pytorch", "safetensors"}, False, "dvc", ["bundle_is_whole"], []),
    "embeddings": ("applications", {"pytorch", "parquet"}, False, "gpu", [], ["every_chip_has_a_vector"]),
    "land_cover_shares": ("applications", {"pytorch", "geotiff"}, False, "gpu", [], ["intervals_cover_what_they_say"]),
    "map_audit": ("applications", {"numpy", "parquet"}, False, "dvc", [], ["audit_finds_planted_errors"]),
    "evaluation": ("evaluation", {"pytorch", "parquet", "mlflow"}, False, "gpu", ["scores_are_numbers"], []),
    "report": ("evaluation", {"html", "mlflow"}, False, "dvc", [], ["report_stands_alone"]),
    "champion": ("registry", {"mlflow"}, False, "dvc", [], ["holds_against_champion", "promotion_stands"]),
}


@pytest.fixture(scope="module")
def world_params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _params(tmp_path_factory.mktemp("definitions"), world=True)


def _params(root: Path, *, world: bool) -> Path:
    content = {
        "store": str(root / "store"),
        "world": {"folder": str(root / "world")} if world else None,
        "scenes": {
            "folder": str(root / "world" / "scenes"),
            "collections": [{"name": "gaofen", "files": "*.tiff", "land_cover": "globe"}],
        },
        "land_cover": {
            "folder": str(root / "world" / "land_cover"),
            "products": [{"name": "globe", "files": "*.tif", "legend": "globeland30", "year": 2020}],
        },
        "embeddings": {},
        "map_audit": {},
        "land_cover_shares": {},
        "evaluation": {"folder": str(root / "elsewhere"), "tasks": [{"name": "scene_classification"}]},
        "champion": {"primary": [{"task": "scene_classification"}]},
    }
    path = root / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def defs(world_params: Path) -> dg.Definitions:
    return _build(world_params)


def _build(params_file: Path) -> dg.Definitions:
    # The module builds `defs` when it is first imported, so it must find parameters.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEOKR_PARAMS", str(params_file))
        from geokr_assets.definitions import build_defs

    return build_defs(params_file=str(params_file))


def _run(code: str, params_file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", code],
        env={**os.environ, "GEOKR_PARAMS": str(params_file), "PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_definitions_load_without_deprecations_and_without_heavy_imports(world_params: Path) -> None:
    code = (
        "import sys, dagster as dg\n"
        "from geokr_assets.definitions import defs\n"
        "heavy = {'torch', 'mlflow', 'rasterio', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "dg.Definitions.validate_loadable(defs)\n"
    )
    done = _run(code, world_params)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


def test_the_training_process_does_not_load_dagster(world_params: Path) -> None:
    done = _run("import sys, geokr_assets.step_process; assert 'dagster' not in sys.modules", world_params)
    assert done.returncode == 0, done.stderr


def test_assets_are_as_written_down(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    checks = {
        key: sorted(check.name for check in graph.asset_check_keys if check.asset_key == dg.AssetKey(key))
        for key in EXPECTED
    }
    assert {key.to_user_string() for key in graph.materializable_asset_keys} == set(EXPECTED)
    for key, (group, kinds, partitioned, pool, blocking, others) in EXPECTED.items():
        node = graph.get(dg.AssetKey(key))
        assert (node.group_name, node.kinds, node.is_partitioned) == (group, kinds, partitioned), key
        assert node.pools == ({pool} if pool else set()), key
        assert node.owners == ["team:geokr"], key
        assert node.code_version, key
        assert STEPS[key].purpose in (node.description or ""), key
        assert checks[key] == sorted(blocking + others), key
        for name in checks[key]:
            assert graph.get_check_spec(dg.AssetCheckKey(dg.AssetKey(key), name)).blocking == (name in blocking), name


def test_jobs_sensors_and_schedules_are_as_written_down(defs: dg.Definitions) -> None:
    assert {job.name for job in defs.jobs or []} == {
        "whole_chain",
        "take_inventory",
        "chips_and_proportions",
        "reevaluate",
        "pretrain_again",
        "approve_pretraining",
    }
    assert {sensor.name: sensor.default_status.value for sensor in defs.sensors or []} == {
        "scene_folder": "RUNNING",
        "store": "RUNNING",
        "data_set_follows": "RUNNING",
        "training_follows": "STOPPED",
    }
    # They spend hours of computing: never on by default.
    schedules = [schedule for schedule in defs.schedules or [] if isinstance(schedule, dg.ScheduleDefinition)]
    assert [(one.name, one.job_name, one.cron_schedule, one.default_status.value) for one in schedules] == [
        ("reevaluation", "reevaluate", "0 5 * * 1", "STOPPED"),
        ("monthly_pretraining", "pretrain_again", "0 6 1 * *", "STOPPED"),
    ]


def _edges(defs: dg.Definitions) -> dict[str, set[str]]:
    graph = defs.resolve_asset_graph()
    return {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.materializable_asset_keys
    }


def test_the_graph_is_that_of_the_chain(defs: dg.Definitions, world_params: Path) -> None:
    params = load_params(world_params)
    edges = _edges(defs)
    steps = {step.name: set(upstream_of(params, step)) for step in steps_of(params)}
    assert {name: parents - set(RAW.values()) for name, parents in edges.items()} == steps
    # The labelled sets lie outside the generated world here, so they have a box of their own.
    assert edges["evaluation"] - steps["evaluation"] == {"labelled_sets"}


def test_given_data_take_the_place_of_the_world(tmp_path: Path) -> None:
    edges = _edges(_build(_params(tmp_path, world=False)))
    assert "world" not in edges
    assert edges["scenes"] == {"raw_scenes"}
    assert edges["chips"] == {"raw_scenes", "scenes"}
    assert edges["land_cover"] == {"raw_land_cover"}
    # Nothing begins in the air.
    assert all(edges.values())


def test_the_graph_is_that_of_dvc_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    outs = [(name, out) for name, stage in stages.items() for out in stage["outs"]]
    # An output with options is a mapping of its path to them.
    outputs = {_filled_in(out if isinstance(out, str) else next(iter(out)), values): name for name, out in outs}
    made = {}
    for name, stage in stages.items():
        deps = [Path(_filled_in(dep, values)) for dep in stage.get("deps", [])]
        made[name] = {outputs[out] for dep in deps for out in outputs if dep.is_relative_to(out)}
    edges = _edges(_build(Path("params.yaml")))
    assert {name: parents - set(RAW.values()) for name, parents in edges.items()} == made


def _filled_in(text: str, values: dict[str, Any]) -> str:
    """A path of dvc.yaml with its ``${section.key}`` filled in from params.yaml."""

    def value(match: re.Match[str]) -> str:
        return str(functools.reduce(lambda node, key: node[key], match[1].split("."), values))

    return re.sub(r"\$\{([^}]+)\}", value, text)


def test_selections_written_as_text_parse(defs: dg.Definitions) -> None:
    # Dagster and DVC want different antlr versions; where they clash, this is what dies.
    graph = defs.resolve_asset_graph()
    assert dg.AssetSelection.from_string("*").resolve(graph) >= {dg.AssetKey("world")}
    upstream = dg.AssetSelection.from_string("+key:chips").resolve(graph)
    assert upstream == {dg.AssetKey("chips"), dg.AssetKey("scenes"), dg.AssetKey("world")}


def test_a_broken_parameter_file_stops_loading_with_its_message(tmp_path: Path) -> None:
    path = _params(tmp_path, world=True)
    path.write_text(path.read_text(encoding="utf-8") + "\nchip: {}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="Did you mean `chips`"):
        _build(path)
    done = _run("import geokr_assets.definitions", path)
    assert "Did you mean `chips`" in done.stderr


def test_the_code_location_is_called_geokr_everywhere() -> None:
    workspace = yaml.safe_load((REPOSITORY / "workspace.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    module = workspace["load_from"][0]["python_module"]
    assert module["location_name"] == project["tool"]["dagster"]["code_location_name"] == "geokr"
    assert module["module_name"] == project["tool"]["dagster"]["module_name"] == "geokr_assets.definitions"


def test_the_instance_sends_nothing_home_and_covers_nothing() -> None:
    settings = yaml.safe_load((REPOSITORY / ".dagster_home" / "dagster.yaml").read_text(encoding="utf-8"))
    assert settings["telemetry"] == settings["nux"] == {"enabled": False}
    assert settings["concurrency"]["pools"] == {"default_limit": 1, "granularity": "op"}
    monitoring = settings["run_monitoring"]
    assert monitoring["enabled"]
    # Otherwise the retry of a run whose worker was killed waits for a slot that no one holds.
    assert monitoring["poll_interval_seconds"] + monitoring["free_slots_after_run_end_seconds"] <= 6
    assert monitoring["cancel_timeout_seconds"] > SECONDS_TO_STOP


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_the_library_does_not_know_dagster_and_assets_have_eager_annotations() -> None:
    for path in (REPOSITORY / "geokr_core").rglob("*.py"):
        assert not {
            name for name in _imports(path) if name.split(".")[0] in {"dagster", "dagster_pipes", "geokr_assets"}
        }, path
    for path in (REPOSITORY / "geokr_assets").rglob("*.py"):
        assert "__future__.annotations" not in _imports(path), path
