"""Bit-for-bit results: with small integers every float sum is exact, so nothing may differ."""

import itertools

import numpy as np
import pytest

from convkern import _kernels, functional, num_threads, reference, set_float32_precision

from .draws import cases
from .memory import guarded

DTYPES = (np.float32, np.float64)
SHAPES = cases(10_000)


def integers(rng, shape, dtype, most=8):
    return rng.integers(-most, most + 1, shape).astype(dtype)


def random_layout(rng, x):
    """Return an equal array in one of the two layouts that the kernels read."""
    if rng.random() < 0.5:
        return x
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def random_size(rng, most):
    """Return a size that is often next to a vector length or a tile width."""
    edges = [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65]
    fitting = [edge for edge in edges if edge <= most]
    return int(rng.choice(fitting)) if rng.random() < 0.7 else int(rng.integers(1, most + 1))


def random_window(rng, size):
    """Return kernel, stride, padding pair, dilation that fit `size`."""
    kernel, dilation = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    stride = int(rng.integers(1, 5))
    pads = tuple(int(p) for p in rng.integers(0, 4, 2))
    while dilation * (kernel - 1) + 1 > size + sum(pads):
        kernel -= 1
    return kernel, stride, pads, dilation


def random_convolution(rng, dtype):
    """Return input, weight and (stride, padding, dilation, groups) of a small convolution."""
    groups = int(rng.choice([1, 1, 1, 2, 3, 5]))
    channels = groups * random_size(rng, 40 // groups)
    out_channels = groups * random_size(rng, 80 // groups)
    if rng.random() < 0.15:
        groups = out_channels = channels  # depthwise
    size = random_size(rng, 20), random_size(rng, 33)
    rows, columns = random_window(rng, size[0]), random_window(rng, size[1])
    x = random_layout(rng, integers(rng, (int(rng.integers(1, 4)), channels, *size), dtype))
    w = integers(rng, (out_channels, channels // groups, rows[0], columns[0]), dtype)
    return x, w, (*zip(rows[1:], columns[1:], strict=True), groups)


@pytest.mark.parametrize("dtype", DTYPES)
def test_conv2d(dtype):
    for seed in range(SHAPES):
        rng = np.random.default_rng(seed)
        x, w, window = random_convolution(rng, dtype)
        bias = integers(rng, len(w), dtype) if rng.random() < 0.5 else None
        activation = [None, "relu", "relu6"][int(rng.integers(3))]
        y = functional.conv2d(x, w, bias, *window, activation=activation, algorithm="direct")
        expected = reference.conv2d(x, w, bias, *window, activation=activation)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, expected, f"seed {seed}: {x.shape} {w.shape} {window}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_conv2d_backward(dtype):
    for seed in range(SHAPES):
        rng = np.random.default_rng(seed)
        x, w, window = random_convolution(rng, dtype)
        out_size = reference.conv2d(x[:1], w, None, *window).shape[2:]
        grad = random_layout(rng, integers(rng, (len(x), len(w), *out_size), dtype))
        message = f"seed {seed}: {x.shape} {w.shape} {window}"
        expected = reference.conv2d_backward(grad, x, w, *window)
        got = functional.conv2d_backward(grad, x, w, *window, algorithm="direct")
        for mine, true in zip(got, expected, strict=True):
            assert mine.dtype == dtype
            np.testing.assert_array_equal(mine, true, message)
        mask = tuple(bool(b) for b in rng.integers(0, 2, 3))
        part = functional.conv2d_backward(grad, x, w, *window, output_mask=mask, algorithm="direct")
        for wanted, mine, whole in zip(mask, part, got, strict=True):
            assert (mine is not None) == wanted
            assert mine is None or mine.tobytes() == whole.tobytes(), message


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_depthwise_with_every_stride(dtype, channels_last):
    """Some strides of three columns have a kernel of their own, and rows are cut into pieces."""
    rng = np.random.default_rng(0)
    for stride, dilation, columns in itertools.product((1, 2, 3, 4), (1, 2, 3), (2, 3)):
        for channels in (1, 9, 17):
            x = integers(rng, (1, channels, 14, 43), dtype)
            x = functional.to_channels_last(x) if channels_last else x
            w = integers(rng, (channels, 1, 3, columns), dtype)
            window = (stride, 2, dilation, channels)
            y = functional.conv2d(x, w, None, *window)
            expected = reference.conv2d(x, w, None, *window)
            np.testing.assert_array_equal(y, expected, f"{w.shape} {window}")


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_conv2d_of_many_channels(dtype, channels_last):
    """Sums of several chunks, in which a chunk is less than the channels of a tap."""
    for channels, kernel in ((257, 1), (514, 2), (775, 3), (301, 3)):
        rng = np.random.default_rng(channels)
        x = integers(rng, (2, channels, 5, 6), dtype)
        x = functional.to_channels_last(x) if channels_last else x
        w, bias = integers(rng, (19, channels, kernel, kernel), dtype), integers(rng, 19, dtype)
        options = {"padding": kernel // 2, "activation": "relu"}
        y = functional.conv2d(x, w, bias, algorithm="direct", **options)
        np.testing.assert_array_equal(y, reference.conv2d(x, w, bias, **options), f"{w.shape}")
        grad = integers(rng, y.shape, dtype)
        got = functional.conv2d_backward(grad, x, w, padding=kernel // 2, algorithm="direct")
        expected = reference.conv2d_backward(grad, x, w, padding=kernel // 2)
        for mine, true in zip(got, expected, strict=True):
            np.testing.assert_array_equal(mine, true, f"{w.shape}")


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_gradient_in_parts(dtype, channels_last):
    """Several groups of images, ranges of channels and of filters, not of one size."""
    rng = np.random.default_rng(3)
    x, w = integers(rng, (5, 70, 13, 13), dtype), np.zeros((410, 70, 3, 3), dtype)
    grad = integers(rng, (5, 410, 13, 13), dtype)
    if channels_last:
        x, grad = functional.to_channels_last(x), functional.to_channels_last(grad)
    window, mask = (1, 1, 1, 1), (False, True, False)
    got = functional.conv2d_backward(grad, x, w, *window, output_mask=mask, algorithm="direct")[1]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    for r, s in itertools.product(range(3), repeat=2):
        seen = padded[:, :, r : r + 13, s : s + 13]
        expected = np.tensordot(grad, seen, ((0, 2, 3), (0, 2, 3)))
        np.testing.assert_array_equal(got[:, :, r, s], expected, f"tap {r}, {s}")


@pytest.mark.parametrize("groups", (1, 2))
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_gradient_of_steps(dtype, groups):
    """Of so many filters, the pixels that a stride meets in planes are picked out first."""
    rng = np.random.default_rng(5)
    x, w = integers(rng, (3, 6, 8, 7), dtype), np.zeros((258, 6 // groups, 1, 1), dtype)
    grad = integers(rng, (3, 258, 3, 4), dtype)
    got = functional.conv2d_backward(
        grad, x, w, (3, 2), groups=groups, output_mask=(False, True, False)
    )[1]
    expected = reference.conv2d_backward(grad, x, w, (3, 2), groups=groups)[1]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("at_end", (True, False))
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_gradient_of_long_rows(dtype, at_end):
    """Rows and filters so many that the input is turned round, at the ends of memory."""
    for seed in range(cases(40)):
        rng = np.random.default_rng(seed)
        groups = int(rng.choice([1, 1, 1, 2]))
        C, K = groups * int(rng.integers(8, 40)), groups * int(rng.integers(60, 300) // groups)
        kernel, dilation = rng.integers(2, 5, 2), rng.integers(1, 3, 2)
        stride, size = rng.integers(1, 4, 2), np.array([rng.integers(9, 16), rng.integers(40, 70)])
        pads = [tuple(int(p) for p in sides) for sides in rng.integers(0, 4, (2, 2))]
        where = {"stride": tuple(map(int, stride)), "padding": tuple(pads)}
        where |= {"dilation": tuple(map(int, dilation)), "groups": groups}
        x = integers(rng, (int(rng.integers(1, 4)), C, *size), dtype)
        w = np.zeros((K, C // groups, *kernel), dtype)
        shape = functional.conv2d(x, w, **where).shape
        arrays = integers(rng, shape, dtype), x
        if rng.random() < 0.5:
            grad, x = (guarded(array, at_end) for array in arrays)
        else:
            rows = (np.ascontiguousarray(array.transpose(0, 2, 3, 1)) for array in arrays)
            grad, x = (guarded(array, at_end).transpose(0, 3, 1, 2) for array in rows)
        mine = functional.conv2d_backward(
            grad, x, w, **where, output_mask=(False, True, False), algorithm="direct"
        )[1]
        true = reference.conv2d_backward(grad, x, w, **where)[1]
        np.testing.assert_array_equal(mine, true, f"{x.shape} {w.shape} {where}")


@pytest.mark.parametrize("filters", (8, 16, 32))
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_gradient_of_some_channels(dtype, filters):
    """Channels-last gradients between which those of other filters lie."""
    rng = np.random.default_rng(filters)
    x = functional.to_channels_last(integers(rng, (2, 19, 12, 30), dtype))
    grad = functional.to_channels_last(integers(rng, (2, filters + 5, 9, 27), dtype))[:, :filters]
    w = np.zeros((filters, 19, 4, 4), dtype)
    for mine, true in zip(
        functional.conv2d_backward(grad, x, w, algorithm="direct"),
        reference.conv2d_backward(grad, x, w),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, true)


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_gradient_beside_that_of_the_weight(dtype, channels_last):
    """It is made from what the gradient of the weight reads: 1x1, depthwise, Winograd, blocks."""
    rng = np.random.default_rng(7)
    # Images, channels, size, filters, window, stride, groups.
    for n, c, size, k, kernel, stride, groups in (
        (9, 300, 7, 20, 1, 1, 1),
        (5, 48, 15, 70, 1, 2, 1),
        (3, 32, 9, 96, 1, 1, 4),
        (1, 520, 30, 300, 1, 1, 1),
        (4, 40, 13, 40, 3, 1, 40),
        (3, 21, 14, 21, 3, 2, 21),
        (3, 16, 9, 24, 3, 1, 1),
        (16, 32, 18, 40, 3, 1, 1),
        (3, 300, 8, 330, 3, 1, 1),
        (2, 32, 20, 64, 5, 1, 2),
        (2, 3, 40, 64, 7, 2, 1),
        (2, 20, 16, 33, 3, 2, 1),
    ):
        layout = functional.to_channels_last if channels_last else np.ascontiguousarray
        x = layout(integers(rng, (n, c, size, size), dtype))
        w = integers(rng, (k, c // groups, kernel, kernel), dtype)
        window = stride, kernel // 2, 1, groups
        grad = layout(integers(rng, functional.conv2d(x, w, None, *window).shape, dtype))
        got = []
        for threads in (1, 3):
            with num_threads(threads):
                got.append(functional.conv2d_backward(grad, x, w, *window))
        message = f"{x.shape} {w.shape} {window}"
        np.testing.assert_array_equal(got[0][2], grad.sum((0, 2, 3)), message)
        np.testing.assert_array_equal(got[1][2], got[0][2], message)
        alone = functional.conv2d_backward(grad, x, w, *window, output_mask=(False, True, False))
        np.testing.assert_array_equal(alone[1], got[0][1], message)


@pytest.mark.parametrize("convert", (np.ascontiguousarray, functional.to_channels_last))
@pytest.mark.parametrize("dtype", DTYPES)
def test_window_that_covers_the_image(dtype, convert):
    """It is a linear layer, forward and backward, of whatever batch, outputs and memory."""
    rng = np.random.default_rng(8)
    for n, c, rows, columns, k in ((3, 5, 4, 3, 7), (1, 20, 5, 5, 33), (40, 3, 1, 9, 1)):
        x = convert(integers(rng, (n, c, rows, columns), dtype))
        w, bias = integers(rng, (k, c, rows, columns), dtype), integers(rng, k, dtype)
        expected = np.maximum(reference.conv2d(x, w, bias), 0)
        for batch, true in ((x, expected), (x[0], expected[0]), (x[:0], expected[:0])):
            for convolve in (
                functional.PackedConv2d(w, bias, activation="relu"),
                lambda x, w=w, bias=bias: functional.conv2d(x, w, bias, activation="relu"),
            ):
                np.testing.assert_array_equal(convolve(batch), true)
        spread = np.full((n, k + 2, 1, 1), 99, dtype)
        functional.conv2d(x, w, bias, activation="relu", out=spread[:, 1:-1])
        np.testing.assert_array_equal(spread[:, 1:-1], expected)
        assert (spread[:, :: k + 1] == 99).all()
        grad = integers(rng, expected.shape, dtype)
        for mask in ((True, True, True), (True, False, False), (False, True, False)):
            got = functional.conv2d_backward(grad, x, w, output_mask=mask)
            for wanted, mine, true in zip(
                mask, got, reference.conv2d_backward(grad, x, w), strict=True
            ):
                assert (mine is not None) == wanted
                if mine is not None:
                    np.testing.assert_array_equal(mine, true)
        assert got[1].flags.c_contiguous and got[1].shape == w.shape
        alone = functional.conv2d_backward(grad[0], x[0], w)
        assert alone[0].shape == x[0].shape
        np.testing.assert_array_equal(alone[0], reference.conv2d_backward(grad, x, w)[0][0])
        none = functional.conv2d_backward(grad[:0], x[:0], w)
        assert none[0].shape == x[:0].shape and not none[1].any() and not none[2].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_conv_transpose2d(dtype):
    # Winograd's larger tiles are not exact, and a transposed convolution chooses for itself.
    with set_float32_precision("highest"):
        transposed_convolutions(dtype)


def transposed_convolutions(dtype):
    for seed in range(SHAPES // 2):
        rng = np.random.default_rng(seed)
        groups = int(rng.choice([1, 1, 2, 3]))
        channels, out_channels = (groups * random_size(rng, 33 // groups) for _ in range(2))
        kernel, dilation = (tuple(int(v) for v in rng.integers(1, n, 2)) for n in (5, 3))
        stride = tuple(int(v) for v in rng.integers(1, 4, 2))
        pads = tuple(
            int(rng.integers(0, d * (k - 1) + 1)) for k, d in zip(kernel, dilation, strict=True)
        )
        extra = tuple(int(rng.integers(0, s)) for s in stride)
        x = random_layout(rng, integers(rng, (2, channels, 7, random_size(rng, 17)), dtype))
        w = integers(rng, (channels, out_channels // groups, *kernel), dtype)
        bias = integers(rng, out_channels, dtype) if rng.random() < 0.5 else None
        window = (stride, pads, extra, groups, dilation)
        try:
            expected = reference.conv_transpose2d(x, w, bias, *window)
        except ValueError:
            continue
        if 0 in expected.shape:
            continue
        got = functional.conv_transpose2d(x, w, bias, *window)
        message = f"seed {seed}: {x.shape} {w.shape} {window}"
        np.testing.assert_array_equal(got, expected, message)
        grad = random_layout(rng, integers(rng, got.shape, dtype))
        gradients = functional.conv_transpose2d_backward(grad, x, w, *window)
        expected = reference.conv_transpose2d_backward(grad, x, w, *window)
        for mine, true in zip(gradients, expected, strict=True):
            np.testing.assert_array_equal(mine, true, message)


@pytest.mark.parametrize("dtype", DTYPES)
def test_max_pool2d(dtype):
    for seed in range(SHAPES):
        rng = np.random.default_rng(seed)
        size = random_size(rng, 33), random_size(rng, 65)
        kernel, stride, dilation = (
            tuple(int(v) for v in rng.integers(1, most, 2)) for most in (5, 5, 3)
        )
        pads = tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel)
        if any(
            d * (k - 1) + 1 > n + 2 * p
            for n, k, d, p in zip(size, kernel, dilation, pads, strict=True)
        ):
            continue
        x = integers(rng, (int(rng.integers(1, 3)), random_size(rng, 40), *size), dtype, 3)
        x = random_layout(rng, x)
        arguments = (kernel, stride, pads, dilation)
        options = {"ceil_mode": bool(rng.integers(2)), "return_indices": True}
        values, indices = functional.max_pool2d(x, *arguments, **options)
        expected, expected_indices = reference.max_pool2d(x, *arguments, **options)
        message = f"seed {seed}: {x.shape} {arguments} {options}"
        np.testing.assert_array_equal(values, expected, message)
        np.testing.assert_array_equal(indices, expected_indices, message)
        alone = functional.max_pool2d(x, *arguments, ceil_mode=options["ceil_mode"])
        np.testing.assert_array_equal(alone, values, message)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(dtype):
    for seed in range(SHAPES // 5):
        rng = np.random.default_rng(seed)
        batch, inputs, outputs = (random_size(rng, 100) for _ in range(3))
        if seed % 50 == 0:
            inputs, batch = 2500, 53  # several chunks, several blocks of the batch
        x, w = integers(rng, (batch, inputs), dtype), integers(rng, (outputs, inputs), dtype)
        bias = integers(rng, outputs, dtype) if rng.random() < 0.5 else None
        np.testing.assert_array_equal(
            functional.linear(x, w, bias), reference.linear(x, w, bias), f"seed {seed}"
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_backward(dtype):
    for seed in range(SHAPES // 10):
        rng = np.random.default_rng(seed)
        batch, inputs, outputs = (random_size(rng, 100) for _ in range(3))
        x, w = integers(rng, (batch, inputs), dtype), integers(rng, (outputs, inputs), dtype)
        grad = integers(rng, (batch, outputs), dtype)
        expected = reference.linear_backward(grad, x, w)
        for mine, true in zip(functional.linear_backward(grad, x, w), expected, strict=True):
            np.testing.assert_array_equal(mine, true, f"seed {seed}")
            assert mine.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns(dtype):
    for seed in range(SHAPES):
        rng = np.random.default_rng(seed)
        size = random_size(rng, 20), random_size(rng, 33)
        (kh, sh, ph, dh), (kw, sw, pw, dw) = (random_window(rng, n) for n in size)
        pads = max(ph), max(pw)
        window = ((kh, kw), (dh, dw), pads, (sh, sw))
        x = random_layout(rng, integers(rng, (2, int(rng.integers(1, 5)), *size), dtype))
        columns = functional.im2col(x, *window)
        np.testing.assert_array_equal(columns, reference.im2col(x, *window), f"seed {seed}")
        columns = integers(rng, columns.shape, dtype)
        np.testing.assert_array_equal(
            functional.col2im(columns, size, *window),
            reference.col2im(columns, size, *window),
            f"seed {seed}",
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_elementwise(dtype):
    rng = np.random.default_rng(0)
    for size in (0, 1, 7, 16, 17, 20_000):
        x = integers(rng, size, dtype)
        np.testing.assert_array_equal(functional.relu(x), np.maximum(x, 0))
        np.testing.assert_array_equal(functional.leaky_relu(x, 0.5), np.where(x < 0, x * 0.5, x))


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_every_thread_count_and_batch(dtype, channels_last):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 35, 23, 29)).astype(dtype)
    if channels_last:
        x = functional.to_channels_last(x)
    w = rng.standard_normal((70, 35, 3, 3)).astype(dtype)
    features, matrix = x.reshape(5, -1)[:, :20_000], rng.standard_normal((90, 20_000)).astype(dtype)
    first = None
    for threads in (1, 2, 3, 4, 7):
        with num_threads(threads):
            results = (
                functional.conv2d(x, w, padding=1, algorithm="direct"),
                *functional.max_pool2d(x, 3, 2, 1, return_indices=True),
                functional.linear(features, matrix),
                functional.local_response_norm(x, 5),
            )
        first = first or results
        for one, other in zip(first, results, strict=True):
            assert one.tobytes() == other.tobytes(), f"{threads} threads"
    for n in range(5):
        alone = functional.conv2d(x[n : n + 1], w, padding=1, algorithm="direct")
        assert alone.tobytes() == first[0][n : n + 1].tobytes()
        # From about a vector of rows on, linear adds up in another order.
        scale = 2e3 * np.finfo(dtype).eps * abs(first[3]).max()
        np.testing.assert_allclose(functional.linear(features[n], matrix), first[3][n], 0, scale)


def test_a_long_call_is_its_parts():
    """Work of more than 10^9 operations a thread is interrupted to look for signals."""
    rng = np.random.default_rng(3)
    x, w = integers(rng, (8, 64, 58, 58), np.float32), integers(rng, (64, 64, 3, 3), np.float32)
    y = np.full((8, 64, 56, 56), np.nan, np.float32)
    with num_threads(1):
        parts = [functional.conv2d(x[n : n + 1], w, algorithm="direct") for n in range(8)]
        functional.conv2d(x, w, algorithm="direct", out=y)
    np.testing.assert_array_equal(y, np.concatenate(parts))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("images", "channels", "filters", "size"),
    [
        (1, 1400, 30, (16, 17)),  # rows of a panel are packed in several turns
        (2, 700, 27, (13, 16)),
        (2, 70, 5, (8, 19)),  # read in place, the last vectors packed
        (3, 300, 530, (7, 7)),  # joined planes, filters shared out
    ],
)
def test_products_of_planes(dtype, images, channels, filters, size):
    """A 1x1 window: a sum of several chunks, forward and back to the input."""
    rng = np.random.default_rng(channels)
    x, w = (
        integers(rng, shape, dtype, 4)
        for shape in ((images, channels, *size), (filters, channels, 1, 1))
    )
    bias = integers(rng, filters, dtype)
    y = np.einsum("nchw,kc->nkhw", x, w[:, :, 0, 0], optimize=True)
    expected = np.maximum(y + bias[:, None, None], 0)
    back = np.einsum("nkhw,kc->nchw", y, w[:, :, 0, 0], optimize=True)
    for threads in (1, 3):
        with num_threads(threads):
            found = functional.conv2d(x, w, bias, activation="relu", algorithm="direct")
            np.testing.assert_array_equal(found, expected)
            found = functional.conv2d_backward(y, x, w, output_mask=(True, False, False))[0]
            np.testing.assert_array_equal(found, back)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("images", "channels", "filters", "size"),
    [
        (2, 37, 71, (16, 19)),  # planes of more than a chunk
        (17, 130, 64, (16, 19)),  # and as many filters as a panel has at most
        (3, 70, 21, (12, 11)),  # of less than one
        (5, 150, 5, (4, 5)),  # that are packed
        (2, 300, 290, (13, 10)),
        (1, 130, 600, (5, 27)),
    ],
)
@pytest.mark.parametrize("at_end", (False, True))
def test_weight_gradient_of_pixels(dtype, images, channels, filters, size, at_end):
    """A 1x1 window, whose rows and panels are read in place."""
    rng = np.random.default_rng(filters)
    w = np.zeros((filters, channels, 1, 1), dtype)
    x, g = (integers(rng, (images, count, *size), dtype, 4) for count in (channels, filters))
    expected = np.einsum("nkhw,nchw->kc", g, x, optimize=True)[..., None, None]
    planes = guarded(g, at_end), guarded(x, at_end)
    pixels = (
        guarded(array.transpose(0, 2, 3, 1), at_end).transpose(0, 3, 1, 2) for array in (g, x)
    )
    for arrays in (planes, tuple(pixels)):
        for threads in (1, 3):
            with num_threads(threads):
                found = functional.conv2d_backward(*arrays, w, output_mask=(False, True, False))
            np.testing.assert_array_equal(found[1], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "filters", "groups", "size", "window"),
    [
        (3, 30, 1, (75, 96), (3, 2, 1)),  # the first layer of many nets
        (2, 27, 1, (26, 49), ((9, 17), 1, (4, 7))),  # a sum of several chunks
        (70, 26, 1, (13, 46), (3, 1, (0, 2))),  # several bands, whose last rows hang over the edge
        (2, 5, 3, (18, 90), ((5, 4), (2, 3), (7, 9), (1, 3))),  # rows above and below the image
        (1, 1, 1, (5, 40), (7, 1, 3)),
    ],
)
def test_bands_of_rows(dtype, channels, filters, groups, size, window):
    """Planes whose rows fill their vectors, whichever way costs less."""
    rng = np.random.default_rng(filters)
    x = integers(rng, (2, groups * channels, *size), dtype, 4)
    kernel, stride, padding, dilation = (
        (value, value) if isinstance(value, int) else value for value in (*window, 1)[:4]
    )
    w = integers(rng, (groups * filters, channels, *kernel), dtype, 4)
    bias = integers(rng, groups * filters, dtype)
    axes = tuple(zip(kernel, stride, padding, dilation, strict=True))
    for b in (bias, None):
        expected = reference.conv2d(x, w, b, stride, padding, dilation, groups)
        for threads in (1, 3):
            y = np.full(expected.shape, np.nan, dtype)
            _kernels.conv2d_planes(x, w, b, y, *axes, groups, 1, 0.0, threads)
            np.testing.assert_array_equal(y, np.maximum(expected, 0))


@pytest.mark.parametrize("at_end", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_stay_inside_the_arrays(dtype, at_end):
    rng = np.random.default_rng(2)
    for channels in (1, 3, 8, 15, 17, 33):
        for width in (5, 8, 16, 19):
            nhwc = guarded(integers(rng, (1, 6, width, channels), dtype), at_end)
            nchw = guarded(integers(rng, (1, channels, 6, width), dtype), at_end)
            w = guarded(integers(rng, (19, channels, 3, 3), dtype), at_end)
            depthwise = guarded(integers(rng, (channels, 1, 3, 3), dtype), at_end)
            pointwise = guarded(integers(rng, (19, channels, 1, 1), dtype), at_end)
            bias = guarded(integers(rng, 19, dtype), at_end)
            for x in (nhwc.transpose(0, 3, 1, 2), nchw):
                for stride, padding in ((1, 1), (2, 0), (1, (2, 0))):
                    y = functional.conv2d(x, w, bias, stride, padding, algorithm="direct")
                    expected = reference.conv2d(x, w, bias, stride, padding)
                    np.testing.assert_array_equal(y, expected)
                y = functional.conv2d(x, pointwise, algorithm="direct")
                np.testing.assert_array_equal(y, reference.conv2d(x, pointwise))
                y = functional.conv2d(x, depthwise, padding=1, groups=channels)
                expected = reference.conv2d(x, depthwise, padding=1, groups=channels)
                np.testing.assert_array_equal(y, expected)
                for options in ((3, 2, 1), (2, 1, 0), (3, 3, 1)):
                    got = functional.max_pool2d(x, *options, return_indices=True)
                    wanted = reference.max_pool2d(x, *options, return_indices=True)
                    for g, e in zip(got, wanted, strict=True):
                        np.testing.assert_array_equal(g, e)
                y = functional.avg_pool2d(x, 3, 1, 1, divisor_override=1)
                np.testing.assert_array_equal(
                    y, reference.avg_pool2d(x, 3, 1, 1, divisor_override=1)
                )
                functional.adaptive_avg_pool2d(x, (2, 3))
                functional.max_pool_channels(x, 1, 2)
                functional.local_response_norm(x, 5)
                functional.relu(x)
            rows = guarded(integers(rng, (7, width * channels), dtype), at_end)
            matrix = guarded(integers(rng, (19, width * channels), dtype), at_end)
            np.testing.assert_array_equal(
                functional.linear(rows, matrix, bias),
                reference.linear(rows, matrix, bias),
            )
