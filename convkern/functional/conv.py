"""Convolution."""

from __future__ import annotations

from typing import Any

import numpy as np

from convkern import _kernels
from convkern.arrays import as_array, as_contiguous, as_images, check_out, empty_images, is_images
from convkern.functional.activation import ACTIVATIONS
from convkern.geometry import IntPair, Padding, integer, output_size, padding_pairs, pair
from convkern.threads import get_num_threads

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
