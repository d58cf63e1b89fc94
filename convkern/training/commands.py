"""The commands ``convkern train``, ``evaluate`` and ``predict``."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import convkern
from convkern import models
from convkern.errors import Interrupted
from convkern.functional import softmax
from convkern.nn import SGD
from convkern.training import pictures
from convkern.training.evaluation import Evaluation, evaluate
from convkern.training.history import Epoch
from convkern.training.loop import CHECKPOINT, CONFUSION, CURVES, FILTERS, LOG, fit
from convkern.training.recipe import (
    DATASETS,
    NOT_MIRRORED,
    Preparation,
    Recipe,
    build,
    checkpoint_of,
    load_data,
    pack,
    resize_of,
    unpack,
)
from convkern.training.workers import Alone, Workers

_BATCH_SIZE = 128


def train(options: argparse.Namespace) -> int:
    """Run ``convkern train``; return the exit code."""
    with _workers(options.mpi) as workers, _threads(options.threads):
        return _train(options, workers)


def _train(options: argparse.Namespace, workers: Workers) -> int:
    """Train, print epoch by epoch and say what was written, or how to go on."""
    dataset = options.dataset if options.dataset in DATASETS else "folder"
    folder, recipe = _settings(options, dataset)
    _, side, _ = models.INPUT_SHAPE[recipe.model]
    training, held_out = load_data(options.dataset, options.data, side, download=options.download)
    size = training.images.shape[2]
    prepared = Preparation.fit(recipe.model, training, resize_of(options.dataset, size))
    mirror = dataset not in NOT_MIRRORED
    loader = prepared.loader(training, recipe.batch_size, workers, seed=recipe.seed, mirror=mirror)
    validation = prepared.loader(held_out, max(_BATCH_SIZE, workers.size), workers)
    net = build(recipe.model, len(training.classes), recipe.seed)
    optimizer = SGD(net.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)

    def say(text: str) -> None:
        """Print something once."""
        if workers.rank == 0:
            print(text, flush=True)

    say(
        f"{recipe.model}, {net.num_parameters():,} parameters, on {options.dataset}: "
        f"{len(training):,} images of {len(training.classes)} classes, "
        f"{len(held_out):,} held out"
    )
    say(f"{prepared}; batches of {recipe.batch_size}, seed {recipe.seed}{_team(workers)}")
    try:
        history = fit(
            net,
            loader,
            optimizer,
            recipe.epochs,
            validation=validation,
            schedule=recipe.schedule_of(optimizer),
            folder=folder,
            resume=options.resume,
            recipe=pack(recipe, prepared),
            workers=workers,
            progress=sys.stderr.isatty(),
            report=lambda epoch: print(_epoch_text(epoch, recipe.epochs), flush=True),
        )
    except Interrupted:
        say(f"stopped, saved in {folder}; go on with the same command and --resume")
        return 130
    last = history[-1]
    say(f"{last.validation_accuracy:.2%} of {len(held_out):,} held-out images are right")
    say(f"in {folder}: {', '.join((CHECKPOINT, LOG, CURVES, CONFUSION, FILTERS))}")
    return 0


def _settings(options: argparse.Namespace, dataset: str) -> tuple[Path, Recipe]:
    """Return where a run is kept and what it follows from: the options, or its checkpoint."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    recipe = Recipe.of(dataset, given)
    folder = Path(options.output or f"runs/{Path(options.dataset).resolve().name}-{recipe.model}")
    if not options.resume:
        return folder, recipe
    saved, _, _ = unpack(folder / CHECKPOINT)
    for name, value in asdict(saved).items():
        wanted = dataset if name == "dataset" else given.get(name, value)
        if name != "epochs" and wanted != value:
            raise ValueError(
                f"{folder / CHECKPOINT} is of a run with {name} {value}, got {wanted}; "
                "only --epochs can be changed by --resume"
            )
    # The options that are not given are those of the run, not the defaults.
    return folder, Recipe.of(dataset, {**asdict(saved), **given})


