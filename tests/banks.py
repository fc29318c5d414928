"""Banks of task experts on small random models, for the tests of experts and of their training."""

import torch
import transformers
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer

from multilora import ExpertBank, base

TASKS = ["law", "law_hard", "code"]
SIZES = {"width": 32, "layers": 2, "heads": 2, "mlp": 48}


def llama():
    return base.build_model(base.BaseSettings(**SIZES), base.build_tokenizer(64))


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=len(base.build_tokenizer(64)), n_embd=32, n_layer=2, n_head=2, n_positions=64,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def base_model(build=llama, dtype=torch.float32):
    torch.manual_seed(0)
    return build().to(dtype)


def lora(**config):
    usual = {"r": 2, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return LoraConfig(**usual | config)


def make_bank(build=llama, dtype=torch.float32, tasks=TASKS, moved=True, **config):
    """A bank whose experts have moved from their start, unless told otherwise."""
    model = base_model(build, dtype)
    torch.manual_seed(1)
    bank = ExpertBank(model, lora(**config), tasks)
    if moved:
        move(bank)
    return bank


def move(model):
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)


def batch(rows=7, length=10, seed=0):
    """Tokens, labels on some of them, and tasks that come mixed and unevenly."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 60, (rows, length), generator=generator)
    labels = ids.clone()
    for i in range(rows):
        labels[i, : 3 + i % 4] = -100
    tasks = torch.tensor([0, 1, 0, 2, 1, 1, 0])[:rows]
    return {"input_ids": ids, "labels": labels, "multilora_task_ids": tasks}


def of_task(inputs, i, **changes):
    """The rows of one task, without its index."""
    rows = inputs["multilora_task_ids"] == i
    return {k: v[rows] for k, v in inputs.items() if k != "multilora_task_ids"} | changes


def bits(bank, task):
    return [p.detach().clone() for p in bank.parameters_of(task)]


def same(a, b):
    return len(a) == len(b) > 0 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(got, want, rtol=1e-5):
    torch.testing.assert_close(got, want, rtol=0, atol=rtol * float(want.detach().abs().max()))


def alone(bank, task, directory, build=llama, dtype=torch.float32):
    """PEFT's own LoRA with what the bank has saved for one task, ready to be trained."""
    bank.save_pretrained(directory)
    model = PeftModel.from_pretrained(
        base_model(build, dtype), directory / task, is_trainable=True, autocast_adapter_dtype=False
    )
    return model.train(bank.training)


def trained(model):
    """The gradients of a PEFT LoRA, in the order of `parameters_of`."""
    return [
        p
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
        for name in ("lora_A", "lora_B")
        for p in getattr(layer, name).parameters()
    ]
