"""The slow NumPy twin of :mod:`convkern.functional`: the oracle of the tests.

Names, arguments and array shapes are those of the fast functions, which
document them; here stands only what each operator means.  All arithmetic is
float64 and so are the results (indices are int64).

A windowed operator is one loop over the taps of its kernel: tap ``(i, j)`` of
all windows at once is a strided slice of the padded plane.  Images may be
batched ``(N, C, H, W)`` or not ``(C, H, W)``.  Arguments are taken as valid;
the fast functions are the ones that refuse.
"""
# N, C, H, W, OC, OH, OW are the names of the field.

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convkern.geometry import IntPair, Padding, PaddingPairs, padding_pairs, pair

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "avg_pool_channels",
    "avg_pool_channels_backward",
    "batch_norm",
    "binary_cross_entropy_with_logits",
    "col2im",
    "conv2d",
    "conv2d_backward",
    "conv_transpose2d",
    "cross_entropy",
    "flatten",
    "im2col",
    "leaky_relu",
    "linear",
    "linear_backward",
    "local_response_norm",
    "lp_pool2d",
    "lp_pool2d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool_channels",
    "max_pool_channels_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "mse_loss",
    "relu",
    "sigmoid",
    "softmax",
]

Array: TypeAlias = NDArray[Any]
Float64: TypeAlias = NDArray[np.float64]
Int64: TypeAlias = NDArray[np.int64]
_Pair: TypeAlias = tuple[int, int]
_Tap: TypeAlias = tuple[EllipsisType, slice, slice]


# Windows


