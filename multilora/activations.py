"""Measure the second moment of every linear module's inputs, for `analysis.spectrum --activations`.

    python -m multilora.activations --model MODEL --text FILE --out DIR
    python -m multilora.activations --model MODEL --tasks KIND:PATH,… [--per_task 100] --out DIR

The second moment of a module is C = mean of x xᵀ over tokens, x (d_in,) being its inputs. MODEL is
the base of an adapter; it sees a text in windows, or examples one by one, until --limit tokens.
DIR gets moments.safetensors, moments.csv and record.json; the same command does not run the model
again. C is summed in float64, with a relative error of at most tokens · 1.1e-16 of the mean of
|xᵢxⱼ| in entry (i, j). Modules with one input, such as query, key and value, share one C. A module
needs 8 · d_in² bytes of memory and of disk; --modules takes some of them at a time.
"""

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.linalg import blas
from torch import nn
from transformers.pytorch_utils import Conv1D

from analysis import UserError, store
from analysis.base.moments import COMMAND, MOMENTS, RECORD, TABLE
from analysis.files import exchange
from analysis.files.regular import read_text
from analysis.names import expression, kind_of, layer_of
from analysis.numerics import parallel
from analysis.numerics.statistics import median
from analysis.results import Row, grouped
from analysis.tables import text as tables
from multilora import command, delta, record
from multilora.tasks import data, encoding
from multilora.training import guard

COLUMNS = (
    "module", "layer", "kind", "shares", "d_in", "tokens", "mean_square", "participation_ratio",
)  # fmt: skip
TRIAL = 2  # tokens of the first text that show which modules have the same inputs

# The second moments


@dataclass(frozen=True, eq=False)
class Measured:
    """Second moments by module.

    C: module → (d_in, d_in), float64, of the first of the modules that share an input.
    shares: module → the first of the modules whose input it has.
    tokens: module → the number of inputs that were summed.
    """

    C: dict[str, torch.Tensor]
    shares: dict[str, str]
    tokens: dict[str, int]


def linear_layers(model: nn.Module, modules: str = "") -> dict[str, nn.Module]:
    """Return the linear layers of a model by name, the head too; modules: a regular expression."""
    wanted = expression(modules)
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and wanted.search(name)
    }


def moments(
    model: Any,
    rows: Sequence[Sequence[int]],
    modules: str = "",
    *,
    say: Callable[[str], object] = lambda line: None,
    progress: bool = False,
) -> Measured:
    """Return the second moments of the inputs of a model's linear layers.

    model: a causal model of Transformers; it is not changed.
    rows: ids of tokens, at least one row; each is given to the model by itself.
    modules: a regular expression that the names of the layers must contain.
    say: is called with a line about the memory that is needed, before it is.
    progress: show a bar on stderr if it takes over two seconds.

    One row's inputs are in memory at a time. Layers that get no input are left out. Raises
    UserError if no layer matches, if an input holds NaN or Inf, or if two modules have one input in
    the first row and not in another.
    """
    layers = linear_layers(model, modules)
    if not layers:
        raise UserError(f"--modules {modules!r}: no linear layer of the model has such a name")
    model.eval()
    shares = _shares(model, layers, rows[0][:TRIAL])
    sizes = {name: _d_in(layers[name]) for name in dict.fromkeys(shares.values())}
    size = 8 * sum(d_in**2 for d_in in sizes.values())
    say(
        f"second moments of {len(sizes)} inputs of {len(layers)} modules: {_size(size)} of memory"
        f" and of disk, {rows_words(rows)}"
    )
    sums = _Sums(shares, {name: np.zeros((d, d), order="F") for name, d in sizes.items()})
    for i, row in enumerate(parallel.with_bar(rows, progress, "activations", "text")):
        sums.start(f"text {i + 1}")
        _run(model, layers, row, sums.take)
    tokens = {name: count for name, count in sums.tokens.items() if count}
    return Measured(
        C={name: sums.mean(name) for name in sums.totals if name in tokens},
        shares={name: shares[name] for name in tokens},
        tokens=tokens,
    )


