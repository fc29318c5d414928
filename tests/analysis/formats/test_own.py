"""The code that the readers of this project's own methods share."""

import json
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from own_files import D_IN, D_OUT, SHAPES, N, R
from safetensors.numpy import load_file, save_file

from analysis import CheckpointError, checkpoint
from analysis.formats import mtllora, own
from analysis.numerics import decompose, subspaces
from analysis.update import LowRankUpdate, Skipped


@pytest.mark.parametrize(
    ("method", "part"), [(method, part) for method, parts in SHAPES.items() for part in parts]
)
def test_a_module_without_a_part_is_skipped(write_own, method, part):
    (skipped,) = [
        e for e in checkpoint.scan(write_own(method, drop=part)) if isinstance(e, Skipped)
    ]
    if part in ("A", "B") and method == "rlora":  # the letter is in the name of its start too
        part = f"{method}_"
    assert skipped.name == "layers.0.q"
    assert "layers.0.q: has no " in skipped.reason
    assert part in skipped.reason
    assert f"expected {method}_A, {method}_B, " in skipped.reason


@pytest.mark.parametrize(
    ("method", "shapes", "words"),
    [
        (
            "rlora",
            {"A0": (R, D_IN + 1)},
            r"A0 is \(2, 8\), .* expected A \(2, d_in\), B \(d_out, 6\)",
        ),
        ("rlora", {"R": (N - 1, D_IN)}, r"R is \(2, 7\), .* R \(3, d_in\)"),
        ("rlora", {"B": (D_OUT, R)}, r"B is \(6, 2\)"),
        ("rlora", {"B": (0, N * R), "B0": (0, N * R)}, r"B is \(0, 6\)"),
        ("mtllora", {"lambda": (2, R)}, r"lambda is \(2, 2\), .* lambda \(2, 2, 2\)"),
        ("mtllora", {"w": (3, N)}, r"w is \(3, 3\); .* w \(2, 3\) for n = 3, r = 2, 2 tasks"),
        ("mtllora", {"A": (R, D_IN, 1)}, r"A is \(2, 7, 1\)"),
    ],
)
def test_tensors_that_do_not_fit_are_skipped(write_own, method, shapes, words):
    path = write_own(method, shapes=shapes)
    (skipped,) = [e for e in checkpoint.scan(path) if isinstance(e, Skipped)]
    assert re.search(words, skipped.reason)


@pytest.mark.parametrize("method", list(SHAPES))
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"n": None}, "n is None; expected a number"),
        ({"r": 1.5}, "r is 1.5; expected a whole number"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; expected a number"),
    ],
)
def test_a_broken_config_is_refused(write_own, method, config, words):
    with pytest.raises(CheckpointError, match=words):
        list(checkpoint.scan(write_own(method, **config)))


@pytest.mark.parametrize("method", list(SHAPES))
def test_numbers_that_are_none_are_found_without_a_warning(write_own, method):
    path = write_own(method, values={"A": np.inf, "B": np.nan})
    for update in checkpoint.read(path):
        with pytest.raises(CheckpointError, match=r"NaN or Inf|not finite"):
            decompose.singular_values(update)


def test_a_tensor_that_stands_twice_is_refused(write_own):
    path = write_own("rlora")
    file = path / "adapter_model.safetensors"
    stored = load_file(file)
    stored["layers.0.q.rlora_A"] = stored["base_model.model.layers.0.q.rlora_A"]
    save_file(stored, file)
    with pytest.raises(CheckpointError, match="appears twice, under two names"):
        list(checkpoint.scan(path))


def test_free_sizes_are_one_size_each():
    expected = {"A": (2, "d"), "B": ("d", 3)}
    assert own.mismatch({"A": (2, 5), "B": (5, 3)}, expected) is None
    assert "A is (2, 5), B is (4, 3); expected A (2, d), B (d, 3)" in str(
        own.mismatch({"A": (2, 5), "B": (4, 3)}, expected)
    )


