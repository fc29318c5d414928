"""Run every benchmark in turn: `make bench`. Each also runs alone, `python -m benchmarks.NAME`."""

from benchmarks import fuzz, layers, memory, spectrum

for benchmark in (spectrum, layers, memory, fuzz):
    print(f"== {benchmark.__name__}", flush=True)
    benchmark.main()
