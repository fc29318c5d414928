"""Colours and lines of the methods, the same in every figure."""

import itertools
from collections.abc import Iterable, Sequence

from analysis.figures.spectrum import Style, style
from analysis.results import Row

FULL, LORA, MULTILORA, MTLLORA, RLORA, EXPERT = (style(i)["color"] for i in (0, 1, 2, 3, 4, 5))
# One colour for each kind of method, one line for each variant of it.
STYLES: dict[str, Style] = {
    "full": {"color": FULL, "linestyle": "-"},
    "lora": {"color": LORA, "linestyle": "--"},
    "lora r=26": {"color": LORA, "linestyle": (0, (8, 2))},
    "lora+": {"color": LORA, "linestyle": ":"},
    "multilora": {"color": MULTILORA, "linestyle": "-."},
    "multilora s×5": {"color": MULTILORA, "linestyle": ":"},
    "multilora zero": {"color": MULTILORA, "linestyle": (0, (5, 1, 1, 1))},
    "multilora n=1": {"color": MULTILORA, "linestyle": (0, (8, 2))},
    "multilora n=1 zero": {"color": MULTILORA, "linestyle": (0, (3, 1, 1, 1, 1, 1))},
    "rlora": {"color": RLORA, "linestyle": "--"},
    "mtllora": {"color": MTLLORA, "linestyle": ":"},
    "expert": {"color": EXPERT, "linestyle": "-"},
}


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """Return {method: colour and line}; methods without their own get spare ones, in order."""
    spare = map(style, itertools.count(6))
    return {method: STYLES.get(method) or next(spare) for method in dict.fromkeys(methods)}


def ordered(rows: Iterable[Row]) -> Sequence[str]:
    """Return the methods of the rows: those in STYLES in its order, then the others."""
    present = dict.fromkeys(row["method"] for row in rows)
    return [*(m for m in STYLES if m in present), *(m for m in present if m not in STYLES)]
