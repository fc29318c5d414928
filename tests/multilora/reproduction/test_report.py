"""The whole path on a tiny base: real processes, real training, real files."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

from analysis import store
from analysis.numerics import metrics
from multilora import reproduce, train
from multilora.reproduction import bands, measures, report, running, tables, trained
from multilora.reproduction.claims import judge
from multilora.reproduction.claims import text as claims_text
from multilora.reproduction.pictures import spectra as pictures
from multilora.reproduction.pictures.styles import name_of
from multilora.reproduction.presets import Run
from multilora.tasks.builtin import suite
from multilora.training import identity

METHODS = ("full", "lora", "multilora")


def planned(settings, model):
    """The runs of the quick preset on a base, with few examples."""
    (runs,) = reproduce.stages(settings, lambda base: model)
    few = {"per_task": 8, "per_task_scored": 4}
    return [replace(run, settings=replace(run.settings, **few)) for run in runs.compared]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory, tiny_base):
    """(settings, runs, model, printed text) of a reproduction of a few steps."""
    home = tmp_path_factory.mktemp("reproduce")
    settings = reproduce.ReproduceSettings(
        out=str(home / "runs"), figures=str(home / "figures"), steps=3, processes=2
    )
    runs = planned(settings, tiny_base)
    running.train_all(runs, settings.processes)
    finished = [trained.trained(run.out) for run in runs]
    return settings, finished, tiny_base, report.report(asdict(settings), finished, tiny_base)


def test_every_method_has_every_seed(reproduced):
    _, runs, _, _ = reproduced
    assert sorted(run.name for run in runs) == [f"{m}-s{seed}" for m in METHODS for seed in (0, 1)]
    assert {run.facts["step"] for run in runs} == {3}


def test_runs_share_base_and_data_and_differ_by_seed(reproduced):
    settings, runs, _, _ = reproduced
    results = [run.facts for run in runs]
    assert len({json.dumps(result["base"]) for result in results}) == 1
    assert len({result["data"]["sha256"] for result in results}) == 1
    spectra, _ = store.load(settings.figures)
    for method in METHODS:
        norms = [
            [row["spectral_norm"] for row in spectra.rows if row["run"] == f"{method}-s{seed}"]
            for seed in (0, 1)
        ]
        assert len(norms[0]) == 14
        assert not set(norms[0]) & set(norms[1])


def test_what_is_there_is_not_trained_again(reproduced):
    settings, _, model, _ = reproduced
    runs = planned(settings, model)
    before = [(run.out / "run.json").stat().st_mtime_ns for run in runs]
    running.train_all(runs, settings.processes)
    assert [(run.out / "run.json").stat().st_mtime_ns for run in runs] == before


def test_other_settings_are_another_run(reproduced):
    settings, _, model, _ = reproduced
    run = planned(settings, model)[0]
    longer = Run(run.settings, run.seed, run.steps + 1, run.out)
    assert identity.is_done(run.settings, run.arguments())
    assert not identity.is_done(longer.settings, longer.arguments())


def test_a_run_without_its_record_is_not_done(reproduced, tmp_path):
    settings, _, model, _ = reproduced
    run = planned(settings, model)[0]
    lost = Run(run.settings, run.seed, run.steps, tmp_path)
    assert not identity.is_done(lost.settings, lost.arguments())


def test_rows_are_means_over_modules_of_comparable_measures(reproduced):
    settings, runs, _, _ = reproduced
    spectra, record = store.load(settings.figures)
    assert set(record["runs"]) == {run.name for run in runs}
    k = 24
    with open(f"{settings.figures}/methods.csv", encoding="utf-8") as file:
        rows = {(row["method"], row["seed"]): row for row in csv.DictReader(file)}
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
    drawn = ("spectra_by_method", "dominance_ablation")
    files = [*(f"{name}.png" for name in drawn), "claims.md"]
    assert lines[-3:] == [f"{settings.figures}/{file}" for file in files]
    assert all((Path(settings.figures) / file).is_file() for file in files)


def test_claims_are_judged_from_the_tables_that_were_written(reproduced):
    settings, _, _, text = reproduced
    out = Path(settings.figures)
    of = tables.load(out)
    assert set(of.rows) == {"methods", "nearness", "overlap", "llama_budget"}
    assert of.notes == ()
    record = json.loads((out / "record.json").read_text())
    assert {"differences.csv", "spectra_by_method.csv", *(f"{n}.csv" for n in of.rows)} <= set(
        record["tables"]
    )
    judged = judge.judge(of)
    outcomes = {one.statement.number: one.outcome for one in judged}
    assert outcomes["5"] == "supported"
    left_out = ("3", "6", "7", "8", "9")
    assert {outcomes[number] for number in left_out} == {"not measured"}
    assert "not measured" not in {outcomes[n] for n in ("1", "2", "4a", "4b", "4c")}
    assert json.loads((out / "claims.json").read_text()) == claims_text.as_json(judged)
    assert (out / "claims.md").read_text() == claims_text.as_markdown(judged, of.record)
    assert claims_text.as_text(judged) in text


def test_a_table_that_others_made_keeps_its_hash(reproduced, tmp_path):
    """The report makes its own tables again, and forgets no other."""
    settings, runs, model, _ = reproduced
    (tmp_path / "record.json").write_text("{}")
    row = {"adapter": "a", "step": None, "module": "m", "kind": "q", "r": 4}
    tables.write(tmp_path, {"wild": [row | {"top_share_1": 0.9, "null_top_share_1": 0.3}]})
    kept = tables.hashes(tmp_path)
    report.report(asdict(settings) | {"figures": str(tmp_path)}, runs[:1], model)
    assert tables.hashes(tmp_path).items() >= kept.items()
    assert len(tables.load(tmp_path).of("wild")) == 1


def test_figure_and_the_table_behind_it(reproduced):
    settings, runs, _, _ = reproduced
    spectra, _ = store.load(settings.figures)
    method_of = {run.name: run.method for run in runs}
    figure = pictures.spectra_by_method(bands.bands_table(spectra, method_of))
    above = figure.axes[:4]
    assert [ax.get_title() for ax in above] == list(pictures.PROJECTIONS)
    for ax in figure.axes:
        assert [line.get_label() for line in ax.lines] == [name_of(m) for m in METHODS]
    with open(f"{settings.figures}/spectra_by_method.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    drawn = above[0].lines[1].get_ydata()
    kept = [float(b["median"]) for b in lines if (b["kind"], b["method"]) == ("q_proj", "lora")]
    np.testing.assert_allclose(kept, drawn, rtol=1e-14)


def test_differences_and_similarity_stand_beside(reproduced):
    settings, _, _, _ = reproduced
    with (Path(settings.figures) / "differences.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(measures.COMPARED)
    with (Path(settings.figures) / "similarity_by_method.csv").open(encoding="utf-8") as file:
        between = {(row["method_a"], row["method_b"]): row for row in csv.DictReader(file)}
    assert between["lora", "lora"]["run_pairs"] == "1"
    assert between["full", "multilora"]["run_pairs"] == "2"
    assert len(between) == 6


def test_the_relatives_stand_in_the_same_table(reproduced, tmp_path):
    _, _, model, _ = reproduced
    settings = reproduce.ReproduceSettings(
        out=str(tmp_path / "runs"), figures=str(tmp_path / "figures"), steps=3, processes=2,
        methods="rlora,mtllora", seeds="0",
    )  # fmt: skip
    runs = planned(settings, model)
    for run in runs:
        train.run(run.settings, run.arguments())
    finished = [trained.trained(run.out) for run in runs]
    text = report.report(asdict(settings), finished, model)
    assert [line.split()[0] for line in text.splitlines()[2:4]] == ["rlora", "mtllora"]
    spectra, _ = store.load(settings.figures)
    parts = {m: {r["part"] for r in spectra.rows if r["method"] == m} for m in ("rlora", "mtllora")}
    assert parts == {"rlora": {"mean"}, "mtllora": set(suite.TASKS)}


@pytest.mark.slow
def test_methods_of_pefts_own_stand_in_the_same_tables(tiny_base, tmp_path):
    settings = reproduce.ReproduceSettings(
        out=str(tmp_path / "runs"), figures=str(tmp_path / "figures"), steps=3, seeds="0",
        methods="lora,peft:PISSA,peft:DORA,peft:VERA",
    )  # fmt: skip
    runs = planned(settings, tiny_base)
    running.train_all(runs, 2)
    finished = [trained.trained(run.out) for run in runs]
    text = report.report(asdict(settings), finished, tiny_base)
    spectra, _ = store.load(settings.figures)
    names = ["lora-s0", "peft-PISSA-s0", "peft-DORA-s0", "peft-VERA-s0"]
    assert [row["run"] for row in spectra.rows] == [name for name in names for _ in range(14)]
    for method in ("lora", "peft:PISSA", "peft:DORA", "peft:VERA"):
        lines = [line for line in text.splitlines() if line.startswith(f"{method} ")]
        assert len([line for line in lines if " − " not in line]) == 2
