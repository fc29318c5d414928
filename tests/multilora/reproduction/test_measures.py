"""Runs and spectra → rows: against the slow way, on adapters built for it."""

import json

import numpy as np
import pytest

from analysis import similarity, spectrum
from analysis.numerics import metrics, null, subspaces
from analysis.pairs import dominance, repeatability
from analysis.pairs.repeatability import Label
from analysis.results import Spectra
from analysis.tables import similarity as similarity_table
from multilora import budget
from multilora.reproduction import measures, trained
from multilora.reproduction.studies import overlap
from multilora.reproduction.trained import Trained
from multilora.tasks.example import FAMILIES


def facts(method, seed, **settings):
    """What a run.json says, as far as it is read."""
    scores = {"families": dict.fromkeys(FAMILIES, 0.5), "mean": 0.5, "tasks": {"sort": 0.25}}
    return {
        **{"fingerprint": "f", "method": method, "seed": seed, "parameters": 10},
        "settings": {"method": method.split()[0], "n": 3} | settings,
        **{"arguments": {"learning_rate": 0.003}, "base": {"sha256": {"model": "a"}}},
        "scores": {"test": scores, "validation": scores | {"mean": 0.75}},
    }


def run_of(path, method, seed, **settings):
    path.mkdir(parents=True, exist_ok=True)
    (path / "run.json").write_text(json.dumps(facts(method, seed, **settings)))
    return trained.trained(path)


D = (12, 10)


@pytest.fixture
def lora_runs(write_adapter, lora_tensors):
    """Two seeds each of updates of rank 4, 3 and 2, under the names of three methods."""
    runs = []
    for method, r in (("lora", 4), ("multilora", 3), ("expert", 2)):
        for seed in (0, 1):
            path = write_adapter(lora_tensors("q", "v", r=r), f"{method}-s{seed}", r=r)
            runs.append(run_of(path, method, seed, n=1))
    return runs


@pytest.fixture
def spectra(lora_runs):
    whole = Spectra()
    for run in lora_runs:
        found = spectrum.analyse(run.path)
        whole.rows.extend(found.rows)
        whole.s.update(found.s)
    return whole


def test_k_is_the_smallest_capacity_of_the_methods_that_are_claimed_of(lora_runs, spectra):
    assert measures.common_k(lora_runs, spectra) == 3
    experts = [run for run in lora_runs if run.method == "expert"]
    assert measures.common_k(experts, spectra) == 2


def test_a_row_a_run_against_the_slow_way(lora_runs, spectra):
    rows = measures.of_runs(lora_runs, spectra)
    assert [(row["method"], row["seed"]) for row in rows] == [
        (run.method, run.seed) for run in lora_runs
    ]
    for row, run in zip(rows, lora_runs, strict=True):
        of_run = [r for r in spectra.rows if r["run"] == run.name]
        s = [spectra.s[r["key"]] for r in of_run]
        assert row["top_share_1"] == pytest.approx(np.mean([x[0] ** 2 / np.sum(x**2) for x in s]))
        chance = null.null_top_share(10, 12, s[0].size)
        assert row["null_top_share_1"] == pytest.approx(chance)
        assert row["top_share_1_above_null"] == pytest.approx(row["top_share_1"] - chance)
        assert row["democracy"] == pytest.approx(np.mean([r["democracy"] for r in of_run]))
        # Of factored updates every value up to the rank is above the floor.
        assert row["above_floor_share"] == pytest.approx(min(s[0].size, 10) / 10)
        if run.method == "expert":
            assert {row[name] for name in measures.FIRST_K} == {None}
        else:
            ranks = [metrics.effective_rank(x[:3]) for x in s]
            assert row["effective_rank_k"] == pytest.approx(np.mean(ranks))
    assert rows[0]["learning_rate"] == 0.003
    assert (rows[0]["score"], rows[0]["score_validation"]) == (0.5, 0.75)
    assert rows[0]["task_sort"] == 0.25


def test_values_below_the_floor_do_not_count(write_delta, rng):
    U, _, Vh = np.linalg.svd(rng.standard_normal(D), full_matrices=False)
    s = np.r_[1.0, 0.5, np.full(8, 1e-4)]
    facts_of = {"q": {"floor": 1e-2, "W0_frobenius": 1.0, "W0_rms": 0.1}}
    path = write_delta({"q": ((U * s) @ Vh).astype("f4")}, "full-s0", modules=facts_of)
    run = run_of(path, "full", 0)
    (row,) = measures.of_runs([run], spectrum.analyse(path))
    assert row["above_floor_share"] == pytest.approx(0.2)


