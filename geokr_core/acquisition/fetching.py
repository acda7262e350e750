"""The whole acquisition: plan, say how much it is, read, and hand over what the chain needs to know.

``fetch`` may be run again at any time: finished files are kept, missing ones are read, and the result has the same
bytes as a run that was never interrupted. Several requests may share a folder.
"""

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from geokr_core.acquisition.catalogues import FetchConfig
from geokr_core.acquisition.plan import FetchPlan, PlannedFile, make_plan
from geokr_core.acquisition.transfer import RECORD_SUFFIX, finished, transfer
from geokr_core.acquisition.web import Web
from geokr_core.errors import AcquisitionError
from geokr_core.step.files import read_json, whole_file, write_json
from geokr_core.step.reporter import Reporter
from geokr_core.step.summary import Summary

SNIPPET = "params-snippet.yaml"
MANIFEST = "fetch.json"


def fetch(
    config: FetchConfig, out: Path, reporter: Reporter, *, confirm: Callable[[FetchPlan], bool] = lambda plan: True
) -> Summary:
    """Fetch scenes and the land cover of their ground.

    Args:
        config: catalogues, area, dates, limits and manners.
        out: folder that gets ``scenes/<collection>/<item>/<item>_<band>.tif``, ``land_cover/<collection>/<item>.tif``, a
            record beside each file, ``fetch.json`` (all records) and ``params-snippet.yaml`` (sections for a parameter
            file).
        reporter: hears the plan and shows progress.
        confirm: sees the plan before anything is read; False ends the fetch with nothing written.

    Returns:
        Counts and a table of the items; warnings name what was left out.

    Raises:
        AcquisitionError: a catalogue cannot be read or holds nothing, the plan is larger than ``max_gb``, or items could
            not be read and ``skip_broken`` is not set. Whatever was finished before stays.
        ConfigError: an environment variable that a catalogue takes its access from is not set.
        OSError: the file system refused.
    """
    webs = {catalogue.name: Web(catalogue, config) for catalogue, _ in config.wanted}
    plan = make_plan(config, webs, reporter, partial(finished, out))
    reporter.info(
        f"fetch: {len(plan.files)} files, {sum(file.finished for file in plan.files)} of them finished; "
        f"about {plan.estimated_bytes / 1e6:.1f} MB to transfer, at most {plan.num_bytes / 1e6:.1f} MB of pixels"
    )
    if plan.num_bytes > config.max_gb * 1e9:
        raise AcquisitionError(
            f"The plan comes to {plan.num_bytes / 1e9:.2f} GB of pixels, allowed are {config.max_gb:g} (max_gb). "
            "Take a smaller box, fewer dates or items, or allow more."
        )
    if not confirm(plan):
        return _summary(plan, {}, out)
    _sweep(out)
    broken = dict(plan.broken) | _transfer_all(plan, webs, config, out, reporter)
    records = _hand_over(out)
    for name, reason in broken.items():
        reporter.warning(f"{name}: {reason}")
    if broken and not config.skip_broken:
        raise AcquisitionError(
            f"{len(broken)} of {len({_key(f) for f in plan.files} | set(broken))} items could not be fetched; the first: "
            f"{next(iter(broken.values()))} Finished files are kept: run the same command again, or go on without them "
            "(skip_broken)."
        )
    if not records:
        raise AcquisitionError(f"{out}: nothing could be fetched.")
    return _summary(plan, broken, out)


def _key(file: PlannedFile) -> str:
    return f"{file.collection.name}/{file.item.id}"


def _transfer_all(
    plan: FetchPlan, webs: Mapping[str, Web], config: FetchConfig, out: Path, reporter: Reporter
) -> dict[str, str]:
    catalogue_of = {collection.name: catalogue.name for catalogue, collection in config.wanted}
    missing = [file for file in plan.files if not file.finished]
    broken: dict[str, str] = {}
    with reporter.progress("files", len(missing)) as advance, ThreadPoolExecutor(config.connections) as pool:
        tasks = [
            pool.submit(transfer, file, webs[catalogue_of[file.collection.name]], plan.area[file.collection.name], out)
            for file in missing
        ]
        try:
            for file, task in zip(missing, tasks, strict=True):
                try:
                    task.result()
                except AcquisitionError as error:
                    broken.setdefault(_key(file), str(error))
                advance(1)
        except BaseException:
            # A full disk or Ctrl-C: what has not begun does not begin.
            pool.shutdown(cancel_futures=True)
            raise
    return broken


def _sweep(out: Path) -> None:
    """Remove what a killed run left half-written."""
    for leftover in [*out.rglob(".*.partial"), *out.rglob(".download-*")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def _hand_over(out: Path) -> list[dict[str, Any]]:
    """Write the manifest and the snippet from all records in the folder, of this request and of earlier ones."""
    records = [read_json(path) for path in sorted(out.rglob(f"*{RECORD_SUFFIX}"))]
    records = [record for record in records if (out / record["path"]).is_file()]
    write_json(out / MANIFEST, {"files": records})
    if records:
        with whole_file(out / SNIPPET) as partial_path:
            partial_path.write_text(_snippet(records, out), encoding="utf-8")
    return records


def _snippet(records: list[dict[str, Any]], out: Path) -> str:
    collections = {record["collection"]["name"]: record["collection"] for record in records}
    scenes = [
        {
            "name": name,
            "files": f"scenes/{name}/*/*_{{band}}.tif",
            "band_files": list(c["bands"]),
            "bands": list(c["bands"]),
            "land_cover": c["land_cover"],
        }
        for name, c in sorted(collections.items())
        if c["kind"] == "scenes"
    ]
    products = [
        {"name": name, "files": f"land_cover/{name}/*.tif", "legend": c["legend"], "year": c["year"]}
        for name, c in sorted(collections.items())
        if c["kind"] == "land_cover"
    ]
    sections: dict[str, Any] = {}
    if scenes:
        sections["scenes"] = {"folder": out.as_posix(), "collections": scenes}
    if products:
        sections["land_cover"] = {"folder": out.as_posix(), "products": products}
    text = yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, width=120)
    return "# Sections for a parameter file; paths are relative to where the command was run.\n" + text


def _summary(plan: FetchPlan, broken: Mapping[str, str], out: Path) -> Summary:
    written = [file for file in plan.files if (out / file.path).is_file()]
    return Summary(
        numbers={
            "num_items": len({_key(file) for file in plan.files}),
            "num_files": len(plan.files),
            "num_files_finished_before": sum(file.finished for file in plan.files),
            "num_broken_items": len(broken),
            "size_on_disk_mb": round(sum((out / file.path).stat().st_size for file in written) / 1e6, 3),
        },
        table=plan.table()[:50],
        warnings=[f"{name}: {reason}" for name, reason in broken.items()]
        + [f"{name}: its rasters hold no pixel of the box" for name in plan.empty],
    )