def evaluate_checkpoint(options: argparse.Namespace) -> int:
    """Run ``convkern evaluate``."""
    path = checkpoint_of(options.checkpoint)
    recipe, prepared, net = unpack(path)
    side = models.INPUT_SIZE[recipe.model]
    _, held_out = load_data(options.dataset, options.data, side, download=options.download)
    if held_out.images.shape[2:] != prepared.size:
        raise ValueError(
            f"{path} is for images of {_times(prepared.size)}, {options.dataset} has "
            f"{_times(held_out.images.shape[2:])}"
        )
    with _threads(options.threads):
        found = evaluate(net, prepared.loader(held_out, _BATCH_SIZE, Alone()))
    if options.figure:
        pictures.draw_confusion(options.figure, found, prepared.classes)
    if options.json:
        print(json.dumps(_report(found, recipe, prepared), indent=2))
        return 0
    print(f"{recipe.model} on {options.dataset}, {len(held_out):,} held-out images")
    print(f"accuracy {found.accuracy:.2%}, loss {found.loss:.4f}")
    width = max(map(len, prepared.classes))
    for index, name in enumerate(prepared.classes):
        row = found.confusion[index].copy()
        total, row[index] = row.sum(), 0
        line = f"{name:{width}}  {_percent(found.per_class[index])} of {total}"
        if row.any():
            line += f", most often taken for {prepared.classes[row.argmax()]} ({row.max()})"
        print(line)
    return 0


def predict(options: argparse.Namespace) -> int:
    """Run ``convkern predict``."""
    _, prepared, net = unpack(checkpoint_of(options.checkpoint))
    loader = prepared.loader(prepared.photos(options.images), _BATCH_SIZE, Alone())
    with _threads(options.threads):
        scores = np.concatenate([net(images) for images, _ in loader])
    if not np.isfinite(scores).all():
        raise ValueError("the network's output is not finite; its weights cannot be right")
    report = []
    for path, row in zip(options.images, softmax(scores), strict=True):
        best = np.argsort(-row, kind="stable")[: options.top]
        top = [{"label": prepared.classes[n], "probability": float(row[n])} for n in best]
        report.append({"path": path, "top": top})
    if options.json:
        print(json.dumps(report, indent=2))
        return 0
    for image in report:
        print(image["path"])
        for entry in image["top"]:
            print(f"{entry['probability']:8.2%}  {entry['label']}")
    return 0


@contextmanager
def _workers(mpi: bool) -> Iterator[Workers]:
    """Give the processes that work together; an error in one of them ends all."""
    if not mpi:
        yield Alone()
        return
    from convkern.interop.mpi import MPIWorkers

    with MPIWorkers() as workers:
        yield workers


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Use so many threads, or as many as usual."""
    with convkern.num_threads(count or convkern.get_num_threads()):
        yield


def _team(workers: Workers) -> str:
    """Say how many processes work together, if there are several."""
    return f", {workers.size} processes" if workers.size > 1 else ""


def _epoch_text(epoch: Epoch, epochs: int) -> str:
    """Say in one line how an epoch went."""
    return (
        f"epoch {epoch.number:{len(str(epochs))}}/{epochs}  loss {epoch.loss:.4f}  "
        f"accuracy {_percent(epoch.accuracy)}  held out {_percent(epoch.validation_accuracy)}  "
        f"{epoch.images_per_s:,.0f} images/s"
    )


def _percent(share: float | None) -> str:
    """Write a share; there is none where there are no images."""
    return "   none" if share is None or math.isnan(share) else f"{share:7.2%}"


def _report(found: Evaluation, recipe: Recipe, prepared: Preparation) -> dict[str, Any]:
    """Return what was found, as JSON holds it."""
    return {
        "model": recipe.model,
        "classes": prepared.classes,
        "accuracy": found.accuracy,
        "loss": found.loss,
        "per_class": [None if math.isnan(share) else share for share in found.per_class.tolist()],
        "confusion": found.confusion.tolist(),
    }


def _times(shape: tuple[int, ...]) -> str:
    """Write a shape as ``32x32``."""
    return "x".join(map(str, shape))
