"""Convolution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from convkern import _kernels
from convkern.arrays import (
    as_array,
    as_contiguous,
    as_images,
    check_out,
    checked_mask,
    empty_images,
    in_layout,
    is_images,
    is_images_last,
    to_channels_last,
)
from convkern.functional import lanes
from convkern.functional.activation import ACTIVATIONS
from convkern.functional.algorithm import (
    ALGORITHMS,
    Problem,
    fills_rows,
    gradient_in_planes,
    gradient_of_few_filters,
    pays_for_lanes,
    prefers_planes,
    winograd_outputs,
)
from convkern.functional.blocks import Blocks
from convkern.geometry import (
    IntPair,
    Padding,
    PaddingPairs,
    integer,
    output_size,
    padding_pairs,
    pair,
    window_extent,
)
from convkern.precision import get_float32_precision
from convkern.threads import get_num_threads

#: Calls whose shapes and arguments are remembered with all that follows from them.
REMEMBERED = 4096
#: Images that each thread should have if one of them at a time is added up.
IMAGES_PER_THREAD = 4
#: Of outputs at a time, where the input passes through blocks.
BLOCK_BYTES = 8 << 20


def _one_of(value: Any, name: str, accepted: Any) -> Any:
    """Return `value` if it is among the accepted ones."""
    if isinstance(value, (str, type(None))) and value in accepted:
        return value
    choices = ", ".join(map(repr, accepted))
    raise ValueError(f"{name} must be one of {choices}, got {value!r}")


class Window(NamedTuple):
    """A convolution's window, every argument in its one full form."""

    in_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: PaddingPairs
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(
        cls, weight: np.ndarray, stride: IntPair, padding: Padding, dilation: IntPair, groups: int
    ) -> Window:
        """Check a convolution's arguments against its weight, (OC, C / groups, KH, KW)."""
        # Only plain integers: as a key 1.0 and True are the same as 1.
        if _kernels.are_plain((stride, padding, dilation, groups)):
            return _plain_window(weight.shape, stride, padding, dilation, groups)
        return cls.checked(weight.shape, stride, padding, dilation, groups)

    @classmethod
    def checked(
        cls,
        shape: tuple[int, ...],
        stride: IntPair,
        padding: Padding,
        dilation: IntPair,
        groups: int,
    ) -> Window:
        """Check a convolution's arguments against its weight's shape."""
        if 0 in shape:
            raise ValueError(f"weight must have no empty axis, got shape {shape}")
        out_channels, group_channels, *size = shape
        groups = integer(groups, "groups", 1)
        if out_channels % groups:
            raise ValueError(f"groups must divide the {out_channels} output channels, got {groups}")
        kernel = pair(size, "kernel size")
        steps, gaps = pair(stride, "stride"), pair(dilation, "dilation")
        pads = padding_pairs(padding, kernel, steps, gaps)
        return cls(group_channels * groups, kernel, steps, pads, gaps, groups)

    def output_size(self, input_shape: Sequence[int]) -> tuple[int, int]:
        """Check the input's shape, (..., C, H, W), and return (OH, OW)."""
        channels, *size = input_shape[-3:]
        if channels != self.in_channels:
            raise ValueError(
                f"input must have {self.in_channels} channels for this weight and "
                f"groups={self.groups}, got {channels} in shape {input_shape}"
            )
        if 0 in size:
            raise ValueError(f"input must have no empty spatial axis, got shape {input_shape}")
        axes = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        rows, columns = (output_size(*axis) for axis in axes)
        return rows, columns

    def axes(self) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        """Return (kernel, stride, leading padding, dilation) of rows and of columns."""
        rows, columns = (
            (self.kernel[i], self.stride[i], self.padding[i][0], self.dilation[i]) for i in (0, 1)
        )
        return rows, columns

    @property
    def is_product(self) -> bool:
        """Whether the convolution is a product of two matrices."""
        dense = self.kernel == self.stride == (1, 1) and self.groups == 1
        return dense and self.padding == ((0, 0), (0, 0))

    @property
    def skips(self) -> bool:
        """Whether the window is one pixel that steps over others of the image."""
        inside = self.kernel == (1, 1) and self.padding == ((0, 0), (0, 0))
        return inside and self.stride != (1, 1)

    def of_steps(self) -> Window:
        """Return the window that does the same on the pixels of every step alone."""
        return self._replace(stride=(1, 1))

    def blocks(self) -> Blocks | None:
        """Return the blocks of pixels that make the convolution a dense one, if they may help."""
        return Blocks.of(self.in_channels, *self.axes(), self.groups)

    def problem(
        self,
        dtype: np.dtype[Any],
        filters: int,
        images: int,
        out_size: tuple[int, ...],
        *,
        transposed: bool = False,
    ) -> Problem:
        """Describe the work on so many images with outputs of a size.

        With `transposed` the output is the gradient of the input.
        """
        rows, columns = out_size
        channels, out_channels = self.in_channels // self.groups, filters // self.groups
        if transposed:
            channels, out_channels = out_channels, channels
        return Problem(
            dtype,
            images,
            channels,
            out_channels,
            self.groups,
            self.kernel,
            self.stride,
            self.dilation,
            (rows, columns),
        )


