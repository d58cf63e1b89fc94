"""The networks beside AlexNet: sizes, names, outputs and gradients of their twins in torch."""

from __future__ import annotations

import numpy as np
import pytest
from layers import all_layers, make_double

from convkern import _kernels, models, nn
from convkern.shapes import select

# Parameters, and millions of multiply-adds at the size of INPUT_SHAPE where they are published.
SIZES = {
    "cifar_basic": (2_942, None),
    "cifar_advanced": (17_114, None),
    "cs231n_convnet": (31_642, None),
    "digits_cnn": (30_890, None),
    "mnist_cnn": (149_798, None),
    "resnet20": (272_474, 41),
    "resnet32": (466_906, 69),
    "resnet56": (855_770, 126),
    "resnet18": (11_689_512, 1_814),
    "resnet50": (25_557_032, 4_089),
    "vgg11": (132_863_336, 7_609),
    "vgg16": (138_357_544, 15_470),
    "vgg19": (143_667_240, 19_632),
    "googlenet": (6_624_904, 1_498),
}
# What the nets for ImageNet are compared on, to be fast.
SMALL = {"resnet18": 64, "resnet50": 64, "googlenet": 64, "vgg11": 32, "vgg16": 32, "vgg19": 32}
# The learning rates of ten steps, elsewhere 0.01: deep nets with batch normalisation begin as
# chaos, in which every step makes ten times as much of a rounding error, in any library.
RATES = {
    "cifar_advanced": 1e-3,
    "resnet20": 1e-4,
    "resnet32": 1e-5,
    "resnet56": 3e-7,
    "resnet18": 1e-5,
    "resnet50": 2e-9,
    "googlenet": 1e-7,
}


def large_once(name, *values):
    """Return parameters of a test that large nets pass once, not on every set of kernels."""
    once = name in SMALL and _kernels.isa != _kernels.isa_names()[-1]
    return pytest.param(name, *values, marks=[pytest.mark.skip(reason="is tested once")] * once)


@pytest.fixture
def twins(torch):
    import torch_models

    return torch_models


@pytest.fixture
def unset(monkeypatch):
    """Leave the weights of the largest layers untouched: pages that nobody writes take no time."""

    def initial_weights(shape, bias, rng, dtype):
        weight = nn.Parameter(np.zeros(shape, dtype))
        return weight, None if bias is None else nn.Parameter(np.zeros(bias, dtype))

    monkeypatch.setattr("convkern.nn.linear.initial_weights", initial_weights)


@pytest.fixture
def narrow(monkeypatch, twins):
    """Make the hidden linear layers of AlexNet and VGG small."""
    monkeypatch.setattr(models, "_HIDDEN", 64)
    monkeypatch.setattr(twins, "HIDDEN", 64)


def without_dropout(*nets):
    """Switch off what two libraries choose differently."""
    for net in nets:
        for layer in all_layers(net) if isinstance(net, nn.Layer) else net.modules():
            if type(layer).__name__ == "Dropout":
                layer.p = 0.0


def assert_close(mine, other, what):
    other = other.detach().numpy()
    assert mine.shape == other.shape, what
    assert np.abs(mine - other).max() <= 1e-9 * max(1e-3, np.abs(other).max()), what


def test_every_network_is_here():
    assert {*SIZES, "alexnet"} == set(models.INPUT_SHAPE)
    for name, (_, *size) in models.INPUT_SHAPE.items():
        assert [models.INPUT_SIZE[name]] * 2 == size


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_names(torch, twins, unset, name):
    with torch.device("meta"):
        theirs = getattr(twins, name)()
    net = getattr(models, name)()
    shapes = {key: value.data.shape for key, value in net.named_parameters()}
    assert list(shapes.items()) == [(k, tuple(v.shape)) for k, v in theirs.named_parameters()]
    if "vgg" not in name:
        assert list(net.state_dict()) == list(theirs.state_dict())

    parameters, multiply_adds = SIZES[name]
    assert net.num_parameters() == parameters
    shape = models.INPUT_SHAPE[name]
    summary = net.summary(shape)
    classes = 10 if shape[1] < 224 else 1000
    assert summary.rows[-1].output_shape == (classes,)
    assert net.output_shape((2, *shape)) == (2, classes)
    assert f"{parameters:,} parameters" in str(summary)
    if multiply_adds:
        assert round(summary.multiply_adds / 1e6) == pytest.approx(multiply_adds, abs=1)
    # Rows are named as the parameters are.
    learning = [key.rpartition(".")[0] for key in shapes]
    assert [row.name for row in summary.rows if row.parameters] == list(dict.fromkeys(learning))


@pytest.mark.parametrize("name", ["cifar_basic", "mnist_cnn", "resnet20", "resnet50", "vgg19"])
def test_shapes_of_the_benchmarks_are_the_nets(unset, name):
    net = getattr(models, name)()
    rows = net.summary(models.INPUT_SHAPE[name]).rows
    work = {(row.output_shape[0], row.multiply_adds) for row in rows if row.multiply_adds}
    assert {(shape.OC, shape.multiply_adds) for shape in select(name)} <= work
    convolutions = [row for row in rows if row.multiply_adds and len(row.output_shape) == 3]
    distinct = {(row.output_shape, row.multiply_adds) for row in convolutions}
    assert len(distinct) <= len(select(name))  # none is missing there


