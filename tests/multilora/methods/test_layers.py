import math

import pytest
import torch
import torch.nn.functional as F
from near import assert_near, inputs
from torch import nn
from transformers.pytorch_utils import Conv1D

from multilora import MultiLoraConfig
from multilora.methods.layers import MultiLoraLinear

EPS = torch.finfo(torch.float64).eps
# d_out, d_in, r, n: wide, tall, r above both sizes, one module of rank one.
SHAPES = [(9, 5, 2, 3), (3, 8, 2, 4), (4, 5, 7, 2), (7, 7, 1, 1)]


def wrapped(d_out, d_in, r, n, conv1d=False, dtype=torch.float64, **config):
    """A layer with an adapter at its start."""
    torch.manual_seed(0)
    base = Conv1D(d_out, d_in) if conv1d else nn.Linear(d_in, d_out)
    nn.init.normal_(base.bias)
    return MultiLoraLinear(base.to(dtype), "default", MultiLoraConfig(r=r, n=n, **config))


def trained(*shape, **config):
    """The same, as if training had moved every s."""
    layer = wrapped(*shape, **config)
    nn.init.normal_(layer.multilora_s["default"])
    return layer


def slow_delta(layer, adapter="default"):
    """Σᵢ scale · diag(sᵢ) Bᵢ Aᵢ, module by module, (d_out, d_in)."""
    A, B, s = (getattr(layer, f"multilora_{part}")[adapter].detach() for part in "ABs")
    r, scale = layer.r[adapter], layer.scale[adapter]
    total = torch.zeros(layer.out_features, layer.in_features, dtype=A.dtype)
    for i in range(layer.n[adapter]):
        module = slice(i * r, (i + 1) * r)
        total += scale * torch.diag(s[:, i]) @ B[:, module] @ A[module]
    return total


