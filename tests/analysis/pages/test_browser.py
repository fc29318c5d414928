"""Pages in a real Chromium without a network; skipped where browser or driver is missing.

They need Debian's chromium and, from PyPI, playwright and axe-playwright-python (for axe-core).
"""

import csv
import io
import os
import re
import shutil

import made_pages
import numpy as np
import pytest
from made_updates import low_rank

from analysis import spectrum
from analysis.checkpoint import Run
from analysis.pages.data import phi_pairs
from analysis.pages.text import page
from analysis.results import AgainstBase

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = "</script><img src=x onerror=alert(1)>"
READY = "html[data-ready]"
# What goes wrong in a page, from its first moment.
WATCH = """
window.found = {violations: [], tasks: []};
addEventListener("securitypolicyviolation", (event) => found.violations.push(event.sourceFile));
new PerformanceObserver((list) => list.getEntries().forEach((e) => found.tasks.push(e.duration)))
  .observe({type: "longtask", buffered: true});
window.alert = () => found.violations.push("alert");
"""
LONG = 200  # ms


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright to drive Chromium")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("needs Chromium (Debian: apt install chromium)")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with driver.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=path, args=arguments)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Open a page: its text → the tab; at the end nothing may have gone wrong in it."""
    tabs = []

    def open_(text, fragment="", **context):
        path = tmp_path / f"page{len(tabs)}.html"
        path.write_text(text, encoding="utf-8")
        context = {"viewport": {"width": 1280, "height": 900}, "offline": True} | context
        tab = browser.new_context(**context).new_page()
        tab.set_default_timeout(20_000)
        tab.problems, tab.requests = [], []
        tab.on("console", lambda message: tab.problems.append(message.text))
        tab.on("pageerror", lambda error: tab.problems.append(str(error)))
        tab.on("request", lambda request: tab.requests.append(request.url))
        tab.add_init_script(WATCH)
        tab.goto(path.as_uri() + fragment)
        tabs.append(tab)
        if context.get("java_script_enabled", True):
            tab.wait_for_selector(READY)
        return tab

    yield open_
    for tab in tabs:
        assert tab.problems == []
        asked = [url for url in tab.requests if not url.startswith(("blob:", "about:"))]
        assert len(asked) == 1  # the page itself
        if tab.locator("#app").is_visible():
            assert tab.evaluate("found.violations") == []
        tab.context.close()


@pytest.fixture(scope="module")
def spectra():
    rng = np.random.default_rng(0)
    modules = made_pages.named(4)
    runs = [made_pages.analysed(rng, modules, run) for run in ("one", "two")]
    return made_pages.together(*runs)


@pytest.fixture(scope="module")
def text(spectra):
    return pages_of(spectra)


def pages_of(spectra):
    pairs = phi_pairs(spectra.rows)
    return page(spectra, made_pages.shared(np.random.default_rng(1), spectra, pairs))


def settled(tab):
    """Wait until the page has drawn what the last event asked for."""
    tab.wait_for_timeout(400)
    tab.evaluate("new Promise((done) => setTimeout(done))")


def names(tab):
    return tab.locator("#table tbody th").all_inner_texts()


def downloaded(tab, selector):
    with tab.expect_download() as download:
        tab.click(selector)
    return open(download.value.path(), encoding="utf-8").read()


def table_csv(tab):
    return list(csv.DictReader(io.StringIO(downloaded(tab, "#table .downloads button"))))


def test_everything_is_drawn(opened, text):
    tab = opened(text)
    for name in ("spectra", "map", "phi"):
        assert tab.locator(f"#{name} .picture svg").is_visible()
    assert not tab.locator("#landing").is_visible()
    assert tab.locator("#map svg .mark-rect path").count() > 50
    assert len(names(tab)) == 28


def test_the_numbers_are_those_of_the_rows(opened, text, spectra):
    rows = {(row["run"], row["module"]): row for row in spectra.rows}
    lines = table_csv(opened(text))
    assert len(lines) == len(rows)
    for line in lines:
        row = rows[line["checkpoint"], line["module"]]
        for column in ("top_share_1", "effective_rank", "democracy", "frobenius_norm", "rank"):
            assert float(line[column]) == pytest.approx(row[column], rel=2e-7)


