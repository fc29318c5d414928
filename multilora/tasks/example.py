"""One example of a task, the record that every part of training and evaluation passes on."""

from dataclasses import dataclass

FAMILIES = ("instruction", "understanding", "knowledge")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """A prompt and its answer; the answer's tokens alone carry loss.

    With `options` (the answer among them) it is scored by the likelihood of each option,
    without by exact match of the greedy continuation.
    """

    task: str
    family: str
    split: str
    prompt: str
    answer: str
    options: tuple[str, ...] | None = None

    @property
    def chance(self) -> float:
        """Expected score of a guess: 1 / number of options, 0 for free text."""
        return 1 / len(self.options) if self.options else 0.0
