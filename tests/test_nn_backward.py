"""Training: gradients of the layers against torch.nn and differences, and the state between."""

from __future__ import annotations

import copy
import itertools
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from layers import LAYERS, is_channels_last, layer_pair

from convkern import functional, nn
from convkern.functional import to_channels_last


def normal(shape, dtype=np.float64, seed=3):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def residual_net(dtype=np.float64, seed=0):
    """A small net with a layer of nearly every kind, for images (N, 3, 9, 8)."""
    rng = np.random.default_rng(seed)
    arguments = {"rng": rng, "dtype": dtype}
    return nn.Sequential(
        ("stem", nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, **arguments), nn.ReLU())),
        ("norm", nn.BatchNorm2d(6, dtype=dtype)),
        (
            "block",
            nn.Residual(
                nn.Conv2d(6, 8, 3, 2, 1, bias=False, padding_mode="reflect", **arguments),
                nn.BatchNorm2d(8, dtype=dtype),
                nn.PReLU(8, dtype=dtype),
                nn.Conv2d(8, 8, 3, padding="same", groups=2, **arguments),
                shortcut=nn.Sequential(
                    nn.Conv2d(6, 8, 1, 2, **arguments), nn.LocalResponseNorm(3, 0.5)
                ),
            ),
        ),
        ("act", nn.ReLU()),
        ("same", nn.Residual(nn.Conv2d(8, 8, 3, padding=1, **arguments), nn.Sigmoid())),
        ("up", nn.ConvTranspose2d(8, 4, 3, 2, 1, **arguments)),
        ("lrelu", nn.LeakyReLU(0.2)),
        ("pool", nn.MaxPool2d(2)),
        ("mean", nn.AvgPool2d(2, ceil_mode=True)),
        ("flatten", nn.Flatten()),
        ("linear", nn.Linear(16, 5, **arguments)),
        ("softmax", nn.Softmax()),
    )


# Gradients


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
@pytest.mark.parametrize("layout", [np.ascontiguousarray, to_channels_last])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "args", "options", "shape"), [case for case in LAYERS if "Dropout" not in case[0]]
)
def test_layer_gradients_equal_torch(torch, name, args, options, shape, dtype, layout, training):
    if len(shape) != 4 and layout is to_channels_last:
        return  # only images have layouts
    theirs, ours = layer_pair(torch, name, args, options, dtype)
    theirs.train(training)
    # A layer in evaluation mode still passes gradients on inside a net that trains.
    net = nn.Sequential(ours)
    ours.train(training)
    x = normal(shape, dtype)
    inputs = torch.from_numpy(x).requires_grad_()
    outputs = theirs(inputs)
    grad = normal(outputs.shape, dtype, seed=4)
    outputs.backward(torch.from_numpy(grad))
    expected = [inputs.grad.numpy(), *(p.grad.numpy() for p in theirs.parameters())]
    tolerance = 5e-5 if dtype == np.float32 else 1e-11
    for times in (1, 2):  # the gradients of the parameters add up
        y = net(layout(x))
        np.testing.assert_allclose(y, outputs.detach().numpy(), rtol=tolerance, atol=tolerance)
        grad_input = net.backward(layout(grad) if grad.ndim == 4 else grad)
        grads = [grad_input, *(parameter.grad / times for parameter in net.parameters())]
        for mine, other in zip(grads, expected, strict=True):
            assert mine.dtype == dtype and mine.shape == other.shape
            bound = tolerance * max(1, np.abs(other).max())
            np.testing.assert_allclose(mine, other, rtol=tolerance, atol=bound)
    if layout is to_channels_last and "padding_mode" not in options and "reflect" not in args:
        assert is_channels_last(grad_input)
    net.zero_grad()
    assert not any(parameter.grad.any() for parameter in net.parameters())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whole_net_equals_torch(torch, dtype):
    class Block(torch.nn.Module):
        def __init__(self, body, shortcut):
            super().__init__()
            self.body, self.shortcut = body, shortcut

        def forward(self, x):
            return self.body(x) + (x if self.shortcut is None else self.shortcut(x))

    T = torch.nn
    theirs = T.Sequential()
    parts = [
        ("stem", T.Sequential(T.Conv2d(3, 6, 3, padding=1), T.ReLU())),
        ("norm", T.BatchNorm2d(6)),
        (
            "block",
            Block(
                T.Sequential(
                    T.Conv2d(6, 8, 3, 2, 1, bias=False, padding_mode="reflect"),
                    T.BatchNorm2d(8),
                    T.PReLU(8),
                    T.Conv2d(8, 8, 3, padding="same", groups=2),
                ),
                T.Sequential(T.Conv2d(6, 8, 1, 2), T.LocalResponseNorm(3, 0.5)),
            ),
        ),
        ("act", T.ReLU()),
        ("same", Block(T.Sequential(T.Conv2d(8, 8, 3, padding=1), T.Sigmoid()), None)),
        ("up", T.ConvTranspose2d(8, 4, 3, 2, 1)),
        ("lrelu", T.LeakyReLU(0.2)),
        ("pool", T.MaxPool2d(2)),
        ("mean", T.AvgPool2d(2, ceil_mode=True)),
        ("flatten", T.Flatten()),
        ("linear", T.Linear(16, 5)),
        ("softmax", T.Softmax(1)),
    ]
    for name, part in parts:
        theirs.add_module(name, part)
    theirs.to(getattr(torch, dtype.__name__))
    ours = residual_net(dtype)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    for step in range(3):
        x, grad = normal((4, 3, 9, 8), dtype, seed=step), normal((4, 5), dtype, seed=step + 9)
        inputs = torch.from_numpy(x).requires_grad_()
        outputs = theirs(inputs)
        outputs.backward(torch.from_numpy(grad))
        np.testing.assert_allclose(ours(x), outputs.detach().numpy(), rtol=1e-4, atol=tolerance)
        grad_input = ours.backward(grad)
        np.testing.assert_allclose(grad_input, inputs.grad.numpy(), rtol=1e-3, atol=tolerance)
    named = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        bound = tolerance * max(1, named[name].grad.abs().max().item())
        np.testing.assert_allclose(parameter.grad, named[name].grad.numpy(), rtol=1e-3, atol=bound)
    theirs_state = theirs.state_dict()
    for name, array in ours.state_dict().items():
        np.testing.assert_allclose(array, theirs_state[name].numpy(), rtol=1e-4, atol=tolerance)


