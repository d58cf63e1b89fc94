"""The small digits that come with scikit-learn: a data set that needs no download."""

from __future__ import annotations

import numpy as np

from convkern.data.dataset import Dataset
from convkern.errors import import_extra
from convkern.geometry import integer

_SIDE = 8
#: The values count which of 4x4 points were dark.
_DARKEST = 16


def load_digits(
    size: int = _SIDE, *, test_size: float = 0.2, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """Read scikit-learn's 1797 handwritten digits, (1, 8, 8) or enlarged, in two parts.

    Parameters
    ----------
    size : int
        Height and width; beyond 8 the images are enlarged with a bilinear filter.
    test_size : float
        Which part of each class is held out, between 0 and 1.
    seed : int
        Of the choice; the same images are held out for the same seed.

    Returns
    -------
    train, test : Dataset
        With values of 0 to 255.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above, or leaves a part without a class.
    ImportError
        If scikit-learn, or Pillow for an enlargement, is not installed.

    Examples
    --------
    >>> from convkern.data import load_digits
    >>> load_digits()
    (Dataset(1437 images of 1x8x8, 10 classes), Dataset(360 images of 1x8x8, 10 classes))
    """
    size = integer(size, "size", _SIDE)
    seed = integer(seed, "seed", 0)
    if not isinstance(test_size, float) or not 0 < test_size < 1:
        raise ValueError(f"test_size must be a float between 0 and 1, got {test_size!r}")
    digits = import_extra("sklearn.datasets", "data").load_digits()
    images = np.rint(digits.images * (255 / _DARKEST)).astype(np.uint8)
    if size > _SIDE:
        image_module = import_extra("PIL.Image", "data")
        bilinear = image_module.Resampling.BILINEAR
        images = np.stack(
            [image_module.fromarray(image).resize((size, size), bilinear) for image in images]
        )
    everything = Dataset(images[:, None], digits.target, [str(n) for n in digits.target_names])
    split = import_extra("sklearn.model_selection", "data").train_test_split
    train, test = split(
        np.arange(len(everything)),
        test_size=test_size,
        stratify=everything.labels,
        random_state=seed,
    )
    return everything.take(train), everything.take(test)
