"""The public operators against torch on generated calls: values, state, layouts and errors.

What torch says in float64 counts as true.  Where a call is exact, the result must be that, bit
for bit; elsewhere it may be as far from it as the roundings of its sums allow.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

import convkern
from convkern import functional

from .calls import answer, arguments, floating, generate, in_float64, in_magnitude
from .operators import OPERATORS
from .torch_calls import torch_call

CALLS = 5000
#: Operators whose results are elements of the input: a zero keeps its sign.
MOVING = ("im2col", "max_pool2d", "max_unpool2d")
#: Operators of which nothing has the layout of an image.
NOT_OF_IMAGES = ("im2col", "col2im", "linear", "linear_backward", "cross_entropy")


def window_terms(given, true):
    kernel = given["kernel_size"]
    return [math.prod(kernel) if hasattr(kernel, "__len__") else int(kernel) ** 2]


def gradient_terms(given, true):
    """Count the terms of the gradients by input, weight and bias."""
    w = given["weight"]
    return [w[:, 0].size, *[given["grad_output"].size // len(w)] * 2]


#: How many products, at most, the sums have that make each result.
TERMS = {
    "adaptive_avg_pool2d": lambda given, true: [
        math.prod(
            n // o + 2 for n, o in zip(given["input"].shape[-2:], true[0].shape[-2:], strict=True)
        )
    ],
    "avg_pool2d": window_terms,
    "avg_pool2d_backward": window_terms,
    "avg_pool_channels": lambda given, true: [int(given["kernel_size"])],
    "col2im": window_terms,
    "conv2d": lambda given, true: [given["weight"][0].size],
    "conv2d_backward": gradient_terms,
    "conv_transpose2d": lambda given, true: [given["weight"][:, 0].size],
    "linear": lambda given, true: [given["input"].shape[-1]],
    "linear_backward": gradient_terms,
    "max_pool2d_backward": lambda given, true: [math.prod(given["indices"].shape[-2:])],
}


def sum_bounds(call, true):
    """Bound sums of products: each operation rounds at most the sum of all magnitudes."""
    terms = TERMS[call.name](arguments(call), true)
    magnitudes = torch_call(in_magnitude(call))
    return [
        None if magnitude is None else 2 * (count + 2) * abs(magnitude)
        for count, magnitude in zip(terms, magnitudes, strict=True)
    ]


def lp_pool2d_bounds(call, true):
    """Bound a root: the sum of powers is of positive terms, or of integers and exact."""
    given = arguments(call)
    norm, (terms,) = abs(given["norm_type"]), window_terms(given, true)
    return [(terms + 2 * norm + 8) * max(1, 1 / norm) * abs(true[0])]


def local_response_norm_bounds(call, true):
    """Bound a quotient by a power of a sum of positive terms."""
    given = arguments(call)
    terms = min(int(given["size"]), given["input"].shape[-3])
    return [((terms + 8) * given.get("beta", 0.75) + 8) * abs(true[0])]


def batch_norm_bounds(call, true):
    """Bound a difference times a factor; statistics move by less than the largest element."""
    given = {"weight": None, "bias": None, "eps": 1e-5, "training": False}
    given |= arguments(in_float64(call))
    x = np.moveaxis(given["input"], 1, -1)
    axes = tuple(range(x.ndim - 1))
    mean = abs(x).mean(axis=axes) if given["training"] else abs(given["running_mean"])
    var = x.var(axis=axes) if given["training"] else given["running_var"]
    bound = (abs(x) + mean) / np.sqrt(var + given["eps"])
    if given["weight"] is not None:
        bound = bound * abs(given["weight"])
    if given["bias"] is not None:
        bound = bound + abs(given["bias"])
    old = [0 if given[name] is None else abs(given[name]) for name in STATISTICS]
    largest = abs(x).max(axis=axes, initial=0)
    return [
        16 * np.moveaxis(bound, -1, 1),
        *(16 * (old + new) for old, new in zip(old, (largest, 2 * largest**2), strict=True)),
    ][: len(true)]


STATISTICS = ("running_mean", "running_var")


def cross_entropy_bounds(call, true):
    """Bound a sum of shares times logarithms by that of the shares, which equal scores tell."""
    given = arguments(in_float64(call))
    x = given["input"]
    classes = x.shape[min(1, x.ndim - 1)]
    (shares,) = torch_call(replace(call, args=(), kwargs=given | {"input": np.zeros_like(x)}))
    largest = 2 * abs(x).max(initial=0) + math.log(classes) + 1
    return [(x.size + 16) * largest / (math.log(classes) or 1) * shares]


BOUNDS = {
    "batch_norm": batch_norm_bounds,
    "cross_entropy": cross_entropy_bounds,
    "local_response_norm": local_response_norm_bounds,
    "lp_pool2d": lp_pool2d_bounds,
} | dict.fromkeys(TERMS, sum_bounds)


def check_refused(call):
    """Check that convkern raises what it must, and torch something."""
    with pytest.raises(call.error):
        answer(functional, call)
        pytest.fail(f"convkern accepts {call.note}")
    if not call.torch_accepts:
        with pytest.raises(Exception):  # noqa: B017 - torch raises what it likes
            torch_call(call)
            pytest.fail(f"torch accepts {call.note}")


def check_accepted(call):
    """Check every result of a valid call."""
    # What is true, and how closely, before the call changes its arguments.
    true = torch_call(in_float64(call))
    bounds = [None] * len(true) if call.exact else BOUNDS[call.name](in_float64(call), true)
    got = answer(functional, call)
    dtype = next((array.dtype for array in floating(call)), None)
    for mine, theirs, bound in zip(got, true, bounds, strict=True):
        if not isinstance(theirs, np.ndarray):
            assert mine == theirs and type(mine) is type(theirs), call.note
            continue
        expected = theirs.astype(dtype) if theirs.dtype.kind == "f" else theirs
        assert (mine.dtype, mine.shape) == (expected.dtype, expected.shape), call.note
        if call.exact:
            np.testing.assert_array_equal(mine, expected, call.note)
        else:
            finite = np.isfinite(expected)
            np.testing.assert_array_equal(mine[~finite], expected[~finite], call.note)
            error = abs(mine[finite].astype(np.float64) - theirs[finite])
            allowed = np.broadcast_to(np.finfo(dtype).eps * bound, finite.shape)[finite]
            assert (error <= allowed).all(), f"{(error / allowed).max()} of {call.note}"
        if call.name in MOVING and mine.dtype == dtype:
            mine, expected = (np.where(np.isnan(a), 0, a) for a in (mine, expected))
            np.testing.assert_array_equal(np.signbit(mine), np.signbit(expected), call.note)
    if call.name not in NOT_OF_IMAGES and dtype is not None:
        check_layout(call, got[0])


def check_layout(call, result):
    """Check that images have the layout of those that they were made from."""
    given = arguments(call)
    x = given.get("input", given.get("grad_output"))
    if x.ndim not in (3, 4) or 1 in x.shape[-3:] or result is None:
        return  # not images, or such that their strides leave the layout open
    layouts = {
        "contiguous": lambda a: a.flags.c_contiguous,
        "channels-last": lambda a: np.moveaxis(a, -3, -1).flags.c_contiguous,
    }
    fitting = [layout for layout, test in layouts.items() if test(x)]
    if len(fitting) == 1:
        assert layouts[fitting[0]](result), f"not {fitting[0]}: {call.note}"


@pytest.mark.parametrize("name", OPERATORS)
def test_generated_calls(torch, name):
    refused = 0
    for call in generate(name, CALLS, seed=20):
        if call.error is None:
            check_accepted(call)
        else:
            refused += 1
            check_refused(call)
    assert CALLS // 20 < refused < CALLS // 5


def test_every_operator_is_compared():
    """Every public function on arrays is among the generated calls, or named here."""
    others = {"activations"}
    public = {name for name in convkern.__all__ if name in functional.__all__}
    assert public - others == set(OPERATORS)
