"""Rank and scale of each module: PEFT's own rule, and expressions that never end."""

import numpy as np
import pytest
from entries import updates

from analysis import CheckpointError
from analysis.formats import rule
from analysis.formats.rule import Rule


def test_pattern_rule_is_pefts_own():
    from peft.utils.other import get_pattern_key

    modules = ["model.layers.1.q_proj", "model.layers.11.q_proj", "q_proj", "model.layers.1.v_proj"]
    patterns = [["layers.1.q_proj"], ["q_proj", "layers.1.q_proj"], ["1"], [".*1.*"], ["^q_proj"]]
    for keys in patterns:
        values = {key: i + 2 for i, key in enumerate(keys)}
        config = {"r": 1, "lora_alpha": 1, "rank_pattern": values}
        rule = Rule(config, "adapter_config.json", modules)
        for module in modules:
            assert rule.rank(module) == values.get(get_pattern_key(keys, module), 1)


def test_a_hostile_expression_is_stopped(write_adapter, lora_tensors):
    path = write_adapter(lora_tensors("a" * 60), rank_pattern={"(a+)+b": 3})
    with pytest.raises(CheckpointError, match="its expressions take over 1 s to match"):
        updates(path)
    path = write_adapter(
        lora_tensors("q", "layers.1.v"), rank_pattern={r"(q|layers\.\d+\.v)": 4}, r=9
    )
    assert len(updates(path)) == 2


def test_a_key_that_is_a_name_counts_if_nothing_matches():
    """PEFT looks up the module's own name last; c++ is an expression for c, twice and more."""
    config = {"r": 3, "lora_alpha": 6, "alpha_pattern": {"m.c++": 600, "m.c": 60}}
    names = ["m.c++", "m.c", "x.m.c++", "m.cc"]
    rule = Rule(config, "adapter_config.json", names)
    assert [rule.scale(name) for name in names] == [200.0, 200.0, 2.0, 200.0]


def test_a_hostile_expression_is_not_compiled_here(write_adapter, lora_tensors):
    """It takes minutes: each set of all letters is searched for its other cases."""
    slow = "(?i:" + "[\1-\uffff]" * 300 + ")"
    path = write_adapter(lora_tensors("q"), alpha_pattern={slow: 3})
    with pytest.raises(CheckpointError, match="its expressions take over 1 s to match"):
        updates(path)


def test_an_expression_that_is_none_is_refused_without_a_warning(
    write_adapter, lora_tensors, recwarn
):
    path = write_adapter(lora_tensors("q"), alpha_pattern={"q[[x]": 3, "q(": 4})
    with pytest.raises(CheckpointError, match=r"alpha_pattern: 'q\(': .*expected names of modules"):
        updates(path)
    assert not list(recwarn)


@pytest.mark.parametrize(
    "setting",
    [
        {"target_modules": "(([a-z._0-9])+)+X"},
        {"modules_to_save": ["(([a-z._0-9])+)+X"]},
        {"layers_pattern": "(([a-z._0-9])+)+X"},
        {"n_frequency_pattern": {"(([a-z._0-9])+)+X": 3}},
    ],
)
def test_an_expression_that_peft_would_never_end_is_refused(setting):
    names = ["model.layers.0.self_attn.q_proj.weight"]
    with pytest.raises(CheckpointError, match="here: its expressions take over 1 s"):
        rule.refuse_slow({"peft_type": "LOHA", **setting}, "here", names)


def test_an_expression_of_an_honest_config_is_left_to_peft():
    config = {"target_modules": r".*\.layers\.(0|1)\.(q|v)_proj", "x": "C:\\users\\(", "r": 3}
    rule.refuse_slow(config | {"base_model_name_or_path": "a/b"}, "here", ["layers.0.q_proj"])


def test_expressions_without_end_are_refused(write_adapter, lora_tensors):
    path = write_adapter(lora_tensors("q"), rank_pattern={"a" * 100_001: 4})
    with pytest.raises(CheckpointError, match="is 100001 letters long; expected at most 100000"):
        updates(path)


def test_many_expressions_for_many_names_are_tried_apart(monkeypatch):
    tried = []
    monkeypatch.setattr(rule, "_apart", lambda keys, names, _: tried.append(1) or [[]] * len(keys))
    names = [f"layers.{i}.q" for i in range(2000)]
    rule.first_matches([f"layers.{i}" for i in range(500)], names, "here")
    assert tried == []
    rule.first_matches([f"layers.{i}" for i in range(501)], names, "here")
    assert tried == [1]


@pytest.mark.parametrize(
    ("rslora", "scales"),
    [(False, {"q": 2.0, "v": 5.0, "k": 4.0}), (True, {"q": 4.0, "v": 10.0, "k": 8.0 / 2**0.5})],
)
def test_the_scale_is_alpha_over_the_modules_own_rank(rslora, scales):
    config = {"r": 4, "lora_alpha": 8, "use_rslora": rslora}
    config |= {"rank_pattern": {"k": 2}, "alpha_pattern": {"v": 20}}
    rule = Rule(config, "adapter_config.json", ["layers.0.q", "layers.0.v", "layers.0.k"])
    for module, scale in scales.items():
        np.testing.assert_allclose(rule.scale(f"layers.0.{module}"), scale, rtol=1e-15)
