"""Agreement with EleutherAI's lm-evaluation-harness, sample by sample.

    pip install -e '.[harness]'

The harness builds its own prompts, from the same files.
"""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from tokenizers import processors

from multilora import base
from multilora.tasks import data, scoring

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra 'harness'")
pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[4] / "shared" / "data"
MMLU = """\
The following are multiple choice questions (with answers) about {{subject}}.

{{question.strip()}}
A. {{choices[0]}}
B. {{choices[1]}}
C. {{choices[2]}}
D. {{choices[3]}}
Answer:"""
COPA = """\
{{premise}}

Question: What was the {{asked}} of this?
- {{choices[0]}}
- {{choices[1]}}
Answer:"""


@pytest.fixture(scope="module")
def real():
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there: real task data")
    return DATA


def small_model(texts, context):
    """(model, tokenizer): random weights; the tokenizer adds its beginning as LLaMA's does."""
    tokenizer = base.learn_tokenizer(texts, 600, context)
    bos = (base.BOS, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{base.BOS} $A", special_tokens=[bos]
    )
    torch.manual_seed(0)
    settings = base.BaseSettings(width=32, layers=2, heads=2, mlp=48, context=context)
    model = base.build_model(settings, tokenizer).eval()
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.3)
    return model, tokenizer


def said_by_the_harness(model, tokenizer, documents, text, choices, tmp_path):
    """Its samples of a task of multiple choice on the documents, in their order."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    os.environ["HF_HUB_OFFLINE"] = "1"
    file = tmp_path / "items.jsonl"
    # JSON lines of strings: types inferred from a CSV turn "NA" into nothing and "007" into 7.
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    task = {
        "task": "ours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": text,
        "doc_to_choice": choices,
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (tmp_path / "ours.yaml").write_text(json.dumps(task))  # JSON is YAML
    wrapped = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=8,
        add_bos_token=True,
        device="cpu",
        # It counts what the model reads, without the last token; we count the whole row.
        max_length=tokenizer.model_max_length - 1,
    )
    found = lm_eval.simple_evaluate(
        wrapped,
        tasks=["ours"],
        num_fewshot=0,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    return sorted(found["samples"]["ours"], key=lambda sample: sample["doc_id"])


def agree(samples, predictions):
    """The same prompts, log-likelihoods and verdicts, item by item."""
    assert len(samples) == len(predictions)
    for sample, p in zip(samples, predictions, strict=True):
        asked = [(p.example.prompt, f" {option}") for option in p.example.options]
        assert [tuple(request) for request in sample["arguments"]] == asked
        theirs = [float(response[0][0]) for response in sample["resps"]]
        assert theirs == pytest.approx(p.log_likelihoods, rel=1e-5, abs=1e-4)
        assert sample["acc"] == p.right
        assert sample["acc_norm"] == p.right_by_length


@pytest.mark.parametrize("context", [4096, 128])
def test_mmlu_is_scored_as_the_harness_does(real, context, tmp_path):
    """Also where prompts are cut on the left."""
    chosen = data.load(f"mmlu:{real / 'mmlu'}").split("test")[::3]
    model, tokenizer = small_model([e.prompt for e in chosen], context)
    documents = []
    for subject in dict.fromkeys(e.task.removeprefix("mmlu_") for e in chosen):
        with (real / "mmlu" / "test" / f"{subject}_test.csv").open(newline="") as file:
            rows = {row["question"].strip(): row for row in csv.DictReader(file)}
        for e in chosen:
            if e.task != f"mmlu_{subject}":
                continue
            (row,) = (row for q, row in rows.items() if f"\n\n{q}\nA. " in e.prompt)
            documents.append(
                {
                    "subject": subject.replace("_", " "),
                    "question": row["question"],
                    "choices": [row[f"choice{i}"] for i in range(4)],
                    "answer": int(row["answer"]),
                }
            )
    letters = ["A", "B", "C", "D"]
    samples = said_by_the_harness(model, tokenizer, documents, MMLU, letters, tmp_path)
    predictions = scoring.predict(model, tokenizer, chosen)
    agree(samples, predictions)
    assert 0 < sum(p.right for p in predictions) < len(predictions)
    assert any(p.cut for p in predictions) == (context == 128)


def test_options_of_several_words_are_scored_as_the_harness_does(real, tmp_path):
    """Raw and by length: COPA's options are sentences."""
    chosen = data.load(f"superglue:{real / 'superglue'}").split("test")
    chosen = [e for e in chosen if e.task == "copa"]
    model, tokenizer = small_model([e.prompt for e in chosen], 256)
    documents = []
    with (real / "superglue" / "COPA" / "val.jsonl").open() as file:
        for line in file:
            row = json.loads(line)
            documents.append(
                {
                    "premise": row["premise"],
                    "asked": row["question"],
                    "choices": [row["choice1"], row["choice2"]],
                    "answer": row["label"],
                }
            )
    samples = said_by_the_harness(model, tokenizer, documents, COPA, "{{choices}}", tmp_path)
    predictions = scoring.predict(model, tokenizer, chosen)
    agree(samples, predictions)
    assert any(p.right != p.right_by_length for p in predictions)
