"""The command line: ``convkern alexnet | train | evaluate | predict | summary | info | bench``.

What only some commands need is imported by them, so that ``--help`` and a
mistyped option answer at once.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

import convkern
from convkern import models
from convkern.errors import FormatError, open_regular
from convkern.functional import softmax
from convkern.nn import Sequential

_MAX_LABELS_BYTES = 1 << 24
_COLUMNS = 100
#: What a command fails with when its arguments, files or surroundings are at fault.
_EXPECTED = (OSError, ValueError, ImportError, MemoryError, FloatingPointError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; by default those of the process.

    Returns
    -------
    int
        The exit code: 0, 2 after an error (one line on stderr), 130 after
        Ctrl-C, 141 if the reader of the output went away; for ``bench``, its own.

    Examples
    --------
    >>> from convkern.cli import main
    >>> main(["alexnet", "--top", "0"])
    2
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Python flushes once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except _EXPECTED as error:
        print(f"convkern: error: {_one_line(error)}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    """Hand the arguments to their command."""
    if arguments[:1] == ["bench"]:  # has a parser of its own
        from convkern import bench

        return bench.main(arguments[1:])
    options = _parser().parse_args(arguments)
    return options.run(options) or 0


def _one_line(error: BaseException) -> str:
    """Return the message of an exception without line breaks and error numbers."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return " ".join(text.split())


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are handled like all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    """Return the parser of all commands but ``bench``."""
    parser = _Parser(prog="convkern", description="Convolutional networks on NumPy arrays.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    alexnet = commands.add_parser(
        "alexnet",
        help="walk images through AlexNet, layer by layer",
        description="Walk images through AlexNet and print each layer's output, time and speed.",
    )
    alexnet.add_argument("images", nargs="*", metavar="IMAGE", help="default: a sample photo")
    alexnet.add_argument(
        "--weights", metavar="FILE", help="safetensors or torch.save; default: random weights"
    )
    alexnet.add_argument(
        "--labels", metavar="FILE", help="names of the classes, one a line or as JSON"
    )
    alexnet.add_argument("--top", type=_positive, default=5, metavar="K", help="classes to show")
    alexnet.add_argument("--threads", type=_positive, metavar="N", help="default: all processors")
    alexnet.add_argument(
        "--figure", metavar="FILE", help="draw the filters, feature maps and classes of one image"
    )
    alexnet.add_argument("--seed", type=int, default=0, metavar="S", help="of random weights")
    alexnet.set_defaults(run=_alexnet)

    summary = commands.add_parser(
        "summary",
        help="print the layers of a network",
        description="Print the layers of a network: shapes, parameters, multiply-adds.",
    )
    networks = [*models.INPUT_SHAPE]
    summary.add_argument("model", choices=networks, metavar="MODEL", help=", ".join(networks))
    summary.add_argument(
        "--input-shape", type=_shape, metavar="C,H,W", help="default: the network's own"
    )
    summary.set_defaults(run=_summary)

    _add_training(commands)
    info = commands.add_parser("info", help="print what this installation is and uses")
    info.set_defaults(run=_info)
    commands.add_parser("bench", help="time the kernels beside other libraries", add_help=False)

    for command in (alexnet, summary):
        command.add_argument(
            "--variant", choices=models.ALEXNET_VARIANTS, help="of AlexNet; default: article"
        )
    for command in (alexnet, info):
        command.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _add_training(commands: Any) -> None:
    """Add the parsers of ``train``, ``evaluate`` and ``predict``."""
    train = commands.add_parser(
        "train",
        help="train a network",
        description="Train a network, with a checkpoint after every epoch. Ctrl-C saves and stops; "
        "the same command with --resume then ends with the same weights as if it had not.",
    )
    networks = [*models.INPUT_SHAPE]
    train.add_argument("--model", choices=networks, metavar="NAME", help=", ".join(networks))
    train.add_argument("--epochs", type=_positive, metavar="N", help="default: depends on DATASET")
    train.add_argument(
        "--batch-size", type=_positive, metavar="N", help="of all processes together"
    )
    train.add_argument("--lr", type=_rate, metavar="X", help="the first learning rate")
    train.add_argument("--momentum", type=_rate, metavar="X", help="default: 0.9")
    train.add_argument("--weight-decay", type=_rate, metavar="X", help="default: 0.0005")
    train.add_argument(
        "--schedule", choices=("constant", "cosine", "step"), help="of the rate; default: cosine"
    )
    train.add_argument(
        "--seed", type=_natural, metavar="S", help="of all that is random; default: 0"
    )
    train.add_argument("--output", metavar="FOLDER", help="default: runs/DATASET-MODEL")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint there")
    train.add_argument("--mpi", action="store_true", help="as one of the processes of mpiexec")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser(
        "evaluate",
        help="count what a trained network gets right",
        description="Count what a trained network gets right on held-out images, class by class.",
    )
    evaluate.add_argument("checkpoint", metavar="CHECKPOINT", help="of train, or its folder")
    evaluate.add_argument("--figure", metavar="FILE", help="draw the confusion matrix (PNG)")
    evaluate.set_defaults(run=_evaluate)

    predict = commands.add_parser(
        "predict",
        help="tell what images show",
        description="Tell what images show, by a network that train has trained.",
    )
    predict.add_argument("checkpoint", metavar="CHECKPOINT", help="of train, or its folder")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="such as it was trained on")
    predict.add_argument("--top", type=_positive, default=3, metavar="K", help="classes to show")
    predict.set_defaults(run=_predict)

    for command in (train, evaluate):
        command.add_argument(
            "dataset",
            metavar="DATASET",
            help="digits, mnist, fashion_mnist, cifar10, cifar100, or a folder with a folder of "
            "images for each class, or with two such, train and test",
        )
        command.add_argument("--data", metavar="FOLDER", help="where a data set with a name is")
        command.add_argument("--download", action="store_true", help="fetch what is not there")
    for command in (evaluate, predict):
        command.add_argument("--json", action="store_true", help="print one JSON document")
    for command in (train, evaluate, predict):
        command.add_argument(
            "--threads", type=_positive, metavar="N", help="default: all processors"
        )