def vgg_net():
    rng = np.random.default_rng(1)
    arguments = {"rng": rng, "dtype": np.float64}
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=((0, 2), (1, 0)), padding_mode="circular", **arguments),
        nn.ReLU(),
        nn.Residual(nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate", **arguments)),
        nn.LPPool2d(2, 2),
        nn.BatchNorm2d(4, affine=False, dtype=np.float64),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.Flatten(),
        nn.Linear(24, 6, **arguments),
        nn.PReLU(dtype=np.float64),
        nn.Linear(6, 3, bias=False, **arguments),
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [residual_net, vgg_net])
@pytest.mark.parametrize("seed", range(3))
def test_gradients_equal_differences(make, seed, training):
    net = make()
    for layer in every_layer(net):
        if isinstance(layer, nn.BatchNorm2d):
            layer.train(training)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, 3, 9, 8))
    arrays = [x, *(parameter.data for parameter in net.parameters())]
    direction = [rng.standard_normal(array.shape) for array in arrays]
    grad = rng.standard_normal(net(x).shape)
    grads = [net.backward(grad), *(parameter.grad for parameter in net.parameters())]
    slope = sum(np.vdot(a, b) for a, b in zip(grads, direction, strict=True))
    eps, losses = 1e-6, []
    for sign in (1, -2):  # half a step forward, then a whole one back
        for array, step in zip(arrays, direction, strict=True):
            array += sign * eps * step
        losses.append(np.vdot(net(x), grad))
    assert (losses[0] - losses[1]) / (2 * eps) == pytest.approx(slope, rel=1e-3, abs=1e-5)


def every_layer(layer):
    yield layer
    for _, child in layer._children():
        yield from every_layer(child)


