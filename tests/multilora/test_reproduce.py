"""The command multilora.reproduce: settings, the list of runs, and the full preset."""

import csv
import json

import matplotlib as mpl
import pytest
from planned import finish

from multilora import reproduce
from multilora.reproduction import presets

mpl.use("Agg")


def test_presets_settle_what_is_not_asked_for():
    quick, full = (reproduce.ReproduceSettings(preset=name) for name in ("quick", "full"))
    assert (quick.seeds, quick.claims, quick.out) == ("0,1", "1,2,4,5", "runs/quick")
    assert full.methods.split(",") == list(presets.EVERY)
    assert (full.seeds, full.claims, full.figures) == ("0,1,2,3,4", "", "figures/full")
    assert reproduce.ReproduceSettings(seeds="7").seeds == "7"
    with pytest.raises(ValueError, match="preset is 'fast'; expected one of quick, full, paper"):
        reproduce.ReproduceSettings(preset="fast")


def test_a_dry_run_lists_what_is_missing_and_how_long_it_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "seconds_per_step", lambda: 0.06)
    settings = reproduce.ReproduceSettings(
        out=str(tmp_path), steps=100, methods="full,lora", processes=2
    )
    model = reproduce.base.directory(reproduce.base.BaseSettings())
    finish(presets.plan(["full"], [0], 100, model, tmp_path)[0], 0.5)
    *runs, last = reproduce.listing(settings).splitlines()
    assert [line.split()[0] for line in runs] == [
        str(tmp_path / name) for name in ("lora-s0", "full-s1", "lora-s1")
    ]
    assert last.startswith("3 of 4 runs to train, 300 steps, about 0 minutes with 2 at a time")
    full = reproduce.ReproduceSettings(preset="full", out=str(tmp_path), processes=1)
    last = reproduce.listing(full).splitlines()[-1]
    steps = (44 + 60) * 1500 + 6 * 500 + 6 * 1500 * 3 + 8 * 1500 + 4 * 1500
    assert f" {steps:,} steps, about {steps * 0.06 / 60:.0f} minutes with 1" in last


def test_paper_needs_a_model_and_data(capsys):
    with pytest.raises(ValueError, match="expected --model DIR of a LLaMA and --tasks"):
        presets.paper("", "alpaca:a.json")
    assert reproduce.main(["--preset", "paper"]) == 2
    assert "--model DIR" in capsys.readouterr().err


@pytest.mark.slow
def test_the_full_preset_on_a_tiny_base(tiny_base, tmp_path, monkeypatch):
    """Sweeps, runs, grid and everything that is measured of them; begun again, nothing is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce.base, "ensure", lambda settings: tiny_base)
    monkeypatch.setattr(reproduce.base, "directory", lambda settings: tiny_base)
    few = tuple((s, v, of) for s, v, of in presets.GRID if (s, v) in (("rate", 1), ("n", 2)))
    monkeypatch.setattr(presets, "GRID", few)
    settings = reproduce.ReproduceSettings(
        preset="full", methods="full,lora,multilora,rlora", seeds="0,1", steps=3, publish=True
    )
    text = reproduce.reproduce(settings)
    out = tmp_path / "figures" / "full"
    made = {path.name for path in out.iterdir()}
    tables = ("methods", "cuts", "rounding_floor", "module_overlap", "dynamics", "sweep", "grid")
    assert {f"{name}.csv" for name in tables} <= made
    assert {"cut_curves.png", "dynamics.png", "scale_grid.png", "claims.md"} <= made
    assert "wild.csv" not in made
    record = json.loads((out / "record.json").read_text())
    assert {f"{name}.csv" for name in tables} <= set(record["tables"])
    assert (tmp_path / "figures" / "methods.csv").read_bytes() == (out / "methods.csv").read_bytes()
    near = {(r["method"], r["seed"]): r for r in rows(out, "nearness") if r["reference"] == "full"}
    centre = [row for row in rows(out, "grid") if row["setting"] == "rate"]
    assert len(centre) == 6
    for row in centre:
        of_run = near[row["method"], row["seed"]]
        assert row["right_phi_k"] == of_run["right_phi_k"]
        assert row["left_phi_k"] == of_run["left_phi_k"]
        assert bool(row["overlap_above_chance"]) == (row["method"] == "multilora")
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/full/**/run.json")}
    assert len(times) == 4 * 4 + 4 * 2 + 2
    assert reproduce.reproduce(settings) == text
    assert {path: path.stat().st_mtime_ns for path in times} == times


def rows(directory, name):
    with (directory / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))
