"""`last_token` and `divergence_weight` against loops over the sequences, written from their descriptions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import prefloss

PAD = 0


def padded(lengths, side, length=9):
    """A mask of tokens on the left or the right, and where each sequence's last token is."""
    mask = torch.zeros(len(lengths), length, dtype=torch.int64)
    for row, count in enumerate(lengths):
        mask[row, slice(0, count) if side == "right" else slice(length - count, length)] = 1
    return mask, [count - 1 if side == "right" else length - 1 for count in lengths]


def test_compiled_it_is_one_graph_and_refuses_what_has_no_token():
    mask, _ = padded([1, 9, 4], "left")
    values = torch.randn(mask.shape)
    compiled = torch.compile(prefloss.last_token, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(values, attention_mask=mask), prefloss.last_token(values, attention_mask=mask))
    packed = torch.tensor([0, 1, 9])
    assert torch.equal(compiled(values[1], cu_seqlens=packed), prefloss.last_token(values[1], cu_seqlens=packed))
    with pytest.raises(RuntimeError, match="attention_mask must have a token in each row"):
        compiled(values, attention_mask=mask * 0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize("last_dimension", [False, True])
def test_padded_sequences(side, dtype, last_dimension, device):
    mask, places = padded([1, 9, 4, 5, 8], side)
    values = torch.randn(mask.shape, device=device).requires_grad_()
    given = values.unsqueeze(-1) if last_dimension else values
    rewards = prefloss.last_token(given, attention_mask=mask.to(dtype).to(device))
    assert rewards.tolist() == [values[row, place].item() for row, place in enumerate(places)]
    (gradient,) = torch.autograd.grad(rewards.sum(), values)
    expected = torch.zeros_like(gradient)
    expected[torch.arange(len(places)), places] = 1.0
    assert torch.equal(gradient, expected)


def test_a_gap_in_the_mask_does_not_end_a_sequence(device):
    values, mask = torch.arange(4.0, device=device).unsqueeze(0), torch.tensor([[1, 0, 1, 0]], device=device)
    assert prefloss.last_token(values, attention_mask=mask).tolist() == [2.0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_packed_sequences(dtype, device):
    lengths = [3, 1, 7]
    values = torch.randn(sum(lengths), 1, dtype=torch.bfloat16, device=device)
    offsets = torch.tensor([0, 3, 4, 11], dtype=dtype, device=device)
    rewards = prefloss.last_token(values, cu_seqlens=offsets)
    assert rewards.dtype is torch.bfloat16
    assert torch.equal(rewards, values[[2, 3, 10], 0])


def test_no_sequences():
    assert prefloss.last_token(torch.ones(0, 5), attention_mask=torch.ones(0, 5)[:, :].bool()).shape == (0,)
    assert prefloss.last_token(torch.ones(0), cu_seqlens=torch.tensor([0])).shape == (0,)
    assert prefloss.divergence_weight(*torch.zeros(2, 0, 5, dtype=torch.int64), PAD).shape == (0, 5)


ROWS = torch.tensor([[1, 1], [1, 0]])
REFUSED = {
    "neither": ({}, ValueError, "neither"),
    "both": ({"attention_mask": ROWS, "cu_seqlens": torch.tensor([0, 2])}, ValueError, "both"),
    "integers": ({"values": ROWS, "attention_mask": ROWS}, TypeError, r"values must be floating-point, got int64"),
    "a list": ({"attention_mask": [[1, 1], [1, 0]]}, TypeError, "attention_mask must be a tensor of bool or integers"),
    "float mask": ({"attention_mask": torch.ones(2, 2)}, TypeError, "attention_mask .* got float32"),
    "shape": ({"attention_mask": ROWS[:1]}, ValueError, r"attention_mask must have the shape .*\(2, 2\), got \(1, 2\)"),
    "values": ({"values": torch.ones(2), "attention_mask": ROWS}, ValueError, r"values must have shape .* got \(2,\)"),
    "empty row": ({"attention_mask": ROWS * torch.tensor([[1], [0]])}, ValueError, "a token in each row"),
    "meta": ({"attention_mask": ROWS.to("meta")}, ValueError, "on the device cpu, got meta"),
    "packed": ({"values": torch.ones(4), "cu_seqlens": torch.tensor([0, 2, 2, 4])}, ValueError, "must rise from 0"),
    "packed end": ({"values": torch.ones(4), "cu_seqlens": torch.tensor([0, 2, 5])}, ValueError, "must rise from 0"),
    "packed begin": ({"values": torch.ones(4), "cu_seqlens": torch.tensor([1, 4])}, ValueError, "must rise from 0"),
    "no offsets": ({"values": torch.ones(4), "cu_seqlens": torch.tensor([]).long()}, ValueError, r"shape \(B \+ 1,\)"),
    "packed rows": ({"cu_seqlens": torch.tensor([0, 2])}, ValueError, r"values must have shape \(T,\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    given, error, says = REFUSED[name]
    with pytest.raises(error, match=says):
        prefloss.last_token(given.get("values", torch.ones(2, 2)), **{k: v for k, v in given.items() if k != "values"})


def of_one_pair(chosen, rejected, pad):
    """(first, end) of the tokens that count: from where the two differ to the end of the longer one."""
    ends = [
        max((place + 1 for place, token in enumerate(ids) if token != pad), default=0) for ids in (chosen, rejected)
    ]
    parted = [place for place, (one, other) in enumerate(zip(chosen, rejected, strict=True)) if one != other]
    return (parted[0], max(ends)) if parted else (0, 0)


def drawn(pairs, length, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 4, (2, pairs, length), generator=generator)
    ids[1, :, : length // 2] = ids[0, :, : length // 2]  # the prompt
    ends = torch.randint(length // 2, length + 1, (2, pairs, 1), generator=generator)
    ids[torch.arange(length) >= ends] = PAD
    return ids


def test_tokens_count_from_where_the_responses_part_to_the_end_of_the_longer_one(device):
    chosen, rejected = drawn(200, 8, 0)
    weight = prefloss.divergence_weight(chosen.to(device), rejected.to(device), PAD)
    assert weight.dtype is torch.float32
    expected = torch.zeros(chosen.shape)
    equal = 0
    for row, ids in enumerate(zip(chosen.tolist(), rejected.tolist(), strict=True)):
        first, end = of_one_pair(*ids, PAD)
        expected[row, first:end] = 1.0 / max(end - first, 1)
        equal += first == end
    torch.testing.assert_close(weight.cpu(), expected)
    assert 0 < equal < 200  # some responses are the same


def test_the_id_of_padding_may_be_any_integer():
    chosen, rejected = drawn(20, 12, 1)
    expected = prefloss.divergence_weight(chosen, rejected, PAD)
    assert torch.equal(prefloss.divergence_weight(chosen, rejected, np.int64(PAD)), expected)


def test_the_loss_is_the_mean_over_pairs_of_the_mean_over_tokens():
    chosen, rejected = drawn(50, 12, 1)
    values = torch.randn(2, *chosen.shape, generator=torch.Generator().manual_seed(2))
    loss = prefloss.bradley_terry_loss(*values, weight=prefloss.divergence_weight(chosen, rejected, PAD))
    means = []
    for row, ids in enumerate(zip(chosen.tolist(), rejected.tolist(), strict=True)):
        first, end = of_one_pair(*ids, PAD)
        if end > first:
            means.append(-F.logsigmoid(values[0, row, first:end] - values[1, row, first:end]).mean())
    torch.testing.assert_close(loss, torch.stack(means).mean())


@pytest.mark.parametrize(
    ("ids", "pad", "error", "says"),
    [
        ((torch.ones(2, 3), torch.ones(2, 3)), 0, TypeError, "chosen_ids must be a tensor of integers, got float32"),
        ((ROWS, ROWS[:1]), 0, ValueError, r"same shape \(B, T\), got \(2, 2\) and \(1, 2\)"),
        ((ROWS[0], ROWS[0]), 0, ValueError, r"same shape \(B, T\)"),
        ((ROWS, [[1, 0]]), 0, TypeError, "rejected_ids"),
        ((ROWS, ROWS), None, TypeError, "pad_token_id must be an integer, got None"),
        ((ROWS, ROWS), True, TypeError, "pad_token_id"),
    ],
)
def test_ids_that_do_not_fit_are_refused(ids, pad, error, says):
    with pytest.raises(error, match=says):
        prefloss.divergence_weight(*ids, pad)
