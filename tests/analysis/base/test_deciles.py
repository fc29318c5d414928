"""The base's own spectrum: planted rotations, values by hand, bfloat16 by torch, the command."""

import csv
import json

import numpy as np
import pytest
import torch
from made_updates import orthonormal
from safetensors.numpy import save_file

from analysis import spectrum
from analysis.base import deciles
from analysis.base.vectors import decompose_base
from analysis.numerics.decompose import Basis
from analysis.pairs import members


def known(rng, s, d_out, d_in):
    U, V = orthonormal(rng, d_out, len(s)), orthonormal(rng, d_in, len(s))
    return (U * s) @ V.T, U, V


@pytest.mark.parametrize(("d_out", "d_in"), [(20, 30), (30, 20), (23, 23)])
def test_the_change_of_values_is_that_of_their_sums(rng, d_out, d_in):
    m = min(d_out, d_in)
    s = np.linspace(5, 1, m)
    W0, U, V = known(rng, s, d_out, d_in)
    grown = np.where(np.arange(m) * 10 // m == 2, 1.02, 1.0)
    changes = deciles.changes(decompose_base(W0), decompose_base((U * (s * grown)) @ V.T))
    want = np.zeros(10)
    want[2] = 0.02
    np.testing.assert_allclose(changes, want, atol=1e-12)
    np.testing.assert_allclose(deciles.changes(*2 * [decompose_base(W0)]), 0, atol=0)


def test_values_of_zero_have_no_change_and_no_direction(rng):
    W0, _, _ = known(rng, np.array([3.0, 2.0]), 20, 20)
    base, tuned = decompose_base(W0), decompose_base(W0 + rng.standard_normal((20, 20)))
    assert np.isfinite(deciles.changes(base, tuned)).tolist() == [True] + 9 * [False]
    kept = deciles.kept(base.left, tuned.left, base.rank, 20)
    assert np.isfinite(kept).tolist() == [True] + 9 * [False]
    few = deciles.kept(Basis(np.eye(3)), Basis(np.eye(3)), 3, 3)  # deciles without a place
    assert np.isfinite(few).sum() == 3


def test_a_planted_rotation_is_seen_in_its_decile_and_side(rng):
    s = np.linspace(5, 1, 20)
    W0, U, V = known(rng, s, 40, 20)
    angle = 0.3
    turned = V.copy()  # two input directions of deciles 1 and 10 are turned into each other
    turned[:, 0] = np.cos(angle) * V[:, 0] + np.sin(angle) * V[:, 19]
    turned[:, 19] = np.cos(angle) * V[:, 19] - np.sin(angle) * V[:, 0]
    base, tuned = decompose_base(W0), decompose_base((U * s) @ turned.T)
    left = deciles.kept(base.left, tuned.left, base.rank, 20)
    right = deciles.kept(base.right, tuned.right, base.rank, 20)
    np.testing.assert_allclose(left, 1 - 2 / 40, atol=1e-6)
    want = np.full(10, 1 - 2 / 20)
    want[[0, 9]] -= np.sin(angle) ** 2 / 2  # one of two directions
    np.testing.assert_allclose(right, want, atol=1e-6)


def test_random_subspaces_keep_what_chance_gives(rng):
    kept = [
        deciles.kept(Basis(orthonormal(rng, 60, 40)), Basis(orthonormal(rng, 60, 40)), 40, 40)
        for _ in range(200)
    ]
    assert np.abs(np.mean(kept, axis=0)).max() < 0.01


def test_what_bfloat16_does_not_show_is_what_torch_rounds_away(rng):
    W0 = rng.standard_normal((30, 20)).astype("f4")
    dW = (1e-3 * rng.standard_normal((30, 20))).astype("f4")
    dW[:5] = 0
    before, after = (torch.from_numpy(x).bfloat16() for x in (W0, W0 + dW))
    same = (before == after).numpy() & (dW != 0)
    assert 0.1 < same.sum() / (dW != 0).sum() < 0.9
    assert deciles.unseen(W0, dW) == pytest.approx(same.sum() / (dW != 0).sum(), abs=0.01)
    assert deciles.unseen(W0, 0 * dW) is None
    assert deciles.unseen(W0, np.ones_like(dW)) == 0
    stored = W0.astype(np.float64)
    assert deciles.unseen(stored, np.full_like(stored, 1e-12)) == 1


def test_half_a_spacing_decides():
    W0 = np.ones((1, 2))  # between 1 and 2 bfloat16 has a spacing of 2⁻⁷
    assert deciles.unseen(W0, np.array([[2.0**-8 * 0.999, 2.0**-8 * 1.001]])) == 0.5


@pytest.fixture
def tuned(tmp_path, write_adapter, rng):
    """(adapter, base, W0, ΔW) of one module."""
    W0 = rng.standard_normal((24, 20)).astype("f4")
    (tmp_path / "base").mkdir()
    save_file({"model.l.0.q.weight": W0}, tmp_path / "base" / "model.safetensors")
    A, B = 0.1 * rng.standard_normal((2, 20)), 0.1 * rng.standard_normal((24, 2))
    tensors = {
        "base_model.model.model.l.0.q.lora_A.weight": A.astype("f4"),
        "base_model.model.model.l.0.q.lora_B.weight": B.astype("f4"),
    }
    adapter = write_adapter(tensors, r=2, lora_alpha=4)
    return adapter, tmp_path / "base", W0, 2 * B.astype("f4") @ A.astype("f4").astype(float)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_an_adapter_and_a_full_fine_tuning_agree(tuned, write_delta):
    adapter, base, W0, dW = tuned
    full = write_delta({"model.l.0.q": dW.astype("f4")})
    found = deciles.analyse([adapter, full], base)
    assert found.skipped == []
    one, two = found.rows
    s0, s = (np.linalg.svd(W, compute_uv=False) for W in (W0.astype(float), W0 + dW))
    assert one["change_1"] == pytest.approx(s[:2].sum() / s0[:2].sum() - 1, rel=1e-9)
    for name in (*deciles.CHANGES, *deciles.KEPT, "unseen"):
        assert one[name] == pytest.approx(two[name], abs=1e-5)
    assert (one["left_chance"], one["right_chance"]) == (2 / 24, 2 / 20)


def test_no_update_is_decomposed(tuned, monkeypatch):
    """Only W0 and W0 + ΔW are; a decomposition of a dense ΔW takes as long as either."""
    adapter, base = tuned[:2]
    monkeypatch.setattr(members.Members, "_decompose", lambda *_: pytest.fail("was called"))
    assert deciles.analyse([adapter], base).rows


def test_the_command_prints_and_writes_the_table(tuned, tmp_path, run_main):
    adapter, base, _, _ = tuned
    given = [adapter, "--base", base, "--base-deciles", "--out", tmp_path / "out"]
    status, out, err = run_main(spectrum.main, *given)
    assert status == 0
    assert any("full decomposition of 1 matrix of the base" in line for line in err)
    assert "the spectrum of its base" in out
    with (tmp_path / "out" / "base_deciles.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert tuple(row) == deciles.ROW_COLUMNS
    assert 0 <= float(row["unseen"]) <= 1
    status, out, _ = run_main(spectrum.main, adapter, "--base", base, "--base-deciles", "--json")
    assert json.loads(out)["base_deciles"][0]["module"] == "model.l.0.q"
    assert run_main(spectrum.main, adapter, "--base", base)[1].count("its base") == 0


def test_without_a_base_or_with_another_one_it_is_said(tuned, tmp_path, run_main):
    adapter, _, W0, _ = tuned
    with pytest.raises(SystemExit):
        spectrum.main([str(adapter), "--base-deciles"])
    (tmp_path / "other").mkdir()
    save_file({"model.l.0.q.weight": W0.T.copy()[:7]}, tmp_path / "other" / "model.safetensors")
    status, _, err = run_main(
        spectrum.main, adapter, "--base", tmp_path / "other", "--base-deciles"
    )
    assert status == 1
    assert any("model.l.0.q" in line for line in err)
