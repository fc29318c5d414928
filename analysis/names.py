"""Build, take apart, print and select the names of runs, modules and updates."""

import re
from collections.abc import Container

from analysis import UserError


def run_key(run: str, step: int | None) -> str:
    """Return the key of a checkpoint: run, or run@step.

    >>> run_key("lora", None), run_key("lora", 20)
    ('lora', 'lora@20')
    """
    return run if step is None else f"{run}@{step}"


def update_key(run: str, module: str, part: str | None) -> str:
    """Return the key of an update: run/module, or run/module#part; `run` is the key of its run.

    >>> update_key("lora@20", "layers.0.q_proj", None), update_key("lora", "head", "task1")
    ('lora@20/layers.0.q_proj', 'lora/head#task1')
    """
    return f"{run}/{module}" + (f"#{part}" if part else "")


def unique(name: str, taken: Container[str]) -> str:
    """Return `name` if it is not taken, else name-2, name-3, …: the first that is not.

    >>> unique("combined", ["lora"]), unique("combined", ["lora", "combined", "combined-2"])
    ('combined', 'combined-3')
    """
    result, number = name, 2
    while result in taken:
        result, number = f"{name}-{number}", number + 1
    return result


def layer_of(module: str) -> int | None:
    """Return the first integer in a module's dotted path; None if it has none.

    >>> layer_of("model.layers.3.mlp.up_proj"), layer_of("lm_head")
    (3, None)
    """
    return next((int(c) for c in module.split(".") if re.fullmatch("[0-9]{1,9}", c)), None)


def kind_of(module: str) -> str:
    """Return the last component of a module's dotted path.

    >>> kind_of("model.layers.3.mlp.up_proj")
    'up_proj'
    """
    return module.rpartition(".")[2]


def printable(text: str) -> str:
    r"""Return `text` on one line, with control characters escaped.

    Names in a checkpoint come from strangers, and could otherwise control the terminal.

    >>> print(printable("layer\x1b[2J\nq"))
    layer\x1b[2J\nq
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_text(name: str) -> str:
    r"""Return the name of a file as text that any file can hold: bytes that are no UTF-8 escaped.

    >>> print(as_text("run" + chr(0xDCFF)))
    run\udcff
    """
    return name.encode("utf-8", "backslashreplace").decode()


def drawable(text: str, longest: int = 60) -> str:
    r"""Return `text` for a figure: printable, at most `longest` characters, and with `$` as it is.

    matplotlib reads what is between two dollars as a formula, and leaves a label that begins with
    an underscore out of a legend. A longer text is shortened in the middle.

    >>> print(drawable("q$x$"))
    q\$x\$
    >>> drawable("0123456789", longest=5)
    '01…89'
    """
    shown = printable(text)
    if len(shown) > longest:
        half = (longest - 1) // 2
        shown = f"{shown[: longest - 1 - half]}…{shown[-half:]}"
    shown = f" {shown}" if shown.startswith("_") else shown
    return shown.replace("$", r"\$")


def expression(modules: str | None) -> re.Pattern[str]:
    """Return the compiled --modules, which a module's name must contain; None matches every name.

    Raises UserError if it is not a valid regular expression.

    >>> bool(expression(r"[qv]_proj$").search("layers.0.q_proj"))
    True
    """
    try:
        return re.compile(modules or "")
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"--modules {modules!r} is not a regular expression: {error}") from None
