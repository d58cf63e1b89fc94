"""Max pooling with indices, and its inverse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from convkern import _kernels
from convkern.arrays import (
    as_array,
    as_contiguous,
    as_images,
    check_plain,
    dense_channels_last,
    empty_images,
    is_dense_channels_last,
    to_images_last,
)
from convkern.functional.activation import relu_backward
from convkern.functional.pool_shapes import checked_input_shape, lies_images_last, sizes_of, swapped
from convkern.geometry import IntPair, output_size, pair, window_extent
from convkern.threads import get_num_threads


def max_pool2d(
    input: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    *,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Take the maximum of every window.

    The first maximum wins a tie, NaN propagates (the last one of a window gives
    the index) and padding counts as -inf.

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Images; any strides.
    kernel_size : int or pair of int
        The window.
    stride : int or pair of int, optional
        Step of the window; by default the window itself.
    padding : int or pair of int
        Rows and columns of -inf around the image, at most half the window.
    dilation : int or pair of int
        Step between the taps of the window.
    ceil_mode : bool
        Also take a last window that hangs over the edge, unless it would start
        in the padding.
    return_indices : bool
        Also return where each maximum was found.

    Returns
    -------
    output : ndarray, (N, C, OH, OW) or (C, OH, OW), dtype of `input`
        Channels-last in memory where `input` is.
    indices : ndarray of int64, shape of `output`
        Flat position of each maximum in its H * W plane; only with `return_indices`.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If no window fits or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import max_pool2d
    >>> x = np.array([[[1, 3, 2, 4], [5, 6, 1, 0]]], np.float32)
    >>> values, indices = max_pool2d(x, 2, return_indices=True)
    >>> values
    array([[[6., 4.]]], dtype=float32)
    >>> indices
    array([[[5, 3]]])
    """
    input = as_array(input, "input", (3, 4))
    arguments = kernel_size, kernel_size if stride is None else stride, padding, dilation
    out_size, rows, columns = max_windows(input.shape, arguments, ceil_mode)
    if lies_images_last(input):
        pooled = max_pool2d(
            swapped(input), *arguments, ceil_mode=ceil_mode, return_indices=return_indices
        )
        if isinstance(pooled, tuple):
            return swapped(pooled[0]), swapped(pooled[1])
        return swapped(pooled)
    x, channels_last = as_images(input)
    shape = (*x.shape[:2], *out_size)
    values = empty_images(shape, x.dtype, channels_last)
    indices = empty_images(shape, np.dtype(np.int64), channels_last) if return_indices else None
    if values.size:
        _kernels.max_pool2d(x, values, indices, rows, columns, channels_last, get_num_threads())
    if input.ndim == 3:
        values = values[0]
        indices = None if indices is None else indices[0]
    return values if indices is None else (values, indices)


#: Size of the output; kernel, stride, padding and dilation of the rows, and of the columns.
Windows = tuple[tuple[int, int], tuple[int, int, int, int], tuple[int, int, int, int]]


def max_windows(
    shape: tuple[int, ...], arguments: tuple[IntPair, IntPair, IntPair, IntPair], ceil_mode: bool
) -> Windows:
    """Check kernel size, stride, padding and dilation of `max_pool2d` for an input of a shape."""
    # Only plain integers: as a key 1.0 and True are the same as 1.
    of = _remembered_windows if _kernels.are_plain(arguments) else _max_windows
    return of(shape, *arguments, bool(ceil_mode))


def _max_windows(
    shape: tuple[int, ...],
    kernel_size: IntPair,
    stride: IntPair,
    padding: IntPair,
    dilation: IntPair,
    ceil_mode: bool,
) -> Windows:
    """Return the same, not remembered."""
    kernel, steps = pair(kernel_size, "kernel_size"), pair(stride, "stride")
    pads, gaps = pair(padding, "padding", 0), pair(dilation, "dilation")
    for pad, size in zip(pads, kernel, strict=True):
        if pad > size // 2:
            raise ValueError(f"padding must be at most half the window ({size}), got {pad}")
    if 0 in shape[-3:]:
        raise ValueError(f"input must have no empty channel or spatial axis, got {shape}")
    height, width = (
        output_size(shape[i - 2], kernel[i], steps[i], (pads[i], pads[i]), gaps[i], ceil_mode)
        for i in (0, 1)
    )
    if (window_extent(kernel[0], gaps[0]) + 1) * shape[-1] >= 2**31:
        raise ValueError(
            f"a window of {kernel} on rows of {shape[-1]} spans more than 2**31 elements"
        )
    rows, columns = ((kernel[i], steps[i], pads[i], gaps[i]) for i in (0, 1))
    return (height, width), rows, columns