def test_the_curve_of_a_module_is_its_spectrum(opened, text, spectra):
    tab = opened(text)
    tab.click("#table tbody button >> nth=0")
    settled(tab)
    (module, *_) = names(tab)
    assert tab.inner_text("#status").endswith(f"the spectra are of {module}")
    lines = list(csv.DictReader(io.StringIO(downloaded(tab, "#spectra .downloads >> text=CSV"))))
    for run in ("one", "two"):
        s = spectra.s[f"{run}/{module}"]
        values = [float(line["value"]) for line in lines if line["checkpoint"] == run]
        np.testing.assert_allclose(values, s / np.linalg.norm(s), rtol=1e-6)
    assert sum("random updates" in line["checkpoint"] for line in lines) == 8


def test_a_click_on_the_map_opens_the_module(opened, text):
    tab = opened(text)
    tab.locator("#map svg .mark-rect path").nth(9).click()
    settled(tab)
    assert re.search(
        r"the spectra are of model\.layers\.\d\.self_attn\.\w+$", tab.inner_text("#status")
    )
    assert tab.locator("#table tr.chosen").count() == 1
    assert "chosen=" in tab.url


def test_the_filter(opened, text):
    tab = opened(text)
    tab.fill("#filter", "layers.2 PROJ q")
    settled(tab)
    assert names(tab) == ["model.layers.2.self_attn.q_proj"]
    assert "filter=layers.2" in tab.url
    assert {line["module"] for line in table_csv(tab)} == set(names(tab))
    tab.fill("#filter", "nothing")
    settled(tab)
    assert names(tab) == []
    assert "nothing to draw" in tab.inner_text("#spectra .caption")
    tab.click("#reset")
    settled(tab)
    assert len(names(tab)) == 28


def test_what_differs_most_comes_first_and_columns_sort(opened, text, spectra):
    rows = {(row["run"], row["module"]): row["democracy"] for row in spectra.rows}
    modules = {row["module"] for row in spectra.rows}
    tab = opened(text)
    by_difference = sorted(modules, key=lambda m: -abs(rows["one", m] - rows["two", m]))
    assert names(tab) == by_difference
    tab.click("#table thead button >> text=one")
    settled(tab)
    assert names(tab) == sorted(modules, key=lambda m: -rows["one", m])
    tab.click("#table thead button >> text=one")
    settled(tab)
    assert names(tab) == sorted(modules, key=lambda m: rows["one", m])
    assert tab.get_attribute("#table thead th:nth-child(4)", "aria-sort") == "ascending"


def test_the_view_is_in_the_address(opened, text):
    tab = opened(text)
    tab.select_option("#measure", "gini")
    tab.select_option("#values", "held")
    tab.fill("#filter", "layers.1")
    settled(tab)
    again = opened(text, tab.evaluate("location.hash"))
    assert again.input_value("#measure") == "gini"
    assert again.input_value("#values") == "held"
    assert len(names(again)) == 7
    broken = opened(text, "#measure=none&step=9&pair=x&chosen=99.-1.z&values=&sort=%00&hide=0.1")
    assert len(names(broken)) == 28


def test_a_page_works_inside_another(opened, text):
    tab = opened(text)
    frame = "document.body.append(Object.assign(document.createElement('iframe'), {srcdoc: inner}))"
    tab.goto("about:blank")
    tab.evaluate(f"(inner) => {{ {frame}; }}", text)
    inside = tab.frame_locator("iframe")
    inside.locator(READY).wait_for()
    inside.locator("#table tbody button").first.click()
    tab.wait_for_timeout(400)
    assert "the spectra are of" in inside.locator("#status").inner_text()


def test_the_slider_chooses_the_steps(opened, rng):
    modules = made_pages.named(2)
    runs = [made_pages.analysed(rng, modules, "run", step) for step in (5, 10, 20)]
    tab = opened(pages_of(made_pages.together(*runs)))
    heads = "#table thead th"
    assert tab.locator(heads).count() == 7
    tab.focus("#step")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    settled(tab)
    assert tab.locator(heads).all_inner_texts()[3].startswith("run@10")
    assert tab.locator(heads).count() == 4
    assert tab.inner_text("#stepped") == "10"


def test_the_landing_in_the_base(opened, spectra):
    shares = np.random.default_rng(2).dirichlet(np.ones(10), (len(spectra.rows), 2))
    columns = ("key", "run", "step", "part", "module", "d_out", "d_in")
    rows = [
        {column: row[column] for column in columns}
        | {f"left_{i + 1}": float(x) for i, x in enumerate(left)}
        | {f"right_{i + 1}": float(x) for i, x in enumerate(right)}
        for row, (left, right) in zip(spectra.rows, shares, strict=True)
    ]
    tab = opened(page(spectra, None, AgainstBase(rows, [], [])))
    assert tab.locator("#landing .picture svg").is_visible()
    tab.click("#table tbody button >> nth=0")
    settled(tab)
    (module, *_) = names(tab)
    lines = list(csv.DictReader(io.StringIO(downloaded(tab, "#landing .downloads >> text=CSV"))))
    at = [row["key"] for row in spectra.rows].index(f"one/{module}")
    got = [float(line["share"]) for line in lines if line["checkpoint"] == "one"]
    np.testing.assert_allclose(got, shares[at].ravel(), rtol=1e-6)
    assert float(lines[0]["chance"]) == pytest.approx(5 / 48)


