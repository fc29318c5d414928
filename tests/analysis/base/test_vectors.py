"""All singular vectors of W0 and their cache: damaged, shared, of another matrix."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis import CheckpointError
from analysis.base import landing
from analysis.base import vectors as base_vectors
from analysis.numerics import decompose

SHAPES = [(9, 5), (5, 9), (30, 30), (1, 7), (7, 1), (1, 1), (300, 40), (40, 300)]


# The decomposition of the base, and its cache


@pytest.mark.parametrize("shape", SHAPES)
def test_base_is_decomposed_in_float64_and_kept_in_float32(rng, shape, tmp_path):
    W0 = rng.standard_normal(shape).astype("f4")
    found = base_vectors.decompose_base(W0, tmp_path)
    U, s, V = found.left.M, found.s, found.right.M
    assert (U.dtype, s.dtype, V.dtype) == ("f4", "f8", "f4")
    np.testing.assert_allclose(s, np.linalg.svd(W0.astype(float))[1], rtol=1e-13)
    np.testing.assert_allclose(U * s @ V.T, W0, atol=1e-6 * s[0])
    assert found.rank == min(shape)


@pytest.fixture
def computed(monkeypatch):
    """How often a decomposition was computed."""
    calls, real = [], decompose.decomposition

    def counting(update):
        calls.append(update.shape)
        return real(update)

    monkeypatch.setattr(landing.decompose, "decomposition", counting)
    return calls


def same(a, b):
    return (
        np.array_equal(a.left.M, b.left.M)
        and np.array_equal(a.s, b.s)
        and np.array_equal(a.right.M, b.right.M)
        and (a.rank, a.error_bound) == (b.rank, b.error_bound)
    )


def test_cache_gives_what_was_computed_and_computes_once(rng, tmp_path, computed):
    W0 = rng.standard_normal((12, 9)).astype("f4")
    cache = tmp_path / "not" / "there"
    first = base_vectors.decompose_base(W0, cache)
    again = base_vectors.decompose_base(np.asfortranarray(W0), cache)
    assert len(computed) == 1
    assert same(first, again)
    assert same(first, base_vectors.decompose_base(W0))
    (file,) = cache.iterdir()
    size = file.stat().st_size
    assert abs(size - base_vectors.estimate([W0.shape])[1]) < 500


def test_cache_tells_contents_apart(rng, tmp_path, computed):
    W0 = rng.standard_normal((12, 12)).astype("f4")
    other = W0.copy()
    other[3, 4] = np.nextafter(other[3, 4], 9)
    matrices = [W0, other, W0.T, W0.reshape(6, 24), W0.astype("f8")]
    for W in matrices:
        base_vectors.decompose_base(W, tmp_path)
    assert len(computed) == len(list(tmp_path.iterdir())) == len(matrices)


DAMAGE = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-7],
    "no safetensors": lambda data: b"x" * len(data),
    "a flipped bit": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    "zeros": lambda data: data[:-300] + bytes(300),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_cache_is_computed_anew(rng, tmp_path, computed, damage):
    W0 = rng.standard_normal((12, 9)).astype("f4")
    first = base_vectors.decompose_base(W0, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    assert same(first, base_vectors.decompose_base(W0, tmp_path))
    assert len(computed) == 2
    assert same(first, base_vectors.decompose_base(W0, tmp_path))  # and mended
    assert len(computed) == 2
    assert list(tmp_path.iterdir()) == [file]


def test_cache_of_another_matrix_under_this_name_is_not_trusted(rng, tmp_path, computed):
    W0 = rng.standard_normal((12, 9)).astype("f4")
    first = base_vectors.decompose_base(W0, tmp_path)
    (file,) = tmp_path.iterdir()
    for tensors in (
        {"U": np.ones((12, 9), "f4"), "s": np.ones(9), "V": np.ones((9, 9), "f4")},
        {"U": np.ones((2, 2), "f4"), "s": np.ones(2), "V": np.ones((2, 2), "f4")},
        {"s": np.ones(9)},
    ):
        save_file(tensors, file)
        assert same(first, base_vectors.decompose_base(W0, tmp_path))
    assert len(computed) == 4


def test_cache_that_cannot_be_written_is_named(rng, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/.*cannot be written: .*; see --cache"):
        base_vectors.decompose_base(rng.standard_normal((3, 3)), tmp_path / "file")


def test_threads_may_share_a_cache(rng, tmp_path, monkeypatch):
    def slow(*arguments, **facts):
        save_file(*arguments, **facts)
        time.sleep(0.01)

    monkeypatch.setattr(base_vectors, "save_file", slow)
    W0 = rng.standard_normal((40, 40))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: base_vectors.decompose_base(W0, tmp_path), range(32)))
    assert all(same(found[0], other) for other in found)


def test_estimate_grows_with_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(base_vectors, "_probe", lambda: 0.1)
    assert base_vectors.estimate([]) == (0.0, 0)
    seconds, space = base_vectors.estimate([(512, 512)])
    assert 0.1 < seconds < 0.11
    assert space == 512 * 1024 * 4 + 512 * 8  # two matrices of float32, and s
    assert base_vectors.estimate([(512, 512)] * 3) == pytest.approx((3 * seconds, 3 * space))
    assert base_vectors.estimate([(64, 900)]) == base_vectors.estimate([(900, 64)])
    llama = [(4096, 4096)] * 128 + [(11008, 4096)] * 96
    assert base_vectors.estimate_line(llama, tmp_path) == (
        "full decomposition of 224 matrices of the base: about 4.1 h, and about 40.9 GB in"
        f" {tmp_path}; less if some are there already"
    )
    assert "1 matrix of the base: about 1 s, and about 2 MB" in base_vectors.estimate_line(
        [(512, 512)], tmp_path
    )


def test_estimate_is_measured():
    """Within a factor: the machine may be busy with something else."""
    shapes = [(700, 600), (300, 1200)]
    estimated, _ = base_vectors.estimate(shapes)
    begin = time.perf_counter()
    for shape in shapes:
        base_vectors.decompose_base(np.random.default_rng(0).standard_normal(shape))
    assert 0.1 < estimated / (time.perf_counter() - begin) < 10


def test_default_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert base_vectors.default_cache() == tmp_path / "multilora" / "base"
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        monkeypatch.setenv("HOME", "/home/someone")
        assert str(base_vectors.default_cache()) == "/home/someone/.cache/multilora/base"
