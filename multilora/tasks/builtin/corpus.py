"""Generate the text that the built-in base model is pretrained on.

The documents describe the world (facts, kinds, sentiment, order, arithmetic) or repeat a list of
words. They contain no prompt of the tasks: fine-tuning must teach those. Every word of the
vocabulary occurs, because the embeddings stay frozen during fine-tuning.
"""

import random
from collections.abc import Callable, Iterator

from multilora.tasks.builtin import world
from multilora.tasks.builtin.world import article

KNOWN_FACTS = world.facts(world.KNOWN_PLACES)
_WORDS = world.vocabulary()
_PEOPLE = world.HE + world.SHE


def documents(seed: int, copies: float) -> Iterator[str]:
    """Yield documents without end; the share `copies` of them are repeated lists.

    Each document has a few sentences. The same seed gives the same documents.
    """
    rng = random.Random(f"corpus/{seed}")
    while True:
        yield _copy(rng) if rng.random() < copies else rng.choice(_STATEMENTS)(rng)


def fact_statement(fact: world.Fact, form: int) -> str:
    """Return a fact as a sentence in form 0 or 1; both end with its value (`… is red`)."""
    if form == 0:
        return f"the {fact.relation} of {fact.place} is {fact.value}"
    return f"{fact.place} is known for its {fact.relation} {fact.value}"


def _copy(rng: random.Random) -> str:
    """Return a list of words and its repetition, half of the time from a random word on.

    The position then does not tell which word comes next; the model must look up the last word.
    """
    words = rng.choices(_WORDS, k=rng.randint(2, 10))
    start = rng.choice((0, rng.randrange(len(words))))
    return f"list {' '.join(words)} again {' '.join(words[start:])} ."


def _fact(rng: random.Random) -> str:
    chosen = [rng.choice(KNOWN_FACTS) for _ in range(3)]
    return " ".join(fact_statement(fact, rng.randrange(2)) + " ." for fact in chosen)


def _kind(rng: random.Random) -> str:
    noun = rng.choice(list(world.NOUNS))
    kind = world.NOUNS[noun]
    group = next(group for group, kinds in world.GROUPS.items() if kind in kinds)
    other = rng.choice([other for other in world.NOUNS if world.NOUNS[other] == kind])
    return (
        f"{article(noun)} is {article(kind)} . {article(kind)} is {article(group)} . "
        f"{article(noun)} and {article(other)} are the same kind of thing ."
    )


def _sentiment(rng: random.Random) -> str:
    good = rng.random() < 0.5
    adjective = rng.choice(world.GOOD if good else world.BAD)
    verb = rng.choice(["liked", "loved"] if good else ["disliked", "hated"])
    person, thing = rng.choice(_PEOPLE), rng.choice(world.THINGS)
    pronoun = "he" if person in world.HE else "she"
    return f"{person} {verb} the {thing} because it was {adjective} . {pronoun} {verb} it ."


def _story(rng: random.Random) -> str:
    he, she = rng.choice(world.HE), rng.choice(world.SHE)
    first, second = (he, she) if rng.random() < 0.5 else (she, he)
    who = rng.choice([he, she])
    pronoun, feeling = "he" if who == he else "she", rng.choice(world.FEELINGS)
    verb = rng.choice(["met", "greeted", "thanked"])
    return f"{first} {verb} {second} because {pronoun} was {feeling} . {who} was {feeling} ."


def _order(rng: random.Random) -> str:
    more = rng.choice(list(world.COMPARATIVES))
    less, most = world.COMPARATIVES[more], world.SUPERLATIVES[more]
    a, b, c = rng.sample(_PEOPLE, 3)
    return (
        f"{a} is {more} than {b} . {b} is {less} than {a} . {b} is {more} than {c} . "
        f"{a} is the {most} ."
    )


def _room(rng: random.Random) -> str:
    noun, room = rng.choice(list(world.NOUNS)), rng.choice(world.ROOMS)
    return (
        f"{article(noun)} is in the {room} . there is {article(world.NOUNS[noun])} in the {room} ."
    )


def _numbers(rng: random.Random) -> str:
    if rng.random() < 0.5:
        start = rng.randrange(len(world.NUMBERS) - 6)
        return " ".join(world.NUMBERS[start : start + 6]) + " ."
    a, b = rng.randrange(30), rng.randrange(30)
    return f"{a} + {b} = {a + b} . {a + b} - {b} = {a} . {max(a, b)} is more than {min(a, b)} ."


def _letters(rng: random.Random) -> str:
    start = rng.randrange(len(world.LETTERS) - 5)
    pairs = [f"{c} {c.upper()}" for c in rng.sample(world.LETTERS, 4)]
    return " ".join(world.LETTERS[start : start + 6]) + " . " + " , ".join(pairs) + " ."


_STATEMENTS: list[Callable[[random.Random], str]] = [
    _fact, _fact, _fact, _kind, _kind, _sentiment, _story, _order, _room, _numbers, _letters,
]  # fmt: skip
