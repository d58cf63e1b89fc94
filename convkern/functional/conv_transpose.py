"""Transposed convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from convkern.arrays import (
    as_array,
    as_contiguous,
    as_images,
    checked_mask,
    empty_images,
    in_layout,
)
from convkern.functional.conv import conv2d
from convkern.functional.conv_gradient import (
    Gradients,
    bias_gradient,
    input_gradient,
    weight_gradient,
)
from convkern.functional.window import Window, checked_bias, checked_gradient
from convkern.geometry import IntPair, Padding, pair, window_extent


class _Transposed(NamedTuple):
    """A transposed convolution: the window that it turns round, and the output's shape."""

    window: Window
    shape: tuple[int, ...]

    @classmethod
    def of(
        cls,
        input: np.ndarray,
        weight: np.ndarray,
        stride: IntPair,
        padding: Padding,
        output_padding: IntPair,
        groups: int,
        dilation: IntPair,
    ) -> _Transposed:
        if isinstance(padding, str):
            raise TypeError(f"padding must be integers or pairs of them, got {padding!r}")
        window = Window.of(weight, stride, padding, dilation, groups)
        extra = pair(output_padding, "output_padding", 0)
        channels, *size = input.shape[-3:]
        if channels != weight.shape[0]:
            raise ValueError(
                f"input must have {weight.shape[0]} channels for this weight, got {channels} in "
                f"shape {input.shape}"
            )
        if 0 in size:
            raise ValueError(f"input must have no empty spatial axis, got shape {input.shape}")
        for i in (0, 1):
            if extra[i] >= max(window.stride[i], window.dilation[i]):
                raise ValueError(
                    f"output_padding must be below the stride or the dilation, got {extra[i]} "
                    f"for stride {window.stride[i]} and dilation {window.dilation[i]}"
                )
        out_size = tuple(
            (size[i] - 1) * window.stride[i]
            - sum(window.padding[i])
            + window_extent(window.kernel[i], window.dilation[i])
            + extra[i]
            for i in (0, 1)
        )
        if min(out_size) < 1:
            raise ValueError(
                f"padding must leave an output, got {padding!r}: its size would be {out_size}"
            )
        return cls(window, (*input.shape[:-3], window.in_channels, *out_size))


def conv_transpose2d(
    input: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: IntPair = 1,
    padding: Padding = 0,
    output_padding: IntPair = 0,
    groups: int = 1,
    dilation: IntPair = 1,
) -> np.ndarray:
    r"""Apply a transposed convolution: the gradient of `conv2d` by its input, as a layer.

    .. math:: OH = (H - 1) s - 2 p + d (K - 1) + \text{output\_padding} + 1

    (Dumoulin and Visin, *A guide to convolution arithmetic for deep learning*,
    2016, relation 14).

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Images; any strides.
    weight : ndarray, (C, OC / groups, KH, KW), dtype of `input`
        Filters.
    bias : ndarray, (OC,), dtype of `input`, optional
        Added to every pixel of a channel.
    stride, dilation, groups
        As for `conv2d`.
    padding : int, pair of int or ((top, bottom), (left, right))
        Rows and columns cut off the output.
    output_padding : int or pair of int
        Rows and columns added at the bottom and the right; below stride or dilation.

    Returns
    -------
    ndarray, (N, OC, OH, OW) or (OC, OH, OW), dtype of `input`
        Channels-last in memory where `input` is.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted, or dtypes differ.
    ValueError
        If shapes do not fit each other or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import conv_transpose2d
    >>> conv_transpose2d(np.array([[[1.0, 2.0]]]), np.ones((1, 1, 1, 3)), stride=2)
    array([[[1., 1., 3., 2., 2.]]])
    """
    input = as_array(input, "input", (3, 4))
    weight = as_array(weight, "weight", (4,), like=input)
    window, shape = _Transposed.of(input, weight, stride, padding, output_padding, groups, dilation)
    bias = checked_bias(bias, weight, window.in_channels)
    x, channels_last = as_images(input)
    bias = None if bias is None else as_contiguous(bias)
    out = empty_images((x.shape[0], *shape[-3:]), x.dtype, channels_last)
    input_gradient(x, weight, bias, out, window, "auto", channels_last)
    return out[0] if input.ndim == 3 else out


def conv_transpose2d_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    weight: np.ndarray,
    stride: IntPair = 1,
    padding: Padding = 0,
    output_padding: IntPair = 0,
    groups: int = 1,
    dilation: IntPair = 1,
    *,
    output_mask: Sequence[bool] = (True, True, True),
) -> Gradients:
    """Return the gradients of `conv_transpose2d` by its input, weight and bias.

    The first is `conv2d` of `grad_output`; in the second, input and gradient
    have changed places.

    Parameters
    ----------
    grad_output : ndarray, (N, OC, OH, OW) or (OC, OH, OW), dtype of `input`
        Gradient of the output.
    input, weight, stride, padding, output_padding, groups, dilation
        As given to `conv_transpose2d`.
    output_mask : three bools
        Which of the three gradients are wanted.

    Returns
    -------
    grad_input, grad_weight, grad_bias : ndarray or None
        Of the shapes of input, weight and bias, (OC,); None where masked.
        `grad_input` has the memory layout of `input`.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted, or dtypes differ.
    ValueError
        If shapes do not fit each other or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import conv_transpose2d_backward
    >>> gradients = conv_transpose2d_backward(
    ...     np.ones((1, 1, 5)), np.array([[[1.0, 2.0]]]), np.ones((1, 1, 1, 3)), stride=2
    ... )
    >>> gradients[0], gradients[2]
    (array([[[3., 3.]]]), array([5.]))
    """
    input = as_array(input, "input", (3, 4))
    weight = as_array(weight, "weight", (4,), like=input)
    window, shape = _Transposed.of(input, weight, stride, padding, output_padding, groups, dilation)
    grad_output = checked_gradient(grad_output, input, shape)
    want_input, want_weight, want_bias = checked_mask(output_mask)
    x, channels_last = as_images(input)
    grad = in_layout(grad_output, channels_last)
    grad_input = grad_weight = grad_bias = None
    if want_input:
        convolved = conv2d(
            grad, weight, None, window.stride, window.padding, window.dilation, window.groups
        )
        # Where the output was padded, windows fit that start beyond the input.
        grad_input = in_layout(convolved[..., : x.shape[2], : x.shape[3]], channels_last)
        if input.ndim == 3:
            grad_input = grad_input[0]
    if want_weight:
        grad_weight, _ = weight_gradient(grad, x, weight, window, "auto", channels_last)
    if want_bias:
        grad_bias = bias_gradient(grad, channels_last)
    return grad_input, grad_weight, grad_bias
