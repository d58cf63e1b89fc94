"""Soak: random calls of every operator, on changing numbers of threads, with flat memory.

    python tools/soak.py [--calls 100000] [--seed 0]

Every call is drawn from the generator of tests/calls.py, valid or not, and one in ten is
repeated on one thread, which must give the same bits.  Between calls the number of threads
changes, and now and then the kept memory is returned to the system.  The resident memory
after a quarter of the calls is the measure: at the end it may be larger by 16 MiB, and no
more.  Exit status 1 otherwise, or if a call gives anything but its result or its exception.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import convkern  # noqa: E402
from convkern import functional  # noqa: E402
from tests import calls  # noqa: E402
from tests.registry import OPERATORS  # noqa: E402

GROWTH = 16 << 20
REPEATED = 10


def resident() -> int:
    """Return the bytes of resident memory, without what is kept for coming results."""
    convkern.empty_cache()
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def bits(results: calls.Answer) -> list[bytes | None]:
    """Return the elements of results as bytes."""
    return [None if r is None else np.ascontiguousarray(r).tobytes() for r in results]


def carry_out(call: calls.Call, repeat: bool) -> str | None:
    """Carry a call out; return what is wrong, if anything."""
    try:
        with np.errstate(all="ignore"):
            first = bits(calls.answer(functional, call))
            # Not what changes its arguments.
            if repeat and call.error is None and call.name not in calls.STATE:
                with convkern.num_threads(1):
                    if bits(calls.answer(functional, call)) != first:
                        return "other bits than on one thread"
    except Exception as error:
        if call.error is not None and isinstance(error, call.error):
            return None
        return f"{type(error).__name__}: {error}"
    return None if call.error is None else f"no {call.error.__name__}"


def main() -> int:
    """Soak; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    names, cores = sorted(OPERATORS), os.cpu_count() or 1
    wrong, start, begin = 0, 0, time.perf_counter()
    for i in range(options.calls):
        if i == options.calls // 4:
            start = resident()
        if i % 20 == 0:
            convkern.set_num_threads(int(rng.integers(1, 2 * cores + 1)))
        if i % 1000 == 999:
            convkern.empty_cache()
            grown = f", {(resident() - start) / 2**20:+.1f} MiB" if start else ""
            print(f"\r{i + 1:,} calls, {wrong} wrong{grown}  ", end="", flush=True)
        name = names[int(rng.integers(len(names)))]
        call = next(calls.generate(name, 1, int(rng.integers(2**31))))
        what = carry_out(call, i % REPEATED == 0)
        if what is not None:
            wrong += 1
            print(f"\n{call.note}: {what}")
    growth = resident() - start
    print(
        f"\r{options.calls:,} calls of {len(names)} operators in "
        f"{time.perf_counter() - begin:.0f} s: {wrong} wrong, memory {growth / 2**20:+.1f} MiB"
    )
    return int(wrong > 0 or growth > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
