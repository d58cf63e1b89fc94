"""Winograd's convolution: its generator, its errors, and what must not change its bits."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import convkern
from convkern import conv2d, conv2d_backward, num_threads, reference, set_float32_precision, shapes
from convkern.functional import PackedConv2d, algorithm, to_channels_last

from .draws import cases
from .memory import guarded

ROOT = Path(__file__).parents[1]
TRANSFORMS = ROOT / "convkern" / "_kernels" / "csrc" / "winograd_transforms.inc"
#: Largest error against float64, as a ratio of Euclidean norms, that "high" allows.
HIGH = 5e-6
CHOICES = [(table, dict(table["high"])) for table in (algorithm.TILES, algorithm.GRADIENT_TILES)]


def generator():
    path = ROOT / "tools" / "winograd.py"
    spec = importlib.util.spec_from_file_location("winograd_generator", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def error(y, exact):
    """Return the error as a ratio of Euclidean norms."""
    return np.linalg.norm(y - exact) / max(np.linalg.norm(exact), 1e-30)


def wide(*arrays):
    return tuple(a.astype(np.float64) for a in arrays)


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def test_transforms_are_what_the_generator_writes():
    assert TRANSFORMS.read_text() == generator().source()


def test_generator_notices_a_wrong_point():
    module = generator()
    module.powers = lambda n, length, right=module.powers: [
        [value + (i == 1) for value in row] for i, row in enumerate(right(n, length))
    ]
    with pytest.raises(AssertionError):
        module.check(2, 3)
    with pytest.raises(AssertionError):
        module.check_strided(2)
    with pytest.raises(AssertionError):
        module.by_values(6, 4)


def test_generator_notices_a_wrong_factor():
    module = generator()
    assert module.by_factors(7)
    module.through = lambda points, right=module.through: right(
        [point * (1 if len(points) > 3 else 2) for point in points]
    )
    with pytest.raises(AssertionError):
        module.by_factors(7)


def only(monkeypatch, outputs):
    """Let Winograd's tiles of so many outputs alone be chosen."""
    for table, choices in CHOICES:
        tiles = {taps: (outputs,) for taps, accepted in choices.items() if outputs in accepted}
        monkeypatch.setitem(table, "high", tiles)


@pytest.mark.parametrize("outputs", (2, 3, 4, 5))
def test_random_shapes(monkeypatch, outputs):
    only(monkeypatch, outputs)
    rng = np.random.default_rng(outputs)
    for index in range(cases(24)):
        taps = int(rng.choice(list(algorithm.TILES["high"])))
        gradient = taps in algorithm.GRADIENT_TILES["high"]
        groups = int(rng.choice([1, 1, 2, 3]))
        N, C, OC = (int(rng.integers(1, most)) for most in (5, 40, 80))
        H, W = (int(n) for n in rng.integers(taps, 20, 2))
        padding = tuple(map(tuple, rng.integers(0, taps + 1, (2, 2)).tolist()))
        if index % 8 == 0:
            C, groups = 300, 1  # more than one chunk
        x, w = normal(rng, N, C * groups, H, W), normal(rng, OC * groups, C, taps, taps)
        b = normal(rng, OC * groups)
        where = {"stride": 1, "padding": padding, "dilation": 1, "groups": groups}
        exact = reference.conv2d(*wide(x, w, b), **where, activation="relu")
        g = normal(rng, *exact.shape)
        exact_gradients = reference.conv2d_backward(*wide(g, x, w), **where)
        for convert in (np.ascontiguousarray, to_channels_last):
            note = f"{x.shape} {w.shape} {where} {convert.__name__}"
            given = dict(where, algorithm="winograd")
            y = conv2d(convert(x), w, b, **given, activation="relu")
            assert y.dtype == np.float32 and error(y, exact) < HIGH, note
            mask = (True, gradient, True)
            got = conv2d_backward(convert(g), convert(x), w, **given, output_mask=mask)
            for mine, true in zip(got, exact_gradients, strict=True):
                assert mine is None or error(mine, true) < HIGH, note
            assert (y.strides == convert(y).strides) and got[0].strides == convert(got[0]).strides


