"""The layers: each holds its arguments and parameters and calls one function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from convkern import functional
from convkern.arrays import as_array
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
from convkern.nn.summary import Window

#: What ``numpy.pad`` calls the padding modes.
_PADDING_MODES: dict[str, Literal["constant", "reflect", "edge", "wrap"]] = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
}


class Conv2d(Layer):
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
        if padding_mode not in _PADDING_MODES:
            raise ValueError(
                f"padding_mode must be one of {', '.join(_PADDING_MODES)}, got {padding_mode!r}"
            )
        self.padding_mode = padding_mode
        self.weight, self.bias = _weight_and_bias(
            (self.out_channels, self.in_channels // self.groups, *self.kernel_size),
            bias,
            rng,
            dtype,
        )

    def forward(self, input: Array, *, activation: str | None = None) -> Array:
        """Return the convolution of `input`, with `activation` as in `convkern.conv2d`."""
        padding = self._pads
        if self.padding_mode != "zeros":
            input, padding = _pad(input, padding, self.padding_mode), ((0, 0), (0, 0))
        return functional.conv2d(
            input,
            self.weight.data,
            None if self.bias is None else self.bias.data,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            activation=activation,
        )

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape of the output for ``(C, H, W)`` or ``(N, C, H, W)``."""
        *batch, channels, height, width = _map_shape(input_shape)
        if channels != self.in_channels:
            raise ValueError(f"expected {self.in_channels} channels, got shape {input_shape}")
        size = conv_output_size(
            (height, width), self.kernel_size, self.stride, self._pads, self.dilation
        )
        return (*batch, self.out_channels, *size)

    def _multiply_adds(self, input_shape: Shape) -> int:
        """Return one per output element and weight of its channel."""
        return math.prod(self.output_shape(input_shape) + self.weight.data.shape[1:])

    def _window(self, input_shape: Shape) -> Window:
        """Return the kernel's window."""
        return Window(_extents(self.kernel_size, self.dilation), self.stride, self._pads)

    def _arguments(self) -> list[str]:
        """Return the sizes and whatever differs from its default."""
        return [
            f"{self.in_channels}, {self.out_channels}",
            *_options(self, kernel_size=None, stride=(1, 1), padding=0, dilation=(1, 1), groups=1),
            *(["bias=False"] if self.bias is None else []),
            *_options(self, padding_mode="zeros"),
        ]


class Linear(Layer):
    """A linear map of the last axis, ``input @ weight.T + bias``, with learned weights.

    Weights and bias start uniform in ``±1 / sqrt(in_features)``, as in torch.

    Parameters
    ----------
    in_features, out_features : int
        Length of the last axis of the input and of the output.
    bias : bool
        Add a learned number to every output feature.
    rng : numpy.random.Generator, optional
        Where the initial weights come from; a fresh one by default.
    dtype : dtype
        float32 or float64.

    Attributes
    ----------
    weight : Parameter
        ``(out_features, in_features)``.
    bias : Parameter or None
        ``(out_features,)``.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Linear
    >>> Linear(784, 10)(np.zeros((2, 784), np.float32)).shape
    (2, 10)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rng: np.random.Generator | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.in_features = integer(in_features, "in_features", 1)
        self.out_features = integer(out_features, "out_features", 1)
        self.weight, self.bias = _weight_and_bias(
            (self.out_features, self.in_features), bias, rng, dtype
        )

    def forward(self, input: Array) -> Array:
        """Return the linear map of `input`, as `convkern.linear`."""
        bias = None if self.bias is None else self.bias.data
        return functional.linear(input, self.weight.data, bias)

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return `input_shape` with its last axis replaced."""
        if not input_shape or input_shape[-1] != self.in_features:
            raise ValueError(
                f"expected a last axis of {self.in_features} features, got shape {input_shape}"
            )
        return (*input_shape[:-1], self.out_features)

    def _multiply_adds(self, input_shape: Shape) -> int:
        """Return one per output element and input feature."""
        return math.prod(self.output_shape(input_shape)) * self.in_features

    def _arguments(self) -> list[str]:
        """Return the sizes, and the bias where there is none."""
        sizes = f"{self.in_features}, {self.out_features}"
        return [sizes, "bias=False"] if self.bias is None else [sizes]


