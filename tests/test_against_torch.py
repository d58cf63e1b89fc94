"""The public operators against torch on generated calls: values, state, layouts and errors.

What torch says in float64 counts as true.  Where a call is exact, the result must be that, bit
for bit; elsewhere it may be as far from it as the roundings of its sums allow.  Exact calls run
at the precision "highest", whose Winograd tiles keep small integers exact, the others at "high".

Every operator answers 5000 calls with the best instruction set of the machine, 500 with a lesser
one that ``CONVKERN_ISA`` forces: what does not depend on the kernels is tested once.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from convkern import _kernels, functional, set_float32_precision

from .calls import answer, arguments, floating, generate, in_float64, in_magnitude
from .registry import OPERATORS
from .test_exact import SHAPES
from .torch_calls import torch_call
from .window_operators import winograd_window

CALLS = min(5000 if _kernels.isa == _kernels.isa_names()[-1] else 500, SHAPES)
#: Operators whose results are elements of the input: a zero keeps its sign.
MOVING = ("im2col", "max_pool2d", "max_unpool2d", "flatten", "max_pool_channels")
#: Operators of which nothing has the layout of an image.
NOT_OF_IMAGES = (
    "col2im",
    "cross_entropy",
    "cross_entropy_backward",
    "flatten",
    "im2col",
    "linear",
    "linear_backward",
)


def window_terms(given, true):
    kernel = given["kernel_size"]
    return [math.prod(kernel) if hasattr(kernel, "__len__") else int(kernel) ** 2]


def gradient_terms(given, true):
    """Count the terms of the gradients by input, weight and bias."""
    w = given["weight"]
    return [w[:, 0].size, *[given["grad_output"].size // len(w)] * 2]


def adaptive_terms(given, true):
    """Count the elements of the largest window, or the windows that an element lies in."""
    sizes = given["input"].shape[-2:], true[0].shape[-2:]
    return [math.prod(n // o + 2 for n, o in zip(*sizes, strict=True))]


def adaptive_gradient_terms(given, true):
    sizes = given["grad_output"].shape[-2:], given["input_shape"][-2:]
    return [math.prod(o // n + 2 for o, n in zip(*sizes, strict=True))]


def transposed_gradient_terms(given, true):
    """Count the terms of the gradients by input, weight and bias."""
    w, x, grad = given["weight"], given["input"], given["grad_output"]
    return [w[0].size, x.size // len(w), grad.size // grad.shape[-3]]


#: How many products, at most, the sums have that make each result.
TERMS = {
    "adaptive_avg_pool2d": adaptive_terms,
    "adaptive_avg_pool2d_backward": adaptive_gradient_terms,
    "avg_pool2d": window_terms,
    "avg_pool2d_backward": window_terms,
    "avg_pool_channels": lambda given, true: [int(given["kernel_size"])],
    "col2im": window_terms,
    "conv2d": lambda given, true: [given["weight"][0].size],
    "conv2d_backward": gradient_terms,
    "conv_transpose2d": lambda given, true: [given["weight"][:, 0].size],
    "conv_transpose2d_backward": transposed_gradient_terms,
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


def lp_pool2d_backward_bounds(call, true):
    """Bound a sum over windows of products with powers, of which the input's may be negative."""
    given = arguments(call)
    norm, (terms,) = abs(given["norm_type"]), window_terms(given, true)
    given = given | {"grad_output": abs(given["grad_output"])}
    if norm % 2 == 0:
        given["input"] = abs(given["input"])
    (magnitude,) = torch_call(replace(call, args=(), kwargs=given))
    norm = 1 if math.isinf(norm) else norm
    return [4 * (terms + 2 * norm + 8) * max(1, 1 / norm) * abs(magnitude)]


def local_response_norm_bounds(call, true):
    """Bound a quotient by a power of a sum of positive terms."""
    given = arguments(call)
    terms = min(int(given["size"]), given["input"].shape[-3])
    return [((terms + 8) * given.get("beta", 0.75) + 8) * abs(true[0])]


