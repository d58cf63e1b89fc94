"""``convkern bench``: the kernels timed beside those of other libraries.

A row is one case: a layer shape or a network, a batch, a memory
layout.  Its result is first compared with the float64 reference and with that
of every peer; a row that disagrees is reported as WRONG and not timed.  Then
convkern and the peers take turns in one process with equal numbers of threads,
so that whatever else the machine does falls on all of them.  A ratio is the
median over the rounds of ``peer's time / convkern's time``: above 1, convkern
is faster.  Outputs are allocated inside the timed calls on all sides, and
weights are packed inside unless ``--prepacked``.  A row during which other
processes took processor time that our threads needed is marked as busy and
does not count in the means.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import convkern
from convkern import models
from convkern.bench import timing
from convkern.bench.cases import LAYERS, LAYOUTS, Case, layer_case, network_case
from convkern.bench.checking import measure
from convkern.bench.peers import PEERS
from convkern.bench.plot import plot
from convkern.bench.report import conclusion, environment_of, header, introduction, line, means
from convkern.bench.timing import Row
from convkern.shapes import select


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases, each made when its turn comes, for the memory it takes."""
    layouts = LAYOUTS[options.layout]
    if options.what == "alexnet":
        net = models.alexnet(rng=np.random.default_rng(0)).eval()
        size = models.INPUT_SIZE["article"]
        for batch in options.batch:
            for layout in layouts:
                yield network_case("alexnet", net, size, batch, layout)
        return
    name, _ = LAYERS[options.what]
    for shape in options.selected:
        for batch in options.batch:
            for layout in layouts if len(shape.input_shape) == 3 else ("-",):
                yield layer_case(name, shape, batch, layout, options.prepacked)


def _positive(text: str) -> int:
    """Read an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _threads(text: str) -> int:
    """Read a number of threads."""
    try:
        return convkern.num_threads(int(text)).n
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _peer_names(text: str) -> list[str]:
    """Read names of peers between commas, or "none"."""
    names = [] if text == "none" else text.split(",")
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"known peers are {', '.join(PEERS)}; got {name!r}")
    return list(dict.fromkeys(names))


def _output_path(text: str) -> Path:
    """Read the path of a file to write, whose folder must exist before minutes of measuring."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def _parse(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser, for its error message, and the checked options."""
    parser = argparse.ArgumentParser(
        prog="convkern bench",
        description="Check convkern's results, then time it beside other libraries.",
    )
    parser.add_argument(
        "--what",
        choices=(*LAYERS, "alexnet"),
        default="forward",
        help="convolutions, max poolings, linear layers or a whole network (default: forward)",
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        metavar="NAME",
        default=["*"],
        help="network, or network/layer, wildcards allowed (default: all)",
    )
    parser.add_argument(
        "--batch",
        nargs="+",
        type=_positive,
        metavar="N",
        help="images at a time (default: 1; for alexnet 1 and 16)",
    )
    parser.add_argument(
        "--against",
        type=_peer_names,
        metavar="PEERS",
        help=f"{', '.join(PEERS)}, with commas between, or none (default: torch if installed)",
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="of convkern's input (default: nchw; with --prepacked channels_last)",
    )
    parser.add_argument(
        "--prepacked", action="store_true", help="pack the weights of convolutions beforehand"
    )
    parser.add_argument(
        "--threads",
        type=_threads,
        default=convkern.get_num_threads(),
        metavar="T",
        help="for convkern and every peer (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds", type=_positive, default=7, metavar="R", help="turns each (default: 7)"
    )
    parser.add_argument("--json", type=_output_path, metavar="FILE", help="write everything here")
    parser.add_argument("--plot", type=_output_path, metavar="FILE", help="draw the ratios here")
    options = parser.parse_args(argv)

    if options.what == "alexnet":
        if options.shapes != ["*"]:
            parser.error("--shapes does not go with --what alexnet")
    else:
        try:
            found = [s for name in options.shapes for s in select(name, LAYERS[options.what][1])]
        except ValueError as error:
            parser.error(f"argument --shapes: {error}")
        options.selected = list(dict.fromkeys(found))
    if options.prepacked and options.what != "forward":
        parser.error("--prepacked goes with --what forward only")
    if options.plot and not importlib.util.find_spec("matplotlib"):
        parser.error('--plot needs matplotlib: pip install "convkern[app]"')
    if options.against is None:
        options.against = ["torch"] if importlib.util.find_spec("torch") else []
    if options.plot and not options.against:
        parser.error("--plot draws ratios to peers, and there is none")
    options.batch = options.batch or ([1, 16] if options.what == "alexnet" else [1])
    options.layout = options.layout or ("channels_last" if options.prepacked else "nchw")
    return parser, options


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
    parser, options = _parse(argv)
    rows: list[Row] = []
    with ExitStack() as stack:
        stack.enter_context(convkern.num_threads(options.threads))
        prepares = []
        for name in options.against:
            try:
                prepares.append(stack.enter_context(PEERS[name](options.threads)))
            except ModuleNotFoundError as error:
                parser.error(f"--against {name}: the package {error.name!r} is not installed")
        peak = timing.fma_peak(options.threads)
        environment = environment_of(options, argv, peak)
        print(introduction(environment))
        for case in _cases(options):
            # Again for every row: the machine may have been busy before.
            peak = max(peak, timing.fma_peak(options.threads))
            row = measure(case, prepares, options.rounds, options.threads, peak)
            if not rows:
                print(header(row))
            print(line(row), flush=True)
            rows.append(row)
    environment["fma_peak_gflops"] = peak
    if last := conclusion(rows):
        print(last)
    if options.json:
        report = {"environment": environment, "rows": rows, "geometric_means": means(rows)}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        plot(rows, environment, options.plot)
    return int(any(row["wrong"] for row in rows))
