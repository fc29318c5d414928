"""Set the style of a notebook, read the results that it shows, and show verdicts on claims.

The notebooks of the repository are the users. pandas and matplotlib are imported when they are
needed; IPython comes with the extra `notebooks`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import UserError
from multilora.reproduction.pictures.styles import STYLES

COLOR = {method: look["color"] for method, look in STYLES.items()}  # as in all figures
SHOWN = ("claim number", "what", "n", "mean", "low", "high", "claimed", "outcome")


def set_style() -> None:
    """Set how pandas and seaborn show tables and pictures, and numpy's seed.

    seaborn spreads dots by the global seed of numpy.
    """
    import numpy as np
    import pandas as pd
    import seaborn as sns

    pd.set_option("display.precision", 3, "display.max_colwidth", None)
    sns.set_theme(style="whitegrid", rc={"figure.dpi": 90, "figure.constrained_layout.use": True})
    np.random.seed(0)  # noqa: NPY002 (the one that seaborn reads)


def published(of: str = "", start: Path | None = None) -> Path:
    """Return the directory of published results: figures/ of the checkout, or a folder in it.

    of: the folder, such as smollm2; "" for the results on the built-in bases.
    start: a directory inside the checkout, by default the working directory. Raises UserError
    outside a checkout.
    """
    start = Path.cwd() if start is None else start
    for place in (start, *start.parents):
        if (place / "pyproject.toml").is_file():
            return place / "figures" / of
    raise UserError(f"{start}: is in no checkout; expected pyproject.toml in it or above it")


def tables(results: Path) -> dict[str, Any]:
    """Return the tables in a directory of results, name -> pandas.DataFrame."""
    import pandas as pd

    return {file.stem: pd.read_csv(file) for file in sorted(results.glob("*.csv"))}


def claims(results: Path) -> list[dict[str, Any]]:
    """Return the verdicts in claims.json of a directory of results; none without that file."""
    path = results / "claims.json"
    if not path.is_file():
        return []
    judged: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["claims"]
    return judged


def show_claims(claims: Sequence[Mapping[str, Any]], *numbers: str) -> None:
    """Display the claims of these numbers: each verdict in words, then what was measured."""
    from IPython.display import Markdown, display

    chosen = [claim for claim in claims if claim["number"] in numbers]
    for claim in chosen:
        display(Markdown(in_words(claim)))
    parts = measured(chosen)
    if parts is not None:
        display(parts)
    if not chosen:
        display(Markdown("*Not judged here: there is no `claims.json` with this claim.*"))


def compare_claims(claims_of: Mapping[str, Sequence[Mapping[str, Any]]], *numbers: str) -> None:
    """Display what was measured for the claims of these numbers on each base, in one table.

    claims_of: name of a base → its claims.
    """
    from IPython.display import Markdown, display

    table = compared(claims_of, *numbers)
    if table is None:
        display(Markdown("*Not judged on either base.*"))
    else:
        display(table)


def compared(claims_of: Mapping[str, Sequence[Mapping[str, Any]]], *numbers: str) -> Any:
    """Return what `compare_claims` displays, a pandas.DataFrame; None if nothing was measured.

    One row per claim, part of it, and base, the bases of one claim below one another.
    """
    import pandas as pd

    frames = {}
    for name, claims in claims_of.items():
        parts = measured([claim for claim in claims if claim["number"] in numbers])
        if parts is not None:
            frames[name] = parts
    if not frames:
        return None
    table = pd.concat(frames, names=["base"]).swaplevel()
    order = [number for number in numbers if number in table.index.get_level_values(0)]
    return table.loc[order]


def show_beside(claims: Sequence[Mapping[str, Any]], *numbers: str) -> None:
    """Display the tables that stand beside the claims of these numbers, each with its title."""
    import pandas as pd
    from IPython.display import Markdown, display

    for claim in claims:
        for beside in claim["beside"] if claim["number"] in numbers else []:
            display(Markdown(f"{beside['title']}:"))
            heading, *cells = beside["cells"]
            display(pd.DataFrame(cells, columns=heading).set_index(heading[0]))


def in_words(claim: Mapping[str, Any]) -> str:
    """Return the verdict on a claim as Markdown."""
    text = f"**Claim {claim['number']}**, “{claim['words']}”: **{claim['outcome']}**."
    if claim["disagree"]:
        measures = ", ".join(claim["disagree"]).replace("_", " ")
        text += f" Measures that surely say the opposite: {measures}."
    if claim["result"]:
        text += f" {claim['result']}."
    return " ".join([text, *claim["notes"]])


def measured(claims: Sequence[Mapping[str, Any]]) -> Any:
    """Return what was measured for the claims, a pandas.DataFrame; None if nothing was."""
    import numpy as np
    import pandas as pd

    parts = pd.json_normalize(list(claims), "parts", ["number"], meta_prefix="claim ")
    if "measured.mean" not in parts:
        return None
    bound = parts["direction"] * parts["delta"]
    side = np.where(parts["direction"] > 0, "above ", "below ")
    parts["claimed"] = side + bound.map("{:+.3g}".format)
    for end in ("mean", "low", "high"):
        parts[end] = parts[f"measured.{end}"].astype(float)
    parts["n"] = parts["measured.n"].fillna(0).astype(int)
    return parts[list(SHOWN)].set_index("claim number")
