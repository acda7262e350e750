"""Each change that CONTRIBUTING.md explains is made here in a copy of the project, by the files it names, and works.

All changes are made in one copy, so that the tests that they bring run in one process. Each must touch the files that
CONTRIBUTING.md lists for it, and no others.
"""

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
COPIED = (
    "geokr_core",
    "geokr_assets",
    "tests",
    "docs",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "pyproject.toml",
    "params.yaml",
)


class Copy:
    """The project in another folder. It remembers which files were touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.touched: set[str] = set()
        for name in COPIED:
            source = PROJECT / name
            if source.is_dir():
                shutil.copytree(
                    source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "images", "results")
                )
            else:
                shutil.copy(source, folder / name)

    def add(self, path: str, text: str) -> None:
        assert not (self.folder / path).exists(), path
        self._write(path, text)

    def append(self, path: str, text: str) -> None:
        self._write(path, self.read(path) + text)

    def insert(self, path: str, after: str, text: str) -> None:
        self.replace(path, after, after + text)

    def replace(self, path: str, old: str, new: str) -> None:
        before = self.read(path)
        assert before.count(old) == 1, f"{path}: {before.count(old)} times {old!r}"
        self._write(path, before.replace(old, new))

    def read(self, path: str) -> str:
        return (self.folder / path).read_text(encoding="utf-8")

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python on the copy."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", **environment}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def _write(self, path: str, text: str) -> None:
        (self.folder / path).write_text(text, encoding="utf-8")
        self.touched.add(path)


LEGEND = """
name: Toy cover
licence: public domain
source: made up
crs: WGS 84
resolution_m: 10
editions: [2021]
tile_name: '^toy_(?P<year>\\d{4})'
nodata: [0]
sea: []
classes:
  - {code: 1, name: crops, colour: "#E49635", common: cultivated_land}
  - {code: 2, name: trees, colour: "#397D49", common: forest}
  - {code: 3, name: grass, colour: "#88B053", common: grassland}
  - {code: 4, name: marsh, colour: "#7A87C6", common: wetland}
  - {code: 5, name: water, colour: "#419BDF", common: water}
  - {code: 6, name: town, colour: "#C4281B", common: artificial_surfaces}
  - {code: 7, name: rock, colour: "#A59B8F", common: bareland}
  - {code: 8, name: snow, colour: "#A8EBFF", common: snow_ice}
"""

SCENE_PRODUCT = '''"""Toysat: ``TOYSAT_20200701_….tif``; green before red."""

from pathlib import Path, PurePosixPath

from geokr_core.scenes.products.product import Description, SceneProduct, iso_date


class Toysat(SceneProduct):
    """One file a scene, three bands."""

    def claims(self, path: str) -> bool:
        """By the name's beginning."""
        return PurePosixPath(path).name.startswith("TOYSAT_")

    def describe(self, folder: Path, path: str, wanted: tuple[str, ...] | None) -> Description:
        """Read the name."""
        name = PurePosixPath(path).stem
        acquired = iso_date(name.split("_")[1], f"its name {name}")
        return Description((path,), wanted or ("green", "red", "nir"), name, "Toysat", acquired)


PRODUCT = Toysat()
'''

TASK = '''"""A kind of task: the share of features that tell black images from white ones."""

from collections.abc import Mapping, Sequence

import torch

from geokr_core.evaluation.cells import RGB, Cell, Measurement, Score, Start
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.task_kinds import TaskConfig
from geokr_core.networks.network import build


class Contrast:
    """Two images, black and white."""

    budget: Mapping[str, object] = {}
    notes: Sequence[str] = ()
    bands = RGB
    data_version = "0" * 32

    def __init__(self, task: TaskConfig, evaluation: EvaluationConfig) -> None:
        """Nothing is read."""
        self.name = task.name

    def settings(self, cell: Cell) -> Mapping[str, object]:
        """None."""
        return {}

    def require(self, cell: Cell) -> None:
        """Every cell can be measured."""

    def measure(self, cell: Cell, start: Start) -> Measurement:
        """Compare the features."""
        torch.manual_seed(start.seed)
        with torch.inference_mode():
            black, white = build(start.architecture, 3).eval()(torch.tensor([0.0, 1.0])[:, None, None, None].expand(-1, 3, 64, 64))
        share = float((black != white).float().mean())
        return Measurement((Score("contrast", share, share, share),), 2, 1.0, ("black", "white"), ())
