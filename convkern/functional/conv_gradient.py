"""The gradients of convolution."""

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
    checked_mask,
    empty_images,
    in_layout,
    to_contiguous,
)
from convkern.functional import lanes
from convkern.functional.activation import ACTIVATIONS
from convkern.functional.algorithm import (
    ALGORITHMS,
    SHARING_FILTERS,
    fills_rows,
    gradient_in_planes,
    is_square,
    prefers_planes,
    turns_gradient,
    winograd_outputs,
)
from convkern.functional.linear import linear_backward
from convkern.functional.window import (
    REMEMBERED,
    Route,
    Window,
    checked_gradient,
    in_lanes,
    met_pixels,
    one_of,
    output_size_of,
)
from convkern.geometry import IntPair, Padding
from convkern.precision import get_float32_precision
from convkern.threads import get_num_threads

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
    algorithm = one_of(algorithm, "algorithm", ALGORITHMS)
    shape = (*input.shape[:-3], weight.shape[0], *output_size_of(window, input.shape))
    grad_output = checked_gradient(grad_output, input, shape)
    want_input, want_weight, want_bias = wanted = checked_mask(output_mask)
    if in_lanes(input, window, algorithm):
        return lanes.gradients(grad_output, input, weight, window.axes(), wanted)
    if algorithm == "auto" and window.covers(input.shape[-2:]):
        return _gradients_as_linear(grad_output, input, weight, wanted)
    x, channels_last = as_images(input)
    grad = in_layout(grad_output, channels_last)
    planes = not channels_last and grad.size and algorithm != "winograd"
    if planes and _in_squares(window, weight, grad.shape[2:]):
        return _gradients_in_squares(grad, x, weight, window, wanted, input.shape)
    grad_input = grad_weight = grad_bias = None
    if want_input:
        grad_input = empty_images(x.shape, x.dtype, channels_last)
        input_gradient(grad, weight, None, grad_input, window, algorithm, channels_last)
        if input.ndim == 3:
            grad_input = grad_input[0]
    if want_weight:
        grad_weight, grad_bias = weight_gradient(
            x, grad, weight, window, algorithm, channels_last, want_bias
        )
    if want_bias and grad_bias is None:
        grad_bias = bias_gradient(grad, channels_last)
    return grad_input, grad_weight, grad_bias


def _gradients_as_linear(
    grad: np.ndarray, input: np.ndarray, weight: np.ndarray, wanted: Sequence[bool]
) -> Gradients:
    """Return the gradients of a window that covers its image: those of a linear layer."""
    x, channels_last = as_images(input)
    filters, features = len(weight), weight[0].size
    grad_input, grad_weight, grad_bias = linear_backward(
        grad.reshape(len(x), filters),
        to_contiguous(x).reshape(len(x), features),
        weight.reshape(filters, features),
        output_mask=wanted,
    )
    if grad_input is not None:
        grad_input = in_layout(grad_input.reshape(x.shape), channels_last).reshape(input.shape)
    if grad_weight is not None:
        grad_weight = grad_weight.reshape(weight.shape)
    return grad_input, grad_weight, grad_bias


def _in_squares(window: Window, weight: np.ndarray, out_size: tuple[int, ...]) -> bool:
    """Tell whether the gradients are made plane by plane, of as many channels as filters."""
    problem = window.problem(weight.dtype, len(weight), 1, out_size)
    own = problem.out_channels == 1 and is_square(problem)
    return own and fills_rows(problem, window.padding[1])


def _gradients_in_squares(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    window: Window,
    wanted: Sequence[bool],
    shape: tuple[int, ...],
) -> Gradients:
    """Return the gradients of a depthwise convolution of contiguous NCHW images by 3x3 windows."""
    sizes = x.shape, weight.shape, (len(weight),)
    grad_input, grad_weight, grad_bias = (
        _kernels.empty(size, x.dtype) if want else None
        for size, want in zip(sizes, wanted, strict=True)
    )
    _kernels.square_gradients(
        x,
        grad,
        as_contiguous(weight),
        grad_input,
        grad_weight,
        grad_bias,
        *window.axes(),
        get_num_threads(),
    )
    return None if grad_input is None else grad_input.reshape(shape), grad_weight, grad_bias


