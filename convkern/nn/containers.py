"""Containers: layers made of layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import chain
from operator import is_
from textwrap import indent
from typing import Any, NamedTuple, Self, TypeAlias, overload

import numpy as np

from convkern import functional
from convkern.arrays import (
    ANY_NDIM,
    as_array,
    fills_lanes,
    is_dense_channels_last,
    is_images_last,
    to_images_last,
)
from convkern.functional.activation import add, relu_gradient
from convkern.functional.max_pool import Windows
from convkern.nn.activation import ReLU
from convkern.nn.base import Array, Layer, Shape
from convkern.nn.common import check_same_ways
from convkern.nn.conv import Conv2d, ConvTranspose2d
from convkern.nn.linear import Linear
from convkern.nn.norm import BatchNorm2d
from convkern.nn.pool import AvgPool2d, MaxPool2d
from convkern.nn.summary import join_names
from convkern.precision import get_float32_precision

#: Layers whose output, and gradient of the input, nobody else holds: it may be overwritten.
_GIVING_AWAY = (Conv2d, ConvTranspose2d, BatchNorm2d, Linear)


class Step(NamedTuple):
    """One step of `Sequential.walk`.

    Attributes
    ----------
    name : str
        Where the layer stands in the net, such as ``features.0``.
    layer : Layer
        The layer; a convolution or `Residual` and the ReLU after it are one, with
        the name of the first.
    output : ndarray
        What it returned.
    """

    name: str
    layer: Layer
    output: Array


class _LayerList(Layer):
    """What `Sequential` and `Concat` share: a list of layers with names."""

    def __init__(self, *layers: Layer | tuple[str, Layer] | Mapping[str, Layer]) -> None:
        entries = layers
        if len(layers) == 1 and isinstance(layers[0], Mapping):
            entries = tuple(layers[0].items())
        self.layers: list[Layer] = []
        # By layer, not by position: names stay right while `layers` is edited.
        self._names: dict[Layer, str] = {}
        for entry in entries:
            name, layer = entry if isinstance(entry, tuple) and len(entry) == 2 else (None, entry)
            if not isinstance(layer, Layer) or not isinstance(name, str | None):
                raise TypeError(f"layers must be Layer or (str, Layer), got {entry!r}")
            self.layers.append(layer)
            if name is not None:
                self._names[layer] = name
        _check_names(self)

    def _children(self) -> Iterator[tuple[str, Layer]]:
        """Yield the layers with their names."""
        return (
            (self._names.get(layer, str(index)), layer) for index, layer in enumerate(self.layers)
        )

    def _inside(self) -> list[Layer]:
        """Return the layers."""
        return self.layers

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    @overload
    def __getitem__(self, index: int | str) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | str | slice) -> Layer | Self:
        """Return a layer by its place or its name, or a part of the net that shares its layers."""
        if isinstance(index, slice):
            part = copy(self)
            part.layers = self.layers[index]
            part._names = {layer: name for name, layer in list(self._children())[index]}
            return part
        if isinstance(index, str):
            return dict(self._children())[index]
        return self.layers[index]

    def __repr__(self) -> str:
        return _tree(self)


class Sequential(_LayerList):
    """Layers that run one after another.

    Parameters
    ----------
    *layers : Layer or (str, Layer)
        The layers, or names and layers; a layer without a name is named by its
        index.  One mapping of names to layers does as well.

    Attributes
    ----------
    layers : list of Layer
        They may be replaced, added and removed.

    Raises
    ------
    TypeError
        If something is neither a layer nor a name and a layer.
    ValueError
        If a name has a dot or stands twice.

    Notes
    -----
    Inside a net with convolutions activations travel channels-last, or images-last
    where 16, 32, 48 or 64 images meet few channels. A `ReLU` right after a `Conv2d`, a
    `BatchNorm2d` or a `Residual` is computed within that. Neither changes `layers` or
    what the net computes, and training does the same.

    A layer with the empty name adds nothing to the names of what is inside it:
    ``Sequential(("", Linear(2, 3)))`` has a ``weight``, not a ``0.weight``.

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

    _last_parts: tuple[list[Layer], _Parts] | None = None

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
        leaves = list(self._leaves())
        for place, layer, output, _ in self._run(input, keep=False):
            yield Step(leaves[place][0], layer, output)

    def forward(self, input: Array) -> Array:
        """Return the last output of `walk`, or `input` itself if there are no layers."""
        output = input
        for _, _, result, _ in self._run(input, keep=False):
            output = result
        return output

    def record(self, input: Array) -> tuple[Array, list[tuple[Layer, Any]]]:
        """Return the last output, and what each layer keeps."""
        output, kept = input, []
        for _, layer, result, state in self._run(input, keep=True):
            output = result
            kept.append((layer, state))
        return output, kept

    def gradient(
        self, grad_output: Array, kept: list[tuple[Layer, Any]], input_gradient: bool = True
    ) -> Array | None:
        """Return the gradient of the input, from the last layer to the first.

        Without `input_gradient` the way ends at the first layer that learns.
        """
        # Steps before the first that learns are not gone through, unless for the input's gradient.
        learning = (i for i, (layer, _) in enumerate(kept) if layer._learns())
        first = 0 if input_gradient else next(learning, len(kept))
        gradient: Array | None = grad_output
        after: Layer | None = None  # whose input's gradient it is
        while len(kept) > first:
            layer, state = kept.pop()  # its memory may serve the layers before it
            assert gradient is not None
            wanted = input_gradient or len(kept) > first
            if type(layer) is _Fused:
                own = after is not None and _gives_away(after, first=True)
                gradient = layer.gradient(gradient, state, wanted, overwrite=own)
            else:
                gradient = layer.gradient(gradient, state, wanted)
            after = layer
        return gradient if input_gradient else None

    def _run(
        self, input: Array, keep: bool, **last: Any
    ) -> Iterator[tuple[int, Layer, Array, Any]]:
        """Run the net layer by layer, yielding each with its place, output and what it keeps.

        `last` are keywords for the last layer.
        """
        parts, convolutions = self._parts(keep)
        input = _in_best_layout(input, convolutions)
        moments: tuple[Array, Array] | None = None
        kept: Any
        before: Any = None  # what the last layer has kept
        after = 0
        while after < len(parts):
            place, layer, pooled, norm = parts[after]
            after += 1
            options: dict[str, Any] = {}
            if keep and pooled is not None:
                windows = pooled.windows(input)
                if windows is not None:
                    layer, options = pooled, {"windows": windows}
                    after += 1
            if after == len(parts):
                options.update(last)
            if moments is not None:
                options["moments"] = moments
            moments = None
            try:
                if not keep:
                    input, kept = layer.forward(input, **options), None
                elif norm is not None and norm.takes_moments():
                    assert isinstance(layer, Conv2d | _Fused)
                    input, kept, moments = layer.record_moments(input)
                else:
                    input, kept = layer.record(input, **options)
                    kept = _through_relu(before, layer, kept, input)
            except (TypeError, ValueError) as error:
                name, _ = list(self._leaves())[place]
                error.add_note(f"in layer {name}, {layer!r}")
                raise
            before = kept
            yield place, layer, input, kept

    def _parts(self, keep: bool) -> _Parts:
        """Return what `_run` goes through; it may be kept until the layers are others."""
        line = self._line()
        if self._last_parts is not None:
            last, known = self._last_parts
            if len(line) == len(last) and all(map(is_, line, last)):
                return known
        parts, after = [], 0
        while after < len(line):
            place, layer = after, line[after]
            after += 1
            # Exact types: a subclass may compute something else.
            follower = line[after] if after < len(line) else None
            if type(follower) is ReLU and (
                type(layer) is Conv2d or type(layer) is BatchNorm2d or type(layer) is Residual
            ):
                layer = _Fused(layer, follower)
                after += 1
                follower = line[after] if after < len(line) else None
            first = layer.layer if isinstance(layer, _Fused) else layer
            pooled = norm = None
            if type(first) is BatchNorm2d and type(follower) is MaxPool2d:
                pooled = _Pooled(layer, first, follower)
            if type(first) is Conv2d and type(follower) is BatchNorm2d:
                norm = follower
            parts.append(_Part(place, layer, pooled, norm))
        if not keep:  # mostly the first of the convolutions is enough, then
            return parts, _convolutions(self)
        self._last_parts = line, (parts, list(_convolutions(self)))
        return self._last_parts[1]

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape of the last layer's output."""
        shape = tuple(input_shape)
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    def _chains(self) -> list[list[tuple[str, Layer]]]:
        """Return the layers in a row."""
        # A subclass with a forward of its own is more than its layers in a row.
        return [list(self._children())] if type(self).forward is Sequential.forward else []

    def _leaves(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """Yield the layers with full names, and those of nested nets in place of the net."""
        for name, layer in self._children():
            path = join_names(prefix, name)
            if isinstance(layer, Sequential) and layer._chains():
                yield from layer._leaves(path)
            else:
                yield path, layer

    def _line(self) -> list[Layer]:
        """Return the layers of `_leaves` without the names, which take longer to make."""
        line = []
        for layer in self.layers:
            if isinstance(layer, Sequential) and type(layer).forward is Sequential.forward:
                line += layer._line()
            else:
                line.append(layer)
        return line


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
    names : (str, str)
        What body and shortcut are called in `state_dict`.  An empty name adds
        nothing, so that with ``("", "downsample")`` the names are torchvision's.

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
        As for `Sequential`, or if `shortcut` is not a layer or `names` not two strings.

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

    def __init__(
        self,
        *layers: Layer | tuple[str, Layer] | Mapping[str, Layer],
        shortcut: Layer | None = None,
        names: tuple[str, str] = ("body", "shortcut"),
    ) -> None:
        if not isinstance(shortcut, Layer | None):
            raise TypeError(f"shortcut must be a Layer or None, got {shortcut!r}")
        if not isinstance(names, tuple) or [*map(type, names)] != [str, str]:
            raise TypeError(f"names must be two strings, got {names!r}")
        self.body = Sequential(*layers)
        self.shortcut = shortcut
        self.names = names
        _check_names(self)

    def forward(self, input: Array, *, activation: str | None = None) -> Array:
        """Return the sum of both ways, activated if wanted."""
        return self._both(input, activation, keep=False)[0]

    def record(
        self, input: Array, *, activation: str | None = None
    ) -> tuple[Array, tuple[Any, Any]]:
        """Return the sum of both ways, activated if wanted, and what they keep."""
        return self._both(input, activation, keep=True)

    def _both(
        self, input: Array, activation: str | None, keep: bool
    ) -> tuple[Array, tuple[Any, Any]]:
        """Go both ways, and add up."""
        output = input = as_array(input, "input", ANY_NDIM)
        around, of_shortcut = input, None
        if self.shortcut is not None:
            if keep:
                around, of_shortcut = self.shortcut.record(input)
            else:
                around = self.shortcut.forward(input)
        # A normalisation at the end of the body does the rest in its own pass.
        last = {"plus": around, "activation": activation} if self._ends_normalised() else {}
        of_body = []
        for _, layer, result, state in self.body._run(input, keep, **last):
            output = result
            of_body.append((layer, state))
        if not last:
            check_same_ways(output.shape, around.shape)
            output = add(output, around, activation, overwrite=_gives_away(self.body))
        return output, (of_body, of_shortcut)

    def _ends_normalised(self) -> bool:
        """Tell whether the body's last layer is a batch normalisation."""
        line = self.body._line()
        return bool(line) and type(line[-1]) is BatchNorm2d

    def gradient(
        self, grad_output: Array, kept: tuple[Any, Any], input_gradient: bool = True
    ) -> Array | None:
        """Return the sum of the gradients of both ways."""
        of_body, of_shortcut = kept
        through = self.body.gradient(grad_output, of_body, input_gradient)
        around: Array | None = grad_output
        if self.shortcut is not None:
            around = self.shortcut.gradient(grad_output, of_shortcut, input_gradient)
        if through is None or around is None:
            return None
        return add(through, around, overwrite=_gives_away(self.body, first=True))

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape that both ways give."""
        shape = self.body.output_shape(input_shape)
        around = tuple(input_shape)
        if self.shortcut is not None:
            around = self.shortcut.output_shape(input_shape)
        check_same_ways(shape, around)
        return shape

    def _children(self) -> Iterator[tuple[str, Layer]]:
        """Yield both ways with their names."""
        yield self.names[0], self.body
        if self.shortcut is not None:
            yield self.names[1], self.shortcut

    def _chains(self) -> list[list[tuple[str, Layer]]]:
        """Return both ways, one of which may be empty."""
        ways = [[way] for way in self._children()]
        return ways if self.shortcut is not None else [*ways, []]

    def __repr__(self) -> str:
        return _tree(self)


class _Rectified:
    """What a layer keeps, and its activated output, if that tells where the ReLU has let pass."""

    def __init__(self, of_layer: Any, output: Array | None) -> None:
        self.of_layer, self.output = of_layer, output


def _through_relu(before: Any, layer: Layer, kept: Any, output: Array) -> Any:
    """Return what a layer keeps; where that helps, its gradient takes over the ReLU before it.

    What a max pooling has chosen passes where its own output, which is smaller, is positive; a
    batch normalisation reads the ReLU's output anyway.
    """
    if type(before) is not _Rectified or before.output is None:
        return kept
    if type(layer) is MaxPool2d:
        kept = kept._replace(rectified=output)
    elif type(layer) is BatchNorm2d or type(layer) is _Pooled:
        kept = kept._replace(after_relu=True)
    elif type(layer) is _Fused and type(layer.layer) is BatchNorm2d:
        kept.of_layer = kept.of_layer._replace(after_relu=True)
    else:
        return kept
    before.output = None
    return kept


class _Fused(Layer):
    """A layer, and the ReLU after it in the same pass over the output."""

    def __init__(self, layer: Conv2d | BatchNorm2d | Residual, activation: Layer) -> None:
        self.layer, self.activation = layer, activation

    def forward(self, input: Array) -> Array:
        """Return the activated output."""
        return self.layer.forward(input, activation="relu")

    def record(self, input: Array, **options: Any) -> tuple[Array, _Rectified]:
        """Return the activated output; it tells where the layer's own was positive."""
        output, kept = self.layer.record(input, activation="relu", **options)
        # A normalisation takes its gradient through the ReLU by itself.
        return output, _Rectified(kept, None if type(self.layer) is BatchNorm2d else output)

    def record_moments(self, input: Array) -> tuple[Array, _Rectified, tuple[Array, Array] | None]:
        """Return the same of a convolution, and the moments of its activated output."""
        assert isinstance(self.layer, Conv2d)
        output, kept, moments = self.layer.record_moments(input, activation="relu")
        return output, _Rectified(kept, output), moments

    def gradient(
        self,
        grad_output: Array,
        kept: _Rectified,
        input_gradient: bool = True,
        *,
        overwrite: bool = False,
    ) -> Array | None:
        """Return the gradient of the input; with `overwrite`, that of the output is used up."""
        if kept.output is not None:
            grad_output = relu_gradient(grad_output, kept.output, overwrite)
        kept.output = None  # its memory may serve the layer
        of_layer, kept.of_layer = kept.of_layer, None
        return self.layer.gradient(grad_output, of_layer, input_gradient)

    def _learns(self) -> bool:
        """Tell whether the layer does; a ReLU has no parameters."""
        return self.layer._learns()

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape that the layer gives."""
        return self.layer.output_shape(input_shape)

    def __repr__(self) -> str:
        return f"{self.layer!r} + {self.activation!r}"


class _Pooled(Layer):
    """A batch normalisation, or one with a ReLU, and the max pooling after it in the same pass."""

    def __init__(self, layer: Layer, norm: BatchNorm2d, pool: MaxPool2d) -> None:
        self.layer, self.norm, self.pool = layer, norm, pool
        self.activation = "relu" if isinstance(layer, _Fused) else None

    def windows(self, input: Array) -> Windows | None:
        """Return the windows, if the batch's moments are used on images that can be pooled so."""
        if not self.norm.takes_moments() or input.ndim != 4 or not is_dense_channels_last(input):
            return None
        try:
            return self.pool.windows(input.shape)
        except (TypeError, ValueError):
            return None  # the pooling itself will say so

    def forward(self, input: Array, **options: Any) -> Array:
        """Return the maxima."""
        return self.record(input, **options)[0]

    def record(self, input: Array, **options: Any) -> tuple[Array, Any]:
        """Return the maxima, and what the normalisation keeps; `windows` are among the options."""
        return self.norm.record_maxima(input, activation=self.activation, **options)

    def gradient(self, grad_output: Array, kept: Any, input_gradient: bool = True) -> Array | None:
        """Return the gradient of the input."""
        return self.norm.gradient(grad_output, kept, input_gradient)

    def _learns(self) -> bool:
        """Tell whether the normalisation does."""
        return self.norm._learns()

    def __repr__(self) -> str:
        return f"{self.layer!r} + {self.pool!r}"


class _Part(NamedTuple):
    """What `Sequential` runs as one layer."""

    place: int  #: of its first layer
    layer: Layer  #: it, or it and the ReLU after it
    pooled: _Pooled | None  #: it and the next part, if the two may be one
    norm: BatchNorm2d | None  #: the next part, if this is a convolution that may find its moments


_Convolution: TypeAlias = Conv2d | ConvTranspose2d
#: With the convolutions that are anywhere inside, which have a say in the layout only.
_Parts: TypeAlias = tuple[list[_Part], Iterable[_Convolution]]

#: More layers whose gradient of the input nobody else holds.
_GIVING_GRADIENTS_AWAY = (MaxPool2d, AvgPool2d, Residual)


def _convolutions(layer: Layer) -> Iterator[_Convolution]:
    """Yield the convolutions that are anywhere inside, but not what is inside of them."""
    if isinstance(layer, _Convolution):
        yield layer
        return
    for child in layer._inside():
        yield from _convolutions(child)


def _in_best_layout(input: Any, convolutions: Iterable[_Convolution]) -> Any:
    """Return the input of a net in the memory layout that its convolutions are fastest in.

    A net may also begin with vectors and make images of them later.
    """
    others = iter(convolutions)
    first = next(others, None) if np.ndim(input) in (3, 4) else None
    if first is None:
        return input
    if fills_lanes(np.shape(input)) and get_float32_precision() != "highest":
        input = as_array(input, "input", (4,))
        # Inside of another net that one has chosen.
        if is_images_last(input) or all(
            layer.prefers_images_last() for layer in chain([first], others)
        ):
            return to_images_last(input)
    return functional.to_channels_last(input)


def _gives_away(layer: Layer, *, first: bool = False) -> bool:
    """Tell whether a layer's output may be overwritten; with `first`, its input's gradient."""
    if isinstance(layer, Sequential):
        line = layer._line() if layer._chains() else []
        return bool(line) and _gives_away(line[0 if first else -1], first=first)
    if first and type(layer) is _Fused:
        layer = layer.layer
    if first and type(layer) is _Pooled:
        return True
    return type(layer) in _GIVING_AWAY or (first and type(layer) in _GIVING_GRADIENTS_AWAY)


def _tree(layer: Layer) -> str:
    """Write a layer with one line for each layer inside."""
    lines = "\n".join(f"({name}): {child!r}" for name, child in layer._children())
    return f"{type(layer).__name__}(" + (f"\n{indent(lines, '  ')}\n)" if lines else ")")


def _check_names(layer: Layer) -> None:
    """Raise if names of the layers inside, or of what they save, are not clear."""
    names = [name for name, _ in layer._children()]
    saved = [name for name, _, _ in layer._entries()]
    twice = len(set(names)) < len(names) or len(set(saved)) < len(saved)
    if twice or any("." in name for name in names):
        raise ValueError(f"names of layers must be unique and without dots: {names}")
