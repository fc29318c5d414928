"""Settings that are refused, defaults of the methods, and the names of runs."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from tiny_runs import METHODS

from multilora.reproduction import presets
from multilora.training import trainer as trainer_of
from multilora.training.settings import (
    DEFAULTS,
    SETTINGS_WITHOUT_EFFECT,
    TrainSettings,
    complete,
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "sgd"}, "method is 'sgd'; expected one of lora, lora\\+, multilora, full"),
        ({"method": "lora", "b_lr_ratio": 4.0}, "b_lr_ratio other than 1 belongs to method lora"),
        ({"method": "lora+"}, "b_lr_ratio other than 1 belongs to method lora"),
        ({"method": "lora", "scale_lr_ratio": 5.0}, "scale_lr_ratio belongs to method multilora"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        TrainSettings(**changes)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_given_is_the_methods_own(method):
    settings = TrainSettings(method=method, b_lr_ratio=METHODS[method].get("b_lr_ratio", 1))
    arguments = trainer_of.TrainArguments(seed=3)
    complete(settings, arguments)
    assert arguments.learning_rate == DEFAULTS[method]["learning_rate"]
    assert arguments.output_dir == f"runs/{method}-s3"
    ranks = {"lora": 24, "lora+": 24, "multilora": 8, "full": 0, "rlora": 11, "mtllora": 10}
    assert settings.rank == ranks[method]
    given = trainer_of.TrainArguments(output_dir="here", learning_rate=0.5)
    complete(settings, given)
    assert (given.output_dir, given.learning_rate) == ("here", 0.5)


# Names.


@pytest.mark.parametrize("method", presets.EVERY)
def test_the_runs_of_the_presets_keep_their_names(method):
    settings = presets.settings_of(method, Path("some/base"))
    assert settings.name == method
    assert settings.run_name(0) == f"{method.replace(' ', '-')}-s0"


# Every setting that can change a result, with another value and what a name then says.
CHANGED = {
    "quantised": (4, "lora-quantised=4-s0"),
    "mixture": ("2", "lora-mixture=2-s0"),
    "packing": (True, "lora-packing-s0"),
    "max_length": (192, "lora-max_length=192-s0"),
    "loss": ("example", "lora-loss=example-s0"),
    "decode": (False, "lora-decode=False-s0"),
    "per_task": (50, "lora-per_task=50-s0"),
    "per_task_scored": (20, "lora-per_task_scored=20-s0"),
    "r": (26, "lora-r=26-s0"),
    "n": (5, "lora-n=5-s0"),
    "scale": (4.0, "lora-scale=4-s0"),
    "dropout": (0.05, "lora-dropout=0.05-s0"),
    "target_modules": ("q_proj,v_proj", "lora-target_modules=q_proj+v_proj-s0"),
    "tasks": ("alpaca:a.json", "lora-tasks=1e918572-s0"),
}
# Settings that another method alone has.
OTHERS = {
    "method": ({}, {"method": "multilora"}),
    "start": ({"method": "multilora"}, {"start": "zero"}),
    "scale_lr_ratio": ({"method": "multilora"}, {"scale_lr_ratio": 5.0}),
    "b_lr_ratio": ({"method": "lora+", "b_lr_ratio": 4.0}, {"b_lr_ratio": 8.0}),
    "peft_config": ({"method": "peft:VERA"}, {"peft_config": '{"r": 8}'}),
}


@pytest.mark.parametrize("setting", CHANGED)
def test_a_run_name_states_every_setting_that_changes_the_result(setting):
    value, want = CHANGED[setting]
    settings = TrainSettings(method="lora", model="base", **{setting: value})
    assert settings.run_name(0) == want


def test_every_setting_is_tried():
    names = {field.name for field in fields(TrainSettings)}
    assert names == {*CHANGED, *OTHERS, "model", *SETTINGS_WITHOUT_EFFECT}


@pytest.mark.parametrize("setting", OTHERS)
def test_settings_of_one_method_have_names_of_their_own(setting):
    usual, change = OTHERS[setting]
    one = TrainSettings(**{"method": "lora"} | usual)
    other = TrainSettings(**{"method": "lora"} | usual | change)
    assert one.run_name(0) != other.run_name(0)


def test_every_combination_of_rank_and_modules_has_a_name_of_its_own():
    for method in ("multilora", "rlora", "mtllora"):
        given = [{"n": n, "r": r} for n in (1, 2, 3, 6) for r in (1, 4, 8, 11, 12, 24)]
        names = {TrainSettings(method=method, **one).run_name(0) for one in given}
        assert len(names) == len(given), method


def output_of(settings=None, **arguments):
    given = trainer_of.TrainArguments(use_cpu=False, **arguments)
    complete(TrainSettings(**{"method": "lora"} | (settings or {})), given)
    return given.output_dir


def test_the_default_directory_differs_with_the_base_and_the_arguments():
    changed = [
        output_of(),
        output_of({"scale": 4.0}),
        output_of({"model": "models/llama-7b"}),
        output_of({"model": "other/llama-7b"}),
        output_of(seed=1),
        output_of(max_steps=100),
        output_of(learning_rate=1e-3),
        output_of({"scale": 4.0}, learning_rate=1e-3),
        output_of(gradient_accumulation_steps=2),
    ]
    assert changed[0] == "runs/lora-s42"
    assert re.fullmatch(r"runs/lora-model=llama-7b\.[0-9a-f]{8}-s42", changed[2])
    assert changed[5] == "runs/lora-max_steps=100-s42"
    assert changed[7] == "runs/lora-scale=4-learning_rate=0.001-s42"
    assert len(set(changed)) == len(changed)


def test_the_default_directory_is_the_same_for_what_changes_no_result():
    assert output_of(learning_rate=DEFAULTS["lora"]["learning_rate"]) == "runs/lora-s42"
    assert output_of({"token_cache": "elsewhere"}, save_steps=7) == "runs/lora-s42"
    assert output_of(resume_from_checkpoint="no", disable_tqdm=True) == "runs/lora-s42"
