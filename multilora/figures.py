"""Draw the figures of a reproduction again, from the CSV files in a directory alone.

    python -m multilora.figures [DIR]

Every figure whose tables are in DIR (default: figures/) is drawn there as PNG and PDF. The PNG
files are listed on stdout.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import UserError
from multilora import command


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the figures and return the exit status: 2 if there is no table."""
    parser = command.parser_of("multilora.figures", __doc__)
    parser.add_argument(
        "directory",
        nargs="?",
        type=Path,
        default=Path("figures"),
        metavar="DIR",
        help="results of multilora.reproduce (default: figures)",
    )
    return command.run(
        "multilora.figures",
        parse=lambda: parser.parse_args(argv),
        work=lambda arguments: _draw(arguments.directory),
    )


def _draw(directory: Path) -> str:
    """Draw the figures and return the list of their files."""
    # Importing matplotlib takes longer than --help may.
    from multilora.reproduction.figures import SOURCES, draw

    drawn = draw(directory)
    if not drawn:
        tables = ", ".join(table for source in SOURCES.values() for table in source.tables)
        raise UserError(f"{directory}: no table; expected any of {tables}")
    return "\n".join(map(str, drawn))


if __name__ == "__main__":
    sys.exit(main())
