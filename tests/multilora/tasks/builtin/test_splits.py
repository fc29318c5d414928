import pytest

from multilora.tasks.builtin import splits


def test_hash_and_position_give_each_split_its_share():
    keys = [splits.by_hash(str(i)) for i in range(5000)]
    assert keys.count("test") / 5000 == pytest.approx(0.1, abs=0.02)
    assert keys.count("validation") / 5000 == pytest.approx(0.1, abs=0.02)
    assert [splits.by_position(c, "abcdefg") for c in "abcdefg"] == [
        "train", "train", "train", "validation", "test", "train", "train",
    ]  # fmt: skip


def test_the_split_of_a_key_never_changes():
    """By SHA-256, not by Python's hash, which differs between processes."""
    assert splits.by_hash("5") == "train"
    assert splits.by_hash("6") == "validation"
    assert splits.by_hash("15") == "test"