@lru_cache(REMEMBERED)
def _plain_window(
    shape: tuple[int, ...], stride: Any, padding: Any, dilation: Any, groups: int
) -> Window:
    """Remember `Window.checked`."""
    return Window.checked(shape, stride, padding, dilation, groups)


def _checked_bias(bias: Any, weight: np.ndarray, channels: int) -> np.ndarray | None:
    """Return a bias for so many output channels, or None."""
    if bias is None:
        return None
    checked = as_array(bias, "bias", (1,), like=weight)
    if checked.shape != (channels,):
        raise ValueError(f"bias must have shape ({channels},), got {checked.shape}")
    return checked


#: Packed weights by what they are for, and their Winograd tile.  That is the pixels themselves,
#: None, or blocks of them from images that are channels-last or not.
Packed = dict[tuple[bool | None, int], _kernels.PackedConv]


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
        self.window = Window.of(weight, stride, padding, dilation, groups)
        bias = _checked_bias(bias, weight, weight.shape[0])
        self._weight = np.array(weight, order="C")
        self._bias = None if bias is None else bias.copy()
        self.activation = _one_of(activation, "activation", ACTIVATIONS)
        self.algorithm = _one_of(algorithm, "algorithm", ALGORITHMS)
        self._packed: Packed = {}

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the output for an image of shape (C, H, W)."""
        return (len(self._weight), *self.window.output_size(input_shape))

    def __call__(self, input: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Convolve `input`, as `conv2d` does."""
        input = as_array(input, "input", (3, 4), like=self._weight)
        return _convolve(
            input,
            self._weight,
            self._bias,
            self.window,
            self.activation,
            self.algorithm,
            out,
            self._packed,
        )[0]


#: Mean and biased variance of every channel, in float64.
Moments = tuple[np.ndarray, np.ndarray]


class _Route(NamedTuple):
    """What a convolution of given shapes takes: how it is computed."""

    #: Size of the output.
    size: tuple[int, int]
    axes: tuple[tuple[int, int, int, int], tuple[int, int, int, int]]
    #: Outputs of the Winograd tile, 0: directly.
    tile: int
    #: Of pixels, where these are what is convolved.
    blocks: Blocks | None
    #: Which kernel for contiguous NCHW: "rows" or "planes"; for channels-last pixels "turned", a
    #: gradient of a weight whose vectors hold channels; else "channels".
    direct: str
    #: Whether contiguous NCHW images go by way of images-last ones.
    by_lanes: bool = False


@lru_cache(REMEMBERED)
def _route(
    window: Window,
    shape: tuple[int, ...],
    filters: int,
    dtype: np.dtype[Any],
    algorithm: str,
    prepacked: bool,
    precision: str,
) -> _Route:
    """Check the input's shape, (..., C, H, W), and choose how to convolve."""
    size = window.output_size(shape)
    problem = window.problem(dtype, filters, shape[0] if len(shape) == 4 else 1, size)
    tile = winograd_outputs(problem, algorithm, precision, prepacked)
    blocks = None if tile or algorithm != "auto" else window.blocks()
    # The number of images may only have a say where it may change how a sum is rounded.
    free = algorithm == "auto" and precision != "highest" and not prepacked
    can = lanes.can_convolve(window.kernel, window.dilation, window.groups)
    by_lanes = not tile and free and can and pays_for_lanes(problem)
    if blocks is not None:
        dense = blocks.problem(problem)
        tile = winograd_outputs(dense, algorithm, precision, prepacked, instead=problem)
    direct = "channels"
    if not tile and fills_rows(problem):
        direct = "rows"
    elif not tile and prefers_planes(problem):
        direct = "planes"
    return _Route(size, window.axes(), tile, blocks if tile else None, direct, by_lanes)


