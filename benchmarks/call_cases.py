"""Small calls, where what surrounds the kernel decides: each option, form and layout, against the simplest composed form.

Where a user would write either of two forms, both compete, and the faster one counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from contenders import OURS_WITH_OPTIONS, THEIRS, Contender, Expected, LossFunction, as_array, check_gradients, step
from torch import Tensor

import prefloss
from prefloss import reference

SMALL = (64, 1_024)
MINE, ITS = OURS_WITH_OPTIONS, THEIRS[torch.float32]


class Call(NamedTuple):
    """What is called: ours, the composed forms, and the reference's options; tensors are drawn by name."""

    ours: LossFunction
    composed: tuple[LossFunction, ...]
    options: dict[str, Any] = {}  # noqa: RUF012  of the reference; a name of a tensor stands for its values
    must: float = 0.85
    aim: float = 0.65


def losses(chosen: Tensor, rejected: Tensor) -> Tensor:
    return -F.logsigmoid(chosen - rejected)


def eager(chosen: Tensor, rejected: Tensor) -> Tensor:
    return losses(chosen, rejected).mean()


def smoothed(z: Tensor, share: float | Tensor) -> Tensor:
    """The loss where `share` of the pairs are the other way round."""
    return -(1.0 - share) * F.logsigmoid(z) - share * F.logsigmoid(-z)


