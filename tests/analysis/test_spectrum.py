"""The main command: real adapters against numpy, the table, the files, every bad input."""

import csv
import functools
import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from made_moments import write_moments
from safetensors.numpy import save_file

from analysis import CheckpointError, UserError, checkpoint, results, spectrum, store
from analysis.checkpoint import Run
from analysis.formats import Options
from analysis.numerics import decompose, metrics, null, tails
from analysis.numerics import partial as partial_spectra
from analysis.pairs import combine, dominance
from analysis.spectrum import analyse, main, of_updates
from analysis.tables import dominance as dominance_table
from analysis.tables import spectrum as spectrum_table
from analysis.tables.spectrum import summary
from analysis.update import DenseUpdate, LowRankUpdate, Other, Skipped
from analysis.work import matrices
from analysis.work.kept import Kept

ROOT = Path(__file__).resolve().parents[2]
EPS = np.finfo(float).eps


def shell(*arguments, **options):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def command(run_main):
    return functools.partial(run_main, main)


@pytest.fixture
def two_layers(write_adapter, lora_tensors):
    modules = [f"model.layers.{i}.{kind}" for i in (0, 1) for kind in ("q_proj", "up_proj")]
    return write_adapter(lora_tensors(*modules))


# Against numpy: on made-up adapters, then on adapters that others trained


@pytest.mark.parametrize(
    ("d_out", "d_in", "r", "dtype", "config"),
    [
        (12, 10, 4, "f4", {}),
        (12, 10, 4, "f4", {"use_rslora": True}),
        (5, 9, 7, "f8", {"lora_alpha": -3}),
        (30, 20, 1, "f2", {}),
    ],
)
def test_adapters_agree_with_numpy(write_adapter, rng, d_out, d_in, r, dtype, config):
    A, B = rng.standard_normal((r, d_in)).astype(dtype), rng.standard_normal((d_out, r))
    tensors = {"lora_A": A, "lora_B": B.astype(dtype)}
    tensors = {f"base_model.model.l.0.q.{name}.weight": x for name, x in tensors.items()}
    spectra = analyse(write_adapter(tensors, r=r, **config))
    scale = config.get("lora_alpha", 8) / (np.sqrt(r) if config.get("use_rslora") else r)
    dense = scale * B.astype(dtype).astype(float) @ A.astype(float)
    want = np.linalg.svd(dense, compute_uv=False)[: min(r, d_out, d_in)]
    (s,) = spectra.s.values()
    np.testing.assert_allclose(s, want, rtol=0, atol=1e-12 * want[0])
    assert spectra.skipped == []


@pytest.mark.parametrize(
    "name",
    [
        "roberta-portuguese-run",
        "roberta-agnews-bias-all-run/checkpoint-500",
        "roberta-mrpc-monteclora",
        "peft-regression-lora_mlp_modules_to_save",
    ],
)
def test_real_adapters_agree_with_numpy(real_adapter, name):
    path = real_adapter(name)
    spectra = analyse(path)
    assert spectra.skipped == []
    assert len(spectra.rows) == len(spectra.s) > 0
    for run in checkpoint.runs([path])[-1:]:
        # One update a projection is enough of numpy's dense decompositions here.
        for update in {u.name.split(".")[-1]: u for u in checkpoint.read(run.path)}.values():
            s = spectra.s[f"{run.key}/{update.name}"]
            want = np.linalg.svd(update.dense(), compute_uv=False)[: s.size]
            np.testing.assert_allclose(s, want, rtol=0, atol=1e-12 * want[0])


def test_real_rank_one_adapter_agrees_with_its_closed_form(real_adapter):
    path = real_adapter("opencalm1b-rank1-fp16")
    spectra = analyse(path)
    assert len(spectra.rows) == 24
    for update in checkpoint.read(path):
        # A dense decomposition of one 6144×2048 matrix takes 10 s; rank one has a closed form.
        (s,) = spectra.s[f"{path.name}/{update.name}"]
        B, A = update.B.astype(np.float64), update.A.astype(np.float64)
        want = update.scale * np.linalg.norm(B) * np.linalg.norm(A)
        assert abs(s - want) <= 1e-12 * want
    assert max(row["spectral_norm"] for row in spectra.rows) == pytest.approx(517, abs=1)


@pytest.mark.slow
def test_every_module_of_a_real_run_agrees_with_numpy(real_adapter):
    path = real_adapter("roberta-portuguese-run")
    spectra = analyse(path)
    for run in checkpoint.runs([path]):
        for update in checkpoint.read(run.path):
            s = spectra.s[f"{run.key}/{update.name}"]
            want = np.linalg.svd(update.dense(), compute_uv=False)[: s.size]
            np.testing.assert_allclose(s, want, rtol=0, atol=1e-12 * want[0])


# Rows


def test_a_row_says_what_the_numbers_are_of(two_layers):
    spectra = analyse(two_layers)
    row = spectra.rows[2]
    assert list(row) == list(results.COLUMNS)
    want = {
        "key": "adapter/model.layers.1.q_proj",
        "run": "adapter",
        "method": "lora",
        "step": None,
        "module": "model.layers.1.q_proj",
        "layer": 1,
        "kind": "q_proj",
        "part": None,
        "d_out": 12,
        "d_in": 10,
        "r": 4,
        "capacity": 4,
        "rank": 4,
        "outliers": None,
        "floor": None,
        "above_floor": 4,
        "algorithm": "cholesky",
    }
    assert {column: row[column] for column in want} == want
    (update,) = (u for u in checkpoint.read(two_layers) if u.name == row["module"])
    s = np.linalg.svd(update.dense(), compute_uv=False)[:4]
    assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(s), rel=50 * EPS)
    assert row["top_share_1"] == pytest.approx(s[0] ** 2 / np.sum(s**2), rel=50 * EPS)
    assert row["top_share_16"] == 1
    # 1 % and 10 % of min(12, 10) are one value each.
    assert row["top_share_1pct"] == row["top_share_10pct"] == row["top_share_1"]
    assert row["utilisation"] == pytest.approx(row["effective_rank"] / 4, rel=50 * EPS)


