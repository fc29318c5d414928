"""Results → the text of a page: summary, data and document put together."""

import html

from analysis.pages.data import Results, page_data
from analysis.pages.document import document
from analysis.pages.summary import summarise
from analysis.pairs import dominance
from analysis.results import AgainstBase, Similarity, Spectra


def page(
    spectra: Spectra, similarity: Similarity | None = None, against: AgainstBase | None = None
) -> str:
    """Return the text of the page of these results, of which `spectra` has at least one row."""
    results = Results(spectra, dominance.findings(spectra), similarity, against)
    return document(summarise(results), page_data(results), spectra.rows)


def frame(page: str, height: int = 900) -> str:
    """Return the markup of a frame, `height` pixels high, that shows a page inside a notebook.

    The page may run its own scripts and offer downloads there, and see nothing of the notebook.
    """
    return (
        '<div><iframe title="Page of the checkpoints" sandbox="allow-scripts allow-downloads"'
        f' style="width: 100%; height: {height}px; border: 0" srcdoc="{html.escape(page)}">'
        "</iframe></div>"
    )
