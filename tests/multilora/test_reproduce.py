"""The command multilora.reproduce: settings, the blocks, the list of runs, and the full preset."""

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import pytest
from planned import finish
from task_files import write_public

from analysis import UserError
from multilora import reproduce, train
from multilora.reproduction import blocks, presets, report
from multilora.reproduction.blocks import Block, Measured
from multilora.reproduction.tables import BLOCKS, load, load_all
from multilora.tasks.builtin import pretrained
from multilora.tasks.example import FAMILIES

mpl.use("Agg")

PRETRAINED = f"pretrained-{pretrained.SHA256[:12]}"


def settings_of(tmp_path, **given):
    places = {"runs": str(tmp_path / "runs"), "figures": str(tmp_path / "figures")}
    return reproduce.ReproduceSettings(**places | given)


# Settings.


def test_presets_settle_what_is_not_asked_for():
    quick, full = (reproduce.ReproduceSettings(preset=name) for name in ("quick", "full"))
    assert (quick.seeds, quick.claims) == ("0,1", "1a,4b,4c,4d,5")
    assert (quick.runs, quick.figures) == ("runs/quick", "figures/quick")
    assert full.methods.split(",") == list(presets.EVERY)
    assert (full.seeds, full.claims, full.figures) == ("5,6,7,8,9", "", "figures/full")
    given = reproduce.ReproduceSettings(preset="full", seeds="7", runs="/elsewhere")
    assert (given.seeds, given.runs, given.figures) == ("7", "/elsewhere", "figures/full")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"preset": "fast"}, "preset is 'fast'; expected one of quick, full, smollm2, paper"),
        ({"train_base": True, "preset": "full"}, "train_base with preset full; expected .*quick"),
        ({"publish": True}, "publish with preset quick; expected preset full"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        reproduce.ReproduceSettings(**given)


@pytest.mark.parametrize("given", [{"seeds": "5,5"}, {"methods": "lora, lora"}])
def test_what_is_named_twice_is_refused(tmp_path, given):
    with pytest.raises(ValueError, match="names an item twice"):
        list(reproduce.planned(settings_of(tmp_path, **given)))


# The blocks.


def test_quick_is_one_block_from_the_base_of_the_package(tmp_path):
    (block,) = reproduce.planned(settings_of(tmp_path))
    assert block.name == "seeds"
    assert [run.out.name for run in block.runs] == [
        f"{method}-s{seed}" for seed in (0, 1) for method in presets.CORE
    ]
    assert block.model == tmp_path / "runs" / "base" / PRETRAINED
    assert block.model.is_dir()
    assert {run.settings.model for run in block.runs} == {str(block.model)}
    assert reproduce.bases(settings_of(tmp_path), block) == []


def test_quick_trains_its_base_if_asked(tmp_path):
    settings = settings_of(tmp_path, train_base=True, base_steps=7)
    (block,) = reproduce.planned(settings)
    (one,) = reproduce.bases(settings, block)
    assert (one.seed, one.steps, one.threads) == (0, 7, 1)
    assert block.model == reproduce.base.directory(one)
    assert not block.model.exists()


def test_full_has_a_block_per_base_then_the_grid_and_the_sweep(tmp_path):
    settings = settings_of(tmp_path, preset="full", adapters="adapters")
    planned = list(reproduce.planned(settings))
    names = [f"seed-{seed}" for seed in range(5, 10)]
    assert [block.name for block in planned] == [*names, "grid", "sweep", "wild"]
    assert [len(block.runs) for block in planned] == [16] * 5 + [6 + 36, 44, 0]
    for block, seed in zip(planned, range(5, 10), strict=False):
        assert {run.seed for run in block.runs} == {seed, seed + presets.REPEAT}
        assert {run.settings.model for run in block.runs} == {str(block.model)}
        assert {run.out.parent for run in block.runs} == {tmp_path / "runs" / block.name}
    assert len({block.model for block in planned[:5]}) == 5
    # The grid starts from the base of the first seed, and shares its runs.
    grid, first = planned[5], planned[0]
    assert grid.model == first.model
    shared = {run.out for run in grid.runs} & {run.out for run in first.runs}
    assert len(shared) == 6
    assert {run.seed for run in planned[6].runs} == {presets.SWEEP_SEED}
    assert len({run.out for block in planned for run in block.runs}) == 5 * 16 + 12 * 3 + 44


def test_each_block_needs_the_bases_of_its_runs(tmp_path):
    settings = settings_of(tmp_path, preset="full", base_steps=9)
    needed = {block.name: reproduce.bases(settings, block) for block in reproduce.planned(settings)}
    of = {name: [(one.seed, one.width) for one in bases] for name, bases in needed.items()}
    assert of["seed-7"] == [(7, 128)]
    assert sorted(of["grid"]) == [(5, 64), (5, 128)]
    assert of["sweep"] == [(presets.SWEEP_SEED, 128)]
    assert {one.steps for bases in needed.values() for one in bases} == {9}
    (narrow,) = (one for one in needed["grid"] if one.width == 64)
    assert narrow.mlp == 344 // 2


def test_without_the_main_methods_there_is_no_grid(tmp_path):
    settings = settings_of(tmp_path, preset="full", methods="lora,rlora", seeds="5")
    assert [block.name for block in reproduce.planned(settings)] == ["seed-5", "sweep"]


# What is trained and kept.


def rows_of(seed):
    row = {"method": "lora", "seed": seed, "k": 24, "top_share_1": 0.5, "score": 0.5}
    return {"methods": [row | {"top_share_1_above_null": 0.3}]}


def fails(runs):
    raise RuntimeError("interrupted")


@pytest.fixture
def two_blocks(tmp_path, monkeypatch):
    """Settings, and a dict of the functions that measure two blocks without runs."""
    measuring = {f"seed-{seed}": lambda _, seed=seed: Measured(rows_of(seed)) for seed in (5, 6)}

    def planned(settings):
        for name in measuring:
            yield Block(name, [], tmp_path, lambda runs, name=name: measuring[name](runs))

    monkeypatch.setattr(reproduce, "planned", planned)
    monkeypatch.setattr(report, "report", lambda settings: sorted(report.read(out).records))
    out = tmp_path / "figures"
    return settings_of(tmp_path, preset="full"), measuring


def test_a_block_survives_if_a_later_one_fails(two_blocks):
    settings, measuring = two_blocks
    second = measuring["seed-6"]
    measuring["seed-6"] = fails
    with pytest.raises(RuntimeError, match="interrupted"):
        reproduce.reproduce(settings)
    first = Path(settings.figures) / BLOCKS / "seed-5"
    assert [row["seed"] for row in load_all(first).of("methods")] == [5]
    assert [path.name for path in first.parent.iterdir()] == ["seed-5"]
    measuring["seed-6"] = second
    assert reproduce.reproduce(settings) == ["seed-5", "seed-6"]


def test_report_only_takes_blocks_without_runs_as_they_are(two_blocks, monkeypatch, tmp_path):
    settings, _ = two_blocks
    reproduce.reproduce(settings)
    kept = {p: p.read_bytes() for p in Path(settings.figures).rglob("*.csv")}
    monkeypatch.undo()
    monkeypatch.setattr(
        report, "report", lambda _: sorted(report.read(tmp_path / "figures").records)
    )
    for name in ("train_bases", "train_all"):
        monkeypatch.setattr(reproduce, name, lambda *_: pytest.fail("trains"))
    assert reproduce.reproduce(replace(settings, report_only=True)) == ["seed-5", "seed-6"]
    assert {p: p.read_bytes() for p in kept} == kept


@pytest.mark.parametrize("preset", ["full", "quick"])
def test_a_seed_whose_base_is_refused_is_left_out(two_blocks, monkeypatch, capsys, preset):
    """Of the full preset; quick has no other base to go on with."""
    settings, _ = two_blocks
    refused = iter([False, True])

    def train_bases(*_):
        if next(refused):
            raise UserError("base model: copying is 0.82; expected at least 0.9")

    monkeypatch.setattr(reproduce, "train_bases", train_bases)
    if preset == "quick":
        with pytest.raises(UserError, match=r"copying is 0\.82"):
            reproduce.reproduce(replace(settings, preset=preset))
    else:
        assert reproduce.reproduce(settings) == ["seed-5"]
        assert "seed-6: is left out: base model: copying is 0.82" in capsys.readouterr().err


def test_what_was_not_trained_for_is_measured_once_at_the_end(tmp_path, monkeypatch):
    """A part of a block is never measured; of two blocks of a name without training, the last."""
    run = SimpleNamespace(is_done=lambda: False)
    done = SimpleNamespace(is_done=lambda: True)
    measure = Measured({})
    planned = [
        Block("sweep", [run], tmp_path, None),
        Block("sweep", [done], tmp_path, lambda runs: measure),
        Block("seeds", [done], tmp_path, lambda runs: measure),
        Block("seeds", [done, done], tmp_path, lambda runs: measure),
        Block("alone", [run], tmp_path, lambda runs: measure),
    ]
    order = []
    monkeypatch.setattr(reproduce, "planned", lambda settings: planned)
    monkeypatch.setattr(reproduce, "bases", lambda settings, block: [])
    monkeypatch.setattr(reproduce, "train_all", lambda runs, n: order.append("train"))
    monkeypatch.setattr(
        blocks, "write", lambda block, *_: order.append((block.name, len(block.runs)))
    )
    monkeypatch.setattr(report, "report", lambda _: "text")
    assert reproduce.reproduce(settings_of(tmp_path, preset="full")) == "text"
    assert order == ["train", "train", ("alone", 1), ("sweep", 1), ("seeds", 2)]


def test_bases_are_trained_before_the_runs_block_by_block(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(
        reproduce, "train_bases", lambda bases, n: order.append(("bases", len(bases), n))
    )
    monkeypatch.setattr(
        reproduce, "train_all", lambda runs, n: order.append(("runs", len(runs), n))
    )
    monkeypatch.setattr(blocks, "write", lambda block, *_: order.append(block.name))
    monkeypatch.setattr(report, "report", lambda _: "text")
    settings = settings_of(
        tmp_path, preset="full", methods="lora", seeds="5,6", processes=3, adapters="adapters"
    )
    assert reproduce.reproduce(settings) == "text"
    assert order == [
        ("bases", 1, 3),
        ("runs", 2, 3),
        "seed-5",
        ("bases", 1, 3),
        ("runs", 2, 3),
        "seed-6",
        ("bases", 1, 3),
        ("runs", 4, 3),
        "sweep",
        ("bases", 0, 3),
        ("runs", 0, 3),
        "wild",
    ]


def test_results_are_published_if_asked(tmp_path, monkeypatch):
    published = []
    monkeypatch.setattr(reproduce, "planned", lambda settings: [])
    monkeypatch.setattr(report, "report", lambda settings: settings["figures"])
    monkeypatch.setattr(reproduce, "publish", lambda out, to: published.append((out, to)))
    settings = settings_of(tmp_path, preset="full")
    assert reproduce.reproduce(settings) == settings.figures
    assert published == []
    reproduce.reproduce(replace(settings, publish=True))
    assert published == [(tmp_path / "figures", Path("figures"))]


# The command.


def test_a_dry_run_lists_what_is_missing_and_how_long_it_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "seconds_per_step", lambda run, steps: 0.06)
    settings = settings_of(tmp_path, steps=100, methods="full,lora", processes=2)
    (block,) = reproduce.planned(settings)
    finish(block.runs[0], 0.5)
    *runs, last = reproduce.listing(settings).splitlines()
    assert [line.split()[0] for line in runs] == [
        str(tmp_path / "runs" / name) for name in ("lora-s0", "full-s1", "lora-s1")
    ]
    assert last.startswith("3 of 4 runs to train, 300 steps, about 0 minutes with 2 at a time")
    full = settings_of(tmp_path, preset="full", processes=1)
    *runs, last = reproduce.listing(full).splitlines()
    assert len(runs) == len({line.split()[0] for line in runs}) == 5 * 16 + 36 + 44
    steps = (5 * 16 + 44 + 36 - 6) * 1500 + 6 * 500
    assert f" {steps:,} steps, about {steps * 0.06 / 60:.0f} minutes with 1" in last


def test_paper_needs_a_model_and_data(capsys):
    with pytest.raises(ValueError, match="expected --model DIR of a LLaMA and --tasks"):
        presets.paper("", "alpaca:a.json")
    assert reproduce.main(["--preset", "paper"]) == 2
    assert "--model DIR" in capsys.readouterr().err


@pytest.mark.slow
def test_the_full_preset_on_a_tiny_base(tiny_base, tmp_path, monkeypatch):
    """Two bases, grid, sweep and everything that is measured; begun again, nothing is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce.base, "directory", lambda settings: tiny_base)
    few = tuple((s, v, of) for s, v, of in presets.GRID if (s, v) in (("rate", 1), ("n", 2)))
    monkeypatch.setattr(presets, "GRID", few)
    monkeypatch.setattr(presets, "SWEPT", (0.5, 1.0))
    monkeypatch.setattr(presets, "settings_of", with_few_examples(presets.settings_of))
    monkeypatch.setattr(presets, "HELD_OUT", 2)
    monkeypatch.setattr(reproduce, "train_all", train_here)
    settings = reproduce.ReproduceSettings(
        preset="full", methods="full,lora,multilora", seeds="0,1", steps=3, publish=True
    )
    text = reproduce.reproduce(settings)
    out = tmp_path / "figures" / "full"
    made = {path.name for path in out.iterdir()}
    tables = ("methods", "cuts", "rounding_floor", "module_overlap", "dynamics", "sweep", "grid")
    tables = (*tables, "repeats", "spread", "nearness", "phi_grids", "overlap")
    assert {f"{name}.csv" for name in tables} <= made
    assert {"cut_curves.png", "dynamics.png", "scale_grid.png", "claims.md"} <= made
    assert "wild.csv" not in made
    record = json.loads((out / "record.json").read_text())
    assert {f"{name}.csv" for name in tables} <= set(record["tables"])
    assert record["seed"] == [0, 1]
    assert record["bases"].keys() == {"seed-0", "seed-1", "grid", "sweep"}
    assert {path.name for path in (out / BLOCKS).iterdir()} == record["bases"].keys()
    assert (tmp_path / "figures" / "methods.csv").read_bytes() == (out / "methods.csv").read_bytes()
    measured = load(out)
    assert [(row["method"], row["seed"]) for row in measured.of("methods")] == [
        (method, seed) for seed in (0, 1) for method in presets.CORE
    ]
    assert all(row["validation_loss"] > 0 for row in measured.of("dynamics"))
    assert {row["bases"] for row in rows(out, "spread")} == {"2"}
    # Nearness is of the base: the mean over the two seeds that the grid gives one by one.
    near = {
        r["method"]: r
        for r in measured.of("nearness")
        if (r["reference"], r["seed"]) == ("full", 0)
    }
    centre = [row for row in measured.of("grid") if row["setting"] == "rate"]
    assert len(centre) == 6
    for method in presets.CORE:
        of_method = [row["right_phi_k"] for row in centre if row["method"] == method]
        assert near[method]["right_phi_k"] == pytest.approx(sum(of_method) / 2)
    assert all(
        bool(row["overlap_above_chance"]) == (row["method"] == "multilora") for row in centre
    )
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/full/**/run.json")}
    assert len(times) == 2 * 6 + 2 + 6
    assert reproduce.reproduce(settings) == text
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert reproduce.reproduce(replace(settings, report_only=True)) == text


@pytest.mark.slow
def test_the_preset_of_a_language_model_on_a_tiny_base(tiny_base, tmp_path, monkeypatch, capsys):
    """Sweep, its extension, two seeds, families alone, relatives; begun again, nothing is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plan = reproduce.pretrained
    for name, few in {"SWEEP_STEPS": 2, "FURTHER": 1, "SCORED": 2, "SCORED_IN_SWEEP": 1}.items():
        monkeypatch.setattr(plan, name, few)
    monkeypatch.setattr(plan, "HELD_OUT", 2)
    monkeypatch.setattr(plan, "_FULL", (1e-3, 3e-3, 1e-2))  # four steps must show
    monkeypatch.setattr(reproduce, "train_all", train_here)
    data = write_public(tmp_path / "data")
    given = ["--preset", "smollm2", "--data", str(data), "--model", str(tiny_base)]
    given += ["--seeds", "0,1", "--steps", "4", "--batch", "4"]
    assert reproduce.main(given) == 0
    text = capsys.readouterr().out
    out = tmp_path / "figures" / "smollm2"
    measured = load_all(out)
    assert [(row["method"], row["seed"]) for row in measured.of("methods")] == [
        (method, seed) for seed in (0, 1) for method in plan.METHODS
    ]
    rates = {row["method"]: row["learning_rate"] for row in measured.of("methods")}
    chosen = {r["method"]: r["learning_rate"] for r in measured.of("sweep") if r["chosen"]}
    assert rates == chosen
    for row in measured.of("sweep"):
        of_method = [r for r in measured.of("sweep") if r["method"] == row["method"]]
        best = min(r["nll_validation"] for r in of_method)
        assert row["chosen"] == (row["nll_validation"] == best)
    trained_on = Counter(row["trained_on"] for row in measured.of("forgetting"))
    assert trained_on == {None: 1, "+".join(FAMILIES): 8} | dict.fromkeys(FAMILIES, 2)
    assert len(measured.of("gradients")) == 8 * 9 / 2
    assert {row["method"] for row in measured.of("parts")} == {"rlora", "mtllora", "expert"}
    assert len(measured.of("landing")) == 8
    sizes = {(row["n"], row["r"]) for row in measured.of("sizes")}
    assert sizes == {(3, 8), *plan.SIZES}
    judged = json.loads((out / "claims.json").read_text())["claims"]
    claims = {one["number"]: one["outcome"] for one in judged}
    unmeasured = {number for number, outcome in claims.items() if outcome == "not measured"}
    assert unmeasured == {"7", "9"}
    assert "loss of the base" in (out / "claims.md").read_text()
    assert "Loss per token of held-out answers, nats:" in text
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/smollm2/**/run.json")}
    assert len(times) >= 12 + 8 + 6 + 3 + 6
    assert reproduce.main(given) == 0
    assert capsys.readouterr().out == text
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_the_preset_of_a_language_model_says_what_to_put_where(tmp_path, capsys):
    assert reproduce.main(["--preset", "smollm2"]) == 2
    assert "expected --data DIR with alpaca/*.json" in capsys.readouterr().err
    assert reproduce.main(["--preset", "smollm2", "--data", str(tmp_path)]) == 2
    assert "alpaca/*.json: missing; --data expects" in capsys.readouterr().err


def with_few_examples(settings_of):
    """The same settings with few examples."""
    few = {"per_task": 8, "per_task_scored": 2}
    return lambda method, model: replace(settings_of(method, model), **few)


def train_here(runs, processes):
    """Train the missing runs in this process."""
    for run in runs:
        if not run.is_done():
            train.run(run.settings, run.arguments())


def rows(directory, name):
    with (directory / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))
