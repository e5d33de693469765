"""`prefloss.integrations.trl.RewardTrainer` and `dpo_loss` against TRL's own trainers, step by step on a tiny model."""

from __future__ import annotations

import importlib
import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from tiny_reward_model import of_two_processes, pairs, reward_model, sizes, tokenizer

import prefloss

clients = pytest.mark.clients
pytestmark = pytest.mark.filterwarnings("default")  # what TRL and its own packages warn of is theirs
METRICS = ("accuracy", "margin", "min_reward", "mean_reward", "max_reward")
NEW = ("loss_standard_error", "tie_rate")


def test_without_trl_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "prefloss.integrations.trl", raising=False)
    with pytest.raises(ImportError, match=r'needs trl, which is not installed: pip install "prefloss\[trl\]"'):
        importlib.import_module("prefloss.integrations.trl")


@pytest.fixture(scope="module")
def trl():
    return importlib.import_module("trl")


@pytest.fixture(scope="module")
def ours():
    return importlib.import_module("prefloss.integrations.trl")


PLAIN = {
    **{"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True},
    **{"save_strategy": "no", "optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "seed": 3},
    **{"per_device_train_batch_size": 4, "logging_steps": 1, "num_train_epochs": 1, "max_grad_norm": 0.0},
}


def trainer(kind, folder, rows, model=None, evaluation=None, **config):
    from datasets import Dataset
    from trl import RewardConfig

    return kind(
        model=reward_model() if model is None else model,
        args=RewardConfig(output_dir=str(folder), **PLAIN | config),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=None if evaluation is None else Dataset.from_list(evaluation),
        processing_class=tokenizer(),
    )


def weights(trained):
    return torch.cat([each.detach().float().flatten() for each in trained.model.parameters()])


def logged(trained, name):
    return [each[name] for each in trained.state.log_history if name in each]


CONFIGURATIONS = {
    "plain": {},
    "margin": {"margin": True},
    "centring": {"center_rewards_coefficient": 0.01},
    "accumulation": {"gradient_accumulation_steps": 3},
    "everything": {
        **{"margin": True, "center_rewards_coefficient": 0.1, "gradient_accumulation_steps": 2},
        **{"gradient_checkpointing": True, "dataloader_drop_last": True, "weight_decay": 0.1, "max_grad_norm": 1.0},
    },
    "bf16": {"bf16": True},
}


@clients
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_each_step_is_trl_s_where_micro_batches_are_equal(name, trl, ours, tmp_path):
    """24 pairs are six micro-batches of 4: with accumulation over 3, two steps."""
    config = {key: value for key, value in CONFIGURATIONS[name].items() if key != "margin"}
    rows = pairs(24, margin="margin" in CONFIGURATIONS[name])
    both = [trainer(kind, tmp_path, rows, **config) for kind in (trl.RewardTrainer, ours.RewardTrainer)]
    before = weights(both[0])
    for each in both:
        each.train()
    # bfloat16 has 8 bits, in which the gradients are rounded; float32 24, and sums of some dozen numbers.
    rounding = {"rel": 2e-2, "abs": 1e-3} if name == "bf16" else {"rel": 1e-5, "abs": 1e-6}
    for metric in ("loss", "grad_norm", "mean_reward"):
        assert logged(both[1], metric) == pytest.approx(logged(both[0], metric), **rounding)
    assert logged(both[1], "num_tokens") == logged(both[0], "num_tokens")
    torch.testing.assert_close(weights(both[1]), weights(both[0]), rtol=0, atol=rounding["abs"])
    assert (weights(both[1]) - before).abs().max() > 0.01
    if "gradient_accumulation_steps" not in config:
        for metric in METRICS:
            assert logged(both[1], metric) == pytest.approx(logged(both[0], metric), **rounding)
    assert {len(logged(both[1], metric)) for metric in (*METRICS, *NEW)} == {len(logged(both[1], "loss"))}


@clients
def test_a_step_of_unequal_micro_batches_is_that_of_all_its_pairs(trl, ours, tmp_path):
    """13 pairs: 4, 4, 4 and 1, which TRL gives the weight of 4."""
    rows = pairs(13, margin=True)
    options = {"center_rewards_coefficient": 0.1}
    whole = trainer(trl.RewardTrainer, tmp_path, rows, per_device_train_batch_size=13, **options)
    both = [
        trainer(kind, tmp_path, rows, gradient_accumulation_steps=4, **options)
        for kind in (trl.RewardTrainer, ours.RewardTrainer)
    ]
    for each in (whole, *both):
        each.train()
        assert each.state.global_step == 1
    torch.testing.assert_close(weights(both[1]), weights(whole), rtol=0, atol=1e-6)
    assert logged(both[1], "loss") == pytest.approx(logged(whole, "loss"), rel=1e-5)
    for metric in METRICS:
        assert logged(both[1], metric) == pytest.approx(logged(whole, metric), rel=1e-5)
    assert (weights(both[0]) - weights(whole)).abs().max() > 1e-4


@clients
def test_the_last_step_of_an_epoch_may_have_fewer_micro_batches(trl, ours, tmp_path):
    """20 pairs are five micro-batches: steps of 3 and 2, twice."""
    both = [
        trainer(kind, tmp_path, pairs(20), gradient_accumulation_steps=3, num_train_epochs=2)
        for kind in (trl.RewardTrainer, ours.RewardTrainer)
    ]
    for each in both:
        each.train()
    assert logged(both[1], "loss") == pytest.approx(logged(both[0], "loss"), rel=1e-5)
    torch.testing.assert_close(weights(both[1]), weights(both[0]), rtol=0, atol=1e-6)


def test_totals_of_any_number_of_micro_batches():
    """They are added up by halves, so that odd numbers are to be looked at."""
    from prefloss.sums import total_of

    every = [
        prefloss.bradley_terry_loss(torch.randn(3), torch.randn(3), weight=torch.rand(3), return_stats=True)[1]
        for _ in range(7)
    ]
    for count in range(8):
        expected = sum(every[:count], prefloss.PairStats.zero()).as_dict()
        sums = [each.sums for each in every[:count]]
        total = total_of(torch.stack(sums) if sums else torch.empty(0, len(prefloss.stats.Sum)))
        assert prefloss.PairStats(total).as_dict() == pytest.approx(expected, rel=1e-12, nan_ok=True)


@clients
@pytest.mark.parametrize("held", [2, 64])
def test_metrics_are_of_all_pairs_since_the_last_log(held, ours, tmp_path, monkeypatch):
    """Seven steps, logged after the third and the sixth; the seventh is in the summary at the end."""
    monkeypatch.setattr(ours, "HELD", held)
    rows = pairs(26)
    rows[1]["rejected_ids"] = rows[1]["chosen_ids"]
    made = trainer(ours.RewardTrainer, tmp_path, rows, logging_steps=3)
    seen, compute = [], made.compute_loss

    def recorded(model, inputs, **options):
        loss, outputs = compute(model, inputs, return_outputs=True, **options)
        seen.append(outputs.logits.detach().flatten().chunk(2))
        return loss

    made.compute_loss = recorded
    made.train()
    assert len(seen) == 7
    history = [each for each in made.state.log_history if "accuracy" in each]
    assert [each["step"] for each in history] == [3, 6, 7]
    for each, part in zip(history, (seen[:3], seen[3:6], seen[6:]), strict=True):
        chosen, rejected = (torch.cat(rewards).double() for rewards in zip(*part, strict=True))
        losses = F.softplus(rejected - chosen)
        expected = {
            "accuracy": (chosen > rejected).double().mean(),
            "tie_rate": (chosen == rejected).double().mean(),
            "margin": (chosen - rejected).mean(),
            "loss_standard_error": losses.std() / math.sqrt(len(losses)),
            "min_reward": torch.stack([chosen, rejected]).min(),
            "mean_reward": torch.stack([chosen, rejected]).mean(),
            "max_reward": torch.stack([chosen, rejected]).max(),
        }
        assert {name: each[name] for name in expected} == pytest.approx(
            {name: value.item() for name, value in expected.items()}, rel=1e-5
        )
    assert sum(each["tie_rate"] for each in history) > 0
    assert not made._sums["train"]


@clients
def test_evaluations_are_trl_s_and_leave_the_training_s_metrics_alone(trl, ours, tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 3, "per_device_eval_batch_size": 4}
    both = [
        trainer(kind, tmp_path, pairs(24), evaluation=pairs(10, seed=5, margin=True), **options)
        for kind in (trl.RewardTrainer, ours.RewardTrainer)
    ]
    for each in both:
        each.train()
    assert logged(both[1], "eval_loss") == pytest.approx(logged(both[0], "eval_loss"), rel=1e-5)
    for name in ("eval_num_tokens", "num_tokens"):
        assert len(logged(both[1], name)) == len(logged(both[0], name))
    assert logged(both[1], "num_tokens") == logged(both[0], "num_tokens")
    # TRL's are of the micro-batches 4, 4 and 2, ours of the ten pairs.
    last = both[1].evaluate()
    assert last["eval_loss"] == pytest.approx(both[0].evaluate()["eval_loss"], rel=1e-5)
    with torch.no_grad():
        rows = pairs(10, seed=5)
        rewards = [
            both[1].model(torch.tensor([row[side]])).logits.item()
            for side in ("chosen_ids", "rejected_ids")
            for row in rows
        ]
    assert last["eval_min_reward"] == pytest.approx(min(rewards), rel=1e-5)
    assert last["eval_mean_reward"] == pytest.approx(sum(rewards) / 20, rel=1e-4, abs=1e-6)
    accuracy = sum(a > b for a, b in zip(rewards[:10], rewards[10:], strict=True)) / 10
    assert last["eval_accuracy"] == pytest.approx(accuracy)
    assert last["eval_loss_standard_error"] > 0


@clients
def test_a_checkpoint_goes_on_where_it_was(ours, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    first = trainer(ours.RewardTrainer, tmp_path, pairs(20), **options)
    first.train()
    again = trainer(ours.RewardTrainer, tmp_path, pairs(20), model=reward_model(seed=9), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(weights(again), weights(first), rtol=0, atol=1e-6)


@clients
def test_a_micro_batch_reads_nothing_from_the_device(trl, ours, tmp_path):
    """Fake tensors have no values to be read; TRL's own loss shows that they tell."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    both = [trainer(kind, tmp_path, pairs(8)) for kind in (trl.RewardTrainer, ours.RewardTrainer)]
    with FakeTensorMode():
        batch = {"attention_mask": torch.ones(8, 5), "margin": torch.ones(4)}
        outputs = types.SimpleNamespace(logits=torch.zeros(8, 1, requires_grad=True))
        for each in both:
            each.model.train()
        loss = both[1].compute_loss(lambda **_: outputs, dict(batch), num_items_in_batch=torch.tensor(16.0))
        loss.backward()
        with pytest.raises(DataDependentOutputException):
            both[0].compute_loss(lambda **_: outputs, dict(batch))
    assert len(both[1]._sums["train"]) == 1


@clients
def test_models_that_return_tuples_or_are_wrapped(ours, tmp_path):
    made = trainer(ours.RewardTrainer, tmp_path, pairs(8))
    batch = made.data_collator(pairs(8))

    class Wrapped(torch.nn.Module):
        def __init__(self, model, as_tuple):
            super().__init__()
            self.module, self.as_tuple = model, as_tuple

        def forward(self, **inputs):
            outputs = self.module(**inputs)
            return outputs.to_tuple() if self.as_tuple else outputs

    loss, outputs = made.compute_loss(made.model, dict(batch), return_outputs=True)
    assert outputs.logits.shape == (16, 1)
    assert torch.equal(made.compute_loss(Wrapped(made.model, False), dict(batch)), loss)
    its, as_tuple = made.compute_loss(Wrapped(made.model, True), dict(batch), return_outputs=True)
    assert torch.equal(its, loss)
    assert torch.equal(as_tuple[0], loss)  # Trainer takes the rest for what the model said
    assert torch.equal(as_tuple[1], outputs.logits)


@clients
def test_a_reward_that_is_nan_is_seen(ours, tmp_path):
    model = reward_model()
    with torch.no_grad():
        model.score.weight.fill_(math.nan)
    made = trainer(ours.RewardTrainer, tmp_path, pairs(4), model=model, logging_nan_inf_filter=False)
    made.train()
    assert math.isnan(logged(made, "loss")[0])
    assert math.isnan(logged(made, "mean_reward")[0])


@clients
def test_what_users_log_is_passed_on_and_takes_nothing(ours, tmp_path):
    made = trainer(ours.RewardTrainer, tmp_path, pairs(8))
    made.model.train()
    made.compute_loss(made.model, made.data_collator(pairs(8)))
    made.log({"mine": 1.0})
    assert made.state.log_history[-1]["mine"] == 1.0
    assert "accuracy" not in made.state.log_history[-1]
    assert len(made._sums["train"]) == 1


@clients
def test_text_is_tokenized_and_a_compiled_model_trains(trl, ours, tmp_path):
    draw = pairs(8, margin=True)
    rows = [
        {"chosen": " ".join(map(str, row["chosen_ids"])), "rejected": " ".join(map(str, row["rejected_ids"]))}
        for row in draw
    ]
    plain = trainer(trl.RewardTrainer, tmp_path, rows)
    compiled = trainer(ours.RewardTrainer, tmp_path, rows, torch_compile=True, torch_compile_backend="eager")
    for each in (plain, compiled):
        each.train()
    assert logged(compiled, "loss") == pytest.approx(logged(plain, "loss"), rel=1e-5)


# A process of torch.distributed on the CPU: both trainers, and what they logged.
RANK = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
from test_trl import *
found = {}
for module in ("trl", "prefloss.integrations.trl"):
    kind = importlib.import_module(module).RewardTrainer
    for name, count in (("equal", 24), ("unequal", 22)):
        if (module, name) == ("trl", "unequal"):
            continue  # it gathers rewards of unequal number, which gloo refuses
        made = trainer(kind, sys.argv[2], pairs(count, margin=True), per_device_train_batch_size=3,
                       gradient_accumulation_steps=2, center_rewards_coefficient=0.1, ddp_backend="gloo",
                       accelerator_config={"even_batches": False})
        if module != "trl":
            if made.accelerator.is_main_process:  # it alone: nothing may be gathered
                made.log({"mine": 1.0})
        made.train()
        found[module, name] = {metric: logged(made, metric) for metric in ("loss", "num_tokens", *METRICS)}
        found[module, name]["weights"] = weights(made).tolist()
    made = trainer(kind, sys.argv[2], pairs(4), evaluation=pairs(5, seed=5, margin=True), per_device_eval_batch_size=2)
    found[module, "evaluation"] = made.evaluate()
if made.accelerator.is_main_process:
    print("FOUND" + json.dumps([[list(key), value] for key, value in found.items()]))
"""


@clients
def test_two_processes_are_one_of_twice_the_batch(ours, tmp_path):
    """The second step of 22 pairs has micro-batches of 3 and 3 in one process, 3 and 1 in the other."""
    said = of_two_processes(RANK, str(tmp_path))
    found = {tuple(key): value for key, value in said}
    for metric in ("loss", "num_tokens", "mean_reward", "weights"):
        theirs, its = found["trl", "equal"][metric], found["prefloss.integrations.trl", "equal"][metric]
        assert its == pytest.approx(theirs, rel=1e-5, abs=1e-6), metric
    # Two batches of 2 on each process: three of the eight pairs have been there before.
    one = trainer(ours.RewardTrainer, tmp_path, pairs(4), evaluation=pairs(5, seed=5, margin=True)).evaluate()
    for metric in (*METRICS, *NEW):
        its = found["prefloss.integrations.trl", "evaluation"][f"eval_{metric}"]
        assert its == pytest.approx(one[f"eval_{metric}"], rel=1e-5), metric
    theirs, its = (found[each, "evaluation"]["eval_loss"] for each in ("trl", "prefloss.integrations.trl"))
    assert its == pytest.approx(theirs, rel=1e-5)
    # One process of twice the batch, in whose steps of 12, 12 and 10 pairs nothing is accumulated.
    for name, count in (("equal", 24), ("unequal", 22)):
        rows = pairs(count, margin=True)
        whole = trainer(
            ours.RewardTrainer, tmp_path, rows, per_device_train_batch_size=12, center_rewards_coefficient=0.1
        )
        whole.train()
        its = found["prefloss.integrations.trl", name]
        assert its["loss"] == pytest.approx(logged(whole, "loss"), rel=1e-5), name
        for metric in ("num_tokens", *METRICS):
            assert its[metric] == pytest.approx(logged(whole, metric), rel=1e-5), (name, metric)
        assert its["weights"] == pytest.approx(weights(whole).tolist(), abs=1e-6), name


@clients
@pytest.mark.parametrize(
    ("loss_type", "smoothing", "options"),
    [("sigmoid", 0.0, {}), ("robust", 0.2, {"flip_rate": 0.2}), ("aot", 0.2, {"label_smoothing": 0.2})],
)
def test_dpo_loss_is_that_of_trl_s_dpo_trainer(loss_type, smoothing, options, trl, tmp_path):
    """TRL has label smoothing without "robust" for sorted pairs alone (aot): a single pair is sorted."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    policy, reference = (LlamaForCausalLM(LlamaConfig(**sizes())) for _ in range(2))
    count = 1 if loss_type == "aot" else 4
    rows = [
        {
            "prompt": "3 4 5",
            "chosen": " ".join(map(str, row["chosen_ids"])),
            "rejected": " ".join(map(str, row["rejected_ids"])),
        }
        for row in pairs(count)
    ]
    config = {name: value for name, value in PLAIN.items() if name != "per_device_train_batch_size"}
    args = trl.DPOConfig(output_dir=str(tmp_path), loss_type=loss_type, label_smoothing=smoothing, beta=0.3, **config)
    made = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    made.model.eval()
    batch = made.data_collator([made.train_dataset[index] for index in range(count)])
    theirs = made.compute_loss(made.model, dict(batch))

    def logps(model):
        ids, mask = batch["input_ids"], batch["completion_mask"][:, 1:]
        logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1]
        each = logits.log_softmax(-1).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
        return (each * mask).sum(1).chunk(2)

    with torch.no_grad():
        fixed = logps(made.ref_model)
    loss, stats = prefloss.dpo_loss(*logps(made.model), *fixed, beta=0.3, **options, return_stats=True)
    torch.testing.assert_close(loss, theirs.float(), rtol=1e-5, atol=1e-6)
    metrics = made._metrics["eval"]
    for ours, name in ((stats.chosen_mean, "chosen"), (stats.accuracy, "accuracies"), (stats.mean_margin, "margins")):
        assert ours == pytest.approx(metrics[f"rewards/{name}"][-1], rel=1e-4, abs=1e-5)
