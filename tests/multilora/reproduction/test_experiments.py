"""Studies that are kept next to a run, the grid and the sweeps."""

import numpy as np
import pytest
from finished import run_of

from analysis import checkpoint
from analysis.pairs import dominance
from multilora.reproduction import experiments, trained
from multilora.reproduction.studies import overlap
from multilora.reproduction.trained import Trained


def test_what_takes_long_is_measured_once(tmp_path):
    facts = {"fingerprint": "a", "weights": {"w": "1"}}
    calls = []

    def make():
        calls.append(1)
        return [{"k": 1, "score": 0.5}]

    def kept(*given, **changes):
        run = trained.Trained(tmp_path, facts | changes)
        return experiments._kept(run, experiments.cuts, make, *given)

    assert kept() == kept() == [{"k": 1, "score": 0.5}]
    assert len(calls) == 1
    kept(weights={"w": "2"})  # another run's weights in the same place
    assert len(calls) == 2
    kept(25, weights={"w": "2"})  # another number of items
    assert len(calls) == 3
    assert (tmp_path / "cuts.json").is_file()


@pytest.fixture
def main_runs(write_adapter, write_delta, lora_tensors, rng):
    """Two seeds of the three main methods, of one module."""
    runs = []
    for seed in (0, 1):
        dW = rng.standard_normal((12, 10)).astype("f4")
        runs.append(run_of(write_delta({"q": dW}, f"full-s{seed}"), "full", seed))
        path = write_adapter(lora_tensors("q", r=6), f"lora-s{seed}", r=6)
        runs.append(run_of(path, "lora", seed))
        tensors = {
            "base_model.model.q.multilora_A": rng.standard_normal((6, 10)).astype("f4"),
            "base_model.model.q.multilora_B": rng.standard_normal((12, 6)).astype("f4"),
            "base_model.model.q.multilora_s": np.ones((12, 3), "f4"),
        }
        path = write_adapter(tensors, f"multilora-s{seed}", peft_type="MULTILORA", n=3, r=2)
        runs.append(run_of(path, "multilora r=2", seed))
    return runs


def test_the_grid_has_one_row_per_run_of_settings_with_all_main_methods(main_runs, tmp_path):
    points = [("rate", 2, run) for run in main_runs]
    points += [("n", 6, run) for run in main_runs if run.method != "full"]
    rows = experiments.grid(points, tmp_path)
    assert [(row["setting"], row["value"]) for row in rows] == [("rate", 2)] * 6
    # A variant counts as its method, since setting and value say what is changed.
    assert {row["method"] for row in rows} == {"full", "lora", "multilora"}
    assert {row["k"] for row in rows} == {6}


def test_rows_of_the_grid_hold_phi_with_full_and_the_overlap_of_modules(main_runs, tmp_path):
    rows = experiments.grid([("rate", 2, run) for run in main_runs], tmp_path)
    at = {(row["method"], row["seed"]): row for row in rows}
    bases, updates = {}, {}
    for run in main_runs:
        (update,) = checkpoint.read(run.path)
        updates[run.plain_method, run.seed] = update.dense()
        bases[run.plain_method, run.seed] = np.linalg.svd(update.dense())[0][:, :6]
    spectra = {key: np.linalg.svd(dW, compute_uv=False) for key, dW in updates.items()}
    for method in ("lora", "multilora"):
        far = dominance.log_distance(spectra[method, 0][:6], spectra["full", 1], 6)
        assert at[method, 0]["log_distance"] == pytest.approx(far, rel=1e-5)
        shared = bases[method, 0].T @ bases["full", 1]
        assert at[method, 0]["left_phi_k"] == pytest.approx(np.sum(shared**2) / 6, rel=1e-5)
    assert at["lora", 0]["overlap_above_chance"] is None
    (of_run,) = overlap.by_run(overlap.module_pairs(main_runs[2:3]))
    assert at["multilora", 0]["overlap_above_chance"] == of_run["overlap_above_chance"]


def test_a_sweep_marks_the_rate_that_is_best_on_validation_items():
    scores = ((0.0005, 0.4), (0.001, 0.6), (0.002, 0.6), (0.004, 0.1))
    rows = [
        {"method": "lora", "learning_rate": rate, "score_validation": score, "score": 1 - score}
        for rate, score in scores
    ]
    assert [row["chosen"] for row in experiments.sweep(rows, "score", 4)] == [0, 1, 0, 0]
    assert [row["chosen"] for row in experiments.sweep(rows[:3], "score", 4)] == [0, 0, 0]
    assert [row["chosen"] for row in experiments.sweep(rows, "score", 3)] == [0, 1, 0, 0]
    losses = [row | {"nll_validation": row["score_validation"]} for row in rows]
    assert [row["chosen"] for row in experiments.sweep(losses, "nll", 3)] == [0, 0, 0, 1]


def test_runs_are_cut_and_followed_and_full_fine_tuning_alone_is_rounded(tmp_path, monkeypatch):
    """Each study gets the base, and the number of items and of values that it needs."""
    for study in (experiments.cuts, experiments.dynamics, experiments.rounding):
        monkeypatch.setattr(study, "table", lambda runs, *given: [(runs[0].method, given)])
    facts = {"fingerprint": "a", "weights": {}}
    runs = []
    for method in ("full", "lora", "multilora"):
        (tmp_path / method).mkdir()
        runs.append(Trained(tmp_path / method, facts | {"method": method}))
    methods, base = [run.method for run in runs], "base"
    assert experiments.of_runs(runs, base, 24, 7) == {
        "cuts": [(method, (base, 7)) for method in methods],
        "dynamics": [(method, (base, 24, 7)) for method in methods],
        "rounding_floor": [("full", (base,))],
    }
    assert not any(experiments.of_runs([], base, 24, 7).values())
