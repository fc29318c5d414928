"""Results → what a page shows, as a dict for JSON: names, and numbers as compact typed arrays.

An array is float32, little-endian, in base64, with nan for a number that is undefined. Its axes are
those of the lists in the dict: checkpoints, modules, measures, pairs.
"""

import base64
import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.base import landing
from analysis.names import printable, run_key
from analysis.numerics import null
from analysis.pairs import dominance
from analysis.pairs.dominance import Checkpoint
from analysis.results import AgainstBase, Row, Similarity, Spectra

EXACT = 64  # a spectrum of up to this many values is stored whole
FIRST, RATIO = 16, 1.12  # of a longer one the first values, and then one where the index grows so
CUT = 8  # φ(i, j) is stored for i, j up to this
PHI_BYTES = 1_500_000  # of φ in one page, before base64; further pairs are left out
BAND = 0.05  # the null band goes from this quantile to 1 minus it
NULLS = 100  # at most this many shapes have a null band

# Column of spectrum.csv, label, what it is, whether its colours and axes are logarithmic.
MEASURES = (
    ("democracy", "eff. rank / chance", "1: as even as a random update; below: dominated", False),
    ("top_share_1", "top-1 share", "energy in the largest value", False),
    ("top_share_1_beyond", "top-1 share − chance", "minus its mean for random updates", False),
    ("top_share_4", "top-4 share", "energy in the 4 largest values", False),
    ("top_share_16", "top-16 share", "energy in the 16 largest values", False),
    ("top_share_1pct", "top 1 % share", "energy in the top hundredth of all directions", False),
    ("top_share_10pct", "top 10 % share", "energy in the top tenth of all directions", False),
    ("effective_rank", "eff. rank", "exp of the entropy of s/Σs", False),
    ("energy_entropy_rank", "eff. rank of s²", "exp of the entropy of s²/Σs²", False),
    ("stable_rank", "stable rank", "Σs²/s₁²", False),
    ("participation_ratio", "participation ratio", "(Σs²)²/Σs⁴", False),
    ("gini", "Gini", "0: all values are equal", False),
    ("gini_beyond", "Gini − chance", "minus its mean for random updates", False),
    ("utilisation", "used", "eff. rank / capacity", False),
    ("energy_rank_50", "k for 50 % energy", "fewest directions that hold half of it", False),
    ("energy_rank_90", "k for 90 % energy", "fewest directions that hold nine tenths", False),
    ("energy_rank_99", "k for 99 % energy", "fewest directions that hold 99 %", False),
    ("spectral_norm", "‖ΔW‖₂", "the largest value, s₁", True),
    ("frobenius_norm", "‖ΔW‖_F", "√Σs²", True),
    ("nuclear_norm", "Σs", "the nuclear norm", True),
    ("rank", "rank", "values above the rank cutoff", False),
    ("capacity", "capacity", "the largest rank that the parametrisation allows", False),
    ("outliers", "outliers", "values above the edge of noise", False),
    ("floor", "noise floor", "bound of the rounding noise's largest value", True),
    ("above_floor", "values above the floor", "", False),
    ("effective_rank_denoised", "eff. rank, denoised", "without rounding noise", False),
    ("gini_denoised", "Gini, denoised", "without rounding noise", False),
    ("top_share_1_denoised", "top-1 share, denoised", "without rounding noise", False),
    ("relative_frobenius", "‖ΔW‖_F/‖W0‖_F", "size relative to the base", True),
    ("relative_spectral", "‖ΔW‖₂/‖W0‖₂", "size relative to the base", True),
    ("amplification_k", "amplification", "‖ΔW‖_F over what W0 does there", True),
    ("intruders", "intruders", "new directions among the top 10 of W0 + ΔW", False),
)  # fmt: skip
FIRST_OF_RANK_ONE = "spectral_norm"  # shown first where all measures of concentration are constant
SHAPE = ("d_out", "d_in", "r")  # stored like measures, to find the null of a module
SIDES = ("left", "right")


@dataclass(frozen=True, eq=False)
class Results:
    """Everything that one page shows.

    findings: the comparisons of `dominance.findings`; similarity, against: None if not computed.
    """

    spectra: Spectra
    findings: Sequence[dominance.Finding] = ()
    similarity: Similarity | None = None
    against: AgainstBase | None = None


