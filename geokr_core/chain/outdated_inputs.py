"""Whether a step that is run alone reads what the parameters and the code of now would make otherwise.

`geokr_core.chain.freshness` compares a step with what it reads as it lies there, and cannot know that this is out of
date itself. It is no error: who gave one step another value on purpose runs the next one without it. It is said.
"""

from collections.abc import Mapping, Sequence

from geokr_core.chain import versioning
from geokr_core.chain.contents import Contents
from geokr_core.chain.freshness import own_changes
from geokr_core.chain.params import Params
from geokr_core.chain.record import read_record
from geokr_core.chain.steps import STEPS, Folders, Step, upstream_of
from geokr_core.step.reporter import Reporter


def warn_of_outdated_inputs(
    params: Params, names: Sequence[str], reporter: Reporter, contents: Contents | None = None
) -> None:
    """Say which outputs that steps depend on are out of date, why, and which commands make them again.

    Args:
        params: the parameter file.
        names: steps that are about to run, one after the other.
        reporter: hears it, as one warning.
        contents: what is known of the folders; asked anew by default.
    """
    found = outdated_inputs(params, names, contents or Contents(params.store))
    if not found:
        return
    told = "; ".join(f"{name} ({', '.join(reasons[:2])}{_more(reasons[2:])})" for name, reasons in found.items())
    commands = " and ".join(f"`geokr {STEPS[name].command}`" for name in found)
    reporter.warning(
        f"{', '.join(names)}: made from what is out of date: {told}. Run {commands} first, or `geokr run` for the whole chain."
    )


def _more(reasons: tuple[str, ...]) -> str:
    return f" and {len(reasons)} more" if reasons else ""


def outdated_inputs(params: Params, names: Sequence[str], contents: Contents) -> Mapping[str, tuple[str, ...]]:
    """Steps before those of ``names``, directly or through others, whose parameters, named files or code changed since.

    New raw data are not asked for: that costs a look at every file, and an archive that grows is always a little ahead.

    Returns:
        What changed, by step, in the order of the chain. Outputs without a record, or that DVC brought, are believed.
    """
    before, waiting = set[str](), list(names)
    while waiting:
        new = {*upstream_of(params, STEPS[waiting.pop()])} - before
        before |= new
        waiting += new
    found = {name: _reasons(params, STEPS[name], contents) for name in STEPS if name in before and name not in names}
    return {name: reasons for name, reasons in found.items() if reasons}


def _reasons(params: Params, step: Step, contents: Contents) -> tuple[str, ...]:
    folders = Folders(params)
    record = read_record(folders.state(step.name))
    if record is None or not folders[step.name].is_dir():
        return ()
    reasons = tuple(own_changes(params, step, record, contents))
    if reasons and versioning.is_versioned(params.path):
        known = versioning.recorded_versions().get(step.name)
        if known != record.data_version and known == contents.version(folders[step.name]):
            return ()  # `dvc checkout` brought it: the record is of another output
    return reasons
