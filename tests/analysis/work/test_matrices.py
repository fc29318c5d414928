"""Dense updates, decomposed in order: kept, read ahead, killed at any moment and gone on with."""

import shutil
import threading
import weakref

import numpy as np
import pytest
from killed import at_every_call
from made_updates import dense, low_rank
from safetensors.numpy import save_file

from analysis import CheckpointError, spectrum
from analysis.checkpoint import Run
from analysis.numerics import decompose, parallel
from analysis.update import DenseUpdate, Other, Skipped
from analysis.work import matrices
from analysis.work.kept import DIRECTORY, Kept
from analysis.work.matrices import Matrices

FILES = ("spectrum.csv", "spectra.safetensors", "record.json")


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, "run", None)


@pytest.fixture
def updates(rng):
    return [dense(rng.standard_normal((5 + i, 4)), f"layers.{i}.q") for i in range(4)]


@pytest.fixture
def models(tmp_path, rng):
    """A base and a full fine-tune of three matrices."""
    W0 = {f"layers.{i}.q.weight": rng.standard_normal((6, 5)).astype("f4") for i in range(3)}
    W = {name: x + rng.standard_normal(x.shape).astype("f4") for name, x in W0.items()}
    for name, tensors in (("base", W0), ("tuned", W)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    return tmp_path / "tuned", tmp_path / "base"


def test_the_entries_come_in_order_and_as_they_were_decomposed(run, updates):
    entries = [Other("bias", "1-D"), *updates, Skipped("v", "why"), low_rank(np.eye(3), np.eye(3))]
    found = list(Matrices().in_order(run, entries))
    assert found[0] is entries[0]
    assert found[5] is entries[5]
    for update, (same, result) in zip(updates, found[1:5], strict=True):
        assert same.name == update.name
        np.testing.assert_array_equal(result.s, decompose.spectrum(update).s)
    assert found[6][1].algorithm == "cholesky"


@pytest.mark.parametrize("method", ["auto", "svd"])
def test_a_spectrum_is_a_piece_and_back(rng, method):
    result = decompose.spectrum(dense(rng.standard_normal((6, 4))), method)
    again = matrices.spectrum_of(matrices.piece(result))
    assert again.s.tobytes() == result.s.tobytes()
    assert (again.algorithm, again.error_bound) == (result.algorithm, result.error_bound)
    assert (again.floor, again.noise) == (result.floor, result.noise)


def test_what_is_kept_is_neither_read_nor_computed_again(run, updates, tmp_path):
    def of(where):
        return Matrices(kept=Kept(where, lambda: {"command": "c"}))

    first = list(of(tmp_path / "out").in_order(run, updates))
    unreadable = [
        DenseUpdate(update.name, update.shape, lambda: pytest.fail("read")) for update in updates
    ]
    again = list(of(tmp_path / "out").in_order(run, unreadable))
    assert [s.s.tobytes() for _, s in again] == [s.s.tobytes() for _, s in first]


def test_one_matrix_is_read_ahead_and_no_more(run, rng):
    gate, held, most = threading.Lock(), [], []

    def load():
        W = rng.standard_normal((5, 4))
        with gate:
            held.append(None)
            most.append(len(held))
        weakref.finalize(W, held.pop)
        return W

    updates = [DenseUpdate(f"{i}", (5, 4), load) for i in range(8)]
    assert len(list(Matrices().in_order(run, updates))) == 8
    assert max(most) == 2
    assert held == []


def test_what_cannot_be_read_is_told_in_its_place(run, updates):
    def no_room():
        raise MemoryError

    def cut():
        raise CheckpointError("a.safetensors: q: the file was cut short")

    entries = [updates[0], DenseUpdate("q", (9, 9), no_room, source="a.safetensors"),
               DenseUpdate("k", (9, 9), cut), updates[1]]  # fmt: skip
    found = list(Matrices().in_order(run, entries))
    assert found[1].reason == "a.safetensors: q: does not fit into memory"
    assert found[2].reason == "a.safetensors: q: the file was cut short"
    assert [result[0].name for result in (found[0], found[3])] == ["layers.0.q", "layers.1.q"]


def test_a_matrix_with_nan_is_skipped_and_the_others_are_kept(run, updates, tmp_path):
    bad = dense(np.full((4, 4), np.nan), "layers.9.q")
    kept = Kept(tmp_path / "out", lambda: {"command": "c"})
    found = list(Matrices(kept=kept).in_order(run, [updates[0], bad, updates[1]]))
    assert "layers.9.q: ΔW holds NaN or Inf" in found[1].reason
    assert kept.count() == 2


def main_of(models, out, *more):
    tuned, base = models
    return spectrum.main([str(tuned), "--base", str(base), "--out", str(out), *more])


def test_killed_at_any_moment_the_command_ends_with_the_same_bytes(models, tmp_path, capsys):
    out = tmp_path / "out"
    with parallel.reproducible():
        main_of(models, out)
        whole = {name: (out / name).read_bytes() for name in FILES}
        shutil.rmtree(out)
        kills = sum(1 for _ in at_every_call(lambda: main_of(models, out), below=out))
        assert kills > 15
        assert {name: (out / name).read_bytes() for name in FILES} == whole
        assert sorted(path.name for path in out.iterdir()) == sorted(FILES)


def test_a_full_disk_at_any_moment_loses_nothing(models, tmp_path, capsys):
    out = tmp_path / "out"
    with parallel.reproducible():
        main_of(models, out)
        whole = {name: (out / name).read_bytes() for name in FILES}
        for _ in at_every_call(lambda: main_of(models, out), below=out, full=True):
            assert {name: (out / name).read_bytes() for name in FILES} == whole


def test_the_command_goes_on_and_notices_another_method(models, tmp_path, capsys, monkeypatch):
    out, done = tmp_path / "out", []
    real = decompose.spectrum

    def killed(update, method="auto"):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(update.name)
        return real(update, method)

    monkeypatch.setattr(decompose, "spectrum", killed)
    assert main_of(models, out) == 130
    assert len(list((out / DIRECTORY).glob("*/*.piece"))) == 2
    done.clear()
    assert main_of(models, out, "--method", "svd") == 130
    assert "do not fit, since method was 'auto' and is 'svd'" in capsys.readouterr().err
    done.clear()
    assert main_of(models, out) == 0
    assert done == ["layers.2.q"]
    assert "goes on with 2 results" in capsys.readouterr().err
    assert not (out / DIRECTORY).exists()


def test_adapters_are_not_kept(write_adapter, lora_tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(Kept, "_opened", lambda self: pytest.fail("kept"))
    adapter = write_adapter(lora_tensors("layers.0.q"))
    assert spectrum.main([str(adapter), "--out", str(tmp_path / "out")]) == 0
