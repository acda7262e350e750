"""Commands that operate a project: ``doctor``, ``metrics``, ``retain``."""

from pathlib import Path
from typing import Annotated

import typer

from geokr_core.commands.options import OPERATE, AsJson, Overrides, ParamsFile, add
from geokr_core.commands.output import show_rows


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
