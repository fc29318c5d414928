import csv
import json
from types import SimpleNamespace

import pytest

from multilora import reproduce
from multilora.reproduction import experiments, presets, report, trained


def test_what_takes_long_is_measured_once(tmp_path):
    facts = {"fingerprint": "a", "weights": {"w": "1"}}
    calls = []

    def make():
        calls.append(1)
        return [{"k": 1, "score": 0.5}]

    def kept(**changes):
        run = trained.Trained(tmp_path, facts | changes)
        return experiments._kept(run, "cuts", make, experiments.cuts)

    assert kept() == kept() == [{"k": 1, "score": 0.5}]
    assert len(calls) == 1
    kept(weights={"w": "2"})  # another run's weights in the same place
    assert len(calls) == 2


def test_publishing_takes_what_is_small_and_leaves_what_the_benchmarks_made(tmp_path):
    results, to = tmp_path / "results", tmp_path / "figures"
    for place in (results, to):
        place.mkdir()
    for name in ("methods.csv", "claims.md", "a.png", "record.json", "spectrum.csv"):
        (results / name).write_text(name)
    (results / "spectra.safetensors").write_text("large")
    for name in ("old.csv", "resources.csv", "resources.png", "README"):
        (to / name).write_text("before")
    report.publish(results, to)
    names = {"methods.csv", "claims.md", "a.png", "record.json"}
    assert {f.name for f in to.iterdir()} == names | {"resources.csv", "resources.png", "README"}
    assert (to / "a.png").read_text() == "a.png"


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
    runs = SimpleNamespace(times={})
    for path in tmp_path.glob("runs/full/**/run.json"):
        runs.times[path] = path.stat().st_mtime_ns
    assert len(runs.times) == 4 * 4 + 4 * 2 + 2
    assert reproduce.reproduce(settings) == text
    assert {path: path.stat().st_mtime_ns for path in runs.times} == runs.times


def rows(directory, name):
    with (directory / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))
