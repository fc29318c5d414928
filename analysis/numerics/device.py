"""The device on which dense matrices are decomposed: the CPU, or a GPU by way of CUDA.

    with device.using("cuda"), device.told():
        decompose.spectrum(update)

One matrix is on the device at a time, and of it only the Gram matrix and a block of rows, so that
the memory it takes is bounded by the largest matrix. While the device computes, the next matrix is
read (`parallel.one_ahead`). Both devices compute in the same precision with the same error bounds;
their last digits differ.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from analysis import UserError, extras

CPU, CUDA = "cpu", "cuda"
NAMES = (CPU, CUDA)
_current: ContextVar[str] = ContextVar("device", default=CPU)


def current() -> str:
    """Return the name of the device, as torch takes it.

    >>> current()
    'cpu'
    """
    return _current.get()


@contextmanager
def using(name: str) -> Iterator[None]:
    """Let the block decompose on a device of NAMES; UserError if there is no GPU for "cuda".

    >>> with using("cpu"):
    ...     current()
    'cpu'
    """
    if name == CUDA:
        with extras.named():
            import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no GPU here; expected one, or --device cpu")
    before = _current.set(name)
    try:
        yield
    finally:
        _current.reset(before)


@contextmanager
def told() -> Iterator[None]:
    """Turn what a GPU fails with into errors that say what to do.

    MemoryError if a matrix does not fit on it, as on the CPU; UserError if it is lost: nothing more
    can be computed on it by this process.

    >>> with told():
    ...     current()
    'cpu'
    """
    if current() == CPU:
        yield
        return
    with extras.named():
        import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise MemoryError(_line(error)) from None
    except RuntimeError as error:
        if "CUDA" not in str(error):
            raise
        raise UserError(
            f"--device cuda: the GPU is lost: {_line(error)}; what is finished is kept with --out:"
            " repeat the command, with --device cpu if it stays away"
        ) from None


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
