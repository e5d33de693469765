"""Every argument that is not accepted: the type of the error, and a message that says which, what was given, what is accepted."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from calls import FIXED_BY_THE_MODULE

import prefloss

NAN, INF = math.nan, math.inf
FLOAT8 = torch.float8_e4m3fn


def paired(chosen, rejected, **options):
    return prefloss.bradley_terry_loss(chosen, rejected, **options)


def stacked(chosen, rejected, **options):
    return prefloss.bradley_terry_loss_stacked(torch.cat((chosen, rejected)), **options)


def module(chosen, rejected, **options):
    fixed = {name: options.pop(name) for name in options.keys() & FIXED_BY_THE_MODULE}
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


def quantized():
    return quietly(torch.quantize_per_tensor, ones(4), 0.5, 0, torch.quint8)


def packed():
    return torch.empty(4, dtype=torch.uint4)


def csr():
    return quietly(torch.Tensor.to_sparse_csr, ones(4, 4))


def quietly(make, *args, **kwargs):
    """Without the warning that torch may change such tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args, **kwargs)


def on_cpu(*shape):
    return torch.ones(shape, device="cpu")


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
    ("beta-bool", {"beta": True}, TypeError, [*BETA, "True (bool)"]),
    ("beta-numpy-bool", {"beta": np.True_}, TypeError, [*BETA, "bool"]),
    ("beta-string", {"beta": "0.1"}, TypeError, [*BETA, "'0.1' (str)"]),
    ("beta-complex", {"beta": 1j}, TypeError, [*BETA, "1j (complex)"]),
    ("beta-array", {"beta": np.array(0.5)}, TypeError, [*BETA, "ndarray"]),
    ("beta-mask", {"beta": torch.tensor(True)}, TypeError, [*BETA, "True (bool)"]),
    ("beta-of-many", {"beta": ones(4)}, TypeError, [*BETA, "a tensor of shape (4,)", "beta.item()"]),
    ("beta-elsewhere", {"beta": ones(device="meta")}, TypeError, [*BETA, "meta", "beta.item()"]),
    ("beta-gradient", {"beta": asking()}, ValueError, ["beta", "requires_grad", "beta.detach()"]),
    ("beta-complex-tensor", {"beta": torch.tensor(1j)}, TypeError, ["beta", "real dtype", "complex64"]),
    ("beta-nested", {"beta": nested(torch.strided)}, TypeError, ["beta", "dense", "nested"]),
    ("smoothing-nested", {"label_smoothing": nested(torch.jagged)}, TypeError, ["label_smoothing", "dense", "nested"]),
    ("flips-half", {"flip_rate": 0.5}, ValueError, ["flip_rate", "a number in [0, 0.5)", "0.5"]),
    ("flips-string", {"flip_rate": "0.1"}, TypeError, ["flip_rate", "a number in [0, 0.5)", "'0.1' (str)"]),
    ("flips-and-smoothing", {"flip_rate": 0.1, "label_smoothing": 0.2}, ValueError, ["flip_rate", "label_smoothing", "0.1", "0.2"]),
    ("smoothing-negative", {"label_smoothing": -0.1}, ValueError, [*SMOOTHING, "-0.1"]),
    ("smoothing-above-half", {"label_smoothing": 0.51}, ValueError, [*SMOOTHING, "0.51"]),
    ("smoothing-nan", {"label_smoothing": NAN}, ValueError, [*SMOOTHING, "nan"]),
    ("smoothing-bool", {"label_smoothing": False}, TypeError, [*SMOOTHING, "False (bool)"]),
    ("smoothing-tensor", {"label_smoothing": ones(4)}, TypeError, [*SMOOTHING, "a tensor of shape (4,)"]),
    ("centring-negative", {"center_rewards_coefficient": -1e-9}, ValueError, [*CENTRING, "-1e-09"]),
    ("centring-infinite", {"center_rewards_coefficient": INF}, ValueError, [*CENTRING, "inf"]),
    ("centring-nan", {"center_rewards_coefficient": NAN}, ValueError, [*CENTRING, "nan"]),
    ("centring-nested", {"center_rewards_coefficient": nested(torch.strided)}, TypeError, [CENTRING[0], "dense", "nested"]),
    ("centring-complex", {"center_rewards_coefficient": np.complex64(1)}, TypeError, [*CENTRING, "complex64"]),
    ("reduction-unknown", {"reduction": "batchmean"}, ValueError, [*REDUCTION, "'batchmean'"]),
    ("reduction-capital", {"reduction": "Mean"}, ValueError, [*REDUCTION, "'Mean'"]),
    ("reduction-list", {"reduction": ["mean"]}, ValueError, [*REDUCTION, "['mean']"]),
    ("reduction-array", {"reduction": np.ones(3)}, ValueError, [*REDUCTION, "(ndarray)"]),
    ("reduction-tensor", {"reduction": packed()}, ValueError, [*REDUCTION, "a tensor of shape (4,)"]),
    ("reduction-number", {"reduction": 1}, ValueError, [*REDUCTION, "1 (int)"]),
    ("unknown-keyword", {"temperature": 0.1}, TypeError, ["unexpected keyword", "temperature"]),
)  # fmt: skip

