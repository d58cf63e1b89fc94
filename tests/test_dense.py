"""Linear layers, normalisation, activations, softmax: against torch; threads, layouts, memory."""

import numpy as np
import pytest

from convkern import functional, num_threads, reference

from .draws import cases
from .memory import guarded

DTYPES = (np.float32, np.float64)
CASES = cases(200)
SIZES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65]


def close(mine, theirs, note=""):
    """Hold an array, or tuple of arrays, equal to tensors up to rounding."""
    if isinstance(mine, tuple):
        for one, other in zip(mine, theirs, strict=True):
            close(one, other, note)
        return
    theirs = theirs.detach().numpy()
    assert mine.dtype == theirs.dtype and mine.shape == theirs.shape, note
    tolerance = 2e-5 if mine.dtype == np.float32 else 1e-12
    scale = abs(theirs).max(initial=1)
    np.testing.assert_allclose(mine, theirs, tolerance, tolerance * scale, err_msg=note)


def random_layout(rng, x):
    """Return an equal array with another memory layout: one of the usual two, or any."""
    kind = rng.integers(4)
    if kind == 1 and x.ndim > 2:
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    if kind == 2:
        order = rng.permutation(x.ndim)
        return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
    if kind == 3:
        return np.repeat(x[..., ::-1], 2, axis=0)[::2, ..., ::-1]
    return x


def images(rng, dtype):
    """Return an array of two to four axes and its random gradient."""
    shape = (int(rng.integers(1, 6)), int(rng.choice(SIZES)), *rng.integers(1, 9, rng.integers(3)))
    x, g = rng.standard_normal((2, *shape)).astype(dtype)
    return random_layout(rng, x), random_layout(rng, g)


def differentiated(torch, function, grad, *arrays):
    """Return torch's output of a function of tensors and its gradients by all of them."""
    leaves = [torch.from_numpy(np.array(a, order="C")).requires_grad_() for a in arrays]
    output = function(*leaves)
    return output, torch.autograd.grad(output, leaves, torch.from_numpy(np.array(grad, order="C")))


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_backward(torch, dtype):
    for seed in range(CASES):
        rng = np.random.default_rng(seed)
        batch, inputs, outputs = (int(rng.choice(SIZES)) for _ in range(3))
        if seed % 20 == 0:
            batch, inputs = 300, 1030  # several chunks and items
        x = rng.standard_normal((batch, inputs)).astype(dtype)
        w = rng.standard_normal((outputs, inputs)).astype(dtype)
        g = rng.standard_normal((batch, outputs)).astype(dtype)
        _, expected = differentiated(
            torch, torch.nn.functional.linear, g, x, w, np.zeros(outputs, dtype)
        )
        given = [random_layout(rng, a) for a in (g, x, w)]
        close(functional.linear_backward(*given), expected, f"seed {seed}")


def test_linear_backward_of_one_feature_and_masks():
    x, g = np.ones((2, 3, 4)), np.ones((2, 3))
    gradients = functional.linear_backward(g, x, np.arange(4.0))
    for mine, true in zip(gradients, (np.arange(4.0) * np.ones(x.shape), 6, 6), strict=True):
        np.testing.assert_array_equal(mine, np.broadcast_to(true, mine.shape))
    assert [a.shape for a in gradients] == [(2, 3, 4), (4,), ()]
    wanted = functional.linear_backward(g, x, np.arange(4.0), output_mask=(False, True, False))
    assert wanted[0] is None and wanted[1] is not None and wanted[2] is None
    empty = functional.linear_backward(g[:0], x[:0], np.arange(4.0))
    np.testing.assert_array_equal(empty[1], np.zeros(4))


