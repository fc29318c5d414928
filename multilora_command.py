"""The command `multilora`: `multilora spectrum PATH` does what `python -m analysis.spectrum` does.

A module of its own, so that a light command imports nothing of `multilora`, and so that nothing in
the working directory is imported, whatever its name: `multilora` is a console script, whose own
directory stands first on the import path.
"""

import importlib
import sys
from collections.abc import Sequence

# Command -> its module, and what it does.
COMMANDS = {
    "spectrum": ("analysis.spectrum", "the singular values of every ΔW of a checkpoint"),
    "similarity": ("analysis.similarity", "the directions that checkpoints share"),
    "dynamics": ("analysis.dynamics", "how ΔW moves over the steps of a run"),
    "merge": ("analysis.merge", "merge adapters of one base into one adapter"),
    "page": ("analysis.page", "a page that compares checkpoints, to open in a browser"),
    "advise": ("analysis.advise", "the ranks that an adapter needs, and what they save"),
    "truncate": ("analysis.truncate", "cut an adapter to the ranks that it uses"),
    "extract": ("analysis.extract", "make a LoRA of a full fine-tune, or of any adapter"),
    "train": ("multilora.train", "train full fine-tuning, LoRA, MultiLoRA and relatives"),
    "evaluate": ("multilora.evaluate", "score a run on held-out items"),
    "cuts": ("multilora.cuts", "how much of the gain the top directions carry"),
    "activations": ("multilora.activations", "second moments of the inputs of a model's modules"),
    "merging": ("multilora.merging", "score merges of task experts, flat and steep"),
    "budget": ("multilora.budget", "parameters, memory and time of each method"),
    "models": ("multilora.models", "fetch a pretrained model"),
    "base": ("multilora.base", "train the small built-in base"),
    "reproduce": ("multilora.reproduce", "train, measure and judge the paper's claims"),
    "claims": ("multilora.claims", "judge the claims from published tables"),
    "figures": ("multilora.figures", "draw the figures of published tables"),
}
USAGE = "usage: multilora COMMAND [ARGUMENT …]"

BASH = """\
_multilora() {
    local word="${COMP_WORDS[COMP_CWORD]}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "COMMANDS" -- "$word"))
    elif [[ "$word" == -* ]]; then
        local options
        options=$(multilora "${COMP_WORDS[1]}" --help 2>/dev/null |
            grep -oE -- '--[a-z][a-z0-9_-]*' | sort -u)
        COMPREPLY=($(compgen -W "$options" -- "$word"))
    fi
}
complete -o default -F _multilora multilora
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
FISH = """\
complete -c multilora -n __fish_use_subcommand -f -a "COMMANDS"
complete -c multilora -n "not __fish_use_subcommand" -a "(multilora (commandline -opc)[2] --help 2>\
/dev/null | string match -rga -- '(--[a-z][a-z0-9_-]*)' | sort -u)"
"""
COMPLETIONS = {"bash": BASH, "zsh": ZSH + BASH, "fish": FISH}


def overview() -> str:
    """Return the help: one line per command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            USAGE,
            "",
            *lines,
            "",
            "multilora COMMAND --help says more; multilora --version;",
            f"multilora --completion {'|'.join(COMPLETIONS)} prints what completes commands in a"
            " shell,",
            "  as in: source <(multilora --completion bash)",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; 2 for an unknown one."""
    words = list(sys.argv[1:] if argv is None else argv)
    match words:
        case [] | ["-h" | "--help", *_]:
            return _say(overview())
        case ["--version", *_]:
            from analysis import __version__

            return _say(__version__)
        case ["--completion", shell] if shell in COMPLETIONS:
            return _say(COMPLETIONS[shell].replace("COMMANDS", " ".join(COMMANDS)).rstrip())
        case [name, *rest] if name in COMMANDS:
            return _run(COMMANDS[name][0], rest)
    print(f"multilora: no command {words[0]!r}; {USAGE}", file=sys.stderr)
    print(f"commands: {', '.join(COMMANDS)}", file=sys.stderr)
    return 2


def _say(text: str) -> int:
    from analysis.process import streams

    streams.prepare()
    print(text)
    return 0


def _run(module: str, words: list[str]) -> int:
    """Run a module's `main`; a library that it lacks is one line on stderr."""
    from analysis import extras
    from analysis.process import start

    name = start.as_script(module)
    try:
        with extras.named():
            command = importlib.import_module(module)
    except extras.MissingLibraryError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return int(command.main(words))
