import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model

from multilora import MtlLoraConfig, base, delta
from multilora.tasks import encoding, scoring
from multilora.tasks.builtin import suite
from multilora.tasks.encoding import encode
from multilora.tasks.example import FAMILIES, Example
from multilora.tasks.scoring import Prediction


def example(prompt, answer, options=None, task="task", family="instruction"):
    return Example(task, family, "test", prompt, answer, options)


def right(model, tokenizer, examples):
    """Whether each example is answered right."""
    return [p.right for p in scoring.predict(model, tokenizer, examples)]


def generated(model, tokenizer, prompt, limit=8):
    """Greedy decoding by transformers: the words up to the end token, None without an end."""
    ids = tokenizer(f"{base.BOS} {prompt}", return_tensors="pt", add_special_tokens=False).input_ids
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False
    )[0, ids.shape[1] :].tolist()
    if tokenizer.eos_token_id not in out:
        return None
    return tokenizer.convert_ids_to_tokens(out[: out.index(tokenizer.eos_token_id)])


def likelihood(model, tokenizer, prompt, answer):
    """Log-probability of the answer's tokens after the prompt, one at a time."""
    ids = tokenizer(f"{base.BOS} {prompt}", add_special_tokens=False).input_ids
    total = 0.0
    for token in tokenizer(answer, add_special_tokens=False).input_ids:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        ids.append(token)
    return total


def test_exact_match_is_what_greedy_decoding_writes(ending_early):
    model, tokenizer, _ = ending_early
    rng = random.Random(0)
    words = tokenizer.convert_ids_to_tokens(range(4, len(tokenizer)))
    examples, want = [], []
    while want.count(True) < 8:
        prompt = " ".join(rng.choices(words, k=rng.randint(2, 20)))
        answer = generated(model, tokenizer, prompt)
        if not answer or not set(answer) <= set(words):
            continue
        other = [*answer[:-1], rng.choice(words)]
        for candidate in (answer, [*answer, words[0]], answer[:-1], other):
            if candidate:
                examples.append(example(prompt, " ".join(candidate)))
                want.append(candidate == answer)
    assert max(len(e.answer.split()) for e in examples) > 1
    assert want.count(False) > 8
    assert right(model, tokenizer, examples) == want


def test_the_option_of_greatest_likelihood_is_chosen(ending_early):
    model, tokenizer, _ = ending_early
    rng = random.Random(1)
    words = tokenizer.convert_ids_to_tokens(range(4, len(tokenizer)))
    examples, want = [], []
    for _ in range(30):
        prompt = " ".join(rng.choices(words, k=rng.randint(2, 20)))
        options = tuple(" ".join(rng.choices(words, k=rng.randint(1, 3))) for _ in range(4))
        answer = rng.choice(options)
        scores = {o: likelihood(model, tokenizer, prompt, o) for o in options}
        examples.append(example(prompt, answer, options))
        want.append(max(scores, key=scores.get) == answer)
    assert 0 < sum(want) < 30
    assert right(model, tokenizer, examples) == want


def test_likelihoods_are_sums_over_the_answers_tokens(ending_early, monkeypatch):
    model, tokenizer, _ = ending_early
    rows = [("dog cat", "x y z"), ("dog", "x"), ("list a b again", "a b")]
    encoded = [encode(tokenizer, p, a, 64, end=False) for p, a in rows]
    for batch in (1, 2, 128):
        monkeypatch.setattr(scoring, "_ROWS", batch)
        got, _ = scoring._score_rows(model, encoded, 64, tokenizer.pad_token_id)
        want = [likelihood(model, tokenizer, p, a) for p, a in rows]
        assert got == pytest.approx(want, rel=1e-5)


def log_likelihood64(model, tokenizer, prompt, answer, end=False):
    """Log-likelihood in float64 of the words of the answer, from the logits of the whole row."""
    asked = tokenizer(f"{base.BOS} {prompt}", add_special_tokens=False).input_ids
    answered = tokenizer(answer, add_special_tokens=False).input_ids
    answered += [tokenizer.eos_token_id] * end
    with torch.no_grad():
        logits = model(torch.tensor([asked + answered])).logits[0].numpy().astype(np.float64)
    total = 0.0
    for i, token in enumerate(answered, len(asked) - 1):
        row = logits[i] - logits[i].max()
        total += row[token] - math.log(np.exp(row).sum())
    return total