@pytest.mark.parametrize("training", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm(torch, dtype, training):
    for seed in range(CASES):
        rng = np.random.default_rng(seed)
        x, g = images(rng, dtype)
        channels = x.shape[1]
        if training and x.size == channels:
            continue
        x = x * dtype(3) + dtype(20)
        mean, var, weight, bias = rng.random((4, channels)).astype(dtype) + dtype(0.5)
        statistics = torch.tensor(mean), torch.tensor(var)

        def normalise(x, w, b, statistics=statistics):
            return torch.nn.functional.batch_norm(x, *statistics, w, b, training, 0.3, 1e-3)

        expected, gradients = differentiated(torch, normalise, g, x, weight, bias)
        note = f"seed {seed}: {x.shape}"
        old = mean.copy(), var.copy()
        got = functional.batch_norm(x, mean, var, weight, bias, training, 0.3, 1e-3)
        np.testing.assert_allclose(got, expected.detach(), 1e-4, 1e-4, err_msg=note)
        close((mean, var), statistics, note)
        got = functional.batch_norm_backward(g, x, *old, weight, training, 1e-3)
        exact = functional.batch_norm_backward(
            *(a.astype(float) for a in (g, x, *old, weight)), training, 1e-3
        )
        for mine, theirs, true in zip(got, gradients, exact, strict=True):
            scale = abs(true).max() + 1
            assert mine.dtype == dtype and mine.shape == tuple(theirs.shape)
            np.testing.assert_allclose(mine, true, 1e-4, 1e-5 * scale, err_msg=note)
            np.testing.assert_allclose(mine, theirs, 1e-3, 1e-4 * scale, err_msg=note)


def test_batch_norm_statistics_are_accurate_far_from_zero():
    rng = np.random.default_rng(0)
    for layout in ((64, 5, 40, 40), (64, 40, 40, 5)):
        for dtype, offset in ((np.float32, 1e3), (np.float64, 1e8)):
            x = (rng.standard_normal(layout) + offset).astype(dtype)
            x = x if layout[1] == 5 else x.transpose(0, 3, 1, 2)
            mean, var = np.zeros(5, dtype), np.zeros(5, dtype)
            functional.batch_norm(x, mean, var, training=True, momentum=1.0)
            # The differences are exact: no wider type is needed, which some machines do not have.
            centred = x.astype(np.float64) - offset
            rtol = 4 * np.finfo(dtype).eps
            np.testing.assert_allclose(mean, offset + centred.mean((0, 2, 3)), rtol)
            np.testing.assert_allclose(
                var,
                centred.var((0, 2, 3), ddof=1),
                1e-6 if dtype == np.float32 else offset * np.finfo(dtype).eps,
            )


def test_batch_norm_refuses_what_torch_refuses():
    x, mean, var = np.ones((4, 3)), np.zeros(3), np.ones(3)
    for arguments, message in (
        ((x, mean, None, None, None, True), "both arrays or both None"),
        ((x, mean, var, None, None, True, 0.1, 0.0), "positive in training"),
        ((x[:1], mean, var, None, None, True), "more than one value per channel"),
    ):
        with pytest.raises(ValueError, match=message):
            functional.batch_norm(*arguments)
    assert functional.batch_norm(x[:0], mean, var, training=True).shape == (0, 3)
    np.testing.assert_array_equal((mean, var), ((0, 0, 0), (1, 1, 1)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_local_response_norm_backward(torch, dtype):
    for seed in range(CASES):
        rng = np.random.default_rng(seed)
        shape = (2, int(rng.choice(SIZES)), *rng.integers(1, 5, 2))
        x, g = rng.standard_normal((2, *shape)).astype(dtype)
        options = (int(rng.integers(1, 9)), 0.5, float(rng.choice([0.75, 0.6, 1])), 1.5)

        def normalise(x, options=options):
            return torch.nn.functional.local_response_norm(x, *options)

        _, expected = differentiated(torch, normalise, g, x)
        got = functional.local_response_norm_backward(
            random_layout(rng, g), random_layout(rng, x), *options
        )
        close((got,), expected, f"seed {seed}: {shape} {options}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(torch, dtype):
    native = torch.nn.functional
    for seed in range(CASES):
        rng = np.random.default_rng(seed)
        x, g = images(rng, dtype)
        weight = rng.random(x.shape[1] if seed % 2 else 1).astype(dtype)
        note = f"seed {seed}: {x.shape}"
        for name, rest in (("relu", ()), ("leaky_relu", (0.3,)), ("sigmoid", ())):
            expected, (gradient,) = differentiated(
                torch, lambda x, name=name, rest=rest: getattr(native, name)(x, *rest), g, x
            )
            y = getattr(functional, name)(x, *rest)
            close(y, expected, note)
            kept = x if name == "leaky_relu" else random_layout(rng, y)
            close(getattr(functional, f"{name}_backward")(g, kept, *rest), gradient, note)
        expected, gradients = differentiated(torch, native.prelu, g, x, weight)
        close(functional.prelu(x, weight), expected, note)
        close(functional.prelu_backward(g, x, weight), gradients, note)
        for axis in range(-x.ndim, x.ndim):
            expected, (gradient,) = differentiated(
                torch, lambda x, axis=axis: torch.softmax(x, axis), g, 30 * x
            )
            y = functional.softmax(30 * x, axis)
            close(y, expected, note)
            close(functional.softmax_backward(g, random_layout(rng, y), axis), gradient, note)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_is_accurate_to_two_units_in_the_last_place(dtype):
    """Look at exp(-t) as the lesser share of two, where the greater one's exponential is one."""
    least = np.log(np.finfo(dtype).smallest_subnormal.astype(np.longdouble)) - 2
    t = np.random.default_rng(0).uniform(45, -least, 200_000).astype(dtype)
    shares = functional.softmax(np.stack([np.zeros_like(t), -t]), axis=0)[1]
    with np.errstate(under="ignore"):
        exact = np.exp(-t.astype(np.longdouble))
        error = abs(shares - exact) / np.spacing(exact.astype(dtype))
    assert error.max() < 2


def test_special_values():
    inf, nan = np.inf, np.nan
    for dtype in DTYPES:
        x = np.array([nan, inf, -inf, -1000, 1000, 0], dtype)
        np.testing.assert_array_equal(functional.sigmoid(x), [nan, 1, 0, 0, 1, 0.5])
        rows = np.array([[nan, 0], [-inf, -inf], [-inf, 0], [1e30, 1e30]], dtype)
        expected = [[nan, nan], [nan, nan], [0, 1], [0.5, 0.5]]
        np.testing.assert_array_equal(functional.softmax(rows), expected)
        np.testing.assert_array_equal(functional.softmax(rows.T.copy(), 0), np.transpose(expected))
        one = np.ones(3, dtype)
        kept = np.array([nan, 0, 1], dtype)
        np.testing.assert_array_equal(
            functional.relu_backward(one * dtype(inf), kept), [inf, 0, inf]
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_many_items(dtype):
    """Planes, rows and lists of elements so long that they are cut, the last part being short."""
    rng = np.random.default_rng(3)
    tolerance = 1e-4 if dtype == np.float32 else 1e-11
    for shape in ((2, 5, 130, 131), (5, 7, 40, 41), (40_000, 3)):
        x, g = (rng.standard_normal((2, *shape)) + 3).astype(dtype)
        mean, bias = rng.standard_normal((2, shape[1])).astype(dtype)
        given, exact = (mean, mean**2), (mean.astype(float), mean.astype(float) ** 2)
        y = functional.batch_norm(x, *given, None, bias, True)
        expected = reference.batch_norm(x, *exact, None, bias, True)
        for mine, true in zip((y, *given), (expected, *exact), strict=True):
            np.testing.assert_allclose(mine, true, tolerance, tolerance)
        dx, dw, db = functional.batch_norm_backward(g, x, None, None, np.ones_like(bias), True)
        axes = (0, *range(2, x.ndim))
        # Of numbers about zero, whose plain sums in the reference are close enough.
        normal = reference.batch_norm(x.astype(float) - 3, None, None, training=True)
        products = (g * normal).mean(axes, keepdims=True)
        deviation = np.sqrt(x.astype(float).var(axes, keepdims=True) + 1e-5)
        true = (g - g.astype(float).mean(axes, keepdims=True) - normal * products) / deviation
        np.testing.assert_allclose(dx, true, tolerance, tolerance)
        terms = g * normal
        assert (abs(dw - terms.sum(axes)) <= tolerance * abs(terms).sum(axes)).all()
        np.testing.assert_allclose(db, g.sum(axes, float), tolerance)
        y = functional.activation.add(x, -g, "relu")
        np.testing.assert_array_equal(y, np.maximum(x - g, 0))
    x, g = rng.standard_normal((2, 1001, 10)).astype(dtype)
    y = functional.softmax(x)
    np.testing.assert_allclose(y, reference.softmax(x), tolerance)
    got, true = functional.softmax_backward(g, y), y * (g - (g * y).sum(1, keepdims=True))
    np.testing.assert_allclose(got, true, tolerance, tolerance)


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_every_thread_count(dtype, channels_last):
    rng = np.random.default_rng(1)
    x, g = rng.standard_normal((2, 9, 35, 43, 29)).astype(dtype)
    if channels_last:
        x, g = functional.to_channels_last(x), functional.to_channels_last(g)
    weight, mean = rng.standard_normal((2, 35)).astype(dtype)
    rows, grads = rng.standard_normal((70, 500)).astype(dtype), rng.standard_normal((70, 90))
    grads, matrix = grads.astype(dtype), rng.standard_normal((90, 500)).astype(dtype)
    named, shares = rng.integers(0, 35, (9, 43, 29)), functional.softmax(g)
    first = None
    for threads in (1, 2, 3, 7):
        with num_threads(threads):
            statistics = mean.copy(), mean**2
            results = (
                functional.batch_norm(x, *statistics, weight, mean, True),
                *statistics,
                *functional.batch_norm_backward(g, x, None, None, weight, True),
                *functional.prelu_backward(g, x, weight),
                *functional.prelu_backward(g, x, weight[:1]),
                functional.local_response_norm_backward(g, x, 5),
                functional.sigmoid(x),
                functional.softmax_backward(g, functional.softmax(x)),
                functional.cross_entropy(x, named, abs(weight), label_smoothing=0.1),
                functional.cross_entropy_backward(1.0, x, named, abs(weight)),
                functional.cross_entropy_backward(1.0, x, shares),
                *functional.linear_backward(grads, rows, matrix),
                functional.im2col(x, 3, padding=1),
                functional.col2im(functional.im2col(x, 3, padding=1), (43, 29), 3, padding=1),
            )
        first = first or results
        for one, other in zip(first, results, strict=True):
            assert one.tobytes() == other.tobytes(), f"{threads} threads"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("batch_norm", (np.zeros(6), np.ones(6))),
        ("local_response_norm_backward", (3,)),
        ("prelu", (np.ones(6),)),
        ("relu_backward", ()),
        ("sigmoid", ()),
        ("softmax", ()),
        ("softmax_backward", ()),
        ("cross_entropy_backward", (np.zeros((2, 9, 11), np.int64),)),
    ],
)
def test_results_have_the_layout_of_the_input(name, arguments):
    x = np.random.default_rng(0).standard_normal((2, 6, 9, 11))
    lead = (x,) if name.endswith("_backward") else ()
    if name == "cross_entropy_backward":
        lead = (1.0,)
    expected = getattr(functional, name)(*lead, x, *arguments)
    assert expected.flags.c_contiguous
    last = functional.to_channels_last(x)
    got = getattr(functional, name)(*lead, last, *arguments)
    assert got.transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("at_end", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_read_outside_the_arrays(dtype, at_end):
    rng = np.random.default_rng(2)
    for channels in (1, 3, 7, 16, 17, 33, 65):
        for pixels in (2, 5, 17):
            shape = (2, channels, 1, pixels)
            x = guarded(rng.standard_normal(shape).astype(dtype), at_end)
            g = guarded(rng.standard_normal(shape).astype(dtype), at_end)
            weight = guarded(rng.random(channels).astype(dtype), at_end)
            matrix = guarded(rng.standard_normal((channels, 2 * pixels)).astype(dtype), at_end)
            rows = matrix.reshape(2 * pixels, channels)
            last = (0, 3, 1, 2)
            for a, b in ((x, g), (x.reshape(2, 1, pixels, -1).transpose(last),) * 2):
                functional.batch_norm(a, weight, weight, weight, weight)
                functional.batch_norm_backward(b, a, None, None, weight, True)
                functional.prelu_backward(b, a, weight)
                functional.local_response_norm_backward(b, a, 5)
                functional.sigmoid_backward(b, a)
                for axis in (1, 3):
                    functional.softmax_backward(b, functional.softmax(a, axis), axis)
                functional.cross_entropy_backward(1.0, a, b)
            products = functional.linear_backward(rows, matrix.T @ rows.T @ rows, rows.T @ rows)
            assert all(np.isfinite(p).all() for p in products)
            functional.linear_backward(rows, rows, guarded(rows.T @ rows, at_end))


def test_gradients_of_the_cross_entropy_in_float64():
    """Compare with differences of the reference along random directions."""
    for seed in range(cases(60)):
        rng = np.random.default_rng(seed)
        classes = int(rng.integers(1, 9))
        shape = [(classes,), (5, classes), (2, classes, 3, 4)][seed % 3]
        x, direction = rng.standard_normal((2, *shape))
        axis = min(1, x.ndim - 1)
        target = rng.random(shape)
        if seed % 2:
            target = np.asarray(rng.integers(0, classes, shape[:axis] + shape[axis + 1 :]))
        weight = rng.random(classes)
        options = {"reduction": ["mean", "sum"][seed % 2], "label_smoothing": 0.1 * (seed % 3)}
        step = 1e-6 * direction
        difference = reference.cross_entropy(x + step, target, weight, **options)
        difference -= reference.cross_entropy(x - step, target, weight, **options)
        gradient = functional.cross_entropy_backward(1.0, x, target, weight, **options)
        np.testing.assert_allclose((gradient * direction).sum(), difference / 2e-6, 1e-3, 1e-6)
