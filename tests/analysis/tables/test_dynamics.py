"""The printed steps of a run: tables, and what they say in words."""

from analysis.tables.dynamics import words


def line(step, norm, left=0.5, right=0.95, chance=0.1):
    return {
        "step": step,
        "frobenius_norm": norm,
        "left_phi_k_last": left,
        "right_phi_k_last": right,
        "left_chance_k_last": 0.1,
        "right_chance_k_last": chance,
    }


def test_words():
    text = "\n".join(words([line(5, 1.0), line(9, 2.5, None, None)]))
    assert "from 1 to 2.5, 2.5 times" in text
    assert "output directions (left) move until the end" in text
    assert "input directions (right) are those of the last step from step 5 on" in text


def test_directions_that_come_and_go_have_not_settled():
    steps = [line(1, 1.0, 1.0), line(2, 1.0, 0.2), line(3, 1.0, 0.95), line(4, 1.0, None, None)]
    assert "(left) are those of the last step from step 3 on" in "\n".join(words(steps))
    steps[2] = line(3, 1.0, 0.1)
    assert "(left) move until the end" in "\n".join(words(steps))


def test_nothing_is_said_where_chance_would_say_it_too():
    """Directions that nearly fill their space, and directions that are undefined."""
    text = "\n".join(words([line(5, 1.0, None, 1.0, chance=0.9), line(9, 2.0, None, None)]))
    assert "directions" not in text
    # 0.95 is not near 1 where 0.49 is chance: nine tenths of the way from there are 0.949.
    for right, settled in ((0.94, "move"), (0.96, "are those")):
        steps = [line(5, 1.0, 0.5, right, chance=0.49), line(9, 2.0, None, None)]
        assert f"(right) {settled}" in "\n".join(words(steps))
