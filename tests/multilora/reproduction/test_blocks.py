"""The blocks of a reproduction: what is measured of the runs of one base, and what is written."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from finished import MACHINE, run_of

from analysis import UserError, store
from multilora import record
from multilora.reproduction import blocks, measures, tables
from multilora.reproduction.studies import overlap
from multilora.reproduction.trained import Trained

D_OUT, D_IN = 12, 10
REPEAT = 10
SCORES = {"families": {"knowledge": 0.25}, "chance": {"knowledge": 0.1}, "mean": 0.25}


@pytest.fixture
def runs(write_adapter, write_delta, lora_tensors, rng):
    """Two seeds of the three main methods from one base, of one module each."""
    made = []
    for seed in (5, 5 + REPEAT):
        dW = rng.standard_normal((D_OUT, D_IN)).astype("f4")
        made.append(run_of(write_delta({"q_proj": dW}, f"full-s{seed}"), "full", seed))
        path = write_adapter(lora_tensors("q_proj", r=6), f"lora-s{seed}", r=6)
        made.append(run_of(path, "lora", seed))
        stem = "base_model.model.q_proj.multilora_"
        tensors = {
            f"{stem}A": rng.standard_normal((6, D_IN)).astype("f4"),
            f"{stem}B": rng.standard_normal((D_OUT, 6)).astype("f4"),
            f"{stem}s": np.ones((D_OUT, 3), "f4"),
        }
        path = write_adapter(tensors, f"multilora-s{seed}", peft_type="MULTILORA", n=3, r=2)
        made.append(run_of(path, "multilora", seed))
    return made


@pytest.fixture(autouse=True)
def scored(monkeypatch):
    """The scores of the base, which would need a model."""
    monkeypatch.setattr(blocks, "_base_scores", lambda runs, model: SCORES if runs else {})


def planned(run, done=True):
    """A planned run that is finished or not."""
    return SimpleNamespace(out=run.path, is_done=lambda: done)


def block_of(runs, tmp_path, name="seed-5", done=True, **options):
    measure = partial(blocks.of_base, model=tmp_path, **options)
    return blocks.Block(name, [planned(run, done) for run in runs], tmp_path, measure)


# What is measured.


def test_each_seed_is_a_unit_unless_the_base_is(runs, tmp_path):
    measured = blocks.of_base(runs, tmp_path)
    rows_of = measured.rows_of
    key = [(run.method, run.seed) for run in runs]
    assert [(row["method"], row["seed"]) for row in rows_of["methods"]] == key
    assert rows_of["repeats"] == []
    assert {row["seed"] for row in rows_of["nearness"]} == {5, 15}
    assert [row["seed"] for row in rows_of["overlap"]] == [5, 15]
    assert {row["run"] for row in measured.spectra.rows} == {run.name for run in runs}
    assert not {"cuts", "dynamics", "rounding_floor", "module_overlap"} & rows_of.keys()


def test_a_base_is_one_unit_and_its_second_seed_a_repeat(runs, tmp_path):
    by_seed = blocks.of_base(runs, tmp_path).rows_of
    measured = blocks.of_base(runs, tmp_path, unit=5)
    rows_of = measured.rows_of
    assert [row["seed"] for row in rows_of["methods"]] == [5] * 3
    assert [row["seed"] for row in rows_of["repeats"]] == [15] * 3
    assert [*rows_of["methods"], *rows_of["repeats"]] == by_seed["methods"]
    assert {row["run"] for row in measured.spectra.rows} == {"full-s5", "lora-s5", "multilora-s5"}
    assert measured.spectra.s.keys() == {row["key"] for row in measured.spectra.rows}
    # Directions are compared between the two seeds, and are means over both.
    assert rows_of["nearness"] == measures.of_unit(by_seed["nearness"], 5)
    near = {(row["method"], row["reference"]): row for row in rows_of["nearness"]}
    of_both = [
        row["left_phi_k"]
        for row in by_seed["nearness"]
        if (row["method"], row["reference"]) == ("lora", "full")
    ]
    assert len(of_both) == 2
    assert near["lora", "full"]["left_phi_k"] == pytest.approx(np.mean(of_both))
    assert rows_of["similarity_by_method"] == by_seed["similarity_by_method"]
    assert rows_of["phi_grids"] == by_seed["phi_grids"]


def test_the_overlap_of_modules_has_the_null_of_both_seeds(runs, tmp_path):
    (row,) = blocks.of_base(runs, tmp_path, unit=5).rows_of["overlap"]
    nulls = overlap.between_seeds(runs)
    assert row["left_null_k"] == nulls["multilora", "q_proj", "left"]
    one_seed = blocks.of_base(runs[:3], tmp_path, unit=5).rows_of
    assert one_seed["overlap"][0]["left_null_k"] is None
    assert one_seed["nearness"] == one_seed["repeats"] == one_seed["phi_grids"] == []


def test_what_takes_minutes_is_measured_if_it_is_asked_for(runs, tmp_path, monkeypatch):
    asked = []

    def of_runs(runs, model, k, per_task):
        asked.append(([run.name for run in runs], model, k, per_task))
        return {"cuts": [{"name": "cuts"}]}

    monkeypatch.setattr(blocks.experiments, "of_runs", of_runs)
    rows_of = blocks.of_base(runs, tmp_path, unit=5, thorough=7).rows_of
    # Not of the second seed.
    assert asked == [(["full-s5", "lora-s5", "multilora-s5"], tmp_path, 6, 7)]
    assert rows_of["cuts"] == [{"name": "cuts"}]
    assert [row["method"] for row in rows_of["module_overlap"]] == ["multilora"]


def test_runs_of_two_bases_are_refused(runs, tmp_path):
    other = Trained(runs[1].path, runs[1].facts | {"base": {"sha256": {"model": "b"}}})
    with pytest.raises(UserError, match="was trained from another base than"):
        blocks.of_base([runs[0], other], tmp_path)


def test_a_sweep_has_a_row_per_run(runs, tmp_path):
    rates = (0.0005, 0.001, 0.002, 0.004)
    swept = [
        Trained(runs[1].path, runs[1].facts | {"arguments": {"learning_rate": rate}})
        for rate in rates
    ]
    (row,) = blocks.of_sweep(swept[:1], tmp_path, "score", 4).rows_of["sweep"]
    assert (row["method"], row["learning_rate"], row["chosen"]) == ("lora", 0.0005, 0)


def test_points_of_the_grid_that_are_not_finished_are_left_out(runs, tmp_path):
    points = [("rate", 2, planned(run)) for run in runs]
    points += [("rate", 0.5, SimpleNamespace(out=run.path / "missing")) for run in runs]
    rows = blocks.of_grid(runs, points, tmp_path).rows_of["grid"]
    assert [(row["setting"], row["value"]) for row in rows] == [("rate", 2)] * 6


def test_a_run_of_the_grid_can_belong_to_several_points(runs, tmp_path):
    points = [(setting, 2, planned(run)) for setting in ("rate", "n") for run in runs]
    rows = blocks.of_grid(runs, points, tmp_path).rows_of["grid"]
    assert [row["setting"] for row in rows] == ["rate"] * 6 + ["n"] * 6
    assert [row["top_share_1"] for row in rows[:6]] == [row["top_share_1"] for row in rows[6:]]


def test_adapters_that_are_left_out_are_listed(tmp_path, monkeypatch, capsys):
    left_out = [{"adapter": "b", "reason": "no update"}]
    monkeypatch.setattr(blocks.wild, "table", lambda place: ([{"adapter": "a"}], left_out))
    measured = blocks.of_adapters([], tmp_path)
    assert measured.rows_of == {"wild": [{"adapter": "a"}]}
    assert capsys.readouterr().err == "b: no update\n"


# What is written.


def test_a_block_is_written_with_its_record(runs, tmp_path):
    out = tmp_path / "blocks"
    assert blocks.write(block_of(runs, tmp_path, unit=5), {"steps": 3}, out)
    read = tables.load_all(out / "seed-5")
    assert read.rows.keys() == {
        "methods",
        "repeats",
        "nearness",
        "similarity_by_method",
        "phi_grids",
        "overlap",
    }
    assert read.notes == ()
    made_by = read.record
    assert made_by["arguments"] == {"steps": 3}
    assert (made_by["seed"], made_by["base_scores"]) == ([5, 15], SCORES)
    assert made_by["methods"] == {run.name: run.method for run in runs}
    assert made_by["runs"] == {run.name: "f" for run in runs}
    assert made_by["trained_on"] == [MACHINE]
    assert made_by["environment"]["cpu"] == record.environment()["cpu"]
    spectra, _ = store.load(out / "seed-5")
    assert len(spectra.rows) == 3


def test_a_block_without_a_finished_run_is_not_written(runs, tmp_path):
    out = tmp_path / "blocks"
    assert not blocks.write(block_of(runs, tmp_path, done=False), {}, out)
    assert not out.exists()


def test_a_block_that_needs_no_run_is_written(tmp_path):
    wild = blocks.Block("wild", [], tmp_path, lambda runs: blocks.Measured({"wild": [{"r": 1}]}))
    assert blocks.write(wild, {}, tmp_path / "blocks")
    made_by = json.loads((tmp_path / "blocks" / "wild" / "record.json").read_text())
    assert (made_by["seed"], made_by["base_scores"], made_by["trained_on"]) == ([], {}, [])
    assert (tmp_path / "blocks" / "wild" / "wild.csv").read_text() == "r\n1\n"


def on(run, **changes):
    return Trained(run.path, run.facts | {"environment": MACHINE | changes})


def write_on(run, **changes):
    facts = run.facts | {"environment": MACHINE | changes}
    (run.path / "run.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("change", [{"cpu": "B"}, {"threads": 2}, {"instructions": "AVX512"}])
def test_runs_of_two_machines_are_refused(runs, tmp_path, change):
    write_on(runs[3], **change)
    with pytest.raises(UserError, match=r"of one block were trained on different machines: .*; .*"):
        blocks.write(block_of(runs, tmp_path, unit=5), {}, tmp_path / "blocks")
    assert not (tmp_path / "blocks").exists()


def test_what_does_not_change_a_number_is_no_other_machine(runs):
    assert blocks._machines([runs[0], on(runs[1], cpus=64)]) == [MACHINE]
    assert blocks._machines([]) == []
    # Before processors were recorded, all that is known is the same.
    unknown = [Trained(run.path, run.facts | {"environment": {"threads": 1}}) for run in runs]
    assert blocks._machines(unknown) == [dict.fromkeys(record.MACHINE) | {"threads": 1}]
    assert set(record.MACHINE) == set(MACHINE)


def test_an_earlier_result_of_a_block_is_replaced(runs, tmp_path):
    out = tmp_path / "blocks"
    blocks.write(block_of(runs, tmp_path), {"steps": 3}, out)
    blocks.write(block_of(runs[:3], tmp_path, unit=5), {"steps": 4}, out)
    read = tables.load_all(out / "seed-5")
    assert read.record["arguments"] == {"steps": 4}
    assert "nearness" not in read.rows  # it needs two seeds
    assert [row["seed"] for row in read.of("methods")] == [5] * 3
