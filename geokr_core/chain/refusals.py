"""What can be known to be refused later is refused before anything runs."""

from collections.abc import Collection
from pathlib import Path

from geokr_core.chain.calls import need
from geokr_core.chain.contents import Contents
from geokr_core.chain.freshness import judge, require
from geokr_core.chain.other_stores import missing_stores
from geokr_core.chain.params import Params
from geokr_core.chain.steps import Folders, Step, source_folder, steps_of
from geokr_core.errors import MissingInputError


def refuse_early(params: Params, wanted: Collection[str]) -> None:
    """Refuse a chain that would be refused later on, after other steps had run.

    Looks at every step that is not up to date: folders of raw data that are missing or empty, legends and labelled sets
    that cannot be read, weights that are not there. What the chain makes itself is not asked for.

    Args:
        params: the parameter file.
        wanted: names of the steps that are to run.

    Raises:
        MissingInputError: a folder or a file is missing.
        GeoKRError: whatever a step itself would refuse.
    """
    contents = Contents(params.store)
    for step in (step for step in steps_of(params) if step.name in wanted):
        if missing := missing_stores(params, step):
            raise MissingInputError("; ".join(missing))
        own = [name for name in step.sources if not _is_made(params, source_folder(params, name))]
        for name in own:
            require(source_folder(params, name), f"point `{name}.folder` at your data")
        for name in step.sections:
            need(getattr(params, name), name)
        # Reading takes a while: only where the step would do it, and of raw data that are there already.
        if step.refuse is not None and len(own) == len(step.sources) and not _is_current(params, step, contents):
            step.refuse(params)


def _is_made(params: Params, source: Path) -> bool:
    """Whether a step of this chain makes the raw data."""
    folders = Folders(params)
    return any(source.is_relative_to(folders[step.name]) for step in steps_of(params) if step.folder is not None)


def _is_current(params: Params, step: Step, contents: Contents) -> bool:
    try:
        return judge(params, step, contents).is_current
    except MissingInputError:
        return False
