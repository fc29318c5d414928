import collections
import itertools
import random
import re

import pytest

from multilora.tasks.builtin import (
    corpus,
    instruction,
    knowledge,
    splits,
    suite,
    understanding,
    world,
)
from multilora.tasks.example import FAMILIES, SPLITS, Example

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def examples():
    """(split, seed) → 150 examples of every task; drawn once."""
    return {(split, seed): suite.load(split, 150, seed) for split in SPLITS for seed in SEEDS}


@pytest.fixture(scope="module")
def pretraining():
    """Ten thousand documents of the corpus, a sixth of what the base reads."""
    return list(itertools.islice(corpus.documents(seed=0, copies=0.35), 10_000))


def every(examples, task=None):
    return [e for drawn in examples.values() for e in drawn if task in (None, e.task)]


# Words.


def test_every_word_of_the_tasks_is_in_the_vocabulary(examples):
    vocabulary = set(world.vocabulary())
    for e in every(examples):
        words = f"{e.prompt} {e.answer} {' '.join(e.options or ())}".split()
        assert set(words) <= vocabulary, e


def test_the_corpus_has_every_word_of_the_vocabulary_and_no_other(pretraining):
    """Embeddings are frozen after pretraining: a word that is not read there is never learned."""
    counts = collections.Counter(word for text in pretraining for word in text.split())
    assert counts.keys() == set(world.vocabulary())
    assert min(counts.values()) >= 10


def test_without_copies_the_corpus_would_lack_words():
    """The check above sees a word that does not occur."""
    documents = itertools.islice(corpus.documents(seed=0, copies=0), 10_000)
    assert {word for text in documents for word in text.split()} < set(world.vocabulary())


def test_the_vocabulary_has_no_word_twice():
    words = world.vocabulary()
    assert len(words) == len(set(words))
    assert all(word == word.strip() and " " not in word for word in words)


def test_the_corpus_holds_none_of_the_prompts(pretraining, examples):
    text = "\n".join(pretraining)
    for phrase in (" ? ", "options", "answer :", "reverse :", "positive or"):
        assert not [t for t in pretraining if phrase in t and not t.startswith("list ")], phrase
    asked = [e.prompt for e in every(examples) if "?" in e.prompt or " :" in e.prompt]
    assert not [prompt for prompt in asked[:2000] if prompt in text]


def test_the_corpus_is_the_same_at_every_call_and_another_for_another_seed():
    def start(seed, copies=0.35):
        return list(itertools.islice(corpus.documents(seed, copies), 50))

    assert start(0) == start(0)
    assert start(0) != start(1)
    # A copy repeats a list from some word on.
    assert all(re.fullmatch(r"list (.+ )?(.+) again \2 \.", text) for text in start(0, copies=1))
    assert not [text for text in start(0, copies=0) if text.startswith("list ")]


def test_the_corpus_states_every_known_fact_and_no_other(pretraining):
    text = " ".join(t for t in pretraining if not t.startswith("list "))
    for fact in corpus.KNOWN_FACTS:
        assert corpus.fact_statement(fact, 0) in text
        assert corpus.fact_statement(fact, 1) in text
    assert not [place for place in world.NEW_PLACES if place in text.split()]


def test_facts_depend_on_nothing_but_the_place():
    facts = world.facts(world.PLACES)
    assert facts == world.facts(world.PLACES)
    assert facts[3:6] == world.facts(world.PLACES[1:2])
    assert [f.relation for f in facts[:3]] == list(world.RELATIONS)
    assert all(f.value in world.RELATIONS[f.relation] for f in facts)
    places = world.KNOWN_PLACES + world.NEW_PLACES
    assert places == world.PLACES
    assert len(set(places)) == 50


# Splits.


@pytest.mark.parametrize("seed", SEEDS)
def test_no_prompt_is_in_two_splits(examples, seed):
    prompts = {split: {e.prompt for e in examples[split, seed]} for split in SPLITS}
    # Across seeds too: what one seed trains on, another must not test.
    trained = {e.prompt for s in SEEDS for e in examples["train", s]}
    assert not trained & (prompts["validation"] | prompts["test"])
    assert not prompts["validation"] & prompts["test"]


def test_no_prompt_is_in_two_splits_at_thousands_of_draws():
    drawn = [
        {e.prompt for e in suite.load(s, n)} for s, n in zip(SPLITS, (4000, 160, 160), strict=True)
    ]
    for a, b in itertools.combinations(drawn, 2):
        assert not a & b


def test_an_item_has_one_split_however_often_it_is_drawn():
    """Drawn without a wish for a split, from other seeds than the suite's."""
    for task, (_, draw) in suite.TASKS.items():
        rng = random.Random(f"{task} again")
        split_of = {}
        for _ in range(2000):
            item = draw(rng)
            assert split_of.setdefault(item.prompt, item.split) == item.split, (task, item)
        assert set(split_of.values()) == set(SPLITS), task