@dataclass(frozen=True)
class _Windows:
    """The windows over an H x W plane; `output` says how many there are, (OH, OW)."""

    size: _Pair
    kernel: _Pair
    stride: _Pair
    dilation: _Pair
    pads: PaddingPairs
    output: _Pair

    def taps(self) -> Iterator[tuple[_Pair, _Tap]]:
        """Yield each tap of the kernel and where it lies, for all windows, in a padded plane."""
        (OH, OW), (SH, SW), (DH, DW) = self.output, self.stride, self.dilation
        for i, j in np.ndindex(self.kernel):
            rows = slice(i * DH, i * DH + (OH - 1) * SH + 1, SH)
            columns = slice(j * DW, j * DW + (OW - 1) * SW + 1, SW)
            yield (i, j), (..., rows, columns)

    def first_inside(self, axis: int) -> Int64:
        """Return, for the windows along an axis, where their first tap inside the input lies."""
        starts = np.arange(self.output[axis]) * self.stride[axis] - self.pads[axis][0]
        gap = self.dilation[axis]
        starts += -(np.minimum(starts, 0) // gap) * gap
        return np.minimum(starts, self.size[axis] - 1)

    def pad(self, planes: Array, fill: float = 0) -> Array:
        """Return the planes with their padding, and with what the last windows overhang."""
        widths = [(0, 0)] * (planes.ndim - 2)
        for axis, (before, after) in enumerate(self.pads):
            reach = (self.output[axis] - 1) * self.stride[axis]
            reach += (self.kernel[axis] - 1) * self.dilation[axis] + 1
            widths.append((before, max(after, reach - before - self.size[axis])))
        return np.pad(planes, widths, constant_values=fill)

    def crop(self, padded: Float64) -> Float64:
        """Undo :meth:`pad`."""
        (top, _), (left, _) = self.pads
        return padded[..., top : top + self.size[0], left : left + self.size[1]].copy()


def _windows(
    size: Sequence[int],
    kernel_size: IntPair,
    stride: IntPair | None,
    padding: Padding,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> _Windows:
    """Lay windows over a plane of (H, W) = `size`; a stride of None is the kernel size."""
    kernel, gaps = pair(kernel_size, "kernel_size"), pair(dilation, "dilation")
    steps = kernel if stride is None else pair(stride, "stride")
    pads = padding_pairs(padding, kernel, steps, gaps)
    OH, OW = (
        _window_count(size[i], kernel[i], steps[i], pads[i], gaps[i], ceil_mode) for i in (0, 1)
    )
    return _Windows((size[0], size[1]), kernel, steps, gaps, pads, (OH, OW))


def _window_count(
    size: int, kernel: int, stride: int, pads: _Pair, dilation: int, ceil_mode: bool
) -> int:
    """Return how many windows an axis holds, a last partial one counting in ceil mode."""
    room = size + sum(pads) - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    last = math.ceil(room / stride)
    # A window that would start beyond the input, in its trailing padding, does not count.
    return last if last * stride >= size + pads[0] else last + 1


# Convolution

_ACTIVATIONS: dict[str | None, Callable[[Float64], Float64]] = {
    None: lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
}


def conv2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: IntPair = 1,
    padding: Padding = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    algorithm: str = "auto",
    out: Array | None = None,
) -> Array:
    """Slide the kernels over the image: cross-correlation, as networks use the word.

    ``y[n, o, p, q] = b[o] + sum_cij w[o, c, i, j] x[n, c, p*SH + i*DH, q*SW + j*DW]``
    over the padded `x`, with `c` over the input channels of the group of `o`.
    `algorithm` changes nothing here.

    Examples
    --------
    >>> conv2d(np.arange(9.0).reshape(1, 3, 3), np.ones((1, 1, 2, 2)))
    array([[[ 8., 12.],
            [20., 24.]]])
    """
    x, w = _grouped_image(input, groups), _grouped_weight(weight, groups)
    N, OC = x.shape[0], weight.shape[0]
    windows = _windows(x.shape[-2:], weight.shape[2:], stride, padding, dilation)
    padded = windows.pad(x)
    sums = np.zeros((N, groups, OC // groups, math.prod(windows.output)))
    for (i, j), tap in windows.taps():
        sums += w[..., i, j] @ _flat_planes(padded[tap])
    result = sums.reshape(*input.shape[:-3], OC, *windows.output)
    if bias is not None:
        result += np.reshape(bias, (OC, 1, 1))
    result = _ACTIVATIONS[activation](result)
    if out is None:
        return result
    out[...] = result
    return out


def conv2d_backward(
    grad_output: Array,
    input: Array,
    weight: Array,
    stride: IntPair = 1,
    padding: Padding = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    *,
    output_mask: Sequence[bool] = (True, True, True),
    algorithm: str = "auto",
) -> tuple[Float64 | None, Float64 | None, Float64 | None]:
    """Return the gradients by input, weight and bias of :func:`conv2d`, None where masked.

    Each tap multiplied ``w[o, c, i, j]`` by a slice of `x`: the slice gets back
    ``w * grad_output``, the tap gets the sum of ``x * grad_output``.

    Examples
    --------
    >>> gradients = conv2d_backward(np.ones((1, 2, 2)), np.ones((1, 3, 3)), np.ones((1, 1, 2, 2)))
    >>> gradients[0]
    array([[[1., 2., 1.],
            [2., 4., 2.],
            [1., 2., 1.]]])
    """
    x, g = _grouped_image(input, groups), _grouped_image(grad_output, groups)
    w = _grouped_weight(weight, groups)
    windows = _windows(x.shape[-2:], weight.shape[2:], stride, padding, dilation)
    padded, columns = windows.pad(x), _flat_planes(g)
    grad_weight = np.empty_like(w)
    for (i, j), tap in windows.taps():
        grad_weight[..., i, j] = (columns @ _flat_planes(padded[tap]).swapaxes(-1, -2)).sum(axis=0)
    return (
        _conv2d_transposed(windows, g, w).reshape(input.shape) if output_mask[0] else None,
        grad_weight.reshape(weight.shape) if output_mask[1] else None,
        g.sum(axis=(0, 3, 4)).ravel() if output_mask[2] else None,
    )


def conv_transpose2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: IntPair = 1,
    padding: Padding = 0,
    output_padding: IntPair = 0,
    groups: int = 1,
    dilation: IntPair = 1,
) -> Float64:
    """Apply the transpose of :func:`conv2d`; `weight` is ``(C, OC / groups, KH, KW)``.

    The output has ``(H - 1)*stride - pads + dilation*(K - 1) + output_padding + 1`` rows.

    Examples
    --------
    >>> conv_transpose2d(np.array([[[1.0, 2.0]]]), np.ones((1, 1, 2, 2)), stride=2)
    array([[[1., 1., 2., 2.],
            [1., 1., 2., 2.]]])
    """
    x, w = _grouped_image(input, groups), _grouped_weight(weight, groups)
    kernel, steps, gaps = weight.shape[2:], pair(stride, "stride"), pair(dilation, "dilation")
    pads = padding_pairs(padding, kernel, steps, gaps)
    extra = pair(output_padding, "output_padding", 0)
    H, W = input.shape[-2:]
    OH, OW = (
        (size - 1) * steps[i] - sum(pads[i]) + gaps[i] * (kernel[i] - 1) + extra[i] + 1
        for i, size in enumerate((H, W))
    )
    windows = _Windows((OH, OW), kernel, steps, gaps, pads, (H, W))
    result = _conv2d_transposed(windows, x, w)
    OC = groups * weight.shape[1]
    result = result.reshape(*input.shape[:-3], OC, OH, OW)
    return result if bias is None else result + np.reshape(bias, (OC, 1, 1))


def conv_transpose2d_backward(
    grad_output: Array,
    input: Array,
    weight: Array,
    stride: IntPair = 1,
    padding: Padding = 0,
    output_padding: IntPair = 0,
    groups: int = 1,
    dilation: IntPair = 1,
    *,
    output_mask: Sequence[bool] = (True, True, True),
) -> tuple[Float64 | None, Float64 | None, Float64 | None]:
    """Return the gradients by input, weight and bias of :func:`conv_transpose2d`.

    It is linear in each, and its input's gradient is a convolution.

    Examples
    --------
    >>> gradients = conv_transpose2d_backward(np.ones((1, 1, 3)), np.ones((1, 1, 2)),
    ...                                       np.array([[[[1.0, 2.0]]]]))
    >>> gradients[0], gradients[1]
    (array([[[3., 3.]]]), array([[[[2., 2.]]]]))
    """
    x, g = _grouped_image(input, groups), _grouped_image(grad_output, groups)
    w = _grouped_weight(weight, groups)
    kernel, steps, gaps = weight.shape[2:], pair(stride, "stride"), pair(dilation, "dilation")
    pads = padding_pairs(padding, kernel, steps, gaps)
    windows = _Windows(grad_output.shape[-2:], kernel, steps, gaps, pads, input.shape[-2:])
    padded, columns = windows.pad(g), _flat_planes(x)
    grad_input, grad_weight = np.zeros_like(columns), np.empty_like(w)
    for (i, j), tap in windows.taps():
        received = _flat_planes(padded[tap])
        grad_input += w[..., i, j] @ received
        grad_weight[..., i, j] = (columns @ received.swapaxes(-1, -2)).sum(axis=0)
    return (
        grad_input.reshape(input.shape) if output_mask[0] else None,
        grad_weight.reshape(weight.shape) if output_mask[1] else None,
        g.sum(axis=(0, 3, 4)).ravel() if output_mask[2] else None,
    )


def _conv2d_transposed(windows: _Windows, values: Float64, weight: Float64) -> Float64:
    """Send each window's value back along its taps: (N, G, O, OH, OW) to (N, G, C, H, W)."""
    N, groups = values.shape[:2]
    columns, C = _flat_planes(values), weight.shape[2]
    padded = windows.pad(np.zeros((N, groups, C, *windows.size)))
    for (i, j), tap in windows.taps():
        sent = weight[..., i, j].swapaxes(-1, -2) @ columns
        padded[tap] += sent.reshape(N, groups, C, *windows.output)
    return windows.crop(padded)


def _grouped_image(image: Array, groups: int) -> Float64:
    """Return (N, C, H, W) or (C, H, W) as (N, G, C / G, H, W)."""
    C, H, W = image.shape[-3:]
    return np.asarray(image, np.float64).reshape(-1, groups, C // groups, H, W)


def _grouped_weight(weight: Array, groups: int) -> Float64:
    """Return (OC, C / G, KH, KW) as (G, OC / G, C / G, KH, KW)."""
    return np.asarray(weight, np.float64).reshape(groups, -1, *weight.shape[1:])


def _flat_planes(planes: Float64) -> Float64:
    """Return (..., H, W) as (..., H * W)."""
    return planes.reshape(*planes.shape[:-2], planes.shape[-2] * planes.shape[-1])


# Pooling


def max_pool2d(
    input: Array,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    *,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Float64 | tuple[Float64, Int64]:
    """Keep the largest element of each window, and where in its plane it was found.

    The elements are visited in row order; one wins if it is larger than all before it or is NaN.
    So the first of equals wins, NaN beats everything and the last NaN gives the
    index.  Padding never wins: a window of nothing but ``-inf`` has its first
    element as index.  Dilation can step over a narrow image altogether; such a window is
    ``-inf`` and its index the nearest row and column of the image.

    Examples
    --------
    >>> max_pool2d(np.array([[[1.0, 5.0, 2.0], [3.0, 5.0, 4.0]]]), 2, 1, return_indices=True)
    (array([[[5., 5.]]]), array([[[1, 1]]]))
    """
    x = np.asarray(input, np.float64)
    H, W = x.shape[-2:]
    windows = _windows((H, W), kernel_size, stride, padding, dilation, ceil_mode)
    padded = windows.pad(x, fill=-np.inf)
    positions = windows.pad(np.arange(H * W).reshape(H, W), fill=-1)
    result = np.full((*x.shape[:-2], *windows.output), -np.inf)
    rows, columns = (windows.first_inside(axis) for axis in (0, 1))
    indices = np.broadcast_to(rows[:, None] * W + columns, result.shape)
    for _, tap in windows.taps():
        value, position = padded[tap], positions[tap]
        wins = (position >= 0) & ((value > result) | np.isnan(value))
        result = np.where(wins, value, result)
        indices = np.where(wins, position, indices)
    return (result, indices.astype(np.int64)) if return_indices else result


def max_pool2d_backward(grad_output: Array, indices: Array, input_shape: Sequence[int]) -> Float64:
    """Add each output's gradient to the element that its window chose.

    Examples
    --------
    >>> max_pool2d_backward(np.array([[[2.0, 3.0]]]), np.array([[[1, 1]]]), (1, 2, 2))
    array([[[0., 5.],
            [0., 0.]]])
    """
    grad_input = np.zeros(input_shape)
    np.add.at(*_scattered(grad_input, indices), grad_output)
    return grad_input


def max_unpool2d(
    input: Array,
    indices: Array,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    output_size: Sequence[int] | None = None,
) -> Float64:
    """Put each element back where :func:`max_pool2d` found it, zeros elsewhere.

    Without an `output_size` the plane has ``(H - 1)*stride - 2*padding + K`` rows.

    Examples
    --------
    >>> max_unpool2d(np.array([[[7.0]]]), np.array([[[3]]]), 2)
    array([[[0., 0.],
            [0., 7.]]])
    """
    if output_size is None:
        kernel, pads = pair(kernel_size, "kernel_size"), pair(padding, "padding", 0)
        steps = kernel if stride is None else pair(stride, "stride")
        output_size = [
            (size - 1) * steps[i] - 2 * pads[i] + kernel[i]
            for i, size in enumerate(input.shape[-2:])
        ]
    result = np.zeros((*input.shape[:-2], *output_size[-2:]))
    # In the order of the elements, whatever their memory's: of equal indices the last counts.
    target, where = _scattered(result, np.ascontiguousarray(indices))
    target[where] = np.ascontiguousarray(input)
    return result


def max_unpool2d_backward(grad_output: Array, indices: Array) -> Float64:
    """Take the gradient from where :func:`max_unpool2d` put each element.

    Examples
    --------
    >>> max_unpool2d_backward(np.array([[[1.0, 2.0], [3.0, 4.0]]]), np.array([[[3]]]))
    array([[[4.]]])
    """
    source, where = _scattered(np.asarray(grad_output, np.float64), indices)
    result: Float64 = source[where]
    return result


def _scattered(planes: Float64, indices: Array) -> tuple[Float64, tuple[Array, ...]]:
    """Return a view of the planes, each flattened, and the index tuple of its `indices`."""
    *outer, H, W = planes.shape
    axes = np.indices(indices.shape, sparse=True)[:-2]
    return planes.reshape(*outer, H * W), (*axes, indices)


def avg_pool2d(
    input: Array,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Float64:
    """Average each window.

    The sum is divided by `divisor_override` if given, else by the number of elements of the
    window within the input, or within the padded input if `count_include_pad`.

    Examples
    --------
    >>> avg_pool2d(np.ones((1, 2, 2)), 2, padding=1)
    array([[[0.25, 0.25],
            [0.25, 0.25]]])
    """
    x = np.asarray(input, np.float64)
    windows = _windows(x.shape[-2:], kernel_size, stride, padding, ceil_mode=ceil_mode)
    padded = windows.pad(x)
    sums = np.zeros((*x.shape[:-2], *windows.output))
    for _, tap in windows.taps():
        sums += padded[tap]
    return sums / _divisors(windows, count_include_pad, divisor_override)


def avg_pool2d_backward(
    grad_output: Array,
    input_shape: Sequence[int],
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Float64:
    """Give each element its share, ``grad_output / divisor``, of every window it is in.

    Examples
    --------
    >>> avg_pool2d_backward(np.array([[[4.0, 8.0]]]), (1, 2, 3), 2, 1)
    array([[[1., 3., 2.],
            [1., 3., 2.]]])
    """
    windows = _windows(input_shape[-2:], kernel_size, stride, padding, ceil_mode=ceil_mode)
    share = grad_output / _divisors(windows, count_include_pad, divisor_override)
    padded = windows.pad(np.zeros(input_shape))
    for _, tap in windows.taps():
        padded[tap] += share
    return windows.crop(padded)


def _divisors(windows: _Windows, count_include_pad: bool, override: int | None) -> Float64:
    """Return by what each window's sum is divided, (OH, OW)."""
    if override is not None:
        return np.full(windows.output, float(override))
    counts = []
    for axis, (before, after) in enumerate(windows.pads):
        first = np.arange(windows.output[axis]) * windows.stride[axis] - before
        covered = first[:, None] + np.arange(windows.kernel[axis])
        margins = (before, after) if count_include_pad else (0, 0)
        within = (covered >= -margins[0]) & (covered < windows.size[axis] + margins[1])
        counts.append(within.sum(axis=1, dtype=np.float64))
    return np.outer(*counts)


def lp_pool2d(
    input: Array,
    norm_type: float,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    ceil_mode: bool = False,
) -> Float64:
    """Take the p-norm of each window, ``(sum x**p) ** (1/p)``, with `p` the `norm_type`.

    The sum is the window's mean times ``KH * KW``, so a partial window of ceil mode counts as
    a whole one.  The powers are of `x` itself, not of its magnitude: a negative sum is NaN.
    An infinite norm is the largest magnitude, or for minus infinity the smallest.

    Examples
    --------
    >>> lp_pool2d(np.array([[[3.0, 4.0]]]), 2, (1, 2))
    array([[[5.]]])
    """
    if math.isinf(norm_type):
        sign = math.copysign(1, norm_type)
        signed = np.copysign(np.asarray(input, np.float64), sign)
        extremes = max_pool2d(signed, kernel_size, stride, ceil_mode=ceil_mode)
        return np.copysign(np.asarray(extremes, np.float64), 1)
    powers = np.asarray(input, np.float64) ** norm_type
    sums = avg_pool2d(powers, kernel_size, stride, ceil_mode=ceil_mode)
    sums *= math.prod(pair(kernel_size, "kernel_size"))
    with np.errstate(invalid="ignore"):
        return sums ** (1 / norm_type)


def lp_pool2d_backward(
    grad_output: Array,
    input: Array,
    output: Array,
    norm_type: float,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    ceil_mode: bool = False,
) -> Float64:
    """Return ``x**(p-1) * sum of grad_output * y**(1-p)`` over the windows that `x` is in.

    A window without a sum passes nothing on.  Windows of ceil mode count as in
    :func:`lp_pool2d`.  With an infinite `p` it is the extreme of the magnitudes that counts.

    Examples
    --------
    >>> x, y = np.array([[[3.0, 4.0]]]), np.array([[[5.0]]])
    >>> lp_pool2d_backward(np.array([[[1.0]]]), x, y, 2, (1, 2))
    array([[[0.6, 0.8]]])
    """
    x, y = np.asarray(input, np.float64), np.asarray(output, np.float64)
    if math.isinf(norm_type):
        magnitudes = np.copysign(x, norm_type)
        indices = max_pool2d(
            magnitudes, kernel_size, stride, ceil_mode=ceil_mode, return_indices=True
        )[1]
        extreme: Float64 = max_pool2d_backward(grad_output, indices, x.shape) * np.sign(x)
        return extreme
    slope = np.zeros_like(y)
    of_no_sum = 0 if norm_type > 0 else np.inf
    np.power(y, 1 - norm_type, out=slope, where=abs(y) != of_no_sum)
    slope *= grad_output * math.prod(pair(kernel_size, "kernel_size"))
    shares = avg_pool2d_backward(slope, x.shape, kernel_size, stride, ceil_mode=ceil_mode)
    result: Float64 = shares * x ** (norm_type - 1)
    return result


def adaptive_avg_pool2d(input: Array, output_size: int | Sequence[int | None] | None) -> Float64:
    """Average over OH x OW windows: window `i` of `OH` is rows ``[i*H // OH, ceil((i+1)*H / OH))``.

    None keeps the size of the input.

    Examples
    --------
    >>> adaptive_avg_pool2d(np.arange(6.0).reshape(1, 2, 3), (1, 2))
    array([[[2., 3.]]])
    """
    x = np.asarray(input, np.float64)
    H, W = x.shape[-2:]
    given = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    OH, OW = (size if n is None else n for n, size in zip(given, (H, W), strict=True))
    result = np.empty((*x.shape[:-2], OH, OW))
    for i, j in np.ndindex(OH, OW):
        result[..., i, j] = x[..., _part(i, H, OH), _part(j, W, OW)].mean(axis=(-2, -1))
    return result


def adaptive_avg_pool2d_backward(grad_output: Array, input_shape: Sequence[int]) -> Float64:
    """Give each element its share of every window it is in.

    Examples
    --------
    >>> adaptive_avg_pool2d_backward(np.array([[[4.0, 8.0]]]), (1, 2, 3))
    array([[[1., 3., 2.],
            [1., 3., 2.]]])
    """
    grad_input = np.zeros(input_shape)
    (H, W), (OH, OW) = grad_input.shape[-2:], grad_output.shape[-2:]
    for i, j in np.ndindex(OH, OW):
        window = grad_input[..., _part(i, H, OH), _part(j, W, OW)]
        area = window.shape[-2] * window.shape[-1]
        window += grad_output[..., i : i + 1, j : j + 1] / area
    return grad_input


def _part(i: int, size: int, parts: int) -> slice:
    """Return the i-th of the windows that divide an axis into parts."""
    return slice(i * size // parts, -(-(i + 1) * size // parts))


def max_pool_channels(input: Array, kernel_size: int, stride: int | None = None) -> Float64:
    """Keep the largest of `kernel_size` neighbouring channels; NaN beats everything.

    Examples
    --------
    >>> max_pool_channels(np.arange(4.0).reshape(4, 1, 1), 2).ravel()
    array([1., 3.])
    """
    result: Float64 = np.maximum.reduce(_channel_taps(input, kernel_size, stride))
    return result


def avg_pool_channels(input: Array, kernel_size: int, stride: int | None = None) -> Float64:
    """Average `kernel_size` neighbouring channels.

    Examples
    --------
    >>> avg_pool_channels(np.arange(4.0).reshape(4, 1, 1), 2).ravel()
    array([0.5, 2.5])
    """
    return np.asarray(sum(_channel_taps(input, kernel_size, stride)) / kernel_size)


def max_pool_channels_backward(
    grad_output: Array, input: Array, kernel_size: int, stride: int | None = None
) -> Float64:
    """Add each output's gradient to the first of the largest channels; the last NaN before them.

    Examples
    --------
    >>> x, grad = np.array([1.0, 4.0, 3.0]), np.array([5.0, 6.0])
    >>> max_pool_channels_backward(grad.reshape(2, 1, 1), x.reshape(3, 1, 1), 2, 1).ravel()
    array([ 0., 11.,  0.])
    """
    taps = np.stack(_channel_taps(input, kernel_size, stride))
    nan = np.isnan(taps)
    last = kernel_size - 1 - nan[::-1].argmax(axis=0)
    winner = np.where(nan.any(axis=0), last, taps.argmax(axis=0))
    grad_input = np.zeros(input.shape)
    for i, channels in enumerate(_channel_taps(grad_input, kernel_size, stride)):
        channels += np.where(winner == i, grad_output, 0)
    return grad_input


def avg_pool_channels_backward(
    grad_output: Array,
    input_shape: Sequence[int],
    kernel_size: int,
    stride: int | None = None,
) -> Float64:
    """Give each channel its share of every window it is in.

    Examples
    --------
    >>> avg_pool_channels_backward(np.array([4.0, 8.0]).reshape(2, 1, 1), (3, 1, 1), 2, 1).ravel()
    array([2., 6., 4.])
    """
    grad_input = np.zeros(input_shape)
    for channels in _channel_taps(grad_input, kernel_size, stride):
        channels += np.asarray(grad_output) / kernel_size
    return grad_input


def _channel_taps(input: Array, kernel_size: int, stride: int | None) -> list[Float64]:
    """Return, for each tap, its channel in every window of neighbouring channels."""
    x, step = np.asarray(input, np.float64), stride or kernel_size
    last = (x.shape[-3] - kernel_size) // step * step
    return [x[..., i : i + last + 1 : step, :, :] for i in range(kernel_size)]


# Rearrangement


def im2col(
    input: Array,
    kernel_size: IntPair,
    dilation: IntPair = 1,
    padding: Padding = 0,
    stride: IntPair = 1,
) -> Float64:
    """Write each window as a column of ``C * KH * KW`` elements.

    Examples
    --------
    >>> im2col(np.arange(6.0).reshape(1, 2, 3), 2)
    array([[0., 1.],
           [1., 2.],
           [3., 4.],
           [4., 5.]])
    """
    x = np.asarray(input, np.float64)
    windows = _windows(x.shape[-2:], kernel_size, stride, padding, dilation)
    padded = windows.pad(x)
    columns = np.stack([padded[tap] for _, tap in windows.taps()], axis=-3)
    rows = math.prod(columns.shape[-4:-2])
    return columns.reshape(*x.shape[:-3], rows, math.prod(windows.output))


def col2im(
    input: Array,
    output_size: IntPair,
    kernel_size: IntPair,
    dilation: IntPair = 1,
    padding: Padding = 0,
    stride: IntPair = 1,
) -> Float64:
    """Add the columns of :func:`im2col` back into an image: its transpose, not its inverse.

    Examples
    --------
    >>> col2im(np.ones((4, 2)), (2, 3), 2)
    array([[[1., 2., 1.],
            [1., 2., 1.]]])
    """
    size = pair(output_size, "output_size")
    windows = _windows(size, kernel_size, stride, padding, dilation)
    *outer, rows, _ = input.shape
    taps = math.prod(windows.kernel)
    columns = np.reshape(input, (*outer, rows // taps, taps, *windows.output))
    padded = windows.pad(np.zeros((*outer, rows // taps, *size)))
    for index, (_, tap) in enumerate(windows.taps()):
        padded[tap] += columns[..., index, :, :]
    return windows.crop(padded)


def flatten(input: Array, start_dim: int = 1) -> Float64:
    """Join all axes from `start_dim` on.

    Examples
    --------
    >>> flatten(np.zeros((2, 3, 4))).shape
    (2, 12)
    """
    x = np.asarray(input, np.float64)
    kept = x.shape[:start_dim]
    return x.reshape(*kept, math.prod(x.shape[start_dim:]))


# Linear maps and normalisation


def linear(input: Array, weight: Array, bias: Array | None = None) -> Float64:
    """Return ``input @ weight.T + bias`` along the last axis.

    Examples
    --------
    >>> linear(np.array([1.0, 2.0]), np.array([[3.0, 4.0]]), np.array([0.5]))
    array([11.5])
    """
    result: Float64 = np.asarray(input, np.float64) @ np.asarray(weight, np.float64).T
    return result if bias is None else result + bias


def linear_backward(
    grad_output: Array,
    input: Array,
    weight: Array,
    *,
    output_mask: Sequence[bool] = (True, True, True),
) -> tuple[Float64 | None, Float64 | None, Float64 | None]:
    """Return the gradients by input, weight and bias of :func:`linear`.

    Examples
    --------
    >>> linear_backward(np.array([2.0]), np.array([3.0, 4.0]), np.array([[5.0, 6.0]]))
    (array([10., 12.]), array([[6., 8.]]), array([2.]))
    """
    OC, C = weight.shape
    g, x = np.asarray(grad_output, np.float64), np.asarray(input, np.float64)
    rows = g.reshape(-1, OC)
    return (
        g @ np.asarray(weight, np.float64) if output_mask[0] else None,
        rows.T @ x.reshape(-1, C) if output_mask[1] else None,
        rows.sum(axis=0) if output_mask[2] else None,
    )


def batch_norm(
    input: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Float64:
    """Return ``(x - mean) / sqrt(var + eps) * weight + bias`` per channel, axis 1.

    In training the statistics are those of the batch (with the biased variance), and the
    running ones move towards them in place: ``running += momentum * (batch - running)``, there
    with the unbiased variance.

    Examples
    --------
    >>> mean, var = np.zeros(1), np.ones(1)
    >>> x = np.array([1.0, 3.0]).reshape(2, 1, 1, 1)
    >>> batch_norm(x, mean, var, training=True, eps=0.0).ravel(), mean, var
    (array([-1.,  1.]), array([0.2]), array([1.1]))
    """
    x = np.asarray(input, np.float64)
    per_channel = (-1, *(1,) * (x.ndim - 2))
    if training:
        axes = (0, *range(2, x.ndim))
        count = math.prod(x.shape[axis] for axis in axes)
        mean, var = x.mean(axis=axes), x.var(axis=axes)
        if running_mean is not None:
            running_mean += momentum * (mean - running_mean)
        if running_var is not None:
            running_var += momentum * (var * count / (count - 1) - running_var)
    elif running_mean is None or running_var is None:
        raise ValueError("running_mean and running_var are needed outside training")
    else:
        mean, var = running_mean.astype(np.float64), running_var.astype(np.float64)
    result: Float64 = (x - mean.reshape(per_channel)) / np.sqrt(var.reshape(per_channel) + eps)
    if weight is not None:
        result *= np.reshape(weight, per_channel)
    return result if bias is None else result + np.reshape(bias, per_channel)


def local_response_norm(
    input: Array, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Float64:
    """Return ``x / (k + alpha * mean(x**2)) ** beta``, the mean over `size` channels around each.

    Channel `c` sees ``c - size // 2`` to ``c + (size - 1) // 2``; missing ones count as zeros.

    Examples
    --------
    >>> local_response_norm(np.full((2, 1, 1), 2.0), 2, alpha=1.0, beta=1.0).ravel()
    array([0.66666667, 0.4       ])
    """
    x = np.asarray(input, np.float64)
    C = x.shape[-3]
    widths = [(0, 0)] * (x.ndim - 3) + [(size // 2, (size - 1) // 2), (0, 0), (0, 0)]
    squares = np.pad(x * x, widths)
    means = sum(squares[..., i : i + C, :, :] for i in range(size)) / size
    return np.asarray(x / (k + alpha * means) ** beta)


# Activations and loss


def relu(input: Array) -> Float64:
    """Return ``max(x, 0)``; NaN stays NaN.

    Examples
    --------
    >>> relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    return np.maximum(np.asarray(input, np.float64), 0)


def leaky_relu(input: Array, negative_slope: float = 0.01) -> Float64:
    """Return `x` where positive, elsewhere ``negative_slope * x``.

    Examples
    --------
    >>> leaky_relu(np.array([-1.0, 2.0]), 0.5)
    array([-0.5,  2. ])
    """
    x = np.asarray(input, np.float64)
    return np.where(x > 0, x, negative_slope * x)


def sigmoid(input: Array) -> Float64:
    """Return ``1 / (1 + exp(-x))``.

    Examples
    --------
    >>> sigmoid(np.array([-1000.0, 0.0]))
    array([0. , 0.5])
    """
    with np.errstate(over="ignore"):  # exp may overflow: 1 / inf is the right result
        return 1 / (1 + np.exp(-np.asarray(input, np.float64)))


def softmax(input: Array, axis: int = 1) -> Float64:
    """Return ``exp(x) / sum(exp(x))`` along `axis`.

    Examples
    --------
    >>> softmax(np.array([[1000.0, 1000.0]]))
    array([[0.5, 0.5]])
    """
    return np.exp(_log_softmax(np.asarray(input, np.float64), axis))


def cross_entropy(
    input: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Float64 | np.float64:
    """Return ``-sum_c weight[c] t[c] log softmax(x)[c]`` over the classes, axis 1 (0 if 1-D).

    A target of integers names the class with ``t = 1``, or is `ignore_index` and
    contributes nothing; one of floats is `t` itself.  Smoothing makes `t` into
    ``(1 - s) * t + s / C``.  The mean is weighted by ``weight[target]`` where targets are classes
    and plain otherwise.

    Examples
    --------
    >>> cross_entropy(np.zeros((2, 4)), np.array([0, 3])) / np.log(4.0)
    np.float64(1.0)
    """
    axis = min(1, input.ndim - 1)
    costs = -_log_softmax(np.asarray(input, np.float64), axis)
    C = costs.shape[axis]
    per_class = (C, *(1,) * (costs.ndim - axis - 1))
    scale = np.ones(per_class) if weight is None else np.reshape(weight, per_class)
    if np.issubdtype(target.dtype, np.floating):
        share, counted, total = target, True, costs.size / C
    else:
        named = np.expand_dims(target, axis)
        counted = named != ignore_index
        share = (named == np.arange(C).reshape(per_class)) & counted
        total = (share * scale).sum()
    share = ((1 - label_smoothing) * share + label_smoothing / C) * scale * counted
    # A class of no share costs nothing, however improbable: 0 * inf would be NaN.
    terms = np.multiply(share, costs, out=np.zeros_like(costs), where=share != 0)
    losses: Float64 = terms.sum(axis=axis)
    return _reduced(losses, reduction, total)


def mse_loss(input: Array, target: Array, *, reduction: str = "mean") -> Float64 | np.float64:
    """Return ``(input - target)**2``.

    Examples
    --------
    >>> mse_loss(np.array([1.0, 2.0]), np.array([1.0, 5.0]))
    np.float64(4.5)
    """
    difference = np.asarray(input, np.float64) - target
    return _reduced(difference**2, reduction, difference.size)


def binary_cross_entropy_with_logits(
    input: Array,
    target: Array,
    weight: Array | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Array | None = None,
) -> Float64 | np.float64:
    """Return ``-weight * (pos_weight t log(sigmoid(x)) + (1 - t) log(1 - sigmoid(x)))``.

    Examples
    --------
    >>> binary_cross_entropy_with_logits(np.zeros(3), np.array([0.0, 1.0, 1.0])) / np.log(2.0)
    np.float64(1.0)
    """
    x = np.asarray(input, np.float64)
    yes, no = np.logaddexp(0, -x), np.logaddexp(0, x)
    losses = (1.0 if pos_weight is None else pos_weight) * target * yes + (1 - target) * no
    return _reduced(losses * (1 if weight is None else weight), reduction, x.size)


def _reduced(losses: Float64, reduction: str, total: float) -> Float64 | np.float64:
    """Return the losses, their sum, or that by `total`; the mean over nothing is NaN."""
    if reduction == "none":
        return losses
    with np.errstate(invalid="ignore"):
        return np.float64(losses.sum() / (total if reduction == "mean" else 1))


def _log_softmax(x: Float64, axis: int) -> Float64:
    """Return ``x - log(sum(exp(x)))`` along `axis`, without overflow."""
    shifted = x - x.max(axis=axis, keepdims=True, initial=-math.inf)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))
