"""Writes the figures of `docs/reliability.md` from the reports of the tests that its rows name.

`make reliability` runs ``python docs/reliability.py --tests`` for the tests, pytest with ``--junitxml`` over them, and then this
script over the reports. The page's text is written by hand, its rows stand in `docs/reliability.yaml`.
"""

import datetime
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree  # our own reports

import yaml

PROJECT = Path(__file__).resolve().parent.parent
PAGE = PROJECT / "docs" / "reliability.md"
ROWS = PROJECT / "docs" / "reliability.yaml"
OUTCOMES = ("healed", "refused by name")


@dataclass(frozen=True)
class Case:
    """One test case of a report.

    Attributes:
        name: its node id, without parameters.
        outcome: ``passed``, ``failed`` or ``skipped``.
        properties: what it recorded.
    """

    name: str
    outcome: str
    properties: dict[str, str] = field(default_factory=dict)


def cases_of(report: Path) -> dict[str, Case]:
    """The test cases of a junit report, by name with parameters."""
    found = {}
    for node in ElementTree.parse(report).getroot().iter("testcase"):  # noqa: S314
        path = node.get("classname", "").replace(".", "/")
        name = node.get("name", "").partition("[")[0]
        bad = node.find("failure") is not None or node.find("error") is not None
        outcome = "failed" if bad else "skipped" if node.find("skipped") is not None else "passed"
        said = {one.get("name", ""): one.get("value", "") for one in node.iter("property")}
        found[f"{path}::{node.get('name', '')}"] = Case(f"{path}.py::{name}", outcome, said)
    return found


def rows(cases: Sequence[Case], listed: Iterable[dict[str, object]], earlier: Mapping[str, str] | None = None) -> str:
    """The table of promises with how many test cases of each held.

    Args:
        cases: of the reports.
        listed: the rows, with their tests.
        earlier: what the page says so far of rows by what is done, see `earlier_figures`; kept of a row without a case.
    """
    lines = ["| what is done | how it is noticed | what becomes of it | tests | held |", "|---|---|---|---|---|"]
    for row in listed:
        tests = [str(test) for test in row["tests"]]  # type: ignore[attr-defined]
        mine = [
            case
            for case in cases
            if any(
                case.name == test or case.name.startswith(f"{test}::") or case.name.startswith(f"{test}/")
                for test in tests
            )
        ]
        ran = [case for case in mine if case.outcome != "skipped"]
        held = sum(case.outcome == "passed" for case in ran)
        told = f"{held} of {len(ran)}" if ran else "not run for this page"
        skipped = f", {len(mine) - len(ran)} skipped" if len(mine) > len(ran) else ""
        before = (earlier or {}).get(str(row["done"]), "")
        if not ran and before and not before.startswith("not run"):
            told, skipped = before if before.endswith(_EARLIER) else f"{before}{_EARLIER}", ""
        files = ", ".join(
            f"[`{Path(test.partition('::')[0]).name}`](../{test.partition('::')[0]})"
            for test in dict.fromkeys(t.partition("::")[0] for t in tests)
        )
        lines.append(f"| {row['done']} | {row['noticed']} | {row['then']} | {files} | {told}{skipped} |")
    return "\n".join(lines)


_COLUMNS = 5

_EARLIER = ", earlier"
"""Marks a figure that is not of the reports that the page was written from last."""


def earlier_figures(text: str) -> dict[str, str]:
    """What a page says of each row in its last column, by what is done."""
    cells = (line.strip().strip("|").split(" | ") for line in text.splitlines() if line.startswith("| "))
    return {row[0].strip(): row[-1].strip() for row in cells if len(row) == _COLUMNS}


def damages(cases: Sequence[Case]) -> str:
    """The table of random damages, by kind and by whose file it was."""
    drawn = [case for case in cases if "damage" in case.properties]
    lines = ["| damage | n | healed to the same bytes | refused by name | neither |", "|---|---|---|---|---|"]
    for key in ("damage", "place"):
        for name in sorted({case.properties[key] for case in drawn}):
            some = [case for case in drawn if case.properties[key] == name]
            lines.append(f"| {name if key == 'damage' else f'a file of `{name}`'} | {_counted(some)} |")
    lines.append(f"| **all** | {_counted(drawn)} |")
    return "\n".join(lines)


def _counted(cases: Sequence[Case]) -> str:
    counts = Counter(case.properties.get("outcome", "") if case.outcome == "passed" else "neither" for case in cases)
    return " | ".join(str(count) for count in (len(cases), *(counts[name] for name in OUTCOMES), counts["neither"]))


def conditions() -> str:
    """When, from which commit, and on what machine the figures were taken."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"Taken on {today} at commit {commit.stdout.strip() or 'unknown'}: {model[1] if model else 'unknown processor'}, "
        f"{os.cpu_count()} cores, {memory:.0f} GB, no GPU, Python {python}."
    )


def page(text: str, cases: Sequence[Case], listed: Iterable[dict[str, object]]) -> str:
    """The page with its generated parts written anew."""
    parts = {"conditions": conditions(), "rows": rows(cases, listed, earlier_figures(text))}
    if any("damage" in case.properties for case in cases):
        parts["damages"] = damages(cases)
    for name, part in parts.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda found, part=part: f"{found[1]}{part}\n{found[2]}",
            text,
            flags=re.DOTALL,
        )
    return text


if __name__ == "__main__":
    known = yaml.safe_load(ROWS.read_text(encoding="utf-8"))
    if sys.argv[1:] == ["--tests"]:
        sys.stdout.write("\n".join(dict.fromkeys(test for row in known for test in row["tests"])) + "\n")
    else:
        found: dict[str, Case] = {}
        for report in sys.argv[1:]:  # a case that was repeated counts by its last report
            found |= cases_of(Path(report))
        reported = list(found.values())
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), reported, known), encoding="utf-8")
        sys.stdout.write(f"{PAGE.relative_to(PROJECT)} written from {len(reported)} test cases\n")
