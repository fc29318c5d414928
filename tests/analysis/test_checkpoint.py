import os
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis import CheckpointError, UserError, checkpoint, dynamics, similarity, spectrum
from analysis.files import hub, tensors
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


@pytest.mark.parametrize("method", ["MULTILORA", "RLORA", "MTLLORA"])
def test_further_adapters_of_this_projects_methods_are_runs(adapter, write_adapter, method):
    """PEFT saves the adapter NAME below NAME/; the export in lora/ is no adapter of its own."""
    adapter("run/lora")
    adapter("run/style")  # a plain LoRA of the same model
    write_adapter({}, "run/second", peft_type=method)
    path = write_adapter({}, "run", peft_type=method)
    assert names([path]) == [("run", None), ("second", None), ("style", None)]
    write_adapter({}, "run/lora", peft_type=method)  # an adapter that is called lora
    assert ("lora", None) in names([path])


def test_adapters_are_found_below_several_levels(adapter, tmp_path):
    for name in ("a/x/y/z", "b", "c/checkpoint-2", "c/checkpoint-10", "d/checkpoint-1"):
        adapter(f"all/{name}")
    adapter("all/d")
    (tmp_path / "all/up").symlink_to(tmp_path / "all")  # leads back up: not followed
    (tmp_path / "all/.hidden").mkdir()
    all_of_them = [("z", None), ("b", None), ("c", 2), ("c", 10), ("d", None)]
    assert names([tmp_path / "all"]) == all_of_them
    runs = checkpoint.runs([tmp_path / "all"])
    assert [checkpoint.passed_over(run) for run in runs] == [0, 0, 0, 0, 1]
    # Deeper than that a directory is not searched, and the error says that there is nothing.
    adapter("deep/1/2/3/4/5")
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoint.scan(checkpoint.runs([tmp_path / "deep"])[0])


def test_files_of_other_tools_are_found_below_too(tmp_path):
    kohya = {"m.lora_down.weight": np.ones((2, 3)), "m.lora_up.weight": np.ones((4, 2))}
    for name in ("a/one", "b/two", "b/three", "b/c/four"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(kohya, tmp_path / f"{name}.safetensors")
    found = checkpoint.runs([tmp_path])
    assert [run.name for run in found] == ["a", "three.safetensors", "two.safetensors", "c"]
    assert [len(list(checkpoint.read(run))) for run in found] == [1, 1, 1, 1]


def test_too_many_directories_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MANY", 5)
    for i in range(6):
        (tmp_path / f"d{i}").mkdir()
    for name in ("d0/a", "d1/b"):  # links are followed once
        (tmp_path / name).symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="has over 5 directories; expected those of the"):
        checkpoint.runs([tmp_path])
    monkeypatch.setattr(checkpoint, "MANY", 7)
    assert names([tmp_path]) == [(tmp_path.name, None)]


def test_the_base_beside_an_adapter_is_no_run(adapter, tmp_path):
    adapter("work/adapter")
    (tmp_path / "work/base").mkdir()
    save_file({"q.weight": np.ones((12, 10), "f4")}, tmp_path / "work/base/model.safetensors")
    assert names([tmp_path / "work"]) == [("adapter", None)]


def test_every_file_of_a_directory_is_read_once(tmp_path):
    import torch

    kohya = {"m.lora_down.weight": np.ones((2, 3)), "m.lora_up.weight": np.ones((4, 2))}
    for name in ("a.safetensors", "b.safetensors"):
        save_file(kohya, tmp_path / name)
    in_torch = {name: torch.from_numpy(x) for name, x in kohya.items()}
    for name in ("c.pt", "b.pt", "optimizer.pt", "training_args.bin"):  # b is there twice
        torch.save(in_torch, tmp_path / name)
    found = checkpoint.runs([tmp_path])
    assert [run.path.name for run in found] == ["a.safetensors", "b.safetensors", "c.pt"]
    assert [len(list(checkpoint.read(run))) for run in found] == [1, 1, 1]


def test_files_beside_directories_of_adapters_are_read_too(adapter, tmp_path):
    adapter("all/x")
    kohya = {"m.lora_down.weight": np.ones((2, 3)), "m.lora_up.weight": np.ones((4, 2))}
    save_file(kohya, tmp_path / "all/mine.safetensors")
    assert names([tmp_path / "all"]) == [("x", None), ("mine.safetensors", None)]


def test_what_is_no_file_is_not_hashed(adapter, tmp_path):
    path = adapter("run")
    for name in ("stray.bin", "stray.json", "x.safetensors"):
        (path / name).mkdir()
    os.mkfifo(path / "pipe.bin")
    os.mkfifo(path / "pipe.json")
    (path / "device.bin").symlink_to("/dev/zero")
    found = [file.name for file in checkpoint.inputs(path)]
    assert found == ["adapter_config.json", "adapter_model.safetensors"]
    assert spectrum.main([str(path), "--json"]) == 0


