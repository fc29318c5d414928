"""Ctrl-C at any moment: one line, status 130."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.process import interrupts

ROOT = Path(__file__).resolve().parents[3]
# In the place of the first foreign package that a command imports.
SLOW = "import time; print('importing', flush=True); time.sleep(60)"


@pytest.mark.parametrize(
    ("command", "imported"), [("analysis.spectrum", "ml_dtypes"), ("multilora.train", "peft")]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports(tmp_path, command, imported, number):
    (tmp_path / f"{imported}.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", command, "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore SIGINT, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    ended = (130, f"{command}: interrupted\n") if number == signal.SIGINT else (-number, "")
    assert (process.returncode, out, err) == (ended[0], "", ended[1])


@pytest.fixture
def handler():
    before = signal.getsignal(signal.SIGINT)
    yield before
    signal.signal(signal.SIGINT, before)


def test_a_command_at_work_gets_the_exception_and_can_tidy_up(handler):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.end_quietly("name")
    quiet = signal.getsignal(signal.SIGINT)
    assert isinstance(quiet, interrupts._End)
    tidied = []

    def work():
        with interrupts.raised(), contextlib.ExitStack() as stack:
            stack.callback(tidied.append, True)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert tidied
    assert signal.getsignal(signal.SIGINT) is quiet


def test_what_others_do_on_an_interrupt_stays(handler):
    for other in (signal.SIG_IGN, lambda *_: None):
        signal.signal(signal.SIGINT, other)
        interrupts.end_quietly("name")
        with interrupts.raised():
            assert signal.getsignal(signal.SIGINT) == other
        assert signal.getsignal(signal.SIGINT) == other
