"""Pieces on disk: the same bits back, other inputs noticed, damage and other processes survived."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from analysis import UserError, store
from analysis.work import kept
from analysis.work.kept import DIRECTORY, Kept, Piece

PIECE = Piece({"s": np.array([2.0, 0.1]), "empty": np.zeros((0, 3), "f4")}, {"floor": 0.1 + 0.2})


def of(out, said=None, **facts):
    about = {"command": "c", "options": {}, "versions": {}, "files": {}} | facts
    return Kept(out, lambda: about, said.append if said is not None else lambda line: None)


def pieces(out):
    return sorted((out / DIRECTORY).glob(f"*/*{kept.PIECE}"))


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_piece_comes_back_bit_for_bit(tmp_path, on_disk):
    first = of(tmp_path if on_disk else None)
    name = "../q\x00\n" + "x" * 2000  # a stranger's
    assert first.get(name) is None
    first.put(name, PIECE)
    again = of(tmp_path) if on_disk else first
    found = again.get(name)
    assert found.facts == PIECE.facts
    assert {key: (x.dtype, x.shape, x.tobytes()) for key, x in found.arrays.items()} == {
        key: (x.dtype, x.shape, x.tobytes()) for key, x in PIECE.arrays.items()
    }
    assert again.get("other") is None
    assert again.count() == 1


def test_nothing_is_written_or_asked_before_the_first_piece(tmp_path):
    unused = Kept(tmp_path / "out", lambda: pytest.fail("asked"))
    unused.finish()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"options": {"method": "svd"}}, "method was None and is svd"),
        ({"versions": {"torch": "3"}}, "torch was None and is 3"),
        ({"files": {"/a": [1, 2, 3]}}, "/a is an input of only one of them"),
        ({"command": "d"}, "they are of c"),
    ],
)
def test_what_differs_is_named_and_nothing_is_reused(tmp_path, facts, why):
    of(tmp_path).put("q", PIECE)
    said = []
    other = of(tmp_path, said, **facts)
    assert other.get("q") is None
    (line,) = said
    assert why in line
    assert len(pieces(tmp_path)) == 1  # until this command is finished: it may be a slip
    other.finish()
    assert not (tmp_path / DIRECTORY).exists()


def test_how_many_are_reused_is_said(tmp_path):
    of(tmp_path).put("q", PIECE)
    said = []
    of(tmp_path, said).get("q")
    assert said == [f"{tmp_path}: goes on with 1 results of an interrupted command"]


def test_a_changed_input_is_noticed_even_with_its_old_time(write_adapter, lora_tensors, tmp_path):
    path = write_adapter(lora_tensors("q"))
    before = kept.about("c", [path], {})
    assert kept.about("c", [path], {}) == before
    file = next(path.glob("*.safetensors"))
    times = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = kept.about("c", [path], {})
    assert after["files"][str(file)][:2] == before["files"][str(file)][:2]
    assert after != before
    json.dumps(after)


def with_a_flipped_bit(content):
    """The content of a piece with another first number."""
    numbers = 40 + int.from_bytes(content[32:40], "little")  # after SHA-256, length and header
    return content[:numbers] + bytes([content[numbers] ^ 1]) + content[numbers + 1 :]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], with_a_flipped_bit, lambda b: b""])
def test_a_damaged_piece_is_made_again(tmp_path, damage):
    of(tmp_path).put("q", PIECE)
    (file,) = pieces(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    assert of(tmp_path).get("q") is None


def test_the_pieces_of_a_running_command_stay(tmp_path):
    running = of(tmp_path, command="running")
    running.put("q", PIECE)
    same = of(tmp_path, command="running")
    same.put("v", PIECE)
    other = of(tmp_path)
    other.put("q", PIECE)
    other.finish()
    same.finish()
    assert len(pieces(tmp_path)) == 2
    running.finish()
    assert pieces(tmp_path) == []


def test_pieces_can_be_put_after_another_process_has_removed_them(tmp_path):
    first = of(tmp_path)
    first.put("q", PIECE)
    for file in pieces(tmp_path):
        file.unlink()
    next((tmp_path / DIRECTORY).glob("*/about.json")).unlink()
    next((tmp_path / DIRECTORY).iterdir()).rmdir()
    first.put("v", PIECE)
    assert first.get("v").facts == PIECE.facts


def test_a_full_disk_is_one_line_that_says_what_is_kept(tmp_path, monkeypatch):
    full = of(tmp_path)
    full.put("q", PIECE)

    def no_space(path: Path, write):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "replace", no_space)
    with pytest.raises(
        UserError, match=r"No space left on device; 1 are kept: make room and repeat"
    ):
        full.put("v", PIECE)
    assert full.get("q").facts == PIECE.facts


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"out/.*: cannot be written: Not a directory"):
        of(tmp_path / "out").put("q", PIECE)