_remembered_windows = lru_cache(1024)(_max_windows)


def lie_apart(*axes: tuple[int, int, int, int]) -> bool:
    """Tell whether windows neither overlap nor have gaps inside, from their axes."""
    return all(size <= step and gap == 1 for size, step, _, gap in axes)


def max_pool2d_backward(
    grad_output: np.ndarray, indices: np.ndarray, input_shape: Sequence[int]
) -> np.ndarray:
    """Return the gradient of `max_pool2d` by its input.

    Parameters
    ----------
    grad_output : ndarray, (N, C, OH, OW) or (C, OH, OW), float32 or float64
        Gradient of the output.
    indices : ndarray of int64, shape of `grad_output`
        As `max_pool2d` returned them.
    input_shape : sequence of int
        Shape of the input, (N, C, H, W) or (C, H, W).

    Returns
    -------
    ndarray, `input_shape`, dtype of `grad_output`
        Channels-last in memory where `grad_output` is.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If shapes do not fit or an index lies outside its plane.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import max_pool2d_backward
    >>> max_pool2d_backward(np.array([[[2.0, 3.0]]]), np.array([[[1, 1]]]), (1, 2, 2))
    array([[[0., 5.],
            [0., 0.]]])
    """
    grad_output = as_array(grad_output, "grad_output", (3, 4))
    shape = checked_input_shape(input_shape, grad_output)
    return _scattered(grad_output, indices, shape[-2:], add=True)


def max_pool2d_gradient(
    grad_output: np.ndarray,
    indices: np.ndarray,
    input_shape: tuple[int, ...],
    windows: Windows,
    rectified: np.ndarray | None = None,
) -> np.ndarray:
    """Return `max_pool2d_backward` of indices that `max_pool2d` has just made, with its windows.

    `rectified` is the pooling's output if its input was that of a ReLU; the gradient is then that
    of the ReLU's input.
    """
    grad = as_array(grad_output, "grad_output", (3, 4), like=rectified)
    _, rows, columns = windows
    if grad.ndim == 4 and lies_images_last(indices):
        lanes = len(grad)
        grad, indices = swapped(to_images_last(grad)), swapped(indices)
        rectified = None if rectified is None else swapped(rectified)
        shape = input_shape[1], lanes, *input_shape[2:]
        return swapped(max_pool2d_gradient(grad, indices, shape, windows, rectified))
    images = grad.size and grad.ndim == 4
    if not (images and lie_apart(rows, columns) and is_dense_channels_last(indices)):
        if rectified is not None:
            grad = relu_backward(grad, rectified)
        return max_pool2d_backward(grad, indices, input_shape)
    out = empty_images(input_shape, grad.dtype, True)
    grad = dense_channels_last(grad)
    _kernels.max_pool2d_backward(grad, indices, out, rows, columns, get_num_threads(), rectified)
    return out


def _scattered(values: np.ndarray, indices: Any, size: tuple[int, ...], *, add: bool) -> np.ndarray:
    """Return zero images of a size with the values at their indices, added up or the last one."""
    _check_indices(indices, values.shape)
    if lies_images_last(values) or lies_images_last(indices):
        values = to_images_last(values)
        return swapped(_scattered(swapped(values), swapped(indices), size, add=add))
    images, channels_last = as_images(values)
    out = empty_images((*images.shape[:2], *size), images.dtype, channels_last)
    if not out.size:
        return out[0] if values.ndim == 3 else out
    if not images.size:
        out[...] = 0
    elif not _kernels.scatter(
        _pixels(images, channels_last),
        _pixels(indices if indices.ndim == 4 else indices[None], channels_last),
        _pixels(out, channels_last),
        add,
        get_num_threads(),
    ):
        raise _index_error(indices, math.prod(size))
    return out[0] if values.ndim == 3 else out


def _pixels(x: np.ndarray, channels_last: bool) -> np.ndarray:
    """Return (N, H*W, C) of a channels-last array or (N*C, H*W, 1) of another, dense."""
    if channels_last:
        return as_contiguous(x.transpose(0, 2, 3, 1)).reshape(len(x), -1, x.shape[1])
    return as_contiguous(x).reshape(-1, x.shape[2] * x.shape[3], 1)


