"""Every argument that is not accepted: the type of the error, and a message that says which, what was given, what is accepted."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import prefloss

FIXED = {"beta", "label_smoothing", "center_rewards_coefficient", "reduction"}  # what BradleyTerryLoss is made with
NAN, INF = math.nan, math.inf
FLOAT8 = torch.float8_e4m3fn


def paired(chosen, rejected, **options):
    return prefloss.bradley_terry_loss(chosen, rejected, **options)


def stacked(chosen, rejected, **options):
    return prefloss.bradley_terry_loss_stacked(torch.cat((chosen, rejected)), **options)


def module(chosen, rejected, **options):
    fixed = {name: options.pop(name) for name in FIXED & options.keys()}
    return prefloss.BradleyTerryLoss(**fixed)(chosen, rejected, **options)


def indexed(chosen, rejected, **options):
    count = chosen.numel()
    both = torch.arange(2 * count, device=chosen.device)
    return prefloss.bradley_terry_loss_indexed(torch.cat((chosen, rejected)), both[:count], both[count:], **options)


over_functions = pytest.mark.parametrize("function", [paired, stacked, module, indexed], ids=lambda f: f.__name__)


def table(names, *rows):
    """Parametrises over rows whose first entry is the test's id."""
    return pytest.mark.parametrize(names, [pytest.param(*values, id=row_id) for row_id, *values in rows])


def ones(*shape, dtype=torch.float32, device=None):
    return torch.ones(shape, dtype=dtype, device=device)


def asking(*shape):
    return torch.ones(shape, requires_grad=True)


def nested(layout):
    return quietly(torch.nested.nested_tensor, [torch.ones(2), torch.ones(3)], layout=layout)


def csr():
    return quietly(torch.Tensor.to_sparse_csr, ones(4, 4))


def quietly(make, *args, **kwargs):
    """Without the warning that torch may change such tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args, **kwargs)


def fake(device):
    with FakeTensorMode():
        return torch.ones(4, device=device)


def assert_rejected(call, error, says):
    """The error is of that very type, and its message has every part of `says`."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the type is compared below
        call()
    assert type(caught.value) is error, repr(caught.value)
    for part in says:
        assert part in str(caught.value)


BETA = ["beta", "a finite number"]
SMOOTHING = ["label_smoothing", "a number in [0, 0.5]"]
CENTRING = ["center_rewards_coefficient", "a finite number >= 0"]
REDUCTION = ["reduction", "'mean', 'sum', 'none'"]
bad_fixed_options = table(
    "options, error, says",
    ("beta-nan", {"beta": NAN}, ValueError, [*BETA, "nan"]),
    ("beta-infinite", {"beta": -INF}, ValueError, [*BETA, "-inf"]),
    ("beta-beyond-float", {"beta": 10**400}, ValueError, [*BETA, "1000"]),
    ("beta-none", {"beta": None}, TypeError, [*BETA, "None"]),
    ("beta-bool", {"beta": True}, TypeError, [*BETA, "True (bool)"]),
    ("beta-numpy-bool", {"beta": np.True_}, TypeError, [*BETA, "bool"]),
    ("beta-string", {"beta": "0.1"}, TypeError, [*BETA, "'0.1' (str)"]),
    ("beta-complex", {"beta": 1j}, TypeError, [*BETA, "1j (complex)"]),
    ("beta-array", {"beta": np.array(0.5)}, TypeError, [*BETA, "ndarray"]),
    ("beta-tensor", {"beta": ones()}, TypeError, [*BETA, "a tensor of shape ()"]),
    ("smoothing-negative", {"label_smoothing": -0.1}, ValueError, [*SMOOTHING, "-0.1"]),
    ("smoothing-above-half", {"label_smoothing": 0.51}, ValueError, [*SMOOTHING, "0.51"]),
    ("smoothing-nan", {"label_smoothing": NAN}, ValueError, [*SMOOTHING, "nan"]),
    ("smoothing-bool", {"label_smoothing": False}, TypeError, [*SMOOTHING, "False (bool)"]),
    ("smoothing-tensor", {"label_smoothing": ones(4)}, TypeError, [*SMOOTHING, "a tensor of shape (4,)"]),
    ("centring-negative", {"center_rewards_coefficient": -1e-9}, ValueError, [*CENTRING, "-1e-09"]),
    ("centring-infinite", {"center_rewards_coefficient": INF}, ValueError, [*CENTRING, "inf"]),
    ("centring-nan", {"center_rewards_coefficient": NAN}, ValueError, [*CENTRING, "nan"]),
    ("centring-none", {"center_rewards_coefficient": None}, TypeError, [*CENTRING, "None"]),
    ("reduction-unknown", {"reduction": "batchmean"}, ValueError, [*REDUCTION, "'batchmean'"]),
    ("reduction-capital", {"reduction": "Mean"}, ValueError, [*REDUCTION, "'Mean'"]),
    ("reduction-none", {"reduction": None}, ValueError, [*REDUCTION, "None"]),
    ("reduction-list", {"reduction": ["mean"]}, ValueError, [*REDUCTION, "['mean']"]),
    ("unknown-keyword", {"temperature": 0.1}, TypeError, ["unexpected keyword", "temperature"]),
)  # fmt: skip

