"""Activations, element by element or along an axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from convkern import _kernels
from convkern.arrays import (
    ANY_NDIM,
    as_array,
    as_contiguous,
    cut_at,
    from_memory,
    memory_order,
    to_memory,
)
from convkern.geometry import integer, number
from convkern.threads import get_num_threads

#: Activations that a convolution applies before it stores: kernel code and negative slope.
ACTIVATIONS = {None: (0, 0.0), "relu": (1, 0.0), "relu6": (2, 0.0), "leaky_relu": (3, 0.01)}
_SIGMOID = 4


def relu(input: np.ndarray) -> np.ndarray:
    """Return ``max(input, 0)`` element by element; NaN stays NaN.

    Parameters
    ----------
    input : ndarray, any shape, float32 or float64
        Any strides.

    Returns
    -------
    ndarray, shape, dtype and layout of `input`

    Raises
    ------
    TypeError
        If `input` is not such an array.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import relu
    >>> relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    return _activate(input, *ACTIVATIONS["relu"])


def leaky_relu(input: np.ndarray, negative_slope: float = 0.01) -> np.ndarray:
    """Return `input` where it is not negative and ``negative_slope * input`` elsewhere.

    Parameters
    ----------
    input : ndarray, any shape, float32 or float64
        Any strides.
    negative_slope : float
        Factor below zero.

    Returns
    -------
    ndarray, shape, dtype and layout of `input`

    Raises
    ------
    TypeError
        If `input` is not such an array.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import leaky_relu
    >>> leaky_relu(np.array([-1.0, 2.0]), 0.5)
    array([-0.5,  2. ])
    """
    return _activate(input, ACTIVATIONS["leaky_relu"][0], number(negative_slope, "negative_slope"))


def _activate(
    input: np.ndarray, code: int, slope: float, grad: np.ndarray | None = None
) -> np.ndarray:
    """Run an activation, or its derivative on a gradient, over the elements in memory order."""
    x = as_array(input, "input", ANY_NDIM)
    order = memory_order(x)
    memory = to_memory(x, order)
    out: np.ndarray = _kernels.empty(memory.shape, x.dtype)
    if x.size:
        gradient = None if grad is None else to_memory(grad, order)
        _kernels.activate(memory, out, code, slope, get_num_threads(), gradient)
    return from_memory(out, order)


def add(
    input: np.ndarray, other: np.ndarray, activation: str | None = None, overwrite: bool = False
) -> np.ndarray:
    """Return ``activation(input + other)`` for arrays of one shape, in the layout of `input`.

    With `overwrite`, the result may take the memory of `input`.
    """
    x = as_array(input, "input", ANY_NDIM)
    y = as_array(other, "other", (x.ndim,), like=x)
    if x.shape != y.shape:
        raise ValueError(f"other must have the input's shape {x.shape}, got {y.shape}")
    order = memory_order(x)
    memory = to_memory(x, order)
    out: np.ndarray = memory if overwrite else _kernels.empty(memory.shape, x.dtype)
    if x.size:
        code, slope = ACTIVATIONS[activation]
        _kernels.add(memory, to_memory(y, order), out, code, slope, get_num_threads())
    return from_memory(out, order)


def sigmoid(input: np.ndarray) -> np.ndarray:
    """Return ``1 / (1 + exp(-input))`` element by element, without overflow.

    Parameters
    ----------
    input : ndarray, any shape, float32 or float64
        Any strides.

    Returns
    -------
    ndarray, shape, dtype and layout of `input`

    Raises
    ------
    TypeError
        If `input` is not such an array.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import sigmoid
    >>> sigmoid(np.array([0.0, -1000.0]))
    array([0.5, 0. ])
    """
    return _activate(input, _SIGMOID, 0.0)


def softmax(input: np.ndarray, axis: int = 1) -> np.ndarray:
    """Return ``exp(input)`` scaled to sum to one along an axis, without overflow.

    Parameters
    ----------
    input : ndarray, at least 1-D, float32 or float64
        Any strides.
    axis : int
        The axis that sums to one.

    Returns
    -------
    ndarray, shape, dtype and layout of `input`

    Raises
    ------
    TypeError
        If `input` is not such an array or `axis` not an integer.
    ValueError
        If there is no such axis.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import softmax
    >>> softmax(np.array([[0.0, 0.0, 1000.0]]))
    array([[0., 0., 1.]])
    """
    x = as_array(input, "input", ANY_NDIM[1:])
    return _softmax(x, axis)


def _softmax(x: np.ndarray, axis: int, grad: np.ndarray | None = None) -> np.ndarray:
    """Return the softmax of `x`, or from the softmax `x` and its gradient that of the input."""
    axis = integer(axis, "axis", -x.ndim)
    if axis >= x.ndim:
        raise ValueError(f"axis must be from {-x.ndim} to {x.ndim - 1}, got {axis}")
    order = memory_order(x)
    memory = to_memory(x, order)
    out: np.ndarray = _kernels.empty(memory.shape, x.dtype)
    if x.size:
        gradient = None if grad is None else to_memory(grad, order)
        cut = cut_at(x, axis % x.ndim, order)
        _kernels.softmax(memory, out, cut, get_num_threads(), gradient)
    return from_memory(out, order)