def _convolve(
    input: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    window: Window,
    activation: str | None,
    algorithm: str,
    out: np.ndarray | None,
    packed: Packed | None = None,
    wants_moments: bool = False,
) -> tuple[np.ndarray, Moments | None]:
    """Convolve with a weight whose packed forms may be kept by their Winograd tile.

    Mean and variance of the output's channels come with it if wanted, and if they can be made
    meanwhile: there are images enough for all threads, channels-last.
    """
    filters, dtype, precision = len(weight), weight.dtype, get_float32_precision()
    prepacked = packed is not None
    route = _route(window, input.shape, filters, dtype, algorithm, prepacked, precision)
    if out is None and _in_lanes(input, window, algorithm):
        code = ACTIVATIONS[activation]
        return lanes.convolve(input, weight, bias, route.size, route.axes, code), None
    shape = (*input.shape[:-3], filters, *route.size)
    if out is not None:
        check_out(out, shape, (input, weight, bias))
    weight, bias = as_contiguous(weight), None if bias is None else as_contiguous(bias)
    x, channels_last = as_images(input)
    result = out if out is None or out.ndim == 4 else out[None]
    # The output's layout is that of the input, unless there is a place for it in the other one.
    layout = channels_last
    if result is not None and not is_images(result, layout) and is_images(result, not layout):
        layout = not layout
    direct = result is not None and is_images(result, layout)
    if result is None or not direct:
        result = empty_images((x.shape[0], *shape[-3:]), dtype, layout)
    made: _kernels.ImageMoments | None = None
    if result.size:
        code = ACTIVATIONS[activation]
        if window.skips and not layout:
            x, window, channels_last = _steps(x, window, route.size), window.of_steps(), False
            route = _route(window, x.shape, filters, dtype, algorithm, prepacked, precision)
        layouts = channels_last, layout
        if wants_moments and layout and len(result) >= IMAGES_PER_THREAD * get_num_threads():
            made = _kernels.ImageMoments(result)
        _compute(x, weight, bias, window.groups, route, code, result, layouts, packed, made)
    if input.ndim == 3:
        result = result[0]
    if out is not None:
        if not direct:
            out[...] = result
        result = out
    return result, None if made is None else made.result(get_num_threads())


def _in_lanes(x: np.ndarray, window: Window, algorithm: str) -> bool:
    """Tell whether images lie so, and the window is such, that they are convolved in the lanes."""
    return (
        algorithm != "winograd"
        and x.ndim == 4
        and is_images_last(x)
        and lanes.can_convolve(window.kernel, window.dilation, window.groups)
    )


def _compute(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    groups: int,
    route: _Route,
    activation: tuple[int, float],
    result: np.ndarray,
    layouts: tuple[bool, bool],
    packed: Packed | None,
    made: _kernels.ImageMoments | None,
) -> None:
    """Convolve as chosen; `layouts` tells whether x and result are channels-last."""
    kept = {} if packed is None else packed
    if route.by_lanes and layouts == (False, False):
        lanes.convolve_parts(x, weight, bias, route.axes, activation, result)
        return
    if route.blocks is not None:
        _compute_in_blocks(
            x, weight, bias, route.blocks, activation, result, layouts, route.tile, kept, made
        )
        return
    x_last, channels_last = layouts
    threads, tile = get_num_threads(), route.tile
    if x_last != channels_last:
        x = in_layout(x, channels_last)
    if not channels_last and route.direct == "rows":
        _kernels.depthwise_planes(x, weight, bias, result, *route.axes, *activation, threads)
    elif not channels_last and route.direct == "planes":
        _kernels.conv2d_planes(x, weight, bias, result, *route.axes, groups, *activation, threads)
    else:
        if (None, tile) not in kept:
            kept[None, tile] = _kernels.PackedConv(weight, bias, groups, threads, tile)
        packing = kept[None, tile]
        _kernels.conv2d(x, packing, result, *route.axes, *activation, channels_last, threads, made)


