"""Files and folders that appear whole or not at all, and the leftovers of processes that were killed.

Digests are in ``digests``.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from geokr_core.step.digests import bytes_md5, file_md5

_MANY_BYTES: Final = 1_000_000
"""Bytes from which a thread that writes costs less than it saves."""


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
    partial = _partial(path if staging is None else staging / path.name)
    for folder in {path.parent, partial.parent}:
        if not folder.is_dir():  # asked first: there are far more files than folders
            folder.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _partial(path: Path) -> Path:
    # Threads of one process may write the same file, as processes may, and processes of several machines.
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{threading.get_ident()}.partial")


_LEFTOVER: Final = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-\d+\.(?P<kind>partial|replaced)")
_FOREIGN_PATIENCE_S: Final = 7 * 86_400
"""Age from which unfinished files of another machine count as left over: whether their owner lives cannot be asked from here."""


@cache
def _machine() -> str:
    """A name for the space of process ids that this process lives in: machine and container."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116  (no file, and not on every system)
    except OSError:
        space = 0
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def sweep(folder: Path) -> list[str]:
    """Remove what killed processes left unfinished directly in a folder; what they had just replaced comes back.

    Processes that still run keep their files. Those of other machines are left alone for a week.

    Args:
        folder: looked at without what is below; need not exist.

    Returns:
        Names of what was removed or brought back.
    """
    done = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        found = _LEFTOVER.fullmatch(path.name)
        if found is None or _is_used(path, found["machine"], int(found["pid"])):
            continue
        final = path.with_name(found["name"])
        if found["kind"] == "replaced" and not final.exists():
            path.rename(final)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        done.append(path.name)
    return done


def is_left_unfinished(path: Path) -> bool:
    """Whether a process that is gone left this file or folder unfinished; of another machine's, after a week."""
    found = _LEFTOVER.fullmatch(path.name)
    return found is not None and not _is_used(path, found["machine"], int(found["pid"]))


def _is_used(path: Path, machine: str, pid: int) -> bool:
    if machine != _machine():
        return time.time() - path.stat().st_mtime < _FOREIGN_PATIENCE_S
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk.

    Raises:
        OSError: the file system refused.
    """
    with path.open("rb") as written:
        os.fsync(written.fileno())


def synced_md5s(paths: Mapping[str, Path]) -> dict[str, str]:
    """The md5 of files, by the same keys, once all of them are on the disk.

    Raises:
        OSError: the file system refused.
    """
    if sum(path.stat().st_size for path in paths.values()) < _MANY_BYTES:
        return {key: _synced_md5(path) for key, path in paths.items()}
    with ThreadPoolExecutor(1) as disk:  # which writes while the md5 is computed
        synced = [disk.submit(sync, path) for path in paths.values()]
        md5s = {key: file_md5(path) for key, path in paths.items()}
        for writing in synced:
            writing.result()
    return md5s


def _synced_md5(path: Path) -> str:
    with path.open("rb", buffering=0) as written:  # opened once, not once for each of the two
        os.fsync(written.fileno())
        return bytes_md5(written.read())


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


@contextmanager
def shared_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder, and put its files into ``path`` beside those of others if the block succeeds.

    Files that an earlier call put there and this one does not write are removed; nothing else is. What stands in the way
    of a written file and is not what was put there stays under its name with ``~`` added. What was put there is remembered
    in ``.<name>.files.json`` beside ``path``.

    Args:
        path: the final folder, which others may put files into.

    Yields:
        The folder to write into.

    Raises:
        OSError: the file system refused; nothing that was not put there by an earlier call is lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ledger = path.with_name(f".{path.name}.files.json")
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        before = _read_ledger(ledger)
        written = {p.relative_to(partial).as_posix(): file_md5(p) for p in sorted(partial.rglob("*")) if p.is_file()}
        write_json(ledger, {**(before or {}), **written})
        for name, md5 in written.items():
            _put(partial / name, path / name, md5, before)
        for name in (before or {}).keys() - written.keys():
            if (path / name).is_file() and file_md5(path / name) == (before or {})[name]:
                (path / name).unlink()
        write_json(ledger, written)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(source: Path, target: Path, md5: str, before: Mapping[str, str] | None) -> None:
    """Move a file into place. Without a ledger the folder is taken for an earlier version's, whose names are ours."""
    if target.is_file() and before is not None:
        present = file_md5(target)
        if present == md5:
            return
        if present not in before.values():
            keep = target.with_name(f"{target.name}~")
            while keep.exists():
                keep = keep.with_name(f"{keep.name}~")
            target.rename(keep)
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def _read_ledger(ledger: Path) -> Mapping[str, str] | None:
    try:
        content = json.loads(ledger.read_text(encoding="utf-8"))
        return {str(name): str(md5) for name, md5 in content.items()}
    except (OSError, ValueError, AttributeError):
        return None


def write_json(path: Path, value: Any, staging: Path | None = None) -> None:
    """Write ``value`` as sorted, indented JSON, whole or not at all; ``staging`` as in `whole_file`.

    Raises:
        OSError: the file system refused.
        TypeError: ``value`` holds something JSON has no word for.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    with whole_file(path, staging) as partial:
        partial.write_bytes(text.encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        json.JSONDecodeError: the file is not JSON.
    """
    return json.loads(path.read_text(encoding="utf-8"))
