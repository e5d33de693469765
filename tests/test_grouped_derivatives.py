"""`bradley_terry_derivatives_grouped`: both derivatives against the reference and autograd, of arrays and of tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from group_bounds import LEVELS, OPTIONS, check_derivatives, over_options, ranks_of
from rounding_bounds import assert_same_bits
from sample_inputs import DTYPES, FINITE_VALUES, VALUES, in_turns, real, rewards

import prefloss
from prefloss import reference

derivatives = prefloss.bradley_terry_derivatives_grouped
# Half precision is read into float32; one test below has it.
over_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("ties", ["skip", "half"])
@pytest.mark.parametrize("average", ["groups", "pairs"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_reference_has_the_diagonal_that_autograd_finds(name, ties, average, reduction):
    random = np.random.default_rng(3)
    options = {**OPTIONS[name], "ties": ties, "average": average, "reduction": reduction, "group_sizes": [5, 1, 6]}
    scores, ranks = torch.from_numpy(random.normal(size=12)), torch.from_numpy(random.integers(0, 3, 12))

    def loss(scores):
        return reference.bradley_terry_loss_grouped(scores, ranks, **options)

    gradient, diagonal = reference.bradley_terry_derivatives_grouped(scores.numpy(), ranks.numpy(), **options)
    jacobian, hessian = torch.autograd.functional.jacobian, torch.autograd.functional.hessian
    np.testing.assert_allclose(gradient, jacobian(loss, scores), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(diagonal, hessian(loss, scores).diagonal(), rtol=1e-12, atol=1e-14)


@over_dtypes
@over_options
@pytest.mark.parametrize("ties", ["skip", "half"])
@pytest.mark.parametrize("average", ["groups", "pairs"])
def test_every_option_agrees_with_the_reference(name, ties, average, dtype):
    random = np.random.default_rng(len(name))
    cases = [((1, 1), 1), ((3, 2), 2), ((17, 9), 1), ((17, 9), 2), ((17, 9), 10**6), ((2, 40), 4)]
    for (shape, levels), reduction in zip(cases, ("sum", "mean") * 3, strict=True):
        given, _ = rewards(random, shape, dtype)
        weight = torch.from_numpy(random.integers(0, 3, shape[0])).to(torch.float32)
        options = {**OPTIONS[name], "ties": ties, "average": average, "reduction": reduction}
        check_derivatives(given, ranks_of(random, shape, levels), options, weight)


@pytest.mark.usefixtures("shorter_long_lists")
@over_dtypes
@pytest.mark.parametrize("levels", [30, 300])
@pytest.mark.parametrize("ties", ["skip", "half"])
def test_ties_in_a_long_list_of_far_scores_agree_with_the_reference(ties, levels, dtype):
    random = np.random.default_rng(levels)
    given = real(30.0 * random.normal(size=600), dtype)
    check_derivatives(given[None], torch.from_numpy(random.integers(0, levels, (1, 600))), {"ties": ties})


@pytest.mark.parametrize(
    ("size", "levels", "dtype"), in_turns([2, 16, 33, 129, 1023, 1024], LEVELS, DTYPES[:2]), ids=str
)
def test_every_size_of_groups_agrees_with_the_reference(size, levels, dtype):
    """Long lists among them, and groups of sizes of their own."""
    random = np.random.default_rng(size)
    given, _ = rewards(random, (size + 3,), dtype)
    options = {"group_sizes": [size, 0, 3], "ties": "half" if size % 2 else "skip"}
    check_derivatives(given, ranks_of(random, (size + 3,), levels), options)


@pytest.mark.parametrize("few", [1, 7])
def test_few_positives_among_many_agree_with_the_reference(few):
    random = np.random.default_rng(few)
    ranks = torch.ones(2, 900, dtype=torch.int64)
    ranks[:, :few] = 0
    check_derivatives(real(random.normal(size=(2, 900)), torch.float32), ranks, OPTIONS["all"])


@pytest.mark.usefixtures("shorter_long_lists")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("values", [FINITE_VALUES, VALUES], ids=["extreme", "not-finite"])
def test_extreme_rewards_agree_with_the_reference(values, dtype):
    random = np.random.default_rng(2)
    turn = DTYPES.index(dtype)
    for place, shape in enumerate(((3, 5), (20, 20), (1, 600))):
        given, _ = rewards(random, shape, dtype, values)
        options = ({}, {"margin": 0.5}, {"beta": 0.1})[(place + turn) % 3]
        check_derivatives(given, ranks_of(random, shape, 10**6), options)


def test_what_no_pair_feels_is_exactly_zero():
    """Groups of weight 0, of one rank or of one item, even where their rewards are NaN."""
    given = np.array([math.nan, 1.0, math.inf, 2.0, math.nan, 0.5, 0.25])
    ranks = np.array([0, 1, 3, 3, 0, 0, 1])
    gradient, curvature = derivatives(given, ranks, group_sizes=[2, 2, 1, 2], weight=np.array([0.0, 1.0, 1.0, 1.0]))
    for found in (gradient, curvature):
        np.testing.assert_array_equal(found[:5], np.zeros(5))
        assert (found[5:] != 0).all()


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0), (3, 1)])
def test_without_pairs_everything_is_zero(shape):
    for found in derivatives(np.zeros(shape), np.zeros(shape, dtype=np.int64)):
        np.testing.assert_array_equal(found, np.zeros(shape))


def sample():
    random = np.random.default_rng(5)
    return random.normal(size=40), random.integers(0, 3, 40), [17, 0, 23]


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_arrays_give_arrays_and_tensors_give_tensors():
    scores, ranks, sizes = sample()
    arrays = derivatives(scores, ranks, group_sizes=np.array(sizes, dtype=np.uint32))
    tensors = derivatives(torch.from_numpy(scores), torch.from_numpy(ranks), group_sizes=sizes)
    assert all(type(found) is np.ndarray and found.dtype == np.float64 for found in arrays)
    assert all(type(found) is torch.Tensor and not found.requires_grad for found in tensors)
    same(arrays, tensors)
    same(arrays, derivatives(scores, torch.from_numpy(ranks), group_sizes=torch.tensor(sizes)))
    same(arrays, derivatives(torch.from_numpy(scores).requires_grad_(), relevance=-ranks, group_sizes=sizes))


def test_arrays_may_lie_in_memory_as_they_like():
    scores, ranks, sizes = sample()
    expected = derivatives(scores, ranks, group_sizes=sizes)
    locked = scores.copy()
    locked.flags.writeable = False
    bytes_ = np.zeros(8 * len(scores) + 1, dtype=np.uint8)
    misaligned = bytes_[1:].view(np.float64)
    misaligned[:] = scores
    for given in (
        scores[::-1].copy()[::-1],
        np.repeat(scores, 2)[::2],
        scores.astype(scores.dtype.newbyteorder()),
        locked,
        misaligned,
        np.stack([scores, scores], 1)[:, 1],
    ):
        before = given.copy()
        same(derivatives(given, ranks.astype(">i4")[:], group_sizes=sizes), expected)
        np.testing.assert_array_equal(given, before)
    same(derivatives(torch.from_numpy(scores)[None].expand(2, 40)[1], ranks, group_sizes=sizes), expected)
    negative = torch.complex(torch.zeros(40, dtype=torch.float64), -torch.from_numpy(scores)).conj().imag
    assert negative.is_neg()
    same(derivatives(negative, ranks, group_sizes=sizes), expected)


@pytest.mark.parametrize(
    "dtype", [*("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"), "f2", "f4", "f8"]
)
def test_relevance_of_any_real_dtype_has_its_own_order(dtype):
    scores, labels = np.array([1.0, 0.5, -1.0]), np.array([0, 1, 1]).astype(dtype)
    same(
        derivatives(scores[None], relevance=labels[None]),
        derivatives(scores[None], np.array([[1, 0, 0]])),
    )


def test_float32_arrays_are_computed_as_float32_tensors_are_and_added_up_in_float64():
    scores, ranks, sizes = sample()
    short = scores.astype(np.float32)
    same(
        derivatives(short, ranks, group_sizes=sizes),
        derivatives(torch.from_numpy(short), torch.from_numpy(ranks), group_sizes=sizes),
    )
    gradient, _ = derivatives(short, ranks, group_sizes=sizes)
    assert (gradient != gradient.astype(np.float32)).any()


def test_the_gradient_is_that_of_the_loss():
    scores, ranks, sizes = sample()
    leaf = torch.from_numpy(scores).requires_grad_()
    for options in ({"average": "groups", "reduction": "mean"}, {"average": "pairs", "reduction": "sum", "beta": 2.0}):
        loss = prefloss.bradley_terry_loss_grouped(leaf, torch.from_numpy(ranks), group_sizes=sizes, **options)
        (expected,) = torch.autograd.grad(loss, leaf)
        gradient, _ = derivatives(scores, ranks, group_sizes=sizes, **options)
        np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-15)


def test_the_bits_do_not_depend_on_the_threads(set_threads):
    random = np.random.default_rng(8)
    scores, ranks = random.normal(size=57_000).astype(np.float32), random.integers(0, 20_000, 57_000)
    sizes = [50_000, 1, *[40] * 150, 999]  # the first one has all threads, which have time to come
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append([torch.from_numpy(found) for found in derivatives(scores, ranks, group_sizes=sizes)])
    for other in results[1:]:
        assert_same_bits(other, results[0])


BAD = [
    ({"rewards": [1.0, 2.0]}, TypeError, r"rewards must be a NumPy array or a torch\.Tensor, got \[1\.0, 2\.0\] \(list\)"),
    ({"rewards": np.array([[1, 2]])}, TypeError, r"rewards must have dtype float64, .* got int64"),
    ({"rewards": np.array([["a", "b"]])}, TypeError, "rewards must hold real numbers of at most 64 bits, got .* <U1"),
    ({"rewards": np.zeros((1, 2), dtype=np.longdouble)}, TypeError, "rewards must hold real numbers"),
    ({"rewards": np.zeros((1, 2), dtype=complex)}, TypeError, "rewards must hold real numbers"),
    ({"rewards": np.ma.masked_array(np.zeros((1, 2)))}, TypeError, "rewards must be an array without a mask"),
    ({"rewards": np.zeros(2)}, ValueError, r"rewards must have shape \(B, K\), or \(N,\) with group_sizes, got \(2,\)"),
    ({"rewards": torch.zeros(1, 2, device="meta"), "ranks": torch.zeros(1, 2, device="meta")}, NotImplementedError,
     r"on the CPU, got rewards on meta; pass their \.cpu\(\)"),
    ({"ranks": None}, TypeError, "exactly one of ranks .* got neither"),
    ({"relevance": np.zeros((1, 2))}, TypeError, "exactly one of ranks .* got both"),
    ({"ranks": np.zeros((2, 1))}, ValueError, r"ranks must have the shape of rewards, \(1, 2\), got \(2, 1\)"),
    ({"ranks": np.array([[0.0, math.nan]])}, ValueError, r"must be numbers, got nan at position \(0, 1\)"),
    ({"ranks": None, "relevance": np.array([[0.0, math.nan]])}, ValueError, "must be numbers, got nan"),
    ({"ranks": torch.zeros(1, 2, requires_grad=True)}, ValueError, "ranks must not require a gradient"),
    ({"group_sizes": np.array([1.0])}, ValueError, "group_sizes must be a sequence of ints"),
    ({"group_sizes": []}, ValueError, "group_sizes must add up to the number of rewards, 2, got 0"),
    ({"group_sizes": 2}, TypeError, "group_sizes must be a sequence of ints"),
    ({"weight": np.ones(2)}, ValueError, r"weight must have one entry a group, shape \(1,\)"),
    ({"weight": 2.0}, TypeError, "weight must be a NumPy array"),
    ({"reduction": "none"}, ValueError, "reduction must be one of 'sum', 'mean', got 'none'"),
    ({"reduction": None}, ValueError, "reduction must be one of 'sum', 'mean', got None"),
    ({"average": "queries"}, ValueError, "average must be one of 'groups', 'pairs'"),
    ({"ties": "none"}, ValueError, "ties must be one of 'skip', 'half'"),
    ({"margin": math.inf}, ValueError, "margin must be a finite number"),
    ({"margin": torch.zeros(2)}, TypeError, "margin must be a finite number"),
    ({"beta": "1"}, TypeError, "beta must be a finite number"),
    ({"label_smoothing": 0.7}, ValueError, r"label_smoothing must be a number in \[0, 0\.5\]"),
    ({"label_smoothing": 0.1, "flip_rate": 0.1}, ValueError, "cannot both be given"),
    ({"center_rewards_coefficient": -1.0}, ValueError, "center_rewards_coefficient must be a finite number >= 0"),
    ({"rewards": np.zeros((1, 2), dtype=np.float32), "beta": 1e300}, ValueError, "beta must be finite in float32"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "says"), BAD)
def test_what_is_not_accepted_is_an_error_that_says_so(arguments, error, says):
    given = {"rewards": np.zeros((1, 2)), "ranks": np.array([[0, 1]]), **arguments}
    if "group_sizes" in arguments:
        given["rewards"], given["ranks"] = np.zeros(2), np.array([0, 1])
    with pytest.raises(error, match=says):
        derivatives(given.pop("rewards"), given.pop("ranks"), **given)


def test_transforms_and_subclasses_are_refused():
    class Mine(torch.Tensor):
        pass

    scores, ranks = torch.zeros(3, 1, 2), torch.tensor([[0, 1]])
    with pytest.raises(NotImplementedError, match=r"under transforms of torch\.func"):
        torch.vmap(lambda row: derivatives(row, ranks))(scores)
    with pytest.raises(NotImplementedError, match="got rewards of type Mine"):
        derivatives(scores[0].as_subclass(Mine), ranks)
