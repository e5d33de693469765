"""Train a reward model's linear head on preference pairs, and say how well its loss is known.

    python train_reward_model.py                          preferences from a known Bradley-Terry model: the expected
                                                          loss is known, and held against what the pairs say about it
    python train_reward_model.py --data pairs.jsonl       your pairs: JSONL, JSONL.gz or Parquet with "chosen" and
                                                          "rejected" (text or chat messages), or .npz feature vectors
    python train_reward_model.py --data pairs.jsonl --embedding-model all-MiniLM-L6-v2

Writes the trained head, metrics and a picture into --output. Needs `pip install 'prefloss[examples]'`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from preference_data import BadInput, FeaturePairs, load, rewards, rows, typical_distance
from reward_model_figure import CurvePoint, draw
from synthetic_preferences import EXPERTS, EXPERTS_COLLECTED, WIDTH, Collection, StudyRow, World
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

import prefloss

NARROW = 8  # so many times the pairs where the collection is narrow: most of them say little
# Features are scaled so that a chosen and its rejected response lie this far apart (root mean square), whatever the
# features are: the default learning rate and weight decay are right for this distance.
DISTANCE = 1.0


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
    """A head for the features as given, (features,) float32, and what its loss was after each epoch."""

    head: Tensor
    curve: list[CurvePoint]
    training: prefloss.PairStats
    held_out: prefloss.PairStats
    held_out_margins: Tensor


def train(
    pairs: FeaturePairs,
    training: Tensor,
    held_out: Tensor,
    how: Training,
    *,
    name: str,
    weight: Tensor | None = None,
    expected_loss: Callable[[Tensor], float] | None = None,
) -> Trained:
    """Minimise the empirical loss of the pairs numbered `training` (int64) with AdamW; `held_out` is only looked at.

    Args:
        weight: (pairs,), for training and evaluation.
        expected_loss: of a head, where it is known.
    """
    scale = DISTANCE / typical_distance(pairs, training)
    head = torch.nn.Linear(pairs.chosen.shape[1], 1, bias=False)  # a bias would cancel
    torch.nn.init.zeros_(head.weight)
    optimizer = torch.optim.AdamW(head.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay)
    batches = math.ceil(len(training) / how.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.epochs * batches)
    mean_weight = 1.0 if weight is None else weight[training].double().mean().item()
    order = torch.Generator().manual_seed(how.seed)

    def evaluate() -> Trained:
        vector = scale * head.weight.detach()[0]
        chosen, rejected = rewards(pairs.chosen, vector), rewards(pairs.rejected, vector)
        stats = []
        for index in (training, held_out):
            weights = None if weight is None else weight[index]
            stats.append(
                prefloss.bradley_terry_loss(chosen[index], rejected[index], weight=weights, return_stats=True)[1]
            )
        expected = None if expected_loss is None else expected_loss(vector)
        curve.append(CurvePoint(stats[0].loss, stats[1].loss, *stats[1].confidence_interval(0.95), expected))
        return Trained(vector, curve, *stats, (chosen - rejected)[held_out])

    curve: list[CurvePoint] = []
    result = evaluate()
    with tqdm(total=how.epochs * batches, desc=name, unit="step", leave=True, file=sys.stderr) as progress:
        for _ in range(how.epochs):
            for batch in training[torch.randperm(len(training), generator=order)].split(how.batch_size):
                # The batch's own total weight as the divisor would count a pair for more in a light batch.
                loss = prefloss.bradley_terry_loss(
                    head(scale * rows(pairs.chosen, batch))[:, 0],
                    head(scale * rows(pairs.rejected, batch))[:, 0],
                    weight=None if weight is None else weight[batch],
                    denominator=mean_weight * len(batch),
                )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                progress.update()
            result = evaluate()
            if not math.isfinite(result.held_out.loss):
                raise BadInput(f"the loss is no longer finite; lower --learning-rate ({how.learning_rate:g})")
            progress.set_postfix_str(f"training {result.training.loss:.4f}, held-out {result.held_out.loss:.4f}")
    return result


def split(pairs: FeaturePairs, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the training and the held-out pairs. Pairs of one prompt stay together: they aren't independent."""
    random = np.random.default_rng(seed)
    wanted = max(2, round(share * len(pairs)))
    prompts = pairs.prompt
    for groups in (prompts, np.arange(len(pairs))):  # pair by pair where the prompts are too few to be divided
        position = random.permutation(groups.max() + 1)[groups]
        cut = np.sort(position)[min(wanted, len(pairs)) - 1]
        held_out = position <= cut
        if held_out.sum() <= len(pairs) - 2:
            return torch.from_numpy(np.flatnonzero(~held_out)), torch.from_numpy(np.flatnonzero(held_out))
    raise BadInput(f"{len(pairs)} preference pairs are too few to hold out {wanted} of them and train on 2 or more")


# ---- Runs ----


