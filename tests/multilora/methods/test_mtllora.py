import copy
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
import transformers
from near import assert_near, inputs
from peft import get_peft_model, inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from multilora import MtlLoraConfig
from multilora.methods import mtllora
from multilora.methods.mtllora import MtlLoraLinear
from multilora.methods.task_ids import TaskIds

TASKS = ["one", "two", "three"]
# d_out, d_in, r, n: wide, tall, r above both sizes, one module of rank one.
SHAPES = [(9, 5, 2, 3), (3, 8, 2, 4), (4, 5, 7, 2), (7, 7, 1, 1)]
PARTS = ("A", "B", "lambda", "w")


def wrapped(d_out, d_in, r, n, conv1d=False, dtype=torch.float64, **config):
    """A layer with an adapter at its start."""
    torch.manual_seed(0)
    base = Conv1D(d_out, d_in) if conv1d else nn.Linear(d_in, d_out)
    nn.init.normal_(base.bias)
    config = MtlLoraConfig(**{"r": r, "n": n, "tasks": TASKS} | config)
    return MtlLoraLinear(base.to(dtype), "default", config)


def trained(*shape, **config):
    """The same, as if training had moved everything."""
    layer = wrapped(*shape, **config)
    for part in PARTS:
        p = getattr(layer, f"mtllora_{part}")["default"].data
        p += torch.randn_like(p)
    return layer


def slow_delta(layer, task, adapter="default"):
    """scale · Σᵢ softmax(w_t/τ)ᵢ Bᵢ Λ_t A, module by module, (d_out, d_in)."""
    A, B, lambdas, w = (getattr(layer, f"mtllora_{part}")[adapter].detach() for part in PARTS)
    L = lambdas[task] if lambdas.ndim == 3 else torch.diag(lambdas[task])
    e = torch.exp(w[task] / layer.temperature[adapter])
    r = layer.r[adapter]
    total = torch.zeros(layer.out_features, layer.in_features, dtype=A.dtype)
    for i in range(layer.n[adapter]):
        total += layer.scale[adapter] * e[i] / e.sum() * B[:, i * r : (i + 1) * r] @ L @ A
    return total


def on(layer, ids, x, repeat=False):
    """The layer's output where its rows belong to the tasks `ids`."""
    with layer.current.set(TaskIds.of(torch.tensor(ids), repeat)):
        return layer(x)


SETTINGS = [{}, {"diagonal": True}, {"temperature": 2.0}, {"use_rslora": True}, {"conv1d": True}]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_row_gets_the_update_of_its_task(shape, settings):
    layer = trained(*shape, lora_alpha=5, **settings)
    ids = [2, 0, 0, 1]
    for x in (inputs(layer, 4), inputs(layer, 4, 6), inputs(layer, 4, 2, 3)):
        want = torch.stack([x[i] @ slow_delta(layer, task).T for i, task in enumerate(ids)])
        assert want.norm() > 0.1
        assert_near(on(layer, ids, x) - layer.base_layer(x), want, 1000)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_factors_and_a_chosen_task_agree(shape, settings):
    layer = trained(*shape, lora_alpha=5, **settings)
    x = inputs(layer, 4, 6)
    for t, task in enumerate(TASKS):
        want = slow_delta(layer, t)
        delta = layer.get_delta_weight("default", task=task)
        assert_near(delta.T if settings.get("conv1d") else delta, want)
        left, right = layer.factors("default", scaled=False, task=task)
        assert (left.shape[1], right.shape[0]) == (shape[2], shape[2])
        assert_near((left @ right).detach() * layer.scale["default"], want)
        layer.fixed["default"] = task
        assert_near(layer(x), layer.base_layer(x) + x @ want.T)
        assert torch.equal(layer.get_delta_weight("default"), delta)


def test_tasks_have_updates_of_their_own():
    """Negative control: the checks above would see tasks mixed up."""
    layer = trained(9, 5, 2, 3)
    first, second = slow_delta(layer, 0), slow_delta(layer, 1)
    assert (first - second).norm() > 0.1 * first.norm()


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("conv1d", [False, True])
def test_the_start_is_the_base_layer_bit_for_bit(conv1d, diagonal):
    layer = wrapped(9, 5, 2, 3, conv1d=conv1d, diagonal=diagonal)
    x = inputs(layer, 40, 3)
    assert torch.equal(on(layer, [0, 1, 2, 0] * 10, x), layer.base_layer(x))
    assert not any(layer.get_delta_weight("default", task=task).any() for task in TASKS)


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_start_of_every_matrix(diagonal):
    tasks = [f"task {i}" for i in range(200)]
    layer = wrapped(64, 256, 8, 4, diagonal=diagonal, tasks=tasks)
    A, B, L, w = (getattr(layer, f"mtllora_{part}")["default"].detach() for part in PARTS)
    for matrix, bound in ((A, 1 / math.sqrt(256)), (w, 1 / math.sqrt(4))):
        assert 0.95 * bound < float(matrix.abs().max()) <= bound
        assert float(matrix.square().mean()) == pytest.approx(bound**2 / 3, rel=0.2)
    assert not B.any()
    one = torch.ones(8) if diagonal else torch.eye(8)
    assert L.shape == (200, *one.shape)
    assert all(torch.equal(of_task, one.double()) for of_task in L)


