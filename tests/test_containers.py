"""Containers beside `Sequential`: names, branches, and sums in place."""

from __future__ import annotations

import copy
from collections import OrderedDict

import numpy as np
import pytest
from layers import is_channels_last

import convkern
from convkern import _kernels, nn
from convkern.arrays import to_images_last
from convkern.functional import conv as functional_conv
from convkern.functional import to_channels_last
from convkern.functional.activation import add
from convkern.functional.conv import conv2d_moments


def normal(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def conv(channels, filters, size=1, seed=0):
    rng = np.random.default_rng(seed)
    return nn.Conv2d(channels, filters, size, padding=size // 2, rng=rng, dtype=np.float64)


# The sum


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(), (0,), (5,), (2, 0, 3, 4), (2047,), (2049,), (33, 3, 32, 32), (2, 9, 5, 7)]
)
@pytest.mark.parametrize("layouts", ["CC", "CL", "LC", "LL"])
def test_add(shape, dtype, activation, layouts):
    if layouts != "CC" and len(shape) != 4:
        return
    make = {"C": np.ascontiguousarray, "L": lambda a: a.transpose(0, 2, 3, 1).copy()}
    x, y = (
        make[kind](normal(shape, seed, dtype)).reshape(shape)
        if kind == "C"
        else make[kind](normal(shape, seed, dtype)).transpose(0, 3, 1, 2)
        for seed, kind in enumerate(layouts)
    )
    expected = x + y if activation is None else np.maximum(x + y, 0)
    copies = x.copy(), y.copy()
    for threads in (1, 3):
        with convkern.num_threads(threads):
            out = add(x, y, activation)
        assert out.dtype == dtype and out.strides == x.strides and out is not x
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(x, copies[0])
        np.testing.assert_array_equal(y, copies[1])
    np.testing.assert_array_equal(add(x, y, activation, overwrite=True), expected)
    np.testing.assert_array_equal(y, copies[1])
    if x.size:
        np.testing.assert_array_equal(x, expected)


def test_add_keeps_nan_and_takes_any_strides():
    x = np.array([np.nan, np.inf, -np.inf, 1.0])
    np.testing.assert_array_equal(add(x, x[::-1], "relu"), [np.nan, np.nan, np.nan, np.nan])
    y = normal((3, 8))
    np.testing.assert_array_equal(add(y[:, ::2], y[:, ::-2]), y[:, ::2] + y[:, ::-2])
    np.testing.assert_array_equal(add(y, np.broadcast_to(y[:1], y.shape)), y + y[:1])
    with pytest.raises(ValueError, match=r"shape \(3, 8\), got \(1, 8\)"):
        add(y, y[:1])
    with pytest.raises(TypeError, match="dtype"):
        add(y, y.astype(np.float32))


# Residual


class Kept(nn.Layer):
    """A layer that gives out an array that it needs again."""

    def __init__(self):
        self.array = normal((2, 3, 4, 5), 7)

    def forward(self, input):
        return self.array

    def gradient(self, grad_output, kept, input_gradient=True):
        return self.array


