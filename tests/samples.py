"""Files in the formats that are read, made by hand: without the libraries that write them."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from typing import Any, NamedTuple

import numpy as np

# --- CIFAR and MNIST


class Python2:
    """Pickles as Python 2 and its NumPy wrote them: protocol 2, byte strings, a memo of all."""

    def __init__(self):
        self.memo = 0

    def program(self, value):
        return b"\x80\x02" + self.opcodes(value) + b"."

    def put(self):
        self.memo += 1
        return b"q%c" % self.memo if self.memo < 256 else b"r" + struct.pack("<I", self.memo)

    def opcodes(self, value):
        match value:
            case bool():
                return b"\x88" if value else b"\x89"
            case None:
                return b"N"
            case int() if 0 <= value < 256:
                return b"K%c" % value
            case int() if 0 <= value < 65536:
                return b"M" + struct.pack("<H", value)
            case int():
                return b"J" + struct.pack("<i", value)
            case str():
                return self.opcodes(value.encode())
            case bytes() if len(value) < 256:
                return b"U%c" % len(value) + value + self.put()
            case bytes():
                return b"T" + struct.pack("<i", len(value)) + value
            case list():
                start = b"]" + self.put()
                runs = [value[at : at + 1000] for at in range(0, len(value), 1000)]
                return start + b"".join(
                    b"(" + b"".join(map(self.opcodes, run)) + b"e" for run in runs
                )
            case dict():
                start = b"}" + self.put() + b"("
                items = (self.opcodes(k) + self.opcodes(v) for k, v in value.items())
                return start + b"".join(items) + b"u"
            case tuple() if len(value) <= 3:
                return b"".join(map(self.opcodes, value)) + b"\x85\x86\x87"[len(value) - 1 :][:1]
            case tuple():
                return b"(" + b"".join(map(self.opcodes, value)) + b"t"
            case np.ndarray():
                return self.array(value)
        raise TypeError(value)

    def array(self, array):
        by_columns = array.flags.f_contiguous and not array.flags.c_contiguous
        elements = array.tobytes("F" if by_columns else "C")
        byte = b"cnumpy\ndtype\n" + self.opcodes(("u1", 0, 1)) + b"R"
        byte += self.opcodes((3, "|", None, None, None, -1, -1, 0)) + b"b"
        return (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
            + self.opcodes((0,))
            + self.opcodes("b")
            + b"\x87R("
            + self.opcodes(1)
            + self.opcodes(array.shape)
            + byte
            + self.opcodes(by_columns)
            + self.opcodes(elements)
            + b"tb"
        )


def python2(value):
    return Python2().program(value)


NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FINE = [f"fine_{n}" for n in range(100)]
COARSE = [f"coarse_{n}" for n in range(20)]


def random_batch(rng, images, num_classes=10, blank=False):
    pixels = rng.integers(0, 1 if blank else 256, (images, 3072), np.uint8)
    return pixels, rng.integers(0, num_classes, images).tolist()


def cifar10(images=2, blank=False):
    """Return six batches of random images, and the members of both archives."""
    rng = np.random.default_rng(0)
    batches = [random_batch(rng, images, blank=blank) for _ in range(6)]
    files_py = {"batches.meta": python2({"num_cases_per_batch": images, "label_names": NAMES})}
    files_bin = {"batches.meta.txt": "\n".join([*NAMES, "", ""]).encode()}
    for number, (pixels, labels) in enumerate(batches, 1):
        name = f"data_batch_{number}" if number < 6 else "test_batch"
        batch = {"batch_label": f"batch {number}", "labels": labels, "data": pixels}
        files_py[name] = python2(batch | {"filenames": [f"{n}.png" for n in range(images)]})
        files_bin[f"{name}.bin"] = np.column_stack([labels, pixels]).astype(np.uint8).tobytes()
    return batches, {"cifar-10-batches-py": files_py, "cifar-10-batches-bin": files_bin}


def cifar100():
    rng = np.random.default_rng(0)
    files_py = {"meta": python2({"fine_label_names": FINE, "coarse_label_names": COARSE})}
    files_bin = {
        "fine_label_names.txt": "\n".join(FINE).encode(),
        "coarse_label_names.txt": "\n".join(COARSE).encode(),
    }
    batches = {}
    for name, images in (("train", 10), ("test", 2)):
        pixels, fine = random_batch(rng, images, 100)
        coarse = [label // 5 for label in fine]
        batches[name] = pixels, fine, coarse
        files_py[name] = python2({"data": pixels, "fine_labels": fine, "coarse_labels": coarse})
        records = np.column_stack([coarse, fine, pixels]).astype(np.uint8)
        files_bin[f"{name}.bin"] = records.tobytes()
    return batches, {"cifar-100-python": files_py, "cifar-100-binary": files_bin}


def tar(members, extra=()):
    """Return an archive of the members, and of TarInfo objects after them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder, contents in members.items():
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
            for name, content in contents.items():
                info = tarfile.TarInfo(f"{folder}/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


def idx(array, kind=8):
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder, compress=gzip.compress, images=3, **changes):
    """Write the four files; `changes` replace the content of some."""
    rng = np.random.default_rng(0)
    expected = []
    folder.mkdir(exist_ok=True)
    for part in ("train", "t10k"):
        pixels = rng.integers(0, 256, (images, 28, 28), np.uint8)
        labels = rng.integers(0, 10, images).astype(np.uint8)
        expected.append((pixels, labels))
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            content = changes.get(f"{part}_{kind[:6]}", idx(array))
            name = f"{part}-{kind}-ubyte" + (".gz" if compress is gzip.compress else "")
            (folder / name).write_bytes(compress(content))
    return expected


# --- weights


class Global(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: Global
    arguments: tuple[Any, ...]


class Persistent(NamedTuple):
    identity: tuple[Any, ...]


def opcodes(value):
    """Write a value as the opcodes of a pickle of protocol 2."""
    match value:
        case Global(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return opcodes(function) + opcodes(arguments) + b"R"
        case Persistent(identity):
            return opcodes(identity) + b"Q"
        case bytes():
            return value
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case dict():
            items = (opcodes(key) + opcodes(item) for key, item in value.items())
            return b"}(" + b"".join(items) + b"u"
    raise TypeError(value)


def program(value):
    return b"\x80\x02" + opcodes(value) + b"."


def tensor(kind, key, numel, shape, strides, offset=0):
    """Describe a tensor as torch.save does."""
    storage = Persistent(("storage", Global("torch", f"{kind}Storage"), key, "cpu", numel))
    hooks = Call(Global("collections", "OrderedDict"), ())
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, (storage, offset, shape, strides, False, hooks))


def write_zip(path, data_pkl, storages=(), extra=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("net/data.pkl", data_pkl)
        for key, content in dict(storages).items():
            archive.writestr(f"net/data/{key}", np.asarray(content).tobytes())
        for name, content in extra:
            archive.writestr(f"net/{name}", content)
    return path


FLOATS = np.arange(6, dtype="<f4")
SIMPLE = program(
    {"a": tensor("Float", "0", 6, (2, 3), (3, 1)), "n": tensor("Long", "1", 1, (), ())}
)
SIMPLE_STORAGES = {"0": FLOATS, "1": np.array(7, "<i8")}


def write_safetensors(path, header, body=b"", size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + body)
    return path


def entry(dtype, shape, start, stop):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
