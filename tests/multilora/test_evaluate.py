import json

import numpy as np
import pytest
import torch
from killed import at_every_call

from analysis.files import exchange
from multilora import delta, evaluate
from multilora.tasks import scoring
from multilora.tasks.builtin import suite
from multilora.tasks.example import FAMILIES, Example
from multilora.tasks.scoring import Prediction


def prediction(task, family, right, options=None, by_length=None, cut=0):
    e = Example(task, family, "test", "p", "a", options)
    return Prediction(e, "a" if right else "b", by_length, (-1.0,), cut, tokens=(1,))


INSTRUCTION, KNOWLEDGE = FAMILIES[0], FAMILIES[2]
SAID = [
    *(prediction("one", INSTRUCTION, right) for right in (True, False, False, False)),
    prediction("two", INSTRUCTION, True, cut=3),
    prediction("three", KNOWLEDGE, True, ("a", "b"), "b"),
    prediction("three", KNOWLEDGE, False, ("a", "b", "c", "d"), "a"),
]


def test_rows_are_means_of_means():
    rows = {row["name"]: row for row in evaluate.summarise(SAID, 500, 0)}
    assert list(rows) == ["one", "two", "three", INSTRUCTION, KNOWLEDGE, "mean"]
    assert {name: row["accuracy"] for name, row in rows.items()} == {
        "one": 0.25, "two": 1, "three": 0.5, INSTRUCTION: 0.625, KNOWLEDGE: 0.5, "mean": 0.5625,
    }  # fmt: skip
    assert rows["mean"]["accuracy"] == scoring.shares(SAID)["mean"]
    assert [rows[name]["items"] for name in rows] == [4, 1, 2, 5, 2, 7]
    assert rows["three"]["accuracy_by_length"] == 0.5
    assert rows["three"]["chance"] == 0.375
    assert rows["mean"]["cut"] == 1


def test_the_interval_is_the_bootstraps_of_the_items():
    """Against drawing the items themselves anew, many times."""
    rng = np.random.default_rng(5)
    said = [
        prediction(task, INSTRUCTION, right)
        for task, n, share in (("one", 60, 0.3), ("two", 25, 0.8))
        for right in rng.random(n) < share
    ]
    rows = {row["name"]: row for row in evaluate.summarise(said, 20000, 1)}
    values = {
        task: np.array([p.right for p in said if p.example.task == task], float)
        for task in ("one", "two")
    }
    drawn = {k: rng.choice(v, (20000, v.size)).mean(1) for k, v in values.items()}
    drawn[INSTRUCTION] = (drawn["one"] + drawn["two"]) / 2
    for name, resampled in drawn.items():
        want = np.quantile(resampled, (0.025, 0.975))
        np.testing.assert_allclose([rows[name]["low"], rows[name]["high"]], want, atol=0.021)
    again = {row["name"]: row for row in evaluate.summarise(said, 20000, 1)}
    assert again == rows
    few = [evaluate.summarise(said, 20, seed)[0]["low"] for seed in range(10)]
    assert len(set(few)) > 1


def test_all_right_or_all_wrong_has_no_width():
    rows = evaluate.summarise([prediction("one", INSTRUCTION, True)] * 5, 100, 0)
    assert [(row["low"], row["high"]) for row in rows] == [(1, 1)] * 3


def test_killed_at_any_moment_predictions_and_scores_belong_together(tmp_path):
    settings = evaluate.EvaluateSettings("base", out=str(tmp_path / "out"))
    names = ("predictions-test.jsonl", "scores-test.json")
    seen = set()
    evaluate._write(settings, SAID[:1], {"rows": 1})
    for _ in at_every_call(lambda: evaluate._write(settings, SAID, {"rows": 7}), tmp_path / "out"):
        exchange.complete(tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*names]
        predictions, scores = ((tmp_path / "out" / name).read_text() for name in names)
        assert len(predictions.splitlines()) == json.loads(scores)["rows"]
        seen.add(len(predictions.splitlines()))
        evaluate._write(settings, SAID[:1], {"rows": 1})
    assert seen == {1, 7}


def test_the_table_is_in_percent_by_family():
    lines = evaluate.as_table(evaluate.summarise(SAID, 500, 0)).splitlines()
    words = [line.split() for line in lines]
    assert words[1][:3] == [INSTRUCTION, "5", "62.5"]
    assert [line[0] for line in words[2:4]] == ["one", "two"]
    assert words[4][0] == KNOWLEDGE
    assert words[5][-2:] == ["50.0", "37.5"]
    assert words[6][:3] == ["mean", "7", "56.2"]
    assert lines[-1] == "1 prompts were cut on the left"


