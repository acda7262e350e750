"""The parameter files: all shipped ones load, and a typo is answered with what was meant."""

from pathlib import Path

import pytest
import yaml

from geokr_core.chain.parameters_reference import parameters_reference
from geokr_core.chain.params import load_params
from geokr_core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "name",
    # All but those that hold something else.
    ["params.yaml"]
    + [
        f"params/{file.name}"
        for file in sorted((ROOT / "params").glob("*.yaml"))
        if file.name not in ("catalogues.yaml", "gewata_legend.yaml")
    ],
)
def test_shipped_parameter_files_load(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params = load_params(Path(name))
    assert params.store != Path()
    assert params.uses_world is (name == "params.yaml")


def edited(tmp_path: Path, **changes: object) -> Path:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            content[section][name] = value
        else:
            content[section] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_typo_in_a_key_is_answered_with_the_key_meant(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"params\.yaml: 1 wrong.*\n.*chips\.size_pixel: unknown key\. Did you mean `size_px`\?"
    ):
        load_params(edited(tmp_path, chips__size_pixel=64))


def test_a_typo_in_a_section_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pretrainig: unknown key. Did you mean `pretraining`"):
        load_params(edited(tmp_path, pretrainig={}))


def test_a_value_out_of_range_is_named_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"levir_kr\.validation_fraction: .*less than 1 \(found 3\)"):
        load_params(edited(tmp_path, levir_kr__validation_fraction=3))


def test_sections_must_agree(tmp_path: Path) -> None:
    champion = {"primary": [{"task": "no_such_task"}]}
    with pytest.raises(ConfigError, match="champion: task 'no_such_task' is none of"):
        load_params(edited(tmp_path, champion=champion))


def test_primary_criteria_are_measured_with_the_same_seeds(tmp_path: Path) -> None:
    primary = [{"task": "scene_classification"}, {"task": "segmentation", "protocol": "fine_tune", "metric": "miou"}]
    tasks = yaml.safe_load((ROOT / "params.yaml").read_text())["evaluation"]["tasks"]
    for task in tasks:
        task["seeds"] = [0, 1]
    assert load_params(edited(tmp_path, evaluation__tasks=tasks, champion={"primary": primary}))
    next(task for task in tasks if task["name"] == "segmentation")["seeds"] = [0]
    with pytest.raises(ConfigError, match=r"different seeds: scene_classification \[0, 1\], segmentation \[0\]; give"):
        load_params(edited(tmp_path, evaluation__tasks=tasks, champion={"primary": primary}))
    as_guard = {"primary": primary[:1], "guards": primary[1:]}
    assert load_params(edited(tmp_path, evaluation__tasks=tasks, champion=as_guard))


@pytest.mark.parametrize("seeds", ["[0, 0]", "[-1]"])
def test_seeds_of_pretraining_differ_and_are_not_negative(tmp_path: Path, seeds: str) -> None:
    for override in (f"pretraining.seeds={seeds}", f"pretraining.variants=[geokr, {{name: more, seeds: {seeds}}}]"):
        with pytest.raises(ConfigError, match="seeds"):
            load_params(edited(tmp_path), [override])


def test_overrides_apply_and_are_checked(tmp_path: Path) -> None:
    path = edited(tmp_path)
    assert load_params(path, ["chips.size_px=32", "pretraining.seeds=[3, 4]"]).pretraining.seeds == (3, 4)
    with pytest.raises(ConfigError, match="expected section.key=value"):
        load_params(path, ["chips"])
    with pytest.raises(ConfigError, match="unknown key"):
        load_params(path, ["chips.size=32"])


def test_a_file_gives_only_what_differs_from_the_one_it_extends(tmp_path: Path) -> None:
    base = load_params(edited(tmp_path))
    study = tmp_path / "study.yaml"
    study.write_text("extends: params.yaml\nchips: {stride_px: 32}\npretraining: {seeds: [5]}\n")
    found = load_params(study, ["chips.size_px=16"])
    assert (found.chips.stride_px, found.chips.size_px, found.pretraining.seeds) == (32, 16, (5,))
    assert found.chips.bands == base.chips.bands
    assert found.pretraining.model_copy(update={"seeds": base.pretraining.seeds}) == base.pretraining
    assert found.scenes == base.scenes


def test_what_is_extended_must_be_there_and_not_extend_back(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("extends: base.yaml\n")
    with pytest.raises(ConfigError, match=r"base\.yaml: no such parameter file\. .*study\.yaml extends it"):
        load_params(study)
    (tmp_path / "base.yaml").write_text("extends: study.yaml\n")
    with pytest.raises(ConfigError, match=r"base\.yaml: `extends: study\.yaml` must name another parameter file"):
        load_params(study)
    for base in ('""', ".", "../other.yaml", "[a]"):
        study.write_text(f"extends: {base}\n")
        with pytest.raises(ConfigError, match="must name another parameter file of the same folder"):
            load_params(study)


def test_a_typo_in_what_is_extended_is_looked_for_there_too(tmp_path: Path) -> None:
    edited(tmp_path, chips__size_pixel=64)
    study = tmp_path / "study.yaml"
    study.write_text("extends: params.yaml\n")
    with pytest.raises(ConfigError, match=r"study\.yaml, or what it extends \(params\.yaml\): 1 wrong"):
        load_params(study)


def test_the_file_that_dvc_reads_extends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text((ROOT / "params.yaml").read_text())
    Path("params.yaml").write_text("extends: base.yaml\n")
    with pytest.raises(ConfigError, match=r"DVC reads this one itself"):
        load_params()


def test_the_file_is_known_by_where_it_lies_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert load_params(Path("params/zion.yaml")).file == "params/zion.yaml"
    assert load_params(ROOT / "params" / "zion.yaml").file == "params/zion.yaml"
    assert load_params(edited(tmp_path)).file == "params.yaml"  # no machine's paths


def test_no_file_says_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"params\.yaml: no such parameter file.*--params or \$GEOKR_PARAMS"):
        load_params()
    monkeypatch.setenv("GEOKR_PARAMS", str(edited(tmp_path).rename(tmp_path / "other.yaml")))
    assert load_params().uses_world


def test_the_reference_of_parameters_is_up_to_date() -> None:
    assert (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8") == parameters_reference(), (
        "run `geokr parameters > docs/parameters.md`"
    )