def test_the_commands_read_them(write_own):
    for method, rows in (("rlora", 4), ("mtllora", 2)):
        path = write_own(method)
        command = [sys.executable, "-m", "analysis.spectrum", str(path), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        table = json.loads(done.stdout)["rows"]
        assert [row["method"] for row in table] == [method] * rows
        assert len({row["key"] for row in table}) == rows
        command = [sys.executable, "-m", "analysis.similarity", str(path), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        parts = {"rlora": ("#head1", "#head3"), "mtllora": ("#sort", "#MNLI")}[method]
        assert all(part in done.stdout for part in parts), done.stderr
        assert "#mean" not in done.stdout


@pytest.mark.parametrize("method", list(SHAPES))
def test_reading_needs_no_torch(write_own, method):
    code = (
        "import sys; from analysis import checkpoint; "
        f"print(len(list(checkpoint.read({str(write_own(method))!r})))); "
        "assert not {'torch', 'scipy', 'pandas', 'peft'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == {"rlora": 4, "mtllora": 2}[method]


# The dtype that numbers were stored in

BF16 = np.dtype(ml_dtypes.bfloat16)
F64 = np.dtype(np.float64)
METHODS = {
    "multilora": {"A": (6, 70), "B": (90, 6), "s": (90, 3)},
    "multilora by module": {"A": (6, 70), "B": (90, 6), "s": (1, 3)},
    "rlora": {"A": (4, 70), "B": (90, 12), "R": (3, 70), "A0": (4, 70), "B0": (90, 12)},
    "mtllora": {"A": (4, 70), "B": (90, 12), "lambda": (2, 4, 4), "w": (2, 3)},
}
CONFIGS = {
    "multilora": {"n": 3, "r": 2},
    "multilora by module": {"n": 3, "r": 2, "scale_per": "module"},
    "rlora": {"n": 3, "r": 4},
    "mtllora": {"n": 3, "r": 4, "tasks": ["a", "b"], "temperature": 0.5},
}


def both(write_adapter, rng, method, coarse):
    """One adapter whose tensors are stored in float64, and in `coarse` as far as it says."""
    exact = {part: rng.standard_normal(shape) for part, shape in METHODS[method].items()}
    if method == "rlora":  # trained a little: A and B are near their start
        exact |= {part: exact[f"{part}0"] + 0.1 * exact[part] for part in "AB"}
    peft_type, paths = method.split()[0], []
    for name, dtypes in (("exact", {}), ("coarse", coarse)):
        tensors = {
            f"base_model.model.q.{peft_type}_{part}": x.astype(dtypes.get(part, x.dtype))
            for part, x in exact.items()
        }
        config = {"peft_type": peft_type.upper(), "lora_alpha": 4} | CONFIGS[method]
        paths.append(write_adapter(tensors, f"{method}-{name}", **config))
    return paths


@pytest.mark.parametrize("method", METHODS)
def test_factors_know_the_coarsest_dtype_that_they_come_from(write_adapter, rng, method):
    parts = METHODS[method]
    for coarse in (dict.fromkeys(parts, BF16), {"B": np.dtype("f4"), "A": BF16}):
        exact, stored = both(write_adapter, rng, method, coarse)
        assert {u.stored for u in checkpoint.read(exact)} == {(F64, F64)}
        assert {u.stored for u in checkpoint.read(stored)} == {(BF16, BF16)}


@pytest.mark.parametrize("method", METHODS)
def test_no_direction_is_turned_by_more_than_the_bound(write_adapter, method):
    """R-LoRA's factors are differences; one number of MTL-LoRA's Λ, or one s, turns much."""
    ratios = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        exact, stored = both(write_adapter, rng, method, dict.fromkeys(METHODS[method], BF16))
        for a, b in zip(checkpoint.read(exact), checkpoint.read(stored), strict=True):
            x, y = decompose.decomposition(a, "svd"), decompose.decomposition(b, "svd")
            determined = ~subspaces.undetermined(y)
            for side in subspaces.SIDES:
                C = getattr(x, side).against(getattr(y, side))
                for i in np.flatnonzero(determined) + 1:
                    cosine = np.linalg.svd(C[:i, :i], compute_uv=False)[-1]
                    ratios.append(np.sqrt(max(0.0, 1 - cosine**2)) / y.turning.largest[i - 1])
    assert len(ratios) > 20
    assert max(ratios) <= 1
    assert np.median(ratios) > 0.05


def test_updates_come_one_at_a_time(write_own, monkeypatch):
    """All tasks of a module at once were gigabytes."""
    made = []
    inner = mtllora.inner
    monkeypatch.setattr(mtllora, "inner", lambda *args: made.append(1) or inner(*args))
    entries = checkpoint.scan(write_own("mtllora"))
    next(entry for entry in entries if isinstance(entry, LowRankUpdate))
    assert len(made) == 1
    assert len(list(entries)) == 1
    assert len(made) == 2


def test_a_small_file_of_many_updates_is_refused(write_own):
    tasks = [str(i) for i in range(600)]
    shapes = {"lambda": (600, R, R), "w": (600, N)}
    with pytest.raises(CheckpointError, match=r"makes 600 updates of .* numbers; expected"):
        list(checkpoint.scan(write_own("mtllora", shapes=shapes, tasks=tasks)))


def test_a_small_file_of_large_updates_is_refused(write_own):
    """250 kB, of which 400 updates of 50,000 rows would be made."""
    tasks = [str(i) for i in range(400)]
    shapes = {"B": (50_000, 1), "A": (1, 2), "lambda": (400, 1), "w": (400, 1)}
    path = write_own("mtllora", shapes=shapes, tasks=tasks, n=1, r=1, diagonal=True)
    (skipped,) = (e for e in checkpoint.scan(path) if isinstance(e, Skipped))
    assert "its updates have 20000401 numbers, made of" in skipped.reason
    assert own.too_large(own.SMALL, own.WORK, 1) is None
    assert own.too_large(own.SMALL, own.WORK + 1, 1) is not None


def test_diagonals_and_whole_matrices_give_one_inner(rng):
    heads, L = rng.standard_normal((6, 3, 2)), rng.standard_normal(2)
    args = heads, heads.sum(axis=1)
    np.testing.assert_allclose(
        mtllora.inner(*args, L, 1.5), mtllora.inner(*args, np.diag(L), 1.5), rtol=1e-10
    )