def test_factors_of_more_than_the_smaller_side_meet_their_own_null(rng):
    """Untrained factors are as even as chance at every r, also from r = min(d_out, d_in) on."""
    for r in (15, 16, 32):
        updates = [
            LowRankUpdate(f"q{i}", rng.standard_normal((16, r)), rng.standard_normal((r, 64)))
            for i in range(20)
        ]
        rows = of_updates(updates, Run(Path("a"), "a", None)).rows
        assert {(row["r"], row["capacity"]) for row in rows} == {(r, min(r, 16))}
        democracy = np.array([row["democracy"] for row in rows])
        assert democracy.mean() == pytest.approx(1, abs=4 * democracy.std() / 20**0.5)
        # Negative control: one Gaussian matrix is another null.
        dense = null.chance(16, 64, 16, 16, dense=True)["effective_rank_k"].mean
        assert r == 15 or np.mean([row["effective_rank"] for row in rows]) < 0.95 * dense


def test_a_dense_update_has_no_r(write_delta, rng):
    (row,) = analyse(write_delta({"q": rng.standard_normal((20, 30)).astype("f4")})).rows
    assert (row["r"], row["capacity"]) == (None, 20)


def test_shares_round_the_number_of_values_up(write_delta, rng):
    (row,) = analyse(write_delta({"q": rng.standard_normal((150, 210)).astype("f4")})).rows
    s = next(iter(analyse(write_delta({"q": np.eye(150, 210, dtype="f4")})).s.values()))
    assert s.size == row["capacity"] == 150
    W = analyse(write_delta({"q": np.eye(150, 210, dtype="f4")})).rows[0]
    assert W["top_share_1pct"] == pytest.approx(2 / 150)
    assert W["top_share_10pct"] == pytest.approx(15 / 150)


def test_untrained_modules_are_counted_not_errors(write_adapter, lora_tensors, command):
    tensors = lora_tensors("q", "v")
    tensors["base_model.model.v.lora_B.weight"] *= 0
    path = write_adapter(tensors)
    spectra = analyse(path)
    row = {row["module"]: row for row in spectra.rows}["v"]
    undefined = {c for c in results.COLUMNS if row[c] is None}
    assert undefined == {
        *("step", "layer", "part", "floor", "outliers", "utilisation", "democracy", "gini"),
        *(f"top_share_{k}" for k in ("1", "4", "16", "1pct", "10pct")),
        *("effective_rank", "energy_entropy_rank", "stable_rank", "participation_ratio"),
        *("energy_rank_50", "energy_rank_90", "energy_rank_99"),
        *results.DENOISED,
        *results.HILL,
    }
    assert row["rank"] == row["spectral_norm"] == row["frobenius_norm"] == 0
    np.testing.assert_array_equal(spectra.s["adapter/v"], np.zeros(4))
    everything = summary(spectra.rows)[-1]
    assert (everything["modules"], everything["zero"]) == (2, 1)
    status, out, err = command(path)
    assert (status, err) == (0, [])
    assert next(line for line in out.splitlines() if line.startswith("v ")).split()[-1] == "1"


def test_rank_counts_neither_rounding_nor_noise(write_adapter, write_delta, rng):
    B = rng.standard_normal((30, 4)).astype("f4")
    B[:, 3] = B[:, 0]
    A = rng.standard_normal((4, 20)).astype("f4")
    key = "base_model.model.q.lora_{}.weight"
    (row,) = analyse(write_adapter({key.format("B"): B, key.format("A"): A})).rows
    assert (row["rank"], row["capacity"]) == (3, 4)

    U, V = (np.linalg.qr(rng.standard_normal((d, 4)))[0] for d in (30, 20))
    W = ((U * [4, 2, 1, 0.01]) @ V.T).astype("f4")
    (row,) = analyse(write_delta({"q": W}, modules={"q": {"floor": 0.1}})).rows
    assert (row["rank"], row["above_floor"], row["floor"]) == (3, 3, 0.1)
    (row,) = analyse(write_delta({"q": W}, modules={"q": {"floor": 0.0}}), method="svd").rows
    # The fifth value on is what rounding ΔW to float32 leaves; float64 can tell it from zero.
    assert row["rank"] == 20
    assert row["algorithm"] == "svd"


@pytest.mark.parametrize("weight", [-1, -0.5])
def test_a_difference_of_checkpoints_can_be_written(write_adapter, lora_tensors, command, weight):
    one, two = (write_adapter(lora_tensors("q"), name) for name in ("one", "two"))
    a, b = (next(iter(checkpoint.read(path))).dense() for path in (one, two))
    want = np.linalg.norm(a + weight * b)
    written = (
        ("--combine", f"1:{one}", f"{weight}:{two}"),
        ("--combine", f"1:{one}", f"--combine={weight}:{two}"),
        ("--combine", f"1:{one}", "--combine", f"{weight:.1e}:{two}"),
    )
    for arguments in written:
        status, out, err = command(*arguments, "--json")
        assert (status, err) == (0, [])
        (row,) = (row for row in json.loads(out)["rows"] if row["run"] == "combined")
        assert row["frobenius_norm"] == pytest.approx(want, rel=1e-9)


def test_a_rounded_difference_is_measured_without_its_noise_too(tmp_path, rng, command):
    """ΔW of 0.3 % of W0, in bfloat16: a true effective rank of 59, 72 by the raw spectrum."""
    W0 = rng.standard_normal((120, 96)).astype(ml_dtypes.bfloat16)
    U, V = (np.linalg.qr(rng.standard_normal((d, 96)))[0] for d in (120, 96))
    true = np.exp(-np.arange(96) / 24)
    size = 0.003 * np.linalg.norm(W0.astype(float)) / np.linalg.norm(true)
    W = (W0.astype(float) + size * (U * true) @ V.T).astype(ml_dtypes.bfloat16)
    for name, weights in (("base", W0), ("tuned", W)):
        (tmp_path / name).mkdir()
        save_file({"layers.0.q.weight": weights}, tmp_path / name / "model.safetensors")
    (row,) = analyse(tmp_path / "tuned", base=tmp_path / "base").rows
    want = metrics.effective_rank(true)
    assert row["effective_rank"] > 1.15 * want
    assert row["effective_rank_denoised"] == pytest.approx(want, rel=0.06)
    assert row["gini_denoised"] == pytest.approx(metrics.gini(true), abs=0.04)
    status, out, err = command(tmp_path / "tuned", "--base", tmp_path / "base")
    assert (status, err) == (0, [])
    line = next(
        text for text in out.split("\n\n") if "rounding noise, estimated" in " ".join(text.split())
    )
    line = " ".join(line.split())
    assert f"eff. rank {row['effective_rank_denoised']:.2f}" in line
    assert "in 1 module of 1" in line


