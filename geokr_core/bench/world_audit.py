"""How many of an audit's flags are right, where the truth is known: the generated world. The table of ``docs/audit.md``.

python -m geokr_core.bench.world_audit PARAMS docs/audit.md

PARAMS names a store whose world was generated and whose map was audited. The world's own land cover at the day of each image is what
both the map (of an earlier year, smoothed, and confused in patches) and the audit are judged by; neither step has seen it.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import geopandas as gpd
import numpy as np
import pandas as pd

from geokr_core.audit.output import RESULT_FILE, TABLE_FILE
from geokr_core.audit.planting import MOVED, average_precision
from geokr_core.bench.page import written_between
from geokr_core.chain.calls import need
from geokr_core.chain.params import load_params
from geokr_core.errors import ConfigError
from geokr_core.land_cover.legend import load_legend
from geokr_core.scenes.scene_outputs import chip_outputs
from geokr_core.step.files import read_json
from geokr_core.world import terrain
from geokr_core.world.config import WorldConfig
from geokr_core.world.plan import PlannedScene, plan_scene

BEGIN: Final = "<!-- world audit: begin -->"
END: Final = "<!-- world audit: end -->"

_LEGEND: Final = "globeland30"
"""What the world's codes mean."""

_PLACES: Final = ("chip_id", "pixel_row", "pixel_col", "size_px")
_HEADS: Final = (20, 100, 500)


@dataclass(frozen=True)
class WorldAudit:
    """Audited chips in the order of their ranks.

    Attributes:
        moved: float64 (N,), share of each chip's ground whose class on the map is not the true one.
        model: name of the network.
        planted: by kind of planted error, the average precision that the audit gave itself.
    """

    moved: np.ndarray
    model: str
    planted: Mapping[str, float]

    @property
    def wrong(self) -> np.ndarray:
        """Chips of which a quarter or more is wrong on the map, bool (N,): from there on an error counts as planted, too."""
        found: np.ndarray = self.moved >= MOVED[0]
        return found


def true_shares(world: WorldConfig, scene: PlannedScene, chips: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """The true shares of chips at the day of their image, float64 (N, K); ground of no class (sea) is left out.

    Args:
        world: its seed.
        scene: in which the chips lie.
        chips: ``pixel_row``, ``pixel_col`` and ``size_px`` of each.
        classes: K names, of the legend of the world.
    """
    day = scene.design.acquired
    x, y = terrain.plane_coordinates(scene.grid, scene.place)
    noise = scene.place.noise(world.seed)
    codes = terrain.land_cover_truth(scene.place, noise, x, y, day.year + day.timetuple().tm_yday / 365)
    names = {code: entry.common for entry in load_legend(_LEGEND).classes for code in entry.codes}
    slots = np.full(256, len(classes))
    for code, name in names.items():
        if name in classes:
            slots[code] = classes.index(str(name))
    counts = np.stack(
        [
            np.bincount(slots[codes[row : row + size, column : column + size]].ravel(), minlength=len(classes) + 1)
            for row, column, size in chips[["pixel_row", "pixel_col", "size_px"]].itertuples(index=False)
        ]
    )[:, : len(classes)]
    shares: np.ndarray = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares


def judge_audit(world: WorldConfig, store: Path) -> WorldAudit:
    """Compare each audited chip's land cover on the map with the true one.

    Args:
        world: that was generated.
        store: of the chain that audited it.

    Raises:
        ConfigError: a scene is none of the world.
        OSError: a file cannot be read.
    """
    planned = [plan_scene(world.seed, index, world.scene_size_px) for index in range(world.num_scenes)]
    scenes = {Path(scene.name).stem: scene for scene in planned}
    result = read_json(store / "map_audit" / RESULT_FILE)
    classes = [str(name) for name in result["classes"]]
    ranked = gpd.read_parquet(store / "map_audit" / TABLE_FILE).set_index("chip_id")
    moved = pd.Series(np.nan, index=ranked.index)
    for scene_id in ranked["scene_id"].unique():
        if scene_id not in scenes:
            raise ConfigError(
                f"scene {scene_id}: none of the {len(scenes)} scenes of the world of seed {world.seed}, {world.scene_size_px} px. The truth is "
                "known of generated scenes only: name the parameter file that generated them."
            )
        places = chip_outputs(store / "chips").table(scene_id, list(_PLACES)).to_pandas().set_index("chip_id")
        own = ranked.index[ranked["scene_id"] == scene_id]
        truth = true_shares(world, scenes[scene_id], places.loc[own], classes)
        mapped = ranked.loc[own, [f"map_{name}" for name in classes]].to_numpy()
        moved[own] = np.abs(mapped - truth).sum(axis=1) / 2
    planted = {kind: float(found["average_precision"]) for kind, found in result["planted"].items()}
    return WorldAudit(moved.to_numpy(), str(result["model"]), planted)


def table(found: WorldAudit) -> str:
    """The table as Markdown."""
    heads = [number for number in _HEADS if number <= len(found.moved)]
    planted = ", ".join(f"{value:.2f} {kind}" for kind, value in found.planted.items())
    lines = [
        f"{len(found.moved)} chips; the map is wrong on {found.moved.mean():.1%} of their ground. Average precision of the ranking {average_precision(found.wrong):.2f}, of a "
        f"blind one {found.wrong.mean():.2f}; of errors that the same run planted {planted}.",
        "",
        "| chips | a quarter of the ground or more is wrong on the map | ground that is wrong, mean |",
        "|---|---|---|",
    ]
    lines += [
        f"| the first {number} | {found.wrong[:number].mean():.0%} | {found.moved[:number].mean():.0%} |"
        for number in heads
    ]
    return "\n".join([*lines, f"| all | {found.wrong.mean():.0%} | {found.moved.mean():.0%} |"])


def main(arguments: Sequence[str]) -> None:
    """Write the table into a page, between its two marks."""
    file, page = (Path(argument) for argument in arguments)
    write, params = written_between(page, BEGIN, END), load_params(file)
    write(f"\n{table(judge_audit(need(params.world, 'world'), params.store))}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
