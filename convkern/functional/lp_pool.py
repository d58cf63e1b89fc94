"""Pooling by the norm of each window."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convkern.arrays import as_array, as_images, empty_images
from convkern.functional.avg_pool import avg_pool2d, avg_pool2d_backward
from convkern.functional.max_pool import max_pool2d, max_pool2d_backward
from convkern.functional.pool_shapes import checked_output_gradient
from convkern.geometry import IntPair, number, pair


def _lp_window(norm_type: Any, kernel_size: IntPair) -> tuple[float, int]:
    """Return the norm and the number of elements in a window."""
    norm = number(norm_type, "norm_type")
    if norm == 0:
        raise ValueError(f"norm_type must not be 0, got {norm_type!r}")
    rows, columns = pair(kernel_size, "kernel_size")
    return norm, rows * columns


def lp_pool2d(
    input: np.ndarray,
    norm_type: float,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    ceil_mode: bool = False,
) -> np.ndarray:
    r"""Take the `p`-norm of every window.

    .. math:: y = \Big(\sum_{x \in \text{window}} x^p\Big)^{1/p}

    A window that hangs over the edge counts as a whole one of its average, as in torch.
    An infinite `p` takes the largest magnitude of every window, minus infinity the smallest.

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Images; any strides.
    norm_type : float
        `p`.
    kernel_size, stride, ceil_mode
        As for `avg_pool2d`.

    Returns
    -------
    ndarray, (N, C, OH, OW) or (C, OH, OW), dtype of `input`
        Channels-last in memory where `input` is.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If no window fits or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import lp_pool2d
    >>> lp_pool2d(np.array([[[3.0, 4.0]]]), 2, (1, 2))
    array([[[5.]]])
    """
    norm, elements = _lp_window(norm_type, kernel_size)
    input = as_array(input, "input", (3, 4))
    if math.isinf(norm):
        return _extremes(input, norm, kernel_size, stride, ceil_mode)[0]
    with np.errstate(all="ignore"):  # a root of a negative sum is NaN, as in torch
        means = avg_pool2d(input**norm, kernel_size, stride, 0, ceil_mode)
        means *= elements
        np.power(means, 1 / norm, out=means)
    return means


def _extremes(
    input: np.ndarray,
    norm: float,
    kernel_size: IntPair,
    stride: IntPair | None,
    ceil_mode: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest (or, for a norm of -inf, smallest) magnitude of every window, and where.

    Its gradient is that of the maximum of `input`'s magnitudes (or of minus those).
    """
    sign = math.copysign(1.0, norm)
    values, indices = max_pool2d(
        np.copysign(input, sign), kernel_size, stride, ceil_mode=ceil_mode, return_indices=True
    )
    return np.copysign(values, 1.0, out=values), indices


def lp_pool2d_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    output: np.ndarray,
    norm_type: float,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    ceil_mode: bool = False,
) -> np.ndarray:
    """Return the gradient of `lp_pool2d` by its input; zero where a window's sum is.

    Parameters
    ----------
    grad_output : ndarray, shape and dtype of `output`
        Gradient of the output.
    input, output : ndarray
        What `lp_pool2d` was given and returned.
    norm_type, kernel_size, stride, ceil_mode
        As given to `lp_pool2d`.

    Returns
    -------
    ndarray, shape and dtype of `input`
        Channels-last in memory where `input` is.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If shapes do not fit each other or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import lp_pool2d_backward
    >>> x, y = np.array([[[3.0, 4.0]]]), np.array([[[5.0]]])
    >>> lp_pool2d_backward(np.array([[[1.0]]]), x, y, 2, (1, 2))
    array([[[0.6, 0.8]]])
    """
    norm, elements = _lp_window(norm_type, kernel_size)
    input = as_array(input, "input", (3, 4))
    if 0 in input.shape[-3:]:
        raise ValueError(f"input must have no empty channel or spatial axis, got {input.shape}")
    output = as_array(output, "output", (input.ndim,), like=input)
    grad_output = checked_output_gradient(grad_output, output.shape, input)
    with np.errstate(all="ignore"):
        if math.isinf(norm):
            indices = _extremes(input, norm, kernel_size, stride, ceil_mode)[1]
            chain, inner = max_pool2d_backward(grad_output, indices, input.shape), np.sign(input)
        else:
            of_no_sum = 0 if norm > 0 else np.inf
            outer = np.where(abs(output) == of_no_sum, 0, output ** (1 - norm))
            slope = (outer * (grad_output * elements)).astype(input.dtype)
            chain = avg_pool2d_backward(slope, input.shape, kernel_size, stride, 0, ceil_mode)
            inner = input ** (norm - 1)
        x, channels_last = as_images(input)
        result = empty_images(x.shape, x.dtype, channels_last)
        np.multiply(chain, inner, out=result if input.ndim == 4 else result[0])
    return result if input.ndim == 4 else result[0]
