"""A PEFT in which what we import has moved: one line that names the versions that work."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import multilora

ROOT = Path(__file__).resolve().parents[2]

STAND_IN = """
import sys
import peft.mapping, peft.tuners.tuners_utils
{change}
import multilora
"""


def imported(change):
    """Import the package after a change to PEFT, in a process of its own."""
    words = [sys.executable, "-c", STAND_IN.format(change=change)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("del peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING", "peft.mapping"),
        ("sys.modules['peft.tuners._buffer_dict'] = None", "peft.tuners._buffer_dict"),
    ],
)
def test_the_versions_that_work_are_named(change, place):
    done = imported(change)
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("analysis.extras.MissingLibraryError: needs peft>=0.21,<0.22; peft 0.21")
    assert f"has moved what is imported from {place}: python -m pip install" in last


def test_a_command_says_it_in_one_line():
    change = (
        "del peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING\n"
        "import multilora_command\n"
        "sys.exit(multilora_command.main(['train', '--help']))"
    )
    done = imported(change)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("multilora train: needs peft>=0.21,<0.22; peft 0.21")


def test_the_versions_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert multilora.PEFT in project["optional-dependencies"]["train"]
