"""README, CONTRIBUTING and docs: their imports work, their commands and links exist."""

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def names_of(page):
    return page.relative_to(ROOT).as_posix()


def test_every_import_in_a_python_example_works():
    lines = [
        ast.unparse(node)
        for page in PAGES
        for block in blocks(page.read_text(), "python")
        for node in ast.parse(block).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert len(lines) >= 5
    for line in lines:
        exec(line, {})


def test_the_added_line_of_the_diff_is_the_whole_change():
    (diff,) = blocks((ROOT / "README.md").read_text(), "diff")
    new = "\n".join(line[1:] for line in diff.splitlines() if not line.startswith("-"))
    namespace = {"get_peft_model": None}
    code = new.replace("model = get_peft_model(model, config)", "")
    exec(code, namespace)
    assert namespace["config"].peft_type == "MULTILORA"
    assert namespace["config"].n == 3


def commands(page):
    return {
        match[1]
        for block in blocks(page.read_text(), "sh")
        for match in re.finditer(r"-m ((?:analysis|multilora|benchmarks)[\w.]*)", block)
    }


def test_every_command_in_a_shell_example_exists():
    modules = set().union(*map(commands, PAGES))
    assert len(modules) >= 8
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_every_option_of_reproduce_in_the_pages_exists():
    from multilora import reproduce

    texts = [block for page in PAGES for block in blocks(page.read_text(), "sh")]
    texts.append(reproduce.__doc__)
    lines = [line for text in texts for line in text.splitlines() if "multilora.reproduce" in line]
    options = {option for line in lines for option in re.findall(r"--(\w+)", line)}
    assert {"preset", "seeds", "dry_run"} <= options
    assert options <= {field.name for field in fields(reproduce.ReproduceSettings)}


@pytest.mark.parametrize("page", PAGES, ids=names_of)
def test_every_local_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_make_target_in_the_pages_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        for block in blocks(page.read_text(), "sh"):
            for name in re.findall(r"^make ([a-z-]+)", block, re.MULTILINE):
                assert name in targets, (page, name)


def test_make_help_lists_every_public_target():
    # Under another make, this one would announce the directories that it enters.
    command = ["make", "--no-print-directory", "help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    listed = [line.split()[0] for line in done.stdout.splitlines()]
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert sorted(listed) == sorted(phony)


@pytest.mark.parametrize("package", ["analysis", "multilora"])
def test_the_tree_in_the_readme_is_the_tree_on_disk(package):
    text = (ROOT / "README.md").read_text()
    tree = text[text.index("## Where things are") :]
    section = re.search(rf"^{package}/ .*\n((?:  .*\n)+)", tree, re.MULTILINE)[1]
    listed = {line.split()[0].rstrip("/") for line in section.splitlines()}
    on_disk = {
        path.name
        for path in (ROOT / package).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert listed == on_disk - {"__init__.py"}


@pytest.mark.parametrize(
    "command",
    [
        "analysis.spectrum",
        "analysis.similarity",
        "analysis.dynamics",
        "multilora.train",
        "multilora.evaluate",
        "multilora.cuts",
        "multilora.models",
        "multilora.base",
        "multilora.budget",
        "multilora.reproduce",
        "multilora.claims",
        "multilora.figures",
    ],
)
def test_every_command_says_its_version(command, capsys):
    import importlib

    import analysis

    with pytest.raises(SystemExit) as exit_:
        importlib.import_module(command).main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.strip() == analysis.__version__


def test_the_glossary_defines_the_terms_that_the_tables_use():
    terms = (ROOT / "docs" / "glossary.md").read_text()
    for word in ("update", "capacity", "noise floor", "φ(i, j)", "fingerprint", "verdict"):
        assert re.search(rf"^\| {re.escape(word)}", terms, re.MULTILINE), word


def test_the_modules_that_moved_are_where_the_changelog_says():
    text = (ROOT / "CHANGELOG.md").read_text()
    moved = re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", text, re.MULTILINE)
    assert len(moved) > 100
    modules = text.partition("### Moved or renamed definitions")[0]
    for old, new in moved:
        if f"`{old}`" in modules:
            path = ROOT / new.replace(".", "/")
            assert path.with_suffix(".py").is_file() or path.is_dir(), new


def test_a_command_runs_as_a_process_from_the_checkout():
    done = subprocess.run(
        [sys.executable, "-m", "analysis.spectrum", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+", done.stdout.strip())