def scores_of(capsys, *argv):
    assert evaluate.main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_prints_json_and_keeps_every_prediction(ending_early, capsys, tmp_path):
    model, tokenizer, path = ending_early
    given = ["base", "--model", path, "--per_task", "3", "--out", str(tmp_path)]
    scores = scores_of(capsys, *given)
    want = scoring.predict(model, tokenizer, suite.load("test", 3))
    assert scores["rows"] == evaluate.summarise(want, 2000, 0)
    assert scores == json.loads((tmp_path / "scores-test.json").read_text())
    lines = (tmp_path / "predictions-test.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    assert [line["predicted"] for line in kept] == [p.answer for p in want]
    assert [line["prompt"] for line in kept] == [p.example.prompt for p in want]
    assert [len(line["log_likelihoods"]) for line in kept] == [
        len(p.example.options or [1]) for p in want
    ]
    evaluate.main([*given, "--split", "validation"])
    out = capsys.readouterr().out
    names = [line.split()[0] for line in out.splitlines()[1:] if line[0] != " "]
    assert names == [*FAMILIES, "mean"]
    assert (tmp_path / "predictions-validation.jsonl").is_file()


def test_the_command_scores_a_checkpoint(ending_early, tmp_path, capsys):
    """Base and ΔW together are what is scored."""
    _, tokenizer, path = ending_early
    tuned = delta.load_base(path)[0]
    for _, layer in delta.matrices(tuned):
        torch.nn.init.normal_(layer.weight)
    delta.save(tuned, path, tmp_path)
    given = ["--model", path, "--per_task", "5"]
    rows = scores_of(capsys, str(tmp_path), *given)["rows"]
    said = scoring.predict(tuned, tokenizer, suite.load("test", 5))
    assert rows == evaluate.summarise(said, 2000, 0)
    assert (tmp_path / "predictions-test.jsonl").is_file()  # beside the checkpoint
    assert rows != scores_of(capsys, "base", *given, "--out", str(tmp_path / "base"))["rows"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--per_task", "-1"], "per_task is -1; expected 0 or more"),
        (["--resamples", "0"], "resamples is 0; expected 1 to 1,000,000"),
        (["--resamples", "1" + 12 * "0"], "expected 1 to 1,000,000"),
        (
            ["--tasks", "alpaca:x.json"],
            "the built-in base only knows the words of the built-in suite",
        ),
    ],
)
def test_a_bad_setting_is_refused(given, message, run_main):
    status, _, err = run_main(evaluate.main, "base", *given)
    assert status == 2
    assert message in err[-1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", ": holds a list; expected a JSON object"),
        ("{", ": not readable as JSON"),
        ('{"settings": {}}', " does not name a base"),
        ('{"base": "a"}', " does not name a base"),
        ('{"base": {}}', " does not name a base"),
        ('{"base": {"path": 3, "sha256": {}}}', ": base: path is 3; expected"),
        ('{"base": {"path": "", "sha256": {}}}', ": base: path is ''; expected"),
        ('{"base": {"path": "a", "sha256": {}}, "settings": []}', ": settings is []; expected"),
        ('{"base": {"path": "a", "sha256": 3}, "settings": {"tasks": 3}}', ": settings is {"),
    ],
)
def test_a_run_json_that_names_no_base_is_refused(text, words, tmp_path, run_main):
    """Such as the run.json of a base, given in place of a checkpoint."""
    (tmp_path / "run.json").write_text(text)
    status, _, err = run_main(evaluate.main, tmp_path)
    assert status == 2
    assert f"{tmp_path / 'run.json'}{words}" in err[-1]


def test_the_base_is_the_one_that_the_checkpoint_was_trained_on(ending_early, tmp_path, capsys):
    model, _, path = ending_early
    facts = {"path": path, "sha256": delta.weight_files(path)}
    delta.save(model, path, tmp_path)
    assert evaluate.main([str(tmp_path), "--per_task", "1"]) == 2
    assert "run.json is missing, so the base is unknown" in capsys.readouterr().err
    (tmp_path / "run.json").write_text(json.dumps({"base": facts}))
    assert evaluate.main([str(tmp_path), "--per_task", "1"]) == 0
    facts["sha256"] = {"model.safetensors": "0" * 64}
    (tmp_path / "run.json").write_text(json.dumps({"base": facts}))
    assert evaluate.main([str(tmp_path), "--per_task", "1"]) == 2
    assert "the weights of" in capsys.readouterr().err
