"""Pretrain a small LLaMA as the base, on the built-in corpus or on the text of public tasks.

    python -m multilora.base [--out DIR] [--seed 0] [--steps 2000] …
    python -m multilora.base --tasks alpaca:FILE,mmlu:DIR,superglue:DIR --context 256 …

The command prints the directory of the model. A base is trained once: the directory is named after
the hash of the settings, the text and the code. On the built-in corpus it must learn to copy any
list of words and to recall the corpus' facts, because the tasks build on both; otherwise it is
refused. With --tasks it is trained on the prompts of their training examples, without the answers,
with a tokenizer learned from them; bits per byte on held-out prompts measure the result.
"""

import itertools
import math
import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from analysis import UserError
from multilora import command, record
from multilora.tasks import data, encoding
from multilora.tasks.builtin import corpus, pretrained, world
from multilora.tasks.example import SPLITS

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"


@dataclass(frozen=True)
class BaseSettings:
    """Size, data and schedule of the built-in base."""

    out: str = field(default="runs/base", metadata={"help": "directory that holds the bases"})
    seed: int = 0
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 344
    context: int = field(default=64, metadata={"help": "tokens that the model can take"})
    steps: int = 2000
    batch: int = field(default=32, metadata={"help": "sequences of `context` tokens per step"})
    lr: float = field(default=3e-3, metadata={"help": "learning rate"})
    copies: float = field(default=0.35, metadata={"help": "share of documents that are copies"})
    tasks: str = field(
        default="",
        metadata={"help": "train on the prompts of these public tasks (docs/tasks.md)"},
    )
    vocabulary: int = field(
        default=2048, metadata={"help": "with --tasks: number of tokens learned from their text"}
    )
    threads: int = field(
        default=1, metadata={"help": "CPU threads; the bits of the base depend on their number"}
    )
    least_copying: float = field(
        default=0.9, metadata={"help": "refuse a base that copies fewer of the words of a list"}
    )
    least_recall: float = field(
        default=0.9, metadata={"help": "refuse a base that recalls fewer of the corpus' facts"}
    )


def directory(settings: BaseSettings) -> Path:
    """The directory of the base with these settings, which need not exist yet."""
    made_of = {key: value for key, value in asdict(settings).items() if key != "out"}
    code = {"world": world, "corpus": corpus, "base": sys.modules[__name__]}
    texts = []
    if settings.tasks:
        texts = [_prompts(settings.tasks, split) for split in SPLITS[:2]]
        code["encoding"] = encoding
    return Path(settings.out) / record.fingerprint(made_of, texts, code)


def ensure(settings: BaseSettings) -> Path:
    """Train the base unless it was trained before; return its directory."""
    path = directory(settings)
    if not path.is_dir() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"{path}: the base does not exist; train it first in one process, with "
            "python -m multilora.base"
        )
    with record.threads(settings.threads):
        record.make_once(path, lambda temporary: _train(settings, temporary))
    return path


def path_of(model: str, tasks: str) -> str:
    """`model`, or the directory of the base that comes with the package if it is empty.

    Raises UserError if the built-in base is chosen for the public `tasks`, which it cannot read.
    """
    if tasks and not model:
        raise UserError(
            "the built-in base only knows the words of the built-in suite; pass --model with "
            "--tasks, or train a base on the tasks' own text with python -m multilora.base --tasks"
        )
    return model or str(pretrained.ensure(Path(BaseSettings.out)))


def build_tokenizer(context: int) -> Any:
    """Word-level tokenizer of the built-in vocabulary; words are separated by blanks."""
    words = [PAD, BOS, EOS, UNK, *world.vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=context,
    )


def build_model(settings: BaseSettings, tokenizer: Any) -> Any:
    """The untrained model; set the seed before."""
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.mlp,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return transformers.LlamaForCausalLM(config)