def test_the_steps_of_a_trainer_are_read_beside_its_final_state(adapter):
    for step in (5, 10):
        adapter(f"run/checkpoint-{step}")
    path = adapter("run")
    assert [run.step for run in checkpoint.runs([path], steps=True)] == [5, 10]
    assert [run.step for run in checkpoint.runs([path])] == [None]
    assert checkpoint.ends([path]) == [path]
    assert checkpoint.ends([path / "checkpoint-5"]) == []
    assert [run.step for run in checkpoint.runs([path.parent], steps=True)] == [5, 10]


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


def test_a_name_on_the_hub_is_looked_up_there(adapter, monkeypatch):
    snapshot = adapter("models--org--tuned/snapshots/0123")
    adapter("models--org--tuned/snapshots/0123/style")
    asked = []

    def directory(path, revision=None):
        asked.append((str(path), revision))
        return snapshot

    monkeypatch.setattr(hub, "directory", directory)
    assert names(["org/tuned"]) == [("tuned", None), ("style", None)]
    assert [update.name for update in checkpoint.read("org/tuned")] == ["q"]
    assert {path.parent for path in checkpoint.inputs(Path("org/tuned"))} == {snapshot}
    asked.clear()
    runs = checkpoint.runs(["org/tuned"], "v2")
    assert [str(run.path) for run in runs] == ["org/tuned", "org/tuned/style"]
    assert [len(list(checkpoint.read(run))) for run in runs] == [1, 1]
    assert len(list(checkpoint.read("org/tuned", options=Options(revision="v2")))) == 1
    assert checkpoint.at("org/tuned", "v2").source.place.path == snapshot
    assert asked == [("org/tuned", "v2")] * 3


def test_a_revision_of_local_paths_is_refused(adapter):
    path = adapter("run")
    with pytest.raises(UserError, match=r"revision is 'v2'; expected a path that is a name on the"):
        checkpoint.runs([path], "v2")


def test_what_cannot_be_a_name_on_the_hub_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(hub, "_fetched", lambda *_: 1 / 0)
    for path in ("../nowhere", "/no/where", "x y", "a/../b", "ü/b", "~/b"):
        with pytest.raises(CheckpointError, match="no such file or directory"):
            checkpoint.runs([path])


def test_pefts_weights_without_their_config_have_no_scale(adapter, tmp_path):
    path = adapter("run")
    loose = (path / "adapter_model.safetensors").rename(tmp_path / "mine.safetensors")
    with pytest.raises(CheckpointError, match=r"mine\.safetensors: PEFT's weights without their"):
        list(checkpoint.scan(loose))
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


def test_two_directories_of_one_step_are_refused(adapter):
    for name in ("checkpoint-10", "checkpoint-2", "checkpoint-010"):
        last = adapter(f"run/{name}")
    words = r"checkpoint-10: is run@10, and so is .*checkpoint-010; expected one checkpoint per run"
    with pytest.raises(CheckpointError, match=words):
        checkpoint.runs([last.parent])
    both = [adapter("other/checkpoint-01"), adapter("other/checkpoint-1")]
    with pytest.raises(CheckpointError, match=r"checkpoint-1: is other@1, and so is .*point-01;"):
        checkpoint.runs(both)
    assert names(both[:1]) == [("other", 1)]  # negative control: one of them is a step


def test_runs_that_were_found_are_not_looked_for_again(adapter, monkeypatch):
    paths = [adapter("a/run/checkpoint-5"), adapter("b/run/checkpoint-5"), adapter("several")]
    adapter("several/style")
    runs = checkpoint.runs(paths)
    for family in checkpoint.FORMATS:
        monkeypatch.setattr(family, "recognise", lambda place: 1 / 0)
    assert checkpoint.runs(runs) == runs
    assert [len(list(checkpoint.read(run))) for run in runs] == [1, 1, 1, 1]
    assert [len(checkpoint.inputs(run)) for run in runs] == [2, 2, 2, 2]
    assert runs[0].source.place.json("adapter_config.json")["r"] == 4


def test_a_run_that_is_not_from_disk_is_looked_for_at_its_path(adapter):
    run = checkpoint.Run(adapter("mine"), "in memory", 3)
    assert run.key == "in memory@3"
    assert checkpoint.passed_over(run) == 0
    assert [update.name for update in checkpoint.read(run)] == ["q"]


# Each file once


LISTENING: list[list[Path]] = []


def _listen(event, arguments):
    if event == "open" and LISTENING and isinstance(arguments[0], str | Path):
        for opened in LISTENING:
            opened.append(Path(arguments[0]))


sys.addaudithook(_listen)  # it cannot be removed, and listens only inside the fixture


@pytest.fixture
def opened():
    """Every path that is opened in the test."""
    paths: list[Path] = []
    LISTENING.append(paths)
    yield paths
    LISTENING.remove(paths)


