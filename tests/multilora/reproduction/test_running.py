"""Runs in processes of their own: errors, the end of the parent, the duration of a step."""

import multiprocessing
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from analysis import UserError
from multilora import base
from multilora.reproduction import running
from multilora.reproduction.presets import Run
from multilora.training.settings import TrainSettings


def test_a_failing_run_is_told_of(tmp_path):
    settings = TrainSettings(method="lora", model=str(tmp_path / "nowhere"))
    with pytest.raises((OSError, ValueError), match="nowhere"):
        running.train_all([Run(settings, 0, 3, tmp_path / "run")], 1)


def test_a_run_that_is_killed_says_what_it_needs(tmp_path, tiny_base):
    """As the kernel does when memory runs out."""

    over = threading.Event()

    def kill():
        while not over.wait(0.1):
            for child in multiprocessing.active_children():
                child.kill()

    run = Run(TrainSettings(method="full", model=str(tiny_base)), 0, 3, tmp_path / "run")
    weights = (tiny_base / "model.safetensors").stat().st_size
    assert running.least_memory(run) == 4 * weights
    killer = threading.Thread(target=kill)
    killer.start()
    words = r"was killed from outside.*needs 0\.0 GiB.*--processes"
    try:
        with pytest.raises(UserError, match=words):
            running.train_all([run], 1)
    finally:
        over.set()
        killer.join()


TINY = {"width": 16, "layers": 1, "heads": 2, "mlp": 24, "steps": 1, "batch": 1}
UNGATED = {"least_copying": 0.0, "least_recall": 0.0}


def test_bases_that_exist_start_no_process(tmp_path, monkeypatch):
    one = base.BaseSettings(out=str(tmp_path), **TINY)
    base.directory(one).mkdir()
    monkeypatch.setattr(running, "ProcessPoolExecutor", lambda *_: pytest.fail("a process"))
    running.train_bases([], 2)
    running.train_bases([one], 2)
    assert not any(base.directory(one).iterdir())


@pytest.mark.slow
def test_missing_bases_are_trained_in_processes(tmp_path):
    bases = [
        base.BaseSettings(out=str(tmp_path), seed=seed, **TINY, **UNGATED) for seed in (0, 1, 2)
    ]
    base.directory(bases[0]).mkdir()  # counts as trained
    running.train_bases(bases, 2)
    weights = [base.directory(one) / "model.safetensors" for one in bases]
    assert [file.is_file() for file in weights] == [False, True, True]
    here = base.ensure(base.BaseSettings(out=str(tmp_path / "here"), seed=1, **TINY, **UNGATED))
    assert weights[1].read_bytes() == (here / "model.safetensors").read_bytes()
    assert "train_runtime" in (tmp_path / "train.log").read_text()  # and not on the terminal


@pytest.mark.slow
def test_a_base_that_has_not_learned_ends_the_command(tmp_path):
    with pytest.raises(ValueError, match=r"copying is .*; expected at least 0\.9"):
        running.train_bases([base.BaseSettings(out=str(tmp_path), **TINY)], 1)
    assert [path.name for path in tmp_path.iterdir()] == ["train.log"]


def test_a_step_is_measured(tmp_path, tiny_base):
    run = Run(TrainSettings(method="lora"), 0, 3, tmp_path)
    assert 0 < running.seconds_per_step(run, 3) < 60
    settings = TrainSettings(
        method="full", model=str(tiny_base), tasks="alpaca:x", loss="example", max_length=20
    )
    given = {"per_device_train_batch_size": 2, "bf16": True, "use_cpu": True}
    real = Run(settings, 0, 3, tmp_path, given=given)
    assert 0 < running.seconds_per_step(real, 2) < 60


@pytest.mark.slow
def test_runs_end_with_the_command_that_started_them(tmp_path, tiny_base):
    """Killed outright, it leaves no process behind that goes on writing."""
    script = (
        "from pathlib import Path\n"
        "from multilora.reproduction import presets, running\n"
        "if __name__ == '__main__':\n"
        f"    model, out = Path({str(tiny_base)!r}), Path({str(tmp_path)!r})\n"
        "    running.train_all(presets.plan(['lora'], [0, 1], 4000, model, out), 2)\n"
    )
    file = tmp_path / "script.py"
    file.write_text(script)
    parent = subprocess.Popen([sys.executable, file])
    log = tmp_path / "train.log"

    def wait_for(what):
        end = time.monotonic() + 120
        while not what():
            assert time.monotonic() < end
            time.sleep(0.2)

    try:
        wait_for(lambda: log.is_file() and log.read_text().count("training on") == 2)
        workers = children(parent.pid)
        assert len(workers) >= 2
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def children(pid):
    """The processes that a process started, by Linux' word."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_runs_on_a_scheduler_give_the_same_bits(tmp_path, tiny_base):
    """On real worker processes; a second call trains nothing."""
    distributed = pytest.importorskip("distributed", reason="the extra `scale`")
    settings = TrainSettings(method="lora", model=str(tiny_base))
    here, there = (Run(settings, 0, 2, tmp_path / name / "run") for name in ("here", "there"))
    running.train_all([here], 1)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=60
    ) as local:
        running.train_on([there], local.scheduler_address)
    assert there.is_done()
    assert (tmp_path / "there" / "train.log").stat().st_size > 0
    weights = "adapter_model.safetensors"
    assert (there.out / weights).read_bytes() == (here.out / weights).read_bytes()
    running.train_on([there], "tcp://127.0.0.1:9")
