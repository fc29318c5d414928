"""Rank and scale of each module: PEFT's own rule, and expressions that never end."""

import numpy as np
import pytest
from entries import updates

from analysis import CheckpointError
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
    with pytest.raises(CheckpointError, match="its expressions take over 2 s to match"):
        updates(path)
    path = write_adapter(
        lora_tensors("q", "layers.1.v"), rank_pattern={r"(q|layers\.\d+\.v)": 4}, r=9
    )
    assert len(updates(path)) == 2


def test_expressions_without_end_are_refused(write_adapter, lora_tensors):
    path = write_adapter(lora_tensors("q"), rank_pattern={"a" * 100_001: 4})
    with pytest.raises(CheckpointError, match="is 100001 letters long; expected at most 100000"):
        updates(path)


def test_many_expressions_for_many_names_are_tried_apart(monkeypatch):
    from analysis.formats import rule

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