@pytest.fixture
def recognised(monkeypatch):
    """(family, path) of every call of `recognise`."""
    calls = []
    for family in dict.fromkeys((*checkpoint.FORMATS, *checkpoint.FILES)):

        def recognise(place, of=family.__name__, really=family.recognise):
            calls.append((of, place.path))
            return really(place)

        monkeypatch.setattr(family, "recognise", recognise)
    return calls


@pytest.fixture
def headers(monkeypatch):
    """The file of every header that is parsed."""
    files = []
    really = tensors._header
    monkeypatch.setattr(tensors, "_header", lambda path: files.append(path) or really(path))
    return files


HASHED = {"--json": 1, "--out": 1, "": 0}


@pytest.mark.parametrize("output", HASHED)
def test_the_command_reads_each_file_of_an_adapter_once(
    adapter, opened, recognised, headers, capsys, output, tmp_path
):
    path = adapter("run")
    config, weights = path / "adapter_config.json", path / "adapter_model.safetensors"
    options = {"--out": ["--out", str(tmp_path / "out")], "": []}.get(output, [output])
    opened.clear()
    assert spectrum.main([str(path), *options]) == 0
    assert opened.count(config) == 1 + HASHED[output]
    assert headers == [weights]
    # One more for each of A and B, whose values are read when they are needed.
    assert opened.count(weights) == 1 + 2 + HASHED[output]
    assert recognised == [(family.__name__, path) for family in checkpoint.FORMATS]


def test_the_other_commands_read_each_file_once_too(
    adapter, opened, recognised, headers, capsys, tmp_path
):
    steps = [adapter(f"run/checkpoint-{step}") for step in (1, 2)]
    out = ["--json", "--out", str(tmp_path / "out")]
    for main, paths in [
        (similarity.main, steps),
        (similarity.main, [*steps, "--merge"]),
        (dynamics.main, [steps[0].parent]),
    ]:
        for calls in (opened, recognised, headers):
            calls.clear()
        assert main([*map(str, paths), *out]) == 0
        for step in steps:
            assert opened.count(step / "adapter_config.json") == 2  # parsed, and hashed
            assert headers.count(step / "adapter_model.safetensors") == 1
            assert [place for _, place in recognised].count(step) == len(checkpoint.FORMATS)


def test_the_command_reads_the_header_of_a_single_file_once(
    adapter, opened, recognised, headers, capsys, tmp_path
):
    path = tmp_path / "style.safetensors"
    file_of_kohya = {"m.lora_down.weight": np.ones((2, 3)), "m.lora_up.weight": np.ones((4, 2))}
    save_file(file_of_kohya, path)
    opened.clear()
    assert spectrum.main([str(path), "--json"]) == 0
    assert headers == [path]
    assert opened.count(path) == 1 + 2 + 1
    modules = [family.__name__ for family in checkpoint.FILES]
    asked = modules[: modules.index("analysis.formats.kohya") + 1]
    assert recognised == [(module, path) for module in asked]


@pytest.mark.parametrize("config", [{"peft_type": "MULTILORA", "n": 2}, {"peft_type": "LORA"}])
def test_reading_opens_the_config_and_the_header_once(write_adapter, opened, headers, config):
    shapes = {"multilora_A": (4, 5), "multilora_B": (6, 4), "multilora_s": (6, 2)}
    if config["peft_type"] == "LORA":
        shapes = {"lora_A.weight": (4, 5), "lora_B.weight": (6, 4)}
    tensors = {f"base_model.model.q.{name}": np.ones(shape) for name, shape in shapes.items()}
    path = write_adapter(tensors, r=2 if "n" in config else 4, **config)
    opened.clear()
    assert len(list(checkpoint.read(path))) == 1
    assert opened.count(path / "adapter_config.json") == 1
    assert headers == [path / "adapter_model.safetensors"]


def test_a_base_is_merged_into_options():
    options = Options(scale=2.0)
    assert checkpoint.with_base(None, None) == Options()
    assert checkpoint.with_base(options, None) == options
    assert checkpoint.with_base(options, "B") == Options(scale=2.0, base=Path("B"))
    assert checkpoint.with_base(Options(base=Path("B")), "B/") == Options(base=Path("B"))
    with pytest.raises(UserError, match=r"base is C, options\.base is B; expected one of them"):
        checkpoint.with_base(Options(base=Path("B")), "C")


def test_a_base_beside_options_is_read(tmp_path):
    before, after = ({"q.weight": np.full((3, 2), x, "f4")} for x in (1, 2))
    for name, weights in (("base", before), ("tuned", after)):
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "model.safetensors")
    (update,) = checkpoint.read(tmp_path / "tuned", tmp_path / "base", Options())
    np.testing.assert_array_equal(update.dense(), np.ones((3, 2)))