def test_dense_rows_count_outliers_and_agree_with_low_rank_ones(write_adapter, write_delta, rng):
    B, A = rng.standard_normal((40, 3)), rng.standard_normal((3, 30))
    noise = 0.01 * rng.standard_normal((40, 30))
    (row,) = analyse(write_delta({"q": B @ A + noise})).rows
    assert row["outliers"] == 3
    key = "base_model.model.q.lora_{}.weight"
    tensors = {key.format("B"): B, key.format("A"): A}
    (low,) = analyse(write_adapter(tensors, r=3, lora_alpha=3)).rows
    (high,) = analyse(write_delta({"q": B @ A}), method="svd").rows
    for column in (
        "spectral_norm",
        "frobenius_norm",
        "stable_rank",
        "top_share_1",
        "energy_rank_90",
    ):
        assert high[column] == pytest.approx(low[column], rel=100 * EPS)


def test_several_checkpoints_are_runs_and_steps_of_one_table(write_adapter, lora_tensors):
    paths = [
        write_adapter(lora_tensors("q"), f"{run}/checkpoint-{n}") for run in "ab" for n in (1, 2)
    ]
    spectra = analyse([paths[0], paths[1], paths[2].parent])
    keys = ["a@1/q", "a@2/q", "b@1/q", "b@2/q"]
    assert [row["key"] for row in spectra.rows] == list(spectra.s) == keys
    totals = [line for line in summary(spectra.rows) if line["kind"] == "all"]
    steps = [(line["run"], line["step"]) for line in totals]
    assert steps == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


def test_a_base_beside_options_is_used(tmp_path, rng):
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        W = {"q.weight": rng.standard_normal((5, 4)).astype("f4")}
        save_file(W, tmp_path / name / "model.safetensors")
    tuned, base = tmp_path / "tuned", tmp_path / "base"
    want = analyse(tuned, options=Options(base=base))
    assert len(want.rows) == 1
    for given in ({}, {"options": Options()}, {"options": Options(base=base)}):
        assert analyse(tuned, base=base, **given).rows == want.rows
    with pytest.raises(UserError, match="expected one of them"):
        analyse(tuned, base=base, options=Options(base=tuned))


def test_a_combination_does_not_hide_a_run_of_its_name(write_adapter, lora_tensors, command):
    one, two = (write_adapter(lora_tensors("q"), name) for name in ("combined", "factors"))
    terms = [combine.parse(f"0.5:{path}") for path in (one, two)]
    spectra = analyse([one, two], terms=terms)
    assert spectra.skipped == []
    assert [row["run"] for row in spectra.rows] == [
        "combined",
        "factors",
        "combined-2",
        "factors-2",
    ]
    W = [next(iter(checkpoint.read(path))).dense() for path in (one, two)]
    want = np.linalg.svd(sum(W) / 2, compute_uv=False)[:8]
    np.testing.assert_allclose(spectra.s["combined-2/q"], want, rtol=0, atol=1e-12 * want[0])
    status, out, _ = command(one, "--combine", f"0.5:{one}", f"0.5:{two}")
    assert status == 0
    assert "combined (a) against combined-2 (b)" in out


def test_updates_in_memory_give_the_same_rows(two_layers):
    run = checkpoint.runs([two_layers])[0]
    spectra = spectrum.of_updates(checkpoint.read(two_layers), run)
    assert spectra.rows == analyse(two_layers).rows


def test_an_update_that_appears_twice_is_analysed_once(two_layers):
    run = checkpoint.runs([two_layers])[0]
    updates = list(checkpoint.read(two_layers))
    spectra = spectrum.of_updates([*updates, updates[0]], run)
    assert len(spectra.rows) == len(spectra.s) == 4
    (skip,) = spectra.skipped
    assert skip["module"] == updates[0].name
    assert skip["reason"].endswith(f"{updates[0].name}: appears twice in the checkpoint")


def test_entries_of_all_kinds_keep_their_order(two_layers, rng):
    """Low-rank updates are analysed several at a time, dense ones one by one."""
    run = checkpoint.runs([two_layers])[0]
    low = list(checkpoint.read(two_layers))
    dense = [
        DenseUpdate(f"d{i}", (4, 3), partial(rng.standard_normal, (4, 3)), source="file")
        for i in range(3)
    ]
    nan = DenseUpdate("nan", (4, 3), partial(np.full, (4, 3), np.nan), source="file")
    entries = [low[0], Other("head", "a head"), dense[0], Skipped("lost", "reason"), dense[1]]
    entries += [nan, low[1], dense[2], low[2], low[3]]
    spectra = spectrum.of_updates(entries, run)
    assert [row["module"] for row in spectra.rows] == [
        entry.name for entry in entries if entry in (*low, *dense)
    ]
    assert [skip["module"] for skip in spectra.skipped] == ["lost", "nan"]
    assert [other["name"] for other in spectra.other] == ["head"]


def test_a_checkpoint_that_cannot_be_read_to_its_end_is_listed(two_adapters, monkeypatch):
    read = checkpoint.scan

    def broken(path, options):
        yield from read(path, options)
        if path.path == two_adapters[0]:
            raise CheckpointError("the end is missing")

    monkeypatch.setattr(checkpoint, "scan", broken)
    spectra = analyse(two_adapters)
    assert spectra.skipped == [{"run": "first", "module": "", "reason": "the end is missing"}]
    assert sum(row["run"] == "second" for row in spectra.rows) == 4


def test_modules_selects_by_name(two_layers):
    spectra = analyse(two_layers, modules=r"layers\.1\..*q")
    assert [row["module"] for row in spectra.rows] == ["model.layers.1.q_proj"]
    with pytest.raises(ValueError, match="regular expression"):
        analyse(two_layers, modules="(")