@pytest.mark.parametrize("padding", [((2, 1), (0, 3)), ((0, 0), (3, 3)), ((3, 3), (1, 0))])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_gradient_through_padding_is_the_transpose(mode, padding):
    # A convolution with a 1x1 window of weight 1 is the padding alone; integers are exact.
    layer = nn.Conv2d(
        2, 2, 1, padding=padding, groups=2, bias=False, padding_mode=mode, dtype=np.float64
    )
    layer.weight.data[...] = 1
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 9, (3, 2, 4, 5)).astype(np.float64)
    y = layer(x)
    grad = rng.integers(-9, 9, y.shape).astype(np.float64)
    assert np.vdot(layer.backward(grad), x) == np.vdot(grad, y)


def test_fused_layers_train_as_they_do_apart():
    fixed = {"rng": np.random.default_rng(5), "dtype": np.float64}
    parts = [nn.Conv2d(3, 5, 3, **fixed), nn.ReLU(), nn.Conv2d(5, 2, 1, **fixed)]
    net = nn.Sequential(nn.Sequential(parts[0]), *parts[1:])
    x = normal((2, 3, 6, 6))
    y = net(x)
    grad = normal(y.shape)
    fused = [net.backward(grad), *(parameter.grad for parameter in net.parameters())]
    net.zero_grad()
    for part in parts:
        x = part(x)
    for part in reversed(parts):
        grad = part.backward(grad)
    np.testing.assert_allclose(x, y, rtol=1e-12)
    for one, other in zip(fused, [grad, *(p.grad for p in net.parameters())], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_shared_layer_equals_torch(torch):
    theirs = torch.nn.Linear(3, 3).double()
    ours = nn.Linear(3, 3, dtype=np.float64)
    ours.load_state_dict(theirs.state_dict())
    x, grad = normal((4, 3)), normal((4, 3), seed=8)
    inputs = torch.from_numpy(x).requires_grad_()
    theirs(torch.relu(theirs(inputs))).backward(torch.from_numpy(grad))
    net = nn.Sequential(ours, nn.ReLU(), ours)
    net(x)
    np.testing.assert_allclose(net.backward(grad), inputs.grad.numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours.weight.grad, theirs.weight.grad.numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours.bias.grad, theirs.bias.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout2d])
@pytest.mark.parametrize("p", [0, 0.4, 1])
def test_dropout_gradient_has_the_zeros_of_the_output(layer, p):
    dropout = layer(p, rng=np.random.default_rng(0))
    x = to_channels_last(np.ones((5, 40, 3, 2), np.float32))
    y = dropout(x)
    grad_input = dropout.backward(to_channels_last(np.full(x.shape, 2, np.float32)))
    np.testing.assert_array_equal(grad_input, 2 * y)
    assert is_channels_last(grad_input)
    if layer is nn.Dropout2d:
        assert (y == y[:, :, :1, :1]).all()
        image = layer(0.5)(np.ones((40, 3, 2)))
        assert (image == image[:, :1, :1]).all() and len(np.unique(image)) == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.3}, {"momentum": None}, {"track_running_stats": False}]
)
def test_batch_norm_statistics_equal_torch(torch, options, dtype):
    theirs, ours = layer_pair(torch, "BatchNorm2d", (3,), options, dtype)
    for seed in range(3):
        x = normal((2, 3, 4, 5), dtype, seed)
        theirs(torch.from_numpy(x))
        ours(x)
    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    for name, array in theirs.state_dict().items():
        assert state[name].dtype == array.numpy().dtype
        np.testing.assert_allclose(state[name], array.numpy(), rtol=1e-5)
    expected = theirs.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ours.eval()(x), expected, rtol=1e-4, atol=1e-5)
    for name, array in ours.state_dict().items():  # which evaluation leaves alone
        np.testing.assert_array_equal(array, state[name])


def test_batch_norm_takes_one_image_as_a_batch():
    layer = nn.BatchNorm2d(3, dtype=np.float64)
    x = normal((3, 4, 5))
    y = layer(x)
    np.testing.assert_array_equal(y, layer(x[None])[0])
    alone = layer.backward(y[None])
    layer(x)
    np.testing.assert_array_equal(layer.backward(y), alone[0])


@pytest.mark.parametrize("count", [0, 1])
def test_small_batches(count):
    rng = np.random.default_rng(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect", rng=rng),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Residual(nn.Conv2d(4, 4, 1, rng=rng)),
        nn.Flatten(),
        nn.Linear(64, 2, rng=rng),
    )
    x = normal((count, 3, 8, 8), np.float32)
    grad = np.ones(net(x).shape, np.float32)
    assert net.backward(grad).shape == x.shape
    for parameter in net.parameters():
        assert parameter.grad.shape == parameter.data.shape
        assert parameter.grad.any() == (count > 0)


