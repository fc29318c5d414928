"""What `python -m` puts on the import path, and that code beside a checkpoint never runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.process import start

ROOT = Path(__file__).resolve().parents[3]
ANALYSIS = [f"analysis.{name}" for name in ("spectrum", "similarity", "dynamics")]
MULTILORA = [
    f"multilora.{name}"
    for name in ("train", "evaluate", "base", "budget", "reproduce", "claims", "figures")
]
# What our commands import, of others and of the standard library, and `-m` itself does not.
NAMES = (
    "numpy ml_dtypes safetensors torch scipy transformers peft tqdm threadpoolctl matplotlib pandas"
    " re enum signal typing json argparse csv inspect dataclasses pathlib zipfile hashlib pickle"
    " random math subprocess multiprocessing ast copy multilora"
).split()


def python(*words, cwd, path=ROOT, **environment):
    """Run Python in a directory, with the packages on PYTHONPATH."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd, env=os.environ | {"PYTHONPATH": str(path)} | environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def trapped(write_adapter, lora_tensors):
    """A run of two steps whose directory holds code under many names, as module and package."""
    for step in (1, 2):
        path = write_adapter(lora_tensors("l.0.q"), f"run/checkpoint-{step}")
    run = path.parent
    for i, name in enumerate(NAMES):
        file = run / f"{name}.py" if i % 2 else run / name / "__init__.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"open({str(run / 'RAN')!r}, 'a').write({name + ' '!r})\n")
    return run


@pytest.mark.parametrize("command", ANALYSIS)
def test_code_beside_a_checkpoint_never_runs(trapped, command):
    done = python("-m", command, ".", cwd=trapped)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (trapped / "RAN").exists()


def test_the_code_would_run_otherwise(trapped):
    """Negative control."""
    python("-c", "import numpy, json", cwd=trapped)
    assert (trapped / "RAN").read_text() == "numpy json "


# A package in the place of PEFT, which the commands of `multilora` import first.
STUB = """
import json, os, signal, sys
print(json.dumps([sys.path[0], os.environ.get("PYTHONSAFEPATH"), sorted(sys.modules)]))
sys.exit()
"""


@pytest.mark.parametrize("command", MULTILORA)
def test_no_command_of_multilora_imports_from_the_working_directory(tmp_path, command):
    """Not even a package called analysis."""
    stubs, here = tmp_path / "stubs", tmp_path / "here"
    stubs.mkdir()
    here.mkdir()
    (stubs / "peft.py").write_text(STUB)
    (here / "analysis.py").write_text("open('RAN', 'w')")
    done = python("-m", command, "--version", cwd=here, path=f"{stubs}{os.pathsep}{ROOT}")
    first, safe, modules = json.loads(done.stdout)
    assert (done.returncode, done.stderr, first, safe) == (0, "", str(stubs), "1")
    assert not (here / "RAN").exists()
    assert "numpy" not in modules  # PEFT's stand-in is the first foreign import


@pytest.mark.parametrize("words", [["-m"], ["-u", "-Xutf8", "-m"], ["-P", "-m"]])
def test_the_checkout_and_pythonpath_stay_on_the_path(words, tmp_path):
    code = "import sys; print(sys.path[:2])"
    (tmp_path / "ml_dtypes.py").write_text(code + "; sys.exit()")
    line = [*words, "analysis.spectrum", "x"]
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    here = [str(ROOT), str(tmp_path)] if "-P" not in words else [str(tmp_path), str(ROOT)]
    assert python(*line, cwd=ROOT, path=path).stdout == f"{here}\n"
    # The working directory is named on PYTHONPATH: one of the two entries is the user's choice.
    assert python(*line, cwd=tmp_path, path=path).stdout == f"{[str(tmp_path), str(ROOT)]}\n"


def test_a_library_leaves_the_process_as_it_is(tmp_path):
    code = (
        "import signal, sys, warnings\n"
        "def state():\n"
        "    return [*sys.path], sys.stdout, sys.stderr, warnings.showwarning, [*warnings.filters],"
        " signal.getsignal(2)\n"
        "before = state()\n"
        "import analysis\n"
        "assert state() == before\n"
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(code)
    (tmp_path / "mine" / "tool.py").write_text("")
    # In the package of another command, sys.argv[0] is "-m" too.
    for words in (["-c", code], ["-m", "mine.tool", "analysis.spectrum"]):
        done = python(*words, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("python -m analysis.spectrum", "analysis.spectrum"),
        ("python -u -X dev -m multilora.train --r 2", "multilora.train"),
        ("python -umanalysis.similarity a b", "analysis.similarity"),
        ("python -m analysis", "analysis"),
        ("python -m analysisx.spectrum", ""),
        ("python -m pytest -m analysis.spectrum", ""),
    ],
)
def test_the_command_that_python_runs(line, name):
    words = line.split()
    ours = next(i for i, word in enumerate(words) if word == "-m" or word.startswith("-um"))
    given = words[ours + (2 if words[ours] == "-m" else 1) :]
    assert start.started_as(["-m", *given], words) == name


def test_nothing_else_is_a_command():
    for argv in ([], [""], ["-c"], ["analysis/spectrum.py"]):
        assert start.started_as(argv, ["python", "-m", "analysis.spectrum"]) == ""


def test_a_directory_that_is_gone_is_no_error(monkeypatch):
    def gone():
        raise FileNotFoundError

    monkeypatch.setattr(start.os, "getcwd", gone)
    before = [*sys.path]
    start.leave_working_directory()
    assert sys.path == before
