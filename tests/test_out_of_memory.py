"""Memory that runs out at any point of a call: a MemoryError, and nothing else has happened."""

from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

import convkern
from convkern import functional, nn
from convkern._kernels.core import fail_allocation

from .calls import state
from .registry import OPERATORS

#: More blocks than any call here asks for.
MOST = 1000


@contextmanager
def failing(n):
    """Refuse the n-th block of memory inside; the list that it yields is told whether that came."""
    came = []
    fail_allocation(n)
    try:
        yield came
    finally:
        came.append(fail_allocation(0) == 0)


def bits(arrays):
    """Return one array, or the arrays of a sequence, as bytes."""
    arrays = arrays if isinstance(arrays, (tuple, list)) else [arrays]
    return [np.asarray(array).tobytes() for array in arrays]


def sweep(call, kept=(), written=()):
    """Let each allocation of a call fail in turn; return how many there are.

    A failure must leave the arrays `kept` as they were; those `written` may then be anything.
    """
    before = [array.copy() for array in (*kept, *written)]
    expected = bits(call()), bits(kept), bits(written)
    for n in range(1, MOST):
        for array, old in zip((*kept, *written), before, strict=True):
            array[...] = old
        convkern.empty_cache()
        try:
            with failing(n) as came:
                result = call()
        except MemoryError as error:
            assert came == [True] and str(error), f"allocation {n}: {error}"
            same = bits(kept) == bits(before[: len(kept)])
            assert same, f"something was written before allocation {n} failed"
            result = call()
        assert (bits(result), bits(kept), bits(written)) == expected, f"allocation {n}"
        if came == [False]:
            return n - 1
    raise AssertionError(f"more than {MOST} allocations")


@pytest.mark.parametrize("name", OPERATORS)
def test_every_allocation_of_an_operator(name):
    """Inputs, `out` and running statistics are whole afterwards; the next call is right."""
    sites = 0
    for seed in range(4):
        given, _ = OPERATORS[name].draw(np.random.default_rng([30, seed]))
        arrays = [value for value in given.values() if isinstance(value, np.ndarray)]
        untouched = [a for a in arrays if a.flags.writeable] + list(state(name, given))
        sites += sweep(partial(getattr(functional, name), **given), untouched)
    # One makes numbers, the other mostly views.
    assert sites > 0 or name in ("conv_output_size", "flatten")


@pytest.mark.parametrize("algorithm", ("direct", "winograd", "auto"))
@pytest.mark.parametrize("convert", (np.ascontiguousarray, functional.to_channels_last))
def test_every_allocation_of_larger_calls(convert, algorithm):
    """Packed weights, copies of other layouts, Winograd's tiles and the scratch of threads."""
    rng = np.random.default_rng(5)
    x = convert(rng.standard_normal((2, 33, 24, 25), np.float32))
    w = rng.standard_normal((35, 33, 3, 3), np.float32)
    windows = [(w, {"padding": 1})]
    if algorithm != "winograd":
        windows += [
            (w, {"padding": 1, "stride": 2}),
            (w[:33, :11], {"groups": 3}),
            (w[:33, :1], {"padding": 1, "groups": 33}),
            (w[:, :, :1, :1], {}),
        ]
    with convkern.num_threads(2):
        for weight, window in windows:
            y = convkern.conv2d(x, weight, **window)
            convolve = partial(convkern.conv2d, x, weight, algorithm=algorithm, **window)
            go_back = partial(convkern.conv2d_backward, y, x, weight, algorithm=algorithm, **window)
            transpose = partial(convkern.conv_transpose2d, y, weight, **window)
            for call in (convolve, go_back, transpose):
                assert sweep(call, kept=[y])


def test_every_allocation_of_a_large_linear_map():
    rng = np.random.default_rng(6)
    matrix = rng.standard_normal((310, 900), np.float32)
    for rows in (1, 6, 70):
        x = rng.standard_normal((rows, 900), np.float32)
        grad = rng.standard_normal((rows, 310), np.float32)
        assert sweep(partial(convkern.linear, x, matrix), [x, matrix])
        assert sweep(partial(functional.linear_backward, grad, x, matrix), [x, matrix])


