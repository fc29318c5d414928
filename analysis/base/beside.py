"""Go through the updates of checkpoints, each with the weight of the base that it changes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from analysis import CheckpointError, checkpoint
from analysis.base.weights import Base, open_base
from analysis.checkpoint import Run
from analysis.formats import Options
from analysis.names import expression
from analysis.numerics import parallel
from analysis.pairs import meeting
from analysis.pairs.meeting import Collected
from analysis.pairs.members import Listed, Members, over_modules
from analysis.results import AgainstBase, Row
from analysis.update import Update

One = TypeVar("One", bound=Listed)


@dataclass(frozen=True, eq=False)
class Beside:
    """The updates of checkpoints, and their base.

    collected: the updates; a run that does not fit the base is noted as skipped.
    bases: run key → the base, opened for the modules of the run; without runs that do not fit.
    """

    runs: list[Run]
    collected: Collected
    bases: dict[str, Base]

    @property
    def updates(self) -> list[Update]:
        """The updates of all runs that fit the base."""
        fitting = [run for run in self.runs if run.key in self.bases]
        return [update for run in fitting for update in self.collected.updates(run)]

    def rows(
        self,
        listed: Callable[[Members, Run], Sequence[One]],
        row: Callable[[One, np.ndarray], Row],
        progress: bool,
    ) -> AgainstBase:
        """Return the row of each update, module by module; what fails is noted as skipped.

        listed: the updates of one run in a module, decomposed (`Members.of`) or not
            (`Members.listed`).
        row: takes one of them and its W0 (d_out, d_in).
        progress: show a bar on stderr if it takes longer than two seconds.
        """

        def job(members: Members) -> list[Row]:
            rows = []
            for run in (run for run in self.runs if run.key in self.bases):
                for one in listed(members, run):
                    try:
                        rows.append(row(one, self.bases[run.key].weight(one.update)))
                    except CheckpointError as error:
                        members.skip(run, str(error))
                    except MemoryError:
                        members.skip(run, f"{run.path}: {members.module}: does not fit into memory")
            return rows

        with parallel.reproducible():
            of_modules = over_modules(job, self.collected, progress)
            rows = [row for of_module in of_modules for row in of_module]
        return AgainstBase(rows, self.collected.skipped, self.collected.other)


def collect(
    paths: Sequence[str | Path | Run],
    model: str | Path,
    options: Options | None,
    modules: str | None,
    rename: Sequence[meeting.Rename] = (),
) -> Beside:
    """Return the updates of the checkpoints at `paths` beside their base `model`.

    options, modules, rename: as for `landing.analyse`.
    """
    options = checkpoint.with_base(options, model)
    runs = checkpoint.runs(paths, options.revision)
    collected = meeting.collect(runs, options, expression(modules), rename)
    bases = {}
    for run in runs:
        try:
            if collected.names(run):
                bases[run.key] = open_base(model, [u.name for u in collected.updates(run)])
        except CheckpointError as error:
            collected.skip(run, "", f"{run.path}: {error}")
    return Beside(runs, collected, bases)
