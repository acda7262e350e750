"""What a step reads of another parameter file's store: whether it is there, and what makes it."""

from collections.abc import Iterator
from pathlib import Path

from geokr_core.chain.params import Params, load_params
from geokr_core.chain.steps import Folders, Step, steps_of
from geokr_core.errors import ConfigError


def missing_stores(params: Params, step: Step) -> tuple[str, ...]:
    """A sentence for each folder of another store that a step reads and that is not there.

    Args:
        params: the parameter file.
        step: a step of it.
    """
    return tuple(
        f"{folder}: not made yet; {_remedy(params, folder)}"
        for folder in step.reads_elsewhere(params)
        if not folder.is_dir()
    )


def _remedy(params: Params, folder: Path) -> str:
    made = next(_makers(params, folder), None)
    if made is None:
        return "run the chain that makes it, or name the folder where it lies"
    file, command = made
    return f"`geokr run --until {command} --params {file}` makes it"


def _makers(params: Params, folder: Path) -> Iterator[tuple[Path, str]]:
    """Parameter files beside this one whose store holds the folder, and the command of the step that writes it."""
    for file in sorted(params.path.parent.glob("*.yaml")):
        try:
            other = load_params(file)
        except ConfigError:
            continue
        for step in steps_of(other):
            if Folders(other)[step.name] == folder:
                yield file, step.command
