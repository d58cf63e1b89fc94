"""``convkern bench``: the kernels timed beside those of other libraries.

A row is one piece of work: a layer shape or a network, a batch, a memory
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
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

import convkern
from convkern import _kernels, functional, models, nn, reference
from convkern.geometry import pair
from convkern.shapes import (
    CONV_SHAPES,
    LINEAR_SHAPES,
    POOL_SHAPES,
    LayerShape,
    PoolShape,
    select,
)

Array: TypeAlias = NDArray[Any]
Call: TypeAlias = Callable[[], Any]
Row: TypeAlias = dict[str, Any]

_OURS = "convkern"
_BEST = "best peer"
_LAYERS: dict[str, tuple[str, tuple[LayerShape, ...]]] = {
    "forward": ("conv2d", CONV_SHAPES),
    "pool": ("max_pool2d", POOL_SHAPES),
    "linear": ("linear", LINEAR_SHAPES),
}
_LAYOUTS = {
    "nchw": ("nchw",),
    "channels_last": ("channels_last",),
    "both": ("nchw", "channels_last"),
}

# Largest difference over largest magnitude: about five times that of the fastest float32
# algorithms.  Pooling only selects, so it has no error.
_TOLERANCE = 5e-5
# The reference computes as many images of a batch as fit into this many operations (0.5 s).
_REFERENCE_FLOPS = 5e9
# A row is marked if others took more than this share of one processor from our threads: those that
# wait for one which has lost its core can make a call a thousand times slower.
_BUSY = 0.3


class _Operation(NamedTuple):
    """One operator, under the name it has in `functional`, in `reference` and in torch."""

    function: str
    weights: Sequence[Any]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class _Work:
    """What one row measures: `call` is convkern's way, `operations` say what it computes."""

    label: str
    layout: str
    flops: int
    tolerance: float
    input: Array
    operations: Sequence[_Operation]
    call: Call

    @property
    def batch(self) -> int:
        """The number of images."""
        return len(self.input)


# The work


def _layer_work(name: str, shape: Any, batch: int, layout: str, prepacked: bool) -> _Work:
    """Return the work of one layer, computed by the function `name`, on random numbers."""
    rng = np.random.default_rng(0)
    x = _random_input(rng, (batch, *shape.input_shape), layout)
    weights: list[Array] = []
    if not isinstance(shape, PoolShape):
        filters = shape.weight_shape
        weights = [rng.standard_normal(size, np.float32) for size in (filters, filters[0])]
    operation = _Operation(name, weights, shape.arguments)
    call: Call
    if prepacked:
        weight, bias = weights
        call = partial(functional.PackedConv2d(weight, bias, **shape.arguments), x)
    else:
        call = _call([operation], functional, x)
    tolerance = 0.0 if isinstance(shape, PoolShape) else _TOLERANCE
    return _Work(shape.label, layout, shape.flops * batch, tolerance, x, [operation], call)


def _network_work(label: str, net: nn.Sequential, size: int, batch: int, layout: str) -> _Work:
    """Return the work of a whole network on random images."""
    x = _random_input(np.random.default_rng(0), (batch, 3, size, size), layout)
    flops = 2 * batch * sum(row.multiply_adds for row in net.summary((3, size, size)).rows)
    return _Work(label, layout, flops, _TOLERANCE, x, list(_operations(net)), partial(net, x))


def _random_input(rng: np.random.Generator, shape: tuple[int, ...], layout: str) -> Array:
    """Return an array of logical shape (N, C, H, W), or (N, features), in `layout`."""
    if layout != "channels_last":
        return rng.standard_normal(shape, np.float32)
    n, c, h, w = shape
    return rng.standard_normal((n, h, w, c), np.float32).transpose(0, 3, 1, 2)


# The function of each layer of a network, and the attributes that are its keywords.
_FUNCTIONS: dict[type[nn.Layer], tuple[str, tuple[str, ...]]] = {
    nn.Conv2d: ("conv2d", ("stride", "padding", "dilation", "groups")),
    nn.MaxPool2d: ("max_pool2d", ("kernel_size", "stride", "padding", "dilation")),
    nn.ReLU: ("relu", ()),
    nn.Flatten: ("flatten", ("start_dim",)),
    nn.Linear: ("linear", ()),
}


def _operations(layer: nn.Layer) -> Iterator[_Operation]:
    """Yield what a network computes in eval mode."""
    if isinstance(layer, nn.Sequential):
        for child in layer.layers:
            yield from _operations(child)
    elif not isinstance(layer, nn.Dropout):
        function, names = _FUNCTIONS[type(layer)]
        weights = [parameter.data for parameter in layer.parameters()]
        yield _Operation(function, weights, {name: getattr(layer, name) for name in names})


