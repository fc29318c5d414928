"""Make the README that a package index shows; everything else is in pyproject.toml.

An index has none of the files that README.md links to. With `Repository` in [project.urls] their
addresses are made from it; without, pictures are left out and links are their words.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
LINK = re.compile(r"(?P<picture>!?)\[(?P<words>(?:!\[[^]]*\]\([^)]*\)|[^]])*)\]\((?P<to>[^)\s]+)\)")
COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)


def readme(text: str, repository: str | None) -> str:
    """Return a README whose links are absolute, at the latest commit of `repository`.

    >>> readme("![a](b.png) [c](d.md) [e](https://f)", "https://host/us/it")
    '![a](https://host/us/it/raw/HEAD/b.png) [c](https://host/us/it/blob/HEAD/d.md) [e](https://f)'
    >>> readme("![a](b.png) [c](d.md) [e](https://f)", None)
    ' c [e](https://f)'
    """

    def absolute(link: re.Match[str]) -> str:
        words, to = LINK.sub(absolute, link["words"]), link["to"]
        if not re.match(r"[a-z]+:|#", to):
            if repository is None:
                return "" if link["picture"] else words
            kind = "raw" if link["picture"] else "blob"
            to = f"{repository.rstrip('/')}/{kind}/HEAD/{to}"
        return f"{link['picture']}[{words}]({to})"

    return LINK.sub(absolute, COMMENT.sub("", text))


def main() -> None:
    """Run by a build."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    setup(
        long_description=readme((ROOT / "README.md").read_text("utf-8"), urls.get("Repository")),
        long_description_content_type="text/markdown",
    )


if __name__ == "__main__":
    main()