def test_hash_and_position_give_each_split_its_share():
    keys = [splits.by_hash(str(i)) for i in range(5000)]
    assert keys.count("test") / 5000 == pytest.approx(0.1, abs=0.02)
    assert keys.count("validation") / 5000 == pytest.approx(0.1, abs=0.02)
    assert [splits.by_position(c, "abcdefg") for c in "abcdefg"] == [
        "train", "train", "train", "validation", "test", "train", "train",
    ]  # fmt: skip


@pytest.mark.parametrize("task", understanding.TASKS)
def test_what_decides_a_test_item_never_decided_a_training_item(examples, task):
    def decisive(e):
        if task == "sentiment":
            return frozenset({e.prompt.split(" . ")[0].split()[-1]})
        if task == "rooms":
            (room,) = re.findall(r"what is in the (\w+)", e.prompt)
            return frozenset(re.findall(rf"an? (\w+) is in the {room} \.", e.prompt))
        return frozenset(e.options)

    of = {
        split: {decisive(e) for e in every(examples, task) if e.split == split} for split in SPLITS
    }
    for a, b in itertools.combinations(SPLITS, 2):
        assert not of[a] & of[b]


def test_every_new_fact_is_trained_in_one_form_and_tested_in_the_other():
    train = [fact_in(e.prompt) for e in suite.load("train", 800) if e.task == "new_facts"]
    for split in ("validation", "test"):
        for e in suite.load(split, 100):
            if e.task == "new_facts":
                fact, form = fact_in(e.prompt)
                assert form == 1
                assert (fact, 0) in train
                assert not [f for f, form in train if f.place == fact.place and form == 1]
    assert [form for _, form in train if form == 1]  # the tested form is trained, elsewhere


def test_a_sum_turned_round_is_in_the_same_split():
    split_of = {}
    rng = random.Random("sums")
    for _ in range(3000):
        item = knowledge.sums(rng)
        pair = frozenset(re.match(r"(\d+) \+ (\d+)", item.prompt).groups())
        assert split_of.setdefault(pair, item.split) == item.split


def test_known_facts_are_tested_at_places_that_training_never_asks_about(examples):
    places = collections.defaultdict(set)
    for (split, _), drawn in examples.items():
        places[split] |= {fact_in(e.prompt)[0].place for e in drawn if e.task == "known_facts"}
    assert not places["train"] & places["test"]
    assert not places["train"] & places["validation"]
    assert places["train"] | places["test"] | places["validation"] == set(world.KNOWN_PLACES)


# Answers, checked by reading the prompt.


def fact_in(prompt):
    """(fact, form of the question or statement) that the prompt asks for."""
    forms = [r"what (\w+) has (\w+) \?", r"()(\w+) is famous for what (\w+) \?"]
    forms += [r"the (\w+) of (\w+) is$", r"()(\w+) is known for its (\w+)$"]
    for i, form in enumerate(forms):
        match = re.match(form, prompt)
        if match:
            relation, place = (match[1], match[2]) if i % 2 == 0 else (match[3], match[2])
            (fact,) = [f for f in world.facts([place]) if f.relation == relation]
            return fact, i % 2
    raise ValueError(prompt)


def solve(e):
    """The right answer, from the prompt's words alone."""
    prompt = e.prompt
    if e.family == "instruction":
        words = re.fullmatch(r"\w+ : (.+) \. answer :", prompt)[1].split()
        return " ".join(INSTRUCTIONS[e.task](words))
    if e.task == "sentiment":
        word = prompt.split(" . ")[0].split()[-1]
        good = (word in world.GOOD) != (" was not " in prompt)
        return "positive" if good else "negative"
    if e.task == "rooms":
        told = re.findall(r"an? (\w+) is in the (\w+) \.", prompt)
        (room,) = re.findall(r"what is in the (\w+) \?", prompt)
        return world.NOUNS[{where: noun for noun, where in told}[room]]
    if e.task == "coreference":
        group = world.HE if " he was " in prompt else world.SHE
        return [word for word in prompt.split() if word in group][-1]
    if e.task == "roles":
        *told, asked = [part.split() for part in re.split(r" [.?] ?", prompt)[:-1]]
        (whole,) = [t for t in told if all(q in ("who", w) for q, w in zip(asked, t, strict=True))]
        return whole[asked.index("who")]
    if e.task == "order":
        return first_in_order(prompt)
    if e.task == "same_kind":
        noun = prompt.split(" ? ")[0].split()[-1]
        (same,) = [word for word in e.options if world.NOUNS[word] == world.NOUNS[noun]]
        assert same != noun
        return same
    if e.task == "sums":
        a, b = re.match(r"(\d+) \+ (\d+) \?", prompt).groups()
        return str(int(a) + int(b))
    if e.task == "differences":
        a, b = re.match(r"(\d+) - (\d+) \?", prompt).groups()
        return str(int(a) - int(b))
    return fact_in(prompt)[0].value


