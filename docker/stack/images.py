"""Images by their digests: a tag may come to mean another image, a digest cannot."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from stack.errors import StackError
from stack.settings import program

_IMAGE: Final = re.compile(r"^(?P<name>\w+_IMAGE)=(?P<tag>[^@\s]+)(@\S+)?$", re.MULTILINE)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_PATIENCE_S: Final = 120


def pin_images(path: Path, digest_of: Callable[[str], str] | None = None) -> list[str]:
    """Write into a settings file which image each tag means today; the tag stays beside its digest, for people.

    Args:
        path: the settings file; changed only if every image was found.
        digest_of: tells the digest of an image; None: its registry is asked.

    Returns:
        The images, with their digests.

    Raises:
        StackError: skopeo is missing, or a registry does not tell.
    """
    ask = digest_of or _asked
    text = path.read_text(encoding="utf-8")
    pinned = {found["name"]: f"{found['tag']}@{ask(found['tag'])}" for found in _IMAGE.finditer(text)}
    path.write_text(_IMAGE.sub(lambda found: f"{found['name']}={pinned[found['name']]}", text), encoding="utf-8")
    return list(pinned.values())


def _asked(image: str) -> str:
    """What the registry says; of an image for several processors, the digest of the list of all of them."""
    command = [program("skopeo"), "inspect", "--no-tags", "--format", "{{.Digest}}", f"docker://{image}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise StackError(
            f"{image}: its registry did not answer within {_PATIENCE_S} s. Nothing was changed."
        ) from error
    if answer.returncode != 0 or _DIGEST.fullmatch(answer.stdout.strip()) is None:
        told = (answer.stderr or answer.stdout).strip().splitlines()
        raise StackError(
            f"{image}: its registry did not tell the digest ({(told or ['no answer'])[-1]}). Nothing was changed."
        )
    return answer.stdout.strip()
