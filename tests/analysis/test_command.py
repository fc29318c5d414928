"""Behaviour that all commands share: status, errors in one line, Ctrl-C, --version, start-up."""

import argparse
import fcntl
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import analysis
from analysis import CheckpointError, UserError, checkpoint, command, dynamics, similarity, spectrum
from analysis.checkpoint import Run
from analysis.command import exit_status

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"spectrum": spectrum, "similarity": similarity, "dynamics": dynamics}


def shell(*arguments, **changes):
    line = [sys.executable, *map(str, arguments)]
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | changes
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, env=env)


@pytest.fixture
def steps(write_adapter, lora_tensors):
    """Two steps of a run, which every command can read."""
    for step in (1, 2):
        path = write_adapter(lora_tensors("l.0.q", "l.1.q"), f"run/checkpoint-{step}")
    return path.parent


# Exit status


def test_the_status_is_what_the_work_returns(capfd):
    assert [exit_status("name", lambda status=status: status) for status in (0, 1, 2)] == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error", [UserError("bad\ninput"), CheckpointError("bad\ninput"), OSError("bad\ninput")]
)
def test_what_a_user_can_mend_is_one_line(capfd, error):
    def work():
        raise error

    assert exit_status("analysis.name", work) == 2
    assert capfd.readouterr() == ("", "analysis.name: bad input\n")


@pytest.mark.parametrize("error", [ValueError("ours"), RuntimeError("ours"), KeyError("ours")])
def test_a_fault_of_the_program_keeps_its_traceback(error):
    def work():
        raise error

    with pytest.raises(type(error), match="ours"):
        exit_status("analysis.name", work)


def test_errors_cannot_steer_the_terminal(capfd):
    def work():
        raise UserError("\x1b[31mred")

    exit_status("analysis.name", work)
    assert capfd.readouterr().err == "analysis.name: \\x1b[31mred\n"


# Ctrl-C


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_ends_every_command_with_one_line(name, steps, monkeypatch, capfd):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("analysis.checkpoint.runs", interrupted)
    assert COMMANDS[name].main([str(steps)]) == 130
    assert capfd.readouterr() == ("", f"analysis.{name}: interrupted\n")


SLOW = """
import sys, time
from analysis import {name}
from analysis.formats import peft

def slow(*_, **__):
    print("reading", flush=True)
    for _ in range(600):
        time.sleep(0.1)
    yield from ()

peft.read = slow
sys.exit({name}.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_real_interrupt_while_a_checkpoint_is_read(name, steps):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(name=name), str(steps)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore SIGINT, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout.readline() == "reading\n"  # the signal comes while it reads
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", f"analysis.{name}: interrupted\n")


# --version, --formats, --help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_its_version(name):
    done = shell("-m", f"analysis.{name}", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{analysis.__version__}\n", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_formats_and_help_need_no_path(name, capfd):
    for option, words in (("--formats", "peft"), ("--help", "Exit status")):
        with pytest.raises(SystemExit) as stopped:
            COMMANDS[name].main([option])
        assert stopped.value.code == 0
        assert words in capfd.readouterr().out


# A checkout that is not installed

NOT_INSTALLED = """
import importlib.metadata, sys
original = importlib.metadata.version

def version(package):
    if package == "multilora":
        raise importlib.metadata.PackageNotFoundError(package)
    return original(package)

