"""A reward model, and how well its loss is known
==============================================

Train a reward model's linear head on preference pairs, and say how well its loss is known.

examples::

  train_reward_model.py                       preferences drawn from a known Bradley-Terry model, so that the
                                              expected loss is known and held against what the pairs say about it
  train_reward_model.py --data pairs.jsonl    your own pairs, as text: "chosen" and "rejected", with or without
                                              "prompt", each a string or a list of chat messages
  train_reward_model.py --data pairs.jsonl --embedding-model all-MiniLM-L6-v2
  train_reward_model.py --data vectors.npz    your own pairs, as arrays "chosen" and "rejected" (pairs, features)

Needs matplotlib, scikit-learn, tqdm and pyarrow, which `pip install '.[examples]'` brings.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from narrow_repair import print_repairs, repairs
from preference_data import FeaturePairs, InputError, load, rewards, rows, typical_distance
from reward_model_figure import CurvePoint, draw
from reward_model_table import print_interval_studies, print_losses, print_narrow_losses
from synthetic_preferences import EXPERTS, EXPERTS_COLLECTED, STUDY_SIZES, Collection, StudyRow, World
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

import prefloss

NARROW = 10  # so many times the pairs where the collection is narrow: most of them say little about the population


@dataclass(frozen=True)
class Training:
    """How heads are trained."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class Trained:
    """A head for the features as given, (features,) float32, and how well it does."""

    head: Tensor
    training: prefloss.PairStats
    held_out: prefloss.PairStats
    curve: list[CurvePoint]  # before the first epoch and after each


def train(
    pairs: FeaturePairs,
    training: Tensor,
    held_out: Tensor,
    how: Training,
    *,
    name: str,
    expected_loss: Callable[[Tensor], float] | None = None,
) -> Trained:
    """Minimise the empirical loss of the pairs numbered `training` (int64) with AdamW; those `held_out` are only measured.

    `expected_loss` tells that of a head, where it is known.
    """
    # A chosen and its rejected response are brought 1 apart: the defaults of learning rate and decay are right for that.
    scale = 1.0 / typical_distance(pairs, training)
    linear = torch.nn.Linear(pairs.chosen.shape[1], 1, bias=False)  # a bias would cancel
    torch.nn.init.zeros_(linear.weight)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay)
    batches = math.ceil(len(training) / how.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.epochs * batches)
    shuffling = torch.Generator().manual_seed(how.seed)
    mean_weight = 1.0 if pairs.weight is None else pairs.weight[training].mean().item()

    def measure() -> Trained:
        head = scale * linear.weight.detach()[0]
        seen, unseen = evaluate(pairs, training, head), evaluate(pairs, held_out, head)
        expected = None if expected_loss is None else expected_loss(head)
        curve.append(CurvePoint(seen.loss, unseen.loss, *unseen.confidence_interval(0.95), expected))
        return Trained(head, seen, unseen, curve)

    curve: list[CurvePoint] = []
    trained = measure()
    with tqdm(total=how.epochs * batches, desc=name, unit="step", file=sys.stderr) as progress:
        for _ in range(how.epochs):
            shuffled = training[torch.randperm(len(training), generator=shuffling)]
            for batch in torch.split(shuffled, how.batch_size):
                chosen = linear(scale * rows(pairs.chosen, batch)).squeeze(1)
                rejected = linear(scale * rows(pairs.rejected, batch)).squeeze(1)
                weight = None if pairs.weight is None else pairs.weight[batch]
                # Divided by the batch's own total weight, a pair would count for more in a batch of light ones.
                loss = prefloss.bradley_terry_loss(
                    chosen, rejected, weight=weight, denominator=mean_weight * len(batch)
                )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                progress.update()
            trained = measure()
            if not math.isfinite(trained.held_out.loss):
                raise InputError(f"--learning-rate {how.learning_rate:g}: the loss is no longer finite; lower it")
            progress.set_postfix_str(f"training {trained.training.loss:.4f}, held-out {trained.held_out.loss:.4f}")
    return trained


def evaluate(pairs: FeaturePairs, numbers: Tensor, head: Tensor) -> prefloss.PairStats:
    """The loss over the pairs of these numbers, and how well it is known."""
    chosen, rejected = rewards(pairs.chosen, head)[numbers], rewards(pairs.rejected, head)[numbers]
    weight = None if pairs.weight is None else pairs.weight[numbers]
    return prefloss.bradley_terry_loss(chosen, rejected, weight=weight, return_stats=True)[1]


def print_clusters(pairs: FeaturePairs, numbers: Tensor, head: Tensor) -> None:
    """A further line where prompts repeat: pairs of one prompt are not independent, and the interval above takes them to be."""
    prompts = pairs.prompt[numbers.numpy()]
    if len(np.unique(prompts)) < len(prompts):
        chosen, rejected = rewards(pairs.chosen, head)[numbers], rewards(pairs.rejected, head)[numbers]
        found = prefloss.evaluate(chosen, rejected, cluster=prompts)
        low, high = found.loss.interval(0.95)
        print(
            f"{f'  by prompt: {found.clusters} clusters':36}{found.pairs:7}{found.loss.value:9.4f}  [{low:.4f}, {high:.4f}]"
        )


