"""Updates of tasks and heads beside one another, against dense matrices."""

import itertools

import numpy as np
import pytest
from finished import run_of
from tiny_models import llama, trained

from analysis import UserError, checkpoint
from analysis.names import layer_of
from multilora.methods.config import MtlLoraConfig, RLoraConfig
from multilora.reproduction.studies import parts


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (RLoraConfig(r=2, n=3), ["head1", "head2", "head3"]),
        (MtlLoraConfig(r=2, n=2, tasks=["sort", "swap"]), ["sort", "swap"]),
    ],
)
def test_pairs_by_layer_and_in_all(config, names, tmp_path):
    """Of heads without their mean, and of tasks."""
    config.target_modules, config.task_type = {"q_proj", "v_proj"}, "CAUSAL_LM"
    trained(llama(), config).save_pretrained(tmp_path)
    dense = {(u.name, u.part): u.dense().ravel() for u in checkpoint.read(tmp_path)}
    modules = sorted({name for name, _ in dense})
    layers = {str(layer_of(name)) for name in modules}
    rows = parts.table([run_of(tmp_path, config.peft_type.lower(), 0)])
    want = itertools.product(itertools.combinations(names, 2), {"all", *layers})
    found = [((row["part_a"], row["part_b"]), row["layer"]) for row in rows]
    assert sorted(found) == sorted(want)
    for row in rows:
        own = [m for m in modules if row["layer"] in ("all", str(layer_of(m)))]
        pairs = [(dense[m, row["part_a"]], dense[m, row["part_b"]]) for m in own]
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
        assert row["cosine"] == pytest.approx(np.mean(cosines), rel=1e-4)


def test_a_run_with_one_update_for_each_module_is_refused(write_adapter, lora_tensors):
    run = run_of(write_adapter(lora_tensors("q")), "lora", 0)
    with pytest.raises(UserError, match="one update each; expected parts"):
        parts.table([run])