importlib.metadata.version = version
from analysis import {name}
sys.exit({name}.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_json_and_out_need_no_installation(name, steps, tmp_path):
    code = NOT_INSTALLED.format(name=name)
    done = shell("-c", code, steps, "--json", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["record"]["versions"]["multilora"] == analysis.__version__
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["versions"]["multilora"] == analysis.__version__


def test_the_package_would_be_missed():
    """Negative control: in that process nothing can look up the version of the package."""
    lookup = "importlib.metadata.version('multilora')"
    code = NOT_INSTALLED.format(name="spectrum").rpartition("sys.exit")[0]
    assert "PackageNotFoundError" in shell("-c", code + lookup).stderr


# Start-up

LIGHT = """
import sys
from analysis.{name} import main
status = main(sys.argv[1:])
heavy = {{"torch", "transformers", "pandas", "matplotlib", "scipy", "rich"}} & set(sys.modules)
print(heavy or "light", file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_low_rank_adapters_need_no_heavy_package(name, steps):
    code = LIGHT.format(name=name)
    for paths in ([steps], [steps / "checkpoint-1", steps / "checkpoint-2"]):
        done = shell("-c", code, *paths)
        assert (done.returncode, done.stderr) == (0, "light\n")
    # Negative control: a package that is imported is found.
    assert "numpy" in shell("-c", code.replace('"torch"', '"numpy"'), steps).stderr


def test_one_adapter_needs_no_heavy_package(steps):
    done = shell("-c", LIGHT.format(name="spectrum"), steps / "checkpoint-1")
    assert (done.returncode, done.stderr) == (0, "light\n")


# Warnings and output


@pytest.fixture
def parser():
    return argparse.ArgumentParser(prog="python -m analysis.name")


def test_a_warning_is_one_line_on_stderr(parser, capfd):
    command.warn(parser, "two\nlines")
    assert capfd.readouterr() == ("", "analysis.name: two\\nlines\n")


def test_steps_that_are_not_read_are_named_with_their_path(parser, write_adapter, capfd):
    path = write_adapter({}, "run")
    write_adapter({}, "run/checkpoint-5")
    command.warn_of_unread_steps(
        parser, [run for run in checkpoint.runs([path]) if run.step is None]
    )
    assert capfd.readouterr().err == (
        f"analysis.name: {path}: is a checkpoint; 1 more below it not read;"
        f" to read them, pass {path}/checkpoint-*\n"
    )
    command.warn_of_unread_steps(parser, checkpoint.runs([path / "checkpoint-5"]))
    assert capfd.readouterr().err == ""


def test_rows_are_copied_and_escaped_for_a_terminal():
    rows = [{"key": "\x1b[2J", "rank": 3, "floor": None}]
    assert command.printable_rows(rows) == [{"key": "\\x1b[2J", "rank": 3, "floor": None}]
    assert rows[0]["key"] == "\x1b[2J"


def test_a_closed_pipe_is_not_an_error():
    code = "from analysis.command import emit; emit('x' * 10**6); emit('y')"
    line = f'set -o pipefail; {sys.executable} -c "{code}" | head -c 5'
    done = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "xxxxx", "")


# Reading options


def test_reading_options_are_what_was_given(parser):
    command.add_reading_options(parser)
    assert command.reading_options(parser.parse_args([])) == command.Options()
    line = "--base B --base-rounded --initial I --direction-only --factors a b --scale 2"
    got = command.reading_options(parser.parse_args(line.split()))
    assert (got.base, got.initial) == (Path("B"), Path("I"))
    assert (got.base_rounded, got.direction_only) == (True, True)
    assert (got.factors, got.scale) == (("a", "b"), 2.0)


def test_paths_read_are_the_checkpoints_and_what_they_need(parser):
    command.add_reading_options(parser)
    runs = [Run(Path("a"), "a", None), Run(Path("b/checkpoint-1"), "b", 1)]
    arguments = parser.parse_args(["--base", "B", "--initial", "I"])
    want = [*runs, Path("B"), Path("I")]
    assert command.paths_read(runs, arguments) == want
    assert command.paths_read(runs, parser.parse_args([])) == want[:2]


@pytest.mark.parametrize("value", ["-1", "-1e-3", "-.5", "-0.5:b", "-1:b/c", "-1e3:b"])
def test_what_begins_with_a_negative_number_is_a_value(parser, value):
    parser.add_argument("--x", nargs="+", action="extend", default=[])
    got = []
    argv = ["--x", "1:a", value, "--x", value]
    assert command.run(parser, argv, lambda arguments: got.extend(arguments.x) or 0) == 0
    assert got == ["1:a", value, value]


@pytest.mark.parametrize("option", ["-x", "--nonsense", "-e5"])
def test_other_unknown_options_are_still_refused(parser, option, capfd):
    with pytest.raises(SystemExit):
        command.run(parser, [option], lambda a: 0)
    assert "unrecognized arguments" in capfd.readouterr().err


# On a terminal


def on_terminal(*arguments, columns=80, **changes):
    """The status of a command and what it prints on a terminal of that many columns, and stderr."""
    main, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    hidden = {"COLUMNS", "NO_COLOR", "FORCE_COLOR", "PYTHONIOENCODING"}
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env |= {"TERM": "xterm-256color", "PYTHONUTF8": "1"} | changes
    line = [sys.executable, *map(str, arguments)]
    process = subprocess.Popen(
        line, cwd=ROOT, stdout=end, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=env
    )
    os.close(end)
    said = b""
    try:
        while part := _read(main):
            said += part
        err = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        os.close(main)
    return process.returncode, said.decode().replace("\r\n", "\n"), err.decode()


def _read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""


def without_colours(text):
    return re.sub("\x1b\\[[0-9;]*m", "", text)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_terminal_has_colours_and_its_width(name, steps):
    pytest.importorskip("rich")
    status, out, err = on_terminal("-m", f"analysis.{name}", steps, columns=60)
    assert (status, err) == (0, "")
    assert "\x1b[1m" in out
    lines = [line.rstrip() for line in without_colours(out).splitlines()]
    assert max(map(len, lines)) <= 60
    assert lines == shell("-m", f"analysis.{name}", steps, COLUMNS="60").stdout.splitlines()


@pytest.mark.parametrize("changes", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_can_ask_for_plain_text(changes, steps):
    status, out, _ = on_terminal("-m", "analysis.spectrum", steps, **changes)
    assert status == 0
    assert out == shell("-m", "analysis.spectrum", steps).stdout


WITHOUT_RICH = """
import sys
sys.modules["rich"] = None
from analysis.spectrum import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_terminal_without_rich_has_plain_text(steps):
    status, out, err = on_terminal("-c", WITHOUT_RICH, steps)
    assert (status, err) == (0, "")
    assert out == shell("-m", "analysis.spectrum", steps).stdout


def test_strangers_cannot_steer_a_terminal_with_colours(write_adapter, lora_tensors):
    pytest.importorskip("rich")
    path = write_adapter(lora_tensors("l.0.\x1b[2Jq", "l.0.[blink]v[/blink]"))
    status, out, err = on_terminal("-m", "analysis.spectrum", path)
    assert (status, err) == (0, "")
    assert "\\x1b[2Jq" in out
    assert "[blink]v[/blink]" in out
    assert "\x1b" not in without_colours(out)


def test_a_pipe_has_80_columns_or_those_of_the_environment(steps):
    for changes, most in (({}, 80), ({"COLUMNS": "60"}, 60), ({"COLUMNS": "200"}, 200)):
        out = shell("-m", "analysis.similarity", steps, **changes).stdout
        assert max(map(len, out.splitlines())) <= most
    assert max(map(len, out.splitlines())) > 60


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_three_examples_in_80_columns(name):
    out = shell("-m", f"analysis.{name}", "--help", COLUMNS="80").stdout
    assert max(map(len, out.splitlines())) <= 80
    examples = [
        line for line in out.splitlines() if line.startswith(f"  python -m analysis.{name}")
    ]
    assert len(examples) == 3
    parser = COMMANDS[name]._parser()
    for example in examples:
        parser.parse_args(shlex.split(example)[3:])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_columns_are_explained_without_a_path(name, capfd):
    assert COMMANDS[name].main(["--explain"]) == 0
    out, err = capfd.readouterr()
    assert ("medians over modules" in " ".join(out.split()), err) == (True, "")
    with pytest.raises(SystemExit) as stopped:
        COMMANDS[name].main([])
    assert stopped.value.code == 2
    assert "PATH" in capfd.readouterr().err


def test_an_ascii_terminal_gets_ascii_within_its_width(write_adapter, lora_tensors):
    """Also the legend, and names that are shortened; the same with UTF-8 has other signs."""
    paths = [write_adapter(lora_tensors("layers.0.q"), f"{c}-{'long-' * 8}") for c in "abcdef"]
    printed = {}
    for encoding in ("ascii", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-m", "analysis.spectrum", *map(str, paths), "--explain"],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "80"},
        )
        assert done.returncode == 0
        printed[encoding] = done.stdout
    assert printed["ascii"].isascii()
    assert not printed["utf-8"].isascii()
    for sign in (b"?", b"\\u"):
        assert sign not in printed["ascii"]
    assert max(map(len, printed["ascii"].splitlines())) <= 80
