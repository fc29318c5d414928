"""Colours and lines of the methods."""

import picture_tables

from multilora.reproduction.pictures.styles import (
    LORA,
    MEANING,
    MULTILORA,
    NAMES,
    STYLES,
    long_name_of,
    name_of,
    ordered,
    styles,
)


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


def test_every_method_with_a_style_has_a_name_of_its_own():
    assert NAMES.keys() == STYLES.keys()
    assert len(set(NAMES.values())) == len(NAMES)
    long = [long_name_of(method) for method in STYLES]
    assert len(set(long)) == len(long)
    assert all(f"({MEANING[m]})" in long_name_of(m) for m in MEANING)


def test_a_method_without_a_name_keeps_its_own():
    assert (name_of("peft:DORA"), name_of("lora r=7")) == ("DORA (PEFT)", "lora r=7")
