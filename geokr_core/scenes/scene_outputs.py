"""One output a scene in the folder of a step: whole and current, quarantined, or still to be made.

The steps that work scene by scene keep their files here: the names, the lock that lets one process at a time make a scene,
what is unfinished, and the record by which a scene counts as done. The record is written last. It holds the digest of
everything that the output is a function of and the md5 of each of its files, so that damage to a file is seen and the
scene is made again. What is in the files is the business of the step.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from geokr_core.errors import DamagedOutputError, MissingInputError
from geokr_core.rasters.checksums import Checksums, Entry
from geokr_core.step.digests import bytes_md5, file_md5, text_digest
from geokr_core.step.files import sweep, synced_md5s, write_json
from geokr_core.step.reporter import Reporter

PIXELS = ".npy"
"""Ending of a scene's shard: the pixels of its chips."""

TABLE = ".parquet"
"""Ending of a scene's table, one row a chip."""

CELLS = ".cells.npy"
"""Ending of the land cover of squares inside each chip of a scene."""

QUARANTINE = ".quarantine.json"
"""Ending of the record of a scene that gives no output, and why."""

RECORD = ".record.json"
"""Ending of the record of a scene that has one."""


CUT_FILE = "cut.json"
"""How all scenes were cut, in the folder of shards."""

LEGEND_FILE = "legend.json"
"""The classes, the products and the settings that all proportions of a folder share."""


_MANY_BYTES = 1_000_000


