"""The figure of a run, read back from its artists."""

import numpy as np

from analysis import dynamics
from analysis.figures import dynamics as dynamics_figures


def test_steps_of_a_run(write_adapter, lora_tensors, tmp_path):
    for step in (5, 10, 20):
        write_adapter(lora_tensors("l.0.q", "l.1.q"), f"run/checkpoint-{step}")
    result = dynamics.analyse(tmp_path / "run")
    figure = dynamics_figures.over_steps(result, "run")
    values, shares, ranks, _, before, last = figure.axes
    steps = [5, 10, 20]
    rows = [[row for row in result.rows if row["step"] == step] for step in steps]
    (line,) = ranks.lines
    np.testing.assert_array_equal(line.get_xdata(), steps)
    medians = [np.median([row["effective_rank"] for row in of_step]) for of_step in rows]
    np.testing.assert_allclose(line.get_ydata(), medians)
    assert [line.get_label() for line in shares.lines] == ["top-1", "top-4"]
    assert [line.get_label() for line in values.lines] == ["s1", "s2", "s4"]
    second = [np.median([result.s[f"run@{step}/l.{i}.q"][1] for i in (0, 1)]) for step in steps]
    np.testing.assert_allclose(values.lines[1].get_ydata(), second)
    # The first step has none before it, and the last is not compared with itself.
    for line in before.lines:
        assert np.isnan(line.get_ydata()).tolist() == [True, False, False]
    for line in last.lines:
        assert np.isnan(line.get_ydata()).tolist() == [False, False, True]
    for ax in figure.axes:
        assert ax.get_ylabel()
        assert ax.get_title()


def test_a_step_without_an_update_has_no_point_on_a_log_axis(write_adapter, lora_tensors, tmp_path):
    zero = lora_tensors("l.0.q")
    zero["base_model.model.l.0.q.lora_B.weight"][:] = 0
    write_adapter(zero, "run/checkpoint-1")
    write_adapter(lora_tensors("l.0.q"), "run/checkpoint-2")
    result = dynamics.analyse(tmp_path / "run")
    figure = dynamics_figures.over_steps(result, "run")
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).tolist() == [True, False]
