"""The oracle itself: against worked examples, and against torch in float64."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.random import Generator
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from convkern import functional, reference

from .calls import Call, arguments, generate, in_float64, reference_call, torch_call, torch_function

Array: TypeAlias = NDArray[Any]


def assert_close(actual: Any, expected: Any, note: str = "") -> None:
    """Hold two results, or tuples of them, equal to 1e-12 of the largest number."""
    if isinstance(expected, tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_close(one, other, note)
        return
    expected = np.asarray(expected.detach() if hasattr(expected, "detach") else expected)
    assert actual.dtype == expected.dtype, note
    assert actual.shape == expected.shape, note
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=1)
    assert_allclose(actual, expected, rtol=1e-12, atol=1e-12 * scale, err_msg=note)


def test_signatures_are_those_of_the_fast_functions() -> None:
    def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        return [
            (p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()
        ]

    shared = set(reference.__all__) & set(functional.__all__)
    assert shared >= {"conv2d", "max_pool2d", "linear"}
    for name in shared:
        assert parameters(getattr(reference, name)) == parameters(getattr(functional, name)), name


# Worked examples


def test_three_by_three_window_on_a_five_by_five_image() -> None:
    image = np.array(
        [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]
    )
    kernel = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    result = reference.conv2d(image[None], kernel[None, None])
    assert_array_equal(result[0], [[4, 3, 4], [2, 4, 3], [2, 3, 4]])
    strided = reference.conv2d(image[None], kernel[None, None], stride=2)
    assert_array_equal(strided[0], [[4, 4], [2, 4]])


def test_sharpening_a_four_by_four_image() -> None:
    image = np.array([[1, 1, 1, 1], [1, 3, 3, 1], [1, 3, 3, 1], [1, 1, 1, 1]])
    kernel = np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]])
    result = reference.conv2d(image[None], kernel[None, None], padding=1)
    edge = [[3, 0, 0, 3], [0, 7, 7, 0], [0, 7, 7, 0], [3, 0, 0, 3]]
    assert_array_equal(result[0], edge)


def test_convolution_is_not_flipped_and_same_pads_bottom_and_right() -> None:
    image = np.arange(1.0, 5.0).reshape(1, 2, 2)
    kernel = np.array([[[[1.0, 10.0], [100.0, 1000.0]]]])
    same = reference.conv2d(image, kernel, padding="same")
    assert_array_equal(same[0], [[4321, 402], [43, 4]])
    upper_left = reference.conv2d(image, kernel, padding=((1, 0), (1, 0)))
    assert_array_equal(upper_left[0], [[1000, 2100], [3010, 4321]])


def test_groups_bias_activation_and_out() -> None:
    image = np.array([2.0, 3.0]).reshape(2, 1, 1)
    weight, bias = np.array([1.0, -4.0]).reshape(2, 1, 1, 1), np.array([5.0, 2.0])
    out = np.empty((2, 1, 1), np.float32)
    expected = {None: [7, -10], "relu": [7, 0], "relu6": [6, 0], "leaky_relu": [7, -0.1]}
    for activation, values in expected.items():
        result = reference.conv2d(image, weight, bias, groups=2, activation=activation, out=out)
        assert result is out
        assert_allclose(out.ravel(), values, rtol=1e-7)


def test_gradients_of_a_single_window() -> None:
    image, kernel = np.arange(4.0).reshape(1, 2, 2), np.arange(4.0, 8.0).reshape(1, 1, 2, 2)
    grad_output = np.array([[[10.0]]])
    gradients = reference.conv2d_backward(grad_output, image, kernel)
    for gradient, expected in zip(gradients, (10 * kernel[0], 10 * image[None], [10]), strict=True):
        assert_array_equal(gradient, expected)
    masked = reference.conv2d_backward(grad_output, image, kernel, output_mask=(False, True, False))
    assert masked[0] is None and masked[2] is None
    assert_array_equal(masked[1], 10 * image[None])


def test_pooling_a_four_by_four_image() -> None:
    image = np.array([[[1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]]])
    values, indices = reference.max_pool2d(image, 2, return_indices=True)
    assert_array_equal(values[0], [[6, 8], [3, 4]])
    assert_array_equal(indices[0], [[5, 7], [8, 15]])
    assert_array_equal(reference.avg_pool2d(image, 2)[0], [[3.25, 5.25], [2, 2]])
    unpooled = reference.max_unpool2d(values, indices, 2)
    assert_array_equal(unpooled[0], [[0, 0, 0, 0], [0, 6, 0, 8], [3, 0, 0, 0], [0, 0, 0, 4]])


@pytest.mark.parametrize(
    ("row", "value", "index"),
    [
        ([1, 2, 2, 1], 2, 1),
        ([-0.0, 0.0, 0.0, 0.0], 0, 0),
        ([1, np.nan, np.inf, np.nan], np.nan, 3),
        ([-np.inf, -np.inf, -np.inf, -np.inf], -np.inf, 0),
        ([-np.inf, -np.inf, 5e-324, -np.inf], 5e-324, 2),
    ],
)
def test_which_element_of_a_window_wins(row: list[float], value: float, index: int) -> None:
    values, indices = reference.max_pool2d(np.array([[row]]), (1, 4), return_indices=True)
    assert_array_equal(values, [[[value]]])
    assert_array_equal(indices, [[[index]]])


def test_padding_never_wins_a_pooling_window() -> None:
    image = np.full((1, 2, 2), -np.inf)
    values, indices = reference.max_pool2d(image, 2, 1, 1, return_indices=True)
    assert_array_equal(values[0], np.full((3, 3), -np.inf))
    assert_array_equal(indices[0], [[0, 0, 1], [0, 0, 1], [2, 2, 3]])


def test_ceil_mode_drops_a_window_that_starts_in_the_padding() -> None:
    row = np.arange(1.0, 6.0).reshape(1, 1, 5)
    assert_array_equal(reference.max_pool2d(row, (1, 2), 2)[0, 0], [2, 4])
    assert_array_equal(reference.max_pool2d(row, (1, 2), 2, ceil_mode=True)[0, 0], [2, 4, 5])
    padded = reference.max_pool2d(row[..., :4], (1, 2), 3, (0, 1), ceil_mode=True)
    assert_array_equal(padded[0, 0], [1, 4])


def test_a_window_that_steps_over_the_image() -> None:
    # Taps at columns -1 and 1 of an image with a single column.
    values, indices = reference.max_pool2d(
        np.ones((1, 1, 1)), (1, 2), 1, (0, 1), (1, 2), return_indices=True
    )
    assert_array_equal(values, [[[-np.inf]]])
    assert_array_equal(indices, [[[0]]])


def test_batch_norm_needs_statistics_outside_training() -> None:
    with pytest.raises(ValueError, match="running_mean"):
        reference.batch_norm(np.ones((2, 1)), None, None)


# Against torch: the operators that have random calls


def compared(name: str, seed: int, n: int = 300) -> list[Call]:
    """Return random calls of one operator, in float64."""
    return [in_float64(call) for call in generate(name, n, seed) if call.error is None]


@pytest.mark.parametrize("name", ["conv2d", "max_pool2d", "linear"])
def test_random_calls(torch: Any, name: str) -> None:
    for call in compared(name, seed=1):
        expected = torch_call(call)
        if call.exact:
            assert_array_equal(reference_call(call), expected, err_msg=call.note, strict=True)
        else:
            assert_close(reference_call(call), expected, call.note)


@pytest.mark.parametrize("name", ["conv2d", "max_pool2d", "linear"])
def test_torch_refuses_the_invalid_calls(torch: Any, name: str) -> None:
    invalid = [call for call in generate(name, 1000, seed=2) if call.error]
    assert len(invalid) > 50
    for call in invalid:
        with pytest.raises(Exception):  # noqa: B017 - torch raises what it likes
            pytest.fail(f"accepted: {call.note}: {torch_call(call)}")


def differentiated(
    torch: Any, rng: Generator, function: Callable[..., Any], *arrays: Array
) -> tuple[Array, Array, tuple[Any, ...]]:
    """Return function(*arrays), a random gradient of it and torch's gradients by the arrays."""
    # Contiguous: torch 2.13 errs in the weight's gradient of some grouped channels-last calls.
    tensors = [torch.tensor(np.array(array, order="C"), requires_grad=True) for array in arrays]
    output = function(*tensors)
    grad_output = rng.standard_normal(tuple(output.shape))
    gradients = torch.autograd.grad(output, tensors, torch.from_numpy(grad_output))
    return output.detach().numpy(), grad_output, gradients


