"""What is printed: the machine, a table of rows, and their means."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np

import convkern
from convkern import _kernels
from convkern.bench.peers import PEERS
from convkern.bench.timing import EAGER, OURS, SAME, Row


def environment_of(options: argparse.Namespace, argv: Sequence[str], peak: float) -> dict[str, Any]:
    """Return what the numbers depend on besides the code."""
    peers = [PEERS[name] for name in options.against]
    return {
        "command": shlex.join(["convkern", "bench", *argv]),
        "cpu": _cpu_name(),
        "instruction_sets": {
            "convkern": _kernels.isa,
            **{
                peer.packages[0]: peer.instruction_set() if peer.instruction_set else "its best"
                for peer in peers
            },
        },
        "threads": options.threads,
        "fma_peak_gflops": peak,
        "rounds": options.rounds,
        "versions": {
            "python": platform.python_version(),
            "convkern": convkern.__version__,
            "numpy": np.__version__,
            **{
                package: importlib.metadata.version(package)
                for peer in peers
                for package in peer.packages
            },
        },
    }


def _cpu_name() -> str:
    """Return the processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def introduction(environment: Mapping[str, Any]) -> str:
    """Return the lines above the table."""
    versions, sets = (
        ", ".join(f"{name} {value}" for name, value in environment[key].items())
        for key in ("versions", "instruction_sets")
    )
    return (
        f"{environment['command']}\n"
        f"{environment['cpu']}, threads {environment['threads']}, float32, "
        f"FMA peak {environment['fma_peak_gflops']:.0f} GFLOP/s\n"
        f"Instruction sets: {sets}\n"
        f"{versions}\n"
        f"Medians of {environment['rounds']} interleaved rounds; "
        "GFLOP/s of the direct algorithm.\n"
        "Ratios are peer's time / convkern's time: above 1, convkern is faster; "
        "in brackets those of the minima.\n"
    )


def header(row: Row) -> str:
    """Return the two lines above the rows; a peer's name takes both."""
    columns = [name.partition(" ")[::2] for name in row["columns"]]
    first = f"{'':<54}{'':>9}{'% of':>6}" + "".join(f"{word:>14}" for word, _ in columns)
    second = f"{'shape':<26}{'N':>4} {'layout':<13}{'ms':>10}{'GFLOP/s':>9}{'peak':>6}"
    return first + "\n" + second + "".join(f"{word:>14}" for _, word in columns)


def line(row: Row) -> str:
    """Return the line of one row."""
    start = f"{row['label']:<26}{row['batch']:>4} {row['layout']:<13}"
    if row["wrong"]:
        found = (
            f"{name} (not finite, or another shape)" if error is None else f"{name} {error:.2g}"
            for name, error in row["errors"].items()
            if name in row["wrong"]
        )
        return f"{start}  WRONG, not timed: error against {', '.join(found)}"
    rates = f"{'-':>9}{'-':>6}"
    if row["gflops"]:
        rates = f"{row['gflops']:9.1f}{100 * row['share_of_peak']:6.0f}"
    minima = row["ratios_of_minima"]
    ratios = "".join(
        f" {f'{_short(ratio)} ({_short(minima[name])})':>13}"
        for name, ratio in row["ratios"].items()
    )
    busy = "  busy" if row["busy"] else ""
    return f"{start}{row['median_ms'][OURS]:10.3f}{rates}{ratios}{busy}"


def remarks(row: Row) -> str:
    """Return the line under a row: of a network who is the best peer, and what memory it takes."""
    if row["wrong"]:
        return ""
    said = []
    if row["network"] and row["ratios"]:
        ratios = {name: _short(ratio) for name, ratio in row["ratios"].items()}
        peers = [name for name in row["median_ms"] if name != OURS]
        best = min(peers, key=row["ratios"].__getitem__)
        said.append(f"{ratios[best]} to the best peer, {best}")
        if EAGER in ratios:
            said.append(f"{ratios[EAGER]} to torch eager")
    if row["memory_mb"]:
        sizes = ", ".join(f"{name} {size:.1f}" for name, size in row["memory_mb"].items())
        said.append(f"MB at most: {sizes}")
    return f"  {row['label']}, N = {row['batch']}: {'; '.join(said)}" if said else ""


def _short(ratio: float) -> str:
    """Return a ratio in three digits."""
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"


def trusted(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that count: right, and timed while the machine was quiet."""
    return [row for row in rows if not row["wrong"] and not row["busy"]]


def means(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return the geometric mean of every ratio over what can be trusted.

    Layouts have means of their own, and so have frozen nets.
    """
    kinds: dict[str, dict[str, list[float]]] = {}
    for row in trusted(rows):
        columns = kinds.setdefault(row["layout"] + ", frozen" * row["frozen"], {})
        for name, ratio in row["ratios"].items():
            columns.setdefault(name, []).append(ratio)
    return {
        kind: {name: geometric_mean(ratios) for name, ratios in columns.items()}
        for kind, columns in kinds.items()
        if columns
    }


def conclusion(rows: Sequence[Row]) -> str:
    """Return the lines under the rows: the means, and the rows to look at."""
    lines = [
        f"{'geometric mean':<31}{kind:<38}"
        + "".join(f"{mean:7.2f}{'':7}" for mean in columns.values())
        for kind, columns in means(rows).items()
    ]
    ratios = [row["ratios"] for row in trusted(rows)]
    counts = {
        "slower than a peer": sum(min(r.values(), default=1.0) < 1.0 for r in ratios),
        "slower than torch in the same layout": sum(r.get(SAME, 1.0) < 1.0 for r in ratios),
        "busy machine, not in the means": sum(row["busy"] for row in rows),
        "WRONG": sum(bool(row["wrong"]) for row in rows),
    }
    lines += [f"{what}: {count} of {len(rows)} rows" for what, count in counts.items() if count]
    return "\n".join(lines)
