"""Copy the results of a reproduction to the directory of published figures."""

import shutil
from functools import partial
from pathlib import Path

from analysis import UserError, store

KINDS = (".csv", ".json", ".md", ".png", ".pdf")
# Too large to be committed: numbers and singular values of every module.
UNPUBLISHED = ("spectrum.csv", "spectra.safetensors")


def publish(results: Path, to: Path) -> None:
    """Copy tables, figures, claims and record to `to`, then remove those of an earlier run.

    Raises UserError if both are the same directory.
    """
    if results.resolve() == to.resolve():
        raise UserError(f"{results}: expected another directory than {to}, which is published to")
    fresh = [file for file in _files(results) if file.name not in UNPUBLISHED]
    to.mkdir(parents=True, exist_ok=True)
    for file in fresh:
        store.replace(to / file.name, partial(shutil.copyfile, file))
    kept = {file.name for file in fresh}
    for file in _files(to):
        if file.name not in kept:
            file.unlink()


def _files(directory: Path) -> list[Path]:
    """Return the files of the published kinds in a directory."""
    return [f for f in sorted(directory.iterdir()) if f.suffix in KINDS and f.is_file()]
