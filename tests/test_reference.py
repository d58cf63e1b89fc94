"""The oracle itself: against worked examples, and against torch in float64."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from convkern import functional, reference

from .calls import answer, arguments, generate, in_float64
from .registry import OPERATORS
from .torch_calls import torch_call

Array: TypeAlias = NDArray[Any]


def assert_close(actual: Any, expected: Any, note: str = "") -> None:
    """Hold two results, or tuples of them, equal to 1e-12 of the largest number."""
    if expected is None:
        assert actual is None, note
        return
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


@pytest.mark.parametrize("name", [name for name in OPERATORS if hasattr(reference, name)])
def test_random_calls(torch: Any, name: str) -> None:
    for call in generate(name, 300, seed=1):
        if call.error:
            continue
        call = in_float64(call)
        expected = torch_call(call)
        with np.errstate(all="ignore"):
            if name == "lp_pool2d_backward":  # torch takes its own output, not a rounded one
                given = arguments(call)
                forward = {k: given[k] for k in given if k not in ("grad_output", "output")}
                given["output"] = reference.lp_pool2d(**forward)
                call = replace(call, args=(), kwargs=given)
            actual = answer(reference, call)
        assert_close(actual, expected, call.note)


def test_im2col_is_what_a_convolution_multiplies() -> None:
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((2, 3, 6, 7)), rng.standard_normal((4, 3, 3, 2))
    padding = ((0, 2), (1, 0))
    columns = reference.im2col(x, (3, 2), padding=padding, stride=2)
    product = w.reshape(4, -1) @ columns
    expected = reference.conv2d(x, w, padding=padding, stride=2)
    assert_close(product.reshape(expected.shape), expected)


def test_cross_entropy_of_extreme_logits() -> None:
    x = np.array([[0.0, -np.inf, 1e4], [1e4, -1e4, 0.0]])
    losses = reference.cross_entropy(x, np.array([0, 1]), reduction="none")
    assert_array_equal(losses, [1e4, 2e4])
    nothing = reference.cross_entropy(x, np.array([-100, -100]))
    assert np.isnan(nothing)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "sigmoid"])
def test_activations_of_extreme_numbers(torch: Any, name: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, 800.0, -800.0])
    expected = getattr(torch.nn.functional, name)(torch.from_numpy(x))
    assert_close(getattr(reference, name)(x), expected)
