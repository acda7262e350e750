"""Commands that look at what the chain has made: ``verify``, ``quarantine``, ``alignment``."""

import csv
import sys
from collections.abc import Mapping

import typer

from geokr_core.chain.steps import STEPS
from geokr_core.commands.options import LOOK, AsJson, Deep, Overrides, ParamsFile, add
from geokr_core.commands.output import show_json, show_rows
from geokr_core.step.summary import Number


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    add(
        app,
        verify,
        LOOK,
        reads="<store> and the records in <store>/.state",
        example="geokr verify --deep",
    )
    add(
        app,
        quarantine,
        LOOK,
        reads="<store>/scenes, <store>/chips, <store>/proportions",
        example="geokr quarantine > quarantined.csv",
    )
    add(
        app,
        alignment,
        LOOK,
        reads="scenes.folder, land_cover.folder, <store>/scenes, <store>/land_cover",
        section="alignment, chips",
        example="geokr alignment > alignment.csv",
    )


def verify(params: ParamsFile = None, overrides: Overrides = None, deep: Deep = False, as_json: AsJson = False) -> None:
    """Compare every file of the store with what was recorded of it, and name each that is damaged. Exit code 1 if any is."""
    from geokr_core.chain import status as chain_status
    from geokr_core.chain.params import load_params

    found = chain_status.verify(load_params(params, overrides or ()), deep=deep)
    rows = [{"file": str(one.path), "fault": one.fault, "remedy": one.remedy} for one in found]
    if rows or as_json:
        show_rows(rows, ("file", "fault", "remedy"), as_json=as_json)
    if not as_json:
        typer.echo(
            f"{len(rows)} file(s) are not what was written." if rows else "Every file is what was written.", err=True
        )
    if rows:
        raise typer.Exit(1)


def quarantine(params: ParamsFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List every quarantined scene with the step and the reason."""
    from geokr_core.chain.params import load_params
    from geokr_core.chain.steps import Folders
    from geokr_core.scenes.quarantine import COLUMNS, quarantined

    folders = Folders(load_params(params, overrides or ()))
    later = [folders[step.name] for step in STEPS.values() if step.scenes is not None]
    show_rows(quarantined(folders["scenes"], *later), COLUMNS, as_json=as_json)


def alignment(params: ParamsFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Measure how far each scene is shifted against its land cover, as CSV. Needs `geokr scenes` and `geokr land-cover`.

    Warns where most scenes do not lie on their land cover at all: then the map is of other ground.
    """
    from geokr_core.chain.params import load_params
    from geokr_core.chain.steps import Folders
    from geokr_core.proportions.agreement import complaint
    from geokr_core.proportions.alignment import alignments
    from geokr_core.step.reporter import ConsoleReporter

    checked = load_params(params, overrides or ())
    folders, reporter = Folders(checked), ConsoleReporter()
    found = alignments(
        checked.alignment,
        checked.chips.bands,
        checked.scenes.folder,
        folders["scenes"],
        checked.land_cover.folder,
        folders["land_cover"],
        reporter,
    )
    rows, writer = list[Mapping[str, Number]](), None
    for one in found:
        rows.append(one.row(checked.alignment.tolerance_px))
        if not as_json:  # each as soon as it is known: an archive takes long
            writer = writer or _csv_writer(list(rows[0]))
            writer.writerow(rows[-1])
    if as_json:
        show_json(rows)
    if wrong := complaint([str(row["verdict"]) for row in rows]):
        reporter.warning(wrong)


def _csv_writer(columns: list[str]) -> "csv.DictWriter[str]":
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    return writer