def test_conv2d_backward(torch: Any) -> None:
    rng, convolve = np.random.default_rng(3), torch_function("conv2d")
    for call in compared("conv2d", seed=3):
        given = arguments(call)
        window = {k: given[k] for k in ("stride", "padding", "dilation", "groups") if k in given}
        x, w, bias = given["input"], given["weight"], np.zeros(len(given["weight"]))
        _, grad_output, expected = differentiated(
            torch, rng, partial(convolve, **window), x, w, bias
        )
        actual = reference.conv2d_backward(grad_output, x, w, **window)
        assert_close(actual, expected, call.note)


def test_max_pool2d_backward(torch: Any) -> None:
    rng, pool = np.random.default_rng(4), torch_function("max_pool2d")
    for call in compared("max_pool2d", seed=4):
        given = arguments(call) | {"return_indices": True}
        x = given.pop("input")
        _, indices = reference.max_pool2d(x, **given)
        given["return_indices"] = False
        _, grad_output, (expected,) = differentiated(torch, rng, partial(pool, **given), x)
        actual = reference.max_pool2d_backward(grad_output, indices, x.shape)
        assert_close(actual, expected, call.note)


def test_linear_backward(torch: Any) -> None:
    rng = np.random.default_rng(5)
    for call in compared("linear", seed=5):
        x, w = (arguments(call)[name] for name in ("input", "weight"))
        if w.ndim == 1:
            continue
        _, grad_output, expected = differentiated(
            torch, rng, torch.nn.functional.linear, x, w, np.zeros(len(w))
        )
        assert_close(reference.linear_backward(grad_output, x, w), expected, call.note)


