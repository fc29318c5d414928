"""The device: chosen, restored, and its failures told; a GPU's are made up, there is none here."""

import numpy as np
import pytest
import torch
from made_updates import dense

from analysis import UserError
from analysis.numerics import decompose, device


@pytest.fixture
def as_if_cuda(monkeypatch):
    """Failures are told as those of a GPU."""
    monkeypatch.setattr(device, "current", lambda: device.CUDA)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


def test_the_device_is_that_of_the_block(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.current() == "cpu"
    with device.using("cuda"):
        with device.using("cpu"):
            assert device.current() == "cpu"
        assert device.current() == "cuda"
    assert device.current() == "cpu"


def test_without_a_gpu_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no GPU here"), device.using("cuda"):
        pass


def test_a_matrix_too_large_for_the_gpu_is_a_memory_error(as_if_cuda):
    with pytest.raises(MemoryError, match="Tried to allocate"), device.told():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")


def test_a_lost_gpu_is_one_line(as_if_cuda):
    words = r"the GPU is lost: CUDA error: unspecified.*; what is finished is kept"
    with pytest.raises(UserError, match=words), device.told():
        raise RuntimeError("CUDA error: unspecified launch failure\nCompile with …")


@pytest.mark.parametrize("error", [RuntimeError("of our own"), ValueError("CUDA")])
def test_other_errors_stay(as_if_cuda, error):
    with pytest.raises(type(error)) as caught, device.told():
        raise error
    assert caught.value is error


def test_on_the_cpu_nothing_is_turned():
    with pytest.raises(RuntimeError, match="CUDA error"), device.told():
        raise RuntimeError("CUDA error")


@pytest.mark.parametrize("method", ["auto", "svd"])
def test_matrices_go_to_the_device(rng, monkeypatch, method):
    """torch's "meta" computes nothing: a decomposition there shows that the matrix went there."""
    update = dense(rng.standard_normal((5, 4)))
    with device.using("cpu"):
        s = decompose.singular_values(update, method)
    np.testing.assert_allclose(s, np.linalg.svd(update.dense(), compute_uv=False), rtol=1e-12)
    monkeypatch.setattr(device, "current", lambda: "meta")
    with pytest.raises(NotImplementedError, match="meta"):
        decompose.singular_values(update, method)
