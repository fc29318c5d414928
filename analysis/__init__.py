"""Look at what training did to the weights: the spectrum of every ΔW in a checkpoint.

The data flows one way, a module an arrow:
checkpoint → update → decompose → metrics (beside null, floor) → spectrum → store.
"""


class CheckpointError(Exception):
    """A checkpoint, or one module of it, cannot be analysed; the message is one line for a user.

    It names the file, the module, what came and what was expected.
    """


__all__ = ["CheckpointError"]
