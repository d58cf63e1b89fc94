"""Average pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from convkern import _kernels
from convkern.arrays import as_array, as_images, empty_images
from convkern.functional.pool_shapes import (
    checked_input_shape,
    checked_output_gradient,
    lies_images_last,
    swapped,
)
from convkern.geometry import IntPair, integer, output_size, pair
from convkern.threads import get_num_threads


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
    if lies_images_last(x):
        return swapped(_box_sums(swapped(x), rows, columns, divisors))
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
    shape = checked_input_shape(input_shape, grad_output)
    rows, columns = _average_windows(
        shape, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    checked_output_gradient(grad_output, (*shape[:-2], len(rows.begin), len(columns.begin)))
    return _box_shares(grad_output, shape[-2:], rows, columns)


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
    shape = checked_input_shape(input_shape, grad_output)
    rows, columns = map(_parts, shape[-2:], grad_output.shape[-2:])
    return _box_shares(grad_output, shape[-2:], rows, columns)
