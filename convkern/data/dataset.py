"""Labelled images as they are stored: bytes, in memory, never changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from convkern.errors import FormatError

Array = npt.NDArray[Any]


class Dataset:
    """Images of one size, a label for each, and the names of the classes.

    Parameters
    ----------
    images : (N, C, H, W) array of uint8
        Any strides; the readers make channels-last ones.
    labels : (N,) array of integers
        The index into `classes` of each image.
    classes : sequence of str
        The names of the classes.

    Attributes
    ----------
    images : (N, C, H, W) array of uint8
    labels : (N,) array of int64
    classes : tuple of str

    Raises
    ------
    TypeError, ValueError
        If the arguments are not as above or do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.data import Dataset
    >>> Dataset(np.zeros((5, 3, 8, 8), np.uint8), np.arange(5) % 2, ["cat", "dog"])
    Dataset(5 images of 3x8x8, 2 classes)
    """

    def __init__(self, images: Array, labels: Any, classes: Sequence[str]) -> None:
        check_images(images)
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iu":
            raise TypeError(f"labels must be integers, got {labels.dtype}")
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels must be one per image, shape {images.shape[:1]}, got {labels.shape}"
            )
        if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
            raise TypeError(f"classes must be a sequence of names, got {classes!r:.80}")
        self.images: Array = images
        self.classes: tuple[str, ...] = tuple(classes)
        check_labels(labels, len(self.classes), ValueError)
        self.labels: npt.NDArray[np.int64] = labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"Dataset({len(self)} images of {shape}, {len(self.classes)} classes)"

    def take(self, indices: Any) -> Dataset:
        """Return the images at `indices`, an array of integers or a slice.

        Examples
        --------
        >>> import numpy as np
        >>> from convkern.data import Dataset
        >>> Dataset(np.zeros((5, 1, 8, 8), np.uint8), np.zeros(5, int), ["a"]).take([0, 3])
        Dataset(2 images of 1x8x8, 1 classes)
        """
        images = self.images.transpose(0, 2, 3, 1)[indices]  # stays channels-last
        return Dataset(images.transpose(0, 3, 1, 2), self.labels[indices], self.classes)


def check_images(images: Any) -> None:
    """Raise unless `images` are an (N, C, H, W) array of uint8 with pixels."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise TypeError(f"images must be an array of uint8, got {kind}")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"images must be (N, C, H, W), got shape {images.shape}")


def check_labels(labels: Array, num_classes: int, error: type[ValueError] = FormatError) -> None:
    """Raise `error` unless every label is the number of a class."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise error(
            f"image {wrong[0]} has the label {labels[wrong[0]]}, "
            f"which is not one of 0 to {num_classes - 1}"
        )


def channels_last(planes: Array) -> Array:
    """Return (N, C, H, W) bytes as the transpose of an NHWC copy of them."""
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