MARGIN = ["margin", "a finite number or a tensor with one entry a pair"]
TARGET = ["target", "a number in [0, 1] or a tensor with one entry a pair"]
DENOMINATOR = [
    "denominator",
    "a number > 0, or a 0-dimensional integer or floating-point tensor on the rewards' device",
]
bad_options = table(
    "build, error, says",
    ("margin-nan", lambda: {"margin": NAN}, ValueError, [*MARGIN, "nan"]),
    ("margin-infinite", lambda: {"margin": INF}, ValueError, [*MARGIN, "inf"]),
    ("margin-bool", lambda: {"margin": True}, TypeError, [*MARGIN, "True (bool)"]),
    ("margin-list", lambda: {"margin": [1.0] * 4}, TypeError, [*MARGIN, "(list)"]),
    ("margin-array", lambda: {"margin": np.ones(4)}, TypeError, [*MARGIN, "(ndarray)"]),
    ("margin-0d", lambda: {"margin": ones()}, ValueError, ["margin", "one entry a pair", "(4,)", "()"]),
    ("margin-column", lambda: {"margin": ones(4, 1)}, ValueError, ["margin", "one entry a pair", "(4,)", "(4, 1)"]),
    ("margin-integer", lambda: {"margin": ones(4, dtype=torch.int64)}, TypeError, ["margin", "float32 or", "int64"]),
    ("margin-mask", lambda: {"margin": ones(4, dtype=torch.bool)}, TypeError, ["margin", "float32 or", "bool"]),
    ("margin-double", lambda: {"margin": ones(4, dtype=torch.float64)}, TypeError, ["margin", "float32 or", "float64"]),
    ("margin-half", lambda: {"margin": ones(4, dtype=torch.float16)}, TypeError, ["margin", "float32 or", "float16"]),
    ("margin-complex", lambda: {"margin": ones(4, dtype=torch.cfloat)}, TypeError, ["margin", "float32", "complex64"]),
    ("margin-elsewhere", lambda: {"margin": ones(4, device="meta")}, ValueError, ["margin", "rewards' device", "meta"]),
    ("margin-sparse", lambda: {"margin": ones(4).to_sparse()}, TypeError, ["margin", "dense", "torch.sparse_coo"]),
    ("margin-jagged", lambda: {"margin": nested(torch.jagged)}, TypeError, ["margin", "dense", "nested"]),
    ("margin-nested", lambda: {"margin": nested(torch.strided)}, TypeError, ["margin", "dense", "nested"]),
    ("weight-number", lambda: {"weight": 1.0}, TypeError, ["weight", "a tensor with one entry a pair", "1.0 (float)"]),
    ("weight-list", lambda: {"weight": [1.0] * 4}, TypeError, ["weight", "a tensor with one entry a pair", "(list)"]),
    ("weight-short", lambda: {"weight": ones(3)}, ValueError, ["weight", "one entry a pair", "(4,)", "(3,)"]),
    ("weight-0d", lambda: {"weight": ones()}, ValueError, ["weight", "one entry a pair", "(4,)", "()"]),
    ("weight-integer", lambda: {"weight": ones(4, dtype=torch.int32)}, TypeError, ["weight", "bool (a mask)", "int32"]),
    ("weight-double", lambda: {"weight": ones(4, dtype=torch.float64)}, TypeError, ["weight", "float32", "float64"]),
    ("weight-float8", lambda: {"weight": ones(4).to(FLOAT8)}, TypeError, ["weight", "float32", "float8_e4m3fn"]),
    ("weight-elsewhere", lambda: {"weight": ones(4, device="meta")}, ValueError, ["weight", "rewards' device", "meta"]),
    ("weight-sparse", lambda: {"weight": ones(4).to_sparse()}, TypeError, ["weight", "dense", "torch.sparse_coo"]),
    ("weight-csr", lambda: {"weight": csr()}, TypeError, ["weight", "dense", "torch.sparse_csr"]),
    ("weight-nested", lambda: {"weight": nested(torch.strided)}, TypeError, ["weight", "dense", "nested"]),
    ("weight-gradient", lambda: {"weight": asking(4)}, ValueError, ["weight", "requires_grad", "weight.detach()"]),
    ("target-above-1", lambda: {"target": 1.01}, ValueError, [*TARGET, "1.01"]),
    ("target-negative", lambda: {"target": -0.5}, ValueError, [*TARGET, "-0.5"]),
    ("target-nan", lambda: {"target": NAN}, ValueError, [*TARGET, "nan"]),
    ("target-bool", lambda: {"target": True}, TypeError, [*TARGET, "True (bool)"]),
    ("target-list", lambda: {"target": [1.0] * 4}, TypeError, [*TARGET, "(list)"]),
    ("target-long", lambda: {"target": ones(8)}, ValueError, ["target", "one entry a pair", "(4,)", "(8,)"]),
    ("target-integer", lambda: {"target": ones(4, dtype=torch.int64)}, TypeError, ["target", "float32", "int64"]),
    ("target-mask", lambda: {"target": ones(4, dtype=torch.bool)}, TypeError, ["target", "float32", "bool"]),
    ("target-elsewhere", lambda: {"target": ones(4, device="meta")}, ValueError, ["target", "rewards' device", "meta"]),
    ("target-nested", lambda: {"target": nested(torch.strided)}, TypeError, ["target", "dense", "nested"]),
    ("target-gradient", lambda: {"target": asking(4)}, ValueError, ["target", "requires_grad", "target.detach()"]),
    ("denominator-zero", lambda: {"denominator": 0}, ValueError, [*DENOMINATOR, "got 0"]),
    ("denominator-negative", lambda: {"denominator": -2.0}, ValueError, [*DENOMINATOR, "-2.0"]),
    ("denominator-nan", lambda: {"denominator": NAN}, ValueError, [*DENOMINATOR, "nan"]),
    ("denominator-infinite", lambda: {"denominator": INF}, ValueError, [*DENOMINATOR, "inf"]),
    ("denominator-beyond-float", lambda: {"denominator": 10**400}, ValueError, [*DENOMINATOR, "1000"]),
    ("denominator-bool", lambda: {"denominator": True}, TypeError, [*DENOMINATOR, "True (bool)"]),
    ("denominator-list", lambda: {"denominator": [4]}, TypeError, [*DENOMINATOR, "[4] (list)"]),
    ("denominator-array", lambda: {"denominator": np.array(4)}, TypeError, [*DENOMINATOR, "(ndarray)"]),
    ("denominator-1d", lambda: {"denominator": ones(1)}, ValueError, [*DENOMINATOR, "(1,)"]),
    ("denominator-mask", lambda: {"denominator": torch.tensor(True)}, TypeError, [*DENOMINATOR, "bool"]),
    ("denominator-complex", lambda: {"denominator": torch.tensor(1j)}, TypeError, [*DENOMINATOR, "complex64"]),
    ("denominator-sparse", lambda: {"denominator": ones().to_sparse()}, TypeError, [*DENOMINATOR, "torch.sparse_coo"]),
    ("denominator-csr", lambda: {"denominator": csr()}, TypeError, [*DENOMINATOR, "torch.sparse_csr"]),
    ("denominator-jagged", lambda: {"denominator": nested(torch.jagged)}, TypeError, [*DENOMINATOR, "float32"]),
    ("denominator-nested", lambda: {"denominator": nested(torch.strided)}, TypeError, [*DENOMINATOR, "nested"]),
    ("denominator-elsewhere", lambda: {"denominator": ones(device="meta")}, ValueError, [*DENOMINATOR, "meta"]),
    ("denominator-gradient", lambda: {"denominator": asking()}, ValueError, ["denominator", "denominator.detach()"]),
    ("denominator-of-sum", lambda: {"denominator": 4, "reduction": "sum"}, ValueError, ["denominator", "'sum'", "None"]),
    ("denominator-of-none", lambda: {"denominator": ones(), "reduction": "none"}, ValueError, ["denominator", "'none'"]),
    ("stats-integer", lambda: {"return_stats": 1}, TypeError, ["return_stats", "True or False", "1 (int)"]),
)  # fmt: skip

