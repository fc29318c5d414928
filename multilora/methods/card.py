"""Say in the model card how an adapter of this package is loaded and exported.

PEFT has no hook by which a library could register a method before it is imported, so the README.md
that `save_pretrained` writes has to say which import the adapter needs.
"""

from pathlib import Path

HEADING = "## How to Get Started with the Model"  # of the template that PEFT fills
EMPTY = "[More Information Needed]"
PEFT = "library_name: peft"

LOAD = """\
This adapter is of type `{kind}`. PEFT knows that type once `multilora` is imported, and otherwise
raises `KeyError: '{kind}'`:

```python
import multilora
from peft import PeftModel

model = PeftModel.from_pretrained(base, "DIRECTORY")  # base: the model that it was trained on
```
"""
EXPORT = """\
{words}

```python
from pathlib import Path
from multilora.delta import save_as_lora

save_as_lora(model, Path("as-lora"){more})
```
"""
EXPORTS = {
    "MULTILORA": (
        "As an ordinary LoRA it needs no import. The export has exactly the same outputs; with"
        " `padded=True` it follows\nthe rules of vLLM:",
        "",
    ),
    "MTLLORA": (
        "It has one update per task. The export of a task is an ordinary LoRA with exactly the same"
        " outputs, and needs\nno import:",
        ', task="NAME OF THE TASK"',
    ),
    "RLORA": (
        "Its update depends on the input, so that an export to an ordinary LoRA is an approximation"
        " (the mean of the heads\nreplaces the router):",
        "",
    ),
}


def text(kind: str) -> str:
    """Return what the card says of an adapter of type `kind`, as Markdown."""
    words, more = EXPORTS[kind]
    return LOAD.format(kind=kind) + "\n" + EXPORT.format(words=words, more=more)


def complete(directory: Path, kind: str) -> None:
    """Add `text` to the card of PEFT in a directory, or above it for a further adapter, once.

    Does nothing where PEFT has written no card.
    """
    for file in (directory / "README.md", directory.parent / "README.md"):
        if file.is_file() and PEFT in (card := file.read_text(encoding="utf-8")):
            break
    else:
        return
    own = text(kind)
    if own in card:
        return
    before, heading, after = card.partition(HEADING)
    if heading and EMPTY in after.partition("\n## ")[0]:
        card = before + heading + after.replace(EMPTY, own, 1)
    else:
        card = f"{card.rstrip()}\n\n{own}"
    file.write_text(card, encoding="utf-8")