def _train(options: argparse.Namespace) -> int:
    """Train a network."""
    from convkern.training import commands

    return commands.train(options)


def _evaluate(options: argparse.Namespace) -> int:
    """Count what a network gets right."""
    from convkern.training import commands

    return commands.evaluate_checkpoint(options)


def _predict(options: argparse.Namespace) -> int:
    """Tell what images show."""
    from convkern.training import commands

    return commands.predict(options)


def _natural(text: str) -> int:
    """Read an integer of at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {number}")
    return number


def _rate(text: str) -> float:
    """Read a finite number of at least 0."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be finite and at least 0, got {text}")
    return number


def _positive(text: str) -> int:
    """Read an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _shape(text: str) -> tuple[int, ...]:
    """Read ``C,H,W``."""
    shape = tuple(_positive(part) for part in text.split(","))
    if len(shape) != 3:
        raise argparse.ArgumentTypeError(f"must be C,H,W, got {text}")
    return shape


def _summary(options: argparse.Namespace) -> None:
    """Print the table of a network's layers."""
    shape = models.INPUT_SHAPE[options.model]
    arguments = {}
    if options.variant:
        if options.model != "alexnet":
            raise ValueError(f"--variant is for alexnet, {options.model} has none")
        side = models.INPUT_SIZE[options.variant]
        shape, arguments = (3, side, side), {"variant": options.variant}
    net = getattr(models, options.model)(**arguments)
    print(net.summary(options.input_shape or shape))


def _info(options: argparse.Namespace) -> None:
    """Print what the installation is and uses."""
    if options.json:
        print(json.dumps(convkern.show_config("dicts"), indent=2))
    else:
        convkern.show_config()


