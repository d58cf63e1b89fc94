"""Activations, element by element or along an axis."""

from __future__ import annotations

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