def split(pairs: FeaturePairs, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the training and the held-out pairs, at least two each of four or more.

    Pairs of one prompt stay on one side: they are not independent. Where the prompts are too few for that, they do not.
    """
    random = np.random.default_rng(seed)
    wanted = min(max(2, round(share * len(pairs))), len(pairs) - 2)
    held_out = np.zeros(len(pairs), dtype=bool)
    for group in (pairs.prompt, np.arange(len(pairs))):
        place = random.permutation(group.max() + 1)[group]
        held_out = place <= np.sort(place)[wanted - 1]
        if held_out.sum() <= len(pairs) - 2:
            break
    return torch.from_numpy(np.flatnonzero(~held_out)), torch.from_numpy(np.flatnonzero(held_out))


# ---- The two jobs: your pairs, and a known world's ----


def run_data(path: Path, embedding_model: str | None, share: float, how: Training, output: Path) -> None:
    """Train on the pairs of a file."""
    pairs = load(path, embedding_model)
    if len(pairs) < 4:
        raise InputError(
            f"{path}: {len(pairs)} preference pairs are too few: 4 are needed to train on 2 and hold out 2"
        )
    print(f"{path}: {len(pairs)} pairs; {pairs.description}")
    training, held_out = split(pairs, share, how.seed)
    trained = train(pairs, training, held_out, how, name="training")
    print_losses(trained.training, trained.held_out)
    print_clusters(pairs, held_out, trained.head)
    print(
        "\nThe held-out line estimates the loss of new pairs like these; the head has seen those of the training line."
    )
    results = {"data": str(path), "features": pairs.description, **_results(trained)}
    write(output, pairs, held_out, trained, how, results, {})


def run_world(count: int, repeats: int, how: Training, output: Path) -> None:
    """Train on `count` pairs of a known world, hold out as many, and compare what they say with the truth."""
    world = World(how.seed)
    features = world.features.numpy()

    def as_pairs(sample: Collection) -> FeaturePairs:
        chosen, rejected = features[sample.chosen.numpy()], features[sample.rejected.numpy()]
        return FeaturePairs(chosen, rejected, np.arange(len(chosen)), "the world's")

    def train_on(pairs: FeaturePairs, name: str) -> Trained:
        training, held_out = torch.arange(len(pairs)).chunk(2)
        return train(pairs, training, held_out, how, name=name, expected_loss=world.expected_loss)

    uniform_pairs = as_pairs(world.collect(2 * count))
    uniform = train_on(uniform_pairs, "uniform collection ")

    collection = world.collect(2 * NARROW * count, narrow=True)
    narrow_pairs = as_pairs(collection)
    weighted_pairs = replace(narrow_pairs, weight=collection.ratio)
    narrow = train_on(narrow_pairs, "narrow collection  ")
    weighted = train_on(weighted_pairs, "narrow, with weight")
    # The weight repairs what the collected pairs say about a head, and, in training, the head.
    held_out = torch.arange(len(weighted_pairs)).chunk(2)[1]
    narrow_reweighted = evaluate(weighted_pairs, held_out, narrow.head)
    repaired = repairs(world, *collection.halves(), narrow.head)

    with tqdm(total=3 * len(STUDY_SIZES), desc="repeated sampling  ", unit="size", file=sys.stderr) as progress:
        studies = {
            name: world.study(head, repeats, narrow=is_narrow, weighted=is_weighted, advance=progress.update)
            for name, head, is_narrow, is_weighted in (
                ("uniform", uniform.head, False, False),
                ("narrow", narrow.head, True, False),
                ("weighted", narrow.head, True, True),
            )
        }

    expected = world.expected_loss(uniform.head)
    narrow_expected, weighted_expected = world.expected_loss(narrow.head), world.expected_loss(weighted.head)
    print_losses(uniform.training, uniform.held_out, expected, world.expected_accuracy(uniform.head), world.least_loss)
    print_narrow_losses(
        f"A narrow collection: {100 * EXPERTS_COLLECTED:.0f} % of its pairs come from {100 * EXPERTS:.0f} % of the population",
        {
            "trained as collected: held-out": (narrow.held_out, narrow_expected),
            "  the same with weight=ratio": (narrow_reweighted, narrow_expected),
            "trained with weight=ratio: held-out": (weighted.held_out, weighted_expected),
        },
    )
    print_repairs(repaired, narrow_expected)
    print_interval_studies(studies, repeats)
    results = {
        **_results(uniform),
        "expected": {
            "loss": expected,
            "accuracy": world.expected_accuracy(uniform.head),
            "least_loss": world.least_loss,
        },
        "narrow": {
            "held_out": _summary(narrow.held_out),
            "held_out_weighted": _summary(narrow_reweighted),
            "groups": {label: group.loss.as_dict() for label, group in repaired.by_group.groups.items()},
            "reweighted": repaired.reweighted.as_dict(),
            "classified": repaired.classified.loss.as_dict(),
            "expected_loss": narrow_expected,
            "trained_weighted": {"held_out": _summary(weighted.held_out), "expected_loss": weighted_expected},
        },
        "intervals": {name: [row._asdict() for row in table] for name, table in studies.items()},
    }
    write(output, uniform_pairs, torch.arange(2 * count).chunk(2)[1], uniform, how, results, studies)


# ---- Output ----


def write(
    folder: Path,
    pairs: FeaturePairs,
    held_out: Tensor,
    trained: Trained,
    how: Training,
    results: dict[str, Any],
    studies: dict[str, list[StudyRow]],
) -> None:
    """The head (for torch.nn.Linear(features, 1, bias=False)), everything printed and more as JSON, and the picture."""
    head, metrics, picture = (folder / name for name in ("reward_head.pt", "metrics.json", "reward_model.png"))
    torch.save({"weight": trained.head[None]}, head)
    results = {
        **results,
        "curve": [point._asdict() for point in trained.curve],
        "settings": vars(how),
        "versions": {"prefloss": prefloss.__version__, "torch": torch.__version__},
    }
    metrics.write_text(json.dumps(results, indent=2) + "\n")
    margins = rewards(pairs.chosen, trained.head) - rewards(pairs.rejected, trained.head)
    draw(picture, trained.curve, margins[held_out].numpy(), studies)
    print(f"\nWritten: {head}, {metrics}, {picture}")


def _results(trained: Trained) -> dict[str, Any]:
    return {"training": _summary(trained.training), "held_out": _summary(trained.held_out)}


def _summary(stats: prefloss.PairStats) -> dict[str, Any]:
    return {
        "pairs": stats.count,
        "loss": stats.loss,
        "standard_error": stats.standard_error,
        "interval_95": stats.confidence_interval(0.95),
        "effective_sample_size": stats.effective_sample_size,
        "accuracy": stats.accuracy,
        "mean_margin": stats.mean_margin,
    }


# ---- Command line ----


def _number(kind: type[int] | type[float], low: float, high: float = math.inf) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = kind(text)
        if not low <= value <= high or math.isinf(value):
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return value

    convert.__name__ = kind.__name__  # argparse's messages say "invalid int value"
    return convert


def _parser() -> argparse.ArgumentParser:
    text = (__doc__ or "").partition("\n\n")[2]
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = parser.add_argument_group("your own pairs")
    world = parser.add_argument_group("a known world's, without --data")
    training = parser.add_argument_group("training")

    def add(group: argparse._ArgumentGroup, name: str, metavar: str, text: str, **kind: Any) -> None:
        default = " (%(default)s)" if "default" in kind else ""
        group.add_argument(name, metavar=metavar, help=text + default, **kind)

    add(own, "--data", "PATH", "a .jsonl, .jsonl.gz, .parquet or .npz file", type=Path)
    add(own, "--embedding-model", "NAME", "of sentence-transformers, or a folder; without it, words are hashed")
    add(own, "--held-out", "SHARE", "of the pairs, to measure on", type=_number(float, 0.01, 0.99), default=0.25)
    add(world, "--pairs", "N", "to train on; as many are held out", type=_number(int, 10), default=500)
    add(world, "--repeats", "N", "samples to check the intervals with", type=_number(int, 2), default=1000)
    add(training, "--epochs", "N", "passes over the pairs", type=_number(int, 1), default=20)
    add(training, "--batch-size", "N", "pairs a step", type=_number(int, 1), default=64)
    add(training, "--learning-rate", "X", "AdamW's, at the start", type=_number(float, 0, 1000), default=0.03)
    add(training, "--weight-decay", "X", "AdamW's", type=_number(float, 0, 1000), default=0.1)
    add(training, "--seed", "N", "of everything random", type=_number(int, 0, 2**63 - 1), default=0)
    add(training, "--output", "FOLDER", "gets head, metrics and picture", type=Path, default=Path("reward_model"))
    return parser


def main() -> None:
    parser = _parser()
    given = parser.parse_args()
    if given.embedding_model is not None and given.data is None:
        parser.error("--embedding-model is for the text of --data")
    how = Training(given.epochs, given.batch_size, given.learning_rate, given.weight_decay, given.seed)
    try:
        try:
            given.output.mkdir(parents=True, exist_ok=True)  # before the work, not after it
        except OSError as error:
            raise InputError(f"--output {given.output}: {error.strerror}") from error
        if given.data is not None:
            run_data(given.data, given.embedding_model, given.held_out, how, given.output)
        else:
            run_world(given.pairs, given.repeats, how, given.output)
    except InputError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends the script, as it ends other commands
    main()