class Composed(torch.nn.Module):
    def forward(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return eager(chosen, rejected)


def with_statistics(chosen: Tensor, rejected: Tensor) -> Tensor:
    """What a trainer logs: accuracy, mean margin and rewards, standard error of the loss."""
    terms = losses(chosen, rejected)
    with torch.no_grad():
        margin = chosen - rejected
        logged = (margin > 0).float().mean(), margin.mean(), chosen.mean(), rejected.mean()
        error = terms.std() / len(terms) ** 0.5
    assert len((*logged, error)) == 5
    return terms.mean()


def calls(tensors: dict[str, Tensor]) -> dict[str, Call]:
    """Every option alone, over pairs."""
    ours = prefloss.bradley_terry_loss
    margin, weight, mask, target = (tensors[name] for name in ("margin", "weight", "mask", "target"))
    count, number, truth = mask.sum(), tensors["number"], mask.float()
    module, composed = prefloss.BradleyTerryLoss(), Composed()
    return {
        "margin number": Call(
            partial(ours, margin=0.7), (lambda a, b: -F.logsigmoid(a - b - 0.7).mean(),), {"margin": 0.7}
        ),
        "margin": Call(
            partial(ours, margin=margin), (lambda a, b: -F.logsigmoid(a - b - margin).mean(),), {"margin": margin}
        ),
        "weight": Call(
            partial(ours, weight=weight),
            (lambda a, b: (weight * losses(a, b)).sum() / weight.sum(),),
            {"weight": weight},
        ),
        "mask": Call(
            partial(ours, weight=mask),
            (lambda a, b: (mask * losses(a, b)).sum() / mask.sum(), lambda a, b: losses(a, b)[mask].mean()),
            {"weight": truth},
        ),
        "target": Call(
            partial(ours, target=target),
            (
                lambda a, b: F.binary_cross_entropy_with_logits(a - b, target),
                lambda a, b: smoothed(a - b, 1.0 - target).mean(),
            ),
            {"target": target},
        ),
        "beta": Call(partial(ours, beta=0.1), (lambda a, b: -F.logsigmoid(0.1 * (a - b)).mean(),), {"beta": 0.1}),
        "label smoothing": Call(
            partial(ours, label_smoothing=0.1), (lambda a, b: smoothed(a - b, 0.1).mean(),), {"label_smoothing": 0.1}
        ),
        "centring": Call(
            partial(ours, center_rewards_coefficient=0.01),
            (lambda a, b: losses(a, b).mean() + 0.01 * torch.mean((a + b) ** 2),),
            {"center_rewards_coefficient": 0.01},
        ),
        "sum": Call(partial(ours, reduction="sum"), (lambda a, b: losses(a, b).sum(),), {"reduction": "sum"}),
        "none": Call(lambda a, b: ours(a, b, reduction="none").mean(), (eager,), must=0.95),
        "denominator number": Call(
            partial(ours, denominator=70.0), (lambda a, b: losses(a, b).sum() / 70.0,), {"denominator": 70.0}
        ),
        "denominator tensor": Call(
            partial(ours, denominator=number),
            (lambda a, b: losses(a, b).sum() / number,),
            {"denominator": number},
            aim=0.7,
        ),
        "denominator integer, mask": Call(
            partial(ours, weight=mask, denominator=count),
            (lambda a, b: (mask * losses(a, b)).sum() / count,),
            {"weight": truth, "denominator": count},
            aim=0.7,
        ),
        "statistics": Call(lambda a, b: ours(a, b, return_stats=True)[0], (with_statistics,)),
        "module": Call(lambda a, b: module(a, b), (lambda a, b: composed(a, b),), must=0.75),
    }


ALONE = (
    *("margin number", "margin", "weight", "mask", "target", "beta", "label smoothing", "centring", "sum", "none"),
    *("denominator number", "denominator tensor", "denominator integer, mask", "statistics", "module"),
)
FORMS = ("halves", "interleaved")
STRIDES = ("slices", "slices, options", "transposed", "transposed, options", "expanded", "expanded, options")
SQUARES = ((4, 4), (16, 9), (64, 9), (64, 64))
ONE_POSITIVE = (51, 101, 1_001)  # items of each of 32 groups
INDEXED = {64: 100, 1_024: 1_000, 4_096: 10_000, 65_536: 10_000}  # comparisons: items
COMPILED = (64, 4_096, 262_144)
NAMES = (
    *((f"call {name}", size) for name in (*ALONE, *FORMS) for size in SMALL),
    *((f"call {name}", 1_024) for name in STRIDES),
    *((f"call {groups} groups of {size}", groups * size) for groups, size in SQUARES),
    *((f"call one positive of {size}", 32 * size) for size in ONE_POSITIVE),
    *((f"call indexed, {items} items", count) for count, items in INDEXED.items()),
    *(("call compiled", size) for size in COMPILED),
    ("call func.grad", 64),
)


def limit(kind: str, size: int) -> tuple[float, float]:
    """(must, aim): our time over the composed form's."""
    name = kind.removeprefix("call ")
    if name in STRIDES:
        return (1.0 if name.startswith("expanded") else 0.9), 0.7
    if "groups of" in name:
        return {(4, 4): (0.75, 0.5), (16, 9): (0.75, 0.5), (64, 9): (0.5, 0.25), (64, 64): (0.1, 0.07)}[_square(name)]
    if name.startswith("one positive"):
        return 1.0, 0.6
    if name.startswith("indexed"):
        return (0.4 if size == 65_536 else 0.75), 0.6 if size < 65_536 else 0.3
    if name == "compiled":
        return (1.35, 1.2) if size <= 4_096 else (1.0, 0.7)
    if name == "func.grad":
        return 2.5, 1.5
    if name in FORMS:
        return 0.85, 0.65
    call = calls(_tensors(1, torch.Generator()))[name]
    return call.must, call.aim


def _square(name: str) -> tuple[int, int]:
    groups, _, _, size = name.split()
    return int(groups), int(size)


def _tensors(size: int, generator: torch.Generator) -> dict[str, Tensor]:
    margin, weight, target = torch.rand(3, size, generator=generator)
    mask = torch.rand(size, generator=generator) < 0.7
    mask[0] = True
    return {"margin": margin, "weight": weight, "mask": mask, "target": target, "number": torch.tensor(70.0)}


def contenders_of(kind: str, size: int, generator: torch.Generator, compiled: bool) -> dict[str, Contender]:
    name = kind.removeprefix("call ")
    pair = (torch.randn(size, generator=generator) + 0.5, torch.randn(size, generator=generator))
    if name in FORMS:
        return _stacked(name, pair)
    if name in STRIDES:
        return _strided(name, generator)
    if "groups of" in name:
        groups, items = _square(name)
        ranks = torch.rand(groups, items, generator=generator).argsort(1)
        return _grouped(ranks, _all_pairs(ranks), generator)
    if name.startswith("one positive"):
        ranks = torch.ones(32, size // 32, dtype=torch.int64)
        ranks[:, 0] = 0
        return _grouped(ranks, (lambda rewards: losses(rewards[:, :1], rewards[:, 1:]).mean(),), generator)
    if name.startswith("indexed"):
        return _indexed(INDEXED[size], size, generator)
    leaves = tuple(tensor.requires_grad_() for tensor in pair)
    if name == "func.grad":
        return {
            "prefloss": _functional(prefloss.bradley_terry_loss, pair),
            "composed": _functional(eager, pair),
        }
    if name == "compiled":
        if not compiled:
            return {"prefloss": step(prefloss.bradley_terry_loss, leaves, _paired(leaves, {}), MINE)}
        torch._dynamo.reset()
        ours, theirs = (
            torch.compile(loss, fullgraph=True, dynamic=False)
            for loss in (lambda a, b: prefloss.bradley_terry_loss(a, b), eager)
        )
        return _steps(ours, (theirs,), leaves, _paired(leaves, {}))
    call = calls(_tensors(size, generator))[name]
    return _steps(call.ours, call.composed, leaves, _paired(leaves, call.options))


def _steps(
    ours: LossFunction, composed: tuple[LossFunction, ...], leaves: tuple[Tensor, ...], expected: Callable[[], Expected]
) -> dict[str, Contender]:
    names = ("composed", "composed, second form")
    return {
        "prefloss": step(ours, leaves, expected, MINE),
        **{name: step(loss, leaves, expected, ITS) for name, loss in zip(names, composed, strict=False)},
    }


def _paired(
    pair: tuple[Tensor, ...],
    options: dict[str, Any],
    gradients: Callable[..., tuple[Tensor, ...]] = lambda a, b: (a, b),
) -> Callable[[], Expected]:
    """The reference's results; `gradients` makes those of the leaves from those of chosen and rejected."""

    @cache
    def compute() -> Expected:
        arrays = [as_array(tensor) for tensor in pair]
        given: dict[str, Any] = {
            name: as_array(value) if isinstance(value, Tensor) else value for name, value in options.items()
        }
        loss = np.asarray(reference.bradley_terry_loss(*arrays, **given))
        chosen, rejected, _ = reference.bradley_terry_gradient(1.0, *arrays, **given)
        return Expected(float(loss), gradients(torch.from_numpy(chosen), torch.from_numpy(rejected)))

    return compute


def _functional(loss: LossFunction, pair: tuple[Tensor, ...]) -> Contender:
    given = tuple(tensor.detach() for tensor in pair)
    gradient = torch.func.grad(loss, argnums=(0, 1))

    def check() -> float:
        check_gradients(gradient(*given), _paired(given, {})(), ITS)
        return 0.0

    return Contender(lambda: gradient(*given), check)


def _stacked(name: str, pair: tuple[Tensor, ...]) -> dict[str, Contender]:
    """One tensor of rewards, as one forward pass over all responses gives it."""
    halves = name == "halves"
    rewards = (torch.cat(pair) if halves else torch.stack(pair, 1).flatten()).requires_grad_()
    composed: tuple[LossFunction, ...] = (lambda rewards: eager(*rewards.chunk(2)),)
    if not halves:
        composed = (
            lambda rewards: eager(rewards[::2], rewards[1::2]),
            lambda rewards: eager(*rewards.view(-1, 2).unbind(1)),
        )

    def gradients(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, ...]:
        return (torch.cat((chosen, rejected)) if halves else torch.stack((chosen, rejected), 1).flatten(),)

    ours = partial(prefloss.bradley_terry_loss_stacked, layout=name)
    return _steps(ours, composed, (rewards,), _paired(pair, {}, gradients))


def _strided(name: str, generator: torch.Generator) -> dict[str, Contender]:
    """(16, 64) pairs of which memory holds more, or in another order, or once for many."""

    def draw(rows: int = 16, columns: int = 64) -> Tensor:
        if name.startswith("slices"):
            return torch.rand(rows, columns + 1, generator=generator)[:, :-1]
        if name.startswith("transposed"):
            return torch.rand(columns, rows, generator=generator).mT
        return torch.rand(rows, columns, generator=generator)

    expanded, with_options = name.startswith("expanded"), name.endswith("options")
    chosen, rejected = (
        draw().requires_grad_(),
        draw(columns=1 if expanded and not with_options else 64).requires_grad_(),
    )
    options: dict[str, Any] = {}
    if with_options:
        margin, weight = (draw(columns=1 if expanded else 64).expand(16, 64) for _ in range(2))
        options = {"margin": margin, "weight": weight}

    def ours(chosen: Tensor, rejected: Tensor) -> Tensor:
        loss: Tensor = prefloss.bradley_terry_loss(chosen, rejected.expand_as(chosen), **options)
        return loss

    def composed(chosen: Tensor, rejected: Tensor) -> Tensor:
        return (weight * losses(chosen, rejected + margin)).sum() / weight.sum() if options else eager(chosen, rejected)

    def gradients(first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        return first, second.sum(1, keepdim=True) if rejected.shape[1] == 1 else second

    expected = _paired((chosen, rejected.expand_as(chosen)), options, gradients)
    return _steps(ours, (composed,), (chosen, rejected), expected)


def _all_pairs(ranks: Tensor) -> tuple[LossFunction, ...]:
    """By index, best first; and by a mask over every pair."""
    size = ranks.shape[1]
    first, second = torch.triu_indices(size, size, 1)

    def by_index(rewards: Tensor) -> Tensor:
        best_first = rewards.gather(1, ranks.argsort(1))
        return losses(best_first.index_select(1, first), best_first.index_select(1, second)).mean()

    def by_mask(rewards: Tensor) -> Tensor:
        preferred = ranks[:, :, None] < ranks[:, None, :]
        return (losses(rewards[:, :, None], rewards[:, None, :]) * preferred).sum() / preferred.sum()

    return by_index, by_mask


def _grouped(ranks: Tensor, composed: tuple[LossFunction, ...], generator: torch.Generator) -> dict[str, Contender]:
    rewards = torch.randn(ranks.shape, generator=generator).requires_grad_()

    @cache
    def expected() -> Expected:
        arrays = as_array(rewards), as_array(ranks)
        gradient = reference.bradley_terry_gradient_grouped(1.0, *arrays)
        loss = float(np.asarray(reference.bradley_terry_loss_grouped(*arrays)))
        return Expected(loss, (torch.from_numpy(gradient),))

    return _steps(lambda rewards: prefloss.bradley_terry_loss_grouped(rewards, ranks), composed, (rewards,), expected)


def _indexed(items: int, count: int, generator: torch.Generator) -> dict[str, Contender]:
    scores = torch.randn(items, generator=generator).requires_grad_()
    chosen, rejected = torch.randint(items, (2, count), generator=generator)

    @cache
    def expected() -> Expected:
        arrays = as_array(scores), as_array(chosen), as_array(rejected)
        gradient, _ = reference.bradley_terry_gradient_indexed(1.0, *arrays)
        loss = float(np.asarray(reference.bradley_terry_loss_indexed(*arrays)))
        return Expected(loss, (torch.from_numpy(gradient),))

    def ours(scores: Tensor) -> Tensor:
        return prefloss.bradley_terry_loss_indexed(scores, chosen, rejected)

    by_index, by_select = (
        lambda scores: eager(scores[chosen], scores[rejected]),
        lambda scores: eager(scores.index_select(0, chosen), scores.index_select(0, rejected)),
    )
    return _steps(ours, (by_index, by_select), (scores,), expected)