def _call(operations: Sequence[_Operation], functions: Any, x: Any) -> Call:
    """Return a call that hands `x` through the operations, as the attributes of `functions`."""
    steps = [(getattr(functions, name), *rest) for name, *rest in operations]
    # A single function is called without a wrapper: it may take only microseconds.
    if len(steps) == 1:
        function, weights, arguments = steps[0]
        return partial(function, x, *weights, **arguments)

    def chain() -> Any:
        y = x
        for function, weights, arguments in steps:
            y = function(y, *weights, **arguments)
        return y

    return chain


# The peers: context managers that take the number of threads and give a function from a _Work to
# calls by name.


Prepare: TypeAlias = Callable[[_Work], dict[str, Call]]


@contextmanager
def _torch(threads: int) -> Iterator[Prepare]:
    """Time torch in eager mode, images and filters in either memory format."""
    import torch

    # In place where torch's own networks are.
    others = {"relu": torch.relu_, "flatten": torch.flatten}
    functions = SimpleNamespace(**vars(torch.nn.functional) | others)

    def prepare(work: _Work) -> dict[str, Call]:
        if work.input.ndim != 4:
            return {"torch": in_format(work, torch.contiguous_format)}
        return {
            "torch nchw": in_format(work, torch.contiguous_format),
            "torch channels_last": in_format(work, torch.channels_last),
        }

    def in_format(work: _Work, memory_format: Any) -> Call:
        def tensor(array: Array) -> Any:
            made = torch.from_numpy(array)
            return made.contiguous(memory_format=memory_format) if array.ndim == 4 else made

        operations = [
            operation._replace(weights=[tensor(weight) for weight in operation.weights])
            for operation in work.operations
        ]
        return _call(operations, functions, tensor(work.input))

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield prepare
    finally:
        torch.set_num_threads(before)


@contextmanager
def _onnxruntime(threads: int) -> Iterator[Prepare]:
    """Time ONNX Runtime on its own threads, which wait asleep."""
    _onnx()  # here already, so that a missing package is named at once
    import onnxruntime

    def prepare(work: _Work) -> dict[str, Call]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(
            _onnx_model(work), options, providers=["CPUExecutionProvider"]
        )
        feed = {"input": np.ascontiguousarray(work.input)}
        return {"onnxruntime": lambda: session.run(None, feed)[0]}

    yield prepare


@contextmanager
def _openvino(threads: int) -> Iterator[Prepare]:
    """Time OpenVINO in float32, its input and output shared with NumPy."""
    _onnx()
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }

    def prepare(work: _Work) -> dict[str, Call]:
        model = core.compile_model(core.read_model(_onnx_model(work)), "CPU", settings)
        request = model.create_infer_request()
        feed = [np.ascontiguousarray(work.input)]
        return {
            "openvino": lambda: request.infer(feed, share_inputs=True, share_outputs=True)[0],
        }

    yield prepare


#: Adding a peer is adding an entry.
PEERS: dict[str, Callable[[int], AbstractContextManager[Prepare]]] = {
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}

# Names in ONNX: of the operator, with what it always needs, and of the keywords.
_ONNX_OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "conv2d": ("Conv", {}),
    "max_pool2d": ("MaxPool", {}),
    "relu": ("Relu", {}),
    "flatten": ("Flatten", {}),
    "linear": ("Gemm", {"transB": 1}),
}
_ONNX_ATTRIBUTES: dict[str, Callable[[Any], tuple[str, Any]]] = {
    "kernel_size": lambda value: ("kernel_shape", pair(value, "kernel_size")),
    "stride": lambda value: ("strides", pair(value, "stride")),
    "padding": lambda value: ("pads", pair(value, "padding", 0) * 2),
    "dilation": lambda value: ("dilations", pair(value, "dilation")),
    "groups": lambda value: ("group", value),
    "start_dim": lambda value: ("axis", value),
}


def _onnx() -> Any:
    """Return the package that writes models for the peers which read them."""
    return importlib.import_module("onnx")