def _check_indices(indices: Any, shape: tuple[int, ...]) -> None:
    """Raise unless there is an int64 index for every value."""
    check_plain(indices, "indices")
    if not isinstance(indices, np.ndarray) or indices.dtype != np.int64:
        given = indices.dtype if isinstance(indices, np.ndarray) else type(indices).__name__
        raise TypeError(f"indices must be an int64 array, got {given}")
    if indices.shape != shape:
        raise ValueError(f"indices must have shape {shape}, got {indices.shape}")


def _index_error(indices: np.ndarray, plane: int) -> ValueError:
    """Return the error that names the first index outside the plane."""
    outside = indices[(indices < 0) | (indices >= plane)]
    return ValueError(f"indices must be from 0 to {plane - 1}, got {outside[0]}")


def max_unpool2d(
    input: np.ndarray,
    indices: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    output_size: Sequence[int] | None = None,
) -> np.ndarray:
    """Put every element back where `max_pool2d` found it, zeros elsewhere.

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Maxima; any strides.
    indices : ndarray of int64, shape of `input`
        Where they belong; of equal ones in a plane the last counts.
    kernel_size, stride, padding
        As given to `max_pool2d`; they say how large the output is.
    output_size : sequence of int, optional
        Another size for the output, ``(OH, OW)`` or with the leading axes;
        less than one stride away.

    Returns
    -------
    ndarray, (N, C, OH, OW) or (C, OH, OW), dtype of `input`
        ``OH = (H - 1) * stride - 2 * padding + kernel_size`` by default.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If shapes do not fit or an index lies outside its plane.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import max_unpool2d
    >>> max_unpool2d(np.array([[[7.0]]]), np.array([[[3]]]), 2)
    array([[[0., 0.],
            [0., 7.]]])
    """
    input = as_array(input, "input", (3, 4))
    kernel = pair(kernel_size, "kernel_size")
    steps = kernel if stride is None else pair(stride, "stride")
    pads = pair(padding, "padding", 0)
    size = tuple((input.shape[i - 2] - 1) * steps[i] - 2 * pads[i] + kernel[i] for i in (0, 1))
    if output_size is not None:
        wanted = sizes_of(output_size, "output_size")
        if len(wanted) not in (2, 4, input.ndim):
            raise ValueError(f"output_size must be (OH, OW), got {wanted}")
        for given, usual, step in zip(wanted[-2:], size, steps, strict=True):
            if not usual - step < given < usual + step:
                raise ValueError(
                    f"output_size must be less than a stride from {size}, got {wanted[-2:]}"
                )
        size = (wanted[-2], wanted[-1])
    if min(size) < 1:
        raise ValueError(f"padding must leave an output, got {padding!r}: its size would be {size}")
    return _scattered(input, indices, size, add=False)


def max_unpool2d_backward(grad_output: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return the gradient of `max_unpool2d` by its input: what `indices` point at.

    Of equal indices in a plane each gets the gradient, as in torch.

    Parameters
    ----------
    grad_output : ndarray, (N, C, OH, OW) or (C, OH, OW), float32 or float64
        Gradient of the output.
    indices : ndarray of int64, (N, C, H, W) or (C, H, W)
        As given to `max_unpool2d`.

    Returns
    -------
    ndarray, shape of `indices`, dtype of `grad_output`
        Channels-last in memory where `grad_output` is.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If shapes do not fit or an index lies outside its plane.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import max_unpool2d_backward
    >>> max_unpool2d_backward(np.array([[[1.0, 2.0], [3.0, 4.0]]]), np.array([[[3]]]))
    array([[[4.]]])
    """
    grad_output = as_array(grad_output, "grad_output", (3, 4))
    lead = grad_output.shape[:-2]
    size = np.shape(indices)[-2:]
    _check_indices(indices, (*lead, *size))
    if lies_images_last(grad_output):
        return swapped(max_unpool2d_backward(swapped(grad_output), swapped(indices)))
    images, channels_last = as_images(grad_output)
    out = empty_images((*images.shape[:2], *size), images.dtype, channels_last)
    if out.size and not _kernels.gather(
        _pixels(images, channels_last),
        _pixels(indices if indices.ndim == 4 else indices[None], channels_last),
        _pixels(out, channels_last),
        get_num_threads(),
    ):
        raise _index_error(indices, images.shape[2] * images.shape[3])
    return out[0] if grad_output.ndim == 3 else out