@pytest.mark.parametrize("layout", [np.ascontiguousarray, to_channels_last])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shortcut", [None, conv(3, 3, 1, 5), nn.ReLU(), Kept()])
@pytest.mark.parametrize(
    "body",
    [
        (),
        (nn.Dropout(0),),
        (nn.Sequential(),),
        (nn.Flatten(), nn.Flatten()),
        (nn.ReLU(),),
        (nn.Sigmoid(),),
        (Kept(),),
        (Kept(), conv(3, 3)),
        (conv(3, 3), Kept()),
        (conv(3, 3, 3),),
        (conv(3, 3, 3), nn.ReLU()),
        (nn.ReLU(), conv(3, 3, 3)),
        (conv(3, 4), nn.BatchNorm2d(4, dtype=np.float64), nn.ReLU(), nn.Sequential(conv(4, 3))),
        (nn.BatchNorm2d(3, dtype=np.float64),),
        (nn.Residual(conv(3, 3)),),
    ],
    ids=str,
)
def test_a_sum_in_place_changes_nothing_else(body, shortcut, relu, layout):
    """The same as both ways by themselves, twice."""
    x, grad = layout(normal((2, 3, 4, 5))), layout(normal((2, 3, 4, 5), 1))
    if body and isinstance(body[0], nn.Flatten):
        x, grad = (np.ascontiguousarray(a).reshape(2, 60) for a in (x, grad))
        if shortcut is not None and not isinstance(shortcut, nn.ReLU):
            return
    copies = x.copy(), grad.copy()
    ways = nn.Sequential(*body), nn.Sequential(*([] if shortcut is None else [shortcut]))
    total = sum(way(x) for way in ways)
    expected = np.maximum(total, 0) if relu else total
    before = grad * (total > 0) if relu else grad
    gradient = sum(way.backward(before) for way in ways)

    block = nn.Residual(*body, shortcut=shortcut)
    net = nn.Sequential(block, nn.ReLU()) if relu else nn.Sequential(block)
    for _ in range(2):
        np.testing.assert_allclose(net(x), expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(net.backward(grad), gradient, rtol=1e-11, atol=1e-11)
        np.testing.assert_array_equal(x, copies[0])
        np.testing.assert_array_equal(grad, copies[1])
    np.testing.assert_allclose(net.forward(x), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(x, copies[0])


def test_names_of_a_residual():
    block = nn.Residual(
        ("conv1", conv(3, 4)), ("relu", nn.ReLU()), shortcut=conv(3, 4), names=("", "downsample")
    )
    assert list(block.state_dict()) == [
        f"{layer}.{kind}" for layer in ("conv1", "downsample") for kind in ("weight", "bias")
    ]
    assert [row.name for row in block.summary((3, 5, 5)).rows] == ["conv1", "relu", "downsample"]
    net = nn.Sequential(("block", block))
    assert next(iter(net.state_dict())) == "block.conv1.weight"
    assert [row.name for row in net.summary((3, 5, 5)).rows][-1] == "block.downsample"
    assert not net.eval()["block"].body[0].training


def test_names_of_a_mapping_and_empty_names():
    layers = OrderedDict(first=nn.Linear(2, 3), second=nn.Linear(3, 1))
    net = nn.Sequential(layers)
    assert list(net.state_dict()) == ["first.weight", "first.bias", "second.weight", "second.bias"]
    assert net["second"] is layers["second"]
    assert list(nn.Sequential({}).state_dict()) == []
    inner = nn.Sequential(("", nn.Sequential(nn.Linear(2, 3))), ("x", nn.Sequential(nn.ReLU())))
    outer = nn.Sequential(("a", inner), nn.Linear(3, 1))
    assert list(outer.state_dict()) == ["a.0.weight", "a.0.bias", "1.weight", "1.bias"]
    names = ["a.0", "a.x.0", "1"]
    assert [step.name for step in outer.eval().walk(np.zeros((1, 2), np.float32))] == names
    assert [row.name for row in outer.summary((2,)).rows] == names
    assert list(nn.Sequential(("", nn.Linear(2, 3))).state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("error", "match", "make"),
    [
        (TypeError, "layers must be", lambda: nn.Sequential({"a": 3})),
        (TypeError, "layers must be", lambda: nn.Sequential({1: nn.ReLU()})),
        (TypeError, "layers must be", lambda: nn.Sequential({"a": nn.ReLU()}, nn.ReLU())),
        (ValueError, "without dots", lambda: nn.Sequential({"a.b": nn.ReLU()})),
        (
            ValueError,
            "unique",
            lambda: nn.Sequential(("", nn.Sequential(conv(1, 1), conv(1, 1))), conv(1, 1)),
        ),
        (
            ValueError,
            "unique",
            lambda: nn.Residual(("b", conv(1, 1)), shortcut=conv(1, 1), names=("", "b")),
        ),
        (ValueError, "unique", lambda: nn.Residual(shortcut=conv(1, 1), names=("a", "a"))),
        (ValueError, "without dots", lambda: nn.Residual(names=("a.b", "c"))),
        (TypeError, "names must be two strings", lambda: nn.Residual(names=("a",))),
        (TypeError, "names must be two strings", lambda: nn.Residual(names=("a", None))),
        (TypeError, "names must be two strings", lambda: nn.Residual(names=3)),
        (ValueError, "layers must be at least one", lambda: nn.Concat()),
        (TypeError, "layers must be", lambda: nn.Concat(nn.ReLU)),
        (ValueError, "unique", lambda: nn.Concat(("a", nn.ReLU()), ("a", nn.ReLU()))),
    ],
)
def test_refused_containers(error, match, make):
    with pytest.raises(error, match=match):
        make()


# Concat


def branches(seed=0):
    return nn.Concat(
        ("a", conv(3, 2, 1, seed)),
        ("b", nn.Sequential(conv(3, 4, 3, seed + 1), nn.ReLU(), conv(4, 5, 3, seed + 2))),
        ("c", nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(3, dtype=np.float64))),
        ("d", nn.ReLU()),
        ("e", nn.Sequential()),
    )


@pytest.mark.parametrize("layout", [np.ascontiguousarray, to_channels_last])
@pytest.mark.parametrize("nested", [False, True])
def test_concat_equals_its_branches(layout, nested):
    block, twin = branches(), branches()
    x, grad = layout(normal((2, 3, 6, 5))), layout(normal((2, 16, 6, 5), 1))
    copies = x.copy(), grad.copy()
    expected = np.concatenate([layer(x) for layer in twin.layers], axis=1)
    parts = np.split(grad, [2, 7, 10, 13], axis=1)
    gradient = sum(layer.backward(g) for layer, g in zip(twin, parts, strict=True))

    net = nn.Sequential(("block", block)) if nested else block
    y = net(x)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    assert is_channels_last(y) or not nested
    np.testing.assert_allclose(net.backward(grad), gradient, rtol=1e-11, atol=1e-11)
    for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(mine.grad, other.grad, rtol=1e-11, atol=1e-11)
    np.testing.assert_array_equal(x, copies[0])
    np.testing.assert_array_equal(grad, copies[1])

    net(x)
    net.zero_grad()
    assert net.backward(grad, input_gradient=False) is None
    for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(mine.grad, other.grad, rtol=1e-11, atol=1e-11)
    assert net.output_shape((2, 3, 6, 5)) == (2, 16, 6, 5)


@pytest.mark.parametrize("first", [nn.Sequential(), nn.Dropout(0), Kept()])
def test_the_first_branch_s_gradient_is_not_overwritten(first):
    x, grad = normal((2, 3, 4, 5)), normal((2, 6, 4, 5), 1)
    copies = grad.copy(), Kept().array
    block = nn.Concat(first, nn.ReLU())
    block(x)
    block.backward(grad)
    np.testing.assert_array_equal(grad, copies[0])
    np.testing.assert_array_equal(getattr(first, "array", copies[1]), copies[1])


def test_concat_of_one_image_of_vectors_and_of_one_branch():
    block = branches().eval()
    x = normal((3, 6, 5))
    np.testing.assert_allclose(block(x), block(x[None])[0], rtol=1e-12, atol=1e-12)
    assert block.output_shape((3, 6, 5)) == (16, 6, 5)
    block = nn.Concat(nn.ReLU(), nn.Sequential())
    v = normal((4, 3))
    np.testing.assert_array_equal(block(v), np.hstack([np.maximum(v, 0), v]))
    grad = normal((4, 6), 1)
    np.testing.assert_array_equal(block.backward(grad), grad[:, :3] * (v > 0) + grad[:, 3:])
    assert block.output_shape((4, 3)) == (4, 6)
    one = nn.Concat(nn.Sequential())
    y = one(v)
    assert not np.shares_memory(y, v)
    np.testing.assert_array_equal(one.backward(grad[:, :3]), grad[:, :3])


def test_summary_of_branches():
    summary = nn.Sequential(branches(), conv(16, 2, 3)).summary((3, 6, 5))
    assert [row.name for row in summary.rows] == [
        "0.a",
        "0.b.0",
        "0.b.1",
        "0.b.2",
        "0.c.0",
        "0.c.1",
        "0.d",
        "1",
    ]
    assert summary.rows[-1].receptive_field == (7, 7)
    assert summary.rows[-1].multiply_adds == 6 * 5 * 2 * 16 * 9


def test_branches_that_do_not_fit():
    block = nn.Concat(conv(3, 2), nn.Conv2d(3, 2, 3, dtype=np.float64))
    for call in (lambda: block(normal((1, 3, 6, 5))), lambda: block.output_shape((1, 3, 6, 5))):
        with pytest.raises(ValueError, match=r"branches give shapes.*\(1, 2, 4, 3\)"):
            call()
    with pytest.raises(ValueError, match="in layer block"):
        nn.Sequential(("block", block)).summary((3, 6, 5))


def test_repr_and_parts_of_concat():
    block = nn.Concat(("a", nn.ReLU()), nn.Sigmoid())
    assert repr(block) == "Concat(\n  (a): ReLU()\n  (1): Sigmoid()\n)"
    assert list(block) == block.layers and len(block) == 2 and block["a"] is block[0]
    part = block[1:]
    assert isinstance(part, nn.Concat)
    assert repr(part) == "Concat(\n  (1): Sigmoid()\n)"


# What one layer does for the next


#: Input, filters and options of convolutions of every kind that tells of its outputs.
CONVOLUTIONS = [
    ((8, 3, 12, 13), (16, 3, 3, 3), {"padding": 1}),
    ((9, 16, 17, 14), (32, 16, 3, 3), {"padding": 1}),  # Winograd's for float32
    ((8, 32, 9, 10), (24, 32, 1, 1), {}),
    ((8, 32, 9, 10), (24, 32, 1, 1), {"stride": 2}),
    ((8, 24, 20, 11), (40, 24, 3, 3), {"stride": 2, "padding": 1}),
    ((8, 12, 9, 9), (24, 3, 3, 3), {"groups": 4}),
    ((8, 20, 9, 9), (20, 1, 3, 3), {"groups": 20, "padding": 1}),
    ((8, 3, 64, 64), (32, 3, 7, 7), {"stride": 2, "padding": 3}),  # of blocks of pixels
    ((16, 64, 8, 8), (64, 64, 3, 3), {"padding": 1}),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "filters", "options"), CONVOLUTIONS)
