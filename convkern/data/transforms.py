"""From stored bytes to what a network is given: crops, flips, normalisation.

A random transform works in two steps, `draw` and the call, so that the loader
can draw for a whole batch and apply only its own part of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from convkern.arrays import empty_images
from convkern.data.dataset import Dataset, check_images
from convkern.errors import import_extra
from convkern.geometry import IntPair, pair

Array = npt.NDArray[Any]

#: Images whose values are counted at a time, so that no large copy is made.
_BLOCK = 1024


class Transform(ABC):
    """What happens to the bytes of a batch; a base class.

    A subclass defines ``transform(images, drawn)`` and, if it is random, `draw`.
    Images are (N, C, H, W) arrays of uint8 of any strides.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.data import Transform
    >>> class Invert(Transform):
    ...     def __call__(self, images, drawn):
    ...         return 255 - images
    >>> transform = Invert()
    >>> rng, images = np.random.default_rng(0), np.zeros((2, 1, 4, 4), np.uint8)
    >>> transform(images, transform.draw(rng, images.shape)).min()
    np.uint8(255)
    """

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Return a row of random numbers for each of ``shape[0]`` images; here none."""
        return np.empty((shape[0], 0), np.int64)

    @abstractmethod
    def __call__(self, images: Array, drawn: Array) -> Array:
        """Return the transformed images, given their rows of random numbers."""


