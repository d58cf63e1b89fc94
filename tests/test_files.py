"""Every reader of files against damage: a file is read and right, or it is a FormatError.

`READERS` in readers.py lists the readers; each test takes all of them.  ``CONVKERN_DAMAGE``
is how many damaged copies each file gets (300), and tools/fuzz.py looks for further ones.
"""

import gzip
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from convkern.checkpoint import load_training, save_training
from convkern.data import Dataset
from convkern.errors import FormatError

pytest.importorskip("PIL")
pytest.importorskip("safetensors")
from readers import READERS, small_state
from samples import idx, program, tensor

pytestmark = pytest.mark.once

#: Readers that get a part of a file, and those that also read folders.
PARTS = {"torch_pickle", "checkpoint_values", "train_values"}
FOLDERS = {"tar", "tar_gzip", "cifar"}
COPIES = int(os.environ.get("CONVKERN_DAMAGE", "300"))


def same(one, other):
    """Raise unless two values that a reader returned are equal."""
    if isinstance(one, dict):
        assert list(one) == list(other)
        one, other = list(one.values()), list(other.values())
    if isinstance(one, Dataset):
        one, other = [[set.images, set.labels, set.classes] for set in (one, other)]
    if isinstance(one, (list, tuple)):
        for part, its_twin in zip(one, other, strict=True):
            same(part, its_twin)
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other, strict=True)
    else:
        assert type(one) is type(other) and one == other


def outcomes(reader, path, contents, expected=None):
    """Read each content, and check what comes out; return how many were refused."""
    refused = 0
    for content in contents:
        path.unlink(missing_ok=True)  # writing over a file is much slower
        path.write_bytes(content)
        try:
            value = reader.read(path)
        except FormatError as error:
            refused += 1
            message = str(error)
            assert "\n" not in message and str(path) in message
            assert len(message) < 700 + len(str(path))
            continue
        reader.check(value)
        if expected is not None:
            same(value, expected)
    return refused


def cut(content):
    return (content[:length] for length in range(len(content)))


def longer(content):
    return (content + more for more in (b"\0", b"x", b"\0" * 5000, b"x" * 70_000, content))