@pytest.mark.parametrize("threads", [1, 2])
def test_moments_come_with_a_convolution(shape, filters, options, dtype, threads):
    x, w = to_channels_last(normal(shape, dtype=dtype)), normal(filters, 1, dtype)
    arguments = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options}
    with convkern.num_threads(threads):
        y, moments = conv2d_moments(x, w, None, **arguments, activation="relu")
        pixels = np.ascontiguousarray(y.transpose(0, 2, 3, 1))
        images, height, width, channels = pixels.shape
        cut = images * height * width, channels, 1
        expected = _kernels.moments(pixels, cut, threads, height * width)
    assert moments is not None
    np.testing.assert_array_equal(moments, expected)
    flat = pixels.reshape(-1, channels).astype(np.float64)
    np.testing.assert_allclose(moments[0], flat.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(moments[1], flat.var(axis=0), rtol=1e-6)


def test_few_images_bring_no_moments():
    x, w = to_channels_last(normal((7, 3, 8, 8))), normal((4, 3, 3, 3), 1)
    with convkern.num_threads(2):
        assert conv2d_moments(x, w, None, 1, 0, 1, 1, None)[1] is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("training", [True, False])
def test_what_a_layer_does_for_the_next_changes_no_bit(dtype, training, monkeypatch):
    """A residual net's output, gradients and running statistics, each way."""

    def results():
        rng = np.random.default_rng(3)
        block = nn.Residual(
            nn.Conv2d(6, 18, 3, padding=1, bias=False, rng=rng, dtype=dtype),
            nn.BatchNorm2d(18, dtype=dtype),
            nn.ReLU(),
            nn.Conv2d(18, 18, 3, padding=1, bias=False, rng=rng, dtype=dtype),
            nn.BatchNorm2d(18, dtype=dtype),
            shortcut=nn.Conv2d(6, 18, 1, rng=rng, dtype=dtype),
        )
        net = nn.Sequential(block, nn.ReLU(), nn.Conv2d(18, 3, 1, rng=rng, dtype=dtype))
        x = normal((8, 6, 9, 7), dtype=dtype)
        net(x)  # moves the running statistics
        if not training:
            net.eval()
            return [net(x), *net.state_dict().values()]
        y = net(x)
        gradient = net.backward(normal(y.shape, 5, dtype))
        return [y, gradient, *(p.grad for p in net.parameters()), *net.state_dict().values()]

    together = results()
    monkeypatch.setattr(functional_conv, "IMAGES_PER_THREAD", 1000)
    for one, other in zip(together, results(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(7, 2, 33, 32), (7, 2, 5, 5), (15, 2, 3, 3)])
@pytest.mark.parametrize("channels", [1, 2])
def test_what_a_normalisation_gives_does_not_depend_on_threads(shape, channels):
    first = nn.Conv2d(2, channels, 3, rng=np.random.default_rng(0), dtype=np.float64)
    layers = [first, nn.BatchNorm2d(channels, dtype=np.float64)]
    x, results = to_channels_last(normal(shape)), []
    for threads in 1, 2, 8:
        with convkern.num_threads(threads):
            net = nn.Sequential(*copy.deepcopy(layers))
            results.append([net(x), *net.state_dict().values()])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


AFTER_RELU = [
    [nn.MaxPool2d(2)],
    [nn.MaxPool2d((1, 2), 3)],
    [nn.MaxPool2d((2, 3), padding=(1, 0))],
    [nn.MaxPool2d(2, padding=1, ceil_mode=True), nn.MaxPool2d(2)],
    [nn.MaxPool2d(3, 2, 1)],
    [nn.MaxPool2d(2, dilation=2)],
    [nn.BatchNorm2d(5), nn.ReLU()],
    [nn.BatchNorm2d(5).eval()],
    [nn.ReLU(), nn.MaxPool2d(2)],
    [nn.Dropout(0.0), nn.MaxPool2d(2)],
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("images", [None, 3, 16, 32])
@pytest.mark.parametrize("after", AFTER_RELU)
def test_the_layer_after_a_relu_takes_over_its_gradient(after, images, dtype):
    """A net gives the bits of its layers one by one."""
    after = copy.deepcopy(after)
    for layer in after:
        if isinstance(layer, nn.BatchNorm2d):
            training = layer.training
            layer.__init__(5, dtype=dtype)
            layer.train(training)
    first = nn.Conv2d(2, 5, 3, rng=np.random.default_rng(1), dtype=dtype)
    layers = [first, nn.ReLU(), *after]
    x = normal((2, 13, 12) if images is None else (images, 2, 13, 12), dtype=dtype)
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in after):
        x[..., 5, 5] = np.nan
        x[..., 9:, :] = -np.inf
    x = to_images_last(x) if images in (16, 32) else to_channels_last(x)
    before = copy.deepcopy(layers)
    with np.errstate(invalid="ignore"):
        y, kept = x, []
        for layer in before:
            y, state = layer.record(y)
            kept.append(state)
        expected = gradient = normal(y.shape, 7, dtype)
        for layer, state in zip(reversed(before), reversed(kept), strict=True):
            expected = layer.gradient(expected, state)
        net = nn.Sequential(*layers)
        np.testing.assert_array_equal(net(x), y)
        got = net.backward(gradient)
    np.testing.assert_array_equal(got, expected)
    for parameter, other in zip(net.parameters(), nn.Sequential(*before).parameters(), strict=True):
        np.testing.assert_array_equal(parameter.grad, other.grad)


def run_one_by_one(layers, x, gradient):
    """Return the output of layers called each by itself, and the gradient of the input."""
    y, kept = x, []
    for layer in layers:
        y, state = layer.record(y)
        kept.append(state)
    for layer, state in zip(reversed(layers), reversed(kept), strict=True):
        gradient = layer.gradient(gradient, state)
    return y, gradient


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 5, 16, 21, 36])
@pytest.mark.parametrize("before", [[], [nn.ReLU()]])
@pytest.mark.parametrize("between", [[], [nn.ReLU()]])
@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d((1, 2), 3),
        nn.MaxPool2d((2, 3), padding=(1, 0)),
        nn.MaxPool2d(2, padding=1, ceil_mode=True),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2, dilation=2),
    ],
    ids=repr,
)
def test_a_normalisation_and_the_pooling_after_it_are_one_pass(
    pool, between, before, channels, dtype
):
    check_pooled_normalisation([*before], channels, [*between, pool], (7, 2, 13, 12), dtype)