@pytest.mark.parametrize("diagonal", [False, True])
def test_gradients_match_finite_differences(diagonal):
    layer = trained(4, 3, 2, 2, diagonal=diagonal)
    names = [f"mtllora_{part}.default" for part in PARTS]
    values = [layer.get_parameter(name).detach().requires_grad_() for name in names]
    x = inputs(layer, 4, 2).requires_grad_()

    def output(x, *values):
        with layer.current.set(TaskIds.of(torch.tensor([0, 2, 2, 0]), False)):
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, (x, *values))


def steps(layer, count):
    """Train it on a random target for some steps; its Bᵢ, (n, d_out, r)."""
    x, target = inputs(layer, 6, 4), torch.randn(6, 4, layer.out_features, dtype=torch.float64)
    optimiser = torch.optim.AdamW((p for n, p in layer.named_parameters() if "mtl" in n), 1e-2)
    for _ in range(count):
        (on(layer, [0, 1, 2, 0, 1, 2], x) - target).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    return layer.mtllora_B["default"].detach().unflatten(1, (layer.n["default"], -1)).unbind(1)


def test_the_modules_part_from_one_another_in_training():
    first, second, third = steps(wrapped(9, 5, 2, 3), 10)
    least = 0.01 * float(first.norm())
    assert min((first - second).norm(), (second - third).norm(), (first - third).norm()) > least
    equal = wrapped(9, 5, 2, 3)
    nn.init.zeros_(equal.mtllora_w["default"])
    first, second, third = steps(equal, 10)  # negative control: equal weights keep them equal
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def test_dropout_falls_on_the_adapters_input_and_only_in_training():
    layer = trained(9, 5, 2, 3, lora_dropout=0.5)
    x = inputs(layer, 50)
    torch.manual_seed(2)
    dropped = on(layer.train(), [1] * 50, x)
    torch.manual_seed(2)
    delta = slow_delta(layer, 1)
    assert_near(dropped, layer.base_layer(x) + F.dropout(x, 0.5) @ delta.T, 1000)
    assert_near(on(layer.eval(), [1] * 50, x), layer.base_layer(x) + x @ delta.T, 1000)


def test_a_task_is_merged_and_taken_out_again():
    layer = trained(9, 5, 2, 3)
    before = layer.base_layer.weight.detach().clone()
    with pytest.raises(ValueError, match=r"has one update per task; expected one of .*set_task"):
        layer.merge()
    assert not layer.supports_lora_conversion()
    assert torch.equal(layer.base_layer.weight, before)
    layer.fixed["default"] = "two"
    layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, before + layer.get_delta_weight("default"))
    assert_near(layer.base_layer.weight.detach() - before, slow_delta(layer, 1), 1000)
    layer.unmerge()
    assert_near(layer.base_layer.weight.detach(), before)
    with pytest.raises(ValueError, match="unknown task 'four'; expected one of"):
        layer.get_delta_weight("default", task="four")


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([0.0, 1.0], r"multilora_task_ids is \(2,\), torch.float32; expected a LongTensor"),
        ([True, False], r"is \(2,\), torch.bool"),
        ([[0, 1]], r"is \(1, 2\), torch.int64; expected a LongTensor \(batch,\)"),
        ([], "expected a LongTensor"),
        ([0, -1], "holds -1; expected indices of tasks, from 0"),
        ([0, 3], "holds 3; expected 0 to 2, indices of 3 tasks"),
        ([0, 1, 2], "has 3 entries for 2 rows; expected one per row"),
        ([0], "has 1 entries for 2 rows; expected one per row"),
    ],
)
def test_ids_that_do_not_fit_are_refused(ids, words):
    layer = trained(9, 5, 2, 3)
    with pytest.raises(ValueError, match=words):
        on(layer, ids, inputs(layer, 2))


