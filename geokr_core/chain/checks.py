"""What must hold of the chain's outputs, each as one function that looks at files and returns a `Finding`.

The functions judge; they repair nothing and raise nothing where data is merely bad. Which of them stops a run is
decided by the door that calls them (``geokr_assets.checks``). They read what the steps wrote, as a stranger would,
and use as little of the steps' own code as they can: a check that shares the mistake finds nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geokr_core.errors import MissingInputError, SceneRefusedError
from geokr_core.land_cover.legend import FRACTION
from geokr_core.proportions.config import AlignmentConfig
from geokr_core.scenes.quarantine import quarantine_of
from geokr_core.step.files import read_json
from geokr_core.step.summary import Number

SUM_TOLERANCE = 1e-3
"""Fractions are kept as 32-bit floats or rounded; a real mistake (a lost class, cells counted twice) is far larger."""

MIN_LABEL_ENTROPY_NAT = 0.5
"""Below this, one class covers nearly all ground (two classes at 80:20 have 0.50 nat) and there is little to learn."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        passed: whether it holds.
        message: one sentence: what was found, and what to do where it does not hold.
        numbers: figures behind the verdict.
        table: the worst cases, at most some 20 rows, all with the same keys.
        picture_png: a picture of it, as PNG bytes of at most 200 kB, or None.
    """

    passed: bool
    message: str
    numbers: Mapping[str, Number] = field(default_factory=dict)
    table: Sequence[Mapping[str, Number]] = ()
    picture_png: bytes | None = None


def fractions_sum_to_one(proportions: Path, chips: Path, scene_id: str) -> Finding:
    """Whether the land-cover fractions of every chip of a scene lie in 0–1 and sum to 1.

    A chip without any known land cover has no fractions: all are 0 (or missing), and its unknown and excluded
    fractions sum to 1.

    Args:
        proportions: folder of proportions.
        chips: folder of shards; a scene that was quarantined there has no proportions.
        scene_id: the scene.

    Raises:
        MissingInputError: the scene has neither proportions nor a quarantine record.
    """
    if reason := quarantine_of(scene_id, proportions, chips):
        return Finding(True, f"Quarantined, nothing to check: {reason}")
    table = _read_table(proportions / f"{scene_id}.parquet", "geokr proportions")
    classes = [name for name in table.columns if name.startswith(FRACTION)]
    if not classes:
        return Finding(False, "No column `fraction_<class>`: the proportions are of another version; run them again.")
    fractions = table[classes].to_numpy(dtype=np.float64)
    unlabelled = table["known_fraction"].to_numpy() <= SUM_TOLERANCE
    sums = np.nan_to_num(fractions).sum(axis=1)
    with np.errstate(invalid="ignore"):
        outside = ((fractions < -SUM_TOLERANCE) | (fractions > 1 + SUM_TOLERANCE)).any(axis=1)
    labelled_wrong = np.isnan(fractions).any(axis=1) | (np.abs(sums - 1) > SUM_TOLERANCE)
    unlabelled_wrong = (sums > SUM_TOLERANCE) & (np.abs(sums - 1) > SUM_TOLERANCE)
    wrong = outside | np.where(unlabelled, unlabelled_wrong, labelled_wrong)
    worst = np.flatnonzero(wrong)[:20]
    message = (
        f"Fractions of all {len(table)} chips sum to 1."
        if not wrong.any()
        else f"Fractions of {int(wrong.sum())} of {len(table)} chips do not sum to 1: the land cover was miscounted. "
        "Do not train on this; compare the product's legend with `land_cover.legend`."
    )
    return Finding(
        passed=not wrong.any(),
        message=message,
        numbers={
            "num_chips": len(table),
            "num_wrong": int(wrong.sum()),
            "num_without_land_cover": int(unlabelled.sum()),
            "largest_deviation": float(np.abs(sums[~unlabelled] - 1).max(initial=0.0)),
        },
        table=[{"chip_id": str(table["chip_id"].iloc[k]), "sum": float(sums[k])} for k in worst],
    )


def chips_show_their_ground(
    chips: Path, scenes: Path, scene_folder: Path, scene_id: str, *, num_chips: int = 16, seed: int = 0
) -> Finding:
    """Whether chips hold the very pixels that their recorded transform points at.

    A sample of chips is read again straight from the raw scene, at the recorded transform and through the recorded
    stretch, and compared byte for byte. A shift of a single pixel between images and labels fails here.

    Args:
        chips: folder of shards.
        scenes: folder of the inventory.
        scene_folder: folder of the raw scenes.
        scene_id: the scene.
        num_chips: how many chips to read again, drawn at random.
        seed: of the draw.

    Raises:
        MissingInputError: the scene has neither a shard nor a quarantine record.
    """
    from geokr_core.chips.read import reread
    from geokr_core.scenes.inventory import usable_scenes

    if reason := quarantine_of(scene_id, chips):
        return Finding(True, f"Quarantined, nothing to check: {reason}")
    table = _read_table(chips / f"{scene_id}.parquet", "geokr chips")
    shard = np.load(chips / f"{scene_id}.npy", mmap_mode="r", allow_pickle=False)
    if len(shard) != len(table):
        return Finding(
            False, f"The shard holds {len(shard)} chips, its table {len(table)} rows; run `geokr chips` again."
        )
    scene = usable_scenes(scenes).get(scene_id)
    if scene is None:
        return Finding(False, f"Scene {scene_id} has a shard but is no usable scene any more; run `geokr chips` again.")
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(table), size=min(num_chips, len(table)), replace=False))
    differing: list[Mapping[str, Number]] = []
    for row in table.iloc[chosen].to_dict("records"):
        try:
            again = reread(row, scene_folder, scene)
        except SceneRefusedError as error:
            return Finding(False, f"Chip {row['chip_id']} cannot be read again: {error}")
        stored = shard[int(row["row"])]
        num_pixels = int((again != stored).any(axis=-1).sum()) if again.shape == stored.shape else stored[..., 0].size
        if num_pixels:
            differing.append({"chip_id": str(row["chip_id"]), "differing_pixels": num_pixels})
    return Finding(
        passed=not differing,
        message=f"{len(chosen)} chips read again from the raw scene are the same bytes."
        if not differing
        else f"{len(differing)} of {len(chosen)} chips read again from the raw scene differ: chips and land cover do not "
        "show the same ground, or the scene changed after it was cut. Run `geokr scenes` and `geokr chips` again.",
        numbers={"num_chips_read_again": len(chosen), "num_differing": len(differing)},
        table=differing[:20],
    )


def land_cover_lies_on_image(
    config: AlignmentConfig,
    bands: tuple[str, ...],
    scene_folder: Path,
    scenes: Path,
    source: Path,
    land_cover: Path,
    chips: Path,
    proportions: Path,
    scene_id: str,
) -> Finding:
    """Whether mutual information between a scene and its land cover peaks where neither is shifted.

    A scene whose ground does not tell (one class, cloud, a map of another decade) passes, and the message says so.

    Args:
        config: shifts, tolerance and number of pixels.
        bands: bands to look at.
        scene_folder: folder of the raw scenes.
        scenes: folder of the inventory.
        source: folder of the land-cover tiles.
        land_cover: folder of their index.
        chips: folder of shards; a scene that was quarantined there is not looked at.
        proportions: folder of proportions; likewise.
        scene_id: the scene.

    Raises:
        MissingInputError: the inventory or the index is missing.
    """
    from geokr_core.land_cover.product import open_land_cover
    from geokr_core.proportions.alignment import align_scene, shift_map
    from geokr_core.scenes.inventory import usable_scenes

    if reason := quarantine_of(scene_id, chips, proportions):
        return Finding(True, f"Quarantined, nothing to check: {reason}")
    scene = usable_scenes(scenes).get(scene_id)
    if scene is None:
        return Finding(
            False, f"Scene {scene_id} is no usable scene any more; run `geokr scenes` and `geokr chips` again."
        )
    index = open_land_cover(land_cover)
    product = index.products[scene.land_cover]
    try:
        found = align_scene(config, scene_folder, scene, bands, source, product, len(index.legend.classes))
    except SceneRefusedError as error:
        return Finding(False, f"The scene cannot be looked at: {error}")
    verdict = found.verdict(config.tolerance_px)
    right, down = found.refined_px
    message = {
        "aligned": f"Image and land cover fit best within the tolerance, at {found.peak_px} px (right, down).",
        "shifted": f"The land cover fits best when moved {right:+.1f} px to the right and {down:+.1f} px down: labels are not "
        "those of the ground in the chips. Compare CRS, datum and pixel registration of the scene and of the product.",
        "unclear": "The ground does not tell whether image and land cover are aligned: too uniform, too little of it "
        "known, or image and map are of different years.",
    }[verdict]
    return Finding(
        passed=verdict != "shifted",
        message=message,
        numbers=found.row(config.tolerance_px),
        table=[
            {
                "right_px": found.shifts_px[x],
                "down_px": found.shifts_px[y],
                "mutual_information_nat": float(found.scores[y, x]),
            }
            for y, x in zip(
                *np.unravel_index(np.argsort(-found.scores, axis=None)[:9], found.scores.shape), strict=True
            )
        ],
        picture_png=shift_map(found.scores, found.shifts_px, found.peak_px),
    )


def weights_are_finite(pretraining: Path) -> Finding:
    """Whether every weight of every pretrained network is a finite number.

    Args:
        pretraining: folder of the pretraining.

    Raises:
        MissingInputError: there is no pretraining in it.
    """
    from safetensors.numpy import load_file

    broken: list[Mapping[str, Number]] = []
    num_values = 0
    runs = _runs(pretraining)
    for run in runs:
        for path in sorted((pretraining / run["folder"]).glob("*.safetensors")):
            for name, tensor in load_file(path).items():
                num_values += tensor.size
                num_bad = int(tensor.size - np.isfinite(tensor).sum())
                if num_bad:
                    broken.append({"file": f"{run['folder']}/{path.name}", "tensor": name, "not_finite": num_bad})
    return Finding(
        passed=not broken and num_values > 0,
        message=f"All {num_values} weights of {len(runs)} run(s) are finite."
        if not broken and num_values > 0
        else f"{len(broken)} tensors hold NaN or infinity (of {num_values} values read): training diverged. Lower "
        "`pretraining.learning_rate` or lengthen `warmup_steps`, and look at the loss curve.",
        numbers={"num_values": num_values, "num_runs": len(runs), "num_broken_tensors": len(broken)},
        table=broken[:20],
    )


def teacher_is_apart(pretraining: Path) -> Finding:
    """Whether the teacher of every run was a separate network, and moved.

    The teacher itself is gone after the run; this reads what the run measured on it at its end.

    Args:
        pretraining: folder of the pretraining.

    Raises:
        MissingInputError: there is no pretraining in it.
    """
    runs = _runs(pretraining)
    wrong = [run for run in runs if run["teacher_shares_storage"] or run["teacher_updates"] < 1]
    return Finding(
        passed=not wrong,
        message=f"The teacher of all {len(runs)} run(s) is a separate network and moved."
        if not wrong
        else f"The teacher of {len(wrong)} of {len(runs)} run(s) shares memory with the student or never moved: it taught "
        "nothing. Look at `teacher_updates` and at the column `teacher_momentum` of history.csv.",
        numbers={"num_runs": len(runs), "num_wrong": len(wrong)},
        table=[
            {
                "run": run["folder"],
                "shares_storage": run["teacher_shares_storage"],
                "updates": run["teacher_updates"],
                "largest_difference_to_student": run["teacher_max_difference"],
            }
            for run in runs[:20]
        ],
    )


def holds_against_champion(champion: Path) -> Finding:
    """Whether the new backbone is at least as good as the champion on the same data.

    Args:
        champion: folder of the decision.

    Raises:
        MissingInputError: no decision has been made.
    """
    path = champion / "decision.json"
    if not path.is_file():
        raise MissingInputError(f"{path}: no decision; run `geokr promote` first.")
    decision = read_json(path)
    delta = decision["delta"]
    return Finding(
        passed=delta is None or delta >= 0,
        message=f"{'Promoted' if decision['promoted'] else 'Not promoted'}: {decision['reason']}",
        numbers={"promoted": bool(decision["promoted"])}
        | ({} if delta is None else {"gain_over_champion": float(delta)}),
    )


def quarantined_scenes(max_fraction: float, scenes: Path, *later: Path) -> Finding:
    """How many scenes were quarantined, in the inventory and by the later steps.

    Args:
        max_fraction: of all scenes, 0–1, that may be.
        scenes: folder of the inventory.
        later: folders of steps that write quarantine records (chips, proportions).

    Raises:
        MissingInputError: there is no inventory.
    """
    table = _read_table(scenes / "inventory.parquet", "geokr scenes")
    reasons = {
        str(row["scene_id"]): str(row["reason"]) for row in table[table["status"] != "usable"].to_dict("records")
    }
    for scene_id in table[table["status"] == "usable"]["scene_id"]:
        if reason := quarantine_of(str(scene_id), *later):
            reasons[str(scene_id)] = reason
    fraction = len(reasons) / max(1, len(table))
    return Finding(
        passed=fraction <= max_fraction,
        message=f"{len(reasons)} of {len(table)} scenes are quarantined"
        + ("." if not reasons else f" ({_some(reasons)}); the table says why, and what to do about each."),
        numbers={"num_scenes": len(table), "num_quarantined": len(reasons), "quarantined_fraction": fraction},
        table=[{"scene": scene_id, "reason": reason} for scene_id, reason in reasons.items()][:20],
    )


def _some(names: Mapping[str, str]) -> str:
    return ", ".join(list(names)[:5]) + (", …" if len(names) > 5 else "")


def labels_vary(levir_kr: Path) -> Finding:
    """Whether the land cover of the training chips is diverse enough to learn from.

    Measured as the entropy (nat) of the mean class distribution of the training chips.

    Args:
        levir_kr: folder of the frozen data set.

    Raises:
        MissingInputError: there is none.
    """
    from geokr_core.levir_kr.dataset import open_levir_kr

    dataset = open_levir_kr(levir_kr)
    mean = dataset.proportions[dataset.rows_of("train")].mean(axis=0)
    entropy = float(-(mean[mean > 0] * np.log(mean[mean > 0])).sum())
    order = np.argsort(-mean)
    commonest = dataset.classes[int(order[0])]
    return Finding(
        passed=entropy >= MIN_LABEL_ENTROPY_NAT,
        message=f"Land cover of the training chips has an entropy of {entropy:.2f} nat; the commonest class, {commonest}, "
        f"covers a fraction of {mean[order[0]]:.2f}."
        + ("" if entropy >= MIN_LABEL_ENTROPY_NAT else " Nearly all ground is alike: add scenes of other landscapes."),
        numbers={"label_entropy_nat": entropy, "commonest_class_fraction": float(mean[order[0]])},
        table=[{"class": dataset.classes[int(k)], "mean_fraction": float(mean[k])} for k in order],
    )


def _runs(pretraining: Path) -> list[dict[str, Any]]:
    path = pretraining / "runs.json"
    if not path.is_file():
        raise MissingInputError(f"{path}: no pretraining there; run `geokr pretrain` first.")
    runs: list[dict[str, Any]] = read_json(path)
    return runs


def _read_table(path: Path, remedy: str) -> pd.DataFrame:
    if not path.is_file():
        raise MissingInputError(f"{path}: not there; run `{remedy}` first.")
    return pd.read_parquet(path)
