import math

import pytest
import torch
import torch.nn.functional as F
from near import assert_near, inputs
from torch import nn
from transformers.pytorch_utils import Conv1D

from multilora import RLoraConfig
from multilora.methods.rlora import RLoraLinear

# d_out, d_in, r, n: wide, tall, r above both sizes, one head of rank one.
SHAPES = [(9, 5, 2, 3), (3, 8, 2, 4), (4, 5, 7, 2), (7, 7, 1, 1)]
PARTS = ("A", "B", "R", "A0", "B0")


def wrapped(d_out, d_in, r, n, conv1d=False, dtype=torch.float64, **config):
    """A layer with an adapter at its start."""
    torch.manual_seed(0)
    base = Conv1D(d_out, d_in) if conv1d else nn.Linear(d_in, d_out)
    nn.init.normal_(base.bias)
    return RLoraLinear(base.to(dtype), "default", RLoraConfig(r=r, n=n, **config))


def trained(*shape, **config):
    """The same, as if training had moved all that it can."""
    layer = wrapped(*shape, **config)
    for part in ("A", "B", "R"):
        p = getattr(layer, f"rlora_{part}")["default"].data
        p += torch.randn_like(p)
    return layer


def tensors(layer, adapter="default"):
    return [getattr(layer, f"rlora_{part}")[adapter].detach() for part in PARTS]


def slow_update(layer, x, fixed=False):
    """scale · (Σᵢ softmax(R x)ᵢ Bᵢ A x − mean B0ᵢ A0 x), row by row and head by head."""
    A, B, R, A0, B0 = tensors(layer)
    n, r, scale = layer.n["default"], layer.r["default"], layer.scale["default"]
    out = torch.zeros(len(x), layer.out_features, dtype=x.dtype)
    for row, values in enumerate(x):
        w = torch.full((n,), 1 / n, dtype=x.dtype) if fixed else torch.softmax(R @ values, 0)
        for i in range(n):
            head = slice(i * r, (i + 1) * r)
            out[row] += scale * w[i] * (B[:, head] @ A @ values)
            out[row] -= scale / n * (B0[:, head] @ A0 @ values)
    return out


