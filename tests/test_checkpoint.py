"""Weights on disk: what is read back, what is refused, and that saving is all or nothing."""

import collections
import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
from memory import little_memory
from samples import (
    FLOATS,
    SIMPLE,
    SIMPLE_STORAGES,
    Call,
    Global,
    Persistent,
    entry,
    opcodes,
    program,
    tensor,
    write_safetensors,
    write_zip,
)

from convkern.checkpoint import load_training, load_weights, save_training, save_weights
from convkern.errors import FormatError

pytestmark = pytest.mark.once


def refused(path, match=None):
    with pytest.raises(FormatError, match=match) as caught:
        load_weights(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < 500 + len(str(path))


# --- torch's zip files


def test_zip_made_by_hand(tmp_path):
    weights = load_weights(write_zip(tmp_path / "w", SIMPLE, SIMPLE_STORAGES))
    assert list(weights) == ["a", "n"]
    np.testing.assert_array_equal(weights["a"], FLOATS.reshape(2, 3), strict=True)
    np.testing.assert_array_equal(weights["n"], np.array(7, np.int64), strict=True)
    assert weights["a"].flags.writeable


@pytest.mark.parametrize(
    ("kind", "stored", "expected"),
    [
        ("Double", np.array([0.1, -2], "<f8"), np.array([0.1, -2])),
        ("Float", np.array([0.1, -2], "<f4"), np.array([0.1, -2], np.float32)),
        ("Half", np.array([0.1, 6e-8], "<f2"), np.array([0.1, 6e-8], np.float16).astype("f4")),
        ("BFloat16", np.array([0x3FC0, 0xFF80], "<u2"), np.array([1.5, -np.inf], np.float32)),
        ("Long", np.array([2**40, -1], "<i8"), np.array([2**40, -1])),
        ("Int", np.array([5, -1], "<i4"), np.array([5, -1], np.int32)),
        ("Short", np.array([5, -1], "<i2"), np.array([5, -1], np.int16)),
        ("Char", np.array([5, -1], "i1"), np.array([5, -1], np.int8)),
        ("Byte", np.array([5, 255], "u1"), np.array([5, 255], np.uint8)),
        ("Bool", np.array([0, 2], "u1"), np.array([False, True])),
    ],
)
@pytest.mark.parametrize("order", ["little", "big"])
def test_zip_elements(tmp_path, kind, stored, expected, order):
    stored = stored.astype(stored.dtype.newbyteorder(order))
    file = write_zip(
        tmp_path / "w",
        program({"x": tensor(kind, "0", 2, (2,), (1,))}),
        {"0": stored},
        [("byteorder", order)],
    )
    found = load_weights(file)["x"]
    np.testing.assert_array_equal(found, expected, strict=True)
    assert found.dtype.isnative


def test_zip_views_share_their_storage(tmp_path):
    views = {
        "whole": tensor("Float", "0", 6, (6,), (1,)),
        "transposed": tensor("Float", "0", 6, (3, 2), (1, 3)),
        "tail": tensor("Float", "0", 6, (2,), (2,), offset=3),
        "empty": tensor("Float", "0", 6, (0, 4), (4, 1)),
        "one": tensor("Float", "0", 6, (), (), offset=5),
    }
    weights = load_weights(write_zip(tmp_path / "w", program(views), {"0": FLOATS}))
    np.testing.assert_array_equal(weights["transposed"], FLOATS.reshape(2, 3).T, strict=True)
    np.testing.assert_array_equal(weights["tail"], FLOATS[[3, 5]], strict=True)
    assert weights["empty"].shape == (0, 4)
    assert weights["one"] == 5
    weights["whole"][0] = 9
    assert weights["transposed"][0, 0] == 9


def test_zip_forms_of_a_state_dict(tmp_path):
    plain = tensor("Float", "0", 6, (6,), (1,))
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), (plain, True, None))
    ordered = opcodes(Call(Global("collections", "OrderedDict"), ()))
    items = b"(" + opcodes("x") + opcodes(parameter) + b"u"
    metadata = opcodes({"_metadata": {"": {"version": 1}}}) + b"b"
    wrapped = b"}(" + opcodes("state_dict") + ordered + items + metadata
    wrapped += (
        opcodes("epoch") + opcodes(3) + opcodes("rates") + b"](G?\xb9\x99\x99\x99\x99\x99\x9aNe"
    )
    for body in (ordered + items + metadata, wrapped + b"u"):
        file = write_zip(tmp_path / "w", b"\x80\x02" + body + b".", {"0": FLOATS})
        np.testing.assert_array_equal(load_weights(file)["x"], FLOATS, strict=True)
    assert load_weights(write_zip(tmp_path / "w", program({}))) == {}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_zip_from_torch(tmp_path, torch, protocol):
    torch.manual_seed(0)
    base = torch.randn(4, 5)
    state = collections.OrderedDict(
        base=base,
        view=base.t()[1:],
        row=base[2],
        half=torch.randn(3).half(),
        bfloat16=torch.randn(3).bfloat16(),
        double=torch.randn(2, 2, dtype=torch.float64),
        tracked=torch.tensor(7),
        mask=torch.tensor([True, False]),
        empty=torch.zeros(0, 4),
        parameter=torch.nn.Parameter(torch.randn(3)),
    )
    checkpoint = {
        "epoch": 90,
        "best": 0.5,
        "arch": "net",
        "state_dict": state,
        "rates": [0.1, None],
    }
    torch.save(checkpoint, tmp_path / "w.pth", pickle_protocol=protocol)
    weights = load_weights(tmp_path / "w.pth")
    assert list(weights) == list(state)
    for name, value in state.items():
        value = value.detach()
        value = value.float() if value.dtype in (torch.half, torch.bfloat16) else value
        np.testing.assert_array_equal(weights[name], value.numpy(), strict=True)
    assert np.shares_memory(weights["base"], weights["row"])


