from multilora.tasks.builtin import world


def test_the_vocabulary_has_no_word_twice():
    words = world.vocabulary()
    assert len(words) == len(set(words))
    assert all(word == word.strip() and " " not in word for word in words)


def test_every_word_of_the_tasks_is_in_the_vocabulary(items):
    vocabulary = set(world.vocabulary())
    for e in items():
        words = f"{e.prompt} {e.answer} {' '.join(e.options or ())}".split()
        assert set(words) <= vocabulary, e


def test_facts_depend_on_nothing_but_the_place():
    facts = world.facts(world.PLACES)
    assert facts == world.facts(world.PLACES)
    assert facts[3:6] == world.facts(world.PLACES[1:2])
    assert [f.relation for f in facts[:3]] == list(world.RELATIONS)
    assert all(f.value in world.RELATIONS[f.relation] for f in facts)
    places = world.KNOWN_PLACES + world.NEW_PLACES
    assert places == world.PLACES
    assert len(set(places)) == 50


def test_a_noun_has_one_kind_and_a_kind_one_group():
    assert len(world.NOUNS) == sum(len(nouns.split()) for nouns in world.KINDS.values())
    grouped = [kind for kinds in world.GROUPS.values() for kind in kinds]
    assert sorted(grouped) == sorted(world.KINDS)


def test_the_article_is_an_before_a_vowel():
    assert [world.article(noun) for noun in ("apple", "pear", "owl")] == [
        "an apple", "a pear", "an owl",
    ]  # fmt: skip
