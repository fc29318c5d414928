"""Streams of a command: any letter, no escape, a full disk, closed streams, warnings."""

import io
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from analysis.process import streams

ROOT = Path(__file__).resolve().parents[3]
FULL = Path("/dev/full")


def shell(line, **environment):
    """Run a line of bash in the checkout, with its Python as $P."""
    return subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/bin:/bin", "P": sys.executable, **environment},
    )  # fmt: skip


# plain


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("ΔW = σ·φ\t1\n2\n", "ΔW = σ·φ\t1\n2\n"),
        ("", ""),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("a\rb", "a\\rb"),
        ("\x9b2J\u202e", "\\x9b2J\\u202e"),
        ("a\udcffb", "a\\udcffb"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        # What tqdm writes.
        ("\r 50%|█████     | 1/2", "\r 50%|█████     | 1/2"),
        ("\r        \r", "\r        \r"),
        ("\n\n\x1b[A\x1b[A", "\n\n\x1b[A\x1b[A"),
        ("\x1b[A over a line", "\\x1b[A over a line"),
    ],
)
def test_only_harmless_control_characters_pass(text, plain):
    assert streams.plain(text) == plain


def test_a_plain_stream_writes_plain_text():
    raw = io.BytesIO()
    stream = streams.Plain(raw, "ascii", "backslashreplace")
    assert stream.write("σ\x1b") == 2
    stream.flush()
    assert raw.getvalue() == b"\\u03c3\\x1b"


def test_only_text_of_our_own_keeps_its_colours():
    buffer = io.BytesIO()
    stream = streams.Plain(buffer, "utf-8")
    stream.write_own("\x1b[1mΔW\x1b[0m ")
    stream.write("\x1b[1mtheirs\x1b[0m")
    stream.flush()
    assert buffer.getvalue().decode() == "\x1b[1mΔW\x1b[0m theirs"


def test_an_error_that_was_kept_quiet_comes_back_at_the_flush():
    class Broken(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            raise OSError(28, "No space left on device")

    stream = streams.Plain(Broken(), "utf-8", write_through=True)
    with pytest.raises(OSError, match="No space"):
        stream.write("x")
    with pytest.raises(OSError, match="No space"):
        stream.flush()


def test_a_library_s_streams_are_left_in_place(capfd):
    out, err = sys.stdout, sys.stderr
    streams.prepare()
    assert (sys.stdout, sys.stderr) == (out, err)


# Processes


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [("--help", ""), ("--help", "1"), ("--formats", "1"), ("RUN", ""), ("RUN --json", "1")],
)
def test_a_full_disk_is_one_line(words, unbuffered, write_adapter, lora_tensors):
    words = words.replace("RUN", str(write_adapter(lora_tensors("l.0.q"))))
    done = shell(f"$P -m analysis.spectrum {words} >/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (
        2,
        "analysis.spectrum: stdout cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_locale_without_greek_letters_gets_escapes(environment):
    done = shell("$P -m analysis.dynamics --help", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u0394W" in done.stdout


def test_streams_that_are_closed():
    done = shell("$P -m analysis.spectrum --help >&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # Nothing may go to stdout in its place.
    done = shell("$P -m analysis.spectrum nowhere 2>&-")
    assert (done.returncode, done.stdout) == (2, "")
    done = shell("set -o pipefail; $P -m analysis.similarity --help | head -c 5")
    assert (done.returncode, done.stdout, done.stderr) == (0, "usage", "")


def test_no_escape_of_the_command_line_reaches_the_terminal():
    done = shell("$P -m analysis.spectrum $'--\\e[2J'; $P -m analysis.spectrum $'\\e[2J'")
    assert "\x1b" not in done.stderr
    assert done.stderr.count("\\x1b[2J") == 2


# Warnings


@pytest.fixture
def unfiltered(monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings():
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        yield


def test_a_warning_for_users_is_one_line_and_no_other_is_shown(unfiltered, capfd):
    streams.shorten_warnings("analysis.name")
    warnings.warn("one\n two \x1b[2J", stacklevel=1)
    warnings.warn("not for users", FutureWarning, stacklevel=1)
    warnings.warn("not for users", RuntimeWarning, stacklevel=1)
    assert capfd.readouterr() == ("", "analysis.name: one two \\x1b[2J\n")


def test_options_for_warnings_are_the_users_choice(unfiltered, monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", ["error"])
    shown, filters = warnings.showwarning, [*warnings.filters]
    streams.shorten_warnings("analysis.name")
    assert (warnings.showwarning, warnings.filters) == (shown, filters)