def _alexnet(options: argparse.Namespace) -> None:
    """Classify images, and print the way through the network."""
    from convkern.images import load_image, sample_photo

    options.variant = options.variant or "article"
    side = models.INPUT_SIZE[options.variant]
    paths = options.images or [sample_photo()]
    if options.figure and len(paths) > 1:
        raise ValueError(f"--figure draws one image, got {len(paths)}")
    batch = np.stack([load_image(path, side) for path in paths])
    net = _network(options)
    with convkern.num_threads(options.threads or convkern.get_num_threads()):
        net(batch)  # the first pass touches new memory
        steps, logits = _timed_walk(net, batch)
        threads = convkern.get_num_threads()
    if not np.isfinite(logits).all():
        raise ValueError("the network's output is not finite; its weights cannot be right")
    probabilities = softmax(logits)
    classes = probabilities.shape[1]
    labels = _read_labels(options.labels, classes) if options.labels else None
    ranking = np.argsort(-probabilities, axis=1, kind="stable")[:, : options.top]

    config = convkern.show_config("dicts") or {}
    milliseconds = sum(step["ms"] for step in steps)
    flops = sum(step["flops"] for step in steps)
    report = {
        "model": "alexnet",
        "variant": options.variant,
        "parameters": net.num_parameters(),
        "classes": classes,
        "weights": options.weights,
        "seed": None if options.weights else options.seed,
        "sample_photo": not options.images,
        "figure": options.figure,
        "input_shape": list(batch.shape),
        "dtype": str(batch.dtype),
        "threads": threads,
        "instruction_set": config.get("instruction_set"),
        "version": config.get("version"),
        "steps": steps,
        "total": {
            "ms": milliseconds,
            "images_per_s": 1e3 * len(paths) / milliseconds,
            "flops": flops,
            "gflops_per_s": flops / milliseconds / 1e6,
        },
        "images": [
            {
                "path": path,
                "top": [
                    {
                        "class": int(index),
                        "label": labels[index] if labels else None,
                        "probability": float(row[index]),
                    }
                    for index in best
                ],
            }
            for path, row, best in zip(paths, probabilities, ranking, strict=True)
        ],
    }
    if options.figure:
        _draw(options.figure, net, batch, report)
    print(json.dumps(report, indent=2) if options.json else _alexnet_text(report))


def _network(options: argparse.Namespace) -> Sequential:
    """Return the network with the weights that were asked for, in evaluation mode."""
    from convkern.checkpoint import load_weights

    def build(num_classes: int) -> Sequential:
        rng = np.random.default_rng(options.seed)
        return models.alexnet(num_classes, options.variant, rng=rng).eval()

    net = build(1000)
    if not options.weights:
        return net
    weights = load_weights(options.weights)
    last = [name for name, parameter in net.named_parameters() if parameter.data.ndim == 2][-1]
    if last in weights and weights[last].ndim == 2 and len(weights[last]) != 1000:
        net = build(len(weights[last]))
    try:
        net.load_state_dict(weights)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{options.weights} does not fit --variant {options.variant}: {error.args[0]}"
        ) from error
    return net


def _timed_walk(net: Sequential, batch: Any) -> tuple[list[dict[str, Any]], Any]:
    """Return what each step of the network did and took, and the output of the last."""
    rows = {row.name: row for row in net.summary(batch.shape).rows}
    steps: list[dict[str, Any]] = []
    output = batch
    start = time.perf_counter()
    for name, layer, output in net.walk(batch):
        seconds = time.perf_counter() - start
        flops = 2 * rows[name].multiply_adds * len(batch)
        steps.append(
            {
                "name": name,
                "layer": repr(layer),
                "output_shape": list(output.shape),
                "parameters": rows[name].parameters,
                "ms": seconds * 1e3,
                "flops": flops,
                "gflops_per_s": flops / seconds / 1e9,
            }
        )
        start = time.perf_counter()
    return steps, output


