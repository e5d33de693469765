"""`prefloss.integrations.torchmetrics.PreferenceStats`: as a metric, in Lightning, and over two processes."""

from __future__ import annotations

import doctest
import importlib
import math
import sys

import pytest
import torch

import prefloss

clients = pytest.mark.clients
pytestmark = pytest.mark.filterwarnings("default")  # what torchmetrics and Lightning warn of is theirs


def test_without_torchmetrics_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "prefloss.integrations.torchmetrics", raising=False)
    says = r'needs torchmetrics, which is not installed: pip install "prefloss\[torchmetrics\]"'
    with pytest.raises(ImportError, match=says):
        importlib.import_module("prefloss.integrations.torchmetrics")


@pytest.fixture(scope="module")
def metric():
    return importlib.import_module("prefloss.integrations.torchmetrics").PreferenceStats


def batches(count=3):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(2, size, generator=generator) for size in (5, 1, 8)[:count]]


def expected(given, **options):
    return prefloss.bradley_terry_loss(*torch.cat(given, 1), **options, return_stats=True)[1].as_dict()


def numbers(found):
    return {name: value.item() for name, value in found.items()}


@clients
def test_updates_add_up_to_all_pairs(metric):
    stats = metric(beta=0.5, label_smoothing=0.1)
    for chosen, rejected in batches():
        stats.update(chosen, rejected)
    found = stats.compute()
    assert numbers(found) == pytest.approx(expected(batches(), beta=0.5, label_smoothing=0.1), rel=1e-12)
    assert {value.dtype for value in found.values()} == {torch.float64}
    assert not stats.sums.requires_grad


@clients
def test_forward_gives_the_batch_and_adds_it(metric):
    stats = metric()
    for batch in batches():
        assert numbers(stats(*batch)) == pytest.approx(expected([batch]), rel=1e-12, nan_ok=True)
    assert numbers(stats.compute()) == pytest.approx(expected(batches()), rel=1e-12)


@clients
def test_reset_merge_and_state(metric):
    first, second = metric(), metric()
    first.update(*batches()[0])
    second.update(*batches()[1])
    second.update(*batches()[2])
    first.merge_state(second)
    assert numbers(first.compute()) == pytest.approx(expected(batches()), rel=1e-12)
    first.reset()
    assert first.sums.tolist() == prefloss.PairStats.zero().sums.tolist()
    first.update(*batches()[0])
    assert first.compute()["count"].item() == 5
    third = metric()
    third.persistent(True)
    third.load_state_dict({"sums": second.sums})
    assert third.sums.tolist() == second.sums.tolist()


@clients
def test_the_statistics_of_a_training_step_are_taken_as_they_are(metric):
    stats = metric()
    for chosen, rejected in batches():
        loss, its = prefloss.bradley_terry_loss(chosen.requires_grad_(), rejected, return_stats=True)
        stats.update(its)
        loss.backward()
    assert numbers(stats.compute()) == pytest.approx(expected(batches()), rel=1e-12)
    with pytest.raises(TypeError, match="rejected, weight must not be given beside PairStats"):
        stats.update(its, rejected, weight=torch.ones(8))
    with pytest.raises(TypeError, match=r"rejected must be a torch.Tensor of rewards, got None"):
        stats.update(chosen)


@clients
def test_nothing_of_no_pairs_and_of_nan(metric):
    stats = metric()
    stats.update(torch.empty(0), torch.empty(0))
    found = stats.compute()
    assert found["count"].item() == 0
    assert math.isnan(found["loss"].item())
    stats.update(torch.tensor([math.nan, 1.0]), torch.zeros(2), weight=torch.tensor([False, True]))
    assert stats.compute()["chosen_mean"].item() == 1.0


@clients
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beta": math.nan}, "beta must be a finite number, got nan"),
        ({"label_smoothing": 0.7}, "label_smoothing must be a number in"),
        ({"label_smoothing": 0.1, "flip_rate": 0.1}, "flip_rate and label_smoothing cannot both be given"),
    ],
)
def test_options_are_checked_when_the_metric_is_made(options, says, metric):
    with pytest.raises(ValueError, match=says):
        metric(**options)


@clients
def test_an_update_reads_nothing_from_the_device(metric):
    """Fake tensors have no values to be read."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    with FakeTensorMode():
        stats = metric()
        stats.update(torch.ones(3), torch.ones(3), weight=torch.ones(3))
        with pytest.raises(DataDependentOutputException):
            stats.compute()


@clients
def test_in_a_collection_names_have_its_prefix(metric):
    from torchmetrics import MetricCollection

    collection = MetricCollection({"pairs": metric()}, prefix="val/")
    collection.update(*batches()[0])
    assert collection.compute()["val/accuracy"].item() == expected(batches()[:1])["accuracy"]


@clients
@pytest.mark.parametrize("in_step", [False, True])
def test_a_lightning_module_logs_it(in_step, metric, tmp_path):
    lightning = importlib.import_module("lightning")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.scorer = torch.nn.Linear(3, 1)
            self.train_stats, self.stats = metric(), metric()

        def training_step(self, batch, index):
            loss, stats = prefloss.bradley_terry_loss(*self.scorer(batch).squeeze(-1).T, return_stats=True)
            if in_step:
                self.train_stats.update(stats)
                self.log("margin", self.train_stats.compute()["mean_margin"], on_step=True, on_epoch=False)
            return loss

        def validation_step(self, batch, index):
            self.stats.update(*self.scorer(batch).squeeze(-1).T)

        def on_validation_epoch_end(self):
            self.log_dict({f"val/{name}": value for name, value in self.stats.compute().items()})
            self.stats.reset()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    features = torch.randn(11, 2, 3)  # two responses a pair
    loader = torch.utils.data.DataLoader(features, batch_size=4)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=1,
    )  # fmt: skip
    model = Model()
    trainer.fit(model, loader, loader)
    its = trainer.callback_metrics
    with torch.no_grad():
        rewards = model.scorer(features).squeeze(-1).T
    loss = prefloss.bradley_terry_loss(*rewards, return_stats=True)[1].as_dict()
    assert its["val/count"].item() == 11  # not those of the sanity check, nor of the first epoch
    for name in ("loss", "standard_error", "accuracy", "max_reward"):
        assert its[f"val/{name}"].item() == pytest.approx(loss[name], rel=1e-5)
    assert ("margin" in its) is in_step


def of_a_rank(rank, folder, given):
    """Each process has its batches, the second none at first; the metric is told nothing of processes."""
    from prefloss.integrations.torchmetrics import PreferenceStats

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    stats = PreferenceStats()
    found = []
    for epoch in ([given[:1], []], [given[1:2], given[2:]]):
        for chosen, rejected in epoch[rank]:
            stats.update(chosen, rejected)
        found.append(numbers(stats.compute()))
    stats.update(*given[0])
    found.append(numbers(stats.compute()))
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@clients
def test_two_processes_compute_what_one_does(metric, tmp_path):
    torch.multiprocessing.spawn(of_a_rank, (str(tmp_path), batches()), nprocs=2)
    given = batches()
    every = [expected(given[:1]), expected(given), expected([*given, given[0], given[0]])]
    for rank in range(2):
        for found, whole in zip(torch.load(tmp_path / f"{rank}.pt"), every, strict=True):
            assert found == pytest.approx(whole, rel=1e-12, nan_ok=True)


@clients
def test_the_documentation_s_example_gives_what_it_says(metric):
    assert doctest.testmod(sys.modules[metric.__module__]).failed == 0
