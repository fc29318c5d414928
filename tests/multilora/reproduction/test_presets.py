"""The runs of each preset, and the learning rates that sweeps choose."""

import csv
from pathlib import Path

import pytest

from multilora.reproduction import experiments, presets
from multilora.training import identity
from multilora.training.settings import DEFAULTS

MODEL = Path("model")
PUBLISHED = Path(__file__).parents[3] / "figures" / "earlier"  # with the sweep that chose the rates
RATES = (0.0005, 0.001, 0.002, 0.004)


@pytest.mark.parametrize("method", presets.EVERY)
def test_a_method_is_called_in_tables_what_it_is_called_here(method):
    assert presets.settings_of(method, MODEL).name == method


def test_every_run_has_a_place_of_its_own():
    methods, out = presets.EVERY, Path("out")
    runs = presets.sweep(methods, 10, MODEL, out)
    for seed in range(5, 10):
        runs += presets.of_base(methods, seed, 10, MODEL, out / f"seed-{seed}")
    assert len({run.out for run in runs}) == len(runs) == 4 * 11 + 5 * (12 + 4)
    grid = [run for *_, run in presets.grid(5, 10, out, lambda width: MODEL)]
    beside = {run.out for run in grid} - {run.out for run in runs}
    assert len(beside) == 2 * (4 * 3 + 2 * 2 + 2)
    assert all(place.parts[1] == "grid" for place in beside)


def test_runs_come_seed_by_seed():
    runs = presets.plan(["full", "lora"], [3, 1], 10, MODEL, Path("out"))
    assert [run.out.name for run in runs] == ["full-s3", "lora-s3", "full-s1", "lora-s1"]
    assert [run.arguments().learning_rate for run in runs[:2]] == [2e-3, 3e-3]
    assert {run.arguments().save_strategy for run in runs} == {"no"}


def test_checkpoints_are_kept_of_the_methods_that_are_compared():
    runs = presets.plan(["lora", "rlora"], [0, 1], 50, MODEL, Path("out"), saves=10)
    assert [run.saves for run in runs] == [10, 0, 10, 0]
    assert runs[0].arguments().save_steps == 5
    # It is the same run, with and without.
    plain = presets.plan(["lora"], [0], 50, MODEL, Path("out"))[0]
    made = [identity.fingerprint(run.settings, run.arguments()) for run in (runs[0], plain)]
    assert made[0] == made[1]


def test_a_base_has_all_methods_and_a_second_seed_of_some():
    runs = presets.of_base(["lora", "rlora", "multilora zero"], 5, 50, MODEL, Path("out"))
    assert [run.out.name for run in runs] == [
        "lora-s5",
        "rlora-s5",
        "multilora-zero-s5",
        "lora-s15",
        "multilora-zero-s15",
    ]
    assert [run.saves for run in runs] == [10, 0, 0, 0, 0]
    assert {run.settings.model for run in runs} == {str(MODEL)}
    seeds = {
        run.seed
        for seed in range(5, 10)
        for run in presets.of_base(["lora"], seed, 1, MODEL, MODEL)
    }
    assert seeds == {*range(5, 10), *range(15, 20)}  # no run is of two bases


def published_rates():
    """Method -> {learning rate: chosen} of the published sweep."""
    with (PUBLISHED / "sweep.csv").open(encoding="utf-8", newline="") as file:
        rates = {}
        for row in csv.DictReader(file):
            of_method = rates.setdefault(row["method"], {})
            of_method[float(row["learning_rate"])] = row["chosen"] == "1"
    return rates


def test_fixed_rates_are_what_the_published_sweep_chose():
    chosen = {
        method: [rate for rate, best in of_method.items() if best]
        for method, of_method in published_rates().items()
    }
    for method, usual in DEFAULTS.items():
        assert chosen[method] == [usual["learning_rate"]]
    planned = presets.plan(presets.EVERY, [5], 10, MODEL, Path("out"))
    for run in planned:
        swept = chosen.get(run.settings.name, chosen["lora"])  # LoRA of rank 26 has LoRA's rate
        assert [run.arguments().learning_rate] == swept, run.settings.name


