"""The plan of the preset smollm2: data, sweep and its extension, seeds, families alone."""

import json
from pathlib import Path

import pytest
from task_files import write_public

from analysis import UserError
from multilora.reproduction import pretrained
from multilora.reproduction.presets import SWEEP_SEED
from multilora.reproduction.pretrained import Plan
from multilora.tasks import data
from multilora.tasks.example import FAMILIES

MODEL = Path("model")


@pytest.fixture
def public(tmp_path):
    return write_public(tmp_path)


# The data.


def test_a_directory_gives_eight_tasks_of_three_families(public):
    spec = pretrained.tasks_in(public)
    loaded = data.load(spec)
    assert list(loaded.family_of.items()) == [
        ("alpaca", "instruction"), ("arc_easy", "knowledge"), ("openbookqa", "knowledge"),
        ("mmlu", "knowledge"), ("cb", "understanding"), ("copa", "understanding"),
        ("rte", "understanding"), ("wsc", "understanding"),
    ]  # fmt: skip
    assert "many.json" in spec
    assert "superglue_more/RTE" in spec  # the larger of two
    counts = {task: sum(e.task == task for e in loaded.examples["train"]) for task in ("rte", "cb")}
    assert counts["rte"] > counts["cb"]


def test_what_is_missing_is_named_with_its_place(public):
    (public / "llm_adapters" / "openbookqa" / "train.json").unlink()
    (public / "llm_adapters" / "openbookqa" / "test.json").unlink()
    (public / "llm_adapters" / "openbookqa").rmdir()
    with pytest.raises(UserError, match=r"openbookqa: missing; --data expects alpaca/\*\.json"):
        pretrained.tasks_in(public)


def test_families_are_those_of_the_parts(public):
    spec = pretrained.tasks_in(public)
    families = pretrained.by_family(spec)
    assert tuple(families) == FAMILIES
    assert sorted(",".join(families.values()).split(",")) == sorted(spec.split(","))
    for family, own in families.items():
        assert set(data.load(own).family_of.values()) == {family}


def test_plain_text_is_that_of_the_passages_each_once(public):
    assert pretrained.text_in(public) == "One.\n\nTwo."
    assert pretrained.text_in(public / "mmlu") == ""


# The sweep.


def plan_in(tmp_path, tasks="alpaca:x"):
    return Plan(MODEL, tasks, steps=200, batch=8, out=tmp_path)


def sweep(tmp_path, methods=("lora",)):
    return plan_in(tmp_path).sweep(methods)


def finish(monkeypatch, losses):
    """Make runs of the sweep finished; losses: rate -> loss on validation items."""
    monkeypatch.setattr(pretrained.Run, "is_done", lambda run: run.rate in losses)

    def write(runs):
        for run in runs:
            if run.rate in losses:
                run.out.mkdir(parents=True, exist_ok=True)
                scores = {"validation": {"nll": {"mean": losses[run.rate]}}}
                (run.out / "run.json").write_text(json.dumps({"scores": scores}))
        return runs

    return write


def test_every_method_has_three_rates_and_the_same_data(tmp_path):
    runs = sweep(tmp_path, pretrained.METHODS)
    assert len(runs) == 3 * len(pretrained.METHODS)
    assert len({run.out for run in runs}) == len(runs)
    for run in runs:
        arguments = run.arguments()
        assert (run.seed, run.steps) == (SWEEP_SEED, pretrained.SWEEP_STEPS)
        assert arguments.per_device_train_batch_size == 8
        assert arguments.bf16
        assert arguments.learning_rate == run.rate
        assert run.settings.loss == "example"
        assert run.settings.max_length == 192
    assert {run.rate for run in runs if run.settings.method == "full"} == {1e-5, 3e-5, 1e-4}


@pytest.mark.parametrize(
    ("losses", "added"),
    [
        ({3e-4: 2.0, 1e-3: 1.0, 3e-3: 2.0}, []),
        ({3e-4: 1.0, 1e-3: 2.0, 3e-3: 3.0}, [1e-4]),
        ({3e-4: 3.0, 1e-3: 2.0, 3e-3: 1.0}, [1e-2]),
        ({3e-4: 1.0, 1e-3: 1.0, 3e-3: 1.0}, [1e-4]),  # the lowest of equals
        ({3e-4: 1.0, 1e-3: 2.0}, []),  # not all are finished
    ],
)
def test_a_best_rate_at_an_edge_extends_the_sweep(tmp_path, monkeypatch, losses, added):
    runs = finish(monkeypatch, losses)(sweep(tmp_path))
    more = pretrained.further(runs)
    assert [run.rate for run in more] == added
    assert [run.out.name for run in more] == [f"lora-s100-lr{rate:g}" for rate in added]


def test_the_sweep_ends_also_if_the_best_stays_at_the_edge(tmp_path, monkeypatch):
    """Each further rate is better than the last; the fourth is not tried."""
    losses = {rate: rate for rate in (3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6)}
    write = finish(monkeypatch, losses)
    runs = write(sweep(tmp_path))
    while more := pretrained.further(runs):
        runs = [*runs, *write(more)]
    assert sorted(run.rate for run in runs) == [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3]


def test_the_best_rate_or_the_middle_until_it_is_known(tmp_path, monkeypatch):
    runs = finish(monkeypatch, {3e-4: 1.0, 1e-3: 2.0, 3e-3: 3.0})(sweep(tmp_path, ("lora", "full")))
    assert pretrained.chosen(runs) == {"lora": 3e-4, "full": 3e-5}


# The runs after it.

RATES = {"full": 3e-5, "lora": 1e-3, "multilora": 1e-3, "multilora zero": 3e-4}


def test_a_seed_has_every_method_at_its_rate(tmp_path):
    runs = plan_in(tmp_path).of_seed(pretrained.METHODS, 2, RATES)
    assert {run.settings.name: run.rate for run in runs} == RATES
    assert {run.seed for run in runs} == {2}
    saves = {run.settings.name: run.arguments().save_steps for run in runs if run.saves}
    assert saves == {"full": 50, "lora": 50, "multilora": 50}
    assert {run.out.parent.name for run in runs} == {"seed-2"}


def test_a_family_alone_is_trained_as_long_as_the_mixture(public, tmp_path):
    spec = pretrained.tasks_in(public)
    runs = plan_in(tmp_path, spec).alone(0, RATES)
    families = pretrained.by_family(spec)
    assert [(run.settings.name, run.settings.tasks) for run in runs] == [
        (method, own) for method in ("lora", "multilora") for own in families.values()
    ]
    assert {run.steps for run in runs} == {200}
    assert len({run.out for run in runs}) == 6
    assert plan_in(tmp_path, spec).alone(0, {"full": 1e-5}) == []


def test_sizes_change_n_or_r_of_multilora_alone(tmp_path):
    runs = plan_in(tmp_path).sizes(0, RATES)
    assert [(run.settings.n, run.settings.r) for run in runs] == list(pretrained.SIZES)
    assert {run.rate for run in runs} == {RATES["multilora"]}
    assert len({run.out for run in runs}) == len(runs)
    assert plan_in(tmp_path).sizes(0, {"lora": 1e-3}) == []


def test_relatives_have_the_rate_of_lora(tmp_path):
    runs = plan_in(tmp_path).relatives(0, RATES)
    found = [(run.settings.method, run.rate, run.settings.loss) for run in runs]
    assert found == [
        ("rlora", 1e-3, "example"), ("mtllora", 1e-3, "example"), ("expert", 1e-3, "token"),
    ]  # fmt: skip
    assert plan_in(tmp_path).relatives(0, {"full": 1e-5}) == []
