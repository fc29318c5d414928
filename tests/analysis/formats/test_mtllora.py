"""MTL-LoRA as the analysis reads it."""

import numpy as np
import pytest
from own_files import TASKS, N, R, assert_near, block, raw

from analysis import CheckpointError, checkpoint
from analysis.formats import mtllora


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(("rslora", "scale"), [(False, 4.0), (True, 8 / 2**0.5)])
def test_mtllora_has_an_update_for_each_task(write_own, diagonal, rslora, scale):
    shapes = {"lambda": (2, R)} if diagonal else {}
    path = write_own(
        "mtllora", shapes=shapes, diagonal=diagonal, use_rslora=rslora, temperature=0.7
    )
    # What lies in lora/ is the same updates again.
    for name in ("lora", "lora/sort"):
        (path / name).mkdir()
        (path / name / "adapter_config.json").write_text("{}")
    assert [run.path for run in checkpoint.runs([path])] == [path]
    updates = {update.part: update for update in checkpoint.read(path)}
    assert list(updates) == TASKS
    t = raw(path, "mtllora")
    for i, task in enumerate(TASKS):
        e = np.exp(t["w"][i] / 0.7)
        L = np.diag(t["lambda"][i]) if diagonal else t["lambda"][i]
        want = sum(scale * e[j] / e.sum() * block(t["B"], j) @ L @ t["A"] for j in range(N))
        assert_near(updates[task].dense(), want)
        assert (updates[task].method, updates[task].capacity) == ("mtllora", R)
        assert not updates[task].of_parts


def test_weights_of_any_size_sum_to_one():
    w = mtllora.softmax(np.array([[1e4, 0.0, -1e4], [3.0, 3.0, 3.0]]))
    np.testing.assert_allclose(w, [[1, 0, 0], [1 / 3] * 3], rtol=1e-15)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"tasks": None}, "tasks is None; expected a list of names that differ"),
        ({"tasks": []}, "tasks is \\[\\]"),
        ({"tasks": ["a", "a"]}, "names that differ"),
        ({"tasks": ["a", 2]}, "names that differ"),
        ({"temperature": 0}, "temperature is 0; expected a number above 0"),
        ({"temperature": None}, "temperature is None; expected a number"),
    ],
)
def test_tasks_and_temperature_have_to_be_there(write_own, config, words):
    with pytest.raises(CheckpointError, match=words):
        list(checkpoint.scan(write_own("mtllora", **config)))