'''

TASK_TEST = '''"""The kind contrast."""

from pathlib import Path

from geokr_core.evaluation.cells import Cell, Start
from geokr_core.evaluation.config import EvaluationConfig
from geokr_core.evaluation.opening import open_task


def test_contrast(tmp_path: Path) -> None:
    config = EvaluationConfig.model_validate({"folder": tmp_path, "tasks": [{"name": "two", "kind": "contrast"}]})
    task = open_task(config.tasks[0], config)
    start = Start("random", 0, "squeezenet1_1", None, (0.5,) * 3, (0.2,) * 3)
    (score,) = task.measure(Cell("two", "random", "fine_tune", "last", "all", 0), start).scores
    assert score.metric == "contrast"
    assert score.value > 0.5
'''


def a_land_cover_product(copy: Copy) -> None:
    tests = "tests/land_cover/test_legend.py"
    copy.add("geokr_core/land_cover/legends/toy.yaml", LEGEND)
    copy.insert(tests, "PUBLISHED = {\n", '    "toy": {1: "cultivated_land", 2: "forest"},\n')
    copy.insert(tests, "NAMES = {\n", '    "toy": {"toy_2021.tif": 2021},\n')
    copy.insert(
        "docs/land-cover.md", "|---|---|---|---|---|\n", "| `toy` | Toy cover | 10 m | `toy_2021.tif` | public |\n"
    )


def a_scene_product(copy: Copy) -> None:
    tests = "tests/scenes/test_products.py"
    copy.add("geokr_core/scenes/products/toysat.py", SCENE_PRODUCT)
    copy.insert(
        "geokr_core/scenes/products/families.py",
        "FAMILIES: Final[Mapping[str, str]] = {\n",
        '    "toysat": "geokr_core.scenes.products.toysat",\n',
    )
    copy.append(
        tests,
        "\n\ndef test_toysat(tmp_path: Path) -> None:\n"
        '    write_raster(tmp_path / "in/TOYSAT_20200701_a.tif", BGRN[:3], "EPSG:32648", UTM)\n'
        "    (scene,) = inventory(tmp_path).values()\n"
        '    assert (scene.product, scene.acquired, scene.bands) == ("toysat", "2020-07-01", ("green", "red", "nir"))\n',
    )
    copy.append("docs/scenes.md", "\n### Toysat (`toysat`)\n\nGreen, red, nir.\n")


def a_downstream_task(copy: Copy) -> None:
    copy.add("geokr_core/evaluation/tasks/contrast.py", TASK)
    copy.insert(
        "geokr_core/evaluation/task_kinds.py",
        "KINDS: Final[Mapping[str, TaskKind]] = {\n",
        '    "contrast": TaskKind(\n'
        '        "geokr_core.evaluation.tasks.contrast:Contrast", TaskConfig, (Metric("contrast", "share of features"),)\n'
        "    ),\n",
    )
    copy.add("tests/evaluation/tasks/test_contrast.py", TASK_TEST)
    copy.insert("docs/tasks.md", "the first one decides |\n|---|---|---|\n", "| `contrast` | nothing | `contrast` |\n")


def a_backbone(copy: Copy) -> None:
    copy.insert(
        "geokr_core/networks/architectures.py",
        '        _resnet("resnet101", (256, 512, 1024, 2048), "resnet101-cd907fc2.pth"),\n',
        '        _resnet("resnext50_32x4d", (256, 512, 1024, 2048), "resnext50_32x4d-1a0047aa.pth"),\n',
    )


def a_metric(copy: Copy) -> None:
    task = "geokr_core/evaluation/tasks/scene_classification.py"
    copy.insert(
        task,
        "*macro_f1_interval(truth, predicted, len(indices), seed),\n        )\n",
        "        recall = float(np.mean(table.diagonal() / table.sum(axis=1)))\n"
        '        mean_recall = Score("mean_recall", recall, recall, recall)\n',
    )
    copy.replace(task, "scores=(accuracy, macro_f1)", "scores=(accuracy, macro_f1, mean_recall)")
    f1 = 'Metric("macro_f1", "macro-averaged F1")'
    copy.replace(
        "geokr_core/evaluation/task_kinds.py", f1, f1 + ', Metric("mean_recall", "recall averaged over classes")'
    )
    copy.append(
        "tests/evaluation/tasks/test_scene_classification.py",
        "\n\ndef test_recall_is_averaged_over_classes(tmp_path: Path) -> None:\n"
        '    task = opened(make_image_set(tmp_path / "set", classes=("a", "b"), images_per_class=8))\n'
        "    found = task._score(np.array([0, 0, 0, 1, 1, 1, 0, 0]), label_fraction=0.25, seed=0)\n"
        '    assert {s.metric: s.value for s in found.scores}["mean_recall"] == (3 / 4 + 2 / 4) / 2\n',
    )
    copy.replace("docs/tasks.md", "`accuracy`, `macro_f1`;", "`accuracy`, `macro_f1`, `mean_recall`;")


def an_executor(copy: Copy) -> None:
    copy.insert(
        "geokr_assets/executors.py",
        "_ELSEWHERE: Mapping[str, tuple[str, str, str]] = {\n",
        '    "toy": ("dagster_toy", "toy_executor", "dagster-toy"),\n',
    )
    copy.insert(
        "docs/scale-out.md", "a step runs | needs |\n| --- | --- | --- |\n", "| `toy` | in a toy | `dagster-toy` |\n"
    )


def a_report_section(copy: Copy) -> None:
    copy.append(
        "geokr_core/report/sections.py",
        '\n\ndef scene_names(levir_kr: LevirKR) -> list[str]:\n    """The scenes that chips are of."""\n'
        '    return sorted(levir_kr.catalogue["scene_id"].astype(str).unique())\n',
    )
    page = "geokr_core/report/page.py"
    copy.insert(page, "    run_row,\n", "    scene_names,\n")
    copy.insert(page, '        "title": config.title,\n', '        "scenes": scene_names(pieces.levir_kr),\n')
    copy.insert(page, '    ("levir-kr", "Levir-KR", None),\n', '    ("scenes", "Scenes", None),\n')
    for suffix, before, heading in (
        ("html", '<h2 id="provenance">Provenance</h2>\n', '<h2 id="scenes">Scenes</h2>'),
        ("md", "## Provenance\n", "## Scenes"),
    ):
        text = f"{heading}\n\n{{{{ scenes | join(', ') }}}}\n\n{before}"
        copy.replace(f"geokr_core/report/templates/report.{suffix}.j2", before, text)
    copy.append(
        "tests/report/test_page.py",
        "\n\ndef test_scenes_are_named(page: Path) -> None:\n"
        '    assert ">Scenes</h2>\\n\\nscene0, scene1" in (page / "report.html").read_text()\n'
        '    assert "## Scenes\\n\\nscene0, scene1" in (page / "report.md").read_text()\n',
    )


def a_threshold(copy: Copy) -> None:
    copy.insert(
        "geokr_core/levir_kr/config.py",
        '    """Which chips enter the frozen data set, and how it is split."""\n',
        '\n    min_chips: int = Field(1, ge=1, description="with fewer chips there is no data set")\n',
    )
    copy.insert(
        "geokr_core/levir_kr/freeze.py",
        "def _check_split(config: LevirKRConfig, catalogue: pd.DataFrame, reporter: Reporter) -> None:\n",
        "    if len(catalogue) < config.min_chips:\n"
        '        raise DatasetError(f"{len(catalogue)} chips; `levir_kr.min_chips` asks for {config.min_chips}.")\n',
    )
    copy.append(
        "tests/levir_kr/test_freeze.py",
        "\n\ndef test_few_chips_are_no_data_set(tmp_path: Path) -> None:\n"
        "    make_levir_kr(tmp_path, num_chips=30)\n"
        '    with pytest.raises(DatasetError, match="30 chips; .* asks for 31"):\n'
        "        refreeze(tmp_path, min_chips=31)\n",
    )


OBJECTIVE = '''"""Land cover, with a term that keeps predictions from being too sure."""

