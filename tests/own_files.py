"""Sizes and tensors of small R-LoRA and MTL-LoRA checkpoints, for tests."""

import numpy as np
from safetensors.numpy import load_file

EPS = np.finfo(float).eps
N, R, D_OUT, D_IN, TASKS = 3, 2, 6, 7, ["sort", "MNLI (matched)"]
SHAPES = {
    "rlora": {
        "A": (R, D_IN), "B": (D_OUT, N * R), "R": (N, D_IN), "A0": (R, D_IN), "B0": (D_OUT, N * R),
    },
    "mtllora": {
        "A": (R, D_IN), "B": (D_OUT, N * R), "lambda": (2, R, R), "w": (2, N),
    },
}  # fmt: skip


def raw(path, method):
    stored = load_file(path / "adapter_model.safetensors")
    prefix = f"base_model.model.layers.0.q.{method}_"
    return {name.removeprefix(prefix): x for name, x in stored.items() if prefix in name}


def assert_near(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=100 * EPS * np.abs(want).max())


def block(B, i):
    return B[:, i * R : (i + 1) * R]
