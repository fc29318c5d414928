"""The steps of a run: against the analyses that it is made of, in words, and bad input."""

import csv
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis import CheckpointError, similarity, spectrum
from analysis.dynamics import analyse, main
from analysis.formats import Options
from analysis.pairs import dominance
from analysis.tables import dynamics as dynamics_table
from analysis.tables.dynamics import summary


@pytest.fixture
def run(write_adapter, lora_tensors, tmp_path):
    """Three steps of a run, each nearer to the last."""
    start, end = (lora_tensors("l.0.q", "l.1.q", d_out=40, d_in=30) for _ in range(2))
    for step, weight in ((5, 0.9), (10, 0.2), (100, 0.0)):
        mixed = {name: weight * start[name] + (1 - weight) * end[name] for name in end}
        write_adapter(mixed, f"run/checkpoint-{step}")
    return tmp_path / "run"


def test_a_run_agrees_with_the_analyses_that_it_is_made_of(run):
    result = analyse(run)
    assert result.skipped == []
    assert [line["step"] for line in summary(result.rows)] == [5, 10, 100]
    spectra = {row["key"]: row for row in spectrum.analyse(run).rows}
    pairs = {row["key"]: row for row in similarity.analyse(run).rows}
    for row in result.rows:
        step, module = row["step"], row["module"]
        for column in dynamics_table.SIZES:
            assert row[column] == spectra[f"run@{step}/{module}"][column]
        previous, last = {5: (None, 100), 10: (5, 100), 100: (10, None)}[step]
        for name, other in (("previous", previous), ("last", last)):
            ends = sorted((other, step)) if other else ()
            pair = pairs["~".join(f"run@{end}/{module}" for end in ends)] if ends else {}
            for column in dynamics_table.SHARED:
                assert row[f"{column}_{name}"] == pair.get(column)


def test_a_real_run_agrees_with_its_parts(real_adapter):
    path = real_adapter("roberta-portuguese-run")
    result = analyse(path)
    assert result.skipped == []
    assert [line["step"] for line in summary(result.rows)] == [500, 2500, 4500, 6500, 8610]
    spectra = {row["key"]: row for row in spectrum.analyse(path).rows}
    pairs = {row["key"]: row for row in similarity.analyse(path).rows}
    for row in result.rows:
        name, module = row["run"], row["module"]
        assert row["effective_rank"] == spectra[f"{name}@{row['step']}/{module}"]["effective_rank"]
        if row["step"] == 4500:
            before = pairs[f"{name}@2500/{module}~{name}@4500/{module}"]
            last = pairs[f"{name}@4500/{module}~{name}@8610/{module}"]
            assert row["left_phi_k_previous"] == before["left_phi_k"]
            assert row["cosine_last"] == last["cosine"]
        if row["step"] == 500:
            assert row["left_phi_k_previous"] is None
        if row["step"] == 8610:
            assert row["cosine_last"] is None
            assert row["right_phi_1_previous"] > 0.9


def test_rows_have_every_column(run):
    result = analyse(run)
    assert len(result.rows) == 6
    assert all(tuple(row) == dynamics_table.COLUMNS for row in result.rows)
    assert set(result.s) == {f"run@{step}/l.{i}.q" for step in (5, 10, 100) for i in (0, 1)}


def test_directions_come_nearer_to_the_last(run):
    first, second, _ = summary(analyse(run).rows)
    for side in ("left", "right"):
        assert first[f"{side}_phi_k_last"] < second[f"{side}_phi_k_last"]


def test_the_order_of_the_paths_does_not_matter(run):
    steps = [run / f"checkpoint-{step}" for step in (100, 5, 10)]
    assert summary(analyse(steps).rows) == summary(analyse(run).rows)