def test_the_option_of_greatest_likelihood_per_character_is_chosen(ending_early):
    """By length: log-likelihood over characters of the option, not over tokens or not at all."""
    model, tokenizer, _ = ending_early
    rng = random.Random(2)
    words = tokenizer.convert_ids_to_tokens(range(4, len(tokenizer)))
    examples = []
    for _ in range(40):
        prompt = " ".join(rng.choices(words, k=rng.randint(2, 20)))
        options = tuple(" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(4))
        examples.append(example(prompt, rng.choice(options), options))
    predictions = scoring.predict(model, tokenizer, examples)
    by_total, by_character, by_token = [], [], []
    for e, p in zip(examples, predictions, strict=True):
        values = [log_likelihood64(model, tokenizer, e.prompt, option) for option in e.options]
        assert p.log_likelihoods == pytest.approx(values, rel=1e-5)
        scores = list(zip(values, e.options, strict=True))
        by_total.append(max(scores)[1])
        by_character.append(max((value / len(o), o) for value, o in scores)[1])
        by_token.append(max((value / len(o.split()), o) for value, o in scores)[1])
    assert [p.answer for p in predictions] == by_total
    assert [p.by_length for p in predictions] == by_character
    assert [p.right_by_length for p in predictions] == [
        e.answer == chosen for e, chosen in zip(examples, by_character, strict=True)
    ]
    # The three ways of choosing differ on these items.
    assert len({tuple(by_total), tuple(by_character), tuple(by_token)}) == 3


def test_free_text_has_the_likelihood_of_the_answer_and_its_end(ending_early):
    model, tokenizer, _ = ending_early
    e = example("dog cat", "x y z")
    (p,) = scoring.predict(model, tokenizer, [e])
    want = log_likelihood64(model, tokenizer, e.prompt, e.answer, end=True)
    assert p.log_likelihoods == pytest.approx((want,), rel=1e-5)
    assert p.by_length is None


def following(tokenizer, successors, context=64):
    """A LLaMA that writes `successors[token]` after each token: its layers add nothing.

    A token without a successor is followed by the end token.
    """
    size = len(tokenizer)
    width = size + size % 2  # even, for the rotation of the positions
    settings = base.BaseSettings(width=width, layers=1, heads=1, mlp=4, context=context)
    model = base.build_model(settings, tokenizer).eval()
    with torch.no_grad():
        for p in model.model.layers.parameters():
            p.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, width))
        model.lm_head.weight.zero_()
        for token in range(size):
            model.lm_head.weight[successors.get(token, tokenizer.eos_token_id), token] = 1
    return model


def chain(ids):
    """Each token followed by the next one."""
    return dict(itertools.pairwise(ids))


@pytest.mark.parametrize(("letters", "right"), [("abcde", True), ("abcdef", False)])
def test_an_answer_may_have_four_tokens_more_than_expected(letters, right):
    """The same text in single letters: with the space 6 tokens and 7, of 1 + end + 4 = 6."""
    tokenizer = base.learn_tokenizer([f"? {letters}"] * 9, 300, 64)
    tokenizer_ids = {
        piece: tokenizer.convert_tokens_to_ids(piece) for piece in ["?", "Ġ", *letters]
    }
    assert len(tokenizer(f" {letters}").input_ids) == 1
    model = following(tokenizer, chain(tokenizer_ids.values()))
    (p,) = scoring.predict(model, tokenizer, [example("?", letters)])
    assert p.answer == (letters if right else letters[:5])
    assert p.right == right


def test_each_answer_of_a_batch_has_a_limit_of_its_own(monkeypatch):
    """Two examples in one batch, one of which may write many tokens more than the other."""
    tokenizer = base.build_tokenizer(64)
    successors = {token: token + 1 for token in range(4, 44)}  # words, one after the other
    model = following(tokenizer, successors)
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    short = example(words[4], "dog")
    long = example(words[4], " ".join(["dog"] * 20))
    calls = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: calls.append(given) or generate(**given))
    predictions = scoring.predict(model, tokenizer, [short, long])
    assert len(calls) == 1
    assert calls[0]["max_new_tokens"] == 20 + 1 + 4
    assert predictions[0].answer.split() == words[5 : 5 + 1 + 1 + 4]
    assert predictions[1].answer.split() == words[5 : 5 + 20 + 1 + 4]
    # So what is in a batch changes no answer.
    alone = [scoring.predict(model, tokenizer, [e])[0] for e in (short, long)]
    assert predictions == alone


