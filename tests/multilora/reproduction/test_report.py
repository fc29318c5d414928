"""Parts that are pooled, and the whole path on a tiny base: real training, real files."""

import csv
import json
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

from analysis import UserError, store
from analysis.numerics import metrics
from analysis.results import Spectra
from multilora import reproduce, train
from multilora.reproduction import (
    blocks,
    figures,
    measures,
    presets,
    report,
    tables,
    trained,
)
from multilora.reproduction.claims import judge
from multilora.reproduction.claims import text as claims_text
from multilora.reproduction.presets import Run
from multilora.tasks.builtin import suite
from multilora.training import identity

METHODS = ("full", "lora", "multilora")

# Pooling, of made-up blocks.


def test_tables_without_a_run_are_averaged_over_blocks():
    rows = [
        {"method_a": a, "method_b": b, "run_pairs": 2, "modules": 14, "k": k, "cosine": cosine}
        | {"left_phi_k": phi}
        for a, b, k, phi, cosine in (
            ("lora", "full", 24, 0.2, None),
            ("lora", "full", 20, 0.4, None),
            ("lora", "lora", 24, None, 0.5),
            ("lora", "full", 24, 0.9, 0.1),
        )
    ]
    one, other = measures.averaged(rows, ("method_a", "method_b"))
    assert list(one) == list(rows[0])
    assert (one["method_a"], one["method_b"], one["run_pairs"]) == ("lora", "full", 6)
    assert (one["k"], one["modules"]) == (20, 14)
    assert one["left_phi_k"] == pytest.approx(0.5)
    assert one["cosine"] == 0.1  # of the block that has it
    assert other == rows[2]
    assert measures.averaged([], ("method_a",)) == []


def test_the_mean_over_one_block_is_the_block():
    rows = [
        {"method_a": "lora", "method_b": "full", "side": side, "i": i, "j1": 0.25 * i, "j2": None}
        for side in ("left", "right")
        for i in (1, 2)
    ]
    assert measures.averaged(rows, report.AVERAGED["phi_grids"]) == rows


MADE_BY = {"methods": {}, "runs": {}, "base": {}, "base_scores": {}, "trained_on": []}


def methods_rows(seed, **changes):
    """Rows of methods.csv of two methods, as a block writes them."""
    values = dict.fromkeys((*measures.COMPARED, "held_k", "parameters"), 0.25 + 0.01 * seed)
    values |= {f"score_{family}": 0.5 for family in ("instruction", "understanding", "knowledge")}
    return [
        {"method": method, "seed": seed, "k": 24, "learning_rate": 0.003} | values | changes
        for method in ("full", "lora")
    ]


def write_block(out, name, rows_of, **made_by):
    """Write the tables of a block, without spectra."""
    directory = out / tables.BLOCKS / name
    store.save(directory, Spectra(), MADE_BY | made_by)
    tables.write(directory, rows_of)
    return directory


def test_rows_of_all_blocks_are_pooled(tmp_path):
    for seed in (6, 5):
        rows_of = {"methods": methods_rows(seed), "repeats": methods_rows(seed + presets.REPEAT)}
        write_block(tmp_path, f"seed-{seed}", rows_of, seed=[seed])
    adapter = {"adapter": "a", "step": None, "module": "m", "kind": "q", "r": 4}
    shares = {"top_share_1": 0.9, "null_top_share_1": 0.3}
    write_block(tmp_path, "wild", {"wild": [adapter | shares]})
    pool = report.read(tmp_path)
    assert [row["seed"] for row in pool.rows_of["methods"]] == [5, 5, 6, 6]
    assert list(pool.records) == ["seed-5", "seed-6", "wild"]
    assert len(pool.rows_of["wild"]) == 1


def test_differences_and_spread_are_those_of_all_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(report.bands, "bands_table", lambda *_: [])
    monkeypatch.setattr(report.bands, "histogram_table", lambda *_: [])
    rows = [row for seed in (5, 6) for row in methods_rows(seed)]
    repeats = [row for seed in (15, 16) for row in methods_rows(seed, score=0.1)]
    for seed in (5, 6):
        own, again = ([r for r in of if r["seed"] % 10 == seed] for of in (rows, repeats))
        pair = {"method_a": "lora", "method_b": "full", "run_pairs": 2, "k": 24}
        alike = [pair | {"left_phi_k": 0.1 * seed}]
        rows_of = {"methods": own, "repeats": again, "similarity_by_method": alike}
        write_block(tmp_path, f"seed-{seed}", rows_of)
    got = report.pooled(report.read(tmp_path))
    assert got["differences"] == measures.differences(rows)
    assert {row["seeds"] for row in got["differences"]} == {2}
    assert got["spread"] == measures.spread(rows, repeats, presets.REPEAT)
    assert {row["bases"] for row in got["spread"]} == {2}
    (alike,) = got["similarity_by_method"]
    assert (alike["left_phi_k"], alike["run_pairs"]) == (pytest.approx(0.55), 4)
    assert got["phi_grids"] == []
    assert {row["n"] for row in got["llama_budget"]} >= {3}


