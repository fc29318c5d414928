"""Words and facts of the small world that the built-in corpus and tasks are about.

Every word is one token. Only the facts are random; `facts` draws them from fixed seeds, because
the base model, the training tasks and the tests must agree on them.
"""

import random
from typing import NamedTuple

KINDS = {
    "animal": "dog cat horse cow sheep goat pig lion tiger bear wolf fox",
    "bird": "eagle crow swan duck goose owl hawk robin sparrow heron stork gull",
    "fish": "trout salmon herring carp pike shark cod eel perch tuna bass sole",
    "insect": "bee ant wasp moth fly beetle cricket gnat flea louse hornet termite",
    "tree": "oak pine birch maple elm ash beech willow cedar poplar spruce larch",
    "flower": "rose tulip lily daisy violet iris poppy orchid lotus peony aster dahlia",
    "fruit": "apple pear plum cherry grape peach melon lemon mango fig banana apricot",
    "vegetable": "carrot onion potato cabbage leek turnip radish spinach pea bean celery lettuce",
    "tool": "hammer saw drill wrench chisel axe shovel rake pliers file screwdriver spade",
    "instrument": "piano violin flute drum harp trumpet cello guitar oboe horn lute banjo",
    "vehicle": "car bus train truck boat plane bicycle wagon tram ship van sled",
    "garment": "shirt coat hat glove scarf sock shoe belt skirt jacket dress boot",
}
GROUPS = {
    "creature": ("animal", "bird", "fish", "insect"),
    "plant": ("tree", "flower", "fruit", "vegetable"),
    "object": ("tool", "instrument", "vehicle", "garment"),
}
HE = "tom bob jack paul mark luke adam karl hugo otto leon max".split()
SHE = "anna mary jane lucy emma rosa nina olga vera ida ella mia".split()
ROOMS = "garden kitchen forest market tower cellar harbor valley".split()
GOOD = (
    "wonderful lovely great excellent superb brilliant charming delightful fine pleasant "
    "perfect splendid fresh sweet beautiful kind bright elegant gentle happy"
).split()
BAD = (
    "awful terrible horrible bad dreadful nasty poor ugly boring bitter "
    "rotten gloomy rude cruel dirty broken stale noisy dull sad"
).split()
THINGS = "soup song film book meal house picture story journey room".split()
FEELINGS = "tired hungry late angry cold ill afraid proud".split()
COMPARATIVES = {"taller": "shorter", "older": "younger", "faster": "slower", "richer": "poorer"}
SUPERLATIVES = {"taller": "tallest", "older": "oldest", "faster": "fastest", "richer": "richest"}

LETTERS = "abcdefghijklmnopqrstuvwxyz"
NUMBERS = [str(i) for i in range(60)]

RELATIONS = {
    "color": "red blue green yellow white black brown purple".split(),
    "food": "bread rice cheese honey noodles butter salt sugar".split(),
    "metal": "iron gold silver copper tin lead zinc nickel".split(),
}
_SYLLABLES = (
    "bal dor fen gar hol kel lum mor nar pel ros sur tam vel wor yor zan bren cran drel "
    "esk orl quin thal umb"
).split()
_ENDINGS = ("ia", "mark")
PLACES = [first + last for last in _ENDINGS for first in _SYLLABLES]
KNOWN_PLACES = PLACES[:35]  # their facts are in the corpus
NEW_PLACES = PLACES[35:]  # their facts are taught by the training tasks only

NOUNS = {noun: kind for kind, nouns in KINDS.items() for noun in nouns.split()}

_OTHER_WORDS = (
    "the a an of is in has its it was and or not no yes there what who "
    "because than more list again reverse sort swap "
    "deduplicate next odd answer options kind "
    "known for famous liked hated loved disliked said met "
    "greeted thanked positive negative he she so are : . , ? = + - "
    "color food metal same thing as"
).split()


class Fact(NamedTuple):
    """The statement that the `relation` (a key of RELATIONS) of `place` is `value`."""

    place: str
    relation: str
    value: str


def facts(places: list[str]) -> list[Fact]:
    """All facts about `places`, one per place and relation; the same in every call."""
    return [
        Fact(place, relation, random.Random(f"{place}/{relation}").choice(values))
        for place in places
        for relation, values in RELATIONS.items()
    ]


def vocabulary() -> list[str]:
    """Every word of the corpus and the tasks, each once, in a fixed order."""
    groups = [
        _OTHER_WORDS, KINDS, NOUNS, GROUPS, HE, SHE, ROOMS, GOOD, BAD, THINGS, FEELINGS,
        COMPARATIVES, COMPARATIVES.values(), SUPERLATIVES.values(), LETTERS, LETTERS.upper(),
        NUMBERS, *RELATIONS.values(), PLACES,
    ]  # fmt: skip
    return list(dict.fromkeys(word for group in groups for word in group))


def article(noun: str) -> str:
    """Return the noun after its indefinite article: `an apple`, `a pear`."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
