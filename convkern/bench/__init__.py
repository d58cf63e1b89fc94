"""``convkern bench``: the kernels timed beside those of other libraries.

A row is one case: an operator on a layer's shape, a network or a training step;
a batch; a memory layout.  Its result is first compared with that of every peer
and with the float64 reference, as far as that is quick; a row that disagrees is
reported as WRONG and not timed.

Then convkern and the peers take turns in one process with equal numbers of
threads (and, with ``--isa``, one instruction set), so that whatever else the
machine does falls on all of them.  A ratio is the median over the rounds of
*peer's time / convkern's time*: above 1, convkern is faster.  Outputs are
allocated inside the timed calls on all sides, and weights are packed inside
unless ``--prepacked``.  A network that classifies has two rows from the same
turns, plain and frozen.  A row during which other processes took processor time
that our threads needed, or whose times scatter, is marked as busy and does not
count in the means.

``cases`` says what is measured, ``peers`` against whom; ``checking`` compares,
``timing`` times, ``report`` and ``plot`` show the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import convkern
from convkern.bench import timing
from convkern.bench.cases import (
    LAYERS,
    LAYOUTS,
    TRAINING_BATCH,
    Case,
    backward_case,
    layer_case,
    network_case,
    training_case,
)
from convkern.bench.checking import measure
from convkern.bench.options import parse
from convkern.bench.peers import HELD, PEERS
from convkern.bench.plot import plot
from convkern.bench.report import (
    conclusion,
    environment_of,
    header,
    introduction,
    line,
    means,
    remarks,
)
from convkern.bench.timing import Row


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases, each made when its turn comes, for the memory it takes."""
    for selected in options.selected:
        for batch in options.batch or [TRAINING_BATCH[selected]]:
            for layout in LAYOUTS[options.layout] if options.what != "linear" else ("-",):
                yield _case(options, selected, batch, layout)


def _case(options: argparse.Namespace, selected: Any, batch: int, layout: str) -> Case:
    """Return the case of a selected shape or network."""
    if options.what == "alexnet":
        return network_case(selected, batch, layout)
    if options.what == "train":
        return training_case(selected, batch, layout)
    if options.what == "backward":
        return backward_case(selected, batch, layout, options.gradient)
    function, _ = LAYERS[options.what]
    return layer_case(function, selected, batch, layout, options.prepacked)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``convkern bench``.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after ``convkern bench``; by default those of the process.

    Returns
    -------
    int
        0, or 1 if a result was wrong.

    Raises
    ------
    SystemExit
        With code 2 and one line on stderr if the arguments make no sense or a
        peer that they name is not installed.

    Examples
    --------
    >>> main(["--shapes", "mnist_cnn/conv1", "--against", "none"])  # doctest: +ELLIPSIS
    convkern bench --shapes mnist_cnn/conv1 --against none
    ...
    mnist_cnn/conv1              1 nchw ...
    0
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser, options = parse(argv)
    held = HELD[options.isa] if options.isa else {}
    if held.items() - os.environ.items():  # the libraries must find it when they are loaded
        command = [sys.executable, "-m", "convkern", "bench", *argv]
        return subprocess.run(command, env=os.environ | held, check=False).returncode
    rows: list[Row] = []
    with ExitStack() as stack:
        stack.enter_context(convkern.num_threads(options.threads))
        prepares = []
        for name in options.against:
            try:
                prepares.append(stack.enter_context(PEERS[name].session(options.threads)))
            except ModuleNotFoundError as error:
                parser.error(f"--against {name}: the package {error.name!r} is not installed")
        peak = timing.fma_peak(options.threads)
        environment = environment_of(options, argv, peak)
        print(introduction(environment))
        for case in _cases(options):
            # Again for every row: the machine may have been busy before.
            peak = max(peak, timing.fma_peak(options.threads))
            found = measure(case, prepares, options.rounds, options.threads, peak, options.memory)
            if not rows:
                print(header(found[0]))
            print(*map(line, found), *filter(None, map(remarks, found)), sep="\n", flush=True)
            rows += found
    environment["fma_peak_gflops"] = peak
    if options.plot:
        environment["copy_gbytes"] = timing.bandwidth(options.threads)
    if last := conclusion(rows):
        print(last)
    if options.json:
        report = {"environment": environment, "rows": rows, "geometric_means": means(rows)}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        plot(rows, environment, options.plot)
    return int(any(row["wrong"] for row in rows))
