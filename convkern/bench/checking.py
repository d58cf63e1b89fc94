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

_FROZEN = f"{OURS} frozen"


def measure(
    case: Case,
    prepares: Sequence[Prepare],
    rounds: int,
    threads: int,
    peak: float,
    with_memory: bool = False,
) -> list[Row]:
    """Return the row of a case, and one of its frozen net: errors, and times if these are small.

    The memory that a call takes is measured of training steps, and of others `with_memory`.
    """
    calls = {OURS: case.call}
    if case.frozen:
        calls[_FROZEN] = case.frozen
    peers = _prepared(case, prepares)
    rows = {name: _unmeasured(case, name == _FROZEN, list(peers)) for name in calls}
    for name, row in rows.items():
        measured = with_memory or _trains(case)
        row["memory_mb"] = _memory({OURS: calls[name], **peers}) if measured else {}
        if case.twin:
            twin = case.twin()
            found = errors(twin, twin.call, _prepared(twin, prepares))
            del twin
        else:
            found = errors(case, calls[name], peers)
        row["errors"] = {peer: e if math.isfinite(e) else None for peer, e in found.items()}
        # A NaN is not within the tolerance either.
        row["wrong"] = [peer for peer, error in found.items() if not error <= case.tolerance]
    right = {name: call for name, call in calls.items() if not rows[name]["wrong"]}
    if not right:
        return list(rows.values())
    before, start = timing.processor_seconds_of_others(), time.perf_counter()
    seconds = timing.interleave({**right, **peers}, rounds)
    taken = (timing.processor_seconds_of_others() - before) / (time.perf_counter() - start)
    for name in right:
        row = rows[name]
        turns = {OURS: seconds[name]} | {peer: seconds[peer] for peer in peers}
        row |= summarise(turns, case.flops, peak, case.layout)
        row["processors_taken_by_others"] = taken
        scatters = any(median(times) > _SCATTER * min(times) for times in turns.values())
        row["busy"] = scatters or taken + threads > (os.cpu_count() or 1) + _BUSY
    return list(rows.values())


def _unmeasured(case: Case, frozen: bool, peers: Sequence[str]) -> Row:
    """Return the row of a case before anything is known but what it is."""
    return {
        "label": case.label + ", frozen" * frozen,
        "batch": case.batch,
        "layout": case.layout,
        "network": case.network is not None,
        "frozen": frozen,
        "flops": case.flops,
        "intensity": case.flops / case.traffic if case.traffic else None,
        "columns": list(columns_of(peers, case.layout)),
        "ratios": {},
        "gflops": None,
        "busy": False,
    }


def _trains(case: Case) -> bool:
    """Tell whether a case is a training step."""
    return case.network is not None and case.network.target is not None


def _memory(calls: Mapping[str, Call]) -> dict[str, float]:
    """Return the MB that each call takes at most, where that can be known."""
    found = {name: timing.peak_memory(call) for name, call in calls.items()}
    return {name: size for name, size in found.items() if size is not None}


def errors(case: Case, call: Call, peers: Mapping[str, Call]) -> dict[str, float]:
    """Return how far a call of convkern is from each peer, and from the reference.

    The reference computes the last images only, if all would take it long; where these alone
    do not give a part of the result, convkern computes so small a batch for it as well.
    """
    result = _arrays(call())
    found: dict[str, float] = {}
    count = int(max(1, min(case.batch, _REFERENCE_FLOPS * case.batch // max(case.flops, 1))))
    if case.images_are_independent:
        expected = as_call(case.operations, reference, case.input[-count:])()
        found["reference"] = _error([part[-count:] for part in result], _arrays(expected))
    elif case.operations:
        # Without peers nobody else looks at the whole batch.
        small = case.with_batch(count) if case.with_batch and count < case.batch and peers else case
        expected = as_call(small.operations, reference, small.input)()
        found["reference"] = _error(
            result if small is case else _arrays(small.call()), _arrays(expected)
        )
    compare = _training_error if _trains(case) else _error
    for name, peer in peers.items():
        found[name] = compare(result, _arrays(peer()))
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
