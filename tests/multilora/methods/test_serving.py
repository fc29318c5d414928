"""The padded export keeps to the rules of vLLM, which are written out here.

`vllm_reads` follows github.com/vllm-project/vllm: vllm/config/lora.py (MaxLoRARanks),
vllm/lora/peft_helper.py (PEFTHelper: required fields, refused features, scale),
vllm/lora/utils.py (parse_fine_tuned_lora_name) and vllm/lora/lora_model.py (from_local_checkpoint:
expected modules, one rank for all; lora_weights.py: scale folded into B).
"""

import json
import warnings

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_models import llama, trained

from multilora import MtlLoraConfig, MultiLoraConfig, RLoraConfig
from multilora.delta import save_as_lora
from multilora.methods import serving
from multilora.methods.layers import AdapterLinear

warnings.filterwarnings("ignore", module="peft")

MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
EXPECTED = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj embed_tokens".split()
IDS = torch.arange(12).reshape(2, 6)


def vllm_reads(directory, max_lora_rank):
    """{module: (A, B with the scale in it)} as vLLM loads an adapter; ValueError where it refuses.

    max_lora_rank: the server's option.
    """
    assert max_lora_rank in MAX_LORA_RANKS
    config = json.loads((directory / "adapter_config.json").read_text())
    if missing := {"r", "lora_alpha", "target_modules"} - set(config):
        raise ValueError(f"Missing required configuration fields: {missing}")
    if config["modules_to_save"]:
        raise ValueError("vLLM only supports modules_to_save being None.")
    if config["use_dora"]:
        raise ValueError("vLLM does not yet support DoRA.")
    if config["r"] > max_lora_rank:
        raise ValueError(f"LoRA rank {config['r']} is greater than max_lora_rank {max_lora_rank}.")
    if config["bias"] != "none":
        raise ValueError("Adapter bias cannot be used without bias_enabled.")
    divisor = config["r"] ** 0.5 if config["use_rslora"] else config["r"]
    scale = config["lora_alpha"] / divisor
    modules = {}
    for name, tensor in load_file(directory / "adapter_model.safetensors").items():
        parts = name.split(".")
        assert name.startswith("base_model.model.")
        if parts[-1] == "weight" and parts[-2] in ("lora_A", "lora_B"):
            module, letter = ".".join(parts[2:-2]), parts[-2][-1]
        elif parts[-1] in ("lora_embedding_A", "lora_embedding_B"):
            module, letter = ".".join(parts[2:-1]), parts[-1][-1]
        elif name.endswith(".embed_tokens.base_layer.weight"):
            continue  # is_base_embedding_weights
        else:
            raise ValueError(f"{name} is unsupported LoRA weight")
        if module.rsplit(".", 1)[-1] not in EXPECTED:
            raise ValueError(f"expected target modules in {EXPECTED} but received {module}")
        modules.setdefault(module, {})[letter] = tensor
    for module, factors in modules.items():
        # Buffers of one rank, into which the factors are copied.
        assert factors["A"].shape[0] == factors["B"].shape[1] <= max_lora_rank, module
    return {m: (f["A"], f["B"] * scale) for m, f in modules.items()}


CASES = {
    "plain": ({"r": 2, "n": 3}, 8),
    "an allowed rank": ({"r": 8, "n": 2}, 16),
    "rsLoRA": ({"r": 3, "n": 3, "use_rslora": True, "lora_alpha": 5}, 16),
    "patterns": (
        {"r": 2, "n": 3, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"up_proj": 3}},
        16,
    ),
    "embedding": ({"r": 2, "n": 2, "target_modules": ["q_proj", "embed_tokens"]}, 8),
    "beyond 256": ({"r": 100, "n": 3}, 320),
}


def deltas(model):
    """{module: ΔW (d_out, d_in) in float64}, from the layers themselves."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, AdapterLinear):
            delta = layer.get_delta_weight("default").detach().double()
            of_ids = isinstance(layer.get_base_layer(), torch.nn.Embedding)
            found[name.removeprefix("base_model.model.")] = delta.T if of_ids else delta
    return found


@pytest.mark.parametrize("case", list(CASES))
def test_vllm_reads_the_same_update(case, tmp_path):
    settings, r = CASES[case]
    targets = {"target_modules": ["q_proj", "up_proj", "down_proj"]}
    model = trained(llama(), MultiLoraConfig(**targets | settings))
    save_as_lora(model, tmp_path, padded=True)
    read, want = vllm_reads(tmp_path, r), deltas(model)
    assert read.keys() == want.keys()
    for module, (A, B) in read.items():
        assert A.shape[0] == r
        got = (B.double() @ A.double()).numpy()
        size = float(want[module].abs().max())
        np.testing.assert_allclose(got, want[module].numpy(), rtol=0, atol=2e-6 * size)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (r, r, False)
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]


def test_peft_reads_the_padded_export_too(tmp_path):
    settings, _ = CASES["patterns"]
    config = MultiLoraConfig(**settings, target_modules=["q_proj", "up_proj"])
    model = trained(llama(), config).eval()
    save_as_lora(model, tmp_path, padded=True)
    back = PeftModel.from_pretrained(llama(), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(back(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)


def test_without_padding_patterns_are_misread_so_the_test_can_fail(tmp_path):
    settings, _ = CASES["patterns"]
    model = trained(llama(), MultiLoraConfig(**settings, target_modules=["q_proj", "up_proj"]))
    save_as_lora(model, tmp_path)
    read, want = vllm_reads(tmp_path, 16), deltas(model)
    module = "model.layers.0.mlp.up_proj"
    A, B = read[module]
    assert not torch.allclose(B.double() @ A.double(), want[module], rtol=0.01)


def test_the_relatives_are_exported_by_the_same_rules(tmp_path):
    tasks = MtlLoraConfig(r=3, target_modules=["q_proj"], tasks=["sort"])
    save_as_lora(trained(llama(), tasks), tmp_path / "mtl", task="sort", padded=True)
    assert all(len(A) == 8 for A, _ in vllm_reads(tmp_path / "mtl", 8).values())
    model = trained(llama(), RLoraConfig(r=5, target_modules=["q_proj"]))
    with pytest.warns(UserWarning, match="approximates R-LoRA"):
        save_as_lora(model, tmp_path / "r", padded=True)
    assert all(len(A) == 16 for A, _ in vllm_reads(tmp_path / "r", 16).values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\] and bias 'none'"),
        ({"bias": "all"}, "modules_to_save None and bias 'all'"),
        ({"r": 300, "n": 2}, "rank 600 of the export; vLLM serves at most 512"),
    ],
)
def test_what_vllm_does_not_serve_is_refused_and_nothing_is_written(settings, words, tmp_path):
    config = MultiLoraConfig(**{"r": 2, "target_modules": ["q_proj"]} | settings)
    with pytest.raises(ValueError, match=words):
        save_as_lora(get_peft_model(llama(), config), tmp_path / "out", padded=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("ranks", "want"), [([1], 8), ([8], 8), ([9, 2], 16), ([257], 320), ([321], 512), ([512], 512)]
)
def test_the_rank_is_the_next_that_is_allowed(ranks, want):
    assert serving.rank(ranks) == want
    assert want in MAX_LORA_RANKS


def test_padding_adds_zeros_only():
    B, A = torch.randn(4, 3), torch.randn(3, 5)
    left, right = serving.padded(B, A, 8)
    assert (left.shape, right.shape) == ((4, 8), (8, 5))
    assert torch.equal(left[:, :3], B)
    assert torch.equal(right[:3], A)
    assert not left[:, 3:].any()
    assert not right[3:].any()
