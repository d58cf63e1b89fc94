"""Containers: layers made of layers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import or_
from textwrap import indent
from typing import Any, NamedTuple, overload

import numpy as np

from convkern import functional
from convkern.arrays import as_array, empty_images, is_channels_last
from convkern.nn.activation import ReLU
from convkern.nn.base import Array, Layer, Shape
from convkern.nn.conv import Conv2d, ConvTranspose2d


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
    changes `layers` or what the net computes, and training does the same.

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
            Nothing is kept for `backward`.

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
        for step, _ in self._run(input, keep=False):
            yield step

    def forward(self, input: Array) -> Array:
        """Return the last output of `walk`, or `input` itself if there are no layers."""
        output = input
        for step in self.walk(input):
            output = step.output
        return output

    def record(self, input: Array) -> tuple[Array, list[tuple[Layer, Any]]]:
        """Return the last output, and what each layer keeps."""
        output, kept = input, []
        for step, state in self._run(input, keep=True):
            output = step.output
            kept.append((step.layer, state))
        return output, kept

    def gradient(
        self, grad_output: Array, kept: list[tuple[Layer, Any]], input_gradient: bool = True
    ) -> Array | None:
        """Return the gradient of the input, from the last layer to the first.

        Without `input_gradient` the way ends at the first layer that learns.
        """
        # Of each step's input, and at the end of the output: whether somebody wants its gradient.
        wanted = list(
            accumulate((bool(layer.parameters()) for layer, _ in kept), or_, initial=input_gradient)
        )
        gradient: Array | None = grad_output
        while kept and wanted[len(kept)]:
            layer, state = kept.pop()  # its memory may serve the layers before it
            assert gradient is not None
            gradient = layer.gradient(gradient, state, wanted[len(kept)])
        return gradient if input_gradient else None

    def _run(self, input: Array, keep: bool) -> Iterator[tuple[Step, Any]]:
        """Run the net layer by layer, yielding each step and what its gradient needs."""
        leaves = deque(self._leaves())
        # A net may also begin with vectors and make images of them later.
        if np.ndim(input) in (3, 4) and _has_convolution(self):
            input = functional.to_channels_last(input)
        while leaves:
            name, layer = leaves.popleft()
            # Exact types: a subclass may compute something else.
            if type(layer) is Conv2d and leaves and type(leaves[0][1]) is ReLU:
                layer = _Fused(layer, leaves.popleft()[1])
            try:
                input, kept = layer.record(input) if keep else (layer.forward(input), None)
            except (TypeError, ValueError) as error:
                error.add_note(f"in layer {name}, {layer!r}")
                raise
            yield Step(name, layer, input), kept

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

    def _chains(self) -> list[list[tuple[str, Layer]]]:
        """Return the layers in a row."""
        # A subclass with a forward of its own is more than its layers in a row.
        return [list(self._children())] if type(self).forward is Sequential.forward else []

    def _leaves(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """Yield the layers with full names, and those of nested nets in place of the net."""
        for name, layer in self._children():
            path = f"{prefix}{name}"
            if isinstance(layer, Sequential) and layer._chains():
                yield from layer._leaves(f"{path}.")
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
        return _tree(self)


class Residual(Layer):
    """A detour and a way around it: ``body(x) + shortcut(x)``.

    Source: He, Zhang, Ren and Sun, *Deep residual learning for image recognition*,
    2015.  The activation that follows the sum there is a layer after this one.

    Parameters
    ----------
    *layers : Layer or (str, Layer)
        The body, as for `Sequential`.
    shortcut : Layer, optional
        What makes the input fit the body's output; by default the input itself.

    Attributes
    ----------
    body : Sequential
        Its parameters are named ``body.0.weight`` and so on.
    shortcut : Layer or None
        Its parameters are named ``shortcut.weight``, or ``shortcut.0.weight`` and
        so on if it is a `Sequential`.

    Raises
    ------
    TypeError, ValueError
        As for `Sequential`, or if `shortcut` is not a layer.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Conv2d, ReLU, Residual, Sequential
    >>> block = Residual(Conv2d(4, 4, 3, padding=1), ReLU(), Conv2d(4, 4, 3, padding=1))
    >>> Sequential(block, ReLU())(np.zeros((1, 4, 8, 8), np.float32)).shape
    (1, 4, 8, 8)
    >>> list(block.state_dict())
    ['body.0.weight', 'body.0.bias', 'body.2.weight', 'body.2.bias']
    """

    def __init__(self, *layers: Layer | tuple[str, Layer], shortcut: Layer | None = None) -> None:
        if not isinstance(shortcut, Layer | None):
            raise TypeError(f"shortcut must be a Layer or None, got {shortcut!r}")
        self.body = Sequential(*layers)
        self.shortcut = shortcut

    def forward(self, input: Array) -> Array:
        """Return the sum of both ways."""
        input = as_array(input, "input", tuple(range(33)))
        around = input if self.shortcut is None else self.shortcut.forward(input)
        return _sum(self.body.forward(input), around)

    def record(self, input: Array) -> tuple[Array, tuple[Any, Any]]:
        """Return the sum of both ways, and what they keep."""
        input = as_array(input, "input", tuple(range(33)))
        around, of_shortcut = (
            (input, None) if self.shortcut is None else self.shortcut.record(input)
        )
        output, of_body = self.body.record(input)
        return _sum(output, around), (of_body, of_shortcut)

    def gradient(
        self, grad_output: Array, kept: tuple[Any, Any], input_gradient: bool = True
    ) -> Array | None:
        """Return the sum of the gradients of both ways."""
        of_body, of_shortcut = kept
        through = self.body.gradient(grad_output, of_body, input_gradient)
        around: Array | None = grad_output
        if self.shortcut is not None:
            around = self.shortcut.gradient(grad_output, of_shortcut, input_gradient)
        return None if through is None or around is None else _sum(through, around)

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape that both ways give."""
        shape = self.body.output_shape(input_shape)
        around = tuple(input_shape)
        if self.shortcut is not None:
            around = self.shortcut.output_shape(input_shape)
        _check_same(shape, around)
        return shape

    def _chains(self) -> list[list[tuple[str, Layer]]]:
        """Return both ways."""
        around = [] if self.shortcut is None else [("shortcut", self.shortcut)]
        return [[("body", self.body)], around]

    def __repr__(self) -> str:
        return _tree(self)


