"""The command and the analysis behind it: real adapters against dense algebra, every bad input."""

import csv
import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from analysis import UserError, checkpoint, similarity
from analysis.base import landing
from analysis.base import vectors as base_vectors
from analysis.formats import Options
from analysis.numerics import subspaces
from analysis.results import AgainstBase
from analysis.similarity import COLUMNS, analyse, main

ROOT = Path(__file__).resolve().parents[2]
SAM = Options(factors=(r"w_a_(\d+)", r"w_b_(\d+)"))


@pytest.fixture
def command(run_main):
    return functools.partial(run_main, main)


@pytest.fixture
def pair(write_adapter, lora_tensors):
    modules = [f"model.layers.{i}.{kind}" for i in (0, 1) for kind in ("q_proj", "up_proj")]
    return [write_adapter(lora_tensors(*modules), name) for name in ("a", "b")]


def multilora(write_adapter, rng, name="multi", n=3, r=2, d_out=12, d_in=10, modules=("q",)):
    tensors = {}
    for module in modules:
        tensors |= {
            f"base_model.model.{module}.multilora_{factor}": rng.standard_normal(shape)
            for factor, shape in (("A", (n * r, d_in)), ("B", (d_out, n * r)), ("s", (d_out, n)))
        }
    return write_adapter(tensors, name, peft_type="MULTILORA", r=r, n=n)


def dense_phi(W1, W2, k):
    """φ(k, k) on both sides, from explicit projections of dense SVDs."""
    (U1, _, Vh1), (U2, _, Vh2) = np.linalg.svd(W1), np.linalg.svd(W2)
    return tuple(
        np.trace(X[:, :k] @ X[:, :k].T @ Y[:, :k] @ Y[:, :k].T) / k
        for X, Y in ((U1, U2), (Vh1.T, Vh2.T))
    )


def test_adapters_agree_with_dense_algebra(tmp_path, rng):
    """Files of factors of ranks 2 and 6 that share some of their directions."""
    common = rng.standard_normal((40, 2)), rng.standard_normal((2, 30))
    for r in (2, 6):
        tensors = {}
        for i in range(3):
            B, A = rng.standard_normal((40, r)), rng.standard_normal((r, 30))
            B[:, :2], A[:2] = B[:, :2] + common[0], A[:2] + common[1]
            tensors |= {f"w_a_{i}": A, f"w_b_{i}": B}
        (tmp_path / f"rank{r}").mkdir()
        save_file(tensors, tmp_path / f"rank{r}" / "factors.safetensors")
    paths = [tmp_path / f"rank{r}" for r in (2, 6)]
    result = analyse(paths, options=SAM)
    assert (len(result.rows), result.skipped) == (3, [])
    updates = [{u.name: u for u in checkpoint.read(path, options=SAM)} for path in paths]
    for row in result.rows:
        W1, W2 = (of_run[row["module"]].dense() for of_run in updates)
        assert row["k"] == 2
        want = dense_phi(W1, W2, 2)
        assert (row["left_phi_k"], row["right_phi_k"]) == pytest.approx(want, abs=1e-10)
        cosine = np.sum(W1 * W2) / np.linalg.norm(W1) / np.linalg.norm(W2)
        assert row["cosine"] == pytest.approx(cosine, abs=1e-12)


def test_real_adapters_agree_with_dense_algebra(real_adapter):
    paths = [real_adapter(f"sam-lora-ranks/rank{r}") for r in (2, 6)]
    compared = analyse(paths, options=SAM)
    assert len(compared.rows) == 24
    assert compared.skipped == []
    updates = [{u.name: u for u in checkpoint.read(path, options=SAM)} for path in paths]
    for row in compared.rows[::8]:
        W1, W2 = (of_run[row["module"]].dense() for of_run in updates)
        assert row["k"] == 2
        want = dense_phi(W1, W2, 2)
        assert (row["left_phi_k"], row["right_phi_k"]) == pytest.approx(want, abs=1e-10)
        cosine = np.sum(W1 * W2) / np.linalg.norm(W1) / np.linalg.norm(W2)
        assert row["cosine"] == pytest.approx(cosine, abs=1e-12)