def test_two_blocks_with_the_same_run_are_refused(tmp_path):
    for name in ("seed-5", "seed-5 again"):
        write_block(tmp_path, name, {"methods": methods_rows(5)})
    with pytest.raises(UserError, match="two blocks hold the same method and seed; remove one"):
        report.read(tmp_path)
    shutil.rmtree(tmp_path / tables.BLOCKS / "seed-5 again")
    assert len(report.read(tmp_path).rows_of["methods"]) == 2


@pytest.mark.parametrize("table", ["methods", "repeats"])
def test_a_block_whose_table_was_edited_is_refused(tmp_path, table):
    rows_of = {"methods": methods_rows(5), "repeats": methods_rows(15)}
    file = write_block(tmp_path, "seed-5", rows_of) / f"{table}.csv"
    file.write_text(file.read_text().replace("0.5", "0.9", 1))
    with pytest.raises(UserError, match=rf"seed-5/{table}\.csv: was edited"):
        report.read(tmp_path)


def test_without_blocks_there_is_nothing_to_report_on(tmp_path):
    with pytest.raises(UserError, match="no run is finished and measured; nothing to report on"):
        report.report({"figures": str(tmp_path)})
    write_block(tmp_path, "sweep", {"repeats": methods_rows(5)})
    with pytest.raises(UserError, match="nothing to report on"):
        report.read(tmp_path)


def test_the_scores_of_the_base_are_means_over_bases():
    scores = [
        {"families": {"a": x, "b": 0.5}, "chance": {"a": 0.1, "b": 0.2}, "mean": x / 2}
        for x in (0.25, 0.75)
    ]
    losses = [{"families": {"a": x, "b": 2.0}, "mean": x} for x in (1.0, 4.0)]
    got = report._base_scores([{"base_scores": of} for of in (*scores, {})])
    shares = {"families": {"a": 0.5, "b": 0.5}, "chance": {"a": 0.1, "b": 0.2}, "mean": 0.25}
    assert got == shares | {"nll": None}
    both = [of | {"nll": nll} for of, nll in zip(scores, losses, strict=True)]
    got = report._base_scores([{"base_scores": of} for of in both])
    assert got == shares | {"nll": {"families": {"a": 2.5, "b": 2.0}, "mean": 2.5}}


def test_the_record_names_every_base_and_machine_once(tmp_path):
    for seed, cpu in ((5, "A"), (6, "B"), (7, "A")):
        base = {"model.safetensors": str(seed)}
        write_block(
            tmp_path, f"seed-{seed}", {"methods": methods_rows(seed)}, base=base,
            trained_on=[{"cpu": cpu}],
        )  # fmt: skip
    made_by = report._made_by({"steps": 3}, report.read(tmp_path), {"wild.csv": "0"})
    assert made_by["seed"] == [5, 6, 7]
    assert made_by["bases"] == {f"seed-{s}": {"model.safetensors": str(s)} for s in (5, 6, 7)}
    assert made_by["trained_on"] == [{"cpu": "A"}, {"cpu": "B"}]
    assert made_by["tables"] == {"wild.csv": "0"}


# The whole path.


def planned(settings, model):
    """The runs of the quick preset on a base, with few examples."""
    seeds = [int(seed) for seed in settings.seeds.split(",")]
    methods = settings.methods.split(",")
    runs = presets.plan(methods, seeds, settings.steps, model, Path(settings.runs))
    few = {"per_task": 8, "per_task_scored": 4}
    return [replace(run, settings=replace(run.settings, **few)) for run in runs]


