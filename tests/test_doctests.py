"""Run the examples in docstrings, and require one for every public function of numerics."""

import doctest
import importlib
import inspect
import pkgutil
import types

import pytest

import analysis.numerics

NUMERICS = [f"analysis.numerics.{m.name}" for m in pkgutil.iter_modules(analysis.numerics.__path__)]
OTHERS = [
    "analysis.figures.plots",
    "analysis.figures.spectrum",
    "analysis.names",
    "analysis.results",
    "analysis.store",
    "analysis.update",
    "multilora.behaviour",
    "multilora.reproduction.pictures.styles",
]


def without_example(module):
    """Names of the module's own public functions whose docstring has no example."""
    examples = {test.name: test.examples for test in doctest.DocTestFinder().find(module)}
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and inspect.isfunction(inspect.unwrap(value))
        and value.__module__ == module.__name__
        and not examples.get(f"{module.__name__}.{name}")
    ]


@pytest.mark.parametrize("name", [*NUMERICS, *OTHERS])
def test_the_examples_give_what_they_show(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("name", NUMERICS)
def test_every_public_function_of_numerics_has_an_example(name):
    assert without_example(importlib.import_module(name)) == []


def test_a_function_without_an_example_is_found():
    module = types.ModuleType("made_up")
    code = (
        "import functools\n"
        "def with_one():\n    '''\n    >>> 1 + 1\n    2\n    '''\n"
        "def without():\n    '''No example.'''\n"
        "@functools.cache\ndef cached():\n    '''No example.'''\n"
        "def _private():\n    '''No example.'''\n"
    )
    exec(code, vars(module))
    assert without_example(module) == ["without", "cached"]
