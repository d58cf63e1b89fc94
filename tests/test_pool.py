"""Pooling other than the maximum itself: bit for bit where sums are exact, gradients, errors."""

import numpy as np
import pytest

from convkern import functional, num_threads, reference
from convkern.arrays import to_channels_last
from convkern.functional.max_pool import max_pool2d_gradient, max_windows

from .draws import cases
from .test_exact import DTYPES, integers, random_layout, random_size

SHAPES = cases(3000)


def any_layout(rng, x):
    """Return an equal array, 3-D or 4-D, in one of the two layouts."""
    return random_layout(rng, x) if x.ndim == 4 else random_layout(rng, x[None])[0]


def random_pooling(rng):
    """Return kernel, stride, padding for a pooling, and an image size that fits."""
    kernel = tuple(int(k) for k in rng.integers(1, 5, 2))
    stride = tuple(int(s) for s in rng.integers(1, 5, 2))
    pads = tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel)
    size = tuple(max(k, random_size(rng, 20)) for k in kernel)
    return (kernel, stride, pads), size


# Image size, kernel, stride, padding, dilation: the ways in which the rows of a plane are split.
SPLITS = [
    ((55, 55), 3, 2, 0, 1),  # all rows of a block as one, in pairs
    ((27, 13), 2, 2, 0, 1),
    ((13, 27), (3, 2), (2, 3), 0, 1),  # rows begin in any phase: row by row
    ((20, 40), 3, (3, 4), 0, 2),  # as one, in four phases, taps of which some are unused
    ((9, 36), (2, 3), 1, 0, (1, 9)),
    ((30, 33), 3, 2, 1, 1),  # pairs with edges
    ((30, 34), 4, 1, 2, 1),
    ((23, 21), 2, 5, 1, 1),  # a step larger than the window
    ((300, 130), 3, 2, 0, 1),  # several blocks of rows
    ((300, 130), 3, 2, (1, 0), 1),
    ((7, 3), 1, 2, 0, 1),
]


