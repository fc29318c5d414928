"""The command that cuts updates: against a loaded checkpoint and losses taken by hand."""

import csv
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

from analysis import UserError
from multilora import cuts, delta, train
from multilora.cuts import CutSettings

WORDS = "list gold iron tin again gold iron tin list one two again one two " * 4


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_base):
    out = tmp_path_factory.mktemp("cuts") / "lora"
    given = {"model": tiny_base, "method": "lora", "r": 4, "max_steps": 4, "learning_rate": 0.05}
    given |= {"per_task": 4, "per_task_scored": 2, "per_device_train_batch_size": 4}
    given |= {"output_dir": out, "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    assert train.main([f"--{k}={v}" for k, v in given.items()]) == 0
    return out


@pytest.fixture
def text(tmp_path):
    (tmp_path / "words.txt").write_text(WORDS)
    return tmp_path / "words.txt"


def at(rows, kind, k):
    (row,) = [row for row in rows if (row["kind"], row["k"]) == (kind, k)]
    return row


def loss_of(model, tokenizer, window):
    """The mean loss of the words, window by window, one token of overlap."""
    ids = tokenizer(WORDS, add_special_tokens=False).input_ids
    losses = []
    with torch.no_grad():
        for start in range(0, len(ids) - 1, window - 1):
            row = torch.tensor([ids[start : start + window]])
            logits = model(input_ids=row).logits[0, :-1]
            losses += F.cross_entropy(logits, row[0, 1:], reduction="none").tolist()
    assert len(losses) == len(ids) - 1  # every token but the first is predicted once
    return sum(losses) / len(losses)


def test_the_ends_of_a_text_are_base_and_checkpoint(run, text, tiny_base):
    rows = cuts.cut(CutSettings(str(run), text=str(text), window=16, counts="0,1,2"))
    base, tokenizer = delta.load_base(str(tiny_base))
    tuned = delta.load_tuned(delta.load_base(str(tiny_base))[0], run)
    before, after = loss_of(base, tokenizer, 16), loss_of(tuned, tokenizer, 16)
    assert before != pytest.approx(after, rel=1e-3)
    for kind, k, loss, share in (
        ("keep", 0, before, 0), ("keep", 4, after, 1), ("remove", 0, after, 1),
        ("remove", 4, before, 0),
    ):  # fmt: skip
        assert at(rows, kind, k)["loss"] == pytest.approx(loss, rel=1e-5)
        assert at(rows, kind, k)["share"] == pytest.approx(share, abs=1e-4)
    assert [row["k"] for row in rows if row["kind"] == "keep"] == [0, 1, 2, 4]


def test_the_loss_of_a_runs_own_tasks_is_that_of_its_record(run):
    rows = cuts.cut(CutSettings(str(run), per_task=2, counts="0"))
    tasks = json.loads((run / "run.json").read_text())["scores"]["test"]["nll"]["tasks"]
    want = sum(tasks.values()) / len(tasks)
    assert at(rows, "remove", 0)["loss"] == pytest.approx(want, rel=1e-5)


def test_the_command_prints_a_table_and_writes_it(run, text, tmp_path, capfd):
    given = [str(run), "--text", str(text), "--counts", "0,2", "--out", str(tmp_path / "out")]
    assert cuts.main(given) == 0
    printed = capfd.readouterr().out.splitlines()
    assert printed[0].split() == "k loss, keep k share loss, remove k share".split()
    assert [line.split()[0] for line in printed[1:]] == ["0", "2", "4"]
    with (tmp_path / "out" / "cuts.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    assert (tmp_path / "out" / "record.json").exists()


def test_an_update_that_changes_nothing_has_no_share():
    rows = [{"kind": kind, "k": k, "text": 2.0} for kind in ("keep", "remove") for k in (0, 1)]
    assert {row["share"] for row in cuts._with_shares(rows)} == {None}
    worse = [row | {"text": 2.0 + row["k"]} for row in rows]
    assert {row["share"] for row in cuts._with_shares(worse)} == {None}
    assert "–" in cuts.as_table(cuts._with_shares(rows))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": "a", "tasks": "b"}, "expected one of them"),
        ({"counts": "0,-1"}, "expected whole numbers"),
        ({"window": 1}, "expected at least 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        CutSettings("x", **changes)


def test_what_is_missing_is_said(run, text, tmp_path, write_adapter, lora_tensors, tiny_base):
    path = write_adapter(lora_tensors("model.layers.0.self_attn.q_proj", d_out=32, d_in=32))
    with pytest.raises(UserError, match="names its base; pass it with --base"):
        cuts.cut(CutSettings(str(path), text=str(text)))
    with pytest.raises(UserError, match="pass what to measure, --text or --tasks"):
        cuts.cut(CutSettings(str(path), base=str(tiny_base)))
    with pytest.raises(UserError, match="not readable as UTF-8"):
        cuts.cut(CutSettings(str(run), text=str(tmp_path / "none.txt")))
    (tmp_path / "short.txt").write_text("gold")
    with pytest.raises(UserError, match="has 1 token; expected at least two"):
        cuts.cut(CutSettings(str(run), text=str(tmp_path / "short.txt")))


def test_an_assumed_scale_is_said_and_can_be_passed(tmp_path, text, tiny_base, rng, capfd):
    name = "model.layers.0.self_attn.q_proj"
    A, B = rng.standard_normal((2, 32)), rng.standard_normal((32, 2))
    tensors = {f"{name}.lora_A": A, f"{name}.lora_B": B, "norm": rng.standard_normal(3)}
    save_file(tensors, tmp_path / "own.safetensors")
    given = {"base": str(tiny_base), "text": str(text), "counts": "2"}
    assumed = cuts.cut(CutSettings(str(tmp_path / "own.safetensors"), **given))
    said = capfd.readouterr().err
    assert "does not give α" in said
    assert "1 other tensors are not put in, such as norm" in said
    other = cuts.cut(CutSettings(str(tmp_path / "own.safetensors"), scale=3.0, **given))
    assert at(assumed, "keep", 2)["loss"] != pytest.approx(at(other, "keep", 2)["loss"])
    assert at(assumed, "keep", 0)["loss"] == at(other, "keep", 0)["loss"]


@pytest.mark.parametrize("facts", ['{"base": []}', '{"base": {"path": 5, "sha256": {}}}'])
def test_a_foreign_run_json_and_texts_that_are_none_are_one_line(tmp_path, text, facts, capfd):
    (tmp_path / "run.json").write_text(facts)
    assert cuts.main([str(tmp_path), "--text", str(text)]) == 2
    assert "run.json" in capfd.readouterr().err