@pytest.mark.parametrize("convert", (np.ascontiguousarray, to_channels_last))
def test_windows_of_stride_2(convert):
    rng = np.random.default_rng(9)
    for index in range(cases(24)):
        groups = int(rng.choice([1, 1, 2, 3]))
        N, C, OC = (int(rng.integers(1, most)) for most in (5, 40, 80))
        H, W = (int(n) for n in rng.integers(3, 20, 2))
        padding = tuple(map(tuple, rng.integers(0, 4, (2, 2)).tolist()))
        if index % 8 == 0:
            C, groups = 300, 1  # more than one chunk
        x, w = normal(rng, N, C * groups, H, W), normal(rng, OC * groups, C, 3, 3)
        b = normal(rng, OC * groups)
        where = {"stride": 2, "padding": padding, "groups": groups, "activation": "relu"}
        exact = reference.conv2d(*wide(x, w, b), **where)
        for level in ("high", "highest"):
            with set_float32_precision(level):
                y = conv2d(convert(x), w, b, **where, algorithm="winograd")
                packed = PackedConv2d(w, b, **where, algorithm="winograd")(convert(x))
            assert error(y, exact) < 8e-7, f"{x.shape} {w.shape} {where}"
            assert y.strides == convert(y).strides and y.tobytes() == packed.tobytes()


@pytest.mark.parametrize("outputs", (2, 5))
def test_rows_of_many_tiles(monkeypatch, outputs):
    """A row of tiles of planes is cut into pieces if it is very long."""
    only(monkeypatch, outputs)
    rng = np.random.default_rng(8)
    x, w = normal(rng, 2, 3, 7, 300 * outputs - 1), normal(rng, 5, 3, 3, 3)
    exact = reference.conv2d(*wide(x, w), padding=1)
    for threads in (1, 3):
        with num_threads(threads):
            assert error(conv2d(x, w, padding=1, algorithm="winograd"), exact) < HIGH
    exact = exact[:, :, ::2, ::2]
    for threads in (1, 3):
        with num_threads(threads):
            y = conv2d(x, w, stride=2, padding=1, algorithm="winograd")
        assert error(y, exact) < HIGH


@pytest.mark.parametrize("convert", (np.ascontiguousarray, to_channels_last))
def test_strided_windows_by_blocks_of_pixels(monkeypatch, convert):
    """Forward and back, and wherever it can be done, however little it is worth."""
    monkeypatch.setattr(algorithm, "_cheapest", lambda problem, instead, tiles, *_: tiles[-1])
    monkeypatch.setattr(algorithm, "PHASES_GRADIENT", 0.0)
    rng = np.random.default_rng(7)
    for kernel, stride, C in ((11, 4, 3), (9, 4, 1), (17, 4, 4), (5, 2, 7), (10, 2, 3), (8, 3, 2)):
        for padding in (0, 1, ((3, 0), (2, 5)), 6):
            x, w = normal(rng, 2, C, 25, 38), normal(rng, 19, C, kernel, kernel)
            b, where = normal(rng, 19), {"stride": stride, "padding": padding}
            exact = reference.conv2d(*wide(x, w, b), **where)
            note = f"{x.shape} {w.shape} {where}"
            assert error(conv2d(convert(x), w, b, **where), exact) < HIGH, note
            g = normal(rng, *exact.shape)
            exact_gradients = reference.conv2d_backward(*wide(g, x, w), **where)
            got = conv2d_backward(convert(g), convert(x), w, **where)
            for mine, true in zip(got, exact_gradients, strict=True):
                assert error(mine, true) < HIGH, note


