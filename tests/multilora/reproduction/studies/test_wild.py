"""Adapters that others trained: small ones made here, and the real ones where they are."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis import UserError
from analysis.numerics import null
from multilora.reproduction.studies import wild


@pytest.fixture
def place(tmp_path, write_adapter, lora_tensors, rng):
    """A directory with a run of two steps, one of B = 0, a file by SAM's names, a toy, and none."""
    root = tmp_path / "wild"
    big = {"d_out": 80, "d_in": 70}
    for step in (10, 20):
        write_adapter(lora_tensors("m.0.q", **big), name=f"wild/run/checkpoint-{step}")
    still = lora_tensors("m.0.q", "m.0.v", **big)
    still["base_model.model.m.0.v.lora_B.weight"][:] = 0
    write_adapter(still, name="wild/still")
    write_adapter(lora_tensors("m.0.q"), name="wild/toy")
    write_adapter({"x": np.ones(3, "f4")}, name="wild/other", peft_type="IA3")
    file = root / "several" / "rank2" / "lora.safetensors"
    file.parent.mkdir(parents=True)
    factors = {"w_a_000": rng.standard_normal((2, 70)), "w_b_000": rng.standard_normal((80, 2))}
    save_file({name: value.astype("f4") for name, value in factors.items()}, file)
    dW = factors["w_b_000"].astype("f4").astype("f8") @ factors["w_a_000"].astype("f4")
    return root, np.linalg.svd(dW, compute_uv=False)


def test_every_module_of_every_adapter_has_a_row(place):
    root, s = place
    rows, _ = wild.table(root)
    assert {tuple(row) for row in rows} == {wild.COLUMNS}
    assert [(row["adapter"], row["step"], row["kind"], row["r"]) for row in rows] == [
        ("run", 10, "q", 4),
        ("run", 20, "q", 4),
        ("several/rank2", None, "w", 2),
        ("still", None, "q", 4),
    ]
    sam = rows[2]
    assert sam["top_share_1"] == pytest.approx(s[0] ** 2 / (s[:2] ** 2).sum(), rel=1e-6)


def test_chance_is_that_of_two_gaussian_factors(place, rng):
    row = wild.table(place[0])[0][0]
    draws = rng.standard_normal((400, 80, 4)) @ rng.standard_normal((400, 4, 70))
    energies = np.linalg.svd(draws, compute_uv=False)[:, :4] ** 2
    shares = energies[:, 0] / energies.sum(axis=1)
    assert row["null_top_share_1"] == pytest.approx(
        shares.mean(), abs=5 * shares.std() / np.sqrt(shares.size)
    )
    assert row["null_top_share_1"] == null.chance(70, 80, 4, 1, dense=False)["top_share_1"].mean


def test_what_is_left_out_is_said_with_its_reason(place):
    _, left_out = wild.table(place[0])
    reasons = {(out["adapter"], out["reason"].split(":")[0]) for out in left_out}
    assert len(left_out) == 3
    assert ("toy", "toy") in reasons
    assert ("still", "m.0.v") in reasons
    assert any("IA3" in out["reason"] for out in left_out if out["adapter"] == "other")


def test_without_the_directory_there_is_no_table(tmp_path):
    with pytest.raises(
        UserError, match="absent: no such directory; expected a directory of adapters"
    ):
        wild.table(tmp_path / "absent")


def test_the_real_adapters_lie_above_chance(real_adapter):
    rows, left_out = wild.table(real_adapter("."))
    adapters = {row["adapter"] for row in rows}
    assert {f"sam-lora-ranks/rank{r}" for r in (2, 4, 6, 8, 16)} < adapters
    assert len(adapters) == 11
    assert {out["adapter"] for out in left_out if "toy" not in out["reason"]} == {
        "not-lora-ia3-opt350m",
        "not-lora-unilora",
    }
    assert sum("toy" in out["reason"] for out in left_out) == 4
    above = [row["top_share_1"] - row["null_top_share_1"] for row in rows if row["r"] > 1]
    assert np.median(above) > 0.3
    assert all(row["top_share_1"] == 1 for row in rows if row["r"] == 1)
