"""The history of a run: its epochs, and the log with a line of CSV for each."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from convkern.checkpoint import replacing


@dataclass(frozen=True)
class Epoch:
    """How one epoch went.

    Attributes
    ----------
    number : int
        From 1.
    lr : float
        The learning rate of the first group of parameters.
    loss, accuracy : float
        Means over the images of the epoch, each seen by the net of its step.
    images_per_s : float
        Of training alone.
    validation_loss, validation_accuracy : float or None
        Of the net at the end of the epoch on the validation set, if there is one.
    per_class : list of float
        The validation accuracy of each class; NaN for one without images.

    Examples
    --------
    >>> from convkern.training import Epoch
    >>> Epoch(1, lr=0.1, loss=0.5, accuracy=0.9, images_per_s=1e3).validation_loss is None
    True
    """

    number: int
    lr: float
    loss: float
    accuracy: float
    images_per_s: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    per_class: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the epoch that `dataclasses.asdict` made a dict of, or raise."""
        epoch = cls(**values)
        numbers = [epoch.lr, epoch.loss, epoch.accuracy, epoch.images_per_s, *epoch.per_class]
        held_out = [epoch.validation_loss, epoch.validation_accuracy]
        numbers += [number for number in held_out if number is not None]
        if type(epoch.number) is not int or not all(type(n) is float for n in numbers):
            raise TypeError(f"no epoch: {values}")
        return epoch


def write_log(
    path: str | os.PathLike[str], history: Sequence[Epoch], classes: Sequence[str]
) -> None:
    """Write all epochs, with a column for the accuracy of each class.

    Parameters
    ----------
    path : str or path-like
        The file to create or replace.
    history : sequence of Epoch
        A line for each.
    classes : sequence of str
        The names of the classes.

    Examples
    --------
    >>> import os, tempfile
    >>> from convkern.training import Epoch
    >>> from convkern.training.history import write_log
    >>> epoch = Epoch(1, lr=0.1, loss=0.5, accuracy=0.9, images_per_s=99.0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "log.csv")
    ...     write_log(path, [epoch], ["cat", "dog"])
    ...     with open(path) as file:
    ...         print(file.read().splitlines()[1])
    1,0.1,0.5,0.9,99.0,,
    """
    columns = [name for name in Epoch.__dataclass_fields__ if name != "per_class"]
    per_class = [f"accuracy of {name}" for name in classes]
    if not any(epoch.per_class for epoch in history):
        per_class = []
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns + per_class)
        for epoch in history:
            values = asdict(epoch)
            writer.writerow([*(values[name] for name in columns), *epoch.per_class])