def _steps(x: np.ndarray, window: Window, out_size: tuple[int, ...]) -> np.ndarray:
    """Return the pixels that a window which skips some meets, contiguous NCHW."""
    x = in_layout(x, False)
    steps = empty_images((*x.shape[:2], *out_size), x.dtype, False)
    _kernels.take_steps(x, steps, window.stride, get_num_threads())
    return steps


def _compute_in_blocks(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    blocks: Blocks,
    activation: tuple[int, float],
    result: np.ndarray,
    layouts: tuple[bool, bool],
    tile: int,
    kept: Packed,
    made: _kernels.ImageMoments | None,
) -> None:
    """Convolve blocks of pixels, of a few images at a time, so that they stay in the cache."""
    threads = get_num_threads()
    if (layouts[0], tile) not in kept:
        filters = blocks.weight(weight, layouts[0])
        kept[layouts[0], tile] = _kernels.PackedConv(filters, bias, 1, threads, tile)
    packed = kept[layouts[0], tile]
    step = max(1, BLOCK_BYTES // (result.nbytes // len(x)))
    for n in range(0, len(x), step):
        part = result[n : n + step]
        y = part if layouts[1] else empty_images(part.shape, part.dtype, True)
        dense = blocks.images(x[n : n + step], result.shape[2:], layouts[0])
        if made is not None:
            made.begin(n)
        _kernels.conv2d(dense, packed, y, *blocks.axes(), *activation, True, threads, made)
        if not layouts[1]:
            _kernels.to_contiguous(y, part, threads)


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
    algorithm : {"auto", "direct", "winograd"}
        How to compute it; ``"auto"`` chooses by shape, within `set_float32_precision`.
    out : ndarray, optional
        Where to put the result; must have its shape and dtype and overlap
        neither itself nor an input.  A call that is interrupted may leave a part of it there.

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
    return conv2d_moments(
        input, weight, bias, stride, padding, dilation, groups, activation, algorithm, out, False
    )[0]


def conv2d_moments(
    input: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: IntPair,
    padding: Padding,
    dilation: IntPair,
    groups: int,
    activation: str | None,
    algorithm: str = "auto",
    out: np.ndarray | None = None,
    wants_moments: bool = True,
) -> tuple[np.ndarray, Moments | None]:
    """Return `conv2d`, and what a batch normalisation of it needs if that costs little more."""
    input = as_array(input, "input", (3, 4))
    weight = as_array(weight, "weight", (4,), like=input)
    window = Window.of(weight, stride, padding, dilation, groups)
    return _convolve(
        input,
        weight,
        _checked_bias(bias, weight, weight.shape[0]),
        window,
        _one_of(activation, "activation", ACTIVATIONS),
        _one_of(algorithm, "algorithm", ALGORITHMS),
        out,
        wants_moments=wants_moments,
    )


Gradients = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]


