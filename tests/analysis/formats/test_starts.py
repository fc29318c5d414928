"""Starts that change the base: the update since the initial adapter."""

import numpy as np
import pytest
import torch
from entries import close, updates
from tiny_models import layers, matrix, tiny, trained
from torch import nn

from analysis import CheckpointError, checkpoint
from analysis.formats import Options, starts
from analysis.update import LowRankUpdate


def since_the_start(model, start, tmp_path):
    """The updates of a trained adapter, read with the one it started from; refused without."""
    model.save_pretrained(tmp_path / "initial")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(CheckpointError, match=f"init_lora_weights is '{start}'.*--initial DIR"):
        updates(tmp_path / "tuned")
    return updates(tmp_path / "tuned", initial=tmp_path / "initial")


@pytest.mark.parametrize("start", ["pissa", "olora", "pissa_niter_2"])
def test_starts_that_change_the_base_are_exact_with_the_initial_adapter(tmp_path, start):
    from peft import LoraConfig, get_peft_model

    W0 = {n: p.detach().clone() for n, p in tiny().named_parameters()}
    config = LoraConfig(
        r=4,
        lora_alpha=7,
        target_modules=["lin", "head"],
        init_lora_weights=start,
        rank_pattern={"head": 2},
    )
    torch.manual_seed(1)
    model = get_peft_model(tiny(), config)
    found = since_the_start(model, start, tmp_path)
    for (name, _), update in found.items():
        layer = layers(model)[name]
        assert isinstance(update, LowRankUpdate)
        after = layer.get_base_layer().weight.double() + layer.get_delta_weight("default").double()
        want = matrix(after - W0[f"{name}.weight"].double(), layer)
        # The base that PEFT kept is rounded to float32.
        np.testing.assert_allclose(update.dense(), want, rtol=0, atol=3e-6)


def calibrated(start, model):
    """The config of a start that looks at data first; PEFT's own preprocessing of the model."""
    from peft import LoraConfig, LoraGAConfig
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda
    from peft.tuners.lora.loraga import preprocess_loraga

    common = {"r": 4, "lora_alpha": 7, "target_modules": ["0", "2"], "init_lora_weights": start}
    x = torch.randn(64, 12)
    if start == "corda":
        config = LoraConfig(corda_config=CordaConfig(corda_method="kpm"), **common)
        preprocess_corda(model, config, run_model=lambda: model(x))
    else:
        config = LoraConfig(lora_ga_config=LoraGAConfig(), **common)
        preprocess_loraga(model, config, lambda: model(x).square().sum().backward())
    return config


@pytest.mark.parametrize("start", ["corda", "lora_ga"])
def test_starts_that_look_at_data_are_exact_with_the_initial_adapter(tmp_path, start):
    from peft import get_peft_model

    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10))
    W0 = {n: p.detach().clone() for n, p in base.named_parameters()}
    model = get_peft_model(base, calibrated(start, base))
    found = since_the_start(model, start, tmp_path)
    assert {name for name, _ in found} == {"0", "2"}
    for (name, _), update in found.items():
        layer = layers(model)[name]
        kept = layer.get_base_layer().weight.double()
        assert not torch.equal(kept, W0[f"{name}.weight"].double())  # the start changed it
        want = kept + layer.get_delta_weight("default").double() - W0[f"{name}.weight"].double()
        # The base that PEFT kept is rounded to float32.
        np.testing.assert_allclose(update.dense(), want.detach(), rtol=0, atol=3e-6)


def test_an_initial_adapter_of_other_modules_is_refused(write_adapter, lora_tensors):
    path = write_adapter(lora_tensors("q", "v"), "tuned", init_lora_weights="pissa")
    initial = write_adapter(lora_tensors("q"), "initial")
    entries = {e.name: e for e in checkpoint.scan(path, Options(initial=initial))}
    assert "v: is not in the initial adapter" in entries["v"].reason
    assert entries["q"].capacity == 8
    (initial.parent / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no adapter here"):
        list(checkpoint.scan(path, Options(initial=initial.parent / "empty")))


def test_the_initial_adapter_is_subtracted_from_adalora_too(tmp_path):
    from peft import AdaLoraConfig

    config = AdaLoraConfig(init_r=3, total_step=10, target_modules=["lin"])
    for name, std in (("initial", 0.1), ("tuned", 0.3)):
        trained(tiny(), config, std).save_pretrained(tmp_path / name)
    before, after = (updates(tmp_path / name)["lin", ""] for name in ("initial", "tuned"))
    found = updates(tmp_path / "tuned", initial=tmp_path / "initial")["lin", ""]
    close(found, after.dense() - before.dense())
    assert found.capacity == 6


def test_a_start_is_plain_in_capital_letters_too(write_adapter, lora_tensors):
    assert len(updates(write_adapter(lora_tensors("q"), init_lora_weights="MiCA"))) == 1


def test_each_side_is_taken_with_its_own_scale(rng):
    B, A, B0, A0 = (rng.standard_normal(shape) for shape in ((5, 2), (2, 4), (5, 3), (3, 4)))
    update = LowRankUpdate("q", B, A, 2.0, "style", "lora", "file")
    found = starts.subtract(update, LowRankUpdate("q", B0, A0, 0.5))
    close(found, 2.0 * B @ A - 0.5 * B0 @ A0)
    assert (found.name, found.part, found.method, found.source) == ("q", "style", "lora", "file")
    assert found.capacity == 4


def test_the_initial_adapter_has_the_scale_of_its_own_config(write_adapter, lora_tensors):
    first, last = lora_tensors("q"), lora_tensors("q")
    initial = write_adapter(first, "initial", lora_alpha=20, init_lora_weights="pissa")
    path = write_adapter(last, "tuned", lora_alpha=4, init_lora_weights="pissa")
    B0, A0 = (first[f"base_model.model.q.lora_{f}.weight"].astype(float) for f in "BA")
    B, A = (last[f"base_model.model.q.lora_{f}.weight"].astype(float) for f in "BA")
    close(updates(path, initial=initial)["q", ""], 1.0 * B @ A - 5.0 * B0 @ A0)


def test_shapes_that_differ_are_refused():
    update = LowRankUpdate("q", np.ones((5, 2)), np.ones((2, 4)), source="file")
    with pytest.raises(CheckpointError, match="file: q: is not in the initial adapter"):
        starts.subtract(update, None)
    other = LowRankUpdate("q", np.ones((6, 2)), np.ones((2, 4)))
    with pytest.raises(CheckpointError, match=r"q: is \(5, 4\), in the initial adapter \(6, 4\)"):
        starts.subtract(update, other)


def test_dora_with_an_initial_adapter_is_refused(write_adapter, lora_tensors):
    path = write_adapter(lora_tensors("q"), use_dora=True)
    with pytest.raises(CheckpointError, match="use_dora is set and --initial is given"):
        updates(path, initial=path)


def test_the_coarser_dtype_of_both_adapters_is_known(rng):
    single, half = np.dtype("f4"), np.dtype("f2")
    a, b = (
        LowRankUpdate("q", rng.standard_normal((9, 2)).astype(x), rng.standard_normal((2, 7)))
        for x in (single, half)
    )
    assert starts.subtract(a, b).stored == (half, np.float64)
    assert starts.subtract(a, a).stored == (single, np.float64)
