"""Look at what training did to the weights: the spectrum of every ΔW in a checkpoint.

The data flows one way: a path → `checkpoint` → updates → `numerics` → `results` → `tables`,
`figures` and, on disk, `store`. The commands are `spectrum`, `similarity` and `dynamics`.
"""

__version__ = "0.1.0"


class UserError(ValueError):
    """Something that the user can mend; the commands print the message as one line.

    The message says where (file, module, option), what came and what was expected. Any other
    exception is a fault of the program and keeps its traceback.
    """


class CheckpointError(UserError):
    """A checkpoint, or one module of it, that cannot be analysed."""


__all__ = ["CheckpointError", "UserError", "__version__"]
