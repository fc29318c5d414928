"""The pictures of tasks: what stands in the cells and where the dots are."""

import itertools

import numpy as np
import pytest

from multilora.reproduction.pictures import tasks
from multilora.tasks.example import FAMILIES

NAMES = ["a", "b", "c", "d"]
COSINES = {("a", "c"): 0.9, ("b", "d"): 0.8}  # all others 0.1


def gradient_rows():
    pairs = itertools.combinations_with_replacement(NAMES, 2)
    return [
        {"task_a": a, "task_b": b, "cosine": 0.5 if a == b else COSINES.get((a, b), 0.1)}
        for a, b in pairs
    ]


def cells(ax):
    """Names of rows and columns -> the number that is written there."""
    rows, columns = ([t.get_text() for t in labels] for labels in
                     (ax.get_yticklabels(), ax.get_xticklabels()))  # fmt: skip
    found = {}
    for text in ax.texts:
        j, i = text.get_position()
        found[rows[i], columns[j]] = text.get_text()
    return found, rows


def test_tasks_that_pull_alike_stand_next_to_one_another():
    figure = tasks.gradients(gradient_rows())
    found, order = cells(figure.axes[1])
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset("ac"), frozenset("bd")}
    for a, b in itertools.product(NAMES, NAMES):
        want = 0.5 if a == b else COSINES.get((min(a, b), max(a, b)), 0.1)
        assert found[a, b] == f"{want:.2f}"


def test_an_undefined_cosine_is_an_empty_cell():
    rows = [row | {"cosine": None} if row["task_a"] == "a" else row for row in gradient_rows()]
    found, _ = cells(tasks.gradients(rows).axes[1])
    assert ("a", "b") not in found
    assert found["b", "c"] == "0.10"


def part_rows():
    return [
        {"method": method, "seed": 0, "part_a": a, "part_b": b, "layer": layer,
         "cosine": value + (0 if layer == "all" else 0.01 * int(layer))}
        for method, value in (("rlora", 0.2), ("mtllora", 0.4))
        for a, b in itertools.combinations(NAMES[:3], 2)
        for layer in ("all", "0", "1", "2")
    ]  # fmt: skip


def test_every_method_has_its_matrix_and_its_layers():
    figure = tasks.task_structure(part_rows())
    assert len(figure.axes) == 2 * 4  # dendrogram, matrix with its bar, layers
    matrices = [ax for ax in figure.axes if ax.texts]
    written = [cells(ax)[0] for ax in matrices]
    assert [found["a", "b"] for found in written] == ["0.20", "0.40"]
    assert {found["c", "c"] for found in written} == {"1.00"}
    lines = [ax.lines[3].get_ydata() for ax in figure.axes if ax.get_xlabel() == "layer"]
    np.testing.assert_allclose(lines, [[0.2, 0.21, 0.22], [0.4, 0.41, 0.42]])


def test_a_pair_without_a_cosine_in_a_layer_leaves_a_gap():
    rows = part_rows()
    for row in rows:
        if (row["method"], row["part_a"], row["layer"]) == ("rlora", "a", "1"):
            row["cosine"] = None  # ΔW of part a is zero there
    figure = tasks.task_structure(rows)
    *pairs, mean = next(ax.lines[:4] for ax in figure.axes if ax.get_xlabel() == "layer")
    assert [np.isnan(line.get_ydata()[1]) for line in pairs] == [True, True, False]
    np.testing.assert_allclose(mean.get_ydata(), [0.2, 0.21, 0.22])


def forgetting_rows(text=3.0):
    def row(method, of, losses, seed=0):
        named = {f"nll_{f}": x for f, x in zip(FAMILIES, losses, strict=True)}
        return {"method": method, "seed": seed, "trained_on": of, "text": text} | named

    mixed = "+".join(FAMILIES)
    return [
        row("base", None, (4, 5, 6), None),
        *(row("lora", mixed, (1, 2, 3), seed) for seed in (0, 1)),
        row("lora", FAMILIES[0], (0.5, 6, 7)),
    ]


def test_a_panel_for_each_family_and_the_text():
    figure = tasks.mixing(forgetting_rows())
    assert [ax.get_title() for ax in figure.axes] == [*FAMILIES, "plain text"]
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels == ["trained on\nall families", f"trained on\n{FAMILIES[0]} only"]
    base, mixed, alone = figure.axes[1].lines
    assert base.get_xdata()[0] == 5
    assert list(mixed.get_xdata()) == [2, 2]
    assert list(alone.get_xdata()) == [6]


def test_without_a_text_it_has_no_panel():
    figure = tasks.mixing(forgetting_rows(text=None))
    assert [ax.get_title() for ax in figure.axes] == list(FAMILIES)


@pytest.mark.parametrize("draw", [tasks.gradients, tasks.task_structure, tasks.mixing])
def test_a_picture_can_be_saved(draw, tmp_path):
    rows = {"gradients": gradient_rows, "task_structure": part_rows, "mixing": forgetting_rows}
    draw(rows[draw.__name__]()).savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
