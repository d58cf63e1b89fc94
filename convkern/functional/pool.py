"""Pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from convkern import _kernels
from convkern.arrays import (
    as_array,
    as_contiguous,
    as_images,
    check_plain,
    empty_images,
    in_layout,
    is_images_last,
    to_images_last,
)
from convkern.geometry import IntPair, integer, number, output_size, pair, window_extent
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
    # Only plain integers: as a key 1.0 and True are the same as 1.
    of = _remembered_windows if _kernels.are_plain(arguments) else _max_windows
    out_size, rows, columns = of(input.shape, *arguments, bool(ceil_mode))
    if _is_images_last(input):
        swapped = max_pool2d(
            _swapped(input), *arguments, ceil_mode=ceil_mode, return_indices=return_indices
        )
        if isinstance(swapped, tuple):
            return _swapped(swapped[0]), _swapped(swapped[1])
        return _swapped(swapped)
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
_Windows = tuple[tuple[int, int], tuple[int, int, int, int], tuple[int, int, int, int]]


def _max_windows(
    shape: tuple[int, ...],
    kernel_size: IntPair,
    stride: IntPair,
    padding: IntPair,
    dilation: IntPair,
    ceil_mode: bool,
) -> _Windows:
    """Check the arguments of `max_pool2d` for an input of a shape."""
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
    shape = _input_shape(input_shape, grad_output)
    return _scattered(grad_output, indices, shape[-2:], add=True)


def _scattered(values: np.ndarray, indices: Any, size: tuple[int, ...], *, add: bool) -> np.ndarray:
    """Return zero images of a size with the values at their indices, added up or the last one."""
    _check_indices(indices, values.shape)
    if _is_images_last(values) or _is_images_last(indices):
        values = to_images_last(values)
        return _swapped(_scattered(_swapped(values), _swapped(indices), size, add=add))
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


def _is_images_last(x: np.ndarray) -> bool:
    """Tell whether an array is images-last; with N and C swapped it then is channels-last."""
    return x.ndim == 4 and is_images_last(x)


def _swapped(x: np.ndarray) -> np.ndarray:
    """Return images with the channels for images and the images for channels, or undo that."""
    return x.transpose(1, 0, 2, 3)


def _pixels(x: np.ndarray, channels_last: bool) -> np.ndarray:
    """Return (N, H*W, C) of a channels-last array or (N*C, H*W, 1) of another, dense."""
    if channels_last:
        return as_contiguous(x.transpose(0, 2, 3, 1)).reshape(len(x), -1, x.shape[1])
    return as_contiguous(x).reshape(-1, x.shape[2] * x.shape[3], 1)


def _sizes(shape: Any, name: str = "input_shape") -> tuple[int, ...]:
    """Return the sizes of a shape, or raise."""
    if not hasattr(shape, "__len__") or isinstance(shape, str):
        raise TypeError(f"{name} must be a sequence of integers, got {shape!r}")
    return tuple(integer(size, name, 0) for size in shape)


def _input_shape(input_shape: Any, grad_output: np.ndarray) -> tuple[int, ...]:
    """Return the shape of the input whose pooling has this gradient."""
    shape = _sizes(input_shape)
    lead = grad_output.shape[:-2]
    if len(shape) != grad_output.ndim or shape[:-2] != lead or 0 in shape[-3:]:
        raise ValueError(
            f"input_shape must be {(*lead, 'H', 'W')} for grad_output of shape "
            f"{grad_output.shape}, got {shape}"
        )
    if 0 in grad_output.shape[-2:]:
        raise ValueError(f"grad_output must have no empty axis but N, got {grad_output.shape}")
    return shape


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
        wanted = _sizes(output_size, "output_size")
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
    if _is_images_last(grad_output):
        return _swapped(max_unpool2d_backward(_swapped(grad_output), _swapped(indices)))
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


class _Boxes(NamedTuple):
    """Windows along one axis, and what their sums are divided by."""

    begin: np.ndarray
    end: np.ndarray
    divisors: np.ndarray

    def turned(self, size: int) -> _Boxes:
        """Return the windows that each of `size` positions is in, to go the way back."""
        positions = np.arange(size)
        begin = np.searchsorted(self.end, positions, side="right")
        end = np.maximum(begin, np.searchsorted(self.begin, positions, side="right"))
        return _Boxes(begin, end, self.divisors)


def _box_means(x: np.ndarray, rows: _Boxes, columns: _Boxes) -> np.ndarray:
    """Return the sums over windows of 3-D or 4-D images, divided."""
    return _box_sums(x, rows, columns, (rows.divisors, columns.divisors))


def _box_shares(
    grad: np.ndarray, size: tuple[int, ...], rows: _Boxes, columns: _Boxes
) -> np.ndarray:
    """Return the gradient of `_box_means` by its input, of the given size."""
    _check_room((*grad.shape[:-2], *size), grad.dtype)
    each = (
        _Boxes(np.arange(n), np.arange(1, n + 1), axis.divisors)
        for n, axis in zip(grad.shape[-2:], (rows, columns), strict=True)
    )
    return _box_sums(_box_means(grad, *each), rows.turned(size[0]), columns.turned(size[1]))


def _check_room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise MemoryError if there is no room for a result, before its windows take up some."""
    np.empty(shape, dtype)


