"""Entries of a directory that are replaced together: killed at every moment, full, and hostile."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from killed import at_every_call

from analysis import UserError
from analysis.files import exchange

OLD = {"record.json": "old", "table.csv": "old", "gone.csv": "old", "lora/weights": "old"}
NEW = {"record.json": "new", "table.csv": "new", "lora/weights": "new", "law/weights": "new"}
OTHERS = {"README.md": "mine", "figures/a.png": "mine"}


def write(directory, contents):
    for name, text in contents.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def held(directory):
    return {
        str(file.relative_to(directory)): file.read_text()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def replace(directory):
    with exchange.replacing(directory, stale=["gone.csv"]) as new:
        write(new, NEW)


@pytest.fixture
def made(tmp_path):
    write(tmp_path / "out", OLD | OTHERS)
    return tmp_path / "out"


def test_entries_are_replaced_and_others_stay(made):
    replace(made)
    assert held(made) == NEW | OTHERS
    replace(made)
    assert held(made) == NEW | OTHERS
    assert not [path.name for path in made.iterdir() if path.name.startswith(".")]


def test_a_directory_is_made(tmp_path):
    replace(tmp_path / "deep" / "out")
    assert held(tmp_path / "deep" / "out") == NEW


def fail(directory):
    with exchange.replacing(directory, ["gone.csv"]) as new:
        write(new, NEW)
        raise KeyboardInterrupt


def test_a_block_that_fails_changes_nothing(made):
    with pytest.raises(KeyboardInterrupt):
        fail(made)
    assert held(made) == OLD | OTHERS
    assert exchange.read_bytes(made, "table.csv") == b"old"


@pytest.mark.parametrize("full", [False, True])
def test_killed_or_full_at_any_moment_the_entries_are_all_old_or_all_new(tmp_path, full):
    states, k = [], 0
    out = tmp_path / "out"

    def again():
        replace(out)

    write(out, OLD | OTHERS)
    for k in at_every_call(again, out, full):
        # Read before anybody completes it.
        seen = {exchange.read_bytes(out, name) for name in ("record.json", "table.csv")}
        assert len(seen) == 1, k
        states.append(seen.pop().decode())
        assert {name: text for name, text in held(out).items() if name in OTHERS} == OTHERS
        exchange.complete(out)
        assert held(out) == ((OLD if states[-1] == "old" else NEW) | OTHERS), k
        subprocess.run(["rm", "-r", str(out)], check=True)
        write(out, OLD | OTHERS)
    assert held(out) == NEW | OTHERS
    assert k > 15
    assert states == sorted(states, reverse=True)  # old until the commit, new after it
    assert set(states) == {"old", "new"}


def test_a_kill_while_a_killed_exchange_is_completed_loses_nothing(tmp_path):
    """From every moment after the commit, killed again at every moment."""
    out = tmp_path / "out"
    committed = 0
    write(out, OLD)
    for _ in at_every_call(lambda: replace(out), out):
        if (out / exchange.NEXT).exists():
            committed += 1
            for _ in at_every_call(lambda: exchange.complete(out), out):
                assert exchange.read_bytes(out, "table.csv") == b"new"
            assert held(out) == NEW
        subprocess.run(["rm", "-r", str(out)], check=True)
        write(out, OLD)
    assert committed > 5


def test_two_processes_and_two_threads_do_not_mix(tmp_path):
    code = (
        "import sys; from pathlib import Path; from analysis.files import exchange\n"
        "out, word = Path(sys.argv[1]), sys.argv[2]\n"
        "for _ in range(40):\n"
        "    with exchange.replacing(out, ['gone.csv']) as new:\n"
        "        for name in ('a', 'b', 'c'): (new / name).write_text(word)\n"
    )
    root = Path(__file__).resolve().parents[3]
    argv = [sys.executable, "-c", code, str(tmp_path / "out")]
    both = [subprocess.Popen([*argv, word], cwd=root) for word in ("one", "two")]
    assert [process.wait() for process in both] == [0, 0]
    assert set(held(tmp_path / "out")) == {"a", "b", "c"}
    assert len(set(held(tmp_path / "out").values())) == 1

    def by_thread(word):
        with exchange.replacing(tmp_path / "out") as new:
            write(new, dict.fromkeys("abc", word))

    threads = [threading.Thread(target=by_thread, args=(word,)) for word in ("three", "four")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(held(tmp_path / "out").values())) == 1


# Hostile directories


@pytest.mark.parametrize("name", ["../precious", "/etc/passwd", "..", ".", "", "a/b", "a\0"])
def test_a_name_that_leads_elsewhere_is_refused(made, name):
    precious = made.parent / "precious"
    precious.mkdir()
    with (
        pytest.raises(ValueError, match="is not the name of an entry"),
        exchange.replacing(made, [name]),
    ):
        pass
    write(made / exchange.NEXT, {exchange._STALE: f'["{name}", 3]'.replace("\0", "\\u0000")})
    exchange.complete(made)
    assert held(made) == OLD | OTHERS
    assert precious.is_dir()


def test_a_link_in_place_of_the_committed_directory_is_not_followed(made):
    precious = made.parent / "precious"
    write(precious, {"data": "mine"})
    (made / exchange.NEXT).symlink_to(precious)
    with pytest.raises(UserError, match="is not a directory of committed files; remove it"):
        replace(made)
    assert held(precious) == {"data": "mine"}


def test_links_are_replaced_and_not_followed(made):
    precious = made.parent / "precious"
    write(precious, {"weights": "mine", "table.csv": "mine"})
    subprocess.run(["rm", "-r", str(made / "lora"), str(made / "table.csv")], check=True)
    (made / "lora").symlink_to(precious)
    (made / "gone.csv").unlink()
    (made / "gone.csv").symlink_to(precious)
    (made / "table.csv").symlink_to(precious / "table.csv")
    replace(made)
    assert held(made) == NEW | OTHERS
    assert held(precious) == {"weights": "mine", "table.csv": "mine"}


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "table.csv")
    with pytest.raises(OSError, match="is not a file"):
        exchange.read_bytes(tmp_path, "table.csv")
    with pytest.raises(FileNotFoundError, match=r"other\.csv is missing"):
        exchange.read_bytes(tmp_path, "other.csv")


# What kills leave behind


def test_temporary_entries_of_dead_processes_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    node, thread = os.uname().nodename, threading.get_ident()
    dead = [
        f".table.csv.{ended.pid}-1@{node}",
        f".table.csv.{ended.pid}-1",  # as version 0.1 named them
        f".table.csv.{os.getpid()}-1@{node}",  # a process that had the same number
        f".table.csv.{10**30}-1@{node}",
    ]
    alive = [
        f".table.csv.{os.getpid()}-{thread}@{node}",
        f".table.csv.{os.getppid()}-1@{node}",
        f".table.csv.{ended.pid}-1@another.machine",
        f".other.csv.{ended.pid}-1@{node}",  # for another file
        "table.csv.1-1",
        ".table.csv",
    ]
    write(tmp_path, dict.fromkeys(dead + alive, ""))
    exchange.remove_left_behind(tmp_path / "table.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(alive)
    os.utime(tmp_path / alive[2], (0, 0))  # another machine's, long ago
    exchange.remove_left_behind(tmp_path / "table.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*alive} - {alive[2]})
    exchange.remove_left_behind(tmp_path / "nowhere" / "table.csv")


def test_a_users_directory_in_the_place_of_a_file_is_refused_and_kept(tmp_path):
    (tmp_path / "out" / "table.csv").mkdir(parents=True)
    (tmp_path / "out" / "table.csv" / "thesis.txt").write_text("mine")
    with (
        pytest.raises(UserError, match=r"table\.csv: is a directory where a file is written"),
        exchange.replacing(tmp_path / "out") as new,
    ):
        (new / "table.csv").write_text("x")
    assert (tmp_path / "out" / "table.csv" / "thesis.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["table.csv"]
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="is not a directory"),
        exchange.replacing(tmp_path / "file"),
    ):
        pass
