"""The lines of docs/replace_your_line.md: theirs and ours are run as the page has them, and compared by value and gradient."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import prefloss

clients = pytest.mark.clients
PAGE = Path(__file__).parent.parent / "docs" / "replace_your_line.md"


def sections():
    """{heading: its blocks of code}."""
    found = {}
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```\{code-block\} py\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
        found[section.partition("\n")[0]] = blocks
    return found


def lines(heading):
    """(what they have, what they write)."""
    theirs, ours = sections()[heading]
    return theirs, ours


def leaf(*shape, scale=1.0):
    return (scale * torch.randn(*shape)).requires_grad_()


def assert_the_same(heading, names, rtol=1e-5, atol=1e-6):
    """Both blocks give one loss and the same gradients of the leaves among the names. The bounds are of float32 means."""
    results = []
    for code in lines(heading):
        space = {"torch": torch, "F": F, "prefloss": prefloss, "math": math, **names}
        exec(compile(code, str(PAGE), "exec"), space)
        leaves = [each for each in names.values() if isinstance(each, torch.Tensor) and each.requires_grad]
        results.append([space["loss"].detach(), *torch.autograd.grad(space["loss"], leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one.to(other.dtype), rtol=rtol, atol=atol)
    assert results[0][0] > 0.1
    return results


# ---- Packages: where one does not import whole beside this torch, the file of the loss does ----


def stand_in(monkeypatch, name, **attributes):
    module = types.ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def files_of(package):
    """Where a package is installed, without importing it."""
    return importlib.util.find_spec(package).submodule_search_locations


@pytest.fixture
def openrlhf(monkeypatch):
    """Its own openrlhf/models/loss.py, without the models beside it, which need DeepSpeed."""
    (folder,) = files_of("openrlhf")
    stand_in(monkeypatch, "openrlhf", __path__=[folder])
    stand_in(monkeypatch, "openrlhf.models", __path__=[f"{folder}/models"])
    stand_in(monkeypatch, "openrlhf.models.utils", masked_mean=None)
    monkeypatch.delitem(sys.modules, "openrlhf.models.loss", raising=False)
    return importlib.import_module("openrlhf.models.loss")


@pytest.fixture
def allrank(monkeypatch):
    """Without its modules that read files, which need torchvision and Google's storage: losses take one number from them."""
    stand_in(monkeypatch, "allrank.data.dataset_loading", PADDED_Y_VALUE=-1)
    stand_in(monkeypatch, "allrank.models.model_utils", get_torch_device=None)
    return importlib.import_module("allrank.models.losses.rankNet")


# ---- The lines ----


def test_your_own_loop():
    assert_the_same("Your own loop", {"chosen": leaf(50), "rejected": leaf(50), "margin": leaf(50)})


def test_dpo():
    logps = {name: leaf(20, scale=3.0) for name in ("policy_chosen", "policy_rejected")}
    fixed = {name: 3 * torch.randn(20) for name in ("reference_chosen", "reference_rejected")}
    assert_the_same("DPO", {**logps, **fixed, "beta": 0.3})


def test_lightning():
    """`self` of the page is whatever logs."""

    class Module:
        def __init__(self):
            self.stats, self.kept, self.logged = self, [], {}

        def log(self, name, value):
            self.logged[name] = value.item()

        def update(self, stats):
            self.kept.append(stats)

    module = Module()
    assert_the_same("Lightning", {"chosen": leaf(30), "rejected": leaf(30), "self": module})
    assert module.kept[0].accuracy == pytest.approx(module.logged["accuracy"])


def test_deepspeed_chat():
    generator = torch.Generator().manual_seed(3)
    chosen, rejected = torch.randint(1, 9, (2, 6, 12), generator=generator)
    rejected[:, :4] = chosen[:, :4]  # the prompt
    rejected[:, 4] = chosen[:, 4] % 8 + 1
    for ids, ends in ((chosen, (12, 9, 6, 12, 7, 8)), (rejected, (8, 12, 9, 12, 5, 7))):
        for row, end in enumerate(ends):
            ids[row, end:] = 0
    values = {"chosen_values": leaf(6, 12), "rejected_values": leaf(6, 12)}
    assert_the_same("DeepSpeed-Chat", {"chosen_ids": chosen, "rejected_ids": rejected, "pad": 0, **values})


@clients
def test_openrlhf(openrlhf):
    chosen, rejected = leaf(30), leaf(30)
    assert_the_same("OpenRLHF", {"chosen": chosen, "rejected": rejected, "margin": torch.rand(30)})
    assert_the_same("OpenRLHF", {"chosen": chosen, "rejected": rejected, "margin": None})
    logps = [leaf(30), leaf(30), torch.randn(30), torch.randn(30)]
    theirs, chosen_rewards, _ = openrlhf.DPOLoss(beta=0.4, label_smoothing=0.1)(*logps)
    loss, stats = prefloss.dpo_loss(*logps, beta=0.4, label_smoothing=0.1, return_stats=True)
    torch.testing.assert_close(loss, theirs)
    assert stats.chosen_mean == pytest.approx(chosen_rewards.mean().item(), rel=1e-5)


@clients
def test_recbole():
    assert_the_same("RecBole", {"positive": leaf(200), "negative": leaf(200)})


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
    labels = torch.randint(0, 4, (5, 12)).float()
    labels[0, 7:] = labels[3, 2:] = -1.0
    assert_the_same("allRank", {"scores": leaf(5, 12), "labels": labels})
    scores, whole = torch.randn(5, 12), labels.clamp(min=0)
    ours = prefloss.bradley_terry_loss_grouped(scores, relevance=whole, average="pairs")
    torch.testing.assert_close(ours, allrank.rankNet(scores, whole))


@clients
@pytest.mark.filterwarnings("default")
def test_libauc():
    assert_the_same("LibAUC", {"scores": leaf(120), "labels": (torch.rand(120) < 0.2).long()})
    from libauc.losses.auc import PairwiseAUCLoss

    scores, labels = torch.tensor([-100.0, 0.0]), torch.tensor([1, 0])
    assert PairwiseAUCLoss(surr_loss="logistic")(scores, labels).item() == math.inf
    assert prefloss.bradley_terry_loss_grouped(scores[None], relevance=labels[None]).item() == 100.0


@clients
@pytest.mark.filterwarnings("default")
def test_sentence_transformers():
    """The cross-encoder is a table of scores, one for each document's text."""
    table = leaf(11)
    sizes, places = [4, 2, 5], iter(range(11))
    documents = [[str(next(places)) for _ in range(size)] for size in sizes]

    class Encoder(torch.nn.Module):
        num_labels, device = 1, torch.device("cpu")

        def preprocess(self, pairs, **_):
            return {"places": torch.tensor([int(document) for _, document in pairs])}

        def forward(self, tokens):
            return {"scores": table[tokens["places"]]}

    names = {"model": Encoder(), "queries": ["a", "b", "c"], "documents": documents, "scores": table}
    labels = [torch.tensor(each) for each in ([3.0, 0.0, 1.0, 0.0], [0.0, 1.0], [2.0, 2.0, 0.0, 1.0, 0.0])]
    assert_the_same("sentence-transformers", names | {"labels": labels})


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


@clients
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("heading", ["TRL", "transformers"])
def test_what_the_page_imports_is_there(heading):
    for block in sections()[heading]:
        exec("\n".join(line for line in block.splitlines() if line.startswith("from ")), {})
