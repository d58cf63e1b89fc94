"""What a net gets right: accuracy, class by class, and what it takes for what."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
    >>> Evaluation.of(np.array([3, 1, 0, 0, 0.5])).accuracy
    0.75
    """

    loss: float
    accuracy: float
    per_class: Array
    confusion: npt.NDArray[np.int64]

    @classmethod
    def of(cls, sums: Array) -> Evaluation:
        """Return what follows from the counts of a confusion matrix and the sum of the losses."""
        classes = math.isqrt(len(sums) - 1)
        confusion = sums[:-1].astype(np.int64).reshape(classes, classes)
        with np.errstate(invalid="ignore"):  # 0 of 0 images
            per_class = confusion.diagonal() / confusion.sum(1)
            accuracy, loss = np.array([confusion.trace(), sums[-1]]) / confusion.sum()
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
    workers = workers or Alone()
    *_, sums = running_sums(net, data)
    workers.add(sums)
    return Evaluation.of(sums)


def running_sums(net: Sequential, loader: DataLoader) -> Iterator[Array]:
    """Evaluate batch by batch, yielding the sums so far: one array, at first of zeros.

    They are the counts of the confusion matrix, exact in float64, and the sum of the losses.
    """
    classes = len(loader.dataset.classes)
    sums = np.zeros(classes * classes + 1)
    yield sums
    dtype = net_dtype(net)
    was_training = net.training
    net.eval()
    try:
        for images, labels in loader:
            if len(labels):
                scores = net(images.astype(dtype, copy=False))
                check_scores(scores, len(labels), classes)
                pairs = labels * classes + scores.argmax(1)
                sums[:-1] += np.bincount(pairs, minlength=classes * classes)
                sums[-1] += cross_entropy(scores, labels, reduction="sum")
            yield sums
    finally:
        net.train(was_training)


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