def conv2d_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    weight: np.ndarray,
    stride: IntPair = 1,
    padding: Padding = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    *,
    output_mask: Sequence[bool] = (True, True, True),
    algorithm: str = "auto",
) -> Gradients:
    r"""Return the gradients of `conv2d` by its input, weight and bias.

    .. math::

        \bar x_{n,c,h,w} = \sum_{k,r,s} \bar y_{n,k,i,j} w_{k,c,r,s}, \quad
        \bar w_{k,c,r,s} = \sum_{n,i,j} \bar y_{n,k,i,j} x_{n,c,h,w}, \quad
        \bar b_k = \sum_{n,i,j} \bar y_{n,k,i,j}

    with ``h = i * stride + r * dilation - padding`` and `w` likewise.

    Parameters
    ----------
    grad_output : ndarray, (N, OC, OH, OW) or (OC, OH, OW), dtype of `input`
        Gradient of the output.
    input, weight, stride, padding, dilation, groups
        As given to `conv2d`.
    output_mask : three bools
        Which of the three gradients are wanted; nothing is computed for the others.
    algorithm : {"auto", "direct", "winograd"}
        How to compute them, as for `conv2d`.

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
    >>> from convkern import conv2d_backward
    >>> x, w = np.arange(9.0).reshape(1, 3, 3), np.ones((1, 1, 2, 2))
    >>> grad_input, grad_weight, grad_bias = conv2d_backward(np.ones((1, 2, 2)), x, w)
    >>> grad_input[0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    >>> grad_weight[0, 0], grad_bias
    (array([[ 8., 12.],
           [20., 24.]]), array([4.]))
    """
    input = as_array(input, "input", (3, 4))
    weight = as_array(weight, "weight", (4,), like=input)
    window = Window.of(weight, stride, padding, dilation, groups)
    algorithm = _one_of(algorithm, "algorithm", ALGORITHMS)
    shape = (*input.shape[:-3], weight.shape[0], *window.output_size(input.shape))
    grad_output = _checked_gradient(grad_output, input, shape)
    want_input, want_weight, want_bias = wanted = checked_mask(output_mask)
    if _in_lanes(input, window, algorithm):
        return lanes.gradients(grad_output, input, weight, window.axes(), wanted)
    x, channels_last = as_images(input)
    grad = in_layout(grad_output, channels_last)
    grad_input = grad_weight = grad_bias = None
    if want_input:
        grad_input = empty_images(x.shape, x.dtype, channels_last)
        _input_gradient(grad, weight, None, grad_input, window, algorithm, channels_last)
        if input.ndim == 3:
            grad_input = grad_input[0]
    if want_weight:
        grad_weight = _weight_gradient(x, grad, weight, window, algorithm, channels_last)
    if want_bias:
        grad_bias = _bias_gradient(grad, channels_last)
    return grad_input, grad_weight, grad_bias


def _input_gradient(
    grad: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    out: np.ndarray,
    window: Window,
    algorithm: str,
    channels_last: bool,
) -> None:
    """Write the gradient of an input, plus a bias, into images of the gradient's layout."""
    threads, filters, precision = get_num_threads(), len(weight), get_float32_precision()
    if window.skips and not channels_last and bias is None:
        steps = empty_images((*out.shape[:2], *grad.shape[2:]), out.dtype, False)
        _input_gradient(grad, weight, None, steps, window.of_steps(), algorithm, False)
        if out.size:
            _kernels.spread_steps(steps, out, window.stride, threads)
        return
    route = _input_gradient_route(window, out.shape, filters, out.dtype, algorithm, precision)
    if not out.size:
        return
    weight, groups, tile = as_contiguous(weight), window.groups, route.tile
    if not channels_last and route.direct == "planes" and out.shape[2:] == grad.shape[2:]:
        # A product of two matrices, as the convolution itself is.
        turned, plain = as_contiguous(weight.transpose(1, 0, 2, 3)), ACTIVATIONS[None]
        _kernels.conv2d_planes(grad, turned, bias, out, *route.axes, 1, *plain, threads)
    else:
        _kernels.input_gradient(
            grad, weight, bias, out, *route.axes, groups, channels_last, threads, tile
        )


