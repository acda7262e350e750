"""An earlier audit leaves training chips out or lets them weigh less; held-out chips and unset parameters are as they were."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geokr_core.chain.calls import refuse_audit
from geokr_core.chain.freshness import own_inputs
from geokr_core.chain.params import load_params
from geokr_core.chain.steps import STEPS
from geokr_core.errors import ConfigError, DatasetError, MissingInputError
from geokr_core.levir_kr.config import LevirKRConfig
from geokr_core.levir_kr.dataset import LevirKR, open_levir_kr
from geokr_core.levir_kr.freeze import freeze
from geokr_core.pretraining.config import PretrainingConfig
from geokr_core.pretraining.labels import label_weights, labels_of_data
from geokr_core.step.digests import file_md5
from geokr_core.step.reporter import RecordingReporter
from geokr_core.step.section import as_plain, effective
from geokr_core.testing import make_levir_kr

NUM = 100


@pytest.fixture
def data(tmp_path: Path) -> LevirKR:
    return make_levir_kr(tmp_path, num_chips=NUM, chip_size_px=8, cells_per_side=0)


def audit_of(data: LevirKR, path: Path) -> pd.DataFrame:
    """An audit in the form of `geokr audit`: the chips in a drawn order, scores 100, 99 … 1."""
    order = np.random.default_rng(0).permutation(len(data.catalogue))
    rows = data.catalogue.iloc[order].reset_index(drop=True)
    shares = {f"map_{name}": rows[f"fraction_{name}"].round(4) for name in data.classes}
    ranks = np.arange(1, len(rows) + 1)
    table = pd.DataFrame(
        {
            "rank": ranks,
            "chip_id": rows["chip_id"].astype(str),
            "score": 101.0 - ranks,
            **shares,
            "split": rows["split"],
        }
    )
    table.drop(columns="split").to_parquet(path, index=False)
    return table


def pinned(path: Path) -> dict[str, str]:
    return {"file": str(path), "md5": file_md5(path)}


def refrozen(data: LevirKR, reporter: RecordingReporter | None = None, **audit: object) -> LevirKR:
    store = data.folder.parent
    config = LevirKRConfig.model_validate({"validation_fraction": 0.2, "place_size_deg": 0.5, "audit": audit or None})
    freeze(config, store / "chips", store / "proportions", data.folder, reporter or RecordingReporter())
    return open_levir_kr(data.folder)


def test_flagged_training_chips_are_left_out_and_held_out_ones_stay(data: LevirKR, tmp_path: Path) -> None:
    table, reporter = audit_of(data, tmp_path / "audit.parquet"), RecordingReporter()
    found = refrozen(data, reporter, use="exclude", table=pinned(tmp_path / "audit.parquet"), flagged_fraction=0.3)
    first = table.head(30)
    gone = set(first.loc[first["split"] == "train", "chip_id"])
    assert 0 < len(gone) < 30, "some of the first thirty are held out"
    assert set(data.catalogue["chip_id"]) - set(found.catalogue["chip_id"]) == gone
    assert found.manifest["audit"]["num_flagged"] == len(gone)
    assert found.manifest["audit"]["num_audited"] == NUM
    assert str(tmp_path) not in str(found.manifest["audit"]) + str(found.manifest["config"])
    assert any(f"{len(gone)} training chips that an audit flagged are left out" in line for line in reporter.infos)


def test_flagged_chips_weigh_less_the_higher_their_score(data: LevirKR, tmp_path: Path) -> None:
    table = audit_of(data, tmp_path / "audit.parquet").set_index("chip_id")
    found = refrozen(data, use="weight", table=pinned(tmp_path / "audit.parquet"), flagged_fraction=0.3)
    catalogue = found.catalogue
    told = table.loc[catalogue["chip_id"].astype(str)]
    expected = np.where((told["rank"] <= 30) & (told["split"] == "train"), 71.0 / told["score"], 1.0)
    np.testing.assert_allclose(catalogue["audit_weight"], expected, rtol=1e-6)
    assert len(catalogue) == NUM
    # Training counts them, whether or not the recipe weighs labels by what is known of them, too.
    train = found.rows_of("train")
    for weighting in (False, True):
        config = PretrainingConfig.model_validate({"label_weighting": weighting})
        weights = labels_of_data(found, train, config.recipe("geokr"), 0).weights
        assert weights is not None
        own = label_weights(catalogue.iloc[train]) if weighting else np.ones(len(train))
        np.testing.assert_allclose(
            weights[train] / weights[train][0], own * expected[train] / (own * expected[train])[0], rtol=1e-4
        )
        assert weights[train].mean() == pytest.approx(1.0, rel=1e-5)


def test_what_people_judged_counts_more_than_the_list(data: LevirKR, tmp_path: Path) -> None:
    table = audit_of(data, tmp_path / "audit.parquet")
    train = table[table["split"] == "train"].reset_index(drop=True)
    by_map = train[[f"map_{name}" for name in data.classes]].to_numpy().argmax(axis=1)
    flagged, fine, unsure = 0, len(train) - 1, 1
    judged = {
        flagged: data.classes[by_map[flagged]],  # the map is right: not flagged any more
        fine: data.classes[by_map[fine] - 1],  # far down the list, and wrong
        unsure: "unsure",  # as the list has it
    }
    pd.DataFrame({"chip_id": [train["chip_id"][k] for k in judged], "label": list(judged.values())}).to_parquet(
        tmp_path / "judged.parquet"
    )
    files = {"table": pinned(tmp_path / "audit.parquet"), "judgements": pinned(tmp_path / "judged.parquet")}
    weights = refrozen(data, use="weight", flagged_fraction=0.3, **files).catalogue.set_index("chip_id")["audit_weight"]
    assert weights[train["chip_id"][flagged]] == 1.0
    assert weights[train["chip_id"][fine]] == 0.0
    assert 0 < weights[train["chip_id"][unsure]] < 1
    left = set(refrozen(data, use="exclude", flagged_fraction=0.3, **files).catalogue["chip_id"])
    assert train["chip_id"][flagged] in left
    assert not {train["chip_id"][fine], train["chip_id"][unsure]} & left


def test_chips_that_the_audit_does_not_know_as_they_are_stay(data: LevirKR, tmp_path: Path) -> None:
    path = tmp_path / "audit.parquet"
    audit_of(data, path)
    table = pd.read_parquet(path)
    first = f"map_{data.classes[0]}"
    table[first] = np.where(table["rank"] <= 50, 2.0, table[first])  # the map said something else then
    table.to_parquet(path)
    found = refrozen(data, use="exclude", table=pinned(path), flagged_fraction=0.3)
    assert len(found.catalogue) == NUM
    assert found.manifest["audit"]["num_audited"] == 50
    table.assign(chip_id="other-" + table["chip_id"]).to_parquet(path)
    with pytest.raises(DatasetError, match=r"knows none of the 100 chips"):
        refrozen(data, use="exclude", table=pinned(path))


def test_files_that_are_not_what_was_meant_are_refused(data: LevirKR, tmp_path: Path) -> None:
    path, judged = tmp_path / "audit.parquet", tmp_path / "judged.parquet"
    audit_of(data, path)
    meant = pinned(path)
    pd.DataFrame({"chip_id": ["scene0-00000"], "label": ["lava"]}).to_parquet(judged)
    with pytest.raises(DatasetError, match="label 'lava' is no class"):
        refrozen(data, use="weight", table=meant, judgements=pinned(judged))
    pd.DataFrame({"chip_id": ["x"], "label": ["unsure"]}).to_parquet(judged)
    with pytest.raises(DatasetError, match="none of its 1 chips is in the audit"):
        refrozen(data, use="weight", table=meant, judgements=pinned(judged))
    pd.DataFrame({"chip_id": ["scene0-00000", None], "label": ["unsure", None]}).to_parquet(judged)
    with pytest.raises(DatasetError, match="a chip_id or label is not text"):
        refrozen(data, use="weight", table=meant, judgements=pinned(judged))
    twice = pd.read_parquet(path)
    pd.concat([twice, twice.head(1)]).to_parquet(tmp_path / "twice.parquet")
    with pytest.raises(DatasetError, match="a chip stands there twice"):
        refrozen(data, use="weight", table=pinned(tmp_path / "twice.parquet"))
    with pytest.raises(DatasetError, match=r"column 'rank' is missing; expected audit\.parquet"):
        refrozen(data, use="weight", table=pinned(judged))
    path.write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match=r"its md5 is [0-9a-f]{32}, but `levir_kr\.audit\.table\.md5` says"):
        refrozen(data, use="weight", table=meant)
    with pytest.raises(DatasetError, match="not a readable Parquet file"):
        refrozen(data, use="weight", table=pinned(path))
    path.unlink()
    with pytest.raises(MissingInputError, match=r"`levir_kr\.audit\.table\.file` names it"):
        refrozen(data, use="weight", table=meant)


def test_the_audit_that_the_chain_itself_makes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[2]
    monkeypatch.chdir(tmp_path)
    own = Path("data/store/map_audit/audit.parquet")
    own.parent.mkdir(parents=True)
    own.write_bytes(b"an audit")
    table = f"{{file: %s, md5: {file_md5(own)}}}"
    given = load_params(root / "params.yaml", ["levir_kr.audit={use: exclude, table: " + table % own + "}"])
    with pytest.raises(ConfigError, match="is what this chain itself makes after `levir_kr`"):
        refuse_audit(given)
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(b"an audit")
    given = load_params(root / "params.yaml", ["levir_kr.audit={use: exclude, table: " + table % copy + "}"])
    refuse_audit(given)
    assert own_inputs(given, STEPS["levir_kr"])[f"file {copy}"] == file_md5(copy)
    copy.write_bytes(b"another audit")
    with pytest.raises(ConfigError, match="it is not the file that was meant"):
        refuse_audit(given)


def test_without_an_audit_nothing_is_said_of_one(data: LevirKR) -> None:
    assert "audit" not in effective(LevirKRConfig())
    assert "audit" not in as_plain(LevirKRConfig())
    assert "audit" not in data.manifest
    assert "audit" not in data.manifest["config"]["levir_kr"]
    assert "audit_weight" not in data.catalogue
    params = load_params(Path(__file__).resolve().parents[2] / "params.yaml")
    for step in ("levir_kr", "map_audit"):
        assert not [name for name in own_inputs(params, STEPS[step]) if "levir_kr.audit" in name]
