"""Pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from convkern import _kernels
from convkern.arrays import as_array, as_contiguous, as_images, empty_images
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
    kernel = pair(kernel_size, "kernel_size")
    steps = kernel if stride is None else pair(stride, "stride")
    pads = pair(padding, "padding", 0)
    gaps = pair(dilation, "dilation")
    for pad, size in zip(pads, kernel, strict=True):
        if pad > size // 2:
            raise ValueError(f"padding must be at most half the window ({size}), got {pad}")
    if 0 in input.shape[-3:]:
        raise ValueError(f"input must have no empty channel or spatial axis, got {input.shape}")
    out_size = tuple(
        output_size(
            input.shape[i - 2], kernel[i], steps[i], (pads[i], pads[i]), gaps[i], bool(ceil_mode)
        )
        for i in (0, 1)
    )
    if (window_extent(kernel[0], gaps[0]) + 1) * input.shape[-1] >= 2**31:
        raise ValueError(
            f"a window of {kernel} on rows of {input.shape[-1]} spans more than 2**31 elements"
        )
    x, channels_last = as_images(input)
    shape = (*x.shape[:2], *out_size)
    values = empty_images(shape, x.dtype, channels_last)
    indices = empty_images(shape, np.dtype(np.int64), channels_last) if return_indices else None
    if values.size:
        rows, columns = zip(kernel, steps, pads, gaps, strict=True)
        _kernels.max_pool2d(x, values, indices, rows, columns, channels_last, get_num_threads())
    if input.ndim == 3:
        values = values[0]
        indices = None if indices is None else indices[0]
    return values if indices is None else (values, indices)


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
    _check_indices(indices, grad_output, shape[-2] * shape[-1])
    grad, channels_last = as_images(grad_output)
    places = indices if indices.ndim == 4 else indices[None]
    out = empty_images((len(grad), *shape[-3:]), grad.dtype, channels_last)
    out[...] = 0
    if out.size and grad.size:
        _kernels.max_pool2d_backward(
            _pixels(grad, channels_last),
            _pixels(places, channels_last),
            _pixels(out, channels_last),
            get_num_threads(),
        )
    return out[0] if grad_output.ndim == 3 else out


def _pixels(x: np.ndarray, channels_last: bool) -> np.ndarray:
    """Return (N, H*W, C) of a channels-last array or (N*C, H*W, 1) of another, dense."""
    if channels_last:
        return as_contiguous(x.transpose(0, 2, 3, 1)).reshape(len(x), -1, x.shape[1])
    return as_contiguous(x).reshape(-1, x.shape[2] * x.shape[3], 1)


def _input_shape(input_shape: Any, grad_output: np.ndarray) -> tuple[int, ...]:
    """Return the shape of the input whose pooling has this gradient."""
    if not hasattr(input_shape, "__len__") or isinstance(input_shape, str):
        raise TypeError(f"input_shape must be a sequence of integers, got {input_shape!r}")
    shape = tuple(integer(size, "input_shape", 0) for size in input_shape)
    lead = grad_output.shape[:-2]
    if len(shape) != grad_output.ndim or shape[:-2] != lead or 0 in shape[-3:]:
        raise ValueError(
            f"input_shape must be {(*lead, 'H', 'W')} for grad_output of shape "
            f"{grad_output.shape}, got {shape}"
        )
    if 0 in grad_output.shape[-2:]:
        raise ValueError(f"grad_output must have no empty axis but N, got {grad_output.shape}")
    return shape


def _check_indices(indices: Any, values: np.ndarray, plane: int) -> None:
    """Raise unless there is an index inside the plane for every value."""
    if not isinstance(indices, np.ndarray) or indices.dtype != np.int64:
        given = indices.dtype if isinstance(indices, np.ndarray) else type(indices).__name__
        raise TypeError(f"indices must be an int64 array, got {given}")
    if indices.shape != values.shape:
        raise ValueError(f"indices must have shape {values.shape}, got {indices.shape}")
    if indices.size:
        for index in (int(indices.min()), int(indices.max())):
            if not 0 <= index < plane:
                raise ValueError(f"indices must be from 0 to {plane - 1}, got {index}")


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
        wanted = tuple(integer(s, "output_size", 0) for s in output_size)
        if len(wanted) not in (2, 4, input.ndim):
            raise ValueError(f"output_size must be (OH, OW), got {wanted}")
        for given, usual, step in zip(wanted[-2:], size, steps, strict=True):
            if not usual - step < given < usual + step:
                raise ValueError(
                    f"output_size must be less than a stride from {size}, got {wanted[-2:]}"
                )
        size = (wanted[-2], wanted[-1])
    if min(size) < 1:
        raise ValueError(f"the output would have size {size}: the padding is too large")
    _check_indices(indices, input, size[0] * size[1])
    x, channels_last = as_images(input)
    out = empty_images((*x.shape[:2], *size), x.dtype, channels_last)
    out[...] = 0
    if x.size:
        places = indices if indices.ndim == 4 else indices[None]
        np.put_along_axis(
            _pixels(out, channels_last),
            _pixels(places, channels_last),
            _pixels(x, channels_last),
            axis=1,
        )
    return out[0] if input.ndim == 3 else out


class _Average(NamedTuple):
    """The checked arguments of average pooling."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    outputs: tuple[int, int]
    #: How many elements each window's sum is divided by, (OH, OW) or (OH, 1) and so on.
    divisors: np.ndarray

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        kernel_size: IntPair,
        stride: IntPair | None,
        padding: IntPair,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
    ) -> _Average:
        """Check a pooling of an input of this shape."""
        if 0 in shape[-3:]:
            raise ValueError(f"input must have no empty channel or spatial axis, got {shape}")
        kernel = pair(kernel_size, "kernel_size")
        steps = kernel if stride is None else pair(stride, "stride")
        pads = pair(padding, "padding", 0)
        counts = []
        for i in (0, 1):
            if pads[i] > kernel[i] // 2:
                raise ValueError(
                    f"padding must be at most half the window ({kernel[i]}), got {pads[i]}"
                )
            outputs = output_size(
                shape[i - 2], kernel[i], steps[i], (pads[i], pads[i]), 1, bool(ceil_mode)
            )
            first = np.arange(outputs) * steps[i] - pads[i]
            last = np.minimum(first + kernel[i], shape[i - 2] + pads[i])
            if not count_include_pad:
                first, last = np.maximum(first, 0), np.minimum(last, shape[i - 2])
            counts.append(last - first)
        divisors = counts[0][:, None] * counts[1]
        if divisor_override is not None:
            if integer(divisor_override, "divisor_override", -(2**31) + 1) == 0:
                raise ValueError("divisor_override must not be 0")
            divisors = np.full_like(divisors, divisor_override)
        return cls(kernel, steps, pads, (len(counts[0]), len(counts[1])), divisors)

    def axes(self) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        """Return (kernel, stride, padding, dilation) of rows and of columns."""
        rows, columns = ((self.kernel[i], self.stride[i], self.padding[i], 1) for i in (0, 1))
        return rows, columns

    def ones(self, like: np.ndarray) -> np.ndarray:
        """Return the depthwise weights with which a convolution sums over windows."""
        return np.ones((like.shape[1], 1, *self.kernel), like.dtype)


