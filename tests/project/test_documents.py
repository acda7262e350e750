"""Documents: their links and names lead somewhere, and whatever can be chosen by name stands in a table of its page."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md"), *(PROJECT / "docker").glob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_what_a_document_links_to_and_names_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (document.parent / link).exists()]
    named = re.findall(r"(?<![\w/.])(?:geokr_core|geokr_assets|tests|docs|params|docker)/[\w./<>*-]+", text)
    named = [name.rstrip(".") for name in named if not re.search(r"[<>*]", name)]
    made_by_users = {"docker/secrets"}
    named = [name for name in named if not any(name.startswith(made) for made in made_by_users)]
    missing += [name for name in named if not (PROJECT / name).exists()]
    modules = re.findall(r"\b(geokr_(?:core|assets)(?:\.[a-z_]\w*)+)", text)
    missing += [name for name in modules if not _is_module(name)]
    assert missing == []


def _is_module(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name of one that is there."""
    path = PROJECT.joinpath(*dotted.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    home, name = path.parent, path.name
    source = home / "__init__.py" if home.is_dir() else home.with_suffix(".py")
    return source.is_file() and re.search(rf"\b{name}\b", source.read_text()) is not None


def _executors() -> Iterable[str]:
    from geokr_assets.executors import NAMES

    return NAMES


def _legends() -> Iterable[str]:
    from geokr_core.land_cover.legend import builtin_legends

    return builtin_legends()


def _methods() -> Iterable[str]:
    from geokr_core.pretraining.recipes import METHODS

    return METHODS


def _metrics() -> Iterable[str]:
    from geokr_core.evaluation.task_kinds import KINDS

    return (metric.name for kind in KINDS.values() for metric in kind.metrics)


def _scene_products() -> Iterable[str]:
    from geokr_core.scenes.products.families import FAMILIES

    return FAMILIES


def _tasks() -> Iterable[str]:
    from geokr_core.evaluation.task_kinds import KINDS

    return KINDS


@pytest.mark.parametrize(
    ("names", "page"),
    [
        pytest.param(_executors, "scale-out", id="executors"),
        pytest.param(_legends, "land-cover", id="legends"),
        pytest.param(_methods, "pretraining", id="methods"),
        pytest.param(_metrics, "tasks", id="metrics"),
        pytest.param(_scene_products, "scenes", id="scene_products"),
        pytest.param(_tasks, "tasks", id="tasks"),
    ],
)
def test_what_can_be_chosen_is_documented(names: Callable[[], Iterable[str]], page: str) -> None:
    text = (PROJECT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert [name for name in names() if not re.search(rf"`([a-z]+: )?{name}`", text)] == []