DTYPES = ["must have dtype float64, float32, bfloat16 or float16"]
bad_rewards = table(
    "build, error, says",
    ("column-and-row", lambda: (ones(4, 1), ones(4)), ValueError, ["chosen", "rejected", "same shape", "(4, 1)", "(4,)"]),
    ("row-and-column", lambda: (ones(4), ones(4, 1)), ValueError, ["chosen", "rejected", "same shape", "(4, 1)", "(4,)"]),
    ("one-and-many", lambda: (ones(1), ones(4)), ValueError, ["chosen", "rejected", "same shape", "(1,)", "(4,)"]),
    ("0d-and-one", lambda: (ones(), ones(1)), ValueError, ["chosen", "rejected", "same shape", "()", "(1,)"]),
    ("empty-and-empty", lambda: (ones(0), ones(0, 2)), ValueError, ["same shape", "(0,)", "(0, 2)"]),
    ("mixed", lambda: (ones(4), ones(4).double()), TypeError, ["same dtype", "float32", "float64", "cast", ".to("]),
    ("mixed-halves", lambda: (ones(4).half(), ones(4).bfloat16()), TypeError, ["same dtype", "float16", "bfloat16"]),
    ("integer", lambda: (ones(4).long(), ones(4).long()), TypeError, ["chosen", *DTYPES, "int64", "chosen.float()"]),
    ("integer-rejected", lambda: (ones(4), ones(4).int()), TypeError, ["rejected", *DTYPES, "int32"]),
    ("bool", lambda: (ones(4).bool(), ones(4).bool()), TypeError, ["chosen", *DTYPES, "bool"]),
    ("complex", lambda: (ones(4).cfloat(), ones(4).cfloat()), TypeError, ["chosen", *DTYPES, "complex64"]),
    ("float8", lambda: (ones(4).to(FLOAT8), ones(4).to(FLOAT8)), TypeError, ["chosen", *DTYPES, "float8_e4m3fn"]),
    ("meta-chosen", lambda: (ones(4, device="meta"), ones(4)), ValueError, ["same device", "meta", "move one"]),
    ("meta-rejected", lambda: (ones(4), ones(4, device="meta")), ValueError, ["same device", "meta", "move one"]),
    ("no-kernels", lambda: (fake("xpu"), fake("xpu")), NotImplementedError, ["chosen", "xpu", "no kernels", "cpu"]),
    ("lists", lambda: ([1.0, 2.0], [1.0, 2.0]), TypeError, ["chosen", "torch.Tensor", "list"]),
    ("numbers", lambda: (1.0, 2.0), TypeError, ["chosen", "torch.Tensor", "float"]),
    ("arrays", lambda: (np.ones(4), np.ones(4)), TypeError, ["chosen", "torch.Tensor", "ndarray"]),
    ("array-rejected", lambda: (ones(4), np.ones(4)), TypeError, ["rejected", "torch.Tensor", "ndarray"]),
    ("no-chosen", lambda: (None, ones(4)), TypeError, ["chosen", "torch.Tensor", "NoneType"]),
    ("no-rejected", lambda: (ones(4), None), TypeError, ["rejected", "torch.Tensor", "NoneType"]),
    ("sparse", lambda: (ones(4).to_sparse(), ones(4)), TypeError, ["chosen", "dense", "torch.sparse_coo", ".to_dense()"]),
    ("sparse-rejected", lambda: (ones(4), ones(4).to_sparse()), TypeError, ["rejected", "dense", "torch.sparse_coo"]),
    ("mkldnn", lambda: (ones(4).to_mkldnn(), ones(4).to_mkldnn()), TypeError, ["chosen", "dense", "torch._mkldnn"]),
    ("jagged", lambda: (nested(torch.jagged),) * 2, TypeError, ["chosen", "dense", "nested", "pad"]),
    ("nested", lambda: (nested(torch.strided),) * 2, TypeError, ["chosen", "dense", "nested", "pad"]),
    ("nested-rejected", lambda: (ones(4), nested(torch.strided)), TypeError, ["rejected", "dense", "nested"]),
    ("csr", lambda: (csr(), csr()), TypeError, ["chosen", "dense", "torch.sparse_csr"]),
)  # fmt: skip