def avg_pool2d(
    input: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> np.ndarray:
    """Average every window: a depthwise convolution with ones, divided.

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
    window = _Average.of(
        input.shape, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    x, channels_last = as_images(input)
    out = empty_images((*x.shape[:2], *window.outputs), x.dtype, channels_last)
    if out.size:
        threads = get_num_threads()
        packed = _kernels.PackedConv(window.ones(x), None, x.shape[1], threads)
        _kernels.conv2d(x, packed, out, *window.axes(), 0, 0.0, channels_last, threads)
        out /= window.divisors.astype(x.dtype)
    return out[0] if input.ndim == 3 else out


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
    window = _Average.of(
        shape, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    if grad_output.shape[-2:] != window.outputs:
        raise ValueError(
            f"grad_output must have the output's shape {(*shape[:-2], *window.outputs)}, got "
            f"{grad_output.shape}"
        )
    images, channels_last = as_images(grad_output)
    grad = empty_images(images.shape, images.dtype, channels_last)
    np.divide(images, window.divisors.astype(images.dtype), out=grad)
    out = empty_images((len(grad), *shape[-3:]), grad.dtype, channels_last)
    if out.size:
        _kernels.input_gradient(
            grad,
            window.ones(out),
            None,
            out,
            *window.axes(),
            out.shape[1],
            channels_last,
            get_num_threads(),
        )
    return out[0] if grad_output.ndim == 3 else out


def _lp_window(norm_type: Any, kernel_size: IntPair) -> tuple[float, int]:
    """Return the norm and the number of elements in a window."""
    norm = number(norm_type, "norm_type")
    if norm == 0:
        raise ValueError("norm_type must not be 0")
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
    output = as_array(output, "output", (input.ndim,), like=input)
    grad_output = as_array(grad_output, "grad_output", (input.ndim,), like=input)
    if output.shape != grad_output.shape:
        raise ValueError(
            f"grad_output must have the output's shape {output.shape}, got {grad_output.shape}"
        )
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


def _pool_channels(
    reduction: Callable[..., Any], input: np.ndarray, kernel_size: int, stride: int | None
) -> np.ndarray:
    """Reduce every window of neighbouring channels to one."""
    input = as_array(input, "input", (3, 4))
    if 0 in input.shape[-3:]:
        raise ValueError(f"input must have no empty channel or spatial axis, got {input.shape}")
    size = integer(kernel_size, "kernel_size", 1)
    step = size if stride is None else integer(stride, "stride", 1)
    if size > input.shape[-3]:
        raise ValueError(f"kernel_size must be at most the {input.shape[-3]} channels, got {size}")
    x, channels_last = as_images(input)
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=1)[:, ::step]
    out = empty_images(windows.shape[:4], x.dtype, channels_last)
    with np.errstate(invalid="ignore"):  # infinities of both signs
        reduction(windows, axis=-1, out=out)
    return out[0] if input.ndim == 3 else out


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
    return _pool_channels(np.max, input, kernel_size, stride)


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
    return _pool_channels(np.mean, input, kernel_size, stride)


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
    x, channels_last = as_images(input)
    out = empty_images((*x.shape[:2], rows, columns), x.dtype, channels_last)
    for i in range(rows):
        top, bottom = i * height // rows, -(-(i + 1) * height // rows)
        for j in range(columns):
            left, right = j * width // columns, -(-(j + 1) * width // columns)
            with np.errstate(invalid="ignore"):  # infinities of both signs
                x[:, :, top:bottom, left:right].mean(axis=(2, 3), out=out[:, :, i, j])
    return out[0] if input.ndim == 3 else out


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
    grad, channels_last = as_images(grad_output)
    out = empty_images((len(grad), *shape[-3:]), grad.dtype, channels_last)
    out[...] = 0
    (height, width), (rows, columns) = shape[-2:], grad.shape[-2:]
    for i in range(rows):
        top, bottom = i * height // rows, -(-(i + 1) * height // rows)
        for j in range(columns):
            left, right = j * width // columns, -(-(j + 1) * width // columns)
            area = (bottom - top) * (right - left)
            out[:, :, top:bottom, left:right] += grad[:, :, i : i + 1, j : j + 1] / area
    return out[0] if grad_output.ndim == 3 else out
