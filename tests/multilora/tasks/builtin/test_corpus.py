import collections
import hashlib
import itertools
import re

from multilora.tasks.builtin import corpus, world


def test_the_corpus_has_every_word_of_the_vocabulary_and_no_other(documents):
    """Embeddings are frozen after pretraining: a word that is not read there is never learned."""
    counts = collections.Counter(word for text in documents for word in text.split())
    assert counts.keys() == set(world.vocabulary())
    assert min(counts.values()) >= 10


def test_without_copies_the_corpus_would_lack_words():
    """The check above sees a word that does not occur."""
    documents = itertools.islice(corpus.documents(seed=0, copies=0), 10_000)
    assert {word for text in documents for word in text.split()} < set(world.vocabulary())


def test_the_corpus_holds_none_of_the_prompts(documents, items):
    text = "\n".join(documents)
    for phrase in (" ? ", "options", "answer :", "reverse :", "positive or"):
        assert not [t for t in documents if phrase in t and not t.startswith("list ")], phrase
    asked = [e.prompt for e in items() if "?" in e.prompt or " :" in e.prompt]
    assert not [prompt for prompt in asked[:2000] if prompt in text]


def test_the_corpus_is_the_same_at_every_call_and_another_for_another_seed():
    def start(seed, copies=0.35):
        return list(itertools.islice(corpus.documents(seed, copies), 50))

    assert start(0) == start(0)
    assert start(0) != start(1)
    # A copy repeats a list from some word on.
    assert all(re.fullmatch(r"list (.+ )?(.+) again \2 \.", text) for text in start(0, copies=1))
    assert not [text for text in start(0, copies=0) if text.startswith("list ")]


def test_the_corpus_states_every_known_fact_and_no_other(documents):
    text = " ".join(t for t in documents if not t.startswith("list "))
    for fact in corpus.KNOWN_FACTS:
        assert corpus.fact_statement(fact, 0) in text
        assert corpus.fact_statement(fact, 1) in text
    assert not [place for place in world.NEW_PLACES if place in text.split()]


def test_the_corpus_is_the_one_of_the_published_base(documents):
    text = "\n".join(documents)
    assert hashlib.sha256(text.encode()).hexdigest().startswith("4f670d33aba9")


def test_a_fact_ends_with_its_value():
    fact = world.Fact("balia", "color", "red")
    assert corpus.fact_statement(fact, 0) == "the color of balia is red"
    assert corpus.fact_statement(fact, 1) == "balia is known for its color red"
