"""Files for people who cite, report or contribute: they parse, and name only what exists."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import analysis
import multilora_command
from analysis import spectrum

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[0-9]*.yml"))
PYTHON_MODULES = {"pip", "venv"}


def steps(workflow):
    """The commands of a workflow, one a line."""
    for job in yaml.safe_load(workflow)["jobs"].values():
        for step in job["steps"]:
            yield from step.get("run", "").splitlines()


def unknown(workflow):
    """What the commands of a workflow name and this repository lacks."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z]+)\s*[?:]?=", makefile, re.MULTILINE))
    for line in steps(workflow):
        program, *words = line.split()
        if program == "make":
            given = {word.partition("=")[0] for word in words if "=" in word}
            yield from {word for word in words if "=" not in word} - targets
            yield from given - variables
        elif program == "multilora":
            if words[0] not in {*multilora_command.COMMANDS, "--version"}:
                yield words[0]
        elif program == "python":
            if words[0] != "-m" or words[1] not in PYTHON_MODULES:
                yield line
        else:
            yield program


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_only_what_exists(path):
    assert list(unknown(path.read_text())) == []


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("make tests", "tests"),
        ("make test VERSION=3", "VERSION"),
        ("multilora spectra", "spectra"),
        ("tox", "tox"),
        ("python -m tox", "python -m tox"),
    ],
)
def test_a_name_that_does_not_exist_is_seen(run, name):
    assert list(unknown(f"jobs: {{a: {{steps: [{{run: {run}}}]}}}}")) == [name]


def test_the_workflow_tries_what_the_package_promises():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    matrix = jobs["tests"]["strategy"]["matrix"]
    named = [line.rpartition(" :: ")[2] for line in project["classifiers"] if ":: 3." in line]
    assert matrix["python"] == named
    assert min(named, key=lambda v: int(v[2:])) == project["requires-python"].lstrip(">=")
    assert {"ubuntu-latest", "macos-latest"} <= set(matrix["os"])
    assert {"tests", "light", "docs", "newest"} <= set(jobs)


def test_there_are_forms_and_each_can_be_filled_in():
    assert len(FORMS) == 3
    for path in FORMS:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= set(form), path
        identifiers = [field["id"] for field in form["body"]]
        assert len(set(identifiers)) == len(identifiers)
        for field in form["body"]:
            assert field["type"] in {"textarea", "input"}
            assert field["attributes"]["label"]


def test_forms_name_options_that_exist(capsys):
    assert multilora_command.main(["--help"]) == 0
    with pytest.raises(SystemExit):
        spectrum.main(["--help"])
    known = capsys.readouterr().out
    for path in FORMS:
        for option in re.findall(r"--[a-z]+", path.read_text()):
            assert option in known, option


def test_the_citation_is_that_of_this_version():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cff)  # what the format requires
    assert cff["version"] == analysis.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cff["license"] == project["license"]
    assert [author["name"] for author in cff["authors"]] == [a["name"] for a in project["authors"]]
    (paper,) = cff["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2311.11501"
    assert paper["url"] == project["urls"]["Paper"]


def test_the_changelog_has_the_form_that_it_says():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "keepachangelog.com" in text
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for version in text.split("\n## ")[1:]:
        found = re.findall(r"^### (.*)$", version, re.MULTILINE)
        assert kinds >= {title for title in found if not title.startswith("Moved")}, found
        assert len(found) == len(set(found))
