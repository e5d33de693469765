"""From a value for each token to rewards and weights. Plain torch; nothing waits for a device that has assertions."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from .arguments import check_tensor, dtype_name
from .torch_internals import asserts

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def last_token(values: Tensor, *, attention_mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
    """The value at each sequence's last token: the reward of a model with a value head.

    >>> import prefloss, torch
    >>> values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    >>> prefloss.last_token(values, attention_mask=torch.tensor([[1, 1, 0], [0, 1, 1]]))
    tensor([2., 6.])
    >>> prefloss.last_token(values.flatten(), cu_seqlens=torch.tensor([0, 2, 6]))
    tensor([2., 6.])

    Args:
        values: (B, T) or (B, T, 1) with ``attention_mask``, (T,) or (T, 1) with ``cu_seqlens``; any floating-point dtype.
        attention_mask: (B, T), bool or integers: not 0 for the tokens that count. Padding may be on either side.
        cu_seqlens: (B + 1,) integers: where each of the packed sequences begins, and where the last one ends.

    Give exactly one of `attention_mask` and `cu_seqlens`, on the device of the values.

    Returns:
        (B,), differentiable, of the dtype of the values.

    Raises:
        TypeError: not a tensor, or a dtype that is not accepted.
        ValueError: shapes or devices that do not fit; a sequence without tokens. On a GPU the latter is an assertion on the
            device, so that the call does not wait for it.
    """
    check_tensor("values", values, "a floating-point tensor")
    if not values.is_floating_point():
        raise TypeError(
            f"values must be floating-point, got {dtype_name(values.dtype)}; cast them, for example values.float()"
        )
    if (attention_mask is None) == (cu_seqlens is None):
        given = "neither" if cu_seqlens is None else "both"
        raise ValueError(f"exactly one of attention_mask (padded) and cu_seqlens (packed) must be given, got {given}")
    dimensions = 2 if cu_seqlens is None else 1
    if values.dim() == dimensions + 1 and values.shape[-1] == 1:
        values = values.squeeze(-1)
    if values.dim() != dimensions:
        shapes = "(B, T) or (B, T, 1) with attention_mask" if cu_seqlens is None else "(T,) or (T, 1) with cu_seqlens"
        raise ValueError(f"values must have shape {shapes}, got {tuple(values.shape)}")
    if cu_seqlens is not None:
        ends = _packed_ends(cu_seqlens, values)
        return values[ends]
    assert attention_mask is not None
    return values.gather(1, _padded_ends(attention_mask, values).unsqueeze(1)).squeeze(1)


def _packed_ends(cu_seqlens: Tensor, values: Tensor) -> Tensor:
    _check_integers("cu_seqlens", cu_seqlens, values)
    if cu_seqlens.dim() != 1 or len(cu_seqlens) == 0:
        raise ValueError(f"cu_seqlens must have shape (B + 1,), got {tuple(cu_seqlens.shape)}")
    offsets = cu_seqlens.long()
    right = (offsets[1:] > offsets[:-1]).all() & (offsets[0] == 0) & (offsets[-1] == len(values))
    _require(right, f"cu_seqlens must rise from 0 to the number of values, {len(values)}: each sequence has a token")
    return offsets[1:] - 1


def _padded_ends(attention_mask: Tensor, values: Tensor) -> Tensor:
    _check_integers("attention_mask", attention_mask, values, mask=True)
    if attention_mask.shape != values.shape:
        raise ValueError(
            f"attention_mask must have the shape of the values, {tuple(values.shape)}, got {tuple(attention_mask.shape)}"
        )
    counted = attention_mask != 0
    _require(counted.any(1).all(), "attention_mask must have a token in each row")
    places = torch.arange(values.shape[1], device=values.device)
    return torch.where(counted, places, 0).amax(1) if values.shape[1] else places.new_zeros(len(values))


def divergence_weight(chosen_ids: Tensor, rejected_ids: Tensor, pad_token_id: int) -> Tensor:
    """The weight of each token for DeepSpeed-Chat's loss, which compares two responses token by token from where they differ.

    With it, `bradley_terry_loss(chosen_values, rejected_values, weight=...)` of (B, T) values is the mean over the pairs, and in
    each pair over these tokens.

    >>> import prefloss, torch
    >>> chosen, rejected = torch.tensor([[7, 8, 1, 2, 0]]), torch.tensor([[7, 8, 3, 0, 0]])
    >>> prefloss.divergence_weight(chosen, rejected, pad_token_id=0)
    tensor([[0.0000, 0.0000, 0.5000, 0.5000, 0.0000]])

    Args:
        chosen_ids, rejected_ids: (B, T) integers: token ids, padded on the right; the same shape and device.
        pad_token_id: the id of padding.

    Returns:
        (B, T) float32: 1 / n for the n tokens from the first one that differs to the end of the longer response, 0 elsewhere. If
        two responses are equal, all weights of their row are 0. (DeepSpeed-Chat counts their last token, with a loss of log 2.)

    Raises:
        TypeError, ValueError: dtypes, shapes, devices that are not accepted.

    Sources: Yao et al. 2023 (DeepSpeed-Chat, arXiv 2308.01320).
    """
    _check_integers("chosen_ids", chosen_ids, chosen_ids)
    _check_integers("rejected_ids", rejected_ids, chosen_ids)
    if chosen_ids.dim() != 2 or chosen_ids.shape != rejected_ids.shape:
        raise ValueError(
            "chosen_ids and rejected_ids must have the same shape (B, T), got "
            f"{tuple(chosen_ids.shape)} and {tuple(rejected_ids.shape)}"
        )
    if isinstance(pad_token_id, bool) or not isinstance(pad_token_id, Integral):
        raise TypeError(f"pad_token_id must be an integer, got {pad_token_id!r}")
    pad_token_id = int(pad_token_id)
    parted = (chosen_ids != rejected_ids).cumsum(1) > 0
    there = (chosen_ids != pad_token_id) | (rejected_ids != pad_token_id)
    before_the_end = there.flip(1).cumsum(1).flip(1) > 0
    counted = (parted & before_the_end).float()
    return counted / counted.sum(1, keepdim=True).clamp(min=1.0)


def _check_integers(name: str, tensor: object, beside: Tensor, *, mask: bool = False) -> None:
    accepted = "a tensor of bool or integers" if mask else "a tensor of integers"
    checked = check_tensor(name, tensor, accepted)
    if checked.dtype not in _INTEGERS and not (mask and checked.dtype is torch.bool):
        raise TypeError(f"{name} must be {accepted}, got {dtype_name(checked.dtype)}")
    if checked.device != beside.device:
        raise ValueError(f"{name} must be on the device {beside.device}, got {checked.device}; move it with .to()")


def _require(condition: Tensor, message: str) -> None:
    """ValueError; an assertion, which nobody waits for, when compiled, and on a device that has them."""
    if asserts(condition):
        torch._assert_async(condition, message)
    elif not bool(condition):
        raise ValueError(message)
