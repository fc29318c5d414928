from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from multilora import base
from multilora.tasks import encoding
from multilora.tasks.builtin import suite
from multilora.tasks.encoding import IGNORED, Encoded, collate, encode, encode_all


@pytest.fixture(scope="module")
def tokenizer():
    return base.build_tokenizer(64)


def test_an_example_is_beginning_prompt_answer_end(tokenizer):
    row = encode(tokenizer, "reverse : dog cat . answer :", "cat dog", context=64)
    text = "<bos> reverse : dog cat . answer : cat dog <eos>"
    assert tokenizer.convert_ids_to_tokens(row.ids) == text.split()
    assert row.answer == 3
    without = encode(tokenizer, "reverse : dog cat . answer :", "cat dog", context=64, end=False)
    assert without == Encoded(row.ids[:-1], 2)


def test_a_tokenizer_without_a_beginning_adds_none(tokenizer):
    plain = base.build_tokenizer(64)
    plain.bos_token = None
    assert encode(plain, "dog", "cat", 64).ids == encode(tokenizer, "dog", "cat", 64).ids[1:]


def test_what_does_not_fit_is_cut_off_the_left(tokenizer):
    whole = encode(tokenizer, "a b c d e f g h", "x y", context=64)
    for context in range(4, len(whole.ids) + 1):
        assert encode(tokenizer, "a b c d e f g h", "x y", context) == Encoded(
            whole.ids[-context:], 3, cut=len(whole.ids) - context
        )


def test_an_answer_that_does_not_fit_is_refused(tokenizer):
    with pytest.raises(
        ValueError, match="the answer has 3 tokens; expected fewer than the context, 3"
    ):
        encode(tokenizer, "a b c", "x y", context=3)
    assert len(encode(tokenizer, "a b c", "x y", context=3, end=False).ids) == 3


def test_labels_are_on_the_answer_and_the_end_alone(tokenizer):
    rows = [
        encode(tokenizer, "sort : 3 1 . answer :", "1 3", 64),
        encode(tokenizer, "a", "b", 64),
    ]
    batch = collate(rows, pad=tokenizer.pad_token_id)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 11)
    for i, answer in enumerate(["1 3 <eos>", "b <eos>"]):
        kept = batch["labels"][i] != IGNORED
        assert tokenizer.convert_ids_to_tokens(batch["labels"][i][kept]) == answer.split()
        assert torch.equal(batch["labels"][i][kept], batch["input_ids"][i][kept])
    assert (batch["input_ids"][1, 4:] == tokenizer.pad_token_id).all()
    assert (batch["labels"][1, 4:] == IGNORED).all()


def test_rows_carry_their_task_where_the_model_wants_it(tokenizer):
    examples = suite.load("test", 2)
    names = list(suite.TASKS)
    rows = encode_all(tokenizer, examples, 64, names)
    batch = collate(rows, tokenizer.pad_token_id)
    want = [names.index(e.task) for e in examples]
    assert batch["multilora_task_ids"].dtype == torch.int64
    assert batch["multilora_task_ids"].tolist() == want
    assert len(set(want)) == 15
    plain = encode_all(tokenizer, examples, 64)
    assert [row._replace(task=None) for row in rows] == plain
    assert "multilora_task_ids" not in collate(plain, tokenizer.pad_token_id)
    with pytest.raises(
        ValueError, match="task 'reverse' is not one of the adapter's tasks: sort, swap"
    ):
        encode_all(tokenizer, examples, 64, ["sort", "swap"])


def test_a_model_says_which_tasks_it_tells_apart():
    asks = SimpleNamespace(active_peft_config=SimpleNamespace(tasks=["a", "b"]))
    assert encoding.tasks_of(asks) == ["a", "b"]
    assert encoding.tasks_of(SimpleNamespace(active_peft_config=SimpleNamespace())) == []
    assert encoding.tasks_of(torch.nn.Linear(2, 2)) == []


def test_padding_changes_no_answer(tokenizer):
    """Rows of a batch score as they score alone: without a mask, since attention is causal."""
    torch.manual_seed(0)
    model = base.build_model(base.BaseSettings(width=32, layers=2, heads=2, mlp=48), tokenizer)
    rows = encode_all(tokenizer, suite.load("test", 1), 64)
    batch = collate(rows, tokenizer.pad_token_id)
    with torch.no_grad():
        together = model(batch["input_ids"]).logits
        for row, logits in zip(rows, together, strict=True):
            alone = model(torch.tensor([row.ids])).logits[0]
            torch.testing.assert_close(logits[: len(row.ids)], alone, rtol=0, atol=1e-6)


def test_every_example_of_the_suite_fits_the_context(tokenizer):
    examples = suite.load("train", 20)
    rows = encode_all(tokenizer, examples, 64)
    for e, row in zip(examples, rows, strict=True):
        assert row == encode(tokenizer, e.prompt, e.answer, 64)
        assert tokenizer.unk_token_id not in row.ids
        assert len(row.ids) == len(f"{e.prompt} {e.answer}".split()) + 2  # nothing was cut


def test_a_tokenizer_without_tokens_or_end_is_refused():
    tokenizer = base.build_tokenizer(64)
    with pytest.raises(ValueError, match=r"no tokens for ''; expected at least one"):
        encoding.encode(tokenizer, "", "dog", 64)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no end token"):
        encoding.encode(tokenizer, "cat", "dog", 64)


@pytest.mark.parametrize(("positions", "limit", "context"), [(32, 64, 32), (None, 64, 64)])
def test_the_context_is_the_models_or_else_the_tokenizers(positions, limit, context):
    text = SimpleNamespace(max_position_embeddings=positions)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    assert encoding.context_of(model, SimpleNamespace(model_max_length=limit)) == context


def test_an_answer_follows_its_prompt_as_it_does_in_the_whole_text():
    """Whether or not a tokenizer puts a blank before every text by itself."""
    texts = ["which is it ? yes or no answer : yes no"]

    def learned(pre, **normalizer):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre
        if normalizer:
            tokenizer.normalizer = normalizers.Sequence(normalizer["steps"])
        tokenizer.train_from_iterator(texts * 9, trainers.BpeTrainer(vocab_size=300))
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")

    llama = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    split = pre_tokenizers.Split("▁", "merged_with_next")
    for tokenizer in (
        learned(split, steps=llama),
        learned(pre_tokenizers.Metaspace(prepend_scheme="always")),
        learned(pre_tokenizers.Metaspace(prepend_scheme="first")),
        learned(pre_tokenizers.ByteLevel(add_prefix_space=False)),
        learned(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    ):
        prompt, answer = "which is it ? answer :", "yes"
        row = encode(tokenizer, prompt, answer, 64, end=False)
        assert row.ids == tokenizer(f"{prompt} {answer}").input_ids, tokenizer
