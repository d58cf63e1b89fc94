"""What is refused, with words that help, and what is accepted however it lies in memory."""

import copy
import math
import re
import sys

import numpy as np
import pytest

from convkern import _kernels, functional

from . import calls, draws  # noqa: F401 - calls registers the operators
from .memory import guarded
from .registry import OPERATORS

DRAWS = 3


def valid(name, seed):
    """Draw valid arguments of an operator, no array of which is empty."""
    for i in range(100):
        given, exact = OPERATORS[name].draw(np.random.default_rng([40, seed, i]))
        if all(v.size for v in given.values() if isinstance(v, np.ndarray)):
            return given, exact
    raise AssertionError(f"{name} has empty arrays only")


def shown(value):
    """Return the words of which a message shows one for a value that was given."""
    if not isinstance(value, np.ndarray):
        elements = list(value) if isinstance(value, (tuple, list)) else []
        plain = ", ".join(map(str, elements))
        return {repr(value), type(value).__name__, f"({plain})", *map(repr, elements)} - {"()"}
    words = {str(value.shape), str(value.dtype), f"{value.ndim}-D", str(value.strides)}
    words |= {str(value.size), *(f"kernel size {size}" for size in value.shape[-2:])}
    if isinstance(value, np.ma.MaskedArray):
        words = {"a masked array", "MaskedArray"}
    if not value.flags.writeable:
        words.add("a read-only array")
    if value.size and value.dtype == np.int64:
        words.add(str(value.reshape(-1)[-1]))
    return words


#: The window that does not fit is made of all these.
OF_THE_WINDOW = ("input", "weight", "kernel_size", "input_size", "dilation")


def check_message(message, fault, given):
    """Check that a message names the wrong argument and shows what it was.

    Where two do not fit each other, it may do so of the other and show the shape of this one.
    """
    if fault.says:
        assert re.search(fault.says, message), f"{message!r} does not match {fault.says!r}"
        return

    def told(name):
        named = rf"\b{name}\b" + "|the window" * (name in OF_THE_WINDOW)
        words = "|".join(map(re.escape, shown(given[name])))
        return re.search(rf"(?s)({named}).*\bgot .*({words})", message)

    wrong, *_ = fault.changes
    fits_not = str(getattr(given[wrong], "shape", message + "?")) in message
    assert told(wrong) or (fits_not and any(map(told, given))), (
        f"{message!r} names not {wrong} or shows none of {shown(given[wrong])}"
    )


def snapshot(given):
    """Return the arrays among some arguments as bytes."""
    arrays = {k: v for k, v in given.items() if isinstance(v, np.ndarray)}
    return {k: v.tobytes() for k, v in arrays.items() if not v.dtype.hasobject}


@pytest.mark.parametrize("name", OPERATORS)
def test_every_fault_is_refused(name):
    for label, fault in OPERATORS[name].faults.items():
        for seed in range(DRAWS):
            given = fault.spoil(valid(name, seed)[0])
            before = snapshot(given)
            with pytest.raises(fault.error) as caught:
                getattr(functional, name)(**given)
                pytest.fail(f"{label} is accepted")
            if fault.error is KeyError:  # the caller's own
                assert caught.value.args == ("mine",)
            else:
                check_message(str(caught.value), fault, given)
            assert snapshot(given) == before, label


def test_there_are_many_faults():
    """Of different kinds, and of the operators that most is done with."""
    labels = {label for operator in OPERATORS.values() for label in operator.faults}
    assert len(labels) >= 400
    assert sum(len(operator.faults) for operator in OPERATORS.values()) >= 2000
    assert all(len(OPERATORS[name].faults) >= 130 for name in ("conv2d", "conv2d_backward"))


def huge(*shape):
    """Return ones of a shape without the memory for them."""
    return np.broadcast_to(np.float32(1), shape)