bad_stacked = table(
    "build, error, says",
    ("odd", lambda: {"rewards": ones(5)}, ValueError, ["rewards", "even number", "dimension 0", "(5,)"]),
    ("odd-rows", lambda: {"rewards": ones(3, 4)}, ValueError, ["rewards", "even number", "dimension 0", "(3, 4)"]),
    ("0d", lambda: {"rewards": ones()}, ValueError, ["rewards", "even number", "dimension 0", "()"]),
    ("integer", lambda: {"rewards": ones(4).int()}, TypeError, ["rewards", *DTYPES, "int32", "rewards.float()"]),
    ("list", lambda: {"rewards": [1.0, 2.0]}, TypeError, ["rewards", "torch.Tensor", "list"]),
    ("none", lambda: {"rewards": None}, TypeError, ["rewards", "torch.Tensor", "NoneType"]),
    ("sparse", lambda: {"rewards": ones(4).to_sparse()}, TypeError, ["rewards", "dense", "torch.sparse_coo"]),
    ("nested", lambda: {"rewards": nested(torch.strided)}, TypeError, ["rewards", "dense", "nested"]),
    ("no-kernels", lambda: {"rewards": fake("xpu")}, NotImplementedError, ["rewards", "xpu", "no kernels"]),
    ("layout", lambda: {"layout": "rows"}, ValueError, ["layout", "'halves', 'interleaved'", "'rows'"]),
    ("layout-none", lambda: {"layout": None}, ValueError, ["layout", "'halves', 'interleaved'", "None"]),
    ("weight-of-all", lambda: {"weight": ones(4)}, ValueError, ["weight", "one entry a pair", "(2,)", "(4,)"]),
    ("margin-of-all", lambda: {"margin": ones(4)}, ValueError, ["margin", "one entry a pair", "(2,)", "(4,)"]),
    ("rejected", lambda: {"rejected": ones(4)}, TypeError, ["unexpected keyword", "rejected"]),
)  # fmt: skip


