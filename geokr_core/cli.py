"""The program ``geokr``: its groups of commands, and how errors end it.

No module of ``commands`` imports anything heavy before one of its commands runs, so that ``--help`` is quick.
"""

import errno
import os
import sys
from typing import Annotated, Any

import typer

from geokr_core import __version__
from geokr_core.commands import about, archive, chain, judge, look, operate, registry, use
from geokr_core.commands.options import GROUPS
from geokr_core.errors import GeoKRError
from geokr_core.step.extras import named_extras
from geokr_core.step.logs import FORMAT_VARIABLE, FORMATS, json_log
from geokr_core.step.termination import TERMINATED, terminable


class _Commands(typer.core.TyperGroup):
    """The commands in their groups, each with its whole first sentence; click shows one list and cuts each to one line."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Two words may name a command that is written with a hyphen: ``audit sample`` is ``audit-sample``."""
        joined = "-".join(args[:2])
        return super().resolve_command(ctx, [joined, *args[2:]] if joined in self.commands else args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section a group."""
        for group in GROUPS:
            with formatter.section(group):
                formatter.write_dl(
                    [
                        (name, command.get_short_help_str(limit=sys.maxsize))
                        for name, command in self.commands.items()
                        if getattr(command, "rich_help_panel", None) == group
                    ]
                )


app = typer.Typer(
    cls=_Commands,
    rich_markup_mode=None,  # loading rich takes longer than all the rest of `--help`
    help="Pretrain a remote-sensing backbone from unlabelled scenes and a land-cover product, and judge it.",
    epilog="`geokr COMMAND --help` says what a command reads and writes, with an example. Every key of the parameter file: "
    "`geokr parameters`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _set_log_format(wanted: str | None) -> None:
    if wanted is None:
        return
    if wanted not in FORMATS:
        raise typer.BadParameter(f"{wanted!r} is none of {', '.join(FORMATS)}")
    os.environ[FORMAT_VARIABLE] = wanted  # processes that are started write the same


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    log_format: Annotated[
        str | None,
        typer.Option(
            "--log-format",
            help="`text`, or `json`: lines of JSON on standard error.",
            show_default="$GEOKR_LOG_FORMAT, else text",
            callback=_set_log_format,
        ),
    ] = None,
) -> None:
    pass


for _module in (chain, use, judge, look, archive, registry, operate, about):
    _module.register(app)


def main() -> None:
    """Entry point: errors made on purpose become one clear message and exit code 2; SIGTERM ends with 143."""
    # Threads of torch that wait by spinning fight with any other busy process: ten times slower on a shared machine.
    # Must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with terminable(), named_extras():
            app()
    except SystemExit as stop:
        if stop.code == TERMINATED:
            _say("Terminated. Finished work is kept: the same command resumes where this one was.")
        raise
    except GeoKRError as error:
        _say(f"error: {error}")
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO):
            raise
        where = error.filename or "the output folder"
        _say(
            f"error: {where}: {error.strerror}. Nothing half-written was left in place of earlier results; "
            "free some space or mend the permissions and run the same command again: finished work is kept."
        )
        sys.exit(2)


def _say(message: str) -> None:
    """What ends the program, on standard error; as JSON where lines of JSON are wanted."""
    if os.environ.get(FORMAT_VARIABLE) == "json":
        json_log().error("%s", message.removeprefix("error: "))
    else:
        typer.echo(message, err=True)


if __name__ == "__main__":
    main()
