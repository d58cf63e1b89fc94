"""Data sets: what the readers read, and that they refuse everything else in one line."""

import gzip
import hashlib
import http.server
import os
import pickle
import struct
import tarfile
import threading
from functools import partial

import numpy as np
import pytest
from memory import little_memory
from samples import (
    COARSE,
    FINE,
    NAMES,
    cifar10,
    cifar100,
    idx,
    python2,
    random_batch,
    tar,
    write_mnist,
)

from convkern import data, pickles
from convkern.data import cifar, files, mnist
from convkern.data.files import Remote
from convkern.errors import FormatError
from convkern.pickles import PickleMachine

pytestmark = pytest.mark.once


def refused(read, path, match=None):
    with pytest.raises(FormatError, match=match) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < 700 + len(str(path))


def same(dataset, pixels, labels, shape, classes):
    np.testing.assert_array_equal(
        dataset.images, np.concatenate(pixels).reshape(-1, *shape), strict=True
    )
    np.testing.assert_array_equal(dataset.labels, np.concatenate(labels).astype(np.int64))
    assert dataset.labels.dtype == np.int64
    assert dataset.classes == tuple(classes)
    assert dataset.images.transpose(0, 2, 3, 1).flags.c_contiguous


# --- CIFAR


@pytest.mark.parametrize("form", ["cifar-10-batches-py", "cifar-10-batches-bin"])
@pytest.mark.parametrize("place", ["archive", "folder of the archive", "unpacked", "its folder"])
def test_cifar10(tmp_path, form, place):
    batches, members = cifar10()
    archive = tmp_path / form.replace("batches-py", "python.tar.gz").replace(
        "batches-bin", "binary.tar.gz"
    )
    if "archive" in place:
        archive.write_bytes(gzip.compress(tar({form: members[form]})))
    else:
        (tmp_path / form).mkdir()
        for name, content in members[form].items():
            (tmp_path / form / name).write_bytes(content)
    path = {"archive": archive, "unpacked": tmp_path / form}.get(place, tmp_path)
    train, test = data.load_cifar10(path)
    pixels, labels = zip(*batches, strict=True)
    same(train, pixels[:5], labels[:5], (3, 32, 32), NAMES)
    same(test, pixels[5:], labels[5:], (3, 32, 32), NAMES)


@pytest.mark.parametrize("form", ["cifar-100-python", "cifar-100-binary"])
@pytest.mark.parametrize("kind", ["fine", "coarse"])
def test_cifar100(tmp_path, form, kind):
    batches, members = cifar100()
    (tmp_path / f"{form}.tar.gz").write_bytes(gzip.compress(tar({form: members[form]})))
    for name, dataset in zip(
        ("train", "test"), data.load_cifar100(tmp_path, labels=kind), strict=True
    ):
        pixels, fine, coarse = batches[name]
        labels, names = (fine, FINE) if kind == "fine" else (coarse, COARSE)
        same(dataset, [pixels], [np.array(labels)], (3, 32, 32), names)
    with pytest.raises(ValueError, match="labels must be"):
        data.load_cifar100(tmp_path, labels="medium")


def test_the_handmade_pickles_are_pickles():
    batch = pickle.loads(cifar10()[1]["cifar-10-batches-py"]["data_batch_1"], encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], cifar10()[0][0][0], strict=True)
    # The published file has this size.
    meta = {"num_cases_per_batch": 10000, "label_names": NAMES, "num_vis": 3072}
    assert len(python2(meta)) == 158


def test_cifar_rows_by_columns():
    pixels, labels = random_batch(np.random.default_rng(0), 3)
    program = python2({"data": np.asfortranarray(pixels), "labels": labels})
    found, _ = cifar._pickled_batch(bytearray(program), "labels")
    np.testing.assert_array_equal(found, pixels)


def test_cifar_with_other_members(tmp_path):
    """A copy may begin with ./ and have files that nobody asks for, such as the readme."""
    _, members = cifar10()
    content = members["cifar-10-batches-bin"] | {"readme.html": b"<html>"}
    (tmp_path / "copy.tar").write_bytes(tar({"./cifar-10-batches-bin": content}))
    assert len(data.load_cifar10(tmp_path / "copy.tar")[0]) == 10


