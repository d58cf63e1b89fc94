"""What must hold whatever the numbers are: gradients, symmetries, adjoints, threads."""

import numpy as np
import pytest

from convkern import functional as F  # noqa: N812
from convkern import num_threads

CASES = 40


def inner(a, b):
    return float(np.vdot(a, b))


def window(rng):
    """Draw the arguments of a convolution, and channels that fit its groups."""
    kernel = tuple(int(k) for k in rng.integers(1, 5, 2))
    groups = int(rng.choice([1, 1, 2]))
    return {
        "kernel": kernel,
        "channels": groups * int(rng.integers(1, 6)),
        "filters": groups * int(rng.integers(1, 6)),
        "arguments": {
            "stride": tuple(int(s) for s in rng.integers(1, 4, 2)),
            "padding": tuple(int(p) for p in rng.integers(0, 3, 2)),
            "dilation": tuple(int(d) for d in rng.integers(1, 3, 2)),
            "groups": groups,
        },
    }


def convolution(rng):
    """Draw float64 arrays for a convolution and its arguments."""
    drawn = window(rng)
    arguments = drawn["arguments"]
    size = [
        (k - 1) * d + 1 + int(rng.integers(0, 9))
        for k, d in zip(drawn["kernel"], arguments["dilation"], strict=True)
    ]
    x = rng.standard_normal((2, drawn["channels"], *size))
    w = rng.standard_normal(
        (drawn["filters"], drawn["channels"] // arguments["groups"], *drawn["kernel"])
    )
    return (F.to_channels_last(x) if rng.random() < 0.5 else x), w, arguments


def check_gradient(rng, function, gradients, *arrays):
    """Compare the slope along a random direction with what the gradients say of it."""
    directions = [rng.standard_normal(a.shape) for a in arrays]
    y = function(*arrays)
    grad = rng.standard_normal(y.shape)
    step = 1e-6
    ahead = function(*(a + step * d for a, d in zip(arrays, directions, strict=True)))
    behind = function(*(a - step * d for a, d in zip(arrays, directions, strict=True)))
    slope = inner(grad, ahead - behind) / (2 * step)
    said = sum(map(inner, gradients(grad, *arrays), directions))
    np.testing.assert_allclose(said, slope, rtol=1e-3, atol=1e-5 * max(1, abs(slope)))


def test_gradients_of_convolutions():
    rng = np.random.default_rng(0)
    for _ in range(CASES):
        x, w, arguments = convolution(rng)
        b = rng.standard_normal(len(w))
        check_gradient(
            rng,
            lambda x, w, b, a=arguments: F.conv2d(x, w, b, **a),
            lambda g, x, w, b, a=arguments: F.conv2d_backward(g, x, w, **a),
            x,
            w,
            b,
        )
        g = F.conv2d(x, w, **arguments)
        check_gradient(
            rng,
            lambda g, w, a=arguments: F.conv_transpose2d(g, w, **a),
            lambda y, g, w, a=arguments: F.conv_transpose2d_backward(y, g, w, **a)[:2],
            g,
            w,
        )


def test_gradients_of_the_others():
    rng = np.random.default_rng(1)
    for _ in range(CASES):
        x = rng.standard_normal((2, 4, 7, 9)) + 3
        matrix, bias = rng.standard_normal((5, 9)), rng.standard_normal(5)
        weight, shift = rng.standard_normal((2, 4))
        target = rng.integers(0, 4, (2, 7, 9))
        kernel, stride = (int(k) for k in rng.integers(1, 4, 2))

        def max_pool(x, kernel=kernel, stride=stride):
            return F.max_pool2d(x, kernel, stride)

        def max_pool_gradient(g, x, kernel=kernel, stride=stride):
            _, indices = F.max_pool2d(x, kernel, stride, return_indices=True)
            return [F.max_pool2d_backward(g, indices, x.shape)]

        pool = (kernel, stride)
        size = tuple(int(n) for n in rng.integers(1, 6, 2))
        for function, gradients, arrays in (
            (max_pool, max_pool_gradient, [x]),
            (
                lambda x, p=pool: F.avg_pool2d(x, *p),
                lambda g, x, p=pool: [F.avg_pool2d_backward(g, x.shape, *p)],
                [x],
            ),
            (
                lambda x, p=pool: F.lp_pool2d(x, 3, *p),
                lambda g, x, p=pool: [F.lp_pool2d_backward(g, x, F.lp_pool2d(x, 3, *p), 3, *p)],
                [x],
            ),
            (
                lambda x, n=size: F.adaptive_avg_pool2d(x, n),
                lambda g, x: [F.adaptive_avg_pool2d_backward(g, x.shape)],
                [x],
            ),
            (F.linear, lambda g, x, m, b: F.linear_backward(g, x, m), [x, matrix, bias]),
            (
                lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
                lambda g, x, w, b: F.batch_norm_backward(g, x, None, None, w, True),
                [x, weight, shift],
            ),
            (
                lambda x: F.local_response_norm(x, 3, 0.1),
                lambda g, x: [F.local_response_norm_backward(g, x, 3, 0.1)],
                [x],
            ),
            (
                lambda x, t=target: F.cross_entropy(x, t, reduction="none", label_smoothing=0.1),
                lambda g, x, t=target: [
                    F.cross_entropy_backward(g, x, t, reduction="none", label_smoothing=0.1)
                ],
                [x],
            ),
            (F.sigmoid, lambda g, x: [F.sigmoid_backward(g, F.sigmoid(x))], [x - 3]),
            (F.softmax, lambda g, x: [F.softmax_backward(g, F.softmax(x))], [x]),
        ):
            check_gradient(rng, function, gradients, *arrays)


def test_a_convolution_is_linear_and_moves_with_its_input():
    rng = np.random.default_rng(2)
    for _ in range(CASES):
        x, w, arguments = convolution(rng)
        other, factor = rng.standard_normal(x.shape), rng.standard_normal()
        sum_of_both = F.conv2d(x, w, **arguments) + factor * F.conv2d(other, w, **arguments)
        np.testing.assert_allclose(
            F.conv2d(x + factor * other, w, **arguments), sum_of_both, 1e-10, 1e-10
        )
        down, across = arguments["stride"]
        still = arguments | {"padding": 0}
        moved = np.pad(x, ((0, 0), (0, 0), (down, 0), (across, 0)))
        y = F.conv2d(x, w, **still)
        np.testing.assert_allclose(
            F.conv2d(moved, w, **still)[:, :, 1:, 1:][:, :, : y.shape[2], : y.shape[3]],
            y,
            1e-10,
            1e-10,
        )


def test_adjoints():
    """<A x, y> = <x, A* y> for a convolution and its transpose, im2col and col2im."""
    rng = np.random.default_rng(3)
    for _ in range(CASES):
        x, w, arguments = convolution(rng)
        y = F.conv2d(x, w, **arguments)
        g = rng.standard_normal(y.shape)
        turned = F.conv2d_backward(g, x, w, **arguments)[0]
        np.testing.assert_allclose(inner(y, g), inner(x, turned), rtol=1e-9, atol=1e-9)
        rest = tuple(
            x.shape[i - 2]
            - ((y.shape[i - 2] - 1) * arguments["stride"][i] - 2 * arguments["padding"][i])
            - ((w.shape[i - 2] - 1) * arguments["dilation"][i] + 1)
            for i in (0, 1)
        )
        back = F.conv_transpose2d(g, w, output_padding=rest, **arguments)
        np.testing.assert_allclose(turned, back, 1e-10, 1e-10)
        dilation, padding, stride = (arguments[k] for k in ("dilation", "padding", "stride"))
        columns = F.im2col(x, w.shape[2:], dilation, padding, stride)
        h = rng.standard_normal(columns.shape)
        image = F.col2im(h, x.shape[2:], w.shape[2:], dilation, padding, stride)
        np.testing.assert_allclose(inner(columns, h), inner(x, image), rtol=1e-9, atol=1e-9)


def test_unpooling_puts_back_what_pooling_took():
    rng = np.random.default_rng(4)
    for _ in range(CASES):
        kernel = int(rng.integers(1, 4))
        x = rng.standard_normal((2, 3, 4 * kernel, 5 * kernel))
        values, indices = F.max_pool2d(x, kernel, return_indices=True)
        full = F.max_unpool2d(values, indices, kernel)
        np.testing.assert_array_equal(F.max_pool2d(np.where(full != 0, full, -9), kernel), values)
        np.testing.assert_array_equal(full[full != 0], x[full != 0])


def operators(rng, dtype, convert):
    """Return calls of every operator that runs on threads, large enough to start them."""
    x = convert(rng.standard_normal((6, 33, 40, 41)).astype(dtype))
    w, b = (rng.standard_normal(s).astype(dtype) for s in ((35, 33, 3, 3), 35))
    y = F.conv2d(x, w, padding=1)
    values, indices = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    means = F.avg_pool2d(x, 3, 2, 1)
    norms = F.lp_pool2d(abs(x), 2, 3, 2)
    rows, matrix = x.reshape(6, -1)[:, :9000], rng.standard_normal((310, 9000)).astype(dtype)
    products = F.linear(rows, matrix)
    images = np.ascontiguousarray(x[:2, :8])
    columns = F.im2col(images, 3)
    ones = np.ones(33, dtype)
    target = rng.integers(0, 33, (6, 40, 41))
    depthwise = rng.standard_normal((33, 1, 3, 3)).astype(dtype)
    return {
        "conv2d": lambda: F.conv2d(x, w, b, padding=1),
        "conv2d direct": lambda: F.conv2d(x, w, b, padding=1, algorithm="direct"),
        "conv2d stride": lambda: F.conv2d(x, w, b, 2, 1),
        "conv2d depthwise": lambda: F.conv2d(x, depthwise, None, 1, 1, 1, 33),
        "conv2d 1x1": lambda: F.conv2d(x, w[:, :, :1, :1]),
        "conv2d_backward": lambda: F.conv2d_backward(y, x, w, 1, 1),
        "conv2d_backward direct": lambda: F.conv2d_backward(y, x, w, 1, 1, algorithm="direct"),
        "conv2d_backward stride": lambda: F.conv2d_backward(
            y[:, :, ::2, ::2], x, w, 2, 1, output_mask=(True, True, True)
        ),
        "conv_transpose2d": lambda: F.conv_transpose2d(y, w, stride=2),
        "conv_transpose2d_backward": lambda: F.conv_transpose2d_backward(x, y, w, 1, 1),
        "max_pool2d": lambda: F.max_pool2d(x, 3, 2, 1, return_indices=True),
        "max_pool2d_backward": lambda: F.max_pool2d_backward(values, indices, x.shape),
        "max_unpool2d": lambda: F.max_unpool2d(values, indices, 3, 2, 1, output_size=x.shape[2:]),
        "avg_pool2d": lambda: F.avg_pool2d(x, 3, 2, 1),
        "avg_pool2d_backward": lambda: F.avg_pool2d_backward(means, x.shape, 3, 2, 1),
        "lp_pool2d": lambda: F.lp_pool2d(abs(x), 2, 3, 2),
        "lp_pool2d_backward": lambda: F.lp_pool2d_backward(norms, abs(x), norms, 2, 3, 2),
        "adaptive_avg_pool2d": lambda: F.adaptive_avg_pool2d(x, 7),
        "max_pool_channels": lambda: F.max_pool_channels(x, 3, 2),
        "avg_pool_channels": lambda: F.avg_pool_channels(x, 3, 2),
        "im2col": lambda: F.im2col(images, 3),
        "col2im": lambda: F.col2im(columns, images.shape[2:], 3),
        "linear": lambda: F.linear(rows, matrix),
        "linear of many": lambda: F.linear(np.repeat(rows, 5, 0), matrix),
        "linear_backward": lambda: F.linear_backward(products, rows, matrix),
        "batch_norm": lambda: F.batch_norm(x, ones * 0, ones.copy(), ones, ones, True),
        "batch_norm_backward": lambda: F.batch_norm_backward(x, x, None, None, ones, True),
        "local_response_norm": lambda: F.local_response_norm(x, 5),
        "local_response_norm_backward": lambda: F.local_response_norm_backward(x, x, 5),
        "cross_entropy": lambda: F.cross_entropy(x, target),
        "cross_entropy_backward": lambda: F.cross_entropy_backward(1.0, x, target),
        "softmax": lambda: F.softmax(x),
        "sigmoid": lambda: F.sigmoid(x),
        "relu": lambda: F.relu(x),
        "prelu": lambda: F.prelu(x, ones),
        "prelu_backward": lambda: F.prelu_backward(x, x, ones),
    }


@pytest.mark.parametrize("convert", (np.ascontiguousarray, F.to_channels_last))
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_same_bits_for_every_thread_count(dtype, convert):
    calls = operators(np.random.default_rng(5), dtype, convert)
    first = {}
    for threads in (1, 2, 3, 4, 7):
        with num_threads(threads):
            for name, call in calls.items():
                result = call()
                results = result if isinstance(result, tuple) else (result,)
                bits = [np.asarray(r).tobytes() for r in results]
                assert first.setdefault(name, bits) == bits, f"{name}, {threads} threads"


@pytest.mark.parametrize("convert", (np.ascontiguousarray, F.to_channels_last))
def test_direct_gives_a_batch_the_bits_of_its_images(convert):
    rng = np.random.default_rng(6)
    for kernel, stride in ((3, 1), (3, 2), (1, 1), (5, 1), (11, 4)):
        x = convert(rng.standard_normal((5, 7, 30, 31)).astype(np.float32))
        w = rng.standard_normal((20, 7, kernel, kernel)).astype(np.float32)
        arguments = {"stride": stride, "padding": kernel // 2, "algorithm": "direct"}
        y = F.conv2d(x, w, **arguments)
        dx = F.conv2d_backward(y, x, w, **arguments)[0]
        for n in range(len(x)):
            one, grad = x[n : n + 1], y[n : n + 1]
            assert F.conv2d(one, w, **arguments).tobytes() == grad.tobytes()
            alone = F.conv2d_backward(grad, one, w, **arguments)[0]
            assert alone.tobytes() == dx[n : n + 1].tobytes()