class MaxPool2d(Layer):
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
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.stride = self.kernel_size if stride is None else pair(stride, "stride")
        self.padding = pair(padding, "padding", 0)
        self.dilation = pair(dilation, "dilation")
        self.ceil_mode = ceil_mode

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

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape of the output for ``(C, H, W)`` or ``(N, C, H, W)``."""
        *planes, height, width = _map_shape(input_shape)
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
        return Window(_extents(self.kernel_size, self.dilation), self.stride, padding)

    def _arguments(self) -> list[str]:
        """Return the window and whatever differs from its default."""
        return _options(
            self,
            kernel_size=None,
            stride=self.kernel_size,
            padding=(0, 0),
            dilation=(1, 1),
            ceil_mode=False,
        )


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

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return `input_shape` with the last two axes replaced."""
        *planes, height, width = _map_shape(input_shape)
        rows, columns = self.output_size
        return (*planes, height if rows is None else rows, width if columns is None else columns)

    def _window(self, input_shape: Shape) -> Window:
        """Return the largest of the windows, which may differ by an element, and its step."""
        parts = self.output_shape(input_shape)[-2:]
        (rows, down), (columns, right) = map(_longest_part, input_shape[-2:], parts)
        return Window((rows, columns), (down, right))

    def _arguments(self) -> list[str]:
        """Return the output size."""
        return [str(_short(self.output_size))]


class LocalResponseNorm(Layer):
    """Each element divided by a power of the mean square of `size` neighbouring channels.

    Parameters
    ----------
    size : int
        How many channels count.
    alpha, beta, k : float
        As in `convkern.local_response_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import LocalResponseNorm
    >>> LocalResponseNorm(1, alpha=1.0, beta=1.0)(np.full((1, 1, 1, 1), 3.0))
    array([[[[0.3]]]])
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        self.size = integer(size, "size", 1)
        self.alpha, self.beta, self.k = float(alpha), float(beta), float(k)

    def forward(self, input: Array) -> Array:
        """Return the normalised input, as `convkern.local_response_norm`."""
        return functional.local_response_norm(input, self.size, self.alpha, self.beta, self.k)

    def _arguments(self) -> list[str]:
        """Return the size and whatever differs from its default."""
        return [str(self.size), *_options(self, alpha=1e-4, beta=0.75, k=1.0)]


class ReLU(Layer):
    """The larger of each element and zero.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import ReLU
    >>> ReLU()(np.array([-1.0, 2.0]))
    array([0., 2.])
    """

    def forward(self, input: Array) -> Array:
        """Return the positive part, as `convkern.functional.relu`."""
        return functional.relu(input)


class Sigmoid(Layer):
    """``1 / (1 + exp(-x))`` of each element.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Sigmoid
    >>> Sigmoid()(np.zeros(2))
    array([0.5, 0.5])
    """

    def forward(self, input: Array) -> Array:
        """Return the sigmoid, as `convkern.functional.sigmoid`."""
        return functional.sigmoid(input)


class Softmax(Layer):
    """Exponentials along one axis, divided by their sum.

    Parameters
    ----------
    dim : int
        The axis; the classes of ``(N, classes)`` by default.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Softmax
    >>> Softmax()(np.zeros((1, 4)))
    array([[0.25, 0.25, 0.25, 0.25]])
    """

    def __init__(self, dim: int = 1) -> None:
        self.dim = dim

    def forward(self, input: Array) -> Array:
        """Return the shares, as `convkern.functional.softmax`."""
        return functional.softmax(input, self.dim)

    def _arguments(self) -> list[str]:
        """Return the axis if it is not the default."""
        return _options(self, dim=1)


class Dropout(Layer):
    """In training, zeros with probability `p` and everything else times ``1 / (1 - p)``.

    The scaling keeps the mean, so evaluation passes its input through (Srivastava
    et al., *Dropout*, 2014, in its inverted form).

    Parameters
    ----------
    p : float
        The probability of a zero, 0 to 1.
    rng : numpy.random.Generator, optional
        Where the choices come from; a fresh one by default.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Dropout
    >>> Dropout(0.5, rng=np.random.default_rng(0))(np.ones(6, np.float32))
    array([2., 2., 2., 0., 0., 0.], dtype=float32)
    """

    def __init__(self, p: float = 0.5, *, rng: np.random.Generator | None = None) -> None:
        self.p = float(p)
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must be between 0 and 1, got {p}")
        self._rng = _generator(rng)

    def forward(self, input: Array) -> Array:
        """Return `input` with a random part zeroed, or in evaluation `input` itself."""
        input = as_array(input, "input", tuple(range(33)))
        if not self.training or self.p == 0:
            return input
        kept = self._rng.random(input.shape, dtype=np.float32) >= self.p
        # The output is allocated first: a product would choose the layout of `kept`.
        output = np.empty_like(input)
        np.multiply(input, kept, out=output)
        output *= 1 / (1 - self.p) if self.p < 1 else 0
        return output

    def _arguments(self) -> list[str]:
        """Return the probability."""
        return [f"p={self.p}"]


class Flatten(Layer):
    """All axes from `start_dim` on made into one.

    Parameters
    ----------
    start_dim : int
        The first of the joined axes.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Flatten
    >>> Flatten()(np.zeros((2, 256, 6, 6))).shape
    (2, 9216)
    """

    def __init__(self, start_dim: int = 1) -> None:
        self.start_dim = start_dim

    def forward(self, input: Array) -> Array:
        """Return `input` with fewer axes, as `convkern.functional.flatten`."""
        return functional.flatten(input, self.start_dim)

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return `input_shape` with fewer axes."""
        start, ndim = self.start_dim, len(input_shape)
        if not -ndim <= start < ndim:
            raise ValueError(f"start_dim must be from {-ndim} to {ndim - 1}, got {start}")
        return (*input_shape[:start], math.prod(input_shape[start:]))

    def _arguments(self) -> list[str]:
        """Return the first axis if it is not the default."""
        return _options(self, start_dim=1)


