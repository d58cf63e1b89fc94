"""What is drawn: ratios and shares of the machine's peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convkern.bench.cases import Array
from convkern.bench.timing import BEST, Row


def plot(rows: Sequence[Row], environment: Mapping[str, Any], path: Path) -> None:
    """Draw the ratios to every peer and the share of the FMA peak, a group of bars for a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    peers = [name for name in rows[0]["columns"] if name != BEST]
    rated = any(row["gflops"] for row in rows)
    figure, axes = pyplot.subplots(
        1,
        1 + rated,
        squeeze=False,
        sharey=True,
        layout="constrained",
        figsize=(7 + 4 * rated, 1.8 + 0.2 * len(rows) * (1 + len(peers))),
        width_ratios=[5, 3][: 1 + rated],
    )
    places = np.arange(len(rows), dtype=float)
    _plot_ratios(axes[0, 0], rows, peers, places)
    axes[0, 0].set_yticks(
        places,
        [
            f"{row['label']}  N={row['batch']}\n{row['layout']}{', busy' * row['busy']}"
            for row in rows
        ],
    )
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    if rated:
        _plot_shares(axes[0, 1], rows, places, environment["fma_peak_gflops"])
    figure.suptitle(
        f"convkern on {environment['cpu']}\n"
        f"{environment['instruction_set']}, threads {environment['threads']}, float32",
        fontsize="medium",
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _plot_ratios(axes: Any, rows: Sequence[Row], peers: Sequence[str], places: Array) -> None:
    """Draw a bar from 1 to the ratio for every row and peer, on a logarithmic axis."""
    height = 0.8 / len(peers)
    for index, name in enumerate(peers):
        ratios = np.array([row["ratios"].get(name, 1.0) for row in rows])
        bars = axes.barh(
            places + (index - (len(peers) - 1) / 2) * height, ratios - 1, height, 1, label=name
        )
        labels = [f" {row['ratios'][name]:.2f} " if row["ratios"] else "" for row in rows]
        axes.bar_label(bars, labels, fontsize="x-small")
    for place, row in zip(places, rows, strict=True):
        if row["wrong"]:
            axes.text(1, place, " WRONG, not timed", color="tab:red", va="center", weight="bold")
    drawn = [0.5, 2.0, *(ratio for row in rows for ratio in row["ratios"].values())]
    room = (max(drawn) / min(drawn)) ** 0.1  # for the labels
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(drawn) / room, max(drawn) * room)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("peer's time / convkern's time (right of 1: convkern is faster)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(peers), frameon=False)


def _plot_shares(axes: Any, rows: Sequence[Row], places: Array, peak: float) -> None:
    """Draw the share of the FMA peak for every row, with its GFLOP/s."""
    gflops = [row["gflops"] or 0.0 for row in rows]
    shares = [100 * rate / peak for rate in gflops]
    bars = axes.barh(places, shares, 0.6, color="tab:gray")
    labels = [f" {rate:.3g} GFLOP/s" if rate else "" for rate in gflops]
    axes.bar_label(bars, labels, fontsize="x-small")
    axes.axvline(100, color="black", linewidth=1, linestyle="--")
    axes.set_xlim(0, 1.35 * max(100, *shares))
    axes.set_xlabel(f"% of the FMA peak of {peak:.0f} GFLOP/s")
    axes.grid(axis="x", alpha=0.3)