def test_ids_may_stand_for_several_rows_in_turn():
    layer = trained(9, 5, 2, 3)
    x = inputs(layer, 6)
    want = on(layer, [2, 2, 2, 0, 0, 0], x)
    assert torch.equal(on(layer, [2, 0], x, repeat=True), want)
    with pytest.raises(ValueError, match="has 4 entries for 6 rows; expected one per row"):
        on(layer, [0, 1, 2, 0], x, repeat=True)


@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16])
def test_a_half_precision_base_keeps_its_dtype(adapter_dtype):
    layer = trained(9, 5, 2, 3, dtype=torch.bfloat16)
    for part in PARTS:
        getattr(layer, f"mtllora_{part}").to(adapter_dtype)
    x = inputs(layer, 4, dtype=torch.bfloat16)
    got = on(layer, [1] * 4, x)
    assert got.dtype == torch.bfloat16
    want = layer.base_layer(x).double() + x.double() @ slow_delta(layer.double(), 1).T
    # A float32 adapter costs one rounding at the end; a bfloat16 one rounds at every product.
    bound = (1 if adapter_dtype == torch.float32 else 8) * torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(got.double(), want, rtol=0, atol=bound * float(want.abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_budget(shape):
    d_out, d_in, r, n = shape
    for diagonal in (False, True):
        layer = wrapped(*shape, diagonal=diagonal)
        count = sum(p.numel() for name, p in layer.named_parameters() if "mtllora" in name)
        own = 3 * (n + (r if diagonal else r * r))
        assert count == r * d_in + n * r * d_out + own


# In a model: how the ids reach the layers.


def llama(**config):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.2,
    }  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | config)).eval()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=32, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def moved(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "mtllora_" in name:
            p.data += 0.5 * torch.randn(p.shape, generator=generator).to(p)
    return model


def adapted(base=None, **config):
    config = {"r": 2, "n": 3, "tasks": TASKS, "target_modules": "all-linear"} | config
    return moved(get_peft_model(llama() if base is None else base, MtlLoraConfig(**config))).eval()


def tokens(rows=3):
    return torch.arange(rows * 8).reshape(rows, 8) * 7 % 50


IDS = torch.tensor([2, 0, 1])
KINDS = [None, "CAUSAL_LM"]


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("task_type", KINDS)
@torch.no_grad()
def test_a_mixed_batch_is_each_row_with_its_task(build, task_type):
    model = adapted(build(), task_type=task_type)
    got = model(input_ids=tokens(), multilora_task_ids=IDS).logits
    through_tuner = model.base_model(input_ids=tokens(), multilora_task_ids=IDS).logits
    assert torch.equal(through_tuner, got)
    with model.for_tasks(IDS):
        assert torch.equal(model(input_ids=tokens()).logits, got)
    rows = []
    for i, task in enumerate(IDS):
        model.set_task(TASKS[task])
        rows.append(model(input_ids=tokens()[i : i + 1]).logits)
    assert_near(torch.cat(rows), got, 1000)
    assert not torch.allclose(got, build()(tokens()).logits, atol=1e-2)
    swapped = adapted(build())(input_ids=tokens(), multilora_task_ids=IDS.flip(0)).logits
    assert not torch.allclose(swapped[0], got[0], atol=1e-2)


@pytest.mark.parametrize("task_type", KINDS)
def test_a_forgotten_or_a_wrong_id_is_said_and_nothing_stays(task_type):
    model = adapted(task_type=task_type)
    ids = {"multilora_task_ids": IDS}
    model(input_ids=tokens(), **ids)
    with pytest.raises(ValueError, match=r"needs the task of each row; pass multilora_task_ids"):
        model(input_ids=tokens())  # those of the batch before are gone
    for bad in (IDS + 1, IDS[:2], torch.tensor([0.5, 1, 1])):
        with pytest.raises(ValueError, match="multilora_task_ids"):
            model(input_ids=tokens(), multilora_task_ids=bad)
        assert model.base_model.current.ids is None
    with pytest.raises(TypeError):
        model(input_ids=tokens(), no_such_argument=torch.ones, labels=5, **ids)
    assert model.base_model.current.ids is None
    assert not model.get_base_model()._forward_pre_hooks


def test_a_chosen_task_and_ids_do_not_go_together():
    model = adapted(task_type="CAUSAL_LM")
    model.set_task("two")
    with pytest.raises(ValueError, match=r"set_task chose 'two' for all inputs.*set_task\(None\)"):
        model(input_ids=tokens(), multilora_task_ids=IDS)
    with pytest.raises(
        ValueError, match=r"unknown task 'four'; expected one of \['one', 'two', 'three'\]"
    ):
        model.set_task("four")
    with pytest.raises(ValueError, match="no adapter 'other'; expected one of"):
        model.set_task("one", adapter="other")
    model.merge_adapter()
    with pytest.raises(ValueError, match="'default' is merged; call unmerge_adapter first"):
        model.set_task("one")
    model.unmerge_adapter()
    model.set_task(None)
    model(input_ids=tokens(), multilora_task_ids=IDS)


def test_generation_wants_a_task_for_every_row():
    model = adapted(llama(), task_type="CAUSAL_LM")
    for given in ({"input_ids": tokens()}, {"inputs": tokens()}):
        with pytest.raises(
            ValueError, match=f"1 entries for {len(tokens())} rows; expected one per row"
        ):
            model.generate(**given, multilora_task_ids=IDS[:1], max_new_tokens=1, pad_token_id=0)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_return_sequences": 2}])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_generation_gives_every_row_its_task(build, options):
    model = adapted(build(), task_type="CAUSAL_LM")
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0} | options
    if "num_return_sequences" in options:
        options["num_beams"] = 2
    together = model.generate(input_ids=tokens(), multilora_task_ids=IDS, **options)
    assert model.base_model.current.ids is None
    with model.for_tasks(IDS):
        assert torch.equal(model.generate(input_ids=tokens(), **options), together)
    alone = []
    for i, task in enumerate(IDS):
        merged = copy.deepcopy(model)
        merged.set_task(TASKS[task])
        merged = merged.merge_and_unload()
        alone.append(merged.generate(tokens()[i : i + 1], **options))
    width = together.shape[1]
    alone = torch.cat([F.pad(row, (0, width - row.shape[1])) for row in alone])
    assert torch.equal(together, alone)
    other = model.generate(input_ids=tokens(), multilora_task_ids=IDS.flip(0), **options)
    assert other.shape != together.shape or not torch.equal(other, together)


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("task_type", KINDS)
def test_recomputation_in_backward_sees_the_same_tasks(build, task_type, reentrant):
    def gradients(checkpointed):
        model = adapted(build(), task_type=task_type, lora_dropout=0.1).train()
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        else:
            model.enable_input_require_grads()
        functions = [getattr(m, "_gradient_checkpointing_func", None) for m in model.modules()]
        torch.manual_seed(3)
        # Two batches before one backward: what the second leaves behind is not the first's.
        loss = sum(
            model(input_ids=tokens(), labels=tokens(), multilora_task_ids=ids).loss
            for ids in (IDS, IDS.flip(0))
        )
        loss.backward()
        assert functions == [
            getattr(m, "_gradient_checkpointing_func", None) for m in model.modules()
        ]
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    plain, checkpointed = gradients(False), gradients(True)
    assert len(plain) > 8
    for name, gradient in plain.items():
        assert gradient.any(), name
        assert torch.equal(gradient, checkpointed[name]), name


