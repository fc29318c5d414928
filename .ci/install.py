"""Install into the environment of this Python: with uv where it is at hand, else with pip.

uv takes seconds where pip takes minutes, but does not read pip's configuration. It is told what
that says of indexes, further places and constraints; if pip is told more than uv can be (a proxy,
a host that is trusted), or uv fails, pip installs.

    python .ci/install.py -c constraints.txt torch
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence

# What pip is told -> the variable that tells uv. uv asks UV_INDEX before UV_DEFAULT_INDEX.
TOLD = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
}
# The separator that uv wants in each, if it is not a blank.
SEPARATOR = {"UV_FIND_LINKS": ","}
# What decides neither what is installed nor where from.
SILENT = {
    "break-system-packages", "cache-dir", "config-file", "disable-pip-version-check",
    "no-cache-dir", "no-color", "no-input", "no-warn-script-location", "progress-bar", "quiet",
    "require-virtualenv", "retries", "root-user-action", "verbose",
}  # fmt: skip


def settings(lines: Iterable[str]) -> dict[str, str]:
    """Return pip's settings from the lines of `pip config list`; the last of a name counts.

    pip's environment variables come first in that list, but count most.

    >>> settings(["global.index-url='https://a/simple'", "install.find-links='/x'"])
    {'index-url': 'https://a/simple', 'find-links': '/x'}
    """
    found: dict[str, str] = {}
    for line in sorted(lines, key=lambda line: line.startswith(":env:")):
        match = re.fullmatch(r"(?P<section>\S+?)\.(?P<name>[\w-]+)=(?P<value>['\"].*)", line)
        if match and match["section"] in ("global", "install", ":env:"):
            found[match["name"]] = ast.literal_eval(match["value"])
    return found


def for_uv(told: Mapping[str, str]) -> dict[str, str] | None:
    """Return the environment variables that tell uv the same; None if one setting cannot be told.

    >>> for_uv({"extra-index-url": "https://a/simple https://b/simple", "find-links": "/x /y"})
    {'UV_INDEX': 'https://a/simple https://b/simple', 'UV_FIND_LINKS': '/x,/y'}
    >>> for_uv({"proxy": "http://p:3128"}) is None
    True
    """
    if told.keys() - TOLD.keys() - SILENT:
        return None
    return {
        TOLD[name]: SEPARATOR.get(TOLD[name], " ").join(value.split())
        for name, value in told.items()
        if name in TOLD
    }


def install(arguments: Sequence[str]) -> int:
    """Install `arguments`, those of `pip install`; return the exit status."""
    pip = [sys.executable, "-m", "pip"]
    uv = shutil.which("uv")
    if uv:
        listed = subprocess.run(
            [*pip, "config", "list"], capture_output=True, text=True, check=True
        )
        variables = for_uv(settings(listed.stdout.splitlines()))
        if variables is not None:
            # As pip does: of all places, the newest version.
            by_uv = [uv, "pip", "install", "--quiet", "--python", sys.executable]
            by_uv += ["--index-strategy", "unsafe-best-match", *arguments]
            if subprocess.run(by_uv, env=os.environ | variables, check=False).returncode == 0:
                return 0
            print("uv could not install this; pip tries", file=sys.stderr)
    by_pip = [*pip, "install", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(by_pip, check=False).returncode


if __name__ == "__main__":
    sys.exit(install(sys.argv[1:]))