# Against torch: the others


@pytest.fixture(params=range(30))
def rng(request: pytest.FixtureRequest) -> Generator:
    """One random case."""
    return np.random.default_rng([6, request.param])


def pair(rng: Generator, low: int, high: int) -> tuple[int, int]:
    """Draw two integers of low..high."""
    return int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1))


def outer(rng: Generator, channels: int) -> tuple[int, ...]:
    """Draw (N, C), now and then of an empty batch, or (C,) for one unbatched image."""
    return [(channels,), (0, channels), (1, channels), (3, channels)][rng.integers(4)]


def image(rng: Generator, low: int = 1, high: int = 12) -> Array:
    """Draw an image or a batch of them."""
    return rng.standard_normal((*outer(rng, int(rng.integers(1, 6))), *pair(rng, low, high)))


def test_conv_transpose2d(torch: Any, rng: Generator) -> None:
    groups = int(rng.integers(1, 4))
    C, OC = groups * int(rng.integers(1, 4)), int(rng.integers(1, 4))
    stride, dilation, kernel = pair(rng, 1, 3), pair(rng, 1, 3), pair(rng, 1, 4)
    extra = tuple(int(rng.integers(max(sd))) for sd in zip(stride, dilation, strict=True))
    x = rng.standard_normal((*outer(rng, C), *pair(rng, 4, 8)))
    w, b = rng.standard_normal((C, OC, *kernel)), rng.standard_normal(groups * OC)
    rest = (stride, pair(rng, 0, 1), extra, groups, dilation)
    expected = torch.nn.functional.conv_transpose2d(*map(torch.from_numpy, (x, w, b)), *rest)
    assert_close(reference.conv_transpose2d(x, w, b, *rest), expected)
    assert_close(
        reference.conv_transpose2d(x, w, None, *rest), expected - torch.tensor(b)[:, None, None]
    )


