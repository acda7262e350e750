"""Digests: of files, folders, listings and texts, and as multihash."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from geokr_core.step.found_files import find_files

_CODES = {"md5": b"\xd5\x01", "sha1": b"\x11", "sha256": b"\x12", "sha512": b"\x13"}
"""Prefixes by kind of digest, as unsigned varints (multicodec table)."""


def multihash(kind: str, hexdigest: str) -> str:
    """A digest as multihash.

    Args:
        kind: ``md5``, ``sha1``, ``sha256`` or ``sha512``.
        hexdigest: the digest in hex.
    """
    return (_CODES[kind] + bytes([len(hexdigest) // 2])).hex() + hexdigest


def mismatch(path: Path, checksum: str) -> str:
    """What is wrong between a file and its multihash; empty where they agree.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        raw = bytes.fromhex(checksum)
    except ValueError:
        raw = b""
    for kind, code in _CODES.items():
        if raw.startswith(code) and len(raw) == len(code) + 1 + raw[len(code)]:
            digest = hashlib.new(kind, usedforsecurity=False)
            with path.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
            found = digest.hexdigest()
            expected = raw[len(code) + 1 :].hex()
            return "" if found == expected else f"{kind} {found} found, {expected} announced by the catalogue"
    return f"`file:checksum` {checksum[:24]!r} is not a multihash of {', '.join(_CODES)}"


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_CHUNK_BYTES = 1 << 20


def file_md5(path: Path) -> str:
    """The md5 of a file's bytes, in hex.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def bytes_md5(content: bytes) -> str:
    """The md5 of bytes, in hex."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def data_version(path: Path) -> str:
    """The data version of a file or folder: DVC's own hash, computed here.

    For a file, its md5. For a folder, the md5 of the JSON list of its files' md5 and relative paths, in DVC's
    order and spelling, with ``.dir`` appended (DVC 3 object format). A test holds this equal to ``dvc.lock``.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if path.is_file():
        return file_md5(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: nothing there to give a data version")
    return folder_version({p.relative_to(path).as_posix(): file_md5(p) for p in path.rglob("*") if p.is_file()})


def found_version(folder: Path) -> str:
    """The data version of a folder that people fill: `data_version` without what systems and editors leave there.

    A viewer of images that leaves ``Thumbs.db``, or a copy with ``~``, changes nothing that is read from the folder.

    Raises:
        OSError: the folder or a file cannot be read.
    """
    return folder_version({name: file_md5(folder / name) for name in find_files(folder, "**/*").files})


def folder_version(files: Mapping[str, str]) -> str:
    """The data version of a folder, see `data_version`, from the md5 of each file by its relative path."""
    names = sorted(files, key=lambda name: name.split("/"))
    listing = [{"md5": files[name], "relpath": name} for name in names]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def listing_digest(folder: Path) -> str:
    """Digest of the names, sizes and modification times of all files in a folder, also behind links.

    It changes whenever a file comes, goes or is written to, and reads no file: cheap enough to be asked every minute. What
    operating systems leave behind does not count; a link to nothing does, by its name.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found = find_files(folder, "**/*")
    listed: list[tuple[str, int, int]] = [(name, 0, 0) for name in found.unreachable]
    for name in found.files:
        with suppress(FileNotFoundError):  # gone this moment, as if it had never been listed
            stat = (folder / name).stat()
            listed.append((name, stat.st_size, stat.st_mtime_ns))
    return text_digest(sorted(listed))


def text_digest(value: Any) -> str:
    """A short, stable digest (16 hex digits of SHA-256) of anything JSON can hold, to name a configuration."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
