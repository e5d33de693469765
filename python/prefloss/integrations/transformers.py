"""The loss for `transformers.Trainer(compute_loss_func=...)`. It needs nothing of transformers itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..paired import Layout, bradley_terry_loss_stacked
from ..pairs import DEFAULTS

__all__ = ["compute_loss"]

IGNORED = -100  # as in torch's cross-entropy and in Trainer, which does not count such labels


def compute_loss(
    outputs: Any,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    *,
    layout: Layout = "halves",
    beta: float = DEFAULTS.beta,
    label_smoothing: float = DEFAULTS.label_smoothing,
    flip_rate: float = DEFAULTS.label_smoothing,
    center_rewards_coefficient: float = DEFAULTS.center_rewards_coefficient,
) -> Tensor:
    """The loss of a micro-batch of pairs, divided so that the micro-batches of a step add up to the mean over all its pairs.

    Pass it to `transformers.Trainer` as ``compute_loss_func=compute_loss``; with options, as
    ``compute_loss_func=functools.partial(compute_loss, center_rewards_coefficient=0.01)``:

    >>> import torch
    >>> from prefloss.integrations.transformers import compute_loss
    >>> logits = torch.tensor([[2.0], [0.5], [1.0], [1.5]])  # of two pairs: both chosen, both rejected
    >>> compute_loss((logits,), torch.ones(2), num_items_in_batch=2)
    tensor(0.8133)
    >>> compute_loss((logits,), torch.ones(2), num_items_in_batch=8)  # a quarter of a step of eight pairs
    tensor(0.2033)

    Trainer adds up what such a function returns over the micro-batches of a step, and does not divide it. With a mean over each
    micro-batch, the sum would be too large by their number. The right divisor is the number of labels in the step. Trainer counts
    it only where batches have ``labels``, so each batch must have them, one a pair.

    On several processes this is exact with Trainer's default, ``average_tokens_across_devices=True``. Otherwise each process takes
    the mean over its own pairs.

    Args:
        outputs: the model's output, with `.logits`, or a tuple whose first entry is the logits: one reward a response, shape (2B,)
            or (2B, 1).
        labels: (B,), integers or floats, one a pair: 1 where the first response is the better one, 0 where the second is, a
            probability in between, or -100 for a pair that does not count. Usually ones: ``torch.ones(B)``.
        num_items_in_batch: as Trainer gives it: the number of labels other than -100 in the whole step. None, for the mean over the
            pairs, is accepted only without gradients (evaluations of old versions).
        layout: "halves" is [chosen...; rejected...], "interleaved" is [chosen, rejected, chosen, rejected, ...].
        beta, label_smoothing, flip_rate, center_rewards_coefficient: see `prefloss.bradley_terry_loss`.

    Raises:
        ValueError: no labels, or not one a pair; no `num_items_in_batch` in training; several outputs a response;
            what `prefloss.bradley_terry_loss` raises for options.
        NotImplementedError: several GPUs in one process (`torch.nn.DataParallel`).
    """
    rewards = outputs[0] if isinstance(outputs, tuple) else outputs.logits
    if rewards.dim() == 2 and rewards.shape[1] == 1:
        rewards = rewards.squeeze(1)
    if rewards.dim() != 1:
        raise ValueError(
            f"the model must have one output a response, logits of shape (2B,) or (2B, 1), got {tuple(rewards.shape)}"
        )
    if labels is None:
        raise ValueError(
            "labels must be in each batch, one a pair, got None: without them Trainer does not count the pairs of a step, and "
            "accumulated gradients would be too large by the number of micro-batches; your collator can add torch.ones(B)"
        )
    pairs = len(rewards) // 2
    if labels.shape != (pairs,):
        raise ValueError(
            f"labels must have one entry a pair, shape ({pairs},) for {len(rewards)} rewards, got {tuple(labels.shape)}"
        )
    if num_items_in_batch is None and rewards.requires_grad:
        raise ValueError(
            "num_items_in_batch must be given while training, got None: by it the micro-batches of a step add up to its mean; "
            "transformers 4.46 and later give it where batches have labels"
        )
    if isinstance(num_items_in_batch, Tensor) and num_items_in_batch.numel() != 1:
        raise NotImplementedError(
            f"num_items_in_batch must have one entry, got {num_items_in_batch.numel()}: several GPUs in one process "
            "(torch.nn.DataParallel) are not supported; start a process for each with torchrun or accelerate launch"
        )
    counted = labels != IGNORED
    return bradley_terry_loss_stacked(
        rewards,
        layout=layout,
        weight=counted,
        target=torch.where(counted, labels, 1),
        beta=beta,
        label_smoothing=label_smoothing,
        flip_rate=flip_rate,
        center_rewards_coefficient=center_rewards_coefficient,
        denominator=num_items_in_batch,
    )
