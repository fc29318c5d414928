"""The pretrained base that comes with the package: weights, tokenizer and what made them.

It is what `python -m multilora.base` trains with its default settings. Because another processor
trains other weights from the same code, runs that are to be compared between machines start from
these files.
"""

import shutil
from pathlib import Path

from analysis import UserError
from multilora import record

FILES = Path(__file__).with_suffix("")
# SHA-256 of the weights, so that an edited or damaged copy is refused.
SHA256 = "cfba0689df587148be7381b0dec42c70bf0d0ec51553649c6aa5bd59d9473d11"


def ensure(bases: Path) -> Path:
    """Copy the pretrained base into the directory `bases` once, and return the copy.

    The name of the copy contains the hash of the weights. Raises UserError if the weights are not
    those that the package was made with.
    """
    copy = bases / f"pretrained-{SHA256[:12]}"
    record.make_once(copy, _copy)
    check(copy)
    return copy


def check(directory: Path) -> None:
    """Raise UserError if the weights in `directory` do not have the hash SHA256."""
    got = record.sha256_of_files(directory).get("model.safetensors")
    if got != SHA256:
        raise UserError(
            f"{directory}/model.safetensors: SHA-256 is {got}; expected {SHA256}: remove the"
            " directory, or install the package again"
        )


def _copy(temporary: Path) -> None:
    for file in FILES.iterdir():
        shutil.copyfile(file, temporary / file.name)
