import pytest
import torch
import transformers

from analysis import UserError
from multilora import base, delta, train
from multilora.tasks import encoding
from multilora.tasks.builtin import suite
from multilora.tasks.encoding import IGNORED, Encoded
from multilora.training import rows, trainer
from multilora.training.settings import TrainSettings


@pytest.fixture(scope="module")
def tokenizer():
    return base.build_tokenizer(64)


def arguments(tmp_path, **given):
    return trainer.TrainArguments(
        **{"output_dir": str(tmp_path), "max_steps": 10, "use_cpu": True, **given}
    )


@pytest.fixture(scope="module")
def examples():
    return suite.load("train", 40)


@pytest.fixture(scope="module")
def encoded(tokenizer, examples):
    return encoding.encode_all(tokenizer, examples, 64)


def model_of(tokenizer, cls=None):
    torch.manual_seed(0)
    settings = base.BaseSettings(width=32, layers=2, heads=2, mlp=48)
    return (cls or base.build_model)(settings, tokenizer).eval()


def test_a_neighbour_in_a_row_changes_no_logit(tokenizer, encoded):
    """An example has the logits that it has alone, whoever stands before and behind it."""
    model = model_of(tokenizer)
    one, two, three, four = encoded[0], encoded[50], encoded[300], encoded[400]
    batch = encoding.collate([[one, two, three], [four, two], [two]], tokenizer.pad_token_id)
    del batch["labels"]
    with torch.no_grad():
        packed = model(**batch, use_cache=False).logits
        n = len(two.ids)
        alone = model(torch.tensor([two.ids])).logits[0]
        starts = (len(one.ids), len(four.ids), 0)
        for row, start in enumerate(starts):
            got = packed[row, start : start + n]
            torch.testing.assert_close(got, alone, rtol=0, atol=1e-5)
        # Without positions that start anew it sees its neighbours.
        leaking = model(batch["input_ids"]).logits[1, len(four.ids) : len(four.ids) + n]
    assert (leaking - alone).abs().max() > 1e-3


