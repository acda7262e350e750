"""The table of scene products: what can be named, and a family that another package brings."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from pydantic import ValidationError

from geokr_core.errors import ConfigError
from geokr_core.scenes.config import SceneCollection, ScenesConfig
from geokr_core.scenes.inventory import take_inventory, usable_scenes
from geokr_core.scenes.products.families import FAMILIES, family, family_names, recognise
from geokr_core.scenes.products.product import SceneProduct
from geokr_core.scenes.reader import open_scene
from geokr_core.step.plugins import plugins
from geokr_core.step.reporter import RecordingReporter
from geokr_core.testing import write_raster

UTM = Affine(3, 0, 500000, 0, -3, 3300000)

TOY = """
import numpy as np
from geokr_core.scenes.products.product import Description, SceneProduct


class Dove(SceneProduct):
    def claims(self, path):
        return path.endswith("_AnalyticMS.tif")

    def describe(self, folder, path, wanted):
        return Description(
            (path,), wanted or ("blue", "green", "red", "nir"), product_id=path.split("_")[0], sensor="DOVE",
            acquired="2021-05-04", cloud_mask=path.replace("AnalyticMS", "udm2"), scales=(1e-4,) * 4, offsets=(0.0,) * 4,
        )

    def is_cloud(self, values):
        return values == 6


PRODUCT = Dove()
NO_PRODUCT = Dove
"""


@pytest.fixture
def toy_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with entry points, as pip leaves it; its list of entry points."""
    site = tmp_path / "site"
    (site / "dove-1.dist-info").mkdir(parents=True)
    (site / "toy_dove.py").write_text(TOY)
    (site / "dove-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: dove\nVersion: 1\n")
    listed = site / "dove-1.dist-info" / "entry_points.txt"
    listed.write_text("[geokr.scene_products]\ndove = toy_dove:PRODUCT\nnaip = toy_dove:PRODUCT\n")
    monkeypatch.syspath_prepend(site)
    plugins.cache_clear()
    yield listed
    plugins.cache_clear()
    family.cache_clear()


def collection(**more: object) -> dict[str, object]:
    return {"name": "c", "files": "*_AnalyticMS.tif", "land_cover": "gl", **more}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_named_and_is_what_the_table_says(name: str) -> None:
    assert SceneCollection(**collection(product=name)).product == name
    assert isinstance(family(name), SceneProduct)


def test_an_unknown_family_is_refused_with_the_one_that_may_be_meant() -> None:
    with pytest.raises(
        ValidationError, match=r"no scene product 'sentinel-2'; did you mean 'sentinel2'\? Known: auto,"
    ):
        SceneCollection(**collection(product="sentinel-2"))


def test_band_files_and_a_product_that_finds_its_own_exclude_each_other() -> None:
    files = {"files": "*_{band}.tif", "band_files": ("r",), "bands": ("red",)}
    with pytest.raises(ValidationError, match="`product: landsat_c2` finds its band files itself"):
        SceneCollection(**collection(product="landsat_c2", **files))
    assert SceneCollection(**collection(product="gaofen", **files)).band_files == ("r",)


@pytest.mark.usefixtures("toy_package")
@pytest.mark.parametrize("product", ["auto", "dove"])
def test_a_family_of_another_package_is_recognised_read_and_masked(tmp_path: Path, product: str) -> None:
    assert family_names()[-1] == "dove"
    assert recognise("m_3907833_nw_17_1_20130712.tif", "auto") == "naip"
    assert type(family("naip")).__name__ == "Naip", "a name of our own always wins"
    pixels = np.arange(4 * 16 * 16).reshape(4, 16, 16).astype(np.uint16)
    write_raster(tmp_path / "in" / "x1_AnalyticMS.tif", pixels, "EPSG:32648", UTM)
    clouds = np.zeros((1, 16, 16), np.uint8)
    clouds[0, 2] = 6
    write_raster(tmp_path / "in" / "x1_udm2.tif", clouds, "EPSG:32648", UTM)
    config = ScenesConfig(folder=tmp_path / "in", collections=(collection(product=product),))
    take_inventory(config, tmp_path / "out", RecordingReporter())
    (scene,) = usable_scenes(tmp_path / "out").values()
    assert (scene.product, scene.sensor, scene.product_id, scene.acquired) == ("dove", "DOVE", "x1", "2021-05-04")
    assert (scene.bands, scene.scales) == (("blue", "green", "red", "nir"), (1e-4,) * 4)
    with open_scene(tmp_path / "in", scene, ["red"]) as reader:
        np.testing.assert_array_equal(reader.read(0, 16)[0][0], pixels[2])
        assert reader.read_cloud(0, 16).any(axis=1).nonzero()[0].tolist() == [2]


def test_an_entry_point_that_names_something_else_is_refused(toy_package: Path) -> None:
    toy_package.write_text("[geokr.scene_products]\nwrong = toy_dove:NO_PRODUCT\n")
    with pytest.raises(ConfigError, match="'wrong' is a ABCMeta, expected an instance of SceneProduct"):
        family("wrong")
