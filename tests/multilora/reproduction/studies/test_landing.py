"""Means over modules of what `analysis.similarity --base` gives for each."""

import pytest
from finished import run_of

from analysis import CheckpointError
from analysis.base import landing as by_module
from multilora import delta
from multilora.reproduction.studies import landing

NAMES = [f"model.layers.0.self_attn.{kind}_proj" for kind in "qv"]


@pytest.fixture
def lora(write_adapter, lora_tensors, tiny_base):
    model, _ = delta.load_base(str(tiny_base))
    tensors = {}
    for name in NAMES:
        d_out, d_in = model.get_submodule(name).weight.shape
        tensors |= lora_tensors(name, d_out=d_out, d_in=d_in, r=4)
    return write_adapter(tensors, r=4)


def test_a_row_holds_means_over_modules(lora, tiny_base):
    (row,) = landing.table([run_of(lora, "lora", 1)], tiny_base)
    rows = by_module.analyse([lora], tiny_base, intruders=True).rows
    assert (row["method"], row["seed"], row["modules"]) == ("lora", 1, 2)
    for name in ("relative_frobenius", "left_1", "right_outside", "intruders_0.5", "base_share_k"):
        assert row[name] == pytest.approx((rows[0][name] + rows[1][name]) / 2)
    assert row["relative_frobenius"] > 0


def test_another_base_is_refused(write_adapter, lora_tensors, tiny_base):
    path = write_adapter(lora_tensors(NAMES[0], d_out=12, d_in=10, r=4), r=4)
    with pytest.raises(CheckpointError, match="q_proj"):
        landing.table([run_of(path, "lora", 1)], tiny_base)