def test_summary_is_medians_by_kind_then_over_all(two_layers):
    spectra = analyse(two_layers)
    lines = summary(spectra.rows)
    assert [(line["kind"], line["modules"]) for line in lines] == [
        *(("q_proj", 2), ("up_proj", 2), ("all", 4))
    ]
    of_q = [row["gini"] for row in spectra.rows if row["kind"] == "q_proj"]
    assert lines[0]["gini"] == np.median(of_q)
    assert lines[2]["gini"] == np.median([row["gini"] for row in spectra.rows])
    assert lines[0]["floor"] is None


# Output


def test_the_table_fits_a_terminal_and_is_aligned(two_layers, command, monkeypatch):
    status, out, err = command(two_layers)
    lines = out.splitlines()
    assert (status, err) == (0, [])
    assert lines[0].startswith("adapter (lora, rank 4): in the median of 4 modules the first ")
    table = out.split("\n\n")[1].splitlines()
    assert [line.split()[0] for line in table] == ["kind", "q_proj", "up_proj", "all"]
    assert len({len(line) for line in table}) == 1
    assert max(map(len, lines)) <= 80
    assert table[1].split()[2:4] == ["2", "4"]
    assert lines[-2].startswith("--explain says what the columns mean. Not in 80 columns: zero")
    monkeypatch.setenv("COLUMNS", "130")
    table = command(two_layers)[1].split("\n\n")[1].splitlines()
    assert table[1].split()[2:5] == ["2", "12×10", "4"]
    assert 80 < max(map(len, table)) <= 130


def test_the_legend_is_printed_on_demand(two_layers, two_adapters, command):
    words = "top-k: share of the energy"
    assert words not in command(two_layers)[1]
    assert words in command(two_layers, "--explain")[1]
    status, alone, err = command("--explain")
    assert (status, err) == (0, [])
    beside = command(*two_adapters, "--explain")[1]
    for legend in (spectrum_table.EXPLANATION, dominance_table.EXPLANATION):
        words = " ".join(legend.split())
        assert words in " ".join(alone.split())
        assert words in " ".join(beside.split())


def test_json_and_its_record_do_not_depend_on_explain(two_layers, command):
    assert command(two_layers, "--json") == command(two_layers, "--json", "--explain")
    assert "explain" not in json.loads(command(two_layers, "--json")[1])["record"]["arguments"]


def test_checkpoints_below_a_checkpoint_are_told_of(two_layers, command):
    shutil.copytree(two_layers, two_layers.parent / "copy")
    shutil.move(two_layers.parent / "copy", two_layers / "checkpoint-5")
    status, out, err = command(two_layers)
    assert status == 0
    assert out.count("all") >= 1
    assert err == [
        f"analysis.spectrum: {two_layers}: is a checkpoint; 1 more below it not read;"
        f" to read them, pass {two_layers}/checkpoint-*"
    ]
    status, out, err = command(two_layers / "checkpoint-5")
    assert (status, err) == (0, [])


def test_json_is_one_strict_object(two_layers, command):
    status, out, err = command(two_layers, "--json")
    result = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (status, err) == (0, [])
    assert list(result) == ["record", "rows", "summary", "skipped", "other"]
    assert list(result["record"]) == ["command", "arguments", "versions", "seed", "inputs"]
    assert {Path(name).name for name in result["record"]["inputs"]} == {
        *("adapter_config.json", "adapter_model.safetensors")
    }
    assert all(len(digest) == 64 for digest in result["record"]["inputs"].values())
    assert result["rows"] == analyse(two_layers).rows


def test_csv_is_the_file_that_out_writes(two_layers, command, tmp_path):
    status, out, err = command(two_layers, "--csv", "--out", tmp_path / "out")
    assert (status, err) == (0, [])
    assert (tmp_path / "out" / "spectrum.csv").read_text() == out
    loaded, record = store.load(tmp_path / "out")
    assert loaded.rows == analyse(two_layers).rows
    assert record["arguments"]["csv"] is True


def test_names_of_strangers_cannot_steer_the_terminal(write_adapter, lora_tensors, command):
    tensors = lora_tensors("\x1b[31mred\u202e\n.q", "\x1b[2Jlost")
    del tensors["base_model.model.\x1b[2Jlost.lora_B.weight"]
    status, out, err = command(write_adapter(tensors))
    assert status == 1
    assert len(err) == 1
    assert "\\x1b[2Jlost: has lora_A" in err[0]
    assert "\x1b" not in out + err[0]


# Several checkpoints


@pytest.fixture
def two_adapters(write_adapter, lora_tensors):
    modules = [f"model.layers.{i}.{kind}" for i in (0, 1) for kind in ("q_proj", "up_proj")]
    return [
        write_adapter(lora_tensors(*modules), "first"),
        write_adapter(lora_tensors(*modules[:3], "head", r=2), "second", r=2),
    ]


def test_two_checkpoints_are_one_table_and_compared_below(two_adapters, command):
    status, out, err = command(*two_adapters)
    assert (status, err) == (0, [])
    alone = command(two_adapters[0])[1]
    lines = out.splitlines()
    (finding,) = dominance.findings(analyse(two_adapters))
    said = " ".join(out.split("\n\n")[0].split())
    assert said.startswith(finding.sentence)
    assert "first (61 %, by chance 57 %), second (79 %, by chance 75 %)" in said
    table = out.split("\n\n")[1].splitlines()
    assert table[0].split() == ["first", "second"]
    (heading,) = [i for i, line in enumerate(lines) if "against" in line]
    assert lines[heading].startswith("first (a) against second (b): 3 common modules; k = 2")
    assert lines[heading + 1 : heading + 3] == [
        *("only in first: 1 (model.layers.1.up_proj)", "only in second: 1 (head)")
    ]
    assert not any("against" in line for line in alone.splitlines())


def test_json_has_the_comparison_and_its_verdicts(two_adapters, command):
    status, out, err = command(*two_adapters, "--json")
    result = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (status, err) == (0, [])
    assert list(result) == [
        *("record", "rows", "summary", "comparison", "verdicts", "skipped", "other")
    ]
    (got,) = dominance.findings(analyse(two_adapters))
    assert result["comparison"] == got.comparison.rows
    (verdict,) = result["verdicts"]
    assert verdict == dominance.as_json(got)
    assert verdict["sentence"] in " ".join(command(*two_adapters)[1].split())
    assert verdict["only_b"] == ["head"]