def test_without_the_closure_the_recomputation_would_fail(monkeypatch):
    """Negative control: what the check above is for."""
    monkeypatch.setattr(mtllora, "recomputed", lambda *_: nullcontext())
    model = adapted().train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    loss = model(input_ids=tokens(), labels=tokens(), multilora_task_ids=IDS).loss
    with pytest.raises(ValueError, match="needs the task of each row"):
        loss.backward()


def test_a_disabled_adapter_needs_no_ids_and_ignores_them():
    model = adapted(task_type="CAUSAL_LM")
    want = llama()(tokens()).logits
    with model.disable_adapter():
        assert torch.equal(model(input_ids=tokens()).logits, want)
        assert torch.equal(model(input_ids=tokens(), multilora_task_ids=IDS).logits, want)


def test_adapters_of_other_tasks_have_ids_of_their_own():
    model = adapted()
    model.add_adapter("other", MtlLoraConfig(r=1, n=2, tasks=["x"], target_modules=["q_proj"]))
    model.set_adapter("other")
    model(input_ids=tokens(), multilora_task_ids=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="holds 2; expected 0 to 0, indices of 1 tasks"):
        model(input_ids=tokens(), multilora_task_ids=IDS)


def test_the_layers_alone_are_not_put_into_a_model():
    """Without the tuner around it, nothing would take the ids out of the batch."""
    config = MtlLoraConfig(r=2, n=3, tasks=TASKS, target_modules=["q_proj"])
    with pytest.raises(ValueError, match="shared state"):
        inject_adapter_in_model(config, llama())