@pytest.mark.parametrize("name", SIZES)
def test_outputs_and_gradients_equal_torch(torch, twins, unset, name):
    torch.manual_seed(0)
    if "vgg" in name:
        # The linear layers are AlexNet's, and too large for float64.
        with torch.device("meta"):
            theirs = getattr(twins, name)()
        ours = getattr(models, name)()
        assert [type(layer).__name__ for layer in ours["classifier"]] == [
            type(layer).__name__ for layer in theirs.classifier
        ]
        assert [row.name.split(".")[0] for row in ours.summary((3, 32, 32)).rows][-9:-6] == [
            "avgpool",
            "flatten",
            "classifier",
        ]
        theirs, ours = theirs.features.to_empty(device="cpu"), ours["features"]
        for layer in theirs:
            if isinstance(layer, torch.nn.Conv2d):
                layer.reset_parameters()
    else:
        theirs, ours = getattr(twins, name)(), getattr(models, name)()
    theirs.double()
    make_double(ours).load_state_dict(theirs.state_dict())
    without_dropout(theirs, ours)

    channels, side, _ = models.INPUT_SHAPE[name]
    side = SMALL.get(name, side)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, channels, side, side))
    inputs = torch.from_numpy(x).requires_grad_()
    expected = theirs(inputs)
    grad = rng.standard_normal(tuple(expected.shape))
    expected.backward(torch.from_numpy(grad))
    assert_close(ours(x), expected, "output")
    assert_close(ours.backward(grad), inputs.grad, "gradient of the input")
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(mine.grad, other.grad, key)
    states = zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True)
    for (key, mine), other in states:
        assert_close(mine, other, key)
    with torch.no_grad():
        assert_close(ours.eval()(x), theirs.eval()(inputs), "output in evaluation")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [large_once(name) for name in models.INPUT_SHAPE])
def test_ten_steps_follow_torch(torch, twins, narrow, name, dtype):
    torch.manual_seed(0)
    theirs, ours = getattr(twins, name)(), getattr(models, name)()
    ours.load_state_dict(theirs.state_dict())
    if dtype == np.float64:
        theirs.double()
        make_double(ours)
    without_dropout(theirs, ours)
    rng = np.random.default_rng(0)
    channels, side, _ = models.INPUT_SHAPE[name]
    side = SMALL.get(name, side)
    batches = rng.standard_normal((2, 4, channels, side, side)).astype(dtype)
    labels = rng.integers(0, 10, (2, 4))
    settings = {"lr": RATES.get(name, 0.01), "momentum": 0.9, "weight_decay": 5e-4}
    optimizer, loss = nn.SGD(ours.parameters(), **settings), nn.CrossEntropyLoss()
    twin = torch.optim.SGD(theirs.parameters(), **settings)
    losses, expected = [], []
    for step in range(10):
        images, target = batches[step % 2], labels[step % 2]
        optimizer.zero_grad()
        losses.append(loss(ours(images), target))
        ours.backward(loss.backward(), input_gradient=False)
        optimizer.step()

        twin.zero_grad()
        value = torch.nn.functional.cross_entropy(
            theirs(torch.from_numpy(images)), torch.from_numpy(target)
        )
        value.backward()
        twin.step()
        expected.append(value.item())
    tolerance = 1e-4 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(losses, expected, rtol=tolerance)
    assert losses[8] < (1 - 10 * tolerance) * losses[0]  # the steps have made a difference


@pytest.mark.parametrize("name", ["resnet20", "cifar_advanced", "mnist_cnn"])
def test_float32_and_a_seed(name):
    make = getattr(models, name)
    first, second, other = (make(7, rng=np.random.default_rng(s)).eval() for s in (1, 1, 2))
    x = np.random.default_rng(0).random((3, *models.INPUT_SHAPE[name]), np.float32)
    y = first(x)
    assert y.shape == (3, 7) and y.dtype == np.float32
    np.testing.assert_array_equal(y, second(x))
    assert not np.array_equal(y, other(x))
    exact = make_double(second)(x.astype(np.float64))
    assert np.abs(y - exact).max() <= 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("counters", [True, False])
def test_published_files_load(tmp_path, torch, twins, counters):
    from convkern.checkpoint import load_weights

    theirs = twins.resnet20().eval()
    state = theirs.state_dict()
    if not counters:  # torchvision's older files
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "resnet20.pth")
    net = models.resnet20().eval()
    net.load_state_dict(load_weights(tmp_path / "resnet20.pth"))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        np.testing.assert_allclose(net(x.numpy()), theirs(x).numpy(), rtol=1e-4, atol=1e-5)


def test_blocks_can_be_taken_apart():
    net = models.resnet18(3).eval()
    assert isinstance(net["layer2"][0], nn.Sequential)
    names = [step.name for step in net.walk(np.zeros((1, 3, 32, 32), np.float32))]
    assert names[:5] == ["conv1", "bn1", "maxpool", "layer1.0", "layer1.1"]


@pytest.mark.parametrize("name", SIZES)
def test_refused_arguments(unset, name):
    make = getattr(models, name)
    with pytest.raises(ValueError, match=r"out_(features|channels) must be at least 1"):
        make(0)
    with pytest.raises(TypeError, match=r"rng must be a numpy.random.Generator"):
        make(rng=0)
