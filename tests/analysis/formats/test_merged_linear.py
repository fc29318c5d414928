"""PEFT 0.2's MergedLinear against the grouped convolution that it is."""

import json

import numpy as np
import pytest
import torch
from entries import close
from torch import nn

from analysis import checkpoint


@pytest.mark.parametrize("enabled", [[True, False, True], [True, True, True], [False, True]])
def test_merged_linear_is_a_grouped_convolution(write_adapter, rng, enabled):
    """PEFT 0.2's own rule, layer.py of that version, written out."""
    m, n, r, rows, d_in = sum(enabled), len(enabled), 2, 5, 7
    A = rng.standard_normal((m * r, d_in)).astype("f4")
    B = rng.standard_normal((m * rows, r, 1)).astype("f4")
    key = "base_model.model.h.0.query_key_value.lora_{}.weight"
    tensors = {key.format("A"): A, key.format("B"): B}
    path = write_adapter(tensors, r=r, lora_alpha=6, enable_lora=enabled, fan_in_fan_out=True)
    after = nn.functional.conv1d(torch.from_numpy(A)[None], torch.from_numpy(B), groups=m)[0]
    want = np.zeros((n, rows, d_in))
    want[enabled] = 3.0 * after.numpy().reshape(m, rows, d_in)
    found = {u.part: u for u in checkpoint.read(path)}
    assert list(found) == [f"slice{i}" for i in range(n) if enabled[i]]
    for part, update in found.items():
        close(update, want[int(part.removeprefix("slice"))])


@pytest.mark.parametrize(
    "enabled", [[True, False, True], [True, True, True], [False, True, False], [True] * 4]
)
def test_peft_02_has_two_groups_whatever_is_enabled(write_adapter, rng, enabled):
    """lora.py of PEFT 0.2.0: nn.Conv1d(r·m, out // n · m, kernel_size=1, groups=2)."""
    m, n, r, rows, d_in = sum(enabled), len(enabled), 4, 6, 7
    A = rng.standard_normal((m * r, d_in)).astype("f4")
    conv = nn.Conv1d(m * r, m * rows, kernel_size=1, groups=2, bias=False)
    nn.init.normal_(conv.weight)
    key = "base_model.model.h.0.query_key_value.lora_{}.weight"
    tensors = {key.format("A"): A, key.format("B"): conv.weight.detach().numpy()}
    path = write_adapter(tensors, r=r, lora_alpha=12, enable_lora=enabled)
    want = np.zeros((n, rows, d_in))
    after = conv.double()(torch.from_numpy(A.astype(float))[None])[0]
    want[enabled] = 3.0 * after.detach().numpy().reshape(m, rows, d_in)
    found = {u.part: u for u in checkpoint.read(path)}
    assert list(found) == [f"slice{i}" for i in range(n) if enabled[i]]
    for part, update in found.items():
        close(update, want[int(part.removeprefix("slice"))])


@pytest.mark.parametrize(
    ("enabled", "words"),
    [
        ("yes", "enable_lora is 'yes'; expected a list"),
        ([True] * 5, "5 of 5"),
        ([True] * 3, "3 of 3"),
        ([False], "0 of 1"),
    ],
)
def test_merged_linear_that_does_not_fit_is_skipped(write_adapter, enabled, words):
    key = "base_model.model.q.lora_{}.weight"
    tensors = {key.format("A"): np.ones((4, 7)), key.format("B"): np.ones((10, 2, 1))}
    (entry,) = checkpoint.scan(write_adapter(tensors, r=2, enable_lora=enabled))
    assert words in entry.reason


def test_real_merged_linear_is_two_updates_a_module(real_adapter):
    import torch

    path = real_adapter("bloom560m-peft02-merged-linear-bin")
    updates = list(checkpoint.read(path))
    assert len(updates) == 48
    assert {(u.part, u.shape, u.capacity) for u in updates} == {
        ("slice0", (1024, 1024), 8),
        ("slice2", (1024, 1024), 8),
    }
    raw = torch.load(path / "adapter_model.bin", map_location="cpu", weights_only=True)
    key = f"base_model.model.{updates[1].name}.lora_{{}}.weight"
    A, B = raw[key.format("A")].double(), raw[key.format("B")].double()
    both = torch.nn.functional.conv1d(A[None], B, groups=2)[0].numpy()
    for update, want in zip(updates[:2], np.split(2.0 * both, 2), strict=True):
        np.testing.assert_allclose(update.dense(), want, rtol=0, atol=1e-12)


def test_merged_linear_in_a_bin_of_several_modules(tmp_path, rng):
    """A made-up twin of the real adapter: float16, slices 0 and 2 of a fused layer, no prefix."""
    torch.manual_seed(0)
    state, d_in, rows, r = {}, 6, 6, 2
    for i in range(2):
        key = f"base_model.model.transformer.h.{i}.self_attention.query_key_value.lora_{{}}.weight"
        state[key.format("A")] = torch.randn(2 * r, d_in).half()
        state[key.format("B")] = torch.randn(2 * rows, r, 1).half()
    torch.save(state, tmp_path / "adapter_model.bin")
    config = {"peft_type": "LORA", "r": r, "lora_alpha": 4, "enable_lora": [True, False, True]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = list(checkpoint.read(tmp_path))
    assert [(u.part, u.shape, u.capacity) for u in found] == 2 * [
        ("slice0", (rows, d_in), r),
        ("slice2", (rows, d_in), r),
    ]
    for i, update in enumerate(found):
        key = f"base_model.model.{update.name}.lora_{{}}.weight"
        A, B = state[key.format("A")].double(), state[key.format("B")].double()
        both = torch.nn.functional.conv1d(A[None], B, groups=2)[0].numpy()
        want = 2.0 * np.split(both, 2)[i % 2]
        np.testing.assert_allclose(update.dense(), want, rtol=0, atol=1e-12)
