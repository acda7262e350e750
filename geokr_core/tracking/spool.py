"""Records for a tracking server that is away: kept in files, and handed over in order once it is back.

One folder a run, one line of JSON a record, copies of attached files beside them. What a record means, and who takes
it, is not known here (MLflow is in ``registry``). A record leaves the spool only after it was taken, so one that was
taken twice, after a kill in between, must do no harm. A record that was torn, by a kill or a full disk, is lost alone.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from geokr_core.step.digests import text_digest
from geokr_core.step.files import whole_file

SPOOL_VARIABLE: Final = "GEOKR_SPOOL"
"""Environment variable that names the folder; ``.mlflow_spool`` in the working directory where it is not set."""

_RECORDS: Final = "records.jsonl"
_LOCK: Final = "lock"

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Spool:
    """What is kept of one run.

    Attributes:
        folder: of this run alone.
    """

    folder: Path

    @property
    def run_id(self) -> str:
        """The run that the records belong to."""
        return self.folder.name

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return (self.folder / _RECORDS).exists()

    def keep(self, record: Record, attached: Path | None = None) -> None:
        """Add a record behind the others.

        Args:
            record: anything JSON can hold.
            attached: a file that it speaks of; copied, for it may be gone when the server is back. The record gets its
                place as ``attached``.

        Raises:
            OSError: the file system refused.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if attached is not None:
            number = len(list(self.folder.iterdir()))
            copied = self.folder / f"{number:06d}" / attached.name
            copied.parent.mkdir()
            shutil.copyfile(attached, copied)
            record = {**record, "attached": copied.relative_to(self.folder).as_posix()}
        # The line's end comes first: it also ends one that was torn before.
        with (self.folder / _RECORDS).open("a", encoding="utf-8") as stream:
            stream.write("\n" + json.dumps(record))
            stream.flush()
            os.fsync(stream.fileno())

    def hand_over(self, take: Callable[[Record], None]) -> int:
        """Give each record to ``take``, the oldest first; the folder is removed when all are taken.

        Args:
            take: takes a record; ``attached`` is an absolute path there. What it raises stops the delivery, and what was
                not taken stays.

        Returns:
            How many were taken.
        """
        records = list(self._records())
        for number, record in enumerate(records):
            attached = record.get("attached")
            try:
                take({**record, "attached": str(self.folder / attached)} if attached else record)
            except BaseException:
                self._write(records[number:])
                raise
        # First what names the files, then they: a kill between the two leaves nothing that asks for what is gone.
        (self.folder / _RECORDS).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        return len(records)

    def _records(self) -> Iterator[Record]:
        path = self.folder / _RECORDS
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
            with suppress(json.JSONDecodeError):  # torn, or the empty line before the first
                yield json.loads(line)

    def _write(self, records: list[Record]) -> None:
        with whole_file(self.folder / _RECORDS) as partial:
            partial.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")

    @contextmanager
    def owned(self) -> Iterator[bool]:
        """Own the folder for the block: False where a living process does. The system frees it when its owner dies."""
        place = self.folder.with_name(f".{self.folder.name}.{_LOCK}")
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(place).acquire(timeout=0)
        except Timeout:
            yield False
            return
        with held:
            yield True
            if not self:
                place.unlink(missing_ok=True)


def spool_of(server: str, run_id: str) -> Spool:
    """The spool of one run on one server."""
    return Spool(_folder_of(server) / run_id)


def spools_of(server: str) -> list[Spool]:
    """All spools with records for a server, oldest first."""
    folder = _folder_of(server)
    spools = [Spool(path) for path in sorted(folder.glob("*")) if path.is_dir()]
    return sorted((spool for spool in spools if spool), key=lambda spool: (spool.folder / _RECORDS).stat().st_mtime_ns)


def spool_folder() -> Path:
    """Where everything that waits is kept."""
    return Path(os.environ.get(SPOOL_VARIABLE, "") or ".mlflow_spool")


def _folder_of(server: str) -> Path:
    return spool_folder() / text_digest(server)