def test_labels_of_a_packed_row_are_those_of_its_examples(tokenizer, encoded):
    few = encoded[:3]
    packed = encoding.collate([few], tokenizer.pad_token_id)
    apart = encoding.collate(few, tokenizer.pad_token_id)
    kept, own = (b["labels"][b["labels"] != IGNORED] for b in (packed, apart))
    assert torch.equal(kept, own)
    # The first token of an example is never predicted by its neighbour.
    starts = packed["position_ids"][0] == 0
    assert int(starts.sum()) == 3
    assert (packed["labels"][0][starts] == IGNORED).all()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_packed_training_has_the_loss_of_its_examples(tokenizer, encoded, accumulated):
    """The mean over labelled tokens, as it is over the same examples one a row."""
    model = model_of(tokenizer)
    few = encoded[:6]
    with torch.no_grad():
        packed = encoding.collate([few[:3], few[3:]], 0)
        own = encoding.collate(few, 0)
        losses = [float(model(**b, use_cache=False).loss) for b in (packed, own)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


class Leaking(torch.nn.Module):
    """A model that does not look at positions."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, input_ids, position_ids=None, **kwargs):
        return self.inner(input_ids, **kwargs)


def test_a_model_that_lets_neighbours_be_seen_is_refused(tokenizer):
    model = model_of(tokenizer)
    rows.check_packing(model, len(tokenizer))
    with pytest.raises(ValueError, match="lets an example see its neighbour"):
        rows.check_packing(Leaking(model), len(tokenizer))


def test_packing_is_refused_where_the_model_cannot_keep_examples_apart(tokenizer):
    config = transformers.OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64,
        vocab_size=511, word_embed_proj_dim=32,
    )  # fmt: skip
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="OPTForCausalLM lets an example see"):
        rows.check_packing(transformers.OPTForCausalLM(config), 511)


def test_the_check_leaves_the_model_in_its_mode(tokenizer):
    model = model_of(tokenizer).train()
    rows.check_packing(model, len(tokenizer))
    assert model.training


def test_rows_are_the_same_for_any_number_of_processes_and_workers(tmp_path, encoded, examples):
    """The order depends on the rows of a step, not on who computes them."""
    names = [e.task for e in examples]
    one = rows.arrange(encoded, names, arguments(tmp_path), 64)
    split = arguments(
        tmp_path,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=4,
        dataloader_num_workers=2,
    )
    assert rows.arrange(encoded, names, split, 64).rows == one.rows
    assert rows.arrange(encoded, names, arguments(tmp_path, seed=7), 64).rows != one.rows
    seeded = arguments(tmp_path, seed=7, data_seed=42)
    assert rows.arrange(encoded, names, seeded, 64).rows == one.rows  # 42 is the default seed


@pytest.mark.parametrize("packing", [False, True])
def test_steps_are_as_many_as_asked_for(tmp_path, encoded, examples, packing):
    names = [e.task for e in examples]
    made = rows.arrange(encoded, names, arguments(tmp_path), 64, packing=packing)
    assert len(made.rows) == 10 * 32
    assert made.steps(arguments(tmp_path)) == 10
    by_epoch = arguments(tmp_path, max_steps=-1, num_train_epochs=2)
    made = rows.arrange(encoded, names, by_epoch, 64, packing=packing)
    flat = [e for row in made.rows for e in (row if packing else [row])]
    assert sorted(map(str, flat)) == sorted(map(str, [*encoded, *encoded]))


def test_packed_rows_are_nearly_full(tmp_path, encoded, examples):
    names = [e.task for e in examples]
    made = rows.arrange(encoded, names, arguments(tmp_path), 256, packing=True)
    widths = [sum(len(e.ids) for e in row) for row in made.rows]
    assert max(widths) <= 256
    assert sum(widths) / (256 * len(widths)) > 0.95
    assert made.real > 0.95


def test_packed_rows_come_in_random_order(tmp_path, encoded, examples):
    """Rows are packed longest first; the length says nothing about the step or the place."""
    names = [e.task for e in examples]
    made = rows.arrange(encoded, names, arguments(tmp_path, max_steps=6), 64, packing=True)
    longest = [max(len(e.ids) for e in row) for row in made.rows[:180]]  # of one window
    assert longest != sorted(longest, reverse=True)
    early, late = sum(longest[:90]), sum(longest[90:])
    unshuffled = sorted(longest)
    assert abs(early - late) < 0.25 * (sum(unshuffled[90:]) - sum(unshuffled[:90]))
    several = [row for row in made.rows if len({len(e.ids) for e in row}) > 1]
    first = sum(len(row[0].ids) == max(len(e.ids) for e in row) for row in several)
    assert len(several) > 100
    assert 0.2 < first / len(several) < 0.7


@pytest.mark.parametrize("mixture_of", ["proportional", "equal", "2", "0.5"])
def test_every_epoch_of_a_task_has_an_order_of_its_own(tmp_path, mixture_of):
    alike = [Encoded([i, 1, 2], 1) for i in range(16)]
    # One batch of rows of one length: bucketing leaves them in the order in which they are drawn.
    one_batch = arguments(tmp_path, max_steps=1, per_device_train_batch_size=160)
    made = rows.arrange(alike, ["a"] * 8 + ["b"] * 8, one_batch, 8, mixture_of=mixture_of)
    drawn = [row.ids[0] for row in made.rows]
    for task in (range(8), range(8, 16)):
        own = [i for i in drawn if i in task]
        epochs = [tuple(own[i : i + 8]) for i in range(0, len(own) - 7, 8)]
        assert len(epochs) > 5
        assert all(sorted(epoch) == list(task) for epoch in epochs)
        assert len(set(epochs)) == len(epochs)


def test_rows_of_a_batch_are_of_like_length_and_the_shortest_are_left_for_the_last(tmp_path):
    """Longest first: the incomplete batch at the end is the cheapest one."""
    different = [Encoded([1] * (n + 2), 1) for n in range(10)]
    epoch = arguments(tmp_path, max_steps=-1, num_train_epochs=1, per_device_train_batch_size=4)
    made = rows.arrange(different, ["a"] * 10, epoch, 16)
    widths = [len(row.ids) for row in made.rows]
    assert sorted((widths[:4], widths[4:8])) == [[7, 6, 5, 4], [11, 10, 9, 8]]
    assert widths[8:] == [3, 2]
    assert made.real == pytest.approx(65 / (4 * 7 + 4 * 11 + 2 * 3))


def test_epochs_too_short_for_a_row_are_refused(tmp_path):
    three = [Encoded([1, 2, 3], 1)] * 3
    for packing in (False, True):
        few = arguments(tmp_path, max_steps=-1, num_train_epochs=0.3)
        with pytest.raises(
            UserError, match=r"0\.3 of 3 .* makes 0 steps; .*epochs 0\.3334 or more"
        ):
            rows.arrange(three, ["a"] * 3, few, 8, packing=packing)
        least = arguments(tmp_path, max_steps=-1, num_train_epochs=0.3334)
        assert len(rows.arrange(three, ["a"] * 3, least, 8, packing=packing).rows) == 1


def test_rows_of_a_model_that_knows_tasks_hold_one_task(tmp_path, tokenizer, examples):
    tasks = list(suite.TASKS)
    told = encoding.encode_all(tokenizer, examples, 64, tasks)
    names = [e.task for e in examples]
    made = rows.arrange(told, names, arguments(tmp_path), 64, packing=True)
    assert all(len({e.task for e in row}) == 1 for row in made.rows)
    assert max(len(row) for row in made.rows) > 1
    batch = encoding.collate(made.rows[:8], 0)
    assert batch["multilora_task_ids"].tolist() == [row[0].task for row in made.rows[:8]]


def test_what_does_not_fit_is_counted(tmp_path):
    cut, whole = Encoded([1] * 8, 2, None, 3), Encoded([1] * 5, 2)
    made = rows.arrange([cut, None, whole, None], list("abcd"), arguments(tmp_path), 8)
    assert (made.cut, made.left_out) == (1, 2)
    assert [line.split()[0] for line in made.notes()] == ["1", "2"]
    assert rows.arrange([whole], ["a"], arguments(tmp_path), 8).notes() == []
    with pytest.raises(ValueError, match="none of 2 training examples fits 8 tokens"):
        rows.arrange([None, None], ["a", "b"], arguments(tmp_path), 8)


def test_an_equal_mixture_takes_as_many_of_a_small_task(tmp_path):
    few = [Encoded([i, 1, 2], 1) for i in range(10)]
    many = [Encoded([i, 1, 2], 1) for i in range(10, 1000)]
    names = ["few"] * 10 + ["many"] * 990
    drawn = rows.arrange([*few, *many], names, arguments(tmp_path), 8, mixture_of="equal").rows
    share = sum(row.ids[0] < 10 for row in drawn) / len(drawn)
    assert share == pytest.approx(0.5, abs=0.12)
    plain = rows.arrange([*few, *many], names, arguments(tmp_path), 8).rows
    assert sum(row.ids[0] < 10 for row in plain) <= 10


@pytest.mark.parametrize("method", ["multilora", "mtllora"])
def test_packed_runs_train_and_resume(method, tmp_path, tiny_base):
    """A packed run, cut off in the middle, ends with the same bits."""
    path = str(tiny_base)
    settings = TrainSettings(
        method=method, model=path, packing=True, mixture="2", per_task=20, per_task_scored=2, r=2
    )

    def run(out, callbacks=(), **given):
        given = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, **given}
        train.run(settings, arguments(out, **given), callbacks)
        return delta.hashes(out)

    whole = run(tmp_path / "whole")
    saved = {"save_strategy": "steps", "save_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", [StopAt(3)], **saved)
    assert run(tmp_path / "cut", **saved) == whole


class StopAt(transformers.TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt
