"""The table of a net's layers: shapes, sizes, work and receptive fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from convkern.geometry import PaddingPairs, integer

if TYPE_CHECKING:
    from convkern.nn.base import Layer


class Window(NamedTuple):
    """What a sliding window spans and how it moves, in rows and columns of its input.

    Without `padding`, the windows are known to reach everything.
    """

    extent: tuple[int | Fraction, int | Fraction]
    stride: tuple[int | Fraction, int | Fraction]
    padding: PaddingPairs | None = None


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
        of the output depends on, at most; None where the output is no longer a map.
        Ways that meet again count with the larger one.
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
    start = _Reach((1, *given[len(batch) :]))
    rows: list[Row] = []
    _follow(net, "", start, batch, rows)
    multiply_adds = sum(row.multiply_adds for row in rows)
    return Summary(given, tuple(rows), net.num_parameters(), multiply_adds)


class _Reach(NamedTuple):
    """A shape on the way through the net, and what one element there sees of the input."""

    shape: tuple[int, ...]
    field: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))
    # How far apart in the net's input neighbours lie.
    jump: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))


def _follow(
    layer: Layer, name: str, reach: _Reach, batch: tuple[int, ...], rows: list[Row]
) -> _Reach:
    """Append the rows of `layer`, whose input is `reach`; return what its output is."""
    chains = layer._chains()
    if chains:
        ends = []
        for chain in chains:
            end = reach
            for child_name, child in chain:
                path = join_names(name, child_name)
                end = _follow(child, path, end, batch, rows)
            ends.append(end)
        shape = _output_shape(layer, name, reach.shape) if len(ends) > 1 else ends[0].shape
        rows_seen, columns_seen = (max(end.field[axis] for end in ends) for axis in (0, 1))
        return ends[0]._replace(shape=shape, field=(rows_seen, columns_seen))
    shape = _output_shape(layer, name, reach.shape)
    field, jump, unused = list(reach.field), list(reach.jump), [0, 0]
    if window := layer._window(reach.shape):
        for axis in (0, 1):
            extent, stride = window.extent[axis], window.stride[axis]
            field[axis] += (extent - 1) * jump[axis]
            jump[axis] *= stride
            if window.padding is not None:
                padded = reach.shape[axis - 2] + sum(window.padding[axis])
                last = (shape[axis - 2] - 1) * stride + extent
                # In ceil mode the last window may reach further than the padding.
                unused[axis] = max(0, int(padded - last))
    seen = math.floor(field[0]), math.floor(field[1])
    rows.append(
        Row(
            name=name or type(layer).__name__,
            layer=repr(layer),
            output_shape=batch + shape[1:],
            parameters=layer.num_parameters(),
            multiply_adds=layer._multiply_adds(reach.shape),
            receptive_field=seen if len(shape) == 4 else None,
            unused=(unused[0], unused[1]),
        )
    )
    return _Reach(shape, (field[0], field[1]), (jump[0], jump[1]))


def _output_shape(layer: Layer, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the layer's output; an error says which layer it is."""
    try:
        return layer.output_shape(shape)
    except ValueError as error:
        name = name or type(layer).__name__
        raise ValueError(f"in layer {name}, {layer!r}: {error}") from error


def join_names(name: str, child: str) -> str:
    """Return the full name of what is inside a layer; an empty name adds nothing."""
    return f"{name}.{child}" if name and child else name or child


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
