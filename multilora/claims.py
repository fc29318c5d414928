"""Judge the paper's claims from the tables in a results directory.

    python -m multilora.claims DIR [--json]

DIR holds what multilora.reproduce wrote, as figures/quick. Nothing is written; the verdicts follow
from the tables alone. What is claimed, by which measure, on which side and by how much is fixed
in CLAIMS. The tables (CSV; a claim whose table is absent is not measured):

methods.csv       a row a run: method, seed, k, measures of ΔW and scores (reproduction.measures)
sweep.csv         a row a run of the sweep: method, learning_rate, the measures of methods.csv,
                  chosen (0, 1)
nearness.csv      a row a run and method: φ(k, k) with that method's runs of other seeds
overlap.csv       a row a run of MultiLoRA: φ(r, r) between its modules
llama_budget.csv  a row a LLaMA and n: the r that is nearest to 2.5 % of its parameters
grid.csv          a row a run: setting, value, seed, method, k, the measures of methods.csv; for
                  claims 4a to 4c overlap_above_chance, left_phi_k, right_phi_k (with full)
cuts.csv          a row a run and cut: method, seed, kind (keep, remove), k, score_<family>, score
wild.csv          a row a module: adapter, step, module, kind, r, top_share_1, null_top_share_1
"""

import argparse
import json
import sys
from collections.abc import Sequence

from analysis import __version__
from multilora import command
from multilora.reproduction.claims.judge import judge
from multilora.reproduction.claims.text import as_json, as_markdown
from multilora.reproduction.tables import load


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m multilora.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", metavar="DIR", help="what multilora.reproduce wrote")
    parser.add_argument("--json", action="store_true", help="print claims.json instead")
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def _judged(arguments: argparse.Namespace) -> str:
    """Return claims.md, or claims.json, for the tables of a directory."""
    measured = load(arguments.directory)
    for note in measured.notes:
        print(f"multilora.claims: {note}", file=sys.stderr)
    judged = judge(measured)
    if arguments.json:
        return json.dumps(as_json(judged), indent=1, allow_nan=False)
    return as_markdown(judged, measured.record).rstrip("\n")


def main(argv: Sequence[str] | None = None) -> int:
    return command.run("multilora.claims", parse=lambda: _parser().parse_args(argv), work=_judged)


if __name__ == "__main__":
    sys.exit(main())