def rewards_with_gradients(device):
    """Two leaves, each with a gradient from an earlier step."""
    pair = [torch.linspace(-1.0, end, 4, device=device, requires_grad=True) for end in (2.0, 3.0)]
    for tensor in pair:
        tensor.grad = torch.full_like(tensor, 7.0)
    return pair


def assert_untouched(pair, device):
    for tensor, before in zip(pair, rewards_with_gradients(device), strict=True):
        assert torch.equal(tensor, before)
        assert torch.equal(tensor.grad, before.grad)
        assert tensor._version == 0


@over_functions
@bad_fixed_options
def test_a_bad_fixed_option_is_rejected_and_changes_nothing(function, options, error, says, device):
    pair = rewards_with_gradients(device)
    assert_rejected(lambda: function(*pair, **options), error, says)
    assert_untouched(pair, device)


@bad_fixed_options
def test_the_module_rejects_a_bad_fixed_option_when_it_is_made(options, error, says):
    assert_rejected(lambda: prefloss.BradleyTerryLoss(**options), error, says)


@over_functions
@bad_options
def test_a_bad_option_is_rejected_and_changes_nothing(function, build, error, says, device):
    pair = rewards_with_gradients(device)
    with device:
        options = build()
    assert_rejected(lambda: function(*pair, **options), error, says)
    assert_untouched(pair, device)


@pytest.mark.parametrize("options", [{}, {"beta": 0.5}], ids=["default", "with-an-option"])
@pytest.mark.parametrize("function", [paired, module], ids=lambda f: f.__name__)
@bad_rewards
def test_bad_rewards_are_rejected(function, build, error, says, options, device):
    with device:
        rewards = build()
    assert_rejected(lambda: function(*rewards, **options), error, says)


@bad_stacked
def test_bad_stacked_rewards_are_rejected(build, error, says, device):
    with device:
        options = {"rewards": ones(4), **build()}
    assert_rejected(lambda: prefloss.bradley_terry_loss_stacked(**options), error, says)


bad_indices = table(
    "build, error, says",
    ("scores-2d", lambda: {"scores": ones(3, 1)}, ValueError, ["scores", "one entry an item", "(3, 1)"]),
    ("scores-0d", lambda: {"scores": ones()}, ValueError, ["scores", "one entry an item", "()"]),
    ("scores-integer", lambda: {"scores": ones(3).int()}, TypeError, ["scores", *DTYPES, "int32"]),
    ("scores-list", lambda: {"scores": [1.0, 2.0, 3.0]}, TypeError, ["scores", "torch.Tensor", "list"]),
    ("no-kernels", lambda: {"scores": fake("xpu")}, NotImplementedError, ["scores", "xpu", "no kernels"]),
    ("list", lambda: {"chosen_index": [0, 1]}, TypeError, ["chosen_index", "int64 or int32", "(list)"]),
    ("floats", lambda: {"chosen_index": ones(2)}, TypeError, ["chosen_index", "int64 or int32", "float32"]),
    ("short", lambda: {"rejected_index": ones(2).short()}, TypeError, ["rejected_index", "int64 or int32", "int16"]),
    ("mask", lambda: {"rejected_index": ones(2).bool()}, TypeError, ["rejected_index", "int64 or int32", "bool"]),
    ("mixed", lambda: {"rejected_index": ones(2).int()}, TypeError, ["same dtype", "int64", "int32"]),
    ("2d", lambda: {"chosen_index": ones(2, 1).long()}, ValueError, ["chosen_index", "one entry a comparison", "(2, 1)"]),
    ("longer", lambda: {"rejected_index": ones(3).long()}, ValueError, ["same shape", "(2,)", "(3,)"]),
    ("sparse", lambda: {"chosen_index": ones(2).long().to_sparse()}, TypeError, ["chosen_index", "dense", "sparse_coo"]),
    ("elsewhere", lambda: {"chosen_index": ones(2, device="meta").long()}, ValueError, ["device of scores", "meta"]),
    ("too-large", lambda: {"chosen_index": torch.tensor([2, 3])}, IndexError, ["chosen_index", "[0, 3)", "3 at position 1"]),
    ("negative", lambda: {"rejected_index": torch.tensor([-1, 0])}, IndexError, ["rejected_index", "[0, 3)", "-1 at position 0"]),
    ("weight-an-item", lambda: {"weight": ones(3)}, ValueError, ["weight", "one entry a pair", "(2,)", "(3,)"]),
    ("margin-double", lambda: {"margin": ones(2).double()}, TypeError, ["margin", "float32", "float64"]),
    ("target-gradient", lambda: {"target": asking(2)}, ValueError, ["target", "target.detach()"]),
)  # fmt: skip


