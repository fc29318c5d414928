"""Keys, layers and kinds from names; names that are printed, selected and made unique."""

import os

import pytest

from analysis import UserError, names


def test_keys_have_run_step_module_and_part():
    assert names.run_key("runs/lora", None) == "runs/lora"
    assert names.run_key("lora", 0) == "lora@0"  # step 0 is a step
    assert names.update_key("lora@0", "l.0.q", None) == "lora@0/l.0.q"
    assert names.update_key("lora", "l.0.q", "") == "lora/l.0.q"
    assert names.update_key("lora", "l.0.q", "head0") == "lora/l.0.q#head0"


@pytest.mark.parametrize(
    ("module", "layer", "kind"),
    [
        ("model.layers.11.self_attn.q_proj", 11, "q_proj"),
        ("model.layers.0.experts.7.up", 0, "up"),  # the first number
        ("lm_head", None, "lm_head"),
        ("block3.conv2", None, "conv2"),  # a number inside a component is none
        ("layers.²", None, "²"),  # a digit that int() would refuse
        ("layers.12345678901", None, "12345678901"),  # a hash, not a layer
        ("", None, ""),
    ],
)
def test_layer_and_kind_of_a_module(module, layer, kind):
    assert names.layer_of(module) == layer
    assert names.kind_of(module) == kind


def test_a_name_is_unique_among_those_that_are_taken():
    assert names.unique("combined", []) == "combined"
    assert names.unique("combined", ["combined"]) == "combined-2"
    assert names.unique("combined", ["combined-2", "combined"]) == "combined-3"
    assert names.unique("combined", ["combined-2"]) == "combined"


def test_names_of_strangers_are_printed_on_one_line_without_control_characters():
    assert names.printable("ΔW of q_proj") == "ΔW of q_proj"
    assert names.printable("a\nb\x1b[2J\u202e") == r"a\nb\x1b[2J\u202e"


def test_modules_are_selected_by_a_match_anywhere():
    wanted = names.expression(r"[qv]_proj$")
    assert wanted.search("layers.0.q_proj")
    assert not wanted.search("layers.0.q_proj.bias")
    assert names.expression(None).search("anything")
    with pytest.raises(UserError, match=r"--modules '\[' is not a regular expression: "):
        names.expression("[")


def test_a_name_that_is_no_text_can_be_written():
    name = os.fsdecode(b"run\xff")
    assert names.as_text(name).encode() == b"run\\udcff"
    assert names.as_text("naïve") == "naïve"