def test_no_batch_is_longer_than_the_context(monkeypatch):
    """Long prompts with short answers and short prompts with long ones do not fit together."""
    tokenizer = base.build_tokenizer(32)
    torch.manual_seed(0)
    settings = base.BaseSettings(width=32, layers=1, heads=2, mlp=48, context=32)
    model = base.build_model(settings, tokenizer).eval()
    words = tokenizer.convert_ids_to_tokens(range(4, len(tokenizer)))
    rng = random.Random(0)
    examples = []
    for prompt, answer in [(25, 1), (1, 20), (25, 2), (2, 25), (12, 8), (40, 3)] * 3:
        asked, answered = (" ".join(rng.choices(words, k=k)) for k in (prompt, answer))
        examples.append(example(asked, answered))
    widths, read = [], []
    generate, forward = model.generate, model.forward

    def watched(**given):
        widths.append(given["input_ids"].shape[1] + given["max_new_tokens"])
        return generate(**given)

    def watched_forward(*given, **named):
        read.append(named["input_ids"].shape[1])
        return forward(*given, **named)

    monkeypatch.setattr(model, "generate", watched)
    monkeypatch.setattr(model, "forward", watched_forward)
    predictions = scoring.predict(model, tokenizer, examples)
    assert not any(p.right for p in predictions)  # so each of them was generated
    assert max(widths) <= 32
    assert max(read) <= 32
    assert 1 < len(widths) < len(examples)
    alone = [scoring.predict(model, tokenizer, [e])[0] for e in examples]
    assert [p.answer for p in predictions] == [p.answer for p in alone]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=60),
    st.integers(41, 80),
)
def test_batches_hold_every_row_once_within_the_limits(sizes, context):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_ROWS", 7)
        patch.setattr(scoring, "_TOKENS", 200)
        batches = list(scoring._batches(sizes, context, "test"))
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    for batch in batches:
        widest = max(sizes[i][0] for i in batch) + max(sizes[i][1] for i in batch)
        assert len(batch) == 1 or widest <= context
        assert len(batch) == 1 or widest * len(batch) <= 200
        assert len(batch) <= 7


@pytest.mark.parametrize("answer", ["yes", " yes", "yes\n", "\tyes "])
@pytest.mark.parametrize("said", ["yes", " yes", "yes \n"])
def test_white_space_around_an_answer_does_not_count(said, answer):
    assert Prediction(example("p", answer), said, None, (0.0,)).right
    assert not Prediction(example("p", answer), said.replace("y", "Y"), None, (0.0,)).right
    assert not Prediction(example("p", answer), "y es", None, (0.0,)).right
    assert not Prediction(example("p", answer), None, None, ()).right


def test_the_order_of_the_items_changes_no_score(ending_early):
    model, tokenizer, _ = ending_early
    examples = suite.load("validation", 4)
    forwards = right(model, tokenizer, examples)
    assert right(model, tokenizer, examples[::-1]) == forwards[::-1]
    assert right(model, tokenizer, []) == []


def test_scoring_leaves_no_dropout_on(ending_early):
    """A model handed over in training mode is scored as it will be used."""
    _, tokenizer, path = ending_early
    model = delta.load_base(path, attention_dropout=0.5)[0].train()
    examples = suite.load("validation", 4)
    first = right(model, tokenizer, examples)
    assert right(model.train(), tokenizer, examples) == first
    assert right(ending_early[0], tokenizer, examples) == first


def test_scores_are_means_of_means():
    instruction, knowledge = FAMILIES[0], FAMILIES[2]
    two, four = ("a", "b"), ("a", "b", "c", "d")
    rows = [
        (example("p", "a", None, "one", instruction), True),
        (example("p", "a", None, "one", instruction), False),
        (example("p", "a", None, "one", instruction), False),
        (example("p", "a", None, "one", instruction), False),
        (example("p", "a", None, "two", instruction), True),
        (example("p", "a", two, "three", knowledge), True),
        (example("p", "a", four, "three", knowledge), False),
    ]
    said = [
        Prediction(e, e.answer if was else "", None, (-1.0 - was,) * 4, tokens=(2,) * 4)
        for e, was in rows
    ]
    scores = scoring.shares(said)
    assert scores == {
        "tasks": {"one": 0.25, "two": 1.0, "three": 0.5},
        "families": {instruction: 0.625, knowledge: 0.5},
        "mean": 0.5625,
        "chance": {instruction: 0.0, knowledge: 0.375},
        "nll": {
            "tasks": {"one": 0.625, "two": 1.0, "three": 0.75},
            "families": {instruction: 0.8125, knowledge: 0.75},
            "mean": 0.78125,
        },
    }


