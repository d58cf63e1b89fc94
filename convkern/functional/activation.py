"""Activations, element by element or along an axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from convkern import _kernels
from convkern.arrays import as_array, empty_images
from convkern.geometry import integer
from convkern.threads import get_num_threads

#: Activations that a convolution applies before it stores: kernel code and negative slope.
ACTIVATIONS = {None: (0, 0.0), "relu": (1, 0.0), "relu6": (2, 0.0), "leaky_relu": (3, 0.01)}


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
    return _activate(input, ACTIVATIONS["leaky_relu"][0], float(negative_slope))


def _activate(input: np.ndarray, code: int, slope: float) -> np.ndarray:
    """Run an activation kernel over the elements in memory order."""
    x = as_array(input, "input", tuple(range(33)))
    dense = np.empty_like(x, order="K")
    if x.strides != dense.strides or not x.flags.aligned:
        x = x.copy(order="K")
    if x.size * x.itemsize >= 1 << 18 and x.ndim == 4:
        dense = empty_images(x.shape, x.dtype, not x.flags.c_contiguous)
        if dense.strides != x.strides:
            dense = np.empty_like(x, order="K")
    if x.size:
        _kernels.activate(x, dense, code, slope, get_num_threads())
    return dense


def sigmoid(input: np.ndarray) -> np.ndarray:
    """Return ``1 / (1 + exp(-input))`` element by element, without overflow.

    Parameters
    ----------
    input : ndarray, any shape, float32 or float64
        Any strides.

    Returns
    -------
    ndarray, shape and dtype of `input`

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
    x = as_array(input, "input", tuple(range(33)))
    decay = np.exp(-np.abs(x))
    result: np.ndarray = np.where(x < 0, decay, 1) / (1 + decay)
    return result.astype(x.dtype, copy=False)


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
    ndarray, shape and dtype of `input`

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
    x = as_array(input, "input", tuple(range(1, 33)))
    axis = integer(axis, "axis", -x.ndim)
    if axis >= x.ndim:
        raise ValueError(f"axis must be from {-x.ndim} to {x.ndim - 1}, got {axis}")
    if x.size == 0:
        return x.copy()
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    result: np.ndarray = powers / powers.sum(axis=axis, keepdims=True)
    return result


def _same_shape(grad_output: Any, other: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a gradient and the array of its shape that it belongs to."""
    array = as_array(other, name, tuple(range(33)))
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
    ndarray, shape and dtype of `output`

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
    result: np.ndarray = np.where(y > 0, grad, 0).astype(y.dtype, copy=False)
    return result


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
    ndarray, shape and dtype of `input`

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
    result: np.ndarray = np.where(x > 0, grad, grad * x.dtype.type(negative_slope))
    return result


def _slopes(weight: Any, input: np.ndarray) -> np.ndarray:
    """Return the slopes of `prelu`, one for all or one per channel (axis 1)."""
    slopes = as_array(weight, "weight", (1,), like=input)
    channels = input.shape[1] if input.ndim > 1 else 1
    if slopes.size not in (1, channels):
        raise ValueError(f"weight must have 1 or {channels} elements, got {slopes.size}")
    return slopes if input.ndim < 2 else slopes.reshape(-1, *(1,) * (input.ndim - 2))


def prelu(input: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return `input` where it is positive and ``weight * input`` elsewhere.

    Parameters
    ----------
    input : ndarray, any shape, float32 or float64
        Any strides.
    weight : ndarray, (1,) or (C,), dtype of `input`
        Slopes, one for all or one per channel (axis 1).

    Returns
    -------
    ndarray, shape and dtype of `input`

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
    x = as_array(input, "input", tuple(range(33)))
    result: np.ndarray = np.where(x > 0, x, _slopes(weight, x) * x)
    return result


def prelu_backward(
    grad_output: np.ndarray, input: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of `prelu` by its input and weight.

    Parameters
    ----------
    grad_output, input : ndarray, one shape and dtype
        Gradient of the output, and the input.
    weight : ndarray, (1,) or (C,)
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
    slopes = _slopes(weight, x)
    grad_input = np.where(x > 0, grad, slopes * grad)
    products = np.where(x > 0, 0, grad * x)
    axes = (0, *range(2, x.ndim)) if slopes.size > 1 else None
    grad_weight = products.sum(axis=axes, dtype=np.float64).reshape(-1).astype(x.dtype)
    return grad_input, grad_weight


def sigmoid_backward(grad_output: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Return the gradient of `sigmoid` by its input, ``grad_output * output * (1 - output)``.

    Parameters
    ----------
    grad_output, output : ndarray, one shape and dtype
        Gradient of the output, and the output.

    Returns
    -------
    ndarray, shape and dtype of `output`

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
    result: np.ndarray = grad * y * (1 - y)
    return result


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
    ndarray, shape and dtype of `output`
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
    axis = integer(axis, "axis", -y.ndim)
    if axis >= y.ndim:
        raise ValueError(f"axis must be from {-y.ndim} to {y.ndim - 1}, got {axis}")
    result: np.ndarray = y * (grad - (grad * y).sum(axis=axis, keepdims=True))
    return result
