"""Containers: layers made of layers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from textwrap import indent
from typing import NamedTuple, overload

import numpy as np

from convkern import functional
from convkern.nn.base import Array, Layer, Shape
from convkern.nn.layers import Conv2d, ReLU


class Step(NamedTuple):
    """One step of `Sequential.walk`.

    Attributes
    ----------
    name : str
        Where the layer stands in the net, such as ``features.0``.
    layer : Layer
        The layer; a convolution and the ReLU fused into it are one, with the
        convolution's name.
    output : ndarray
        What it returned.
    """

    name: str
    layer: Layer
    output: Array


class Sequential(Layer):
    """Layers that run one after another.

    Parameters
    ----------
    *layers : Layer or (str, Layer)
        The layers, or names and layers; a layer without a name is named by its index.

    Attributes
    ----------
    layers : list of Layer
        They may be replaced, added and removed.

    Raises
    ------
    TypeError
        If something is neither a layer nor a name and a layer.
    ValueError
        If a name is empty, has a dot or stands twice.

    Notes
    -----
    Inside a net with convolutions activations travel channels-last, and a
    `ReLU` right after a `Conv2d` is computed within the convolution.  Neither
    changes `layers` or what the net computes.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Conv2d, Flatten, Linear, ReLU, Sequential
    >>> net = Sequential(
    ...     ("features", Sequential(Conv2d(1, 4, 3), ReLU())),
    ...     ("flatten", Flatten()),
    ...     ("classifier", Linear(144, 10)),
    ... )
    >>> net(np.zeros((2, 1, 8, 8), np.float32)).shape
    (2, 10)
    >>> list(net.state_dict())
    ['features.0.weight', 'features.0.bias', 'classifier.weight', 'classifier.bias']
    """

    def __init__(self, *layers: Layer | tuple[str, Layer]) -> None:
        self.layers: list[Layer] = []
        # By layer, not by position: names stay right while `layers` is edited.
        self._names: dict[Layer, str] = {}
        for entry in layers:
            name, layer = entry if isinstance(entry, tuple) and len(entry) == 2 else (None, entry)
            if not isinstance(layer, Layer) or not isinstance(name, str | None):
                raise TypeError(f"layers must be Layer or (str, Layer), got {entry!r}")
            self.layers.append(layer)
            if name is not None:
                self._names[layer] = name
        names = [name for name, _ in self._children()]
        if len(set(names)) < len(names) or any(not name or "." in name for name in names):
            raise ValueError(f"names of layers must be unique, not empty and without dots: {names}")

    def walk(self, input: Array) -> Iterator[Step]:
        """Run the net layer by layer, yielding each with its output.

        Parameters
        ----------
        input : ndarray
            As for a call.

        Yields
        ------
        Step
            Layers of nested `Sequential` nets come one by one, with full names.

        Examples
        --------
        >>> import numpy as np
        >>> from convkern.nn import Conv2d, MaxPool2d, ReLU, Sequential
        >>> net = Sequential(Conv2d(3, 8, 3), ReLU(), MaxPool2d(2))
        >>> for name, layer, output in net.walk(np.zeros((1, 3, 32, 32), np.float32)):
        ...     print(name, layer, output.shape)
        0 Conv2d(3, 8, kernel_size=3) + ReLU() (1, 8, 30, 30)
        2 MaxPool2d(kernel_size=2) (1, 8, 15, 15)
        """
        leaves = deque(self._leaves())
        # A net may also begin with vectors and make images of them later.
        if np.ndim(input) in (3, 4) and any(isinstance(layer, Conv2d) for _, layer in leaves):
            input = functional.to_channels_last(input)
        while leaves:
            name, layer = leaves.popleft()
            # Exact types: a subclass may compute something else.
            if type(layer) is Conv2d and leaves and type(leaves[0][1]) is ReLU:
                layer = _Fused(layer, leaves.popleft()[1])
            try:
                input = layer(input)
            except (TypeError, ValueError) as error:
                error.add_note(f"in layer {name}, {layer!r}")
                raise
            yield Step(name, layer, input)

    def forward(self, input: Array) -> Array:
        """Return the last output of `walk`, or `input` itself if there are no layers."""
        output = input
        for step in self.walk(input):
            output = step.output
        return output

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape of the last layer's output."""
        shape = tuple(input_shape)
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    def _children(self) -> Iterator[tuple[str, Layer]]:
        """Yield the layers with their names."""
        return (
            (self._names.get(layer, str(index)), layer) for index, layer in enumerate(self.layers)
        )

    def _leaves(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """Yield the layers, and those of nested nets in place of the net."""
        for name, layer in self._children():
            path = f"{prefix}.{name}" if prefix else name
            # A subclass with a forward of its own is more than its layers in a row.
            if type(layer).forward is Sequential.forward:
                yield from layer._leaves(path)
            else:
                yield path, layer

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    @overload
    def __getitem__(self, index: int | str) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequential: ...
    def __getitem__(self, index: int | str | slice) -> Layer | Sequential:
        """Return a layer by its place or its name, or a part of the net that shares its layers."""
        if isinstance(index, slice):
            part = Sequential(*list(self._children())[index])
            part.training = self.training
            return part
        if isinstance(index, str):
            return dict(self._children())[index]
        return self.layers[index]

    def __repr__(self) -> str:
        if not self.layers:
            return f"{type(self).__name__}()"
        lines = "\n".join(f"({name}): {layer!r}" for name, layer in self._children())
        return f"{type(self).__name__}(\n{indent(lines, '  ')}\n)"


class _Fused(Layer):
    """A convolution and the activation after it, computed in one pass over the output."""

    def __init__(self, conv: Conv2d, activation: Layer) -> None:
        self.conv, self.activation = conv, activation

    def forward(self, input: Array) -> Array:
        """Return the activated convolution."""
        return self.conv.forward(input, activation="relu")

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape that the convolution gives."""
        return self.conv.output_shape(input_shape)

    def __repr__(self) -> str:
        return f"{self.conv!r} + {self.activation!r}"
