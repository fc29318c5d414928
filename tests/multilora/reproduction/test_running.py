"""Runs in processes of their own: errors, the end of the parent, the duration of a step."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from multilora.reproduction import running
from multilora.reproduction.presets import Run
from multilora.training.settings import TrainSettings


def test_a_failing_run_is_told_of(tmp_path):
    settings = TrainSettings(method="lora", model=str(tmp_path / "nowhere"))
    with pytest.raises((OSError, ValueError), match="nowhere"):
        running.train_all([Run(settings, 0, 3, tmp_path / "run")], 1)


def test_a_step_is_measured(monkeypatch):
    assert 0 < running.seconds_per_step(3) < 60


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