def test_rows_of_planes_through_strips_to_blocks():
    """The gradient of the input from planes to blocks of pixels, of many tiles."""
    rng = np.random.default_rng(6)
    g, w = normal(rng, 2, 40, 75, 101), normal(rng, 40, 3, 7, 7)
    x = np.zeros((2, 3, 150, 202), np.float32)
    (exact, _, _) = reference.conv2d_backward(*wide(g, x, w), stride=2, padding=3)
    for threads in (1, 3):
        with num_threads(threads):
            for given in (g, guarded(g, True)):
                mask = (True, False, False)
                found = conv2d_backward(given, x, w, stride=2, padding=3, output_mask=mask)[0]
                assert 1e-7 < error(found, exact) < HIGH


@pytest.mark.parametrize("level", ("high", "highest"))
def test_errors_over_the_shape_list(level):
    """Forward and both gradients; the channels are what the error depends on, the image is cut."""
    rng = np.random.default_rng(0)
    bound = HIGH if level == "high" else 8e-7
    seen = set()
    for shape in shapes.CONV_SHAPES:
        size = min(shape.H, 15), min(shape.W, 15)
        key = (*shape.weight_shape, shape.stride, shape.groups, *size)
        if max(shape.KH, shape.KW) > min(size) or key in seen or shape.KH == 1:
            continue
        seen.add(key)
        C, OC = min(shape.C, 160), min(shape.OC, 48)
        if shape.groups > 1:
            continue
        x, w = normal(rng, 2, C, *size), normal(rng, OC, C, shape.KH, shape.KW)
        exact = reference.conv2d(*wide(x, w), **shape.arguments)
        g = normal(rng, *exact.shape)
        exact_gradients = reference.conv2d_backward(*wide(g, x, w), **shape.arguments)
        with set_float32_precision(level):
            assert error(conv2d(x, w, **shape.arguments), exact) < bound, shape.label
            for mine, true in zip(
                conv2d_backward(g, x, w, **shape.arguments), exact_gradients, strict=True
            ):
                assert error(mine, true) < bound, shape.label


def test_highest_is_no_worse_than_twice_torch(torch):
    rng = np.random.default_rng(3)
    for C in (64, 192, 384):
        x, w = normal(rng, 2, C, 13, 13), normal(rng, 64, C, 3, 3)
        for stride in (1, 2):
            where = {"stride": stride, "padding": 1}
            exact = reference.conv2d(*wide(x, w), **where)
            theirs = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w), **where)
            with set_float32_precision("highest"):
                mine = conv2d(x, w, **where, algorithm="winograd")
            assert error(mine, exact) < 2 * error(theirs.numpy(), exact)