def test_zip_of_a_torch_module(tmp_path, torch):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(net.state_dict(), tmp_path / "w.pth")
    weights = load_weights(tmp_path / "w.pth")
    assert weights["1.num_batches_tracked"].dtype == np.int64
    assert {n: a.shape for n, a in weights.items()} == {
        n: tuple(t.shape) for n, t in net.state_dict().items()
    }


def test_torch_files_that_are_no_state_dict(tmp_path, torch):
    file = tmp_path / "w.pth"
    net = torch.nn.Linear(2, 2)
    for value, match in [
        (net, "torch.nn.modules.linear.Linear"),
        (torch.zeros(3), "no state dict"),
        ([torch.zeros(3)], "no state dict"),
        ({"lr": 0.1}, "'lr' is not a tensor"),
        ({"x": torch.zeros(1).expand(10**9)}, "exceeds its storage"),
    ]:
        torch.save(value, file)
        refused(file, match)
    torch.save(net.state_dict(), file, _use_new_zipfile_serialization=False)
    refused(file, "before version 1.6.*torch.save")


def test_zip_from_torch_cut_anywhere(tmp_path, torch):
    torch.save({"a": torch.arange(3.0)}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        refused(tmp_path / "cut")


class Attack:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_commands_is_refused_and_does_not_run(tmp_path, protocol):
    proof = tmp_path / "proof"
    for attack in (
        Attack(os.system, f"touch {proof}"),
        Attack(eval, f"open({str(proof)!r}, 'w')"),
        Attack(exec, f"open({str(proof)!r}, 'w')"),
        Attack(os.mkdir, str(proof)),
    ):
        data_pkl = pickle.dumps({"state_dict": {}, "x": attack}, protocol)
        refused(write_zip(tmp_path / "w", data_pkl))
        assert not proof.exists()


OTHER_GLOBAL = Global("posix", "system")
TUPLES = b"(t" + b"".join(b"q%c" % i + b"h%c" % i + b"\x86" for i in range(60))


@pytest.mark.parametrize(
    "data_pkl",
    [
        program(Call(OTHER_GLOBAL, ("true",))),
        program({"x": OTHER_GLOBAL}),
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
        program(Call(Global("torch._utils", "_rebuild_tensor_v2"), ())),
        program(Call(Global("torch._utils", "_rebuild_parameter"), (1, True, None))),
        program(Call(Global("collections", "OrderedDict"), ({"x": 1},))),
        program(Call(Global("torch", "FloatStorage"), (10**9,))),
        program({"x": Persistent(("storage", "torch.FloatStorage", "0", "cpu", 6))}),
        program({"x": Persistent(("module", Global("torch", "FloatStorage"), "0", "cpu", 6))}),
        program({"x": Persistent(())}),
        program({"x": tensor("Float", "0", -1, (6,), (1,))}),
        program({"x": tensor("Float", "missing", 6, (6,), (1,))}),
        program({"x": tensor("Float", "../data.pkl", 6, (6,), (1,))}),
        program({"x": tensor("Float", "0", 5, (5,), (1,))}),
        program({"x": tensor("Float", "0", 2**31 - 1, (6,), (1,))}),
        program({"x": tensor("Double", "0", 6, (6,), (1,))}),
        program({"x": tensor("ComplexFloat", "0", 3, (3,), (1,))}),
        program({"x": tensor("Float", "0", 6, (7,), (1,))}),
        program({"x": tensor("Float", "0", 6, (2,), (6,))}),
        program({"x": tensor("Float", "0", 6, (6,), (1,), offset=1)}),
        program({"x": tensor("Float", "0", 6, (1,), (1,), offset=-1)}),
        program({"x": tensor("Float", "0", 6, (2,), (-1,), offset=5)}),
        program({"x": tensor("Float", "0", 6, (-2,), (1,))}),
        program({"x": tensor("Float", "0", 6, (2**31 - 1, 2**31 - 1), (0, 0))}),
        program({"x": tensor("Float", "0", 6, (7, 1), (0, 0))}),
        program({"x": tensor("Float", "0", 6, (2, 3), (1,))}),
        program({"x": tensor("Float", "0", 6, ("2",), (1,))}),
        program({"x": tensor("Float", "0", 6, (1,) * 33, (1,) * 33)}),
        program({"x": tensor("Float", "0", 6, (1, 2), (2**31 - 1, 2**31 - 1))}),
        program({3: tensor("Float", "0", 6, (6,), (1,))}),
        program({"x" * 10000 + "\n": 3}),
        program(3),
        program("text"),
        b"",
        b".",
        b"\x80\x02}",
        b"\x80\x02\xff.",
        b"\x80\x02h\x00.",
        b"\x80\x02(((.",
        b"\x80\x02tttt.",
        b"\x80\x02)(NNu.",
        b"\x80\x02}NNs.",
        b"\x80\x02](Nu.",
        b"\x80\x02NNR.",
        b"\x80\x02" + b"X\xff\xff\xff\xffabc.",
        b"\x80\x02" + b"\x8b\xff\xff\xff\x7f" + b"1.",
        # A memo index that would make an array of 2**32 places.
        b"\x80\x02}r\xff\xff\xff\xff0.",
        # A key whose hash takes 2**60 steps, and one as an item of a dict.
        b"\x80\x02}" + TUPLES + b"Ns.",
        b"\x80\x02}(" + TUPLES + b"Nu.",
        b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
        b"\x80\x02" + b"]" * 1000 + b"a" * 999 + b".",
        b"\x80\x02}." + b"0" * (1 << 23),
    ],
    ids=lambda data_pkl: f"{data_pkl[:60]!r}-{len(data_pkl)}",
)
def test_zip_with_a_bad_description(tmp_path, data_pkl):
    with little_memory(1 << 27):
        refused(write_zip(tmp_path / "w", data_pkl, {"0": FLOATS}))


def test_zip_that_could_inflate(tmp_path):
    file = tmp_path / "w"
    zeros = np.zeros(10**7, "<f4")
    bomb = program({"x": tensor("Float", "0", zeros.size, zeros.shape, (1,))})
    write_zip(file, bomb, {"0": zeros}, compression=zipfile.ZIP_DEFLATED)
    with little_memory():
        refused(file, "compressed")

    # A directory that claims more than there is.
    content = bytearray(write_zip(file, SIMPLE, SIMPLE_STORAGES).read_bytes())
    at = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    content[at + 20 : at + 28] = struct.pack("<II", 10**9, 10**9)
    file.write_bytes(content)
    with little_memory():
        refused(file, "larger than the file")

    # A directory of a gigabyte, in a file that is a hole.
    with open(file, "wb") as stream:
        stream.write(b"PK\x03\x04")
        stream.seek(10**9)
        stream.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, 10**9 - 4, 4, 0))
    with little_memory():
        refused(file)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_odd_members(tmp_path):
    file = tmp_path / "w"
    refused(write_zip(file, SIMPLE, SIMPLE_STORAGES, [("data/0", b"x" * 24)]), "one name")
    refused(write_zip(file, SIMPLE, SIMPLE_STORAGES, [("byteorder", b"middle")]))
    refused(write_zip(file, SIMPLE, {"0": FLOATS}), "no storage '1'")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(file, "data.pkl")
    content = bytearray(write_zip(file, SIMPLE, SIMPLE_STORAGES).read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # encrypted
    file.write_bytes(content)
    refused(file)


# --- safetensors


def test_safetensors_made_by_hand(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        "w": entry("F32", [2, 3], 0, 24),
        "half": entry("F16", [2], 24, 28),
        "brain": entry("BF16", [2], 28, 32),
        "mask": entry("BOOL", [2], 32, 34),
        "empty": entry("I64", [0, 2], 34, 34),
        "scalar": entry("U8", [], 34, 35),
    }
    body = FLOATS.tobytes() + np.array([0.5, -2], "<f2").tobytes()
    body += np.array([0x3FC0, 0xFF80], "<u2").tobytes() + b"\x00\x02" + b"\x05"
    weights = load_weights(write_safetensors(tmp_path / "w", header, body))
    expected = {
        "w": FLOATS.reshape(2, 3).astype(np.float32),
        "half": np.array([0.5, -2], np.float32),
        "brain": np.array([1.5, -np.inf], np.float32),
        "mask": np.array([False, True]),
        "empty": np.empty((0, 2), np.int64),
        "scalar": np.array(5, np.uint8),
    }
    assert weights.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(weights[name], array, strict=True)
        assert weights[name].flags.writeable


TWICE = (
    b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
)


@pytest.mark.parametrize(
    ("header", "body", "size"),
    [
        ({"a": entry("F32", [2], 0, 8)}, bytes(8), 10**4),
        ({"a": entry("F32", [2], 0, 8)}, bytes(8), 2**63),
        ({"a": entry("F32", [2], 0, 8)}, bytes(8), 2**64 - 1),
        ({"a": entry("F32", [2], 0, 8)}, bytes(8), 3),
        ({"a": entry("F32", [2], 0, 8)}, bytes(7), None),
        ({"a": entry("F32", [2], 0, 8)}, bytes(9), None),
        ({"a": entry("F32", [3], 0, 8)}, bytes(8), None),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12), None),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 12, 20)}, bytes(20), None),
        ({"a": entry("F32", [2], 8, 0)}, bytes(8), None),
        ({"a": entry("F32", [-2], 0, 8)}, bytes(8), None),
        ({"a": entry("F32", [2**62, 2**62], 0, 8)}, bytes(8), None),
        ({"a": entry("F32", [1] * 100, 0, 4)}, bytes(4), None),
        ({"a": entry("F32", [0, 2**62], 0, 0)}, b"", None),
        ({"a": entry("F32", [0, 2**64 - 1], 0, 0)}, b"", None),
        ({"a": entry("F99", [2], 0, 8)}, bytes(8), None),
        ({"a": entry("F8_E4M3", [8], 0, 8)}, bytes(8), None),
        ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), None),
        ({"a": 3}, b"", None),
        ({"__metadata__": {"x": 1}}, b"", None),
        (TWICE, bytes(8), None),
        (b"{\xff}", b"", None),
        (b'{"a"', b"", None),
        (b'{"a":' * 100_000, b"", None),
        (b"{" + b"[" * 100_000, b"", None),
        (b"[]", b"", None),
    ],
)
def test_safetensors_that_are_damaged(tmp_path, header, body, size):
    with little_memory():
        refused(write_safetensors(tmp_path / "w", header, body, size))


