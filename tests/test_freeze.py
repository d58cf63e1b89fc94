"""Inference plans: what the net computes, whatever happens to the net afterwards."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from convkern import Plan, _kernels, freeze, models, nn, num_threads, set_float32_precision

NETS = {
    "alexnet": ((3, 227, 227), {"num_classes": 10}),
    "cifar_basic": ((3, 28, 28), {}),
    "mnist_cnn": ((1, 28, 28), {}),
    "resnet20": ((3, 32, 32), {}),
    "resnet18": ((3, 64, 64), {"num_classes": 10}),
    "googlenet": ((3, 64, 64), {"num_classes": 10}),
}


def settled(net, rng, shape):
    """Give the normalisations of a net statistics that are not those of a fresh one."""
    net.train()
    net(rng.standard_normal((4, *shape), np.float32))
    return net.eval()


@pytest.mark.parametrize("name", NETS)
def test_a_plan_computes_what_the_net_does(name):
    rng = np.random.default_rng(0)
    shape, options = NETS[name]
    net = settled(getattr(models, name)(rng=rng, **options), rng, shape)
    plan = freeze(net)
    assert isinstance(plan, Plan)
    for batch in (2, 1, 3):
        x = rng.standard_normal((batch, *shape), np.float32)
        with set_float32_precision("highest"):
            expected = net(x)
        error = np.linalg.norm(plan(x) - expected) / np.linalg.norm(expected)
        assert error < 2e-5, (batch, error)


def small(rng, dtype=np.float64):
    """Return a net with everything that a plan treats in a way of its own."""
    options = {"rng": rng, "dtype": dtype}
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False, **options),
        nn.BatchNorm2d(6, dtype=dtype),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Residual(
            nn.Conv2d(6, 6, 3, padding=1, **options),
            nn.BatchNorm2d(6, dtype=dtype),
            shortcut=nn.Conv2d(6, 6, 1, **options),
        ),
        nn.ReLU(),
        nn.Concat(nn.Conv2d(6, 4, 1, **options), nn.Conv2d(6, 2, 3, padding=1, **options)),
        nn.LocalResponseNorm(3),
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect", **options),
        nn.Dropout2d(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(6 * 4 * 4, 7, **options),
        nn.Sigmoid(),
        nn.Linear(7, 5, **options),
    )


def test_in_float64_it_is_the_same_to_the_last_digits():
    rng = np.random.default_rng(1)
    net = small(rng)
    net(rng.standard_normal((8, 3, 16, 16)))
    plan = freeze(net)  # a net that trains is frozen as it evaluates
    x = rng.standard_normal((5, 3, 16, 16))
    expected = net.eval()(x)
    for images in (x, np.asfortranarray(x), x[:, ::-1][:, ::-1]):
        np.testing.assert_allclose(plan(images), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(plan(x[:1]), expected[:1], rtol=1e-10, atol=1e-12)
    assert plan(x[:0]).shape == (0, 5)


def test_large_maps_are_pooled_in_parts(monkeypatch):
    rng = np.random.default_rng(2)
    layers = nn.Conv2d(3, 8, 3, rng=rng), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    x = rng.standard_normal((7, 3, 20, 21), np.float32)
    expected = nn.Sequential(*layers)(x)
    plans = sys.modules[freeze.__module__]
    monkeypatch.setattr(plans, "MAP_BYTES", 30_000)
    monkeypatch.setattr(plans, "WHOLE_MAP_BYTES", 0)
    got = freeze(nn.Sequential(*layers))(x)
    np.testing.assert_allclose(got, expected, 1e-4, 1e-5)


def test_later_changes_do_not_reach_a_plan():
    rng = np.random.default_rng(3)
    net = small(rng).eval()
    plan, x = freeze(net), rng.standard_normal((2, 3, 16, 16))
    before = plan(x)
    for parameter in net.parameters():
        parameter.data[...] = 0
    net.layers.clear()
    np.testing.assert_array_equal(plan(x), before)


def test_many_threads_may_call_one_plan():
    rng = np.random.default_rng(4)
    plan = freeze(small(rng, np.float32).eval())
    inputs = [rng.standard_normal((n % 3 + 1, 3, 16, 16), np.float32) for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(plan, inputs))
    for x, y in zip(inputs, together, strict=True):
        np.testing.assert_array_equal(plan(x), y)


def test_a_row_has_the_same_bits_in_any_batch():
    """Few rows read the weights in a loop of their own, with the same order of every sum."""
    rng = np.random.default_rng(6)
    linear = nn.Linear(1030, 200, rng=rng)  # a chunk's last steps, and a narrow last block
    plan = freeze(nn.Sequential(linear, nn.ReLU()))
    x = rng.standard_normal((23, 1030), np.float32)
    expected = plan(x)
    assert np.allclose(expected, np.maximum(linear(x), 0), atol=1e-5)
    for threads in (1, 2):
        with num_threads(threads):
            for batch in (1, 2, 4, 6, 7):
                assert np.array_equal(plan(x[:batch]), expected[:batch]), (batch, threads)


def relative_error(given, expected):
    return np.linalg.norm(given - expected) / np.linalg.norm(expected)


@pytest.fixture
def short_weights(monkeypatch):
    """Small linear weights, too, have three bytes for a number."""
    monkeypatch.setattr(sys.modules["convkern.freeze"], "SHORT_BYTES", 0)


@pytest.mark.usefixtures("short_weights")
@pytest.mark.parametrize(("inputs", "outputs"), [(1030, 200), (3, 1), (4, 64), (513, 77)])
def test_weights_of_three_bytes(inputs, outputs):
    """They round like float32, and a row has the same bits in any batch."""
    rng = np.random.default_rng(7)
    linear = nn.Linear(inputs, outputs, rng=rng)
    linear.weight.data[0] *= 1e-9
    plan = freeze(nn.Sequential(linear, nn.ReLU()))
    x = rng.standard_normal((9, inputs), np.float32)
    exact = np.float64(x) @ np.float64(linear.weight.data).T + linear.bias.data
    expected = plan(x)
    assert relative_error(expected, np.maximum(exact, 0)) < 1e-6
    for threads in (1, 2):
        with num_threads(threads):
            for batch in range(1, 7):
                assert np.array_equal(plan(x[:batch]), expected[:batch]), (batch, threads)
    with set_float32_precision("highest"):
        assert relative_error(plan(x[:1]), np.maximum(exact[:1], 0)) < 1e-6
        assert inputs * outputs < 1000 or not np.array_equal(plan(x[:1]), expected[:1])


@pytest.mark.usefixtures("short_weights")
def test_weights_that_three_bytes_cannot_hold():
    rng = np.random.default_rng(8)
    for wrong in (200, 1e6, 1e30, np.inf, np.nan):
        linear = nn.Linear(40, 70, rng=rng)
        linear.weight.data[69, 39] = wrong
        plan, x = freeze(linear), rng.standard_normal((3, 40), np.float32)
        if np.isfinite(wrong):
            x[:, 39] = 0
        np.testing.assert_allclose(plan(x), linear(x), rtol=1e-5, atol=1e-6)


def test_packed_weights_of_three_bytes_are_exact():
    rng = np.random.default_rng(9)
    numbers = rng.integers(-(2**23), 2**23, (70, 11))
    numbers[:2] = [[-(2**23)], [2**23 - 1]]
    exponents = rng.integers(-40, 10, 70).astype(np.int32)
    weight = np.ldexp(numbers.astype(np.float32), exponents[:, None])
    packed = _kernels.ShortWeight(weight, None, exponents, 2)
    for first in range(0, 11, _kernels.SHORT_ROWS):
        rows = np.eye(11, dtype=np.float32)[first : first + _kernels.SHORT_ROWS]
        out = np.empty((len(rows), 70), np.float32)
        _kernels.short_linear(rows, packed, out, 0, 0.0, 2)
        assert np.array_equal(out, weight.T[first : first + len(rows)])


@pytest.mark.usefixtures("short_weights")
def test_flattened_maps_meet_weights_of_three_bytes():
    rng = np.random.default_rng(10)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, rng=rng), nn.Flatten(), nn.Linear(180, 33, rng=rng))
    plan, x = freeze(net), rng.standard_normal((6, 3, 8, 8), np.float32)
    for batch in (1, 6):
        assert relative_error(plan(x[:batch]), net.eval()(x[:batch])) < 1e-6


def test_what_it_refuses():
    for wrong in (None, np.zeros(3), freeze, nn.Conv2d):
        with pytest.raises(TypeError, match="net must be a Layer"):
            freeze(wrong)
    plan = freeze(small(np.random.default_rng(5)))
    with pytest.raises(TypeError, match="float64, got float32"):
        plan(np.zeros((1, 3, 16, 16), np.float32))
    with pytest.raises(ValueError, match="3 channels"):
        plan(np.zeros((1, 4, 16, 16)))
    with pytest.raises(ValueError, match="features"):
        plan(np.zeros((1, 3, 20, 20)))
