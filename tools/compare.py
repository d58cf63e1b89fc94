"""Time two built trees of convkern in turns, and show what a change costs.

    git worktree add ../before COMMIT
    (cd ../before && python setup.py build_ext --inplace)
    python tools/compare.py ../before [--rounds 5] [--threads 2]

Each tree runs the same calls in a process of its own, and the processes take turns.  Printed are
the medians over the rounds of the old tree's time by this one's: below 1, this one is slower.
Calls faster than a millisecond are repeated until they take that long.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from math import ceil, exp, log
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
#: Input and output channels, size, window, stride, padding and groups of convolutions.
CONVOLUTIONS = [
    (64, 64, 56, 3, 1, 1, 1),
    (256, 256, 14, 3, 1, 1, 1),
    (256, 64, 56, 1, 1, 0, 1),
    (128, 128, 28, 3, 2, 1, 1),
    (128, 128, 28, 3, 1, 1, 128),
    (3, 64, 112, 7, 2, 3, 1),
    (16, 16, 32, 3, 1, 1, 1),
]


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the names of calls of the imported convkern, and the calls."""
    import numpy as np

    import convkern
    from convkern import functional, models

    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    layouts = {"nchw": np.ascontiguousarray, "channels_last": functional.to_channels_last}
    for C, K, H, k, stride, padding, groups in CONVOLUTIONS:
        x, w = normal(16, C, H, H), normal(K, C // groups, k, k)
        options = {"stride": stride, "padding": padding, "groups": groups}
        for layout, convert in layouts.items():
            a = convert(x)
            y = convkern.conv2d(a, w, **options)
            name = f"{C}->{K} {H}x{H} {k}x{k} stride {stride} groups {groups} {layout}"
            yield f"conv2d {name}", partial(convkern.conv2d, a, w, **options)
            yield f"conv2d_backward {name}", partial(convkern.conv2d_backward, y, a, w, **options)
            if C == K and groups == 1:
                pool = partial(convkern.max_pool2d, a, 3, 2, return_indices=True)
                yield f"max_pool2d {C} {H}x{H} {layout}", pool
    weight = normal(4096, 4096)
    net = models.alexnet(rng=rng).eval()
    for N in (1, 16):
        rows, photos, plan = normal(N, 4096), normal(N, 3, 227, 227), convkern.freeze(net)
        yield f"linear N = {N}", partial(convkern.linear, rows, weight)
        yield f"alexnet, frozen, N = {N}", partial(plan, photos)


def seconds(call: Callable[[], object]) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    repeats = ceil(1e-3 / min(times))
    for _ in range(9):
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        times.append((time.perf_counter() - start) / repeats)
    return statistics.median(times[-9:])


def measure(tree: Path, threads: int) -> dict[str, float]:
    """Return the times of all calls in a process that imports a tree."""
    command = [sys.executable, str(Path(__file__).resolve()), str(tree), "--measure"]
    environment = os.environ | {"PYTHONPATH": str(tree), "CONVKERN_NUM_THREADS": str(threads)}
    times: dict[str, float] = json.loads(subprocess.check_output(command, env=environment))
    return times


def main() -> None:
    """Compare the trees, or time the one that is imported."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tree", type=Path, help="the old one, built")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    tree = options.tree.resolve()
    if options.measure:
        import convkern

        assert Path(convkern.__file__).is_relative_to(tree), convkern.__file__
        print(json.dumps({name: seconds(call) for name, call in calls()}))
        return
    times: dict[Path, list[dict[str, float]]] = {tree: [], HERE: []}
    for turn in range(options.rounds):
        for one in (tree, HERE) if turn % 2 else (HERE, tree):
            times[one].append(measure(one, options.threads))
    logs = []
    for name in times[HERE][0]:
        pairs = zip(times[tree], times[HERE], strict=True)
        ratio = statistics.median(old[name] / new[name] for old, new in pairs)
        milliseconds = 1e3 * statistics.median(new[name] for new in times[HERE])
        logs.append(log(ratio))
        print(f"{ratio:6.3f}  {milliseconds:9.3f} ms  {name}")
    print(f"{exp(statistics.mean(logs)):6.3f}  geometric mean")


if __name__ == "__main__":
    main()
