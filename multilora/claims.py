"""Judge the paper's claims from the tables in a results directory.

    python -m multilora.claims DIR [--json]

DIR holds the results of multilora.reproduce, as figures/quick. Nothing is written; the verdicts
follow from the tables alone. The measure, direction and bound of each claim are fixed in
multilora/reproduction/claims. A claim whose table is missing is not measured. The tables (CSV):

methods.csv       one row per run: method, seed, k, measures of ΔW and their null, scores
sweep.csv         one row per run of the sweeps: method, learning_rate, the measures of methods.csv,
                  chosen (0, 1)
dynamics.csv      one row per run and step: method, seed, step, measures, validation_loss
nearness.csv      one row per run and method: φ(k, k) with that method's runs of other seeds
overlap.csv       one row per run of MultiLoRA: φ(r, r) between its modules
llama_budget.csv  one row per LLaMA and n: the r nearest to 2.5 % of its parameters
grid.csv          one row per run of the grid: setting, value, seed, method, k, the measures of
                  methods.csv, φ(k, k) and log_distance with full fine-tuning
cuts.csv          one row per run and cut: method, seed, kind (keep, remove), k, score_<family>,
                  score
rounding_floor.csv  one row per full fine-tuning and ratio ‖ΔW‖/‖W0‖: its spectrum after bfloat16
wild.csv          one row per module: adapter, step, module, kind, r, top_share_1, null_top_share_1

The tables of an earlier reproduction in DIR/earlier are judged too and shown in a column beside.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from multilora import command
from multilora.reproduction.claims.judge import of_results
from multilora.reproduction.claims.text import as_json, as_markdown


def main(argv: Sequence[str] | None = None) -> int:
    """Print the judged claims and return the exit status."""
    return command.run("multilora.claims", parse=lambda: _parser().parse_args(argv), work=_judged)


def _parser() -> argparse.ArgumentParser:
    parser = command.parser_of("multilora.claims", __doc__)
    parser.add_argument("directory", metavar="DIR", help="results of multilora.reproduce")
    parser.add_argument("--json", action="store_true", help="print claims.json instead")
    return parser


def _judged(arguments: argparse.Namespace) -> str:
    """Return claims.md, or claims.json, for the tables of a directory."""
    judged, measured, earlier = of_results(Path(arguments.directory))
    for note in measured.notes:
        print(f"multilora.claims: {note}", file=sys.stderr)
    if arguments.json:
        return json.dumps(as_json(judged, earlier), indent=1, allow_nan=False)
    return as_markdown(judged, measured.record, earlier).rstrip("\n")


if __name__ == "__main__":
    sys.exit(main())