def run_data(arguments: argparse.Namespace, how: Training) -> tuple[Trained, dict[str, Any]]:
    """Train on --data; returns the head and what goes into the metrics."""
    try:
        pairs = load(arguments.data, arguments.embedding_model)
        training, held_out = split(pairs, arguments.held_out, how.seed)
    except BadInput as error:
        at = str(arguments.data)
        raise error if at in str(error) or "--" in str(error) else BadInput(f"{at}: {error}") from error
    print(f"{arguments.data}: {len(pairs)} pairs; {pairs.features}")
    trained = train(pairs, training, held_out, how, name="training")
    print("\nLoss of the trained head, in nats a pair (a head that knows nothing: log 2 = 0.6931)\n")
    _print_header()
    _print_loss("training pairs", trained.training)
    _print_loss("held-out pairs", trained.held_out)
    print("\nThe held-out line estimates the loss on new pairs like these; the training line has seen its own.")
    return trained, {
        "data": str(arguments.data),
        "features": pairs.features,
        "training": _loss_json(trained.training),
        "held_out": _loss_json(trained.held_out),
    }


def run_world(pairs: int, repeats: int, how: Training) -> tuple[Trained, dict[str, Any], dict[str, list[StudyRow]]]:
    """Train on preferences of a known world; returns the head, what goes into the metrics, and the interval studies."""
    world = World(how.seed)

    def train_on(sample: Collection, name: str, weight: Tensor | None = None) -> Trained:
        features = world.features.numpy()
        count = len(sample.chosen)
        data = FeaturePairs(features[sample.chosen], features[sample.rejected], np.arange(count), f"{WIDTH} numbers")
        training, held_out = torch.arange(count).chunk(2)
        return train(data, training, held_out, how, name=name, weight=weight, expected_loss=world.expected_loss)

    uniform = train_on(world.collect(2 * pairs), "uniform collection ")
    collected = world.collect(2 * NARROW * pairs, narrow=True)
    naive = train_on(collected, "narrow collection  ")
    weighted = train_on(collected, "narrow, with weight", collected.ratio)
    reweighted = _evaluate(world, naive.head, collected, NARROW * pairs)

    studies = {}
    with tqdm(total=15, desc="repeated sampling  ", unit="size", file=sys.stderr) as progress:
        for name, head, narrow, weights in (
            ("uniform", uniform.head, False, False),
            ("narrow", naive.head, True, False),
            ("weighted", naive.head, True, True),
        ):
            studies[name] = world.study(head, repeats, narrow=narrow, weighted=weights, advance=progress.update)

    expected, narrow_expected, weighted_expected = (
        world.expected_loss(trained.head) for trained in (uniform, naive, weighted)
    )
    print("\nLoss of the trained head, in nats a pair (a head that knows nothing: log 2 = 0.6931)\n")
    _print_header()
    _print_loss("training pairs", uniform.training, expected)
    _print_loss("held-out pairs", uniform.held_out, expected)
    accuracy = world.expected_accuracy(uniform.head)
    print(f"{'expected (known exactly)':36}{'':8}{expected:9.4f}{'':22}{100 * accuracy:10.1f} %")
    print(f"{'the least there is: true rewards':36}{'':8}{world.least_loss:9.4f}")

    print("\nThe interval of the held-out loss closes as 1/sqrt(n)\n")
    print(f"{'pairs':>8}{'+-':>9}{'+- x sqrt(n)':>14}{'holds the expected loss':>26}")
    for row in studies["uniform"]:
        width = row.half_width
        print(f"{row.pairs:8}{width:9.4f}{width * math.sqrt(row.pairs):14.3f}{100 * row.coverage:24.1f} %")

    print(
        f"\nA narrow collection: experts judge {100 * EXPERTS:.0f} % of all pairs, "
        f"but {100 * EXPERTS_COLLECTED:.0f} % of those collected\n"
    )
    _print_header()
    _print_loss("trained as collected: held-out", naive.held_out, narrow_expected)
    _print_loss("  the same with weight=ratio", reweighted, narrow_expected)
    print(f"{'  expected':36}{'':8}{narrow_expected:9.4f}")
    _print_loss("trained with weight=ratio: held-out", weighted.held_out, weighted_expected)
    print(f"{'  expected':36}{'':8}{weighted_expected:9.4f}")
    print(f"\n{'pairs':>8}{'as collected':>16}{'holds it':>10}{'weight=ratio':>18}{'holds it':>10}{'effective':>12}")
    for as_is, ratio in zip(studies["narrow"], studies["weighted"], strict=True):
        print(
            f"{as_is.pairs:8}{as_is.loss:9.4f} +-{as_is.half_width:6.3f}{100 * as_is.coverage:7.1f} %"
            f"{ratio.loss:10.4f} +-{ratio.half_width:6.3f}{100 * ratio.coverage:7.1f} %{ratio.effective_sample_size:12.0f}"
        )
    print(f"\nShare of {repeats} repetitions whose 95 % interval holds the expected loss of the head trained as collected.")
    metrics = {
        "training": _loss_json(uniform.training),
        "held_out": _loss_json(uniform.held_out),
        "expected": {"loss": expected, "accuracy": accuracy, "least_loss": world.least_loss},
        "narrow": {
            "held_out": _loss_json(naive.held_out),
            "held_out_weighted": _loss_json(reweighted),
            "expected_loss": narrow_expected,
            "trained_weighted": {"held_out": _loss_json(weighted.held_out), "expected_loss": weighted_expected},
        },
        "intervals": {name: [row.to_json() for row in table] for name, table in studies.items()},
    }
    return uniform, metrics, studies