@lru_cache(REMEMBERED)
def _input_gradient_route(
    window: Window,
    shape: tuple[int, ...],
    filters: int,
    dtype: np.dtype[Any],
    algorithm: str,
    precision: str,
) -> _Route:
    """Choose how to compute the gradient of an input of this shape."""
    rows, columns = axes = window.axes()
    size = shape[2], shape[3]
    problem = window.problem(dtype, filters, shape[0], size, transposed=True)
    in_planes = window.kernel == (1, 1) and problem.dense and window.groups == 1
    direct = "planes" if in_planes and prefers_planes(problem) else "channels"
    if not problem.dense and algorithm == "auto":
        taps = _kernels.dense_taps(dtype, shape[1], *axes, window.groups)
        if all(taps):
            # Blocks of pixels are its outputs.
            down, across = -(-size[0] // rows[1]), -(-size[1] // columns[1])
            places = shape[1] * rows[1] * columns[1]
            problem = problem.made_dense(out_channels=places, kernel=taps, out_size=(down, across))
    return _Route(size, axes, winograd_outputs(problem, algorithm, precision), None, direct)


@lru_cache(REMEMBERED)
def _weight_gradient_route(
    window: Window,
    shape: tuple[int, ...],
    out_size: tuple[int, int],
    filters: int,
    dtype: np.dtype[Any],
    algorithm: str,
    precision: str,
) -> _Route:
    """Choose how to compute the gradient of a weight, for images of a shape."""
    problem = window.problem(dtype, filters, shape[0], out_size)
    tile = winograd_outputs(problem, algorithm, precision, gradient=True)
    blocks = None if tile or algorithm != "auto" else window.blocks()
    if blocks is not None:
        dense = blocks.problem(problem)
        tile = winograd_outputs(dense, algorithm, precision, gradient=True, instead=problem)
    direct = "channels"
    if not tile and window.kernel != (1, 1) and gradient_in_planes(problem):
        direct = "planes"
    elif window.is_product and gradient_of_few_filters(problem):
        direct = "turned"
    return _Route(out_size, window.axes(), tile, blocks if tile else None, direct)


def _weight_gradient(
    x: np.ndarray,
    grad: np.ndarray,
    weight: np.ndarray,
    window: Window,
    algorithm: str,
    channels_last: bool,
) -> np.ndarray:
    """Return the gradient of a weight, from images and gradients of one layout."""
    dtype, precision = weight.dtype, get_float32_precision()
    size, filters = grad.shape[2:], len(weight)
    route = _weight_gradient_route(window, x.shape, size, filters, dtype, algorithm, precision)
    if not len(x):
        return np.zeros_like(weight, order="C")
    threads, axes, groups, tile = get_num_threads(), route.axes, window.groups, route.tile
    result: np.ndarray
    if route.blocks is not None:
        blocks, grad = route.blocks, to_channels_last(grad)
        images = blocks.images(x, size, channels_last)
        result = np.empty((filters, images.shape[1], blocks.taps, blocks.taps), dtype)
        _kernels.weight_gradient(images, grad, result, *blocks.axes(), 1, True, threads, tile)
        return blocks.weight_gradient(result, weight.shape[1], channels_last)
    result = _kernels.empty(weight.shape, dtype)
    if not channels_last and route.direct == "planes":
        _kernels.planes_weight_gradient(x, grad, result, *axes, groups, threads)
    elif channels_last and route.direct == "turned":
        # Pixels and gradients change places, and so do channels and filters.
        turned = _kernels.empty((weight.shape[1], filters, 1, 1), dtype)
        _kernels.weight_gradient(grad, x, turned, *axes, groups, channels_last, threads, tile)
        result[...] = turned.transpose(1, 0, 2, 3)
    else:
        _kernels.weight_gradient(x, grad, result, *axes, groups, channels_last, threads, tile)
    return result


def _bias_gradient(grad: np.ndarray, channels_last: bool) -> np.ndarray:
    """Return the sum of every channel, added up in float64."""
    images, channels, rows, columns = grad.shape
    if not grad.size:
        return np.zeros(channels, grad.dtype)
    cut = images, channels, rows * columns
    if channels_last:
        grad, cut = (
            as_contiguous(grad.transpose(0, 2, 3, 1)),
            (images * rows * columns, channels, 1),
        )
    totals: np.ndarray = _kernels.totals(grad, cut, get_num_threads())
    return totals.astype(grad.dtype)


def _checked_gradient(grad: Any, like: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the gradient of an output of this shape."""
    checked = as_array(grad, "grad_output", (len(shape),), like=like)
    if checked.shape != shape:
        raise ValueError(f"grad_output must have the output's shape {shape}, got {checked.shape}")
    return checked


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
    bias = _checked_bias(bias, weight, window.in_channels)
    x, channels_last = as_images(input)
    bias = None if bias is None else as_contiguous(bias)
    out = empty_images((x.shape[0], *shape[-3:]), x.dtype, channels_last)
    _input_gradient(x, weight, bias, out, window, "auto", channels_last)
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
    grad_output = _checked_gradient(grad_output, input, shape)
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
        grad_weight = _weight_gradient(grad, x, weight, window, "auto", channels_last)
    if want_bias:
        grad_bias = _bias_gradient(grad, channels_last)
    return grad_input, grad_weight, grad_bias