def test_avg_pool2d_and_its_backward(torch: Any, rng: Generator) -> None:
    kernel = pair(rng, 1, 5)
    stride = None if rng.random() < 0.3 else pair(rng, 1, 4)
    padding = (int(rng.integers(kernel[0] // 2 + 1)), int(rng.integers(kernel[1] // 2 + 1)))
    ceil_mode, count_include_pad = rng.random(2) < 0.5
    divisor = None if rng.random() < 0.7 else int(rng.integers(1, 9))
    rest = (kernel, stride, padding, bool(ceil_mode), bool(count_include_pad), divisor)
    x = image(rng, low=5)
    output, grad_output, (expected,) = differentiated(
        torch, rng, lambda x: torch.nn.functional.avg_pool2d(x, *rest), x
    )
    assert_close(reference.avg_pool2d(x, *rest), output)
    assert_close(reference.avg_pool2d_backward(grad_output, x.shape, *rest), expected)


def test_max_unpool2d(torch: Any, rng: Generator) -> None:
    kernel, stride = pair(rng, 1, 3), pair(rng, 1, 3)
    padding = (kernel[0] // 2, kernel[1] // 2)
    x = image(rng, low=5)
    values, indices = reference.max_pool2d(x, kernel, stride, padding, return_indices=True)
    given = [torch.from_numpy(values), torch.from_numpy(indices), kernel, stride, padding]
    expected = torch.nn.functional.max_unpool2d(*given, output_size=x.shape[-2:])
    for size in (x.shape, x.shape[-2:]):
        actual = reference.max_unpool2d(values, indices, kernel, stride, padding, size)
        assert_close(actual, expected)


def test_max_unpool2d_of_the_default_size(torch: Any, rng: Generator) -> None:
    (KH, KW), (OH, OW) = pair(rng, 1, 3), pair(rng, 1, 4)
    x = rng.standard_normal((*outer(rng, 3), KH * OH, KW * OW))
    pooled = reference.max_pool2d(x, (KH, KW), return_indices=True)
    expected = torch.nn.functional.max_unpool2d(*map(torch.from_numpy, pooled), (KH, KW))
    assert_close(reference.max_unpool2d(*pooled, (KH, KW)), expected)


def test_lp_pool2d(torch: Any, rng: Generator) -> None:
    norm_type, kernel = float(rng.choice([1, 1.5, 2, 3])), pair(rng, 1, 4)
    stride = None if rng.random() < 0.3 else pair(rng, 1, 4)
    rest = (norm_type, kernel, stride, bool(rng.random() < 0.5))
    x = image(rng, low=4)
    x = np.abs(x) if norm_type == 1.5 else x  # the others have powers of negative numbers too
    with np.errstate(invalid="ignore"):
        actual = reference.lp_pool2d(x, *rest)
    assert_close(actual, torch.nn.functional.lp_pool2d(torch.from_numpy(x), *rest))


def test_adaptive_avg_pool2d(torch: Any, rng: Generator) -> None:
    x, (OH, OW) = image(rng), pair(rng, 1, 9)
    for size in (OH, (OH, OW), (None, OW), (OH, None)):
        expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x), size)
        assert_close(reference.adaptive_avg_pool2d(x, size), expected)


def test_pooling_over_channels(torch: Any, rng: Generator) -> None:
    kernel, stride = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    x = rng.standard_normal((*outer(rng, int(rng.integers(kernel, 12))), *pair(rng, 1, 5)))
    x[rng.random(x.shape) < 0.1] = np.nan
    windows = torch.from_numpy(x).unfold(-3, kernel, stride)
    assert_close(reference.max_pool_channels(x, kernel, stride), windows.amax(-1))
    assert_close(reference.avg_pool_channels(x, kernel, stride), windows.mean(-1))
    assert_close(
        reference.max_pool_channels(x, kernel), reference.max_pool_channels(x, kernel, kernel)
    )


def test_im2col_and_col2im(torch: Any, rng: Generator) -> None:
    rest = (pair(rng, 1, 4), pair(rng, 1, 2), pair(rng, 0, 2), pair(rng, 1, 3))
    # torch's unfold takes no empty batch of one image's shape.
    x = rng.standard_normal((*[(3,), (2, 3)][rng.integers(2)], *pair(rng, 7, 10)))
    columns = torch.nn.functional.unfold(torch.from_numpy(x), *rest)
    assert_close(reference.im2col(x, *rest), columns)
    values = rng.standard_normal(tuple(columns.shape))
    expected = torch.nn.functional.fold(torch.from_numpy(values), x.shape[-2:], *rest)
    assert_close(reference.col2im(values, x.shape[-2:], *rest), expected)


def test_im2col_is_what_a_convolution_multiplies(rng: Generator) -> None:
    x, w = rng.standard_normal((2, 3, 6, 7)), rng.standard_normal((4, 3, 3, 2))
    padding = ((0, 2), (1, 0))
    columns = reference.im2col(x, (3, 2), padding=padding, stride=2)
    product = w.reshape(4, -1) @ columns
    expected = reference.conv2d(x, w, padding=padding, stride=2)
    assert_close(product.reshape(expected.shape), expected)


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm(torch: Any, rng: Generator, training: bool) -> None:
    C = int(rng.integers(1, 6))
    x = rng.standard_normal((int(rng.integers(2, 5)), C, *pair(rng, 1, 5)[: rng.integers(3)]))
    mean, var = rng.standard_normal(C), rng.random(C)
    weight, bias = rng.standard_normal((2, C)) if rng.random() < 0.7 else (None, None)
    momentum, eps = float(rng.random()), float(rng.random()) * 0.1
    given = [None if a is None else torch.tensor(a) for a in (x, mean, var, weight, bias)]
    expected = torch.nn.functional.batch_norm(*given, training, momentum, eps)
    actual = reference.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
    assert_close(actual, expected)
    assert_close(mean, given[1])
    assert_close(var, given[2])
    if training:
        assert_close(reference.batch_norm(x, None, None, weight, bias, True, eps=eps), expected)


def test_local_response_norm(torch: Any, rng: Generator) -> None:
    x = rng.standard_normal((int(rng.integers(3)), int(rng.integers(1, 9)), *pair(rng, 1, 4)))
    rest = (int(rng.integers(1, 7)), *(float(v) for v in 0.1 + rng.random(3)))
    expected = torch.nn.functional.local_response_norm(torch.from_numpy(x), *rest)
    actual = reference.local_response_norm(x, *rest)
    assert_close(actual, expected)
    for one, normalised in zip(x, actual, strict=True):  # torch reads (C, H, W) as (N, C, L)
        assert_array_equal(reference.local_response_norm(one, *rest), normalised)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("probabilities", [False, True])
def test_cross_entropy(torch: Any, rng: Generator, reduction: str, probabilities: bool) -> None:
    C = int(rng.integers(1, 7))
    shape: tuple[int, ...] = [(C,), (4, C), (2, C, 3), (2, C, 2, 3)][rng.integers(4)]
    x = 5 * rng.standard_normal(shape)
    positions = shape[:-1] if len(shape) <= 2 else (shape[0], *shape[2:])
    target = rng.random(shape) if probabilities else rng.integers(0, C, positions)
    weight = rng.random(C) if rng.random() < 0.5 else None
    rest: dict[str, Any] = {"reduction": reduction}
    if rng.random() < 0.5:
        rest["label_smoothing"] = float(rng.random())
    if not probabilities and rng.random() < 0.5:
        rest["ignore_index"] = int(rng.integers(C))
    given = [None if a is None else torch.tensor(a) for a in (x, target, weight)]
    expected = torch.nn.functional.cross_entropy(*given, **rest)
    assert_close(reference.cross_entropy(x, target, weight, **rest), expected)


def test_cross_entropy_of_extreme_logits() -> None:
    x = np.array([[0.0, -np.inf, 1e4], [1e4, -1e4, 0.0]])
    losses = reference.cross_entropy(x, np.array([0, 1]), reduction="none")
    assert_array_equal(losses, [1e4, 2e4])
    nothing = reference.cross_entropy(x, np.array([-100, -100]))
    assert np.isnan(nothing)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "sigmoid"])
def test_activations(torch: Any, rng: Generator, name: str) -> None:
    x = 20 * image(rng)
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, 800.0, -800.0])
    for values in (x, special):
        expected = getattr(torch.nn.functional, name)(torch.from_numpy(values))
        assert_close(getattr(reference, name)(values), expected)
    sloped = torch.nn.functional.leaky_relu(torch.from_numpy(x), 0.3)
    assert_close(reference.leaky_relu(x, 0.3), sloped)


def test_softmax_and_flatten(torch: Any, rng: Generator) -> None:
    x = 50 * rng.standard_normal((2, 3, *pair(rng, 1, 4)))
    for axis in range(-4, 4):
        expected = torch.softmax(torch.from_numpy(x), axis)
        assert_close(reference.softmax(x, axis), expected)
        assert_close(reference.flatten(x, axis), torch.flatten(torch.from_numpy(x), axis))
    assert reference.flatten(x[:0]).shape == (0, x[0].size)