def local_response_norm_backward_bounds(call, true):
    """Bound the sum of both parts of the gradient, each a product of positive numbers."""
    given = {"alpha": 1e-4, "beta": 0.75, "k": 1.0} | arguments(call)
    x, grad = abs(given["input"]), abs(given["grad_output"])
    size, beta, scale = int(given["size"]), given["beta"], given["alpha"] / given["size"]

    def neighbours(values, before):
        """Sum over the channels from so many before each one."""
        around = [(0, 0)] * values.ndim
        around[-3] = before, size - 1 - before
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, around), size, axis=-3)
        return windows.sum(axis=-1)

    base = given["k"] + scale * neighbours(x**2, size // 2)
    spread = neighbours(grad * x * base ** (-beta - 1), (size - 1) // 2)
    magnitude = grad * base**-beta + 2 * scale * beta * x * spread
    return [((size + 8) * (beta + 1) + 16) * magnitude]


def softmax_bounds(call, true):
    """Bound quotients of exponentials, of differences as large as the input's range."""
    given = {"axis": 1} | arguments(call)
    x = given["input"]
    largest = abs(x[np.isfinite(x)]).max(initial=0)
    return [(x.shape[given["axis"]] + 4 * largest + 16) * abs(true[0])]


def softmax_backward_bounds(call, true):
    given = {"axis": 1} | arguments(call)
    y, grad, axis = given["output"], abs(given["grad_output"]), given["axis"]
    return [(y.shape[axis] + 8) * y * (grad + (grad * y).sum(axis=axis, keepdims=True))]


def elementwise_bounds(call, true):
    """Bound a few roundings of every element."""
    return [8 * abs(true[0])]


def prelu_backward_bounds(call, true):
    given = arguments(call)
    products = abs(given["input"] * given["grad_output"])
    if given["weight"].size > 1:
        products = np.moveaxis(products, 1, -1).reshape(-1, given["weight"].size)
        slope = products.sum(axis=0)
    else:
        slope = products.sum().reshape(given["weight"].shape)
    return [2 * abs(true[0]), (products.size + 8) * slope]


def batch_norm_bounds(call, true):
    """Bound a difference times a factor; statistics move by less than the largest element."""
    given = {"weight": None, "bias": None, "eps": 1e-5, "training": False}
    given |= arguments(call)
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
    largest = abs(x).max(axis=axes, initial=0) if given["training"] else 0
    return [
        32 * np.moveaxis(bound, -1, 1),
        *(16 * (old + new) for old, new in zip(old, (largest, 2 * largest**2), strict=True)),
    ][: len(true)]


STATISTICS = ("running_mean", "running_var")


def batch_norm_backward_bounds(call, true):
    """Bound the terms of the gradients, sums and all; the statistics stay as they are."""
    given = {"weight": None, "eps": 1e-5, "training": False} | arguments(call)
    training = given["training"]
    x, grad = (np.moveaxis(given[name], 1, -1) for name in ("input", "grad_output"))
    grad, axes, count = abs(grad), tuple(range(x.ndim - 1)), max(1, x[..., 0].size)
    mean = abs(x).mean(axis=axes) if training else abs(given["running_mean"])
    var = x.var(axis=axes) if training else given["running_var"]
    factor = 1 / np.sqrt(var + given["eps"])
    normal = (abs(x) + mean) * factor
    gain = factor if given["weight"] is None else factor * abs(given["weight"])
    sums, products = grad.sum(axis=axes), (grad * normal).sum(axis=axes)
    each = grad + (sums + normal * products) / count if training else grad
    bounds = [np.moveaxis(gain * each, -1, 1), products, sums]
    return [(count + 16) * bound for bound in bounds] + [0] * (len(true) - 3)


def cross_entropy_bounds(call, true):
    """Bound a sum of shares times logarithms by that of the shares, which equal scores tell."""
    given = arguments(call)
    x = given["input"]
    classes = x.shape[min(1, x.ndim - 1)]
    (shares,) = torch_call(replace(call, args=(), kwargs=given | {"input": np.zeros_like(x)}))
    largest = 2 * abs(x).max(initial=0) + math.log(classes) + 1
    return [(x.size + 16) * largest / (math.log(classes) or 1) * shares]


def cross_entropy_backward_bounds(call, true):
    """Bound a softmax times the sum of a sample's shares, less each share."""
    given = {"weight": None, "ignore_index": -100, "reduction": "mean"} | arguments(call)
    x, target = given["input"], given["target"]
    axis = min(1, x.ndim - 1)
    weight = np.ones(x.shape[axis]) if given["weight"] is None else given["weight"]
    if target.dtype.kind == "f":
        shares = np.moveaxis(target, axis, -1) @ weight
        total = shares.size
    else:
        ignored = target == given["ignore_index"]
        shares = np.where(ignored, 0, weight[np.where(ignored, 0, target)])
        total = shares.sum()
    shares = shares + given.get("label_smoothing", 0) * weight.mean()
    scale = abs(np.asarray(given["grad_output"])) * shares
    if given["reduction"] == "mean":
        scale = scale / (total or 1)
    terms = 4 * abs(x).max(initial=0) + 4 * len(weight) + 32
    return [np.broadcast_to(terms * np.expand_dims(scale, axis), x.shape)]


BOUNDS = {
    "batch_norm": batch_norm_bounds,
    "batch_norm_backward": batch_norm_backward_bounds,
    "cross_entropy": cross_entropy_bounds,
    "cross_entropy_backward": cross_entropy_backward_bounds,
    "leaky_relu": elementwise_bounds,
    "leaky_relu_backward": elementwise_bounds,
    "local_response_norm": local_response_norm_bounds,
    "local_response_norm_backward": local_response_norm_backward_bounds,
    "lp_pool2d": lp_pool2d_bounds,
    "lp_pool2d_backward": lp_pool2d_backward_bounds,
    "prelu": elementwise_bounds,
    "prelu_backward": prelu_backward_bounds,
    "sigmoid": elementwise_bounds,
    "sigmoid_backward": elementwise_bounds,
    "softmax": softmax_bounds,
    "softmax_backward": softmax_backward_bounds,
} | dict.fromkeys(TERMS, sum_bounds)


def bounds_of(call, true):
    """Return how far each result may be from the true one, in units of the dtype's rounding."""
    with np.errstate(all="ignore"):
        bounds = BOUNDS[call.name](in_float64(call), true)
    given = arguments(call)
    convolves = call.name.startswith("conv") and given.get("algorithm") != "direct"
    if convolves and winograd_window(given):
        # Winograd's rounding errors are those of a whole tile.
        bounds = [None if bound is None else 2 * bound.max(initial=0) for bound in bounds]
    return bounds


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
    bounds = [None] * len(true) if call.exact else bounds_of(call, true)
    with set_float32_precision("highest" if call.exact else "high"):
        got = answer(functional, call)
    out = call.kwargs.get("out")
    assert out is None or got[0] is out, call.note
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
            allowed = np.finfo(dtype).eps * bound + np.finfo(dtype).smallest_subnormal
            allowed = np.broadcast_to(allowed, finite.shape)[finite]
            assert (error <= allowed).all(), f"{(error / allowed).max()} of {call.note}"
        if call.name in MOVING and mine.dtype == dtype:
            mine, expected = (np.where(np.isnan(a), 0, a) for a in (mine, expected))
            np.testing.assert_array_equal(np.signbit(mine), np.signbit(expected), call.note)
    if call.name not in NOT_OF_IMAGES and dtype is not None and out is None:
        check_layout(call, got[0])


def check_layout(call, result):
    """Check that images have the layout of those that they were made from."""
    given = arguments(call)
    x = next(given[name] for name in ("input", "output", "grad_output") if name in given)
    if x.ndim not in (3, 4) or result is None or 1 in (*x.shape[-3:], *result.shape[-3:]):
        return  # not images, or such that their strides leave the layout open
    if x.flags.c_contiguous:
        order = (-3, -2, -1)
    elif np.moveaxis(x, -3, -1).flags.c_contiguous:
        order = (-2, -1, -3)
    else:
        return
    strides = [result.strides[axis] for axis in order]
    assert strides == sorted(strides, reverse=True), f"layout {strides} of {call.note}"


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
    others = {"PackedConv2d", "to_channels_last"}
    in_test_training = {
        f"{loss}{direction}"
        for loss in ("mse_loss", "binary_cross_entropy_with_logits")
        for direction in ("", "_backward")
    }
    in_test_pool = {
        f"{operator}_backward"
        for operator in ("max_unpool2d", "max_pool_channels", "avg_pool_channels")
    }
    compared = set(OPERATORS) | in_test_training | in_test_pool
    assert set(functional.__all__) - others == compared
