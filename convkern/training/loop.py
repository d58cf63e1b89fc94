"""The loop of training: epochs of steps, validated, logged, saved, and stopped with care."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from convkern.data import DataLoader
from convkern.errors import Interrupted, import_extra
from convkern.geometry import integer
from convkern.nn import CrossEntropyLoss, Loss, LRScheduler, Optimizer, Sequential
from convkern.training import pictures
from convkern.training.evaluation import Evaluation, check_scores, count, net_dtype
from convkern.training.history import Epoch, write_log
from convkern.training.state import TOTALS, State
from convkern.training.stopping import Stop
from convkern.training.workers import Alone, Workers, anyone, same_start, share_step

Array = npt.NDArray[Any]
#: What `fit` writes into its folder.
CHECKPOINT = "checkpoint.safetensors"
LOG = "log.csv"
CURVES, CONFUSION, FILTERS = "curves.png", "confusion.png", "filters.png"
#: Seconds after which the curves are drawn anew while training goes on.
_REDRAW = 60


def fit(
    net: Sequential,
    loader: DataLoader,
    optimizer: Optimizer,
    epochs: int,
    *,
    validation: DataLoader | None = None,
    loss: Loss | None = None,
    schedule: LRScheduler | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    recipe: dict[str, Any] | None = None,
    workers: Workers | None = None,
    progress: bool = False,
    report: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Train a net to tell classes apart.

    A step is ``loss(net(images), labels)``, its gradient, and ``optimizer.step()``.
    After every epoch the net is validated, the schedule steps, and the `folder` gets a
    checkpoint and a log; at the end also pictures.  Every file is replaced whole
    or not at all.

    Ctrl-C, or SIGTERM, lets the batch end, saves a checkpoint and raises `Interrupted`;
    a second one interrupts at once.  A run that goes on from a checkpoint has in the end
    the weights, bit for bit, of one that was never stopped.

    Parameters
    ----------
    net : Sequential
        From images, (N, C, H, W), to scores, (N, K).  It is left in training mode.
    loader : DataLoader
        The batches; images are cast to the dtype of the net.
    optimizer : Optimizer
        Of the parameters of `net`.
    epochs : int
        How many in all, those of a checkpoint included.
    validation : DataLoader, optional
        Images that are not trained on, normalised as those of `loader`.
    loss : Loss, optional
        A mean over the images of a batch; by default `CrossEntropyLoss`.
    schedule : LRScheduler, optional
        Stepped after every epoch.
    folder : str or path-like, optional
        Where to write ``checkpoint.safetensors``, ``log.csv``, ``curves.png``, ``filters.png``
        and, with a validation set, ``confusion.png``; made if it is missing.  By default
        nothing is written.  ``load_weights`` returns the net of the checkpoint.
    resume : bool
        Go on from the checkpoint in `folder`.  All arguments must be as they
        were; `net`, `optimizer`, `schedule` and `loader` are brought to where they were.
    recipe : dict, optional
        What the checkpoint shall hold besides, as JSON holds it.
    workers : Workers, optional
        The processes that train together, see `convkern.interop.mpi`.  Each has a
        loader with its shard; together they make the steps of one process.
    progress : bool
        Show a bar with loss, accuracy and images per second on stderr.
    report : callable, optional
        Called with each `Epoch` as it ends, in the first process.

    Returns
    -------
    list of Epoch
        All epochs, those of a checkpoint included.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.
    FileExistsError
        If the folder has a checkpoint that `resume` does not ask for.
    FormatError
        If the checkpoint is damaged or does not fit the arguments.
    FloatingPointError
        If the loss is no longer finite; the last checkpoint stays.
    ImportError
        If something is not installed: safetensors and matplotlib for a `folder`, tqdm for
        `progress`.
    Interrupted
        See above.

    Notes
    -----
    Batch normalisation uses the statistics of a process's own shard (as torch's
    DistributedDataParallel does); its running statistics are averaged in every step.  A
    net with batch normalisation is therefore trained a little differently by
    several processes, and one without gets the weights of one process up to rounding
    (if the `loss` weighs all images alike).

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.data import DataLoader, Dataset
    >>> from convkern.nn import SGD, Flatten, Linear, Sequential
    >>> from convkern.training import fit
    >>> pixels = np.random.default_rng(0).integers(0, 256, (200, 1, 1, 2), np.uint8)
    >>> data = Dataset(pixels, (pixels[:, 0, 0, 0] > 127).astype(int), ["dark", "bright"])
    >>> net = Sequential(Flatten(), Linear(2, 2, rng=np.random.default_rng(0)))
    >>> epochs = fit(net, DataLoader(data, 20), SGD(net.parameters(), lr=1.0), 30)
    >>> len(epochs), epochs[-1].accuracy > 0.95
    (30, True)
    """
    workers = workers or Alone()
    epochs = integer(epochs, "epochs", 0)
    for name, one in (("loader", loader), ("validation", validation)):
        _check_loader(name, one, workers)
    loss = loss or CrossEntropyLoss()
    if loss.reduction != "mean":
        raise ValueError(f'loss must have the reduction "mean", got {loss.reduction!r}')
    files = None if folder is None else Path(folder)
    if files is None and resume:
        raise ValueError("folder must be given to resume from, got None")
    if workers.rank == 0:
        _check_extras(files is not None, progress)
    state = State(net, optimizer, schedule, loader, workers, recipe or {})
    same_start(net, workers)
    if files is not None:
        if resume:
            state.load(files / CHECKPOINT)
        elif (files / CHECKPOINT).exists():
            raise FileExistsError(
                f"{files / CHECKPOINT} is there already; resume from it, or choose another folder"
            )
        if workers.rank == 0:
            files.mkdir(parents=True, exist_ok=True)
    with Stop() as stop:
        run = _Run(state, validation, loss, files, stop, progress, report)
        run.train(epochs)
    return state.history