# --- files that are something else


@pytest.mark.parametrize("content", [b"", b"PK", b"hello, world", bytes(100), pickle.dumps([1])])
def test_other_content(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    refused(tmp_path / "w.pth", "neither")


def test_other_kinds_of_file(tmp_path):
    refused(tmp_path, "not a regular file")
    with pytest.raises(FileNotFoundError):
        load_weights(tmp_path / "missing")
    if os.name == "posix":
        os.mkfifo(tmp_path / "fifo")
        refused(tmp_path / "fifo", "not a regular file")
        refused("/dev/zero", "not a regular file")


# --- saving


def test_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    weights = {
        "transposed": rng.random((3, 4)).T,
        "strided": rng.random((6, 6), np.float32)[::-2, 1::2],
        "swapped": np.arange(3, dtype=">f4"),
        "scalar": np.array(3),
        "empty": np.zeros((0, 3), np.float32),
        "mask": np.array([True, False]),
        "ü\n": np.arange(4, dtype=np.uint16),
    }
    save_weights(tmp_path / "w", weights)
    found = load_weights(tmp_path / "w")
    assert found.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype.newbyteorder("=")
    save_weights(tmp_path / "w", {"half": np.array([0.5], np.float16)})
    np.testing.assert_array_equal(
        load_weights(tmp_path / "w")["half"], np.array([0.5], np.float32), strict=True
    )


@pytest.mark.parametrize(
    "weights",
    [
        {1: np.zeros(3)},
        {"x": [1.0, 2.0]},
        {"x": np.zeros(3, complex)},
        {"x": np.zeros(3, np.longdouble)},
        {"x": np.array(["text"])},
        {"x": np.array([None])},
        {"x": np.zeros(3, "M8[s]")},
    ],
)
def test_what_cannot_be_saved(tmp_path, weights):
    with pytest.raises(TypeError):
        save_weights(tmp_path / "w", weights)
    assert os.listdir(tmp_path) == []


def test_what_is_saved_can_be_read(tmp_path):
    """A header that would be refused is not written; the values of a run may be of any length."""
    save_weights(tmp_path / "w", {"x": FLOATS})
    with pytest.raises(ValueError, match="at most 4194304"):
        save_weights(tmp_path / "w", {"x" * (1 << 22): FLOATS})
    assert os.listdir(tmp_path) == ["w"]
    assert load_weights(tmp_path / "w").keys() == {"x"}
    history = {"history": list(range(1_000_000))}
    save_training(tmp_path / "w", {"net.x": FLOATS}, history)
    arrays, values = load_training(tmp_path / "w")
    assert values == history
    np.testing.assert_array_equal(arrays["net.x"], FLOATS, strict=True)


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch, name, error):
    save_weights(tmp_path / "w", {"x": FLOATS})

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(type(error)):
            save_weights(tmp_path / "w", {"x": FLOATS + 1})
    assert os.listdir(tmp_path) == ["w"]
    np.testing.assert_array_equal(load_weights(tmp_path / "w")["x"], FLOATS)


