"""The runs of each preset, and the learning rates that sweeps choose."""

import csv
from pathlib import Path

import pytest
from planned import finish

from multilora.reproduction import experiments, presets
from multilora.training import identity
from multilora.training.settings import DEFAULTS

MODEL = Path("model")
PUBLISHED = Path(__file__).parents[3] / "figures"
RATES = (0.0005, 0.001, 0.002, 0.004)


@pytest.mark.parametrize("method", presets.EVERY)
def test_a_method_is_called_in_tables_what_it_is_called_here(method):
    assert presets.settings_of(method, MODEL).name == method


def test_every_run_has_a_place_of_its_own():
    methods = presets.EVERY
    out = Path("out")
    runs = [
        *presets.sweep(methods, 10, MODEL, out),
        *presets.plan(methods, range(5), 10, MODEL, out),
    ]
    assert len({run.out for run in runs}) == len(runs) == 4 * 11 + 5 * 12
    changed = [run for *_, run in presets.grid([0, 1], 10, out, {}, lambda width: MODEL)]
    beside = {run.out for run in changed} - {run.out for run in runs}
    assert all(place.parts[1] == "grid" for place in beside)


def test_runs_come_seed_by_seed():
    runs = presets.plan(["full", "lora"], [3, 1], 10, MODEL, Path("out"))
    assert [run.out.name for run in runs] == ["full-s3", "lora-s3", "full-s1", "lora-s1"]
    assert [run.arguments().learning_rate for run in runs[:2]] == [2e-3, 3e-3]
    assert {run.arguments().save_strategy for run in runs} == {"no"}


def test_checkpoints_are_kept_of_the_first_seed_of_what_is_compared():
    runs = presets.plan(["lora", "rlora"], [0, 1], 50, MODEL, Path("out"), saves=True)
    assert [run.saves for run in runs] == [True, False, False, False]
    assert runs[0].arguments().save_steps == 5
    # It is the same run, with and without.
    plain = presets.plan(["lora"], [0], 50, MODEL, Path("out"))[0]
    made = [identity.fingerprint(run.settings, run.arguments()) for run in (runs[0], plain)]
    assert made[0] == made[1]


def test_the_best_rate_is_chosen_on_validation_items(tmp_path):
    swept = presets.sweep(["lora", "full"], 10, MODEL, tmp_path)
    assert [run.rate for run in swept[:4]] == [7.5e-4, 1.5e-3, 3e-3, 6e-3]
    assert [run.rate for run in swept[4:]] == [5e-4, 1e-3, 2e-3, 4e-3]
    for run, score in zip(swept, (0.2, 0.3, 0.5, 0.5, 0.1, 0.9, 0.1, 0.2), strict=True):
        finish(run, score)
    assert presets.best_rates(swept) == {"lora": 3e-3, "full": 1e-3}  # the lowest of equals
    rates = presets.best_rates(swept)
    planned = presets.plan(["lora", "lora r=26", "rlora"], [0], 10, MODEL, tmp_path, rates)
    assert [run.rate for run in planned] == [3e-3, 3e-3, 0.0]


def test_no_rate_is_chosen_before_its_sweep_is_through(tmp_path):
    swept = presets.sweep(["lora", "full"], 10, MODEL, tmp_path)
    for run in swept[:7]:
        finish(run, 0.5)
    assert presets.best_rates(swept) == {"lora": 7.5e-4}


def test_defaults_are_what_the_published_sweep_chose():
    with (PUBLISHED / "sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    published = {(row["method"], float(row["learning_rate"])) for row in rows}
    planned = presets.sweep(presets.EVERY, 10, MODEL, Path("out"))
    assert published == {(run.settings.name, run.rate) for run in planned}
    chosen = {row["method"]: float(row["learning_rate"]) for row in rows if row["chosen"] == "1"}
    for method, usual in DEFAULTS.items():
        assert chosen[method] == usual["learning_rate"]


def test_sweeps_are_of_equal_size():
    swept = presets.sweep(presets.EVERY, 10, MODEL, Path("out"))
    names = [run.settings.name for run in swept]
    assert {names.count(name) for name in names} == {len(presets.SWEPT)}
    assert {run.seed for run in swept} == {presets.SWEEP_SEED}
    assert not {run.seed for run in swept} & set(range(5))


def test_the_grid_changes_one_thing_at_a_time():
    rates = {"full": 1.0, "lora": 2.0, "multilora": 3.0}
    places = []

    def base_of(width):
        places.append(width)
        return Path(f"base-{width}")

    points = presets.grid([0], 100, Path("out"), rates, base_of)
    by = {(setting, value): [] for setting, value, _ in points}
    for setting, value, run in points:
        by[setting, value].append(run)
    assert all(
        [run.settings.method for run in runs] == ["full", "lora", "multilora"]
        for runs in by.values()
    )
    assert [run.out for run in by["rate", 1]] == [
        Path("out", f"{m}-s0") for m in ("full", "lora", "multilora")
    ]
    assert [run.rate for run in by["rate", 2]] == [2.0, 4.0, 6.0]
    assert {run.steps for run in by["steps", 500]} == {500}
    assert {run.settings.model for run in by["width", 64]} == {"base-64"}
    assert [run.settings.rank for run in by["n·r", 48]] == [0, 48, 16]
    assert [run.settings.n for run in by["n", 6]] == [3, 3, 6]
    assert by["n", 6][0].out == Path("out", "full-s0")  # full fine-tuning has no n
    assert set(places) == {64, 128}


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
    assert presets.best_of(scored[::-1]) == ({} if chosen is None else {"lora": chosen})
    columns = ("method", "learning_rate", "score_validation")
    measured = [dict(zip(columns, of, strict=True)) for of in scored]
    # The test items say the opposite of the validation items.
    rows = experiments.sweep([row | {"score": 1 - row["score_validation"]} for row in measured])
    assert [row["learning_rate"] for row in rows if row["chosen"]] == [chosen] * (
        chosen is not None
    )


def test_methods_are_chosen_for_by_themselves():
    scored = [("lora", rate, rate) for rate in RATES] + [("full", rate, -rate) for rate in RATES]
    assert presets.best_of(scored) == {"lora": 0.004, "full": 0.0005}
