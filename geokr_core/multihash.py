"""Digests in the spelling of STAC's ``file:checksum``: a multihash in hex, which says what kind of digest it is."""

import hashlib
from pathlib import Path

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