def skipped_by_base(results: Results) -> list[dict[str, str]]:
    """Return what could be analysed, but not compared with the base."""
    skipped = results.against.skipped if results.against else []
    return [skip for skip in skipped if skip not in results.spectra.skipped]


def page_data(results: Results) -> Row:
    """Return everything that the script of a page needs, ready for strict JSON.

    checkpoints: {name, run, step, method}; modules: {name, layer, kind}; measures: {column, label,
    about, log}; first: the column that is shown first; shape: further columns; values (measures and
    shape, checkpoints, modules). spectra: see `_spectra`; null: see `_nulls`; phi and landing: see
    `_phi` and `_landing`, or None.
    """
    rows = results.spectra.rows
    places = _places(rows)
    extended = _extended(results)
    known = {column for row in extended for column, number in row.items() if number is not None}
    known -= set() if "floor" in known else {"above_floor"}  # which is the rank then
    measures = [m for m in MEASURES if m[0] in known]
    columns = [m[0] for m in measures] + list(SHAPE)
    return {
        "checkpoints": _checkpoints(rows),
        "modules": _modules(rows),
        "measures": [
            {"column": column, "label": label, "about": about, "log": log}
            for column, label, about, log in measures
        ],
        "first": FIRST_OF_RANK_ONE if all(row["capacity"] == 1 for row in rows) else columns[0],
        "shape": list(SHAPE),
        "values": encoded(_values(extended, columns, places)),
        "spectra": _spectra(results.spectra, places),
        "null": _nulls(rows),
        "phi": _phi(results, places),
        "landing": _landing(results.against, places),
    }


def encoded(values: np.ndarray) -> str:
    """Return an array as float32, little-endian, in base64; a value beyond float32 is infinite.

    >>> encoded(np.array([1.0]))
    'AACAPw=='
    """
    with np.errstate(over="ignore"):
        return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


def decoded(text: str) -> np.ndarray:
    """Return the array that `encoded` gave, flat, float32.

    >>> decoded("AACAPw==").tolist()
    [1.0]
    """
    return np.frombuffer(base64.b64decode(text), "<f4")


@functools.cache
def grid(k: int) -> tuple[int, ...]:
    """Return the indices, from 1, of those of k singular values that a page stores.

    All of them up to EXACT; of more, the first FIRST ones, then one wherever the index has grown by
    RATIO, and the last. The indices of a longer spectrum contain those of a shorter one but for its
    last, so that curves of different lengths can be averaged.

    >>> grid(3), len(grid(64)), grid(4096)[-3:]
    ((1, 2, 3), 64, (3434, 3846, 4096))
    """
    if k <= EXACT:
        return tuple(range(1, k + 1))
    powers = (round(FIRST * RATIO**n) for n in itertools.count())
    return (*range(1, FIRST), *itertools.takewhile(lambda index: index < k, powers), k)


# The parts of the dict

Place = tuple[int, int]  # index of the checkpoint, index of the module


def _checkpoints(rows: Sequence[Row]) -> list[Row]:
    """Return {name, run, step, method} of each checkpoint, in the order of the rows."""
    found: dict[Checkpoint, Row] = {}
    for row in rows:
        run, step = row["run"], row["step"]
        found.setdefault(
            (run, step),
            {
                "name": printable(run_key(run, step)),
                "run": printable(run),
                "step": step,
                "method": printable(row["method"] or ""),
            },
        )
    return list(found.values())


def module_name(row: Row) -> str:
    """Return the name of a row's update inside its checkpoint: module, or module#part."""
    return row["module"] + (f"#{row['part']}" if row["part"] else "")


def _modules(rows: Iterable[Row]) -> list[Row]:
    """Return {name, layer, kind} of each module and part, in order of first appearance."""
    found: dict[str, Row] = {}
    for row in rows:
        name = module_name(row)
        if name not in found:
            kind = printable(row["kind"] or "")
            found[name] = {"name": printable(name), "layer": row["layer"], "kind": kind}
    return list(found.values())


