"""Run situations through the command, and make the table of docs/formats.md from what came out.

PYTHONPATH=tests python -m situations.table > docs/formats.md
"""

import contextlib
import io
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from analysis import spectrum, store
from situations import (
    SITUATIONS,
    Made,
    Situation,
    adapters,
    models,
    tools,
)  # each adds to SITUATIONS

HEAD = """# What can be read

Each row is a checkpoint that the tests write and give to `python -m analysis.spectrum`; the last
column is what came out: exit status 0 if all is read, 1 if in part, 2 if refused. Made by
`make formats` from `tests/situations`: do not edit it here.
`python -m analysis.spectrum --formats` prints one line per reader; its module in
`analysis/formats/` begins with the names of the tensors, their shapes and the rule of the scale.
"""


SECTIONS = (
    adapters.PEFT,
    adapters.OWN,
    tools.LANGUAGE,
    tools.IMAGES,
    tools.OWN_CODE,
    models.MODELS,
    models.NOTHING,
)


class Outcome(NamedTuple):
    """What the command made of a situation.

    status: its exit status; s: module or module#part → singular values; errors: lines of stderr.
    """

    status: int
    s: dict[str, np.ndarray]
    errors: list[str]


def outcome(made: Made, results: Path) -> Outcome:
    """Run the command on what was made; its results are written below `results`."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = spectrum.main([str(made.path), *made.options, "--out", str(results)])
    s = {}
    if (results / store.TABLE).exists():
        spectra, _ = store.load(results)
        for row in spectra.rows:
            name = row["module"] + (f"#{row['part']}" if row["part"] else "")
            s[name] = spectra.s[row["key"]]
    return Outcome(status, s, errors.getvalue().splitlines())


def cell(situation: Situation) -> list[str]:
    """Return the cells of a situation: format, files, options, what came out."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory).resolve() / "checkpoint"
        place.mkdir()
        made = situation.make(place)
        status, s, errors = outcome(made, Path(directory).resolve() / "results")
        options = " ".join(made.options).replace(f"{place}/base", "BASE").replace(f"{place}/", "")
        words = [
            error.replace("analysis.spectrum: ", "").replace(f"{place}", "…") for error in errors
        ]
    came = ["refused" if not s else "read in part" if status else "read"]
    return [
        situation.title,
        situation.files,
        f"`{options}`" if options else "",
        ": ".join([*came, *words[:1]]).replace("|", "\\|"),
    ]


def text() -> str:
    """Return docs/formats.md."""
    lines = [HEAD]
    ordered = sorted(SITUATIONS, key=lambda situation: SECTIONS.index(situation.section))
    for section, members in groupby(ordered, key=lambda situation: situation.section):
        lines += [f"## {section}", "", "| format | files | options | result |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(cell(situation))} |" for situation in members]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(text())
