"""Run every benchmark in turn: `make bench`. Each also runs alone, `python -m benchmarks.NAME`."""

from benchmarks import layers, spectrum

for benchmark in (spectrum, layers):
    print(f"== {benchmark.__name__}", flush=True)
    benchmark.main()
