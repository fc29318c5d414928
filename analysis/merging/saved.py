"""What adapters save besides their updates: heads, biases, trained rows of an embedding.

They are weights of the base as a whole and no update of it, so no method of merging applies.
"""

from collections.abc import Sequence

import numpy as np

from analysis import UserError
from analysis.checkpoint import Run
from analysis.formats import peft
from analysis.update import float64

FIRST, NONE = "first", "none"
SHOWN = 3  # names in a message


def carried(
    runs: Sequence[Run], others: Sequence[dict[str, str]], saved: str | None
) -> dict[str, np.ndarray]:
    """Return the tensors besides the updates that the merged adapter takes over, by their names.

    others: what `checkpoint.scan` yields as Other, as results list it.
    saved: FIRST takes those of the first adapter; NONE leaves them out; None takes them if they are
        the same in all adapters. Raises UserError otherwise, naming a tensor and the adapters.
    """
    if saved == NONE:
        return {}
    of_runs = [_tensors(run, others) for run in runs]
    if saved is None:
        differing = [
            name
            for name in dict.fromkeys(name for of_run in of_runs for name in of_run)
            if not all(_same(of_runs[0].get(name), of_run.get(name)) for of_run in of_runs)
        ]
        if differing:
            more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
            raise UserError(
                f"{', '.join(differing[:SHOWN])}{more}: saved whole, and not the same in"
                f" {', '.join(str(run.path) for run in runs)}; expected equal tensors, which no"
                f" method merges: pass --saved {FIRST} to take those of {runs[0].path}, or --saved"
                f" {NONE} to leave them out"
            )
    return of_runs[0]


def _tensors(run: Run, others: Sequence[dict[str, str]]) -> dict[str, np.ndarray]:
    """Return the tensors of a PEFT adapter that `others` lists for it."""
    names = [other["name"] for other in others if other["run"] == run.key and "kind" not in other]
    if not names or run.source is None or run.source.family is not peft:
        return {}
    place = run.source.place
    stored = place.tensors(peft.weights(place))
    return {name: stored[name].load() for name in names if name in stored}


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and np.array_equal(float64(a), float64(b), equal_nan=True)
