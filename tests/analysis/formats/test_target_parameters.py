"""LoRA on parameters: every expert against PEFT's own delta, names, the order of B's columns."""

import numpy as np
import pytest
import torch
from entries import close, reasons, updates
from tiny_models import trained

from analysis import CheckpointError, checkpoint
from analysis.formats import target_parameters
from analysis.formats.target_parameters import Parameter
from analysis.update import Remark

E, R = 4, 3


def moe():
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    experts = {"num_experts": E, "num_experts_per_tok": 2}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=50, **sizes, **heads, **experts))


TARGETS = {
    "both": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    "reversed": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"],
    "one": ["experts.down_proj"],
}


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("rslora", [False, True])
def test_every_expert_is_what_peft_merges(tmp_path, targets, rslora):
    from peft import LoraConfig

    config = LoraConfig(
        r=R,
        lora_alpha=6,
        target_modules=["q_proj"],
        target_parameters=TARGETS[targets],
        rank_pattern={"down_proj": 2},
        alpha_pattern={"experts.down_proj": 5},
        use_rslora=rslora,
    )
    model = trained(moe(), config)
    model.save_pretrained(tmp_path / "adapter")
    before = {name: p.detach().double().clone() for name, p in moe().named_parameters()}
    after = dict(model.double().merge_and_unload().named_parameters())
    moe().save_pretrained(tmp_path / "base")
    for options in ({}, {"base": tmp_path / "base"}):
        found = updates(tmp_path / "adapter", **options)
        parameters = {
            f"model.layers.{i}.mlp.{t.removeprefix('mlp.')}"
            for i in (0, 1)
            for t in TARGETS[targets]
        }
        assert {name for name, part in found if part} == parameters
        assert {part for _, part in found} == {"", *(f"expert{e}" for e in range(E))}
        for (name, part), update in found.items():
            stack = (
                after[name if part else f"{name}.weight"]
                - before[name if part else f"{name}.weight"]
            )
            want = stack[int(part.removeprefix("expert"))] if part else stack
            close(update, want.detach().numpy())
            assert update.B.shape[1] == (2 if "down_proj" in name else R)


def test_a_parameter_with_two_dimensions_is_one_update(tmp_path):
    from peft import LoraConfig

    config = LoraConfig(r=R, target_modules=[], target_parameters=["q_proj.weight"])
    model = trained(moe(), config)
    model.save_pretrained(tmp_path)
    found = updates(tmp_path)
    assert set(found) == {(f"model.layers.{i}.self_attn.q_proj", "") for i in (0, 1)}
    for (name, _), update in found.items():
        layer = model.get_submodule(f"base_model.model.{name}")
        close(update, layer.get_delta_weight("default").detach().numpy())


@pytest.fixture
def stacked(rng, write_adapter):
    """Write factors of two wrapped parameters; returns the directory and the factors."""

    def write(shapes, targets, **config):
        tensors = {}
        for i, (d_out, d_in) in enumerate(shapes):
            depth = ".base_layer" * (len(shapes) - 1 - i)
            name = f"base_model.model.layers.0.mlp.experts{depth}"
            tensors[f"{name}.lora_A.weight"] = rng.standard_normal((E * R, d_in)).astype("f4")
            tensors[f"{name}.lora_B.weight"] = rng.standard_normal((d_out, E * R)).astype("f4")
        return write_adapter(tensors, r=R, target_parameters=targets, **config), tensors

    return write


def test_columns_grouped_by_expert_are_an_option(stacked):
    path, tensors = stacked([(10, 7)], ["mlp.experts.down_proj"])
    B, A = (x.astype(float) for x in reversed(tensors.values()))
    found = {first: updates(path, experts_first=first) for first in (False, True)}
    for e in range(E):
        rows = A[e * R : (e + 1) * R]
        key = ("layers.0.mlp.experts.down_proj", f"expert{e}")
        scale = 8 / R
        close(found[False][key], scale * B[:, e::E] @ rows)
        close(found[True][key], scale * B[:, e * R : (e + 1) * R] @ rows)


MLP = "layers.0.mlp.experts"
PAIR = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
THREE = [f"mlp.experts.{n}_proj" for n in ("down", "up", "gate")]


