"""Names, colours and lines of the methods, the same in every figure."""

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
NAMES = {
    "full": "full fine-tuning",
    "lora": "LoRA",
    "lora r=26": "LoRA, rank 26",
    "lora+": "LoRA+",
    "multilora": "MultiLoRA",
    "multilora s×5": "MultiLoRA, s×5",
    "multilora zero": "MultiLoRA, zero start",
    "multilora n=1": "MultiLoRA, n = 1",
    "multilora n=1 zero": "MultiLoRA, n = 1, zero start",
    "rlora": "R-LoRA",
    "mtllora": "MTL-LoRA",
    "expert": "one LoRA per task",
}
# How variants differ from the method, where there is room for it.
MEANING = {
    "lora r=26": "more parameters",
    "lora+": "B's rate × 4",
    "multilora": "n = 3, B random, s = 0",
    "multilora s×5": "n = 3, s's rate × 5",
    "multilora zero": "n = 3, B = 0, s = 1",
    "multilora n=1": "B random, s = 0",
    "multilora n=1 zero": "B = 0, s = 1",
}
PEFT = "peft:"


def name_of(method: str) -> str:
    """Return the name of a method as papers write it; of a method without one, its own.

    >>> name_of("multilora"), name_of("peft:DORA"), name_of("lora r=8")
    ('MultiLoRA', 'DORA (PEFT)', 'lora r=8')
    """
    if method.startswith(PEFT):
        return f"{method.removeprefix(PEFT)} (PEFT)"
    return NAMES.get(method, method)


def long_name_of(method: str) -> str:
    """Return the name of a method, for a variant followed by how it differs.

    >>> long_name_of("lora+"), long_name_of("lora")
    ("LoRA+ (B's rate × 4)", 'LoRA')
    """
    name = name_of(method)
    return f"{name} ({MEANING[method]})" if method in MEANING else name


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """Return {method: colour and line}; methods without their own get spare ones, in order."""
    spare = map(style, itertools.count(6))
    return {method: STYLES.get(method) or next(spare) for method in dict.fromkeys(methods)}


def ordered(rows: Iterable[Row]) -> Sequence[str]:
    """Return the methods of the rows: those in STYLES in its order, then the others."""
    present = dict.fromkeys(row["method"] for row in rows)
    return [*(m for m in STYLES if m in present), *(m for m in present if m not in STYLES)]