def rewrite(members, name, content):
    form = "cifar-10-batches-py" if "." not in name else "cifar-10-batches-bin"
    return {form: members[form] | {name: content}}


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("data_batch_3.bin", b"", "records"),
        ("data_batch_3.bin", bytes(3072), "records"),
        ("data_batch_3.bin", bytes(3073), "10000|training"),
        ("test_batch.bin", bytes(3073), "training"),
        ("test_batch.bin", b"\x0a" + bytes(3072 + 3073), "label 10"),
        ("batches.meta.txt", b"cat\ndog\n", "2 names"),
        ("batches.meta.txt", b"\xff\xfe", "damaged"),
        ("test_batch", b"", "damaged pickle"),
        ("test_batch", python2({"data": PIXELS}), "without data and labels"),
        ("test_batch", python2([1, 2]), "without data and labels"),
        ("test_batch", python2({"data": PIXELS, "labels": [1]}), "1 labels for 2"),
        ("test_batch", python2({"data": PIXELS, "labels": [1, "2"]}), "list of integers"),
        ("test_batch", python2({"data": PIXELS, "labels": [1, 10]}), "label 10"),
        ("test_batch", python2({"data": PIXELS, "labels": [1, -1]}), "label -1"),
        ("test_batch", python2({"data": PIXELS[:, :-1], "labels": [1, 2]}), "3072"),
        ("test_batch", python2({"data": PIXELS[:0], "labels": []}), "3072"),
        ("test_batch", python2({"data": [1], "labels": [1]}), "3072"),
    ],
)
def test_cifar_that_is_wrong(tmp_path, name, content, match):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(tar(rewrite(cifar10()[1], name, content))))
    refused(data.load_cifar10, path, match)


def test_cifar_batches_of_other_sizes(tmp_path):
    """As many images as there should be, but not where they should be."""
    members = cifar10()[1]["cifar-10-batches-bin"]
    second, third = members["data_batch_2.bin"], members["data_batch_3.bin"]
    members |= {"data_batch_2.bin": second[:3073], "data_batch_3.bin": third + second[3073:]}
    (tmp_path / "x.tar").write_bytes(tar({"cifar-10-batches-bin": members}))
    refused(data.load_cifar10, tmp_path / "x.tar", r"\[2, 1, 3, 2, 2\] training and 2 test images")


