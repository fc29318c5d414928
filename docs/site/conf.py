"""Configuration of the documentation: `make docs` builds it, every warning is an error.

The source directory is the root of the repository, so that the links between README.md, docs/,
notebooks/ and figures/ are those that work in the repository too, and no file is copied.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

from analysis import __version__  # noqa: E402

project = "multilora"
author = "The maintainers of multilora"
release = version = __version__
language = "en"
smartquotes = False  # "--base" is an option
highlight_language = "text"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
    "mathematics",
    "commands",
    "docstrings",
    "places",
    "notebooks",
]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "docs/*/*.md",
    "notebooks/*.ipynb",
    "figures/claims.md",
    "benchmarks/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "CODE_OF_CONDUCT.md",
]
exclude_patterns = ["**/.ipynb_checkpoints"]

# Markdown and notebooks, whose outputs are shown as they are stored.
myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_inline", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "text/html", 0)]

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False
os.environ["COLUMNS"] = "88"  # the width of the commands' help

templates_path = ["templates"]
html_math_renderer = "katex"
html_theme = "furo"
html_title = f"multilora {__version__}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["../example-page.html"]
html_additional_pages = {"index": "redirect.html"}
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_last_updated_fmt = None
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#8ab8f0", "color-brand-content": "#8ab8f0"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_exclude = ".linenos, .gp, .go"
