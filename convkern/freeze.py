"""Inference plans: a net whose weights are packed once, for many calls."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from convkern import _kernels, functional
from convkern.arrays import ANY_NDIM, as_array, as_contiguous, empty_images, is_channels_last
from convkern.functional import PackedConv2d
from convkern.functional.activation import ACTIVATIONS, add
from convkern.nn import (
    BatchNorm2d,
    Concat,
    Conv2d,
    Dropout,
    Dropout2d,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
)
from convkern.nn.base import Array
from convkern.nn.concat import join
from convkern.precision import get_float32_precision
from convkern.threads import get_num_threads

_Step = Callable[[Array], Array]

#: What packed weights of a linear layer are for: the shape of the inputs, whether they are rounded.
_Form = tuple[tuple[int, ...], bool]

#: A linear weight from so many bytes on, which no second-level cache holds, is kept in three bytes
#: for each number, of which the largest of a row has 23 bits without the sign.  At least half of
#: the others must have so many: their errors then are 4.4e-6 of them, in the mean square.
SHORT_BYTES = 4 << 20
SHORT_BITS = 17

#: Of the map between a convolution and its pooling, for some images; where that of all is
#: smaller than the second number, they are not worth cutting.
MAP_BYTES = 4 << 20
WHOLE_MAP_BYTES = 32 << 20


class Plan:
    """What `freeze` returns: call it like the net, ``plan(x)``.

    It may be called from several threads at once, with any batch size.  Images travel
    channels-last; what is given back is a new array.

    Parameters
    ----------
    net : Layer
        The net; see `freeze`.
    """

    __slots__ = ("_dtype", "_steps", "_text")

    def __init__(self, net: Layer) -> None:
        self._steps = _steps_of([net])
        self._dtype = next((p.data.dtype for p in net.parameters()), None)
        self._text = repr(net)

    def __call__(self, input: Array) -> Array:
        """Return the output of the net in evaluation mode.

        Parameters
        ----------
        input : ndarray
            As for the net.

        Returns
        -------
        ndarray
            The net's output.

        Raises
        ------
        TypeError, ValueError
            As the net's layers do.
        """
        input = as_array(input, "input", ANY_NDIM)
        if self._dtype is not None and input.dtype != self._dtype:
            raise TypeError(f"input must have the net's dtype {self._dtype}, got {input.dtype}")
        takes_any = bool(self._steps) and isinstance(self._steps[0], _ConvolutionStep)
        if input.ndim in (3, 4) and self._steps and not takes_any:
            input = functional.to_channels_last(input)
        for step in self._steps:
            input = step(input)
        return input

    def __repr__(self) -> str:
        return f"Plan of {self._text}"


def freeze(net: Layer) -> Plan:
    """Turn a net into an immutable plan for inference.

    Weights are packed once, for the algorithm that suits the images of the first call of a
    size; a `BatchNorm2d` after a convolution becomes part of its weights; a `ReLU` is computed
    before the results are stored; dropout disappears.  Later changes of the net do not reach
    the plan.

    Parameters
    ----------
    net : Layer
        A layer, usually a `Sequential`; in either mode.

    Returns
    -------
    Plan
        Computes what the net computes in evaluation mode, up to rounding.

    Raises
    ------
    TypeError
        If `net` is not a layer.

    Notes
    -----
    At the precision ``"high"``, the default, a float32 weight of a linear layer of 4 MiB or more is
    rounded to multiples of at most 2^-23 of its row's largest number, which three bytes hold: few
    inputs at a time take as long as it takes to read it.  At ``"highest"``, and where that
    would leave most numbers of a row fewer than 17 bits, it is kept as it is.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import freeze
    >>> from convkern.nn import BatchNorm2d, Conv2d, ReLU, Sequential
    >>> net = Sequential(Conv2d(3, 8, 3), BatchNorm2d(8), ReLU())
    >>> plan = freeze(net)
    >>> plan(np.zeros((2, 3, 16, 16), np.float32)).shape
    (2, 8, 14, 14)
    """
    if not isinstance(net, Layer):
        raise TypeError(f"net must be a Layer, got {type(net).__name__}")
    return Plan(net)


def _steps_of(layers: Sequence[Layer]) -> list[_Step]:
    """Return the steps of layers that run one after another."""
    left = deque(_flat(layers))
    steps: list[_Step] = []
    while left:
        layer = left.popleft()
        # Exact types: a subclass may compute something else.
        if type(layer) is Conv2d and layer.padding_mode == "zeros":
            norm = _takes_norm(left)
            convolution = _convolution(layer, norm, _takes_relu(left))
            pool = copy.deepcopy(left.popleft()) if left and type(left[0]) is MaxPool2d else None
            assert pool is None or isinstance(pool, MaxPool2d)
            steps.append(_ConvolutionStep(convolution, pool))
        elif type(layer) is Linear:
            steps.append(_LinearStep(layer, _takes_relu(left)))
        elif type(layer) is Flatten and layer.start_dim == 1 and left and type(left[0]) is Linear:
            linear = left.popleft()
            assert isinstance(linear, Linear)
            steps.append(_LinearStep(linear, _takes_relu(left), flattens=True))
        elif type(layer) is Residual:
            steps.append(_ResidualStep(layer, _takes_relu(left)))
        elif type(layer) is Concat:
            steps.append(_ConcatStep(layer))
        else:
            steps.append(copy.deepcopy(layer).eval().forward)
    return steps


def _flat(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers without dropout, those of a `Sequential` in its place."""
    flat: list[Layer] = []
    for layer in layers:
        if type(layer) is Sequential:
            flat += _flat(layer.layers)
        elif type(layer) not in (Dropout, Dropout2d):
            flat.append(layer)
    return flat


