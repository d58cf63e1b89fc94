"""Pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from convkern import functional
from convkern.functional.max_pool import Windows, max_pool2d_gradient, max_windows
from convkern.geometry import IntPair, conv_output_size, integer, pair
from convkern.nn.base import Array, Layer, Shape
from convkern.nn.common import extents, map_shape, options, short
from convkern.nn.summary import Window


class _Pool2d(Layer):
    """What pooling with a sliding window has: the window and the shapes."""

    dilation = (1, 1)

    def __init__(
        self, kernel_size: IntPair, stride: IntPair | None, padding: IntPair, ceil_mode: bool
    ) -> None:
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.stride = self.kernel_size if stride is None else pair(stride, "stride")
        self.padding = pair(padding, "padding", 0)
        self.ceil_mode = bool(ceil_mode)

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape of the output for ``(C, H, W)`` or ``(N, C, H, W)``."""
        *planes, height, width = map_shape(input_shape)
        size = conv_output_size(
            (height, width),
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
        )
        return (*planes, *size)

    def _window(self, input_shape: Shape) -> Window:
        """Return the pooling window."""
        rows, columns = self.padding
        padding = ((rows, rows), (columns, columns))
        return Window(extents(self.kernel_size, self.dilation), self.stride, padding)

    def _arguments(self) -> list[str]:
        """Return the window and whatever differs from its default."""
        return options(
            self,
            kernel_size=None,
            stride=self.kernel_size,
            padding=(0, 0),
            dilation=(1, 1),
            ceil_mode=False,
        )


class Maxima(NamedTuple):
    """What the gradient of a `MaxPool2d` needs."""

    indices: Array
    shape: Shape  #: of the input
    #: The output, where the gradient is to be taken through the ReLU before the pooling too.
    rectified: Array | None = None


class MaxPool2d(_Pool2d):
    """The maximum of each window; see `convkern.max_pool2d`.

    Parameters
    ----------
    kernel_size : int or pair of int
        The window.
    stride : int or pair of int, optional
        Its step; the window's size by default.
    padding : int or pair of int
        Elements of minus infinity around the input, at most half the window.
    dilation : int or pair of int
        The step between the window's elements.
    ceil_mode : bool
        Round the output size up.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import MaxPool2d
    >>> MaxPool2d(2)(np.arange(16.0).reshape(1, 4, 4))
    array([[[ 5.,  7.],
            [13., 15.]]])
    """

    def __init__(
        self,
        kernel_size: IntPair,
        stride: IntPair | None = None,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        *,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.dilation = pair(dilation, "dilation")

    def forward(self, input: Array) -> Array:
        """Return the maxima, as `convkern.max_pool2d`."""
        output = functional.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
        )
        assert not isinstance(output, tuple)  # it is one with return_indices only
        return output

    def record(self, input: Array) -> tuple[Array, Maxima]:
        """Return the maxima, and where in an input of which shape they are."""
        output, indices = functional.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=True,
        )
        return output, Maxima(indices, np.shape(input))

    def windows(self, input_shape: Shape) -> Windows:
        """Return the windows on an input of a shape; raise where they do not fit."""
        windows = self.kernel_size, self.stride, self.padding, self.dilation
        return max_windows(input_shape, windows, self.ceil_mode)

    def gradient(self, grad_output: Array, kept: Maxima, input_gradient: bool = True) -> Array:
        """Return the gradient of the input, as `convkern.max_pool2d_backward`."""
        windows = self.windows(kept.shape)
        return max_pool2d_gradient(grad_output, kept.indices, kept.shape, windows, kept.rectified)


class AvgPool2d(_Pool2d):
    """The mean of each window; see `convkern.avg_pool2d`.

    Parameters
    ----------
    kernel_size : int or pair of int
        The window.
    stride : int or pair of int, optional
        Its step; the window's size by default.
    padding : int or pair of int
        Zeros around the input, at most half the window.
    ceil_mode : bool
        Round the output size up.
    count_include_pad : bool
        Count the zeros as elements of a window.
    divisor_override : int, optional
        By what sums are divided, whatever the number of elements.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import AvgPool2d
    >>> AvgPool2d(2)(np.arange(16.0).reshape(1, 4, 4))
    array([[[ 2.5,  4.5],
            [10.5, 12.5]]])
    """

    def __init__(
        self,
        kernel_size: IntPair,
        stride: IntPair | None = None,
        padding: IntPair = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.count_include_pad = bool(count_include_pad)
        self.divisor_override = (
            None if divisor_override is None else integer(divisor_override, "divisor_override", 1)
        )

    def forward(self, input: Array) -> Array:
        """Return the means, as `convkern.avg_pool2d`."""
        return functional.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )

    def record(self, input: Array) -> tuple[Array, Shape]:
        """Return the means and the input's shape."""
        return self.forward(input), np.shape(input)

    def gradient(self, grad_output: Array, kept: Shape, input_gradient: bool = True) -> Array:
        """Return the gradient of the input, as `convkern.avg_pool2d_backward`."""
        return functional.avg_pool2d_backward(
            grad_output,
            kept,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )

    def _arguments(self) -> list[str]:
        """Return the window and whatever differs from its default."""
        return super()._arguments() + options(self, count_include_pad=True, divisor_override=None)


