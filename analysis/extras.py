"""Say which extra of this package brings a library that is missing.

The base install reads adapters and compares them; whatever needs more is an extra:
`pip install 'multilora[dense]'`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from analysis import UserError

# Library -> the extra that brings it, the smallest that does.
EXTRA_OF = {
    "scipy": "dense",
    "torch": "dense",
    "transformers": "train",
    "tokenizers": "train",
    "peft": "train",
    "accelerate": "train",
    "huggingface_hub": "hub",
    "datasets": "hub",
    "matplotlib": "figures",
    "pandas": "notebooks",
    "seaborn": "notebooks",
    "IPython": "notebooks",
    "gguf": "models",
    "bitsandbytes": "quantised",
    "dask": "scale",
    "distributed": "scale",
    "lm_eval": "harness",
}


class MissingLibraryError(ImportError, UserError):
    """A library that an extra of this package brings, and that is not installed."""


@contextmanager
def named() -> Iterator[None]:
    """Turn the failure of an import in the block into an error that names the extra.

    Raises MissingLibraryError for a library of EXTRA_OF that is not installed.

    >>> with named():
    ...     raise ModuleNotFoundError("No module named 'scipy'", name="scipy")
    Traceback (most recent call last):
    analysis.extras.MissingLibraryError: needs scipy: python -m pip install 'multilora[dense]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in EXTRA_OF:
            raise
        advice = f"python -m pip install 'multilora[{EXTRA_OF[library]}]'"
        raise MissingLibraryError(f"needs {library}: {advice}", name=library) from None
