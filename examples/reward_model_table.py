"""The tables of a run: what the pairs say about the loss, beside the truth where that is known."""

from __future__ import annotations

import math

from synthetic_preferences import StudyRow

import prefloss


def print_losses(
    training: prefloss.PairStats,
    held_out: prefloss.PairStats,
    expected_loss: float | None = None,
    expected_accuracy: float | None = None,
    least_loss: float | None = None,
) -> None:
    """The empirical losses of the trained head, and the expected one where it is known."""
    print("\nLoss of the trained head, in nats a pair; a head that knows nothing has log 2 = 0.6931\n")
    print(f"{'':36}{'pairs':>7}{'loss':>9}{'95 % interval':>18}{'accuracy':>11}")
    for name, stats in (("training pairs", training), ("held-out pairs", held_out)):
        verdict = "" if expected_loss is None else f"  {_verdict(stats, expected_loss)}"
        print(f"{name:36}{stats.count:7}{_loss(stats)}{100 * stats.accuracy:9.1f} %{verdict}")
    if expected_loss is not None and expected_accuracy is not None:
        print(f"{'expected (known exactly)':36}{'':7}{expected_loss:9.4f}{'':18}{100 * expected_accuracy:9.1f} %")
    if least_loss is not None:
        print(f"{'the least there is: true rewards':36}{'':7}{least_loss:9.4f}")


def print_narrow_losses(title: str, lines: dict[str, tuple[prefloss.PairStats, float]]) -> None:
    """Each line's statistics beside the expected loss of its head over the whole population."""
    print(f"\n{title}\n")
    print(f"{'':36}{'pairs':>7}{'loss':>9}{'95 % interval':>18}{'effective':>11}{'expected':>10}")
    for name, (stats, expected) in lines.items():
        verdict = _verdict(stats, expected)
        print(f"{name:36}{stats.count:7}{_loss(stats)}{stats.effective_sample_size:11.0f}{expected:10.4f}  {verdict}")


def print_interval_studies(studies: dict[str, list[StudyRow]], repeats: int) -> None:
    """How the intervals close with the number of pairs, and how often they hold the expected loss."""
    expected = studies["narrow"][0].expected_loss
    print(
        f"\n95 % intervals from n pairs: means of {repeats} collections, and how many of them hold the expected loss\n"
    )
    print(f"{'':8}{'uniform':^32}  {'narrow':^25}  {'narrow, weight=ratio':^37}".rstrip())
    print(f"{'n':>8}{'+-':>9}{'+- x sqrt(n)':>14}{'hold':>9}", end="  ")
    print(f"{'loss':>7}{'+-':>9}{'hold':>9}", end="  ")
    print(f"{'effective n':>12}{'loss':>8}{'+-':>8}{'hold':>9}")
    for uniform, narrow, weighted in zip(studies["uniform"], studies["narrow"], studies["weighted"], strict=True):
        closing = uniform.half_width * math.sqrt(uniform.pairs)
        print(f"{uniform.pairs:8}{uniform.half_width:9.4f}{closing:14.3f}{100 * uniform.coverage:7.1f} %", end="  ")
        print(f"{narrow.loss:7.4f}{narrow.half_width:9.4f}{100 * narrow.coverage:7.1f} %", end="  ")
        print(f"{weighted.effective_sample_size:12.0f}{weighted.loss:8.4f}{weighted.half_width:8.4f}", end="")
        print(f"{100 * weighted.coverage:7.1f} %")
    print(
        f"""
The uniform interval closes as 1/sqrt(n). The narrow one closes as well, but around the loss of its own group: it never
holds the expected loss, {expected:.4f}. weight=ratio, the density of the population over that of the collection, moves it
there, at the price of effective pairs; of fewer than some hundred, the interval promises a little too much."""
    )


def _loss(stats: prefloss.PairStats) -> str:
    low, high = stats.confidence_interval(0.95)
    return f"{stats.loss:9.4f}  [{low:.4f}, {high:.4f}]"


def _verdict(stats: prefloss.PairStats, expected: float) -> str:
    low, high = stats.confidence_interval(0.95)
    return "holds the expected loss" if low <= expected <= high else "MISSES the expected loss"
