"""Each change that CONTRIBUTING.md explains is made here in a copy of the project, by the files it names, and works."""

from typing import Any

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


def test_a_land_cover_product(project_copy: Any) -> None:
    copy, tests = project_copy, "tests/land_cover/test_legend.py"
    copy.add("geokr_core/land_cover/legends/toy.yaml", LEGEND)
    copy.insert(tests, "PUBLISHED = {\n", '    "toy": {1: "cultivated_land", 2: "forest"},\n')
    copy.insert(tests, "NAMES = {\n", '    "toy": {"toy_2021.tif": 2021},\n')
    copy.insert(
        "docs/land-cover.md", "|---|---|---|---|---|\n", "| `toy` | Toy cover | 10 m | `toy_2021.tif` | public |\n"
    )

    assert "passed" in copy.test(tests, "-k", "toy")
    copy.only_touched("A land-cover product", name="toy")


def test_an_executor(project_copy: Any) -> None:
    copy = project_copy
    copy.insert(
        "geokr_assets/executors.py",
        "_ELSEWHERE: Mapping[str, tuple[str, str, str]] = {\n",
        '    "toy": ("dagster_toy", "toy_executor", "dagster-toy"),\n',
    )
    copy.insert(
        "docs/scale-out.md", "a step runs | needs |\n| --- | --- | --- |\n", "| `toy` | in a toy | `dagster-toy` |\n"
    )
    copy.only_touched("An executor")

    (copy.folder / "dagster_toy.py").write_text("from dagster import multiprocess_executor as toy_executor\n")
    ask = "from geokr_assets import executors; print(executors.__file__, executors.configured_executor().name)"
    said = copy.python("-c", ask, GEOKR_EXECUTOR="toy").split()
    assert said == [str(copy.folder / "geokr_assets/executors.py"), "multiprocess"]


def test_a_threshold(project_copy: Any) -> None:
    copy = project_copy
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
    copy.write_parameters()

    copy.test("tests/levir_kr/test_freeze.py", "-k", "few_chips")
    assert "| `min_chips` | `1` | with fewer chips there is no data set |" in copy.read("docs/parameters.md")
    copy.only_touched("A threshold", step="levir_kr", module="freeze")


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


def test_a_scene_product(project_copy: Any) -> None:
    copy, tests = project_copy, "tests/scenes/test_products.py"
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

    copy.test(tests, "tests/project/test_documents.py", "-k", "toysat or scene_products")
    copy.only_touched("A sensor (scene product)", name="toysat")
