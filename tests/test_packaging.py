"""The requirements of conda, pip and the Makefile agree; the wheel has every file."""

import importlib
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
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
LIGHT_MB = 100  # the base install with all that it needs, without pip
# Not copied before a build: what a checkout has besides its files.
NOT_SOURCE = (".git", ".venv", "runs", "build", "dist", "__pycache__", ".*_cache", "*.egg-info")
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
    assert metadata["Description-Content-Type"] == "text/markdown"
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


# The README of an index


@pytest.fixture(scope="module")
def readme():
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.readme


@pytest.mark.parametrize("repository", [None, "https://host.example/us/it", "https://h.example/i/"])
def test_the_readme_of_an_index_has_no_relative_link(readme, repository):
    text = readme((ROOT / "README.md").read_text(), repository)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    assert all(re.match("https?://|#", target) for target in targets)
    assert ("![" in text) == (repository is not None)
    assert "<!--" not in text
    assert "//raw" not in text
    for word in ("analysis.spectrum", "docs/formats.md", "## Install", "| extra |"):
        assert word in text


def test_a_picture_that_is_a_link_has_both_addresses(readme):
    text = "[![a, b](docs/a.png)](docs/a.html)"
    at = "https://h.example/us/it"
    assert readme(text, at) == f"[![a, b]({at}/raw/HEAD/docs/a.png)]({at}/blob/HEAD/docs/a.html)"
    assert readme(text, None) == ""


# What is built


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and source distribution."""
    pytest.importorskip("build.__main__", reason="needs build")
    copy, out = tmp_path_factory.mktemp("source") / "copy", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", out, copy],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_nothing_else(built):
    wheel, _ = built
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        described = archive.read(metadata).decode()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"analysis", "multilora", "multilora_command.py"}
    on_disk = {
        path.relative_to(ROOT).as_posix()
        for top in ("analysis", "multilora")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert on_disk <= set(names)
    assert "![" not in described
    assert "Description-Content-Type: text/markdown" in described


@pytest.mark.slow
def test_the_source_distribution_has_what_make_test_needs(built):
    _, sdist = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "Makefile", "constraints.txt", "environment.yml", ".ci/install.py", "CITATION.cff",
        "tests/test_light.py", "tests/conftest.py", "notebooks/03_multilora.ipynb", "setup.py",
        "figures/methods.csv", "docs/site/conf.py", "benchmarks/README.md", "LICENSE",
        ".github/workflows/tests.yml",
    ):  # fmt: skip
        assert name in names, name
    tests = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    assert tests <= names


@pytest.mark.slow
def test_the_wheel_alone_reads_an_adapter(built, tmp_path, write_adapter, lora_tensors):
    """In an empty directory, with the base install: quick and small."""
    wheel, _ = built
    adapter = write_adapter(lora_tensors("layers.0.q_proj"), "a")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    before = _size(venv)
    pip = [venv / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", wheel], check=True, cwd=tmp_path)
    assert (_size(venv) - before) / 1e6 < LIGHT_MB
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        [venv / "bin" / "multilora", "spectrum", adapter],
        cwd=empty, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "q_proj" in done.stdout
    assert done.stderr == ""
    assert not list(empty.iterdir())


def _size(directory):
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())
