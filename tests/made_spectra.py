"""Spectra with known values, as if checkpoints had been analysed."""

import numpy as np

from analysis import results
from analysis.results import Spectra


def spectra(**runs):
    """run -> module -> s, as if analysed; all of them 64×48, a part after #, a step after @."""
    result = Spectra()
    for name, modules in runs.items():
        run, _, step = name.partition("_at_")
        for module, s in modules.items():
            s = np.sort(np.asarray(s, float))[::-1]
            row = dict.fromkeys(results.COLUMNS) | {"key": f"{name}/{module}", "run": run}
            row |= {"step": int(step) if step else None, "kind": module.split("#")[0][:1]}
            row["module"], _, part = module.partition("#")
            row |= {"part": part or None, "d_out": 64, "d_in": 48}
            row |= {"r": s.size, "capacity": s.size}
            row |= {"spectral_norm": s[0], "rank": int(np.sum(s > 1e-12 * s[0]))}
            result.rows.append(row)
            result.s[row["key"]] = s
    return result


def power(k, exponent, modules=4):
    """Modules with the power law i^-exponent, a little different from one another."""
    return {f"q{i}": np.arange(1.0, k + 1) ** -(exponent + i / 100) for i in range(modules)}
