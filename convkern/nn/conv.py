"""Convolutions, with the padding modes that an image itself provides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from convkern import functional
from convkern.arrays import as_array
from convkern.functional.algorithm import prefers_images_in_lanes
from convkern.functional.conv import conv2d_moments
from convkern.functional.lanes import can_convolve
from convkern.geometry import (
    IntPair,
    Padding,
    PaddingPairs,
    conv_output_size,
    integer,
    padding_pairs,
    pair,
    window_extent,
)
from convkern.nn.base import Array, Layer, Parameter, Shape
from convkern.nn.common import add_grads, check_channels, extents, initial_weights, options
from convkern.nn.summary import Window

#: What ``numpy.pad`` calls the padding modes.
_PADDING_MODES: dict[str, Literal["constant", "reflect", "edge", "wrap"]] = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
}


class _Convolution(Layer):
    """What both directions have: channels in groups, a window, a weight and a bias."""

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair,
        padding: Padding,
        dilation: IntPair,
        groups: int,
    ) -> None:
        self.in_channels = integer(in_channels, "in_channels", 1)
        self.out_channels = integer(out_channels, "out_channels", 1)
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.stride = pair(stride, "stride")
        self.dilation = pair(dilation, "dilation")
        self.padding = padding
        self._pads = padding_pairs(padding, self.kernel_size, self.stride, self.dilation)
        self.groups = integer(groups, "groups", 1)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"groups must divide in_channels and out_channels, got {groups} "
                f"for {in_channels} and {out_channels}"
            )

    def _bias(self) -> Array | None:
        """Return the values of the bias."""
        return None if self.bias is None else self.bias.data

    def prefers_images_last(self) -> bool:
        """Tell whether a batch of images had better lie with the images in the lanes."""
        return False


class Conv2d(_Convolution):
    """A 2-D convolution with learned weights.

    Weights and bias start uniform in ``±1 / sqrt(fan_in)`` with
    ``fan_in = in_channels / groups * KH * KW``, as in torch.

    Parameters
    ----------
    in_channels, out_channels : int
        ``C`` of the input and ``OC`` of the output.
    kernel_size, stride, dilation : int or pair of int
        The window, its step, and the step between its taps.
    padding : int, pair of int, "same", "valid" or ((top, bottom), (left, right))
        Elements added around the input.
    groups : int
        Parts into which the channels are divided, each convolved on its own.
    bias : bool
        Add a learned number to every output channel.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        What the added elements hold.
    rng : numpy.random.Generator, optional
        Where the initial weights come from; a fresh one by default.
    dtype : dtype
        float32 or float64.

    Attributes
    ----------
    weight : Parameter
        ``(OC, C / groups, KH, KW)``.
    bias : Parameter or None
        ``(OC,)``.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a value is out of range, or `groups` does not divide the channels.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Conv2d
    >>> layer = Conv2d(3, 96, 11, stride=4)
    >>> layer
    Conv2d(3, 96, kernel_size=11, stride=4)
    >>> layer(np.zeros((1, 3, 227, 227), np.float32)).shape
    (1, 96, 55, 55)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: Padding = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        rng: np.random.Generator | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        if padding_mode not in _PADDING_MODES:
            raise ValueError(
                f"padding_mode must be one of {', '.join(_PADDING_MODES)}, got {padding_mode!r}"
            )
        self.padding_mode = padding_mode
        self.weight, self.bias = initial_weights(
            (self.out_channels, self.in_channels // self.groups, *self.kernel_size),
            self.out_channels if bias else None,
            rng,
            dtype,
        )

    def forward(self, input: Array, *, activation: str | None = None) -> Array:
        """Return the convolution of `input`, with `activation` as in `convkern.conv2d`."""
        return self.record(input, activation=activation)[0]

    def record(self, input: Array, *, activation: str | None = None) -> tuple[Array, Array]:
        """Return the convolution and the input, padded if that takes a mode."""
        output, kept, _ = self.record_moments(input, activation=activation, wanted=False)
        return output, kept

    def record_moments(
        self, input: Array, *, activation: str | None = None, wanted: bool = True
    ) -> tuple[Array, Array, tuple[Array, Array] | None]:
        """Return what `record` does, and what a batch normalisation needs, if it is at hand."""
        if self.padding_mode != "zeros":
            input = _pad(input, self._pads, self.padding_mode)
        output, moments = conv2d_moments(
            input,
            self.weight.data,
            self._bias(),
            self.stride,
            self._zeros(),
            self.dilation,
            self.groups,
            activation,
            wants_moments=wanted,
        )
        return output, input, moments

    def gradient(
        self, grad_output: Array, kept: Array, input_gradient: bool = True
    ) -> Array | None:
        """Return the gradient of the input, as `convkern.conv2d_backward`."""
        grad_input, *grads = functional.conv2d_backward(
            grad_output,
            kept,
            self.weight.data,
            self.stride,
            self._zeros(),
            self.dilation,
            self.groups,
            output_mask=(input_gradient, True, self.bias is not None),
        )
        add_grads((self.weight, self.bias), tuple(grads))
        if grad_input is not None and self.padding_mode != "zeros":
            grad_input = _fold_padding(grad_input, self._pads, self.padding_mode)
        return grad_input

    def prefers_images_last(self) -> bool:
        """Tell whether a batch of images had better lie with the images in the lanes."""
        return (
            self.padding_mode == "zeros"
            and can_convolve(self.kernel_size, self.dilation, self.groups)
            and prefers_images_in_lanes(
                self.weight.data.dtype,
                self.in_channels,
                self.out_channels,
                self.kernel_size,
                self.stride,
            )
        )

    def _zeros(self) -> PaddingPairs:
        """Return the padding that the convolution itself does."""
        return self._pads if self.padding_mode == "zeros" else ((0, 0), (0, 0))

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape of the output for ``(C, H, W)`` or ``(N, C, H, W)``."""
        *batch, _, height, width = check_channels(input_shape, self.in_channels)
        size = conv_output_size(
            (height, width), self.kernel_size, self.stride, self._pads, self.dilation
        )
        return (*batch, self.out_channels, *size)

    def _multiply_adds(self, input_shape: Shape) -> int:
        """Return one per output element and weight of its channel."""
        return math.prod(self.output_shape(input_shape) + self.weight.data.shape[1:])

    def _window(self, input_shape: Shape) -> Window:
        """Return the kernel's window."""
        return Window(extents(self.kernel_size, self.dilation), self.stride, self._pads)

    def _arguments(self) -> list[str]:
        """Return the sizes and whatever differs from its default."""
        return [
            f"{self.in_channels}, {self.out_channels}",
            *options(self, kernel_size=None, stride=(1, 1), padding=0, dilation=(1, 1), groups=1),
            *(["bias=False"] if self.bias is None else []),
            *options(self, padding_mode="zeros"),
        ]


class ConvTranspose2d(_Convolution):
    """A transposed 2-D convolution: `Conv2d` backwards, from its output's shape to its input's.

    Weights and bias start uniform in ``±1 / sqrt(fan_in)`` with
    ``fan_in = out_channels / groups * KH * KW``, as in torch.

    Parameters
    ----------
    in_channels, out_channels : int
        ``C`` of the input and ``OC`` of the output.
    kernel_size, stride, dilation : int or pair of int
        The window, its step over the output, and the step between its taps.
    padding : int, pair of int or ((top, bottom), (left, right))
        Rows and columns cut off the output.
    output_padding : int or pair of int
        Rows and columns added at the bottom and the right; below stride or dilation.
    groups : int
        Parts into which the channels are divided, each convolved on its own.
    bias : bool
        Add a learned number to every output channel.
    padding_mode : {"zeros"}
        There is no other, as in torch.
    rng : numpy.random.Generator, optional
        Where the initial weights come from; a fresh one by default.
    dtype : dtype
        float32 or float64.

    Attributes
    ----------
    weight : Parameter
        ``(C, OC / groups, KH, KW)``.
    bias : Parameter or None
        ``(OC,)``.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a value is out of range, or `groups` does not divide the channels.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import ConvTranspose2d
    >>> ConvTranspose2d(8, 4, 2, stride=2)(np.zeros((1, 8, 5, 7), np.float32)).shape
    (1, 4, 10, 14)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: Padding = 0,
        output_padding: IntPair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: IntPair = 1,
        padding_mode: str = "zeros",
        *,
        rng: np.random.Generator | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        if isinstance(padding, str):
            raise TypeError(f"padding must be integers or pairs of them, got {padding!r}")
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros', got {padding_mode!r}")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        self.output_padding = pair(output_padding, "output_padding", 0)
        for extra, step, gap in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if extra >= max(step, gap):
                raise ValueError(
                    f"output_padding must be below the stride or the dilation, got {extra} "
                    f"for stride {step} and dilation {gap}"
                )
        self.weight, self.bias = initial_weights(
            (self.in_channels, self.out_channels // self.groups, *self.kernel_size),
            self.out_channels if bias else None,
            rng,
            dtype,
        )

    def forward(self, input: Array) -> Array:
        """Return the transposed convolution, as `convkern.conv_transpose2d`."""
        return functional.conv_transpose2d(
            input,
            self.weight.data,
            self._bias(),
            self.stride,
            self._pads,
            self.output_padding,
            self.groups,
            self.dilation,
        )

    def gradient(
        self, grad_output: Array, kept: Array, input_gradient: bool = True
    ) -> Array | None:
        """Return the gradient of the input, as `convkern.functional.conv_transpose2d_backward`."""
        grad_input, *grads = functional.conv_transpose2d_backward(
            grad_output,
            kept,
            self.weight.data,
            self.stride,
            self._pads,
            self.output_padding,
            self.groups,
            self.dilation,
            output_mask=(input_gradient, True, self.bias is not None),
        )
        add_grads((self.weight, self.bias), tuple(grads))
        return grad_input

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape of the output for ``(C, H, W)`` or ``(N, C, H, W)``."""
        *batch, _, height, width = check_channels(input_shape, self.in_channels)
        rows, columns = (
            (size - 1) * self.stride[i]
            - sum(self._pads[i])
            + window_extent(self.kernel_size[i], self.dilation[i])
            + self.output_padding[i]
            for i, size in enumerate((height, width))
        )
        if min(rows, columns) < 1:
            raise ValueError(f"the output would have size {(rows, columns)}")
        return (*batch, self.out_channels, rows, columns)

    def _multiply_adds(self, input_shape: Shape) -> int:
        """Return one per input element and weight of its channel."""
        return math.prod(input_shape + self.weight.data.shape[1:])

    def _window(self, input_shape: Shape) -> Window:
        """Return the window of the input that one element of the output sees, at most."""
        rows, columns = (
            1 + Fraction(gap * (taps - 1), step)
            for taps, step, gap in zip(self.kernel_size, self.stride, self.dilation, strict=True)
        )
        step_down, step_right = self.stride
        return Window((rows, columns), (Fraction(1, step_down), Fraction(1, step_right)))

    def _arguments(self) -> list[str]:
        """Return the sizes and whatever differs from its default."""
        return [
            f"{self.in_channels}, {self.out_channels}",
            *options(
                self,
                kernel_size=None,
                stride=(1, 1),
                padding=0,
                output_padding=(0, 0),
                groups=1,
            ),
            *(["bias=False"] if self.bias is None else []),
            *options(self, dilation=(1, 1)),
        ]


def _pad(input: Array, padding: PaddingPairs, mode: str) -> Array:
    """Add elements that the image itself provides."""
    input = as_array(input, "input", (3, 4))
    for size, sides, axis in zip(input.shape[-2:], padding, ("height", "width"), strict=True):
        # Reflection cannot pass the far edge, nor a circle its own start, as in torch.
        most = {"reflect": size - 1, "circular": size}.get(mode, max(sides))
        if max(sides) > most:
            raise ValueError(
                f"padding with mode {mode!r} must be at most {most} for a {axis} of {size}, "
                f"got {sides}"
            )
    widths = [(0, 0)] * (input.ndim - 2) + list(padding)
    # Axes in the order of memory, as np.pad returns a C-contiguous array: the layout stays.
    axes = sorted(range(input.ndim), key=lambda axis: -abs(input.strides[axis]))
    padded = np.pad(input.transpose(axes), [widths[i] for i in axes], _PADDING_MODES[mode])
    return padded.transpose(np.argsort(axes))


def _fold_padding(gradient: Array, padding: PaddingPairs, mode: str) -> Array:
    """Add the gradient of what `_pad` added to where it came from: the transpose of `_pad`."""
    for axis, (before, after) in zip((-2, -1), padding, strict=True):
        size = gradient.shape[axis] - before - after
        origins = np.pad(np.arange(size), (before, after), _PADDING_MODES[mode])
        lines = np.moveaxis(gradient, axis, 0)
        inside = lines[before : before + size]
        for line in (*range(before), *range(before + size, before + size + after)):
            inside[origins[line]] += lines[line]
        gradient = np.moveaxis(inside, 0, axis)
    return gradient