def test_a_row_says_which_updates_it_compares(pair):
    row = analyse(pair).rows[0]
    assert list(row) == list(COLUMNS)
    assert row["key"] == "a/model.layers.0.q_proj~b/model.layers.0.q_proj"
    assert (row["run_a"], row["run_b"], row["layer"], row["kind"]) == ("a", "b", 0, "q_proj")
    assert (row["capacity_a"], row["k"], row["d_out"], row["d_in"]) == (4, 4, 12, 10)
    assert row["left_phi_8"] is None


def test_every_pair_of_several(write_adapter, lora_tensors):
    paths = [write_adapter(lora_tensors("q", "v"), name) for name in "abc"]
    compared = analyse(paths)
    assert [(row["run_a"], row["run_b"]) for row in compared.rows if row["module"] == "q"] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    assert set(compared.phi) == {
        f"{row['key']}#{name}"
        for row in compared.rows
        for name in ("left", "right", "left_angles", "right_angles")
    }


def test_order_and_threads_change_nothing(write_adapter, lora_tensors):
    a = write_adapter(lora_tensors(*(f"l.{i}.q" for i in range(30))), "a")
    b = write_adapter(lora_tensors(*(f"l.{i}.q" for i in reversed(range(30)))), "b")
    first, second = analyse([a, b]), analyse([a, b])
    assert [row["layer"] for row in first.rows] == list(range(30))
    assert first.rows == second.rows


def test_against_a_full_fine_tune(write_adapter, lora_tensors, write_delta, rng):
    adapter = write_adapter(lora_tensors("q"), "a")
    (update,) = checkpoint.read(adapter)
    noise = rng.standard_normal(update.shape)
    full = write_delta({"q": (update.dense() + 1e-9 * noise).astype("f4")})
    (row,) = analyse([adapter, full]).rows
    assert (row["method_b"], row["capacity_b"], row["k"]) == ("full", 10, 4)
    assert row["left_phi_k"] == pytest.approx(1, abs=1e-6)
    assert row["cosine"] == pytest.approx(1, abs=1e-6)


def test_parts_of_multilora_are_compared_inside(write_adapter, rng):
    path = multilora(write_adapter, rng)
    compared = analyse(path)
    assert compared.rows == []
    assert [(row["part_a"], row["part_b"]) for row in compared.inside] == [
        ("1", "2"),
        ("1", "3"),
        ("2", "3"),
    ]
    (update,) = checkpoint.read(path)
    one, two, _ = (part.dense() for part in update.unstacked())
    want = dense_phi(one, two, 2)
    got = compared.inside[0]["left_phi_k"], compared.inside[0]["right_phi_k"]
    assert got == pytest.approx(want, abs=1e-10)


def test_multilora_and_its_export_are_one_update(tmp_path):
    pytest.importorskip("peft")
    import torch
    from peft import get_peft_model

    from multilora import MultiLoraConfig
    from multilora.delta import save_as_lora

    torch.manual_seed(0)
    model = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(9, 7)), MultiLoraConfig(r=2, n=2, target_modules=["0"])
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "multilora_s" in name:
                p.normal_()
    model.save_pretrained(tmp_path / "multi")
    save_as_lora(model, tmp_path / "lora")
    (row,) = analyse([tmp_path / "multi", tmp_path / "lora"]).rows
    assert row["cosine"] == pytest.approx(1, abs=1e-6)
    assert row["left_phi_k"] == pytest.approx(1, abs=1e-6)
    assert row["norm_ratio"] == pytest.approx(1, abs=1e-6)


def test_every_two_steps_of_a_run_are_compared(write_adapter, lora_tensors):
    first, last = lora_tensors("l.0.q", "l.1.q"), lora_tensors("l.0.q", "l.1.q")
    for step, weight in ((500, 1.0), (1000, 0.01), (1200, 0.0)):
        mixed = {name: weight * first[name] + (1 - weight) * last[name] for name in last}
        path = write_adapter(mixed, f"run/checkpoint-{step}")
    result = analyse(path.parent, modules=r"\.0\..*q")
    assert [(row["run_a"], row["step_a"], row["step_b"]) for row in result.rows] == [
        ("run", a, b) for a, b in ((500, 1000), (500, 1200), (1000, 1200))
    ]
    assert result.rows[-1]["left_phi_1"] > 0.9
    assert result.rows[0]["left_phi_1"] < 0.9


