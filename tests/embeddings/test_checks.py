"""What must hold of vectors and of an audit, as the chain judges it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from geokr_core.audit.output import RESULT_FILE
from geokr_core.chain.delivery_checks import audit_finds_planted_errors, every_chip_has_a_vector
from geokr_core.embeddings.config import EmbeddingsConfig
from geokr_core.embeddings.embed import embed_scenes
from geokr_core.errors import MissingInputError
from geokr_core.step.files import write_json
from geokr_core.step.reporter import RecordingReporter


def test_a_scene_that_was_cut_and_not_embedded_fails(archive: Callable[..., Path], weights: Path) -> None:
    store = archive("north")
    embed_scenes(
        EmbeddingsConfig.model_validate({"architecture": "squeezenet1_1", "weights": weights, "workers": 1}),
        None,
        store / "chips",
        store / "out",
        RecordingReporter(),
    )
    found = every_chip_has_a_vector(store / "out", store / "chips")
    assert found.passed, found.message
    archive("north", "south")
    late = every_chip_has_a_vector(store / "out", store / "chips")
    assert not late.passed
    assert late.table[0]["scene"] == "south"
    with pytest.raises(MissingInputError):
        every_chip_has_a_vector(store / "nothing", store / "chips")


@pytest.mark.parametrize(
    ("planted", "passed", "said"),
    [
        ({"gross": {"average_precision": 0.9}}, True, "gross errors with an average precision of 0.90"),
        ({"gross": {"average_precision": 0.9}, "gentle": {"average_precision": 0.06}}, False, "gentle.*hardly more"),
        ({}, False, "No error could be planted"),
    ],
)
def test_an_audit_that_misses_its_own_errors_fails(
    tmp_path: Path, planted: dict[str, object], passed: bool, said: str
) -> None:
    write_json(tmp_path / RESULT_FILE, {"planted": planted, "planted_fraction": 0.05, "num_chips": 100})
    found = audit_finds_planted_errors(tmp_path)
    assert found.passed == passed
    assert re.search(said, found.message)
    with pytest.raises(MissingInputError):
        audit_finds_planted_errors(tmp_path / "nothing")
