"""What is measured: one operator or one network on random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convkern import functional, nn
from convkern.shapes import CONV_SHAPES, LINEAR_SHAPES, POOL_SHAPES, LayerShape, PoolShape

Array: TypeAlias = NDArray[Any]
Call: TypeAlias = Callable[[], Any]
Row: TypeAlias = dict[str, Any]
LAYERS: dict[str, tuple[str, tuple[LayerShape, ...]]] = {
    "forward": ("conv2d", CONV_SHAPES),
    "pool": ("max_pool2d", POOL_SHAPES),
    "linear": ("linear", LINEAR_SHAPES),
}
LAYOUTS = {
    "nchw": ("nchw",),
    "channels_last": ("channels_last",),
    "both": ("nchw", "channels_last"),
}

# Largest difference over largest magnitude: about five times that of the fastest float32
# algorithms.  Pooling only selects, so it has no error.
TOLERANCE = 5e-5


class Operation(NamedTuple):
    """One operator, under the name it has in `functional`, in `reference` and in torch."""

    function: str
    weights: Sequence[Any]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What one row measures: `call` is convkern's way, `operations` say what it computes."""

    label: str
    layout: str
    flops: int
    tolerance: float
    input: Array
    operations: Sequence[Operation]
    call: Call

    @property
    def batch(self) -> int:
        """The number of images."""
        return len(self.input)


def layer_case(name: str, shape: Any, batch: int, layout: str, prepacked: bool) -> Case:
    """Return the case of one layer, computed by the function `name`, on random numbers."""
    rng = np.random.default_rng(0)
    x = _random_input(rng, (batch, *shape.input_shape), layout)
    weights: list[Array] = []
    if not isinstance(shape, PoolShape):
        filters = shape.weight_shape
        weights = [rng.standard_normal(size, np.float32) for size in (filters, filters[0])]
    operation = Operation(name, weights, shape.arguments)
    call: Call
    if prepacked:
        weight, bias = weights
        call = partial(functional.PackedConv2d(weight, bias, **shape.arguments), x)
    else:
        call = as_call([operation], functional, x)
    tolerance = 0.0 if isinstance(shape, PoolShape) else TOLERANCE
    return Case(shape.label, layout, shape.flops * batch, tolerance, x, [operation], call)


def network_case(label: str, net: nn.Sequential, size: int, batch: int, layout: str) -> Case:
    """Return the case of a whole network on random images."""
    x = _random_input(np.random.default_rng(0), (batch, 3, size, size), layout)
    flops = 2 * batch * sum(row.multiply_adds for row in net.summary((3, size, size)).rows)
    return Case(label, layout, flops, TOLERANCE, x, list(_operations(net)), partial(net, x))


def _random_input(rng: np.random.Generator, shape: tuple[int, ...], layout: str) -> Array:
    """Return an array of logical shape (N, C, H, W), or (N, features), in `layout`."""
    if layout != "channels_last":
        return rng.standard_normal(shape, np.float32)
    n, c, h, w = shape
    return rng.standard_normal((n, h, w, c), np.float32).transpose(0, 3, 1, 2)


# The function of each layer of a network, and the attributes that are its keywords.
_FUNCTIONS: dict[type[nn.Layer], tuple[str, tuple[str, ...]]] = {
    nn.Conv2d: ("conv2d", ("stride", "padding", "dilation", "groups")),
    nn.MaxPool2d: ("max_pool2d", ("kernel_size", "stride", "padding", "dilation")),
    nn.ReLU: ("relu", ()),
    nn.Flatten: ("flatten", ("start_dim",)),
    nn.Linear: ("linear", ()),
}


def _operations(layer: nn.Layer) -> Iterator[Operation]:
    """Yield what a network computes in eval mode."""
    if isinstance(layer, nn.Sequential):
        for child in layer.layers:
            yield from _operations(child)
    elif not isinstance(layer, nn.Dropout):
        function, names = _FUNCTIONS[type(layer)]
        weights = [parameter.data for parameter in layer.parameters()]
        yield Operation(function, weights, {name: getattr(layer, name) for name in names})


def as_call(operations: Sequence[Operation], functions: Any, x: Any) -> Call:
    """Return a call that hands `x` through the operations, as the attributes of `functions`."""
    steps = [(getattr(functions, name), *rest) for name, *rest in operations]
    # A single function is called without a wrapper: it may take only microseconds.
    if len(steps) == 1:
        function, weights, arguments = steps[0]
        return partial(function, x, *weights, **arguments)

    def chain() -> Any:
        y = x
        for function, weights, arguments in steps:
            y = function(y, *weights, **arguments)
        return y

    return chain
