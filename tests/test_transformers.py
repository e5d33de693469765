"""`prefloss.integrations.transformers.compute_loss` in the real Trainer: a step of micro-batches is that of all their pairs."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from replaced_lines import sections
from tiny_reward_model import PAD, of_two_processes, pairs, reward_model

from prefloss.integrations.transformers import compute_loss

clients = pytest.mark.clients
pytestmark = pytest.mark.filterwarnings("default")  # what transformers and its own packages warn of is theirs


def collated(rows, layout="halves", labels=True):
    """The token ids of all responses, padded, and a label a pair."""
    ids = [[torch.tensor(row[f"{side}_ids"]) for row in rows] for side in ("chosen", "rejected")]
    each = [*ids[0], *ids[1]] if layout == "halves" else [one for pair in zip(*ids, strict=True) for one in pair]
    padded = torch.nn.utils.rnn.pad_sequence(each, batch_first=True, padding_value=PAD)
    batch = {"input_ids": padded, "attention_mask": (padded != PAD).long()}
    return batch | ({"labels": torch.tensor([row.get("label", 1) for row in rows])} if labels else {})


def trainer(folder, rows, function=compute_loss, collator=collated, model=None, **config):
    from transformers import Trainer, TrainingArguments

    plain = {
        **{"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "optim": "sgd"},
        **{"learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "seed": 3, "logging_steps": 1},
        **{"num_train_epochs": 1, "remove_unused_columns": False, "per_device_train_batch_size": 4},
    }
    return Trainer(
        model=reward_model() if model is None else model,
        args=TrainingArguments(output_dir=str(folder), **plain | config),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collator,
        compute_loss_func=function,
    )


def weights(trained):
    return torch.cat([each.detach().flatten() for each in trained.model.parameters()])


def logged(trained, name):
    return [each[name] for each in trained.state.log_history if name in each]


def stepped(rows, layout="halves", **options):
    """The weights after a step of gradient descent by the composed loss of all pairs, and that loss."""
    model = reward_model()
    batch = collated(rows, layout)
    labels = batch.pop("labels")
    rewards = model(**batch).logits.squeeze(-1)
    chosen, rejected = rewards.chunk(2) if layout == "halves" else (rewards[0::2], rewards[1::2])
    kept = labels != -100
    z, s = (chosen - rejected)[kept], options.get("label_smoothing", 0.0)
    target = labels[kept] * (1 - 2 * s) + s
    loss = -(target * F.logsigmoid(z) + (1 - target) * F.logsigmoid(-z)).mean()
    loss = loss + options.get("center_rewards_coefficient", 0.0) * (chosen + rejected)[kept].square().mean()
    loss.backward()
    with torch.no_grad():
        for each in model.parameters():
            each -= 0.05 * each.grad
    return torch.cat([each.detach().flatten() for each in model.parameters()]), loss.item()


LABELS = {"ones": [1], "both": [1, 0], "ignored": [1, -100, 0, 1, -100], "probabilities": [0.5, 1.0, 0.25]}


@clients
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("layout", ["halves", "interleaved"])
def test_a_step_of_unequal_micro_batches_is_that_of_all_its_pairs(labels, layout, tmp_path):
    """13 pairs: 4, 4, 4 and 1."""
    rows = [row | {"label": LABELS[labels][place % len(LABELS[labels])]} for place, row in enumerate(pairs(13, seed=2))]
    options = {"label_smoothing": 0.1, "center_rewards_coefficient": 0.05}
    function = functools.partial(compute_loss, layout=layout, **options)
    made = trainer(tmp_path, rows, function, functools.partial(collated, layout=layout), gradient_accumulation_steps=4)
    made.train()
    assert made.state.global_step == 1
    expected, loss = stepped(rows, layout, **options)
    assert logged(made, "loss") == pytest.approx([loss], rel=1e-5)
    torch.testing.assert_close(weights(made), expected, rtol=0, atol=1e-6)


@clients
def test_steps_and_the_end_of_an_epoch(tmp_path):
    """Of 23 pairs: a step of 4 + 4 + 4, and one of 4 + 4 + 3; and again."""
    accumulated, whole = (
        trainer(tmp_path, pairs(23), num_train_epochs=2, **config)
        for config in ({"gradient_accumulation_steps": 3}, {"per_device_train_batch_size": 12})
    )
    for each in (accumulated, whole):
        each.train()
    assert logged(accumulated, "loss") == pytest.approx(logged(whole, "loss"), rel=1e-5)
    assert len(logged(whole, "loss")) == 4
    torch.testing.assert_close(weights(accumulated), weights(whole), rtol=0, atol=1e-6)


@clients
def test_the_page_s_subclass_and_its_function_train_alike(tmp_path):
    """The two blocks of docs/replace_your_line.md, with a batch a step: there is no difference of what is averaged."""
    trained = []
    for code in sections()["transformers"]:
        args = trainer(tmp_path, pairs(16)).args
        names = {"model": reward_model(), "args": args, "rows": pairs(16), "torch": torch, "F": F}
        space = names | {"collate": functools.partial(collated, labels=False)}
        exec(code, space)
        space["trainer"].train()
        trained.append(space["trainer"])
    theirs, ours = trained
    assert logged(ours, "loss") == pytest.approx(logged(theirs, "loss"), rel=1e-5)
    assert len(logged(ours, "loss")) == 4
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=0, atol=1e-6)


@clients
def test_evaluation_gives_the_mean_over_all_pairs(tmp_path):
    made = trainer(tmp_path, pairs(10), per_device_eval_batch_size=4)
    assert made.evaluate()["eval_loss"] == pytest.approx(stepped(pairs(10))[1], rel=1e-5)


RANK = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_transformers import *
made = trainer(sys.argv[2], pairs(22), per_device_train_batch_size=3, gradient_accumulation_steps=2,
               ddp_backend="gloo", accelerator_config={"even_batches": False})
made.train()
if made.accelerator.is_main_process:
    print("FOUND" + json.dumps([logged(made, "loss"), weights(made).tolist()]))
"""


