"""Scenes named ``TOYSAT_20210701_….tif``; green comes before red."""

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


TOYSAT = Toysat()
