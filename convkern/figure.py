"""A picture of one image's way through a network: filters, feature maps, classes."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from convkern.errors import import_extra
from convkern.images import IMAGENET_MEAN, IMAGENET_STD
from convkern.nn import AvgPool2d, Layer, LPPool2d, MaxPool2d, Sequential, Step

Array = npt.NDArray[Any]

# Inches: the page without margins, spaces between columns, and the heights of its bands.
_WIDTH, _MARGIN, _SPACE, _WIDE_SPACE = 15.2, 0.4, 0.22, 0.4
_HEADER, _LINE, _TOP, _BOTTOM = 0.95, 0.5, 3.95, 1.5
_COLUMNS = 4  # of layers
_MAPS = (5, 7)  # rows and columns of feature maps shown of a layer
_GAP = 0.1  # between the tiles of a mosaic, as a share of a tile
_CLASSES = 8  # at most, to be legible
_COLORS = "magma"
INK, SOFT, _TRACK, ACCENT = "#1d1b26", "#77738a", "#efedf3", "#b5367a"


def draw_walk(
    path: str | os.PathLike[str],
    net: Sequential,
    image: Array,
    classes: Sequence[tuple[str, float]],
    *,
    title: str,
    subtitle: str = "",
) -> None:
    """Draw what a network makes of an image, layer by layer, into a file.

    The picture shows the image, the filters of the first convolution, the strongest feature
    maps of every convolution and pooling, what the linear layers give, and the best classes.

    Parameters
    ----------
    path : str or path-like
        The file to write; its extension says the format, such as ``.png``, ``.svg`` or ``.pdf``.
    net : Sequential
        A network in evaluation mode for images of three channels that ends in logits.
    image : ndarray, (1, 3, H, W)
        Normalised as by `convkern.images.load_image`.
    classes : sequence of (str, float)
        Names and probabilities of the best classes, the best first; eight are shown.
    title, subtitle : str
        What stands above.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If matplotlib knows no format of such an extension.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from convkern.figure import draw_walk
    >>> from convkern.models import cs231n_convnet
    >>> image = np.zeros((1, 3, 32, 32), np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "net.png")
    ...     draw_walk(path, cs231n_convnet().eval(), image, [("cat", 0.5)], title="A net")
    ...     os.listdir(folder)
    ['net.png']
    """
    steps = list(net.walk(image))
    maps = [step for step in steps if step.output.ndim == 4 and _looks_around(step.layer)]
    vectors = [step for step in steps if step.output.ndim == 2 and step.layer.num_parameters()]
    rows = math.ceil(len(maps) / _COLUMNS)

    # Everything is measured in inches: bands of the page, each under a line of text.
    panel = (_WIDTH - (_COLUMNS - 1) * _SPACE) / _COLUMNS
    bands = [_TOP, *[panel * _mosaic_shape(*_MAPS)] * rows]
    if vectors:
        bands.append(_BOTTOM)
    height = _HEADER + sum(bands) + len(bands) * _LINE + _MARGIN
    page = _WIDTH + 2 * _MARGIN, height
    figure = import_extra("matplotlib.figure").Figure(figsize=page, facecolor="white")
    header = {"ha": "left", "va": "center", "parse_math": False}
    left = _MARGIN / page[0]
    figure.text(left, 1 - 0.42 / height, title, size=21, weight="bold", color=INK, **header)
    figure.text(left, 1 - 0.82 / height, subtitle, size=11.5, color=SOFT, **header)

    def axes_of(band: int, start: float, width: float) -> Any:
        """Return axes in a band of the page, from `start`, `width` wide."""
        above = _HEADER + sum(bands[: band + 1]) + (band + 1) * _LINE
        box = ((_MARGIN + start) / page[0], 1 - above / height)
        return figure.add_axes((*box, width / page[0], bands[band] / height))

    _draw_image(axes_of(0, 0, _TOP), image[0])
    rest = _WIDTH - _TOP - 2 * _WIDE_SPACE
    draw_filters(axes_of(0, _TOP + _WIDE_SPACE, 0.56 * rest), net)
    _draw_classes(axes_of(0, _WIDTH - 0.44 * rest, 0.44 * rest), classes)
    for index, step in enumerate(maps):
        row, column = divmod(index, _COLUMNS)
        _draw_maps(axes_of(row + 1, column * (panel + _SPACE), panel), step)
    panel = (_WIDTH - (len(vectors) - 1) * _SPACE) / max(1, len(vectors))
    for index, step in enumerate(vectors):
        _draw_vector(axes_of(rows + 1, index * (panel + _SPACE), panel), step, panel / _BOTTOM)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(path, dpi=120)


def _looks_around(layer: Layer) -> bool:
    """Tell whether a layer is a pooling or has convolutions inside."""
    convolves = any(parameter.data.ndim == 4 for parameter in layer.parameters())
    return convolves or isinstance(layer, AvgPool2d | LPPool2d | MaxPool2d)


def _draw_image(axes: Any, image: Array) -> None:
    """Show the image as the network sees it, its colours no longer normalised."""
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (IMAGENET_MEAN, IMAGENET_STD))
    axes.imshow(np.clip(image * std + mean, 0, 1).transpose(1, 2, 0))
    _label(axes, "input", _times(image.shape))


def draw_filters(axes: Any, net: Sequential) -> None:
    """Show the filters of the first layer.

    What sees three colours is grey where a weight is zero; else the mean over
    the channels is shown, from violet to orange, and white where it is zero.
    """
    name, weight = next(iter(net.named_parameters()))
    filters = weight.data if weight.data.shape[1] == 3 else weight.data.mean(1, keepdims=True)
    largest = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    filters = 0.5 + filters / np.where(largest > 0, 2 * largest, 1)
    if filters.shape[1] == 1:
        colors = import_extra("matplotlib").colormaps["PuOr_r"]
        filters = colors(filters[:, 0])[..., :3].transpose(0, 3, 1, 2)
    rows = max(1, round(math.sqrt(len(filters) / 1.5)))
    columns = math.ceil(len(filters) / rows)
    axes.imshow(_mosaic(filters.transpose(0, 2, 3, 1), rows, columns))
    _label(axes, name, f"{len(filters)} filters of {_times(weight.data.shape[1:])}")


def _draw_classes(axes: Any, classes: Sequence[tuple[str, float]]) -> None:
    """Show the best classes as bars."""
    for place, (label, probability) in enumerate(classes[:_CLASSES]):
        text = {"va": "bottom", "size": 12.5, "color": INK, "parse_math": False}
        label = label if len(label) <= 36 else f"{label[:35]}…"
        axes.text(0, place - 0.24, label, **text)
        axes.text(1, place - 0.24, f"{probability:.2%}", ha="right", **text)
        axes.barh(place, 1, height=0.26, color=_TRACK)
        axes.barh(place, probability, height=0.26, color=ACCENT)
    axes.set_xlim(0, 1)
    axes.set_ylim(min(max(5, len(classes)), _CLASSES) - 0.87, -0.66)
    axes.set_axis_off()
    _label(axes, "best classes", "probability")


def _draw_maps(axes: Any, step: Step) -> None:
    """Show the feature maps of the largest range, each scaled to its own."""
    maps = step.output[0]
    smallest, largest = (f(maps, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    extent = largest - smallest
    chosen = np.sort(np.argsort(-extent.ravel(), kind="stable")[: math.prod(_MAPS)])
    scaled = (maps - smallest) / np.where(extent > 0, extent, 1)
    colors = import_extra("matplotlib").colormaps[_COLORS]
    axes.imshow(_mosaic(colors(scaled[chosen])[..., :3], *_MAPS))
    _label(axes, f"{step.name}  {_kind(step)}", _times(maps.shape))


def _draw_vector(axes: Any, step: Step, aspect: float) -> None:
    """Show the numbers of a vector as pixels, row by row, `aspect` times as wide as high."""
    vector = step.output[0]
    rows = max(1, round(math.sqrt(vector.size / aspect)))
    pixels = np.full(rows * math.ceil(vector.size / rows), np.nan)
    pixels[: vector.size] = vector
    axes.imshow(pixels.reshape(rows, -1), cmap=_COLORS, aspect="auto")
    _label(axes, f"{step.name}  {_kind(step)}", f"{vector.size}")


def _mosaic_shape(rows: int, columns: int) -> float:
    """Return the height of a mosaic of square tiles over its width."""
    return (rows + (rows - 1) * _GAP) / (columns + (columns - 1) * _GAP)


def _mosaic(tiles: Array, rows: int, columns: int) -> Array:
    """Return RGB tiles (count, H, W, 3) of 0..1 side by side on white, enlarged if small."""
    zoom = max(1, math.ceil(40 / tiles.shape[1]))
    tiles = tiles.repeat(zoom, axis=1).repeat(zoom, axis=2)
    _, high, wide, _ = tiles.shape
    gap = max(1, round(_GAP * high))
    canvas = np.ones((rows * (high + gap) - gap, columns * (wide + gap) - gap, 3))
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        top, left = row * (high + gap), column * (wide + gap)
        canvas[top : top + high, left : left + wide] = tile
    return canvas


def _label(axes: Any, left: str, right: str) -> None:
    """Write what is shown above it, and remove what a plot would have around it."""
    text = {"size": 11, "pad": 5, "parse_math": False}
    axes.set_title(left, loc="left", color=INK, **text)
    axes.set_title(right, loc="right", color=SOFT, **text)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_anchor("NW")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _kind(step: Step) -> str:
    """Return the name of a step's layer without its arguments."""
    return " + ".join(part.partition("(")[0] for part in repr(step.layer).split(" + "))


def _times(shape: Sequence[int]) -> str:
    """Write a shape as ``3 x 227 x 227``."""
    return " x ".join(map(str, shape))
