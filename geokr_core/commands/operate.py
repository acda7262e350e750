"""Commands that operate a project: ``doctor``, ``metrics``, ``retain``, ``backup``, ``restore``."""

from pathlib import Path
from typing import Annotated

import typer

from geokr_core.commands.options import OPERATE, AsJson, Overrides, ParamsFile, add
from geokr_core.commands.output import show_numbers, show_rows


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    add(
        app,
        doctor,
        OPERATE,
        reads="the installation, the machine, the parameter file, <store>, MLflow, DVC, Dagster's home",
        example="geokr doctor --json",
    )
    add(
        app,
        retain,
        OPERATE,
        reads="<store>, MLflow, $DAGSTER_HOME, .dvc/cache",
        writes="nothing; with --apply what it shows is gone",
        example="geokr retain --days 180 --only checkpoint --only run",
    )
    add(
        app,
        backup,
        OPERATE,
        reads="<store>, MLflow's database and artifacts, its spool, Dagster's home, the parameter file, DVC's files",
        writes="the folder, with a digest of every file",
        example="geokr backup /backups/2026-11-29",
    )
    add(
        app,
        restore,
        OPERATE,
        reads="a folder that `geokr backup` wrote",
        writes="<store>, MLflow's database and artifacts, its spool, Dagster's home; what lies there is moved aside",
        example="geokr restore /backups/2026-11-29 --check",
    )
    add(
        app,
        metrics,
        OPERATE,
        reads="what `geokr status` reads; runs from $GEOKR_DAGSTER_URL, where it is set",
        writes="what --textfile names",
        example="geokr metrics --textfile /var/lib/node_exporter/geokr.prom",
    )


def retain(
    params: ParamsFile = None,
    overrides: Overrides = None,
    days: Annotated[int, typer.Option("--days", help="Age from which something can go.")] = 90,
    keep_runs: Annotated[
        int, typer.Option("--keep-runs", help="MLflow runs of each step that stay, however old.")
    ] = 20,
    keep_versions: Annotated[int, typer.Option("--keep-versions", help="Versions of the model that stay.")] = 5,
    restorable_days: Annotated[
        int, typer.Option("--restorable-days", help="After an MLflow run was deleted, until its files go.")
    ] = 30,
    only: Annotated[list[str] | None, typer.Option("--only", help="One kind only (repeatable).")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Delete what is shown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is no longer needed, and with --apply delete it. The champion and all it links to stay, and what people put there."""
    from geokr_core.chain.params import load_params
    from geokr_core.operation.retention import Policy, candidates, remove_all

    policy = Policy(days, keep_runs, keep_versions, restorable_days)
    found = list(candidates(load_params(params, overrides or ()), policy, tuple(only or ())))
    outcome = dict(remove_all(found)) if apply else {}
    rows = [{**one.row(), "outcome": _outcome(outcome.get(one))} for one in found]
    show_rows(rows, ("kind", "name", "age_days", "num_bytes", "reason", "outcome"), as_json=as_json)
    if not as_json:
        freed = sum(one.num_bytes or 0 for one in found)
        done = "deleted" if apply else "could be deleted; --apply does it"
        typer.echo(f"{len(found)} thing(s), {freed / 1e6:.0f} MB of files: {done}.", err=True)
    if any(outcome.values()):
        raise typer.Exit(1)


def _outcome(fault: str | None) -> str:
    return "kept" if fault is None else fault or "deleted"


def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder, best on another disk.")],
    params: ParamsFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Copy store, databases, artifacts and settings into one checksummed folder. Raw data and DVC's cache are not in it."""
    from geokr_core.chain.params import load_params
    from geokr_core.operation.backup import back_up
    from geokr_core.step.reporter import ConsoleReporter

    manifest = back_up(load_params(params, overrides or ()), folder, ConsoleReporter())
    num_files, parts = len(manifest["files"]), ", ".join(manifest["parts"])
    shown = {"folder": str(folder), "num_files": num_files, "parts": parts, "tracking": manifest["tracking"]["kind"]}
    show_numbers(shown, as_json=as_json)


def restore(
    folder: Annotated[Path, typer.Argument(help="A backup.")],
    params: ParamsFile = None,
    overrides: Overrides = None,
    check: Annotated[bool, typer.Option("--check", help="Only compare every file with its digest.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup in place, after every file was compared with its digest. What lies there is moved aside, never deleted."""
    from geokr_core.chain.params import load_params
    from geokr_core.operation.restore import restore as put_back
    from geokr_core.operation.restore import verify_backup
    from geokr_core.step.reporter import ConsoleReporter

    if check:
        manifest = verify_backup(folder)
        show_numbers(
            {"folder": str(folder), "num_files": len(manifest["files"]), "made": manifest["made"]}, as_json=as_json
        )
        return
    done = put_back(folder, load_params(params, overrides or ()), ConsoleReporter())
    numbers = {"num_files": done.num_files, "moved_places": done.moved_places}
    places = {name: str(place) for name, place in done.parts.items()}
    show_numbers({**numbers, **places, "put_aside": ", ".join(map(str, done.put_aside.values()))}, as_json=as_json)


def doctor(params: ParamsFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Examine installation, machine, project and servers, with a remedy for each fault. Exit code 1 if anything fails."""
    from dataclasses import asdict

    from geokr_core.operation.doctor import examine

    found = list(examine(params, tuple(overrides or ())))
    rows = [asdict(one) for one in found]
    show_rows(rows, ("check", "state", "found", "remedy"), as_json=as_json)
    failures = sum(one.state == "failure" for one in found)
    warnings = sum(one.state == "warning" for one in found)
    if not as_json:
        typer.echo(f"{failures} failure(s), {warnings} warning(s) in {len(found)} checks.", err=True)
    if failures:
        raise typer.Exit(1)


def metrics(
    params: ParamsFile = None,
    overrides: Overrides = None,
    textfile: Annotated[
        Path | None, typer.Option("--textfile", help="Write them here, for node_exporter.", show_default="print them")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--serve", help="Answer scrapes on this port until stopped.", show_default="print them"),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address that --serve listens on.")] = "127.0.0.1",
) -> None:
    """Give the figures of a project in the text format of Prometheus: scenes, steps, training, champion, runs, disk."""
    from geokr_core.chain.params import Params, load_params
    from geokr_core.operation.metrics import exposition, serve, write_textfile

    def load() -> Params:
        return load_params(params, overrides or ())

    load()  # a wrong file is refused now, and not at the first scrape
    if port is not None:
        server, thread = serve(load, port, host)
        typer.echo(f"Metrics: http://{host}:{server.server_port}/metrics  (Ctrl-C stops it)", err=True)
        thread.join()
    elif textfile is not None:
        write_textfile(textfile, load)
    else:
        typer.echo(exposition(load).decode(), nl=False)
