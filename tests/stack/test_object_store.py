"""An object store that is slow, answers 500, breaks off or is full, below DVC and below MLflow: the bytes are right or there is a refusal.

Below MLflow it is the server that meets the faults; its own database on a full disk is here as well.
"""

import hashlib
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked_runs import Undisturbed, command, said
from mlflow import MlflowClient
from mlflow_database import mlflow_server
from object_store import credentials, object_store
from small_disks import small_disk
from tiny_worlds import tiny_world
from unreliable_server import HALF_SENT, KINDS, Unreliable, unreliable

from geokr_core.chain.params import load_params
from geokr_core.chain.steps import Folders
from geokr_core.step.digests import file_md5

pytest.importorskip("dvc_s3", reason="dvc-s3 is not installed: `make test-stack` installs it")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
SEED = 23
SLOW_SECONDS = 4.0
QUICK = {"AWS_MAX_ATTEMPTS": "2", "DVC_NO_ANALYTICS": "1"}


class Checkout:
    """A repository whose folder ``data`` DVC keeps in a bucket."""

    def __init__(self, folder: Path, url: str, keys: Path) -> None:
        self.folder, self.ends = folder, Counter[str]()
        folder.mkdir()
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        self.must("init", "-q")
        self.must("remote", "add", "--default", "objects", "s3://bucket")
        for name, value in (("endpointurl", url), ("credentialpath", str(keys)), ("read_timeout", "2")):
            self.must("remote", "modify", "objects", name, value)

    def dvc(self, *words: str) -> subprocess.CompletedProcess[str]:
        program = str(Path(sys.executable).parent / "dvc")
        environment = {**os.environ, **QUICK}
        return subprocess.run(
            [program, *words], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )

    def must(self, *words: str) -> None:
        done = self.dvc(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"

    def insist(self, word: str, after_each: Callable[[], None], tries: int = 12) -> None:
        """Repeat a command until it succeeds; each refusal has a name, and what there is after it is right."""
        for _ in range(tries):
            done = self.dvc(word)
            after_each()
            self.ends[f"{word} {done.returncode}"] += 1
            if done.returncode == 0:
                return
            assert "ERROR" in done.stderr, done.stderr
            assert "Traceback" not in done.stderr, done.stderr
        raise AssertionError(f"{word} did not succeed in {tries} tries: {done.stderr}")


def written(folder: Path) -> dict[str, str]:
    """Some files of random bytes, small and large; md5 by name."""
    rng = random.Random(SEED)
    folder.mkdir()
    for number in range(24):
        (folder / f"{number}.bin").write_bytes(rng.randbytes(rng.randrange(1, 400_000)))
    return {path.name: file_md5(path) for path in folder.iterdir()}


def assert_objects_are_whole(bucket: Path) -> None:
    """DVC names an object by its md5: no name may stand over other bytes, which the next push would take for the right ones."""
    for path in (bucket / "files" / "md5").rglob("*"):
        if path.is_file() and not path.name.endswith(".dir"):
            assert hashlib.md5(path.read_bytes()).hexdigest() == path.parent.name + path.name, path  # noqa: S324


def test_dvc_pushes_and_pulls_the_right_bytes_through_a_store_that_spoils_requests(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    keys = credentials(tmp_path)
    with (
        object_store(tmp_path / "objects", "bucket") as port,
        unreliable(port, SEED, kinds=(*KINDS, HALF_SENT), slow_seconds=SLOW_SECONDS, same_host=True) as server,
    ):
        first = Checkout(tmp_path / "first", server.url, keys)
        wanted = written(first.folder / "data")
        first.must("add", "-q", "data")
        server.spoiled_fraction = 0.2
        first.insist("push", lambda: assert_objects_are_whole(tmp_path / "objects" / "bucket"))

        second = Checkout(tmp_path / "second", server.url, keys)
        shutil.copy(first.folder / "data.dvc", second.folder)

        def right_so_far() -> None:
            there = {path.name: file_md5(path) for path in (second.folder / "data").glob("*.bin")}
            assert there.items() <= wanted.items()

        second.insist("pull", right_so_far)
        assert {path.name: file_md5(path) for path in (second.folder / "data").iterdir()} == wanted
        server.spoiled_fraction = 0.0
        assert "in sync" in first.dvc("status", "--cloud").stdout
    record_property("fault", "S3 below DVC: " + ", ".join(f"{kind} {n}" for kind, n in sorted(server.spoiled.items())))
    record_property("kills", server.spoiled.total())
    record_property("ends", ", ".join(f"{end} {n}" for end, n in sorted((first.ends + second.ends).items())))


def test_dvc_says_that_the_store_is_full_and_pushes_the_rest_later(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    keys, refused = credentials(tmp_path), 0
    with small_disk(tmp_path / "disk") as resize:
        resize(1_000_000)
        with object_store(tmp_path / "disk" / "objects", "bucket") as port:
            first = Checkout(tmp_path / "first", f"http://127.0.0.1:{port}", keys)
            wanted = written(first.folder / "data")
            first.must("add", "-q", "data")
            bucket = tmp_path / "disk" / "objects" / "bucket"
            for size in (1_000_000, 2_000_000, 3_000_000):
                resize(size)
                done = first.dvc("push")
                assert done.returncode != 0, "a full store took all"
                assert "ERROR" in done.stderr, done.stderr
                assert "Traceback" not in done.stderr, done.stderr
                assert_objects_are_whole(bucket)
                refused += 1
            resize(30_000_000)
            first.must("push")
            second = Checkout(tmp_path / "second", f"http://127.0.0.1:{port}", keys)
            shutil.copy(first.folder / "data.dvc", second.folder)
            second.must("pull")
            assert {path.name: file_md5(path) for path in (second.folder / "data").iterdir()} == wanted
    record_property("fault", "S3 below DVC: full")
    record_property("kills", refused)


@pytest.fixture
def evaluated(tmp_path: Path, undisturbed: Undisturbed) -> Path:
    """A project in which everything but the promotion is made."""
    project = tmp_path / "project"
    for name in ("store", "world"):
        shutil.copytree(undisturbed.project / name, project / name)
    for made in ("champion", ".state/champion"):
        shutil.rmtree(project / "store" / made)
    tiny_world(project)
    return project


def promoted(project: Path, server_port: int, *, patience: int = 1) -> int:
    """`geokr promote` through a server; its exit code, of a refusal one with a name."""
    code = command(
        project,
        "promote",
        MLFLOW_TRACKING_URI=f"http://127.0.0.1:{server_port}",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES=str(patience),
        MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR="0",
        GEOKR_SPOOL=str(project / "spool"),
    ).wait(timeout=600)
    assert code in (0, 2), said(project)
    assert "Traceback" not in said(project), said(project)
    return code


def champion_is(project: Path, server_port: int, to: Path, *, tries: int = 1) -> Counter[str]:
    """Download the champion; in the end it has the bytes of the bundle. Refusals by exit code."""
    ends = Counter[str]()
    bundle = Folders(load_params(project / "params.yaml"))["backbone"]
    for _ in range(tries):
        code = command(
            project,
            *("download", "geokr-resnet18@champion", "--to", str(to)),
            MLFLOW_TRACKING_URI=f"http://127.0.0.1:{server_port}",
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
            MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR="0",
        ).wait(timeout=600)
        ends[f"download {code}"] += 1
        assert code in (0, 2), said(project)
        assert "Traceback" not in said(project), said(project)
        if to.exists():
            assert file_md5(to / "backbone.safetensors") == file_md5(bundle / "backbone.safetensors")
        if code == 0:
            return ends
    raise AssertionError(f"no download in {tries} tries: {said(project)}")


@pytest.fixture
def spoiled_store(tmp_path: Path) -> Iterator[tuple[Unreliable, Path]]:
    """An object store that spoils requests when it is told to, and its objects."""
    with (
        object_store(tmp_path / "objects", "bucket") as port,
        unreliable(port, SEED, kinds=(*KINDS, HALF_SENT), slow_seconds=SLOW_SECONDS, same_host=True) as server,
    ):
        yield server, tmp_path / "objects" / "bucket"


def test_a_champion_is_whole_or_refused_where_the_store_below_mlflow_spoils_requests(
    tmp_path: Path,
    empty_database: Path,
    evaluated: Path,
    spoiled_store: tuple[Unreliable, Path],
    record_property: Callable[[str, object], None],
) -> None:
    store, _ = spoiled_store
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    environment = {
        "MLFLOW_S3_ENDPOINT_URL": store.url,
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials(tmp_path)),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",  # what is tried is the chain, not the patience of the client
    }
    ends = Counter[str]()
    with mlflow_server(tmp_path, "s3://bucket", **environment) as port:
        store.spoiled_fraction = 0.15
        for _ in range(3):
            ends[f"promote {promoted(evaluated, port)}"] += 1
        store.spoiled_fraction = 0.0
        assert promoted(evaluated, port) == 0, said(evaluated)
        client = MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
        (model,) = client.search_registered_models()
        assert set(model.aliases) == {"champion", "challenger"}
        store.spoiled_fraction = 0.15
        ends += champion_is(evaluated, port, tmp_path / "downloaded", tries=12)
    record_property(
        "fault", "S3 below MLflow: " + ", ".join(f"{kind} {n}" for kind, n in sorted(store.spoiled.items()))
    )
    record_property("kills", store.spoiled.total())
    record_property("ends", ", ".join(f"{end} {n}" for end, n in sorted(ends.items())))


@pytest.mark.parametrize("full", ["artifacts", "database"])
def test_a_full_disk_below_mlflow_is_a_refusal_and_nothing_is_lost(
    tmp_path: Path,
    empty_database: Path,
    evaluated: Path,
    full: str,
    record_property: Callable[[str, object], None],
) -> None:
    ends = Counter[str]()
    with small_disk(tmp_path / "disk") as disk:
        disk(40_000_000)
        database = tmp_path / "disk" if full == "database" else tmp_path
        artifacts = tmp_path / "disk" / "artifacts" if full == "artifacts" else tmp_path / "artifacts"
        shutil.copy(empty_database, database / "mlflow.db")
        with mlflow_server(database, artifacts) as port:
            for room in (0, 40_000, 400_000) if full == "artifacts" else (0, 4_096, 16_384):
                disk.leave(room)
                ends[f"promote {promoted(evaluated, port)}"] += 1
            disk(200_000_000)
            assert promoted(evaluated, port) == 0, said(evaluated)
            champion_is(evaluated, port, tmp_path / "downloaded")
    assert ends["promote 2"] > 0, "the disk was never full"
    record_property("fault", f"a full disk below MLflow's {full}")
    record_property("kills", ends["promote 2"])
