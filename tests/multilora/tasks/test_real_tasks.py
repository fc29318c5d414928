"""From files in public formats to a scored checkpoint, through the commands."""

import json

import pytest
from task_files import write_json

from multilora import base, evaluate, reproduce, train
from multilora.tasks.example import FAMILIES
from multilora.training import identity, trainer
from multilora.training.settings import TrainSettings


def test_a_base_reads_the_prompts_and_keeps_the_answers_for_training(text_base, spec):
    facts = json.loads((text_base / "run.json").read_text())
    assert facts["scores"].keys() == {"bits_per_byte", "bits_per_byte_held_out"}
    assert 0 < facts["scores"]["bits_per_byte"] < 20
    tokenizer = train.delta.load_base(str(text_base))[1]
    for text in ("Repeat the word dog.", "naïve “quotes” 12\n\n"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    texts = base._prompts(spec, "train")
    assert all("### Response:" not in t or t.endswith("### Response:") for t in texts)


def test_the_text_is_read_in_another_order_every_epoch(text_base, spec):
    tokenizer = train.delta.load_base(str(text_base))[1]
    texts = ["one two", "three", "four five six"]
    stream = base._text(base.BaseSettings(), tokenizer, texts)
    epochs = []
    for _ in range(4):
        told = []
        while len(told) < 3:
            ids = []
            while not ids or ids[-1] != tokenizer.eos_token_id:
                ids.append(next(stream))
            told.append(tokenizer.decode(ids[1:-1]))
        epochs.append(told)
    assert all(sorted(told) == sorted(texts) for told in epochs)
    assert len({tuple(told) for told in epochs}) > 1


def test_another_text_is_another_base(spec, tmp_path):
    settings = base.BaseSettings(out=str(tmp_path), tasks=spec)
    first = base.directory(settings)
    alpaca = spec.split(",")[0]
    assert base.directory(base.BaseSettings(out=str(tmp_path), tasks=alpaca)) != first
    file = tmp_path / "other.json"
    write_json(file, [{"instruction": f"Say {i}.", "input": "", "output": "1"} for i in range(60)])
    one = base.directory(base.BaseSettings(tasks=f"alpaca:{file}"))
    write_json(file, [{"instruction": f"Say {i}!", "input": "", "output": "1"} for i in range(61)])
    assert base.directory(base.BaseSettings(tasks=f"alpaca:{file}")) != one


@pytest.mark.parametrize("method", ["multilora", "mtllora", "full"])
def test_the_command_trains_on_files_and_scores_the_three_families(
    method, spec, text_base, tmp_path, train_argv, capsys
):
    out = tmp_path / "run"
    kept = tmp_path / "tokens"
    argv = train_argv(
        out, method=method, tasks=spec, model=text_base, packing=True, mixture="equal",
        per_task=0, per_task_scored=3, token_cache=kept,
    )  # fmt: skip
    assert train.main(argv) == 0
    err = capsys.readouterr().err
    assert "training items moved to validation, by hash" in err
    assert len(list(kept.glob("*.npz"))) == 1
    facts = json.loads((out / "run.json").read_text())
    assert set(facts["scores"]["test"]["families"]) == set(FAMILIES)
    assert set(facts["scores"]["test"]["tasks"]) == {"alpaca", "mmlu_anatomy", "rte"}
    assert len(facts["data"]["files"]) == 4
    assert 0.5 < facts["real_tokens"] <= 1
    # The checkpoint knows its base and its tasks.
    assert evaluate.main([str(out), "--per_task=3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    accuracies = {row["name"]: row["accuracy"] for row in found["rows"] if row["level"] == "task"}
    assert accuracies == facts["scores"]["test"]["tasks"]
    assert found["record"]["tasks"] == spec
    lines = (out / "predictions-test.jsonl").read_text().splitlines()
    assert len(lines) == 9


def test_a_run_is_done_until_a_file_changes(spec, text_base, tmp_path, train_argv):
    file = tmp_path / "alpaca.json"
    rows = [{"instruction": f"Say {i}.", "input": "", "output": str(i)} for i in range(60)]
    write_json(file, rows)
    settings = TrainSettings(
        method="lora", model=str(text_base), tasks=f"alpaca:{file}", r=2, per_task_scored=2,
        token_cache=str(tmp_path / "tokens"),
    )  # fmt: skip
    arguments = trainer.TrainArguments(
        output_dir=str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=2,
        use_cpu=True, save_strategy="no", learning_rate=1e-3,
    )  # fmt: skip
    assert not identity.is_done(settings, arguments)
    train.run(settings, arguments)
    assert identity.is_done(settings, arguments)
    write_json(file, [*rows, {"instruction": "Say more.", "input": "", "output": "more"}])
    assert not identity.is_done(settings, arguments)


def test_files_need_a_base_that_reads_them(spec, tmp_path, capsys):
    assert train.main([f"--tasks={spec}", f"--output_dir={tmp_path}"]) == 2
    assert "pass --model with --tasks" in capsys.readouterr().err


def test_a_checkpoint_is_scored_on_other_tasks(spec, text_base, tmp_path, capsys):
    part = spec.split(",")[1]
    given = ["base", f"--model={text_base}", f"--tasks={part}", f"--out={tmp_path}", "--json"]
    assert evaluate.main(given) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["name"] for row in rows] == ["mmlu_anatomy", "knowledge", "mean"]
    assert rows[0]["items"] == 40
    assert evaluate.main([*given, "--split=nothing"]) == 2
    assert "expected one of train, validation, test" in capsys.readouterr().err


@pytest.mark.slow
def test_the_papers_commands_run_on_a_tiny_model(spec, text_base, tmp_path, monkeypatch, capsys):
    """The exact commands, with a tiny model in the LLaMA's place and a few steps."""
    monkeypatch.chdir(tmp_path)
    argv = ["--preset=paper", f"--model={text_base}", f"--tasks={spec}"]
    assert reproduce.main(argv) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 8
    from analysis import similarity, spectrum

    mains = {
        "multilora.train": train.main,
        "multilora.evaluate": evaluate.main,
        "analysis.spectrum": spectrum.main,
        "analysis.similarity": similarity.main,
    }
    for command in commands:
        python, dash_m, module, *words = command.split()
        assert (python, dash_m) == ("python", "-m")
        if module == "multilora.train":
            words += ["--max_steps=2", "--use_cpu=True", "--per_task_scored=2", "--bf16=False"]
        if module == "multilora.evaluate":
            words += ["--per_task=2"]
        assert mains[module](words) == 0, command
    out = capsys.readouterr().out
    assert "multilora-s0" in out
