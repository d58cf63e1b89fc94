"""Right, then fast: a case is timed only if its results agree."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence

import numpy as np

from convkern import reference
from convkern.bench import timing
from convkern.bench.cases import Array, Call, Case, as_call
from convkern.bench.peers import Prepare
from convkern.bench.timing import BEST, OURS, Row, summarise

# The reference computes as many images of a batch as fit into this many operations (0.5 s).
_REFERENCE_FLOPS = 5e9
# A row is marked if others took more than this share of one processor from our threads: those that
# wait for one which has lost its core can make a call a thousand times slower.
_BUSY = 0.3


def errors(case: Case, peers: Mapping[str, Call]) -> dict[str, float]:
    """Return how far convkern is from each peer and, on the last images, from the reference."""
    count = int(max(1, min(case.batch, _REFERENCE_FLOPS * case.batch // max(case.flops, 1))))
    expected = as_call(case.operations, reference, case.input[-count:])()
    result = case.call()
    found = {"reference": _error(result[-count:], expected)}
    for name, call in peers.items():
        found[name] = _error(result, np.asarray(call()))
    return found


def _error(result: Array, expected: Array) -> float:
    """Return the largest difference over the largest expected magnitude; inf between shapes."""
    if result.shape != expected.shape:
        return math.inf
    return float(np.abs(result - expected).max() / np.abs(expected).max())


def measure(case: Case, prepares: Sequence[Prepare], rounds: int, threads: int, peak: float) -> Row:
    """Return the row of a piece of work: errors, and times if these are small."""
    peers: dict[str, Call] = {}
    for prepare in prepares:
        peers |= prepare(case)
    found = errors(case, peers)
    # A NaN is not within the tolerance either.
    wrong = [name for name, error in found.items() if not error <= case.tolerance]
    row: Row = {
        "label": case.label,
        "batch": case.batch,
        "layout": case.layout,
        "flops": case.flops,
        "columns": [*peers, *[BEST] * (len(peers) > 1)],
        "errors": {name: e if math.isfinite(e) else None for name, e in found.items()},
        "wrong": wrong,
        "ratios": {},
        "gflops": None,
        "busy": False,
    }
    if wrong:
        return row
    before, start = timing.processor_seconds_of_others(), time.perf_counter()
    seconds = timing.interleave({OURS: case.call, **peers}, rounds)
    taken = (timing.processor_seconds_of_others() - before) / (time.perf_counter() - start)
    row |= summarise(seconds, case.flops, peak)
    row["processors_taken_by_others"] = taken
    row["busy"] = taken + threads > (os.cpu_count() or 1) + _BUSY
    return row
