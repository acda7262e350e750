"""Damage to any file of a finished store is healed by the next run, or refused by name: never believed, never a traceback."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from geokr_core.chain.params import Params, load_params
from geokr_core.chain.run import run
from geokr_core.chain.status import status, verify
from geokr_core.errors import DamagedOutputError, GeoKRError
from geokr_core.step.reporter import RecordingReporter

KINDS = ("flip", "truncate", "zero", "empty", "delete", "swap")
MADE = ("data/world", *(f"data/store/{name}" for name in ("scenes", "land_cover", "chips", "proportions", "levir_kr")))
ALL = (*MADE, *(f"data/store/{name}" for name in ("pretraining", "backbone", "evaluation", "report", "champion")))


def files_below(folder: Path, *places: str) -> list[Path]:
    return sorted(path for place in places for path in (folder / place).rglob("*") if path.is_file())


def contents(folder: Path, *places: str) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files_below(folder, *places)}
    return {name: content for name, content in found.items() if not name.endswith("~")}


def damage(path: Path, kind: str, others: list[Path], rng: random.Random) -> str:
    """Do something to a file that no step does; what was done, for messages."""
    content = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
    elif kind == "swap" and len(others) > 1:
        other = rng.choice([one for one in others if one != path])
        mine, its = bytes(content), other.read_bytes()
        path.write_bytes(its)
        other.write_bytes(mine)
        return f"swap {path} with {other}"
    elif kind == "empty" or len(content) < 2:
        path.write_bytes(b"")
    elif kind == "truncate":
        path.write_bytes(bytes(content[: rng.randrange(len(content))]))
    else:
        first = rng.randrange(len(content))
        last = min(len(content), first + rng.choice([1, 64, 4096]))
        for place in range(first, last):
            content[place] = content[place] ^ 0xFF if kind == "flip" else 0
        path.write_bytes(bytes(content))
    return f"{kind} {path}"


@pytest.fixture
def store(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The finished store; what a test did to it is healed afterwards."""
    monkeypatch.chdir(finished)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished / 'mlflow.db'}")
    kept = finished.parent / "kept"
    if not kept.exists():
        shutil.copytree(finished, kept)
    yield finished
    shutil.rmtree(finished / "data")
    shutil.copytree(kept / "data", finished / "data")
    # Into the same file: MLflow holds the database open, and could not write to one that was unlinked.
    shutil.copyfile(kept / "mlflow.db", finished / "mlflow.db")


def parameters() -> Params:
    return load_params("params.yaml", ["pretraining.steps=3"])


def assert_healed(store: Path, before: dict[str, bytes], told: str, steps: tuple[str, ...] | None, *places: str) -> str:
    """Run the chain; ``healed``, or ``refused by name``."""
    try:
        run(parameters(), RecordingReporter(), steps=steps)
    except GeoKRError as error:
        assert str(store.name) in str(error) or "data" in str(error), f"{told}: refused without a name: {error}"  # noqa: PT017
        return "refused by name"
    after = contents(store, *places)
    assert after == before, f"{told}: {sorted(name for name in before | after if before.get(name) != after.get(name))}"
    return "healed"


def owner(store: Path, path: Path) -> str:
    """Whose file it is: of the world, of a step, or what the chain remembers."""
    parts = path.relative_to(store / "data").parts
    return parts[0] if parts[0] == "world" else parts[1] if len(parts) > 2 else "store"


def draw_a_kind(store: Path, rng: random.Random) -> tuple[str, str]:
    """Damage a file of the world, the store or its records: each kind of file of each owner as often as any other."""
    files = files_below(store, "data")
    by_kind: dict[tuple[str, str], list[Path]] = {}
    for path in files:
        by_kind.setdefault((owner(store, path), "".join(end for end in path.suffixes if end[1:].isalpha())), []).append(
            path
        )
    kind = rng.choice(sorted(by_kind))
    return damage(rng.choice(by_kind[kind]), rng.choice(KINDS), files, rng), kind[0]


def draw(store: Path, rng: random.Random, *places: str) -> str:
    files = files_below(store, *places)
    return damage(rng.choice(files), rng.choice(KINDS), files, rng)


@pytest.mark.parametrize("seed", range(3))
def test_a_handful_of_damages_before_training(store: Path, seed: int, first_steps: tuple[str, ...]) -> None:
    before = contents(store, *MADE)
    told = draw(store, random.Random(seed), *MADE)
    assert_healed(store, before, told, first_steps, *MADE)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("GEOKR_NUM_DAMAGES", "60"))))