ONE = huge(1, 1, 3, 3)
BEYOND = [
    ("conv2d", (huge(2**40, 1, 3, 3), ONE)),
    ("conv2d", (huge(2**40, 1, 3, 3), ONE, None, 1, 2**30)),
    ("conv2d", (huge(1, 1, 2**30, 2**30), ONE)),
    ("conv2d", (ONE, ONE, None, 1, 2**30)),
    ("conv2d", (ONE, ONE, None, 1, ((0, 2**31 - 1), (2**31 - 1, 0)))),
    ("conv2d", (ONE, huge(2**40, 1, 3, 3))),
    ("conv2d_backward", (huge(2**40, 1, 1, 1), huge(2**40, 1, 3, 3), ONE)),
    ("conv_transpose2d", (ONE, ONE, None, 2**30)),
    ("conv_transpose2d", (ONE, ONE, None, 1, 0, 0, 1, 2**30)),
    ("im2col", (huge(2**40, 1, 3, 3), 3)),
    ("im2col", (huge(1, 2**30, 2**15, 2**15), 2**8)),
    ("im2col", (ONE, 3, 1, 2**30)),
    ("col2im", (huge(1, 9, 1), 2**30, 3, 1, 0, 2**30)),
    ("max_pool2d", (huge(2**40, 1, 3, 3), 3)),
    ("max_pool2d", (huge(1, 1, 2**30, 2**30), 2)),
    ("max_pool2d_backward", (ONE, np.zeros((1, 1, 3, 3), np.int64), (1, 1, 2**30, 2**30))),
    ("max_unpool2d", (ONE, np.zeros((1, 1, 3, 3), np.int64), 2**30)),
    ("avg_pool2d", (huge(2**40, 1, 3, 3), 3)),
    ("avg_pool2d_backward", (ONE, (1, 1, 2**30, 2**30), 2**30, 2**29)),
    ("lp_pool2d", (huge(2**40, 1, 3, 3), 2, 3)),
    ("adaptive_avg_pool2d", (ONE, 2**30)),
    ("max_pool_channels", (huge(1, 2**30, 2**30, 1), 2)),
    ("linear", (huge(2**40, 8), huge(8, 8))),
    ("linear", (huge(8, 8), huge(2**40, 8))),
    ("batch_norm", (huge(2**40, 8), np.zeros(8, np.float32), np.ones(8, np.float32))),
    ("local_response_norm", (huge(2**40, 8, 1, 1), 3)),
    ("softmax", (huge(2**30, 2**30),)),
    ("cross_entropy", (huge(2**40, 8), huge(2**40, 8))),
    ("relu", (huge(2**60),)),
]