def measured(settings, model):
    """Train the runs of the settings in this process and write them as a block."""
    runs = planned(settings, model)
    for run in runs:
        if not run.is_done():
            train.run(run.settings, run.arguments())
    block = blocks.Block("seeds", runs, model, partial(blocks.of_base, model=model))
    assert blocks.write(block, asdict(settings), Path(settings.figures) / tables.BLOCKS)
    return [trained.trained(run.out) for run in runs]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory, tiny_base):
    """(settings, runs, model, printed text) of a reproduction of a few steps."""
    home = tmp_path_factory.mktemp("reproduce")
    settings = reproduce.ReproduceSettings(
        runs=str(home / "runs"), figures=str(home / "figures"), steps=3
    )
    runs = measured(settings, tiny_base)
    return settings, runs, tiny_base, report.report(asdict(settings))


def read(settings, name):
    with (Path(settings.figures) / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def spectra_of(settings):
    return store.load(Path(settings.figures) / tables.BLOCKS / "seeds")[0]


def test_every_method_has_every_seed(reproduced):
    _, runs, _, _ = reproduced
    assert sorted(run.name for run in runs) == [f"{m}-s{seed}" for m in METHODS for seed in (0, 1)]
    assert {run.facts["step"] for run in runs} == {3}


def test_runs_share_base_and_data_and_differ_by_seed(reproduced):
    settings, runs, _, _ = reproduced
    results = [run.facts for run in runs]
    assert len({json.dumps(result["base"]) for result in results}) == 1
    assert len({result["data"]["sha256"] for result in results}) == 1
    spectra = spectra_of(settings)
    for method in METHODS:
        norms = [
            [row["spectral_norm"] for row in spectra.rows if row["run"] == f"{method}-s{seed}"]
            for seed in (0, 1)
        ]
        assert len(norms[0]) == 14
        assert not set(norms[0]) & set(norms[1])


def test_other_settings_are_another_run(reproduced, tmp_path):
    settings, _, model, _ = reproduced
    run = planned(settings, model)[0]
    longer = Run(run.settings, run.seed, run.steps + 1, run.out)
    lost = Run(run.settings, run.seed, run.steps, tmp_path)
    done = [identity.is_done(one.settings, one.arguments()) for one in (run, longer, lost)]
    assert done == [True, False, False]


def test_rows_are_means_over_modules_of_comparable_measures(reproduced):
    settings, runs, _, _ = reproduced
    spectra = spectra_of(settings)
    k = 24
    rows = {(row["method"], row["seed"]): row for row in read(settings, "methods")}
    for run in runs:
        row = rows[run.method, str(run.seed)]
        s = [spectra.s[r["key"]] for r in spectra.rows if r["run"] == run.name]
        assert len(s) == 14
        top = np.mean([x[0] ** 2 / np.sum(x**2) for x in s])
        assert float(row["top_share_1"]) == pytest.approx(top, rel=1e-12)
        even = np.mean([metrics.effective_rank(x[:k]) for x in s])
        assert float(row["effective_rank_k"]) == pytest.approx(even, rel=1e-12)
        assert float(row["score"]) == run.facts["scores"]["test"]["mean"]


def test_text_gives_every_method_the_base_and_chance(reproduced):
    settings, _, _, text = reproduced
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == list(METHODS)
    assert any(line.startswith("before training") for line in lines)
    assert any(line.startswith("chance") and "35.0" in line for line in lines)
    assert "first 24" in text
    assert "full − lora" in text
    assert "φ(24) between seeds of one method (its repeatability)" in text
    assert lines[-1] == f"{settings.figures}/claims.md"
    drawn = [line for line in lines if line.startswith(settings.figures)]
    assert f"{settings.figures}/spectra_by_method.png" in drawn
    assert all(Path(file).is_file() for file in drawn)


def test_claims_are_judged_from_the_tables_that_were_written(reproduced):
    settings, _, _, text = reproduced
    out = Path(settings.figures)
    of = tables.load(out)
    assert set(of.rows) == {"methods", "nearness", "overlap", "llama_budget"}
    assert of.notes == ()
    made = {"differences.csv", "spectra_by_method.csv", "phi_grids.csv"}
    assert made | {f"{name}.csv" for name in of.rows} <= set(of.record["tables"])
    judged = judge.judge(of)
    outcomes = {one.statement.number: one.outcome for one in judged}
    assert outcomes["5"] is None
    measured = {number for number, outcome in outcomes.items() if outcome != "not measured"}
    assert measured == {"1a", "4b", "4c", "4d", "5"}
    assert json.loads((out / "claims.json").read_text()) == claims_text.as_json(judged)
    assert (out / "claims.md").read_text() == claims_text.as_markdown(judged, of.record)
    assert claims_text.as_text(judged) in text


def test_a_report_is_made_again_without_runs_and_is_the_same(reproduced, tmp_path):
    settings, _, _, text = reproduced
    elsewhere = tmp_path / "figures"
    shutil.copytree(Path(settings.figures) / tables.BLOCKS, elsewhere / tables.BLOCKS)
    lost = asdict(settings) | {"runs": str(tmp_path / "nowhere"), "figures": str(elsewhere)}
    assert report.report(lost) == text.replace(settings.figures, str(elsewhere))
    for name in ("methods", "nearness", "phi_grids"):
        again = (elsewhere / f"{name}.csv").read_bytes()
        assert again == (Path(settings.figures) / f"{name}.csv").read_bytes()


def test_a_table_that_others_made_keeps_its_hash(reproduced, tmp_path, monkeypatch):
    """The report makes its own tables again, and forgets no other."""
    monkeypatch.setattr(figures, "draw", lambda directory: [])
    settings, _, _, _ = reproduced
    shutil.copytree(Path(settings.figures) / tables.BLOCKS, tmp_path / tables.BLOCKS)
    (tmp_path / "record.json").write_text("{}")
    row = {"adapter": "a", "step": None, "module": "m", "kind": "q", "r": 4}
    tables.write(tmp_path, {"wild": [row | {"top_share_1": 0.9, "null_top_share_1": 0.3}]})
    kept = tables.hashes(tmp_path)
    report.report(asdict(settings) | {"figures": str(tmp_path)})
    assert tables.hashes(tmp_path).items() >= kept.items()
    assert len(tables.load(tmp_path).of("wild")) == 1


def test_differences_and_similarity_stand_beside(reproduced):
    settings, _, _, _ = reproduced
    assert len(read(settings, "differences")) == 3 * len(measures.COMPARED)
    between = {
        (row["method_a"], row["method_b"]): row for row in read(settings, "similarity_by_method")
    }
    assert between["lora", "lora"]["run_pairs"] == "1"
    assert between["full", "multilora"]["run_pairs"] == "2"
    assert len(between) == 6


def test_the_record_of_a_block_scores_the_base_on_the_items_of_the_runs(reproduced):
    settings, runs, model, _ = reproduced
    of_block = tables.load_all(Path(settings.figures) / tables.BLOCKS / "seeds").record
    loaded, tokenizer = blocks.delta.load_base(str(model))
    want = blocks.scoring.score(loaded, tokenizer, suite.load("test", 4))
    assert of_block["base_scores"] == json.loads(json.dumps(want))
    assert set(of_block["runs"]) == {run.name for run in runs}
    assert len(of_block["trained_on"]) == 1


@pytest.mark.slow
def test_the_relatives_stand_in_the_same_table(reproduced, tmp_path):
    _, _, model, _ = reproduced
    settings = reproduce.ReproduceSettings(
        runs=str(tmp_path / "runs"), figures=str(tmp_path / "figures"), steps=3,
        methods="rlora,mtllora", seeds="0",
    )  # fmt: skip
    measured(settings, model)
    text = report.report(asdict(settings))
    assert [line.split()[0] for line in text.splitlines()[2:4]] == ["rlora", "mtllora"]
    spectra = spectra_of(settings)
    of = {m: {r["part"] for r in spectra.rows if r["method"] == m} for m in ("rlora", "mtllora")}
    assert of == {"rlora": {"mean"}, "mtllora": set(suite.TASKS)}


@pytest.mark.slow
def test_methods_of_pefts_own_stand_in_the_same_tables(tiny_base, tmp_path):
    settings = reproduce.ReproduceSettings(
        runs=str(tmp_path / "runs"), figures=str(tmp_path / "figures"), steps=3, seeds="0",
        methods="lora,peft:PISSA,peft:DORA,peft:VERA",
    )  # fmt: skip
    measured(settings, tiny_base)
    text = report.report(asdict(settings))
    names = ["lora-s0", "peft-PISSA-s0", "peft-DORA-s0", "peft-VERA-s0"]
    found = [row["run"] for row in spectra_of(settings).rows]
    assert found == [name for name in names for _ in range(14)]
    for method in ("lora", "peft:PISSA", "peft:DORA", "peft:VERA"):
        lines = [line for line in text.splitlines() if line.startswith(f"{method} ")]
        assert len([line for line in lines if " − " not in line]) == 3
