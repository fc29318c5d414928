"""Check a built site: every link within it leads somewhere, and no page loads anything else.

    python docs/site/links.py build/site

Prints one line per fault on stderr; the exit status is 1 if there are any.
"""

import sys
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes that make a browser load something, by tag; only readers follow links (a href).
LOADED = {
    "audio": ("src",), "embed": ("src",), "iframe": ("src",), "img": ("src", "srcset"),
    "input": ("src",), "link": ("href",), "object": ("data",), "script": ("src",),
    "source": ("src", "srcset"), "track": ("src",), "video": ("src", "poster"),
}  # fmt: skip
# Relations of a link element that load nothing.
WORDS = {"canonical", "next", "prev", "search", "index", "author", "alternate"}


class Page(HTMLParser):
    """The ids, links and loaded addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element names, links to and loads."""
        given = dict(attrs)
        self.ids |= {given[name] or "" for name in ("id", "name") if name in given}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        if tag == "link" and WORDS & set((given.get("rel") or "").split()):
            return
        self.loaded += [given[name] or "" for name in LOADED.get(tag, ()) if given.get(name)]


def faults(site: Path) -> Iterator[str]:
    """Yield one line for each link that leads nowhere and for each address that is loaded."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site}: no page"
    for path, page in pages.items():
        where = path.relative_to(site)
        for address in page.loaded:
            if address.startswith("data:"):
                continue
            if urlsplit(address).scheme or address.startswith("//"):
                yield f"{where}: loads {address}"
            elif not _target(path, address).is_file():
                yield f"{where}: {address} is missing"
        for address in page.links:
            if not urlsplit(address).scheme:
                yield from _followed(path, address, site, pages)


def _followed(path: Path, address: str, site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    where, target = path.relative_to(site), _target(path, address)
    fragment = unquote(urlsplit(address).fragment)
    if not target.is_file():
        yield f"{where}: {address} leads nowhere"
    elif target in pages and fragment not in pages[target].ids | {""}:
        yield f"{where}: {address}: no such place on that page"


def _target(path: Path, address: str) -> Path:
    """Return the file that an address on a page names."""
    name = unquote(urlsplit(address).path)
    return Path(path.parent, name).resolve() if name else path


def main(argv: Sequence[str] | None = None) -> int:
    """Check the site in the directory that is given."""
    (site,) = map(Path, sys.argv[1:] if argv is None else argv)
    found = list(faults(site.resolve()))
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