def _is_whole(images: np.ndarray, rows: _Boxes, columns: _Boxes) -> bool:
    """Tell whether there is one window, all of the plane."""
    return bool(images.size) and all(
        len(axis.begin) == 1 and axis.begin[0] == 0 and axis.end[0] == size
        for axis, size in zip((rows, columns), images.shape[2:], strict=True)
    )


def _box_sums(
    x: np.ndarray,
    rows: _Boxes,
    columns: _Boxes,
    divisors: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Return the sums over windows of 3-D or 4-D images, divided by products of the divisors."""
    if _is_images_last(x):
        return _swapped(_box_sums(_swapped(x), rows, columns, divisors))
    images, channels_last = as_images(x)
    size = (len(rows.begin), len(columns.begin))
    out = empty_images((*images.shape[:2], *size), images.dtype, channels_last)
    if divisors is not None and not channels_last and _is_whole(images, rows, columns):
        planes, elements = math.prod(images.shape[:2]), math.prod(images.shape[2:])
        sums = _kernels.totals(images, (1, planes, elements), get_num_threads())
        out.reshape(-1)[...] = sums / (divisors[0] * divisors[1])
    elif out.size:
        if divisors is not None:
            divisors = (divisors[0].astype(x.dtype), divisors[1].astype(x.dtype))
        _kernels.box_sums(
            images, out, rows[:2], columns[:2], divisors, channels_last, get_num_threads()
        )
    return out[0] if x.ndim == 3 else out


def _average_windows(
    shape: tuple[int, ...],
    kernel_size: IntPair,
    stride: IntPair | None,
    padding: IntPair,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> tuple[_Boxes, _Boxes]:
    """Check an average pooling of an input of this shape; return its windows along both axes."""
    if 0 in shape[-3:]:
        raise ValueError(f"input must have no empty channel or spatial axis, got {shape}")
    kernel = pair(kernel_size, "kernel_size")
    steps = kernel if stride is None else pair(stride, "stride")
    pads = pair(padding, "padding", 0)
    axes = []
    for i in (0, 1):
        if pads[i] > kernel[i] // 2:
            raise ValueError(
                f"padding must be at most half the window ({kernel[i]}), got {pads[i]}"
            )
        size = shape[i - 2]
        outputs = output_size(size, kernel[i], steps[i], (pads[i], pads[i]), 1, bool(ceil_mode))
        first = np.arange(outputs) * steps[i] - pads[i]
        last = np.minimum(first + kernel[i], size + pads[i])
        begin, end = np.maximum(first, 0), np.minimum(last, size)
        axes.append(_Boxes(begin, end, last - first if count_include_pad else end - begin))
    rows, columns = axes
    if divisor_override is None:
        return rows, columns
    if integer(divisor_override, "divisor_override", -(2**31) + 1) == 0:
        raise ValueError(f"divisor_override must not be 0, got {divisor_override!r}")
    return (
        rows._replace(divisors=np.full(len(rows.begin), int(divisor_override))),
        columns._replace(divisors=np.ones(len(columns.begin))),
    )


def avg_pool2d(
    input: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> np.ndarray:
    """Average every window.

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Images; any strides.
    kernel_size : int or pair of int
        The window.
    stride : int or pair of int, optional
        Step of the window; by default the window itself.
    padding : int or pair of int
        Rows and columns of zeros around the image, at most half the window.
    ceil_mode : bool
        Also take a last window that hangs over the edge, unless it would start
        in the padding; what hangs over the padding is not counted.
    count_include_pad : bool
        Whether the padding counts in the number of elements.
    divisor_override : int, optional
        Divides the sums instead of the number of elements.

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
    >>> from convkern import avg_pool2d
    >>> avg_pool2d(np.array([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]), 2, 1)
    array([[[3., 4.]]])
    """
    input = as_array(input, "input", (3, 4))
    return _box_means(
        input,
        *_average_windows(
            input.shape,
            kernel_size,
            stride,
            padding,
            ceil_mode,
            count_include_pad,
            divisor_override,
        ),
    )


def avg_pool2d_backward(
    grad_output: np.ndarray,
    input_shape: Sequence[int],
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> np.ndarray:
    """Return the gradient of `avg_pool2d` by its input.

    Parameters
    ----------
    grad_output : ndarray, (N, C, OH, OW) or (C, OH, OW), float32 or float64
        Gradient of the output.
    input_shape : sequence of int
        Shape of the input, (N, C, H, W) or (C, H, W).
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        As given to `avg_pool2d`.

    Returns
    -------
    ndarray, `input_shape`, dtype of `grad_output`
        Channels-last in memory where `grad_output` is.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If shapes do not fit each other or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import avg_pool2d_backward
    >>> avg_pool2d_backward(np.array([[[4.0, 8.0]]]), (1, 2, 3), 2, 1)
    array([[[1., 3., 2.],
            [1., 3., 2.]]])
    """
    grad_output = as_array(grad_output, "grad_output", (3, 4))
    shape = _input_shape(input_shape, grad_output)
    rows, columns = _average_windows(
        shape, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    _output_gradient(grad_output, (*shape[:-2], len(rows.begin), len(columns.begin)))
    return _box_shares(grad_output, shape[-2:], rows, columns)


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
    grad_output = _output_gradient(grad_output, output.shape, input)
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


class _ChannelPooling(NamedTuple):
    """A pooling over channels as one over images that have the channels on a spatial axis."""

    channels_last: bool
    batch: tuple[int, ...]
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]

    @classmethod
    def of(
        cls, like: np.ndarray, channels: int, kernel_size: int, stride: int | None
    ) -> _ChannelPooling:
        """Check a pooling of so many channels, in the layout of an array."""
        width = integer(kernel_size, "kernel_size", 1)
        step = width if stride is None else integer(stride, "stride", 1)
        if width > channels:
            raise ValueError(f"kernel_size must be at most the {channels} channels, got {width}")
        *batch, _, height, columns = like.shape
        last = as_images(like)[1]
        return cls(
            last,
            tuple(batch),
            (channels - width) // step + 1,
            (height, columns),
            (1, width) if last else (width, 1),
            (1, step) if last else (step, 1),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the output."""
        return (*self.batch, self.outputs, *self.size)

    def images(self, x: np.ndarray) -> np.ndarray:
        """Return images to pool: each pixel a row, or each pixel a channel with rows of channels.

        In both cases their memory is that of `x`.
        """
        x = in_layout(x, self.channels_last)
        if self.channels_last:
            return x.transpose(0, 2, 3, 1).reshape(1, 1, -1, x.shape[1])
        return x.reshape(len(x), x.shape[1], 1, -1).transpose(0, 3, 1, 2)

    def back(self, images: np.ndarray) -> np.ndarray:
        """Undo `images`."""
        if self.channels_last:
            pixels = images.reshape(*self.batch, *self.size, -1)
            return np.moveaxis(pixels, -1, -3)
        return images.transpose(0, 2, 3, 1).reshape(*self.batch, -1, *self.size)


def max_pool_channels(input: np.ndarray, kernel_size: int, stride: int | None = None) -> np.ndarray:
    """Take the maximum over windows of neighbouring channels; NaN propagates.

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Images; any strides.
    kernel_size : int
        Channels in a window.
    stride : int, optional
        Step of the window; by default the window itself.

    Returns
    -------
    ndarray, (N, OC, H, W) or (OC, H, W), dtype of `input`
        ``OC = (C - kernel_size) // stride + 1``; channels-last in memory where `input` is.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If no window fits or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import max_pool_channels
    >>> max_pool_channels(np.array([1.0, 4.0, 3.0, 2.0]).reshape(4, 1, 1), 2).ravel()
    array([4., 3.])
    """
    input = as_array(input, "input", (3, 4))
    if 0 in input.shape[-3:]:
        raise ValueError(f"input must have no empty channel or spatial axis, got {input.shape}")
    pooling = _ChannelPooling.of(input, input.shape[-3], kernel_size, stride)
    if not input.size:
        return np.empty(pooling.shape, input.dtype)
    output = max_pool2d(pooling.images(input), pooling.kernel, pooling.stride)
    assert isinstance(output, np.ndarray)
    return pooling.back(output)


def max_pool_channels_backward(
    grad_output: np.ndarray, input: np.ndarray, kernel_size: int, stride: int | None = None
) -> np.ndarray:
    """Return the gradient of `max_pool_channels` by its input; the first maximum gets it.

    Parameters
    ----------
    grad_output : ndarray, (N, OC, H, W) or (OC, H, W), dtype of `input`
        Gradient of the output.
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        What `max_pool_channels` was given.
    kernel_size, stride
        As given to `max_pool_channels`.

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
    >>> from convkern.functional import max_pool_channels_backward
    >>> x, grad = np.array([1.0, 4.0, 3.0]), np.array([5.0, 6.0])
    >>> max_pool_channels_backward(grad.reshape(2, 1, 1), x.reshape(3, 1, 1), 2, 1).ravel()
    array([ 0., 11.,  0.])
    """
    input = as_array(input, "input", (3, 4))
    if 0 in input.shape[-3:]:
        raise ValueError(f"input must have no empty channel or spatial axis, got {input.shape}")
    pooling = _ChannelPooling.of(input, input.shape[-3], kernel_size, stride)
    grad_output = _output_gradient(grad_output, pooling.shape, input)
    if not input.size:
        return np.empty_like(input)
    images = pooling.images(input)
    _, indices = max_pool2d(images, pooling.kernel, pooling.stride, return_indices=True)
    return pooling.back(max_pool2d_backward(pooling.images(grad_output), indices, images.shape))


def _output_gradient(
    grad_output: Any, shape: tuple[int, ...], like: np.ndarray | None = None
) -> np.ndarray:
    """Return the gradient as an array of the output's shape, or raise."""
    grad = as_array(grad_output, "grad_output", (len(shape),), like=like)
    if grad.shape != shape:
        raise ValueError(f"grad_output must have the output's shape {shape}, got {grad.shape}")
    return grad


def avg_pool_channels(input: np.ndarray, kernel_size: int, stride: int | None = None) -> np.ndarray:
    """Average over windows of neighbouring channels.

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Images; any strides.
    kernel_size : int
        Channels in a window.
    stride : int, optional
        Step of the window; by default the window itself.

    Returns
    -------
    ndarray, (N, OC, H, W) or (OC, H, W), dtype of `input`
        ``OC = (C - kernel_size) // stride + 1``; channels-last in memory where `input` is.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If no window fits or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import avg_pool_channels
    >>> avg_pool_channels(np.array([1.0, 4.0, 3.0, 2.0]).reshape(4, 1, 1), 2).ravel()
    array([2.5, 2.5])
    """
    input = as_array(input, "input", (3, 4))
    if 0 in input.shape[-3:]:
        raise ValueError(f"input must have no empty channel or spatial axis, got {input.shape}")
    pooling = _ChannelPooling.of(input, input.shape[-3], kernel_size, stride)
    if not input.size:
        return np.empty(pooling.shape, input.dtype)
    return pooling.back(avg_pool2d(pooling.images(input), pooling.kernel, pooling.stride))


def avg_pool_channels_backward(
    grad_output: np.ndarray,
    input_shape: Sequence[int],
    kernel_size: int,
    stride: int | None = None,
) -> np.ndarray:
    """Return the gradient of `avg_pool_channels` by its input.

    Parameters
    ----------
    grad_output : ndarray, (N, OC, H, W) or (OC, H, W), float32 or float64
        Gradient of the output.
    input_shape : sequence of int
        Shape of the input, (N, C, H, W) or (C, H, W).
    kernel_size, stride
        As given to `avg_pool_channels`.

    Returns
    -------
    ndarray, `input_shape`, dtype of `grad_output`
        Channels-last in memory where `grad_output` is.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If shapes do not fit each other or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import avg_pool_channels_backward
    >>> avg_pool_channels_backward(np.array([4.0, 8.0]).reshape(2, 1, 1), (3, 1, 1), 2, 1).ravel()
    array([2., 6., 4.])
    """
    grad_output = as_array(grad_output, "grad_output", (3, 4))
    shape = _sizes(input_shape)
    if len(shape) != grad_output.ndim:
        raise ValueError(f"input_shape must be {grad_output.ndim}-D as grad_output, got {shape}")
    pooling = _ChannelPooling.of(grad_output, shape[-3], kernel_size, stride)
    _output_gradient(grad_output, (*shape[:-3], pooling.outputs, *shape[-2:]))
    if not grad_output.size:
        return np.empty(shape, grad_output.dtype)
    images = pooling.images(grad_output)
    size = (images.shape[2], shape[-3]) if pooling.channels_last else (shape[-3], 1)
    return pooling.back(
        avg_pool2d_backward(images, (*images.shape[:2], *size), pooling.kernel, pooling.stride)
    )


def adaptive_avg_pool2d(
    input: np.ndarray, output_size: IntPair | tuple[int | None, ...]
) -> np.ndarray:
    """Average over windows that divide the image into `output_size` parts.

    Window `i` of `OH` covers the rows from ``floor(i * H / OH)`` up to, not
    including, ``ceil((i + 1) * H / OH)``; columns likewise.

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Images; any strides.
    output_size : int or pair of int or None
        ``(OH, OW)``; None keeps the input's size on that axis.

    Returns
    -------
    ndarray, (N, C, OH, OW) or (C, OH, OW), dtype of `input`
        Channels-last in memory where `input` is.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If a size is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import adaptive_avg_pool2d
    >>> adaptive_avg_pool2d(np.array([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]), (1, 2))
    array([[[3., 4.]]])
    """
    input = as_array(input, "input", (3, 4))
    if 0 in input.shape[-3:]:
        raise ValueError(f"input must have no empty channel or spatial axis, got {input.shape}")
    sizes = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    if len(sizes) != 2:
        raise ValueError(f"output_size must be an integer or a pair, got {output_size!r}")
    height, width = input.shape[-2:]
    rows, columns = (
        size if wanted is None else integer(wanted, "output_size", 1)
        for wanted, size in zip(sizes, (height, width), strict=True)
    )
    _check_room((*input.shape[:-2], rows, columns), input.dtype)
    return _box_means(input, _parts(height, rows), _parts(width, columns))


def _parts(size: int, parts: int) -> _Boxes:
    """Return the windows that divide an axis into parts, which may overlap by one."""
    number = np.arange(parts)
    begin, end = number * size // parts, -(-(number + 1) * size // parts)
    return _Boxes(begin, end, end - begin)


def adaptive_avg_pool2d_backward(grad_output: np.ndarray, input_shape: Sequence[int]) -> np.ndarray:
    """Return the gradient of `adaptive_avg_pool2d` by its input.

    Parameters
    ----------
    grad_output : ndarray, (N, C, OH, OW) or (C, OH, OW), float32 or float64
        Gradient of the output.
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
        If shapes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import adaptive_avg_pool2d_backward
    >>> adaptive_avg_pool2d_backward(np.array([[[4.0, 8.0]]]), (1, 2, 3))
    array([[[1., 3., 2.],
            [1., 3., 2.]]])
    """
    grad_output = as_array(grad_output, "grad_output", (3, 4))
    shape = _input_shape(input_shape, grad_output)
    rows, columns = map(_parts, shape[-2:], grad_output.shape[-2:])
    return _box_shares(grad_output, shape[-2:], rows, columns)