@clients
def test_two_processes_are_one_of_twice_the_batch(tmp_path):
    """The second step of 22 pairs has micro-batches of 3 and 3 in one process, 3 and 1 in the other."""
    losses, trained = of_two_processes(RANK, str(tmp_path))
    whole = trainer(tmp_path, pairs(22), per_device_train_batch_size=12)
    whole.train()
    assert losses == pytest.approx(logged(whole, "loss"), rel=1e-5)
    assert trained == pytest.approx(weights(whole).tolist(), abs=1e-6)


@clients
def test_a_mean_over_each_micro_batch_is_the_trap_that_this_avoids(tmp_path):
    """What Trainer does with a function that does not divide: so the test above can tell."""

    def trap(outputs, labels, num_items_in_batch=None):
        return compute_loss(outputs, labels, len(labels))

    made = trainer(tmp_path, pairs(16), trap, gradient_accumulation_steps=4)
    made.train()
    assert logged(made, "loss") == pytest.approx([4 * stepped(pairs(16))[1]], rel=1e-5)


@clients
def test_without_labels_training_stops_with_the_reason(tmp_path):
    made = trainer(tmp_path, pairs(8), collator=functools.partial(collated, labels=False))
    with pytest.raises(ValueError, match=r"labels must be in each batch, one a pair, got None: .* torch.ones\(B\)"):
        made.train()


@clients
def test_a_model_that_returns_tuples(tmp_path):
    """Its first entry is the logits, as Trainer keeps the labels from it."""
    model = reward_model()
    forward = model.forward
    model.forward = lambda **inputs: forward(**inputs).to_tuple()
    made = trainer(tmp_path, pairs(13), model=model, gradient_accumulation_steps=4)
    made.train()
    torch.testing.assert_close(weights(made), stepped(pairs(13))[0], rtol=0, atol=1e-6)


REWARDS = torch.zeros(4)
REFUSED = {
    "two classes": ({"outputs": (torch.zeros(4, 2),)}, ValueError, r"one output a response, .* got \(4, 2\)"),
    "a label a response": ({"labels": torch.ones(4)}, ValueError, r"one entry a pair, shape \(2,\) .* got \(4,\)"),
    "uncounted": (
        {"outputs": (REWARDS.clone().requires_grad_(),), "num_items_in_batch": None},
        ValueError,
        "num_items_in_batch must be given while training, got None",
    ),
    "replicas": ({"num_items_in_batch": torch.ones(2, 1)}, NotImplementedError, "torchrun"),
    "layout": ({"layout": "pairs"}, ValueError, "layout must be one of"),
    "odd": ({"outputs": (torch.zeros(5),)}, ValueError, "even number of entries"),
    "flips": ({"flip_rate": 0.5}, ValueError, "flip_rate"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    given, error, says = REFUSED[name]
    with pytest.raises(error, match=says):
        compute_loss(**{"outputs": (REWARDS,), "labels": torch.ones(2), "num_items_in_batch": 2} | given)


def test_without_gradients_the_count_may_be_missing():
    assert compute_loss((REWARDS,), torch.ones(2)).item() == pytest.approx(0.6931472)


def test_a_pair_that_does_not_count_may_be_nan():
    rewards = torch.tensor([1.0, float("nan"), 0.0, 3.0], requires_grad=True)
    loss = compute_loss((rewards,), torch.tensor([1, -100]), torch.tensor(1))
    loss.backward()
    assert loss.item() == pytest.approx(F.softplus(torch.tensor(-1.0)).item())
    assert rewards.grad[1::2].tolist() == [0.0, 0.0]


def test_the_documentation_s_example_gives_what_it_says():
    import doctest
    import sys

    assert doctest.testmod(sys.modules[compute_loss.__module__]).failed == 0
