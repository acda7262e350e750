"""Files that appear whole or not at all, and the data version of a file or folder.

The data version is the very md5 that DVC writes into ``dvc.lock``, computed without importing DVC, so that the
command line, Dagster, DVC and MLflow name the same bytes by the same string.
"""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path, staging: Path | None = None) -> Iterator[Path]:
    """Give a temporary path and move it into place only if the block succeeds.

    Args:
        path: the final file. Its folder is made if it is missing; an existing file is replaced.
        staging: folder of the temporary path, on the same file system; made if it is missing. By default it lies
            beside ``path``, where a killed process leaves it and others may see it.

    Yields:
        The path to write to.

    Raises:
        OSError: the file system refused (full disk, no permission); the earlier file is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path if staging is None else staging / path.name)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    # Threads of one process may write the same file, as processes may.
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk.

    Raises:
        OSError: the file system refused.
    """
    with path.open("rb") as written:
        os.fsync(written.fileno())


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside ``path`` and swap it in only if the block succeeds.

    Args:
        path: the final folder; an existing one is replaced as a whole.

    Yields:
        The folder to write into.

    Raises:
        OSError: the file system refused; the earlier folder is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    replaced = partial.with_suffix(".replaced")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            path.rename(replaced)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def write_json(path: Path, value: Any, staging: Path | None = None) -> None:
    """Write ``value`` as sorted, indented JSON, whole or not at all; ``staging`` as in `whole_file`.

    Raises:
        OSError: the file system refused.
        TypeError: ``value`` holds something JSON has no word for.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    with whole_file(path, staging) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        json.JSONDecodeError: the file is not JSON.
    """
    return json.loads(path.read_text(encoding="utf-8"))