@pytest.fixture
def two_gibibytes():
    """Let the process have no more than so much further memory, where there are such limits."""
    resource = pytest.importorskip("resource", reason="this system has no limits")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as status:
        used = int(status.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
@pytest.mark.parametrize(("name", "arguments"), BEYOND)
def test_more_than_memory(two_gibibytes, name, arguments):
    """Products of sizes beyond memory, or beyond 64 bits, are found before anything is done."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((MemoryError, ValueError)) as caught:
        getattr(functional, name)(*arguments)
    assert str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_more_than_two_to_the_31_elements():
    """Images that share their memory, so that only their number is large."""
    image = np.arange(16 * 64 * 64, dtype=np.float32).reshape(1, 64, 64, 16).transpose(0, 3, 1, 2)
    x = np.broadcast_to(image, (2**15 + 1, *image.shape[1:]))
    assert x.size > 2**31
    weight = np.ones((1, 16, 1, 1), np.float32)
    pooled, indices = functional.max_pool2d(x, 64, return_indices=True)
    convolved = functional.conv2d(x, weight, None, 64)
    for one, all_of_them in (
        (image[:, :, -1:, -1:], pooled),
        (np.full((1, 16, 1, 1), 64 * 64 - 1), indices),
        (functional.conv2d(image, weight, None, 64), convolved),
    ):
        np.testing.assert_array_equal(all_of_them, np.broadcast_to(one, all_of_them.shape))


# Accepted however they lie in memory


def swapped(array):
    """Return the array in the byte order of other machines."""
    return array.astype(array.dtype.newbyteorder())


def odd_strides(array):
    """Return the array with strides that lead nowhere along axes of one element."""
    axes = zip(array.shape, array.strides, strict=True)
    strides = [stride if size > 1 else 12345 for size, stride in axes]
    return np.lib.stride_tricks.as_strided(array, array.shape, strides)


MEMORY = {
    kind: lambda rng, array, kind=kind: draws.random_layout(rng, array, kind)
    for kind in draws.LAYOUTS
} | {
    "swapped": lambda rng, array: swapped(array),
    "odd_strides": lambda rng, array: odd_strides(array),
    "page_end": lambda rng, array: guarded(np.ascontiguousarray(array), at_end=True),
    "page_start": lambda rng, array: guarded(np.ascontiguousarray(array), at_end=False),
    "page_end_of_pixels": lambda rng, array: pixels_at_page_end(array),
}


def pixels_at_page_end(array):
    """Return a channels-last array that ends where nobody may touch."""
    if array.ndim < 3:
        return guarded(np.ascontiguousarray(array), at_end=True)
    return np.moveaxis(guarded(np.ascontiguousarray(np.moveaxis(array, -3, -1)), True), -1, -3)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_layout_is_accepted(name):
    """The same numbers, whichever way the arrays of a call lie in memory."""
    rng = np.random.default_rng(0)
    for seed in range(2 * DRAWS):
        given, exact = valid(name, seed)
        given.pop("out", None)
        if "algorithm" in given:
            given["algorithm"] = "direct"
        if "running_mean" in given:
            # What is written to has to be plain.
            given["training"] = given["running_mean"] is None
        arrays = {k: np.array(v) for k, v in given.items() if isinstance(v, np.ndarray) and v.size}
        expected = results(name, given | arrays)
        for kind, laid in MEMORY.items():
            lying = {
                k: laid(rng, v) if v.ndim and (v.dtype.kind == "f" or kind != "swapped") else v
                for k, v in arrays.items()
            }
            for got, wanted in zip(results(name, given | lying), expected, strict=True):
                if exact:
                    np.testing.assert_array_equal(got, wanted, f"{kind}, seed {seed}")
                else:
                    scale = np.finfo(wanted.dtype).eps * 1e3 if wanted.dtype.kind == "f" else 0
                    np.testing.assert_allclose(got, wanted, scale, scale, err_msg=kind)


def results(name, given):
    """Return the results of an operator as arrays, without those that were not wanted."""
    with np.errstate(all="ignore"):
        result = getattr(functional, name)(**given)
    parts = result if isinstance(result, tuple) else (result,)
    return [np.asarray(part) for part in parts if part is not None]


@pytest.mark.parametrize("at_end", (False, True))
@pytest.mark.parametrize("name", OPERATORS)
def test_results_are_written_whole_and_nothing_beside_them(name, at_end, monkeypatch):
    """Their memory ends, or begins, where nobody may touch, and holds NaN or -1 before."""

    def empty(shape, dtype, channels_last=False):
        physical = [shape[i] for i in (0, 2, 3, 1)] if channels_last else shape
        unset = np.full(math.prod(physical) * dtype.itemsize, 0xFF, np.uint8).view(dtype)
        array = guarded(unset, at_end).reshape(physical) if unset.size else unset.reshape(physical)
        return array.transpose(0, 3, 1, 2) if channels_last else array

    for seed in range(2 * DRAWS):
        given, _ = valid(name, seed)
        given.pop("out", None)
        expected = results(name, copy.deepcopy(given))
        with monkeypatch.context() as patch:
            patch.setattr(_kernels, "empty", empty)
            got = results(name, given)
        for mine, usual in zip(got, expected, strict=True):
            np.testing.assert_array_equal(mine, usual, f"seed {seed}")


def test_indices_of_swapped_bytes_are_refused():
    x, indices = np.ones((1, 1, 1)), np.zeros((1, 1, 1), np.int64)
    with pytest.raises(TypeError, match=r"indices must be an int64 array, got [<>]i8"):
        functional.max_pool2d_backward(x, swapped(indices), (1, 2, 2))


def test_an_index_from_outside_its_window_counts():
    grad = np.ones((1, 1, 2, 2))
    indices = np.array([[[[15, 15], [0, 15]]]])
    expected = np.zeros((1, 1, 4, 4))
    expected[0, 0, 3, 3], expected[0, 0, 0, 0] = 3, 1
    got = functional.max_pool2d_backward(grad, indices, (1, 1, 4, 4))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_empty_batch_is_accepted(name):
    """No images give no results, of the right shapes."""
    found = 0
    for i in range(200):
        given, _ = OPERATORS[name].draw(np.random.default_rng([41, i]))
        images = given.get("input", given.get("grad_output"))
        if not isinstance(images, np.ndarray) or images.ndim < 2 or len(images):
            continue
        found += 1
        for result in results(name, given):
            assert np.isfinite(result).all() or name.startswith("cross_entropy")
    assert found or name in ("conv_output_size", "batch_norm")
