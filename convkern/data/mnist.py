"""MNIST and Fashion-MNIST, and the IDX files that hold them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from convkern.data.dataset import Dataset, check_labels
from convkern.data.files import (
    MAX_BYTES,
    Remote,
    data_folder,
    expect_end,
    fetch,
    not_found,
    open_stream,
    read_exactly,
)
from convkern.errors import FormatError

Array = npt.NDArray[Any]

#: The third byte of an IDX file that holds bytes; the fourth is the number of dimensions.
_UNSIGNED_BYTES = 8


class _Set(NamedTuple):
    """A data set in the four files of MNIST."""

    title: str
    folder: str
    url: str
    classes: tuple[str, ...]
    md5: dict[str, str]

    @property
    def remotes(self) -> list[Remote]:
        return [Remote(self.url + name, md5) for name, md5 in self.md5.items()]


_MNIST = _Set(
    "MNIST",
    "mnist",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    tuple("0123456789"),
    {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
)
_FASHION = _Set(
    "Fashion-MNIST",
    "fashion-mnist",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
)


def load_mnist(
    path: str | os.PathLike[str] | None = None, *, download: bool = False
) -> tuple[Dataset, Dataset]:
    """Read MNIST: 60000 training and 10000 test images of handwritten digits, (1, 28, 28).

    Parameters
    ----------
    path : str or path-like, optional
        A folder with the four published files, as they are or decompressed, or
        with a folder ``mnist`` that has them; by default `data_folder`.
    download : bool
        Fetch the files that are missing into ``path/mnist``, and check their MD5.

    Returns
    -------
    train, test : Dataset

    Raises
    ------
    FileNotFoundError
        If files are missing; the message says which and where to put them.
    ConnectionError
        If they cannot be downloaded.
    FormatError
        If a file is damaged, truncated or no IDX file.
    ImportError
        If pooch is needed for a download and not installed.

    Examples
    --------
    >>> from convkern.data import load_mnist
    >>> load_mnist("nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: no MNIST in nowhere; put these files there, or ...
    """
    return _load(_MNIST, path, download)


def load_fashion_mnist(
    path: str | os.PathLike[str] | None = None, *, download: bool = False
) -> tuple[Dataset, Dataset]:
    """Read Fashion-MNIST: 60000 training and 10000 test images of clothes, (1, 28, 28).

    Its files have the names of MNIST's; they are looked for in ``path/fashion-mnist``
    and then in `path`.  All else is as for `load_mnist`.

    Parameters
    ----------
    path : str or path-like, optional
        A folder; by default `data_folder`.
    download : bool
        Fetch the files that are missing into ``path/fashion-mnist``.

    Returns
    -------
    train, test : Dataset

    Raises
    ------
    FileNotFoundError, ConnectionError, FormatError, ImportError
        As `load_mnist`.

    Examples
    --------
    >>> from convkern.data import load_fashion_mnist
    >>> load_fashion_mnist("nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: no Fashion-MNIST in nowhere; put these files there, or ...
    """
    return _load(_FASHION, path, download)


def read_idx(path: str | os.PathLike[str]) -> Array:
    """Read an IDX file of unsigned bytes, gzipped or not.

    The file is ``0, 0, 8, ndim``, then `ndim` big-endian sizes of 32 bits, then
    the elements in C order.

    Parameters
    ----------
    path : str or path-like
        A regular file.  Its content tells whether it is gzipped.

    Returns
    -------
    array of uint8

    Raises
    ------
    FormatError
        If the file is of another format, damaged, truncated, too long, or has
        more than 2**28 elements.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import os, tempfile
    >>> from convkern.data import read_idx
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "labels")
    ...     with open(path, "wb") as file:
    ...         _ = file.write(bytes([0, 0, 8, 1, 0, 0, 0, 3]) + b"abc")
    ...     read_idx(path)
    array([97, 98, 99], dtype=uint8)
    """
    with open_stream(path) as stream:
        zero, kind, ndim = np.frombuffer(read_exactly(stream, 4), ">u2,u1,u1")[0].tolist()
        if zero or kind != _UNSIGNED_BYTES or not ndim:
            raise FormatError("not an IDX file of unsigned bytes")
        shape = np.frombuffer(read_exactly(stream, 4 * ndim), ">u4").tolist()
        size = math.prod(shape)
        if size > MAX_BYTES:
            raise FormatError(f"an IDX file that declares {size} elements")
        elements = np.frombuffer(read_exactly(stream, size), np.uint8)
        expect_end(stream)
        return elements.reshape(shape)


def _load(
    data: _Set, path: str | os.PathLike[str] | None, download: bool
) -> tuple[Dataset, Dataset]:
    """Find, fetch and read the two parts of a data set."""
    root = data_folder() if path is None else Path(path)
    own = root / data.folder
    files = {}
    for remote in data.remotes:
        plain = remote.name.removesuffix(".gz")
        places = [folder / name for folder in (own, root) for name in (remote.name, plain)]
        file = next((place for place in places if place.exists()), None)
        if file is None:
            if not download:
                raise not_found(data.title, root, data.remotes, "and")
            file = fetch(remote, own)
        files[plain] = file
    return _read_part(data, files, "train"), _read_part(data, files, "t10k")


def _read_part(data: _Set, files: dict[str, Path], part: str) -> Dataset:
    """Read images and labels, and hold them against each other."""
    image_file, label_file = files[f"{part}-images-idx3-ubyte"], files[f"{part}-labels-idx1-ubyte"]
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.ndim != 3 or 0 in images.shape:
        raise FormatError(f"{image_file}: no images, but an array of shape {images.shape}")
    if labels.shape != images.shape[:1]:
        raise FormatError(f"{label_file}: labels of shape {labels.shape} for {len(images)} images")
    try:
        check_labels(labels, len(data.classes))
    except FormatError as error:
        raise FormatError(f"{label_file}: {error}") from error
    return Dataset(images[:, None], labels, data.classes)
