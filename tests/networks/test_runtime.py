"""Which precision a machine gets: a CPU that only emulates bfloat16 is slower with it than without."""

import pytest
import torch

from geokr_core.networks.runtime import precision_of


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, "fp32"),
        ({"avx512_f": True, "avx512_bf16": True}, "bf16"),
        ({"amx_tile": True, "amx_bf16": True}, "bf16"),
        ({"neon": True, "bf16": True, "architecture": "arm64"}, "bf16"),
        ({"neon": True}, "fp32"),
    ],
)
def test_auto_is_bf16_only_where_the_cpu_computes_in_it(
    capabilities: dict[str, object], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision_of("auto", "cpu") == precision


def test_a_precision_that_is_asked_for_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    assert (precision_of("bf16", "cpu"), precision_of("fp32", "cpu")) == ("bf16", "fp32")


def test_this_machine_says_what_its_cpu_can() -> None:
    # Guards against a torch that names the capability differently: then `auto` would quietly be fp32 everywhere.
    assert any("bf16" in name for name in torch.cpu.get_capabilities())