def test_cifar_that_is_incomplete(tmp_path):
    _, members = cifar10()
    for form in members.values():
        form.pop(next(name for name in form if "batch_4" in name))
    (tmp_path / "x.tar").write_bytes(tar(members))
    refused(data.load_cifar10, tmp_path / "x.tar", "not the whole of CIFAR-10")
    (tmp_path / "x.tar").write_bytes(tar({}))
    refused(data.load_cifar10, tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(b"")
    refused(data.load_cifar10, tmp_path / "x.tar")


class Attack:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
def test_a_batch_that_runs_commands_is_refused_and_does_not_run(tmp_path, protocol):
    proof = tmp_path / "proof"
    for attack in (
        Attack(os.system, f"touch {proof}"),
        Attack(eval, f"open({str(proof)!r}, 'w')"),
        Attack(os.mkdir, str(proof)),
        Attack(np.save, str(proof), 1),
    ):
        program = pickle.dumps({"data": attack, "labels": [1]}, protocol)
        path = tmp_path / "x.tar"
        path.write_bytes(tar(rewrite(cifar10()[1], "test_batch", program)))
        refused(data.load_cifar10, path, "refers to|opcode")
        assert not proof.exists()


BATCH = python2({"data": PIXELS, "labels": [1, 2]})


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cposix\nsystem\nU\x04true\x85R.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
        b"\x80\x02cnumpy\nndarray\nK\x05\x85R.",
        b"\x80\x02cnumpy\ndtype\nU\x01OK\x00K\x01\x87R.",
        BATCH.replace(b"U\x02u1", b"U\x02O8"),
        BATCH.replace(b"U\x01|", b"U\x01>"),
        BATCH.replace(b"M\x00\x0c\x86", b"M\x01\x0c\x86"),
        BATCH.replace(b"K\x02M\x00\x0c\x86", b"K\x03M\x00\x0c\x86"),
        BATCH.replace(b"K\x02M\x00\x0c\x86", b"J\xfe\xff\xff\xffM\x00\x0c\x86"),
        BATCH.replace(b"K\x02M\x00\x0c\x86", b"J\xfe\xff\xff\xffJ\x00\xf4\xff\xff\x86"),
        BATCH.replace(b"K\x02M\x00\x0c\x86", b"M\x00\x18\x85"),
        python2({"data": PIXELS, "labels": [1, 2, 3]}).replace(
            b"K\x02M\x00\x0c", b"K\x03M\x00\x0c"
        ),
        BATCH.replace(b"tbU\x06labels", b"t0U\x06labels"),
        BATCH.replace(b"U\x01b", b"U\x01c"),
        b"\x80\x02" + b"]q\x00" + b"h\x00a" * 10 + b"b.",
        b"\x80\x02}r\xff\xff\xff\xff0.",
        b"\x80\x02}(" + b"(" * 100_000 + b"t" * 100_000 + b"Nu.",
        b"\x80\x02T\xff\xff\xff\x7f.",
        b"\x80\x02T\xff\xff\xff\xff.",
        b"\x80\x02\x8b\xff\xff\xff\x7f1.",
    ],
    ids=lambda program: f"{program[:40]!r}-{len(program)}",
)
def test_bad_pickles(program):
    assert program != BATCH
    with little_memory(1 << 27), pytest.raises(FormatError):
        cifar._pickled_batch(bytearray(program), "labels")


def test_the_batch_that_the_bad_ones_are_made_of():
    rows, labels = cifar._pickled_batch(bytearray(BATCH), "labels")
    np.testing.assert_array_equal(rows, PIXELS)
    assert labels.tolist() == [1, 2]


