"""Launchpad forms: the fields of a section, and what a filled form lays over the parameter file."""

from pathlib import Path

import dagster as dg
import pytest

from geokr_assets.forms import form_of, overrides_of
from geokr_assets.resources import ParamsFile
from geokr_core.chain.params import Params, load_params
from geokr_core.chain.steps import STEPS
from geokr_core.errors import ConfigError
from geokr_core.step.explain import section_of


@pytest.mark.parametrize("step", STEPS)
def test_a_form_has_every_field_of_its_section_and_dagster_takes_it(step: str) -> None:
    fields = {name for s in STEPS[step].sections for name in (section_of(Params, s) or Params).model_fields}
    assert set(form_of(step).model_fields) == {"force", *fields}

    def made(config) -> None: ...

    made.__annotations__["config"] = form_of(step)
    shape = dg.op(made).config_schema.config_type
    assert set(shape.fields) == {"force", *fields}
    assert not any(field.is_required for field in shape.fields.values())


def test_defaults_bounds_and_choices_are_told() -> None:
    told = {name: str(field.description) for name, field in form_of("pretraining").model_fields.items()}
    assert "at least 1" in told["steps"]
    assert "default 200" in told["steps"]
    assert "one of geokr, averaged_teacher, continued, enlarged, paper" in told["preset"]


def test_an_empty_form_changes_nothing() -> None:
    assert all(overrides_of(step, form_of(step)()) == [] for step in STEPS)


def test_a_filled_form_lies_over_the_file(tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "params.yaml"
    form = form_of("pretraining")(steps=12, seeds=[3, 4], variants="[geokr, shuffled]", precision="fp32", device="cpu")
    params = ParamsFile(path=str(file)).laid_over(overrides_of("pretraining", form)).load()
    section = params.pretraining
    assert (section.steps, section.seeds, section.precision, section.device) == (12, (3, 4), "fp32", "cpu")
    assert params.is_overridden
    assert section.architecture == load_params(file).pretraining.architecture


def test_a_value_out_of_bounds_is_refused_like_one_in_the_file() -> None:
    file = ParamsFile(path=str(Path(__file__).parents[2] / "params.yaml"))
    wrong = overrides_of("pretraining", form_of("pretraining")(steps=0))
    with pytest.raises(ConfigError, match=r"pretraining\.steps"):
        file.laid_over(wrong).load()
