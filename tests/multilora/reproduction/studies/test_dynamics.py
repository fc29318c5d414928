"""One row per step of a run, against the measures of each checkpoint."""

import numpy as np
import pytest
from finished import run_of
from safetensors.numpy import save_file

from analysis import CheckpointError, checkpoint
from analysis.numerics import decompose, metrics
from multilora.reproduction.studies import dynamics


@pytest.fixture
def base(tmp_path):
    """The model that the adapters belong to."""
    path = tmp_path / "base"
    path.mkdir()
    weights = {f"m.0.{kind}.weight": np.ones((12, 10), "f4") for kind in "qv"}
    save_file(weights, path / "model.safetensors")
    return path


@pytest.fixture
def run(write_adapter, lora_tensors):
    """A LoRA run of three steps, the first at ΔW = 0, and the finished adapter above them."""

    def write(name, r=4, seed=0):
        for step in (0, 5, 10):
            tensors = lora_tensors("m.0.q", "m.0.v", r=r)
            if step == 0:
                for key in tensors:
                    if "lora_B" in key:
                        tensors[key][:] = 0
            write_adapter(tensors, name=f"{name}/checkpoint-{step}", r=r)
        path = write_adapter(lora_tensors("m.0.q", "m.0.v", r=r), name=name, r=r)
        return run_of(path, name, seed)

    return write


def test_a_row_a_step_that_moved(run, base):
    lora = run("lora")
    rows = dynamics.table([lora], base)
    assert [(row["method"], row["step"], row["modules"]) for row in rows] == [
        ("lora", 5, 2),
        ("lora", 10, 2),
    ]
    for row in rows:
        assert tuple(row) == dynamics.COLUMNS
        updates = checkpoint.read(lora.path / f"checkpoint-{row['step']}")
        spectra = [decompose.singular_values(update) for update in updates]
        want = np.mean([metrics.effective_rank(s) for s in spectra])
        assert row["effective_rank_k"] == pytest.approx(want)
        assert row["frobenius_norm"] == pytest.approx(np.mean([np.linalg.norm(s) for s in spectra]))


def test_methods_are_compared_within_the_smaller_capacity(run, base):
    rows = dynamics.table([run("a", r=4), run("b", r=2)], base)
    assert {row["k"] for row in rows} == {2}
    assert all(row["effective_rank_k"] <= 2 for row in rows)


def test_full_fine_tuning_is_the_difference_from_the_base(base, tmp_path, rng):
    dW = rng.standard_normal((12, 10)).astype("f4")
    for step in (2, 4):
        path = tmp_path / "full" / f"checkpoint-{step}"
        path.mkdir(parents=True)
        moved = {"m.0.q.weight": 1 + step * dW, "m.0.v.weight": np.ones((12, 10), "f4")}
        save_file(moved, path / "model.safetensors")
    rows = dynamics.table([run_of(tmp_path / "full", "full", 0)], base)
    assert [(row["step"], row["modules"]) for row in rows] == [(2, 1), (4, 1)]
    sizes = [row["frobenius_norm"] for row in rows]
    np.testing.assert_allclose(sizes, np.linalg.norm(dW) * np.array([2, 4]), rtol=1e-5)


def test_a_run_without_steps_has_no_row(write_adapter, lora_tensors, base):
    without_steps = run_of(write_adapter(lora_tensors("m.0.q")), "lora", 0)
    assert dynamics.table([without_steps], base) == []


def test_a_broken_step_is_an_error(run, base):
    lora = run("lora")
    (lora.path / "checkpoint-5" / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="checkpoint-5"):
        dynamics.table([lora], base)