def test_one_image_equals_its_batch():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, dtype=np.float64), nn.ReLU(), nn.MaxPool2d(2), nn.LocalResponseNorm(2)
    )
    x = normal((3, 8, 8))
    grad = normal(net(x[None]).shape)
    batch = [net.backward(grad)[0], *(parameter.grad for parameter in net.parameters())]
    net.zero_grad()
    net(x)
    image = [net.backward(grad[0]), *(parameter.grad for parameter in net.parameters())]
    for one, other in zip(batch, image, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


# The gradient of the input, on request


def test_only_what_is_wanted_is_computed(monkeypatch):
    masks = []

    def spy(*args, **options):
        masks.append(options["output_mask"])
        return functional_backward(*args, **options)

    functional_backward = functional.conv2d_backward
    monkeypatch.setattr(functional, "conv2d_backward", spy)

    class Impassable(nn.Layer):
        def forward(self, input):
            return input + 1

    arguments = {"dtype": np.float64, "padding": 1}
    net = nn.Sequential(
        Impassable(),
        nn.Conv2d(3, 4, 3, **arguments),
        nn.ReLU(),
        nn.Residual(nn.Conv2d(4, 4, 3, bias=False, **arguments)),
    )
    x = normal((2, 3, 5, 5))
    grad = normal(net(x).shape)
    assert net.backward(grad, input_gradient=False) is None
    assert masks == [(True, True, False), (False, True, True)]
    net(x)
    with pytest.raises(RuntimeError, match="Impassable defines forward but no gradient"):
        net.backward(grad)


@pytest.mark.parametrize("make", [residual_net, vgg_net])
def test_gradients_of_parameters_do_not_depend_on_what_is_wanted(make):
    net = make()
    x = normal((3, 3, 9, 8))
    grad = normal(net(x).shape)
    net.backward(grad)
    expected = [parameter.grad for parameter in net.parameters()]
    net.zero_grad()
    net(x)
    assert net.backward(grad, input_gradient=False) is None
    for parameter, other in zip(net.parameters(), expected, strict=True):
        np.testing.assert_array_equal(parameter.grad, other)


def test_layers_without_parameters_return_nothing_unwanted():
    for layer in (nn.ReLU(), nn.Sequential(), nn.Residual(nn.ReLU()), nn.Flatten()):
        x = normal((2, 3))
        assert layer.backward(layer(x), input_gradient=False) is None
        layer(x)
        assert layer.backward(x).shape == x.shape


# Parameters


def test_parameter_gradients():
    parameter = nn.Parameter(np.ones((2, 3), np.float32))
    assert parameter.grad.dtype == np.float32
    np.testing.assert_array_equal(parameter.grad, np.zeros((2, 3)))
    parameter.grad[0] += 1
    parameter.zero_grad()
    first = np.full((2, 3), 2, np.float32)
    parameter.add_grad(first)
    parameter.add_grad(first)
    np.testing.assert_array_equal(parameter.grad, np.full((2, 3), 4))
    np.testing.assert_array_equal(first, np.full((2, 3), 2))
    parameter.grad = first
    assert parameter.grad is first
    parameter.zero_grad()
    parameter.add_grad(first, fresh=True)
    assert parameter.grad is first
    for error, match, wrong in (
        (ValueError, r"gradient must have the parameter's shape \(2, 3\), got \(3,\)", first[0, :]),
        (TypeError, "gradient must have the parameter's dtype float32", first.astype(np.float64)),
        (TypeError, "gradient must be a NumPy array", None),
    ):
        with pytest.raises(error, match=match):
            parameter.grad = wrong
        with pytest.raises(error, match=match):
            parameter.add_grad(wrong)
    with pytest.raises(TypeError, match="data must be float32 or float64"):
        nn.Parameter(np.ones(3, np.int64))


def test_the_caller_s_arrays_are_left_alone():
    for layer in (nn.Residual(), nn.Residual(nn.Flatten()), nn.Dropout(0), nn.Sequential()):
        x, grad = np.ones((2, 3)), np.ones((2, 3))
        layer(x)
        layer.backward(grad)
        np.testing.assert_array_equal((x, grad), np.ones((2, 2, 3)))


# State


def test_backward_needs_a_call_in_training_mode():
    net = residual_net()
    x, grad = normal((2, 3, 9, 8)), normal((2, 5))
    for layer in (net, nn.ReLU(), net["stem"][0]):
        with pytest.raises(RuntimeError, match=f"backward of {type(layer).__name__} must follow"):
            layer.backward(grad)
    net(x)
    with pytest.raises(RuntimeError, match="inside a net, call the net"):
        net["linear"].backward(grad)
    net.backward(grad)
    with pytest.raises(RuntimeError, match="once"):
        net.backward(grad)
    net(x)
    list(net.walk(x))
    net.forward(x)
    net.backward(grad)
    net.eval()(x)
    with pytest.raises(RuntimeError, match="in training mode"):
        net.backward(grad)
    net.train()(x)
    net.eval()
    with pytest.raises(RuntimeError, match="in training mode"):
        net.train().backward(grad)


@pytest.mark.parametrize(
    ("error", "match", "spoil"),
    [
        (ValueError, r"the output's shape \(2, 5\), got \(5, 2\)", lambda g: g.T),
        (ValueError, r"the output's shape \(2, 5\), got \(2, 0\)", lambda g: g[:, :0]),
        (ValueError, r"the output's shape \(2, 5\), got \(2, 1\)", lambda g: g[:, :1]),
        (ValueError, r"the output's shape \(2, 5\), got \(\)", lambda g: g[0, 0]),
        (TypeError, "the output's dtype float64, got float32", lambda g: g.astype(np.float32)),
        (TypeError, "grad_output must be float32 or float64", lambda g: g.astype(int)),
        (TypeError, "grad_output must be a NumPy array, got list", lambda g: g.tolist()),
        (TypeError, "grad_output must be a NumPy array, got NoneType", lambda g: None),
    ],
)
def test_refused_gradients_change_nothing(error, match, spoil):
    net = residual_net()
    grad = normal((2, 5))
    net(normal((2, 3, 9, 8)))
    with pytest.raises(error, match=match):
        net.backward(spoil(grad))
    assert not any(parameter.grad.any() for parameter in net.parameters())
    net.backward(grad)  # the call is still there


class Keeper(nn.Layer):
    """Keeps an array of its own, and notes whether the one before is still there."""

    kept = staticmethod(lambda: None)

    def forward(self, input):
        return input * 1

    def record(self, input):
        array = np.ones(1000)
        self.two = self.kept() is not None
        self.kept = weakref.ref(array)
        return self.forward(input), array

    def gradient(self, grad_output, kept, input_gradient=True):
        return grad_output * kept[0]


@pytest.mark.parametrize("wrap", [lambda k: k, nn.Sequential, nn.Residual])
def test_what_is_kept_is_given_up(wrap):
    keeper = Keeper()
    net = wrap(keeper)
    x = np.ones(3)
    for give_up in (
        lambda: net.backward(x),
        lambda: net.backward(x, input_gradient=False),
        lambda: net.eval(),
        lambda: net.train()(x),
    ):
        net.train()(x)
        kept = keeper.kept
        assert kept() is not None
        give_up()
        assert kept() is None and not keeper.two
    net.eval()(x)
    assert net._last is None


def test_memory_is_given_up_on_the_way_back():
    seen = []

    class Watcher(Keeper):
        def gradient(self, grad_output, kept, input_gradient=True):
            seen.append([keeper.kept() is not None for keeper in keepers])
            return grad_output

    keepers = [Watcher() for _ in range(3)]
    net = nn.Sequential(*keepers)
    net(np.ones(3))
    net.backward(np.ones(3))
    assert seen == [[True, True, True], [True, True, False], [True, False, False]]


def test_copies_have_made_no_call():
    net = residual_net()
    x, grad = normal((2, 3, 9, 8)), normal((2, 5))
    net(x)
    for twin in (copy.deepcopy(net), copy.copy(net), pickle.loads(pickle.dumps(net))):
        with pytest.raises(RuntimeError):
            twin.backward(grad)
    net.backward(grad)


def test_evaluation_of_every_layer_serves_many_threads():
    net = residual_net().eval()
    layers = list(every_layer(net))
    before = [dict(vars(layer)) for layer in layers], net.state_dict()
    batches = [normal((1 + seed % 3, 3, 9, 8), seed=seed) for seed in range(32)]
    expected = [net(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for output, y in zip(pool.map(net, batches), expected, strict=True):
            np.testing.assert_array_equal(output, y)
    assert [vars(layer) for layer in layers] == before[0]
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[1][name])


def test_buffers_are_saved_and_loaded():
    net, other = (nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()) for _ in range(2))
    x = normal((3, 2, 4, 4), np.float32)
    net(x)
    state = net.state_dict()
    assert state["0.num_batches_tracked"] == 1
    net(x)
    assert state["0.num_batches_tracked"] == 1  # a copy
    other.load_state_dict(state)
    assert other[0].num_batches_tracked.dtype == np.int64
    np.testing.assert_array_equal(other[0].running_var, state["0.running_var"])
    assert other.num_parameters() == 4
    older = {name: array for name, array in state.items() if "tracked" not in name}
    assert other.load_state_dict(older) == ([], [])  # as torch takes a file without counters
    assert other[0].num_batches_tracked == 1
    del older["0.running_var"]
    with pytest.raises(KeyError, match=r"missing 0\.running_var\b"):
        other.load_state_dict(older)
    with pytest.raises(TypeError, match="num_batches_tracked'] must be integers, got float64"):
        other.load_state_dict({**state, "0.num_batches_tracked": np.ones(())})
    with pytest.raises(TypeError, match="running_mean'] must be float32 or float64, got int64"):
        other.load_state_dict({**state, "0.running_mean": np.ones(2, np.int64)})
    plain = nn.BatchNorm2d(2, affine=False, track_running_stats=False)
    assert plain.state_dict() == {} and repr(plain) == (
        "BatchNorm2d(2, affine=False, track_running_stats=False)"
    )


# Layers of one's own


def test_a_new_forward_has_no_inherited_gradient():
    class Shifted(nn.ReLU):
        def forward(self, input):
            return super().forward(input) + 1

    class Doubled(nn.Sequential):
        def forward(self, input):
            return 2 * super().forward(input)

        def record(self, input):
            output, kept = super().record(input)
            return 2 * output, kept

        def gradient(self, grad_output, kept, input_gradient=True):
            return super().gradient(2 * grad_output, kept, input_gradient)

    x = np.array([[-1.0, 2.0]])
    net = nn.Sequential(Shifted())
    np.testing.assert_array_equal(net(x), [[1, 3]])
    with pytest.raises(RuntimeError, match="Shifted defines forward but no gradient"):
        net.backward(x)
    net = nn.Sequential(Doubled(nn.ReLU()))
    np.testing.assert_array_equal(net(x), [[0, 4]])
    np.testing.assert_array_equal(net.backward(x), [[0, 4]])


# Arguments, shapes and summaries of the layers


@pytest.mark.parametrize(
    ("error", "match", "make"),
    [
        (ValueError, "groups must divide", lambda: nn.ConvTranspose2d(3, 4, 3, groups=2)),
        (ValueError, "padding_mode", lambda: nn.ConvTranspose2d(3, 4, 3, padding_mode="reflect")),
        (TypeError, "padding must be", lambda: nn.ConvTranspose2d(3, 4, 3, padding="same")),
        (ValueError, "output_padding", lambda: nn.ConvTranspose2d(3, 4, 3, 2, output_padding=2)),
        (ValueError, "num_features", lambda: nn.BatchNorm2d(0)),
        (TypeError, "dtype must be", lambda: nn.BatchNorm2d(3, dtype=np.int32)),
        (TypeError, "num_parameters", lambda: nn.PReLU(1.5)),
        (ValueError, "kernel_size", lambda: nn.AvgPool2d(0)),
        (ValueError, "divisor_override", lambda: nn.AvgPool2d(2, divisor_override=0)),
        (ValueError, "stride", lambda: nn.LPPool2d(2, 3, 0)),
        (ValueError, "p must be between", lambda: nn.Dropout2d(-0.1)),
        (TypeError, "rng must be", lambda: nn.Dropout2d(rng=3)),
        (TypeError, "layers must be", lambda: nn.Residual(3)),
        (TypeError, "shortcut must be a Layer", lambda: nn.Residual(shortcut=3)),
    ],
)
def test_refused_arguments(error, match, make):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ConvTranspose2d(3, 4, 3), (1, 2, 8, 8)),
        (nn.ConvTranspose2d(3, 4, 3, padding=9), (1, 3, 8, 8)),
        (nn.BatchNorm2d(3), (1, 4, 8, 8)),
        (nn.BatchNorm2d(3), (2, 3)),
        (nn.AvgPool2d(9), (1, 3, 8, 8)),
        (nn.LPPool2d(2, 9), (1, 3, 8, 8)),
        (nn.Dropout2d(), (3, 8)),
        (nn.Residual(nn.Conv2d(3, 4, 1)), (1, 3, 8, 8)),
        (nn.Residual(nn.Conv2d(3, 3, 3)), (1, 3, 8, 8)),
        (nn.Residual(nn.Conv2d(3, 1, 1)), (1, 3, 8, 8)),
    ],
)
def test_call_and_output_shape_refuse_alike(layer, shape):
    with pytest.raises(ValueError):
        layer.output_shape(shape)
    with pytest.raises(ValueError):
        layer.summary(shape)
    with pytest.raises(ValueError):
        layer(np.zeros(shape, np.float32))


