"""Sphinx extension: fold the cells of a notebook that are collapsed in Jupyter too."""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def fold(app: "Sphinx", page: str, source: list[str]) -> None:
    """Tag the cells whose source is hidden with the tag that MyST-NB knows."""
    if app.env.doc2path(page).suffix != ".ipynb":
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        if cell["metadata"].get("jupyter", {}).get("source_hidden"):
            cell["metadata"].setdefault("tags", []).append("hide-input")
    source[0] = json.dumps(notebook)


def setup(app: "Sphinx") -> dict[str, bool]:
    """Register it."""
    app.connect("source-read", fold)
    return {"parallel_read_safe": True}
