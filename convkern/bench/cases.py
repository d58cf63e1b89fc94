"""What is measured: an operator, a network or a training step, on random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convkern import freeze, functional, models, nn
from convkern.shapes import (
    CONV_SHAPES,
    LINEAR_SHAPES,
    POOL_SHAPES,
    ConvShape,
    LayerShape,
    PoolShape,
)

Array: TypeAlias = NDArray[Any]
Call: TypeAlias = Callable[[], Any]

#: The operators that can be measured, and on which shapes.
LAYERS: dict[str, tuple[str, tuple[LayerShape, ...]]] = {
    "forward": ("conv2d", CONV_SHAPES),
    "backward": ("conv2d_backward", CONV_SHAPES),
    "pool": ("max_pool2d", POOL_SHAPES),
    "linear": ("linear", LINEAR_SHAPES),
}
#: The networks whose training can be measured, and how many images a step takes.
TRAINING_BATCH = {
    "alexnet": 32,
    "resnet18": 8,
    "resnet20": 64,
    "mnist_cnn": 64,
    "cifar_basic": 16,
    "cifar_advanced": 16,
    "cs231n_convnet": 16,
}
LAYOUTS = {
    "nchw": ("nchw",),
    "channels_last": ("channels_last",),
    "both": ("nchw", "channels_last"),
}
#: Which gradients of a convolution are wanted: of the input, the weight and the bias.
GRADIENTS = {
    "all": (True, True, True),
    "input": (True, False, False),
    "weight": (False, True, False),
}

# Largest difference over largest magnitude: about five times that of the fastest float32
# algorithms.  Pooling only selects, so it has no error.
TOLERANCE = 5e-5
# Rounding that moves a number across zero, at a ReLU, switches gradients on and off: torch's own
# layouts differ by 2%.
TRAINING_TOLERANCE = 5e-2


class Operation(NamedTuple):
    """One operator, under the name it has in `functional`, in `reference` and in torch."""

    function: str
    weights: Sequence[Any]
    arguments: dict[str, Any]


class Network(NamedTuple):
    """A whole network; with `target`, the classes of the images, it is trained on them."""

    layer: nn.Layer
    target: Array | None = None


@dataclass(frozen=True)
class Case:
    """What one row measures: `call` is convkern's way, the other fields say what it computes.

    Attributes
    ----------
    label, layout : str
        The shape or the network, and the memory layout of convkern's images.
    input : ndarray
        The images; for a backward operator the gradient of the output.
    call : callable
        Returns an array, or a sequence of them with None for what is not wanted.
    operations : sequence of Operation
        What is computed, as far as it can be said in operators.
    flops : int
        Operations of one call by the direct algorithm.
    traffic : int
        Bytes of all arrays read and written, each once; 0 where nobody can tell.
    tolerance : float
        Largest error of a right result.
    images_are_independent : bool
        Whether a part of the batch gives that part of the result.
    network : Network or None
        What is computed, if that is a network.
    frozen : callable or None
        The same by a frozen net, timed in the same turns for a row of its own.
    twin : callable or None
        Makes the case whose results are compared, if this one's are random or change the network.
    with_batch : callable or None
        Makes the same case of another number of images, where a part of the batch cannot tell.
    """

    label: str
    layout: str
    input: Array
    call: Call
    operations: Sequence[Operation]
    flops: int
    traffic: int = 0
    tolerance: float = TOLERANCE
    images_are_independent: bool = True
    network: Network | None = None
    frozen: Call | None = None
    twin: Callable[[], Case] | None = None
    with_batch: Callable[[int], Case] | None = None

    @property
    def batch(self) -> int:
        """The number of images."""
        return len(self.input)


def layer_case(name: str, shape: Any, batch: int, layout: str, prepacked: bool) -> Case:
    """Return the case of one layer, computed by the function `name`, on random numbers."""
    rng = np.random.default_rng(0)
    x = _random_images(rng, (batch, *shape.input_shape), layout)
    weights: list[Array] = []
    arguments: dict[str, Any] = dict(shape.arguments)
    traffic = 4 * batch * _output_elements(shape)
    if isinstance(shape, PoolShape):
        # The indices are what training needs; torch makes them whether it is asked for them or not.
        arguments["return_indices"] = True
        traffic *= 3
    else:
        filters = shape.weight_shape
        weights = [rng.standard_normal(size, np.float32) for size in (filters, filters[0])]
    operation = Operation(name, weights, arguments)
    call: Call
    if prepacked:
        weight, bias = weights
        call = partial(functional.PackedConv2d(weight, bias, **arguments), x)
    else:
        call = as_call([operation], functional, x)
    return Case(
        shape.label,
        layout,
        x,
        call,
        [operation],
        flops=shape.flops * batch,
        traffic=_bytes(x, *weights) + traffic,
        tolerance=0.0 if isinstance(shape, PoolShape) else TOLERANCE,
    )


def backward_case(shape: ConvShape, batch: int, layout: str, gradient: str) -> Case:
    """Return the case of the gradients of a convolution, or of one of them."""
    rng = np.random.default_rng(0)
    x = _random_images(rng, (batch, *shape.input_shape), layout)
    weight = rng.standard_normal(shape.weight_shape, np.float32)
    grad_output = _random_images(rng, (batch, shape.OC, *shape.output_size), layout)
    mask = GRADIENTS[gradient]
    operation = Operation("conv2d_backward", [x, weight], {**shape.arguments, "output_mask": mask})
    # The gradient of one needs the other: both are read or written, whichever is wanted.
    both_wanted = mask[0] and mask[1]
    return Case(
        shape.label,
        layout,
        grad_output,
        as_call([operation], functional, grad_output),
        [operation],
        flops=(1 + both_wanted) * shape.flops * batch,
        traffic=_bytes(grad_output) + (1 + both_wanted) * _bytes(x, weight),
        images_are_independent=False,
        with_batch=partial(backward_case, shape, layout=layout, gradient=gradient),
    )


def network_case(label: str, batch: int, layout: str) -> Case:
    """Return the case of a network that classifies random images, as it is and frozen."""
    rng = np.random.default_rng(0)
    net: nn.Sequential = getattr(models, label)(rng=rng).eval()
    shape = models.INPUT_SHAPE[label]
    x = _random_images(rng, (batch, *shape), layout)
    return Case(
        label,
        layout,
        x,
        partial(net, x),
        list(_operations(net)),
        flops=2 * batch * sum(row.multiply_adds for row in net.summary(shape).rows),
        network=Network(net),
        frozen=partial(freeze(net), x),
    )


def training_case(label: str, batch: int, layout: str, dropout: bool = True) -> Case:
    """Return the case of a training step: forward, loss, backward, SGD with momentum.

    The call returns the loss and the gradients of all parameters.  Its twin has no dropout.
    """
    rng = np.random.default_rng(0)
    net: nn.Sequential = getattr(models, label)(rng=rng)
    if not dropout:
        for layer in _leaves(net):
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
    shape = models.INPUT_SHAPE[label]
    x = _random_images(rng, (batch, *shape), layout)
    target = rng.integers(0, net.output_shape((batch, *shape))[1], batch)
    network = Network(net, target)
    work = [row.multiply_adds for row in net.summary(shape).rows if row.multiply_adds]
    return Case(
        label,
        layout,
        x,
        _training_step(network, x),
        [],
        # A gradient of the images is not needed.
        flops=2 * batch * (3 * sum(work) - work[0]),
        tolerance=TRAINING_TOLERANCE,
        images_are_independent=False,
        network=network,
        twin=partial(training_case, label, batch, layout, False) if dropout else None,
    )


def _training_step(network: Network, x: Array) -> Call:
    """Return convkern's training step."""
    net, target = network
    assert target is not None
    parameters = net.parameters()
    loss, optimizer = nn.CrossEntropyLoss(), nn.SGD(parameters, lr=0.01, momentum=0.9)

    def step() -> list[Any]:
        optimizer.zero_grad()
        value = loss(net(x), target)
        net.backward(loss.backward(), input_gradient=False)
        optimizer.step()
        return [value, *(parameter.grad for parameter in parameters)]

    return step


