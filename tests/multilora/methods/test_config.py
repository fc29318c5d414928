import json
import re

import pytest
from peft import PeftConfig

from multilora import MethodType, MtlLoraConfig, MultiLoraConfig, RLoraConfig


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 0}, "r is 0; expected a whole number of at least 1"),
        ({"n": 0}, "n is 0; expected a whole number of at least 1"),
        ({"r": -3}, "r is -3; expected a whole number of at least 1"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0; expected 0 <= dropout < 1"),
        ({"lora_dropout": -0.1}, "lora_dropout is -0.1; expected 0 <= dropout < 1"),
        ({"start_b": "ones"}, "start_b is 'ones'; expected 'kaiming' or 'zero'"),
        ({"start_b": "zero"}, "start_b is 'zero' and start_s is 0: no gradient would flow"),
        ({"start_s": 1.0}, "start_b is 'kaiming' and start_s is not 0: ΔW would not start at zero"),
        (
            {"layers_pattern": "layers"},
            "layers_pattern is set without layers_to_transform; expected both",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(settings, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        MultiLoraConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"r": 1, "n": 1},
        {"lora_dropout": 0.99},
        {"start_b": "zero", "start_s": 1.0},
        {"layers_pattern": "layers", "layers_to_transform": [0]},
    ],
)
def test_what_can_be_trained_is_accepted(settings):
    config = MultiLoraConfig(**settings)
    assert all(getattr(config, key) == value for key, value in settings.items())


@pytest.mark.parametrize("r", [1, 4, 8])
def test_scale_is_alpha_over_r_and_with_rslora_over_its_root(r):
    assert MultiLoraConfig(r=r, lora_alpha=12).scale == 12 / r
    assert MultiLoraConfig(r=r, lora_alpha=12, use_rslora=True).scale == 12 / r**0.5
    assert MultiLoraConfig(r=r, lora_alpha=0).scale == 0


def test_the_number_of_modules_does_not_change_the_scale():
    assert {MultiLoraConfig(r=4, n=n, lora_alpha=12).scale for n in (1, 3, 7)} == {3.0}


def test_a_config_comes_back_from_its_file(tmp_path):
    config = MultiLoraConfig(
        r=4, n=2, lora_alpha=3.5, use_rslora=True, target_modules=["q_proj", "v_proj"],
        exclude_modules=["v_proj"], modules_to_save=["lm_head"], start_b="zero", start_s=1.0,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["peft_type"] == "MULTILORA"
    back = PeftConfig.from_pretrained(tmp_path)
    assert type(back) is MultiLoraConfig
    assert back.to_dict() == config.to_dict()
    assert back.target_modules == {"q_proj", "v_proj"}


def test_a_broken_file_is_refused_at_loading(tmp_path):
    MultiLoraConfig().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 8', '"r": 0'))
    with pytest.raises(ValueError, match="r is 0"):
        PeftConfig.from_pretrained(tmp_path)


def test_the_type_is_a_string_with_a_value():
    """PEFT compares it as a string, transformers reads `.value`."""
    assert MethodType.MULTILORA == "MULTILORA"
    assert MultiLoraConfig().peft_type.value.lower() + "_" == "multilora_"


# The relatives.


def mtl(**settings):
    return MtlLoraConfig(**{"tasks": ["one", "two"]} | settings)


@pytest.mark.parametrize("config", [RLoraConfig, mtl])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 0}, "r is 0; expected a whole number of at least 1"),
        ({"n": 1.5}, "n is 1.5; expected a whole number of at least 1"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0; expected 0 <= dropout < 1"),
        (
            {"layers_pattern": "layers"},
            "layers_pattern is set without layers_to_transform; expected both",
        ),
    ],
)
def test_what_all_methods_refuse(config, settings, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        config(**settings)


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([], "tasks is []; expected a list of task names"),
        (None, "tasks is None; expected a list"),
        ("sort", "tasks is 'sort'; expected a list"),
        (["a", "b", "a"], "a name appears twice"),
        (["a", 1], "task 1: not a valid directory name"),
        (["a", ""], "task '': not a valid directory name"),
        (["a/b"], "task 'a/b': not a valid directory name; expected one without slashes"),
        ([".."], "task '..': not a valid directory name"),
    ],
)
def test_tasks_that_cannot_be_told_apart_are_refused(tasks, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        MtlLoraConfig(tasks=tasks)


def test_a_router_or_a_temperature_that_is_none_is_refused():
    with pytest.raises(ValueError, match="router_init is 'ones'; expected 'zero' or 'kaiming'"):
        RLoraConfig(router_init="ones")
    for temperature in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"temperature is .*; expected a number above 0"):
            mtl(temperature=temperature)


@pytest.mark.parametrize("r", [1, 4, 8])
def test_the_scales_of_the_relatives(r):
    assert RLoraConfig(r=r, lora_alpha=12).scale == 12 / r**0.5
    assert mtl(r=r, lora_alpha=12).scale == 12 / r
    assert mtl(r=r, lora_alpha=12, use_rslora=True).scale == 12 / r**0.5
    assert mtl().temperature == 0.5


@pytest.mark.parametrize(
    "config",
    [
        RLoraConfig(r=4, n=2, lora_alpha=3.5, target_modules=["q_proj"], router_init="kaiming"),
        mtl(r=4, n=2, lora_alpha=3.5, target_modules=["q_proj"], temperature=0.7, diagonal=True),
    ],
)
def test_a_relatives_config_comes_back_from_its_file(config, tmp_path):
    config.save_pretrained(tmp_path)
    back = PeftConfig.from_pretrained(tmp_path)
    assert type(back) is type(config)
    assert back.to_dict() == config.to_dict()
    assert back.peft_type.value.lower() + "_" in ("rlora_", "mtllora_")


@pytest.mark.parametrize("targets", ["all-linear", r".*\.q"])
def test_layers_of_an_expression_are_not_ignored(targets):
    with pytest.raises(
        ValueError, match=r"layers_to_transform is set .* expected target_modules as a list"
    ):
        MultiLoraConfig(target_modules=targets, layers_to_transform=[0])
    MultiLoraConfig(target_modules=["q"], layers_to_transform=[0])


@pytest.mark.parametrize("settings", [{"lora_alpha": float("nan")}, {"start_s": float("inf")}])
def test_numbers_that_are_none(settings):
    with pytest.raises(ValueError, match="expected a finite number"):
        MultiLoraConfig(target_modules=["q"], **settings)
