"""Convolution of images-last arrays, and its gradients: a lane of a vector is an image."""

from __future__ import annotations

import numpy as np

from convkern import _kernels
from convkern.arrays import as_contiguous, to_images_last
from convkern.threads import get_num_threads

Axis = tuple[int, int, int, int]

#: Of the window: the products of one channel are added up in one chain.
MOST_TAPS = 256
#: What an images-last array holds.
MOST_IMAGES = 64


def can_convolve(kernel: tuple[int, int], dilation: tuple[int, int], groups: int) -> bool:
    """Tell whether there are kernels for such a window."""
    return groups == 1 and dilation == (1, 1) and kernel[0] * kernel[1] <= MOST_TAPS


def convolve(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    size: tuple[int, int],
    axes: tuple[Axis, Axis],
    activation: tuple[int, float],
) -> np.ndarray:
    """Return the convolution of an images-last array, whose output has this size."""
    out = _kernels.empty_images_last((len(x), len(weight), *size), x.dtype)
    weight, bias = as_contiguous(weight), None if bias is None else as_contiguous(bias)
    _kernels.lanes_conv2d(x, weight, bias, out, *axes, *activation, get_num_threads())
    return out


def convolve_parts(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    axes: tuple[Axis, Axis],
    activation: tuple[int, float],
    result: np.ndarray,
) -> None:
    """Convolve contiguous NCHW arrays by way of images-last ones, some images at a time."""
    size = result.shape[2], result.shape[3]
    for n in range(0, len(x), MOST_IMAGES):
        part = to_images_last(x[n : n + MOST_IMAGES])
        y = convolve(part, weight, bias, size, axes, activation)
        _kernels.from_images_last(y, result[n : n + MOST_IMAGES], get_num_threads())


def gradients(
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    axes: tuple[Axis, Axis],
    wanted: tuple[bool, bool, bool],
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Return the gradients of `convolve` by its input, weight and bias, where wanted."""
    grad, threads = to_images_last(grad_output), get_num_threads()
    grad_input = grad_weight = grad_bias = None
    if wanted[0]:
        grad_input = _kernels.empty_images_last(x.shape, x.dtype)
        _kernels.lanes_input_gradient(grad, as_contiguous(weight), grad_input, *axes, threads)
    if wanted[1]:
        grad_weight = _kernels.empty(weight.shape, weight.dtype)
        _kernels.lanes_weight_gradient(x, grad, grad_weight, *axes, threads)
    if wanted[2]:
        images, filters, rows, columns = grad.shape
        grad_bias = _kernels.rounded_totals(grad, (1, filters, rows * columns * images), threads)
    return grad_input, grad_weight, grad_bias
