"""An example of a task, the value that training and evaluation pass on."""

from dataclasses import dataclass

FAMILIES = ("instruction", "understanding", "knowledge")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """A prompt and its answer; only the answer's tokens carry loss.

    With `options`, which contain the answer, it is scored by the likelihood of each option;
    without, by exact match of the greedy continuation.
    """

    task: str
    family: str
    split: str
    prompt: str
    answer: str
    options: tuple[str, ...] | None = None

    @property
    def chance(self) -> float:
        """Expected score of a random guess: 1 / number of options, or 0 for free text."""
        return 1 / len(self.options) if self.options else 0.0