def test_one_string_in_many_arrays_takes_its_memory_once():
    """A memo bomb: each array is a few bytes of program and would be a megabyte of its own."""
    size = 1 << 20
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R("
    array += b"K\x01K\x01J" + struct.pack("<i", size) + b"\x86h\x02\x89h\x01tb"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87Rq\x02"
    program = b"\x80\x02(" + dtype + b"T" + struct.pack("<i", size) + bytes(size) + b"q\x01"
    with little_memory():
        found = cifar._BatchPickle().run(program + array * 500 + b"t.")
    assert len(found) == 502 and found[-1].shape == (1, size)


def test_a_pickle_machine_knows_plain_values_only():
    value = {"a": [1, -2, 2.5, None, True, (1, 2, 3, 4), ()], 3: "ü" * 300, "c": {"d": 2**70}}
    for protocol in (2, 3, 4, 5):
        assert PickleMachine().run(pickle.dumps(value, protocol)) == value
    for foreign in (range(3), 1j, {1, 2}, np.zeros(3), pickle.PickleBuffer(b"x")):
        with pytest.raises(FormatError):
            PickleMachine().run(pickle.dumps(foreign, 5))
    for program in (b"Q", b"\x80\x02NNR.", b"\x80\x02NNb.", b"\x80\x02NQ."):
        with pytest.raises(FormatError):
            PickleMachine().run(program)


def test_a_long_line_in_a_pickle_makes_no_long_message():
    for opcode in (b"F", b"I", b"L", b"c", b"S"):
        with pytest.raises(FormatError) as caught:
            PickleMachine().run(opcode + b"x\r" * 10_000 + b"\n.")
        assert len(str(caught.value)) < 500 and "\r" not in str(caught.value)


def test_odd_escapes_in_a_pickle_do_not_warn():
    with pytest.raises(FormatError):
        PickleMachine().run(b"cos\\q\nsystem\n.")


def test_a_pickle_of_too_many_steps(monkeypatch):
    monkeypatch.setattr(pickles, "_MAX_STEPS", 1000)
    assert PickleMachine().run(b"(" + b"N" * 900 + b"t.") == (None,) * 900
    with pytest.raises(FormatError, match="more than 1000 steps"):
        PickleMachine().run(b"(" + b"N" * 1000 + b"t.")


def special(name, kind=tarfile.REGTYPE, size=0, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


@pytest.mark.parametrize(
    ("member", "match"),
    [
        (special("../x"), "outside"),
        (special("/etc/passwd"), "outside"),
        (special("cifar-10-batches-bin/../../x"), "outside"),
        (special("cifar-10-batches-bin/x", tarfile.SYMTYPE, link="/etc/passwd"), "regular"),
        (special("cifar-10-batches-bin/x", tarfile.LNKTYPE, link="/etc/passwd"), "regular"),
        (special("cifar-10-batches-bin/x", tarfile.CHRTYPE), "regular"),
        (special("cifar-10-batches-bin/x", tarfile.BLKTYPE), "regular"),
        (special("cifar-10-batches-bin/x", tarfile.FIFOTYPE), "regular"),
        (special("cifar-10-batches-bin/test_batch.bin", size=3073), "two members"),
    ],
    ids=lambda value: value.name if isinstance(value, tarfile.TarInfo) else "",
)
def test_archives_with_odd_members(tmp_path, member, match):
    _, members = cifar10()
    del members["cifar-10-batches-py"]
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(tar(members, [member])))
    refused(data.load_cifar10, path, match)
    assert os.listdir(tmp_path) == ["x.tar.gz"]


def test_archives_that_are_too_much(tmp_path, monkeypatch):
    path = tmp_path / "x.tar.gz"
    many = tar({}, [special(f"x{n}") for n in range(100)])
    path.write_bytes(gzip.compress(many))
    refused(data.load_cifar10, path, "more than 64 members")

    monkeypatch.setattr(files, "MAX_BYTES", 1 << 22)
    name = "cifar-10-batches-bin/data_batch_1.bin"
    for info in (special(name, size=1 << 23), special("other", size=1 << 23)):
        path.write_bytes(gzip.compress(tar({}, [info])))
        with little_memory(1 << 24):
            refused(data.load_cifar10, path, "more than 4194304 bytes")
    # A header of its own that fills the memory before there is a member.
    header = special("pax", tarfile.XHDTYPE, size=1 << 30).tobuf()
    path.write_bytes(gzip.compress(header + bytes(1 << 23)))
    with little_memory(1 << 25):
        refused(data.load_cifar10, path, "more than")
    # Zeros after the end.
    whole = tar(cifar10()[1])
    path.write_bytes(gzip.compress(whole + bytes(1 << 23)))
    with little_memory(1 << 25):
        refused(data.load_cifar10, path, "more than")
    (tmp_path / "batches.meta.txt").touch()
    (tmp_path / "test_batch.bin").write_bytes(gzip.compress(bytes(1 << 23)))
    with little_memory(1 << 24):
        refused(data.load_cifar10, tmp_path, "more than")


def test_archives_with_something_after_the_end(tmp_path):
    path = tmp_path / "x.tar.gz"
    whole = tar({"cifar-10-batches-bin": cifar10()[1]["cifar-10-batches-bin"]})
    path.write_bytes(gzip.compress(whole + bytes(10240)))
    assert len(data.load_cifar10(path)[1]) == 2
    path.write_bytes(gzip.compress(whole + b"x"))
    refused(data.load_cifar10, path, "follows its end")
    path.write_bytes(gzip.compress(whole) + b"x")
    refused(data.load_cifar10, path, "damaged")
    broken = bytearray(gzip.compress(whole))
    broken[-8] ^= 1  # the checksum
    path.write_bytes(broken)
    refused(data.load_cifar10, path, "CRC")


# --- MNIST


@pytest.mark.parametrize("compress", [gzip.compress, bytes], ids=["gzip", "plain"])
@pytest.mark.parametrize("own", [True, False])
def test_mnist(tmp_path, compress, own):
    for load, folder, name in (
        (data.load_mnist, "mnist", "3"),
        (data.load_fashion_mnist, "fashion-mnist", "Dress"),
    ):
        root = tmp_path / folder
        root.mkdir()
        expected = write_mnist(root / folder if own else root, compress)
        for dataset, (pixels, labels) in zip(load(root), expected, strict=True):
            same(dataset, [pixels], [labels], (1, 28, 28), dataset.classes)
            assert len(dataset.classes) == 10 and dataset.classes[3] == name


def test_read_idx(tmp_path):
    path = tmp_path / "x"
    for shape in ((3,), (2, 3), (2, 3, 4), (1, 2, 3, 4), (0,), (0, 2**32 - 1)):
        array = np.arange(np.prod(shape, dtype=np.int64) % 2**20, dtype=np.uint8).reshape(shape)
        path.write_bytes(idx(array))
        np.testing.assert_array_equal(data.read_idx(path), array, strict=True)
        path.write_bytes(gzip.compress(idx(array)))
        np.testing.assert_array_equal(data.read_idx(path), array, strict=True)


LABELS = idx(np.arange(5, dtype=np.uint8))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "truncated"),
        (b"\0\0", "truncated"),
        (b"\0\0\x08\0", "not an IDX"),
        (b"\0\1\x08\1" + LABELS[4:], "not an IDX"),
        (idx(np.zeros(2, ">f4"), 0x0D), "not an IDX"),
        (b"PK\3\4" + bytes(100), "not an IDX"),
        (LABELS[::-1], "not an IDX"),
        (LABELS + b"\0", "more bytes"),
        (struct.pack(">HBBI", 0, 8, 1, 2**32 - 1), "declares 4294967295"),
        (struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3), "declares"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**28, 1, 1) + bytes(100), "truncated: 100 bytes"),
        (struct.pack(">HBB", 0, 8, 255) + b"\0\0\0\1" * 255 + b"\0", "damaged"),
    ],
)
@pytest.mark.parametrize("compress", [gzip.compress, bytes], ids=["gzip", "plain"])
def test_idx_files_that_are_wrong(tmp_path, content, match, compress):
    path = tmp_path / "x"
    path.write_bytes(compress(content))
    with little_memory():
        refused(data.read_idx, path, match)


