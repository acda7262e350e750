"""Commands that run the chain: ``run``, one command a step, and ``status``, which says what they would do."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from geokr_core.chain.steps import STEPS, Step
from geokr_core.commands.options import START, STEPS_IN_ORDER, AsJson, Deep, Force, Overrides, ParamsFile, Verbose, add
from geokr_core.commands.output import link, show_json, show_numbers, show_rows
from geokr_core.step.reporter import Reporter


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    add(
        app,
        run,
        START,
        reads="the parameter file and the raw data that it names",
        writes="<store>, a folder a step; MLflow runs; dvc.lock where DVC is in use",
        example="geokr run --params params.yaml --set pretraining.steps=400",
    )
    add(
        app,
        status,
        START,
        reads="the parameter file, the records in <store>/.state, sizes and times of files, MLflow",
        example="geokr status --set chips.size_px=32",
    )
    for step in STEPS.values():
        command = world if step.command == "world" else _command_of(step)  # `world` has more options
        _add_step(app, step, command)


def run(
    params: ParamsFile = None,
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option("--until", help="Stop after this step, e.g. levir-kr.")] = None,
    force: Force = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole chain: raw scenes to a registered, evaluated backbone. Steps that are up to date are skipped."""
    last = None if until is None else until.replace("-", "_")
    _run(None, params, overrides, until=last, force=force, verbose=verbose, as_json=as_json)


def status(
    params: ParamsFile = None,
    overrides: Overrides = None,
    deep: Deep = False,
    as_json: AsJson = False,
    everything: Annotated[
        bool, typer.Option("--all", help="With --json: one object with the operator's page, too.")
    ] = False,
) -> None:
    """Show what the next run will do, and why; then scenes, data set, training, champion, disk, and what is stuck."""
    from geokr_core.chain import status as chain_status
    from geokr_core.chain.params import load_params
    from geokr_core.commands.overview_page import lines_of
    from geokr_core.operation.overview import overview

    loaded = load_params(params, overrides or ())
    found = chain_status.status(loaded, deep=deep)
    if as_json and everything:
        show_json(overview(loaded, found).as_json())
        return
    rows = [
        {
            "step": one.step,
            "state": one.state,
            "why": "\n".join(one.reasons if as_json else _shortened(one.reasons)),
            "output": str(one.output),
        }
        for one in found
    ]
    show_rows(rows, ("step", "state", "why", "output"), as_json=as_json)
    if not as_json:  # the table of a program that reads it stays a table
        typer.echo("\n" + "\n".join(lines_of(overview(loaded, found))), err=not sys.stdout.isatty())


def world(
    params: ParamsFile = None,
    overrides: Overrides = None,
    force: Force = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write here.", show_default="`world.folder` of the parameter file")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Another seed gives another world.", show_default="`world.seed`")
    ] = None,
) -> None:
    """Generate a small world in the project's place, or with other options elsewhere."""
    if out is None and seed is None:
        _run(["world"], params, overrides, force=force, verbose=verbose, as_json=as_json)
        return
    from geokr_core.chain.params import load_params
    from geokr_core.errors import ConfigError
    from geokr_core.step.reporter import ConsoleReporter
    from geokr_core.world.config import WorldConfig
    from geokr_core.world.generate import generate_world

    try:
        base = load_params(params, overrides or ()).world or WorldConfig()
    except ConfigError:
        if params is not None:
            raise
        base = WorldConfig()  # outside a project the defaults do
    config = base.model_copy(update={k: v for k, v in (("folder", out), ("seed", seed)) if v is not None})
    show_numbers(generate_world(config, config.folder, ConsoleReporter()).numbers, as_json=as_json)


def _command_of(step: Step) -> Any:
    def invoke(
        params: ParamsFile = None,
        overrides: Overrides = None,
        force: Force = False,
        verbose: Verbose = False,
        as_json: AsJson = False,
    ) -> None:
        _run([step.name], params, overrides, force=force, verbose=verbose, as_json=as_json)

    return invoke


def _add_step(app: typer.Typer, step: Step, command: Any) -> None:
    read = [
        *(f"{section}.folder" for section in step.sources),
        *(f"<store>/{name}" for name in (*step.inputs, *step.also_reads)),
    ]
    place = "world.folder" if step.folder is not None else f"<store>/{step.name}"
    add(
        app,
        command,
        STEPS_IN_ORDER,
        name=step.command,
        text=step.purpose,
        reads=", ".join(read),
        section=", ".join(step.sections),
        writes=f"{place}: {step.writes}",
        example=f"geokr {step.command} {step.example}".rstrip(),
    )


def _run(
    names: list[str] | None,
    params_file: Path | None,
    overrides: list[str] | None,
    *,
    until: str | None = None,
    force: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    from geokr_core.chain.params import load_params
    from geokr_core.chain.run import run
    from geokr_core.chain.turns import is_first
    from geokr_core.commands.screen import LOG_FILE, listener
    from geokr_core.step.logs import wants_json

    params = load_params(params_file, overrides or ())
    log = params.store / LOG_FILE
    if names is None and not wants_json():
        typer.echo(f"Details go to {log}.", err=True)
    reporter = listener(log, verbose=verbose) if is_first() else Reporter()
    outcomes = run(params, reporter, steps=names, until=until, force=force)
    if as_json:
        show_json([_as_plain(outcome) for outcome in outcomes])
    elif names is None and until is None:
        _farewell(params)
    else:
        show_numbers(outcomes[-1].summary.numbers)


def _as_plain(outcome: Any) -> dict[str, Any]:
    return {
        "step": outcome.step,
        "output": str(outcome.folder),
        "data_version": outcome.data_version,
        "was_current": outcome.was_current,
        "mlflow_url": outcome.mlflow_url,
        "numbers": dict(outcome.summary.numbers),
        "warnings": list(outcome.summary.warnings),
    }


def _farewell(params: Any) -> None:
    """Five lines: what was learnt, where it stands, what came out, how others get it, and what to do next."""
    from geokr_core.chain.steps import Folders, steps_of
    from geokr_core.step.files import read_json

    folders, made = Folders(params), {step.name for step in steps_of(params)}
    lines = [f"Backbone   {link(folders['backbone'] / 'MODEL_CARD.md')}"]
    if "report" in made:
        lines.insert(0, f"Report     {link(folders['report'] / 'report.html')}")
        lines.insert(0, f"Learnt     {read_json(folders['report'] / 'report.json')['learnt']}")
    if "champion" in made:
        lines.append(f"Registry   geokr download {params.backbone.model_name}@champion --to my-backbone")
    typer.echo("\n" + "\n".join([*lines, _next_line(params)]))


def _next_line(params: Any) -> str:
    """What to do next: a project that `geokr init` began has no Makefile, and its data are the reader's own already."""
    from geokr_core.chain.steps import steps_of

    ui = "make ui" if Path("workspace.yaml").is_file() else "dagster dev -m geokr_assets.definitions"
    own = "; geokr init (your own data)" if "world" in {step.name for step in steps_of(params)} else ""
    return f"Next       {ui} (the chain in Dagster); mlflow ui (curves, registry: docs/mlflow.md){own}"


def _shortened(reasons: Sequence[str]) -> Sequence[str]:
    return reasons if len(reasons) <= 3 else (*reasons[:2], f"… and {len(reasons) - 2} more reasons")