def test_out_writes_the_comparison_of_several_checkpoints_only(two_adapters, command, tmp_path):
    status, out, _ = command(*two_adapters, "--csv", "--out", tmp_path / "two")
    assert status == 0
    assert out.startswith("key,run,method")
    assert (tmp_path / "two" / "spectrum.csv").read_text() == out
    with (tmp_path / "two" / "comparison.csv").open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    want = dominance.findings(analyse(two_adapters))[0].comparison.rows
    assert list(cells[0]) == list(dominance.COLUMNS)
    assert [row["module"] for row in cells] == [row["module"] for row in want]
    assert [float(row["wasserstein"]) for row in cells] == [row["wasserstein"] for row in want]
    assert {row["step_a"] for row in cells} == {""}
    command(two_adapters[0], "--out", tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        *("record.json", "spectra.safetensors", "spectrum.csv")
    ]


def test_checkpoints_without_a_module_in_common_are_no_error(write_adapter, lora_tensors, command):
    paths = [write_adapter(lora_tensors(name), name) for name in ("q", "v")]
    status, out, err = command(*paths)
    assert (status, err) == (0, [])
    assert "q and v have no update in common that could be compared." in out


def test_names_in_a_comparison_cannot_steer_the_terminal(write_adapter, lora_tensors, command):
    paths = [write_adapter(lora_tensors("q", f"\x1b[2J{run}"), run) for run in "ab"]
    status, out, _ = command(*paths)
    assert status == 0
    assert "only in a: 1 (\\x1b[2Ja)" in out
    assert "\x1b" not in out


def test_figures_are_drawn_beside_any_output(two_adapters, command, tmp_path):
    for name, arguments in (("table", []), ("json", ["--json"]), ("csv", ["--csv"])):
        status, out, err = command(*two_adapters, *arguments, "--figures", tmp_path / name)
        assert (status, err) == (0, [])
        plain = command(*two_adapters, *arguments)[1]
        assert out == plain or arguments == ["--json"]
        files = sorted(path.name for path in (tmp_path / name).iterdir())
        assert files == ["layers.pdf", "layers.png", "spectra.pdf", "spectra.png"]


def test_nothing_to_draw_is_said(write_adapter, lora_tensors, command, tmp_path):
    tensors = lora_tensors("q")
    tensors["base_model.model.q.lora_B.weight"] *= 0
    status, out, err = command(write_adapter(tensors), "--figures", tmp_path / "figures")
    assert (status, bool(out)) == (0, True)
    assert err == ["analysis.spectrum: --figures: no update has a value above 0; nothing to draw"]
    assert not (tmp_path / "figures").exists()


def test_a_run_is_compared_step_by_step(write_adapter, rng, command):
    """The first value falls to the size of the others, by less at each step."""
    U, V = (np.linalg.qr(rng.standard_normal((d, 4)))[0].astype("f4") for d in (12, 10))
    for step, first in ((5, 8), (10, 2), (20, 1.2), (40, 1)):
        tensors = {
            "base_model.model.q.lora_A.weight": V.T.copy(),
            "base_model.model.q.lora_B.weight": U * np.array([first, 1, 1, 1], "f4"),
        }
        path = write_adapter(tensors, f"run/checkpoint-{step}")
    status, out, _ = command(path.parent, "--json")
    assert status == 0
    verdicts = json.loads(out)["verdicts"]
    assert [(v["step_a"], v["step_b"]) for v in verdicts] == [(5, 10), (10, 20), (20, 40), (5, 40)]
    distances = [v["log_distance"] for v in verdicts]
    assert distances[3] > distances[0] > distances[1] > distances[2] > 0
    assert verdicts[3]["more_dominated"] == "run@5"


def test_a_real_run_is_compared_step_by_step(real_adapter, command):
    status, out, _ = command(real_adapter("roberta-portuguese-run"), "--json")
    assert status == 0
    verdicts = json.loads(out)["verdicts"]
    assert [(v["step_a"], v["step_b"]) for v in verdicts] == [
        *((500, 2500), (2500, 4500), (4500, 6500), (6500, 8610), (500, 8610))
    ]
    # Training settles: each step lies nearer to the next than the one before did.
    distances = [v["log_distance"] for v in verdicts[:4]]
    assert distances == sorted(distances, reverse=True)
    assert verdicts[4]["log_distance"] > distances[0]


# Bad input: one line each, and the status


def assert_one_line(result, status, *words):
    got, out, err = result
    assert got == status
    assert len(err) == 1
    for word in words:
        assert word in err[0]
    assert "Traceback" not in err[0]
    assert bool(out) == (status == 1)


def test_a_path_that_does_not_exist(command, tmp_path):
    assert_one_line(command(tmp_path / "nowhere"), 2, "nowhere: no such file or directory")


def test_a_directory_without_a_checkpoint(command, tmp_path):
    assert_one_line(command(tmp_path), 2, str(tmp_path), "no checkpoint here", "expected")


@pytest.mark.parametrize("kind", ["IA3", "UNILORA", "PREFIX_TUNING"])
def test_adapters_of_other_types(command, write_adapter, kind):
    tensors = {"base_model.model.q.ia3_l": np.ones((3, 1), "f4")}
    path = write_adapter(tensors, peft_type=kind)
    assert_one_line(command(path), 2, str(path), kind)


@pytest.mark.parametrize("name", ["not-lora-ia3-opt350m", "not-lora-unilora"])
def test_real_adapters_of_other_types(command, real_adapter, name):
    assert_one_line(command(real_adapter(name)), 2, name, "peft_type is", "expected 'LORA'")


def test_strict_makes_a_skipped_module_fatal(command, write_adapter, lora_tensors):
    tensors = lora_tensors("q", "v")
    path = write_adapter(tensors, "whole")
    assert command(path, "--strict")[0] == 0
    del tensors["base_model.model.v.lora_B.weight"]
    path = write_adapter(tensors, "broken")
    assert_one_line(command(path, "--strict"), 2, "v: has lora_A but no lora_B")
    assert command(path)[0] == 1


