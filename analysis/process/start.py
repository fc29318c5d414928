"""Prepare the process of a command, started with `python -m` or by the script `multilora`.

`import analysis` does this before anything else is imported, and only in such a process: a program
that imports the package as a library keeps its import path, its streams and its signals.

The working directory leaves the import path, since it may be a stranger's checkpoint with a
`numpy.py` in it. (What Python imports before it comes here, our packages and a few modules of the
standard library, is beyond us: `python -P` looks for nothing there.) Ctrl-C ends the process with
one line even while libraries are imported, and what libraries say on stderr cannot control the
terminal.
"""

# Python itself has loaded these by now; any other could come from the working directory.
import os
import sys

PACKAGES = ("analysis", "multilora")
SCRIPT = "multilora"
called = ""  # how the user called the command, if by the script
# The checkout, if there is one.
HOME = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def prepare() -> None:
    """Prepare this process if it runs one of our modules with `python -m`."""
    if name := started_as(sys.argv, sys.orig_argv):
        leave_working_directory()
        _prepare(name)


def as_script(module: str) -> str:
    """Prepare this process, which the script `multilora` runs; return the name of the command.

    Processes that it starts do not import from the working directory either.
    """
    global called
    os.environ["PYTHONSAFEPATH"] = "1"
    called = f"{SCRIPT} {module.rpartition('.')[2]}"
    _prepare(called)
    return called


def program(module: str) -> str:
    """Return how the user calls the command in a module, as its usage says.

    >>> program("analysis.spectrum")
    'python -m analysis.spectrum'
    """
    return called or f"python -m {module}"


def _prepare(name: str) -> None:
    """Set signals, streams, warnings and the report of errors in imports; name: of the command."""
    from analysis.process import interrupts, streams

    interrupts.end_quietly(name)
    streams.prepare()
    streams.shorten_warnings(name)
    streams.shorten_user_errors(name)


def started_as(argv: list[str], orig_argv: list[str]) -> str:
    """Return which module of ours Python was told to run by `-m`, or "".

    argv: sys.argv, whose first word is "-m" while Python imports the package of that module.
    orig_argv: sys.orig_argv, the whole command line.

    >>> started_as(["-m", "a/"], ["python", "-u", "-m", "analysis.spectrum", "a/"])
    'analysis.spectrum'
    >>> started_as(["script.py"], ["python", "script.py"])
    ''
    """
    if argv[:1] != ["-m"]:
        return ""
    word = orig_argv[-len(argv)]
    module = word.partition("m")[2] if word.startswith("-") else word  # -m NAME or -mNAME
    return module if module.partition(".")[0] in PACKAGES else ""


def leave_working_directory() -> None:
    """Remove the working directory, which -m put first on the import path, unless it is HOME.

    Processes that Python starts with -c, as multiprocessing does, do not get it either. An entry of
    PYTHONPATH stays.
    """
    try:
        here = os.getcwd()
    except OSError:  # it was deleted, and nothing lies in it
        return
    if sys.flags.safe_path or here not in sys.path or os.path.samefile(here, HOME):
        return
    sys.path.remove(here)
    os.environ["PYTHONSAFEPATH"] = "1"
