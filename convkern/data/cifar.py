"""CIFAR-10 and CIFAR-100, from each form in which they are published.

The archives for Python hold pickles, which are read by a `PickleMachine` that
knows one more thing, an array of bytes; nothing in them is executed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from convkern.data.dataset import Dataset, check_labels
from convkern.data.files import Remote, data_folder, fetch, not_found, read_members
from convkern.errors import FormatError
from convkern.pickles import Global, PickleMachine

Array = npt.NDArray[Any]
#: Rows of pixels, and a label for each.
Batch = tuple[Array, Array]

_URL = "https://www.cs.toronto.edu/~kriz/"
_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


class _Form(NamedTuple):
    """One published form of a data set: the archive, its members, and how to read them."""

    archive: Remote
    folder: str
    train: Sequence[str]
    test: str
    read_batch: Callable[[bytearray], Batch]
    names: str
    read_names: Callable[[bytearray], list[str]]

    def decoders(self) -> dict[str, Callable[[bytearray], Any]]:
        """Return the reader of each member, by its name in the archive."""
        readers: dict[str, Callable[[bytearray], Any]] = dict.fromkeys(
            [*self.train, self.test], self.read_batch
        )
        readers[self.names] = self.read_names
        return {f"{self.folder}/{name}": reader for name, reader in readers.items()}


def load_cifar10(
    path: str | os.PathLike[str] | None = None, *, download: bool = False
) -> tuple[Dataset, Dataset]:
    """Read CIFAR-10: 50000 training and 10000 test photos of ten classes, (3, 32, 32).

    Parameters
    ----------
    path : str or path-like, optional
        An archive as published (``cifar-10-python.tar.gz`` or
        ``cifar-10-binary.tar.gz``), the folder that it was unpacked to, or a
        folder with one of these; by default `data_folder`.
    download : bool
        Fetch the archive for Python into `path` if nothing is there, and check its MD5.

    Returns
    -------
    train, test : Dataset

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message says what to put where.
    ConnectionError
        If it cannot be downloaded.
    FormatError
        If a file is damaged, truncated, incomplete or something else.
    ImportError
        If pooch is needed for a download and not installed.

    Examples
    --------
    >>> from convkern.data import load_cifar10
    >>> load_cifar10("nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: no CIFAR-10 in nowhere; put these files there, or ...
    """
    batches = [f"data_batch_{number}" for number in range(1, 6)]
    forms = [
        _Form(
            Remote(_URL + "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
            "cifar-10-batches-py",
            batches,
            "test_batch",
            partial(_pickled_batch, key="labels"),
            "batches.meta",
            partial(_pickled_names, key="label_names"),
        ),
        _Form(
            Remote(_URL + "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
            "cifar-10-batches-bin",
            [f"{batch}.bin" for batch in batches],
            "test_batch.bin",
            partial(_binary_batch, label_bytes=1, column=0),
            "batches.meta.txt",
            _text_names,
        ),
    ]
    return _load("CIFAR-10", 10, forms, path, download)


def load_cifar100(
    path: str | os.PathLike[str] | None = None, *, labels: str = "fine", download: bool = False
) -> tuple[Dataset, Dataset]:
    """Read CIFAR-100: 50000 training and 10000 test photos of a hundred classes, (3, 32, 32).

    Parameters
    ----------
    path : str or path-like, optional
        As for `load_cifar10`; the archives are ``cifar-100-python.tar.gz`` and
        ``cifar-100-binary.tar.gz``.
    labels : {"fine", "coarse"}
        The hundred classes, or the twenty groups of them.
    download : bool
        Fetch the archive for Python into `path` if nothing is there, and check its MD5.

    Returns
    -------
    train, test : Dataset

    Raises
    ------
    FileNotFoundError, ConnectionError, FormatError, ImportError
        As `load_cifar10`.
    ValueError
        If `labels` is something else.

    Examples
    --------
    >>> from convkern.data import load_cifar100
    >>> load_cifar100("nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: no CIFAR-100 in nowhere; put these files there, or ...
    """
    if labels not in ("fine", "coarse"):
        raise ValueError(f'labels must be "fine" or "coarse", got {labels!r}')
    forms = [
        _Form(
            Remote(_URL + "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
            "cifar-100-python",
            ["train"],
            "test",
            partial(_pickled_batch, key=f"{labels}_labels"),
            "meta",
            partial(_pickled_names, key=f"{labels}_label_names"),
        ),
        _Form(
            Remote(_URL + "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
            "cifar-100-binary",
            ["train.bin"],
            "test.bin",
            partial(_binary_batch, label_bytes=2, column=int(labels == "fine")),
            f"{labels}_label_names.txt",
            _text_names,
        ),
    ]
    return _load("CIFAR-100", 100 if labels == "fine" else 20, forms, path, download)


def _load(
    title: str,
    num_classes: int,
    forms: Sequence[_Form],
    path: str | os.PathLike[str] | None,
    download: bool,
) -> tuple[Dataset, Dataset]:
    """Find or fetch the data set, read it and put its parts together."""
    root = data_folder() if path is None else Path(path)
    source = _find(root, forms)
    if source is None:
        if not download:
            raise not_found(title, root, [form.archive for form in forms], "or")
        source = fetch(forms[0].archive, root)
    decoders = {name: read for form in forms for name, read in form.decoders().items()}
    parts = read_members(source, decoders)
    for form in forms:
        if parts.keys() >= form.decoders().keys():
            break
    else:
        raise FormatError(f"{source}: not the whole of {title} (found: {', '.join(parts) or None})")

    def part(name: str) -> Any:
        return parts[f"{form.folder}/{name}"]

    try:
        classes = part(form.names)
        if len(classes) != num_classes:
            raise FormatError(f"{len(classes)} names of classes instead of {num_classes}")
        train, test = _join([part(name) for name in form.train]), _join([part(form.test)])
        # The published training set is five times the test set, in batches of one size.
        sizes = [len(part(name)[0]) for name in form.train]
        if len(set(sizes)) > 1 or sum(sizes) != 5 * len(test[0]):
            raise FormatError(f"{sizes} training and {len(test[0])} test images")
        for _, labels in (train, test):
            check_labels(labels, num_classes)
    except FormatError as error:
        raise FormatError(f"{source}: not {title} as published ({error})") from error
    return Dataset(*train, classes), Dataset(*test, classes)


def _find(root: Path, forms: Sequence[_Form]) -> Path | None:
    """Return the archive or the unpacked folder that `root` is or holds."""
    if root.exists() and not root.is_dir():
        return root
    for form in forms:
        for folder in (root / form.folder, root):
            if (folder / form.test).exists() and (folder / form.names).exists():
                return folder
    archives = [root / form.archive.name for form in forms]
    return next((archive for archive in archives if archive.exists()), None)


def _join(batches: Sequence[Batch]) -> Batch:
    """Return the images of all batches, channels-last, and their labels."""
    images = np.empty((sum(len(pixels) for pixels, _ in batches), 32, 32, 3), np.uint8)
    start = 0
    for pixels, _ in batches:
        stop = start + len(pixels)
        images[start:stop] = pixels.reshape(-1, *_SHAPE).transpose(0, 2, 3, 1)
        start = stop
    return images.transpose(0, 3, 1, 2), np.concatenate([labels for _, labels in batches])


# ---------------------------------------------------------------- the binary form


def _binary_batch(content: bytearray, label_bytes: int, column: int) -> Batch:
    """Read records of one or two labels and the pixels, plane by plane."""
    record = label_bytes + _PIXELS
    if not content or len(content) % record:
        raise FormatError(f"{len(content)} bytes, which are not records of {record}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    return rows[:, label_bytes:], rows[:, column].astype(np.int64)


def _text_names(content: bytearray) -> list[str]:
    """Read names, one a line."""
    return content.decode().split()


# ---------------------------------------------------------------- the form for Python


class _PickledArray:
    """A matrix of bytes, once its state is known."""

    shape = (0, 0)
    elements = ""
    by_columns = False

    def rows(self) -> Array:
        """Return the matrix.

        Not before it is needed: a short program can fill many arrays with one string.
        """
        flat = np.frombuffer(self.elements.encode("latin-1"), np.uint8)
        return flat.reshape(self.shape, order="F" if self.by_columns else "C")


_RECONSTRUCT = "numpy.core.multiarray._reconstruct"
_NDARRAY = "numpy.ndarray"
_DTYPE = "numpy.dtype"
_UINT8 = Global("uint8")


class _BatchPickle(PickleMachine):
    """Plain values, and matrices of unsigned bytes as NumPy pickled them under Python 2."""

    names = frozenset({_RECONSTRUCT, _NDARRAY, _DTYPE})
    accepted = "a batch of CIFAR has nothing but lists, strings and an array of bytes"

    def call(self, function: Any, arguments: Any) -> Any:
        """Begin an array, or name the dtype that it has."""
        match function, arguments:
            case Global(name), (Global(kind), (0,), "b") if (name, kind) == (
                _RECONSTRUCT,
                _NDARRAY,
            ):
                return _PickledArray()
            case Global(name), ("u1", 0, 1) if name == _DTYPE:
                return _UINT8
        raise FormatError(f"a pickle with an unknown call; {self.accepted}")

    def build(self, value: Any, state: Any) -> None:
        """Fill an array; the dtype of a byte has nothing to fill in."""
        match value, state:
            case Global(), (int(), "|", *_) if value is _UINT8:
                return
            case _PickledArray(), (
                1,
                (int(rows), int(columns)),
                Global() as kind,
                bool(by_columns),
                str(elements),
            ) if kind is _UINT8 and min(rows, columns) >= 0 and len(elements) == rows * columns:
                value.shape, value.elements, value.by_columns = (
                    (rows, columns),
                    elements,
                    by_columns,
                )
                return
        raise FormatError("a damaged pickle (an array that is none)")


def _pickled_dict(content: bytearray, *keys: str) -> list[Any]:
    """Return the values of a pickled dict under `keys`."""
    value = _BatchPickle().run(bytes(content))
    if not isinstance(value, dict) or not all(key in value for key in keys):
        raise FormatError(f"a pickle without {' and '.join(keys)}")
    return [value[key] for key in keys]


def _pickled_batch(content: bytearray, key: str) -> Batch:
    """Read the pixels and the labels under `key`."""
    array, labels = _pickled_dict(content, "data", key)
    if not isinstance(array, _PickledArray) or array.shape[1] != _PIXELS or not array.shape[0]:
        raise FormatError(f"a batch whose data are not rows of {_PIXELS} pixels")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise FormatError("a batch whose labels are not a list of integers")
    if len(labels) != array.shape[0]:
        raise FormatError(f"a batch with {len(labels)} labels for {array.shape[0]} images")
    return array.rows(), np.array(labels, np.int64)


def _pickled_names(content: bytearray, key: str) -> list[str]:
    """Read the names of the classes under `key`."""
    (names,) = _pickled_dict(content, key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FormatError("names of classes that are not a list of strings")
    return names