def _random_images(rng: np.random.Generator, shape: tuple[int, ...], layout: str) -> Array:
    """Return an array of logical shape (N, C, H, W), or (N, features), in `layout`."""
    if layout != "channels_last":
        return rng.standard_normal(shape, np.float32)
    n, c, h, w = shape
    return rng.standard_normal((n, h, w, c), np.float32).transpose(0, 3, 1, 2)


def _bytes(*arrays: Array) -> int:
    """Return the bytes of arrays together."""
    return sum(array.nbytes for array in arrays)


def _output_elements(shape: Any) -> int:
    """Return how many numbers a layer gives for one image."""
    if isinstance(shape, PoolShape):
        return shape.C * math.prod(shape.output_size)
    return int(shape.flops // (2 * math.prod(shape.weight_shape[1:])))


# The function of each layer of a network, and the attributes that are its keywords.
_FUNCTIONS: dict[type[nn.Layer], tuple[str, tuple[str, ...]]] = {
    nn.Conv2d: ("conv2d", ("stride", "padding", "dilation", "groups")),
    nn.MaxPool2d: ("max_pool2d", ("kernel_size", "stride", "padding", "dilation")),
    nn.ReLU: ("relu", ()),
    nn.Flatten: ("flatten", ("start_dim",)),
    nn.Linear: ("linear", ()),
}


def _operations(net: nn.Layer) -> Iterator[Operation]:
    """Yield what a network computes in eval mode."""
    for layer in _leaves(net):
        if not isinstance(layer, nn.Dropout):
            function, names = _FUNCTIONS[type(layer)]
            weights = [parameter.data for parameter in layer.parameters()]
            yield Operation(function, weights, {name: getattr(layer, name) for name in names})


def _leaves(layer: nn.Layer) -> Iterator[nn.Layer]:
    """Yield the layers of nested `Sequential`s."""
    if isinstance(layer, nn.Sequential):
        for child in layer.layers:
            yield from _leaves(child)
    else:
        yield layer


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