def _places(rows: Iterable[Row]) -> dict[str, Place]:
    """Return key -> (checkpoint, module) of each row, in the order of the lists above."""
    checkpoints: dict[Checkpoint, int] = {}
    modules: dict[str, int] = {}
    return {
        row["key"]: (
            checkpoints.setdefault((row["run"], row["step"]), len(checkpoints)),
            modules.setdefault(module_name(row), len(modules)),
        )
        for row in rows
    }


def _size(places: dict[str, Place]) -> Place:
    """Return the numbers of checkpoints and of modules."""
    return (
        1 + max((c for c, _ in places.values()), default=-1),
        1 + max((m for _, m in places.values()), default=-1),
    )


def _extended(results: Results) -> list[Row]:
    """Return the rows with what their measures are beyond chance, and with their base."""
    against = {row["key"]: row for row in results.against.rows} if results.against else {}
    wanted = {column for column, *_ in MEASURES}
    extended = []
    for row in results.spectra.rows:
        of_base = against.get(row["key"], {})
        further = {name: of_base[name] for name in wanted & of_base.keys() if name not in row}
        extended.append({**row, **further, **_beyond(row)})
    return extended


def _beyond(row: Row) -> Row:
    """Return the measures minus their chance, where the null was drawn."""
    if row["democracy"] is None:
        return {}
    by_chance = chance(row)
    return {
        "top_share_1_beyond": row["top_share_1"] - by_chance["top_share_1"].mean,
        "gini_beyond": row["gini"] - by_chance["gini_k"].mean,
    }


def chance(row: Row) -> dominance.Chances:
    """Return the measures of random updates of a row's shape, over all of their values."""
    return null.of_row(row, row["capacity"])


def _values(rows: Iterable[Row], columns: Sequence[str], places: dict[str, Place]) -> np.ndarray:
    """Return (columns, checkpoints, modules), nan where a number is undefined."""
    table = np.full((len(columns), *_size(places)), np.nan)
    for row in rows:
        numbers = [row.get(column) for column in columns]
        table[(slice(None), *places[row["key"]])] = [np.nan if n is None else n for n in numbers]
    return table


def _spectra(spectra: Spectra, places: dict[str, Place]) -> Row:
    """Return the singular values of every update at the indices of `grid`.

    grids: number of values -> indices; count (checkpoints, modules): number of values, nan where
    there is no such update; s, held: the values and the shares of the energy up to each, one update
    after the other in the order of `count`.
    """
    count = np.full(_size(places), np.nan)
    at = {place: spectra.s[key] for key, place in places.items()}
    s, held = [], []
    for place in sorted(at):
        of_update = at[place]
        count[place] = of_update.size
        indices = np.array(grid(of_update.size)) - 1
        s.append(of_update[indices])
        held.append(shares(of_update)[indices])
    return {
        "grids": {str(of_update.size): grid(of_update.size) for of_update in at.values()},
        "count": encoded(count),
        "s": encoded(np.concatenate(s)),
        "held": encoded(np.concatenate(held)),
    }


def shares(s: np.ndarray) -> np.ndarray:
    """Return the share of the energy in the first i values, (k,); nan for ΔW = 0.

    >>> shares(np.array([4.0, 3.0])).round(6).tolist()
    [0.64, 1.0]
    """
    if not s[0] > 0:
        return np.full(s.shape, np.nan)
    energy = np.cumsum((s / s[0]) ** 2)
    return energy / energy[-1]


def _nulls(rows: Sequence[Row]) -> Row:
    """Return d_out×d_in×r -> {at, low, median, high, held_low, held_median, held_high}.

    Quantiles of s/‖s‖_F and of the shares of the energy over random updates, at the indices `at`;
    r is 0 for dense updates. Only for the shapes whose null was drawn, at most NULLS.
    """
    found: Row = {}
    for row in rows:
        key = f"{row['d_out']}×{row['d_in']}×{row['r'] or 0}"
        if row["democracy"] is not None and key not in found and len(found) < NULLS:
            found[key] = _null(row)
    return found


