"""Right, then fast: a case is timed only if its results agree."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from convkern import reference
from convkern.bench import timing
from convkern.bench.cases import Array, Call, Case, as_call
from convkern.bench.peers import Prepare
from convkern.bench.timing import OURS, Row, columns_of, summarise

# The reference computes as many images of a batch as fit into this many operations (0.5 s).
_REFERENCE_FLOPS = 5e9
# A row is marked if others took more than this share of one processor from our threads: those that
# wait for one which has lost its core can make a call a thousand times slower.
_BUSY = 0.3
# And if the times of one call scatter so that their median is beyond this multiple of the shortest:
# a core that is lost for a moment is not seen in the average.
_SCATTER = 1.5


def measure(case: Case, prepares: Sequence[Prepare], rounds: int, threads: int, peak: float) -> Row:
    """Return the row of a case: errors, and times if these are small."""
    peers = _prepared(case, prepares)
    if case.twin:
        twin = case.twin()
        found = errors(twin, _prepared(twin, prepares))
        del twin
    else:
        found = errors(case, peers)
    # A NaN is not within the tolerance either.
    wrong = [name for name, error in found.items() if not error <= case.tolerance]
    row: Row = {
        "label": case.label,
        "batch": case.batch,
        "layout": case.layout,
        "flops": case.flops,
        "intensity": case.flops / case.traffic if case.traffic else None,
        "columns": list(columns_of(list(peers), case.layout)),
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
    row |= summarise(seconds, case.flops, peak, case.layout)
    row["processors_taken_by_others"] = taken
    scatters = any(median(times) > _SCATTER * min(times) for times in seconds.values())
    row["busy"] = scatters or taken + threads > (os.cpu_count() or 1) + _BUSY
    return row


def errors(case: Case, peers: Mapping[str, Call]) -> dict[str, float]:
    """Return how far convkern is from each peer, and from the reference where that is quick."""
    result = _arrays(case.call())
    found: dict[str, float] = {}
    count = int(max(1, min(case.batch, _REFERENCE_FLOPS * case.batch // max(case.flops, 1))))
    if case.images_are_independent:
        expected = as_call(case.operations, reference, case.input[-count:])()
        found["reference"] = _error([result[0][-count:]], _arrays(expected))
    elif case.operations and (count == case.batch or not peers):
        expected = as_call(case.operations, reference, case.input)()
        found["reference"] = _error(result, _arrays(expected))
    compare = _training_error if case.network and case.network.target is not None else _error
    for name, call in peers.items():
        found[name] = compare(result, _arrays(call()))
    return found


def _prepared(case: Case, prepares: Sequence[Prepare]) -> dict[str, Call]:
    """Return the calls of all peers."""
    calls: dict[str, Call] = {}
    for prepare in prepares:
        calls |= prepare(case)
    return calls


def _arrays(result: Any) -> list[Array]:
    """Return the arrays of a result, which is one or a sequence of them and of None."""
    parts = result if isinstance(result, list | tuple) else [result]
    return [np.asarray(part) for part in parts if part is not None]


def _error(result: Sequence[Array], expected: Sequence[Array]) -> float:
    """Return the largest difference over the largest expected magnitude; inf between shapes."""
    if [array.shape for array in result] != [array.shape for array in expected]:
        return math.inf
    found = [
        float(np.abs(mine - theirs).max() / np.abs(theirs).max())
        for mine, theirs in zip(result, expected, strict=True)
    ]
    return math.nan if any(map(math.isnan, found)) else max(found)


def _training_error(result: Sequence[Array], expected: Sequence[Array]) -> float:
    """Return the largest relative error of a loss and gradients, in the Euclidean norm.

    Gradients that are almost zero beside the others, such as those of a bias before a
    normalisation, are rounding errors and count little.
    """
    least = 1e-3 * max(map(np.linalg.norm, expected[1:]))
    return max(
        float(np.linalg.norm(mine - theirs) / max(np.linalg.norm(theirs), least))
        for mine, theirs in zip(result, expected, strict=True)
    )
