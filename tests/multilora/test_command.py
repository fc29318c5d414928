import sys

import pytest

from multilora import command


def test_result_alone_goes_to_stdout(capsys):
    def work():
        print("progress")
        return "result"

    assert command.run("name", work) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("result\n", "progress\n")


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError, FileNotFoundError])
def test_bad_input_is_one_line_and_status_2(capsys, error):
    def work():
        raise error("what came\nand what was expected")

    assert command.run("multilora.train", work) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "multilora.train: what came and what was expected\n"


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        command.run("name", lambda: str(1 // 0))
    assert sys.stdout is not sys.stderr