@bad_indices
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_bad_scores_and_indices_are_rejected(build, error, says, reduction):
    call = {"scores": asking(3), "chosen_index": torch.tensor([0, 1]), "rejected_index": torch.tensor([2, 2])}
    call |= {"reduction": reduction, **build()}
    assert_rejected(lambda: prefloss.bradley_terry_loss_indexed(**call), error, says)


def ragged(sizes):
    return {"rewards": ones(5), "ranks": ones(5), "group_sizes": sizes}


SIZES = ["group_sizes", "sequence of ints", "int64 tensor on the CPU"]
bad_groups = table(
    "build, error, says",
    ("rewards-1d", lambda: {"rewards": ones(6), "ranks": ones(6)}, ValueError, ["rewards", "(B, K)", "(6,)"]),
    ("rewards-3d", lambda: {"rewards": ones(1, 2, 3), "ranks": ones(1, 2, 3)}, ValueError, ["rewards", "(B, K)", "(1, 2, 3)"]),
    ("rewards-2d", lambda: {"group_sizes": [3, 3]}, ValueError, ["rewards", "(N,) with group_sizes", "(2, 3)"]),
    ("rewards-integer", lambda: {"rewards": ones(2, 3).int()}, TypeError, ["rewards", *DTYPES, "int32"]),
    ("no-kernels", lambda: {"rewards": fake("xpu")}, NotImplementedError, ["rewards", "xpu", "no kernels"]),
    ("too-many", lambda: {"rewards": ones(2**16, 2**15, device="meta")}, ValueError, ["rewards", "2**31", "2147483648"]),
    ("ranks-list", lambda: {"ranks": [[0, 1, 2]] * 2}, TypeError, ["ranks", "tensor of the rewards' shape", "(list)"]),
    ("ranks-shape", lambda: {"ranks": ones(3)}, ValueError, ["ranks", "shape of rewards", "(2, 3)", "(3,)"]),
    ("ranks-complex", lambda: {"ranks": ones(2, 3).cfloat()}, TypeError, ["ranks", "real", "complex64"]),
    ("ranks-sparse", lambda: {"ranks": ones(2, 3).to_sparse()}, TypeError, ["ranks", "dense", "sparse_coo"]),
    ("ranks-elsewhere", lambda: {"ranks": ones(2, 3, device="meta")}, ValueError, ["ranks", "rewards' device", "meta"]),
    ("ranks-gradient", lambda: {"ranks": asking(2, 3)}, ValueError, ["ranks", "ranks.detach()"]),
    ("ranks-nan", lambda: {"ranks": torch.tensor([[0, 1, 2], [0, NAN, 1]])}, ValueError, ["ranks", "nan at position 4"]),
    ("sizes-sum", lambda: ragged([2, 2]), ValueError, ["group_sizes", "add up", "5", "4"]),
    ("sizes-negative", lambda: ragged([7, -2]), ValueError, ["group_sizes", ">= 0", "-2"]),
    ("sizes-number", lambda: ragged(5), TypeError, [*SIZES, "5 (int)"]),
    ("sizes-floats", lambda: ragged([2.0, 3.0]), TypeError, [*SIZES, "2.0 (float)"]),
    ("sizes-bools", lambda: ragged([True, 4]), TypeError, [*SIZES, "True (bool)"]),
    ("sizes-string", lambda: ragged("23"), TypeError, [*SIZES, "'23'"]),
    ("sizes-int32", lambda: ragged(torch.tensor([2, 3]).int()), ValueError, [*SIZES, "int32"]),
    ("sizes-2d", lambda: ragged(torch.tensor([[2, 3]])), ValueError, [*SIZES, "(1, 2)"]),
    ("sizes-elsewhere", lambda: ragged(torch.tensor([2, 3], device="meta")), ValueError, [*SIZES, "meta"]),
    ("average", lambda: {"average": "items"}, ValueError, ["average", "'groups', 'pairs'", "'items'"]),
    ("ties", lambda: {"ties": "third"}, ValueError, ["ties", "'skip', 'half'", "'third'"]),
    ("margin-tensor", lambda: {"margin": ones(2, 3)}, TypeError, ["margin", "number", "tensor"]),
    ("margin-nan", lambda: {"margin": NAN}, ValueError, ["margin", "nan"]),
    ("beta", lambda: {"beta": INF}, ValueError, [*BETA, "inf"]),
    ("smoothing", lambda: {"label_smoothing": 0.6}, ValueError, [*SMOOTHING, "0.6"]),
    ("reduction", lambda: {"reduction": "average"}, ValueError, [*REDUCTION, "'average'"]),
    ("weight-an-item", lambda: {"weight": ones(2, 3)}, ValueError, ["weight", "one entry a group", "(2,)", "(2, 3)"]),
    ("weight-number", lambda: {"weight": 1.0}, TypeError, ["weight", "one entry a group", "1.0 (float)"]),
    ("weight-double", lambda: {"weight": ones(2).double()}, TypeError, ["weight", "float32", "float64"]),
    ("weight-gradient", lambda: {"weight": asking(2)}, ValueError, ["weight", "weight.detach()"]),
    ("denominator", lambda: {"denominator": 0}, ValueError, [*DENOMINATOR, "got 0"]),
    ("denominator-of-sum", lambda: {"denominator": 4, "reduction": "sum"}, ValueError, ["denominator", "'sum'", "None"]),
    ("stats", lambda: {"return_stats": 1}, TypeError, ["return_stats", "True or False"]),
    ("target", lambda: {"target": 0.5}, TypeError, ["unexpected keyword", "target"]),
)  # fmt: skip


