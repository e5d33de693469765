"""The lines of docs/replace_your_line.md and inputs for them, which the test compares and benchmarks/clients.py times.

Inputs are float32. Their sizes, where none are given, are those of the test.
"""

from __future__ import annotations

import importlib.util
import re
import types
from pathlib import Path

import torch

PAGE = Path(__file__).parent.parent / "docs" / "replace_your_line.md"


def sections():
    """{heading: its blocks of code}: what they have, and what they write."""
    found = {}
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```\{code-block\} py\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
        found[section.partition("\n")[0]] = blocks
    return found


def lines_of(code):
    """How many lines a block has, without imports and empty lines."""
    return sum(bool(line.strip()) and not line.startswith(("from ", "import ")) for line in code.splitlines())


def leaf(*shape, scale=1.0):
    return (scale * torch.randn(*shape)).requires_grad_()


# ---- Packages: where one does not import whole beside this torch, the file of the loss does ----


def stand_ins(package):
    """{name: module} for `sys.modules`, before the package's loss is imported.

    openrlhf: its own openrlhf/models/loss.py, without the models beside it, which need DeepSpeed.
    allrank: without its modules that read files, which need torchvision and Google's storage; losses take one number from them.
    """
    if package == "openrlhf":
        (folder,) = importlib.util.find_spec(package).submodule_search_locations
        attributes = {
            "openrlhf": {"__path__": [folder]},
            "openrlhf.models": {"__path__": [f"{folder}/models"]},
            "openrlhf.models.utils": {"masked_mean": None},
        }
    else:
        attributes = {
            "allrank.data.dataset_loading": {"PADDED_Y_VALUE": -1},
            "allrank.models.model_utils": {"get_torch_device": None},
        }
    made = {name: types.ModuleType(name) for name in attributes}
    for name, module in made.items():
        vars(module).update(attributes[name])
    return made


class Encoder(torch.nn.Module):
    """A cross-encoder of sentence-transformers that has its scores already: a document's text is the number of its score."""

    num_labels, device = 1, torch.device("cpu")

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def preprocess(self, pairs, **_):
        return {"places": torch.tensor([int(document) for _, document in pairs])}

    def forward(self, tokens):
        return {"scores": self.scores[tokens["places"]]}


class Module:
    """`self` of the Lightning module on the page: whatever logs, and whatever keeps statistics."""

    def __init__(self):
        self.stats, self.kept, self.logged = self, [], {}

    def log(self, name, value):
        self.logged[name] = value

    def update(self, stats):
        self.kept = [stats]


# ---- The names of a section's lines ----


def own_loop(pairs=50):
    return {"chosen": leaf(pairs), "rejected": leaf(pairs), "margin": leaf(pairs)}


def lightning(pairs=30):
    return {"chosen": leaf(pairs), "rejected": leaf(pairs), "self": Module()}


def dpo(pairs=20):
    logps = {name: leaf(pairs, scale=3.0) for name in ("policy_chosen", "policy_rejected")}
    fixed = {name: 3 * torch.randn(pairs) for name in ("reference_chosen", "reference_rejected")}
    return {**logps, **fixed, "beta": 0.3}


def openrlhf(pairs=30):
    return {"chosen": leaf(pairs), "rejected": leaf(pairs), "margin": torch.rand(pairs)}


def deepspeed_chat(pairs=6, length=12, prompt=4):
    """Responses of any length, up to `length` tokens with the prompt, which both have. Their first tokens differ."""
    chosen, rejected = torch.randint(1, 9, (2, pairs, length))
    rejected[:, :prompt] = chosen[:, :prompt]
    rejected[:, prompt] = chosen[:, prompt] % 8 + 1
    for ids in (chosen, rejected):
        ids[torch.arange(length) >= torch.randint(prompt + 1, length + 1, (pairs, 1))] = 0
    values = {"chosen_values": leaf(pairs, length), "rejected_values": leaf(pairs, length)}
    return {"chosen_ids": chosen, "rejected_ids": rejected, "pad": 0, **values}


def recbole(pairs=200):
    return {"positive": leaf(pairs), "negative": leaf(pairs)}


def allrank(lists=5, items=12):
    """Lists of half of the items to all of them, padded."""
    labels = torch.randint(0, 4, (lists, items)).float()
    labels[torch.arange(items) >= torch.randint(items // 2, items + 1, (lists, 1))] = -1.0
    return {"scores": leaf(lists, items), "labels": labels}


def libauc(items=120):
    """One of ten is positive."""
    return {"scores": leaf(items), "labels": (torch.arange(items) % 10 == 0).long()}


def sentence_transformers(sizes=(4, 2, 5)):
    """So many documents of each query. The first is the most relevant of them, the last is not relevant."""
    scores, places = leaf(sum(sizes)), iter(range(sum(sizes)))
    labels = [torch.randint(0, 4, (size,)).float() for size in sizes]
    for each in labels:
        each[0], each[-1] = 3.0, 0.0
    return {
        **{"model": Encoder(scores), "queries": ["a"] * len(sizes), "scores": scores, "labels": labels},
        "documents": [[str(next(places)) for _ in range(size)] for size in sizes],
    }


INPUTS = {
    "Your own loop": own_loop,
    "Lightning": lightning,
    "DPO": dpo,
    "OpenRLHF": openrlhf,
    "DeepSpeed-Chat": deepspeed_chat,
    "RecBole": recbole,
    "allRank": allrank,
    "LibAUC": libauc,
    "sentence-transformers": sentence_transformers,
}
