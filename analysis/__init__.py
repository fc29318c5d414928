"""Measure what training did to a model's weights: the spectrum of every ΔW in a checkpoint.

Data flows one way. `files` opens tensors, `formats` and `checkpoint` read a path into updates,
`numerics` computes numbers from an update, `pairs` and `base` compare updates with one another and
with the base, `results` holds the rows and arrays, `tables`, `figures` and `pages` show them, and
`store` writes them to disk. The commands are `spectrum`, `similarity`, `dynamics` and `page`;
`process` prepares the process of a command.
"""

__version__ = "0.1.0"


class UserError(ValueError):
    """An error that the user can mend; the commands print its message as one line.

    The message says where (file, module, option), what came and what was expected. Any other
    exception is a fault of the program and keeps its traceback.
    """


class CheckpointError(UserError):
    """A checkpoint, or one of its modules, that cannot be analysed."""


__all__ = ["CheckpointError", "UserError", "__version__"]

from analysis.process import start  # noqa: E402 (it uses the names above)

start.prepare()
