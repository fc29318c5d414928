import sys

import pytest

from analysis import CheckpointError, UserError
from multilora import command


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