def test_updates_of_zero_and_of_rank_one(opened, rng):
    run = Run("zero", "zero", None)
    entries = [low_rank(np.zeros((6, 2)), np.ones((2, 5)), name=name) for name in ("q", "v")]
    tab = opened(pages_of(spectrum.of_updates(entries, run)))
    assert "nothing to draw" in tab.inner_text("#spectra .caption")
    assert not tab.locator("#map .picture").is_visible()
    assert len(names(tab)) == 2
    tab = opened(pages_of(made_pages.analysed(rng, ["head", "layers.0.q"], r=1)))
    assert tab.input_value("#measure") == "spectral_norm"
    assert tab.locator("#map svg .mark-rect path").count() > 0


def test_names_of_strangers_stay_text(opened, rng):
    modules = [f"layers.{i}.{name}" for i, name in enumerate((HOSTILE, "__proto__", "constructor"))]
    runs = [made_pages.analysed(rng, modules, run) for run in (HOSTILE, "__proto__", "a'\"b")]
    tab = opened(pages_of(made_pages.together(*runs)))
    assert sorted(names(tab)) == sorted(modules)
    assert tab.locator("img").count() == 0
    assert HOSTILE in tab.inner_text("h1")
    assert {line["checkpoint"] for line in table_csv(tab)} == {HOSTILE, "__proto__", "a'\"b"}
    tab.locator("#map svg .mark-rect path").nth(4).click()
    settled(tab)
    assert tab.locator("#table tr.chosen").count() == 1


def test_formulas_are_no_formulas_in_the_csv(opened, rng):
    tab = opened(pages_of(made_pages.analysed(rng, ['=HYPERLINK("x")', "b,c"])))
    text = downloaded(tab, "#table .downloads button")
    assert '"\'=HYPERLINK(""x"")"' in text
    assert '"b,c"' in text


def test_pictures_download_as_svg(opened, text):
    tab = opened(text, color_scheme="dark")
    for name in ("spectra", "map", "phi"):
        svg = downloaded(tab, f"#{name} .downloads button >> nth=0")
        assert svg.startswith("<svg")
        assert 'fill="#ffffff"' in svg or "#ffffff" in svg  # light, whatever the screen has
        assert "<script" not in svg


def test_the_keyboard_is_enough(opened, text):
    tab = opened(text)
    tab.focus("#table thead button")
    tab.keyboard.press("Enter")
    settled(tab)
    assert names(tab) == sorted(names(tab))
    tab.focus("#table tbody button")
    tab.keyboard.press("Enter")
    settled(tab)
    assert tab.get_attribute("#table tbody button", "aria-pressed") == "true"
    assert tab.evaluate("document.activeElement.textContent") == names(tab)[0]


@pytest.mark.parametrize("width", [390, 900, 1600])
def test_no_page_is_wider_than_its_window(opened, text, width):
    tab = opened(text, viewport={"width": width, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, text, scheme):
    axe = pytest.importorskip("axe_playwright_python.base", reason="needs axe-core")
    tab = opened(text, color_scheme=scheme, bypass_csp=True)
    tab.evaluate(axe.AXE_FILE_PATH.read_text())
    found = tab.evaluate("axe.run()")["violations"]
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found] == []


def test_without_javascript_there_is_a_table(opened, text):
    tab = opened(text, java_script_enabled=False)
    assert tab.locator("noscript table tbody tr").count() == 56
    assert tab.locator("noscript table").is_visible()
    assert tab.locator("h1").is_visible()
    assert not tab.locator("#app").is_visible()


@pytest.mark.slow  # and it measures time, which says nothing on a machine that is busy
def test_eight_checkpoints_of_560_modules_are_fast(opened, rng):
    tab = opened(pages_of(made_pages.many(rng, runs=8, layers=80, r=16)))
    assert tab.evaluate("performance.now()") < 3000
    for words in ("q_proj", "layers.1", "up 3", ""):
        tab.evaluate("found.tasks.length = 0")
        tab.fill("#filter", words)
        settled(tab)
        tab.wait_for_timeout(600)
        assert max(tab.evaluate("found.tasks"), default=0) < LONG
