"""The overlap of a MultiLoRA's modules, against the cosines of their bases."""

import itertools
import json

import numpy as np
import pytest
import scipy.linalg

from analysis import checkpoint
from multilora.reproduction.studies import overlap

N, R, D_OUT, D_IN = 3, 2, 12, 10


@pytest.fixture
def write_multilora(write_adapter, rng):
    """Directory of a MultiLoRA of n modules a layer, of two layers, with its run.json."""

    def write(n=N, name="run", alike=False):
        tensors = {}
        for layer in ("q_proj", "up_proj"):
            A, B = rng.standard_normal((n, R, D_IN)), rng.standard_normal((D_OUT, n, R))
            if alike:
                A[:], B[:] = A[:1], B[:, :1]
            stem = f"base_model.model.m.0.{layer}.multilora_"
            s = 1 + rng.random((D_OUT, 1)) * np.ones((1, n))
            values = {"A": A.reshape(n * R, D_IN), "B": B.reshape(D_OUT, n * R), "s": s}
            tensors |= {stem + part: value.astype("f4") for part, value in values.items()}
        path = write_adapter(tensors, name=name, peft_type="MULTILORA", r=R, n=n)
        (path / "run.json").write_text(json.dumps({"method": "multilora", "seed": 3}))
        return path

    return write


def test_it_is_the_mean_over_pairs_of_phi(write_multilora):
    path = write_multilora()
    rows = overlap.by_layer([path])
    assert [(row["kind"], row["n"], row["r"], row["pairs"]) for row in rows] == [
        ("q_proj", N, R, 3),
        ("up_proj", N, R, 3),
    ]
    for row, update in zip(rows, checkpoint.read(path), strict=True):
        assert tuple(row) == overlap.COLUMNS
        for side in ("left", "right"):
            bases = []
            for part in update.unstacked():
                W = part.dense() if side == "left" else part.dense().T
                bases.append(scipy.linalg.orth(W))
            pairs = itertools.combinations(bases, 2)
            want = np.mean([np.linalg.norm(a.T @ b) ** 2 / R for a, b in pairs])
            assert row[f"{side}_phi"] == pytest.approx(want, rel=1e-6)
        assert row["left_chance"] == pytest.approx(R / D_OUT)
        assert row["right_chance"] == pytest.approx(R / D_IN)


def test_equal_modules_share_all(write_multilora):
    for row in overlap.by_layer([write_multilora(alike=True)]):
        assert (row["left_phi"], row["right_phi"]) == pytest.approx((1, 1))


def test_one_module_has_no_pair(write_multilora, write_adapter, lora_tensors):
    lora = write_adapter(lora_tensors("m.0.q_proj"), name="lora")
    (lora / "run.json").write_text(json.dumps({"method": "lora", "seed": 0}))
    assert overlap.by_layer([write_multilora(n=1), lora]) == []
