"""Every reader of a file, with small files that it reads: what the tests damage, and fuzzing.

A further reader is one line of `READERS`.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import safetensors.numpy
from samples import FLOATS, SIMPLE, SIMPLE_STORAGES, cifar10, entry, idx, python2, tar, write_zip

from convkern import cli, data
from convkern.checkpoint import _VALUES, load_training, load_weights
from convkern.data import DataLoader, Dataset, cifar, files
from convkern.errors import FormatError
from convkern.images import load_image
from convkern.nn import SGD, BatchNorm2d, Conv2d, Dropout, Flatten, Linear, Sequential, StepLR
from convkern.pickles import PickleMachine
from convkern.training import recipe
from convkern.training.history import Epoch
from convkern.training.state import State
from convkern.training.workers import Alone


class Reader(NamedTuple):
    """A way to read a file, files that it reads, and what holds of whatever it returns.

    `sealed` says that a checksum tells every other content from what was written.
    """

    read: Callable[[Path], Any]
    contents: Callable[[], list[bytes]]
    check: Callable[[Any], Any]
    sealed: bool = False


# --- what may come out, however a file was damaged


def is_bytes(array: Any) -> None:
    assert array.dtype == np.uint8


def are_weights(weights: Any) -> None:
    for name, array in weights.items():
        assert type(name) is str
        assert array.dtype.isnative and array.dtype.kind in "fiub"
        array.sum()  # reads all of it


def are_datasets(datasets: Any) -> None:
    for dataset in datasets:
        assert dataset.images.dtype == np.uint8
        assert dataset.labels.shape == dataset.images.shape[:1]
        assert all(0 <= label < len(dataset.classes) for label in dataset.labels)


def is_batch(batch: Any) -> None:
    rows, labels = batch
    assert rows.dtype == np.uint8 and rows.shape == (len(labels), 3072)


def are_names(names: Any) -> None:
    assert all(type(name) is str for name in names)


def is_plain(value: Any) -> None:
    assert isinstance(value, (dict, list, tuple, str, int, float, type(None)))


def is_training(found: Any) -> None:
    are_weights(found[0])
    assert type(found[1]) is dict


def is_state(state: Any) -> None:
    assert state.totals.shape == (3,) and state.seconds >= 0
    assert all(type(epoch) is Epoch for epoch in state.history)


def is_trained(found: Any) -> None:
    _, prepared, net = found
    photo = Dataset(np.zeros((1, 3, *prepared.size), np.uint8), [0], prepared.classes)
    ((images, _),) = prepared.loader(photo, 1, Alone())
    assert net(images).shape == (1, len(prepared.classes))


def is_image(array: Any) -> None:
    assert array.shape == (3, 8, 8) and np.isfinite(array).all()


# --- readers that take something else than a file, or parts of one


def pickled_batch(path: Path) -> Any:
    with files.open_stream(path) as stream:
        return cifar._pickled_batch(files.read_to_end(stream), "labels")


def plain_pickle(path: Path) -> Any:
    with files.open_stream(path) as stream:
        return PickleMachine().run(bytes(files.read_to_end(stream)))


def torch_pickle(path: Path) -> Any:
    """Read a file with this description of its tensors."""
    description = path.read_bytes()
    path.unlink()  # writing over a file is much slower
    return load_weights(write_zip(path, description, SIMPLE_STORAGES))


def members(path: Path) -> Any:
    found = files.read_members(path, {"set/a": bytes, "set/b": bytes})
    if len(found) != 2:  # the loaders look at that
        raise FormatError(f"{path}: found {list(found)}")
    return found


def small_state() -> State:
    """Return a run of a net that has everything that a checkpoint can hold."""
    rng = np.random.default_rng(0)
    net = Sequential(
        Conv2d(1, 2, 3, rng=rng),
        BatchNorm2d(2),
        Flatten(),
        Dropout(0.5, rng=rng),
        Linear(8, 2, rng=rng),
    )
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    dataset = Dataset(np.zeros((6, 1, 4, 4), np.uint8), np.zeros(6, int), ["a", "b"])
    state = State(
        net, optimizer, StepLR(optimizer, 2), DataLoader(dataset, 2, True, rng=0), Alone()
    )
    state.history = [Epoch(1, 0.1, 0.5, 0.9, 99.0, 0.6, 0.8, [0.5, 1.0])]
    return state


@cache
def saved_state() -> tuple[dict[str, Any], bytes]:
    """Return the arrays of that run's checkpoint and the JSON of all else."""
    with tempfile.TemporaryDirectory() as folder:
        small_state().save(Path(folder, "run"))
        arrays, values = load_training(Path(folder, "run"))
    return arrays, json.dumps(values).encode()


@cache
def saved_net() -> tuple[dict[str, Any], bytes]:
    """Return the same of a checkpoint of ``convkern train``."""
    net = recipe.build("digits_cnn", 2, 0)
    prepared = recipe.Preparation((8, 8), 8, 1, (8, 8), [0.5], [2.0], ["a", "b"])
    plan = recipe.Recipe.of("digits", {"model": "digits_cnn"})
    arrays = {f"net.{name}": array for name, array in net.state_dict().items()}
    return arrays, json.dumps({"recipe": recipe.pack(plan, prepared)}).encode()


def checkpoint_of(arrays: dict[str, Any], values: bytes) -> bytes:
    return safetensors.numpy.save({**arrays, _VALUES: np.frombuffer(values, np.uint8)})


def with_values(saved: Callable[[], tuple[dict[str, Any], bytes]], path: Path) -> Path:
    """Turn a file of a checkpoint's values into the checkpoint."""
    content = checkpoint_of(saved()[0], path.read_bytes())
    path.unlink()
    path.write_bytes(content)
    return path


