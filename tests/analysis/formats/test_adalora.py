"""AdaLoRA, made by PEFT, against PEFT's own ΔW."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from entries import close, scan, updates
from tiny_models import layers, matrix, tiny, trained

from analysis import checkpoint
from analysis.numerics import decompose, turning
from analysis.update import Skipped


@pytest.mark.parametrize("pruned", [False, True])
def test_adalora_has_its_own_scale(tmp_path, pruned):
    from peft import AdaLoraConfig

    config = AdaLoraConfig(
        init_r=5, target_r=2, lora_alpha=3, total_step=10, target_modules=["lin", "turned"]
    )
    model = trained(tiny(), config)
    if pruned:
        keep = {"lin": [True, False, True, False, False], "turned": [False] * 5}
        pattern = {f"{name}.lora_E.default": mask for name, mask in keep.items()}
        model.peft_config["default"].rank_pattern = pattern
        for name, mask in keep.items():
            layers(model)[name].lora_E["default"].data[~torch.tensor(mask)] = 0
    want = {n: matrix(x.get_delta_weight("default"), x) for n, x in layers(model).items()}
    model.save_pretrained(tmp_path)
    found = updates(tmp_path)
    assert {name for name, _ in found} == want.keys()
    for (name, _), update in found.items():
        assert update.method == "peft:ADALORA"
        close(update, want[name])
    assert found["lin", ""].B.shape[1] == (2 if pruned else 5)


def test_adalora_without_its_diagonal_is_skipped(write_adapter):
    tensors = {
        "base_model.model.q.lora_A": np.ones((3, 4)),
        "base_model.model.q.lora_B": np.ones((5, 3)),
    }
    path = write_adapter(tensors, peft_type="ADALORA", init_r=3, lora_alpha=1)
    (entry,) = checkpoint.scan(path)
    assert isinstance(entry, Skipped)
    assert "q: has lora_A, lora_B; expected lora_A, lora_B, lora_E" in entry.reason


def test_real_adalora_has_a_scale_of_its_own(real_adapter):
    import torch

    path = real_adapter("peft-regression-adalora_mlp")
    raw = torch.load(path / "adapter_model.bin", map_location="cpu", weights_only=True)
    A, B, E = (raw[f"base_model.model.lin0.lora_{part}"].double().numpy() for part in "ABE")
    want = 8 / (12 + 1e-5) * B @ (E * A)
    np.testing.assert_allclose(scan(path)["lin0"].dense(), want, rtol=1e-14, atol=1e-15)


def test_adalora_of_known_numbers(write_adapter):
    """A made-up twin of the real adapter: B diag(E) A by hand, and the scale of the first rank."""
    B, E = np.array([[1.0, 2.0], [0.0, -1.0], [3.0, 1.0]]), np.array([[2.0], [-1.0]])
    A = np.array([[1.0, 0.0, 1.0, 0.0], [0.0, 2.0, 0.0, -2.0]])
    key = "base_model.model.lin0.lora_{}"
    tensors = {key.format(part): x for part, x in (("A", A), ("B", B), ("E", E))}
    path = write_adapter(tensors, peft_type="ADALORA", init_r=12, lora_alpha=8, r=8)
    want = 8 / (12 + 1e-5) * np.array([[2, -4, 2, 4], [0, 2, 0, -2], [6, -2, 6, 2]])
    (update,) = checkpoint.read(path)
    np.testing.assert_allclose(update.dense(), want, rtol=1e-14, atol=1e-15)


def test_adalora_knows_the_coarser_dtype_of_a_product(write_adapter, rng):
    for E, of_A in (("f4", "f4"), ("f2", "f2"), ("f8", "f4")):
        tensors = {
            "base_model.model.q.lora_A": rng.standard_normal((3, 40)).astype("f4"),
            "base_model.model.q.lora_B": rng.standard_normal((50, 3)).astype("f8"),
            "base_model.model.q.lora_E": rng.standard_normal((3, 1)).astype(E),
        }
        path = write_adapter(tensors, peft_type="ADALORA", init_r=3, lora_alpha=1)
        assert scan(path)["q"].stored == (np.float64, np.dtype(of_A))


def test_the_diagonal_turns_more_than_the_entries_of_a_factor(write_adapter, monkeypatch):
    """Its rounding is shared by all entries of a column, and does not average out."""
    ratios, without = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        exact = {"A": rng.standard_normal((5, 200)), "B": rng.standard_normal((300, 5))}
        exact["E"] = np.geomspace(1, 0.3, 5)[:, None]
        found = []
        for name, dtype in (("exact", "f8"), ("stored", "f4")):
            tensors = {f"base_model.model.q.lora_{part}": x for part, x in exact.items()}
            tensors["base_model.model.q.lora_E"] = exact["E"].astype(dtype)
            path = write_adapter(tensors, name, peft_type="ADALORA", init_r=5, lora_alpha=1)
            found.append(scan(path)["q"])
        a, b = (decompose.decomposition(update, "svd") for update in found)
        assert a.turning is None
        turned = np.linalg.norm(a.left.against(b.left)[1:, 0])
        monkeypatch.setattr(turning, "TURNED", 0.0)  # the exact bound, not the cheap one
        for update, into in ((found[1], ratios), (replace(found[1], inner=None), without)):
            into.append(turned / decompose.decomposition(update, "svd").turning.largest[0])
    assert max(ratios) <= 1
    assert np.median(ratios) > 0.02
    assert max(without) > 1.5 * max(ratios)  # control
