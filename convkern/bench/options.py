"""The options of ``convkern bench``."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import convkern
from convkern.bench.cases import GRADIENTS, LAYERS, LAYOUTS, TRAINING_BATCH
from convkern.bench.peers import HELD, PEERS
from convkern.shapes import select


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


def parse(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser, for its error message, and the checked options."""
    parser = argparse.ArgumentParser(
        prog="convkern bench",
        description="Check convkern's results, then time it beside other libraries.",
    )
    parser.add_argument(
        "--what",
        choices=(*LAYERS, "alexnet", "train"),
        default="forward",
        help="convolutions, their gradients, max poolings, linear layers, a whole network, or "
        "training steps (default: forward)",
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        metavar="NAME",
        default=["*"],
        help="network, or network/layer, wildcards allowed (default: all; to train "
        f"there are {', '.join(TRAINING_BATCH)})",
    )
    parser.add_argument(
        "--batch",
        nargs="+",
        type=_positive,
        metavar="N",
        help="images at a time (default: 1; for alexnet 1, 16 and 64, to train what is usual)",
    )
    parser.add_argument(
        "--against",
        type=_peer_names,
        metavar="PEERS",
        help=f"{', '.join(PEERS)}, with commas between, or none (default: torch, for alexnet "
        "all, as far as they are installed)",
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="of convkern's input (default: nchw; for alexnet and with --prepacked channels_last)",
    )
    parser.add_argument(
        "--prepacked",
        action="store_true",
        help="pack the weights of convolutions beforehand",
    )
    parser.add_argument(
        "--gradient",
        choices=GRADIENTS,
        help="which gradients backward computes (default: all three)",
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="show the memory that a call takes at most, with its result; training always does",
    )
    parser.add_argument(
        "--threads",
        type=_threads,
        default=convkern.get_num_threads(),
        metavar="T",
        help="for convkern and every peer (default: %(default)s)",
    )
    parser.add_argument(
        "--isa",
        choices=HELD,
        help="hold convkern and torch to this instruction set (default: the processor's best)",
    )
    parser.add_argument(
        "--rounds", type=_positive, default=7, metavar="R", help="turns each (default: 7)"
    )
    parser.add_argument("--json", type=_output_path, metavar="FILE", help="write everything here")
    parser.add_argument("--plot", type=_output_path, metavar="FILE", help="draw the ratios here")
    options = parser.parse_args(argv)

    try:
        options.selected = _selected(options.what, options.shapes)
    except ValueError as error:
        parser.error(f"argument --shapes: {error}")
    if options.prepacked and options.what != "forward":
        parser.error("--prepacked goes with --what forward only")
    if options.gradient and options.what != "backward":
        parser.error("--gradient goes with --what backward only")
    _choose_peers(parser, options)
    if options.plot and not importlib.util.find_spec("matplotlib"):
        parser.error('--plot needs matplotlib: pip install "convkern[app]"')
    if options.plot and not options.against:
        parser.error("--plot draws ratios to peers, and there is none")
    options.batch = options.batch or {"alexnet": [1, 16, 64], "train": []}.get(options.what, [1])
    # A network computes in this layout, and what stands in one is prepacked.
    in_network = options.prepacked or options.what == "alexnet"
    options.layout = options.layout or ("channels_last" if in_network else "nchw")
    options.gradient = options.gradient or "all"
    return parser, options


def _selected(what: str, patterns: Sequence[str]) -> list[Any]:
    """Return the shapes, or the names of networks, that the patterns stand for."""
    if what == "alexnet":
        if patterns != ["*"]:
            raise ValueError("--shapes does not go with --what alexnet")
        return ["alexnet"]
    if what != "train":
        shapes = LAYERS[what][1]
        return list(dict.fromkeys(s for pattern in patterns for s in select(pattern, shapes)))
    found: list[str] = []
    for pattern in patterns:
        names = [name for name in TRAINING_BATCH if fnmatchcase(name, pattern.lower())]
        if not names:
            known = ", ".join(TRAINING_BATCH)
            raise ValueError(f"no network is named {pattern!r}; known are {known}")
        found += names
    return list(dict.fromkeys(found))


def _choose_peers(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Set the peers by default; refuse those that do not compute what is measured."""
    able = [name for name, peer in PEERS.items() if options.what in peer.computes]
    held = [name for name in able if PEERS[name].instruction_set or not options.isa]
    for name in options.against or []:
        if name not in able:
            parser.error(f"--against {name} does not go with --what {options.what}")
        if name not in held:
            parser.error(f"--against {name} cannot be held to --isa {options.isa}")
        program = PEERS[name].program
        if program and not shutil.which(program):
            parser.error(f"--against {name} needs the program {program}")
    if options.against is None:
        default = held if options.what == "alexnet" else ["torch"]
        options.against = [name for name in default if PEERS[name].is_installed()]
    if options.what == "train" and not options.against:
        parser.error("--what train needs torch, with which results are compared")
