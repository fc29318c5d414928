"""Fixtures of several formats: files with factors, and adapters of our own methods."""

import numpy as np
import pytest
from own_files import SHAPES, TASKS, N, R
from safetensors.numpy import save_file


@pytest.fixture
def write_file(tmp_path):
    def write(tensors, name="some.safetensors", **metadata):
        save_file(tensors, tmp_path / name, metadata=metadata or None)
        return tmp_path / name

    return write


@pytest.fixture
def product(rng):
    """B, A and their product, of a layer or of a kernel."""

    def factors(d_out=6, r=3, d_in=5, kernel=()):
        A = rng.standard_normal((r, d_in, *kernel)).astype("f4")
        B = rng.standard_normal((d_out, r, *(1 for _ in kernel))).astype("f4")
        return B, A, B.reshape(d_out, r).astype(float) @ A.reshape(r, -1).astype(float)

    return factors


@pytest.fixture
def write_own(write_adapter, rng):
    def write(method, drop=(), shapes=None, values=None, **config):
        tensors = {
            f"base_model.model.layers.0.q.{method}_{part}": rng.standard_normal(shape)
            for part, shape in (SHAPES[method] | (shapes or {})).items()
            if part not in drop
        }
        for part, value in (values or {}).items():
            tensors[f"base_model.model.layers.0.q.{method}_{part}"][:] = value
        tensors["base_model.model.score.weight"] = np.ones((2, 2))
        given = {"peft_type": method.upper(), "n": N, "r": R, "lora_alpha": 8}
        if method == "mtllora":
            given |= {"tasks": TASKS, "temperature": 0.5}
        return write_adapter(tensors, **given | config)

    return write