def test_several_runs_are_kept_apart(run, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    result = summary(analyse([run, tmp_path / "other"]).rows)
    assert [(line["run"], line["step"]) for line in result] == [
        (name, step) for name in ("other", "run") for step in (5, 10, 100)
    ]


def test_the_verdict_compares_the_first_step_with_the_last(run):
    spectra = spectrum.analyse(run)
    change = dominance.pair_spectra(spectra, ("run", 5), ("run", 100))
    assert analyse(run).verdicts == {"run": dominance.judge(change).sentence}


def test_the_verdict_of_a_real_run(real_adapter):
    result = analyse(real_adapter("roberta-portuguese-run"))
    assert "No clear difference" in result.verdicts["roberta-portuguese-run"]


def test_a_nan_beside_a_zero_is_told_of(write_adapter, lora_tensors, tmp_path):
    for step in (1, 2):
        tensors = lora_tensors("l.0.q", "l.0.v")
        tensors["base_model.model.l.0.q.lora_B.weight"][:] = 0
        tensors["base_model.model.l.0.v.lora_B.weight"][0, 0] = np.nan
        write_adapter(tensors, f"run/checkpoint-{step}")
    result = analyse(tmp_path / "run")
    assert [skip["module"] for skip in result.skipped] == ["l.0.v", "l.0.v"]


def test_a_step_without_an_update_has_no_directions(run, write_adapter, lora_tensors):
    tensors = lora_tensors("l.0.q", "l.1.q", d_out=40, d_in=30)
    for name in tensors:
        if "lora_B" in name:
            tensors[name][:] = 0
    write_adapter(tensors, "run/checkpoint-1")
    result = analyse(run)
    first = summary(result.rows)[0]
    assert (first["step"], first["frobenius_norm"], first["effective_rank"]) == (1, 0, None)
    assert first["left_phi_k_last"] is None
    assert result.skipped == []


def test_the_output_directory_of_a_trainer(run, write_adapter, lora_tensors, capfd):
    """Its final adapter lies beside the steps."""
    before = analyse(run)
    write_adapter(lora_tensors("l.0.q", "l.1.q", d_out=40, d_in=30), "run")
    assert analyse(run).rows == before.rows
    assert main([str(run)]) == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("run: its own state, at the end of the run, is not read as a step")


def test_the_steps_of_a_full_fine_tuning(rng, tmp_path):
    W0 = rng.standard_normal((8, 6)).astype("f4")
    delta = rng.standard_normal((8, 6)).astype("f4")
    for name, size in (("base", 0), ("run/checkpoint-1", 1), ("run/checkpoint-2", 2), ("run", 2)):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        save_file({"l.0.q.weight": W0 + size * delta}, tmp_path / name / "model.safetensors")
    result = analyse(tmp_path / "run", options=Options(base=tmp_path / "base"))
    assert result.skipped == []
    norms = [row["frobenius_norm"] for row in result.rows]
    np.testing.assert_allclose(norms, [np.linalg.norm(delta), 2 * np.linalg.norm(delta)], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("alone", "alone: is not a step of a run; expected a directory with checkpoint-N"),
        ("run/checkpoint-5", "checkpoint-5: is the only step of run; expected two or more"),
    ],
)
def test_what_is_not_a_series_of_steps(run, write_adapter, lora_tensors, name, words, capfd):
    write_adapter(lora_tensors("q"), "alone")
    path = run.parent / name
    with pytest.raises(CheckpointError, match=words):
        analyse(path)
    assert main([str(path)]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_the_command(run, tmp_path, capfd):
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    out = capfd.readouterr().out
    assert out.splitlines()[0] == "run, 2 modules"
    assert out.splitlines()[1].startswith("From step ")
    assert max(map(len, out.splitlines())) <= 80
    assert "‖ΔW‖_F goes from" in out
    assert "run@5 and run@100" in out or "than run@" in out
    with (tmp_path / "out/dynamics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert record["command"] == "analysis.dynamics"
    assert [line["step"] for line in record["summary"]] == [5, 10, 100]
    assert main([str(run), "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["rows"]) == 6
    assert main([str(run), "--csv"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 7


def test_a_module_that_cannot_be_read_is_said_once(run, capfd):
    file = run / "checkpoint-10/adapter_model.safetensors"
    from safetensors.numpy import load_file, save_file

    tensors = load_file(file)
    tensors["base_model.model.l.0.q.lora_A.weight"][0, 0] = np.inf
    save_file(tensors, file)
    assert main([str(run)]) == 1
    assert len(capfd.readouterr().err.splitlines()) == 1