def test_gzip_that_is_wrong(tmp_path):
    path = tmp_path / "x.gz"
    whole = gzip.compress(LABELS)
    for place, match in ((-1, "length|Incorrect"), (-8, "CRC")):
        content = bytearray(whole)
        content[place] ^= 1
        path.write_bytes(content)
        refused(data.read_idx, path, match)
    path.write_bytes(whole + b"trailing")
    refused(data.read_idx, path, "damaged")
    path.write_bytes(whole + gzip.compress(b"more"))
    refused(data.read_idx, path, "more bytes")
    path.write_bytes(gzip.compress(LABELS + bytes(1 << 27)))  # a bomb
    with little_memory():
        refused(data.read_idx, path, "more bytes")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"train_labels": idx(np.zeros(4, np.uint8))}, "4,.*3 images"),
        ({"t10k_labels": idx(np.zeros((3, 1), np.uint8))}, "3 images"),
        ({"t10k_labels": idx(np.array([0, 10, 1], np.uint8))}, "image 1 has the label 10"),
        ({"train_images": idx(np.zeros((3, 28), np.uint8))}, "no images"),
        ({"train_images": idx(np.zeros((3, 0, 28), np.uint8))}, "no images"),
        ({"train_images": idx(np.zeros((0, 28, 28), np.uint8))}, "no images"),
    ],
)
def test_mnist_that_does_not_fit(tmp_path, changes, match):
    write_mnist(tmp_path, **changes)
    with pytest.raises(FormatError, match=match) as caught:
        data.load_mnist(tmp_path)
    assert f"{tmp_path}{os.sep}t" in str(caught.value)


def test_other_kinds_of_file(tmp_path):
    refused(data.read_idx, tmp_path, "not a regular file")
    with pytest.raises(FileNotFoundError):
        data.read_idx(tmp_path / "missing")
    if os.name == "posix":
        os.mkfifo(tmp_path / "fifo")
        for path in (tmp_path / "fifo", "/dev/zero"):
            refused(data.read_idx, path, "not a regular file")
            refused(data.load_cifar10, path, "not a regular file")
    (tmp_path / "test_batch").mkdir()
    (tmp_path / "batches.meta").mkdir()
    refused(data.load_cifar10, tmp_path, "not a regular file")


