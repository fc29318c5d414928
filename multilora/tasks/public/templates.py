"""Fill the prompt templates: text files in `templates/` with `{field}` slots.

Lines at the top of a file that start with `#` are comments. The rest is the prompt, without the
file's last line break; an answer follows it after one space (see `encoding.encode`).
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from analysis import UserError

DIRECTORY = Path(__file__).with_name("templates")

_SLOT = re.compile(r"\{(\w+)\}")


def fill(name: str, fields: Mapping[str, str]) -> str:
    """Fill every slot of the template `name` with the field of the same name.

    The text of a field is never taken as a slot. Raises UserError if a slot has no field.
    """
    parts = _parts(name)
    missing = [slot for slot in parts[1::2] if slot not in fields]
    if missing:
        raise UserError(
            f"{DIRECTORY / name}.txt: no field for the slot {{{missing[0]}}}; "
            f"expected one of {', '.join(fields)}"
        )
    return "".join(fields[part] if i % 2 else part for i, part in enumerate(parts))


@cache
def _parts(name: str) -> list[str]:
    """The template as a list in which texts and names of slots alternate, starting with a text."""
    lines = (DIRECTORY / f"{name}.txt").read_text(encoding="utf-8").split("\n")
    while lines and lines[0].startswith("#"):
        del lines[0]
    return _SLOT.split("\n".join(lines).removesuffix("\n"))