@dataclass(frozen=True)
class SceneRecord:
    """What is recorded of one scene's output.

    Attributes:
        scene_id: which scene.
        inputs: digest of everything that the output is a function of.
        reason: why the scene is quarantined; empty where it has an output.
        files: md5 of each of its files, by name.
        notes: what else the step records, as JSON values.
    """

    scene_id: str
    inputs: str
    reason: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class SceneOutputs:
    """The outputs of one step, one a scene, in one folder.

    Threads and processes may share a folder; see `making`.
    """

    def __init__(
        self, folder: Path, endings: Sequence[str], *, shared: str, command: str, beside: Sequence[str] = ()
    ) -> None:
        """Name the folder and what belongs into it.

        Args:
            folder: the step's output; made when something is written.
            endings: endings of the files that a scene may have.
            shared: the one file that all scenes share.
            command: what makes the outputs, for messages: ``geokr chips``.
            beside: names of files about all scenes together, which are written after the last scene.
        """
        self._beside = frozenset(beside)
        self.folder, self.endings, self.shared, self.command = folder, tuple(endings), shared, command
        self.staging = folder.parent / ".state" / "unfinished" / folder.name

    @cached_property
    def _checksums(self) -> Checksums:
        return Checksums(checksums_memory(self.folder))

    def path(self, scene_id: str, ending: str) -> Path:
        """Where a file of a scene lies once it is whole."""
        return self.folder / f"{scene_id}{ending}"

    # --- what is there -------------------------------------------------------------------------------------------

    def record(self, scene_id: str) -> SceneRecord | None:
        """What is recorded of a scene; None where there is no record or a damaged one."""
        for ending in (QUARANTINE, RECORD):
            with suppress(FileNotFoundError):
                return _read_record(self.path(scene_id, ending), scene_id)
        return None

    def faults(self, scene_id: str, *, deep: bool = False) -> dict[str, str]:
        """What is wrong with the files of a scene, by file name; empty where nothing is, or where nothing was made.

        Args:
            scene_id: which scene.
            deep: read every byte. Otherwise a file is read only where its size, inode or one of its times is not what
                it was when its bytes were last compared.
        """
        here = [name for name in (f"{scene_id}{ending}" for ending in self.endings) if (self.folder / name).exists()]
        record = self.record(scene_id)
        if record is None:
            damaged = [e for e in (QUARANTINE, RECORD) if self.path(scene_id, e).exists()]
            broken = {f"{scene_id}{ending}": "no readable record" for ending in damaged}
            return broken or ({f"{scene_id}{RECORD}": "missing"} if here else {})
        found = {name: "belongs to no record" for name in here if name not in record.files}
        for name, md5 in record.files.items():
            try:
                digest = file_md5(self.folder / name) if deep else self._checksums.md5(self.folder / name)
            except OSError as error:
                found[name] = "missing" if isinstance(error, FileNotFoundError) else str(error)
            else:
                if digest != md5:
                    found[name] = "not the bytes that were written"
        return found

    def damaged(self, *, deep: bool = False) -> dict[str, str]:
        """Every damaged file of the folder, and what is wrong with it.

        Args:
            deep: as for `faults`.
        """
        found: dict[str, str] = {}
        for scene_id in self._scene_ids():
            found |= self.faults(scene_id, deep=deep)
        with suppress(FileNotFoundError):
            if self._shared_content() is None:
                found[self.shared] = "not JSON"
        if self._checksums.num_read:
            self._checksums.save()
        return found

    def current(self, scene_id: str, inputs: str) -> SceneRecord | None:
        """The record of a scene if its output was made from ``inputs`` and is undamaged."""
        record = self.record(scene_id)
        return None if record is None or record.inputs != inputs or self.faults(scene_id) else record

    def report_damage(self, scene_id: str, inputs: str, reporter: Reporter | None) -> None:
        """Name the damaged files of a scene that was made from ``inputs`` and is about to be made again."""
        if reporter is None or not any(self.path(scene_id, ending).exists() for ending in (RECORD, QUARANTINE)):
            return
        record = self.record(scene_id)
        if record is None or record.inputs == inputs:
            for name, fault in self.faults(scene_id).items():
                reporter.warning(f"{self.folder / name}: {fault}; scene {scene_id} is made again")

    def reason(self, scene_id: str) -> str | None:
        """Why a scene is quarantined, or None if it is not.

        Raises:
            DamagedOutputError: the quarantine record cannot be read.
        """
        return quarantine_reason(self.folder, scene_id)

    def whole(self, scene_id: str) -> bool:
        """Whether a scene has an output, current or not."""
        return self.path(scene_id, TABLE).exists()

    def version(self, scene_id: str) -> str:
        """Digest of the bytes of all files of a scene; its record is believed about them."""
        record = self.record(scene_id)
        return text_digest([] if record is None else [record.reason, sorted(record.files.items())])

    def table(self, scene_id: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The table of a scene.

        Args:
            scene_id: which scene.
            columns: names of those wanted; None: all.

        Raises:
            MissingInputError: the scene has none.
            DamagedOutputError: it is not what was written.
        """
        path, record = self.path(scene_id, TABLE), self.record(scene_id)
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise MissingInputError(f"{path}: scene {scene_id} has none; run `{self.command}` first.") from error
        written = record.files.get(path.name) if record is not None else None
        if written is not None and written != bytes_md5(content):
            raise self._damaged_error(path, "not the bytes that were written")
        try:
            # Most tables are small: threads would cost more than they save.
            wanted = None if columns is None else list(columns)
            with pq.ParquetFile(pa.BufferReader(content)) as file:
                return file.read(columns=wanted, use_threads=len(content) > _MANY_BYTES)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged_error(path, str(error)) from error

    def array(self, scene_id: str, ending: str) -> np.ndarray:
        """An array of a scene, mapped into memory; its bytes are not compared.

        Raises:
            MissingInputError: the scene has none.
            DamagedOutputError: the file is cut off or holds something else.
        """
        path = self.path(scene_id, ending)
        try:
            return mapped_array(path)
        except FileNotFoundError as error:
            raise MissingInputError(f"{path}: scene {scene_id} has none; run `{self.command}` first.") from error
        except ValueError as error:
            raise self._damaged_error(path, str(error)) from error

    def _damaged_error(self, path: Path, fault: str) -> DamagedOutputError:
        return DamagedOutputError(f"{path}: {fault}; run `{self.command}`, which makes the scene again.")

    # --- what is made --------------------------------------------------------------------------------------------

    @contextmanager
    def only_one(self, scene_id: str) -> Iterator[None]:
        """Wait until no other process or thread makes this scene, and keep others from it. A killed holder lets go.

        Raises:
            OSError: the file system refused.
        """
        self.staging.mkdir(parents=True, exist_ok=True)
        with FileLock(self.staging / f"{scene_id}.lock"):
            yield

    @contextmanager
    def making(self, scene_id: str, inputs: str, endings: Sequence[str]) -> Iterator["Unfinished"]:
        """Give temporary paths, and move all files into place only if the block succeeds; hold `only_one` meanwhile.

        Args:
            scene_id: which scene.
            inputs: digest of everything that the output is a function of.
            endings: of the files that the block writes.

        Yields:
            The temporary paths, and room for notes.

        Raises:
            OSError: the file system refused; an earlier output is left as it was.
        """
        self.staging.mkdir(parents=True, exist_ok=True)
        # One name a scene, not one a process: the next run overwrites what a killed one left.
        unfinished = Unfinished({ending: self.staging / f"{scene_id}{ending}" for ending in endings})
        try:
            yield unfinished
            md5s = synced_md5s(unfinished.paths)
            # The record goes first and comes last: it never stands beside files that it does not describe.
            self.forget(scene_id)
            self.folder.mkdir(parents=True, exist_ok=True)
            for ending, path in unfinished.paths.items():
                path.replace(self.path(scene_id, ending))
                self._checksums.note(self.path(scene_id, ending), md5s[ending])
            files = {f"{scene_id}{ending}": md5 for ending, md5 in md5s.items()}
            self._write_record(RECORD, SceneRecord(scene_id, inputs, "", files, unfinished.notes))
        finally:
            for path in unfinished.paths.values():
                path.unlink(missing_ok=True)

    def quarantine(self, scene_id: str, inputs: str, reason: str) -> None:
        """Remove what there is of a scene and record why it has no output; hold `only_one` meanwhile.

        Raises:
            OSError: the file system refused.
        """
        self.forget(scene_id)
        self._write_record(QUARANTINE, SceneRecord(scene_id, inputs, reason))

    def forget(self, scene_id: str) -> None:
        """Remove what there is of a scene, its record first."""
        for ending in (RECORD, QUARANTINE, *reversed(self.endings)):
            self.path(scene_id, ending).unlink(missing_ok=True)

    def _forget_unfinished(self, scene_ids: Collection[str]) -> None:
        """Remove what scenes that are no more have left unfinished, with their locks."""
        for path in self.staging.iterdir() if self.staging.is_dir() else ():
            owner = next((path.name.removesuffix(e) for e in (*self.endings, ".lock") if path.name.endswith(e)), None)
            if owner is not None and owner not in scene_ids:
                path.unlink(missing_ok=True)

    def forget_all(self) -> None:
        """`forget` every scene of the folder."""
        for scene_id in self._scene_ids():
            self.forget(scene_id)

    def share(self, content: Mapping[str, Any]) -> None:
        """Write the one file that all scenes share, unless it holds ``content`` already.

        Raises:
            OSError: the file system refused.
        """
        if not self.shares(content):
            write_json(self.folder / self.shared, content, staging=self.staging)

    def shares(self, content: Mapping[str, Any]) -> bool:
        """Whether the one file that all scenes share holds ``content``."""
        try:
            return bool(self._shared_content() == json.loads(json.dumps(content)))
        except FileNotFoundError:
            return False

    def finish(self, scene_ids: Collection[str]) -> None:
        """End a run over all scenes: remove what scenes left that are no more, and remember the checksums of the others.

        Only files that are named as a scene's are removed, and what killed processes left unfinished.
        """
        for folder in (self.folder, self.staging):
            sweep(folder)
        for scene_id in set(self._scene_ids()) - set(scene_ids):
            self.forget(scene_id)
        self._forget_unfinished(set(scene_ids))
        self._checksums.save()

    def checksums_of(self, scene_id: str) -> dict[str, Entry]:
        """What this process noted of the files that it wrote of a scene, for another one to `take_over`."""
        paths = (self.path(scene_id, ending) for ending in self.endings)
        return self._checksums.noted(paths)

    def take_over(self, checksums: Mapping[str, Entry]) -> None:
        """Note what another process noted of the files that it wrote."""
        self._checksums.take_over(checksums)

    def owns(self, name: str) -> bool:
        """Whether a file of this name is, or could be, one of the step's own."""
        return name == self.shared or name in self._beside or name.endswith((*self.endings, RECORD, QUARANTINE))

    def _scene_ids(self) -> list[str]:
        """Scenes of which there is any file, in order."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        endings = (*self.endings, RECORD, QUARANTINE)
        return sorted({n.removesuffix(e) for n in names for e in endings if n.endswith(e) and n != self.shared})

    def _shared_content(self) -> Any:
        try:
            return json.loads((self.folder / self.shared).read_text(encoding="utf-8"))
        except ValueError:
            return None

    def _write_record(self, ending: str, record: SceneRecord) -> None:
        content: dict[str, Any] = {"scene_id": record.scene_id, "inputs": record.inputs}
        content |= {"reason": record.reason} if record.reason else {"files": record.files, "notes": record.notes}
        write_json(
            self.path(record.scene_id, ending), {**content, "digest": text_digest(content)}, staging=self.staging
        )


@dataclass
class Unfinished:
    """Files of a scene that are being written.

    Attributes:
        paths: the temporary path of each ending.
        notes: what the step wants to find in the record, as JSON values.
    """

    paths: Mapping[str, Path]
    notes: dict[str, Any] = field(default_factory=dict)


@lru_cache(maxsize=16)
def chip_outputs(folder: Path) -> SceneOutputs:
    """A folder of shards; one value a process, so that its memory of checksums is read once."""
    return SceneOutputs(folder, (PIXELS, TABLE), shared=CUT_FILE, command="geokr chips")


@lru_cache(maxsize=16)
def proportion_outputs(folder: Path) -> SceneOutputs:
    """A folder of proportions; one value a process, so that its memory of checksums is read once."""
    return SceneOutputs(folder, (CELLS, TABLE), shared=LEGEND_FILE, command="geokr proportions")


def _read_record(path: Path, scene_id: str) -> SceneRecord | None:
    """A record; None where it is damaged, or another scene's. Raises FileNotFoundError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("digest")
        if digest != text_digest(content) or content["scene_id"] != scene_id:
            return None
        return SceneRecord(**content)
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def checksums_memory(folder: Path) -> Path:
    """Where the checksums of the files in a step's output are remembered."""
    return folder.parent / ".state" / "checksums" / f"{folder.name}.json"


def mapped_array(path: Path) -> np.ndarray:
    """A numpy file of bytes, mapped into memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off, or is no numpy file of bytes.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, OverflowError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        raise ValueError(f"holds {getattr(array, 'dtype', type(array).__name__)}, expected uint8")
    return array


def quarantine_reason(folder: Path, scene_id: str) -> str | None:
    """Why a step that wrote into ``folder`` quarantined a scene, or None if it did not.

    Raises:
        DamagedOutputError: the quarantine record cannot be read.
    """
    path = folder / f"{scene_id}{QUARANTINE}"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["reason"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedOutputError(
            f"{path}: not a readable quarantine record ({error!r}); run the step `{folder.name}` again, which makes the scene anew."
        ) from error


def quarantined_in(folder: Path) -> list[str]:
    """Scenes that a step which wrote into ``folder`` quarantined, in order."""
    return sorted(path.name.removesuffix(QUARANTINE) for path in folder.glob(f"*{QUARANTINE}"))


def scenes_in(folder: Path) -> list[str]:
    """Scenes that have a table in the output folder of a step, in order."""
    return sorted(path.name.removesuffix(TABLE) for path in folder.glob(f"*{TABLE}"))
