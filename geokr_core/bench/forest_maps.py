"""Are maps of shares right where people drew the forest? The last table of ``docs/land-cover-shares.md``.

python -m geokr_core.bench.forest_maps PARAMS TASK OUT docs/land-cover-shares.md [OLDER_STORE ...]

PARAMS names a finished store with land cover and a backbone, TASK holds ``images/`` and ``masks/`` in which 1 is forest. OUT gets the maps.
Each OLDER_STORE has counted a land-cover product under the same images: the map that one would use without any of this.
The judge is no product here: neither map, network nor head has seen these masks, nor ground of that continent's forest.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import rasterio
from rasterio.windows import Window

from geokr_core.bench.mapped import mapped_shares
from geokr_core.bench.maps import NAMES, more_than_map, shares_without_network
from geokr_core.bench.older_maps import read_older_map, said_by
from geokr_core.bench.page import written_between
from geokr_core.chain.params import Params, load_params
from geokr_core.chips.cut import cut_chips
from geokr_core.land_cover_shares.config import LandCoverSharesConfig
from geokr_core.land_cover_shares.predict import Inputs, predict_shares
from geokr_core.levir_kr.dataset import open_levir_kr
from geokr_core.scenes.config import SceneCollection, ScenesConfig
from geokr_core.scenes.inventory import take_inventory, usable_scenes

BEGIN: Final = "<!-- forest maps: begin -->"
END: Final = "<!-- forest maps: end -->"

_FOREST: Final = "forest"
_DRAWN_FOREST: Final = 1
"""The masks' code of forest."""


@dataclass(frozen=True)
class Judged:
    """Forest of the same chips.

    Attributes:
        drawn: float64 (N,), the share that people drew.
        given: by name, what is judged, float64 (N,).
        tiles: int64 (N,), the tile of each chip.
        older: by name, the words of what is given beside `NAMES`: older maps.
    """

    drawn: np.ndarray
    given: Mapping[str, np.ndarray]
    tiles: np.ndarray
    older: Mapping[str, str] = field(default_factory=dict)

    def off_by(self, name: str) -> np.ndarray:
        """Absolute difference of the share, float64 (N,), 0 to 1."""
        found: np.ndarray = np.abs(self.given[name] - self.drawn)
        return found

    def right(self, name: str) -> np.ndarray:
        """Chips that are mostly forest, or not, as people drew them, bool (N,)."""
        found: np.ndarray = (self.given[name] >= 0.5) == (self.drawn >= 0.5)
        return found


def drawn_forest(masks: Path, names: Sequence[str], catalogue: pd.DataFrame, chip_size_px: int) -> np.ndarray:
    """Share of forest within each chip, by the masks, float64 (N,).

    Args:
        masks: folder of masks on the grids of the images.
        names: file name of the mask of each chip.
        catalogue: ``pixel_row`` and ``pixel_col`` of the chips.
        chip_size_px: side of a chip.

    Raises:
        OSError: a mask is missing.
    """
    shares = []
    for name, row, column in zip(names, catalogue["pixel_row"], catalogue["pixel_col"], strict=True):
        with rasterio.open(masks / name) as source:
            drawn = source.read(1, window=Window(column, row, chip_size_px, chip_size_px))
        shares.append(float((drawn == _DRAWN_FOREST).mean()))
    return np.array(shares)


def map_and_judge(params: Params, task: Path, out: Path, older_stores: Sequence[Path] = ()) -> Judged:
    """Map the task's images with the store's backbone and a head of its land cover, and judge the forest.

    Args:
        params: of the finished store.
        task: folder with ``images`` and ``masks`` of the same file names.
        out: gets an inventory, chips and maps; what is current there is kept.
        older_stores: each has counted a land-cover product under the chips of these images. Chips that one does not know are left out.

    Raises:
        GeoKRError: see `take_inventory`, `cut_chips`, `predict_shares` and `read_older_map`.
        OSError: a file cannot be read or written.
    """
    images = task / "images"
    tiles = SceneCollection(name="tiles", files="*.tif", bands=("red", "green", "blue"), land_cover="none")
    take_inventory(ScenesConfig(folder=images, collections=(tiles,)), out / "scenes")
    cut_chips(params.chips, images, out / "scenes", out / "chips")
    levir_kr, backbone = params.store / "levir_kr", params.store / "backbone"
    inputs = Inputs(images, out / "scenes", levir_kr, backbone)
    predict_shares(LandCoverSharesConfig(), params.chips, inputs, out / "land_cover_shares")
    trained = open_levir_kr(levir_kr)
    scenes = usable_scenes(out / "scenes")
    shards = [path for path in sorted((out / "chips").glob("*.npy")) if path.stem in scenes]
    catalogue = pd.concat([pd.read_parquet(path.with_suffix(".parquet")) for path in shards], ignore_index=True)
    pixels = np.concatenate([np.load(path) for path in shards])
    size, forest = params.chips.size_px, trained.classes.index(_FOREST)
    masks = [Path(scenes[scene_id].files[0]).name for scene_id in catalogue["scene_id"]]
    older, words = said_by([read_older_map(store, catalogue, trained.classes, size) for store in older_stores])
    given = {
        "map": mapped_shares(out / "land_cover_shares", catalogue, size),
        **shares_without_network(trained, pixels),
        **older,
    }
    drawn = drawn_forest(task / "masks", masks, catalogue, size)
    known = np.isfinite(np.stack(list(given.values()))).all(axis=(0, 2))
    forests = {name: shares[known, forest] for name, shares in given.items()}
    return Judged(drawn[known], forests, pd.factorize(catalogue["scene_id"])[0][known], words)


def table(judged: Judged) -> str:
    """The table as Markdown."""
    lines = [
        f"{len(judged.drawn)} chips in {len(np.unique(judged.tiles))} tiles; {judged.drawn.mean():.1%} of the ground is forest as people drew it.",
        "",
        "| | forest, share of the ground | off by (0 to 1) | more than the map, 95 % interval | mostly forest or not, right | rank correlation with what was drawn |",
        "|---|---|---|---|---|---|",
    ]
    for name, words in {**NAMES, **judged.older}.items():
        off = judged.off_by(name)
        more = "–" if name == "map" else more_than_map(off, judged.off_by("map"), judged.tiles)
        said = pd.Series(judged.given[name])
        # What says the same of every chip has no ranks.
        ranks = "–" if np.ptp(said) == 0 else f"{said.corr(pd.Series(judged.drawn), method='spearman'):.2f}"
        share = f"{judged.given[name].mean():.1%}"
        lines.append(f"| {words} | {share} | {off.mean():.3f} | {more} | {judged.right(name).mean():.1%} | {ranks} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Write the table into a page, between its two marks."""
    params, task, out, page, *older = (Path(argument) for argument in arguments)
    write = written_between(page, BEGIN, END)
    write(f"\n{table(map_and_judge(load_params(params), task, out, older))}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