import torch
from torch import Tensor

from geokr_core.pretraining.network import Network
from geokr_core.pretraining.objective import Forward, Inputs, Objective
from geokr_core.pretraining.recipe import Recipe


class ModestObjective(Objective):
    """Cross entropy with the proportions, minus a tenth of the prediction's entropy."""

    terms = ("loss", "entropy")

    def __init__(self, recipe: Recipe, device: torch.device, *, distributed: bool = False) -> None:
        """Nothing to set up."""

    def losses(self, network: Network, student: Forward, teacher: Forward, inputs: Inputs, step: int) -> Tensor:
        """See `Objective.losses`."""
        log = student(inputs.student).logits.float().log_softmax(dim=1)
        entropy = -(log.exp() * log).sum(dim=1).mean()
        return torch.stack([-(inputs.labels * log).sum(dim=1).mean() - 0.1 * entropy, entropy])
'''


def a_method(copy: Copy) -> None:
    copy.add("geokr_core/pretraining/objectives/modest.py", OBJECTIVE)
    copy.insert(
        "geokr_core/pretraining/recipe.py",
        "OBJECTIVES: Final[Mapping[str, ObjectiveKind]] = {\n",
        '    "modest": ObjectiveKind("geokr_core.pretraining.objectives.modest:ModestObjective", True),\n',
    )
    copy.insert(
        "geokr_core/pretraining/recipes.py",
        "METHODS: Final[Mapping[str, Method]] = {\n",
        '    "modest": Method("Land cover, never too sure.", required={"objective": "modest", "consistency": "none"}),\n',
    )
    copy.append(
        "tests/pretraining/test_recipes.py",
        "\n\ndef test_modest_is_trained(tmp_path: Path) -> None:\n"
        "    from geokr_core.pretraining.pretrain import pretrain\n"
        "    from geokr_core.testing import make_levir_kr\n\n"
        '    config = PretrainingConfig(architecture="squeezenet1_1", steps=2, batch_size=8, variants=("geokr", "modest"))\n'
        '    pretrain(config, make_levir_kr(tmp_path, num_chips=32).folder, tmp_path / "out", tmp_path / "kept")\n'
        '    assert "entropy" in (tmp_path / "out/history.csv").read_text().splitlines()[0].split(",")\n',
    )
    copy.replace(
        "docs/pretraining.md",
        "| --- | --- | --- |\n| `geokr`",
        "| --- | --- | --- |\n| `modest` | land cover | |\n| `geokr`",
    )


def a_bundle_format(copy: Copy) -> None:
    loader, tests = "geokr_core/backbone/loader/geokr_backbone.py", "tests/backbone/test_bundle.py"
    copy.replace("geokr_core/backbone/bundle.py", "FORMAT_VERSION: Final = 2", "FORMAT_VERSION: Final = 3")
    num_chips = '        "num_chips": int(manifest["num_chips"]),\n'
    copy.insert("geokr_core/backbone/build.py", num_chips, num_chips.replace("num_chips", "num_scenes"))
    copy.replace(loader, "FORMAT_VERSIONS = (1, 2)", "FORMAT_VERSIONS = (1, 2, 3)")
    copy.replace(loader, "    return dict(description)\n", '    return {"num_scenes": None, **description}\n')
    copy.append(
        tests,
        "\n\ndef test_format_3_counts_scenes_and_format_2_opens(small: Path, tmp_path: Path) -> None:\n"
        '    assert geokr_backbone.describe(small)["num_scenes"] > 0\n'
        '    folder = shutil.copytree(small, tmp_path / "b")\n'
        '    old = {k: v for k, v in read_json(folder / "backbone.json").items() if k != "num_scenes"} | {"format_version": 2}\n'
        "    digest = geokr_backbone.description_digest(old)\n"
        '    write_json(folder / "backbone.json", {**old, "description_sha256": digest})\n'
        "    assert open_bundle(folder).bands == open_bundle(small).bands\n"
        '    assert geokr_backbone.describe(folder)["num_scenes"] is None\n',
    )
    copy.insert(
        "CHANGELOG.md",
        "### Added\n",
        "\n- Bundles of format 3 count their scenes; those of formats 1 and 2 still open.\n",
    )


@dataclass(frozen=True)
class Change:
    """A change of CONTRIBUTING.md.

    Attributes:
        heading: under which it stands there.
        make: makes it.
        tests: file of the copy -> what names the tests there that show it at work.
        names: what stands for ``<name>`` and the like in the paths listed.
        has_parameters: whether `make reference` belongs to it.
    """

    heading: str
    make: Callable[[Copy], None]
    tests: dict[str, str]
    names: dict[str, str]
    has_parameters: bool = False


DOCUMENTS = "tests/project/test_documents.py"
CHANGES = {
    change.heading: change
    for change in (
        Change(
            "A land-cover product",
            a_land_cover_product,
            {"tests/land_cover/test_legend.py": "toy]", DOCUMENTS: "documented[legends]"},
            {"name": "toy"},
        ),
        Change(
            "A sensor (scene product)",
            a_scene_product,
            {"tests/scenes/test_products.py": "test_toysat", DOCUMENTS: "documented[scene_products]"},
            {"name": "toysat"},
        ),
        Change(
            "A downstream task",
            a_downstream_task,
            {"tests/evaluation/tasks/test_contrast.py": "test_contrast", DOCUMENTS: "documented[tasks]"},
            {"kind": "contrast"},
            has_parameters=True,
        ),
        Change(
            "A backbone (architecture)",
            a_backbone,
            {"tests/networks/test_network.py": "resnext50_32x4d]"},
            {},
            has_parameters=True,
        ),
        Change(
            "A pretraining method",
            a_method,
            {"tests/pretraining/test_recipes.py": "test_modest_is", DOCUMENTS: "documented[methods]"},
            {"name": "modest"},
        ),
        Change(
            "A metric",
            a_metric,
            {"tests/evaluation/tasks/test_scene_classification.py": "test_recall_is", DOCUMENTS: "documented[metrics]"},
            {"kind": "scene_classification"},
        ),
        Change("A bundle format", a_bundle_format, {"tests/backbone/test_bundle.py": "test_format_3"}, {}),
        Change(
            "An executor",
            an_executor,
            {"tests/assets/test_executors.py": "what_to_install[toy]", DOCUMENTS: "documented[executors]"},
            {},
        ),
        Change("A report section", a_report_section, {"tests/report/test_page.py": "test_scenes_are_named"}, {}),
        Change(
            "A threshold",
            a_threshold,
            {"tests/levir_kr/test_freeze.py": "few_chips", "tests/chain/test_params.py": "reference_of_parameters"},
            {"step": "levir_kr", "module": "freeze"},
            has_parameters=True,
        ),
    )
}


@dataclass(frozen=True)
class Made:
    """What came out: files touched by each change, and tests of the copy with what went wrong in each."""

    touched: dict[str, set[str]]
    tests: dict[tuple[str, str], str]
    output: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("contributing") / "project"
    folder.mkdir()
    copy, touched = Copy(folder), {}
    for change in CHANGES.values():
        copy.touched = {"docs/parameters.md"} if change.has_parameters else set()
        change.make(copy)
        touched[change.heading] = copy.touched
    written = copy.python("-m", "geokr_core.cli", "parameters")
    assert written.returncode == 0, written.stderr[-4000:]
    (folder / "docs/parameters.md").write_text(written.stdout, encoding="utf-8")
    files = sorted({name for change in CHANGES.values() for name in change.tests})
    chosen = [re.sub(r"\W+", " and ", part.strip("]")) for change in CHANGES.values() for part in change.tests.values()]
    done = copy.python(
        *("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--junitxml", "tests.xml", *files),
        *("-k", " or ".join(f"({name})" for name in chosen)),
    )
    cases = ET.parse(folder / "tests.xml").iter("testcase")  # noqa: S314  # pytest's own file
    return Made(
        touched,
        {
            (case.get("classname", "").replace(".", "/") + ".py", case.get("name", "")): "".join(
                part.text or "" for part in case if part.tag in ("failure", "error", "skipped")
            )
            for case in cases
        },
        done.stdout[-4000:] + done.stderr[-4000:],
    )


@pytest.mark.parametrize("heading", CHANGES)
def test_a_change_touches_the_files_that_are_listed_and_works(heading: str, made: Made) -> None:
    change = CHANGES[heading]
    recipe = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8").split(f"\n### {heading}\n")[1].split("\n#")[0]
    listed = {
        re.sub(r"<(\w+)>", lambda found: change.names[found[1]], path)
        for line in re.findall(r"^\d+\. (`[^:]*):", recipe, re.MULTILINE)
        for path in re.findall(r"`(.+?)`", line)
    }
    assert made.touched[heading] == listed
    for file, part in change.tests.items():
        ran = {name: wrong for (where, name), wrong in made.tests.items() if where == file and part in name}
        assert ran, made.output
        assert not any(ran.values()), ran


def test_all_ten_changes_are_made() -> None:
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("\n## Ten changes\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^### (.*)$", section, re.MULTILINE)) == set(CHANGES)
