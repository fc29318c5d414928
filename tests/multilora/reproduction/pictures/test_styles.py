"""Colours and lines of the methods."""

import picture_tables

from multilora.reproduction.pictures.styles import LORA, MULTILORA, STYLES, ordered, styles


def test_methods_have_a_colour_of_their_family_and_a_line_of_their_own():
    of_lora = {style["color"] for name, style in STYLES.items() if name.startswith("lora")}
    of_multilora = {style["color"] for name, style in STYLES.items() if name.startswith("multi")}
    assert (of_lora, of_multilora) == ({LORA}, {MULTILORA})
    looks = [(style["color"], str(style["linestyle"])) for style in STYLES.values()]
    assert len(set(looks)) == len(looks)


def test_unknown_methods_get_spare_styles():
    look = styles(["peft:A", "lora", "peft:B"])
    assert look["lora"] == STYLES["lora"]
    assert look["peft:A"] != look["peft:B"]
    assert look["peft:A"] not in STYLES.values()


def test_known_methods_come_first(rng):
    methods_rows = picture_tables.methods_rows(rng)
    assert ordered(methods_rows) == ["full", "lora", "multilora", "peft:DORA"]