@pytest.mark.parametrize("conv1d", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_delta_weight_are_the_sum_over_modules(shape, conv1d):
    layer = trained(*shape, conv1d=conv1d, lora_alpha=5)
    x = inputs(layer, 2, 6)
    delta = slow_delta(layer)
    assert delta.norm() > 0.1
    assert_near(layer(x), layer.base_layer(x) + x @ delta.T)
    assert_near(layer.get_delta_weight("default"), delta.T if conv1d else delta)


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_multiply_to_the_update(shape):
    layer = trained(*shape, lora_alpha=5)
    d_out, d_in, r, n = shape
    left, right = layer.factors("default")
    assert (left.shape, right.shape) == ((d_out, n * r), (n * r, d_in))
    assert_near((left @ right).detach(), slow_delta(layer))
    left, right = layer.factors("default", scaled=False)
    assert_near((left @ right).detach() * layer.scale["default"], slow_delta(layer))


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_update_is_proportional_to_the_scale(use_rslora):
    layer = trained(9, 5, 4, 3, lora_alpha=6, use_rslora=use_rslora)
    assert layer.scale["default"] == (3.0 if use_rslora else 1.5)
    once = layer.get_delta_weight("default")
    layer.scale["default"] *= 2
    assert_near(layer.get_delta_weight("default"), 2 * once)


@pytest.mark.parametrize("start", [("kaiming", 0.0), ("zero", 1.0)])
@pytest.mark.parametrize("conv1d", [False, True])
def test_the_start_is_the_base_layer_bit_for_bit(start, conv1d):
    layer = wrapped(9, 5, 2, 3, conv1d=conv1d, start_b=start[0], start_s=start[1])
    x = inputs(layer, 40)
    assert torch.equal(layer(x), layer.base_layer(x))
    assert not layer.get_delta_weight("default").any()


def assert_uniform(matrix, bound):
    """Entries within ±bound that fill the range."""
    largest = float(matrix.detach().abs().max())
    assert largest <= bound
    assert largest > 0.95 * bound, f"largest entry {largest}; expected about {bound}"
    # The variance of U(±bound) is bound²/3, here with at least 512 draws.
    assert float(matrix.detach().square().mean()) == pytest.approx(bound**2 / 3, rel=0.2)


@pytest.mark.parametrize("shape", [(128, 8, 8, 3), (128, 128, 8, 3), (256, 96, 4, 2)])
def test_every_module_starts_as_a_matrix_of_its_own(shape):
    _, d_in, r, n = shape
    layer = wrapped(*shape)
    A, B = layer.multilora_A["default"], layer.multilora_B["default"]
    assert_uniform(A, 1 / math.sqrt(d_in))
    for i in range(n):
        assert_uniform(B[:, i * r : (i + 1) * r], 1 / math.sqrt(r))
        if d_in > 8:
            assert_uniform(A[i * r : (i + 1) * r], 1 / math.sqrt(d_in))
    assert not torch.equal(B[:, :r], B[:, r : 2 * r])
    assert not layer.multilora_s["default"].any()


def test_the_check_of_the_start_sees_a_stacked_start():
    """Filling all modules at once takes d_out·r for the fan-in of B, or n·r: both too small."""
    stacked = nn.init.kaiming_uniform_(torch.empty(3, 128, 8), a=math.sqrt(5))
    with pytest.raises(AssertionError, match="largest entry"):
        assert_uniform(stacked, 1 / math.sqrt(8))
    side_by_side = nn.init.kaiming_uniform_(torch.empty(128, 24), a=math.sqrt(5))
    with pytest.raises(AssertionError, match="largest entry"):
        assert_uniform(side_by_side, 1 / math.sqrt(8))


def test_the_other_start_has_zero_b_and_given_s():
    layer = wrapped(128, 96, 8, 3, start_b="zero", start_s=0.5)
    assert not layer.multilora_B["default"].any()
    assert (layer.multilora_s["default"] == 0.5).all()
    assert_uniform(layer.multilora_A["default"], 1 / math.sqrt(96))


@pytest.mark.parametrize("start", [("kaiming", 0.0), ("zero", 1.0)])
def test_a_gradient_flows_from_either_start(start):
    layer = wrapped(9, 5, 2, 3, start_b=start[0], start_s=start[1])
    layer(inputs(layer, 4)).square().sum().backward()
    moves = "multilora_s" if start[0] == "kaiming" else "multilora_B"
    for part in ("multilora_A", "multilora_B", "multilora_s"):
        gradient = getattr(layer, part)["default"].grad
        assert bool(gradient.any()) == (part == moves)


@pytest.mark.parametrize("conv1d", [False, True])
def test_gradients_match_finite_differences(conv1d):
    layer = trained(4, 3, 2, 2, conv1d=conv1d)
    names = ["multilora_A.default", "multilora_B.default", "multilora_s.default"]
    values = [layer.get_parameter(name).detach().requires_grad_() for name in names]
    x = inputs(layer, 3).requires_grad_()

    def output(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, (x, *values))


@pytest.mark.parametrize("conv1d", [False, True])
@pytest.mark.parametrize("safe_merge", [False, True])
def test_merge_adds_the_update_and_unmerge_takes_it_out(conv1d, safe_merge):
    layer = trained(9, 5, 2, 3, conv1d=conv1d)
    x, before = inputs(layer, 4), layer.base_layer.weight.detach().clone()
    want = layer(x)
    layer.merge(safe_merge=safe_merge)
    assert layer.merged_adapters == ["default"]
    assert torch.equal(layer.base_layer.weight, before + layer.get_delta_weight("default"))
    assert_near(layer(x), want)
    assert torch.equal(layer(x), layer.base_layer(x))  # the update is not added a second time
    with pytest.warns(UserWarning, match="already"):
        layer.merge()
    assert layer.merged_adapters == ["default"]
    layer.unmerge()
    assert_near(layer.base_layer.weight.detach(), before)
    assert_near(layer(x), want)


def test_unmerging_nothing_warns():
    with pytest.warns(UserWarning, match="no adapter is merged"):
        trained(9, 5, 2, 3).unmerge()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_safe_merge_refuses_what_is_not_finite(bad):
    layer = trained(9, 5, 2, 3)
    before = layer.base_layer.weight.detach().clone()
    with torch.no_grad():
        layer.multilora_s["default"][2, 1] = bad
    with pytest.raises(ValueError, match="adapter 'default': NaN or Inf in the merged weights"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, before)
    assert not layer.merged
    layer.merge()  # what is asked for without the check is done
    assert not torch.isfinite(layer.base_layer.weight).all()


def test_a_disabled_layer_is_the_base_layer_even_after_merging():
    layer = trained(9, 5, 2, 3)
    x = inputs(layer, 4)
    base = layer.base_layer(x)
    assert not torch.equal(layer(x), base)
    layer.merge()
    layer.enable_adapters(False)
    assert_near(layer(x), base)
    assert not layer.merged
    layer.enable_adapters(True)
    assert not torch.equal(layer(x), base)


def test_dropout_falls_on_the_adapters_input_and_only_in_training():
    layer = trained(9, 5, 2, 3, lora_dropout=0.5)
    x = inputs(layer, 50)
    delta = slow_delta(layer)
    torch.manual_seed(2)
    dropped = layer.train()(x)
    torch.manual_seed(2)
    assert_near(dropped, layer.base_layer(x) + F.dropout(x, 0.5) @ delta.T)
    assert not torch.equal(dropped, layer(x))
    assert_near(layer.eval()(x), layer.base_layer(x) + x @ delta.T)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_budget_is_that_of_one_lora_and_the_scales(shape):
    d_out, d_in, r, n = shape
    layer = wrapped(*shape)
    count = sum(p.numel() for name, p in layer.named_parameters() if "multilora" in name)
    assert count == n * r * (d_out + d_in) + n * d_out


@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("conv1d", [False, True])
def test_a_half_precision_base_keeps_its_dtype(conv1d, adapter_dtype):
    layer = trained(9, 5, 2, 3, conv1d=conv1d, dtype=torch.bfloat16)
    for part in ("multilora_A", "multilora_B", "multilora_s"):
        getattr(layer, part).to(adapter_dtype)
    x = inputs(layer, 4, dtype=torch.bfloat16)
    got = layer(x)
    assert got.dtype == torch.bfloat16
    want = layer.base_layer(x).double() + x.double() @ slow_delta(layer).double().T
    eps = torch.finfo(torch.bfloat16).eps
    # A float32 adapter costs one rounding at the end; a bfloat16 one rounds at every product.
    factor = 1 if adapter_dtype == torch.float32 else 4
    bound = factor * eps * float(want.detach().abs().max())
    torch.testing.assert_close(got.double(), want, rtol=0, atol=bound)
    layer.merge()
    assert layer.base_layer.weight.dtype == torch.bfloat16
    torch.testing.assert_close(layer(x).double(), want, rtol=0, atol=4 * bound)


def test_adapters_add_up_and_are_chosen_by_name():
    layer = trained(9, 5, 2, 3)
    layer.update_layer("second", MultiLoraConfig(r=1, n=2, lora_alpha=3))
    nn.init.normal_(layer.multilora_s["second"])
    x = inputs(layer, 4)
    first, second = slow_delta(layer, "default"), slow_delta(layer, "second")
    assert_near(layer(x), layer.base_layer(x) + x @ first.T)
    layer.set_adapter("second")
    assert_near(layer(x), layer.base_layer(x) + x @ second.T)
    assert not layer.multilora_A["default"].requires_grad
    assert layer.multilora_A["second"].requires_grad
    layer.set_adapter(["default", "second"])
    both = layer.base_layer(x) + x @ (first + second).T
    assert_near(layer(x), both)
    layer.merge()
    assert layer.merged_adapters == ["default", "second"]
    assert_near(layer(x), both)


def test_a_deleted_adapter_leaves_nothing_behind():
    layer = trained(9, 5, 2, 3)
    layer.update_layer("second", MultiLoraConfig(r=1, n=2))
    with pytest.warns(UserWarning, match="Setting active adapter to second"):
        layer.delete_adapter("default")
    assert layer.active_adapters == ["second"]
    left = [*layer.state_dict(), *layer.n, *layer.r, *layer.scale, *layer.multilora_dropout]
    assert not [name for name in left if "default" in name]