def learn_tokenizer(texts: Sequence[str], vocabulary: int, context: int) -> Any:
    """Byte-level BPE tokenizer of at most `vocabulary` tokens, learned from the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


class _Packed(torch.utils.data.Dataset):
    """Sequences of `context` tokens for all steps, cut from one stream of tokens."""

    def __init__(self, settings: BaseSettings, stream: Iterator[int]) -> None:
        size = settings.steps * settings.batch * settings.context
        tokens = np.fromiter(itertools.islice(stream, size), np.int32, size)
        self.sequences = torch.from_numpy(tokens.reshape(-1, settings.context))

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        sequence = self.sequences[i].long()
        return {"input_ids": sequence, "labels": sequence}


def _corpus(settings: BaseSettings, tokenizer: Any) -> Iterator[int]:
    """Yield the tokens of the built-in corpus, without end."""
    ids = tokenizer.get_vocab()
    for text in corpus.documents(settings.seed, settings.copies):
        for word in (BOS, *text.split(), EOS):
            yield ids[word]


def _text(settings: BaseSettings, tokenizer: Any, texts: Sequence[str]) -> Iterator[int]:
    """Yield the tokens of the texts, without end, in a new order for every epoch."""
    rng = random.Random(f"text/{settings.seed}")
    encoded = encoding.ids_of(tokenizer, texts)
    while True:
        for ids in rng.sample(encoded, len(encoded)):
            yield from (tokenizer.bos_token_id, *ids, tokenizer.eos_token_id)


def _prompts(tasks: str, split: str) -> list[str]:
    """The distinct prompts of a split of public tasks; raises UserError if there are none.

    What was left out of the data is printed on stderr, once, for the training examples.
    """
    loaded = data.load(tasks)
    if split == "train":
        for note in loaded.notes:
            print(note, file=sys.stderr)
    prompts = list(dict.fromkeys(e.prompt for e in loaded.split(split)))
    if not prompts:
        raise UserError(f"tasks {tasks}: there are no {split} prompts to train on")
    return prompts


def _train(settings: BaseSettings, out: Path) -> None:
    """Train a base, measure it and write it to `out`."""
    transformers.set_seed(settings.seed)
    texts, held_out = (
        [_prompts(settings.tasks, split) for split in SPLITS[:2]] if settings.tasks else ([], [])
    )
    if settings.tasks:
        tokenizer = learn_tokenizer(texts, settings.vocabulary, settings.context)
        stream = _text(settings, tokenizer, texts)
    else:
        tokenizer = build_tokenizer(settings.context)
        stream = _corpus(settings, tokenizer)
    model = build_model(settings, tokenizer)
    trainer = transformers.Trainer(
        model, _arguments(settings, out), train_dataset=_Packed(settings, stream)
    )
    trainer.train()
    if settings.tasks:
        scores = {
            "bits_per_byte": bits_per_byte(model, tokenizer, texts, settings.context),
            "bits_per_byte_held_out": bits_per_byte(model, tokenizer, held_out, settings.context),
        }
    else:
        scores = {"copying": copying(model, tokenizer), "recall": recall(model, tokenizer)}
        _check(scores, settings)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    record.write_json(
        out / "run.json",
        {
            "settings": asdict(settings),
            "scores": scores,
            "losses": [entry for entry in trainer.state.log_history if "loss" in entry],
            "parameters": model.num_parameters(),
            "environment": record.environment(),
        },
    )


def _arguments(settings: BaseSettings, out: Path) -> transformers.TrainingArguments:
    """The schedule and the optimiser of the pretraining."""
    return transformers.TrainingArguments(
        output_dir=str(out),
        seed=settings.seed,
        data_seed=settings.seed,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        train_sampling_strategy="sequential",
        learning_rate=settings.lr,
        lr_scheduler_type="cosine",
        warmup_steps=settings.steps // 20,
        optim="adamw_torch",
        adam_beta2=0.98,
        weight_decay=0.05,
        max_grad_norm=1.0,
        logging_steps=100,
        save_strategy="no",
        dataloader_pin_memory=False,
        report_to="none",
    )


def _check(scores: dict[str, float], settings: BaseSettings) -> None:
    """Raise UserError for a base that has not learned what the built-in tasks build on."""
    for name, least in (("copying", settings.least_copying), ("recall", settings.least_recall)):
        if scores[name] < least:
            raise UserError(
                f"base model: {name} is {scores[name]:.2f}; expected at least {least}, which the "
                "tasks need (train for more steps)"
            )


@torch.no_grad()
def bits_per_byte(model: Any, tokenizer: Any, texts: Sequence[str], context: int) -> float:
    """−log₂ of the texts' likelihood per UTF-8 byte, over the first `context` tokens of each."""
    model.eval()
    nats = spent = 0.0
    for ids in encoding.ids_of(tokenizer, texts):
        seen = ids[: context - 1]
        row = torch.tensor([[tokenizer.bos_token_id, *seen]]).to(model.device)
        nats += float(model(row, labels=row).loss) * len(seen)
        spent += len(tokenizer.decode(seen).encode())
    return nats / math.log(2) / spent


def copying(model: Any, tokenizer: Any, lists: int = 100, seed: int = 1) -> float:
    """Share of the words of random lists that the model repeats correctly, in [0, 1]."""
    rng = random.Random(f"copying/{seed}")
    vocabulary = world.vocabulary()
    drawn = [" ".join(rng.choices(vocabulary, k=8)) for _ in range(lists)]
    return _share_right(model, tokenizer, [(f"list {words} again", words) for words in drawn])


def recall(model: Any, tokenizer: Any) -> float:
    """Share of the corpus' facts, each in both forms, that the model completes, in [0, 1]."""
    statements = [
        corpus.fact_statement(fact, form) for fact in corpus.KNOWN_FACTS for form in (0, 1)
    ]
    pairs = [tuple(statement.rsplit(" ", 1)) for statement in statements]
    return _share_right(model, tokenizer, [(prompt, value) for prompt, value in pairs])


@torch.no_grad()
def _share_right(model: Any, tokenizer: Any, pairs: list[tuple[str, str]]) -> float:
    """Share of the answers' words to which the model gives the highest probability, in [0, 1].

    pairs: (prompt, answer). Each word is predicted from the prompt and the answer's words before.
    """
    model.eval()
    right = total = 0
    for prompt, answer in pairs:
        ids = tokenizer(f"{BOS} {prompt} {answer}", return_tensors="pt").input_ids
        ids = ids.to(model.device)
        length = len(answer.split())
        guess = model(ids).logits[0, -length - 1 : -1].argmax(-1)
        right += int((guess == ids[0, -length:]).sum())
        total += length
    return right / total


def main(argv: Sequence[str] | None = None) -> int:
    return command.run(
        "multilora.base",
        parse=lambda: command.settings_from(BaseSettings, __doc__, argv),
        work=lambda settings: str(ensure(settings)),
    )


if __name__ == "__main__":
    sys.exit(main())