def test_damage_to_any_file_is_healed_or_refused(
    store: Path, seed: int, record_property: Callable[[str, object], None]
) -> None:
    before = contents(store, *ALL)
    told, place = draw_a_kind(store, random.Random(1000 + seed))
    record_property("damage", told.partition(" ")[0])
    record_property("place", place)
    record_property("outcome", assert_healed(store, before, told, None, *ALL))


def test_damage_is_named_and_made_again_and_never_recorded_as_right(store: Path, first_steps: tuple[str, ...]) -> None:
    before = contents(store, *MADE)
    shard = next((store / "data/store/chips").glob("*.npy"))
    recorded = (store / "data/store/.state/chips/state.json").read_bytes()
    shard.write_bytes(bytes(byte ^ 0xFF for byte in shard.read_bytes()))
    reasons = {one.step: one.reasons for one in status(parameters())}
    assert f"{shard.name}: not the bytes that were written" in reasons["chips"]
    assert reasons["proportions"] == ("only if chips comes out otherwise than it was",)
    states = {one.step: (one.state, one.causes) for one in status(parameters())}
    assert states["chips"] == ("to do", ())
    assert all(causes[0] == "chips" for state, causes in states.values() if state == "follows")
    assert [one.path.name for one in verify(parameters())] == [shard.name]
    with pytest.raises(DamagedOutputError, match=rf"{shard.name}: not the bytes .*Run `geokr chips`"):
        run(parameters(), steps=["proportions"])
    reporter = RecordingReporter()
    outcomes = {one.step: one for one in run(parameters(), reporter, steps=first_steps)}
    assert any(shard.name in warning for warning in reporter.warnings)
    assert not outcomes["chips"].was_current
    assert outcomes["proportions"].was_current
    assert contents(store, *MADE) == before
    assert (
        json.loads(recorded)["files"] == json.loads((store / "data/store/.state/chips/state.json").read_text())["files"]
    )


def test_a_scene_replaced_under_the_same_size_and_time_is_seen(store: Path) -> None:
    scene = next((store / "data/world/scenes").glob("*.tiff"))
    stat = scene.stat()
    content = bytearray(scene.read_bytes())
    content[len(content) // 2] ^= 0xFF
    scene.write_bytes(bytes(content))
    os.utime(scene, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found = {one.step: one for one in status(parameters())}
    assert found["world"].reasons == (f"scenes/{scene.name}: not the bytes that were written",)
    assert found["scenes"].state == "follows"


def test_what_somebody_put_among_outputs_is_moved_away_and_kept(store: Path) -> None:
    (store / "data/store/levir_kr/notes.txt").write_text("mine")
    (store / "data/world/scenes/notes.txt").write_text("mine, too")
    reporter = RecordingReporter()
    outcomes = {one.step: one for one in run(parameters(), reporter, steps=["world", "levir_kr"])}
    assert outcomes["world"].was_current
    assert outcomes["levir_kr"].was_current, "moving the file away is all there was to do"
    assert (store / "data/store/foreign-files/levir_kr/notes.txt").read_text() == "mine"
    assert (store / "data/world/scenes/notes.txt").read_text() == "mine, too"
    assert any("foreign-files" in warning for warning in reporter.warnings)


def test_the_reason_names_the_first_changed_key_file_or_input(store: Path) -> None:
    changed = load_params("params.yaml", ["pretraining.steps=3", "chips.stride_px=32", "chips.workers=2"])
    found = {one.step: one for one in status(changed)}
    assert found["chips"].reasons == ("chips.stride_px: 16 → 32",)
    assert {found[name].state for name in ("proportions", "levir_kr", "backbone", "champion")} == {"follows"}
    (store / "data/world/scenes/new.txt").write_text("new")
    found = {one.step: one for one in status(parameters())}
    assert found["scenes"].reasons == ("files below data/world/scenes: 1 new (first: new.txt)",)


def test_a_registry_that_is_gone_is_noticed(store: Path) -> None:
    (store / "mlflow.db").unlink()
    found = {one.step: one for one in status(parameters())}
    assert found["champion"].state == "to do"
    assert "registry" in found["champion"].reasons[0]
    assert found["report"].state == "up to date"


def test_a_step_whose_code_gives_another_output_runs_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from geokr_core.levir_kr.config import LevirKRConfig

    monkeypatch.setattr(LevirKRConfig, "code_version", LevirKRConfig.code_version + 1)
    found = {one.step: one for one in status(parameters())}
    assert "code of levir_kr: 1 → 2" in found["levir_kr"].reasons
    assert found["chips"].state == "up to date"