def _takes_relu(left: deque[Layer]) -> bool:
    """Tell whether a ReLU follows, and take it."""
    if left and type(left[0]) is ReLU:
        left.popleft()
        return True
    return False


def _takes_norm(left: deque[Layer]) -> BatchNorm2d | None:
    """Return the BatchNorm2d that follows, if it has statistics to use, and take it."""
    if left and type(left[0]) is BatchNorm2d and left[0].running_mean is not None:
        norm = left.popleft()
        assert isinstance(norm, BatchNorm2d)
        return norm
    return None


def _convolution(layer: Conv2d, norm: BatchNorm2d | None, relu: bool) -> PackedConv2d:
    """Return a convolution with the normalisation after it as part of its weights."""
    weight = layer.weight.data
    bias = None if layer.bias is None else layer.bias.data
    if norm is not None:
        scale = 1 / np.sqrt(np.float64(norm.running_var) + norm.eps)
        if norm.weight is not None:
            scale *= norm.weight.data
        shift = -np.float64(norm.running_mean) * scale
        if bias is not None:
            shift += bias * scale
        if norm.bias is not None:
            shift += norm.bias.data
        bias = shift.astype(weight.dtype)
        weight = (weight * scale[:, None, None, None]).astype(weight.dtype)
    return PackedConv2d(
        weight,
        bias,
        layer.stride,
        layer._pads,
        layer.dilation,
        layer.groups,
        activation="relu" if relu else None,
    )


