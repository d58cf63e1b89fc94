"""The table of a net's layers: shapes, sizes, work and receptive fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from convkern.geometry import PaddingPairs, integer

if TYPE_CHECKING:
    from convkern.nn.base import Layer


class Window(NamedTuple):
    """What a sliding window spans and how it moves, in rows and columns of its input."""

    extent: tuple[int, int]
    stride: tuple[int, int]
    padding: PaddingPairs = ((0, 0), (0, 0))


class Row(NamedTuple):
    """One layer of a `Summary`.

    Attributes
    ----------
    name : str
        Where the layer stands in the net, such as ``features.0``.
    layer : str
        The layer, as its constructor is called.
    output_shape : tuple of int
        With the batch if `input_shape` had one.
    parameters : int
        How many numbers the layer learns.
    multiply_adds : int
        Multiplications with an addition per image, in convolutions and linear layers.
    receptive_field : (int, int) or None
        Rows and columns of the net's input, padding included, that one element
        of the output depends on; None where the output is no longer a map.
    unused : (int, int)
        Rows and columns of the layer's padded input, at the bottom and at the
        right, that no window reaches.
    """

    name: str
    layer: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    receptive_field: tuple[int, int] | None
    unused: tuple[int, int]


@dataclass(frozen=True)
class Summary:
    """The layers of a net for one input shape; ``str()`` gives a table.

    Attributes
    ----------
    input_shape : tuple of int
        The shape that the summary was made for.
    rows : tuple of Row
        One row a layer, in the order of the forward pass.
    parameters : int
        How many numbers the net learns; a shared parameter counts once.
    multiply_adds : int
        Multiplications with an addition per image.

    Examples
    --------
    >>> from convkern.nn import Conv2d, MaxPool2d, Sequential
    >>> print(Sequential(Conv2d(1, 2, 3), MaxPool2d(4)).summary((1, 8, 6)))
    name  layer                        output  parameters  multiply-adds  field
    0     Conv2d(1, 2, kernel_size=3)   2x6x4          20            432      3
    1     MaxPool2d(kernel_size=4)      2x1x1           0              0      6  2 rows unused
    20 parameters, 432 multiply-adds per image, input 1x8x6
    """

    input_shape: tuple[int, ...]
    rows: tuple[Row, ...]
    parameters: int
    multiply_adds: int

    def __str__(self) -> str:
        lines = [
            ("name", "layer", "output", "parameters", "multiply-adds", "field", ""),
            *(
                (
                    row.name,
                    row.layer,
                    _times(row.output_shape),
                    f"{row.parameters:,}",
                    f"{row.multiply_adds:,}",
                    _field_text(row.receptive_field),
                    _unused_text(row.unused),
                )
                for row in self.rows
            ),
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        form = "{:{}}  {:{}}  {:>{}}  {:>{}}  {:>{}}  {:>{}}  {:{}}"
        table = [
            form.format(*(part for cell in zip(line, widths, strict=True) for part in cell))
            for line in lines
        ]
        total = (
            f"{self.parameters:,} parameters, {self.multiply_adds:,} multiply-adds "
            f"per image, input {_times(self.input_shape)}"
        )
        return "\n".join([*(line.rstrip() for line in table), total])


def summarize(net: Layer, input_shape: Sequence[int]) -> Summary:
    """Follow `input_shape` through the layers of `net`; see `Layer.summary`."""
    given = tuple(integer(size, "input_shape", 1) for size in input_shape)
    if len(given) not in (1, 2, 3, 4):
        raise ValueError(
            f"input_shape must be (C, H, W) or (N, C, H, W), or (F,) or (N, F), got {given}"
        )
    batch = given[:1] if len(given) in (2, 4) else ()
    shape = (1, *given[len(batch) :])
    field, jump = [1, 1], [1, 1]
    rows = []
    for name, layer in net._leaves():
        try:
            output_shape = layer.output_shape(shape)
        except ValueError as error:
            raise ValueError(f"in layer {name}, {layer!r}: {error}") from error
        unused = [0, 0]
        if window := layer._window(shape):
            for axis in (0, 1):
                # Neighbours in the layer's input lie `jump` elements of the net's input apart.
                field[axis] += (window.extent[axis] - 1) * jump[axis]
                jump[axis] *= window.stride[axis]
                padded = shape[axis - 2] + sum(window.padding[axis])
                steps = output_shape[axis - 2] - 1
                reached = steps * window.stride[axis] + window.extent[axis]
                # In ceil mode the last window may reach further than the padding.
                unused[axis] = max(0, padded - reached)
        rows.append(
            Row(
                name=name,
                layer=repr(layer),
                output_shape=batch + output_shape[1:],
                parameters=layer.num_parameters(),
                multiply_adds=layer._multiply_adds(shape),
                receptive_field=(field[0], field[1]) if len(output_shape) == 4 else None,
                unused=(unused[0], unused[1]),
            )
        )
        shape = output_shape
    multiply_adds = sum(row.multiply_adds for row in rows)
    return Summary(given, tuple(rows), net.num_parameters(), multiply_adds)


def _times(shape: tuple[int, ...]) -> str:
    """Write a shape as ``3x227x227``."""
    return "x".join(map(str, shape))


def _field_text(field: tuple[int, int] | None) -> str:
    """Write a receptive field as its side, or both where they differ."""
    return "" if field is None else _times(field[: 1 + (field[0] != field[1])])


def _unused_text(unused: tuple[int, int]) -> str:
    """Write what a window leaves over, such as ``1 row, 2 columns unused``."""
    counts = zip(unused, ("row", "column"), strict=True)
    parts = [f"{count} {unit}{'s' * (count > 1)}" for count, unit in counts if count]
    return f"{', '.join(parts)} unused" if parts else ""