def test_formats_lists_every_family(command, capfd):
    with pytest.raises(SystemExit) as stop:
        main(["--formats"])
    assert stop.value.code == 0
    out = capfd.readouterr().out
    families = {file.stem for file in (ROOT / "analysis" / "formats").glob("*.py")}
    helpers = {
        "__init__",
        "base",
        "rule",
        "own",
        "ties",
        "orientation",
        "fused",
        "stated",
        "claims",
    }
    of_files = {"distributed", "hub"}
    assert {line.split()[0] for line in out.splitlines()} == families - helpers | of_files


def test_a_base_is_an_input_too(command, two_layers, write_adapter, lora_tensors):
    base = write_adapter(lora_tensors("q"), "base")
    (base / "adapter_model.safetensors").rename(base / "model.safetensors")
    status, out, err = command(two_layers, "--json", "--base", base)
    assert (status, err) == (0, [])
    assert str(base / "model.safetensors") in json.loads(out)["record"]["inputs"]


def test_csv_on_a_terminal_is_escaped_and_in_a_file_exact(
    command, write_adapter, lora_tensors, tmp_path
):
    path = write_adapter(lora_tensors("\x1b[2Jq"))
    status, out, _ = command(path, "--csv", "--out", tmp_path / "out")
    assert status == 0
    assert "\x1b" not in out
    assert "\\x1b[2Jq" in out
    assert store.load(tmp_path / "out")[0].rows[0]["module"] == "\x1b[2Jq"


def test_a_truncated_file(command, two_layers):
    file = two_layers / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    assert_one_line(command(two_layers), 2, str(file), "not a readable safetensors file")


def test_a_missing_config(command, two_layers):
    (two_layers / "adapter_config.json").unlink()
    words = (
        "adapter_model.safetensors: PEFT's weights without their adapter_config.json",
        "--scale",
    )
    assert_one_line(command(two_layers), 2, *words)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_a_bad_number_costs_its_module_only(command, write_adapter, lora_tensors, bad, factor):
    tensors = lora_tensors("q", "v")
    tensors[f"base_model.model.v.lora_{factor}.weight"][2, 1] = bad
    path = write_adapter(tensors)
    words = ("adapter_model.safetensors: v: ", f"{factor} holds NaN or Inf", "expected finite")
    assert_one_line(command(path), 1, *words)
    spectra = analyse(path)
    assert [row["module"] for row in spectra.rows] == ["q"]
    (skip,) = spectra.skipped
    assert (skip["run"], skip["module"]) == ("adapter", "v")


def test_a_bad_number_in_a_stored_difference(command, write_delta):
    bad = np.array([[1, np.nan], [0, 1]], "f4")
    path = write_delta({"q": np.eye(2, dtype="f4"), "v": bad})
    assert_one_line(command(path), 1, "delta.safetensors: v: ΔW holds NaN")


def test_a_bad_module_beside_good_ones(command, write_adapter, lora_tensors):
    tensors = lora_tensors("q", "v")
    tensors["base_model.model.v.lora_B.weight"] = np.ones((12, 3), "f4")
    path = write_adapter(tensors)
    assert_one_line(command(path), 1, "v: inner ranks differ, B is (12, 3), A is (4, 10)")
    result = command(path, "--json")
    assert [skip["module"] for skip in json.loads(result[1])["skipped"]] == ["v"]


def test_only_bad_modules_is_nothing_analysed(command, write_adapter, lora_tensors):
    tensors = lora_tensors("q")
    del tensors["base_model.model.q.lora_B.weight"]
    path = write_adapter(tensors)
    assert_one_line(command(path), 2, "q: has lora_A but no lora_B")
    status, out, _ = command(path, "--json")
    assert status == 2
    assert (json.loads(out)["rows"], len(json.loads(out)["skipped"])) == ([], 1)


