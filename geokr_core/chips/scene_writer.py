"""Chips of one scene on their way into its shard: which are kept, and the rows that describe them."""

import numpy as np

from geokr_core.chips.config import ChipsConfig
from geokr_core.chips.quality import failures
from geokr_core.chips.rows import centres, describe_chips
from geokr_core.chips.shards import ShardWriter
from geokr_core.chips.stretch import Stretch
from geokr_core.errors import SceneRefusedError
from geokr_core.rasters.grid import unwrap_lon
from geokr_core.scenes.scene import Scene
from geokr_core.step.section import as_plain

_ROWS_A_BATCH = 1024
"""Rows of the table that are described and written at a time."""


class SceneWriter:
    """Chips of one scene on their way into its shard: which are kept, and the rows that describe them."""

    def __init__(
        self, config: ChipsConfig, scene: Scene, stretch: Stretch, shard: ShardWriter, columns: np.ndarray
    ) -> None:
        """Take how chips are cut and stretched, where they are written to, and the first column of each in a line."""
        self._config, self._scene, self._stretch, self._shard, self._columns = config, scene, stretch, shard, columns
        self._waiting: list[dict[str, np.ndarray]] = []
        self._num_described = 0
        self.dropped: dict[str, int] = {}

    def add_line(self, top: int, line: np.ndarray, quality: dict[str, np.ndarray]) -> None:
        """Keep the chips of a line that pass, and count the others by the first threshold that they fail."""
        keep = np.ones(len(self._columns), dtype=bool)
        failing = failures(self._config, quality)
        if self._scene.max_abs_latitude_deg < 90.0:
            outlines = self._outlines(np.full(len(self._columns), top), self._columns)
            failing["max_abs_latitude_deg"] = np.abs(centres(outlines)[:, 1]) > self._scene.max_abs_latitude_deg
        for name, fails in failing.items():
            if number := int((fails & keep).sum()):
                self.dropped[name] = self.dropped.get(name, 0) + number
            keep &= ~fails
        columns = self._columns[keep]
        self._shard.add_pixels(line, columns)
        rows = {"pixel_row": np.full(len(columns), top), "pixel_col": columns}
        self._waiting.append(rows | {name: values[keep] for name, values in quality.items()})
        if self._shard.num_chips - self._num_described >= _ROWS_A_BATCH:
            self._describe_waiting()

    def finish(self) -> None:
        """Write the last rows; refuse the scene if there is not one chip."""
        if not self._shard.num_chips:
            limits = {**as_plain(self._config), "max_abs_latitude_deg": self._scene.max_abs_latitude_deg}
            counts = ", ".join(f"{number} fail {name} {limits[name]:g}" for name, number in self.dropped.items())
            size = self._config.size_px
            raise SceneRefusedError(f"no chip of {size} x {size} pixels passes: {counts}")
        self._describe_waiting()
        self._shard.finish()

    def _describe_waiting(self) -> None:
        if not self._waiting:
            return
        kept = {name: np.concatenate([rows[name] for rows in self._waiting]) for name in self._waiting[0]}
        self._waiting.clear()
        number = len(kept["pixel_row"])
        rows = np.arange(self._num_described, self._num_described + number)
        outlines = self._outlines(kept["pixel_row"], kept["pixel_col"])
        self._shard.add_rows(describe_chips(self._config, self._scene, self._stretch, kept, outlines) | {"row": rows})
        self._num_described += number

    def _outlines(self, top: np.ndarray, left: np.ndarray) -> np.ndarray:
        """Closed outlines of chips in lon/lat, float64 (N, 5, 2), unwrapped around their first corner."""
        grid = self._scene.grid
        outlines = grid.lonlat(grid.outlines_xy(top, left, self._config.size_px, segments=1))
        if not np.isfinite(outlines).all():
            raise SceneRefusedError(
                "some chips have no place on Earth: their corners do not map to longitude and latitude"
            )
        outlines[..., 0] = unwrap_lon(outlines[..., 0], outlines[:, :1, 0])
        return outlines
