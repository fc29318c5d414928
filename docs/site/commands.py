"""Sphinx directive `command`: the help of a command of this package, as it prints it."""

import subprocess
import sys

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RUN = "import sys, multilora_command; sys.exit(multilora_command.main(sys.argv[1:]))"


class Command(SphinxDirective):
    """`{command} spectrum` is the help of `multilora spectrum`; no argument, the overview."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a literal block; an exit status that is not 0 is an error of the page."""
        words = [*self.arguments, "--help"]
        done = subprocess.run(
            [sys.executable, "-c", RUN, *words],
            cwd=self.config.source, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise self.error(f"multilora {' '.join(words)}: {done.stderr}")
        text = done.stdout.strip()
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_config_value("source", str(app.srcdir), "env")
    app.add_directive("command", Command)
    return {"parallel_read_safe": True}