def _check_loader(name: str, loader: Any, workers: Workers) -> None:
    """Raise unless it is a loader of this process's shard, or a validation set that is missing."""
    if loader is None and name == "validation":
        return
    if not isinstance(loader, DataLoader):
        raise TypeError(f"{name} must be a DataLoader, got {type(loader).__name__}")
    if loader.shard != (workers.rank, workers.size):
        shard = (workers.rank, workers.size)
        raise ValueError(f"{name} must make the shard {shard}, got {loader.shard}")
    if not len(loader):
        raise ValueError(f"{name} must have at least one batch, got none")


def _check_extras(writes: bool, progress: bool) -> None:
    """Raise now, not after an epoch, if something is not installed."""
    modules = ["safetensors", "matplotlib.figure"] if writes else []
    for module in modules + ["tqdm"] * progress:
        import_extra(module)


class _Run:
    """One call of `fit`."""

    def __init__(
        self,
        state: State,
        validation: DataLoader | None,
        loss: Loss,
        folder: Path | None,
        stop: Stop,
        progress: bool,
        report: Callable[[Epoch], None] | None,
    ) -> None:
        self.state = state
        self.validation = validation
        self.loss = loss
        self.folder = folder
        self.stop = stop
        self.leads = state.workers.rank == 0
        self.progress = progress and self.leads
        self.report = report
        self.dtype = net_dtype(state.net)
        self.drawn = time.monotonic()

    def train(self, epochs: int) -> None:
        """Make the epochs that are missing, and the pictures."""
        state = self.state
        evaluation = None
        while len(state.history) < epochs:
            if not state.trained:
                self._train_epoch()
                state.trained = True
            evaluation = self._validate()
            self._finish_epoch(evaluation)
        if self.folder is not None:
            self._draw(evaluation or self._validate())

    def _train_epoch(self) -> None:
        """Make the rest of an epoch's steps."""
        state = self.state
        state.net.train()
        with self._bar() as bar:
            before = time.perf_counter() - state.seconds
            for images, labels in state.loader:
                sums = self._step(images.astype(self.dtype, copy=False), labels)
                state.totals += sums[:TOTALS]
                state.seconds = time.perf_counter() - before
                if sums[-1]:
                    self._interrupt()
                if bar is not None:
                    loss, accuracy = self._means()
                    bar.set_postfix(loss=f"{loss:.4f}", accuracy=f"{accuracy:.2%}", refresh=False)
                    bar.update(int(state.totals[-1]) - bar.n)

    def _bar(self) -> Any:
        """Return the bar of an epoch, or None, as a context."""
        if not self.progress:
            return nullcontext()
        loader, seen = self.state.loader, int(self.state.totals[-1])
        images = len(loader.dataset)
        if loader.drop_last:
            images = len(loader) * loader.batch_size
        title = f"epoch {len(self.state.history) + 1}"
        tqdm = import_extra("tqdm").tqdm
        return tqdm(desc=title, total=images, initial=seen, unit=" images", leave=False)

    def _step(self, images: Array, labels: npt.NDArray[np.int64]) -> Array:
        """Make one step, or this process's part of it.

        Return what it adds to the totals, and whether a process is to stop.
        """
        state, several = self.state, self.state.workers.size > 1
        state.optimizer.zero_grad()
        sums = np.zeros(TOTALS + 1)
        if len(labels):
            scores = state.net(images)
            check_scores(scores, len(labels), len(state.loader.dataset.classes))
            value = self.loss(scores, labels)
            # Sums of processes must be sums over images, not of the means of each.
            weight = float(len(labels)) if several else 1.0
            state.net.backward(self.loss.backward(weight), input_gradient=False)
            right = np.count_nonzero(scores.argmax(1) == labels)
            sums[:TOTALS] = value * len(labels), right, len(labels)
        sums[-1] = self.stop.wanted  # late, so that a signal ends the batch in which it comes
        if several:
            sums = share_step(state.net, state.workers, len(labels), sums)
        if not math.isfinite(sums[0]):
            raise FloatingPointError(
                f"the loss is {sums[0]} in batch {state.loader.state_dict()['position']} of "
                f"epoch {len(state.history) + 1}; a smaller learning rate may help"
            )
        state.optimizer.step()
        return sums

    def _validate(self) -> Evaluation | None:
        """Evaluate the net, unless there is nothing to do that with or training shall stop."""
        if self.validation is None:
            return None
        return count(self.state.net, self.validation, self.state.workers, self._stop_if_wanted)

    def _finish_epoch(self, evaluation: Evaluation | None) -> None:
        """Note how the epoch went, and go to the next."""
        state = self.state
        loss, accuracy = self._means()
        lr = float(state.optimizer.param_groups[0]["lr"])
        speed = float(state.totals[-1] / state.seconds)
        held_out: dict[str, Any] = {}
        if evaluation is not None:
            held_out = {
                "validation_loss": evaluation.loss,
                "validation_accuracy": evaluation.accuracy,
                "per_class": evaluation.per_class.tolist(),
            }
        epoch = Epoch(len(state.history) + 1, lr, loss, accuracy, speed, **held_out)
        state.history.append(epoch)
        state.totals, state.seconds, state.trained = np.zeros(TOTALS), 0.0, False
        if state.schedule is not None:
            state.schedule.step()
        self._save()
        if self.report is not None and self.leads:
            self.report(epoch)

    def _means(self) -> tuple[float, float]:
        """Return the loss and the accuracy of the epoch so far."""
        losses, right, images = self.state.totals
        return float(losses / images), float(right / images)

    def _stop_if_wanted(self) -> None:
        """Stop here if any process is to stop."""
        if anyone(self.state.workers, self.stop.wanted):
            self._interrupt()

    def _interrupt(self) -> NoReturn:
        """Save, and say how to go on."""
        at = f"in epoch {len(self.state.history) + 1}"
        if self.folder is None:
            raise Interrupted(f"stopped {at}; nothing is saved without a folder")
        self._save()
        raise Interrupted(f"stopped {at}, saved in {self.folder}; go on with resume=True")

    def _save(self) -> None:
        """Write the checkpoint and the log, and from time to time the curves."""
        if self.folder is None:
            return
        self.state.save(self.folder / CHECKPOINT)
        if self.leads:
            write_log(self.folder / LOG, self.state.history, self.state.loader.dataset.classes)
            if time.monotonic() - self.drawn > _REDRAW:
                self._draw(None)

    def _draw(self, evaluation: Evaluation | None) -> None:
        """Draw all that there is to draw."""
        if self.folder is None or not self.leads:
            return
        self.drawn = time.monotonic()
        classes = self.state.loader.dataset.classes
        if self.state.history:
            pictures.draw_curves(self.folder / CURVES, self.state.history)
        pictures.draw_filters_of(self.folder / FILTERS, self.state.net)
        if evaluation is not None:
            pictures.draw_confusion(self.folder / CONFUSION, evaluation, classes)
