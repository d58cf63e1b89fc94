"""Pictures of a run: its curves, the first filters, what is taken for what."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from convkern.checkpoint import replacing
from convkern.errors import import_extra
from convkern.figure import ACCENT, INK, SOFT, draw_filters
from convkern.nn import Sequential
from convkern.training.evaluation import Evaluation
from convkern.training.history import Epoch

Path = str | os.PathLike[str]
_GRID = "#e4e1ea"
#: More classes than these are shown without names, without numbers.
_NAMED, _NUMBERED = 120, 20
#: Of fewer epochs each has a dot.
_DOTTED = 40
_FIGURE_SPACE = "\u2007"  # as wide as a digit


def draw_curves(path: Path, history: Sequence[Epoch]) -> None:
    """Draw loss, accuracy and learning rate by epoch into a PNG file.

    Parameters
    ----------
    path : str or path-like
        The file to create or replace.
    history : sequence of Epoch
        At least one epoch.

    Examples
    --------
    >>> import os, tempfile
    >>> from convkern.training import Epoch
    >>> from convkern.training.pictures import draw_curves
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_curves(os.path.join(folder, "curves.png"), [Epoch(1, 0.1, 0.5, 0.9, 99.0)])
    ...     os.listdir(folder)
    ['curves.png']
    """
    numbers = [epoch.number for epoch in history]
    figure = _page(12.5, 4)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1.25, 0.8))
    validated = [epoch for epoch in history if epoch.validation_loss is not None]
    marker = {"marker": "o", "ms": 3.5} if len(history) <= _DOTTED else {}

    def lines(
        axes: Any, title: str, value: Callable[[Epoch], Any], held: Callable[..., Any]
    ) -> None:
        """Draw a value in training and on the held-out images."""
        axes.plot(numbers, [value(epoch) for epoch in history], color=SOFT, label="train", **marker)
        if validated:
            places, values = [e.number for e in validated], [held(e) for e in validated]
            axes.plot(places, values, color=ACCENT, label="held out", **marker)
        axes.legend(frameon=False, labelcolor=INK)
        axes.set_title(title, loc="left", color=INK)

    lines(left, "loss", lambda e: e.loss, lambda e: e.validation_loss)
    left.set_ylim(bottom=0)
    last = history[-1]
    shown = last.accuracy if last.validation_accuracy is None else last.validation_accuracy
    lines(
        middle,
        f"accuracy, {shown:.2%} at the end",
        lambda e: 100 * e.accuracy,
        lambda e: 100 * e.validation_accuracy,
    )
    middle.yaxis.set_major_formatter("{x:g} %")
    right.plot(numbers, [epoch.lr for epoch in history], color=INK, drawstyle="steps-mid", **marker)
    right.set_title("learning rate", loc="left", color=INK)
    right.set_ylim(bottom=0)
    for axes in (left, middle, right):
        axes.set_xlabel("epoch", color=SOFT)
        axes.set_xlim(0.5, len(history) + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.tick_params(colors=SOFT, length=0)
        axes.grid(color=_GRID, lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
    _write(figure, path)


def draw_confusion(path: Path, evaluation: Evaluation, classes: Sequence[str]) -> None:
    """Draw which class was taken for which into a PNG file.

    Shades are shares of each class's images, numbers are images.

    Parameters
    ----------
    path : str or path-like
        The file to create or replace.
    evaluation : Evaluation
        What to draw.
    classes : sequence of str
        The names of the classes.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from convkern.training import Evaluation
    >>> from convkern.training.pictures import draw_confusion
    >>> found = Evaluation.of(np.array([[3, 1], [0, 2]]), 0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_confusion(os.path.join(folder, "confusion.png"), found, ["cat", "dog"])
    ...     os.listdir(folder)
    ['confusion.png']
    """
    confusion, count = evaluation.confusion, len(classes)
    shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    side = float(np.clip(2.5 + 0.45 * count, 5, 16))
    figure = _page(side + 0.6, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap=_shades(), vmin=0, vmax=1)
    axes.set_title(
        f"{evaluation.accuracy:.2%} of {confusion.sum():,} images", loc="left", color=INK, pad=10
    )
    axes.set_xlabel("taken for", color=SOFT)
    axes.set_ylabel("is", color=SOFT)
    axes.tick_params(colors=INK, length=0, labelsize=min(10, 45 * (side - 2) / count))
    axes.spines[:].set_visible(False)
    names = [name if len(name) <= 20 else f"{name[:19]}…" for name in classes]
    if count <= _NAMED:
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        upright = max(map(len, names), default=0) <= 3
        axes.set_xticks(range(count), names, parse_math=False, **({} if upright else turned))
        # The share that is right stands beside the name of its class.
        right = [
            f"{name}   " + (f"{share:.1%}".rjust(6, _FIGURE_SPACE) if share >= 0 else "no images")
            for name, share in zip(names, evaluation.per_class, strict=True)
        ]
        axes.set_yticks(range(count), right, parse_math=False)
        axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", lw=1.5)
        axes.tick_params(which="minor", length=0)
    if count <= _NUMBERED:
        for (row, column), images in np.ndenumerate(confusion):
            if images:
                color = "white" if shares[row, column] > 0.5 else INK
                axes.text(column, row, images, ha="center", va="center", color=color, size=9)
    _write(figure, path)


def draw_filters_of(path: Path, net: Sequential) -> None:
    """Draw the filters of a net's first layer into a PNG file, if it is a convolution.

    Parameters
    ----------
    path : str or path-like
        The file to create or replace.
    net : Sequential
        The net.

    Examples
    --------
    >>> import os, tempfile
    >>> from convkern.models import cs231n_convnet
    >>> from convkern.training.pictures import draw_filters_of
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_filters_of(os.path.join(folder, "filters.png"), cs231n_convnet())
    ...     os.listdir(folder)
    ['filters.png']
    """
    parameters = net.parameters()
    if parameters and parameters[0].data.ndim == 4:
        figure = _page(7.5, 5.5)
        draw_filters(figure.subplots(), net)
        _write(figure, path)


def _shades() -> Any:
    """Return the colours from white to the accent."""
    colors = import_extra("matplotlib.colors")
    return colors.LinearSegmentedColormap.from_list("shares", ["#f6f4f9", ACCENT])


def _page(width: float, height: float) -> Any:
    """Return an empty figure."""
    figure = import_extra("matplotlib.figure").Figure
    page = figure(figsize=(width, height), facecolor="white", layout="constrained")
    page.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    return page


def _write(figure: Any, path: Path) -> None:
    """Write a figure, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