def test_every_allocation_of_a_convolution_into_an_array():
    """The weight is packed and all scratch taken before anything is written."""
    rng = np.random.default_rng(1)
    shapes = [(33, 40, 35, 3, 1, 1), (3, 64, 64, 11, 4, 1), (32, 20, 32, 3, 1, 32)]
    shapes += [(256, 7, 256, 3, 1, 1), (64, 20, 64, 1, 1, 1), (32, 20, 64, 3, 2, 2)]
    for channels, size, filters, kernel, stride, groups in shapes:
        x = rng.standard_normal((3, channels, size, size), np.float32)
        w = rng.standard_normal((filters, channels // groups, kernel, kernel), np.float32)
        packed = functional.PackedConv2d(w, None, stride, 1, 1, groups)
        for convert in (np.ascontiguousarray, functional.to_channels_last):
            images = convert(x)
            out = np.full_like(packed(images), np.nan)
            assert sweep(partial(packed, images, out=out), kept=[images, out])
            convolve = partial(convkern.conv2d, images, w, None, stride, 1, 1, groups, out=out)
            assert sweep(convolve, kept=[images, w, out])


def test_every_allocation_of_a_convolution_in_several_parts():
    """Memory may then run out after a part was written; another call is right all the same."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((24, 3, 112, 112), np.float32)
    w = rng.standard_normal((64, 3, 11, 11), np.float32)
    out = np.empty((24, 64, 27, 27), np.float32)
    with convkern.num_threads(2):
        assert sweep(lambda: convkern.conv2d(x, w, None, 4, 2, out=out), [x, w], [out])


def test_a_plan_survives():
    rng = np.random.default_rng(3)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, rng=rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Residual(nn.Conv2d(16, 16, 3, padding=1, rng=rng)), nn.Flatten(),
        nn.Linear(16 * 64, 10, rng=rng),
    )  # fmt: skip
    x = rng.standard_normal((4, 3, 16, 16), np.float32)
    plan = convkern.freeze(net)
    assert sweep(lambda: plan(x), [x])  # its weights are packed
    assert sweep(lambda: convkern.freeze(net)(x), [x])


OPTIMIZERS = [
    lambda parameters: nn.SGD(parameters, lr=0.1, momentum=0.9),
    lambda parameters: nn.Adam(parameters, lr=0.1),
    lambda parameters: nn.AdamW(parameters, lr=0.1, amsgrad=True),
]


@pytest.mark.parametrize("steps", (0, 1))
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_step_is_made_whole_or_not_at_all(make, steps):
    """Neither data nor state, of which the number of steps is part, run ahead of the other."""
    rng = np.random.default_rng(4)
    values, gradient = rng.standard_normal((2, 30, 20))
    layouts = (np.ascontiguousarray, np.asfortranarray, lambda a: a[::-1])

    def snapshot(parameters, optimizer):
        saved = optimizer.state_dict()
        return bits([p.data for p in parameters]), {
            k: np.array(v).tobytes() for k, v in saved.items()
        }

    def run(n):
        """Make steps, the last of them with a failure; return what is left, and if that came."""
        parameters = [nn.Parameter(layout(values.copy())) for layout in layouts]
        optimizer = make(parameters)
        for step in range(steps + 1):
            optimizer.zero_grad()
            for parameter in parameters:
                parameter.add_grad(gradient)
            if step < steps:
                optimizer.step()
        before = snapshot(parameters, optimizer)
        try:
            with failing(n) as came:
                optimizer.step()
        except MemoryError:
            assert snapshot(parameters, optimizer) == before, f"allocation {n}"
            optimizer.step()
        return snapshot(parameters, optimizer), came[0]

    expected, _ = run(MOST)
    for n in range(1, MOST):
        left, came = run(n)
        assert left == expected, f"allocation {n}"
        if not came:
            break
    assert n > 1