def test_a_sweep_is_the_published_one():
    planned = presets.sweep(presets.EVERY, 10, MODEL, Path("out"))
    assert {(run.settings.name, run.rate) for run in planned} == {
        (method, rate) for method, of_method in published_rates().items() for rate in of_method
    }


def test_sweeps_are_of_equal_size():
    swept = presets.sweep(presets.EVERY, 10, MODEL, Path("out"))
    names = [run.settings.name for run in swept]
    assert {names.count(name) for name in names} == {len(presets.SWEPT)}
    assert {run.seed for run in swept} == {presets.SWEEP_SEED}
    assert not set(names) & set(presets.UNSWEPT)
    rates = [run.rate for run in swept if run.settings.name == "lora"]
    assert rates == [7.5e-4, 1.5e-3, 3e-3, 6e-3]


def test_the_grid_changes_one_thing_at_a_time():
    points = presets.grid(5, 100, Path("out"), lambda width: Path(f"base-{width}"))
    by = {(setting, value): [] for setting, value, _ in points}
    for setting, value, run in points:
        by[setting, value].append(run)
    for runs in by.values():
        assert [run.settings.method for run in runs] == ["full", "lora", "multilora"] * 2
        assert [run.seed for run in runs] == [5] * 3 + [15] * 3
    assert [run.rate for run in by["rate", 2][:3]] == [
        2 * DEFAULTS[method]["learning_rate"] for method in presets.CORE
    ]
    assert {run.steps for run in by["steps", 500]} == {500}
    assert {run.settings.model for run in by["width", 64]} == {"base-64"}
    assert [run.settings.rank for run in by["n·r", 48][:3]] == [0, 48, 16]
    assert [run.settings.n for run in by["n", 6][:3]] == [3, 3, 6]
    others = {run.settings.model for key, runs in by.items() for run in runs if key[0] != "width"}
    assert others == {"base-128"}
    assert {run.steps for key, runs in by.items() for run in runs if key[0] != "steps"} == {100}


def test_what_the_grid_does_not_change_is_a_run_of_its_base():
    """Trained once: the planned runs are equal, whichever part comes first."""
    out = Path("out")
    points = presets.grid(5, 100, out, lambda width: MODEL)
    of_base = presets.of_base(presets.CORE, 5, 100, MODEL, out / "seed-5")
    centre = [run for setting, value, run in points if (setting, value) == ("rate", 1)]
    assert centre == of_base
    by_place = {run.out: run for run in of_base}
    shared = [run for *_, run in points if run.out in by_place]
    assert all(run == by_place[run.out] for run in shared)
    assert len(shared) == 2 * (3 + 1 + 1 + 2 + 2)  # no n·r and n for full, no n for LoRA


def test_papers_ranks_make_the_budget():
    commands = presets.paper("llama-7b", "alpaca:a b.json")
    assert "--method multilora --n 3 --r 22 " in commands[0]
    assert "--method lora --r 66 " in commands[1]
    assert "'alpaca:a b.json'" in commands[0]
    assert len(commands) == 8


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ((0.4, 0.5, 0.6, 0.4), 0.002),
        ((0.4, 0.5, 0.6, 0.6), 0.002),  # the lowest of equals
        ((0.0, 0.0, 0.0, 0.0), 0.0005),
        ((0.4, 0.5, 0.6), None),  # a rate is not there yet
    ],
)
def test_the_rate_is_the_best_of_a_whole_sweep(scores, chosen):
    scored = [("lora", rate, score) for rate, score in zip(RATES, scores, strict=False)]
    assert presets.best_of(scored[::-1], 4) == ({} if chosen is None else {"lora": chosen})
    columns = ("method", "learning_rate", "score_validation")
    measured = [dict(zip(columns, of, strict=True)) for of in scored]
    # The test items say the opposite of the validation items.
    rows = experiments.sweep(
        [row | {"score": 1 - row["score_validation"]} for row in measured], "score", 4
    )
    assert [row["learning_rate"] for row in rows if row["chosen"]] == [chosen] * (
        chosen is not None
    )


def test_methods_are_chosen_for_by_themselves():
    scored = [("lora", rate, rate) for rate in RATES] + [("full", rate, -rate) for rate in RATES]
    assert presets.best_of(scored, 4) == {"lora": 0.004, "full": 0.0005}
