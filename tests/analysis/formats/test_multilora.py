"""MultiLoRA as the analysis reads it, against its definition and against the method itself."""

import json

import numpy as np
import pytest
import torch
from entries import reasons, scan
from peft import PeftModel, get_peft_model
from safetensors.numpy import load_file
from torch import nn

from analysis import CheckpointError, checkpoint
from analysis.formats import multilora
from analysis.update import Other
from multilora import MtlLoraConfig, MultiLoraConfig, RLoraConfig
from multilora.callback import updates as in_memory
from multilora.delta import save_as_lora

EPS = np.finfo(float).eps


@pytest.fixture
def write_multilora(write_adapter, rng):
    def write(n=3, r=2, d_out=6, d_in=5, drop=(), **config):
        shapes = {"A": (n * r, d_in), "B": (d_out, n * r), "s": (d_out, n)}
        tensors = {
            f"base_model.model.layers.0.q.multilora_{part}": rng.standard_normal(shape)
            for part, shape in shapes.items()
            if part not in drop
        }
        tensors["base_model.model.score.weight"] = np.ones((2, 2))
        config = {"peft_type": "MULTILORA", "n": n, "r": r, "lora_alpha": 8} | config
        return write_adapter(tensors, **config)

    return write


@pytest.mark.parametrize(("rslora", "scale"), [(False, 4.0), (True, 8 / 2**0.5)])
def test_multilora_is_the_sum_over_its_modules(write_multilora, rslora, scale):
    path = write_multilora(use_rslora=rslora)
    # What lies in lora/ is the same update again.
    (path / "lora").mkdir()
    (path / "lora" / "adapter_config.json").write_text("{}")
    entries = scan(path)
    raw = load_file(path / "adapter_model.safetensors")
    A, B, s = (raw[f"base_model.model.layers.0.q.multilora_{part}"] for part in "ABs")
    want = sum(
        scale * np.diag(s[:, i]) @ B[:, 2 * i : 2 * i + 2] @ A[2 * i : 2 * i + 2] for i in range(3)
    )
    update = entries["layers.0.q"]
    np.testing.assert_allclose(update.dense(), want, rtol=0, atol=20 * EPS * np.abs(want).max())
    assert (update.method, update.capacity, update.shape) == ("multilora", 5, (6, 5))
    assert isinstance(entries["base_model.model.score.weight"], Other)


def test_stacking_the_blocks_in_another_order_is_another_update(rng):
    """Negative control: scales that meet the wrong blocks are seen."""
    B, s = rng.standard_normal((6, 6)), rng.standard_normal((6, 3))
    right = np.hstack([s[:, [i]] * B[:, 2 * i : 2 * i + 2] for i in range(3)])
    np.testing.assert_array_equal(multilora.stack(B, s, 3), right)
    wrong = B * np.tile(s, 2)
    assert not np.allclose(multilora.stack(B, s, 3), wrong)


@pytest.mark.parametrize("part", ["A", "B", "s"])
def test_multilora_without_a_part_is_skipped(write_multilora, part):
    (reason,) = reasons(write_multilora(drop=part)).values()
    assert f"layers.0.q: has no multilora_{part}" in reason


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"n": None}, "n is None; expected a number"),
        ({"r": 1.5}, "r is 1.5; expected a whole number"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; expected a number"),
    ],
)
def test_multilora_with_a_broken_config_is_refused(write_multilora, config, words):
    with pytest.raises(CheckpointError, match=words):
        scan(write_multilora() if not config else _with_config(write_multilora(), **config))


def test_multilora_of_another_n_is_skipped(write_multilora):
    (reason,) = reasons(_with_config(write_multilora(), n=2)).values()
    assert "A is (6, 5), B is (6, 6), s is (6, 3); expected A (4, d_in)" in reason


def _with_config(path, **changes):
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return path


# Layers with ranks and scales of their own: every view of ΔW agrees


TARGETS = ["q", "v", "up"]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"q": nn.Linear(8, 8), "v": nn.Linear(8, 6), "up": nn.Linear(6, 8)})
            for _ in range(2)
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer["up"](torch.tanh(layer["v"](layer["q"](x))))
        return x


@pytest.fixture(
    params=[
        {"scale_per": "module"},
        {"rank_pattern": {"q": 1, r"layers\.1\.v": 4}},
        {"alpha_pattern": {"v": 5}, "rank_pattern": {"up": 3}, "use_rslora": True},
        {"scale_per": "module", "rank_pattern": {"q": 1}, "alpha_pattern": {"q": 3.5}},
    ],
    ids=str,
)
def model(request):
    """Adapted in float64, as if trained."""
    torch.manual_seed(0)
    config = MultiLoraConfig(r=2, n=3, lora_alpha=7, target_modules=TARGETS, **request.param)
    model = get_peft_model(Model().double(), config)
    for name, p in model.named_parameters():
        if "multilora_" in name:
            p.data = p.data.double()
        if "multilora_s" in name:
            nn.init.normal_(p)
    return model


def deltas(model):
    """ΔW by module, straight from the definition."""
    found = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "multilora_A"):
            A, B, s = (getattr(layer, f"multilora_{x}")["default"].detach() for x in "ABs")
            r, n = layer.r["default"], layer.n["default"]
            assert A.shape[0] == n * r
            total = 0
            for i in range(n):
                part = slice(i * r, (i + 1) * r)
                total = total + s[:, i : i + 1] * (B[:, part] @ A[part])
            found[name.removeprefix("base_model.model.")] = layer.scale["default"] * total
    assert len(found) == 6
    return found