@bad_groups
def test_bad_groups_are_rejected(build, error, says):
    call = {"rewards": asking(2, 3), "ranks": ones(2, 3), **build()}
    assert_rejected(lambda: prefloss.bradley_terry_loss_grouped(**call), error, says)


bad_merges = table(
    "build, error, says",
    ("list", lambda: {"rejected_index": [0, 1]}, TypeError, ["rejected_index", "int64 or int32"]),
    ("longer", lambda: {"rejected_index": ones(3).long()}, ValueError, ["same shape", "(2,)", "(3,)"]),
    (
        "elsewhere",
        lambda: {"rejected_index": ones(2, device="meta").long()},
        ValueError,
        ["same device", "cpu", "meta"],
    ),
    ("negative", lambda: {"chosen_index": torch.tensor([0, -1])}, IndexError, ["chosen_index", ">= 0"]),
    ("weight-number", lambda: {"weight": 2.0}, TypeError, ["weight", "2.0 (float)"]),
    ("weight-integer", lambda: {"weight": ones(2).long()}, TypeError, ["weight", "floating-point or bool", "int64"]),
    ("weight-long", lambda: {"weight": ones(3)}, ValueError, ["weight", "(2,)", "(3,)"]),
    ("weight-negative", lambda: {"weight": torch.tensor([1.0, -1.0])}, ValueError, ["weight", "finite and >= 0"]),
    ("weight-nan", lambda: {"weight": torch.tensor([1.0, NAN])}, ValueError, ["weight", "finite and >= 0"]),
    ("weight-infinite", lambda: {"weight": torch.tensor([1.0, INF])}, ValueError, ["weight", "finite and >= 0"]),
    ("weight-elsewhere", lambda: {"weight": ones(2, device="meta")}, ValueError, ["weight", "indices' device"]),
    ("target-mask", lambda: {"target": ones(2).bool()}, TypeError, ["target", "floating-point", "bool"]),
    ("target-gradient", lambda: {"target": asking(2)}, ValueError, ["target", "target.detach()"]),
)


@bad_merges
def test_comparisons_that_cannot_be_merged_are_rejected(build, error, says):
    call = {"chosen_index": torch.tensor([0, 1]), "rejected_index": torch.tensor([1, 0]), **build()}
    assert_rejected(lambda: prefloss.merge_comparisons(**call), error, says)


@pytest.mark.parametrize(
    "call",
    [
        lambda pair: prefloss.bradley_terry_loss(*pair, 0.1),
        lambda pair: prefloss.bradley_terry_loss_stacked(torch.cat(pair), "halves"),
        lambda pair: prefloss.BradleyTerryLoss(0.1),
        lambda pair: prefloss.BradleyTerryLoss()(*pair, 0.1),
        lambda pair: prefloss.BradleyTerryLoss()(*pair, beta=0.1),
        lambda pair: prefloss.BradleyTerryLoss(margin=0.1),
    ],
    ids=["paired", "stacked", "module", "module-call", "fixed-option-at-the-call", "option-of-the-call-fixed"],
)
def test_options_are_keywords_and_belong_to_one_place(call):
    with pytest.raises(TypeError, match=r"positional argument|unexpected keyword argument"):
        call((ones(4), ones(4)))


