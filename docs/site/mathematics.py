"""Sphinx extension: mathematics by the KaTeX that lies in static/, so that no page loads another.

A formula is written as its TeX, and static/mathematics.js renders it; without JavaScript the TeX
is what is read. KaTeX is loaded by pages with formulas only.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

SCRIPTS = ("katex/katex.min.js", "mathematics.js")


def inline(self: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    self.body.append(self.starttag(node, "span", "", CLASS="math notranslate nohighlight"))
    self.body.append(f"{self.encode(node.astext())}</span>")
    raise nodes.SkipNode


def display(self: Any, node: nodes.math_block) -> None:
    """Write a formula that stands by itself."""
    self.body.append(self.starttag(node, "div", "", CLASS="math notranslate nohighlight"))
    self.body.append(f"{self.encode(node.astext())}</div>")
    raise nodes.SkipNode


def load(app: Sphinx, page: str, template: str, context: dict, tree: nodes.document | None) -> None:
    """Load KaTeX on a page that has a formula."""
    if tree is not None and next(tree.findall(lambda n: n.tagname.startswith("math")), None):
        app.add_css_file("katex/katex.min.css")
        for script in SCRIPTS:
            app.add_js_file(script, loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("katex", (inline, None), (display, None))
    app.connect("html-page-context", load)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
