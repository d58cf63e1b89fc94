"""The public operators: check, geometry, allocate, one kernel call.

Names, argument order and semantics are those of ``torch.nn.functional``, on
NumPy arrays.  Logical order is NCHW; the memory layout is whatever the strides
say, and channels-last in gives channels-last out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convkern import _kernels
from convkern.arrays import (
    as_array,
    as_contiguous,
    as_images,
    check_out,
    empty_images,
    is_images,
    to_channels_last,
    to_contiguous,
)
from convkern.geometry import (
    IntPair,
    Padding,
    conv_output_size,
    integer,
    output_size,
    padding_pairs,
    pair,
    window_extent,
)
from convkern.threads import get_num_threads

__all__ = [
    "PackedConv2d",
    "adaptive_avg_pool2d",
    "conv2d",
    "conv_output_size",
    "flatten",
    "leaky_relu",
    "linear",
    "local_response_norm",
    "max_pool2d",
    "relu",
    "sigmoid",
    "softmax",
    "to_channels_last",
]

#: Activations that a convolution applies before it stores: kernel code and negative slope.
ACTIVATIONS = {None: (0, 0.0), "relu": (1, 0.0), "relu6": (2, 0.0), "leaky_relu": (3, 0.01)}
ALGORITHMS = ("auto", "direct")


def _one_of(value: Any, name: str, accepted: Any) -> Any:
    """Return `value` if it is among the accepted ones."""
    if isinstance(value, (str, type(None))) and value in accepted:
        return value
    choices = ", ".join(map(repr, accepted))
    raise ValueError(f"{name} must be one of {choices}, got {value!r}")


class PackedConv2d:
    """A convolution whose weights are packed for the kernels once, for many calls.

    Parameters
    ----------
    weight, bias, stride, padding, dilation, groups, activation, algorithm
        As for `conv2d`.  Later changes of `weight` and `bias` have no effect.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import PackedConv2d
    >>> blur = PackedConv2d(np.full((1, 1, 3, 3), 1 / 9, np.float32))
    >>> blur(np.ones((1, 1, 4, 4), np.float32)).round(3)
    array([[[[1., 1.],
             [1., 1.]]]], dtype=float32)
    """

    def __init__(
        self,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        stride: IntPair = 1,
        padding: Padding = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        *,
        activation: str | None = None,
        algorithm: str = "auto",
    ) -> None:
        weight = as_array(weight, "weight", (4,))
        out_channels, group_channels, *kernel = weight.shape
        if 0 in weight.shape:
            raise ValueError(f"weight must have no empty axis, got shape {weight.shape}")
        self.groups = integer(groups, "groups", 1)
        if out_channels % self.groups:
            raise ValueError(
                f"groups must divide the {out_channels} output channels, got {self.groups}"
            )
        if bias is not None:
            bias = as_contiguous(as_array(bias, "bias", (1,), like=weight))
            if bias.shape != (out_channels,):
                raise ValueError(f"bias must have shape ({out_channels},), got {bias.shape}")
        self.stride = pair(stride, "stride")
        self.dilation = pair(dilation, "dilation")
        self.kernel_size = pair(kernel, "kernel size")
        self.padding = padding_pairs(padding, self.kernel_size, self.stride, self.dilation)
        self.activation = _one_of(activation, "activation", ACTIVATIONS)
        _one_of(algorithm, "algorithm", ALGORITHMS)
        self.in_channels = group_channels * self.groups
        self.out_channels = out_channels
        self.dtype = weight.dtype
        self._packed = _kernels.PackedConv(
            as_contiguous(weight), bias, self.groups, get_num_threads()
        )

    def __call__(self, input: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Convolve `input`, as `conv2d` does."""
        return self._convolve(input, out, ())

    def _convolve(
        self, input: np.ndarray, out: np.ndarray | None, also_read: tuple[np.ndarray | None, ...]
    ) -> np.ndarray:
        """Convolve into `out`, which must not overlap the input or what else was read."""
        input = as_array(input, "input", (3, 4))
        if input.dtype != self.dtype:
            raise TypeError(f"input must have the weight's dtype {self.dtype}, got {input.dtype}")
        channels, *size = input.shape[-3:]
        if channels != self.in_channels:
            raise ValueError(
                f"input must have {self.in_channels} channels for this weight and "
                f"groups={self.groups}, got {channels} in shape {input.shape}"
            )
        if 0 in size:
            raise ValueError(f"input must have no empty spatial axis, got shape {input.shape}")
        axes = zip(size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        shape = (*input.shape[:-3], self.out_channels, *(output_size(*axis) for axis in axes))
        if out is not None:
            check_out(out, shape, (input, *also_read))
        x, channels_last = as_images(input)
        result = out if out is None or out.ndim == 4 else out[None]
        direct = result is not None and is_images(result, channels_last)
        if result is None or not direct:
            result = empty_images((x.shape[0], *shape[-3:]), self.dtype, channels_last)
        if result.size:
            tops_and_lefts = (before for before, _ in self.padding)
            rows, columns = zip(self.stride, tops_and_lefts, self.dilation, strict=True)
            code, slope = ACTIVATIONS[self.activation]
            _kernels.conv2d(
                x,
                self._packed,
                result,
                rows,
                columns,
                code,
                slope,
                channels_last,
                get_num_threads(),
            )
        if input.ndim == 3:
            result = result[0]
        if out is None:
            return result
        if not direct:
            out[...] = result
        return out


def conv2d(
    input: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: IntPair = 1,
    padding: Padding = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    algorithm: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray:
    r"""Convolve images with filters (cross-correlation, as in neural networks).

    .. math::

        y_{n,k,i,j} = b_k + \sum_{c,r,s} x_{n,c,\,i s_h + r d_h - p_h,\,j s_w + s d_w - p_w}
                      \; w_{k,c,r,s}

    with zeros outside the image; `k` and `c` run within one group.

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Images; any strides.
    weight : ndarray, (OC, C / groups, KH, KW), dtype of `input`
        Filters.
    bias : ndarray, (OC,), dtype of `input`, optional
        Added to every pixel of a channel.
    stride : int or pair of int
        Step of the window, in pixels.
    padding : int, pair of int, "same", "valid" or ((top, bottom), (left, right))
        Zeros around the image.  ``"same"`` needs stride 1; an odd element goes
        to the bottom and the right.
    dilation : int or pair of int
        Step between the taps of the window.
    groups : int
        Divides input and output channels into groups that do not mix.
    activation : {None, "relu", "relu6", "leaky_relu"}
        Applied to the result before it is stored (the slope of ``"leaky_relu"`` is 0.01).
    algorithm : {"auto", "direct"}
        How to compute it.
    out : ndarray, optional
        Where to put the result; must have its shape and dtype and overlap
        neither itself nor an input.

    Returns
    -------
    ndarray, (N, OC, OH, OW) or (OC, OH, OW), dtype of `input`
        Channels-last in memory where `input` is; `out` if that was given.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted, or dtypes differ.
    ValueError
        If shapes do not fit each other or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import conv2d
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    >>> w = np.array([[[[0, 1, 0], [1, -4, 1], [0, 1, 0]]]], np.float32)
    >>> conv2d(x, w, padding=1)[0, 0]
    array([[  5.,   3.,   2.,  -3.],
           [ -3.,   0.,   0.,  -8.],
           [ -7.,   0.,   0., -12.],
           [-27., -17., -18., -35.]], dtype=float32)
    """
    input = as_array(input, "input", (3, 4))
    weight = as_array(weight, "weight", (4,), like=input)
    packed = PackedConv2d(
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        activation=activation,
        algorithm=algorithm,
    )
    return packed._convolve(input, out, (weight, bias))


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
        Rows and columns of -inf around the image, at most half the window's extent.
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
    for pad, k, d in zip(pads, kernel, gaps, strict=True):
        if pad > window_extent(k, d) // 2:
            raise ValueError(
                f"padding must be at most half the window's extent ({window_extent(k, d)} for "
                f"kernel_size {k} and dilation {d}), got {pad}"
            )
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
    input = as_array(input, "input", tuple(range(1, 33)))
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
    batch = int(np.prod(input.shape[:-1], dtype=np.int64))
    out: np.ndarray = _kernels.empty((batch, outputs), input.dtype)
    _kernels.linear(
        as_contiguous(input.reshape(batch, inputs)),
        as_contiguous(weight.reshape(outputs, inputs)),
        bias,
        out,
        get_num_threads(),
    )
    return out.reshape(input.shape[:-1] + weight.shape[:-1])


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
            x[:, :, top:bottom, left:right].mean(axis=(2, 3), out=out[:, :, i, j])
    return out[0] if input.ndim == 3 else out


def local_response_norm(
    input: np.ndarray, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> np.ndarray:
    r"""Normalise each element by its neighbours along the channels.

    .. math:: y_c = x_c \Big/ \Big(k + \frac{\alpha}{n} \sum_{c'} x_{c'}^2\Big)^\beta

    over the `n` channels from ``c - n // 2`` to ``c + (n - 1) // 2`` that exist
    (Krizhevsky, Sutskever and Hinton, *ImageNet classification with deep
    convolutional neural networks*, 2012, section 3.3; the division by `n` is torch's).

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Images; any strides.
    size : int
        Channels in the window, `n`.
    alpha, beta, k : float
        Scale, exponent and offset.

    Returns
    -------
    ndarray, shape, dtype and layout of `input`

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import local_response_norm
    >>> local_response_norm(np.ones((2, 1, 1)), size=2, alpha=2.0, beta=1.0).ravel().round(3)
    array([0.5  , 0.333])
    """
    input = as_array(input, "input", (3, 4))
    size = integer(size, "size", 1)
    x, channels_last = as_images(input)
    pixels = as_contiguous(to_channels_last(x).transpose(0, 2, 3, 1))
    out: np.ndarray = _kernels.empty(pixels.shape, x.dtype)
    if out.size:
        _kernels.local_response_norm(
            pixels,
            out,
            x.shape[1],
            min(size, 2 * x.shape[1]),
            float(alpha) * min(size, 2 * x.shape[1]) / size,
            float(beta),
            float(k),
            get_num_threads(),
        )
    result = out.transpose(0, 3, 1, 2)
    if not channels_last:
        result = to_contiguous(result)
    return result[0] if input.ndim == 3 else result


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
    joined = int(np.prod(input.shape[start:], dtype=np.int64))
    return to_contiguous(input).reshape(*input.shape[:start], joined)
