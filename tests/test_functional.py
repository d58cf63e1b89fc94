"""Argument forms, layouts, edge semantics and errors of the public operators."""

import gc

import numpy as np
import pytest

import convkern
from convkern import functional, reference

F32, F64 = np.float32, np.float64


def normal(*shape, dtype=F32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def channels_last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


X, W, B = normal(2, 6, 9, 11), normal(8, 6, 3, 3, seed=1), normal(8, seed=2)


# ---------------------------------------------------------------- layouts


def layouts():
    """Every way in which an array of X's values can lie in memory."""
    yield "contiguous", X
    yield "channels-last", channels_last(X)
    yield "Fortran", np.asfortranarray(X)
    yield "reversed", X[..., ::-1].copy()[..., ::-1]
    yield "reversed channels", np.ascontiguousarray(X[:, ::-1])[:, ::-1]
    gaps = np.full((4, 12, 18, 22), np.nan, F32)
    gaps[::2, ::2, ::2, ::2] = X
    yield "gaps", gaps[::2, ::2, ::2, ::2]
    wide = np.full((2, 12, 15, 6), np.nan, F32)
    wide[:, 1:10, 2:13] = X.transpose(0, 2, 3, 1)
    yield "channels-last crop", wide[:, 1:10, 2:13].transpose(0, 3, 1, 2)
    shifted = np.empty(X.nbytes + 1, np.uint8)[1:].view(F32).reshape(X.shape)
    shifted[...] = X
    yield "unaligned", shifted
    frozen = X.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen
    yield "byte-swapped", X.astype(X.dtype.newbyteorder())


LAYOUTS = dict(layouts())


def rounded_alike(y, expected):
    """Hold two float32 results equal that were added up in different orders."""
    np.testing.assert_allclose(y, expected, 2e-5, 2e-5)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_gives_the_same(kind):
    x = LAYOUTS[kind]
    expected = functional.conv2d(X, W, B, padding=1)
    rounded_alike(functional.conv2d(x, W, B, padding=1), expected)
    pooled = functional.max_pool2d(X, 3, 2, 1, return_indices=True)
    for got, wanted in zip(
        functional.max_pool2d(x, 3, 2, 1, return_indices=True), pooled, strict=True
    ):
        np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(functional.relu(x), np.maximum(X, 0))
    np.testing.assert_array_equal(
        functional.local_response_norm(x, 3), functional.local_response_norm(X, 3)
    )
    np.testing.assert_array_equal(functional.to_channels_last(x), X)
    np.testing.assert_array_equal(functional.flatten(x), X.reshape(2, -1))
    w = channels_last(W) if kind == "channels-last" else np.asfortranarray(W)
    rounded_alike(functional.conv2d(x, w, B, padding=1), expected)


def test_stride_zero_input():
    x = np.broadcast_to(F32(2), (2, 6, 9, 11))
    y = functional.conv2d(x, W)
    np.testing.assert_allclose(
        y, np.broadcast_to(2 * W.sum((1, 2, 3))[:, None, None], y.shape), 1e-4
    )


@pytest.mark.parametrize("function", ("conv2d", "max_pool2d", "relu", "local_response_norm"))
def test_output_has_the_layout_of_the_input(function):
    arguments = {"conv2d": (W,), "max_pool2d": (2,), "relu": (), "local_response_norm": (3,)}
    call = getattr(functional, function)
    assert call(X, *arguments[function]).flags.c_contiguous
    y = call(channels_last(X), *arguments[function])
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous
    assert y.base is None or y.base.flags.owndata


def test_ambiguous_layouts_follow_the_strides_as_torch(torch):
    conv = torch.nn.functional.conv2d
    for n, c, h, w in ((2, 1, 4, 5), (2, 3, 1, 1), (1, 1, 1, 1), (1, 1, 4, 1), (2, 1, 1, 5)):
        weight = np.ones((2, c, 3, 3), F32)
        for kind in (torch.contiguous_format, torch.channels_last):
            x = torch.zeros((n, c, h, w)).contiguous(memory_format=kind)
            expected = conv(x, torch.from_numpy(weight), padding=2)
            got = convkern.conv2d(x.numpy(), weight, padding=2)
            assert got.strides == tuple(4 * s for s in expected.stride()), (x.shape, kind)


def test_large_results_own_their_memory():
    def idle_bytes():
        return convkern.show_config("dicts")["idle_bytes"]

    gc.collect()  # what earlier tests left gives its memory back now, not half-way
    x = normal(1, 8, 300, 300)
    y = convkern.conv2d(x, normal(8, 8, 3, 3))
    assert y.flags.owndata and y.flags.writeable
    size = y.nbytes
    del y
    before = idle_bytes()
    again = convkern.conv2d(x, normal(8, 8, 3, 3))
    assert before - idle_bytes() >= size  # the pages that y had or others, but no new ones
    kept = again.copy()
    other = convkern.conv2d(-x, normal(8, 8, 3, 3))
    np.testing.assert_array_equal(again, kept)
    assert not np.shares_memory(again, other)
    again.resize((10, 10), refcheck=False)
    del again, other
    convkern.empty_cache()
    assert idle_bytes() == 0


# ---------------------------------------------------------------- conv2d


def test_unbatched_and_empty():
    np.testing.assert_array_equal(convkern.conv2d(X[0], W, B), convkern.conv2d(X, W, B)[0])
    assert convkern.conv2d(X[:0], W, padding=1).shape == (0, 8, 9, 11)
    assert convkern.max_pool2d(X[:0], 3).shape == (0, 6, 3, 3)
    assert convkern.linear(X[:0, 0, 0], normal(4, 11)).shape == (0, 4)


@pytest.mark.parametrize(
    ("padding", "pairs"),
    [
        (2, ((2, 2), (2, 2))),
        ((1, 2), ((1, 1), (2, 2))),
        ("valid", ((0, 0), (0, 0))),
        ("same", ((1, 2), (2, 2))),
        (((0, 3), (2, 1)), ((0, 3), (2, 1))),
        (np.array([1, 2]), ((1, 1), (2, 2))),
    ],
)
def test_padding_forms(padding, pairs):
    w = normal(3, 6, 4, 5)
    padded = np.pad(X, ((0, 0), (0, 0), *pairs))
    got = convkern.conv2d(X, w, padding=padding)
    np.testing.assert_allclose(got, reference.conv2d(padded, w), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", (F32, F64))
@pytest.mark.parametrize("shape", [(96, 13, 64, 3), (3, 40, 20, 7), (700, 5, 33, 1), (5, 9, 5, 9)])
def test_error_stays_inside_the_bound_of_a_direct_sum(dtype, shape):
    """Check |out - ref| <= 2 * gamma_K * sum |x||w| (Higham, Accuracy and Stability, 3.1)."""
    channels, size, out_channels, kernel = shape
    x = normal(2, channels, size, size, dtype=dtype)
    w = normal(out_channels, channels, kernel, kernel, dtype=dtype, seed=3)
    y = convkern.conv2d(x, w, padding=kernel // 2, algorithm="direct").astype(np.longdouble)
    magnitude = reference.conv2d(abs(x), abs(w), padding=kernel // 2)
    unit = np.finfo(dtype).eps / 2 * channels * kernel**2
    slack = 1e-14 * magnitude  # of the float64 reference itself
    error = abs(y - reference.conv2d(x, w, padding=kernel // 2))
    assert (error <= 2 * unit / (1 - unit) * magnitude + slack).all()


@pytest.mark.parametrize("layout", (np.ascontiguousarray, channels_last))
def test_out(layout):
    expected = convkern.conv2d(X, W, B)
    for out in (np.full_like(expected, np.nan), channels_last(expected) * np.nan):
        assert convkern.conv2d(layout(X), W, B, out=out) is out
        rounded_alike(out, expected)
    holes = np.full((2, 8, 14, 18), np.nan, F32)
    assert convkern.conv2d(layout(X), W, B, out=holes[:, :, ::2, ::2]).shape == expected.shape
    rounded_alike(holes[:, :, ::2, ::2], expected)
    assert np.isnan(holes[:, :, 1::2]).all()
    single = np.full_like(expected[0], np.nan)
    assert convkern.conv2d(X[0], W, B, out=single) is single
    np.testing.assert_array_equal(single, expected[0])


def test_out_is_refused():
    shape = (2, 8, 7, 9)
    frozen = np.empty(shape, F32)
    frozen.flags.writeable = False
    memory = np.zeros(5000, F32)
    view = memory[: X.size].reshape(X.shape)
    weights = memory[1500 : 1500 + W.size].reshape(W.shape)
    cases = [
        (X, W, frozen, ValueError, "writeable"),
        (X, W, np.empty(shape, F64), TypeError, "dtype float32"),
        (X, W, np.empty(shape, ">f4"), TypeError, "native byte order"),
        (X, W, np.empty((2, 8, 7, 8), F32), ValueError, r"shape \(2, 8, 7, 9\)"),
        (X, W, [1, 2], TypeError, "NumPy array"),
        (X, W, np.ma.zeros(shape, F32), TypeError, "NumPy array"),
        (view, W, memory[500 : 500 + 1008].reshape(shape), ValueError, "overlap an input"),
        (X, weights, memory[1000 : 1000 + 1008].reshape(shape), ValueError, "overlap an input"),
        (X, W, np.lib.stride_tricks.as_strided(memory, shape, (0, 4, 4, 4)), ValueError, "itself"),
    ]
    for x, w, out, error, message in cases:
        with pytest.raises(error, match=message):
            convkern.conv2d(x, w, out=out)


def test_activations():
    y = convkern.conv2d(X, W, B)
    np.testing.assert_array_equal(convkern.conv2d(X, W, B, activation="relu"), np.maximum(y, 0))
    np.testing.assert_array_equal(
        convkern.conv2d(X, W, B, activation="relu6"), np.clip(y, 0, 6).astype(F32)
    )
    np.testing.assert_array_equal(
        convkern.conv2d(X, W, B, activation="leaky_relu"), np.where(y < 0, y * F32(0.01), y)
    )


def test_special_values():
    x = np.zeros((1, 1, 5, 5), F32)
    x[0, 0, 2, 2] = np.nan
    w = np.ones((1, 1, 3, 3), F32)
    assert np.isnan(convkern.conv2d(x, w)).all()
    assert np.isnan(convkern.conv2d(x, w, activation="relu")).all()
    x[0, 0, 2, 2] = np.inf
    assert np.isposinf(convkern.conv2d(x, w)).all()
    tiny = np.full((1, 1, 3, 3), 1e-45, F32)
    assert convkern.conv2d(tiny, w)[0, 0, 0, 0] == F32(9 * np.float64(tiny[0, 0, 0, 0]))


def test_packed_weights_do_not_follow_the_original():
    w = W.copy()
    packed = functional.PackedConv2d(w, B, padding=1)
    expected = packed(X)
    w[...] = 0
    np.testing.assert_array_equal(packed(X), expected)
    rounded_alike(packed(channels_last(X)[:1]), expected[:1])


# ---------------------------------------------------------------- max_pool2d


def test_max_pool_edge_semantics():
    nan, inf = np.nan, np.inf
    cases = [
        ([[1, 2, 2, 1]], (1, 4), 2, 1),
        ([[nan, 1, nan, 5]], (1, 4), nan, 2),
        ([[-inf, -inf]], (1, 2), -inf, 0),
        ([[0.0, -0.0]], (1, 2), 0.0, 0),
        ([[-inf, inf]], (1, 2), inf, 1),
    ]
    for plane, kernel, value, index in cases:
        for layout in (np.ascontiguousarray, channels_last):
            # Two channels, so that the layouts differ.
            x = layout(np.array([[plane, plane]], F32))
            got, where = convkern.max_pool2d(x, kernel, return_indices=True)
            np.testing.assert_array_equal(got.ravel(), [value] * 2)
            np.testing.assert_array_equal(where.ravel(), [index] * 2)


# ---------------------------------------------------------------- linear


def test_linear_shapes():
    x, w, b = normal(2, 3, 4, 7), normal(5, 7), normal(5)
    y = convkern.linear(x, w, b)
    assert y.shape == (2, 3, 4, 5)
    np.testing.assert_allclose(y, reference.linear(x, w, b), rtol=1e-5, atol=1e-5)
    assert convkern.linear(x[0, 0, 0], w).shape == (5,)
    assert convkern.linear(x, w[0]).shape == (2, 3, 4)
    assert convkern.linear(x[..., :0], w[:, :0], b).shape == (2, 3, 4, 5)
    assert convkern.linear(x, w[:0]).shape == (2, 3, 4, 0)


# ---------------------------------------------------------------- errors

TYPES = [None, "image", [[1.0]], {}, X.astype(int), X.astype(np.float16), X > 0, X.astype(complex)]
TYPES += [X.astype(np.longdouble), X.astype(object), np.ma.masked_array(X), 3.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", [np.ascontiguousarray, functional.to_channels_last])
@pytest.mark.parametrize("filters", [1, 5, 16, 49])
def test_weight_gradient_of_a_product_with_few_filters(filters, layout, dtype):
    """Channels or filters may be what vectors hold; sums of small integers are exact."""
    rng = np.random.default_rng(filters)
    x = layout(rng.integers(-4, 5, (3, 150, 5, 7)).astype(dtype))
    grad = layout(rng.integers(-4, 5, (3, filters, 5, 7)).astype(dtype))
    weight = np.zeros((filters, 150, 1, 1), dtype)
    expected = np.einsum("nkhw,nchw->kc", grad.astype(int), x.astype(int))
    for threads in (1, 2):
        with convkern.num_threads(threads):
            found = convkern.conv2d_backward(grad, x, weight)[1]
        np.testing.assert_array_equal(found[:, :, 0, 0], expected)


def test_arguments_that_equal_remembered_ones_are_checked():
    """1.0 and True are the same key as 1, but no integers."""
    convkern.conv2d(X, W, stride=1)
    convkern.conv2d(X, W, stride=(1, 1))
    convkern.max_pool2d(X, 1)
    for wrong in (1.0, True, (1.0, 1), [1, True], (np.float32(1), 1)):
        with pytest.raises(TypeError, match="stride must be an integer"):
            convkern.conv2d(X, W, stride=wrong)
        with pytest.raises(TypeError, match="kernel_size must be an integer"):
            convkern.max_pool2d(X, wrong)
    same = convkern.conv2d(X, W, stride=np.int8(1), padding=[0, 0], dilation=[1])
    np.testing.assert_array_equal(same, convkern.conv2d(X, W))


@pytest.mark.parametrize("value", TYPES, ids=lambda v: str(getattr(v, "dtype", type(v).__name__)))
def test_wrong_types(value):
    calls = [
        ("input", lambda: convkern.conv2d(value, W)),
        ("weight", lambda: convkern.conv2d(X, value)),
        ("input", lambda: convkern.max_pool2d(value, 2)),
        ("input", lambda: convkern.linear(value, W[0, 0])),
        ("weight", lambda: convkern.linear(X, value)),
        ("input", lambda: functional.relu(value)),
        ("input", lambda: functional.local_response_norm(value, 3)),
    ]
    if value is not None:
        calls.append(("bias", lambda: convkern.conv2d(X, W, value)))
    for name, call in calls:
        with pytest.raises(TypeError, match=f"^{name} must be"):
            call()


BAD_INTEGERS = [True, 1.5, np.float64(2.0), "2", None, (1, 2.0), object()]


@pytest.mark.parametrize("value", BAD_INTEGERS, ids=repr)
@pytest.mark.parametrize("name", ("stride", "dilation", "padding", "groups"))
def test_wrong_integers(name, value):
    error = ValueError if (name, value) == ("padding", "2") else TypeError
    with pytest.raises(error, match=name):
        convkern.conv2d(X, W, **{name: value})
    if name in ("dilation", "padding"):
        with pytest.raises((TypeError, ValueError), match=name):
            convkern.max_pool2d(X, 3, **{name: value})


BAD_CONV = [
    ({"input": X[0, 0]}, "input must be 3-D or 4-D"),
    ({"input": X[None]}, "input must be 3-D or 4-D"),
    ({"weight": W[0]}, "weight must be 4-D"),
    ({"input": X[:, :5]}, "input must have 6 channels"),
    ({"input": X[:, :, :0]}, "no empty spatial axis"),
    ({"weight": W[:0]}, "no empty axis"),
    ({"weight": W[:, :, :0]}, "no empty axis"),
    ({"groups": 0}, "groups must be at least 1, got 0"),
    ({"groups": -2}, "groups must be at least 1, got -2"),
    ({"groups": 3}, "groups must divide the 8 output channels, got 3"),
    ({"groups": 2}, "input must have 12 channels"),
    ({"bias": B[:7]}, r"bias must have shape \(8,\)"),
    ({"bias": B[None]}, "bias must be 1-D"),
    ({"stride": 0}, "stride must be at least 1, got 0"),
    ({"stride": (1, -1)}, "stride must be at least 1, got -1"),
    ({"stride": (1, 2, 3)}, "stride must be an integer or a pair"),
    ({"stride": ()}, "stride must be an integer or a pair"),
    ({"stride": 2**62}, "stride must be below"),
    ({"dilation": 0}, "dilation must be at least 1"),
    ({"dilation": 2**62}, "dilation must be below"),
    ({"dilation": 9}, "larger than the padded input"),
    ({"padding": -1}, "padding must be at least 0, got -1"),
    ({"padding": 2**63 - 5}, "padding must be below"),
    ({"padding": 2**70}, "padding must be below"),
    ({"padding": (1, 2, 3)}, "padding must be an integer or a pair"),
    ({"padding": ((1, 2), (3,))}, "padding must be"),
    ({"padding": "full"}, "padding must be 'same', 'valid'"),
    ({"padding": "same", "stride": 2}, "needs stride 1"),
    ({"weight": normal(8, 6, 10, 3)}, "larger than the padded input"),
    ({"activation": "gelu"}, "activation must be one of None, 'relu'"),
    ({"algorithm": "fast"}, "algorithm must be one of 'auto', 'direct'"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_CONV, ids=[m for _, m in BAD_CONV])
def test_bad_conv2d(changes, message):
    with pytest.raises(ValueError, match=message):
        convkern.conv2d(**{"input": X, "weight": W} | changes)


BAD_POOL = [
    ({"input": X[0, 0]}, ValueError, "input must be 3-D or 4-D"),
    ({"input": X[:, :0]}, ValueError, "no empty channel or spatial axis"),
    ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1"),
    ({"kernel_size": None}, TypeError, "kernel_size must be an integer"),
    ({"kernel_size": 12}, ValueError, "larger than the padded input"),
    ({"stride": 0}, ValueError, "stride must be at least 1"),
    ({"padding": 2}, ValueError, "at most half the window"),
    ({"padding": "same"}, TypeError, "padding must be an integer"),
    ({"dilation": 0}, ValueError, "dilation must be at least 1"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_POOL, ids=[m for *_, m in BAD_POOL])
def test_bad_max_pool2d(changes, error, message):
    with pytest.raises(error, match=message):
        convkern.max_pool2d(**{"input": X, "kernel_size": 3} | changes)


def test_bad_linear():
    x, w = normal(3, 4), normal(5, 4)
    for arguments, error, message in [
        ((x, w[:, :3]), ValueError, "input must have 3 features"),
        ((x, w[None]), ValueError, "weight must be 1-D or 2-D"),
        ((x, w, normal(4)), ValueError, r"bias must have shape \(5,\)"),
        ((x, w.astype(F64)), TypeError, "weight must have the input's dtype float32"),
        ((np.float32(1), w), ValueError, "input must be 1-D"),
    ]:
        with pytest.raises(error, match=message):
            convkern.linear(*arguments)


def test_mixed_dtypes():
    with pytest.raises(TypeError, match="input's dtype float32, got float64"):
        convkern.conv2d(X, W.astype(F64))
    with pytest.raises(TypeError, match="bias must have"):
        convkern.conv2d(X, W, B.astype(F64))


def test_conversion_errors_are_the_callers_own():
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise KeyError("mine")

        def __index__(self):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        convkern.conv2d(Broken(), W)
    with pytest.raises(KeyError, match="mine"):
        convkern.conv2d(X, W, stride=Broken())


def test_results_beyond_memory():
    x = np.broadcast_to(F32(1), (2**40, 1, 3, 3))
    with pytest.raises((MemoryError, ValueError)):
        convkern.conv2d(x, np.ones((1, 1, 3, 3), F32))
    with pytest.raises((MemoryError, ValueError)):
        convkern.conv2d(np.ones((1, 1, 3, 3), F32), np.ones((1, 1, 3, 3), F32), padding=2**30)
