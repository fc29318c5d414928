"""A document runs its own scripts alone, fetches nothing, and keeps names of strangers as text."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from importlib import resources

import made_pages
import pytest

from analysis.pages import document
from analysis.pages.text import frame, page

HOSTILE = "</script><img src=x onerror=alert(1)>"
NAMES = (HOSTILE, "<!--<script>", "q\u2028']]>&lt;", '"><svg/onload=alert(1)>', "$&__proto__")


class Reader(HTMLParser):
    """The elements of a document, with their attributes and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.open = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        self.open = True

    def handle_endtag(self, tag):
        self.open = False

    def handle_data(self, data):
        if self.open:
            self.texts[-1] += data

    def all(self, tag):
        pairs = zip(self.elements, self.texts, strict=True)
        return [(attributes, text) for (name, attributes), text in pairs if name == tag]


@pytest.fixture(scope="module")
def text():
    import numpy as np

    rng = np.random.default_rng(0)
    modules = [f"layers.{i}.{name}" for i, name in enumerate(NAMES)]
    runs = [made_pages.analysed(rng, modules, run) for run in ("one", HOSTILE)]
    return page(made_pages.together(*runs))


def test_names_are_text(text):
    reader = Reader(text)
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"img", "svg", "iframe", "link", "object", "base"}
    for _, attributes in reader.elements:
        assert not {"src", "href", "srcset", "style"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    assert reader.all("h1")[0][1] == f"Spectra of one and {HOSTILE}"
    assert any(HOSTILE in name for _, name in reader.all("th"))


def test_names_in_the_data_are_what_they_were(text):
    ((_, data),) = [(a, t) for a, t in Reader(text).all("script") if a.get("id") == document.DATA]
    names = [module["name"] for module in json.loads(data)["modules"]]
    assert names[0] == f"layers.0.{HOSTILE}"
    assert names[2] == "layers.2.q\\u2028']]>&lt;"  # as it is printed elsewhere
    assert "<" not in data
    assert data.isascii()


def test_the_policy_names_every_script_and_the_style(text):
    reader = Reader(text)
    (policy,) = [a["content"] for a, _ in reader.all("meta") if "http-equiv" in a]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = [t for a, t in reader.all("script") if a.get("type") != "application/json"]
    assert len(scripts) == len(document.VENDOR) + 1
    for content in [*scripts, reader.all("style")[0][1]]:
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    for directive in ("base-uri 'none'", "form-action 'none'"):
        assert directive in policy


def test_no_address_that_a_browser_would_fetch(text):
    assert "sourceMappingURL" not in text
    assert not re.search(r"@import|url\(", Reader(text).all("style")[0][1])


def test_a_browser_without_javascript_gets_the_numbers(text):
    assert "<noscript>" in text
    plain = text[text.index("<noscript>") : text.index("</noscript>")]
    assert plain.count("<tr>") == 1 + 2 * len(NAMES)
    assert "&lt;/script&gt;" in plain


def test_the_licences_are_in_the_page(text):
    assert "University of Washington Interactive Data Lab" in text
    assert "Mike Bostock" in text


def test_the_mark_of_a_page(text):
    assert document.is_page(text[:4096].encode())
    assert not document.is_page(b'<meta name="generator" content="other">')


def test_nan_outside_the_arrays_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        document.json_text({"x": float("nan")})


@pytest.mark.parametrize(("checkpoints", "layers", "limit"), [(1, 4, 1.5), (8, 80, 8.0)])
def test_a_page_is_small_enough_to_mail(rng, checkpoints, layers, limit):
    spectra = made_pages.many(rng, checkpoints, layers, r=32)
    from analysis.pages.data import phi_pairs

    similarity = made_pages.shared(rng, spectra, phi_pairs(spectra.rows))
    assert len(page(spectra, similarity).encode()) < limit * 1e6


def test_the_libraries_are_those_that_were_published():
    vendor = resources.files("analysis.pages") / "vendor"
    files = json.loads((vendor / "sources.json").read_text())["files"]
    assert set(files) == set(document.VENDOR)
    for name, known in files.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == known["sha256"]
        assert known["source"].endswith(f"-{known['version']}.tgz")
        assert f"{known['package']} {known['version']}" in (vendor / "LICENSES.txt").read_text()


def test_a_frame_holds_the_page_as_an_attribute():
    """No quote of the page ends it, and its scripts see nothing around them."""
    (found,) = re.findall(
        r'srcdoc="([^"]*)"></iframe></div>$', frame('<p title="a">&amp;</p>', 400)
    )
    assert html.unescape(found) == '<p title="a">&amp;</p>'
    assert "allow-same-origin" not in frame("")
    assert "height: 400px" in frame("", 400)
