"""Disks that are full. Found through ``pythonpath`` in pyproject.toml."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path) -> Iterator["SmallDisk"]:
    """A file system in memory, with a limit that can be changed."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class SmallDisk:
    """A file system in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, size: int) -> None:
        """Give it a size in bytes."""
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)

    def leave(self, num_bytes: int) -> None:
        """Leave so much room beside what is on it, but at least a page: 0 would be no limit."""
        self(max(shutil.disk_usage(self.folder).used + num_bytes, 4096))
