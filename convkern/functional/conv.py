"""Convolution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from convkern import _kernels
from convkern.arrays import (
    as_array,
    as_contiguous,
    as_images,
    check_out,
    empty_images,
    in_layout,
    is_images,
    memory_order,
    to_contiguous,
)
from convkern.functional import lanes
from convkern.functional.activation import ACTIVATIONS
from convkern.functional.algorithm import (
    ALGORITHMS,
    fills_rows,
    is_square,
    pays_for_lanes,
    prefers_planes,
    winograd_outputs,
)
from convkern.functional.blocks import Blocks
from convkern.functional.window import (
    REMEMBERED,
    Route,
    Window,
    checked_bias,
    in_lanes,
    met_pixels,
    one_of,
)
from convkern.geometry import IntPair, Padding
from convkern.precision import get_float32_precision
from convkern.threads import get_num_threads

#: Images that each thread should have if one of them at a time is added up.
IMAGES_PER_THREAD = 4
#: Of outputs at a time, where the input passes through blocks.
BLOCK_BYTES = 8 << 20

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
        bias = checked_bias(bias, weight, weight.shape[0])
        self._weight = np.array(weight, order="C")
        self._bias = None if bias is None else bias.copy()
        self.activation = one_of(activation, "activation", ACTIVATIONS)
        self.algorithm = one_of(algorithm, "algorithm", ALGORITHMS)
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


@lru_cache(REMEMBERED)
def _route(
    window: Window,
    shape: tuple[int, ...],
    filters: int,
    dtype: np.dtype[Any],
    algorithm: str,
    prepacked: bool,
    precision: str,
) -> Route:
    """Check the input's shape, (..., C, H, W), and choose how to convolve."""
    size = window.output_size(shape)
    problem = window.problem(dtype, filters, shape[0] if len(shape) == 4 else 1, size)
    tile = winograd_outputs(problem, algorithm, precision, prepacked, strides=True)
    blocks = None if tile or algorithm != "auto" else window.blocks()
    # The number of images may only have a say where it may change how a sum is rounded.
    free = algorithm == "auto" and precision != "highest"
    can = lanes.can_convolve(window.kernel, window.dilation, window.groups) and not prepacked
    linear = free and window.covers(shape[-2:])
    by_lanes = not tile and not linear and free and can and pays_for_lanes(problem)
    if blocks is not None:
        dense = blocks.problem(problem)
        tile = winograd_outputs(dense, algorithm, precision, prepacked, instead=problem)
    direct = "channels"
    if not tile and fills_rows(problem, window.padding[1]):
        direct = "squares" if is_square(problem) else "rows"
    elif not tile and prefers_planes(problem):
        direct = "planes"
    if linear:
        direct, tile = "linear", 0
    return Route(size, window.axes(), tile, blocks if tile else None, direct, by_lanes)


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
    if out is None and in_lanes(input, window, algorithm):
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
            x, window, channels_last = met_pixels(x, window, route.size), window.of_steps(), False
            route = _route(window, x.shape, filters, dtype, algorithm, prepacked, precision)
        layouts = channels_last, layout
        if (
            wants_moments
            # Where one channel or pixel leaves the layout open, `moments` adds up otherwise.
            and memory_order(result) == (0, 2, 3, 1)
            and len(result) >= IMAGES_PER_THREAD * get_num_threads()
        ):
            made = _kernels.ImageMoments(result)
        _compute(x, weight, bias, window.groups, route, code, result, layouts, packed, made)
    if input.ndim == 3:
        result = result[0]
    if out is not None:
        if not direct:
            out[...] = result
        result = out
    return result, None if made is None else made.result(get_num_threads())


def _compute(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    groups: int,
    route: Route,
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
            x, weight, bias, route.blocks, activation, result, layouts, route.tile, packed, made
        )
        return
    threads, tile = get_num_threads(), route.tile
    if route.direct == "linear":
        rows = to_contiguous(x).reshape(len(x), -1)
        out = as_contiguous(result[..., 0, 0])
        _kernels.linear(rows, weight.reshape(len(weight), -1), bias, out, threads)
        if activation != ACTIVATIONS[None]:
            _kernels.activate(out, out, *activation, threads)
        if not np.may_share_memory(out, result):
            result[..., 0, 0] = out
        return
    x_last, channels_last = layouts
    if x_last != channels_last:
        x = in_layout(x, channels_last)
    if not channels_last and route.direct == "squares":
        _kernels.square_planes(x, weight, bias, result, *route.axes, *activation, threads)
    elif not channels_last and route.direct == "rows":
        _kernels.depthwise_planes(x, weight, bias, result, *route.axes, *activation, threads)
    elif not channels_last and route.direct == "planes":
        _kernels.conv2d_planes(x, weight, bias, result, *route.axes, groups, *activation, threads)
    else:
        if (None, tile) not in kept:
            stride = route.axes[0][1]
            kept[None, tile] = _kernels.PackedConv(
                weight, bias, groups, threads, tile, stride=stride, once=packed is not None
            )
        packing = kept[None, tile]
        _kernels.conv2d(x, packing, result, *route.axes, *activation, channels_last, threads, made)


def _compute_in_blocks(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    blocks: Blocks,
    activation: tuple[int, float],
    result: np.ndarray,
    layouts: tuple[bool, bool],
    tile: int,
    packed: Packed | None,
    made: _kernels.ImageMoments | None,
) -> None:
    """Convolve blocks of pixels, of a few images at a time, so that they stay in the cache."""
    threads = get_num_threads()
    kept = {} if packed is None else packed
    if (layouts[0], tile) not in kept:
        filters = blocks.weight(weight, layouts[0])
        kept[layouts[0], tile] = _kernels.PackedConv(
            filters, bias, 1, threads, tile, once=packed is not None
        )
    packing = kept[layouts[0], tile]
    step = max(1, BLOCK_BYTES // (result.nbytes // len(x)))
    for n in range(0, len(x), step):
        part = result[n : n + step]
        dense = blocks.images(x[n : n + step], result.shape[2:], layouts[0])
        if made is not None:
            made.begin(n)
        _kernels.conv2d(
            dense, packing, part, *blocks.axes(), *activation, True, threads, made, not layouts[1]
        )


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
        checked_bias(bias, weight, weight.shape[0]),
        window,
        one_of(activation, "activation", ACTIVATIONS),
        one_of(algorithm, "algorithm", ALGORITHMS),
        out,
        wants_moments=wants_moments,
    )