MARGIN = ["margin", "a finite number, or for pairs a tensor with one entry a pair"]
TARGET = ["target", "a number in [0, 1] or a tensor with one entry a pair"]
DENOMINATOR = [
    "denominator",
    "a number > 0, or an integer or floating-point tensor of one entry on the rewards' device",
]
bad_options = table(
    "build, error, says",
    ("beta-beyond-float32", lambda: {"beta": 1e39}, ValueError, ["beta", "finite in float32", "1e+39", "float64 rewards"]),
    ("margin-nan", lambda: {"margin": NAN}, ValueError, [*MARGIN, "nan"]),
    ("margin-infinite", lambda: {"margin": INF}, ValueError, [*MARGIN, "inf"]),
    ("margin-bool", lambda: {"margin": True}, TypeError, [*MARGIN, "True (bool)"]),
    ("margin-list", lambda: {"margin": [1.0] * 4}, TypeError, [*MARGIN, "(list)"]),
    ("margin-array", lambda: {"margin": np.ones(4)}, TypeError, [*MARGIN, "(ndarray)"]),
    ("margin-column", lambda: {"margin": ones(4, 1)}, ValueError, ["margin", "one entry a pair", "(4,)", "(4, 1)"]),
    ("margin-complex", lambda: {"margin": ones(4, dtype=torch.cfloat)}, TypeError, ["margin", "real dtype", "complex64"]),
    ("margin-elsewhere", lambda: {"margin": ones(4, device="meta")}, ValueError, ["margin", "same device as the rewards", "meta"]),
    ("margin-sparse", lambda: {"margin": ones(4).to_sparse()}, TypeError, ["margin", "dense", "torch.sparse_coo"]),
    ("margin-jagged", lambda: {"margin": nested(torch.jagged)}, TypeError, ["margin", "dense", "nested"]),
    ("margin-nested", lambda: {"margin": nested(torch.strided)}, TypeError, ["margin", "dense", "nested"]),
    ("margin-quantized", lambda: {"margin": quantized()}, TypeError, ["margin", "real dtype", "quint8", "dequantize"]),
    ("margin-packed", lambda: {"margin": packed()}, TypeError, ["margin", "real dtype", "uint4"]),
    ("margin-beyond-float32", lambda: {"margin": -1e39}, ValueError, ["margin", "finite in float32", "-1e+39"]),
    ("weight-quantized", lambda: {"weight": quantized()}, TypeError, ["weight", "real dtype", "quint8", "dequantize"]),
    ("weight-packed", lambda: {"weight": packed()}, TypeError, ["weight", "real dtype", "uint4"]),
    ("weight-number", lambda: {"weight": 1.0}, TypeError, ["weight", "a tensor with one entry a pair", "1.0 (float)"]),
    ("weight-list", lambda: {"weight": [1.0] * 4}, TypeError, ["weight", "a tensor with one entry a pair", "(list)"]),
    ("weight-short", lambda: {"weight": ones(3)}, ValueError, ["weight", "one entry a pair", "(4,)", "(3,)"]),
    ("weight-0d", lambda: {"weight": ones()}, ValueError, ["weight", "one entry a pair", "(4,)", "()"]),
    ("weight-elsewhere", lambda: {"weight": ones(4, device="meta")}, ValueError, ["weight", "same device as the rewards", "meta"]),
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
    ("target-quantized", lambda: {"target": quantized()}, TypeError, ["target", "real dtype", "quint8", "dequantize"]),
    ("target-elsewhere", lambda: {"target": ones(4, device="meta")}, ValueError, ["target", "same device as the rewards", "meta"]),
    ("target-nested", lambda: {"target": nested(torch.strided)}, TypeError, ["target", "dense", "nested"]),
    ("target-gradient", lambda: {"target": asking(4)}, ValueError, ["target", "requires_grad", "target.detach()"]),
    ("denominator-zero", lambda: {"denominator": 0}, ValueError, [*DENOMINATOR, "got 0"]),
    ("denominator-negative", lambda: {"denominator": -2.0}, ValueError, [*DENOMINATOR, "-2.0"]),
    ("denominator-nan", lambda: {"denominator": NAN}, ValueError, [*DENOMINATOR, "nan"]),
    ("denominator-tensor-zero", lambda: {"denominator": torch.tensor(0)}, ValueError, ["denominator", "> 0", "got a tensor of 0"]),
    ("denominator-tensor-negative", lambda: {"denominator": torch.tensor(-2.0)}, ValueError, ["denominator", "> 0", "of -2"]),
    ("denominator-tensor-nan", lambda: {"denominator": torch.tensor([NAN])}, ValueError, ["denominator", "> 0", "of nan"]),
    ("denominator-infinite", lambda: {"denominator": INF}, ValueError, [*DENOMINATOR, "inf"]),
    ("denominator-beyond-float", lambda: {"denominator": 10**400}, ValueError, [*DENOMINATOR, "1000"]),
    ("denominator-bool", lambda: {"denominator": True}, TypeError, [*DENOMINATOR, "True (bool)"]),
    ("denominator-list", lambda: {"denominator": [4]}, TypeError, [*DENOMINATOR, "[4] (list)"]),
    ("denominator-array", lambda: {"denominator": np.array(4)}, TypeError, [*DENOMINATOR, "(ndarray)"]),
    ("denominator-beyond-float32", lambda: {"denominator": 1e39}, ValueError, ["denominator", "finite", "float32", "1e+39"]),
    ("denominator-near-0", lambda: {"denominator": 1e-39}, ValueError, ["denominator", "its inverse", "float32", "1e-39"]),
    ("denominator-of-many", lambda: {"denominator": ones(2)}, ValueError, [*DENOMINATOR, "(2,)", ".sum()"]),
    ("denominator-mask", lambda: {"denominator": torch.tensor(True)}, TypeError, [*DENOMINATOR, "bool"]),
    ("denominator-complex", lambda: {"denominator": torch.tensor(1j)}, TypeError, ["denominator", "real dtype", "complex64"]),
    ("denominator-sparse", lambda: {"denominator": ones().to_sparse()}, TypeError, ["denominator", "dense", "torch.sparse_coo"]),
    ("denominator-csr", lambda: {"denominator": csr()}, TypeError, ["denominator", "dense", "torch.sparse_csr"]),
    ("denominator-jagged", lambda: {"denominator": nested(torch.jagged)}, TypeError, ["denominator", "dense", "nested"]),
    ("denominator-nested", lambda: {"denominator": nested(torch.strided)}, TypeError, ["denominator", "dense", "nested"]),
    ("denominator-elsewhere", lambda: {"denominator": ones(device="meta")}, ValueError, ["denominator", "device"]),
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
    ("complex", lambda: (ones(4).cfloat(), ones(4).cfloat()), TypeError, ["chosen", "real dtype", "complex64"]),
    ("float8", lambda: (ones(4).to(FLOAT8), ones(4).to(FLOAT8)), TypeError, ["chosen", *DTYPES, "float8_e4m3fn"]),
    ("meta-chosen", lambda: (ones(4, device="meta"), ones(4)), ValueError, ["same device", "meta", "move it with .to()"]),
    ("meta-rejected", lambda: (ones(4), ones(4, device="meta")), ValueError, ["same device", "meta", "move it with .to()"]),
    ("lists", lambda: ([1.0, 2.0], [1.0, 2.0]), TypeError, ["chosen", "torch.Tensor", "list"]),
    ("numbers", lambda: (1.0, 2.0), TypeError, ["chosen", "torch.Tensor", "float"]),
    ("arrays", lambda: (np.ones(4), np.ones(4)), TypeError, ["chosen", "torch.Tensor", "ndarray"]),
    ("array-rejected", lambda: (ones(4), np.ones(4)), TypeError, ["rejected", "torch.Tensor", "ndarray"]),
    ("no-chosen", lambda: (None, ones(4)), TypeError, ["chosen", "torch.Tensor", "NoneType"]),
    ("no-rejected", lambda: (ones(4), None), TypeError, ["rejected", "torch.Tensor", "NoneType"]),
    ("sparse", lambda: (ones(4).to_sparse(), ones(4)), TypeError, ["chosen", "dense", "torch.sparse_coo", ".to_dense()"]),
    ("sparse-rejected", lambda: (ones(4), ones(4).to_sparse()), TypeError, ["rejected", "dense", "torch.sparse_coo"]),
    ("mkldnn", lambda: (on_cpu(4).to_mkldnn(), on_cpu(4).to_mkldnn()), TypeError, ["chosen", "dense", "torch._mkldnn"]),
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


@pytest.mark.parametrize(
    "call",
    [
        lambda pair: prefloss.bradley_terry_loss(*pair, 0.1),
        lambda pair: prefloss.bradley_terry_loss_stacked(torch.cat(pair), "halves"),
        lambda pair: prefloss.BradleyTerryLoss(0.1),
        lambda pair: prefloss.BradleyTerryLoss()(*pair, 0.1, 0.5),
        lambda pair: prefloss.BradleyTerryLoss()(*pair, beta=0.1),
        lambda pair: prefloss.BradleyTerryLoss(margin=0.1),
    ],
    ids=["paired", "stacked", "module", "module-call", "fixed-option-at-the-call", "option-of-the-call-fixed"],
)
def test_options_are_keywords_and_belong_to_one_place(call):
    with pytest.raises(TypeError, match=r"positional argument|unexpected keyword argument"):
        call((ones(4), ones(4)))
