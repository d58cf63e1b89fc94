"""Windows as columns of a matrix, and back."""

from __future__ import annotations

import numpy as np

from convkern import _kernels
from convkern.arrays import as_array, as_contiguous, to_contiguous
from convkern.geometry import IntPair, output_size, pair
from convkern.threads import get_num_threads

Axis = tuple[int, int, int, int]


def _windows(
    size: tuple[int, ...],
    kernel_size: IntPair,
    dilation: IntPair,
    padding: IntPair,
    stride: IntPair,
) -> tuple[tuple[int, int], tuple[Axis, Axis]]:
    """Return how many windows there are, and (kernel, stride, padding, dilation) of both axes."""
    kernel, gaps = pair(kernel_size, "kernel_size"), pair(dilation, "dilation")
    pads, steps = pair(padding, "padding", 0), pair(stride, "stride")
    rows, columns = ((kernel[i], steps[i], pads[i], gaps[i]) for i in (0, 1))
    height, width = (
        output_size(size[i], kernel[i], steps[i], (pads[i], pads[i]), gaps[i]) for i in (0, 1)
    )
    return (height, width), (rows, columns)


def im2col(
    input: np.ndarray,
    kernel_size: IntPair,
    dilation: IntPair = 1,
    padding: IntPair = 0,
    stride: IntPair = 1,
) -> np.ndarray:
    """Write every window as a column of ``C * KH * KW`` elements: torch's ``unfold``.

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Images; any strides.
    kernel_size, dilation, padding, stride : int or pair of int
        The window, as for `conv2d`.

    Returns
    -------
    ndarray, (N, C * KH * KW, OH * OW) or without N, dtype of `input`
        So that ``weight.reshape(OC, -1) @ columns`` is the convolution.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If no window fits or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import im2col
    >>> im2col(np.arange(6.0).reshape(1, 2, 3), 2)
    array([[0., 1.],
           [1., 2.],
           [3., 4.],
           [4., 5.]])
    """
    input = as_array(input, "input", (3, 4))
    if 0 in input.shape[-3:]:
        raise ValueError(f"input must have no empty channel or spatial axis, got {input.shape}")
    outputs, axes = _windows(input.shape[-2:], kernel_size, dilation, padding, stride)
    x = to_contiguous(input if input.ndim == 4 else input[None])
    taps = axes[0][0] * axes[1][0]
    shape = (x.shape[0], x.shape[1] * taps, outputs[0] * outputs[1])
    out: np.ndarray = _kernels.empty(shape, x.dtype)
    if out.size:
        _kernels.im2col(x, out, *outputs, *axes, get_num_threads())
    return out if input.ndim == 4 else out[0]


def col2im(
    input: np.ndarray,
    output_size: IntPair,
    kernel_size: IntPair,
    dilation: IntPair = 1,
    padding: IntPair = 0,
    stride: IntPair = 1,
) -> np.ndarray:
    """Add columns back into images: torch's ``fold``, the transpose of `im2col`.

    Parameters
    ----------
    input : ndarray, (N, C * KH * KW, OH * OW) or without N, float32 or float64
        Columns; any strides.
    output_size : int or pair of int
        ``(H, W)`` of the images.
    kernel_size, dilation, padding, stride : int or pair of int
        The window, as for `im2col`.

    Returns
    -------
    ndarray, (N, C, H, W) or (C, H, W), dtype of `input`

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If the columns do not fit the windows or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import col2im
    >>> col2im(np.ones((4, 2)), (2, 3), 2)
    array([[[1., 2., 1.],
            [1., 2., 1.]]])
    """
    input = as_array(input, "input", (2, 3))
    size = pair(output_size, "output_size")
    outputs, axes = _windows(size, kernel_size, dilation, padding, stride)
    columns = as_contiguous(input if input.ndim == 3 else input[None])
    taps, count = axes[0][0] * axes[1][0], outputs[0] * outputs[1]
    if columns.shape[1] == 0 or columns.shape[1] % taps or columns.shape[2] != count:
        raise ValueError(
            f"input must have a multiple of {taps} rows and {count} columns for these windows, "
            f"got shape {input.shape}"
        )
    out: np.ndarray = _kernels.empty((len(columns), columns.shape[1] // taps, *size), input.dtype)
    if out.size:
        _kernels.col2im(columns, out, *outputs, *axes, get_num_threads())
    return out if input.ndim == 3 else out[0]