def test_a_bad_checkpoint_beside_a_good_one(command, two_layers, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_one_line(command(two_layers, tmp_path / "empty"), 1, "empty: no checkpoint here")
    spectra = analyse([two_layers, tmp_path / "empty"])
    assert [(skip["run"], skip["module"]) for skip in spectra.skipped] == [("empty", "")]


def test_nothing_to_analyse_is_an_error(command, two_layers, write_adapter):
    assert_one_line(command(two_layers, "--modules", "nothing"), 2, "no update to analyse")
    heads = write_adapter({"base_model.model.score.weight": np.ones((2, 2), "f4")}, "heads")
    assert_one_line(command(heads), 2, "heads: no update to analyse")


def test_bad_usage(command, two_layers, capfd):
    assert_one_line(command(two_layers, "--modules", "("), 2, "regular expression")
    (two_layers.parent / "file").write_text("")
    got = command(two_layers, "--out", two_layers.parent / "file")
    assert_one_line(got, 2, "is not a directory; expected one, or a new name")
    for arguments in ([], [str(two_layers), "--json", "--csv"], [str(two_layers), "--method", "x"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    capfd.readouterr()


def test_analyse_raises_for_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        analyse(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("redirection", "status", "words"),
    [(">&-", 0, ""), ("| head -c 5", 0, ""), ("> /dev/full", 2, "No space left on device")],
)
def test_an_output_that_is_closed_or_full(two_layers, redirection, status, words):
    line = (
        f"set -o pipefail; {sys.executable} -m analysis.spectrum {two_layers} --json {redirection}"
    )
    done = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == bool(words)


def test_ascii_terminals_get_a_table_too(two_layers):
    done = shell("-m", "analysis.spectrum", two_layers, env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("all ")]
    assert re.fullmatch("[_.:=+*#-]+", line.split()[1])  # the sparkline


def test_help_is_the_documentation(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "PATH is a checkpoint directory" in out
    assert "Exit status" in out
    assert spectrum.__doc__ is not None


def test_what_does_not_fit_into_memory_is_skipped(two_layers, write_delta, monkeypatch):
    def too_large(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(spectrum.decompose, "spectrum", too_large)
        reasons = [skip["reason"] for skip in analyse(two_layers).skipped]
    assert len(reasons) == 4
    assert all(reason.endswith("proj: does not fit into memory") for reason in reasons)
    full = write_delta({"q": np.ones((3, 2), "f4")})
    monkeypatch.setattr(checkpoint.peft, "read", too_large)
    spectra = analyse([two_layers, full])
    assert [skip["reason"] for skip in spectra.skipped] == [
        f"{two_layers}: does not fit into memory"
    ]
    assert len(spectra.rows) == 1


def test_a_checkpoint_without_any_update_is_named(two_layers, write_adapter, command):
    empty = write_adapter({}, "empty")
    status, _, err = command(two_layers, empty)
    assert (status, err) == (
        0,
        [f"analysis.spectrum: {empty}: no update to analyse; expected at least one"],
    )


def test_what_is_assumed_of_a_file_is_said(command, write_adapter, tmp_path, rng):
    """α and the orientation, which a file of factors does not give."""
    A, B = rng.standard_normal((9, 2)), rng.standard_normal((2, 9))
    save_file({"q.lora_A": A, "q.lora_B": B, "norm": np.ones(3)}, tmp_path / "own.safetensors")
    status, out, err = command(tmp_path / "own.safetensors")
    assert (status, len(err)) == (0, 2)
    assert "own.safetensors: stores A (d_in, r) and B (r, d_out), by their shapes" in err[0]
    assert "own.safetensors: does not give α: its updates have scale 1 (see --scale)" in err[1]
    assert "1 item without ΔW" in out  # norm
    status, out, err = command(tmp_path / "own.safetensors", "--scale", "2", "--transposed")
    assert (status, err) == (0, [])  # negative control
    status, out, err = command(tmp_path / "own.safetensors", "--json")
    kinds = [line.get("kind") for line in json.loads(out)["other"]]
    assert (kinds, len(err)) == ([None, "remark", "remark"], 2)


# In function space


@pytest.fixture
def inputs(tmp_path, rng):
    """Write second moments of two kinds of module; returns the directory and the matrices."""
    C = {kind: np.cov(rng.standard_normal((10, 40))) for kind in ("q_proj", "up_proj")}

    def write(**changes):
        modules = {f"model.layers.{i}.{kind}": C[kind] for i in (0, 1) for kind in C}
        modules |= changes.pop("modules", {})
        return write_moments(tmp_path / "moments", modules, **changes)

    return write, C


def test_the_columns_of_function_space_agree_with_a_dense_root(two_layers, inputs, command):
    write, C = inputs
    plain, spectra = analyse(two_layers), analyse(two_layers, activations=write())
    assert [row | dict.fromkeys(results.FUNCTION) for row in plain.rows] == [
        row | dict.fromkeys(results.FUNCTION) for row in spectra.rows
    ]
    for update, row in zip(checkpoint.read(two_layers), spectra.rows, strict=True):
        assert tuple(row) == (*results.COLUMNS, *results.FUNCTION)
        M = C[row["kind"]]
        values, Z = np.linalg.eigh(M)
        W, root = update.dense(), (Z * np.sqrt(values)) @ Z.T
        s = np.linalg.svd(W @ root, compute_uv=False)
        assert row["function_top_share_1"] == pytest.approx(s[0] ** 2 / np.sum(s**2))
        assert row["function_effective_rank"] == pytest.approx(metrics.effective_rank(s[:4]))
        V = np.linalg.svd(W)[2][:4]
        energies = np.linalg.svd(W)[1][:4] ** 2 * np.diagonal(V @ M @ V.T)
        assert row["function_carried_1"] == pytest.approx(energies[0] / energies.sum())
        assert row["function_norm"] ** 2 == pytest.approx(np.trace(W @ M @ W.T))


def test_the_table_of_function_space_is_printed_written_and_read(
    two_layers, inputs, command, tmp_path
):
    write, _ = inputs
    given = [two_layers, "--activations", write(), "--out", tmp_path / "out"]
    status, out, err = command(*given)
    assert (status, err) == (0, [])
    assert "adapter  in function space" in out
    loaded, record = store.load(tmp_path / "out")
    assert loaded.rows == analyse(two_layers, activations=write()).rows
    assert record["activations"] == "abc"
    assert list(loaded.to_frame().columns)[-1] == results.FUNCTION[-1]
    assert "function_norm" not in command(two_layers, "--csv")[1]
    assert "E‖ΔW x‖²" in command(*given[:3], "--explain")[1]
    assert "E‖ΔW x‖²" not in command(*given[:1], "--explain")[1]
    (first, *_) = command(*given[:3], "--csv")[1].splitlines()
    assert first.split(",") == [*results.COLUMNS, *results.FUNCTION]


def test_a_module_without_a_moment_has_empty_columns_and_a_word(two_layers, tmp_path, command):
    path = write_moments(tmp_path / "m", {"model.layers.0.q_proj": np.eye(10)})
    status, out, err = command(two_layers, "--activations", path, "--json")
    assert status == 0
    assert err == [
        f"analysis.spectrum: --activations {path}: has no second moment of 3 modules, such as"
        " model.layers.0.up_proj: empty columns"
    ]
    rows = {row["module"]: row for row in json.loads(out)["rows"]}
    assert rows["model.layers.0.q_proj"]["function_alignment"] == pytest.approx(1)
    assert {rows["model.layers.1.q_proj"][name] for name in results.FUNCTION} == {None}


@pytest.mark.parametrize(
    ("modules", "status", "words"),
    [
        ({"model.layers.0.q_proj": np.eye(7)}, 1, r"layers.0.q_proj: the .* is \(7, 7\)"),
        ({"model.layers.0.q_proj": np.full((10, 10), np.nan)}, 1, "layers.0.q_proj: .*holds NaN"),
        ({"other": np.eye(10)}, 2, "has no second moment of model.layers.0.q_proj, nor of any"),
    ],
)
def test_moments_that_do_not_fit_are_named(two_layers, tmp_path, command, modules, status, words):
    path = write_moments(tmp_path / "m", modules)
    got, _, err = command(two_layers, "--activations", path)
    assert got == status
    assert re.search(words, "\n".join(err))


def test_moments_of_another_base_are_refused(two_layers, inputs, command):
    write, _ = inputs
    facts = {"path": "x", "sha256": {"model.safetensors": "11"}}
    (two_layers / "run.json").write_text(json.dumps({"base": facts}))
    status, _, (line,) = command(two_layers, "--activations", write())
    assert (status, "has the inputs of another model" in line) == (2, True)
    for path in (two_layers, two_layers / "none"):
        status, _, (line,) = command(two_layers, "--activations", path)
        assert (status, "is not a directory of second moments" in line) == (2, True)


def test_an_update_of_zero_and_other_formats_have_their_columns(
    write_delta, tmp_path, rng, lora_tensors, write_adapter
):
    W = rng.standard_normal((12, 10)).astype("f4")
    path = write_moments(tmp_path / "m", {"q": np.eye(10), "v": np.eye(10)})
    full = analyse(write_delta({"q": W, "v": 0 * W}), activations=path).rows
    assert full[0]["function_top_share_1"] == pytest.approx(full[0]["top_share_1"])
    assert {full[1][name] for name in results.FUNCTION} == {None}
    tensors = lora_tensors("q")
    terms = [combine.Term(w, write_adapter(tensors, n)) for w, n in ((1.0, "a"), (-1.0, "b"))]
    zero, mean = analyse([], terms=terms, activations=path).rows
    assert zero["function_norm"] is None
    assert mean["function_alignment"] is None  # the mean of B·A with weights 1 and −1 is zero


# The exponent of the tail


def test_only_a_dense_update_of_enough_values_has_an_exponent(write_delta, two_layers, rng):
    tail = np.sqrt(rng.uniform(size=150) ** -0.5)
    U, V = (np.linalg.qr(rng.standard_normal((d, 150)))[0] for d in (160, 150))
    W = ((U * np.sort(tail)[::-1]) @ V.T).astype("f4")
    row, small = analyse(write_delta({"q": W, "v": W[:40, :40]})).rows
    assert row["hill_low"] < row["hill"] < row["hill_high"]
    assert row["hill"] == pytest.approx(tails.hill(np.sort(tail)[::-1]).exponent, rel=1e-4)
    assert [small[name] for name in results.HILL] == [None] * 3
    assert {row[name] for row in analyse(two_layers).rows for name in results.HILL} == {None}
    facts = {"floor": 100.0, "W0_frobenius": 1.0, "W0_rms": 0.1}  # all values are noise
    noisy = write_delta({"q": W}, name="noisy", modules={"q": facts})
    assert analyse(noisy).rows[0]["hill"] is None


# The largest values alone, and estimates


@pytest.fixture
def large(write_delta, rng):
    """A dense update that is too large to be decomposed whole without need."""
    return write_delta({"layers.0.q": rng.standard_normal((300, 280)).astype("f4")})


def test_topk_prints_shares_and_says_what_is_missing(large, command):
    status, out, err = command(large, "--method", "topk", "--k", "30")
    assert (status, err) == (0, [])
    assert "of 280 are in use was not computed" in " ".join(out.split())
    assert "by topk" in " ".join(out.split())
    result = json.loads(command(large, "--method", "topk", "--k", "30", "--json")[1])
    (row,) = result["rows"]
    assert (row["algorithm"], row["effective_rank"]) == ("topk", None)
    bounds = {bound["measure"]: bound for bound in result["bounds"]}
    assert bounds["top_share_16"]["low"] <= row["top_share_16"] <= bounds["top_share_16"]["high"]
    assert "s_30" in bounds
    assert "s_31" not in bounds


def test_density_prints_estimates(large, command):
    out = " ".join(command(large, "--method", "density")[1].split())
    assert "directions are in use" in out
    assert "by density" in out


def test_a_budget_of_seconds_says_what_it_picked(large, command, monkeypatch):
    assert "by " not in command(large, "--seconds", "60")[1].split("‖ΔW‖_F")[-1]
    monkeypatch.setattr(spectrum.decompose, "RATE", 1.0)
    assert "by density" in " ".join(command(large, "--seconds", "60")[1].split())


def test_bounds_are_written_and_recorded(large, command, tmp_path):
    assert command(large, "--method", "topk", "--k", "5", "--out", tmp_path / "out")[0] == 0
    with (tmp_path / "out" / "bounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == results.BOUNDS
    spectra, record = store.load(tmp_path / "out")
    assert (record["arguments"]["k"], record["arguments"]["method"]) == (5, "topk")
    assert next(iter(spectra.s.values())).shape == (5,)
    assert "bounds.csv" in (tmp_path / "out" / "record.json").read_text()
    assert command(large, "--out", tmp_path / "out")[0] == 0
    assert not (tmp_path / "out" / "bounds.csv").exists()


def test_several_partial_spectra_are_not_compared(large, write_adapter, lora_tensors, command):
    other = write_adapter(lora_tensors("layers.0.q"))
    status, out, _ = command(large, other, "--method", "topk", "--k", "5")
    assert status == 0
    assert "beyond chance" not in out.split("--explain")[0].split("\n\n")[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--k", "3"], "--k 3: is for --method topk"),
        (["--method", "topk", "--k", "0"], "--k 0; expected at least 1"),
        (["--method", "svd", "--seconds", "3"], "--seconds 3: expected more than 0"),
        (["--seconds", "0"], "expected more than 0"),
        (["--method", "topk", "--page", "page.html"], "--page: needs whole spectra"),
        (["--seconds", "9", "--figures", "there"], "--seconds 9 does not compute them"),
        (["--method", "density", "--activations", "there"], "--activations: needs whole spectra"),
    ],
)
def test_options_that_contradict_are_refused(large, command, options, words):
    status, out, err = command(large, *options)
    assert (status, out) == (2, "")
    assert words in " ".join(err)


@pytest.mark.parametrize("method", ["topk", "density"])
def test_a_kept_spectrum_gives_the_same_row_and_bounds(large, method, tmp_path):
    (update,) = checkpoint.read(large)
    found = decompose.spectrum(update, method)
    kept = Kept(tmp_path / "out", lambda: {"command": "c"})
    kept.put("one", matrices.piece(found))
    again = matrices.spectrum_of(kept.get("one"))
    run = Run(large, "run", None)
    assert spectrum.row(update, again, run) == spectrum.row(update, found, run)
    assert partial_spectra.bounds("key", again) == partial_spectra.bounds("key", found)


def test_partial_spectra_are_computed_on_the_cpu(large, command):
    status, _, err = command(large, "--method", "topk", "--device", "cuda")
    assert status == 2
    assert "--device cuda: --method topk computes on the CPU" in " ".join(err)
