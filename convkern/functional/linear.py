"""Fully connected layers, and the flattening before them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from convkern import _kernels
from convkern.arrays import (
    ANY_NDIM,
    as_array,
    as_contiguous,
    checked_mask,
    is_images_last,
    to_contiguous,
)
from convkern.functional import lanes
from convkern.functional.activation import ACTIVATIONS
from convkern.geometry import integer
from convkern.threads import get_num_threads


def linear(input: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Apply a fully connected layer, ``input @ weight.T + bias``.

    Parameters
    ----------
    input : ndarray, (..., I), float32 or float64
        Rows of I features; any strides.
    weight : ndarray, (O, I) or (I,), dtype of `input`
        One row of coefficients per output feature; (I,) stands for one
        feature without an axis of its own.
    bias : ndarray, (O,) or (), dtype of `input`, optional
        Added to every row.

    Returns
    -------
    ndarray, (..., O) or (...), dtype of `input`

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted, or dtypes differ.
    ValueError
        If shapes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import linear
    >>> linear(np.array([[1.0, 2.0]]), np.array([[1.0, 1.0], [0.0, 3.0]]), np.array([0.5, 0.0]))
    array([[3.5, 6. ]])
    """
    input = as_array(input, "input", ANY_NDIM[1:])
    weight = as_array(weight, "weight", (1, 2), like=input)
    if input.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"input must have {weight.shape[-1]} features on its last axis for weight of shape "
            f"{weight.shape}, got shape {input.shape}"
        )
    if bias is not None:
        bias = as_contiguous(as_array(bias, "bias", (weight.ndim - 1,), like=input))
        if bias.shape != weight.shape[:-1]:
            raise ValueError(f"bias must have shape {weight.shape[:-1]}, got {bias.shape}")
    outputs, inputs = weight.shape if weight.ndim == 2 else (1, weight.shape[0])
    pixels = _in_lanes(input, weight)
    if pixels is not None:
        out = lanes.convolve(pixels, weight[:, :, None, None], bias, *_PIXEL)
        return to_contiguous(out)[:, :, 0, 0]
    batch = math.prod(input.shape[:-1])
    out = _kernels.empty((batch, outputs), input.dtype)
    _kernels.linear(
        as_contiguous(input.reshape(batch, inputs)),
        as_contiguous(weight.reshape(outputs, inputs)),
        bias,
        out,
        get_num_threads(),
    )
    return out.reshape(input.shape[:-1] + weight.shape[:-1])


def linear_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    weight: np.ndarray,
    *,
    output_mask: Sequence[bool] = (True, True, True),
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Return the gradients of `linear` by its input, weight and bias.

    These are ``grad_output @ weight``, ``grad_output.T @ input`` and the sum of
    `grad_output` over the rows.

    Parameters
    ----------
    grad_output : ndarray, (..., O) or (...), dtype of `input`
        Gradient of the output.
    input : ndarray, (..., I), float32 or float64
        As given to `linear`.
    weight : ndarray, (O, I) or (I,), dtype of `input`
        As given to `linear`.
    output_mask : three bools
        Which of the three gradients are wanted; nothing is computed for the others.

    Returns
    -------
    grad_input, grad_weight, grad_bias : ndarray or None
        Of the shapes of input, weight and bias, (O,) or (); None where masked.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted, or dtypes differ.
    ValueError
        If shapes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import linear_backward
    >>> gradients = linear_backward(np.array([[2.0]]), np.array([[3.0, 4.0]]), np.ones((1, 2)))
    >>> gradients[0], gradients[1], gradients[2]
    (array([[2., 2.]]), array([[6., 8.]]), array([2.]))
    """
    input = as_array(input, "input", ANY_NDIM[1:])
    weight = as_array(weight, "weight", (1, 2), like=input)
    outputs, inputs = weight.shape if weight.ndim == 2 else (1, weight.shape[0])
    if input.shape[-1] != inputs:
        raise ValueError(
            f"input must have {inputs} features on its last axis for weight of shape "
            f"{weight.shape}, got shape {input.shape}"
        )
    shape = input.shape[:-1] + weight.shape[:-1]
    grad_output = as_array(grad_output, "grad_output", (len(shape),), like=input)
    if grad_output.shape != shape:
        raise ValueError(f"grad_output must have shape {shape}, got {grad_output.shape}")
    want_input, want_weight, want_bias = checked_mask(output_mask)
    batch, threads = math.prod(input.shape[:-1]), get_num_threads()
    grad = as_contiguous(grad_output.reshape(batch, outputs))
    grad_input = grad_weight = grad_bias = None
    pixels = _in_lanes(input, weight)
    if pixels is not None and want_input:
        filters, wanted = weight[:, :, None, None], (True, False, False)
        grads = lanes.gradients(grad[:, :, None, None], pixels, filters, _PIXEL[1], wanted)
        grad_input = None if grads[0] is None else grads[0][:, :, 0, 0]
    elif want_input:
        grad_input = _kernels.empty(input.shape, input.dtype)
        rows = as_contiguous(weight.reshape(outputs, inputs))
        _kernels.linear_input_gradient(grad, rows, grad_input.reshape(batch, inputs), threads)
    if want_weight:
        grad_weight = _kernels.empty(weight.shape, input.dtype)
        x = input if pixels is None else to_contiguous(pixels)
        x = as_contiguous(x.reshape(batch, inputs))
        _kernels.linear_weight_gradient(grad, x, grad_weight.reshape(outputs, inputs), threads)
    if want_bias:
        if grad.size:
            sums = _kernels.rounded_totals(grad, (batch, outputs, 1), threads)
            grad_bias = sums.reshape(weight.shape[:-1])
        else:
            grad_bias = np.zeros(weight.shape[:-1], input.dtype)
    return grad_input, grad_weight, grad_bias


#: Size and axes of a convolution whose images, and window, are one pixel.
_PIXEL = (1, 1), ((1, 1, 0, 1), (1, 1, 0, 1)), ACTIVATIONS[None]
#: Outputs up to which weights meet the images in the lanes; more of them pay for a transpose.
_FEW_OUTPUTS = 64


def _in_lanes(input: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """Return features as images of one pixel if they lie in the lanes, as flattened images do."""
    if input.ndim != 2 or weight.ndim != 2 or len(weight) > _FEW_OUTPUTS or not input.size:
        return None
    pixels = input[:, :, None, None]
    return pixels if is_images_last(pixels) else None


def flatten(input: np.ndarray, start_dim: int = 1) -> np.ndarray:
    """Join the axes from `start_dim` on into one, in logical (C, H, W) order.

    Parameters
    ----------
    input : ndarray, any shape and dtype
        Any strides.
    start_dim : int
        First axis that is joined.

    Returns
    -------
    ndarray
        A view where the memory allows it, otherwise a copy.

    Raises
    ------
    TypeError
        If `input` is not an array or `start_dim` not an integer.
    ValueError
        If there is no such axis.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import flatten
    >>> flatten(np.zeros((2, 3, 4, 4))).shape
    (2, 48)
    """
    if not isinstance(input, np.ndarray):
        raise TypeError(f"input must be a NumPy array, got {type(input).__name__}")
    start = integer(start_dim, "start_dim", -input.ndim)
    if start >= max(input.ndim, 1):
        raise ValueError(f"start_dim must be below {input.ndim}, got {start}")
    start %= max(input.ndim, 1)
    joined = math.prod(input.shape[start:])
    if start == 1 and input.ndim == 4 and is_images_last(input):
        return input.reshape(len(input), joined)
    return to_contiguous(input).reshape(*input.shape[:start], joined)
