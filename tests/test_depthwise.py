"""Depthwise convolution: every kernel, in whole numbers against the reference."""

import itertools

import numpy as np
import pytest

from convkern import functional, num_threads, reference

from .memory import guarded

DTYPES = (np.float32, np.float64)


def integers(rng, shape, dtype):
    return rng.integers(-4, 5, shape).astype(dtype)


def check(rng, shape, kernel, dtype, window, multiplier=1, channels_last=False, at_end=False):
    """Compare the convolution of images of a shape and its gradients."""
    channels = shape[1]
    x = guarded(integers(rng, shape, dtype), at_end)
    weight = guarded(integers(rng, (channels * multiplier, 1, *kernel), dtype), at_end)
    bias = integers(rng, len(weight), dtype)
    stride, padding, dilation = window
    options = (stride, padding, dilation, channels)
    x = functional.to_channels_last(x) if channels_last else x
    y = functional.conv2d(x, weight, bias, *options, activation="relu")
    expected = reference.conv2d(x, weight, bias, *options, activation="relu")
    np.testing.assert_array_equal(y, expected, f"{shape} {weight.shape} {options}")
    grad = guarded(integers(rng, y.shape, dtype), at_end)
    grad = functional.to_channels_last(grad) if channels_last else grad
    got = functional.conv2d_backward(grad, x, weight, *options)
    wanted = reference.conv2d_backward(grad, x, weight, *options)
    for mine, true, name in zip(got, wanted, ("input", "weight", "bias"), strict=True):
        np.testing.assert_array_equal(mine, true, f"{name}: {shape} {weight.shape} {options}")


@pytest.mark.parametrize("at_end", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_squares_over_planes(dtype, at_end):
    """Widths around half a vector, one and two, places of the window's corner, both strides."""
    rng = np.random.default_rng(0)
    sides = (3, 4, 5, 7, 8, 9, 13, 14, 15, 16, 17, 18, 31, 33, 50)
    paddings = (0, 1, 2, 3, ((1, 0), (0, 2)), ((0, 1), (2, 1)))
    for width, padding, stride in itertools.product(sides, paddings, (1, 2)):
        height, channels = int(rng.integers(3, 20)), int(rng.integers(2, 6))
        shape = (int(rng.integers(1, 4)), channels, height, width)
        multiplier = int(rng.integers(1, 3))
        check(rng, shape, (3, 3), dtype, (stride, padding, 1), multiplier, at_end=at_end)
        check(rng, shape, (3, 3), dtype, (stride, padding, 1), at_end=at_end)


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("dtype", DTYPES)
def test_planes_of_several_bands(dtype, stride):
    """Of which the last has fewer rows."""
    rng = np.random.default_rng(5)
    for height, width, padding in itertools.product((91, 130), (33, 61, 97), (0, 1)):
        check(rng, (2, 3, height, width), (3, 3), dtype, (stride, padding, 1), at_end=True)


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_small_planes(dtype, channels_last):
    """Several items, whose ends are not those of the images; sums of several slices."""
    rng = np.random.default_rng(1)
    for shape, stride in (
        ((5, 173, 9, 9), 1),
        ((3, 131, 17, 16), 2),
        ((40, 3, 8, 9), 1),
        ((5, 173, 7, 7), 1),
        ((3, 131, 13, 14), 2),
        ((40, 4, 4, 4), 1),
    ):
        check(rng, shape, (3, 3), dtype, (stride, 1, 1), 1, channels_last)


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_windows(dtype, channels_last):
    """Planes in several parts and together, and gradients of every window's weight."""
    rng = np.random.default_rng(2)
    for kernel, stride, dilation in itertools.product(
        ((5, 5), (3, 2), (2, 3), (3, 3)), (1, 2, 3), (1, 2)
    ):
        for shape in ((1, 3, 120, 70), (2, 19, 11, 21)):
            check(rng, shape, kernel, dtype, (stride, 2, dilation), 1, channels_last)
    check(rng, (1, 2, 90, 80), (3, 3), dtype, ((1, 2), 1, 1), 1, channels_last)


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("stride", (1, 2))
def test_the_bits_do_not_depend_on_the_threads(stride, channels_last):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((6, 80, 30, 28), np.float32)
    weight, bias = rng.standard_normal((80, 1, 3, 3), np.float32), np.ones(80, np.float32)
    x = functional.to_channels_last(x) if channels_last else x
    results = []
    for threads in (1, 2, 3):
        with num_threads(threads):
            y = functional.conv2d(x, weight, bias, stride, 1, 1, 80)
            got = functional.conv2d_backward(y, x, weight, stride, 1, 1, 80)
        results.append([a.tobytes() for a in (y, *got)])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("stride", (1, 2))
def test_an_infinity_meets_only_what_its_windows_hold(stride):
    """Lanes beyond the last column must not turn it into NaN elsewhere."""
    rng = np.random.default_rng(4)
    edges = ((13, 12), (13, 0), (14, 13), (16, 15), (37, 36), (37, 16))
    for width, column in (*edges, (3, 2), (7, 0), (7, 6), (8, 7), (8, 0), (4, 0), (4, 3)):
        x = integers(rng, (1, 2, 9, width), np.float32)
        x[0, column % 2, 4, column] = np.inf
        weight = rng.integers(1, 5, (2, 1, 3, 3)).astype(np.float32)
        options = (stride, 1, 1, 2)
        y = functional.conv2d(x, weight, None, *options)
        np.testing.assert_array_equal(y, reference.conv2d(x, weight, None, *options))
        grad = rng.integers(1, 5, y.shape).astype(np.float32)
        got = functional.conv2d_backward(grad, x, weight, *options)
        wanted = reference.conv2d_backward(grad, x, weight, *options)
        for mine, true in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(mine, true)