class _ConvolutionStep:
    """A convolution and perhaps the max pooling after it; its output is channels-last.

    What is pooled is computed a few images at a time: the map between is as large as those
    need, and pooled while it is in the cache.
    """

    def __init__(self, convolution: PackedConv2d, pool: MaxPool2d | None) -> None:
        self.convolution, self.pool = convolution, pool

    def __call__(self, input: Array) -> Array:
        if input.ndim != 4 or not input.size:
            output = self.convolution(functional.to_channels_last(input))
            return output if self.pool is None else self.pool.forward(output)
        shape = (len(input), *self.convolution.output_shape(input.shape[1:]))
        bytes_of_one = input.itemsize * math.prod(shape[1:])
        if self.pool is None or bytes_of_one * len(input) <= WHOLE_MAP_BYTES:
            output = self.convolution(input, out=empty_images(shape, input.dtype, True))
            return output if self.pool is None else self.pool.forward(output)
        windows = self.pool.kernel_size, self.pool.stride, self.pool.padding, self.pool.dilation
        rows, columns = zip(*windows, strict=True)
        step = max(1, MAP_BYTES // bytes_of_one)
        output = empty_images(self.pool.output_shape(shape), input.dtype, True)
        between = empty_images((step, *shape[1:]), input.dtype, True)
        threads = get_num_threads()
        for n in range(0, len(input), step):
            images, values = input[n : n + step], output[n : n + step]
            maps = self.convolution(images, out=between[: len(images)])
            _kernels.max_pool2d(maps, values, None, rows, columns, True, threads)
        return output


class _LinearStep:
    """A linear layer and perhaps a ReLU, whose weight is packed and read from memory once.

    What is flattened before it stays in the order of its memory; the weight follows.
    """

    def __init__(self, layer: Linear, relu: bool, flattens: bool = False) -> None:
        self.weight = layer.weight.data.copy()
        self.bias = None if layer.bias is None else layer.bias.data.copy()
        self.activation = ACTIVATIONS["relu" if relu else None]
        self.flattens = flattens
        self.rounds: bool | None = None  # unknown
        self.many: dict[_Form, _kernels.PackedConv] = {}
        self.few: dict[_Form, _kernels.ShortWeight] = {}

    def __call__(self, input: Array) -> Array:
        pixels = input
        if self.flattens and input.ndim == 4 and is_channels_last(input):
            pixels = np.ascontiguousarray(input.transpose(0, 2, 3, 1))
        elif self.flattens:
            input = pixels = functional.flatten(input)
        outputs, inputs = self.weight.shape
        width = math.prod(input.shape[1:]) if self.flattens else input.shape[-1]
        shape = (len(input),) if self.flattens else input.shape[:-1]
        if width == inputs and not input.size:
            return np.empty((*shape, outputs), input.dtype)
        features = pixels.reshape(-1, width)
        if width != inputs:
            return functional.linear(features, self.weight, self.bias)  # says what is wrong
        order = input.shape[1:] if self.flattens else (inputs,)
        return self.product(as_contiguous(features), order).reshape(*shape, outputs)

    def product(self, rows: Array, order: tuple[int, ...]) -> Array:
        """Multiply rows of features that lie in memory like channels-last images of a shape."""
        large = self.weight.dtype == np.float32 and self.weight.nbytes >= SHORT_BYTES
        short = large and get_float32_precision() == "high" and self.rounds is not False
        form, threads = (order, short), get_num_threads()
        few = short and len(rows) <= _kernels.SHORT_ROWS
        if form not in (self.few if few else self.many):
            weight = self.weight
            if len(order) == 3:
                weight = weight.reshape(-1, *order).transpose(0, 2, 3, 1).reshape(weight.shape)
            if short:
                short_form = short_weight(weight)
                self.rounds = short_form is not None
                if short_form is None:
                    return self.product(rows, order)
                weight, exponents = short_form
            if few:
                self.few[form] = _kernels.ShortWeight(weight, self.bias, exponents, threads)
            else:
                weight = as_contiguous(weight)[:, :, None, None]
                self.many[form] = _kernels.PackedConv(weight, self.bias, 1, threads, once=True)
        if few:
            output = _kernels.empty((len(rows), len(self.weight)), rows.dtype)
            _kernels.short_linear(rows, self.few[form], output, *self.activation, threads)
            return output
        # One image of one row, channels-last: the features of a row are its channels.
        image = rows[None, None].transpose(0, 3, 1, 2)
        result = empty_images((1, len(self.weight), 1, len(rows)), rows.dtype, True)
        one = 1, 1, 0, 1
        _kernels.conv2d(image, self.many[form], result, one, one, *self.activation, True, threads)
        return result.transpose(0, 2, 3, 1).reshape(len(rows), -1)


def short_weight(weight: Array) -> tuple[Array, Array] | None:
    """Round a float32 matrix to whole numbers of 24 bits times a power of two for each row.

    Returns
    -------
    tuple of ndarray or None
        The rounded matrix, and the exponents of the powers of two; None if a row has a number
        that is not finite, or so large that most others would keep fewer than `SHORT_BITS`.
    """
    largest = np.abs(weight).max(axis=1)
    usable = (largest == 0) | ((largest > 1e-25) & (largest < 1e25))  # no power of two is lost
    if not usable.all():
        return None
    exponents = (np.frexp(largest)[1] - 23).astype(np.int32)
    units = np.ldexp(np.float32(1), exponents)
    rounded = np.empty_like(weight, order="C")
    for row, unit, out in zip(weight, units, rounded, strict=True):
        numbers = row / unit
        precise = np.count_nonzero(np.abs(numbers) >= 2 ** (SHORT_BITS - 1))
        if 2 * precise < np.count_nonzero(row):
            return None
        np.multiply(np.minimum(np.rint(numbers), 2**23 - 1), unit, out=out)
    return rounded, exponents


class _ResidualStep:
    """Both ways of a residual block, and perhaps a ReLU."""

    def __init__(self, layer: Residual, relu: bool) -> None:
        self.body = _steps_of([layer.body])
        self.shortcut = [] if layer.shortcut is None else _steps_of([layer.shortcut])
        self.activation = "relu" if relu else None

    def __call__(self, input: Array) -> Array:
        output = around = input
        for step in self.body:
            output = step(output)
        for step in self.shortcut:
            around = step(around)
        return add(output, around, self.activation)


class _ConcatStep:
    """Branches whose outputs are joined."""

    def __init__(self, layer: Concat) -> None:
        self.branches = [_steps_of([branch]) for branch in layer.layers]

    def __call__(self, input: Array) -> Array:
        outputs: list[Any] = []
        for steps in self.branches:
            output = input
            for step in steps:
                output = step(output)
            outputs.append(output)
        return join(outputs)