# --- downloads


def test_missing_files_are_named(tmp_path, monkeypatch):
    for load, name in (
        (data.load_cifar10, "cifar-10-binary.tar.gz"),
        (data.load_cifar100, "cifar-100-python.tar.gz"),
        (data.load_mnist, "t10k-labels-idx1-ubyte.gz"),
        (data.load_fashion_mnist, "train-images-idx3-ubyte.gz"),
    ):
        with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*download=True.*{name}"):
            load(tmp_path)
    monkeypatch.setenv("CONVKERN_DATA", str(tmp_path / "x"))
    with pytest.raises(FileNotFoundError, match=f"no MNIST in {tmp_path / 'x'};"):
        data.load_mnist()
    monkeypatch.delenv("CONVKERN_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data.data_folder() == tmp_path / "convkern"


@pytest.fixture
def server(tmp_path):
    """Serve a folder; yield it and its address."""
    pytest.importorskip("pooch")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=folder)
    ) as http_:
        thread = threading.Thread(target=http_.serve_forever, args=(0.02,))
        thread.start()
        yield folder, f"http://127.0.0.1:{http_.server_port}/"
        http_.shutdown()
        thread.join()


def md5s(folder):
    return {
        file.name: hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        for file in folder.iterdir()
    }


def test_download(tmp_path, server, monkeypatch):
    folder, url = server
    expected = write_mnist(folder)
    served = mnist._MNIST._replace(url=url, md5=md5s(folder))
    monkeypatch.setattr(mnist, "_MNIST", served)
    with pytest.raises(FileNotFoundError):
        data.load_mnist(tmp_path / "root")
    train, _ = data.load_mnist(tmp_path / "root", download=True)
    same(train, [expected[0][0]], [expected[0][1]], (1, 28, 28), "0123456789")
    assert sorted(os.listdir(tmp_path / "root" / "mnist")) == sorted(served.md5)
    for file in folder.iterdir():
        file.unlink()
    assert len(data.load_mnist(tmp_path / "root", download=True)[1]) == 3  # nothing is fetched


def test_download_of_another_file(tmp_path, server):
    folder, url = server
    (folder / "x.gz").write_bytes(b"something else")
    with pytest.raises(FormatError, match="is not the published file"):
        files.fetch(Remote(url + "x.gz", "0" * 32), tmp_path / "root")
    assert os.listdir(tmp_path / "root") == []


def test_download_that_fails(tmp_path, server):
    _, url = server
    for address in (url + "missing.gz", "http://127.0.0.1:1/missing.gz"):
        with pytest.raises(ConnectionError, match=r"put it at .*missing\.gz") as caught:
            files.fetch(Remote(address, "0" * 32), tmp_path / "root")
        assert "\n" not in str(caught.value)


def test_pooch_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    with pytest.raises(ImportError, match=r"convkern\[data\]"):
        data.load_cifar10(tmp_path, download=True)


# --- digits and folders


def test_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    train, test = data.load_digits()
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape[1:] == (1, 8, 8) and train.images.max() == 255
    shares = np.bincount(train.labels) / np.bincount(test.labels)
    assert shares.min() > 3.7 and shares.max() < 4.3
    # Every image once, with its label.
    digits = datasets.load_digits()
    everything = np.rint(digits.images * 255 / 16).astype(np.uint8)
    found = np.concatenate([train.images, test.images])[:, 0]
    labels = np.concatenate([train.labels, test.labels])
    assert sorted((i.tobytes(), n) for i, n in zip(found, labels, strict=True)) == sorted(
        (i.tobytes(), n) for i, n in zip(everything, digits.target, strict=True)
    )
    again, _ = data.load_digits(seed=0)
    np.testing.assert_array_equal(train.images, again.images)
    other, _ = data.load_digits(seed=1)
    assert not np.array_equal(train.images, other.images)
    large, _ = data.load_digits(28, test_size=0.5)
    assert large.images.shape == (898, 1, 28, 28)
    for bad in ({"size": 7}, {"test_size": 0.0}, {"test_size": 1}, {"seed": -1}):
        with pytest.raises(ValueError):
            data.load_digits(**bad)