def resumed(path: Path) -> State:
    state = small_state()
    state.load(with_values(saved_state, path))
    return state


def trained(path: Path) -> Any:
    return recipe.unpack(with_values(saved_net, path))


def labels(path: Path) -> Any:
    return cli._read_labels(str(path), 3)


# --- files that are read


def idx_files() -> list[bytes]:
    return [idx(np.arange(size, dtype=np.uint8).reshape(2, -1, 2)) for size in (4, 24)]


def compressed(contents: Callable[[], list[bytes]]) -> list[bytes]:
    return [gzip.compress(content, mtime=0) for content in contents()]


def cifar_archives() -> list[bytes]:
    return [tar({form: contents}) for form, contents in cifar10(1, blank=True)[1].items()]


def batch_pickles() -> list[bytes]:
    return [python2({"labels": [1], "data": np.zeros((1, 3072), np.uint8), "names": ["x.png"]})]


def plain_pickles() -> list[bytes]:
    value = {"a": [1, -2, 2.5, None, True, (1, 2, 3, 4), ()], 3: "ü", "c": {"d": 2**70}}
    return [pickle.dumps(value, protocol) for protocol in (2, 3, 4, 5)]


def small_tars() -> list[bytes]:
    """Return archives of the three dialects."""
    contents = []
    for dialect in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=dialect, bufsize=512) as archive:
            for name in ("set/a", "set/b", "other/ü" if dialect else "other"):
                info = tarfile.TarInfo(name)
                info.size = 20
                archive.addfile(info, io.BytesIO(name.encode().ljust(20)))
        content = buffer.getvalue().rstrip(b"\0")
        contents.append(content + bytes(-len(content) % 512 + 1024))  # one end instead of a dozen
    return contents


def torch_files() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return [write_zip(Path(folder, "w"), SIMPLE, SIMPLE_STORAGES).read_bytes()]


def safetensors_files() -> list[bytes]:
    header = {
        "__metadata__": {"format": "np"},
        "w": entry("F32", [2, 3], 0, 24),
        "brain": entry("BF16", [2], 24, 28),
        "mask": entry("BOOL", [2], 28, 30),
        "empty": entry("I64", [0, 2], 30, 30),
    }
    text = json.dumps(header).encode()
    return [len(text).to_bytes(8, "little") + text + FLOATS.tobytes() + bytes(6)]


def checkpoints() -> list[bytes]:
    return [checkpoint_of(*saved_state())]


def label_files() -> list[bytes]:
    texts = ('["cat", "dog", "owl"]', '{"0": ["n1", "cat"], "1": "d", "2": "o"}')
    return [text.encode() for text in texts]


def images(form: str, *variants: tuple[str, dict[str, Any]]) -> list[bytes]:
    """Return one picture in several modes."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    photo = PIL.Image.fromarray(coarse).resize((16, 12), PIL.Image.Resampling.BICUBIC)
    contents = []
    for mode, options in variants or (("RGB", {}),):
        stream = io.BytesIO()
        photo.convert("L" if mode in "IF" else "RGB").convert(mode).save(stream, form, **options)
        contents.append(stream.getvalue())
    return contents


def exif(orientation: int) -> bytes:
    tags = PIL.Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def read_image(path: Path) -> Any:
    return load_image(path, 8)


def image(form: str, *variants: tuple[str, dict[str, Any]]) -> Reader:
    return Reader(read_image, partial(images, form, *variants), is_image)


READERS = {
    "idx": Reader(data.read_idx, idx_files, is_bytes),
    "idx_gzip": Reader(data.read_idx, partial(compressed, idx_files), is_bytes, sealed=True),
    "tar": Reader(members, small_tars, lambda found: found),
    "tar_gzip": Reader(members, partial(compressed, small_tars), lambda found: found, sealed=True),
    "cifar": Reader(
        data.load_cifar10, partial(compressed, cifar_archives), are_datasets, sealed=True
    ),
    "cifar_pickle": Reader(pickled_batch, batch_pickles, is_batch),
    "pickle": Reader(plain_pickle, plain_pickles, is_plain),
    "torch": Reader(load_weights, torch_files, are_weights, sealed=True),
    "torch_pickle": Reader(torch_pickle, lambda: [SIMPLE], are_weights),
    "safetensors": Reader(load_weights, safetensors_files, are_weights),
    "checkpoint": Reader(load_training, checkpoints, is_training),
    "checkpoint_values": Reader(resumed, lambda: [saved_state()[1]], is_state),
    "train_values": Reader(trained, lambda: [saved_net()[1]], is_trained),
    "labels": Reader(labels, label_files, are_names),
    "bmp": image("BMP", ("RGB", {}), ("P", {}), ("1", {})),
    "gif": image("GIF", ("P", {}), ("P", {"transparency": 3, "interlace": 0})),
    "jpeg": image("JPEG", ("RGB", {"exif": exif(6)}), ("CMYK", {}), ("L", {"progressive": True})),
    "png": image("PNG", ("RGBA", {}), ("P", {"transparency": b"\0\x80"}), ("I;16", {}), ("1", {})),
    "ppm": image("PPM", ("RGB", {}), ("I", {}), ("1", {})),
    "tiff": image(
        "TIFF",
        ("RGB", {}),
        ("F", {"compression": "tiff_adobe_deflate"}),
        ("CMYK", {"compression": "tiff_lzw"}),
        ("P", {"compression": "packbits"}),
    ),
    "webp": image("WEBP", ("RGBA", {"exif": exif(3)}), ("RGB", {"lossless": True})),
}