def _same_shape(grad_output: Any, other: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a gradient and the array of its shape that it belongs to."""
    array = as_array(other, name, ANY_NDIM)
    grad = as_array(grad_output, "grad_output", (array.ndim,), like=array)
    if grad.shape != array.shape:
        raise ValueError(f"grad_output must have shape {array.shape}, got {grad.shape}")
    return grad, array


def relu_backward(grad_output: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Return the gradient of `relu` by its input: that of the output where it is positive.

    Parameters
    ----------
    grad_output, output : ndarray, one shape and dtype
        Gradient of the output, and the output (or the input).

    Returns
    -------
    ndarray, shape, dtype and layout of `output`

    Raises
    ------
    TypeError, ValueError
        If the arrays are not such or do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import relu_backward
    >>> relu_backward(np.array([3.0, 4.0]), np.array([0.0, 2.0]))
    array([0., 4.])
    """
    grad, y = _same_shape(grad_output, output, "output")
    return _activate(y, *ACTIVATIONS["relu"], grad)


def leaky_relu_backward(
    grad_output: np.ndarray, input: np.ndarray, negative_slope: float = 0.01
) -> np.ndarray:
    """Return the gradient of `leaky_relu` by its input.

    Parameters
    ----------
    grad_output, input : ndarray, one shape and dtype
        Gradient of the output, and the input.
    negative_slope : float
        As given to `leaky_relu`.

    Returns
    -------
    ndarray, shape, dtype and layout of `input`

    Raises
    ------
    TypeError, ValueError
        If the arrays are not such or do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import leaky_relu_backward
    >>> leaky_relu_backward(np.array([3.0, 4.0]), np.array([-1.0, 2.0]), 0.5)
    array([1.5, 4. ])
    """
    grad, x = _same_shape(grad_output, input, "input")
    return _activate(
        x, ACTIVATIONS["leaky_relu"][0], number(negative_slope, "negative_slope"), grad
    )


def _prelu(
    weight: Any, x: np.ndarray, grad: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the output of `prelu`, or with a gradient those of its input and weight."""
    slopes = as_contiguous(as_array(weight, "weight", (0, 1), like=x))
    channels = x.shape[1] if x.ndim > 1 else 1
    if slopes.size not in (1, channels):
        raise ValueError(
            f"weight must have one element, or one for each channel, {channels}, got {slopes.size}"
        )
    order = memory_order(x)
    memory = to_memory(x, order)
    cut = (1, 1, x.size) if slopes.size == 1 else cut_at(x, 1, order)
    out: np.ndarray = _kernels.empty(memory.shape, x.dtype)
    gradient = None if grad is None else to_memory(grad, order)
    if x.size:
        _kernels.prelu(memory, slopes, out, cut, get_num_threads(), gradient)
    grad_weight = None
    if gradient is not None:
        grad_weight = np.zeros_like(slopes)
        if x.size:
            sums = _kernels.negative_products(memory, gradient, cut, get_num_threads())
            grad_weight[...] = sums.reshape(slopes.shape)
    return from_memory(out, order), grad_weight


def prelu(input: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return `input` where it is positive and ``weight * input`` elsewhere.

    Parameters
    ----------
    input : ndarray, any shape, float32 or float64
        Any strides.
    weight : ndarray, (), (1,) or (C,), dtype of `input`
        Slopes, one for all or one per channel (axis 1).

    Returns
    -------
    ndarray, shape, dtype and layout of `input`

    Raises
    ------
    TypeError, ValueError
        If the arrays are not such or do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import prelu
    >>> prelu(np.array([[-1.0, -1.0]]), np.array([0.5, 2.0]))
    array([[-0.5, -2. ]])
    """
    return _prelu(weight, as_array(input, "input", ANY_NDIM))[0]


def prelu_backward(
    grad_output: np.ndarray, input: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of `prelu` by its input and weight.

    Parameters
    ----------
    grad_output, input : ndarray, one shape and dtype
        Gradient of the output, and the input.
    weight : ndarray, (), (1,) or (C,)
        As given to `prelu`.

    Returns
    -------
    grad_input, grad_weight : ndarray
        Of the shapes of input and weight.

    Raises
    ------
    TypeError, ValueError
        If the arrays are not such or do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import prelu_backward
    >>> prelu_backward(np.array([[3.0, 4.0]]), np.array([[-1.0, 2.0]]), np.array([0.5]))
    (array([[1.5, 4. ]]), array([-3.]))
    """
    grad, x = _same_shape(grad_output, input, "input")
    grad_input, grad_weight = _prelu(weight, x, grad)
    assert grad_weight is not None
    return grad_input, grad_weight


def sigmoid_backward(grad_output: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Return the gradient of `sigmoid` by its input, ``grad_output * output * (1 - output)``.

    Parameters
    ----------
    grad_output, output : ndarray, one shape and dtype
        Gradient of the output, and the output.

    Returns
    -------
    ndarray, shape, dtype and layout of `output`

    Raises
    ------
    TypeError, ValueError
        If the arrays are not such or do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import sigmoid_backward
    >>> sigmoid_backward(np.array([4.0]), np.array([0.5]))
    array([1.])
    """
    grad, y = _same_shape(grad_output, output, "output")
    return _activate(y, _SIGMOID, 0.0, grad)


def softmax_backward(grad_output: np.ndarray, output: np.ndarray, axis: int = 1) -> np.ndarray:
    """Return the gradient of `softmax` by its input.

    Parameters
    ----------
    grad_output, output : ndarray, one shape and dtype
        Gradient of the output, and the output.
    axis : int
        As given to `softmax`.

    Returns
    -------
    ndarray, shape, dtype and layout of `output`
        ``output * (grad_output - sum(grad_output * output))``.

    Raises
    ------
    TypeError, ValueError
        If the arrays are not such or do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import softmax_backward
    >>> softmax_backward(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]))
    array([[ 0.25, -0.25]])
    """
    grad, y = _same_shape(grad_output, output, "output")
    return _softmax(y, axis, grad)