def unique(words):
    return [word for i, word in enumerate(words) if word not in words[:i]]


INSTRUCTIONS = {
    "reverse": lambda words: words[::-1],
    "sort": lambda words: [str(i) for i in sorted(map(int, words))],
    "repeated": lambda words: [word for word in unique(words) if words.count(word) > 1],
    "deduplicate": unique,
    "swap": lambda words: words[-1:] + words[1:-1] + words[:1],
}


def first_in_order(prompt):
    """The one ordering of the three people that both comparisons allow, by trying all."""
    pairs = re.findall(r"(\w+) is (\w+) than (\w+) \.", prompt)
    people = sorted({name for a, _, b in pairs for name in (a, b)})
    above = [(a, b) if said in world.COMPARATIVES else (b, a) for a, said, b in pairs]
    (chain,) = [
        chain
        for chain in itertools.permutations(people)
        if all(chain.index(high) < chain.index(low) for high, low in above)
    ]
    (superlative,) = re.findall(r"who is the (\w+) \?", prompt)
    more = {world.SUPERLATIVES.get(said) for _, said, _ in pairs} - {None}
    assert more <= {superlative}
    return chain[0]


@pytest.mark.parametrize("task", suite.TASKS)
def test_answers_are_right(examples, task):
    for e in every(examples, task):
        assert solve(e) == e.answer, e


@pytest.mark.parametrize("task", suite.TASKS)
def test_options_hold_the_answer_once(examples, task):
    count = {"sentiment": 2, "coreference": 3, "roles": 3, "order": 3}.get(task, 4)
    for e in every(examples, task):
        if e.options is None:
            assert e.family == "instruction"
            assert e.chance == 0
        else:
            assert e.options.count(e.answer) == 1, e
            assert len(set(e.options)) == len(e.options) == count
            assert e.chance == 1 / count


@pytest.mark.parametrize("task", [*understanding.TASKS, *knowledge.TASKS])
def test_no_option_is_right_by_its_place(examples, task):
    """Answers stand at each place about as often, and no word is the answer too often."""
    items = [e for e in every(examples, task) if e.options and e.split == "train"]
    total, count = len(items), len(items[0].options)
    words = collections.Counter(e.answer for e in items)
    if count == 2:  # two words in a fixed order
        places = words
    else:
        places = collections.Counter(e.options.index(e.answer) for e in items)
        assert max(words.values()) < 0.2 * total
    deviation = (total / count * (1 - 1 / count)) ** 0.5
    assert max(places.values()) < total / count + 4 * deviation


# The suite.


def test_the_suite_has_three_families_of_five():
    assert tuple(dict.fromkeys(suite.FAMILY_OF.values())) == FAMILIES
    assert list(suite.FAMILY_OF) == [
        *instruction.TASKS, *understanding.TASKS, *knowledge.TASKS,
    ]  # fmt: skip
    assert set(collections.Counter(suite.FAMILY_OF.values()).values()) == {5}


def test_the_suite_is_the_same_at_every_call(examples):
    assert suite.load("train", 150, 1) == examples["train", 1]
    assert suite.load("test", 150, 1) == examples["test", 1]
    assert examples["test", 0] != examples["test", 1]
    assert suite.load("train", 20) == [
        e for task in suite.TASKS for e in [x for x in examples["train", 0] if x.task == task][:20]
    ]


def test_every_task_has_its_count_and_held_out_items_are_distinct(examples):
    for (split, _), drawn in examples.items():
        assert collections.Counter(e.task for e in drawn) == dict.fromkeys(suite.TASKS, 150)
        assert {e.split for e in drawn} == {split}
        assert all(e.family == suite.FAMILY_OF[e.task] for e in drawn)
        if split != "train":
            assert len({e.prompt for e in drawn}) == len(drawn)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'dev'; expected one of train, validation, test"):
        suite.load("dev", 1)


def test_no_examples_are_no_examples():
    assert suite.load("train", 0) == []


def test_more_distinct_items_than_there_are_are_refused(monkeypatch):
    def coin(rng):
        return splits.Item(rng.choice("ab"), "heads", None, "test")

    monkeypatch.setattr(suite, "TASKS", {"coin": ("knowledge", coin)})
    assert len(suite.load("test", 2)) == 2
    with pytest.raises(
        ValueError, match="coin: 3 test items were requested; expected at most about 2"
    ):
        suite.load("test", 3)


def test_chance_is_one_over_the_options():
    assert Example("t", "f", "test", "p", "a").chance == 0
    assert Example("t", "f", "test", "p", "a", ("a", "b", "c")).chance == 1 / 3
