"""The log of a run: one line of CSV for each epoch."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict

from convkern.checkpoint import replacing
from convkern.training.state import Epoch


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
    >>> from convkern.training.log import write_log
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