def _evaluate(world: World, head: Tensor, sample: Collection, first: int) -> prefloss.PairStats:
    """Of the collection's pairs from number `first` on, weighted by the density ratio."""
    values = world.rewards(head)
    chosen, rejected, ratio = sample.chosen[first:], sample.rejected[first:], sample.ratio[first:]
    return prefloss.bradley_terry_loss(values[chosen], values[rejected], weight=ratio, return_stats=True)[1]


# ---- Output ----


def _print_header() -> None:
    print(f"{'':36}{'pairs':>8}{'loss':>9}{'95 % interval':>22}{'accuracy':>12}")


def _print_loss(name: str, stats: prefloss.PairStats, expected: float | None = None) -> None:
    low, high = stats.confidence_interval(0.95)
    verdict = ""
    if expected is not None:
        verdict = "  holds the expected loss" if low <= expected <= high else "  MISSES the expected loss"
    size = stats.effective_sample_size
    effective = f"; worth {size:.0f} pairs" if size < 0.999 * stats.count else ""
    interval = f"[{low:.4f}, {high:.4f}]"
    print(f"{name:36}{stats.count:8}{stats.loss:9.4f}{interval:>22}{100 * stats.accuracy:10.1f} %{verdict}{effective}")


def _loss_json(stats: prefloss.PairStats) -> dict[str, Any]:
    return {
        "pairs": stats.count,
        "loss": stats.loss,
        "standard_error": stats.standard_error,
        "interval_95": stats.confidence_interval(0.95),
        "effective_sample_size": stats.effective_sample_size,
        "accuracy": stats.accuracy,
        "mean_margin": stats.mean_margin,
    }


def _number(kind: type[int] | type[float], low: float, high: float = math.inf) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = kind(text)
        if not low <= value <= high or math.isinf(value):
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return value

    convert.__name__ = kind.__name__  # argparse's messages say "invalid int value"
    return convert


def _parser() -> argparse.ArgumentParser:
    usage, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=usage, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="PATH", help="preference pairs: .jsonl, .jsonl.gz, .parquet or .npz")
    parser.add_argument("--embedding-model", metavar="NAME", help="of sentence-transformers, or a folder; for text")
    parser.add_argument("--output", type=Path, default=Path("reward_model"), metavar="FOLDER", help="%(default)s")
    parser.add_argument("--held-out", type=_number(float, 0.01, 0.99), default=0.25, help="share of --data: %(default)s")
    parser.add_argument("--epochs", type=_number(int, 1), default=20, help="%(default)s")
    parser.add_argument("--batch-size", type=_number(int, 1), default=64, help="%(default)s")
    parser.add_argument("--learning-rate", type=_number(float, 0), default=0.03, help="%(default)s")
    parser.add_argument("--weight-decay", type=_number(float, 0), default=0.1, help="%(default)s")
    parser.add_argument("--pairs", type=_number(int, 10), default=1000, help="to train on without --data: %(default)s")
    parser.add_argument("--repeats", type=_number(int, 2), default=1000, help="of the sampling without --data: %(default)s")
    parser.add_argument("--seed", type=_number(int, 0, 2**63 - 1), default=0, help="%(default)s")
    return parser


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.embedding_model is not None and arguments.data is None:
        parser.error("--embedding-model is for the text of --data")
    how = Training(
        arguments.epochs, arguments.batch_size, arguments.learning_rate, arguments.weight_decay, arguments.seed
    )
    studies: dict[str, list[StudyRow]] = {}
    try:
        try:
            arguments.output.mkdir(parents=True, exist_ok=True)  # before the work, not after it
        except OSError as error:
            raise BadInput(f"--output {arguments.output}: {error.strerror}") from error
        if arguments.data is not None:
            trained, metrics = run_data(arguments, how)
        else:
            trained, metrics, studies = run_world(arguments.pairs, arguments.repeats, how)
    except BadInput as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    metrics["curve"] = [point._asdict() for point in trained.curve]
    metrics["settings"] = vars(how)
    metrics["versions"] = {"prefloss": prefloss.__version__, "torch": torch.__version__}
    files = [arguments.output / name for name in ("reward_head.pt", "metrics.json", "reward_model.png")]
    torch.save({"weight": trained.head[None]}, files[0])  # torch.nn.Linear(features, 1, bias=False).load_state_dict
    files[1].write_text(json.dumps(metrics, indent=2) + "\n")
    expected = metrics.get("narrow", {}).get("expected_loss")
    draw(files[2], trained.curve, trained.held_out_margins.numpy(), studies, expected)
    print("\nWritten: " + ", ".join(map(str, files)))


if __name__ == "__main__":
    main()
