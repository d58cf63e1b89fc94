"""What is drawn: the ratios, and where each case stands under the machine's limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import geometric_mean
from textwrap import fill
from typing import Any

import numpy as np

from convkern.bench.report import introduction, trusted
from convkern.bench.timing import BEST, OURS, SAME, Row

_FASTER, _SLOWER = "#2f7f79", "#c8553d"
_MARKS = tuple(zip("osD^v<>", ("w", "gold", "C0", "C4", "C6", "C5", "C2"), strict=True))


def plot(rows: Sequence[Row], environment: Mapping[str, Any], path: Path) -> None:
    """Draw a bar for the ratio of every row and, for operators, a roofline.

    Parameters
    ----------
    rows : sequence of dict
        What was measured.
    environment : mapping
        What the numbers depend on, with ``fma_peak_gflops`` and ``copy_gbytes``.
    path : Path
        The picture to write; its suffix tells the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rated = [row for row in trusted(rows) if row["gflops"] and row["intensity"]]
    height = max(2.6 + 0.21 * len(rows), 6.2 if rated else 0)
    figure = pyplot.figure(figsize=(14 if rated else 8, height))
    # The roofline keeps its proportions however many rows there are.
    grid = figure.add_gridspec(
        2,
        1 + bool(rated),
        width_ratios=[7, 6][: 1 + bool(rated)],
        height_ratios=[6.2, max(height - 6.2, 1e-3)],
    )
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.1, hspace=0)
    _plot_ratios(figure.add_subplot(grid[:, 0]), rows, room=16 if rated else 2)
    if rated:
        _plot_roofline(figure.add_subplot(grid[0, 1]), rated, environment)
    lines = introduction(environment).splitlines()[:4]
    wrap = partial(fill, width=int(11 * figure.get_figwidth()), break_on_hyphens=False)
    figure.suptitle("\n".join(map(wrap, lines)), fontsize="small")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _plot_ratios(axes: Any, rows: Sequence[Row], room: int) -> None:
    """Draw a bar from 1 to the ratio that counts most, and a mark for every peer's.

    There is room for so many rows at least: one alone is no tower.
    """
    from matplotlib.patches import Patch
    from matplotlib.ticker import LogLocator

    peers = [name for name in rows[0]["columns"] if name not in (BEST, SAME)]
    main = BEST if len(peers) > 1 else peers[0]
    places = np.arange(len(rows))
    ratios = np.array([row["ratios"].get(main, 1.0) for row in rows])
    colors = np.where(ratios >= 1, _FASTER, _SLOWER)
    bars = axes.barh(places, ratios - 1, 0.72, 1, color=colors, alpha=0.75)
    for bar, row in zip(bars, rows, strict=True):
        bar.set_alpha(0.3 if row["busy"] else 0.75)
    handles = [Patch(color=_FASTER, alpha=0.75, label=_legend(rows, main))]
    for name, (marker, color) in zip(peers if main == BEST else (), cycle(_MARKS)):
        handles += axes.plot(
            [row["ratios"].get(name, np.nan) for row in rows],
            places,
            marker,
            color=color,
            markeredgecolor="#333333",
            markersize=5,
            label=_legend(rows, name),
        )
    _write_ratios(axes, rows, main)
    shown = [0.6, 1.8, *(r for row in trusted(rows) or rows for r in row["ratios"].values())]
    axes.axvline(1, color="black", linewidth=1.2)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(shown) / 1.1, max(shown) * 1.1)
    axes.xaxis.set_major_locator(LogLocator(2, (1, 1.5) if max(shown) < 8 * min(shown) else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("peer's time / convkern's time  (right of 1: convkern is faster)")
    axes.set_ylim(max(len(rows), room) - 0.4, -0.6)
    axes.set_yticks(places, _names(rows), fontsize="small")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        fontsize="small",
        title="Ratios of every row, and their geometric means"
        + " (frozen)" * any(row["frozen"] for row in rows),
        title_fontsize="small",
        alignment="left",
    )


def _write_ratios(axes: Any, rows: Sequence[Row], main: str) -> None:
    """Write the ratios in a column on the right, where they cover nothing."""
    for place, row in enumerate(rows):
        ratio = row["ratios"].get(main)
        color = _SLOWER if row["wrong"] or (ratio and ratio < 1) else _FASTER
        axes.text(
            1.01,
            place,
            "WRONG" if row["wrong"] else f"{ratio:.2f}" + " busy" * row["busy"],
            transform=axes.get_yaxis_transform(),
            verticalalignment="center",
            fontsize="small",
            color="#999999" if row["busy"] else color,
        )


def _legend(rows: Sequence[Row], name: str) -> str:
    """Return the name of a column with the geometric mean of what can be trusted.

    Of a plain and a frozen net it is that of the frozen one.
    """
    counted = trusted(rows)
    counted = [row for row in counted if row["frozen"]] or counted
    ratios = [row["ratios"][name] for row in counted]
    return f"{name}: {geometric_mean(ratios):.2f}" if ratios else name


def _names(rows: Sequence[Row]) -> list[str]:
    """Return the names of the rows: the label and what else is not the same for all."""
    varied = [key for key in ("batch", "layout") if len({row[key] for row in rows}) > 1]
    names = []
    for row in rows:
        parts = {"batch": f"N={row['batch']}", "layout": row["layout"]}
        names.append("  ".join([row["label"], *(parts[key] for key in varied)]))
    return names


def _plot_roofline(axes: Any, rows: Sequence[Row], environment: Mapping[str, Any]) -> None:
    """Draw the rate of every row over its arithmetic intensity, under the machine's roof."""
    from matplotlib import colormaps
    from matplotlib.ticker import NullFormatter

    peak, bytes_rate = environment["fma_peak_gflops"], environment["copy_gbytes"]
    intensities = np.array([row["intensity"] for row in rows])
    ridge = peak / bytes_rate
    lowest = min(intensities.min() / 2, ridge / 10)
    highest = max(intensities.max() * 2, ridge * 10)
    roof = np.array([lowest, ridge, highest])
    axes.plot(roof, np.minimum(peak, bytes_rate * roof), color="black", linewidth=1.4)
    _, networks = np.unique([row["label"].split("/")[0] for row in rows], return_index=True)
    names = [rows[index]["label"].split("/")[0] for index in sorted(networks)]
    for index, name in enumerate(names):
        members = [row for row in rows if row["label"].split("/")[0] == name]
        axes.plot(
            [row["intensity"] for row in members],
            [row["gflops"] for row in members],
            "o",
            color=colormaps["tab10"](index % 10),
            markeredgecolor="white",
            markeredgewidth=0.6,
            markersize=7,
            label=name,
            zorder=3,
        )
    best = np.array([_best_rate(row) for row in rows])
    ours = np.array([row["gflops"] for row in rows])
    axes.vlines(intensities, best, ours, color="#bbbbbb", linewidth=0.8, zorder=1)
    axes.plot(intensities, best, "_", color="#888888", markersize=7, label="best peer", zorder=2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(lowest, highest)
    axes.set_ylim(min(ours.min(), best.min(), peak / 20) / 1.6, 1.9 * max(peak, ours.max()))
    axes.text(
        1.05 * ridge, 1.05 * peak, f"FMA peak {peak:.0f} GFLOP/s", va="bottom", fontsize="small"
    )
    # Along the slope and a little above it, from its lower end.
    start, above = 1.1 * max(lowest, axes.get_ylim()[0] / bytes_rate), 1.1 * bytes_rate
    axes.text(
        start,
        above * start,
        f"copying memory {bytes_rate:.0f} GB/s",
        rotation=math.degrees(math.atan(above)),
        rotation_mode="anchor",
        transform_rotates_text=True,
        fontsize="small",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("arithmetic intensity: FLOPs / bytes of all arrays, each once")
    axes.set_ylabel("GFLOP/s of the direct algorithm")
    axes.set_title("Roofline", fontsize="medium", loc="left")
    axes.grid(which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize="small", framealpha=0.9)


def _best_rate(row: Row) -> float:
    """Return the GFLOP/s of the fastest peer."""
    fastest = min(time for name, time in row["median_ms"].items() if name != OURS)
    return float(row["flops"] / fastest / 1e6)
