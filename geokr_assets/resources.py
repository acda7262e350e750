"""Resources and run configuration: the parameter file, and what can be set for one step. Pipes is Dagster's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from geokr_core.chain.params import Params, load_params, params_path
from geokr_core.chain.steps import Folders

if TYPE_CHECKING:
    from geokr_core.scenes.scene import Scene


class ParamsFile(dg.ConfigurableResource):  # type: ignore[type-arg]  # dagster leaves its own parameter open
    """The parameter file of the chain, read anew by every step so that an edit counts without a reload."""

    path: str = Field(
        default="", description="Parameter file; empty means $GEOKR_PARAMS, and params.yaml where that is not set."
    )

    overrides: list[str] = Field(default=[], description="Values laid over those of the file: section.key=value.")

    def laid_over(self, overrides: list[str]) -> "ParamsFile":
        """The same file with other values laid over its own."""
        return ParamsFile(path=self.path, overrides=[*self.overrides, *overrides]) if overrides else self

    @property
    def file(self) -> Path:
        """The file that `load` reads."""
        return params_path(Path(self.path) if self.path else None)

    def load(self) -> Params:
        """Read and check the file.

        Raises:
            ConfigError: the file is missing or wrong; the message says where.
        """
        return load_params(self.file, self.overrides)

    def usable_scenes(self) -> "Mapping[str, Scene]":
        """The usable scenes of the inventory, by scene id.

        Raises:
            ConfigError: as for `load`.
            MissingInputError: the inventory has not been taken.
        """
        # A raster library: not loaded with the definitions.
        from geokr_core.scenes.inventory import usable_scenes

        return usable_scenes(Folders(self.load())["scenes"])


class StepConfig(dg.Config):
    """What can be set in the Launchpad for any one step."""

    force: bool = Field(default=False, description="Run even if the output is up to date.")
