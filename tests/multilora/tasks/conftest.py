"""Data that the tests of several modules read, written or trained once."""

from pathlib import Path

import pytest
from task_files import REAL, write_csv, write_json, write_lines, write_samples

from multilora.tasks.builtin import world


@pytest.fixture(scope="session", params=["made-up", "real"])
def samples(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of public data: first made-up twins, then the real samples if they are there."""
    if request.param == "made-up":
        return write_samples(tmp_path_factory.mktemp("samples"))
    if not REAL.exists():
        pytest.skip(f"no real task data at {REAL}")
    return REAL


@pytest.fixture(scope="session")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The specification of some tens of made-up records of each family."""
    home = tmp_path_factory.mktemp("files")
    rows = [
        {"instruction": f"Repeat the word {word}.", "input": "", "output": word}
        for word in world.NOUNS
    ]
    write_json(home / "alpaca.json", rows)
    for split, start in (("dev", 0), ("test", 40)):
        asked = [(f"Which is {i}?", str(i), "x", "y", "z", "A") for i in range(start, start + 40)]
        write_csv(home / "mmlu" / split / f"anatomy_{split}.csv", asked)
    glue = [
        {"premise": f"It is {i} pm.", "hypothesis": "It is late.", "label": "not_entailment"}
        for i in range(40)
    ]
    write_lines(home / "glue" / "RTE" / "train.jsonl", glue)
    return f"alpaca:{home}/alpaca.json,mmlu:{home}/mmlu,superglue:{home}/glue"


@pytest.fixture(scope="session")
def text_base(spec: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of a few steps on the prompts of `spec`, with a tokenizer of its own."""
    from multilora import base

    out = str(tmp_path_factory.mktemp("base"))
    return base.ensure(
        base.BaseSettings(
            out=out, tasks=spec, vocabulary=400, width=32, layers=2, heads=2, mlp=48, steps=3,
            batch=2, context=96, threads=1,
        )
    )  # fmt: skip
