"""What the installation is made of, into `dist/`: a bill of materials, every licence, and advisories where they can be had.

Run by `make audit` with the path of uv. ``sbom.cdx.json`` is CycloneDX, from uv.lock: what would be installed, with hashes. ``licences.md`` is
from the metadata of what is installed: copyleft, proprietary and unknown licences stand first.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
OUT = PROJECT / "dist"
KINDS = ("proprietary", "copyleft", "weak copyleft", "unknown", "permissive")
_PATTERNS = {
    "proprietary": r"proprietary|NVIDIA|commercial|EULA",
    "weak copyleft": r"LGPL|Lesser General Public|MPL|Mozilla|EPL|Eclipse|CDDL|linking exception",
    "copyleft": r"\bA?GPL|General Public License|EUPL|SSPL",
    "permissive": r"MIT|BSD|Apache|ISC|PSF|Python Software|Zope|ZPL|Zlib|0BSD|CC0|Unlicense|HPND|BSL-1|Boost|WTFPL|Public Domain|DFSG",
}


@dataclass(frozen=True)
class Package:
    """An installed package and what its metadata says of its licence."""

    name: str
    version: str
    licence: str
    kind: str


def kind_of(licence: str) -> str:
    """How much a licence asks of who passes the package on.

    Of several that hold together the strictest counts; of a choice (``OR``) the one that asks least.
    """
    together = [part for part in re.split(r"\s+AND\s+(?![^(]*\))|;", licence) if part.strip()]
    found = [max(map(_kind, re.split(r"\s+OR\s+", part)), key=KINDS.index) for part in together]
    return min(found, key=KINDS.index, default="unknown")


def _kind(licence: str) -> str:
    return next((kind for kind, pattern in _PATTERNS.items() if re.search(pattern, licence, re.IGNORECASE)), "unknown")


def installed() -> list[Package]:
    """Every installed package, once, by name."""
    found = {}
    for distribution in metadata.distributions():
        about = distribution.metadata
        licence = _licence_of(about)
        found[about["Name"].lower()] = Package(about["Name"], distribution.version, licence, kind_of(licence))
    return [found[name] for name in sorted(found)]


def _licence_of(about: metadata.PackageMetadata) -> str:
    """The SPDX expression where there is one, else the classifiers, else the first line of the free text."""
    expressions = about.get_all("License-Expression") or []
    classifiers = [c.rpartition(":: ")[2] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    texts = [text.strip().splitlines()[0][:80] for text in about.get_all("License") or [] if text.strip()]
    named = [name for name in classifiers if name not in ("OSI Approved", "DFSG approved")]
    return (expressions or (["; ".join(named)] if named else []) or texts or [""])[0].replace("|", "/")


def page(packages: Sequence[Package]) -> str:
    """The list of licences as Markdown, what asks something first."""
    lines = ["# Licences of what is installed", ""]
    lines += [f"- {kind}: {sum(one.kind == kind for one in packages)}" for kind in KINDS]
    for kind in KINDS:
        rows = [
            f"| {one.name} | {one.version} | {one.licence or 'none given'} |" for one in packages if one.kind == kind
        ]
        if rows:
            lines += ["", f"## {kind.capitalize()}", "", "| package | version | licence |", "|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def bill_of_materials(uv: str) -> str:
    """CycloneDX of all extras of uv.lock, without the tools of developers."""
    command = [uv, "export", "--frozen", "--offline", "--all-extras", "--no-dev", "--format", "cyclonedx1.5"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    return done.stdout


def advisories(uv: str) -> tuple[str, bool]:
    """What is known against the locked releases, and whether a database could be asked at all."""
    done = subprocess.run(
        [uv, "audit", "--frozen"], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=120
    )
    could_ask = not re.search(r"failed to|error sending|could not connect|dns|offline", done.stderr, re.IGNORECASE)
    return (done.stdout + done.stderr).strip(), could_ask


def main(arguments: Iterable[str]) -> int:
    """Write everything; the exit code is 1 where an advisory was found."""
    (uv,) = arguments
    OUT.mkdir(exist_ok=True)
    bill = bill_of_materials(uv)
    (OUT / "sbom.cdx.json").write_text(bill, encoding="utf-8")
    packages = installed()
    (OUT / "licences.md").write_text(page(packages), encoding="utf-8")
    say = sys.stdout.write
    say(f"dist/sbom.cdx.json: {len(json.loads(bill)['components'])} components (CycloneDX)\n")
    for kind in KINDS[:4]:
        named = [one.name for one in packages if one.kind == kind]
        say(f"{kind}: {', '.join(named) or 'none'}\n")
    say("dist/licences.md names the licence of each.\n")
    text, could_ask = advisories(uv)
    (OUT / "advisories.txt").write_text(text + "\n", encoding="utf-8")
    if not could_ask:
        say(
            "Advisories: no database could be reached from here (dist/advisories.txt says why). Run this where the network allows, "
            "or give dist/sbom.cdx.json to a scanner.\n"
        )
        return 0
    say(f"Advisories: {text.splitlines()[-1] if text else 'none'}; dist/advisories.txt has all.\n")
    return 0 if "no known vulnerabilities" in text.lower() or "0 vulnerabilities" in text.lower() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
