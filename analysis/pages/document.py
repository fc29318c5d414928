"""A summary and its data → one HTML document that asks nothing of any other file.

Names come from files of strangers. Text enters the markup through `html.escape`, data through JSON
in which no character can end a script, and the policy of the document runs its own scripts alone,
each known by its hash, and lets nothing be fetched.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib import resources

from analysis import __version__
from analysis.names import printable, run_key
from analysis.pages.data import module_name
from analysis.pages.summary import Summary
from analysis.results import Row
from analysis.tables.text import cell

GENERATOR = "multilora analysis.page"
VENDOR = ("vega.min.js", "vega-lite.min.js", "vega-interpreter.min.js")
OWN = (
    "model.js", "charts.js", "table.js", "state.js", "views.js", "downloads.js", "page.js",
)  # fmt: skip
UNFOLDED = 3  # up to this many lines are shown from the start
DATA = "data"  # id of the element that holds the JSON


def document(summary: Summary, data: Row, rows: Sequence[Row]) -> str:
    """Return the text of the page; rows: those of spectrum.csv, for a browser without JavaScript.

    Raises ValueError if the data hold NaN outside their arrays.
    """
    style = _static("page.css")
    scripts = [*map(_vendor, VENDOR), _own()]
    body = _static("body.html")
    for name, text in _parts(summary, rows).items():
        body = body.replace(f"<!-- {name} -->", text)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts, style)}">',
            f'<meta name="generator" content="{GENERATOR} {__version__}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{html.escape(summary.title)}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            body,
            f'<script type="application/json" id="{DATA}">{json_text(data)}</script>',
            f"<!--\n{_licences()}\n-->",
            *(f"<script>{script}</script>" for script in scripts),
            "</body>",
            "</html>",
            "",
        ]
    )


def is_page(start: bytes) -> bool:
    """Return whether a file that begins with `start` is a page that this tool made.

    >>> is_page(b"<!DOCTYPE html><html><head><title>mine</title>")
    False
    """
    return f'<meta name="generator" content="{GENERATOR} '.encode() in start


def json_text(value: object) -> str:
    r"""Return strict JSON in ASCII that may stand inside a script element.

    >>> json_text("</script><!-- \u2028")
    '"\\u003c/script\\u003e\\u003c!-- \\u2028"'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _policy(scripts: Sequence[str], style: str) -> str:
    """Return a content security policy under which only these texts act, and nothing is fetched."""
    return (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src {_hash(style)};"
        " base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _static(name: str) -> str:
    return (resources.files("analysis.pages") / "static" / name).read_text(encoding="utf-8")


def _vendor(name: str) -> str:
    """Return a library as its authors published it, without the address of its source map."""
    path = resources.files("analysis.pages") / "vendor" / name
    return re.sub(r"\n//# sourceMappingURL=\S+\s*\Z", "\n", path.read_text(encoding="utf-8"))


def _own() -> str:
    """Return our own files as one script whose names no other script sees."""
    files = "\n".join(map(_static, OWN))
    return f'"use strict";\n(() => {{\n{files}\n}})();\n'


def _licences() -> str:
    """Return the licences of the libraries, as text for an HTML comment."""
    path = resources.files("analysis.pages") / "vendor" / "LICENSES.txt"
    return path.read_text(encoding="utf-8").replace("--", "- -")


# The parts of the body


def _parts(summary: Summary, rows: Sequence[Row]) -> dict[str, str]:
    """Return the markup of each placeholder in body.html."""
    return {
        "title": html.escape(summary.title),
        "sentence": html.escape(summary.sentence),
        "where": "".join(f"<p>{html.escape(text)}</p>" for text in summary.where),
        "comparisons": _folded("All comparisons", summary.comparisons, at_least=2),
        "summary": _table(summary.table),
        "warnings": _warnings(summary.warnings),
        "plain": _plain(rows),
        "version": html.escape(__version__),
    }


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def _folded(heading: str, lines: Sequence[str], at_least: int = 1) -> str:
    """Return lines behind a heading that shows or hides them; nothing for less than `at_least`."""
    if len(lines) < at_least:
        return ""
    state = " open" if len(lines) <= UNFOLDED else ""
    inner = f"<summary>{heading} ({len(lines)})</summary>{_list(lines)}"
    return f"<details{state}>{inner}</details>"


def _warnings(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    inner = _list(lines) if len(lines) <= 4 else _folded("Remarks", lines)
    return f'<section class="warnings" aria-label="Remarks">{inner}</section>'


def _table(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as a table; the first line and the first column are headings."""
    head, *body = lines
    columns = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in head)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>'
        f"{''.join(f'<td>{html.escape(text)}</td>' for text in cells)}</tr>"
        for first, *cells in body
    )
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table>"


def _plain(rows: Sequence[Row]) -> str:
    """Return the table of modules for a browser without JavaScript."""
    lines = [["checkpoint", "module", "capacity", "‖ΔW‖_F", "top-1", "eff. rank", "/ chance"]]
    for row in rows:
        columns = ("frobenius_norm", "top_share_1", "effective_rank", "democracy")
        numbers = (cell(row[column], ".4g") for column in columns)
        names = (run_key(row["run"], row["step"]), module_name(row))
        lines.append([*map(printable, names), str(row["capacity"]), *numbers])
    return _table(lines)
