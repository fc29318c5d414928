"""Results of many checkpoints and modules, and pages of them, without analysing each."""

import numpy as np
from made_updates import low_rank

from analysis import names, spectrum
from analysis.checkpoint import Run
from analysis.numerics import subspaces
from analysis.results import Similarity, Spectra

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def analysed(rng, modules, run="one", step=None, d=48, r=8):
    """The spectra of random updates of some modules in one run."""
    entries = [
        low_rank(
            rng.standard_normal((d, r)) * np.arange(1.0, r + 1) ** -rng.uniform(0, 2),
            rng.standard_normal((r, d)),
            name=name,
        )
        for name in modules
    ]
    return spectrum.of_updates(entries, Run(names.run_key(run, step), run, step))


def named(layers, kinds=KINDS):
    return [f"model.layers.{layer}.self_attn.{kind}" for layer in range(layers) for kind in kinds]


def together(*several):
    result = Spectra()
    for spectra in several:
        result.rows.extend(spectra.rows)
        result.s.update(spectra.s)
        result.skipped.extend(spectra.skipped)
        result.other.extend(spectra.other)
    return result


def many(rng, runs, layers, r=8):
    """Checkpoints of layers × 7 modules that differ a little; the spectra of one are computed."""
    first = analysed(rng, named(layers), "run0", r=r, d=max(48, 2 * r))
    result = Spectra()
    for n in range(runs):
        factors = rng.uniform(0.8, 1.2, (len(first.rows), r))
        for row, factor in zip(first.rows, factors, strict=True):
            key = names.update_key(f"run{n}", row["module"], None)
            s = np.sort(first.s[row["key"]] * (factor if n else 1.0))[::-1]
            share = float(s[0] ** 2 / np.sum(s**2))
            new = {"key": key, "run": f"run{n}", "top_share_1": share}
            new["frobenius_norm"] = float(np.linalg.norm(s))
            new["spectral_norm"] = float(s[0])
            result.rows.append(row | new)
            result.s[key] = s
    return result


def shared(rng, spectra, pairs, k=8):
    """A Similarity of random grids of φ between runs, for every module that both have."""
    result = Similarity()
    of = {}
    for row in spectra.rows:
        of.setdefault((row["run"], row["step"]), {})[row["module"]] = row
    for a, b in pairs:
        for module in of[a].keys() & of[b].keys():
            row_a, row_b = of[a][module], of[b][module]
            key = f"{row_a['key']}~{row_b['key']}"
            row = dict.fromkeys(subspaces.COLUMNS)
            row |= {"key": key, "module": module, "part_a": None, "part_b": None}
            row |= {"run_a": a[0], "step_a": a[1], "run_b": b[0], "step_b": b[1]}
            result.rows.append(row)
            for side in ("left", "right"):
                result.phi[f"{key}#{side}"] = rng.uniform(0, 1, (k, k))
    return result