def test_a_base_beside_options_is_used(write_adapter, lora_tensors, tmp_path, rng):
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        W = {"q.weight": rng.standard_normal((12, 10)).astype("f4")}
        save_file(W, tmp_path / name / "model.safetensors")
    base, paths = tmp_path / "base", [tmp_path / "tuned", write_adapter(lora_tensors("q"))]
    want = analyse(paths, options=Options(base=base)).rows
    assert len(want) == 1
    for given in ({}, {"options": Options()}, {"options": Options(base=base)}):
        assert analyse(paths, base=base, **given).rows == want
    with pytest.raises(UserError, match="expected one of them"):
        analyse(paths, base=base, options=Options(base=paths[0]))


def test_steps_of_a_run_are_compared(real_adapter):
    compared = analyse(real_adapter("roberta-agnews-bias-all-run"), modules=r"\.0\..*query")
    assert {(row["run_a"], row["step_a"], row["step_b"]) for row in compared.rows} == {
        ("roberta-agnews-bias-all-run", a, b) for a, b in ((500, 1000), (500, 1200), (1000, 1200))
    }
    assert compared.rows[-1]["left_phi_1"] > 0.9


# What cannot be compared


def test_modules_of_one_side_only_are_said_and_counted(write_adapter, lora_tensors, command):
    a = write_adapter(lora_tensors("q", "v"), "a")
    b = write_adapter(lora_tensors("q", "k"), "b")
    status, out, err = command(a, b)
    assert status == 1
    assert len(err) == 2
    assert f"{a}: k: is missing, but is in {b}" in err[0]
    assert "a ~ b, 1 module" in out


def test_shapes_that_differ_under_one_name(write_adapter, lora_tensors, command):
    a = write_adapter(lora_tensors("q", "v"), "a")
    b = write_adapter(lora_tensors("q") | lora_tensors("v", d_in=8), "b")
    status, _, err = command(a, b)
    assert status == 1
    assert err == [
        f"analysis.similarity: v: is (12, 10) in {a} and (12, 8) in {b}; expected equal shapes"
    ]


def test_an_update_of_zero(write_adapter, lora_tensors, command):
    a, tensors = write_adapter(lora_tensors("q", "v"), "a"), lora_tensors("q", "v")
    tensors["base_model.model.v.lora_B.weight"][:] = 0
    b = write_adapter(tensors, "b")
    status, out, err = command(a, b, "--json")
    assert status == 1
    assert err == [f"analysis.similarity: {b}: v: ΔW is zero; it has no directions"]
    result = json.loads(out)
    assert [row["module"] for row in result["rows"]] == ["q"]
    assert result["skipped"][0]["module"] == "v"


def test_nothing_in_common_is_status_2_with_a_hint(write_adapter, lora_tensors, command):
    a = write_adapter(lora_tensors("layers.0.q_proj"), "a")
    b = write_adapter(lora_tensors("blocks.0.q_proj"), "b")
    status, out, err = command(a, b)
    assert (status, out) == (2, "")
    assert len(err) == 1
    assert "the closest names are layers.0.q_proj and blocks.0.q_proj: see --map" in err[0]
    status, out, err = command(a, b, "--map", "^blocks", "layers")
    assert (status, err) == (0, [])
    assert "q_proj" in out


