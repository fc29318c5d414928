"""Real processes: the same bytes as one, a killed worker survived, what goes wrong in one line."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis import CheckpointError, UserError, checkpoint, similarity, spectrum
from analysis.checkpoint import Run
from analysis.formats import Options
from analysis.numerics import decompose, parallel
from analysis.update import DenseUpdate
from analysis.work import cluster, kept
from analysis.work.cluster import Lost
from analysis.work.matrices import Matrices

distributed = pytest.importorskip("distributed", reason="the extra `scale`")
# Workers do not import this file.
distributed.protocol.pickle.cloudpickle.register_pickle_by_value(sys.modules[__name__])

WORKERS = 2


@pytest.fixture(scope="module")
def two():
    """Two worker processes."""
    with cluster.of_workers(WORKERS, lambda line: None) as found:
        yield found


def as_dict(done):
    return dict(done)


def pid_of(item):
    time.sleep(0.3)
    return os.getpid()


def killed_once(item):
    """Kill the worker the first time; the next one finds the mark."""
    mark = Path(item)
    if mark.suffix == ".deadly" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return f"done {mark.name}"


def always_killed(item):
    if item == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def no_room(*_):
    raise MemoryError


def test_items_are_done_by_several_processes_the_largest_first(two):
    found = as_dict(two.each(pid_of, [3, 1, 2, 4], size=float))
    assert len(set(found.values())) == WORKERS
    assert os.getpid() not in found.values()
    order = [item for item, _ in two.each(pid_of, [3, 1, 2, 4], size=float)]
    assert set(order[:2]) == {3, 4}


def test_a_worker_that_is_killed_is_survived(two, tmp_path):
    items = [str(tmp_path / name) for name in ("a", "b.deadly", "c", "d")]
    found = as_dict(two.each(killed_once, items, size=len))
    assert found == {item: f"done {Path(item).name}" for item in items}


def test_what_kills_every_worker_is_reported_and_the_rest_is_done(two):
    found = as_dict(two.each(always_killed, ["a", "deadly", "b"], size=len))
    assert (found["a"], found["b"]) == ("a", "b")
    assert isinstance(found["deadly"], Lost)
    assert "for want of memory; expected more memory for each worker" in found["deadly"].reason


def test_a_fault_of_the_program_keeps_its_traceback(two):
    with pytest.raises(ZeroDivisionError):
        list(two.each(lambda item: 1 / item, [0], size=float))


def test_spectra_are_those_of_one_process_and_wait_in_what_is_kept(two, rng, tmp_path):
    matrices = [rng.standard_normal((9 + i, 8)) for i in range(3)]
    updates = [DenseUpdate(f"q{i}", W.shape, lambda W=W: W) for i, W in enumerate(matrices)]
    updates.append(DenseUpdate("large", (99, 99), no_room, source="a"))
    updates.append(DenseUpdate("nan", (2, 2), lambda: np.full((2, 2), np.nan), source="a"))
    run = Run(tmp_path, "run", None)
    spread = Matrices(cluster=two, kept=kept_in(tmp_path / "out"))
    spread.ahead(lambda: iter((run, update) for update in updates), progress=False)
    *found, large, nan = spread.in_order(run, updates)
    assert large.reason == "a: large: does not fit into memory"
    assert "a: nan: ΔW holds NaN or Inf" in nan.reason
    assert spread.kept.count() == 3
    with parallel.reproducible():
        wanted = [decompose.spectrum(update).s.tobytes() for update in updates[:3]]
    assert [result.s.tobytes() for _, result in found] == wanted


def kept_in(out):
    return kept.Kept(out, lambda: {"command": "c"})


def test_a_worker_of_other_versions_or_files_is_refused(two, monkeypatch, tmp_path):
    versions = kept.versions()
    monkeypatch.setattr(kept, "versions", lambda: versions | {"numpy": "1.0"})
    with pytest.raises(UserError, match=r"worker on .* has numpy [\d.]+; expected 1.0, as here"):
        list(two.each(str, [1], size=float))
    monkeypatch.undo()
    gone = tmp_path / "gone"
    with pytest.raises(UserError, match=r"has no directory .*gone; expected the same files"):
        cluster._check(versions, str(gone))


def test_a_scheduler_that_is_not_there(monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    with (
        pytest.raises(UserError, match=r"--scheduler tcp://127.0.0.1:9: no scheduler answers"),
        cluster.at("tcp://127.0.0.1:9", lambda line: None),
    ):
        pass
    with pytest.raises(UserError, match="no scheduler answers"), cluster.at("what?", print):
        pass


def test_a_scheduler_that_ends_is_told_and_workers_are_waited_for():
    said = []
    with (
        distributed.LocalCluster(
            n_workers=0, processes=False, dashboard_address=None, silence_logs=60
        ) as local,
        cluster.at(local.scheduler_address, said.append) as found,
    ):
        local.scale(1)
        assert as_dict(found.each(str, [1], size=float)) == {1: "1"}
        steps = found.each(time.sleep, [60], size=float)
        local.scale(0)
        local.close()
        with pytest.raises(UserError, match="the connection is lost; what is finished is kept"):
            next(steps)


def test_the_command_gives_the_bytes_of_one_process(tmp_path, rng, capsys, monkeypatch, two):
    """The two processes stand for those that --workers would start."""
    W0 = {f"layers.{i}.q.weight": rng.standard_normal((30, 20)).astype("f4") for i in range(4)}
    W = {name: x + rng.standard_normal(x.shape).astype("f4") for name, x in W0.items()}
    for name, tensors in (("base", W0), ("tuned", W)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    words = ["tuned", "--base", "base", "--out", "out"]
    with parallel.reproducible():
        assert spectrum.main(words) == 0
    files = ("spectrum.csv", "spectra.safetensors", "record.json")
    whole = {name: Path("out", name).read_bytes() for name in files}
    address = two._client.scheduler.address
    monkeypatch.setattr(Matrices, "in_order", kept_only(Matrices.in_order))
    assert spectrum.main([*words, "--scheduler", address]) == 0
    assert {name: Path("out", name).read_bytes() for name in files} == whole
    assert sorted(os.listdir("out")) == sorted(files)


def kept_only(in_order):
    """in_order, of which nothing is computed here."""

    def checked(self, run, entries):
        assert all(self._known(run, entry) for entry in entries)
        return in_order(self, run, entries)

    return checked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "0"], "'0': expected a whole number of at least 1"),
        (["--workers", "2", "--scheduler", "tcp://a:1"], "not allowed with argument --workers"),
    ],
)
def test_options_that_make_no_sense(capsys, words, message):
    with pytest.raises(SystemExit):
        spectrum.main(["a", *words])
    assert message in capsys.readouterr().err


def test_an_unfit_file_on_a_worker_is_told_as_here(two):
    def cut():
        raise CheckpointError("a.safetensors: q: the file was cut short")

    matrices = Matrices(cluster=two)
    update = DenseUpdate("q", (3, 3), cut)
    run = Run(Path(), "run", None)
    matrices.ahead(lambda: iter([(run, update)]), progress=False)
    (found,) = matrices.in_order(run, [update])
    assert found.reason == "a.safetensors: q: the file was cut short"


def test_modules_are_compared_by_other_processes(two, tmp_path, rng):
    for name in "ab":
        (tmp_path / name).mkdir()
        save_file({"q.weight": rng.standard_normal((6, 5))}, tmp_path / name / "model.safetensors")
    (tmp_path / "base").mkdir()
    save_file({"q.weight": np.zeros((6, 5))}, tmp_path / "base" / "model.safetensors")
    paths = [tmp_path / name for name in "ab"]
    with parallel.reproducible():
        whole = similarity.analyse(paths, base=tmp_path / "base")
    spread = similarity.of_runs(
        checkpoint.runs(paths), options=Options(base=tmp_path / "base"), cluster=two
    )
    assert repr(spread.rows) == repr(whole.rows)
    assert {key: x.tobytes() for key, x in spread.phi.items()} == {
        key: x.tobytes() for key, x in whole.phi.items()
    }