@pytest.mark.parametrize(
    ("shapes", "targets", "names"),
    [
        # gate_up_proj has twice the inner size as its outputs, whichever was wrapped first.
        ([(16, 10), (10, 8)], PAIR, ["gate_up_proj", "down_proj"]),
        ([(10, 8), (16, 10)], PAIR, ["down_proj", "gate_up_proj"]),
        # PEFT once took the outputs of a stack (E, out, in) for its inputs.
        ([(10, 16), (8, 10)], PAIR, ["gate_up_proj", "down_proj"]),
        # gate and up have one shape: the order in which models define them.
        ([(8, 10), (8, 10), (10, 8)], THREE, ["gate_proj", "up_proj", "down_proj"]),
        ([(8, 10), (10, 8), (8, 10)], THREE, None),
        # Nothing fits, or names are not known: those of the file are kept.
        ([(7, 10), (10, 9)], PAIR, None),
        ([(8, 10), (8, 10)], ["experts.x", "experts.y"], None),
        ([(8, 10)], PAIR, None),
        ([(8, 10)], ["down_proj"], ["down_proj"]),
    ],
)
def test_parameters_are_told_by_shape_or_order(stacked, shapes, targets, names):
    path, _ = stacked(shapes, targets)
    found = updates(path)
    stored = [f"{MLP}{'.base_layer' * (len(shapes) - 1 - i)}" for i in range(len(shapes))]
    want = stored if names is None else [f"{MLP}.{name}" for name in names]
    assert {name for name, _ in found} == set(want)
    turned = shapes[0] == (10, 16)
    for name, shape in zip(want, shapes, strict=True):
        assert found[name, "expert0"].shape == (shape[::-1] if turned else shape)


def test_what_only_the_usual_order_tells_is_said(stacked, write_adapter):
    """A model of one's own could define up_proj first: a pattern would then name another one."""
    path, tensors = stacked([(8, 10), (8, 10), (10, 8)], THREE)
    (said,) = [entry for entry in checkpoint.scan(path) if isinstance(entry, Remark)]
    assert said.what.endswith("by their usual order: gate_proj, up_proj, down_proj")
    path, tensors = stacked([(8, 10), (8, 10)], ["experts.x", "experts.y"])
    given = {"target_parameters": ["experts.x", "experts.y"], "rank_pattern": {"x": R}}
    write_adapter(tensors, r=R, **given)
    assert all("cannot be told" in reason for reason in reasons(path).values())
    path, _ = stacked([(16, 10), (10, 8)], PAIR)  # negative control: told by their shapes
    assert not [entry for entry in checkpoint.scan(path) if isinstance(entry, Remark)]


def test_many_wrappers_and_targets_take_no_time(stacked):
    """Their orders are not tried out, and every target is not compared with every module."""
    many = [f"mlp.experts.x{i}" for i in range(12)]
    path, _ = stacked([(8, 10)] * 12, [*many, *(f"y{i}.z" for i in range(10_000))])
    names = {name for name, _ in updates(path)}
    assert names == {f"{MLP}{'.base_layer' * i}" for i in range(12)}


def test_parameter_names_do_not_depend_on_the_order_of_the_modules():
    shapes = {f"{MLP}.base_layer": (16, 10), MLP: (10, 8)}
    want = {
        f"{MLP}.base_layer": Parameter(f"{MLP}.gate_up_proj"),
        MLP: Parameter(f"{MLP}.down_proj"),
    }
    for modules in (list(shapes), list(reversed(shapes))):
        assert target_parameters.names(modules, shapes, PAIR) == want


def test_a_broken_stack_costs_its_module_only(stacked, write_adapter, lora_tensors):
    path, tensors = stacked([(10, 7)], ["mlp.experts.down_proj"])
    tensors |= lora_tensors("q", r=R)
    write_adapter(
        tensors | {f"base_model.model.{MLP}.lora_A.weight": np.ones((5, 7), "f4")},
        r=R,
        target_parameters=["mlp.experts.down_proj"],
    )
    (reason,) = reasons(path).values()
    assert "B is (10, 12), A is (5, 7); expected B (d_out, r·experts)" in reason
    write_adapter(tensors, r=5, rank_pattern={"q": R}, target_parameters=["experts.down_proj"])
    (reason,) = reasons(path).values()
    assert "A is (12, 7); expected a multiple of r = 5 rows by" in reason
    del tensors[f"base_model.model.{MLP}.lora_B.weight"]
    write_adapter(tensors, r=R, target_parameters=["mlp.experts.down_proj"])
    (reason,) = reasons(path).values()
    assert "has lora_A.weight; expected lora_A.weight and lora_B.weight" in reason
    write_adapter(tensors, r=R, target_parameters="mlp")
    with pytest.raises(
        CheckpointError, match="target_parameters is 'mlp'; expected a list of names"
    ):
        updates(path)