def test_no_runs_have_no_rows():
    assert measures.of_runs([], Spectra()) == []


def test_a_run_that_moved_nothing_is_an_error(write_adapter, lora_tensors):
    tensors = {name: value * ("lora_A" in name) for name, value in lora_tensors("q").items()}
    run = run_of(write_adapter(tensors, "lora-s0"), "lora", 0)
    with pytest.raises(ValueError, match="every ΔW is zero"):
        measures.of_runs([run], spectrum.analyse(run.path))


def test_random_updates_have_the_top_share_of_the_null(rng):
    shares = [
        metrics.top_share(
            np.linalg.svd(
                rng.standard_normal((20, 4)) @ rng.standard_normal((4, 16)), compute_uv=False
            )[:4],
            1,
        )
        for _ in range(2000)
    ]
    assert null.null_top_share(16, 20, 4) == pytest.approx(np.mean(shares), abs=0.01)
    assert null.null_top_share(16, 20, 4, k=4) == 1
    assert null.null_top_share(16, 20, 16) < null.null_top_share(16, 20, 4)


# Overlap within MultiLoRA


def multilora(write_adapter, name, modules):
    """A MultiLoRA of one layer; modules: [(B, A), …]."""
    n, r = len(modules), modules[0][1].shape[0]
    prefix = "base_model.model.q.multilora_"
    tensors = {
        f"{prefix}A": np.concatenate([A for _, A in modules]).astype("f4"),
        f"{prefix}B": np.concatenate([B for B, _ in modules], axis=1).astype("f4"),
        f"{prefix}s": np.ones((D[0], n), dtype="f4"),
    }
    return write_adapter(tensors, name, peft_type="MULTILORA", n=n, r=r)


def test_overlap_is_the_mean_over_pairs_against_chance(write_adapter, rng):
    modules = [(rng.standard_normal((12, 2)), rng.standard_normal((2, 10))) for _ in range(3)]
    run = run_of(multilora(write_adapter, "multilora-s0", modules), "multilora", 0)
    (row,) = overlap.by_run([run])
    assert (row["n"], row["r"], row["pairs"]) == (3, 2, 3)
    for side, which, d in (("left", 0, 12), ("right", 1, 10)):
        bases = [np.linalg.qr(m[0] if which == 0 else m[1].T)[0] for m in modules]
        phis = [subspaces.phi(bases[i], bases[j])[-1, -1] for i, j in ((0, 1), (0, 2), (1, 2))]
        assert row[f"{side}_phi_k"] == pytest.approx(np.mean(phis), abs=1e-6)
        assert row[f"{side}_chance_k"] == pytest.approx(2 / d)
        assert row[f"{side}_above_chance"] == pytest.approx(np.mean(phis) - 2 / d, abs=1e-6)
    sides = (row["left_above_chance"] + row["right_above_chance"]) / 2
    assert row["overlap_above_chance"] == pytest.approx(sides)


def test_modules_of_one_span_overlap_wholly(write_adapter, rng):
    B, A = rng.standard_normal((12, 2)), rng.standard_normal((2, 10))
    path = multilora(write_adapter, "multilora-s0", [(B, A), (B @ [[1, 2], [0, 1]], 3 * A)])
    (row,) = overlap.by_run([run_of(path, "multilora", 0, n=2)])
    assert row["overlap_above_chance"] == pytest.approx(1 - (2 / 12 + 2 / 10) / 2, abs=1e-6)


def test_what_has_no_modules_has_no_overlap(lora_runs):
    assert overlap.by_run(lora_runs) == []


# Nearness


@pytest.fixture
def alike(lora_runs):
    found = similarity.analyse([run.path for run in lora_runs], parts=False)
    return found, {run.name: Label(run.method, run.seed) for run in lora_runs}


def test_nearness_is_the_mean_over_runs_of_other_seeds(alike, lora_runs, spectra):
    found, labels = alike
    rows = measures.nearness(found, labels, spectra, 3)
    by_key = {(row["method"], row["seed"], row["reference"]): row for row in rows}
    assert len(by_key) == len(rows) == 6 * 3
    row = by_key["multilora", 0, "lora"]
    phis, distances = [], []
    for pair in found.rows:
        if {pair["run_a"], pair["run_b"]} == {"multilora-s0", "lora-s1"}:
            phis.append(found.phi[f"{pair['key']}#left"][2, 2])
            s = [spectra.s[f"{name}/{pair['module']}"] for name in ("multilora-s0", "lora-s1")]
            distances.append(dominance.log_distance(*s, 3))
    assert len(phis) == 2
    assert row["left_phi_k"] == pytest.approx(np.mean(phis))
    assert row["log_distance"] == pytest.approx(np.mean(distances))
    assert (row["k"], row["left_chance_k"]) == (3, pytest.approx(3 / 12))
    # Of one pair of seeds, a method's nearness to itself is the same from both ends.
    assert by_key["lora", 0, "lora"]["left_phi_k"] == by_key["lora", 1, "lora"]["left_phi_k"]


