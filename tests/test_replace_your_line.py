"""The lines of docs/replace_your_line.md: theirs and ours are run as the page has them, and compared by value and gradient."""

from __future__ import annotations

import importlib
import math
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from replaced_lines import INPUTS, PAGE, leaf, lines_of, sections, stand_ins

import prefloss

clients = pytest.mark.clients


def assert_the_same(heading, rtol=1e-5, atol=1e-6, **given):
    """Both blocks give one loss and the same gradients of the leaves among the names. The bounds are of float32 means."""
    names, results = INPUTS[heading]() | given, []
    for code in sections()[heading]:
        space = {"torch": torch, "F": F, "prefloss": prefloss, "math": math, **names}
        exec(compile(code, str(PAGE), "exec"), space)
        leaves = [each for each in names.values() if isinstance(each, torch.Tensor) and each.requires_grad]
        results.append([space["loss"].detach(), *torch.autograd.grad(space["loss"], leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one.to(other.dtype), rtol=rtol, atol=atol)
    assert results[0][0] > 0.1


def stand_in(monkeypatch, package):
    for name, module in stand_ins(package).items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def openrlhf(monkeypatch):
    stand_in(monkeypatch, "openrlhf")
    monkeypatch.delitem(sys.modules, "openrlhf.models.loss", raising=False)
    return importlib.import_module("openrlhf.models.loss")


@pytest.fixture
def allrank(monkeypatch):
    stand_in(monkeypatch, "allrank")
    return importlib.import_module("allrank.models.losses.rankNet")


# ---- The lines ----


def test_your_own_loop():
    assert_the_same("Your own loop")


def test_dpo():
    assert_the_same("DPO")


def test_lightning():
    module = INPUTS["Lightning"]()["self"]
    assert_the_same("Lightning", self=module)
    (stats,) = module.kept
    assert stats.accuracy == pytest.approx(module.logged["accuracy"].item())


def test_deepspeed_chat():
    assert_the_same("DeepSpeed-Chat")


@clients
def test_openrlhf(openrlhf):
    assert_the_same("OpenRLHF")
    assert_the_same("OpenRLHF", margin=None)
    logps = [leaf(30), leaf(30), torch.randn(30), torch.randn(30)]
    theirs, chosen_rewards, _ = openrlhf.DPOLoss(beta=0.4, label_smoothing=0.1)(*logps)
    loss, stats = prefloss.dpo_loss(*logps, beta=0.4, label_smoothing=0.1, return_stats=True)
    torch.testing.assert_close(loss, theirs)
    assert stats.chosen_mean == pytest.approx(chosen_rewards.mean().item(), rel=1e-5)


@clients
def test_recbole():
    assert_the_same("RecBole")


@clients
def test_recbole_s_loss_ends_at_23_and_ours_does_not():
    from recbole.model.loss import BPRLoss

    wrong, zero = torch.tensor([-40.0], requires_grad=True), torch.zeros(1)
    for loss, value, slope in ((BPRLoss(), 23.03, 0.0), (prefloss.BradleyTerryLoss(), 40.0, -1.0)):
        found = loss(wrong, zero)
        assert found.item() == pytest.approx(value, abs=0.01)
        assert torch.autograd.grad(found, wrong)[0].item() == pytest.approx(slope, abs=1e-6)


@clients
def test_allrank(allrank):
    assert_the_same("allRank")
    scores, whole = torch.randn(5, 12), torch.randint(0, 4, (5, 12)).float()
    ours = prefloss.bradley_terry_loss_grouped(scores, relevance=whole, average="pairs")
    torch.testing.assert_close(ours, allrank.rankNet(scores, whole))


@clients
@pytest.mark.filterwarnings("default")
def test_libauc():
    assert_the_same("LibAUC")
    from libauc.losses.auc import PairwiseAUCLoss

    scores, labels = torch.tensor([-100.0, 0.0]), torch.tensor([1, 0])
    assert PairwiseAUCLoss(surr_loss="logistic")(scores, labels).item() == math.inf
    assert prefloss.bradley_terry_loss_grouped(scores[None], relevance=labels[None]).item() == 100.0


@clients
@pytest.mark.filterwarnings("default")
def test_sentence_transformers():
    assert_the_same("sentence-transformers")


def test_what_is_said_not_to_be_this_loss_is_it_for_a_single_pair_only():
    z = torch.tensor([0.5, -1.0, 2.0])
    ours = F.softplus(-z).mean()
    cosent = torch.logsumexp(torch.cat([torch.zeros(1), -z]), 0)
    assert not torch.isclose(cosent, ours)
    torch.testing.assert_close(torch.logsumexp(torch.cat([torch.zeros(1), -z[:1]]), 0), F.softplus(-z[:1]).mean())
    positive, negatives = torch.tensor([1.0]), torch.tensor([0.5, -2.0])
    softmax = [-torch.cat([positive, negatives[:n]]).log_softmax(0)[0] for n in (1, 2)]
    terms = F.softplus(negatives - positive)
    torch.testing.assert_close(softmax[0], terms[0])
    assert not torch.isclose(softmax[1], terms.mean())


def test_every_section_has_a_test_and_every_row_a_section():
    tested = "\n".join(each.read_text(encoding="utf-8") for each in Path(__file__).parent.glob("test_*.py"))
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[.*?\]\(#(.*?)\)", page, re.MULTILINE)
    headings = [heading for heading, blocks in sections().items() if blocks]
    assert rows == [heading.lower().replace(" ", "-") for heading in headings]
    for heading in headings:
        own = {"TRL": "test_trl.py", "transformers": "test_transformers.py"}.get(heading)
        assert own in page if own else f'assert_the_same("{heading}"' in tested
    assert set(INPUTS) == {heading for heading in headings if heading not in ("TRL", "transformers")}


def test_the_table_counts_the_lines_of_the_blocks():
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[.*?\]\(#.*?\).*?\| (\d+) → (\d+)", page, re.MULTILINE)
    counted = [tuple(str(lines_of(block)) for block in blocks) for blocks in sections().values() if blocks]
    assert rows == counted


@clients
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("heading", ["TRL", "transformers"])
def test_what_the_page_imports_is_there(heading):
    for block in sections()[heading]:
        exec("\n".join(line for line in block.splitlines() if line.startswith("from ")), {})