def flipped(content, count):
    """Return copies with every bit flipped, if these are few, and copies with up to three."""
    rng = random.Random(0)
    bits = 8 * len(content)
    places = [[bit] for bit in (range(bits) if bits < count else rng.sample(range(bits), count))]
    places += [rng.choices(range(min(bits, 2000)), k=3) for _ in range(count // 4)]
    for chosen in places:
        copy = bytearray(content)
        for bit in chosen:
            copy[bit // 8] ^= 1 << bit % 8
        yield bytes(copy)


@pytest.mark.parametrize("name", READERS)
def test_damage(tmp_path, name):
    reader, path = READERS[name], tmp_path / "file"
    for content in reader.contents():
        path.write_bytes(content)
        whole = reader.read(path)
        reader.check(whole)
        expected = whole if isinstance(whole, (dict, tuple, list, np.ndarray)) else None
        # Images may lack what follows the pixels, archives some zeros at their end.
        assert outcomes(reader, path, cut(content), expected) > len(content) / 3
        outcomes(reader, path, longer(content), expected)
        damaged = flipped(content, COPIES)
        assert outcomes(reader, path, damaged, expected if reader.sealed else None)


# --- files that want more memory, or time, than there is


def png(*chunks):
    """Return a PNG file of these chunks, with right checksums."""
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in (*chunks, (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    return content


def tiff(*tags):
    """Return a TIFF file of one directory of 32-bit tags and nothing else."""
    entries = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def bmp(width, height, compression):
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, 0, 0, 0, 1, 0)
    return b"BM" + struct.pack("<IHHI", 58, 0, 0, 58) + info + bytes(4)


def header_of(count, what):
    """Return a safetensors file whose header holds much that nobody reads."""
    rubbish = b",".join([what] * count)
    text = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":[' + rubbish + b"]}}"
    return struct.pack("<Q", len(text)) + text


def zeros(megabytes):
    """Return a gzip stream of so many zeros."""
    return gzip.compress(bytes(1 << 20)) * megabytes


def tar_header(size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo("set/a")
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def head(width, height, depth=8, colour=2):
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def noisy_zip(numel):
    """Return torch's description of so many elements that are not there."""
    return program({"a": tensor("Float", "0", numel, (numel,), (1,))})


ENDLESS = {
    "idx of 2**96 bytes": ("idx", lambda: struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3)),
    "idx of 256 MB": ("idx", lambda: struct.pack(">HBBI", 0, 8, 1, 1 << 28)),
    "idx, then zeros": ("idx", lambda: gzip.compress(idx(np.zeros(9, "u1"))) + zeros(300)),
    "tar of zeros": ("tar", lambda: zeros(300)),
    "tar of a terabyte": ("tar", lambda: gzip.compress(tar_header(1 << 40)) + zeros(300)),
    "tar of a header": (
        "tar",
        lambda: gzip.compress(tar_header(1 << 30, tarfile.GNUTYPE_LONGNAME)) + zeros(300),
    ),
    "tar of an extended header": (
        "tar",
        lambda: gzip.compress(tar_header(1 << 30, tarfile.XHDTYPE)) + zeros(300),
    ),
    "cifar of zeros": ("cifar", lambda: zeros(300)),
    "pickle of zeros": ("pickle", lambda: zeros(300)),
    "pickle without end": ("pickle", lambda: b"\x80\x02" + b"]" * (1 << 23)),
    "pickle of doublings": ("pickle", lambda: b"N" + b"q\0h\0\x86" * 60 + b"."),
    "torch of doublings": ("torch_pickle", lambda: b"}U\1xN" + b"q\0h\0\x86" * 60 + b"s."),
    "cifar of doublings": (
        "cifar_pickle",
        lambda: b"}U\4dataNsU\6labelsN" + b"q\0h\0\x86" * 60 + b"s.",
    ),
    "pickle of a long integer": ("pickle", lambda: b"\x8b\xff\xff\xff\x7f" + bytes(1 << 20)),
    "pickle of a long number": ("pickle", lambda: b"I" + b"9" * (1 << 24) + b"\n."),
    "torch of 8 GB": ("torch_pickle", lambda: noisy_zip(2**31 - 1)),
    "torch of opcodes": ("torch_pickle", lambda: b"\x80\x02" + b"}" * (1 << 22)),
    "safetensors of 2**64": ("safetensors", lambda: b"\xff" * 8 + b"{}"),
    "safetensors of 16 MB": ("safetensors", lambda: (1 << 24).to_bytes(8, "little") + b"{}"),
    "safetensors of many brackets": ("safetensors", lambda: header_of(1 << 22, b"[]")),
    "safetensors of brackets": ("safetensors", lambda: header_of(1 << 20, b"[]")),
    "checkpoint of brackets": ("checkpoint_values", lambda: b"[" * (1 << 20)),
    "labels": ("labels", lambda: b"x\n" * (1 << 23)),
    "png": ("png", lambda: png(head(50_000, 50_000), (b"IDAT", zlib.compress(bytes(10**6))))),
    "png of text": (
        "png",
        lambda: png(head(8, 8), *[(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6)))] * 100),
    ),
    "png of a profile": (
        "png",
        lambda: png(head(8, 8), (b"iCCP", b"a\0\0" + zlib.compress(bytes(10**7)))),
    ),
    "ppm": ("ppm", lambda: b"P6 99999 99999 255\n" + bytes(99)),
    "ppm of a long number": ("ppm", lambda: b"P6 " + b"9" * (1 << 24)),
    "bmp": ("bmp", lambda: bmp(30_000, 30_000, 0)),
    "bmp of runs": ("bmp", lambda: bmp(30_000, 30_000, 1)),
    "gif": ("gif", lambda: b"GIF89a" + b"\xff" * 5 + b"\0,\0\0\0\0" + b"\xff" * 4 + b"\0\x08\0;"),
    "tiff": ("tiff", lambda: tiff((256, 1, 99_999), (257, 1, 99_999), (273, 1, 8))),
    "tiff of tags": ("tiff", lambda: tiff((256, 1, 9), (257, 1, 9), (273, 2**32 - 1, 8))),
    "webp": ("webp", lambda: b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f" + b"\xff" * 9),
}

