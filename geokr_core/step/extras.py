"""Optional parts of the installation: which module belongs to which extra, and the refusal where one is missing.

``pip install geokr`` brings what leads from scenes to a backbone. Everything else is an extra of ``pyproject.toml``, and every
door that needs one which is not installed says so by name.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from geokr_core.errors import MissingExtraError

_EXTRA_OF: Final[Mapping[str, str]] = {
    "dagster": "dagster",
    "dagster_pipes": "dagster",
    "dvc": "dvc",
    "lightly": "evaluate",
    "mlflow": "mlflow",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "psutil": "mlflow",
    "pycocotools": "evaluate",
    "segmentation_models_pytorch": "evaluate",
    "sklearn": "evaluate",
    "sqlalchemy": "mlflow",
    "torchmetrics": "evaluate",
}
"""Top-level modules that come with an extra alone, and that this project imports or calls."""


def lacking(extra: str) -> str:
    """What of an extra is not installed and how to install it, in one sentence; empty where all of it is there.

    Args:
        extra: its name in ``pyproject.toml``.
    """
    missing = [module for module, its in _EXTRA_OF.items() if its == extra and not _is_installed(module)]
    return f"{', '.join(missing)} not installed; pip install 'geokr[{extra}]'" if missing else ""


def require_extra(extra: str, what: str) -> None:
    """Refuse what an extra is needed for before anything is done.

    Args:
        extra: its name in ``pyproject.toml``.
        what: needs it, as the beginning of a sentence.

    Raises:
        MissingExtraError: it is not installed.
    """
    if lack := lacking(extra):
        raise MissingExtraError(f"{what} needs more than is installed: {lack}.")


@contextmanager
def named_extras() -> Iterator[None]:
    """Say which extra a module belongs to that could not be imported in the block.

    Raises:
        MissingExtraError: in place of the interpreter's ModuleNotFoundError, for modules of an extra; others go through.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _EXTRA_OF:
            raise
        raise MissingExtraError(
            f"{module} is not installed, and this needs it: pip install 'geokr[{_EXTRA_OF[module]}]'."
        ) from error


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