@functools.cache
def _null_of(d_small: int, d_large: int, capacity: int, dense: bool) -> Row:
    drawn = null.normalised_spectra(d_small, d_large, capacity, dense=dense)
    indices = grid(drawn.shape[1])
    columns = np.array(indices) - 1
    held = np.cumsum(drawn**2, axis=1)[:, columns]
    result: Row = {"at": indices}
    for prefix, numbers in (("", drawn[:, columns]), ("held_", held)):
        quantiles = np.quantile(numbers, (BAND, 0.5, 1 - BAND), axis=0)
        for name, curve in zip(("low", "median", "high"), quantiles, strict=True):
            result[prefix + name] = [float(f"{x:.4g}") for x in curve]
    return result


def _null(row: Row) -> Row:
    dense = row["r"] is None
    capacity = row["capacity"] if dense else row["r"]
    return _null_of(*sorted((row["d_out"], row["d_in"])), capacity, dense)


def phi_pairs(rows: Sequence[Row]) -> list[tuple[Checkpoint, Checkpoint]]:
    """Return the pairs of checkpoints whose φ fits into PHI_BYTES, in the order of `pairs`."""
    modules = len({(row["module"], row["part"]) for row in rows})
    most = max(1, PHI_BYTES // max(1, modules * len(SIDES) * CUT**2 * 4))
    return dominance.pairs(rows)[:most]


def _phi(results: Results, places: dict[str, Place]) -> Row | None:
    """Return φ(i, j), i, j = 1…CUT, of the pairs that were compared.

    pairs: [index of a, index of b]; of: the number of pairs that there are; left, right: (pairs,
    modules, CUT, CUT), nan where φ is undetermined or beyond a capacity. None without a pair.
    """
    similarity = results.similarity
    if similarity is None or not similarity.rows:
        return None
    rows = results.spectra.rows
    checkpoints = {c: i for i, c in enumerate(dominance.checkpoints(rows))}
    order = {(checkpoints[a], checkpoints[b]): n for n, (a, b) in enumerate(phi_pairs(rows))}
    modules = {module_name(row): places[row["key"]][1] for row in rows}
    found = []
    for row in similarity.rows:
        name = module_name({"module": row["module"], "part": row["part_a"] or row["part_b"]})
        a, b = (checkpoints.get((row[f"run_{side}"], row[f"step_{side}"])) for side in "ab")
        if name in modules and a is not None and b is not None:
            pair = (a, b) if (a, b) in order else (b, a)
            if pair in order:
                found.append((pair, pair != (a, b), modules[name], row["key"]))
    if not found:
        return None
    pairs = sorted({pair for pair, *_ in found}, key=order.__getitem__)
    arrays = {side: np.full((len(pairs), _size(places)[1], CUT, CUT), np.nan) for side in SIDES}
    for pair, turned, module, key in found:
        for side, array in arrays.items():
            corner = similarity.phi[f"{key}#{side}"][:CUT, :CUT]
            corner = corner.T if turned else corner
            array[pairs.index(pair), module, : corner.shape[0], : corner.shape[1]] = corner
    return {
        "k": CUT,
        "pairs": pairs,
        "of": len(dominance.pairs(rows)),
        **{side: encoded(array) for side, array in arrays.items()},
    }


def _landing(against: AgainstBase | None, places: dict[str, Place]) -> Row | None:
    """Return where updates land in the deciles of W0's singular vectors, if it was computed.

    left, right (checkpoints, modules, 10): shares of ΔW's energy; left_chance, right_chance: those
    of random directions, the same axes.
    """
    landed = [row for row in (against.rows if against else ()) if row["left_1"] is not None]
    landed = [row for row in landed if row["key"] in places]
    if not landed:
        return None
    names = [f"{side}{what}" for side in SIDES for what in ("", "_chance")]
    arrays = {name: np.full((*_size(places), landing.DECILES), np.nan) for name in names}
    for row in landed:
        by_chance = landing.landing_chance(row["d_out"], row["d_in"]).columns()
        for side in SIDES:
            for decile in range(landing.DECILES):
                column = f"{side}_{decile + 1}"
                place = (*places[row["key"]], decile)
                arrays[side][place] = np.nan if row[column] is None else row[column]
                arrays[f"{side}_chance"][place] = by_chance[column]
    return {name: encoded(array) for name, array in arrays.items()}
