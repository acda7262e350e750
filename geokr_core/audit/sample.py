"""A stratified random sample of chips for people to judge: so many of each class of the map.

The stratum of a chip is the class that the map gives the largest share of it. What a person is asked is which class covers most of
it; the page does not show what the map says. The sample has a number that the judgements carry, so that no others are counted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from geokr_core.audit.output import TABLE_FILE
from geokr_core.errors import AuditError, MissingInputError
from geokr_core.step.digests import text_digest
from geokr_core.step.files import whole_file

_MAP: Final = "map_"
_FEWEST: Final = 2


@dataclass(frozen=True)
class Sample:
    """Chips to be judged.

    Attributes:
        chips: a row a chip: ``chip_id``, ``scene_id``, ``row``, ``map_class``, ``geometry``; in random order.
        classes: names of the map's classes.
        weights: float64 (K,), share of the audited chips that are of each class; they sum to 1.
        sample_id: digest of what was drawn.
    """

    chips: gpd.GeoDataFrame
    classes: tuple[str, ...]
    weights: np.ndarray
    sample_id: str


def draw_sample(map_audit: Path, per_class: int, seed: int = 0) -> Sample:
    """Draw a stratified random sample of the audited chips; the same arguments draw the same chips.

    Args:
        map_audit: folder of an audit.
        per_class: chips of each class of the map; all of them where there are fewer.
        seed: of the draw.

    Raises:
        MissingInputError: there is no audit.
        AuditError: fewer than two chips a class are asked for.
    """
    if per_class < _FEWEST:
        raise AuditError(f"{per_class} chip(s) a class: expected {_FEWEST} or more, 50 for a first answer.")
    path = map_audit / TABLE_FILE
    if not path.is_file():
        raise MissingInputError(f"{path}: no audit to sample; run `geokr audit` first.")
    table = gpd.read_parquet(path).sort_values("chip_id", ignore_index=True)
    classes = tuple(name.removeprefix(_MAP) for name in table if str(name).startswith(_MAP))
    largest = table[[f"{_MAP}{name}" for name in classes]].to_numpy().argmax(axis=1)
    rng, drawn = np.random.default_rng(seed), []
    for k in range(len(classes)):
        stratum = np.flatnonzero(largest == k)
        drawn.append(rng.permutation(stratum)[:per_class])
    chosen = rng.permutation(np.concatenate(drawn))
    chips = table.iloc[chosen][["chip_id", "scene_id", "row", "geometry"]].reset_index(drop=True)
    chips.insert(3, "map_class", [classes[k] for k in largest[chosen]])
    weights = np.bincount(largest, minlength=len(classes)) / len(largest)
    told = [chips["chip_id"].tolist(), chips["map_class"].tolist(), weights.tolist()]
    return Sample(chips, classes, weights, text_digest(told)[:16])


def write_sample(sample: Sample, path: Path) -> None:
    """Write a sample as GeoParquet; classes, weights and number stand in its footer, under ``geokr``.

    Raises:
        OSError: the file system refused.
    """
    about = {"classes": sample.classes, "weights": sample.weights.tolist(), "sample_id": sample.sample_id}
    with whole_file(path) as partial:
        sample.chips.to_parquet(partial, index=False, compression="zstd")
        table = pq.read_table(partial)
        known = {**(table.schema.metadata or {}), b"geokr": json.dumps(about).encode()}
        pq.write_table(table.replace_schema_metadata(known), partial, compression="zstd")


def read_sample(path: Path) -> Sample:
    """Read what `write_sample` wrote.

    Raises:
        MissingInputError: there is no such file.
        AuditError: it is no sample.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; `geokr audit sample` writes a sample.")
    try:
        about: Mapping[str, Any] = json.loads((pq.read_schema(path).metadata or {})[b"geokr"])
        weights = np.asarray(about["weights"], dtype=np.float64)
        return Sample(gpd.read_parquet(path), tuple(about["classes"]), weights, str(about["sample_id"]))
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise AuditError(f"{path}: not a sample ({error}); give the file that `geokr audit sample` wrote.") from error


def shares_of_chips(proportions: Path, sample: Sample) -> pd.Series:
    """The class of the largest share of each sampled chip by another map, by chip id; missing where it knows none.

    Args:
        proportions: folder of proportions of the same chips.
        sample: the chips.

    Raises:
        MissingInputError: there are no proportions in the folder.
        AuditError: its classes are others.
    """
    from geokr_core.land_cover.legend import fraction_columns
    from geokr_core.scenes.scene_outputs import LEGEND_FILE, proportion_outputs
    from geokr_core.step.files import read_json

    if not (proportions / LEGEND_FILE).is_file():
        raise MissingInputError(
            f"{proportions}: no proportions there; give the folder of another store's `proportions`."
        )
    classes = tuple(str(name) for name in read_json(proportions / LEGEND_FILE)["classes"])
    if classes != sample.classes:
        raise AuditError(
            f"{proportions}: describes chips by {', '.join(classes)}, the sample by {', '.join(sample.classes)}: two maps are "
            "compared by one legend. Count both with the same `land_cover.legend`."
        )
    outputs, columns = proportion_outputs(proportions), fraction_columns(classes)
    counted = [scene for scene in sorted(set(sample.chips["scene_id"])) if outputs.whole(scene)]
    tables = [outputs.table(scene, ["chip_id", *columns]).to_pandas().set_index("chip_id") for scene in counted]
    if not tables:
        raise AuditError(f"{proportions}: has none of the sampled scenes; count the other map under the same chips.")
    found = pd.concat(tables).reindex(sample.chips["chip_id"])
    values = found.to_numpy(dtype=np.float64)
    largest = [
        classes[k] if row.sum() > 0 else None
        for k, row in zip(np.nan_to_num(values).argmax(axis=1), np.nan_to_num(values), strict=True)
    ]
    return pd.Series(largest, index=sample.chips["chip_id"], dtype=object)
