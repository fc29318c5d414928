"""Run every benchmark in turn (`make bench`); one alone runs as `python -m benchmarks.NAME`."""

import sys

from benchmarks import callback, dense, fuzz, layers, memory, similarity, spectrum, tasks, training

statuses = []
for benchmark in (spectrum, dense, similarity, callback, layers, training, tasks, memory, fuzz):
    print(f"== {benchmark.__name__}", flush=True)
    statuses.append(benchmark.main([]))
sys.exit(max(statuses))
