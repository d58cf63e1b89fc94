"""Times: calls that take turns, medians of their ratios, and what the machine can do."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np

import convkern
from convkern import _kernels
from convkern.bench.cases import Call

Row: TypeAlias = dict[str, Any]

OURS = "convkern"
EAGER = "torch nchw"
SAME = "same layout"
BEST = "best peer"


# How often to settle first: threads of what came before, such as NumPy's products, spin for longer.
_AFTER_OTHERS = 10


def settle() -> None:
    """Wait until idle threads, which spin for a while, have gone to sleep."""
    time.sleep(0.02)


def interleave(
    calls: Mapping[str, Call],
    rounds: int,
    *,
    minimum: float = 0.005,
    clock: Callable[[], float] = time.perf_counter,
    settle: Callable[[], None] = settle,
) -> dict[str, list[float]]:
    """Time calls in turns: A B A B rather than A A B B.

    Before each timing `settle` lets the threads of the call before fall asleep,
    and one call that is not timed wakes and warms those of the next.

    Parameters
    ----------
    calls : mapping of str to callable
        What to time, in the order of the turns.
    rounds : int
        How many turns each takes.
    minimum : float
        Seconds that a timing lasts at least, by repeating the call.
    clock, settle : callable
        The time in seconds, and what to do between two timings.

    Returns
    -------
    dict of str to list of float
        Seconds of one call, for each round.

    Examples
    --------
    >>> times = interleave({"sum": lambda: sum(range(100)), "len": lambda: len("abc")}, 3)
    >>> [len(rounds) for rounds in times.values()]
    [3, 3]
    """

    def elapsed(call: Call, repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            call()
        return clock() - start

    for _ in range(_AFTER_OTHERS):
        settle()
    repeats = dict.fromkeys(calls, 1)
    for name, call in calls.items():
        call()
        while elapsed(call, repeats[name]) < minimum:
            repeats[name] *= 2
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            settle()
            call()
            seconds[name].append(elapsed(call, repeats[name]) / repeats[name])
    return seconds


def columns_of(peers: Sequence[str], layout: str) -> dict[str, list[str]]:
    """Return what convkern is compared with: the peers, torch like for like, and the best.

    Parameters
    ----------
    peers : sequence of str
        Their names.
    layout : str
        The memory layout of convkern's images.

    Returns
    -------
    dict
        For the name of each column the peers whose smallest ratio it shows.

    Examples
    --------
    >>> columns = columns_of(["torch nchw", "torch channels_last"], "nchw")
    >>> columns["same layout"], columns["best peer"]
    (['torch nchw'], ['torch nchw', 'torch channels_last'])
    """
    columns = {name: [name] for name in peers}
    if f"torch {layout}" in peers:
        columns[SAME] = [f"torch {layout}"]
    if len(peers) > 1:
        columns[BEST] = list(peers)
    return columns


def summarise(
    seconds: Mapping[str, list[float]], flops: int, peak: float, layout: str = "-"
) -> Row:
    """Return medians, minima, ratios and rates of interleaved timings.

    Parameters
    ----------
    seconds : mapping of str to list of float
        What `interleave` returned; ``"convkern"`` is one of the names.
    flops : int
        Operations of one call by the direct algorithm; 0 where there are none to count.
    peak : float
        The machine's GFLOP/s, for the share of it.
    layout : str
        The memory layout of convkern's images.

    Returns
    -------
    dict
        ``ratios`` are medians of the pairwise ratios of each round, for each of
        the `columns_of` the peers.

    Examples
    --------
    >>> row = summarise({"convkern": [1.0, 2.0, 1.0], "peer": [2.0, 4.0, 9.0]}, 10**9, 4.0)
    >>> row["ratios"], row["gflops"], row["share_of_peak"]
    ({'peer': 2.0}, 1.0, 0.25)
    """
    ours = seconds[OURS]
    peers = {name: times for name, times in seconds.items() if name != OURS}
    ratios = {
        name: median(theirs / mine for theirs, mine in zip(times, ours, strict=True))
        for name, times in peers.items()
    }
    ratios_of_minima = {name: min(times) / min(ours) for name, times in peers.items()}
    columns = columns_of(list(peers), layout)
    gflops = flops / median(ours) / 1e9 if flops else None
    return {
        "median_ms": {name: 1e3 * median(times) for name, times in seconds.items()},
        "minimum_ms": {name: 1e3 * min(times) for name, times in seconds.items()},
        "gflops": gflops,
        "share_of_peak": gflops / peak if gflops else None,
        "ratios": {name: min(ratios[peer] for peer in among) for name, among in columns.items()},
        "ratios_of_minima": {
            name: min(ratios_of_minima[peer] for peer in among) for name, among in columns.items()
        },
        "seconds": dict(seconds),
    }


def processor_seconds_of_others() -> float:
    """Return the time that all but this process have used the processors, where Linux tells it."""
    try:
        total = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, total[:8])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def peak_memory(call: Call) -> float | None:
    """Return the MB that a call takes at most beyond what is there before, where Linux tells it.

    It is called twice: what the first call leaves is there during the second.
    """
    convkern.empty_cache()
    with suppress(OSError, AttributeError):  # what is free in the heap would not be seen to be used
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        before = _resident("VmRSS")
        for _ in range(2):
            call()
        return (_resident("VmHWM") - before) / 1e6
    except OSError:
        return None


def _resident(kind: str) -> int:
    """Return the bytes of memory that this process has, or has had at most."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition(f"{kind}:")[2].split()[0])


def fma_peak(threads: int) -> float:
    """Return the most GFLOP/s that float32 FMAs reach on so many threads, in some 0.1 s."""
    settle()
    return _kernels.fma_peak(threads)


def bandwidth(threads: int) -> float:
    """Return the most GB/s that are read and written by copying arrays far beyond the caches."""
    parts = [np.ones((2, 2**27 // threads // 4), np.float32) for _ in range(threads)]
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(lambda part: np.copyto(part[0], part[1]), parts))
            seconds.append(time.perf_counter() - start)
    return sum(part.nbytes for part in parts) / min(seconds) / 1e9