def _onnx_model(work: _Work) -> bytes:
    """Return the operations as a serialized ONNX model from "input" to "output"."""
    onnx = _onnx()
    helper, from_array = onnx.helper, onnx.numpy_helper.from_array
    nodes: list[Any] = []
    initializers: list[Any] = []
    x = "input"
    for index, operation in enumerate(work.operations):
        operator, fixed = _ONNX_OPERATORS[operation.function]
        attributes = fixed | dict(
            _ONNX_ATTRIBUTES[name](value) for name, value in operation.arguments.items()
        )
        weights = [f"weight{index}.{i}" for i in range(len(operation.weights))]
        initializers += map(from_array, operation.weights, weights)
        y = "output" if operation is work.operations[-1] else f"x{index}"
        nodes.append(helper.make_node(operator, [x, *weights], [y], **attributes))
        x = y
    value = partial(helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "bench",
        [value("input", shape=work.input.shape)],
        [value("output", shape=None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized


# Right, then fast


def _errors(work: _Work, peers: Mapping[str, Call]) -> dict[str, float]:
    """Return how far convkern is from each peer and, on the last images, from the reference."""
    count = int(max(1, min(work.batch, _REFERENCE_FLOPS * work.batch // max(work.flops, 1))))
    expected = _call(work.operations, reference, work.input[-count:])()
    result = work.call()
    found = {"reference": _error(result[-count:], expected)}
    for name, call in peers.items():
        found[name] = _error(result, np.asarray(call()))
    return found


def _error(result: Array, expected: Array) -> float:
    """Return the largest difference over the largest expected magnitude; inf between shapes."""
    if result.shape != expected.shape:
        return math.inf
    return float(np.abs(result - expected).max() / np.abs(expected).max())


def _settle() -> None:
    """Wait until idle threads, which spin for a while, have gone to sleep."""
    time.sleep(0.02)


def interleave(
    calls: Mapping[str, Call],
    rounds: int,
    *,
    minimum: float = 0.005,
    clock: Callable[[], float] = time.perf_counter,
    settle: Callable[[], None] = _settle,
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


def summarise(seconds: Mapping[str, list[float]], flops: int, peak: float) -> Row:
    """Return medians, minima, ratios and rates of interleaved timings.

    Parameters
    ----------
    seconds : mapping of str to list of float
        What `interleave` returned; ``"convkern"`` is one of the names.
    flops : int
        Operations of one call by the direct algorithm; 0 where there are none to count.
    peak : float
        The machine's GFLOP/s, for the share of it.

    Returns
    -------
    dict
        ``ratios`` are medians of the pairwise ratios of each round; where there
        are several peers, ``"best peer"`` is the smallest of them.

    Examples
    --------
    >>> row = summarise({"convkern": [1.0, 2.0, 1.0], "peer": [2.0, 4.0, 9.0]}, 10**9, 4.0)
    >>> row["ratios"], row["gflops"], row["share_of_peak"]
    ({'peer': 2.0}, 1.0, 0.25)
    """
    ours = seconds[_OURS]
    peers = {name: times for name, times in seconds.items() if name != _OURS}
    ratios = {
        name: median(theirs / mine for theirs, mine in zip(times, ours, strict=True))
        for name, times in peers.items()
    }
    ratios_of_minima = {name: min(times) / min(ours) for name, times in peers.items()}
    for kind in (ratios, ratios_of_minima):
        if len(peers) > 1:
            kind[_BEST] = min(kind.values())
    gflops = flops / median(ours) / 1e9 if flops else None
    return {
        "median_ms": {name: 1e3 * median(times) for name, times in seconds.items()},
        "minimum_ms": {name: 1e3 * min(times) for name, times in seconds.items()},
        "gflops": gflops,
        "share_of_peak": gflops / peak if gflops else None,
        "ratios": ratios,
        "ratios_of_minima": ratios_of_minima,
        "seconds": dict(seconds),
    }


def _measure(
    work: _Work, prepares: Sequence[Prepare], rounds: int, threads: int, peak: float
) -> Row:
    """Return the row of a piece of work: errors, and times if these are small."""
    peers: dict[str, Call] = {}
    for prepare in prepares:
        peers |= prepare(work)
    found = _errors(work, peers)
    # A NaN is not within the tolerance either.
    wrong = [name for name, error in found.items() if not error <= work.tolerance]
    row: Row = {
        "label": work.label,
        "batch": work.batch,
        "layout": work.layout,
        "flops": work.flops,
        "columns": [*peers, *[_BEST] * (len(peers) > 1)],
        "errors": {name: e if math.isfinite(e) else None for name, e in found.items()},
        "wrong": wrong,
        "ratios": {},
        "gflops": None,
        "busy": False,
    }
    if wrong:
        return row
    before, start = _processor_seconds_of_others(), time.perf_counter()
    seconds = interleave({_OURS: work.call, **peers}, rounds)
    taken = (_processor_seconds_of_others() - before) / (time.perf_counter() - start)
    row |= summarise(seconds, work.flops, peak)
    row["processors_taken_by_others"] = taken
    row["busy"] = taken + threads > (os.cpu_count() or 1) + _BUSY
    return row


def _processor_seconds_of_others() -> float:
    """Return the time that all but this process have used the processors, where Linux tells it."""
    try:
        total = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, total[:8])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def _fma_peak(threads: int) -> float:
    """Return the most GFLOP/s that float32 FMAs reach on so many threads, in some 0.1 s."""

    def spin(iterations: int, threads: int) -> tuple[float, float]:
        start = time.perf_counter()
        operations = threads * _kernels.spin_fma(np.float32, iterations, threads)
        seconds = time.perf_counter() - start
        return operations / seconds / 1e9, seconds

    _settle()
    iterations = 1024
    # One thread finds how much to do: several may wait for each other instead of working.
    while spin(iterations, 1)[1] < 0.01:
        iterations *= 2
    return max(spin(iterations, threads)[0] for _ in range(4))


# The report


def _environment(options: argparse.Namespace, argv: Sequence[str], peak: float) -> dict[str, Any]:
    """Return what the numbers depend on besides the code."""
    return {
        "command": shlex.join(["convkern", "bench", *argv]),
        "cpu": _cpu_name(),
        "instruction_set": _kernels.isa,
        "threads": options.threads,
        "fma_peak_gflops": peak,
        "rounds": options.rounds,
        "versions": {
            "python": platform.python_version(),
            "convkern": convkern.__version__,
            "numpy": np.__version__,
            **{name: importlib.metadata.version(name) for name in options.against},
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


def _introduction(environment: Mapping[str, Any]) -> str:
    """Return the lines above the table."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return (
        f"{environment['command']}\n"
        f"{environment['cpu']}, {environment['instruction_set']}, "
        f"threads {environment['threads']}, FMA peak {environment['fma_peak_gflops']:.0f} GFLOP/s\n"
        f"{versions}\n"
        f"Medians of {environment['rounds']} interleaved rounds, float32; "
        "GFLOP/s of the direct algorithm.\n"
        "Ratios are peer's time / convkern's time: above 1, convkern is faster.\n"
    )


def _header(row: Row) -> str:
    """Return the two lines above the rows; a peer's name takes both."""
    columns = [name.partition(" ")[::2] for name in row["columns"]]
    first = f"{'':<54}{'':>9}{'% of':>6}" + "".join(f"{word:>14}" for word, _ in columns)
    second = f"{'shape':<26}{'N':>4} {'layout':<13}{'ms':>10}{'GFLOP/s':>9}{'peak':>6}"
    return first + "\n" + second + "".join(f"{word:>14}" for _, word in columns)


def _line(row: Row) -> str:
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
    ratios = "".join(f"{ratio:14.2f}" for ratio in row["ratios"].values())
    busy = "  busy" if row["busy"] else ""
    return f"{start}{row['median_ms'][_OURS]:10.3f}{rates}{ratios}{busy}"


def _means(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return the geometric mean of every ratio, for each layout, over what can be trusted."""
    layouts: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["wrong"] or row["busy"]:
            continue
        columns = layouts.setdefault(row["layout"], {})
        for name, ratio in row["ratios"].items():
            columns.setdefault(name, []).append(ratio)
    return {
        layout: {name: geometric_mean(ratios) for name, ratios in columns.items()}
        for layout, columns in layouts.items()
        if columns
    }


def _conclusion(rows: Sequence[Row]) -> str:
    """Return the lines under the rows: the means, and the rows to look at."""
    lines = [
        f"{'geometric mean':<31}{layout:<13}{'':>25}"
        + "".join(f"{m:14.2f}" for m in means.values())
        for layout, means in _means(rows).items()
    ]
    counts = {
        "slower than a peer": sum(min(row["ratios"].values(), default=1.0) < 1.0 for row in rows),
        "busy machine, not in the means": sum(row["busy"] for row in rows),
        "WRONG": sum(bool(row["wrong"]) for row in rows),
    }
    lines += [f"{what}: {count} of {len(rows)} rows" for what, count in counts.items() if count]
    return "\n".join(lines)


def _plot(rows: Sequence[Row], environment: Mapping[str, Any], path: Path) -> None:
    """Draw the ratios to every peer and the share of the FMA peak, a group of bars for a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    peers = [name for name in rows[0]["columns"] if name != _BEST]
    rated = any(row["gflops"] for row in rows)
    figure, axes = pyplot.subplots(
        1,
        1 + rated,
        squeeze=False,
        sharey=True,
        layout="constrained",
        figsize=(7 + 4 * rated, 1.8 + 0.2 * len(rows) * (1 + len(peers))),
        width_ratios=[5, 3][: 1 + rated],
    )
    places = np.arange(len(rows), dtype=float)
    _plot_ratios(axes[0, 0], rows, peers, places)
    axes[0, 0].set_yticks(
        places,
        [
            f"{row['label']}  N={row['batch']}\n{row['layout']}{', busy' * row['busy']}"
            for row in rows
        ],
    )
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    if rated:
        _plot_shares(axes[0, 1], rows, places, environment["fma_peak_gflops"])
    figure.suptitle(
        f"convkern on {environment['cpu']}\n"
        f"{environment['instruction_set']}, threads {environment['threads']}, float32",
        fontsize="medium",
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _plot_ratios(axes: Any, rows: Sequence[Row], peers: Sequence[str], places: Array) -> None:
    """Draw a bar from 1 to the ratio for every row and peer, on a logarithmic axis."""
    height = 0.8 / len(peers)
    for index, name in enumerate(peers):
        ratios = np.array([row["ratios"].get(name, 1.0) for row in rows])
        bars = axes.barh(
            places + (index - (len(peers) - 1) / 2) * height, ratios - 1, height, 1, label=name
        )
        labels = [f" {row['ratios'][name]:.2f} " if row["ratios"] else "" for row in rows]
        axes.bar_label(bars, labels, fontsize="x-small")
    for place, row in zip(places, rows, strict=True):
        if row["wrong"]:
            axes.text(1, place, " WRONG, not timed", color="tab:red", va="center", weight="bold")
    drawn = [0.5, 2.0, *(ratio for row in rows for ratio in row["ratios"].values())]
    room = (max(drawn) / min(drawn)) ** 0.1  # for the labels
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(drawn) / room, max(drawn) * room)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("peer's time / convkern's time (right of 1: convkern is faster)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(peers), frameon=False)


def _plot_shares(axes: Any, rows: Sequence[Row], places: Array, peak: float) -> None:
    """Draw the share of the FMA peak for every row, with its GFLOP/s."""
    gflops = [row["gflops"] or 0.0 for row in rows]
    shares = [100 * rate / peak for rate in gflops]
    bars = axes.barh(places, shares, 0.6, color="tab:gray")
    labels = [f" {rate:.3g} GFLOP/s" if rate else "" for rate in gflops]
    axes.bar_label(bars, labels, fontsize="x-small")
    axes.axvline(100, color="black", linewidth=1, linestyle="--")
    axes.set_xlim(0, 1.35 * max(100, *shares))
    axes.set_xlabel(f"% of the FMA peak of {peak:.0f} GFLOP/s")
    axes.grid(axis="x", alpha=0.3)


# The command


def _works(options: argparse.Namespace) -> Iterator[_Work]:
    """Yield the work, each made when its turn comes, for the memory it takes."""
    layouts = _LAYOUTS[options.layout]
    if options.what == "alexnet":
        net = models.alexnet(rng=np.random.default_rng(0)).eval()
        size = models.INPUT_SIZE["article"]
        for batch in options.batch:
            for layout in layouts:
                yield _network_work("alexnet", net, size, batch, layout)
        return
    name, _ = _LAYERS[options.what]
    for shape in options.selected:
        for batch in options.batch:
            for layout in layouts if len(shape.input_shape) == 3 else ("-",):
                yield _layer_work(name, shape, batch, layout, options.prepacked)


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
        choices=(*_LAYERS, "alexnet"),
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
        choices=_LAYOUTS,
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
            found = [s for name in options.shapes for s in select(name, _LAYERS[options.what][1])]
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
        peak = _fma_peak(options.threads)
        environment = _environment(options, argv, peak)
        print(_introduction(environment))
        for work in _works(options):
            # Again for every row: the machine may have been busy before.
            peak = max(peak, _fma_peak(options.threads))
            row = _measure(work, prepares, options.rounds, options.threads, peak)
            if not rows:
                print(_header(row))
            print(_line(row), flush=True)
            rows.append(row)
    environment["fma_peak_gflops"] = peak
    if conclusion := _conclusion(rows):
        print(conclusion)
    if options.json:
        report = {"environment": environment, "rows": rows, "geometric_means": _means(rows)}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        _plot(rows, environment, options.plot)
    return int(any(row["wrong"] for row in rows))
