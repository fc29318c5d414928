import os
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
from torch.distributed.run import parse_args as torchrun

from analysis import CheckpointError, UserError
from multilora import (
    base,
    budget,
    claims,
    command,
    cuts,
    evaluate,
    figures,
    merging,
    models,
    reproduce,
    train,
)
from multilora.training.settings import TrainSettings
from multilora.training.trainer import TrainArguments

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "train": train, "evaluate": evaluate, "base": base, "budget": budget,
    "reproduce": reproduce, "claims": claims, "figures": figures, "cuts": cuts, "models": models,
    "merging": merging,
}  # fmt: skip


def test_result_alone_goes_to_stdout(capsys):
    def work(_):
        print("progress")
        return "result"

    assert command.run("name", parse=str, work=work) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("result\n", "progress\n")


@pytest.mark.parametrize("error", [UserError, CheckpointError, OSError, FileNotFoundError])
def test_bad_input_is_one_line_and_status_2(capsys, error):
    def work(_):
        raise error("what came\nand what was expected")

    assert command.run("multilora.train", parse=str, work=work) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "multilora.train: what came and what was expected\n"


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        command.run("name", parse=str, work=lambda _: str(1 // 0))
    assert sys.stdout is not sys.stderr


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError])
def test_a_fault_of_the_program_keeps_its_traceback(error):
    def work(_):
        raise error("a shape that does not fit")

    with pytest.raises(error, match="does not fit"):
        command.run("multilora.train", parse=str, work=work)


def test_an_interrupt_is_one_line_and_status_130(capsys):
    def work(_):
        raise KeyboardInterrupt

    assert command.run("multilora.train", parse=str, work=work) == 130
    assert capsys.readouterr() == ("", "multilora.train: interrupted\n")


def test_neither_result_nor_error_can_steer_the_terminal(capsys):
    def work(_):
        raise UserError("task \x1b[2J")

    assert command.run("name", parse=str, work=lambda _: "one\ntwo \x1b[2J") == 0
    assert command.run("name", parse=str, work=work) == 2
    assert capsys.readouterr() == ("one\ntwo \\x1b[2J\n", "name: task \\x1b[2J\n")


# Parsing


@dataclass
class Settings:
    """Settings of a command."""

    r: int = field(default=1, metadata={"help": "the rank"})
    out: str = field(default="", metadata={"help": "where to"})


@dataclass
class Longer(Settings):
    """Settings that inherit others and change one of them."""

    r: int = field(default=2, metadata={"help": "the rank"})
    own: bool = False


@dataclass
class Another:
    """Settings of something else."""

    name: str = ""


def test_the_help_leaves_out_what_is_inherited(capsys):
    doc = "Do it.\n\n    command --r 3\n    again\n\nOr not."
    for option in ("--help", command.ALL):
        with pytest.raises(SystemExit) as stopped:
            command.settings_from(Longer, doc, [option])
        assert stopped.value.code == 0
    short, _, whole = capsys.readouterr().out.partition("usage:")[2].partition("usage:")
    for text in (short, whole):
        assert "the rank (default: 2)" in text
        assert "\n    command --r 3\n    again\n" in text
        assert "show all, 1 more" in text
    assert "where to" not in short
    assert "where to\n" in whole  # no default: it is empty


def test_what_is_inherited_is_accepted():
    assert command.settings_from(Longer, "", ["--out", "x", "--own"]) == Longer(out="x", own=True)
    several = command.settings_from((Longer, Another), "", ["--name=x"])
    assert several == (Longer(), Another("x"))


def test_the_first_word_may_set_a_field():
    for words in (["x", "--r", "3"], ["--r", "3", "--out", "x"], ["--", "x", "--r", "3"]):
        assert command.settings_from(Settings, "", words, first="out") == Settings(r=3, out="x")
    with pytest.raises(UserError, match="unknown arguments: x"):
        command.settings_from(Settings, "", ["x"])


def test_trainers_arguments_stand_apart(capsys):
    """--help names our own settings and the changed defaults; --help-all everything."""
    shown = []
    for option in ("--help", command.ALL):
        with pytest.raises(SystemExit):
            train.main([option])
        shown.append(capsys.readouterr().out)
    short, whole = shown
    assert len(short) < 8000 < len(whole)
    for name in (*(f.name for f in fields(TrainSettings)), "output_dir", "learning_rate"):
        assert f"--{name}" in short
    for name in (f.name for f in fields(TrainArguments) if f.init):
        assert f"--{name}" in whole
    assert "--weight_decay" not in short


@pytest.mark.parametrize("argv", [["--o", "x"], ["--nonsense"], ["--own", "true", "x\x1b[2J"]])
def test_unknown_arguments_and_abbreviations_are_refused(argv):
    with pytest.raises(UserError, match="unknown arguments: "):
        command.settings_from(Longer, "", argv)


@pytest.mark.parametrize("name", COMMANDS)
def test_bad_usage_is_2_and_help_goes_to_stdout(name, capsys):
    def status(argv):
        try:
            return COMMANDS[name].main(argv)
        except SystemExit as stopped:
            return stopped.code

    assert status(["--nonsense"]) == 2
    assert capsys.readouterr().out == ""
    assert status(["--help"]) == 0
    out, err = capsys.readouterr()
    assert (out[:6], err) == ("usage:", "")
    # The lines of the examples, as they stand in the docstring.
    examples = [line for line in COMMANDS[name].__doc__.split("\n") if line.startswith("    ")]
    assert examples
    assert all(line in out.split("\n") for line in examples)


def test_options_reach_the_command_through_torchrun():
    """Before Python 3.12.8 torchrun takes --r for one of its own, unless "--" stands before it."""
    line = ["--nproc_per_node", "2", "-m", "multilora.train"]
    for between in (["--"], ["--", "--"]):
        given = torchrun([*line, *between, "--r", "2"]).training_script_args
        assert command.settings_from(Settings, "", given) == Settings(r=2)
    assert command.settings_from(Settings, "", ["--r", "2"]) == Settings(r=2)
    if sys.version_info < (3, 12, 8):
        with pytest.raises(SystemExit):
            torchrun([*line, "--r", "2"])


# Processes


def test_a_command_beside_strangers_files(tmp_path):
    """Code that lies there does not run, and neither a name nor a warning reaches the terminal."""
    for name in ("numpy", "torch", "transformers", "peft", "analysis", "json"):
        (tmp_path / f"{name}.py").write_text("open('RAN', 'a')")
    (tmp_path / "run.json").write_text(
        '{"base": {"path": "x\\u001b[2J", "sha256": {}}, "settings": {}}'
    )
    done = subprocess.run(
        [sys.executable, "-m", "multilora.evaluate", "."],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("multilora.evaluate: x\\x1b[2J: neither a directory")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "RAN").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_and_a_locale_without_greek_letters():
    line = f"{sys.executable} -m multilora.train --help"
    done = subprocess.run(
        ["bash", "-c", f"{line} >/dev/full"],
        cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2,
        "multilora.train: stdout cannot be written: No space left on device\n",
    )