@pytest.mark.parametrize("convert", (np.ascontiguousarray, to_channels_last))
def test_same_bits_for_every_thread_count(monkeypatch, convert):
    rng = np.random.default_rng(4)
    for outputs, taps, shape in (
        (2, 3, (1, 70, 20, 21)),
        (4, 3, (9, 33, 30, 31)),
        (3, 5, (2, 40, 25, 9)),
    ):
        only(monkeypatch, outputs)
        x, w = convert(normal(rng, *shape)), normal(rng, 70, shape[1], taps, taps)
        g = convert(normal(rng, shape[0], 70, *shape[2:]))
        first = None
        for threads in (1, 2, 3, 4, 7):
            with num_threads(threads):
                given = {"padding": taps // 2, "algorithm": "winograd"}
                results = conv2d(x, w, **given), *conv2d_backward(g, x, w, **given)
                if taps == 3:
                    results = *results, conv2d(x, w, stride=2, **given)
            first = first or results
            for one, other in zip(first, results, strict=True):
                assert one.tobytes() == other.tobytes(), f"{threads} threads, {outputs} outputs"


def test_highest_gives_a_batch_the_bits_of_its_images():
    rng = np.random.default_rng(5)
    x, w = normal(rng, 6, 64, 14, 15), normal(rng, 64, 64, 3, 3)
    with set_float32_precision("highest"):
        packed = PackedConv2d(w, padding=1)
        y, dx = conv2d(x, w, padding=1), conv2d_backward(x, x, w, padding=1)[0]
        assert algorithm.winograd_outputs(
            algorithm.Problem(w.dtype, 6, 64, 64, 1, (3, 3), (1, 1), (1, 1), (14, 15)),
            "auto",
            "highest",
        ), "directly computed: nothing is tested"
        for n in range(6):
            one = x[n : n + 1]
            assert conv2d(one, w, padding=1).tobytes() == y[n : n + 1].tobytes()
            assert packed(one).tobytes() == y[n : n + 1].tobytes()
            alone = conv2d_backward(one, one, w, padding=1)[0]
            assert alone.tobytes() == dx[n : n + 1].tobytes()
        steps = {"stride": 2, "padding": 1}
        y, packed = conv2d(x, w, **steps), PackedConv2d(w, **steps)
        for n in range(6):
            one = x[n : n + 1]
            assert conv2d(one, w, **steps).tobytes() == y[n : n + 1].tobytes()
            assert packed(one).tobytes() == y[n : n + 1].tobytes()


def test_what_it_refuses():
    x, w = np.ones((1, 2, 8, 8), np.float32), np.ones((2, 2, 3, 3), np.float32)
    for wrong in (
        {"weight": w, "stride": 3},
        {"weight": w, "stride": (1, 2)},
        {"weight": w, "dilation": 2},
        {"weight": w, "stride": 2, "dilation": 2},
        {"weight": np.ones((2, 2, 5, 5), np.float32), "stride": 2},
        {"weight": np.ones((2, 2, 6, 6), np.float32)},
        {"weight": np.ones((2, 2, 3, 5), np.float32)},
    ):
        with pytest.raises(ValueError, match="winograd"):
            conv2d(x, **wrong, algorithm="winograd")
    with pytest.raises(ValueError, match="winograd"):
        conv2d_backward(x[:, :, ::2, ::2], x, w, 2, 1, algorithm="winograd")
    with pytest.raises(ValueError, match="float64"):
        conv2d(x.astype(float), w.astype(float), algorithm="winograd")
    with set_float32_precision("highest"), pytest.raises(ValueError, match="highest"):
        conv2d(x, np.ones((2, 2, 5, 5), np.float32), algorithm="winograd")


def test_precision_level_is_restored_and_checked():
    assert convkern.get_float32_precision() == "high"
    with pytest.raises(ZeroDivisionError), set_float32_precision("highest"):
        assert convkern.get_float32_precision() == "highest"
        raise ZeroDivisionError
    assert convkern.get_float32_precision() == "high"
    set_float32_precision("highest")
    assert convkern.get_float32_precision() == "highest"
    set_float32_precision("high")
    for wrong in ("medium", "HIGH", None, 1, ["high"]):
        with pytest.raises(ValueError, match="'highest' or 'high'"):
            set_float32_precision(wrong)


def test_reads_nothing_outside_its_arrays():
    """Inputs and weights end at an unmapped page, or begin after one."""
    rng = np.random.default_rng(6)
    for at_end in (False, True):
        for taps, C, OC in ((3, 5, 20), (5, 16, 33), (3, 33, 7)):
            x, g, w = (
                guarded(normal(rng, *shape), at_end)
                for shape in ((2, 9, 10, C), (2, 9, 10, OC), (OC, C, taps, taps))
            )
            images, grads = x.transpose(0, 3, 1, 2), g.transpose(0, 3, 1, 2)
            given = {"padding": taps // 2, "algorithm": "winograd"}
            y = conv2d(images, w, **given)
            assert error(y, reference.conv2d(*wide(images, w), padding=taps // 2)) < HIGH
            conv2d_backward(grads, images, w, **given)