class RandomCrop(Transform):
    """Cut out a window at a random place of each image, after a border of zeros is added.

    Parameters
    ----------
    size : int or (int, int)
        Height and width of the window.
    padding : int or (int, int)
        The width of the border above and below, and left and right.

    Raises
    ------
    TypeError, ValueError
        If an argument is no integer or too small; in use, if the window does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.data import RandomCrop
    >>> crop, images = RandomCrop(32, padding=4), np.zeros((5, 3, 32, 32), np.uint8)
    >>> crop(images, crop.draw(np.random.default_rng(0), images.shape)).shape
    (5, 3, 32, 32)
    """

    def __init__(self, size: IntPair, padding: IntPair = 0) -> None:
        self.size = pair(size, "size")
        self.padding = pair(padding, "padding", 0)

    def __repr__(self) -> str:
        return f"RandomCrop({self.size}, padding={self.padding})"

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Return the row and the column at which each window begins."""
        places = [
            full + 2 * border - window + 1
            for full, border, window in zip(shape[2:], self.padding, self.size, strict=True)
        ]
        if min(places) < 1:
            raise ValueError(f"{self} does not fit into images of {shape[2]}x{shape[3]}")
        return rng.integers(places, size=(shape[0], 2))

    def __call__(self, images: Array, drawn: Array) -> Array:
        """Return the windows."""
        rows, columns = self.padding
        border = ((0, 0), (rows, rows), (columns, columns), (0, 0))
        pixels = np.pad(images.transpose(0, 2, 3, 1), border)
        windows = np.lib.stride_tricks.sliding_window_view(pixels, self.size, (1, 2))
        windows = np.moveaxis(windows, 3, 5)  # a view, (N, tops, lefts, H, W, C)
        top, left = drawn.T
        cut: Array = windows[np.arange(len(images)), top, left]
        return cut.transpose(0, 3, 1, 2)


class CenterCrop(Transform):
    """Cut out the window in the centre of each image, for evaluation.

    Parameters
    ----------
    size : int or (int, int)
        Height and width of the window.

    Raises
    ------
    TypeError, ValueError
        If `size` is no integer or too small; in use, if the window does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.data import CenterCrop
    >>> crop, images = CenterCrop(28), np.zeros((5, 3, 32, 32), np.uint8)
    >>> crop(images, crop.draw(np.random.default_rng(0), images.shape)).shape
    (5, 3, 28, 28)
    """

    def __init__(self, size: IntPair) -> None:
        self.size = pair(size, "size")

    def __repr__(self) -> str:
        return f"CenterCrop({self.size})"

    def __call__(self, images: Array, drawn: Array) -> Array:
        """Return the windows."""
        height, width = self.size
        top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
        if min(top, left) < 0:
            raise ValueError(
                f"{self} does not fit into images of {images.shape[2]}x{images.shape[3]}"
            )
        return images[:, :, top : top + height, left : left + width]


class Resize(Transform):
    """Bring each image to a size, with an antialiased bilinear filter.

    Parameters
    ----------
    size : int or (int, int)
        Height and width.

    Raises
    ------
    TypeError, ValueError
        If `size` is no integer or too small.
    ImportError
        In use, if Pillow is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.data import Resize
    >>> resize, images = Resize(64), np.zeros((5, 3, 32, 32), np.uint8)
    >>> resize(images, resize.draw(np.random.default_rng(0), images.shape)).shape
    (5, 3, 64, 64)
    """

    def __init__(self, size: IntPair) -> None:
        self.size = pair(size, "size")

    def __repr__(self) -> str:
        return f"Resize({self.size})"

    def __call__(self, images: Array, drawn: Array) -> Array:
        """Return the images in their new size."""
        image_module = import_extra("PIL.Image", "data")
        height, width = self.size
        resized = np.empty((len(images), height, width, images.shape[1]), np.uint8)
        resized = resized.transpose(0, 3, 1, 2)
        for number, channel in np.ndindex(images.shape[:2]):
            plane = image_module.fromarray(np.ascontiguousarray(images[number, channel]))
            plane = plane.resize((width, height), image_module.Resampling.BILINEAR)
            resized[number, channel] = np.asarray(plane)
        return resized


class RandomHorizontalFlip(Transform):
    """Mirror each image, left to right, with probability `p`.

    Parameters
    ----------
    p : float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If `p` is something else.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.data import RandomHorizontalFlip
    >>> flip, images = RandomHorizontalFlip(1), np.array([[[[1, 2, 3]]]], np.uint8)
    >>> flip(images, flip.draw(np.random.default_rng(0), images.shape))
    array([[[[3, 2, 1]]]], dtype=uint8)
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p must be between 0 and 1, got {p!r}")
        self.p = p

    def __repr__(self) -> str:
        return f"RandomHorizontalFlip({self.p})"

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Return for each image whether it is mirrored."""
        return rng.random((shape[0], 1)) < self.p

    def __call__(self, images: Array, drawn: Array) -> Array:
        """Return the images, some mirrored."""
        pixels: Array = images.transpose(0, 2, 3, 1).copy()
        mirrored = drawn[:, 0]
        pixels[mirrored] = pixels[mirrored, :, ::-1]
        return pixels.transpose(0, 3, 1, 2)


class Normalize:
    """Bytes to float32: ``(value / 255 - mean) / std``, channel by channel.

    Fit it on the training set and use it for every set.

    Parameters
    ----------
    mean, std : sequence of float
        One of each per channel, on a scale of 0 to 1.

    Raises
    ------
    ValueError
        If they are not as many finite numbers, or a `std` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.data import Normalize
    >>> Normalize([0.5], [0.25])(np.array([[[[0, 255]]]], np.uint8))
    array([[[[-2.,  2.]]]], dtype=float32)
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(map(float, mean))
        self.std = tuple(map(float, std))
        if len(self.mean) != len(self.std) or not np.isfinite([*self.mean, *self.std]).all():
            raise ValueError(
                f"mean and std must be as many finite numbers, got {mean!r} and {std!r}"
            )
        if not self.mean or min(self.std) <= 0:
            raise ValueError(f"std must be positive, one per channel, got {std!r}")

    def __repr__(self) -> str:
        return f"Normalize({self.mean}, {self.std})"

    @classmethod
    def fit(cls, dataset: Dataset) -> Normalize:
        """Return the `Normalize` after which `dataset` has mean 0 and variance 1 per channel.

        Mean and standard deviation are those of all pixels, from exact counts of
        their values.  A channel of a single value gets the standard deviation 1.

        Parameters
        ----------
        dataset : Dataset
            The training set, of at least one image.

        Returns
        -------
        Normalize

        Raises
        ------
        ValueError
            If the data set is empty.

        Examples
        --------
        >>> import numpy as np
        >>> from convkern.data import Dataset, Normalize
        >>> images = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
        >>> Normalize.fit(Dataset(images, [0, 0], ["a"]))
        Normalize((0.5,), (0.5,))
        """
        if not len(dataset):
            raise ValueError("dataset must have an image to fit to, got none")
        channels = dataset.images.shape[1]
        counts = np.zeros((channels, 256))
        for start in range(0, len(dataset), _BLOCK):
            for channel in range(channels):
                values = dataset.images[start : start + _BLOCK, channel]
                counts[channel] += np.bincount(values.ravel(), minlength=256)
        shares = counts / counts.sum(axis=1, keepdims=True)
        levels = np.arange(256) / 255
        mean = shares @ levels
        variance = (shares * (levels - mean[:, None]) ** 2).sum(axis=1)
        varies = (counts > 0).sum(axis=1) > 1
        return cls(mean.tolist(), np.where(varies, np.sqrt(variance), 1).tolist())

    def __call__(self, images: Array) -> npt.NDArray[np.float32]:
        """Return normalised images in channels-last memory.

        Parameters
        ----------
        images : (N, C, H, W) array of uint8
            Any strides.

        Returns
        -------
        (N, C, H, W) array of float32
            A new array, the transpose of an NHWC buffer.

        Raises
        ------
        TypeError, ValueError
            If `images` is not such an array, or has another number of channels.
        """
        check_images(images)
        _, channels, _, width = images.shape
        if channels != len(self.mean):
            raise ValueError(f"{self} is for {len(self.mean)} channels, got {channels}")
        out = empty_images(images.shape, np.dtype(np.float32), True)
        out[...] = images
        # Whole rows at a time: NumPy's loop over three channels would be a very short one.
        rows = out.transpose(0, 2, 3, 1).reshape(-1, width * channels)
        rows *= np.tile(np.array([1 / (255 * std) for std in self.std], np.float32), width)
        rows -= np.tile(
            np.array([m / s for m, s in zip(self.mean, self.std, strict=True)], np.float32), width
        )
        return out