SAVE_AND = """
import os, resource, signal, sys
import numpy as np
from convkern.checkpoint import save_weights
what, path = sys.argv[1:]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if what == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
else:
    setattr(os, what, die)
try:
    save_weights(path, {"x": np.ones(100_000)})
except OSError:
    sys.exit(3)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals and limits")
@pytest.mark.parametrize(
    ("what", "code"), [("fsync", -signal.SIGKILL), ("replace", -signal.SIGKILL), ("full", 3)]
)
def test_a_kill_or_a_full_disk_leaves_the_old_file(tmp_path, what, code):
    save_weights(tmp_path / "w", {"x": FLOATS})
    done = subprocess.run([sys.executable, "-c", SAVE_AND, what, str(tmp_path / "w")])
    assert done.returncode == code
    np.testing.assert_array_equal(load_weights(tmp_path / "w")["x"], FLOATS)
    assert what != "full" or os.listdir(tmp_path) == ["w"]


def test_two_writers(tmp_path):
    def write(value):
        for _ in range(20):
            save_weights(tmp_path / "w", {"x": np.full(1000, value)})

    threads = [threading.Thread(target=write, args=(value,)) for value in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "w").exists():
            assert len(np.unique(load_weights(tmp_path / "w")["x"])) == 1
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["w"]


def test_where_it_is_saved(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_weights(tmp_path / "missing" / "w", {"x": FLOATS})
    with pytest.raises(FormatError, match="not a regular file"):
        save_weights(tmp_path, {"x": FLOATS})
    if os.name == "posix":
        os.symlink(tmp_path / "target", tmp_path / "link")
        save_weights(tmp_path / "link", {"x": FLOATS})
        assert (tmp_path / "link").is_symlink()
        assert load_weights(tmp_path / "target").keys() == {"x"}


def test_without_the_library(tmp_path, monkeypatch):
    save_weights(tmp_path / "w", {"x": FLOATS})
    write_zip(tmp_path / "z", SIMPLE, SIMPLE_STORAGES)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r'pip install "convkern\[app\]"'):
        load_weights(tmp_path / "w")
    with pytest.raises(ImportError, match=r'pip install "convkern\[app\]"'):
        save_weights(tmp_path / "w2", {"x": FLOATS})
    assert load_weights(tmp_path / "z").keys() == {"a", "n"}


def test_a_stream_is_not_a_path():
    with pytest.raises(TypeError):
        load_weights(io.BytesIO(b""))