@pytest.mark.parametrize("ceil_mode", (False, True))
@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_max_pool2d_of_nan_inf_and_zeros(dtype, channels_last, ceil_mode):
    for seed, (size, *window) in enumerate(SPLITS):
        rng = np.random.default_rng(seed)
        values = np.array([-np.inf, -1, -0.0, 0.0, 1, np.inf, np.nan], dtype)
        for nans in (0, 0.001, 0.2):
            share = np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0]) * (1 - nans) + nans * np.eye(7)[6]
            x = rng.choice(values, (2, 35 if max(size) < 100 else 3, *size), p=share)
            x = functional.to_channels_last(x) if channels_last else x
            options = {"ceil_mode": ceil_mode, "return_indices": True}
            got, where = functional.max_pool2d(x, *window, **options)
            expected, position = reference.max_pool2d(x, *window, **options)
            np.testing.assert_array_equal(where, position, f"{size} {window}")
            np.testing.assert_array_equal(got, expected, f"{size} {window}")
            np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))
            alone = functional.max_pool2d(x, *window, ceil_mode=ceil_mode)
            assert alone.tobytes() == got.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_max_pool2d_backward(dtype):
    for seed in range(SHAPES):
        rng = np.random.default_rng(seed)
        window, size = random_pooling(rng)
        shape = (int(rng.integers(0, 3)), random_size(rng, 70), *size)
        x = random_layout(rng, integers(rng, shape, dtype, 3))
        _, indices = functional.max_pool2d(x, *window, return_indices=True)
        grad = random_layout(rng, integers(rng, indices.shape, dtype))
        got = functional.max_pool2d_backward(grad, indices, shape)
        np.testing.assert_array_equal(got, reference.max_pool2d_backward(grad, indices, shape))
        unpooled = functional.max_unpool2d(grad, indices, *window, output_size=size)
        if np.prod(window[1]) >= np.prod(window[0]) and not any(window[2]):
            expected = reference.max_unpool2d(grad, indices, *window, output_size=size)
            np.testing.assert_array_equal(unpooled, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_avg_pool2d(dtype):
    for seed in range(SHAPES):
        rng = np.random.default_rng(seed)
        window, size = random_pooling(rng)
        options = {
            "ceil_mode": bool(rng.integers(2)),
            "count_include_pad": bool(rng.integers(2)),
            "divisor_override": [None, 4, -2][int(rng.integers(3))],
        }
        shape = (2, random_size(rng, 40), *size)
        x = random_layout(rng, integers(rng, shape, dtype))
        expected = reference.avg_pool2d(x, *window, **options).astype(dtype)
        got = functional.avg_pool2d(x, *window, **options)
        np.testing.assert_array_equal(got, expected, f"seed {seed}")
        # Gradients that the divisors, up to 16, divide exactly.
        grad = random_layout(rng, 720720 * integers(rng, got.shape, np.float64)).astype(dtype)
        expected = reference.avg_pool2d_backward(grad, shape, *window, **options)
        got = functional.avg_pool2d_backward(grad, shape, *window, **options)
        exact = dtype == np.float64
        np.testing.assert_allclose(got, expected, rtol=0 if exact else 1e-5, atol=0 if exact else 9)


def test_torch_agrees_on_gradients(torch):
    from torch.nn import functional as F  # noqa: N812

    for seed in range(cases(300)):
        rng = np.random.default_rng(seed)
        shape = (2, 3, *(int(v) for v in rng.integers(4, 12, 2)))
        x = torch.tensor(rng.standard_normal(shape), requires_grad=True)
        kernel, stride, ceil_mode = int(rng.integers(1, 4)), int(rng.integers(1, 4)), bool(seed % 2)
        size = tuple(int(v) for v in rng.integers(1, 9, 2))
        y = F.adaptive_avg_pool2d(x, size)
        np.testing.assert_allclose(
            functional.adaptive_avg_pool2d(x.detach().numpy(), size), y.detach(), atol=1e-12
        )
        grad = rng.standard_normal(y.shape)
        (expected,) = torch.autograd.grad(y, x, torch.tensor(grad))
        got = functional.adaptive_avg_pool2d_backward(grad, shape)
        np.testing.assert_allclose(got, expected, atol=1e-12)
        for norm in (1, 2, 3, 2.5):
            positive = x.abs() if norm % 2 else x
            y = F.lp_pool2d(positive, norm, kernel, stride, ceil_mode)
            base = positive.detach().numpy()
            output = functional.lp_pool2d(base, norm, kernel, stride, ceil_mode)
            np.testing.assert_allclose(output, y.detach(), rtol=1e-10)
            leaf = torch.tensor(base, requires_grad=True)
            y = F.lp_pool2d(leaf, norm, kernel, stride, ceil_mode)
            grad = rng.standard_normal(y.shape)
            (expected,) = torch.autograd.grad(y, leaf, torch.tensor(grad))
            got = functional.lp_pool2d_backward(grad, base, output, norm, kernel, stride, ceil_mode)
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_channels(dtype):
    for seed in range(cases(300)):
        rng = np.random.default_rng(seed)
        lead = [(2,), (), (0,)][seed % 3 if seed < 9 else seed % 2]
        shape = (*lead, random_size(rng, 40) + 2, *(int(n) for n in rng.integers(1, 7, 2)))
        x = any_layout(rng, integers(rng, shape, dtype, 3))
        window = int(rng.integers(1, 4)), [None, 1, 2, 5][int(rng.integers(4))]
        got = functional.max_pool_channels(x, *window)
        np.testing.assert_array_equal(got, reference.max_pool_channels(x, *window))
        assert got.dtype == dtype
        grad = any_layout(rng, integers(rng, got.shape, dtype))
        expected = reference.max_pool_channels_backward(grad, x, *window)
        np.testing.assert_array_equal(
            functional.max_pool_channels_backward(grad, x, *window), expected
        )
        x, grad = (6 * v for v in (x, grad))  # divisible by every window
        got = functional.avg_pool_channels(x, *window)
        np.testing.assert_array_equal(got, reference.avg_pool_channels(x, *window).astype(dtype))
        got = functional.avg_pool_channels_backward(grad, shape, *window)
        np.testing.assert_array_equal(
            got, reference.avg_pool_channels_backward(grad, shape, *window)
        )
        assert got.dtype == dtype


def test_channels_keep_the_layout_and_nan():
    x = np.zeros((2, 6, 3, 4), np.float32)
    x[:, 1], x[:, 2] = np.nan, 1
    for images in (x, functional.to_channels_last(x)):
        y = functional.max_pool_channels(images, 3)
        assert y.strides == np.empty_like(images[:, :2], subok=False).strides
        assert np.isnan(y[:, 0]).all() and not y[:, 1].any()
        grad = functional.max_pool_channels_backward(np.ones_like(y), images, 3)
        assert grad.strides == images.strides
        np.testing.assert_array_equal(grad[0, :, 0, 0], [0, 1, 0, 1, 0, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_adaptive_avg_pool2d(dtype):
    for seed in range(cases(300)):
        rng = np.random.default_rng(seed)
        size = tuple(random_size(rng, 40) for _ in range(2))
        parts = tuple(1 if seed % 8 == 0 else int(rng.integers(1, n + 4)) for n in size)
        shape = (2, random_size(rng, 70), *size)
        x = any_layout(rng, integers(rng, shape, dtype))
        got = functional.adaptive_avg_pool2d(x, parts)
        np.testing.assert_allclose(got, reference.adaptive_avg_pool2d(x, parts), 1e-6, 1e-6)
        grad = any_layout(rng, integers(rng, got.shape, dtype))
        got = functional.adaptive_avg_pool2d_backward(grad, shape)
        expected = reference.adaptive_avg_pool2d_backward(grad, shape)
        np.testing.assert_allclose(got, expected, 1e-5, 1e-4)
        assert got.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_max_unpool2d(dtype):
    """Any indices, also equal ones and in any order, which no pooling gives."""
    for seed in range(cases(300)):
        rng = np.random.default_rng(seed)
        shape = (*[(3,), ()][seed % 2], random_size(rng, 70), 5, random_size(rng, 9))
        size = 2 * shape[-2], 2 * shape[-1]
        x = any_layout(rng, integers(rng, shape, dtype))
        indices = any_layout(rng, rng.integers(0, size[0] * size[1], shape).astype(float))
        indices = indices.astype(np.int64)
        got = functional.max_unpool2d(x, indices, 2)
        np.testing.assert_array_equal(got, reference.max_unpool2d(x, indices, 2))
        grad = any_layout(rng, integers(rng, got.shape, dtype))
        np.testing.assert_array_equal(
            functional.max_unpool2d_backward(grad, indices),
            reference.max_unpool2d_backward(grad, indices),
        )
        added = functional.max_pool2d_backward(x, indices, got.shape)
        np.testing.assert_array_equal(added, reference.max_pool2d_backward(x, indices, got.shape))


def test_numpy_integers_do_not_promote():
    """A NumPy integer is no Python one: with it NEP 50 makes float64 of float32."""
    x = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 4, 4, 4)
    for integer in (np.int64, np.int32, np.uint8):
        two, one = integer(2), integer(1)
        results = [
            functional.avg_pool2d(x, two, one, one, divisor_override=integer(3)),
            functional.avg_pool2d(x, (two, two)),
            functional.avg_pool2d_backward(x, (1, 4, two * 2, 8), (1, two), divisor_override=two),
            functional.adaptive_avg_pool2d(x, two),
            functional.adaptive_avg_pool2d_backward(x, (1, 4, integer(8), 8)),
            functional.max_pool2d(x, two, one, one, one),
            functional.lp_pool2d(x, two, two, one),
            functional.lp_pool2d(x, np.float64(2.5), two),
            functional.max_pool_channels(x, two, one),
            functional.avg_pool_channels(x, two, one),
            functional.avg_pool_channels_backward(x, (1, integer(8), 4, 4), two),
        ]
        y = functional.lp_pool2d(x, two, two, two)
        results.append(functional.lp_pool2d_backward(y, x, y, two, two))
        assert {result.dtype for result in results} == {np.dtype(np.float32)}
    expected = functional.avg_pool2d(x, 2, 1, 1, divisor_override=3)
    np.testing.assert_array_equal(
        functional.avg_pool2d(x, 2, 1, 1, divisor_override=np.uint8(3)), expected
    )


def test_same_bits_for_every_thread_count():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 70, 40, 40)).astype(np.float32)
    _, indices = functional.max_pool2d(x, 3, 1, 1, return_indices=True)
    pixels = to_channels_last(x)
    maxima, places = functional.max_pool2d(pixels, 2, return_indices=True)
    windows = max_windows(x.shape, (2, 2, 0, 1), False)
    results = []
    for threads in (1, 2, 3, 4, 7):
        with num_threads(threads):
            results.append(
                functional.max_pool2d_backward(x, indices, x.shape).tobytes()
                + functional.max_unpool2d(x, indices, 3, 1, 1).tobytes()
                + functional.max_unpool2d_backward(x, indices).tobytes()
                + functional.adaptive_avg_pool2d(x, (7, 6)).tobytes()
                + functional.adaptive_avg_pool2d_backward(x, (4, 70, 50, 60)).tobytes()
                + functional.max_pool_channels_backward(x[:, 1:], x, 2, 1).tobytes()
                + functional.avg_pool_channels(x, 3, 1).tobytes()
                + functional.avg_pool2d(x, 3, 2, 1).tobytes()
                + functional.avg_pool2d_backward(x, x.shape, 3, 1, 1).tobytes()
                + max_pool2d_gradient(maxima, places, x.shape, windows, maxima).tobytes()
            )
    assert len(set(results)) == 1


X = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)
G, I = functional.max_pool2d(X, 2, return_indices=True)  # noqa: E741
BAD = [
    ("max_pool2d_backward", (G, I.astype(float), X.shape), TypeError, "indices must be an int64"),
    ("max_pool2d_backward", (G, I.astype(np.int32), X.shape), TypeError, "int64 array, got int32"),
    ("max_pool2d_backward", (G, I - 6, X.shape), ValueError, "from 0 to 15, got -1"),
    ("max_pool2d_backward", (G, I + 1, X.shape), ValueError, "from 0 to 15, got 16"),
    ("max_pool2d_backward", (G, I + 2**32, X.shape), ValueError, "got 4294967301"),
    ("max_pool2d_backward", (G[:, :1], I, X.shape), ValueError, "input_shape must be"),
    ("max_pool2d_backward", (G, I[..., :1], X.shape), ValueError, "indices must have shape"),
    ("max_pool2d_backward", (G, I, X.shape[1:]), ValueError, "input_shape must be"),
    ("max_pool2d_backward", (G, I, 4), TypeError, "input_shape must be a sequence"),
    ("max_unpool2d_backward", (X, I - 6), ValueError, "from 0 to 15, got -1"),
    ("max_unpool2d_backward", (X, I[:, :1]), ValueError, "indices must have shape"),
    ("max_unpool2d_backward", (X, 3), TypeError, "indices must be an int64 array, got int"),
    ("max_pool_channels_backward", (X, X, 2), ValueError, "must have the output's shape"),
    ("avg_pool_channels_backward", (X, (2, 4, 4), 2), ValueError, "input_shape must be 4-D"),
    ("avg_pool_channels_backward", (X, (1, 6, 4, 4), 2), ValueError, "have the output's shape"),
    ("max_unpool2d", (G, I, 2, 2, 0, (9, 9)), ValueError, "output_size must be less"),
    ("max_unpool2d", (G, I, 0), ValueError, "kernel_size must be at least 1"),
    ("avg_pool2d", (X, 2, 2, 2), ValueError, "at most half the window"),
    ("avg_pool2d", (X, 5), ValueError, "larger than the padded input"),
    ("avg_pool2d", (X, 2, 2, 0, False, True, 0), ValueError, "divisor_override must not be 0"),
    ("avg_pool2d", (X[:, :0], 2), ValueError, "no empty channel"),
    ("avg_pool2d_backward", (G, (1, 2, 8, 8), 2), ValueError, "grad_output must have the output"),
    ("lp_pool2d", (X, 0, 2), ValueError, "norm_type must not be 0"),
    ("lp_pool2d", (X, "2", 2), TypeError, "norm_type must be a number"),
    ("max_pool_channels", (X, 3), ValueError, "at most the 2 channels"),
    ("avg_pool_channels", (X, 1.0), TypeError, "kernel_size must be an integer"),
]


@pytest.mark.parametrize(("name", "arguments", "error", "message"), BAD)
def test_errors(name, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(functional, name)(*arguments)