def test_repr():
    assert [
        repr(layer)
        for layer in (
            nn.ConvTranspose2d(4, 2, 3, 2, 1, 1, 2, False, 3),
            nn.AvgPool2d(3, 2, 1, True, False, 5),
            nn.LPPool2d(2, 3),
            nn.BatchNorm2d(3),
            nn.BatchNorm2d(3, 0.1, None),
            nn.LeakyReLU(),
            nn.PReLU(3),
            nn.Dropout2d(),
            nn.Residual(nn.ReLU()),
        )
    ] == [
        "ConvTranspose2d(4, 2, kernel_size=3, stride=2, padding=1, output_padding=1, groups=2, "
        "bias=False, dilation=3)",
        "AvgPool2d(kernel_size=3, stride=2, padding=1, ceil_mode=True, count_include_pad=False, "
        "divisor_override=5)",
        "LPPool2d(2, kernel_size=3)",
        "BatchNorm2d(3)",
        "BatchNorm2d(3, eps=0.1, momentum=None)",
        "LeakyReLU()",
        "PReLU(3)",
        "Dropout2d(p=0.5)",
        "Residual(\n  (body): Sequential(\n    (0): ReLU()\n  )\n)",
    ]


def test_initial_transposed_weights_are_in_torch_s_bounds():
    layer = nn.ConvTranspose2d(8, 50, 3, groups=2)
    bound = 1 / 15
    for values in (layer.weight.data, layer.bias.data):
        assert 0.9 * bound < np.abs(values).max() <= bound * (1 + 1e-6)
    assert layer.weight.data.shape == (8, 25, 3, 3) and layer.bias.data.shape == (50,)