READ = """
import resource, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from convkern.errors import FormatError
from readers import READERS, small_state
for reader in READERS.values():  # what is imported or cached on the way
    for content in reader.contents():
        Path(sys.argv[1], "seed").write_bytes(content)
        reader.read(Path(sys.argv[1], "seed"))
def memory(name):
    # In megabytes.
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) >> 10
limit = memory("VmSize") + 512 << 20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for file in sorted(Path(sys.argv[1]).glob("*.bomb")):
    seconds = int(time.process_time()) + 11
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
    before = memory("VmRSS")
    print(file.name.split(".")[0], end=": ", flush=True)
    try:
        READERS[file.suffixes[0][1:]].read(file)
        outcome = "read"
    except FormatError:
        outcome = "refused"
    print(outcome, memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and limits")
def test_endless(tmp_path):
    """One process reads all; it may take half a gigabyte and ten seconds for each."""
    for title, (name, content) in ENDLESS.items():
        (tmp_path / f"{title}.{name}.bomb").write_bytes(content())
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path), os.getcwd(), os.path.dirname(__file__)],
        capture_output=True,
        text=True,
    )
    lines = dict(line.split(": ") for line in done.stdout.splitlines())
    assert done.returncode == 0 and len(lines) == len(ENDLESS), done.stdout + done.stderr
    found = {title: line.split() for title, line in lines.items()}
    allowed = {"pickle of doublings", "safetensors of brackets"}
    assert {title for title, (outcome, _) in found.items() if outcome == "read"} <= allowed
    assert max(int(megabytes) for _, megabytes in found.values()) < 384, found


# --- paths that are no files, and checkpoints that do not fit


@pytest.mark.skipif(os.name != "posix", reason="needs special files")
@pytest.mark.parametrize("name", READERS)
def test_no_files(tmp_path, name, monkeypatch):
    reader = READERS[name]
    if name in PARTS:
        pytest.skip("reads a part of a file")
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for path in (tmp_path, tmp_path / "fifo", tmp_path / "socket", Path("/dev/zero")):
            if path.is_dir() and name in FOLDERS:
                continue
            with pytest.raises(FormatError, match="not a regular file"):
                reader.read(path)
    for path in (tmp_path / "missing", tmp_path / ("x" * 300), tmp_path / "fifo" / "x"):
        with pytest.raises(OSError):
            reader.read(path)
    (tmp_path / "empty").touch()
    with pytest.raises(FormatError, match="empty"):
        reader.read(tmp_path / "empty")


def spoiled(arrays, name, change):
    """Return arrays of which one is left out, or another one."""
    if change is None:
        return {key: array for key, array in arrays.items() if key != name}
    return {**arrays, name: change(arrays[name])}


@pytest.mark.parametrize(
    "change",
    [
        None,
        lambda array: np.resize(array, (*array.shape, 2)),
        lambda array: array.astype(np.int8),
        lambda array: array.reshape(-1)[:0],
    ],
    ids=["missing", "another axis", "bytes", "empty"],
)
def test_checkpoints_that_do_not_fit(tmp_path, change):
    """Every array of a run, and then every value, is left out or another one."""
    path = tmp_path / "run"
    small_state().save(path)
    arrays, values = load_training(path)
    for name in arrays:
        save_training(path, spoiled(arrays, name, change), values)
        if "num_batches" in name:  # may be missing, as in older files of torch
            continue
        with pytest.raises(FormatError, match="damaged or of another run"):
            small_state().load(path)


@pytest.mark.parametrize("name", ["net.5.bias", "net.0.more", "optimizer.more"])
def test_checkpoints_with_more_than_fits(tmp_path, name):
    path = tmp_path / "run"
    small_state().save(path)
    arrays, values = load_training(path)
    save_training(path, {**arrays, name: np.zeros(2, np.float32)}, values)
    with pytest.raises(FormatError, match="damaged or of another run"):
        small_state().load(path)


JUNK = [None, True, -1, 0.5, 1e999, 10**30, "x" * 99, [], {}, [[]], [None], {"x": 1}]


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk)[:20])
@pytest.mark.parametrize("name", ["checkpoint_values", "train_values"])
def test_values_that_are_none_of_their_kind(tmp_path, name, junk):
    """Every value at every depth is replaced; what is still read must be usable."""
    reader = READERS[name]
    values = json.loads(reader.contents()[0])
    contents = (json.dumps(copy).encode() for copy in replaced(values, junk))
    outcomes(reader, tmp_path / "file", contents)


def replaced(value, junk):
    """Yield copies of nested dicts and lists, each with another value replaced by junk."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items:
        parts = [junk]
        if isinstance(part, (dict, list)):
            parts += replaced(part, junk)
        for other in parts:
            copy = value.copy()
            copy[key] = other
            yield copy