def test_an_answer_that_does_not_fit_has_no_loss_and_scores_of_none_are_none():
    prediction = Prediction(example("p", "a", None, "one", FAMILIES[0]), None, None, ())
    assert prediction.nll is None
    scores = scoring.shares([prediction])
    assert (scores["mean"], scores["nll"]) == (0.0, {"tasks": {}, "families": {}, "mean": None})


def test_without_decoding_an_answer_is_right_only_if_every_token_is_the_likeliest(ending_early):
    model, tokenizer, _ = ending_early
    examples = [e for e in suite.load("test", 10) if not e.options]
    decoded = scoring.predict(model, tokenizer, examples)
    scored = scoring.predict(model, tokenizer, examples, decode=False)
    assert [p.nll for p in scored] == [p.nll for p in decoded]
    assert all(p.answer in ("", p.example.answer) for p in scored)


def test_a_random_model_is_near_chance(ending_early):
    model, tokenizer, _ = ending_early
    examples = suite.load("test", 60)
    scores = scoring.score(model, tokenizer, examples)
    assert scores["tasks"].keys() == suite.TASKS.keys()
    assert scores["families"]["instruction"] == 0
    for family in FAMILIES[1:]:
        # Four standard deviations of a guess on 300 items.
        chance = scores["chance"][family]
        deviation = math.sqrt(chance * (1 - chance) / 300)
        assert abs(scores["families"][family] - chance) < 4 * deviation


def test_every_item_is_scored_with_the_update_of_its_task(ending_early):
    """The answers are those that the adapter gives with the item's own task chosen for all."""
    _, tokenizer, path = ending_early
    tasks = list(suite.TASKS)
    config = MtlLoraConfig(r=2, n=2, tasks=tasks, target_modules="all-linear")
    model = get_peft_model(delta.load_base(path)[0], config).eval()
    torch.manual_seed(3)
    for name, p in model.named_parameters():
        if "mtllora_" in name:
            torch.nn.init.normal_(p)
    chosen = [e for e in suite.load("test", 10) if e.task in tasks[5:8]]
    together = right(model, tokenizer, chosen)
    alone = []
    for e in chosen:
        likelihoods = []
        model.set_task(e.task)
        for option in e.options:
            likelihoods.append(likelihood(model, tokenizer, e.prompt, option))
        alone.append(e.options[likelihoods.index(max(likelihoods))] == e.answer)
    assert together == alone
    model.set_task(None)
    with pytest.raises(ValueError, match="task 'task' is not one of the adapter's tasks"):
        right(model, tokenizer, [example("a", "b")])


def test_a_model_that_gives_no_numbers_is_told_of(ending_early):
    _, tokenizer, path = ending_early
    model = delta.load_base(path)[0]
    model.lm_head.weight.data[7] = float("nan")
    with pytest.raises(
        ValueError, match="log-likelihood of an answer is nan; expected a finite number"
    ):
        right(model, tokenizer, suite.load("test", 1))


def test_options_that_differ_in_their_last_token_are_computed_once(ending_early, monkeypatch):
    model, tokenizer, _ = ending_early
    seen = []
    monkeypatch.setattr(
        scoring, "collate", lambda rows, pad: seen.extend(rows) or encoding.collate(rows, pad)
    )
    options = ("x", "y", "a x", "a y", "a b z")
    examples = [example("dog cat", "y", options), example("dog cat", "x"), example("dog", "x")]
    predictions = scoring.predict(model, tokenizer, examples, decode=False)
    # x and y; a x and a y; a b z; with the end token x, after either prompt.
    assert len(seen) == 5
    want = [log_likelihood64(model, tokenizer, "dog cat", option) for option in options]
    assert predictions[0].log_likelihoods == pytest.approx(want, rel=1e-5)
    for prediction, prompt in zip(predictions[1:], ("dog cat", "dog"), strict=True):
        alone = log_likelihood64(model, tokenizer, prompt, "x", end=True)
        assert prediction.log_likelihoods == pytest.approx((alone,), rel=1e-5)