def test_walk_gives_a_residual_as_one_step():
    net = residual_net().eval()
    x = normal((2, 3, 9, 8))
    steps = list(net.walk(x))
    assert [step.name for step in steps][:4] == ["stem.0", "norm", "block", "same"]
    shape = x.shape
    for step in steps:
        shape = step.layer.output_shape(shape)
        assert step.output.shape == shape
        assert len(shape) < 4 or is_channels_last(step.output)
    assert net.output_shape(x.shape) == (2, 5)


def test_summary_of_a_residual_net():
    net = residual_net()
    summary = net.summary((3, 9, 8))
    rows = {row.name: row for row in summary.rows}
    names = [name for name, _ in net.named_parameters()]
    assert {name.rpartition(".")[0] for name in names} <= set(rows)
    assert sum(row.parameters for row in summary.rows) == summary.parameters == net.num_parameters()
    assert list(rows)[3:9] == [
        "block.body.0",
        "block.body.1",
        "block.body.2",
        "block.body.3",
        "block.shortcut.0",
        "block.shortcut.1",
    ]
    assert rows["block.shortcut.0"].receptive_field == (3, 3)
    assert rows["block.shortcut.0"].output_shape == (8, 5, 4)
    assert rows["act"].receptive_field == rows["block.body.3"].receptive_field == (9, 9)
    assert rows["up"].multiply_adds == 8 * 5 * 4 * 4 * 9
    assert rows["mean"].output_shape == (4, 2, 2)
    with pytest.raises(ValueError, match=r"in layer wrong, Residual"):
        nn.Sequential(("wrong", nn.Residual(nn.Conv2d(3, 3, 3)))).summary((3, 9, 9))


