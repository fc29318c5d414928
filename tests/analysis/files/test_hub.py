"""Names on the hub: a server on this machine stands for it, the client is the real one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_hub import serving
from safetensors.numpy import save

from analysis import checkpoint
from analysis.files import hub as hub_names
from analysis.files import shards

ROOT = Path(__file__).parents[3]
CONFIG = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}).encode()


def adapter(scale=1.0):
    tensors = {
        "base_model.model.q.lora_A.weight": np.ones((2, 3), "f4"),
        "base_model.model.q.lora_B.weight": np.full((4, 2), scale, "f4"),
    }
    return {"adapter_config.json": CONFIG, "adapter_model.safetensors": save(tensors)}


@pytest.fixture(scope="module")
def served():
    with serving() as fake:
        weights = save({"q.weight": np.ones((4, 3), "f4")})
        rest = {"README.md": b"x", "training_args.bin": b"x", "optimizer.pt": b"x"}
        fake.add("org/lora", adapter() | rest)
        fake.add("org/lora", adapter(2.0), revision="v2")
        fake.add("org/many", {f"{name}/{f}": x for name in "ab" for f, x in adapter().items()})
        fake.add("org/base", {"config.json": b"{}", "model.safetensors": weights, "model.bin": b""})
        tuned = save({"q.weight": np.full((4, 3), 3.0, "f4")})
        fake.add("org/tuned", {"config.json": b"{}", "model.safetensors": tuned})
        fake.add("org/gated", adapter())
        fake.gated.add("org/gated")
        fake.add("org/empty", {"README.md": b"x"})
        yield fake


@pytest.fixture
def command(served, tmp_path):
    """Run the command in a process of its own: the client reads its settings when imported."""

    def run(*arguments, **environment):
        served.fetched.clear()
        env = os.environ | {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "cache")}
        env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"} | environment
        env.pop("HF_TOKEN", None)
        return subprocess.run(
            [sys.executable, "-m", "analysis.spectrum", *arguments, "--csv"],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    return run


def norms(process):
    assert process.returncode == 0, process.stderr
    lines = [line.split(",") for line in process.stdout.splitlines()]
    at = {name: i for i, name in enumerate(lines[0])}
    return {line[at["run"]]: float(line[at["spectral_norm"]]) for line in lines[1:]}


def test_an_adapter_is_fetched_without_what_is_not_needed(command, served):
    size = 2 * 2 * np.sqrt(12)  # α/r · ‖B A‖₂
    assert norms(command("org/lora")) == pytest.approx({"lora": size})
    assert sorted(served.fetched) == ["adapter_config.json", "adapter_model.safetensors"]
    # Another revision; then both again without a network.
    assert norms(command("org/lora", "--revision", "v2")) == pytest.approx({"lora": 2 * size})
    offline = {"HF_HUB_OFFLINE": "1"}
    assert norms(command("org/lora", **offline)) == pytest.approx({"lora": size})
    assert norms(command("org/lora", "--revision", "v2", **offline)) == pytest.approx(
        {"lora": 2 * size}
    )
    assert served.fetched == []
    # A hub that does not answer is like none.
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert norms(command("org/lora", **gone)) == pytest.approx({"lora": size})


def test_a_folder_and_all_folders_of_a_repository(command, served):
    assert norms(command("org/many/b")).keys() == {"b"}
    assert sorted(served.fetched) == ["b/adapter_config.json", "b/adapter_model.safetensors"]
    assert norms(command("org/many")).keys() == {"a", "b"}


def test_a_whole_model_and_its_base(command, served):
    found = norms(command("org/tuned", "--base", "org/base"))
    assert found == pytest.approx({"tuned": 2 * np.sqrt(12)})
    assert "model.bin" not in served.fetched


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["org/nowhere"], "there is no repository org/nowhere, or it is private"),
        (["org/gated"], "the repository org/gated on the hub is gated; accept its terms"),
        (["org/empty"], "the repository org/empty on the hub has no weights that can be read"),
        (["org/lora/sub"], "the repository org/lora on the hub has no weights in sub"),
        (["org/lora", "--revision", "v9"], "org/lora on the hub has no revision 'v9'"),
        ([".", "--revision", "v9"], "revision is 'v9'; expected a path that is a name on the hub"),
        (["/no/where"], "/no/where: no such file or directory"),
        (["../no/where"], "../no/where: no such file or directory"),
    ],
)
def test_errors_are_one_true_line(command, arguments, words):
    process = command(*arguments)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert words in line


def test_without_a_network_the_reason_is_that(command):
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        process = command("org/lora", **environment)
        (line,) = process.stderr.splitlines()
        assert "org/lora is not in the hub's local cache; the hub cannot be reached" in line


WHOLE = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("names", "folder", "want"),
    [
        ([*WHOLE, "pytorch_model.bin", "consolidated.safetensors", "tokenizer.json"], "", WHOLE),
        (["adapter_model.bin", "adapter_config.json", "training_args.bin"], "",
         ["adapter_config.json", "adapter_model.bin"]),
        (["adapter_model.safetensors", "adapter_model.bin"], "", ["adapter_model.safetensors"]),
        # An adapter beside the model that it belongs to.
        (["adapter_model.bin", "model.safetensors"], "", ["adapter_model.bin"]),
        (["model.safetensors.index.json", *WHOLE[1:]], "",
         ["model.safetensors.index.json", *WHOLE[1:]]),
        (["style.safetensors", "other.safetensors", "x.bin"], "",
         ["style.safetensors", "other.safetensors"]),
        (["a/adapter_model.bin", "b/c/adapter_model.bin", "README.md"], "",
         ["a/adapter_model.bin", "b/c/adapter_model.bin"]),
        (["a/adapter_model.bin", "b/c/adapter_model.bin"], "b", ["b/c/adapter_model.bin"]),
        (["model.safetensors", "checkpoint-5/model.safetensors"], "", ["model.safetensors"]),
        (["README.md", "config.json"], "", []),
        (["a[1]/model.safetensors"], "a[1]", ["a[1]/model.safetensors"]),
        # Configs alone are no weights, in whatever language they are written.
        (["train.yaml", "sub/adapter_config.json", "sub/adapter_model.safetensors"], "",
         ["train.yaml", "sub/adapter_config.json", "sub/adapter_model.safetensors"]),
        (["train.yaml", "sub/adapter_config.json", "sub/config.yaml"], "", []),
        (["config.json", "fsdp/.metadata", "fsdp/__0_0.distcp"], "",
         ["config.json", "fsdp/.metadata", "fsdp/__0_0.distcp"]),
    ],
)  # fmt: skip
def test_the_files_that_are_needed(names, folder, want):
    assert hub_names.needed(names, folder) == want


@pytest.mark.parametrize("name", [
    *sorted(checkpoint.WEIGHTS),
    *(f"style{suffix}" for suffix in shards.FILES),
])  # fmt: skip
def test_every_name_that_is_read_is_fetched(name):
    if name.endswith(".index.json"):
        piece = name.removesuffix(".index.json").replace(".", "-00001-of-00002.")
        assert hub_names.needed([name, piece]) == [name, piece]
    else:
        assert hub_names.needed([name]) == [name]
