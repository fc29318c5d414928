"""Results → the text of a page: summary, data and document put together."""

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
