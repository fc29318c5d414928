"""Sphinx extension: read a docstring as the plain text that it is, not as reStructuredText."""

import re
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# "name: what it is", "a, b (d, k): what they are"; further lines are indented or not.
TERM = re.compile(r"(?P<term>[\w*{}#]+(?:, [\w*{}#]+)*(?: \([^()]*\))?): (?P<text>\S.*)")
MARKS = re.compile(r"([\\*|]|_(?!\w))")


def converted(lines: list[str]) -> list[str]:
    """Return the lines of a docstring as reStructuredText.

    Marks of reStructuredText are escaped, `code` becomes a literal, a paragraph of "name: text" a
    list, an indented paragraph a block of code; examples (>>>) stay.

    >>> converted(["The *k* of `s`.", "", "a: one", "b: two"])
    ['The \\\\*k\\\\* of ``s``.', '', '- **a**: one', '- **b**: two']
    """
    written: list[str] = []
    for empty, group in groupby(lines, key=lambda line: not line.strip()):
        paragraph = list(group)
        written += paragraph if empty else _paragraph(paragraph, first=not written)
    return written


def _paragraph(lines: list[str], first: bool) -> list[str]:
    if lines[0].lstrip().startswith(">>>"):
        return lines
    if lines[0].startswith("    ") and not first:
        return [".. code-block:: text", "", *(f"    {line}" for line in lines)]
    if TERM.fullmatch(lines[0]):
        return _terms(lines)
    return [_escaped(line.strip()) for line in lines]


def _terms(lines: list[str]) -> list[str]:
    written = []
    for line in lines:
        found = TERM.fullmatch(line)
        if found:
            written.append(f"- **{_escaped(found['term'])}**: {_escaped(found['text'])}")
        else:
            written.append(f"  {_escaped(line.strip())}")
    return written


def _escaped(line: str) -> str:
    """Escape marks outside `code`, and make the code a literal."""
    parts = re.split(r"`([^`]+)`", line)
    parts[::2] = [MARKS.sub(r"\\\1", text) for text in parts[::2]]
    parts[1::2] = [f"``{code}``" for code in parts[1::2]]
    return "".join(parts)


def convert(
    app: "Sphinx", what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Replace the lines of a docstring."""
    lines[:] = converted(lines)


def setup(app: "Sphinx") -> dict[str, bool]:
    """Register the conversion."""
    app.connect("autodoc-process-docstring", convert)
    return {"parallel_read_safe": True}
