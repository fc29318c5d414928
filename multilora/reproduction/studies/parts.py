"""Compare the updates of tasks, and of heads, that one run has for each module."""

from collections.abc import Iterable

from analysis import UserError, similarity
from analysis.names import layer_of
from analysis.numerics.statistics import mean
from analysis.results import Row, grouped
from multilora.reproduction.trained import Trained

MEASURES = ("cosine", "left_phi_1", "right_phi_1", "left_phi_k", "right_phi_k")


def table(runs: Iterable[Trained]) -> list[Row]:
    """Return parts.csv: one row per run, layer and pair of parts, means over modules.

    The parts are tasks of MTL-LoRA and of experts, heads of R-LoRA. cosine: of the two ΔW;
    left_phi_1, …: φ(1, 1) and φ(k, k) of output and input directions. layer: the number in the
    names of the modules, "all" for the mean over all of them. Raises UserError for a run whose
    modules have one update.
    """
    rows: list[Row] = []
    for run in runs:
        pairs = [
            row for row in similarity.analyse(run.path).inside
            if "mean" not in (row["part_a"], row["part_b"])
        ]  # fmt: skip
        if not pairs:
            raise UserError(f"{run.path}: its modules have one update each; expected parts")
        of_run = {"method": run.method, "seed": run.seed}
        for (a, b), of_pair in grouped(pairs, "part_a", "part_b").items():
            by_layer: dict[str, list[Row]] = {"all": of_pair}
            for row in of_pair:
                by_layer.setdefault(str(layer_of(row["module"])), []).append(row)
            for layer, own in by_layer.items():
                row = of_run | {"part_a": a, "part_b": b, "layer": layer}
                rows.append(row | {name: mean(of[name] for of in own) for name in MEASURES})
    return rows