@pytest.fixture
def photos(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, colour in (("dog/a.png", "red"), ("dog/b.JPG", "white"), ("cat/c.bmp", "blue")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.new("RGB", (40, 30), colour).save(tmp_path / name)
    (tmp_path / "dog" / "notes.txt").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "readme.txt").write_text("x")
    return tmp_path


def test_image_folder(photos):
    found = data.load_image_folder(photos, (24, 20))
    assert found.classes == ("cat", "dog") and found.labels.tolist() == [0, 1, 1]
    assert found.images.shape == (3, 3, 24, 20)
    np.testing.assert_array_equal(found.images[0, :, 5, 5], [0, 0, 255])
    np.testing.assert_array_equal(found.images[1, :, 5, 5], [255, 0, 0])
    swapped = data.load_image_folder(photos, 24, classes=["dog", "cat"])
    assert swapped.labels.tolist() == [0, 0, 1]


def test_image_folder_that_is_wrong(photos):
    with pytest.raises(FileNotFoundError):
        data.load_image_folder(photos / "missing", 24)
    with pytest.raises(FileNotFoundError):
        data.load_image_folder(photos, 24, classes=["cat", "bird"])
    with pytest.raises(TypeError, match="classes"):
        data.load_image_folder(photos, 24, classes="cat")
    with pytest.raises(ValueError, match="size"):
        data.load_image_folder(photos, 0)
    with pytest.raises(FormatError, match="no folders"):
        data.load_image_folder(photos / "dog", 24)
    (photos / "empty").mkdir()
    with pytest.raises(FormatError, match="empty has no images"):
        data.load_image_folder(photos, 24)
    (photos / "empty" / "x.png").write_bytes(b"x")
    with pytest.raises(FormatError, match=r"x\.png is not an image"):
        data.load_image_folder(photos, 24)
    (photos / "empty" / "x.png").unlink()
    (photos / "empty" / "x.png").mkdir()
    with pytest.raises(FormatError, match="not a regular file"):
        data.load_image_folder(photos, 24)


# --- the data set itself


def test_dataset():
    images = np.arange(5 * 3 * 4 * 2, dtype=np.uint8).reshape(5, 3, 4, 2)
    dataset = data.Dataset(images, np.array([0, 1, 0, 1, 1], np.uint8), ["a", "b"])
    part = dataset.take([3, 0])
    np.testing.assert_array_equal(part.images, images[[3, 0]])
    assert part.labels.tolist() == [1, 0] and part.labels.dtype == np.int64
    assert len(dataset.take(slice(0))) == 0


@pytest.mark.parametrize(
    ("images", "labels", "classes", "error"),
    [
        (np.zeros((2, 1, 4, 4)), [0, 0], ["a"], TypeError),
        ([[[[1]]]], [0], ["a"], TypeError),
        (np.zeros((2, 4, 4), np.uint8), [0, 0], ["a"], ValueError),
        (np.zeros((2, 0, 4, 4), np.uint8), [0, 0], ["a"], ValueError),
        (np.zeros((2, 1, 4, 4), np.uint8), [0], ["a"], ValueError),
        (np.zeros((2, 1, 4, 4), np.uint8), [[0, 0]], ["a"], ValueError),
        (np.zeros((2, 1, 4, 4), np.uint8), [0.0, 0], ["a"], TypeError),
        (np.zeros((2, 1, 4, 4), np.uint8), [0, 1], ["a"], ValueError),
        (np.zeros((2, 1, 4, 4), np.uint8), [0, -1], ["a"], ValueError),
        (np.zeros((2, 1, 4, 4), np.uint8), [0, 0], "ab", TypeError),
        (np.zeros((2, 1, 4, 4), np.uint8), [0, 0], [1], TypeError),
    ],
)
def test_datasets_that_are_none(images, labels, classes, error):
    with pytest.raises(error, match=r"images|label|classes"):
        data.Dataset(images, labels, classes)
