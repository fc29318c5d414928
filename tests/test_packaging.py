"""The requirements of conda, pip and the Makefile agree; the wheel has every file."""

import importlib
import importlib.metadata
import re
import tomllib
from pathlib import Path

import peft
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from setuptools import find_packages

import analysis

ROOT = Path(__file__).resolve().parents[1]
OWN_PINS = ("hub", "harness")  # not in constraints.txt: pip would fall back to very old packages
CONDA_NAMES = {"pytorch": "torch"}  # name on conda-forge -> name on PyPI


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def constraints():
    """The exact version of each package that was tested."""
    lines = (ROOT / "constraints.txt").read_text().split()
    pinned = [re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in lines]
    assert all(pinned)
    return {canonicalize_name(match[1]): match[2] for match in pinned}


def ranges(lines):
    """The range of each package, without extras; of several, all that they exclude."""
    wanted = {}
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        if name != "multilora":
            wanted[name] = wanted.get(name, SpecifierSet()) & requirement.specifier
    return wanted


def lines_of(project, *extras):
    """The requirements of the base install and of extras, with those that these bring."""
    lines = list(project["dependencies"])
    for extra in extras:
        own = project["optional-dependencies"][extra]
        more = [e for r in map(Requirement, own) if r.name == "multilora" for e in r.extras]
        lines += [*own, *lines_of(project, *more)]
    return lines


def test_conda_and_pip_ask_for_the_same(pyproject):
    project = pyproject["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *packages, pip = environment["dependencies"]
    assert pip == {"pip": ["-e ."]}
    conda = {CONDA_NAMES.get(name, name): value for name, value in ranges(packages).items()}
    assert conda.pop("python") == SpecifierSet(project["requires-python"])
    conda.pop("pip")
    assert conda == ranges(lines_of(project, "notebooks"))


def test_the_tested_versions_lie_within_the_ranges(pyproject, constraints):
    project = pyproject["project"]
    extras = [
        line
        for extra, lines in project["optional-dependencies"].items()
        for line in lines
        if extra not in OWN_PINS
    ]
    wanted = ranges([*project["dependencies"], *extras])
    assert len(wanted) > 15
    for name, specifier in wanted.items():
        assert constraints[name] in specifier, f"{name} {constraints[name]} is not in {specifier}"


def test_a_version_outside_a_range_would_be_seen(pyproject):
    wanted = ranges(lines_of(pyproject["project"], "notebooks"))
    assert "0.22.0" not in wanted["peft"]
    assert "5.24.0" not in wanted["transformers"]
    assert "3.13" not in wanted["matplotlib"]


def test_the_makefile_installs_the_torch_that_was_tested(constraints):
    (version,) = re.findall(r"\btorch==(\S+)", (ROOT / "Makefile").read_text())
    assert version == constraints["torch"]


def test_every_package_on_disk_is_listed(pyproject):
    on_disk = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for top in ("analysis", "multilora")
        for path in (ROOT / top).rglob("*.py")
    }
    patterns = pyproject["tool"]["setuptools"]["packages"]["find"]["include"]
    assert sorted(on_disk) == sorted(find_packages(str(ROOT), include=patterns))
    for name in on_disk:
        assert (ROOT / name.replace(".", "/") / "__init__.py").is_file()
        importlib.import_module(name)


def test_every_other_file_is_package_data(pyproject):
    """A file that is not a module is in a wheel only if a pattern names it."""
    listed = pyproject["tool"]["setuptools"]["package-data"]
    named = {
        path
        for package, patterns in listed.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    found = {
        path
        for top in ("analysis", "multilora")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert found == named
    assert len(named) > 10


def test_the_installed_package_is_this_one(pyproject):
    project = pyproject["project"]
    assert importlib.metadata.version("multilora") == analysis.__version__
    metadata = importlib.metadata.metadata("multilora")
    assert metadata["License-Expression"] == project["license"]
    assert (ROOT / project["readme"]).is_file()
    assert "Apache License" in (ROOT / project["license-files"][0]).read_text()


@pytest.mark.parametrize(
    "table",
    ["PEFT_TYPE_TO_CONFIG_MAPPING", "PEFT_TYPE_TO_TUNER_MAPPING", "PEFT_TYPE_TO_PREFIX_MAPPING"],
)
def test_pefts_tables_are_where_the_method_registers_itself(table):
    """They are not public API, so this test is the first to run with another version of PEFT."""
    advice = (
        f"PEFT {peft.__version__}: peft.mapping.{table} is not the table that PEFT looks methods "
        "up in. See where peft/utils/peft_types.py, register_peft_method, puts them, and change "
        "multilora/__init__.py and the range of peft in pyproject.toml and environment.yml."
    )
    mapping = getattr(peft.mapping, table, None)
    assert isinstance(mapping, dict), advice
    assert peft.PeftType.LORA in mapping, advice
    users = ("peft.config", "peft.peft_model", "peft.mapping_func", "peft.utils.save_and_load")
    copies = [getattr(importlib.import_module(user), table, None) for user in users]
    assert any(copy is mapping for copy in copies), advice
    assert all(copy is None or copy is mapping for copy in copies), advice
    importlib.import_module("multilora")
    assert "MULTILORA" in mapping, advice
    assert type(next(key for key in mapping if key == "MULTILORA")).__name__ == "MethodType"
