"""Layers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from convkern.arrays import empty_images, is_channels_last
from convkern.functional.activation import add
from convkern.nn.base import Array, Layer, Shape
from convkern.nn.containers import _gives_away, _LayerList


class Concat(_LayerList):
    """Layers side by side on one input, their outputs joined along the channels.

    Source: Szegedy et al., *Going deeper with convolutions*, 2015, whose inception
    blocks are made so.

    Parameters
    ----------
    *layers : Layer or (str, Layer)
        The branches, as for `Sequential`; at least one.

    Attributes
    ----------
    layers : list of Layer
        The branches.

    Raises
    ------
    TypeError, ValueError
        As for `Sequential`, or if there are no branches.

    Notes
    -----
    The channels are the third axis from the end; of vectors, the last axis.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Concat, Conv2d
    >>> block = Concat(("small", Conv2d(3, 4, 1)), ("large", Conv2d(3, 2, 3, padding=1)))
    >>> block(np.zeros((1, 3, 8, 8), np.float32)).shape
    (1, 6, 8, 8)
    >>> list(block.state_dict())
    ['small.weight', 'small.bias', 'large.weight', 'large.bias']
    """

    def __init__(self, *layers: Layer | tuple[str, Layer] | Mapping[str, Layer]) -> None:
        super().__init__(*layers)
        if not self.layers:
            raise ValueError("layers must be at least one, got none")

    def forward(self, input: Array) -> Array:
        """Return the outputs of all branches, joined."""
        return join([layer.forward(input) for layer in self.layers])

    def record(self, input: Array) -> tuple[Array, list[tuple[int, Any]]]:
        """Return the joined outputs; of each branch its number of channels and what it keeps."""
        outputs, kept = zip(*(layer.record(input) for layer in self.layers), strict=True)
        channels = [output.shape[_channel_axis(output.ndim)] for output in outputs]
        return join(outputs), list(zip(channels, kept, strict=True))

    def gradient(
        self, grad_output: Array, kept: list[tuple[int, Any]], input_gradient: bool = True
    ) -> Array | None:
        """Return the sum of the gradients of all branches."""
        total: Array | None = None
        own = False
        axis = _channel_axis(grad_output.ndim)
        ends = list(accumulate(channels for channels, _ in kept))
        parts = np.split(grad_output, ends[:-1], axis)
        for layer, part, (_, state) in zip(self.layers, parts, kept, strict=True):
            gradient = layer.gradient(part, state, input_gradient)
            if gradient is not None and total is not None:
                total, own = add(total, gradient, overwrite=own), True
            else:
                total, own = gradient, _gives_away(layer, first=True)
        return total

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape of the joined outputs."""
        return _joined_shape([layer.output_shape(input_shape) for layer in self.layers])

    def _chains(self) -> list[list[tuple[str, Layer]]]:
        """Return the branches."""
        return [[branch] for branch in self._children()]


def _channel_axis(ndim: int) -> int:
    """Return the axis of the channels: of images the third from the end, of vectors the last."""
    return -3 if ndim > 2 else -1


def join(outputs: Sequence[Array]) -> Array:
    """Return arrays joined along the channels, in the memory layout of the first."""
    first = outputs[0]
    shape = _joined_shape([output.shape for output in outputs])
    if first.ndim == 4:
        joined = empty_images(shape, first.dtype, is_channels_last(first))
    else:
        joined = np.empty(shape, first.dtype)
    np.concatenate(outputs, _channel_axis(first.ndim), out=joined, casting="no")
    return joined


def _joined_shape(shapes: Sequence[Shape]) -> Shape:
    """Return the shape of arrays joined along the channels, or raise if they do not fit."""
    axis = _channel_axis(len(shapes[0]))
    joined = list(shapes[0])
    joined[axis] = sum(shape[axis] for shape in shapes)
    for shape in shapes:
        if [*shape[:axis], joined[axis], *shape[axis:][1:]] != joined:
            raise ValueError(f"the branches give shapes that do not fit: {list(shapes)}")
    return tuple(joined)
