"""Measure time and peak memory of `python -m analysis.similarity` for two adapters.

It computes the φ grids of both sides, angles and cosines of 224 modules with LLaMA-7B's shapes.
Targets on two cores: r=16 float32 in 3 s, r=64 bfloat16 in 15 s, and peak resident memory below the
size of both files + 250 MB.
"""

import argparse
import sys

import ml_dtypes
import numpy as np

from benchmarks.spectrum import Case, time_command

CASES: tuple[Case, ...] = (
    (16, np.dtype(np.float32), 3.0),
    (64, np.dtype(ml_dtypes.bfloat16), 15.0),
)


def main(argv: list[str] | None = None) -> int:
    """Measure every case, print one line each and return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.similarity", description=__doc__)
    parser.add_argument("--repeat", type=int, default=7, help="runs per case (default 7)")
    return int(time_command("analysis.similarity", 2, CASES, parser.parse_args(argv).repeat))


if __name__ == "__main__":
    sys.exit(main())