def test_ranks_and_scales_are_those_of_the_patterns(model):
    config = model.peft_config["default"]
    layer = model.base_model.model.layers[1]["q"]
    r = config.rank_pattern.get("q", 2)
    alpha = config.alpha_pattern.get("q", 7)
    assert layer.r["default"] == r
    assert layer.scale["default"] == alpha / (r**0.5 if config.use_rslora else r)
    rows = {"module": 1, "feature": 8}[config.scale_per]
    assert layer.multilora_s["default"].shape == (rows, 3)


def test_it_starts_as_the_base_and_learns(model):
    x = torch.randn(4, 8, dtype=torch.float64)
    config = model.peft_config["default"]
    fresh = get_peft_model(Model().double(), config)
    with fresh.disable_adapter():
        want = fresh(x)
    assert torch.equal(fresh(x), want)
    fresh(x).square().sum().backward()
    scales = [p for name, p in fresh.named_parameters() if "multilora_s" in name]
    assert all(p.grad.abs().max() > 0 for p in scales)


def test_forward_delta_and_merge_agree(model):
    x = torch.randn(4, 8, dtype=torch.float64)
    with torch.no_grad():
        want = model(x)
        plain = Model().double()
        state = {k: v.clone() for k, v in model.state_dict().items()}
        for name, delta in deltas(model).items():
            W = state[f"base_model.model.{name}.base_layer.weight"] + delta
            bias = state[f"base_model.model.{name}.base_layer.bias"]
            plain.load_state_dict({f"{name}.weight": W, f"{name}.bias": bias}, strict=False)
        torch.testing.assert_close(plain(x), want, rtol=1e-12, atol=1e-12)
        model.merge_adapter()
        torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)


def test_file_analysis_memory_and_export_agree(model, tmp_path):
    want = {name: delta.numpy() for name, delta in deltas(model).items()}
    model.save_pretrained(tmp_path / "own")
    save_as_lora(model, tmp_path / "lora")
    for place in ("own", "lora"):
        found = {u.name: u for u in checkpoint.read(tmp_path / place)}
        assert found.keys() == want.keys()
        for name, update in found.items():
            np.testing.assert_allclose(update.dense(), want[name], rtol=0, atol=1e-12)
    for update in in_memory(model, {}, None):
        np.testing.assert_allclose(update.dense(), want[update.name], rtol=0, atol=1e-6)

    torch.manual_seed(0)
    again = Model().double()
    x = torch.randn(4, 8, dtype=torch.float64)
    for place in ("own", "lora"):
        loaded = PeftModel.from_pretrained(again, tmp_path / place, autocast_adapter_dtype=False)
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), model(x), rtol=1e-10, atol=1e-10)
        again = loaded.unload()


def test_a_rank_that_the_file_does_not_have_is_told(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    text = config.read_text()
    config.write_text(text.replace('"r": 2', '"r": 5'))
    with pytest.raises(CheckpointError, match="for n = 3, r = 5"):
        list(checkpoint.read(tmp_path))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale_per": "layer"}, "expected 'feature' or 'module'"),
        ({"rank_pattern": {"q": 0}}, "rank_pattern: 'q' is 0"),
        ({"rank_pattern": {"q": 1.5}}, "rank_pattern: 'q' is 1.5"),
    ],
)
def test_what_cannot_be_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        MultiLoraConfig(target_modules=TARGETS, **settings)


@pytest.mark.parametrize("method", ["rlora", "mtllora"])
def test_the_relatives_parts_in_memory_are_those_of_the_file(method, tmp_path):
    torch.manual_seed(0)
    config = {
        "rlora": RLoraConfig(r=2, n=3, target_modules=TARGETS),
        "mtllora": MtlLoraConfig(r=2, n=3, tasks=["sort", "swap"], target_modules=TARGETS),
    }[method]
    model = get_peft_model(Model(), config)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.3 * torch.randn_like(p)
    model.save_pretrained(tmp_path)
    found = {(u.name, u.part): u.dense() for u in in_memory(model, {}, None)}
    stored = {(u.name, u.part): u.dense() for u in checkpoint.read(tmp_path)}
    assert found.keys() == stored.keys()
    assert {part for _, part in found} == {
        "rlora": {"mean", "head1", "head2", "head3"},
        "mtllora": {"sort", "swap"},
    }[method]
    for key, delta in stored.items():
        np.testing.assert_allclose(found[key], delta, rtol=0, atol=1e-6)


def test_an_export_of_half_precision_is_folded_in_float32(tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(
        Model().bfloat16(),
        MultiLoraConfig(r=2, n=3, target_modules=TARGETS),
        autocast_adapter_dtype=False,
    )
    for name, p in model.named_parameters():
        if "multilora_s" in name:
            nn.init.normal_(p)
            assert p.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "own")
    save_as_lora(model, tmp_path / "lora")
    own, lora = (
        {u.name: u.dense() for u in checkpoint.read(tmp_path / place)} for place in ("own", "lora")
    )
    for name, delta in own.items():
        error = np.linalg.norm(lora[name] - delta) / np.linalg.norm(delta)
        assert error < 1e-6  # rounding s·B to bfloat16 would make it 2e-3
