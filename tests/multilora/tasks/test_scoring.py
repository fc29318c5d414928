import math
import random

import pytest
import torch
from peft import get_peft_model

from multilora import MtlLoraConfig, base, delta
from multilora.tasks import scoring
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
    said = [Prediction(e, e.answer if was else "", None, (0.0,)) for e, was in rows]
    scores = scoring.shares(said)
    assert scores == {
        "tasks": {"one": 0.25, "two": 1.0, "three": 0.5},
        "families": {instruction: 0.625, knowledge: 0.5},
        "mean": 0.5625,
        "chance": {instruction: 0.0, knowledge: 0.375},
    }


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
