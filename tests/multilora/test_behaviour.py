import importlib.util
from pathlib import Path

import pytest

from multilora import behaviour, record
from multilora.training import identity

SOURCE = '''
"""Docstring of the module."""
import logging
import warnings
from dataclasses import dataclass, field

import numpy as np
from analysis import floor
from multilora.tasks import data

logger = logging.getLogger(__name__)
RATE = 0.1  # per step

@dataclass
class Settings:
    """Docstring of the class."""
    rank: int = field(default=8, metadata={"help": "the rank", "choices": (4, 8)})
    """Docstring of the field."""

    def check(self) -> None:
        """Docstring of the method."""
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; expected at least 1")
        assert self.rank < 1000, "too large"

def train(steps: int, *, rate: float = RATE, **rest: object) -> float:
    """Docstring of the function."""
    total: float = 0.0
    warnings.warn("this takes long", UserWarning, stacklevel=2)
    logger.info("training for %d steps", steps)
    for step in range(steps):
        total += rate * floor.of(step)
    parser.add_argument("--rate", type=float, help="the rate")
    return total
'''


def module_of(path, source):
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    return importlib.util.module_from_spec(spec)


def changed(old, new):
    assert SOURCE.count(old) == 1, old
    return SOURCE.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Docstring of the module."""', '"""Another docstring."""'),
        ('"""Docstring of the module."""', ""),
        ('"""Docstring of the class."""', '"""Another."""'),
        ('"""Docstring of the field."""', ""),
        ('"""Docstring of the method."""', ""),
        ('"""Docstring of the function."""', '"""Return the total.\n\n    In floats.\n    """'),
        ("  # per step", "  # of each step"),
        ("def check(self) -> None:", "def check(self):"),
        ("steps: int, *, rate: float = RATE", "steps, *, rate: np.float64 = RATE"),
        ("**rest: object) -> float", "**rest) -> np.float64"),
        ("total: float = 0.0", "total = 0.0"),
        ("from analysis import floor\n", "from analysis.numerics import floor\n"),
        ("from multilora.tasks import data\n", ""),
        (
            'f"rank is {self.rank}; expected at least 1"',
            '"rank is {}; expected a rank".format(self.rank)',
        ),
        (', "too large"', ""),
        ('"this takes long"', 'f"this takes {steps} steps"'),
        ('"training for %d steps"', '"%d steps"'),
        (', help="the rate"', ', help="the rate of " "learning"'),
        (', help="the rate"', ""),
        ('"help": "the rank", ', ""),
        ("RATE = 0.1", "RATE = (0.1)"),
    ],
)
def test_wording_is_removed(old, new):
    assert behaviour.of(changed(old, new)) == behaviour.of(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("RATE = 0.1", "RATE = 0.2"),
        ("rank: int", "rank: float"),
        ("default=8", "default=4"),
        ('"choices": (4, 8)', '"choices": (4, 8, 16)'),
        ("self.rank < 1:", "self.rank < 2:"),
        ("self.rank < 1000", "self.rank < 100"),
        ("raise ValueError", "raise TypeError"),
        ("rate: float = RATE", "rate: float = 1.0"),
        ("*, rate", "rate"),
        ("total: float = 0.0", "total: float = 1.0"),
        ("UserWarning", "DeprecationWarning"),
        ("floor.of(step)", "floor.of(step + 1)"),
        ("import numpy as np", "import numpy as numerics"),
        ("import numpy as np\n", ""),
        ('"--rate", type=float', '"--rate", type=int'),
        ('"--rate", type=float', '"--speed", type=float'),
        ("return total", "return -total"),
        ("@dataclass\n", "@dataclass(frozen=True)\n"),
    ],
)
def test_what_changes_a_result_is_kept(old, new):
    assert behaviour.of(changed(old, new)) != behaviour.of(SOURCE)


def test_a_body_of_a_docstring_alone_stays_a_body():
    assert behaviour.of('class Error(Exception):\n    """Raised."""') == behaviour.of(
        "class Error(Exception):\n    pass"
    )


def test_every_module_that_a_fingerprint_covers_can_be_reduced():
    for role, module in identity.code().items():
        source = Path(module.__file__).read_text()
        reduced = behaviour.of(source)
        compile(reduced, role, "exec")
        assert len(reduced) < len(source), role
        assert behaviour.of(reduced) == reduced, role


def test_a_real_module_moved_and_reworded_keeps_its_hash(tmp_path):
    from multilora.training import trainer

    source = Path(trainer.__file__).read_text()
    reworded = source.replace('"""', '"""Reworded: ', 1).replace(
        "import torch\n", "import torch  # !\n"
    )
    assert source.count("# !") + 1 == reworded.count("# !")
    moved = module_of(tmp_path / "elsewhere.py", reworded)
    assert record.fingerprint({"trainer": moved}) == record.fingerprint({"trainer": trainer})
    assert record.fingerprint({"rows": trainer}) != record.fingerprint({"trainer": trainer})
    other = module_of(tmp_path / "other.py", reworded.replace("def ", "def _", 1))
    assert record.fingerprint({"trainer": other}) != record.fingerprint({"trainer": trainer})
