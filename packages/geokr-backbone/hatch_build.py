"""Puts the loader, whose one source lies in the project's tree, and the licence into the distribution."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_LOADER, _LICENCE = "geokr_backbone.py", "LICENSE"


class LoaderFromTheTree(BuildHookInterface):
    """Takes both files from the project's tree; in an unpacked source distribution they lie beside this file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to what is built."""
        here = Path(self.root)
        if (here / _LOADER).is_file():
            build_data["force_include"][str(here / _LOADER)] = _LOADER
            return
        project = here.parents[1]
        build_data["force_include"][str(project / "geokr_core" / "backbone" / "loader" / _LOADER)] = _LOADER
        if self.target_name == "sdist":
            build_data["force_include"][str(project / _LICENCE)] = _LICENCE
        else:
            build_data["extra_metadata"][str(project / _LICENCE)] = _LICENCE
