"""Evidence on claim 4: overlap of the modules of MultiLoRA, and nearness to full fine-tuning."""

from collections.abc import Sequence

from analysis.numerics.statistics import Claim
from analysis.numerics.subspaces import SIDES
from analysis.results import Row
from multilora.reproduction.claims.evidence import (
    Evidence,
    Part,
    Supplement,
    between,
    measures,
    methods,
)
from multilora.reproduction.claims.wording import mean_text, over_seeds
from multilora.reproduction.tables import Tables

# Claim 4a: overlap.csv

ZERO = "multilora zero"  # MultiLoRA with the start of LoRA: B at zero
INDEPENDENT = {
    side: (
        Part(
            Claim(
                f"MultiLoRA's start makes its modules less dependent, {side}",
                f"{side}_phi_k",
                direction=-1,
                delta=0.04,
                secondary={f"{side}_above_null": -1},
            ),
            what=f"φ(r, r) between modules, {side}, MultiLoRA − MultiLoRA with B at zero",
            why="a third of one direction of r = 8",
        ),
    )
    for side in SIDES
}


def independent_left(measured: Tables) -> Evidence:
    """Evidence on claim 4a, output directions."""
    return _independent(measured, "left")


def independent_right(measured: Tables) -> Evidence:
    """Evidence on claim 4a, input directions."""
    return _independent(measured, "right")


def _independent(measured: Tables, side: str) -> Evidence:
    rows = measured.of("overlap")
    if not rows:
        return Evidence(notes=["There is no overlap.csv."])
    differences, notes = between(rows, "multilora", ZERO, measures(INDEPENDENT[side]))
    supplements = [_overlaps(rows)] if side == "left" else []
    return Evidence(differences, notes, supplements)


def _overlaps(rows: Sequence[Row]) -> Supplement:
    """Table of the overlap between modules on both sides, one row per method."""
    headings = {
        "left_phi_k": "left",
        "left_null_k": "left, different seeds",
        "left_chance_k": "left by chance",
        "right_phi_k": "right",
        "right_null_k": "right, different seeds",
        "right_chance_k": "right by chance",
        "cosine": "abs. cosine",
    }
    cells = [["", "n", "r", *headings.values()]]
    for method in methods(rows):
        first = next(row for row in rows if row["method"] == method)
        numbers = [over_seeds(rows, method, column) for column in headings]
        cells.append([method, str(first["n"]), str(first.get("r", "–")), *numbers])
    title = (
        "φ(r, r) between the modules of one run, means over pairs; different seeds: between modules"
        " of two runs from one base"
    )
    return Supplement(title, cells)


# Claims 4b, 4c, 4d: nearness.csv

NEARER = {
    side: (
        Part(
            Claim(
                f"MultiLoRA is nearer to full fine-tuning, {side}",
                f"{side}_phi_k",
                direction=+1,
                delta=0.04,
                secondary={f"{side}_above_chance": +1},
            ),
            what=f"φ(k, k) with full, {side}, MultiLoRA − LoRA",
            why="one direction of k = 24",
        ),
    )
    for side in SIDES
}
SHAPE = (
    Part(
        Claim(
            "the spectrum of MultiLoRA is nearer to that of full fine-tuning",
            "log_distance",
            direction=-1,
            delta=0.1,
        ),
        what="log distance to the spectrum of full, MultiLoRA − LoRA",
        why="values that differ by a tenth",
    ),
)


def nearer_left(measured: Tables) -> Evidence:
    """Evidence on claim 4b: how near the output directions are to those of full fine-tuning."""
    return _nearer(measured, NEARER["left"], "left")


def nearer_right(measured: Tables) -> Evidence:
    """Evidence on claim 4c: how near the input directions are to those of full fine-tuning."""
    return _nearer(measured, NEARER["right"], "right")


def nearer_in_shape(measured: Tables) -> Evidence:
    """Evidence on claim 4d: how near the spectrum is to that of full fine-tuning."""
    return _nearer(measured, SHAPE)


def _nearer(measured: Tables, parts: Sequence[Part], side: str = "") -> Evidence:
    rows = measured.of("nearness")
    if not rows:
        return Evidence(notes=["There is no nearness.csv; it needs two seeds of a method."])
    differences, notes = between(rows, "multilora", "lora", measures(parts), reference="full")
    supplements = [_repeatability(rows, side)] if differences and side else []
    return Evidence(differences, notes, supplements)


def _repeatability(rows: Sequence[Row], side: str) -> Supplement:
    """Table of φ(k, k) with full fine-tuning and with a method's own other seeds."""
    cells = [["", "k", "with full", "with its own other seeds", "by chance", "log distance"]]
    for method in methods(rows):
        of_method = [row for row in rows if row["method"] == method]
        with_full = [row for row in of_method if row["reference"] == "full"]
        with_itself = [row for row in of_method if row["reference"] == method]
        chance = [row.get(f"{side}_chance_k") for row in with_full]
        cells.append(
            [
                method,
                str(with_full[0]["k"] if with_full else "–"),
                mean_text(row[f"{side}_phi_k"] for row in with_full),
                mean_text(row[f"{side}_phi_k"] for row in with_itself),
                mean_text(chance[:1]),
                mean_text(row.get("log_distance") for row in with_full),
            ]
        )
    title = (
        f"φ(k, k), {side}, and log distance of the spectra, over pairs of different seeds from one"
        " base"
    )
    return Supplement(title, cells)
