"""The lines of docs/replace_your_line.md in a race: what other packages have against what the page says to write instead.

    python benchmarks/clients.py [--seconds 0.3]

Both blocks of a section run as the page has them, forward and backward, at sizes that a trainer has, and take turns in many short
rounds; objects that the lines make (`PairWiseLoss()`) are made once. What is not installed is left out: `make test-clients`
installs it all. The model is not timed: rewards are a tensor that asks for gradients.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import platform
import re
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from interleaved import measure
from records import load_average

import prefloss

ROOT = Path(__file__).parent.parent
Race = tuple[Callable[[], object], Callable[[], object]]


def blocks(heading: str) -> list[str]:
    """What the section has, and what it says to write."""
    page = (ROOT / "docs" / "replace_your_line.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    return re.findall(r"^```\{code-block\} py\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def step(code: str, names: dict[str, Any]) -> Callable[[], object]:
    """The lines, and the gradients of the tensors among the names that ask for them."""
    lines = code.splitlines()
    imports = [line for line in lines if line.startswith("from ")]
    space: dict[str, Any] = {"torch": torch, "F": F, "math": math, **names}
    space["prefloss"] = types.SimpleNamespace(
        **{**vars(prefloss), "BradleyTerryLoss": cache(prefloss.BradleyTerryLoss)}
    )
    exec("\n".join(imports), space)
    for line in imports:
        name = line.split()[-1]
        if isinstance(space[name], type):
            space[name] = cache(space[name])
    body = "\n".join(f"    {line}" for line in lines if line not in imports)
    exec(f"def run():\n{body}\n    return loss", space)
    leaves = [each for each in names.values() if isinstance(each, torch.Tensor) and each.requires_grad]
    return lambda: torch.autograd.grad(space["run"](), leaves)


def race(heading: str, **names: Any) -> Race:
    theirs, ours = (step(code, names) for code in blocks(heading))
    return theirs, ours


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).requires_grad_()


class Silent:
    """What the Lightning module of the page is: it logs, and keeps the statistics."""

    def __init__(self) -> None:
        from prefloss.integrations.torchmetrics import PreferenceStats

        self.stats = PreferenceStats()

    def log(self, name: str, value: torch.Tensor) -> None:
        pass


def reward_models() -> Iterator[tuple[str, Callable[[int], Race]]]:
    """By pairs a micro-batch."""
    yield "Your own loop", lambda n: race("Your own loop", chosen=leaf(n), rejected=leaf(n), margin=torch.rand(n))
    if found("trl"):
        yield "TRL", trl
    if found("torchmetrics"):
        yield "Lightning", lambda n: race("Lightning", chosen=leaf(n), rejected=leaf(n), self=Silent())
    yield "DPO", lambda n: race(
        "DPO", policy_chosen=leaf(n), policy_rejected=leaf(n), reference_chosen=torch.randn(n),
        reference_rejected=torch.randn(n), beta=0.1,
    )  # fmt: skip
    if found("openrlhf"):
        (folder,) = importlib.util.find_spec("openrlhf").submodule_search_locations  # type: ignore[union-attr, misc]
        without("openrlhf", __path__=[folder])
        without("openrlhf.models", __path__=[f"{folder}/models"])
        without("openrlhf.models.utils", masked_mean=None)
        yield "OpenRLHF", lambda n: race("OpenRLHF", chosen=leaf(n), rejected=leaf(n), margin=None)
    yield "DeepSpeed-Chat", tokens


def trl(pairs: int) -> Race:
    """`compute_loss` of both trainers, with its metrics: TRL reads each, ours are read when they are logged, which is not here."""
    from transformers import LlamaConfig, LlamaForSequenceClassification
    from trl import RewardConfig
    from trl import RewardTrainer as Theirs

    from prefloss.integrations.trl import RewardTrainer as Ours

    sys.path.insert(0, str(ROOT / "tests"))
    from datasets import Dataset, disable_progress_bars
    from tiny_reward_model import pairs as rows
    from tiny_reward_model import sizes, tokenizer

    disable_progress_bars()
    logits = leaf(2 * pairs, 1)
    inputs = {"attention_mask": torch.ones(2 * pairs, 8)}
    runs = []
    for kind in (Theirs, Ours):
        trainer = kind(
            model=LlamaForSequenceClassification(LlamaConfig(**sizes(), num_labels=1)),
            args=RewardConfig(output_dir=tempfile.gettempdir(), use_cpu=True, bf16=False, report_to="none"),
            train_dataset=Dataset.from_list(rows(4)),
            processing_class=tokenizer(),
        )

        def run(trainer: Any = trainer) -> object:
            loss = trainer.compute_loss(lambda **_: types.SimpleNamespace(logits=logits), dict(inputs))
            return torch.autograd.grad(loss, logits)

        runs.append(run)
    return runs[0], runs[1]


def tokens(pairs: int) -> Race:
    """Responses of 256 tokens at most, after a prompt that both have."""
    chosen, rejected = torch.randint(1, 1000, (2, pairs, 512))
    rejected[:, :256] = chosen[:, :256]
    for ids in (chosen, rejected):
        ids[torch.arange(512) >= torch.randint(300, 512, (pairs, 1))] = 0
    values = {"chosen_values": leaf(pairs, 512), "rejected_values": leaf(pairs, 512)}
    return race("DeepSpeed-Chat", chosen_ids=chosen, rejected_ids=rejected, pad=0, **values)


def rankers() -> Iterator[tuple[str, str, Race]]:
    """With the size in words."""
    if found("recbole"):
        yield "RecBole", "2,048 pairs", race("RecBole", positive=leaf(2048), negative=leaf(2048))
    if found("allrank"):
        without("allrank.data.dataset_loading", PADDED_Y_VALUE=-1)
        without("allrank.models.model_utils", get_torch_device=None)
        labels = torch.randint(0, 5, (16, 60)).float()
        labels[:, 50:] = -1.0
        yield "allRank", "16 lists of 60", race("allRank", scores=leaf(16, 60), labels=labels)
    if found("libauc"):
        for items in (128, 2048):
            labels = (torch.arange(items) % 10 == 0).long()
            yield "LibAUC", f"{items:,} items, 10 % positive", race("LibAUC", scores=leaf(items), labels=labels)
    if found("sentence_transformers"):
        scores, documents = leaf(128), [[str(16 * query + k) for k in range(16)] for query in range(8)]
        grades = list(torch.randint(0, 4, (8, 16)).float())
        names = {
            "model": Encoder(scores),
            "queries": ["a"] * 8,
            "documents": documents,
            "labels": grades,
            "scores": scores,
        }
        yield "sentence-transformers", "8 queries, 16 documents each", race("sentence-transformers", **names)


class Encoder(torch.nn.Module):
    """A cross-encoder that has its scores already: a document's text is the number of its score."""

    num_labels, device = 1, torch.device("cpu")

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = scores

    def preprocess(self, pairs: list[tuple[str, str]], **_: Any) -> dict[str, torch.Tensor]:
        return {"places": torch.tensor([int(document) for _, document in pairs])}

    def forward(self, tokens: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"scores": self.scores[tokens["places"]]}


def found(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def without(module: str, **attributes: Any) -> None:
    """Stands in for a module that a loss takes one name from, and that asks for packages which no loss uses."""
    made = types.ModuleType(module)
    vars(made).update(attributes)
    sys.modules[module] = made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each race (default: 0.3)")
    parser.add_argument("--only", default="", help="rows that have this in their name")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    load_average()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {prefloss.build_info()['cpu']}\n"
    )
    print("| line | size | theirs, µs | ours, µs | ours / theirs |\n|---|---|--:|--:|--:|")
    races = [(name, f"{n} pairs", make(n)) for name, make in reward_models() if arguments.only in name for n in (8, 64)]
    for name, size, (theirs, ours) in (*races, *(each for each in rankers() if arguments.only in each[0])):
        times = measure({"theirs": theirs, "ours": ours}, arguments.seconds)
        medians = times["theirs"].median, times["ours"].median
        print(
            f"| {name} | {size} | {1e6 * medians[0]:,.0f} | {1e6 * medians[1]:,.0f} | {medians[1] / medians[0]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