def rows_words(rows: Sequence[Sequence[int]]) -> str:
    """The number of texts and tokens in words."""
    texts = "1 text" if len(rows) == 1 else f"{len(rows)} texts"
    return f"{texts} of {sum(map(len, rows))} tokens"


def _d_in(layer: Any) -> int:
    """The width of a layer's inputs."""
    return int(layer.weight.shape[0] if isinstance(layer, Conv1D) else layer.in_features)


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


@torch.no_grad()
def _run(
    model: Any,
    layers: dict[str, nn.Module],
    row: Sequence[int],
    take: Callable[[str, torch.Tensor], None],
) -> None:
    """Run the model on one row and call take(name, input) whenever one of the layers is called."""

    def hook(name: str) -> Callable[..., None]:
        def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            take(name, args[0] if args else next(iter(kwargs.values())))

        return before

    handles = [
        layer.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        device = next(model.parameters()).device
        model(input_ids=torch.tensor([list(row)], device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


def _shares(model: Any, layers: dict[str, nn.Module], row: Sequence[int]) -> dict[str, str]:
    """Return module → the first module that is given the very same tensors; itself if none is."""
    inputs: dict[str, list[tuple[int, int]]] = {}
    alive = []  # so that no number stands for two tensors

    def take(name: str, x: torch.Tensor) -> None:
        alive.append(x)
        inputs.setdefault(name, []).append((id(x), x._version))

    _run(model, layers, row, take)
    first: dict[tuple[tuple[int, int], ...], str] = {}
    called = {name: first.setdefault(tuple(given), name) for name, given in inputs.items()}
    return called | {name: name for name in layers if name not in called}


class _Sums:
    """Sums of x xᵀ over the inputs that a running model hands to `take`.

    shares: of `_shares`.
    totals: (d_in, d_in), by columns, by the first of the modules that share an input; the upper
        triangles are used.
    tokens: how many inputs each module has had.
    """

    def __init__(self, shares: dict[str, str], totals: dict[str, np.ndarray]) -> None:
        self.shares, self.totals = shares, totals
        self.tokens = dict.fromkeys(shares, 0)
        self.start("")

    def start(self, text: str) -> None:
        """Begin a text, which messages call `text`; forget the inputs of the one before."""
        self.text = text
        self.given: dict[str, list[tuple[torch.Tensor, int]]] = {name: [] for name in self.shares}

    def take(self, name: str, x: torch.Tensor) -> None:
        """Add one input (…, d_in) of a module.

        Raises UserError for NaN or Inf, and if the module that shares it had another input.
        """
        given, first = self.given[name], self.given[self.shares[name]]
        given.append((x, x._version))
        self.tokens[name] += x.numel() // x.shape[-1]
        if first is given:
            self._add(name, x)
        elif not (
            len(given) <= len(first)
            and first[len(given) - 1][0] is x
            and first[len(given) - 1][1] == x._version
        ):
            raise UserError(
                f"{name} and {self.shares[name]} have one input at the start and different ones in"
                f" {self.text}; pass --modules to take one of them at a time"
            )

    def _add(self, name: str, x: torch.Tensor) -> None:
        """Add to the upper triangle in place, without another matrix of that size."""
        X = x.reshape(-1, x.shape[-1]).double().cpu().numpy()
        total = blas.dsyrk(1.0, X.T, beta=1.0, c=self.totals[name], overwrite_c=True)
        if not np.isfinite(total.diagonal()).all():
            raise UserError(
                f"{name}: its inputs in {self.text} hold NaN or Inf; expected finite numbers"
            )

    def mean(self, name: str) -> torch.Tensor:
        """Return C, whose lower triangle is that of the upper one."""
        C = self.totals[name]
        C += np.triu(C, 1).T
        C /= self.tokens[name]
        return torch.from_numpy(C.T)


# The command


@dataclass(frozen=True)
class ActivationSettings:
    """A model, the texts that it sees, and where the second moments are written."""

    model: str = field(default="", metadata={"help": "the base: a directory or hub name"})
    text: str = field(default="", metadata={"help": "a file of text, UTF-8"})
    tasks: str = field(
        default="", metadata={"help": "KIND:PATH, separated by commas (docs/tasks.md)"}
    )
    split: str = field(default="train", metadata={"help": "of the tasks: train, validation, test"})
    per_task: int = field(default=100, metadata={"help": "examples per task; 0: all"})
    window: int = field(default=128, metadata={"help": "tokens that the model sees at a time"})
    limit: int = field(default=100_000, metadata={"help": "tokens in all; 0: no limit"})
    modules: str = field(
        default="", metadata={"help": "only modules whose name contains a match of this expression"}
    )
    out: str = field(default="", metadata={"help": f"directory for {MOMENTS}, {TABLE}, {RECORD}"})

    def __post_init__(self) -> None:
        for name in ("model", "out"):
            if not getattr(self, name):
                raise UserError(f"--{name} is missing; expected --model MODEL and --out DIR")
        if bool(self.text) == bool(self.tasks):
            raise UserError("expected one of --text FILE and --tasks KIND:PATH")
        for name, least in (("window", 1), ("limit", 0), ("per_task", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least {least}")
        expression(self.modules)


def measure(settings: ActivationSettings) -> list[Row]:
    """Write the second moments to `settings.out` unless they are there; return the rows of TABLE.

    Raises UserError if the model, the texts or the tasks are not readable, or memory is too small.
    """
    model, tokenizer = delta.load_base(settings.model)
    rows = texts(settings, model, tokenizer)
    sha256 = delta.weight_files(settings.model)
    code = {"activations": importlib.import_module("multilora.activations")}
    config = json.loads(model.config.to_json_string())
    config.pop("_name_or_path", None)
    fingerprint = record.fingerprint(sha256, config, rows, settings.modules, code)
    out = Path(settings.out)
    found = _found(out, fingerprint)
    if found is not None:
        print(f"{out}: has these moments already", file=sys.stderr)
        return found
    try:
        measured = moments(model, rows, settings.modules, say=_say, progress=True)
        table = as_rows(measured)
        facts = {
            **store.record(COMMAND, [Path(settings.model)], asdict(settings)),
            "fingerprint": fingerprint,
            "base": {"path": settings.model, "sha256": sha256},
            "tokens": sum(map(len, rows)),
            "texts": len(rows),
            "modules": {name: {"tensor": first} for name, first in measured.shares.items()},
        }
        write(out, measured, table, facts)
    except (MemoryError, RuntimeError) as error:
        if size := guard.not_allocated(error):
            raise UserError(
                f"out of memory: {size} could not be allocated; try some of the modules at a time"
                " (--modules), each into a directory of its own, or a shorter --window"
            ) from error
        raise
    idle = linear_layers(model, settings.modules).keys() - measured.shares.keys()
    if idle:
        _say(f"{len(idle)} modules had no input and are left out, such as {min(idle)}")
    return table


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def texts(settings: ActivationSettings, model: Any, tokenizer: Any) -> list[list[int]]:
    """Return rows of at most `window` tokens, `limit` tokens in all.

    A text is cut into consecutive windows; an example, its prompt and answer, ends after one.
    """
    context = encoding.context_of(model, tokenizer)
    window = min(settings.window, context)
    if settings.text:
        (ids,) = encoding.ids_of(tokenizer, [read_text(Path(settings.text))])
        rows = [ids[start : start + window] for start in range(0, len(ids), window)]
    else:
        examples = data.load(settings.tasks).split(settings.split, settings.per_task)
        encoded = encoding.encode_all(tokenizer, examples, context)
        rows = [row.ids[:window] for row in encoded if row]
        if len(rows) < len(encoded):
            count = len(encoded) - len(rows)
            _say(f"{count} of {len(encoded)} examples have an answer longer than the context")
        if not rows:
            raise UserError(f"{settings.tasks}: has no {settings.split} example; expected one")
    whole = sum(map(len, rows))
    if not settings.limit or whole <= settings.limit:
        return rows
    _say(f"the first {settings.limit} of {whole} tokens are used: see --limit")
    kept, left = [], settings.limit
    for row in rows:
        kept.append(row[:left])
        left -= len(kept[-1])
        if not left:
            break
    return kept


def as_rows(measured: Measured) -> list[Row]:
    """Return one row per module, by COLUMNS.

    mean_square: tr C / d_in, the mean of xᵢ² over tokens and coordinates.
    participation_ratio: (tr C)² / ‖C‖²_F, in [1, d_in]: the number of directions of equal energy
        that would be as concentrated.
    """
    table = []
    for name, first in measured.shares.items():
        C = measured.C[first]
        trace, size = float(C.trace()), float(C.norm())
        table.append(
            {
                "module": name,
                "layer": layer_of(name),
                "kind": kind_of(name),
                "shares": first,
                "d_in": len(C),
                "tokens": measured.tokens[name],
                "mean_square": trace / len(C),
                "participation_ratio": (trace / size) ** 2 if size > 0 else None,
            }
        )
    return table


def write(out: Path, measured: Measured, table: Sequence[Row], facts: dict[str, Any]) -> None:
    """Replace the moments in a directory, all of the files or none; facts: of the record."""
    with guard.writing(out), exchange.replacing(out) as new:
        save_file({name: C.contiguous() for name, C in measured.C.items()}, new / MOMENTS)
        (new / TABLE).write_text(store.csv_text(table, COLUMNS), encoding="utf-8")
        files = record.sha256_of_files(new, "moments.*")
        record.write_json(new / RECORD, {**facts, store.FILES: files})


def _found(out: Path, fingerprint: str) -> list[Row] | None:
    """Return the table of the moments in `out` if they are whole and of this fingerprint."""
    exchange.complete(out)
    try:
        known = record.read_json(out / RECORD)
        if known.get("command") != COMMAND or known.get("fingerprint") != fingerprint:
            return None
        if known.get(store.FILES) != record.sha256_of_files(out, "moments.*"):
            return None
        return _table(out / TABLE)
    except (OSError, UserError, ValueError):
        return None


def _table(path: Path) -> list[Row]:
    """Return the rows of a table that `write` wrote."""
    import csv

    with path.open(newline="", encoding="utf-8") as file:
        rows: list[Row] = []
        for cells in csv.DictReader(file):
            row: Row = {name: store.plain_text(cell) for name, cell in cells.items()}
            for name in ("layer", "d_in", "tokens"):
                row[name] = int(row[name]) if row[name] else None
            for name in ("mean_square", "participation_ratio"):
                row[name] = float(row[name]) if row[name] else None
            rows.append(row)
    return rows


def as_table(rows: Sequence[Row]) -> str:
    """Return one line per kind of module: how many, their width, tokens, and medians."""
    lines = [["kind", "modules", "inputs", "d_in", "tokens", "mean x²", "directions in use"]]
    for (kind,), group in grouped(rows, "kind").items():
        lines.append(
            [
                kind,
                str(len(group)),
                str(sum(row["shares"] == row["module"] for row in group)),
                "/".join(str(d) for d in sorted({row["d_in"] for row in group})),
                str(max(row["tokens"] for row in group)),
                tables.cell(median(row["mean_square"] for row in group), ".3g"),
                tables.cell(median(row["participation_ratio"] for row in group), ".3g"),
            ]
        )
    return "\n".join(tables.aligned(lines))


def main(argv: Sequence[str] | None = None) -> int:
    return command.run(
        "multilora.activations",
        parse=lambda: command.settings_from(ActivationSettings, __doc__, argv),
        work=lambda settings: as_table(measure(settings)),
    )


if __name__ == "__main__":
    sys.exit(main())
