"""Images sorted into folders that are named after their classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convkern.data.dataset import Dataset
from convkern.errors import FormatError
from convkern.geometry import IntPair, pair
from convkern.images import load_pixels

#: Files of the formats that `load_image` reads; others are left alone.
_ENDINGS = (
    ".bmp",
    ".gif",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)


def load_image_folder(
    path: str | os.PathLike[str],
    size: IntPair,
    *,
    resize: int | None = None,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Read a folder that has a folder of images for each class.

    All images are kept in memory, as (3, H, W) bytes.  They are turned upright,
    resized and cropped as `convkern.images.load_image` does it.

    Parameters
    ----------
    path : str or path-like
        The folder, such as ``photos`` with ``photos/cat/1.jpg`` and ``photos/dog/a.png``.
        Files are taken by their endings, in the order of their names.
    size : int or (int, int)
        Height and width.
    resize : int, optional
        The shorter side before the centre is cut out, by default 256/224 of the
        larger `size`.
    classes : sequence of str, optional
        The names of the folders, in the order of the labels.  Give a test set
        the ``classes`` of the training set.  By default all folders, sorted by name.

    Returns
    -------
    Dataset

    Raises
    ------
    FormatError
        If there are no folders, one has no image, or a file is no image or damaged.
    TypeError, ValueError
        If an argument is not as above.
    OSError
        If a folder is missing, or a folder or file cannot be read.
    ImportError
        If Pillow is not installed.

    Examples
    --------
    >>> import os, shutil, tempfile
    >>> from convkern.data import load_image_folder
    >>> from convkern.images import sample_photo
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     os.mkdir(os.path.join(folder, "admiral"))
    ...     _ = shutil.copy(sample_photo(), os.path.join(folder, "admiral"))
    ...     load_image_folder(folder, 32)
    Dataset(1 images of 3x32x32, 1 classes)
    """
    root, shape = Path(path), pair(size, "size")
    if classes is None:
        classes = sorted(entry.name for entry in root.iterdir() if _is_class(entry))
    elif isinstance(classes, str):
        raise TypeError(f"classes must be a sequence of names, got {classes!r}")
    if not classes:
        raise FormatError(f"{root} has no folders of classes")
    files, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(file for file in (root / name).iterdir() if file.suffix.lower() in _ENDINGS)
        if not found:
            raise FormatError(f"{root / name} has no images ({' '.join(_ENDINGS)})")
        files += found
        labels += [label] * len(found)
    images = np.empty((len(files), *shape, 3), np.uint8)
    for image, file in zip(images, files, strict=True):
        image[...] = load_pixels(file, shape, resize=resize)
    return Dataset(images.transpose(0, 3, 1, 2), labels, classes)


def _is_class(entry: Path) -> bool:
    """Tell whether an entry of the folder is a folder and not hidden."""
    return entry.is_dir() and not entry.name.startswith(".")