def test_a_bad_number_is_named(write_adapter, lora_tensors, command):
    tensors = lora_tensors("q", "v")
    tensors["base_model.model.v.lora_A.weight"][1, 2] = np.nan
    a, b = write_adapter(tensors, "a"), write_adapter(lora_tensors("q", "v"), "b")
    status, _, err = command(a, b)
    assert status == 1
    assert len(err) == 1
    assert "v: A holds NaN or Inf" in err[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{a}"], "one checkpoint without parts; expected two to compare"),
        (["{a}", "{a}"], "given twice"),
        (["{a}", "nowhere/at/all"], "no such file or directory"),
        (["{a}", "{b}", "--modules", "("], "regular expression"),
        (["{a}", "{b}", "--map", "(", "x"], "--map"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(pair, command, arguments, words):
    a, b = pair
    status, out, err = command(*(argument.format(a=a, b=b) for argument in arguments))
    assert (status, out, len(err)) == (2, "", 1)
    assert words in err[0]


@pytest.mark.parametrize("arguments", [[], ["--group", "lora"]])
def test_missing_arguments(command, arguments, capfd):
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2


# What is written


def test_files(pair, command, tmp_path):
    status, _, _ = command(*pair, "--out", tmp_path / "out")
    assert status == 0
    with (tmp_path / "out/similarity.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    compared = analyse(pair)
    assert [row["key"] for row in rows] == [row["key"] for row in compared.rows]
    assert float(rows[0]["left_phi_k"]) == compared.rows[0]["left_phi_k"]
    assert rows[0]["right_phi_8"] == ""
    arrays = load_file(tmp_path / "out/phi.safetensors")
    key = "a/model.layers.0.q_proj~b/model.layers.0.q_proj"
    np.testing.assert_array_equal(arrays[f"{key}#left"], compared.phi[f"{key}#left"])
    assert arrays[f"{key}#right_angles"].shape == (4,)
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert record["command"] == "analysis.similarity"
    assert len(record["inputs"]) == 4
    assert record["skipped"] == []


def test_json_is_json_and_nothing_else(pair):
    done = subprocess.run(
        [sys.executable, "-m", "analysis.similarity", *map(str, pair), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout, parse_constant=pytest.fail)
    assert set(result) == {
        *("record", "rows", "inside", "summary", "methods", "skipped", "other"),
    }
    assert [line["kind"] for line in result["summary"]] == ["q_proj", "up_proj", "all"]


def test_csv_has_the_rows_of_both_kinds(write_adapter, rng, command):
    paths = [multilora(write_adapter, rng, name) for name in ("m1", "m2")]
    status, out, _ = command(*paths, "--csv")
    rows = list(csv.DictReader(out.splitlines()))
    assert status == 0
    assert [row["part_a"] for row in rows] == ["", *"112", *"112"]


def test_the_table_shows_both_sides_beside_chance(pair, command):
    _, out, _ = command(*pair)
    lines = out.splitlines()
    assert lines[0] == "a ~ b, 4 modules"
    assert lines[1].split() == [
        *("kind", "modules", "k", "cosine", "‖a‖/‖b‖", "side"),
        *("φ(1)", "φ(k)", "chance", "above", "chance"),
    ]
    assert lines[-1] == "--explain says what the columns mean. Not in 80 columns: φ(4)."
    assert max(map(len, lines)) <= 80
    assert lines[2].split()[5] == "left"
    assert lines[3].split()[0] == "right"
    assert lines[3].split()[-2] == "0.400"  # 4 of 10
    assert "Frobenius norms" not in out
    _, out, _ = command(*pair, "--explain")
    assert "Frobenius norms" in " ".join(out.split())


def test_a_line_a_pair_where_there_are_many(write_adapter, lora_tensors, command):
    paths = [write_adapter(lora_tensors("q", "v"), name) for name in "abcd"]
    _, out, _ = command(*paths)
    assert out.splitlines()[0] == "all modules"
    assert sum(" ~ " in line for line in out.splitlines()) == 6


def test_seeds_of_one_method_show_its_repeatability(write_adapter, lora_tensors, command):
    paths = [write_adapter(lora_tensors("q", "v"), name) for name in ("l0", "l1", "f0", "f1")]
    status, out, _ = command("--group", "lora", *paths[:2], "--group", "full", *paths[2:], "--json")
    assert status == 0
    methods = json.loads(out)["methods"]
    assert [(row["method_a"], row["method_b"], row["run_pairs"]) for row in methods] == [
        ("lora", "lora", 1),
        ("lora", "full", 2),
        ("full", "full", 1),
    ]


def test_hostile_names_are_escaped_on_a_terminal(write_adapter, lora_tensors, command):
    paths = [write_adapter(lora_tensors("q\x1b[31m.w"), name) for name in "ab"]
    for arguments in ([], ["--csv"]):
        _, out, _ = command(*paths, *arguments)
        assert "\x1b" not in out


def test_the_public_names():
    assert similarity.phi is subspaces.phi
    help_text = subprocess.run(
        [sys.executable, "-m", "analysis.similarity", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert "Exit status" in help_text


# Before merging


def test_merging_is_a_report_of_its_own(pair, command, tmp_path):
    status, out, err = command("--merge", *pair, "--explain", "--out", tmp_path / "out")
    assert (status, err) == (0, [])
    assert out.splitlines()[0] == "a: a  (lora)"
    assert "q_proj: " in out
    assert "do not tell the accuracy" in " ".join(out.split())
    with (tmp_path / "out/merging.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sums = load_file(tmp_path / "out/sums.safetensors")
    assert sorted(sums) == sorted(row["key"] for row in rows)
    updates = [{u.name: u for u in checkpoint.read(path)} for path in pair]
    total = sum(of_run[rows[0]["module"]].dense() for of_run in updates)
    want = np.linalg.svd(total, compute_uv=False)[:8]
    np.testing.assert_allclose(sums[rows[0]["key"]], want, rtol=0, atol=1e-12 * want[0])
    assert float(rows[0]["sum_spectral_norm"]) == pytest.approx(want[0], rel=1e-12)
    status, out, _ = command("--merge", *pair, "--json")
    assert [row["key"] for row in json.loads(out)["merging"]] == [row["key"] for row in rows]


def test_merging_wants_two_and_takes_more(write_adapter, lora_tensors, command, tmp_path):
    paths = [write_adapter(lora_tensors("q"), name) for name in "abc"]
    status, _, err = command("--merge", paths[0])
    words = "analysis.similarity: --merge: 1 checkpoint; expected two or more"
    assert (status, err) == (2, [words])
    status, out, err = command("--merge", *paths, "--out", tmp_path / "out")
    assert (status, err) == (0, [])
    assert "Each pair, a ~ b" in out
    assert "3 adapters merged (sum)" in out
    counts = {"merging.csv": 3, "adapters.csv": 3, "merged.csv": 1}
    for file, count in counts.items():
        with (tmp_path / "out" / file).open(encoding="utf-8") as opened:
            assert len(list(csv.DictReader(opened))) == count
    ((key, s),) = load_file(tmp_path / "out/merged.safetensors").items()
    total = sum(update.dense() for path in paths for update in checkpoint.read(path))
    want = np.linalg.svd(total, compute_uv=False)
    assert key == "a+b+c/q"
    np.testing.assert_allclose(s, want, rtol=0, atol=1e-12 * want[0])


def test_merging_with_a_zero_update_is_skipped(write_adapter, lora_tensors, command):
    tensors = lora_tensors("q", "v")
    tensors["base_model.model.v.lora_B.weight"][:] = 0
    paths = write_adapter(tensors, "a"), write_adapter(lora_tensors("q", "v"), "b")
    status, out, err = command("--merge", *paths, "--csv")
    assert status == 1
    assert len(err) == 1
    assert "v: ΔW is zero" in err[0]
    assert len(out.splitlines()) == 2


# Beside the base


@pytest.fixture
def base(tmp_path, rng):
    """A model with the weights that `pair` changes."""
    weights = {
        f"model.layers.{i}.{kind}.weight": rng.standard_normal((12, 10)).astype("f4")
        for i in (0, 1)
        for kind in ("q_proj", "up_proj")
    }
    (tmp_path / "base").mkdir()
    save_file(weights, tmp_path / "base/model.safetensors")
    (tmp_path / "base/config.json").write_text("{}")
    return tmp_path / "base"


def test_one_checkpoint_beside_its_base(pair, base, command, tmp_path):
    cache = tmp_path / "cache"
    arguments = (pair[0], "--base", base, "--cache", cache)
    status, out, err = command(*arguments, "--out", tmp_path / "out")
    assert (status, err) == (0, [])
    assert out.splitlines()[1] == "a  compared with its base"
    with (tmp_path / "out/base.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    update = next(iter(checkpoint.read(pair[0])))
    W0 = load_file(base / "model.safetensors")[f"{update.name}.weight"].astype(float)
    ratio = np.linalg.norm(update.dense(), 2) / np.linalg.norm(W0, 2)
    assert rows[0]["key"] == f"a/{update.name}"
    assert float(rows[0]["relative_spectral"]) == pytest.approx(ratio, rel=1e-9)
    # Small enough to be looked at without asking; what intrudes is not.
    assert float(rows[0]["left_1"]) > 0
    assert rows[0]["intruders"] == ""
    assert not cache.exists()
    assert command(*arguments, "--landing")[0] == 0
    assert len(list(cache.iterdir())) == 4


def test_intruders_are_announced_and_counted(pair, base, command, tmp_path):
    arguments = (*pair, "--base", base, "--cache", tmp_path / "cache", "--intruders", "--json")
    status, out, err = command(*arguments)
    assert status == 0
    assert len(err) == 1
    assert "full decomposition of 4 matrices of the base: about" in err[0]
    result = json.loads(out)
    assert len(result["rows"]) == 4
    assert len(result["base"]) == 8
    assert all(0 <= row["intruders"] <= 10 for row in result["base"])


def test_landing_is_left_out_where_it_takes_long(pair, base, command, monkeypatch):
    monkeypatch.setattr(landing.base_vectors, "estimate", lambda shapes: (3600.0, 0))
    status, out, err = command(pair[0], "--base", base)
    assert status == 0
    assert err == [
        "analysis.similarity: the landing of ΔW is left out, because it takes long: see --landing"
    ]
    assert "lands" not in out.split("‖ΔW‖/‖W0‖ in the")[0]


def test_an_update_of_zero_has_a_size_beside_the_base(base, write_adapter, lora_tensors, command):
    tensors = lora_tensors("model.layers.0.q_proj")
    tensors["base_model.model.model.layers.0.q_proj.lora_B.weight"][:] = 0
    status, out, _ = command(write_adapter(tensors, "zero"), "--base", base, "--csv")
    (row,) = csv.DictReader(out.splitlines())
    assert status == 0
    assert float(row["relative_frobenius"]) == 0
    assert row["amplification_k"] == ""


def test_a_module_that_the_base_lacks(base, write_adapter, lora_tensors, command):
    path = write_adapter(lora_tensors("model.layers.0.q_proj", "model.layers.7.q_proj"), "a")
    status, _, err = command(path, "--base", base)
    assert status == 1
    assert len(err) == 1
    assert "layers.7.q_proj: its weight is not in the base" in err[0]


def test_against_the_base_without_one(pair, command):
    with pytest.raises(SystemExit) as stopped:
        command(*pair, "--intruders")
    assert stopped.value.code == 2


def test_options_of_the_base_reach_its_analysis(pair, base, command, monkeypatch, capfd):
    calls = []

    def recorded(*_, **given):
        calls.append(given)
        return AgainstBase([], [], [])

    monkeypatch.setattr(landing, "analyse", recorded)
    assert command(*pair, "--base", base)[0] == 0
    assert command(*pair, "--base", base, "--landing", "--intruders", "--cache", "x/y")[0] == 0
    default, given = calls
    assert (default["landing"], default["intruders"]) == (False, False)
    assert default["cache"] == base_vectors.default_cache()
    assert (given["landing"], given["intruders"], given["cache"]) == (True, True, Path("x/y"))
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "full decomposition" in capfd.readouterr().out


def test_figures(write_adapter, lora_tensors, command, tmp_path):
    paths = [write_adapter(lora_tensors("l.0.q", "l.1.q"), name) for name in "abc"]
    for count in (2, 3):
        directory = tmp_path / str(count)
        assert command(*paths[:count], "--figures", directory)[0] == 0
        assert sorted(file.name for file in directory.iterdir()) == [
            "similarity.pdf",
            "similarity.png",
        ]


# Awkward input


def test_directions_below_the_noise_floor_are_no_directions(write_delta, rng, write_adapter):
    """A change of rank 2 stored with rounding noise is compared as one of rank 2."""
    for name in ("a", "b"):
        W = 10 * rng.standard_normal((12, 2)) @ rng.standard_normal((2, 10))
        noise = 1e-4 * rng.standard_normal((12, 10))
        facts = {"floor": 1e-3, "W0_frobenius": 1.0, "W0_rms": 0.1}
        write_delta({"q": (W + noise).astype("f4")}, name, modules={"q": facts})
        parent = write_adapter({}, "unused").parent
    (row,) = analyse([parent / "a", parent / "b"]).rows
    assert (row["k"], row["left_phi_4"]) == (2, None)


def test_tiny_and_huge_updates_keep_their_numbers(write_adapter, lora_tensors, command):
    paths = []
    for name, scale in (("tiny", 1e-85), ("one", 1.0)):
        tensors = {key: scale * x.astype(np.float64) for key, x in lora_tensors("q").items()}
        paths.append(write_adapter(tensors, name))
    for order in (paths, paths[::-1]):
        status, out, err = command(*order, "--json")
        (row,) = json.loads(out, parse_constant=pytest.fail)["rows"]
        assert (status, err) == (0, [])
        assert -1 <= row["cosine"] <= 1
        assert 0 < row["norm_ratio"] < np.inf


def test_parts_of_one_side_only_are_told(write_adapter, rng, command):
    """Fused projections of which one adapter has q and k, the other k and v."""
    paths = []
    for name, enabled in (("qk", [True, True, False]), ("kv", [False, True, True])):
        tensors = {
            "base_model.model.l.0.qkv.lora_A.weight": rng.standard_normal((4, 6)).astype("f4"),
            "base_model.model.l.0.qkv.lora_B.weight": rng.standard_normal((8, 2, 1)).astype("f4"),
        }
        paths.append(write_adapter(tensors, name, r=2, lora_alpha=2, enable_lora=enabled))
    for mode in ([], ["--merge"]):
        status, _, err = command(*mode, *paths)
        assert status == 1
        assert len(err) == 2
        assert f"{paths[1]}: l.0.qkv slice0: is missing, but is in {paths[0]}" in err[0]
        assert "slice2" in err[1]


def test_the_notes_come_in_one_order(write_adapter, lora_tensors):
    names = [f"l.{i}.q" for i in range(40)]
    zero = {key: value * ("lora_A" in key) for key, value in lora_tensors(*names).items()}
    paths = [write_adapter(zero, "zero"), write_adapter(lora_tensors(*names), "a")]
    notes = [analyse(paths).skipped for _ in range(4)]
    assert [note["module"] for note in notes[0]] == names
    assert all(again == notes[0] for again in notes)


def test_one_checkpoint_of_another_base_is_skipped(
    pair, base, write_adapter, lora_tensors, command
):
    foreign = write_adapter(lora_tensors("encoder.block.q"), "foreign")
    status, out, err = command(*pair, foreign, "--base", base, "--json")
    assert status == 1
    assert any("expected the base of the checkpoint" in line for line in err)
    assert {row["run"] for row in json.loads(out)["base"]} == {"a", "b"}


def test_renamed_modules_keep_their_base(pair, base, command):
    status, out, err = command(
        *pair,
        "--base",
        base,
        "--map",
        r"^model\.layers",
        "blocks",
        "--modules",
        "^blocks",
        "--json",
    )
    assert (status, err) == (0, [])
    result = json.loads(out)
    assert {row["module"].split(".")[0] for row in result["rows"] + result["base"]} == {"blocks"}
    assert result["base"][0]["key"].startswith("a/model.layers")


def test_json_also_says_that_nothing_was_compared(write_adapter, lora_tensors, command):
    paths = write_adapter(lora_tensors("q"), "a"), write_adapter(lora_tensors("x.y"), "b")
    status, out, _ = command(*paths, "--json")
    assert status == 2
    assert json.loads(out)["rows"] == []
    assert len(json.loads(out)["skipped"]) == 1


def test_figures_of_one_checkpoint_are_refused_in_words(write_adapter, rng, command, tmp_path):
    status, _, err = command(multilora(write_adapter, rng), "--figures", tmp_path / "out")
    assert status == 0
    assert err == ["analysis.similarity: --figures: no two checkpoints to draw"]
    with pytest.raises(SystemExit):
        command("--merge", "a", "b", "--figures", tmp_path / "out")


def test_a_zero_part_is_named(write_adapter, rng, command):
    path = multilora(write_adapter, rng)
    tensors = load_file(path / "adapter_model.safetensors")
    tensors["base_model.model.q.multilora_s"][:, 0] = 0
    save_file(tensors, path / "adapter_model.safetensors")
    status, _, err = command(path)
    assert status == 1
    assert err == [f"analysis.similarity: {path}: q 1: ΔW is zero; it has no directions"]


def test_what_was_assumed_of_a_file_is_said_once_per_file(tmp_path, rng, capfd):
    for name in "ab":
        factors = {"q.lora_A": rng.standard_normal((2, 9)), "q.lora_B": rng.standard_normal((7, 2))}
        save_file(factors, tmp_path / f"{name}.safetensors")
    paths = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    assert main(paths) == 0
    said = capfd.readouterr().err.splitlines()
    assert ["does not give α" in line for line in said] == [True, True]
    assert main([*paths, "--scale", "1"]) == 0
    assert capfd.readouterr().err == ""
