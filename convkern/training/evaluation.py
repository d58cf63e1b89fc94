"""What a net gets right: accuracy, class by class, and what it takes for what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from convkern.data import DataLoader, Dataset
from convkern.functional import cross_entropy
from convkern.nn import Sequential
from convkern.training.workers import Alone, Workers

Array = npt.NDArray[Any]
#: Images in a batch where nothing else is asked for.
BATCH_SIZE = 128


class Evaluation(NamedTuple):
    """What `evaluate` found.

    Attributes
    ----------
    loss : float
        The mean cross entropy; NaN without images.
    accuracy : float
        The share of images whose class has the highest score; NaN without images.
    per_class : (K,) array
        The same for the images of each class; NaN for a class without images.
    confusion : (K, K) array of int64
        How many images of each class (rows) were taken for each class (columns).

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.training import Evaluation
    >>> Evaluation.of(np.array([[3, 1], [0, 0]]), 2.0)[:2]
    (0.5, 0.75)
    """

    loss: float
    accuracy: float
    per_class: Array
    confusion: npt.NDArray[np.int64]

    @classmethod
    def of(cls, confusion: npt.NDArray[np.int64], losses: float) -> Evaluation:
        """Return what follows from a confusion matrix and the sum of the losses."""
        with np.errstate(invalid="ignore"):  # 0 of 0 images
            per_class = confusion.diagonal() / confusion.sum(1)
            accuracy, loss = np.array([confusion.trace(), losses]) / confusion.sum()
        return cls(float(loss), float(accuracy), per_class, confusion)


def evaluate(
    net: Sequential, data: DataLoader | Dataset, *, workers: Workers | None = None
) -> Evaluation:
    """Count what a net gets right, in evaluation mode; its own mode is left as it was.

    Parameters
    ----------
    net : Sequential
        From images to scores, (N, K).
    data : DataLoader or Dataset
        The images; a data set's become values of 0 to 1.  Give a loader for a
        net that was trained on normalised ones.
    workers : Workers, optional
        The processes that share the work, each with its shard of `data`; all get
        the result for all images.

    Returns
    -------
    Evaluation

    Raises
    ------
    TypeError, ValueError
        If `data` is neither, or the scores are not (N, K) for its K classes.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.data import Dataset
    >>> from convkern.nn import Flatten, Sequential
    >>> from convkern.training import evaluate
    >>> pixels = np.array([[9, 0], [0, 9], [9, 0]], np.uint8).reshape(3, 1, 1, 2)
    >>> evaluate(Sequential(Flatten()), Dataset(pixels, [0, 1, 1], ["a", "b"])).confusion
    array([[1, 0],
           [1, 1]])
    """
    if isinstance(data, Dataset):
        data = DataLoader(data, BATCH_SIZE)
    if not isinstance(data, DataLoader):
        raise TypeError(f"data must be a DataLoader or a Dataset, got {type(data).__name__}")
    return count(net, data, workers or Alone())


def count(
    net: Sequential,
    loader: DataLoader,
    workers: Workers,
    before_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate as `evaluate` does; `before_batch` may raise to stop it."""
    classes, dtype = len(loader.dataset.classes), net_dtype(net)
    confusion, losses = np.zeros((classes, classes), np.int64), 0.0
    was_training = net.training
    net.eval()
    try:
        for images, labels in loader:
            before_batch()
            if len(labels):
                scores = net(images.astype(dtype, copy=False))
                check_scores(scores, len(labels), classes)
                np.add.at(confusion, (labels, scores.argmax(1)), 1)
                losses += float(cross_entropy(scores, labels, reduction="sum"))
    finally:
        net.train(was_training)
    sums = np.append(confusion, losses)  # counts are exact in float64
    workers.add(sums)
    return Evaluation.of(sums[:-1].astype(np.int64).reshape(confusion.shape), sums[-1])


def check_scores(scores: Array, images: int, classes: int) -> None:
    """Raise unless a net's output has a score for each image and class."""
    if scores.shape != (images, classes):
        raise ValueError(
            f"net must return scores of shape ({images}, {classes}) for {images} images of "
            f"{classes} classes, got {scores.shape}"
        )


def net_dtype(net: Sequential) -> np.dtype[Any]:
    """Return the dtype that a net computes in."""
    parameters = net.parameters()
    return parameters[0].data.dtype if parameters else np.dtype(np.float32)
