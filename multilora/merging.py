"""Merge the experts of a bank by every method, and score each merge on all of their tasks.

    python -m multilora.merging RUN [--per_task 50] [--out DIR]

RUN is a finished run of `multilora.train --method expert`, a LoRA for each task. A merge is scaled
by the factor with the lowest validation loss, and scored on test items: the share of right answers,
and the loss per token of the right answers in nats (nll). "sum^p" is the sum with its singular
values to the power p at one norm, "base" the model itself, "apart" every expert on its own task.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import UserError, store
from multilora import command
from multilora.reproduction.studies import merging
from multilora.reproduction.trained import trained


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write it to --out, and return the exit status."""
    parser = command.parser_of("multilora.merging", __doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run of --method expert")
    parser.add_argument("--per_task", type=int, default=50, help="items of each task (default 50)")
    parser.add_argument(
        "--out", metavar="DIR", help=f"write {merging.TABLE} and {store.RECORD} there"
    )
    return command.run("multilora.merging", parse=lambda: parser.parse_args(argv), work=_measure)


def _measure(arguments: argparse.Namespace) -> str:
    """Return the table, and write it to --out."""
    if arguments.per_task < 1:
        raise UserError(f"per_task is {arguments.per_task}; expected at least 1")
    run = trained(arguments.run)
    rows = merging.table(run, Path(run.facts["base"]["path"]), arguments.per_task)
    if arguments.out:
        given = {"run": str(arguments.run), "per_task": arguments.per_task}
        made_by = store.record("multilora.merging", [arguments.run], given)
        store.write(
            arguments.out, {}, {merging.TABLE: store.csv_text(rows, merging.COLUMNS)}, made_by
        )
    return merging.as_table(rows)


if __name__ == "__main__":
    sys.exit(main())
