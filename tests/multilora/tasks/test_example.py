import dataclasses

import pytest

from multilora.tasks.example import Example


def test_chance_is_one_over_the_options():
    assert Example("t", "f", "test", "p", "a").chance == 0
    assert Example("t", "f", "test", "p", "a", ("a", "b", "c")).chance == 1 / 3


def test_an_example_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Example("t", "f", "test", "p", "a").answer = "b"