def assert_same_result(call, other_call):
    """Both accepted, with the same bits of loss and gradients."""
    results = []
    for each in (call, other_call):
        pair = rewards_with_gradients("cpu")
        loss = each(*pair)
        results.append((loss, *torch.autograd.grad(loss, pair)))
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@over_functions
@table(
    "given, meant",
    ("beta-integer", {"beta": 2}, {"beta": 2.0}),
    ("beta-zero", {"beta": 0.0}, {"beta": -0.0}),
    ("beta-numpy-float32", {"beta": np.float32(0.1)}, {"beta": float(np.float32(0.1))}),
    ("beta-numpy-float64", {"beta": np.float64(-0.1)}, {"beta": -0.1}),
    ("beta-numpy-integer", {"beta": np.int64(3)}, {"beta": 3.0}),
    ("beta-fraction", {"beta": Fraction(1, 4)}, {"beta": 0.25}),
    ("smoothing-integer", {"label_smoothing": 0}, {}),
    ("smoothing-numpy", {"label_smoothing": np.float16(0.5)}, {"label_smoothing": 0.5}),
    ("centring-integer", {"center_rewards_coefficient": 1}, {"center_rewards_coefficient": 1.0}),
    ("margin-numpy-integer", {"margin": np.int64(3)}, {"margin": 3.0}),
    ("margin-integer", {"margin": -1}, {"margin": -1.0}),
    ("target-integer", {"target": 1}, {}),
    ("target-zero", {"target": 0}, {"target": 0.0}),
    ("target-numpy", {"target": np.float32(0.5)}, {"target": 0.5}),
    ("reduction-numpy", {"reduction": np.str_("sum")}, {"reduction": "sum"}),
    ("denominator-numpy", {"denominator": np.int64(3)}, {"denominator": 3.0}),
    ("denominator-small", {"denominator": 1e-30}, {"denominator": torch.tensor(1e-30, dtype=torch.float64)}),
)
def test_any_real_number_is_a_number(function, given, meant):
    assert_same_result(lambda *pair: function(*pair, **given), lambda *pair: function(*pair, **meant))


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@over_functions
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS], ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_a_denominator_tensor_is_the_number_that_it_holds(function, dtype):
    denominator = torch.tensor(7, dtype=dtype)
    assert_same_result(
        lambda *pair: function(*pair, denominator=denominator), lambda *pair: function(*pair, denominator=7)
    )


@pytest.mark.parametrize("function", [paired, stacked, module], ids=lambda f: f.__name__)  # indexed: see test_indexed
@table(
    "build",
    ("weight-mask", lambda: {"weight": torch.tensor([True, False, True, True])}),
    ("weight-parameter", lambda: {"weight": torch.nn.Parameter(ones(4), requires_grad=False)}),
    ("margin-gradient", lambda: {"margin": asking(4)}),
    ("margin-parameter", lambda: {"margin": torch.nn.Parameter(ones(4))}),
    ("target-expanded", lambda: {"target": torch.tensor(0.5).expand(4)}),
)
def test_a_tensor_option_means_its_values(function, build):
    with torch.no_grad():
        plain = {name: (1.0 * tensor).detach() for name, tensor in build().items()}
    assert_same_result(lambda *pair: function(*pair, **build()), lambda *pair: function(*pair, **plain))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (3, 0), (2, 3, 1, 4)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("make", [torch.nn.Parameter, torch.Tensor.requires_grad_], ids=["parameter", "tensor"])
@pytest.mark.parametrize("options", [{}, {"margin": 0.0}], ids=["default", "with-an-option"])
def test_rewards_may_have_any_shape(shape, dtype, make, options, device):
    generator = torch.Generator().manual_seed(1)
    chosen, rejected = (make(torch.randn(shape, generator=generator).to(device, dtype)) for _ in range(2))
    loss = prefloss.bradley_terry_loss(chosen, rejected, **options)
    wide = torch.promote_types(dtype, torch.float32)
    expected = -F.logsigmoid(chosen.to(wide) - rejected.to(wide)).sum() / max(chosen.numel(), 1)
    torch.testing.assert_close(loss, expected)
    gradients = (torch.autograd.grad(each, (chosen, rejected)) for each in (loss, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", ["margin", "weight", "target"])
def test_options_may_be_float32_whatever_the_rewards_are(name, dtype):
    rewards = (torch.tensor([1.0, -2.0], dtype=dtype), torch.tensor([0.5, 0.25], dtype=dtype))
    single, same = (
        prefloss.bradley_terry_loss(*rewards, **{name: torch.tensor([0.5, 0.25], dtype=kind)})
        for kind in (torch.float32, dtype)
    )
    assert torch.equal(single, same)