def input_gradient(
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
        input_gradient(grad, weight, None, steps, window.of_steps(), algorithm, False)
        if out.size:
            _kernels.spread_steps(steps, out, window.stride, threads)
        return
    route = _input_gradient_route(window, out.shape, filters, out.dtype, algorithm, precision)
    if not out.size:
        return
    weight, groups, tile = as_contiguous(weight), window.groups, route.tile
    if not channels_last and route.direct == "planes" and out.shape[2:] == grad.shape[2:]:
        # A product of two matrices, as the convolution itself is.
        plain = ACTIVATIONS[None]
        turned = _turned(weight)
        _kernels.conv2d_planes(grad, turned, bias, out, *route.axes, 1, *plain, threads)
    else:
        _kernels.input_gradient(
            grad, weight, bias, out, *route.axes, groups, channels_last, threads, tile
        )


def _turned(weight: np.ndarray) -> np.ndarray:
    """Return the weight of a 1x1 window with channels and filters in each other's place."""
    rows, columns = weight.shape[:2]
    # As pixels, one per row, that are brought into planes.
    return to_contiguous(weight.reshape(1, rows, 1, columns).transpose(0, 3, 1, 2)).reshape(
        columns, rows, 1, 1
    )


@lru_cache(REMEMBERED)
def _input_gradient_route(
    window: Window,
    shape: tuple[int, ...],
    filters: int,
    dtype: np.dtype[Any],
    algorithm: str,
    precision: str,
) -> Route:
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
    return Route(size, axes, winograd_outputs(problem, algorithm, precision), None, direct)


@lru_cache(REMEMBERED)
def _weight_gradient_route(
    window: Window,
    shape: tuple[int, ...],
    out_size: tuple[int, int],
    filters: int,
    dtype: np.dtype[Any],
    algorithm: str,
    precision: str,
    channels_last: bool,
) -> Route:
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
    elif window.is_product and turns_gradient(problem, channels_last):
        direct = "turned"
    return Route(out_size, window.axes(), tile, blocks if tile else None, direct)


def weight_gradient(
    x: np.ndarray,
    grad: np.ndarray,
    weight: np.ndarray,
    window: Window,
    algorithm: str,
    channels_last: bool,
    want_bias: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the gradient of a weight, from images and gradients of one layout.

    With it comes the gradient of the bias, if it is wanted and costs less that way than alone.
    """
    dtype, precision = weight.dtype, get_float32_precision()
    size, filters = grad.shape[2:], len(weight)
    if window.skips and not channels_last and filters > SHARING_FILTERS:
        x, window = met_pixels(x, window, size), window.of_steps()
    route = _weight_gradient_route(
        window, x.shape, size, filters, dtype, algorithm, precision, channels_last
    )
    if not len(x):
        return np.zeros_like(weight, order="C"), None
    bias = _kernels.empty((filters,), dtype) if want_bias else None
    threads, axes, groups, tile = get_num_threads(), route.axes, window.groups, route.tile
    result: np.ndarray
    if route.blocks is not None:
        blocks, other = route.blocks, not channels_last
        images = blocks.images(x, size, channels_last)
        result = np.empty((filters, images.shape[1], blocks.taps, blocks.taps), dtype)
        has_bias = _kernels.weight_gradient(
            images, grad, result, *blocks.axes(), 1, True, threads, tile, other, bias
        )
        result = blocks.weight_gradient(result, weight.shape[1], channels_last)
        return result, bias if has_bias else None
    result = _kernels.empty(weight.shape, dtype)
    if not channels_last and route.direct == "planes":
        _kernels.planes_weight_gradient(x, grad, result, *axes, groups, threads)
    elif route.direct == "turned":
        # Pixels and gradients change places, and so do channels and filters.
        turned = _kernels.empty((weight.shape[1], filters, 1, 1), dtype)
        _kernels.weight_gradient(grad, x, turned, *axes, groups, channels_last, threads, tile)
        result = _turned(turned)
    elif _kernels.weight_gradient(
        x, grad, result, *axes, groups, channels_last, threads, tile, False, bias
    ):
        return result, bias
    return result, None


def bias_gradient(grad: np.ndarray, channels_last: bool) -> np.ndarray:
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
    return _kernels.rounded_totals(grad, cut, get_num_threads())
