"""Figures of parameters, time and memory, read back from their artists."""

import numpy as np
import pytest
from picture_tables import line

from multilora import budget
from multilora.reproduction.pictures import costs


@pytest.fixture(scope="module")
def budget_rows():
    return budget.curve(["llama-7b"], (1, 3), range(1, 40))


def test_the_budget_says_which_rank_is_within(budget_rows):
    (ax,) = costs.budget(budget_rows).axes
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    affordable = {row.n: row.r for row in budget.rows(*_affordable())}
    assert labels == ["n = 1: r ≤ 39", f"n = 3: r ≤ {affordable[3]}"]
    drawn = line(ax, labels[1])
    want = [100 * row["share"] for row in budget_rows if row["n"] == 3]
    np.testing.assert_array_equal(drawn.get_ydata(), want)
    assert any(list(other.get_ydata()) == [2.5, 2.5] for other in ax.lines)


def _affordable():
    return budget.sizes_of("llama-7b"), budget.share_of("2.5%"), (1, 3)


@pytest.fixture
def resource_rows():
    layer = [("layer", "d = 2", m, 1.0, ratio) for m, ratio in (("LoRA", 1.0), ("MultiLoRA", 1.1))]
    relative = [
        ("relative", "d = 2", "LoRA r=3", 2.0, 1.0),
        ("relative", "d = 2", "R-LoRA", 3, 1.5),
    ]
    form = [("form", "d = 1", m, 1.0, r) for m, r in (("frozen linear", 1), ("stacked", 2))]
    memory = [("memory", "w", m, v, 1.0) for m in ("LoRA", "MultiLoRA") for v in (100.0, 120.0)]
    columns = ("what", "setting", "method", "value", "ratio")
    return [dict(zip(columns, row, strict=True)) for row in (*layer, *relative, *form, *memory)]


def test_resources_are_ratios_and_peaks(resource_rows):
    layers, forms, memory = costs.resources(resource_rows).axes
    assert line(layers, "MultiLoRA").get_xdata() == [1.1]
    assert line(layers, "R-LoRA").get_xdata() == [1.5]
    assert line(forms, "stacked").get_xdata() == [2]
    assert list(memory.lines[0].get_ydata()) == [100, 120]
    assert list(memory.lines[1].get_ydata()) == [110, 110]
    assert memory.get_ylim()[0] == 0
