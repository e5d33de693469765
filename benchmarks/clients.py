"""The table of docs/replace_your_line.md: what users of other packages have, against what the page says to write instead.

    python benchmarks/clients.py [--seconds 0.3] [--only DPO]

Both blocks of a section run as the page has them, forward and backward. The table has how many lines each has; how far their
losses and gradients differ at most, over many draws of the test's inputs (`tests/replaced_lines.py`); and how long they take at
sizes that a trainer has, where they take turns in many short rounds. Objects that the lines make (`PairWiseLoss()`) are made
once. What is not installed is left out: `make test-clients` installs it all. The model is not timed: rewards are a tensor that asks
for gradients.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import platform
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from interleaved import measure
from records import load_average

import prefloss

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from replaced_lines import INPUTS, leaf, lines_of, sections, stand_ins
from tiny_reward_model import pairs as token_ids
from tiny_reward_model import reward_model, tokenizer

DRAWS = 100
Run = Callable[[], list[torch.Tensor]]  # the loss, and its gradients
Race = tuple[Run, Run]


def race_of_lines(heading: str, *size: Any) -> Race:
    names = INPUTS[heading](*size)
    if heading == "Lightning":
        names["self"] = Silent()
    theirs, ours = (step(code, names) for code in sections()[heading])
    return theirs, ours


def step(code: str, names: dict[str, Any]) -> Run:
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
    return lambda: with_gradients(space["run"](), leaves)


def with_gradients(loss: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    return [loss, *torch.autograd.grad(loss, leaves)]


class Silent:
    """What the Lightning module of the page is: it logs, and keeps the statistics."""

    def __init__(self) -> None:
        from prefloss.integrations.torchmetrics import PreferenceStats

        self.stats = PreferenceStats()

    def log(self, name: str, value: torch.Tensor) -> None:
        pass


# ---- Trainers: `compute_loss` as they call it, with the rewards in place of the model's ----


def race_of_trainers(trainers: tuple[Any, Any], batches: Mapping[str, Any], pairs: int) -> Race:
    logits = leaf(2 * pairs, 1)
    outputs = types.SimpleNamespace(logits=logits)

    def run(trainer: Any, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        (inputs,), count = trainer.get_batch_samples(iter([batch]), 1, logits.device)
        loss = trainer.compute_loss(lambda **_: outputs, dict(inputs), num_items_in_batch=count)
        return with_gradients(loss, [logits])

    theirs, ours = trainers
    return lambda: run(theirs, batches["theirs"]), lambda: run(ours, batches["ours"])


def trl(heading: str, pairs: int = 8) -> Race:
    """With its metrics: TRL reads each, ours are read when they are logged, which is not here."""
    batch = {"attention_mask": torch.ones(2 * pairs, 8)}
    return race_of_trainers(trl_trainers(), {"theirs": batch, "ours": batch}, pairs)


@cache
def trl_trainers() -> tuple[Any, Any]:
    from datasets import Dataset, disable_progress_bars
    from trl import RewardConfig

    disable_progress_bars()
    made = []
    for block in sections()["TRL"]:
        space: dict[str, Any] = {}
        exec(block, space)
        args = RewardConfig(output_dir=tempfile.gettempdir(), use_cpu=True, bf16=False, report_to="none")
        data = Dataset.from_list(token_ids(4))
        kind = space["RewardTrainer"]
        made.append(kind(model=reward_model(), args=args, train_dataset=data, processing_class=tokenizer()))
    return made[0], made[1]


def transformers(heading: str, pairs: int = 8) -> Race:
    """Counting the labels is timed, which Trainer does for batches that have them; making them is not."""
    theirs, ours = transformers_trainers()
    rows = [torch.empty(0)] * pairs
    batches = {"theirs": theirs.data_collator(rows), "ours": ours.data_collator(rows)}
    return race_of_trainers((theirs, ours), batches, pairs)


@cache
def transformers_trainers() -> tuple[Any, Any]:
    from transformers import TrainingArguments

    made = []
    for block in sections()["transformers"]:
        args = TrainingArguments(output_dir=tempfile.gettempdir(), use_cpu=True, report_to="none")
        space = {"model": reward_model(), "args": args, "rows": token_ids(4), "torch": torch, "F": F}
        space["collate"] = lambda rows: {"input_ids": torch.zeros(2 * len(rows), 8, dtype=torch.int64)}
        exec(block, space)
        made.append(space["trainer"])
    return made[0], made[1]


# ---- The table ----


class Client(NamedTuple):
    heading: str
    package: str
    sizes: Mapping[str, tuple[Any, ...]]  # to be timed, in words and as the inputs' arguments
    race: Callable[..., Race] = race_of_lines


PAIRS: dict[str, tuple[Any, ...]] = {"8 pairs": (8,), "64 pairs": (64,)}
CLIENTS = (
    Client("Your own loop", "torch", PAIRS),
    Client("TRL", "trl", PAIRS, trl),
    Client("transformers", "transformers", PAIRS, transformers),
    Client("Lightning", "torchmetrics", PAIRS),
    Client("DPO", "torch", PAIRS),
    Client("OpenRLHF", "openrlhf", PAIRS),
    Client(
        "DeepSpeed-Chat", "torch",
        {"8 pairs of 512 tokens": (8, 512, 256), "64 pairs of 512 tokens": (64, 512, 256)},
    ),
    Client("RecBole", "recbole", {"2,048 pairs": (2048,)}),
    Client("allRank", "allrank", {"16 lists of 30 to 60": (16, 60)}),
    Client("LibAUC", "libauc", {"128 items, 10 % positive": (128,), "2,048 items, 10 % positive": (2048,)}),
    Client("sentence-transformers", "sentence_transformers", {"8 queries of 16 documents": ([16] * 8,)}),
)  # fmt: skip


def differences(client: Client) -> tuple[float, float]:
    """The largest over all draws: of the loss, over theirs; of an entry of a gradient, over the largest entry of theirs."""
    losses, gradients = [], []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        theirs, ours = ([each.detach().double() for each in run()] for run in client.race(client.heading))
        apart = [((ours - one).abs().max() / one.abs().max()).item() for one, ours in zip(theirs, ours, strict=True)]
        losses.append(apart[0])
        gradients.append(max(apart[1:]))
    return max(losses), max(gradients)


def found(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each race (default: 0.3)")
    parser.add_argument("--only", default="", help="rows that have this in their name")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    load_average()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {prefloss.build_info()['cpu']}\n\n"
        "| line | lines | loss differs by | gradient | size | theirs, µs | ours, µs | ours / theirs |\n"
        "|---|---|--:|--:|---|--:|--:|--:|"
    )
    for client in CLIENTS:
        if arguments.only not in client.heading or not found(client.package):
            continue
        if client.package in ("openrlhf", "allrank"):
            sys.modules.update(stand_ins(client.package))
        before, after = (lines_of(block) for block in sections()[client.heading])
        loss, gradient = differences(client)
        for words, size in client.sizes.items():
            theirs, ours = client.race(client.heading, *size)
            times = measure({"theirs": theirs, "ours": ours}, arguments.seconds)
            medians = times["theirs"].median, times["ours"].median
            print(
                f"| {client.heading} | {before} → {after} | {loss:.1e} | {gradient:.1e} | {words} | "
                f"{1e6 * medians[0]:,.0f} | {1e6 * medians[1]:,.0f} | {medians[1] / medians[0]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
