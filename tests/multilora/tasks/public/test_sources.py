import hashlib
import os
import subprocess
import sys

import pytest
from task_files import ALPACA, QUESTIONS, SUPERGLUE, write, write_csv, write_json, write_lines

from multilora.tasks.example import FAMILIES, SPLITS
from multilora.tasks.public import sources
from multilora.tasks.public.sources import Part


@pytest.fixture
def spec(tmp_path):
    """All four kinds, two Alpaca files among them."""
    write_json(tmp_path / "one.json", ALPACA)
    write_lines(tmp_path / "two.jsonl", [row | {"instruction": "Do it."} for row in ALPACA[:1]])
    write_csv(tmp_path / "mmlu" / "dev" / "anatomy_dev.csv", QUESTIONS)
    write_csv(tmp_path / "mmlu" / "test" / "anatomy_test.csv", [("q", *QUESTIONS[0][1:])])
    write_lines(tmp_path / "glue" / "CB" / "train.jsonl", [SUPERGLUE["CB"]])
    write_lines(tmp_path / "glue" / "WiC" / "val.jsonl", [SUPERGLUE["WiC"]])
    write_json(tmp_path / "math.json", [{"instruction": "1 + 1?", "input": "", "answer": "2"}])
    places = ["alpaca:one.json", "two=alpaca:two.jsonl", "mmlu:mmlu", "superglue:glue"]
    places = [place.replace(":", f":{tmp_path}/") for place in places]
    return ", ".join([*places, f"llm-adapters:{tmp_path}/math.json"])


def test_everything_is_read_in_order(spec, tmp_path):
    source = sources.load(spec)
    assert tuple(source.examples) == SPLITS
    every = [e for split in SPLITS for e in source.examples[split]]
    assert len(every) == 3 + 1 + 4 + 2 + 1
    families = {
        "alpaca": "instruction", "two": "instruction", "mmlu_anatomy": "knowledge",
        "cb": "understanding", "wic": "understanding", "llm-adapters": "instruction",
    }  # fmt: skip
    assert source.family_of == families
    assert set(source.family_of.values()) == set(FAMILIES)
    assert source.tasks == list(dict.fromkeys(e.task for e in every))
    read = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert source.files == {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in read}


def test_the_same_at_every_call(spec):
    assert sources.load(spec) == sources.load(spec)


@pytest.mark.slow
def test_the_same_in_every_process(spec):
    first = sources.load(spec)
    code = f"from multilora.tasks.public import sources; print(sources.load({spec!r}))"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert printed.stdout == f"{first}\n"


def test_parts_of_a_specification():
    assert sources.parse("alpaca:a.json, b-2=llm-adapters:x/c:d=e.json,mmlu:hub:cais/mmlu") == [
        Part("", "alpaca", "a.json", ""),
        Part("b-2", "llm-adapters", "x/c:d=e.json", ""),
        Part("", "mmlu", "hub:cais/mmlu", ""),
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "",
            "'' is not KIND:PATH; expected one of the kinds alpaca, llm-adapters, mmlu, superglue",
        ),
        ("alpaca", "'alpaca' is not KIND:PATH"),
        ("alpaca:", "'alpaca:' is not KIND:PATH"),
        ("alpaca:a,", "'' is not KIND:PATH"),
        ("alpaca:a,b.json", "'b.json' is not KIND:PATH; .* and a path without a comma"),
        ("glue:x", "kind is 'glue'; expected one of alpaca, llm-adapters, mmlu, superglue"),
        ("a=glue:x", "kind is 'glue'"),
        ("=alpaca:x", "the name is ''; expected letters, digits"),
        ("a b=alpaca:x", "the name is 'a b'"),
    ],
)
def test_a_bad_specification_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        sources.load(spec)


def test_two_files_of_a_kind_need_names(tmp_path):
    path = write_json(tmp_path / "a.json", ALPACA)
    with pytest.raises(ValueError, match="two tasks are called 'alpaca'"):
        sources.load(f"alpaca:{path},alpaca:{path}")
    write_lines(tmp_path / "g" / "CB" / "val.jsonl", [SUPERGLUE["CB"]])
    with pytest.raises(ValueError, match="two tasks are called 'cb'"):
        sources.load(f"cb=alpaca:{path},superglue:{tmp_path}/g")


def test_what_is_not_there_is_a_value_error(tmp_path):
    for kind in ("alpaca", "llm-adapters"):
        with pytest.raises(ValueError, match="x does not exist; expected a file"):
            sources.load(f"{kind}:{tmp_path}/x")
    for kind in ("mmlu", "superglue"):
        with pytest.raises(ValueError, match="x does not exist; expected a directory"):
            sources.load(f"{kind}:{tmp_path}/x")


@pytest.mark.parametrize("kind", ["alpaca", "llm-adapters"])
def test_another_encoding_is_refused_with_its_line(tmp_path, kind):
    path = write(tmp_path / "a.json", '[\n{"instruction": "\xe9"}]'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.json, line 2: byte 19 \(0xe9\) is not UTF-8"):
        sources.load(f"{kind}:{path}")


def test_samples_of_all_families_make_one_mixture(samples):
    source = sources.load(
        f"alpaca:{samples}/alpaca/alpaca_data_400.json,mmlu:{samples}/mmlu,"
        f"superglue:{samples}/superglue"
    )
    assert len(source.tasks) == 1 + 57 + 7
    assert set(source.family_of.values()) == set(FAMILIES)
    assert len(source.files) == 1 + 114 + 11
    prompts = {split: {e.prompt for e in source.examples[split]} for split in SPLITS}
    assert not prompts["train"] & (prompts["validation"] | prompts["test"])
    assert not prompts["validation"] & prompts["test"]
    for e in source.examples["test"]:
        assert e.options is None or e.answer in e.options
    # One empty answer, and nothing that the samples train on is tested by them.
    left_out = [note for note in source.notes if "left out" in note]
    assert left_out == ["1 records without an answer left out (alpaca 1)"]


def test_a_task_can_be_put_into_another_family(tmp_path):
    write_json(tmp_path / "arc.json", [{"instruction": "Is tin soft?", "input": "", "answer": "b"}])
    source = sources.load(f"arc@knowledge=llm-adapters:{tmp_path}/arc.json")
    assert source.family_of == {"arc": "knowledge"}
    assert sources.parse("a@knowledge=alpaca:x") == [Part("a", "alpaca", "x", "knowledge")]
    with pytest.raises(ValueError, match="the family is 'wisdom'; expected one of instruction"):
        sources.parse("arc@wisdom=llm-adapters:x")


def test_a_name_joins_the_tasks_of_a_kind(tmp_path):
    for subject in ("anatomy", "virology"):
        questions = [(f"{subject} {q[0]}", *q[1:]) for q in QUESTIONS]
        write_csv(tmp_path / "mmlu" / "dev" / f"{subject}_dev.csv", questions)
        write_csv(tmp_path / "mmlu" / "test" / f"{subject}_test.csv", [(f"{subject}?", *"abcdA")])
    apart, joined = (sources.load(f"{name}mmlu:{tmp_path}/mmlu") for name in ("", "all="))
    assert list(apart.family_of) == ["mmlu_anatomy", "mmlu_virology"]
    assert joined.family_of == {"all": "knowledge"}
    for split in SPLITS:
        assert [e.prompt for e in joined.examples[split]] == [
            e.prompt for e in apart.examples[split]
        ]
    moved = sources.load(f"all@understanding=mmlu:{tmp_path}/mmlu")
    assert moved.family_of == {"all": "understanding"}