def test_a_normalisation_is_pooled_in_blocks_of_rows():
    check_pooled_normalisation([], 64, [nn.MaxPool2d(2)], (3, 2, 43, 41), np.float32)


def check_pooled_normalisation(before, channels, after, shape, dtype):
    """Compare a convolution, `before`, a normalisation and `after` with the same one by one."""
    rng = np.random.default_rng(0)
    first = nn.Conv2d(2, channels, 3, rng=rng, dtype=dtype)
    norm = nn.BatchNorm2d(channels, dtype=dtype)
    norm.weight.data[...] = rng.normal(size=channels)  # falling maps, too
    norm.bias.data[...] = rng.normal(size=channels)
    layers = [first, *before, norm, *after]
    apart = copy.deepcopy(layers)
    x = to_channels_last(normal(shape, dtype=dtype))
    gradient = normal(nn.Sequential(*apart).output_shape(shape), 7, dtype)
    y, expected = run_one_by_one(apart, x, gradient)
    results = []
    for threads in 1, 2, 3:
        net = nn.Sequential(*copy.deepcopy(layers))
        with convkern.num_threads(threads):
            assert len(net.record(x)[1]) == 2
            net = nn.Sequential(*copy.deepcopy(layers))
            np.testing.assert_array_equal(net(x), y)
            results.append([net.backward(gradient), *(p.grad for p in net.parameters())])
        for name, value in nn.Sequential(*apart).named_buffers():
            np.testing.assert_array_equal(dict(net.named_buffers())[name], value)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)
    # Sums are of the same terms in another order.
    close = 2e-6 if dtype == np.float32 else 1e-13
    grads = [p.grad for p in nn.Sequential(*apart).parameters()]
    for one, two in zip(results[0], [expected, *grads], strict=True):
        np.testing.assert_allclose(
            one, two, rtol=close, atol=10 * close * max(1, np.abs(two).max())
        )


