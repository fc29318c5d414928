"""Copy the results of a reproduction to the directory of published figures."""

import shutil
from pathlib import Path

from analysis import UserError
from analysis.files import exchange
from multilora.reproduction import tables
from multilora.reproduction.claims import judge

KINDS = (".csv", ".json", ".md", ".png", ".pdf", ".safetensors")


def publish(results: Path, to: Path) -> None:
    """Copy tables, blocks, figures, claims and record to `to`, then remove those of an earlier run.

    A block that `to` has and the results lack is kept: blocks can be made on different days. The
    claims are judged again, so that the tables in to/earlier are shown beside. Raises UserError if
    both are the same directory.
    """
    if results.resolve() == to.resolve():
        raise UserError(f"{results}: expected another directory than {to}, which is published to")
    for block in sorted((results / tables.BLOCKS).glob("*")):
        _exchange(block, to / tables.BLOCKS / block.name)
    _exchange(results, to)
    judge.write(to)


def _exchange(source: Path, to: Path) -> None:
    """Replace the files of these kinds in a directory by those of another, all or none."""
    to.mkdir(parents=True, exist_ok=True)
    fresh, before = _files(source), _files(to)
    stale = {file.name for file in before} - {file.name for file in fresh}
    with exchange.replacing(to, stale) as new:
        for file in fresh:
            shutil.copyfile(file, new / file.name)


def _files(directory: Path) -> list[Path]:
    """Return the files of the published kinds in a directory."""
    return [f for f in sorted(directory.iterdir()) if f.suffix in KINDS and f.is_file()]
