"""The documentation: what its extensions make of a text, and the built site, if there is one."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import multilora_command
from analysis.process import start

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "docs" / "site"
COMMAND = re.compile(r"multilora ([a-z]+)")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def loaded(name):
    """A module of docs/site, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_site_{name}", SITE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


links = loaded("links")


@pytest.fixture
def site(tmp_path):
    """Write pages: name → HTML; returns the faults of the site."""

    def write(**pages):
        for name, text in pages.items():
            (tmp_path / f"{name}.html").write_text(text)
        (tmp_path / "own.css").write_text("")
        return list(links.faults(tmp_path))

    return write


# The checker of links


def test_a_sound_site_has_no_fault(site):
    a = '<link rel="stylesheet" href="own.css"><a href="b.html#there">b</a><a href="#up" id="up">'
    assert site(a=a, b='<h1 id="there"><a href="https://example.org">outside</a>') == []


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="c.html">', "c.html leads nowhere"),
        ('<a href="a.html#nowhere">', "no such place on that page"),
        ('<a href="#nowhere">', "no such place on that page"),
        ('<img src="missing.png">', "missing.png is missing"),
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', "loads //cdn.example/x.css"),
    ],
)
def test_what_leads_nowhere_or_elsewhere_is_a_fault(site, html, fault):
    (line,) = site(a=html)
    assert fault in line
    assert line.startswith("a.html: ")


def test_a_folder_without_a_page_is_a_fault(tmp_path, capsys):
    assert links.main([str(tmp_path)]) == 1
    assert "no page" in capsys.readouterr().err


# Docstrings


docstrings = loaded("docstrings")


def test_terms_become_a_list_and_examples_stay():
    lines = ["a, b (d, k): one *thing*", "    and more", "", ">>> f(`x`)", "1"]
    assert docstrings.converted(lines) == [
        "- **a, b (d, k)**: one \\*thing\\*", "  and more", "", ">>> f(`x`)", "1",
    ]  # fmt: skip


def test_names_with_underscores_stay_as_they_are():
    assert docstrings.converted(["d_out and trailing_ and `code_`"]) == [
        "d_out and trailing\\_ and ``code_``"
    ]


# The sources


def test_katex_is_whole_and_has_its_licence():
    katex = SITE / "static" / "katex"
    fonts = set(re.findall(r"fonts/[\w-]+\.woff2", (katex / "katex.min.css").read_text()))
    assert len(fonts) == len(list((katex / "fonts").iterdir())) > 10
    assert all((katex / font).is_file() for font in fonts)
    assert "MIT" in (katex / "LICENSE").read_text()


def test_every_page_is_in_a_table_of_contents():
    """One that is missing is a warning of Sphinx, and so an error; this is the same, at once."""
    text = (ROOT / "docs" / "index.md").read_text()
    listed = set(re.findall(r"^(?:.*<)?([\w./\[\]*-]+?)>?$", text, re.MULTILINE))
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        by_pattern = re.fullmatch(r"[cd]o.*ing", name)
        assert name == "index" or name in listed or by_pattern, name
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"../notebooks/{notebook.stem}" in listed


def test_every_command_and_option_of_the_pages_exists(capsys, monkeypatch):
    """Options of light commands, whose help is quick."""
    monkeypatch.setattr(start, "as_script", start.program)  # which prepares the whole process
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    blocks = [
        b for page in pages for b in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    lines = [line for block in blocks for line in block.splitlines()]
    named = {match[1]: set() for line in lines if (match := COMMAND.match(line))}
    for line in lines:
        if match := COMMAND.match(line):
            named[match[1]] |= set(re.findall(r"(?<=\s)--[a-z-]+", line.partition(" #")[0]))
    assert {"spectrum", "similarity", "page"} <= set(named) <= set(multilora_command.COMMANDS)
    for name, options in named.items():
        if multilora_command.COMMANDS[name][0].startswith("analysis."):
            with pytest.raises(SystemExit):
                multilora_command.main([name, "--help"])
            out = capsys.readouterr().out
            assert all(option in out for option in options), (name, options)


# The built site


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site, built anew and strictly."""
    for name in ("myst_nb", "furo", "sphinx_design", "sphinx_copybutton"):
        pytest.importorskip(name, reason="needs the extra docs")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-c", SITE, ROOT, out],
        capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return out


@pytest.mark.slow
def test_the_site_has_no_broken_link_and_loads_nothing_from_elsewhere(built):
    assert list(links.faults(built)) == []


@pytest.mark.slow
def test_no_page_of_the_site_names_a_machine(built):
    for path in built.rglob("*.html"):
        assert str(ROOT) not in path.read_text(), path


@pytest.mark.slow
def test_mathematics_and_tables_render_offline(built):
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("needs Chromium (Debian: apt install chromium)")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=arguments)
        tab = browser.new_context(offline=True, viewport={"width": 390, "height": 844}).new_page()
        problems, requests = [], []
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        for page in ("docs/index", "docs/measures", "docs/formats", "docs/api/analysis"):
            tab.goto((built / f"{page}.html").as_uri())
            tab.wait_for_load_state("load")
            assert tab.locator(".katex-error").count() == 0
            assert (
                tab.locator(".math").count()
                == tab.locator(".math > .katex, .math > .katex-display").count()
            )
            # Nothing is wider than a phone.
            assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    assert problems == []
    assert all(address.startswith(("file:", "data:")) for address in requests)


@pytest.mark.slow
def test_a_page_that_leads_nowhere_fails_the_build(tmp_path):
    pytest.importorskip("myst_nb", reason="needs the extra docs")
    (tmp_path / "index.md").write_text("# A\n\n[b](b.md#c)\n")
    (tmp_path / "conf.py").write_text('extensions = ["myst_nb"]\n')
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", tmp_path, tmp_path / "out"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "b.md" in done.stderr


def test_collapsed_cells_are_folded():
    notebooks = loaded("notebooks")

    class App:
        class env:
            doc2path = staticmethod(lambda page: Path(f"{page}.ipynb"))

    cells = [{"metadata": {"jupyter": {"source_hidden": True}}}, {"metadata": {}}]
    source = [json.dumps({"cells": cells})]
    notebooks.fold(App, "a", source)
    tags = [cell["metadata"].get("tags") for cell in json.loads(source[0])["cells"]]
    assert tags == [["hide-input"], None]
