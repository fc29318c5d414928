"""R-LoRA and MTL-LoRA as the analysis reads them."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from analysis import CheckpointError, checkpoint
from analysis.formats import mtllora, own
from analysis.numerics import decompose
from analysis.pairs import meeting as pairing
from analysis.update import LowRankUpdate, Other, Skipped

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


@pytest.fixture
def write(write_adapter, rng):
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


def raw(path, method):
    stored = load_file(path / "adapter_model.safetensors")
    prefix = f"base_model.model.layers.0.q.{method}_"
    return {name.removeprefix(prefix): x for name, x in stored.items() if prefix in name}


def assert_near(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=100 * EPS * np.abs(want).max())


def block(B, i):
    return B[:, i * R : (i + 1) * R]


def test_rlora_is_its_mean_and_its_heads_relative_to_their_start(write):
    path = write("rlora")
    entries = list(checkpoint.scan(path))
    t, scale = raw(path, "rlora"), 8 / R**0.5
    parts = {e.part: e for e in entries if isinstance(e, LowRankUpdate)}
    assert list(parts) == ["mean", "head1", "head2", "head3"]
    total = 0
    for i in range(N):
        left = scale * np.hstack([block(t["B"], i), -block(t["B0"], i)])
        want = left @ np.vstack([t["A"], t["A0"]])
        assert_near(parts[f"head{i + 1}"].dense(), want)
        total = total + want / N
    assert_near(parts["mean"].dense(), total)
    for part, update in parts.items():
        assert (update.name, update.method, update.capacity) == ("layers.0.q", "rlora", 2 * R)
        assert update.of_parts == (part == "mean")
    assert [e.name for e in entries if isinstance(e, Other)] == ["base_model.model.score.weight"]


def test_rlora_that_was_not_trained_has_no_update(write):
    path = write("rlora")
    file = path / "adapter_model.safetensors"
    stored = load_file(file)
    for part in "AB":
        name = f"base_model.model.layers.0.q.rlora_{part}"
        stored[f"{name}0"] = stored[name]
    save_file(stored, file)
    for update in checkpoint.read(path):
        assert not update.dense().any()
        assert not decompose.singular_values(update).any()


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(("rslora", "scale"), [(False, 4.0), (True, 8 / 2**0.5)])
def test_mtllora_has_an_update_for_each_task(write, diagonal, rslora, scale):
    shapes = {"lambda": (2, R)} if diagonal else {}
    path = write("mtllora", shapes=shapes, diagonal=diagonal, use_rslora=rslora, temperature=0.7)
    # What lies in lora/ is the same updates again.
    for name in ("lora", "lora/sort"):
        (path / name).mkdir()
        (path / name / "adapter_config.json").write_text("{}")
    assert [run.path for run in checkpoint.runs([path])] == [path]
    updates = {update.part: update for update in checkpoint.read(path)}
    assert list(updates) == TASKS
    t = raw(path, "mtllora")
    for i, task in enumerate(TASKS):
        e = np.exp(t["w"][i] / 0.7)
        L = np.diag(t["lambda"][i]) if diagonal else t["lambda"][i]
        want = sum(scale * e[j] / e.sum() * block(t["B"], j) @ L @ t["A"] for j in range(N))
        assert_near(updates[task].dense(), want)
        assert (updates[task].method, updates[task].capacity) == ("mtllora", R)
        assert not updates[task].of_parts


def test_weights_of_any_size_sum_to_one():
    w = mtllora.softmax(np.array([[1e4, 0.0, -1e4], [3.0, 3.0, 3.0]]))
    np.testing.assert_allclose(w, [[1, 0, 0], [1 / 3] * 3], rtol=1e-15)


@pytest.mark.parametrize(
    ("method", "part"), [(method, part) for method, parts in SHAPES.items() for part in parts]
)
def test_a_module_without_a_part_is_skipped(write, method, part):
    (skipped,) = [e for e in checkpoint.scan(write(method, drop=part)) if isinstance(e, Skipped)]
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
def test_tensors_that_do_not_fit_are_skipped(write, method, shapes, words):
    path = write(method, shapes=shapes)
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
def test_a_broken_config_is_refused(write, method, config, words):
    with pytest.raises(CheckpointError, match=words):
        list(checkpoint.scan(write(method, **config)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"tasks": None}, "tasks is None; expected a list of names that differ"),
        ({"tasks": []}, "tasks is \\[\\]"),
        ({"tasks": ["a", "a"]}, "names that differ"),
        ({"tasks": ["a", 2]}, "names that differ"),
        ({"temperature": 0}, "temperature is 0; expected a number above 0"),
        ({"temperature": None}, "temperature is None; expected a number"),
    ],
)
def test_tasks_and_temperature_have_to_be_there(write, config, words):
    with pytest.raises(CheckpointError, match=words):
        list(checkpoint.scan(write("mtllora", **config)))


@pytest.mark.parametrize("method", list(SHAPES))
def test_numbers_that_are_none_are_found_without_a_warning(write, method):
    path = write(method, values={"A": np.inf, "B": np.nan})
    for update in checkpoint.read(path):
        with pytest.raises(CheckpointError, match=r"NaN or Inf|not finite"):
            decompose.singular_values(update)


def test_a_tensor_that_stands_twice_is_refused(write):
    path = write("rlora")
    file = path / "adapter_model.safetensors"
    stored = load_file(file)
    stored["layers.0.q.rlora_A"] = stored["base_model.model.layers.0.q.rlora_A"]
    save_file(stored, file)
    with pytest.raises(CheckpointError, match="stands there twice, under two names"):
        list(checkpoint.scan(path))


def test_free_sizes_are_one_size_each():
    expected = {"A": (2, "d"), "B": ("d", 3)}
    assert own.against({"A": (2, 5), "B": (5, 3)}, expected) is None
    assert "A is (2, 5), B is (4, 3); expected A (2, d), B (d, 3)" in str(
        own.against({"A": (2, 5), "B": (4, 3)}, expected)
    )


def test_the_mean_is_not_compared_with_the_heads_it_is_made_of(write):
    (run,) = checkpoint.runs([write("rlora")])
    updates = list(checkpoint.read(run.path))
    assert [update.part for update in pairing.parts(updates)] == ["head1", "head2", "head3"]
    # Between two runs it meets the other's mean.
    meeting = [(a.part, b.part) for a, b in pairing.meeting(updates, updates, lambda u: u.part)[0]]
    assert ("mean", "mean") in meeting
    assert len(meeting) == 4


def test_the_commands_read_them(write):
    for method, rows in (("rlora", 4), ("mtllora", 2)):
        path = write(method)
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
def test_reading_needs_no_torch(write, method):
    code = (
        "import sys; from analysis import checkpoint; "
        f"print(len(list(checkpoint.read({str(write(method))!r})))); "
        "assert not {'torch', 'scipy', 'pandas', 'peft'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == {"rlora": 4, "mtllora": 2}[method]