class LPPool2d(_Pool2d):
    """The p-norm of each window; see `convkern.lp_pool2d`.

    Parameters
    ----------
    norm_type : float
        `p`.
    kernel_size : int or pair of int
        The window.
    stride : int or pair of int, optional
        Its step; the window's size by default.
    ceil_mode : bool
        Round the output size up.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import LPPool2d
    >>> LPPool2d(2, (1, 2))(np.array([[[3.0, 4.0]]]))
    array([[[5.]]])
    """

    def __init__(
        self,
        norm_type: float,
        kernel_size: IntPair,
        stride: IntPair | None = None,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, 0, ceil_mode)
        self.norm_type = float(norm_type)

    def forward(self, input: Array) -> Array:
        """Return the norms, as `convkern.lp_pool2d`."""
        return functional.lp_pool2d(
            input, self.norm_type, self.kernel_size, self.stride, self.ceil_mode
        )

    def record(self, input: Array) -> tuple[Array, tuple[Array, Array]]:
        """Return the norms, and them with the input."""
        output = self.forward(input)
        return output, (input, output)

    def gradient(
        self, grad_output: Array, kept: tuple[Array, Array], input_gradient: bool = True
    ) -> Array:
        """Return the gradient of the input."""
        return functional.lp_pool2d_backward(
            grad_output, *kept, self.norm_type, self.kernel_size, self.stride, self.ceil_mode
        )

    def _arguments(self) -> list[str]:
        """Return the norm, the window and whatever differs from its default."""
        return [f"{self.norm_type:g}", *super()._arguments()]


class AdaptiveAvgPool2d(Layer):
    """The mean of windows chosen so that the output has a given size.

    Parameters
    ----------
    output_size : int or pair of int or None
        ``(OH, OW)``; None keeps the input's size on that axis.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import AdaptiveAvgPool2d
    >>> AdaptiveAvgPool2d(1)(np.arange(8.0).reshape(2, 2, 2))
    array([[[1.5]],
    <BLANKLINE>
           [[5.5]]])
    """

    def __init__(self, output_size: int | Sequence[int | None] | None) -> None:
        sizes = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
        if len(sizes) != 2:
            raise ValueError(f"output_size must be an integer or a pair, got {output_size!r}")
        rows, columns = (
            None if size is None else integer(size, "output_size", 1) for size in sizes
        )
        self.output_size = rows, columns

    def forward(self, input: Array) -> Array:
        """Return the means, as `convkern.adaptive_avg_pool2d`."""
        return functional.adaptive_avg_pool2d(input, self.output_size)

    def record(self, input: Array) -> tuple[Array, Shape]:
        """Return the means and the input's shape."""
        return self.forward(input), np.shape(input)

    def gradient(self, grad_output: Array, kept: Shape, input_gradient: bool = True) -> Array:
        """Return the gradient of the input."""
        return functional.adaptive_avg_pool2d_backward(grad_output, kept)

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return `input_shape` with the last two axes replaced."""
        *planes, height, width = map_shape(input_shape)
        rows, columns = self.output_size
        return (*planes, height if rows is None else rows, width if columns is None else columns)

    def _window(self, input_shape: Shape) -> Window:
        """Return the largest of the windows, which may differ by an element, and its step."""
        parts = self.output_shape(input_shape)[-2:]
        (rows, down), (columns, right) = map(_longest_part, input_shape[-2:], parts)
        return Window((rows, columns), (down, right))

    def _arguments(self) -> list[str]:
        """Return the output size."""
        return [str(short(self.output_size))]


def _longest_part(size: int, parts: int) -> tuple[int, int]:
    """Return the longest of `parts` windows that cover `size` elements, and their longest step."""
    lengths = (-((i + 1) * size // -parts) - i * size // parts for i in range(parts))
    return max(lengths), -(size // -parts)
