"""What runs, modules and updates are called, and how names are printed and chosen."""

import re

from analysis import UserError


def run_key(name: str, step: int | None) -> str:
    """run, or run@step."""
    return name if step is None else f"{name}@{step}"


def update_key(run: str, module: str, part: str | None) -> str:
    """run/module, or run/module#part, of the key of a run."""
    return f"{run}/{module}" + (f"#{part}" if part else "")


def layer_of(name: str) -> int | None:
    """The first integer component of a module's dotted path; None where it has none."""
    return next((int(c) for c in name.split(".") if re.fullmatch("[0-9]{1,9}", c)), None)


def kind_of(name: str) -> str:
    """The last component of a module's dotted path: q_proj, …"""
    return name.rpartition(".")[2]


def printable(text: str) -> str:
    """`text` on one line, control characters escaped: names in a checkpoint are a stranger's."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def expression(modules: str | None) -> re.Pattern[str]:
    """What a module's name must match to be looked at; ValueError where it is no expression."""
    try:
        return re.compile(modules or "")
    except re.error as error:
        raise UserError(f"--modules {modules!r} is no regular expression: {error}") from None


# NEEDIMPORT
