"""Sphinx extension: links to what is in the repository and is no page of the documentation.

A link to a directory, or to a page that stands by itself (example-page.html), works in the
repository and should not be an error here; one that leads nowhere is.
"""

import os
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx


def place(app: Sphinx, tree: nodes.document) -> None:
    """Make of a link to a directory its words, and of one to a page of html_extra_path a link."""
    page = Path(app.srcdir, app.env.docname)
    for node in list(tree.findall(pending_xref)):
        target = Path(page.parent, node["reftarget"]).resolve()
        if target.is_dir() and target.is_relative_to(app.srcdir):
            node.replace_self(node.children)
    extra = {Path(name).name for name in app.config.html_extra_path}
    for node in list(tree.findall(download_reference)):
        name = Path(node["reftarget"]).name
        if name in extra:
            above = os.path.relpath(app.srcdir, page.parent)
            node.replace_self(nodes.reference("", "", *node.children, refuri=f"{above}/{name}"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register it."""
    app.connect("doctree-read", place)
    return {"parallel_read_safe": True}