@pytest.mark.parametrize("conv1d", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_mixes_the_heads_by_the_router(shape, conv1d):
    layer = trained(*shape, conv1d=conv1d, lora_alpha=5)
    x = inputs(layer, 6)
    assert_near(layer(x) - layer.base_layer(x), slow_update(layer, x), 1000)
    rows = inputs(layer, 2, 3)
    want = slow_update(layer, rows.reshape(6, -1)).reshape(2, 3, -1)
    assert_near(layer(rows) - layer.base_layer(rows), want, 1000)


@pytest.mark.parametrize("conv1d", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_weight_and_its_factors_are_the_mean_of_the_heads(shape, conv1d):
    layer = trained(*shape, conv1d=conv1d, lora_alpha=5)
    d_out, d_in, r, _ = shape
    want = slow_update(layer, torch.eye(d_in, dtype=torch.float64), fixed=True).T
    assert_near(layer.get_delta_weight("default"), want.T if conv1d else want)
    left, right = layer.factors("default", scaled=False)
    assert (left.shape, right.shape) == ((d_out, 2 * r), (2 * r, d_in))
    assert_near((left @ right).detach() * layer.scale["default"], want)


def test_another_router_is_another_function():
    """Negative control: the check of the forward pass sees the router."""
    layer = trained(9, 5, 2, 3)
    x = inputs(layer, 6)
    want = slow_update(layer, x)
    assert (want - slow_update(layer, x, fixed=True)).norm() > 0.1 * want.norm()


def test_the_scale_is_alpha_over_the_root_of_r():
    assert wrapped(9, 5, 4, 3, lora_alpha=6).scale["default"] == 3.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_start_is_the_base_layer_up_to_rounding(dtype):
    layer = wrapped(64, 48, 8, 3, dtype=dtype)
    x = inputs(layer, 40, dtype=dtype)
    A, B, _, A0, B0 = tensors(layer)
    head = layer.scale["default"] * B[:, :8] @ A
    assert layer.get_delta_weight("default").norm() <= 1e-6 * head.norm()
    assert not layer.get_delta_weight("default").any()  # to the last bit, as it is written
    assert torch.equal(A, A0)
    assert torch.equal(B, B0)
    added = layer(x) - layer.base_layer(x)
    assert added.norm() <= 100 * torch.finfo(dtype).eps * (x @ head.T).norm()


def test_the_released_codes_router_starts_off_the_base():
    layer = wrapped(64, 48, 8, 3, router_init="kaiming")
    x = inputs(layer, 40)
    A, B, R, _, _ = tensors(layer)
    head = layer.scale["default"] * B[:, :8] @ A
    assert (layer(x) - layer.base_layer(x)).norm() > 1e-2 * (x @ head.T).norm()
    assert 0.9 / math.sqrt(48) < float(R.abs().max()) <= 1 / math.sqrt(48)
    assert not wrapped(64, 48, 8, 3).rlora_R["default"].any()


@pytest.mark.parametrize("shape", [(256, 64, 16, 3), (64, 256, 16, 3), (128, 128, 4, 4)])
def test_the_start_has_its_variance(shape):
    d_out, d_in, r, n = shape
    A, B, _, _, _ = tensors(wrapped(*shape))
    gain = r**0.25 / 8
    assert float(A.std()) == pytest.approx(gain / math.sqrt(max(r, d_in)), rel=0.1)
    for i in range(n):
        head = B[:, i * r : (i + 1) * r]
        assert float(head.std()) == pytest.approx(gain / math.sqrt(max(d_out, r)), rel=0.1)
        assert not torch.equal(head, B[:, (i + 1) % n * r :][:, :r])
    # Normal, not uniform: some entries lie beyond what a uniform law of this variance has.
    assert float(A.abs().max()) > 1.75 * float(A.std())


@pytest.mark.parametrize("conv1d", [False, True])
def test_gradients_match_finite_differences(conv1d):
    layer = trained(4, 3, 2, 2, conv1d=conv1d)
    names = ["rlora_A.default", "rlora_B.default", "rlora_R.default"]
    values = [layer.get_parameter(name).detach().requires_grad_() for name in names]
    x = inputs(layer, 3).requires_grad_()

    def output(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, (x, *values))


def test_a_gradient_flows_to_all_but_the_start():
    layer = wrapped(9, 5, 2, 3)
    layer(inputs(layer, 4)).square().sum().backward()
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {
        "rlora_A.default", "rlora_B.default", "rlora_R.default",
        "base_layer.weight", "base_layer.bias",
    }  # fmt: skip
    for part in ("A", "B", "R"):
        assert getattr(layer, f"rlora_{part}")["default"].grad.any()
    assert not any("0" in name for name, _ in layer.named_parameters())


def test_dropout_draws_for_each_head_on_its_own():
    layer = trained(9, 5, 4, 3, lora_dropout=0.5).train()
    x = inputs(layer, 50)
    A, B, R, A0, B0 = tensors(layer)
    torch.manual_seed(2)
    got = layer(x) - layer.base_layer(x)
    torch.manual_seed(2)
    masks = F.dropout(torch.ones(50, 3, 4, dtype=torch.float64), 0.5)
    w = torch.softmax(x @ R.T, -1)
    heads = B.unflatten(1, (3, 4))
    want = torch.einsum("onr,bnr,br,bn->bo", heads, masks, x @ A.T, w)
    want = want - x @ A0.T @ B0.unflatten(1, (3, 4)).mean(1).T
    assert_near(got, layer.scale["default"] * want, 1000)
    assert not torch.equal(masks[:, 0], masks[:, 1])
    assert_near(layer.eval()(x) - layer.base_layer(x), slow_update(layer, x), 1000)


def test_what_depends_on_the_input_is_not_merged():
    layer = trained(9, 5, 2, 3)
    before = layer.base_layer.weight.detach().clone()
    with pytest.raises(ValueError, match=r"depends on the input.*fix_router\(\) to use the mean"):
        layer.merge()
    assert torch.equal(layer.base_layer.weight, before)
    assert not layer.supports_lora_conversion()
    layer.fixed["default"] = True
    x = inputs(layer, 6)
    want = layer(x)
    assert_near(want - layer.base_layer(x), slow_update(layer, x, fixed=True), 1000)
    layer.merge(safe_merge=True)
    assert_near(layer(x), want, 1000)
    assert layer.supports_lora_conversion()
    layer.unmerge()
    assert_near(layer.base_layer.weight.detach(), before)


def test_none_of_several_adapters_is_merged_where_one_cannot_be():
    layer = trained(9, 5, 2, 3)
    layer.update_layer("second", RLoraConfig(r=1, n=2))
    layer.set_adapter(["default", "second"])
    layer.fixed["default"] = True
    before = layer.base_layer.weight.detach().clone()
    with pytest.raises(ValueError, match="adapter 'second': the update of R-LoRA depends"):
        layer.merge()
    assert torch.equal(layer.base_layer.weight, before)
    assert not layer.merged


def test_a_deleted_adapter_leaves_nothing_behind():
    layer = trained(9, 5, 2, 3)
    layer.update_layer("second", RLoraConfig(r=1, n=2))
    with pytest.warns(UserWarning, match="Setting active adapter to second"):
        layer.delete_adapter("default")
    left = [*layer.state_dict(), *layer.n, *layer.scale, *layer.fixed, *layer.rlora_dropout]
    assert not [name for name in left if "default" in name]


@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16])
def test_a_half_precision_base_keeps_its_dtype(adapter_dtype):
    layer = trained(9, 5, 2, 3, dtype=torch.bfloat16)
    for part in PARTS:
        getattr(layer, f"rlora_{part}").to(adapter_dtype)
    x = inputs(layer, 4, dtype=torch.bfloat16)
    got = layer(x)
    assert got.dtype == torch.bfloat16
    want = layer.base_layer(x).double() + slow_update(layer.double(), x.double())
    # A float32 adapter costs one rounding at the end; a bfloat16 one rounds at every product.
    bound = (1 if adapter_dtype == torch.float32 else 8) * torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(got.double(), want, rtol=0, atol=bound * float(want.abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_budget(shape):
    d_out, d_in, r, n = shape
    layer = wrapped(*shape)
    count = sum(p.numel() for name, p in layer.named_parameters() if "rlora" in name)
    assert count == r * d_in + n * r * d_out + n * d_in
