"""Time forward and backward of one adapter layer, in milliseconds of one thread's CPU time.

First MultiLoRA against PEFT's LoRA of equal budget, rank n·r; target at d = 2048: at most 1.15
times as long. Then R-LoRA and MTL-LoRA, with a different task in each of 8 rows, against LoRA with
the same number of parameters. Then our form of MultiLoRA, n modules stacked into one pair of
factors, against the two obvious ones: a loop over the modules, and one einsum over all of them. The
layers of a row are timed in turn, and a ratio is the median over neighbouring times, so that a busy
machine slows both alike.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn

from analysis.results import Row
from multilora import MtlLoraConfig, MultiLoraConfig, RLoraConfig
from multilora.methods.layers import MultiLoraLinear
from multilora.methods.task_ids import TaskIds

# d, n, r, tokens
AGAINST_LORA = (
    (256, 3, 8, 2048),
    (256, 4, 16, 2048),
    (2048, 3, 8, 512),
    (2048, 4, 16, 512),
    (4096, 3, 8, 128),
    (4096, 4, 16, 128),
)
# d, n, r, tokens; compared with the LoRA whose number of parameters is nearest.
RELATIVES = ((256, 3, 8, 2048), (2048, 3, 8, 512), (4096, 3, 8, 128))
ROWS, TASKS = 8, 15
FORMS = ((128, 3, 8, 768), (256, 3, 8, 2048), (2048, 3, 32, 512))
TARGET, TARGET_D = 1.15, 2048

NAMES = ("frozen linear", "stacked", "loop", "einsum")

Layer = Callable[[torch.Tensor], torch.Tensor]


def adapted(d: int, config: PeftConfig) -> nn.Module:
    """Return a frozen linear layer, d × d, with an adapter that is no longer at its zero start."""
    config.target_modules = {"layer"}
    model = get_peft_model(nn.ModuleDict({"layer": nn.Linear(d, d)}), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=d**-0.5)
    return model.base_model.model["layer"]


def relatives(d: int, n: int, r: int, rows: int) -> dict[str, nn.Module]:
    """Return an R-LoRA and an MTL-LoRA layer; the latter with one task for each of `rows` rows."""
    tasks = [f"task{i}" for i in range(TASKS)]
    layer = adapted(d, MtlLoraConfig(r=r, n=n, tasks=tasks))
    layer.current.ids = TaskIds.of(torch.arange(rows) % TASKS, repeat=False)
    return {"R-LoRA": adapted(d, RLoraConfig(r=r, n=n)), "MTL-LoRA": layer}


def parameters(layer: nn.Module) -> int:
    """Count the trained parameters."""
    return sum(p.numel() for p in layer.parameters() if p.requires_grad)


def looped(layer: MultiLoraLinear) -> Layer:
    """Return the function of `layer`, computed one module after the other: 2n products."""
    A, B, s = (getattr(layer, f"multilora_{part}")["default"] for part in "ABs")
    n, scale = layer.n["default"], layer.scale["default"]

    def forward(x: torch.Tensor) -> torch.Tensor:
        result = layer.base_layer(x)
        for Ai, Bi, si in zip(A.chunk(n), B.chunk(n, 1), s.unbind(1), strict=True):
            result = result + scale * si * F.linear(F.linear(x, Ai), Bi)
        return result

    return forward


def batched(layer: MultiLoraLinear) -> Layer:
    """Return the function of `layer`, computed for all modules by one einsum."""
    A, B, s = (getattr(layer, f"multilora_{part}")["default"] for part in "ABs")
    n, scale = layer.n["default"], layer.scale["default"]

    def forward(x: torch.Tensor) -> torch.Tensor:
        modules = A.unflatten(0, (n, -1)), B.unflatten(1, (n, -1))
        each = torch.einsum("...d,nrd,onr->...no", x, *modules)
        return layer.base_layer(x) + scale * (each * s.T).sum(-2)

    return forward


def milliseconds(
    layers: Sequence[Layer], d: int, tokens: int, repeat: int, rows: int = 1
) -> list[list[float]]:
    """Time forward and backward of the layers in turn; `repeat` times for each, in milliseconds.

    layers: what is timed.
    d: width of the input.
    tokens: in all rows together.
    repeat: timed passes per layer, after three that are not.
    rows: of the batch.
    """
    x = torch.randn(rows, tokens // rows, d, requires_grad=True)
    gradient = torch.randn(rows, tokens // rows, d)
    times: list[list[float]] = [[] for _ in layers]
    for i in range(repeat + 3):
        # The first place rotates, so that the contents of the cache favour none of them.
        for j in range(len(layers)):
            k = (i + j) % len(layers)
            start = time.process_time()
            layers[k](x).backward(gradient)
            if i >= 3:  # the first are for warming up
                times[k].append(1e3 * (time.process_time() - start))
            x.grad = None
    return times


def ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """Return the median ratio of times that were taken next to one another."""
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


def _row(
    what: str, place: tuple[int, int, int, int], method: str, times: Sequence[float], share: float
) -> Row:
    d, n, r, tokens = place
    return {
        "what": what,
        "setting": f"d = {d}, {n}×{r}, {tokens} tokens",
        "method": method,
        "value": statistics.median(times),
        "unit": "ms",
        "ratio": share,
    }


def against_lora(place: tuple[int, int, int, int], repeat: int) -> list[Row]:
    """Time LoRA of rank n·r and MultiLoRA; return one row each, with the ratio to LoRA."""
    d, n, r, tokens = place
    pair = [adapted(d, LoraConfig(r=n * r)), adapted(d, MultiLoraConfig(r=r, n=n))]
    times = milliseconds(pair, d, tokens, repeat)
    return [
        _row("layer", place, method, of, ratio(of, times[0]))
        for method, of in zip(("LoRA", "MultiLoRA"), times, strict=True)
    ]


def against_relatives(place: tuple[int, int, int, int], repeat: int) -> list[list[Row]]:
    """Time R-LoRA and MTL-LoRA, each with a LoRA of as many parameters; ratios are to that LoRA."""
    d, n, r, tokens = place
    pairs = []
    for name, layer in relatives(d, n, r, ROWS).items():
        rank = round(parameters(layer) / (2 * d))
        pair = [adapted(d, LoraConfig(r=rank)), layer]
        times = milliseconds(pair, d, tokens, repeat, rows=ROWS)
        pairs.append(
            [
                _row("relative", place, method, of, ratio(of, times[0]))
                for method, of in zip((f"LoRA r={rank}", name), times, strict=True)
            ]
        )
    return pairs


def forms(place: tuple[int, int, int, int], repeat: int) -> list[Row]:
    """Time the forms of MultiLoRA and the frozen layer alone; ratios are to the frozen layer."""
    d, n, r, tokens = place
    multi = adapted(d, MultiLoraConfig(r=r, n=n))
    assert isinstance(multi, MultiLoraLinear)
    layers = [multi.base_layer, multi, looped(multi), batched(multi)]
    x = torch.randn(tokens, d)
    for layer in layers[2:]:
        torch.testing.assert_close(layer(x), multi(x))
    times = milliseconds(layers, d, tokens, repeat)
    return [
        _row("form", place, name, of, ratio(of, times[0]))
        for name, of in zip(NAMES, times, strict=True)
    ]


def rows(repeat: int) -> list[Row]:
    """Print the three tables line by line and return all their rows."""
    measured: list[Row] = []
    print(f"\n{'d':>5} {'n×r':>6} {'tokens':>6} {'LoRA':>8} {'MultiLoRA':>10} {'ratio':>6}")
    for place in AGAINST_LORA:
        lora, multi = against_lora(place, repeat)
        measured += [lora, multi]
        target = f"   (target {TARGET})" if place[0] == TARGET_D else ""
        numbers = f"{lora['value']:8.2f} {multi['value']:10.2f} {multi['ratio']:6.2f}"
        print(f"{_place(place)} {numbers}{target}")

    print(
        f"\n{'d':>5} {'n×r':>6} {'tokens':>6} {'method':>9} {'LoRA':>16} {'method':>9} {'ratio':>6}"
    )
    for place in RELATIVES:
        for lora, other in against_relatives(place, repeat):
            measured += [lora, other]
            rank = lora["method"].removeprefix("LoRA ")
            print(
                f"{_place(place)} {other['method']:>9} {rank:>7} {lora['value']:8.2f}"
                f" {other['value']:9.2f} {other['ratio']:6.2f}"
            )

    print(f"\n{'d':>5} {'n×r':>6} {'tokens':>6}" + "".join(f"{name:>15}" for name in NAMES))
    for place in FORMS:
        of_place = forms(place, repeat)
        measured += of_place
        cells = [f"{row['value']:9.2f} {row['ratio']:4.1f}×" for row in of_place]
        print(_place(place) + "".join(f"{cell:>15}" for cell in cells))
    return measured


def _place(place: tuple[int, int, int, int]) -> str:
    d, n, r, tokens = place
    return f"{d:>5} {f'{n}×{r}':>6} {tokens:>6}"


def missed(rows: Sequence[Row]) -> bool:
    """Return whether MultiLoRA exceeds TARGET at d = TARGET_D."""
    at_target = f"d = {TARGET_D}, "
    return any(
        row["what"] == "layer" and row["setting"].startswith(at_target) and row["ratio"] > TARGET
        for row in rows
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables and return 1 if the target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=__doc__)
    parser.add_argument(
        "--repeat", type=int, default=31, help="timed passes per layer (default 31)"
    )
    repeat = parser.parse_args(argv).repeat
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        f"{platform.processor() or platform.machine()}, one thread, float32, "
        f"torch {torch.__version__}, medians of {repeat}"
    )
    measured = rows(repeat)
    torch.set_num_threads(threads)
    return int(missed(measured))


if __name__ == "__main__":
    sys.exit(main())