def test_a_relative_of_lower_rank_does_not_lower_the_others_k(alike, spectra):
    found, labels = alike
    rows = measures.nearness(found, labels, spectra, 3)
    assert {row["k"] for row in rows if "expert" in (row["method"], row["reference"])} == {2}
    assert {row["k"] for row in rows if "expert" not in (row["method"], row["reference"])} == {3}
    between = repeatability.between(found.rows, found.phi, labels, 3)
    assert {row["k"] for row in between if "expert" in (row["method_a"], row["method_b"])} == {2}
    assert {row["k"] for row in between if row["method_b"] == "multilora"} == {3}
    # Without a k, one for all.
    assert {row["k"] for row in repeatability.between(found.rows, found.phi, labels)} == {2}


def test_the_printed_table_says_where_k_is_smaller(alike):
    found, labels = alike
    of = repeatability.between(found.rows, found.phi, labels, 3)
    lines = list(similarity_table.method_lines(of))
    assert lines[0].startswith("φ(3)")
    assert f"left (chance {3 / 12:.3f})" in lines[2]
    by_name = {line.split()[0]: line for line in lines[3:6]}
    assert [line.count(" at 2") for line in by_name.values()] == [1, 1, 3]
    one_k = similarity_table.method_lines(repeatability.between(found.rows, found.phi, labels))
    assert " at " not in "".join(one_k)


def test_nearness_agrees_with_the_means_between_methods(alike, spectra):
    found, labels = alike
    rows = measures.nearness(found, labels, spectra, 3)
    between = repeatability.between(found.rows, found.phi, labels, 3)
    for pair in between:
        phis = [
            row["right_phi_k"]
            for row in rows
            if (row["method"], row["reference"]) == (pair["method_a"], pair["method_b"])
        ]
        assert pair["right_phi_k"] == pytest.approx(np.mean(phis))


# The budget


def test_the_nearest_rank_is_the_nearest():
    rows = budget.llama_budget("2.5%", (1, 3))
    assert {(row["model"], row["n"]) for row in rows} == {
        (model, n) for model in budget.LLAMA for n in (1, 3)
    }
    row = next(row for row in rows if (row["model"], row["n"]) == ("llama-7b", 3))
    # Touvron et al.'s shapes: q, k, v, o are 4096², gate and up 11008 × 4096, down 4096 × 11008.
    d_in, d_out = 32 * (6 * 4096 + 11008), 32 * (5 * 4096 + 2 * 11008)

    def share(r):
        return (3 * r * (d_in + d_out) + 3 * d_out) / 6_738_415_616

    assert row["share"] == pytest.approx(share(row["r"]), rel=1e-12)
    away = {r: abs(share(r) - 0.025) for r in range(1, 60)}
    assert min(away, key=away.get) == row["r"]


# Runs that cannot be read


def test_a_run_of_another_version_is_refused(tmp_path):
    run = run_of(tmp_path / "lora-s0", "lora", 0)
    assert (run.method, run.seed, run.name) == ("lora", 0, "lora-s0")
    file = tmp_path / "lora-s0" / "run.json"
    old = {key: value for key, value in run.facts.items() if key not in ("scores", "base")}
    for text, words in (
        (json.dumps(old), "lacks base, scores: another version wrote it; remove .*lora-s0"),
        ("[]", "another version wrote it"),
        ("{", "is no JSON"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            trained.trained(file.parent)
    file.unlink()
    with pytest.raises(ValueError, match="the run is not finished; run it again"):
        trained.trained(file.parent)


def test_runs_of_other_bases_or_of_one_seed_are_refused(tmp_path):
    runs = [run_of(tmp_path / f"lora-s{seed}", "lora", seed) for seed in (0, 1)]
    trained.check_alike(runs)
    other = Trained(tmp_path / "x", runs[1].facts | {"base": {"sha256": {"model": "b"}}})
    with pytest.raises(ValueError, match="x: was trained from another base than"):
        trained.check_alike([runs[0], other])
    with pytest.raises(ValueError, match="both are lora, seed 1"):
        trained.check_alike([*runs, Trained(tmp_path / "y", runs[1].facts)])