def _read_labels(path: str, classes: int) -> list[str]:
    """Read the names of the classes: a line each, a JSON list or ``{"0": name or [id, name]}``."""
    with open_regular(path) as file:
        content = file.read(_MAX_LABELS_BYTES)
    try:
        text = content.decode("utf-8-sig").strip()
        entries: Any = json.loads(text) if text[:1] in ("[", "{") else text.split("\n")
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} holds no labels: {error}") from error
    if isinstance(entries, dict):
        entries = [entries.get(str(index)) for index in range(len(entries))]
    labels = [entry[-1] if isinstance(entry, list) and entry else entry for entry in entries]
    if not all(isinstance(label, str) for label in labels):
        raise FormatError(f"{path} holds no labels: not all of its entries are names")
    if len(labels) != classes:
        raise FormatError(f"{path} has {len(labels)} labels, the network has {classes} classes")
    return [label.strip() for label in labels]


def _draw(path: str, net: Sequential, batch: Any, report: dict[str, Any]) -> None:
    """Draw what `_alexnet` found for one image."""
    from convkern.figure import draw_walk

    image = report["images"][0]
    draw_walk(
        path,
        net,
        batch,
        [
            (entry["label"] or f"class {entry['class']}", entry["probability"])
            for entry in image["top"]
        ],
        title=f"AlexNet sees {os.path.basename(image['path'])}",
        subtitle=f"variant {report['variant']}, {report['parameters']:,} parameters, "
        + _source(report)
        + ("" if report["weights"] else ": untrained, the classes mean nothing"),
    )


def _alexnet_text(report: dict[str, Any]) -> str:
    """Lay out what `_alexnet` found, in at most 100 columns but for paths and labels."""
    trained, total, threads = report["weights"], report["total"], report["threads"]
    lines = [
        f"AlexNet ({report['variant']}), {report['parameters']:,} parameters, {_source(report)}",
        f"input {_times(report['input_shape'])} {report['dtype']}, "
        f"{threads} thread{'s' * (threads > 1)}, {report['instruction_set']}",
    ]
    if report["sample_photo"]:
        lines.append("no image given: the input is the sample photo of matplotlib")
    if not trained:
        lines.append("the network is untrained: the classes below mean nothing (see --weights)")

    table = [("name", "layer", "output", "parameters", "ms", "GFLOP/s")]
    for step in report["steps"]:
        table.append(
            (
                step["name"],
                # Written short: the kernel size without its name, the fused ReLU without ().
                step["layer"].replace("kernel_size=", "").replace("()", "").replace(" + ", "+"),
                _times(step["output_shape"][1:]),
                f"{step['parameters']:,}" if step["parameters"] else "",
                f"{step['ms']:.2f}",
                f"{step['gflops_per_s']:.1f}" if step["flops"] else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    widths[1] = min(widths[1], _COLUMNS - sum(widths[:1] + widths[2:]) - 2 * (len(widths) - 1))
    lines.append("")
    for name, layer, *numbers in table:
        shown = layer if len(layer) <= widths[1] else layer[: widths[1] - 3] + "..."
        cells = [f"{name:{widths[0]}}", f"{shown:{widths[1]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(numbers, widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.append(
        f"total: {total['ms']:.2f} ms, {total['images_per_s']:.1f} images/s, "
        f"{total['gflops_per_s']:.1f} GFLOP/s"
    )
    for image in report["images"]:
        lines += ["", image["path"]]
        for entry in image["top"]:
            label = entry["label"] or ""
            lines.append(f"{entry['probability']:7.2%}  class {entry['class']:<4} {label}".rstrip())
    if report["figure"]:
        lines += ["", f"figure: {report['figure']}"]
    return "\n".join(lines)


def _source(report: dict[str, Any]) -> str:
    """Say where the weights come from."""
    if report["weights"]:
        return f"weights from {report['weights']}"
    return f"random weights (seed {report['seed']})"


def _times(shape: Sequence[int]) -> str:
    """Write a shape as ``3x227x227``."""
    return "x".join(map(str, shape))