def test_a_pooling_that_does_not_fit_is_named():
    net = nn.Sequential(nn.BatchNorm2d(3), ("pool", nn.MaxPool2d(9)))
    with pytest.raises(ValueError, match="9") as caught:
        net(to_channels_last(normal((2, 3, 5, 5), dtype=np.float32)))
    assert caught.value.__notes__ == ["in layer pool, MaxPool2d(kernel_size=9)"]


def test_what_follows_a_normalisation_in_evaluation_is_not_pooled_in_it():
    norm = nn.BatchNorm2d(4, dtype=np.float64).eval()
    layers = [conv(3, 4, 3), norm, nn.MaxPool2d(2)]
    x, gradient = normal((2, 3, 9, 9)), normal((2, 4, 4, 4))
    y, expected = run_one_by_one(layers, to_channels_last(x), gradient)
    net = nn.Sequential(*layers)
    np.testing.assert_array_equal(net(x), y)
    np.testing.assert_array_equal(net.backward(gradient), expected)
    assert len(net.record(x)[1]) == 3


def test_a_relu_after_a_sum_is_left_to_the_pooling():
    block = nn.Residual(conv(3, 3, 3), shortcut=conv(3, 3, 1, 5))
    net = nn.Sequential(block, nn.ReLU(), nn.MaxPool2d(2))
    x, g = to_channels_last(normal((2, 3, 6, 8))), normal((2, 3, 3, 4), 1)
    y = net(x)
    got = net.backward(g)
    total, kept = block.record(x)
    of_pool = nn.MaxPool2d(2).record(np.maximum(total, 0))
    np.testing.assert_array_equal(y, of_pool[0])
    through = np.where(total > 0, nn.MaxPool2d(2).gradient(g, of_pool[1]), 0)
    np.testing.assert_array_equal(got, block.gradient(to_channels_last(through), kept))


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_normalisation_adds_the_way_around(activation):
    layer = nn.BatchNorm2d(5, dtype=np.float64)
    x, plus = normal((3, 5, 4, 6)), to_channels_last(normal((3, 5, 4, 6), 1))
    expected = layer.forward(x) + plus
    if activation:
        expected = np.maximum(expected, 0)
    np.testing.assert_allclose(layer.forward(x, plus=plus, activation=activation), expected)
    np.testing.assert_allclose(layer.forward(x[0], plus=plus[0]), layer.forward(x[:1])[0] + plus[0])
    body = nn.Residual(nn.Conv2d(5, 4, 1, dtype=np.float64), nn.BatchNorm2d(4, dtype=np.float64))
    with pytest.raises(ValueError, match="the body gives shape"):
        body(x)
