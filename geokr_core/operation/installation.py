"""Checks of what is installed: Python, packages, extras, the GPU and GDAL. No project and no server is looked at."""

import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from geokr_core import __version__
from geokr_core.chain.params import Params
from geokr_core.chain.steps import steps_of
from geokr_core.operation.diagnosis import Diagnosis, failure, ok, warning
from geokr_core.step.extras import lacking

DISTRIBUTION: Final = "geokr"
_EXTRAS: Final = ("dagster", "mlflow", "dvc", "evaluate")
_VERSIONS: Final = ("torch", "rasterio", "mlflow", "dagster", "dvc")
_EPSG_OF_UTM: Final = 32650


def python() -> Iterator[Diagnosis]:
    """Whether this Python is one that the release is made for."""
    found = ".".join(map(str, sys.version_info[:3]))
    asked = metadata.metadata(DISTRIBUTION)["Requires-Python"]
    if found not in SpecifierSet(asked, prereleases=True):
        yield failure("python", f"{found}, expected {asked}", "Make the environment anew with such a Python.")
    else:
        yield ok("python", f"{found} ({sys.executable})")


def versions() -> Iterator[Diagnosis]:
    """Which releases are at work."""
    import pyproj
    import rasterio

    found = {"geokr": __version__, **{name: version for name in _VERSIONS if (version := _version(name)) is not None}}
    found |= {"GDAL": rasterio.__gdal_version__, "PROJ": pyproj.proj_version_str}
    yield ok("versions", ", ".join(f"{name} {version}" for name, version in found.items()))


def packages() -> Iterator[Diagnosis]:
    """Whether every package that the core needs is there, in a release that it takes."""
    wrong = [fault for line in metadata.requires(DISTRIBUTION) or () if (fault := _fault(Requirement(line)))]
    if wrong:
        yield failure("packages", "; ".join(wrong), f"pip install --upgrade '{DISTRIBUTION}', or `make setup`.")
    else:
        yield ok("packages", "all that the core needs is installed")


def _fault(requirement: Requirement) -> str:
    """What is wrong with a package; empty where it fits, and for packages of extras that are not installed."""
    version, extra = _version(requirement.name), ""
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
        of_extra = any(requirement.marker.evaluate({"extra": name}) for name in _EXTRAS)
        if version is None or not of_extra:
            return ""
    if version is None:
        return f"{requirement.name} is not installed"
    fits = requirement.specifier.contains(version, prereleases=True)
    return "" if fits else f"{requirement.name} {version} is installed, expected {requirement.specifier}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def extras(params: Params | None) -> Iterator[Diagnosis]:
    """Which extras are missing: a failure where a step of the parameter file needs one.

    Args:
        params: the parameter file; None where it cannot be read.
    """
    asked: Mapping[str, list[str]] = {
        extra: [step.name for step in steps_of(params) if extra in step.extras] if params is not None else []
        for extra in _EXTRAS
    }
    missing = {extra: lack for extra in _EXTRAS if (lack := lacking(extra))}
    for extra, lack in missing.items():
        install = f"pip install '{DISTRIBUTION}[{extra}]'."
        if asked[extra]:
            yield failure("extras", f"{lack}; needed by {', '.join(asked[extra])}", install)
        else:
            yield warning("extras", lack, f"{install[:-1]}, if you want what it brings.")
    if not missing:
        yield ok("extras", ", ".join(_EXTRAS))


def gpu(params: Params | None) -> Iterator[Diagnosis]:
    """Whether there is a GPU, and whether a section asks for one that is not there.

    Args:
        params: the parameter file; None where it cannot be read.
    """
    import torch

    sections = {} if params is None else {name: getattr(params, name) for name in ("pretraining", "evaluation")}
    if params is not None:
        sections["embeddings"] = params.embeddings
    asking = [name for name, section in sections.items() if section is not None and section.device == "cuda"]
    if torch.cuda.is_available():
        yield ok("gpu", ", ".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())))
    elif asking:
        keys = ", ".join(f"{name}.device" for name in asking)
        yield failure(
            "gpu", f"none, but {keys} asks for `cuda`", f"Check the driver (`nvidia-smi`), or set {keys} to `auto`."
        )
    else:
        yield ok("gpu", "none; training and evaluation run on the CPU")


def gdal() -> Iterator[Diagnosis]:
    """Whether GDAL reads the formats of scenes and land cover, and PROJ finds its database."""
    import rasterio
    from pyproj import CRS

    from geokr_core.rasters.open_raster import DRIVERS

    with rasterio.Env() as environment:
        there = environment.drivers()
    missing = sorted({driver for driver in DRIVERS.values() if driver not in there})
    if missing:
        yield failure(
            "gdal",
            f"GDAL {rasterio.__gdal_version__} without {', '.join(missing)}",
            "Unset GDAL_SKIP and GDAL_DRIVER_PATH; install rasterio from its wheel, which has all of them.",
        )
    try:
        CRS.from_epsg(_EPSG_OF_UTM)
        rasterio.crs.CRS.from_epsg(_EPSG_OF_UTM).to_wkt()
    except Exception as error:  # noqa: BLE001  # PROJ and GDAL raise errors of several libraries here
        yield failure(
            "gdal",
            f"PROJ does not know EPSG:{_EPSG_OF_UTM}: {error}",
            "Unset PROJ_DATA, PROJ_LIB and GDAL_DATA: they name the files of another installation.",
        )
        return
    if not missing:
        yield ok("gdal", f"GDAL {rasterio.__gdal_version__} with {', '.join(sorted(set(DRIVERS.values())))}")
