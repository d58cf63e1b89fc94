"""Images-last arrays: convolutions with images in the lanes, and what others do with them."""

import itertools

import numpy as np
import pytest

from convkern import (
    arrays,
    conv2d,
    conv2d_backward,
    functional,
    models,
    nn,
    num_threads,
    reference,
    set_float32_precision,
)
from convkern.arrays import is_images_last, to_contiguous, to_images_last
from convkern.functional import conv

from .draws import cases
from .memory import guarded

DTYPES = (np.float32, np.float64)


def integers(rng, shape, dtype):
    return rng.integers(-8, 9, shape).astype(dtype)


def random_convolution(rng, dtype, most=14):
    """Return input, weight and (stride, padding) of a convolution that fits the kernels."""
    images, channels, filters = int(rng.choice([16, 32, 48, 64])), *map(int, rng.integers(1, 13, 2))
    size = rng.integers(1, most + 1, 2)
    pads = tuple((int(a), int(b)) for a, b in rng.integers(0, 4, (2, 2)))
    window = [int(rng.integers(1, min(8, n + sum(p) + 1))) for n, p in zip(size, pads, strict=True)]
    stride = tuple(map(int, rng.integers(1, 5, 2)))
    x = integers(rng, (images, channels, *size), dtype)
    return x, integers(rng, (filters, channels, *window), dtype), (stride, pads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_conv2d(dtype):
    for seed in range(cases(120)):
        rng = np.random.default_rng(seed)
        x, w, window = random_convolution(rng, dtype)
        bias = integers(rng, len(w), dtype) if rng.random() < 0.5 else None
        activation = [None, "relu", "relu6", "leaky_relu"][int(rng.integers(4))]
        expected = reference.conv2d(x, w, bias, *window, activation=activation)
        y = conv2d(to_images_last(x), w, bias, *window, activation=activation)
        message = f"seed {seed}: {x.shape} {w.shape} {window}"
        assert is_images_last(y) or y[0].size == 1, message
        if activation == "leaky_relu":
            np.testing.assert_allclose(y, expected, 1e-6, err_msg=message)
        else:
            np.testing.assert_array_equal(y, expected, message)


@pytest.mark.parametrize("dtype", DTYPES)
def test_conv2d_backward(dtype):
    for seed in range(cases(120)):
        rng = np.random.default_rng(seed)
        x, w, window = random_convolution(rng, dtype)
        grad = integers(rng, reference.conv2d(x, w, None, *window).shape, dtype)
        convert = [np.asarray, functional.to_channels_last, to_images_last][int(rng.integers(3))]
        mask = tuple(bool(b) for b in rng.integers(0, 2, 3))
        expected = reference.conv2d_backward(grad, x, w, *window)
        got = conv2d_backward(convert(grad), to_images_last(x), w, *window, output_mask=mask)
        message = f"seed {seed}: {x.shape} {w.shape} {window}"
        for wanted, mine, true in zip(mask, got, expected, strict=True):
            assert (mine is not None) == wanted
            if mine is not None:
                assert mine.dtype == dtype
                np.testing.assert_array_equal(mine, true, message)
        assert got[0] is None or is_images_last(got[0]) or x[0].size == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_several_chunks(dtype):
    """Channels, and positions of a weight's gradient, beyond one chain of additions."""
    rng = np.random.default_rng(0)
    for channels, filters, size, kernel in (
        (70, 3, (4, 9), 3),
        (2, 7, (3, 301), 2),
        (3, 2, 19, 16),
    ):
        size = size if isinstance(size, tuple) else (size, size)
        x = integers(rng, (16, channels, *size), dtype)
        w = integers(rng, (filters, channels, kernel, kernel), dtype)
        y = reference.conv2d(x, w, activation="relu")
        np.testing.assert_array_equal(conv2d(to_images_last(x), w, activation="relu"), y)
        grad = integers(rng, y.shape, dtype)
        got = conv2d_backward(grad, to_images_last(x), w)
        for mine, true in zip(got, reference.conv2d_backward(grad, x, w), strict=True):
            np.testing.assert_array_equal(mine, true, f"{x.shape} {w.shape}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tile(dtype):
    """Every number of filters and of outputs in a row."""
    rng = np.random.default_rng(0)
    for filters, width in itertools.product(range(1, 8), (*range(1, 8), 11, 13)):
        x, w = integers(rng, (16, 2, 3, width + 2), dtype), integers(rng, (filters, 2, 2, 3), dtype)
        y = conv2d(to_images_last(x), w)
        np.testing.assert_array_equal(y, reference.conv2d(x, w), f"{filters} filters, {width}")
        grad = integers(rng, y.shape, dtype)
        got = conv2d_backward(grad, to_images_last(x), w)
        for mine, true in zip(got, reference.conv2d_backward(grad, x, w), strict=True):
            np.testing.assert_array_equal(mine, true, f"{filters} filters, {width}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_narrow_stretches(dtype):
    """Windows that are cut at the left and the right, of more rows than a tile or a piece holds."""
    rng = np.random.default_rng(0)
    for images, height, width, stride in itertools.product((16, 32), (9, 110), range(1, 9), (1, 2)):
        x = integers(rng, (images, 1, height, width), dtype)
        w = integers(rng, (3, 1, 3, 4), dtype)
        window = stride, ((1, 0), (3, 2))
        y = reference.conv2d(x, w, None, *window)
        np.testing.assert_array_equal(conv2d(to_images_last(x), w, None, *window), y)
        grad = integers(rng, y.shape, dtype)
        got = conv2d_backward(grad, to_images_last(x), w, *window)
        for mine, true in zip(got, reference.conv2d_backward(grad, x, w, *window), strict=True):
            np.testing.assert_array_equal(mine, true, f"{x.shape}, stride {stride}")


@pytest.mark.parametrize("at_end", (False, True))
def test_touches_no_memory_outside(at_end):
    for seed in range(cases(25)):
        rng = np.random.default_rng(seed)
        x, w, window = random_convolution(rng, np.float32)
        y = reference.conv2d(x, w, None, *window)
        grad = integers(rng, y.shape, np.float32)
        last, g, weight = (
            guarded(np.ascontiguousarray(a), at_end)
            for a in (x.transpose(1, 2, 3, 0), grad.transpose(1, 2, 3, 0), w)
        )
        last, g = last.transpose(3, 0, 1, 2), g.transpose(3, 0, 1, 2)
        np.testing.assert_array_equal(conv2d(last, weight, None, *window), y)
        expected = reference.conv2d_backward(grad, x, w, *window)
        for mine, true in zip(conv2d_backward(g, last, weight, *window), expected, strict=True):
            np.testing.assert_array_equal(mine, true, f"seed {seed}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_every_thread_count(dtype):
    rng = np.random.default_rng(1)
    x = to_images_last(rng.standard_normal((32, 5, 31, 33)).astype(dtype))
    w = rng.standard_normal((17, 5, 4, 3)).astype(dtype)
    first = None
    for threads in (1, 2, 3, 4, 7):
        with num_threads(threads):
            y = conv2d(x, w, stride=2, padding=1)
            results = y, *conv2d_backward(y, x, w, stride=2, padding=1)
        first = first or results
        for one, other in zip(first, results, strict=True):
            assert one.tobytes() == other.tobytes(), f"{threads} threads"


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_as_exact_as_the_other_layouts(dtype):
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((16, 40, 9, 9)), rng.standard_normal((6, 40, 5, 5))
    exact = reference.conv2d(x, w)
    x, w = x.astype(dtype), w.astype(dtype)
    errors = [abs(conv2d(a, w, algorithm="direct") - exact).max() for a in (to_images_last(x), x)]
    assert errors[0] < 1.5 * errors[1]


def test_what_there_are_no_kernels_for_is_right():
    """Groups, dilation, large windows and a place for the output: by way of other layouts."""
    rng = np.random.default_rng(3)
    for kernel, options in (
        ((4, 1, 3, 3), {"groups": 4}),
        ((2, 4, 3, 3), {"dilation": 2}),
        ((2, 4, 17, 17), {}),
        ((3, 4, 3, 3), {"algorithm": "winograd"}),
    ):
        x, w = integers(rng, (16, 4, 18, 18), np.float32), integers(rng, kernel, np.float32)
        given = {k: v for k, v in options.items() if k != "algorithm"}
        y = reference.conv2d(x, w, **given)
        np.testing.assert_allclose(conv2d(to_images_last(x), w, **options), y, 1e-3, 1e-2)
        grad = integers(rng, y.shape, np.float32)
        got = conv2d_backward(to_images_last(grad), to_images_last(x), w, **options)
        for mine, true in zip(got, reference.conv2d_backward(grad, x, w, **given), strict=True):
            np.testing.assert_allclose(mine, true, 1e-3, 0.1)
    x, w = integers(rng, (16, 3, 5, 5), np.float32), integers(rng, (2, 3, 3, 3), np.float32)
    out = np.zeros((16, 2, 3, 3), np.float32)
    for place in (out, arrays.empty_images_last(out.shape, out.dtype)):
        assert conv2d(to_images_last(x), w, out=place, algorithm="direct") is place
        np.testing.assert_array_equal(place, reference.conv2d(x, w))


def test_which_arrays_are_images_last():
    memory = np.zeros((3, 4, 5, 16), np.float32)
    assert is_images_last(memory.transpose(3, 0, 1, 2))
    assert not is_images_last(memory)
    assert not is_images_last(memory[:, :, ::2].transpose(3, 0, 1, 2))
    assert not is_images_last(memory[..., :8].transpose(3, 0, 1, 2))
    assert not is_images_last(np.zeros((3, 4, 5, 80), np.float32).transpose(3, 0, 1, 2))
    assert not is_images_last(np.zeros((16, 1, 1, 1), np.float32))
    assert not is_images_last(np.zeros((1, 1, 1, 16), np.float32).transpose(3, 0, 1, 2))
    unaligned = np.zeros(1 + memory.nbytes, np.uint8)[1:].view(np.float32).reshape(memory.shape)
    assert not is_images_last(unaligned.transpose(3, 0, 1, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_into_each_other(dtype):
    rng = np.random.default_rng(4)
    for shape in ((16, 3, 7, 9), (64, 1, 5, 5), (48, 7, 1, 1), (32, 20, 30, 31)):
        x = rng.standard_normal(shape).astype(dtype)
        for convert in (
            np.asarray,
            functional.to_channels_last,
            lambda a: a[:, :, ::-1][:, :, ::-1],
        ):
            last = to_images_last(convert(x))
            assert is_images_last(last)
            np.testing.assert_array_equal(last, x)
        assert to_images_last(last) is last
        back = to_contiguous(last)
        assert back.flags.c_contiguous
        np.testing.assert_array_equal(back, x)
        np.testing.assert_array_equal(functional.to_channels_last(last), x)
        np.testing.assert_array_equal(functional.flatten(last), x.reshape(len(x), -1))


def pooled(x, **options):
    """Return every pooling of `x`, and its gradient."""
    y, indices = functional.max_pool2d(x, 3, 2, 1, return_indices=True, **options)
    back = functional.max_pool2d_backward(y, indices, x.shape)
    average = functional.avg_pool2d(x, (2, 3), 2, **options)
    return (
        y,
        indices,
        functional.max_pool2d(x, 2),
        back,
        functional.max_unpool2d(y, indices, 3, 2, 1, x.shape[2:]),
        functional.max_unpool2d_backward(back, indices),
        average,
        functional.avg_pool2d_backward(average, x.shape, (2, 3), 2, **options),
        functional.adaptive_avg_pool2d(x, 1),
        functional.adaptive_avg_pool2d(x, (2, 5)),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_pooling_keeps_the_layout(dtype):
    x = np.random.default_rng(5).standard_normal((32, 5, 9, 11)).astype(dtype)
    for mine, true in zip(pooled(to_images_last(x)), pooled(x), strict=True):
        assert is_images_last(mine)
        tolerance = 1e-5 if dtype == np.float32 else 1e-13
        np.testing.assert_allclose(mine, true, tolerance, tolerance)


def test_pooling_takes_gradients_and_indices_of_other_layouts():
    x = np.random.default_rng(6).standard_normal((16, 3, 8, 8))
    y, indices = functional.max_pool2d(to_images_last(x), 2, return_indices=True)
    expected = functional.max_pool2d_backward(
        to_contiguous(y), np.array(indices, order="C"), x.shape
    )
    for gradient in (to_contiguous(y), functional.to_channels_last(y)):
        got = functional.max_pool2d_backward(gradient, indices, x.shape)
        assert is_images_last(got)
        np.testing.assert_array_equal(got, expected)
    wrong = indices.copy(order="K")
    wrong[3, 1, 2, 2] = 64
    with pytest.raises(ValueError, match="indices must be from 0 to 63, got 64"):
        functional.max_pool2d_backward(y, wrong, x.shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_operators_keep_the_layout(dtype):
    rng = np.random.default_rng(7)
    x, g = (rng.standard_normal((16, 5, 6, 7)).astype(dtype) for _ in range(2))
    weight, bias = (rng.standard_normal(5).astype(dtype) for _ in range(2))

    def results(a, grad):
        yield functional.relu(a)
        yield functional.relu_backward(grad, a)
        yield functional.batch_norm(a, None, None, weight, bias, training=True)
        yield functional.batch_norm_backward(grad, a, None, None, weight, training=True)[0]
        yield functional.prelu(a, weight)
        yield functional.softmax(a)

    tolerance = 1e-4 if dtype == np.float32 else 1e-12
    for grad in (g, to_images_last(g)):
        for mine, true in zip(results(to_images_last(x), grad), results(x, g), strict=True):
            assert is_images_last(mine)
            np.testing.assert_allclose(mine, true, tolerance, tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("images", [16, 64])
@pytest.mark.parametrize("outputs", [1, 10, 64, 65])
def test_linear_layers_of_flattened_images(outputs, images, dtype):
    rng = np.random.default_rng(outputs)
    x = to_images_last(rng.standard_normal((images, 5, 7, 9)).astype(dtype))
    flat = functional.flatten(x)
    np.testing.assert_array_equal(flat, np.ascontiguousarray(x).reshape(images, -1))
    assert np.shares_memory(flat, x)
    w = rng.standard_normal((outputs, flat.shape[1])).astype(dtype)
    b = rng.standard_normal(outputs).astype(dtype)
    g = rng.standard_normal((images, outputs)).astype(dtype)
    plain = np.ascontiguousarray(flat)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    for bias in (b, None):
        y = functional.linear(flat, w, bias)
        assert y.flags.c_contiguous
        np.testing.assert_allclose(
            y, functional.linear(plain, w, bias), rtol=tolerance, atol=20 * tolerance
        )
    together = functional.linear_backward(g, flat, w), functional.linear_backward(g, plain, w)
    for one, other in zip(*together, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=20 * tolerance)
    masked = functional.linear_backward(g, flat, w, output_mask=(False, True, False))
    assert masked[0] is masked[2] is None and masked[1] is not None


def test_contiguous_images_by_way_of_lanes(monkeypatch):
    """80 images are more than one array holds."""
    rng = np.random.default_rng(8)
    x, w = integers(rng, (80, 3, 28, 28), np.float32), integers(rng, (5, 3, 6, 6), np.float32)
    bias = integers(rng, 5, np.float32)
    expected = reference.conv2d(x, w, bias, 2, activation="relu")
    noise = rng.standard_normal(x.shape, dtype=np.float32)
    monkeypatch.setattr(conv, "pays_for_lanes", lambda problem: True)
    conv._route.cache_clear()
    y = conv2d(x, w, bias, 2, activation="relu")
    assert y.flags.c_contiguous
    np.testing.assert_array_equal(y, expected)
    last = conv2d(to_images_last(noise[:64]), w, bias, 2)
    assert conv2d(noise, w, bias, 2)[:64].tobytes() == to_contiguous(last).tobytes()
    conv._route.cache_clear()


def test_nets_of_few_channels_take_images_last():
    rng = np.random.default_rng(9)
    for net, size, images, taken in (
        (models.cifar_basic(rng=rng), 28, 16, True),
        (models.cifar_basic(rng=rng), 28, 80, False),
        (models.cifar_basic(rng=rng), 28, 20, False),
        (models.cs231n_convnet(rng=rng), 32, 32, True),
        (models.cifar_advanced(rng=rng), 32, 16, False),
        (models.resnet20(rng=rng), 32, 16, False),
        (models.mnist_cnn(rng=rng), 28, 16, False),
    ):
        x = rng.standard_normal((images, net.layers[0].in_channels, size, size), np.float32)
        first = next(iter(net.walk(x)))
        assert is_images_last(first.output) == taken, f"{images} images"
        with set_float32_precision("highest"):
            assert not is_images_last(next(iter(net.walk(x))).output)
    # More than 320 pairs of a channel and a filter need a window of many taps and no stride, that
    # Winograd's algorithm does not take.
    for arguments, taken in (((6, 1), True), ((6, 2), False), ((2, 1), False), ((4, 1), False)):
        assert nn.Conv2d(16, 32, *arguments).prefers_images_last() == taken, arguments
    assert not nn.Conv2d(17, 32, 6).prefers_images_last()


def test_nested_nets_stay_images_last():
    """Bodies, branches and whole nets inside of others, in both directions."""
    rng = np.random.default_rng(10)

    def conv_of(channels, filters):
        return nn.Conv2d(channels, filters, 3, padding=1, rng=rng, dtype=np.float64)

    net = nn.Sequential(
        conv_of(3, 4),
        nn.Residual(conv_of(4, 4), nn.ReLU(), conv_of(4, 4)),
        nn.ReLU(),
        nn.Sequential(nn.BatchNorm2d(4, dtype=np.float64), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Concat(conv_of(4, 2), conv_of(4, 3)),
        nn.AvgPool2d(2),
        nn.Flatten(),
    )
    x = rng.standard_normal((32, 3, 12, 12))
    results = []
    for level in ("high", "highest"):
        net.zero_grad()
        with set_float32_precision(level):
            y = net(x)
            results.append([y, net.backward(np.cos(y)), *(p.grad for p in net.parameters())])
    for mine, true in zip(*results, strict=True):
        np.testing.assert_allclose(mine, true, 1e-9, 1e-11)