def _generator(rng: Any) -> np.random.Generator:
    """Return `rng`, or a fresh Generator for None."""
    if rng is None:
        return np.random.default_rng()
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator or None, got {type(rng).__name__}")
    return rng


def _weight_and_bias(
    shape: Shape, bias: bool, rng: np.random.Generator | None, dtype: npt.DTypeLike
) -> tuple[Parameter, Parameter | None]:
    """Draw a weight of `shape` and a bias for its first axis (He et al. 2015 with a = sqrt(5))."""
    generator = _generator(rng)
    kind: np.dtype[Any] = np.dtype(dtype)
    if kind not in (np.float32, np.float64):
        raise TypeError(f"dtype must be float32 or float64, got {kind}")
    bound = 1 / math.sqrt(math.prod(shape[1:]))

    def uniform(shape: Shape) -> Parameter:
        # In place, as the largest layers have tens of millions of weights.
        data = generator.random(shape, dtype=kind)
        data -= 0.5
        data *= 2 * bound
        return Parameter(data)

    return uniform(shape), uniform(shape[:1]) if bias else None


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


def _map_shape(shape: Sequence[int]) -> Shape:
    """Return the shape of one image or a batch of them as a tuple."""
    if len(shape) not in (3, 4):
        raise ValueError(f"expected (N, C, H, W) or (C, H, W), got shape {tuple(shape)}")
    return tuple(shape)


def _extents(kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    """Return how many rows and columns a window spans."""
    return window_extent(kernel[0], dilation[0]), window_extent(kernel[1], dilation[1])


def _longest_part(size: int, parts: int) -> tuple[int, int]:
    """Return the longest of `parts` windows that cover `size` elements, and their longest step."""
    lengths = (-((i + 1) * size // -parts) - i * size // parts for i in range(parts))
    return max(lengths), -(size // -parts)


def _options(layer: Layer, **defaults: object) -> list[str]:
    """Write those constructor options of `layer` that differ from their defaults."""
    return [
        f"{name}={_short(getattr(layer, name))!r}"
        for name, default in defaults.items()
        if getattr(layer, name) != default
    ]


def _short(value: Any) -> Any:
    """Return a pair of equal integers as one integer."""
    is_square = isinstance(value, tuple) and isinstance(value[0], int) and len(set(value)) == 1
    return value[0] if is_square else value
