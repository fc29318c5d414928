"""The code that the readers of this project's own methods share."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from own_files import D_IN, D_OUT, SHAPES, N, R
from safetensors.numpy import load_file, save_file

from analysis import CheckpointError, checkpoint
from analysis.formats import own
from analysis.numerics import decompose
from analysis.update import Skipped


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