@pytest.mark.parametrize(
    "make",
    [
        lambda conv: [conv(3), nn.AvgPool2d(2), conv((3, 1), dilation=2)],
        lambda conv: [nn.Residual(conv(3, padding=1), conv((3, 5), padding=(1, 2))), conv(3)],
        lambda conv: [nn.Residual(conv(1), shortcut=nn.Sequential(conv(5, padding=2))), conv(3)],
        lambda conv: [conv(3), up(3, 2), conv(3)],
        lambda conv: [up((4, 2), (3, 2)), conv((3, 4))],
        lambda conv: [conv(3, stride=2), up(3, 2, dilation=3), up(3, 3, dilation=2), conv(3)],
        lambda conv: [nn.AvgPool2d(2), up(2, 2), nn.LPPool2d(1, 3, 1)],
    ],
)
def test_receptive_field_is_where_gradients_reach(make):
    def conv(*args, **options):
        layer = nn.Conv2d(1, 1, *args, bias=False, dtype=np.float64, **options)
        layer.weight.data[...] = 1
        return layer

    net = nn.Sequential(*make(conv))
    size = 72
    y = net(np.ones((1, 1, size, size)))
    field = net.summary((1, 1, size, size)).rows[-1].receptive_field
    largest = [0, 0]
    for row, column in np.ndindex(7, 7):  # where windows meet differently
        grad = np.zeros(y.shape)
        grad[0, 0, y.shape[2] // 2 + row, y.shape[3] // 2 + column] = 1
        net(np.ones((1, 1, size, size)))
        reached = np.nonzero(net.backward(grad)[0, 0])
        largest = [max(most, np.ptp(at) + 1) for most, at in zip(largest, reached, strict=True)]
    # Between pixels of an enlarged map the bound may be one too high.
    for seen, said in zip(largest, field, strict=True):
        assert seen <= said <= seen + any(isinstance(part, nn.ConvTranspose2d) for part in net)


def up(*args, **options):
    layer = nn.ConvTranspose2d(1, 1, *args, bias=False, dtype=np.float64, **options)
    layer.weight.data[...] = 1
    return layer


@pytest.mark.parametrize("convert", (np.ascontiguousarray, to_channels_last))
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_relu_within_normalisation(dtype, convert):
    """A `ReLU` after a `BatchNorm2d` runs in its passes; the two one by one say the same."""
    rng = np.random.default_rng(12)
    tolerance = 1e-4 if dtype == np.float32 else 1e-11
    shapes = ((3, 1, 2, 2), (2, 17, 6, 5), (4, 40, 23, 9), (3, 530, 3, 3), (1, 3, 131, 130))
    for training, affine, shape in itertools.product((True, False), (True, False), shapes):
        norm = nn.BatchNorm2d(shape[1], affine=affine, dtype=dtype)
        if affine:
            norm.weight.data[:], norm.bias.data[:] = rng.standard_normal((2, shape[1]))
            norm.weight.data[0] = norm.bias.data[0] = 0  # zeros have no gradient
        norm.train(training)
        x, g = (convert(rng.standard_normal(shape).astype(dtype)) for _ in range(2))
        single = copy.deepcopy(norm)
        y, kept = nn.Sequential(norm, nn.ReLU()).record(x)
        before, of_norm = single.record(x)
        np.testing.assert_array_equal(y, functional.relu(before))
        mine = nn.Sequential(norm, nn.ReLU()).gradient(g, kept)
        true = single.gradient(functional.relu_backward(g, before), of_norm)
        for layer, gradient in ((norm, mine), (single, true)):
            layer.answers = [gradient, *(p.grad for p in layer.parameters())]
        for a, b in zip(norm.answers, single.answers, strict=True):
            np.testing.assert_allclose(a, b, tolerance, tolerance * abs(b).max())
