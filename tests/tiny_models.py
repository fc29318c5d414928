"""Tiny models with a layer of every kind, and adapters of PEFT in them, for tests."""

import warnings

import torch
from safetensors.numpy import save_file
from torch import nn

warnings.filterwarnings("ignore", module="peft")


class Tiny(nn.Module):
    """A layer of every kind that LoRA goes into."""

    def __init__(self):
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.emb = nn.Embedding(30, 6)
        self.lin = nn.Linear(6, 9)
        self.square = Conv1D(6, 6)
        self.turned = Conv1D(7, 6)  # (6, 7), acts as its transpose
        self.conv1 = nn.Conv1d(4, 8, 3)
        self.conv2 = nn.Conv2d(3, 8, (3, 2))
        self.point = nn.Conv2d(3, 8, 1)
        self.conv3 = nn.Conv3d(2, 8, 2)
        self.groups = nn.Conv2d(4, 8, 3, groups=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.square(self.emb(x)))


def tiny():
    torch.manual_seed(0)
    return Tiny()


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=2, **sizes))


def gpt2():
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=2, n_head=2))


def trained(model, config, std=0.1):
    """The model with an adapter whose every parameter is off its start."""
    from peft import get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(std * torch.randn_like(parameter))
    return model


def layers(model):
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }


def matrix(W, layer):
    """(d_out, d_in·kernel), as y = W x."""
    turned = type(layer.get_base_layer()).__name__ in ("Conv1D", "Embedding")
    W = W.detach().double().numpy()
    return W.T if turned else W.reshape(len(W), -1)


def save_base(model, path):
    path.mkdir(exist_ok=True)
    weights = {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}
    save_file(weights, path / "model.safetensors")
    return path
