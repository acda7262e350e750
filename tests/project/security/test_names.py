"""Names of files that mean harm: they are text in Dagster, in the quarantine and in the registry, and nothing else."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from markdown_it import MarkdownIt

from geokr_assets import metadata
from geokr_assets.partitions import SCENES_NAME
from geokr_core.chain.params import Params, load_params
from geokr_core.chain.run import Outcome, run_step
from geokr_core.chain.steps import Folders
from geokr_core.errors import RegistryError
from geokr_core.scenes.inventory import read_inventory
from geokr_core.scenes.quarantine import markdown, quarantined
from geokr_core.step.found_files import readable_id
from geokr_core.step.markdown import plain
from geokr_core.step.reporter import RecordingReporter
from geokr_core.step.summary import Summary
from geokr_core.testing import make_small_archive

NAMES = (
    "<img src=x onerror=alert(1)>",
    "![pixel](http:evil.example)",
    "[click](javascript:alert(1))",
    "a | b | c",
    "`code` **bold**",
    "$(touch owned)",
    "; touch owned #",
    "'; DROP TABLE runs; --",
    "a...b",
    "{{ 7 * 7 }}",
    "%s %d {0}",
    "-rf",
    "\u202egnp.elif",
    "--params=x",
)


def tags(text: str) -> set[str]:
    """HTML that a Markdown reader makes of a text, one that lets HTML through."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    return {tag for tag in ("<img", "<a ", "<script", "<iframe", "<code") if tag in html}


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Params:
    """A project whose scenes bear such names; every second file is no raster."""
    params = load_params(make_small_archive(tmp_path_factory.mktemp("hostile"), num_scenes=2))
    whole = (params.scenes.folder / "scene_0001.tif").read_bytes()
    for number, name in enumerate(NAMES):
        (params.scenes.folder / f"{name}.tif").write_bytes(whole if number % 2 else f"no raster: {name}".encode())
    for step in ("scenes", "chips"):
        run_step(step, params, RecordingReporter())
    return params


def test_scene_ids_are_file_names_and_partitions_of_dagster(params: Params) -> None:
    scene_ids = sorted({str(scene_id) for scene_id in read_inventory(Folders(params)["scenes"])["scene_id"]})
    assert all(scene_id and Path(scene_id).name == scene_id and scene_id.isprintable() for scene_id in scene_ids)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(SCENES_NAME, scene_ids)
        assert sorted(instance.get_dynamic_partitions(SCENES_NAME)) == scene_ids


@pytest.mark.parametrize("name", ["a...b", "a....b/c", "…a...b"])
def test_three_dots_which_dagster_takes_for_a_range_are_in_no_id(name: str) -> None:
    assert "..." not in readable_id(name)
    assert readable_id("a..b") == "a..b"


def test_what_is_shown_as_markdown_is_text(params: Params) -> None:
    folders = Folders(params)
    rows = quarantined(folders["scenes"], folders["chips"])
    assert len(rows) >= len(NAMES) // 2
    assert tags(markdown(rows, max_rows=100)) == set()
    warnings = [*NAMES, *(row["reason"] for row in rows), "from a file: ![x](http://evil.example/a.png) <b>"]
    entry = metadata.of_outcome(_outcome(params, Summary({}, warnings=warnings)))["warnings"]
    assert tags(str(entry["raw_value"])) == set()


def _outcome(params: Params, summary: Summary) -> Outcome:
    return Outcome("scenes", params.store, "v", summary, was_current=False)


@pytest.mark.parametrize("text", [*NAMES, "two\n\n# lines", "\\[a\\](b)", "&lt;img&gt;"])
def test_plain_text_reads_as_it_was_written(text: str) -> None:
    shown = MarkdownIt("commonmark", {"html": True}).renderInline(plain(text))
    words = " ".join(text.split())
    unescaped = shown.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
    for mark in ("<strong>", "</strong>", "**"):
        unescaped, words = unescaped.replace(mark, ""), words.replace(mark, "")
    assert unescaped == words
    assert tags(plain(text)) == set()


def test_no_name_is_run_by_a_shell_or_a_template(params: Params) -> None:
    """The names were there while two steps ran, in this process and in those that it started."""
    done = subprocess.run(
        [sys.executable, "-m", "geokr_core.cli", "quarantine", "--params", str(params.path)],
        cwd=params.scenes.folder.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "49" not in done.stdout.replace("{{ 7 * 7 }}", "")
    assert not list(params.scenes.folder.parent.rglob("owned"))


@pytest.mark.parametrize(
    "reference", ["a' or '1'='1@champion", "tiny@cham'pion", "../../etc@champion", "tiny/1; DROP", ""]
)
def test_a_reference_that_is_no_name_is_refused_in_words(reference: str, tmp_path: Path, empty_database: Path) -> None:
    import shutil

    from geokr_core.registry.versions import download

    shutil.copy(empty_database, tmp_path / "mlflow.db")  # where MLFLOW_TRACKING_URI points
    with pytest.raises(RegistryError):
        download(reference, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a/b", "a@b", "<img>", "a:b", "a b", ""])
def test_a_model_is_named_in_letters_digits_dots_and_dashes(name: str, params: Params) -> None:
    from geokr_core.errors import ConfigError

    with pytest.raises(ConfigError, match="model_name"):
        load_params(params.path, [f"backbone.model_name={name!r}"])