class _Fused(Layer):
    """A convolution and the activation after it, computed in one pass over the output."""

    def __init__(self, conv: Conv2d, activation: Layer) -> None:
        self.conv, self.activation = conv, activation

    def forward(self, input: Array) -> Array:
        """Return the activated convolution."""
        return self.conv.forward(input, activation="relu")

    def record(self, input: Array) -> tuple[Array, tuple[Array, Array]]:
        """Return the activated convolution; it tells where the convolution was positive."""
        output, kept = self.conv.record(input, activation="relu")
        return output, (kept, output)

    def gradient(
        self, grad_output: Array, kept: tuple[Array, Array], input_gradient: bool = True
    ) -> Array | None:
        """Return the gradient of the input."""
        input, output = kept
        grad_output = functional.relu_backward(grad_output, output)
        return self.conv.gradient(grad_output, input, input_gradient)

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape that the convolution gives."""
        return self.conv.output_shape(input_shape)

    def __repr__(self) -> str:
        return f"{self.conv!r} + {self.activation!r}"


def _has_convolution(layer: Layer) -> bool:
    """Tell whether there is a convolution anywhere inside."""
    return isinstance(layer, Conv2d | ConvTranspose2d) or any(
        _has_convolution(child) for _, child in layer._children()
    )


def _sum(first: Array, second: Array) -> Array:
    """Return the sum of two arrays of one shape, in the memory layout of the first."""
    _check_same(first.shape, second.shape)
    if first.ndim == 4:
        out = empty_images(first.shape, first.dtype, is_channels_last(first))
    else:
        out = np.empty_like(first)
    np.add(first, second, out=out)
    return out


def _check_same(shape: Shape, around: Shape) -> None:
    """Raise if the two ways of a `Residual` end in different shapes."""
    if shape != around:
        raise ValueError(f"the body gives shape {shape}, but its shortcut {around}")


def _tree(layer: Layer) -> str:
    """Write a layer with one line for each layer inside."""
    lines = "\n".join(f"({name}): {child!r}" for name, child in layer._children())
    return f"{type(layer).__name__}(" + (f"\n{indent(lines, '  ')}\n)" if lines else ")")
