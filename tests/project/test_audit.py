"""The audit names what asks something of who passes an installation on, and its bill of materials is CycloneDX."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from installing import uv_command

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("geokr_audit", PROJECT / "docs" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["geokr_audit"] = module  # its dataclass asks for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("licence", "kind"),
    [
        ("MIT", "permissive"),
        ("Apache Software License; MIT License", "permissive"),
        ("GPL-3.0", "copyleft"),
        ("GNU General Public License v2 (GPLv2)", "copyleft"),
        ("Apache-2.0 OR GPL-2.0-or-later", "permissive"),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", "weak copyleft"),
        ("GPLv2 with linking exception", "weak copyleft"),
        ("LGPL-2.1", "weak copyleft"),
        ("LicenseRef-NVIDIA-Proprietary", "proprietary"),
        ("", "unknown"),
        ("ask us", "unknown"),
    ],
)
def test_of_several_the_strictest_counts_and_of_a_choice_the_freest(audit: ModuleType, licence: str, kind: str) -> None:
    assert audit.kind_of(licence) == kind


def test_every_installed_package_is_listed_once_and_what_asks_something_first(audit: ModuleType) -> None:
    packages = audit.installed()
    kinds = {one.name: one.kind for one in packages}
    assert (kinds["torch"], kinds["dvc"]) == ("permissive", "permissive")
    assert kinds["pygit2"] == "weak copyleft"
    page = audit.page(packages)
    assert all(page.count(f"| {one.name} | {one.version} |") == 1 for one in packages)
    assert page.index("## Weak copyleft") < page.index("## Permissive")


def test_the_bill_of_materials_is_cyclonedx_of_the_lock(audit: ModuleType) -> None:
    bill = json.loads(audit.bill_of_materials(uv_command()))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    components = {one["name"]: one for one in bill["components"]}
    assert {"torch", "rasterio", "mlflow", "dagster", "dvc"} <= set(components)
    assert components["torch"]["purl"].startswith("pkg:pypi/torch@")
    assert "pytest" not in components
