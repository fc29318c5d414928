from pathlib import Path

import numpy as np
import pytest

from analysis import CheckpointError, checkpoint
from analysis.formats import Options
from analysis.spectrum import analyse
from analysis.update import DenseUpdate, LowRankUpdate, Other, Skipped


@pytest.fixture
def adapter(write_adapter, lora_tensors):
    return lambda name: write_adapter(lora_tensors("q"), name)


def names(paths):
    return [(run.name, run.step) for run in checkpoint.runs(paths)]


def test_a_checkpoint_is_called_by_its_last_component(adapter):
    one = adapter("lora/seed0")
    assert names([one]) == [("seed0", None)]
    assert names([f"{one}/"]) == [("seed0", None)]
    assert names([one / "adapter_model.safetensors"]) == [("seed0", None)]
    assert [run.key for run in checkpoint.runs([one])] == ["seed0"]


def test_the_current_directory_has_a_name(adapter, monkeypatch):
    monkeypatch.chdir(adapter("lora/seed0"))
    assert names(["."]) == [("seed0", None)]


def test_a_run_directory_stands_for_its_steps_in_order(adapter):
    for step in (1000, 500, 20):
        last = adapter(f"run/checkpoint-{step}")
    (last.parent / "checkpoint-best").mkdir()
    assert names([last.parent]) == [("run", 20), ("run", 500), ("run", 1000)]
    assert names([last]) == [("run", 20)]
    assert [run.key for run in checkpoint.runs([last])] == ["run@20"]


def test_a_checkpoint_with_steps_below_it_is_itself(adapter):
    adapter("run/checkpoint-5")
    assert names([adapter("run")]) == [("run", None)]


def test_the_export_below_a_multilora_checkpoint_is_no_second_run(adapter, write_adapter):
    adapter("run/lora")
    path = write_adapter({}, "run", peft_type="MULTILORA")
    assert names([path]) == [("run", None)]


def test_several_adapters_in_one_directory_are_runs(adapter):
    adapter("several/style")
    adapter("several/task")
    path = adapter("several")
    assert names([path]) == [("several", None), ("style", None), ("task", None)]
    (path / "adapter_config.json").unlink()
    (path / "adapter_model.safetensors").unlink()
    assert names([path]) == [("style", None), ("task", None)]


def test_equal_names_get_their_parents(adapter):
    paths = [adapter(name) for name in ("a/x/seed0", "b/x/seed0", "b/y/seed0", "c/seed1")]
    assert [name for name, _ in names(paths)] == ["a/x/seed0", "b/x/seed0", "y/seed0", "seed1"]
    steps = [adapter(name) for name in ("a/run/checkpoint-5", "b/run/checkpoint-5")]
    assert names(steps) == [("a/run", 5), ("b/run", 5)]


def test_paths_that_are_none_are_refused(adapter, tmp_path):
    one = adapter("run")
    with pytest.raises(CheckpointError, match="nowhere: no such file or directory"):
        checkpoint.runs([tmp_path / "nowhere"])
    with pytest.raises(CheckpointError, match="is a file; expected a checkpoint directory"):
        checkpoint.runs([one / "adapter_config.json"])
    with pytest.raises(CheckpointError, match="given twice"):
        checkpoint.runs([one, f"{one}/../run"])


def test_scan_tells_everything_and_read_stops_at_a_fault(write_adapter, lora_tensors):
    tensors = lora_tensors("q", "v") | {"base_model.model.score.weight": np.ones((2, 3), "f4")}
    whole = write_adapter(tensors, "whole")
    assert [update.name for update in checkpoint.read(whole)] == ["q", "v"]
    del tensors["base_model.model.v.lora_B.weight"]
    broken = write_adapter(tensors, "broken")
    kinds = {entry.name: type(entry) for entry in checkpoint.scan(broken)}
    assert kinds == {"base_model.model.score.weight": Other, "q": LowRankUpdate, "v": Skipped}
    with pytest.raises(CheckpointError, match="v: has lora_A but no lora_B"):
        list(checkpoint.read(str(broken)))


def test_a_directory_is_read_by_the_format_that_knows_it(write_delta, adapter, tmp_path):
    (update,) = checkpoint.read(write_delta({"layers.0.q": np.ones((3, 2), "f4")}))
    assert isinstance(update, DenseUpdate)
    (update,) = checkpoint.read(adapter("lora"))
    assert isinstance(update, LowRankUpdate)
    with pytest.raises(CheckpointError, match=r"no checkpoint here; expected adapter_config\.json"):
        checkpoint.scan(tmp_path)


def test_a_name_on_the_hub_is_looked_up_in_its_cache(adapter, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    snapshot = adapter("models--org--tuned/snapshots/0123")
    asked = []

    def download(name, allow_patterns):
        asked.extend(allow_patterns)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert names(["org/tuned"]) == [("tuned", None)]
    assert [update.name for update in checkpoint.read("org/tuned")] == ["q"]
    assert {path.parent for path in checkpoint.inputs(Path("org/tuned"))} == {snapshot}
    assert {"config.json", "adapter_config.json"} < set(asked)

    def offline(name, **_):
        raise ConnectionError("no network\nand much advice")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"not on the hub: no network$"):
        checkpoint.runs(["org/tuned"])


def test_what_cannot_be_a_name_on_the_hub_is_not_asked_for(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
    for path in ("../nowhere", "a/b/c", "/no/where", "x y"):
        with pytest.raises(CheckpointError, match="no such file or directory"):
            checkpoint.runs([path])


def test_pefts_weights_without_their_config_have_no_scale(adapter, tmp_path):
    path = adapter("run")
    loose = (path / "adapter_model.safetensors").rename(tmp_path / "mine.safetensors")
    with pytest.raises(CheckpointError, match=r"mine\.safetensors: PEFT's weights without their"):
        checkpoint.scan(loose)
    patterns = (r"(.*)\.lora_A\.weight", r"(.*)\.lora_B\.weight")
    (update,) = checkpoint.scan(loose, Options(factors=patterns, scale=2.0))
    assert update.scale == 2.0


def test_a_weight_file_stands_for_its_directory_only_where_it_is_read(adapter):
    path = adapter("run")
    (update,) = checkpoint.read(path / "adapter_model.safetensors")
    assert update.scale == 2.0
    for name in ("adapter_model.bin", "model.safetensors"):
        (path / name).write_bytes((path / "adapter_model.safetensors").read_bytes())
        with pytest.raises(CheckpointError, match=r"is read from adapter_model\.safetensors"):
            checkpoint.scan(path / name)


def test_an_adapter_and_a_stored_difference_in_one_place_are_refused(adapter, write_delta):
    path = adapter("run")
    write_delta({"q": np.ones((3, 2), "f4")}, "run")
    files = ("", "adapter_model.safetensors", "delta.safetensors")
    for place in [path / name for name in files]:
        with pytest.raises(CheckpointError, match=r"stored difference \(delta\.safetensors\); exp"):
            checkpoint.scan(place)
    other = adapter("other")
    found = analyse([path, other])
    assert [row["run"] for row in found.rows] == ["other"]
    assert [skip["run"] for skip in found.skipped] == ["run"]
