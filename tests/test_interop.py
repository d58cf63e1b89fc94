"""Networks turned into those of torch."""

from __future__ import annotations

import numpy as np
import pytest
from layers import make_double

from convkern import models, nn


@pytest.fixture
def to_torch(torch):
    from convkern.interop.torch_nn import to_torch

    return to_torch


# The nets for ImageNet on small images, to be fast.
SMALL = {"resnet18": 64, "resnet50": 64, "googlenet": 64, "vgg11": 32, "vgg16": 32, "vgg19": 32}


def net_and_images(name):
    rng = np.random.default_rng(0)
    net = getattr(models, name)(rng=rng)
    if name.startswith("vgg"):
        net = net["features"]  # the classifier is AlexNet's
    channels, side, _ = models.INPUT_SHAPE[name]
    side = SMALL.get(name, side)
    return net, rng.standard_normal((2, channels, side, side), np.float32)


def assert_close(mine, theirs, what, bound=1e-4):
    mine, theirs = np.asarray(mine), theirs.detach().numpy()
    assert mine.shape == theirs.shape, what
    assert np.linalg.norm(mine - theirs) <= bound * max(np.linalg.norm(theirs), 1e-3), what


@pytest.mark.parametrize(
    ("name", "inplace"),
    [*((name, False) for name in models.INPUT_SHAPE), ("resnet20", True), ("googlenet", True)],
)
def test_every_network(torch, to_torch, name, inplace):
    net, images = net_and_images(name)
    module = to_torch(net.eval(), inplace=inplace)
    with torch.no_grad():
        assert_close(net(images), module(torch.from_numpy(images)), name)
    shapes = [parameter.data.shape for parameter in net.parameters()]
    assert [tuple(parameter.shape) for parameter in module.parameters()] == shapes


@pytest.mark.parametrize("name", ["resnet20", "mnist_cnn", "inception"])
@pytest.mark.parametrize("inplace", [False, True])
def test_gradients_and_statistics(torch, to_torch, name, inplace):
    """In float64: a rounding error that moves an element through a ReLU's kink is a large one."""
    rng = np.random.default_rng(0)
    if name == "inception":
        net = nn.Sequential(models.inception_block(8, (4, 2, 3, 2, 3, 5), rng=rng), nn.ReLU())
        images = rng.standard_normal((2, 8, 9, 9), np.float32)
    else:
        net, images = net_and_images(name)
    net, images = make_double(net), images.astype(np.float64)
    for _, layer in net._leaves():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    module = to_torch(net, inplace=inplace)
    output = net(images)
    theirs = module(torch.from_numpy(images))
    assert_close(output, theirs, "output", 1e-9)
    grad = rng.standard_normal(output.shape)
    net.backward(grad)
    theirs.backward(torch.from_numpy(grad))
    for (key, mine), other in zip(net.named_parameters(), module.parameters(), strict=True):
        assert_close(mine.grad, other.grad, key, 1e-9)
    states = zip(net.state_dict().items(), module.state_dict().values(), strict=True)
    for (key, mine), other in states:
        assert_close(mine, other, key, 1e-9)


LAYERS = {
    "conv": lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), padding=((1, 1), (0, 0)), groups=2),
    "conv same": lambda: nn.Conv2d(4, 6, 4, padding="same", dilation=2, bias=False),
    "conv reflect": lambda: nn.Conv2d(4, 3, 3, padding=(1, 2), padding_mode="reflect"),
    "conv transposed": lambda: nn.ConvTranspose2d(4, 2, 3, 2, padding=1, output_padding=1),
    "double": lambda: nn.Conv2d(4, 3, 3, dtype=np.float64),
    "linear": lambda: nn.Sequential(nn.Flatten(2), nn.Linear(64, 5, bias=False)),
    "max": lambda: nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
    "max dilated": lambda: nn.MaxPool2d(2, 1, dilation=2),
    "average": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "average divided": lambda: nn.AvgPool2d(3, divisor_override=5),
    "lp": lambda: nn.LPPool2d(2, 3, 2, ceil_mode=True),
    "adaptive": lambda: nn.AdaptiveAvgPool2d((3, None)),
    "norm": lambda: nn.BatchNorm2d(4, eps=1e-2, affine=False),
    "norm of a batch": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "local response": lambda: nn.LocalResponseNorm(3, 0.1, 0.5, 2.0),
    "leaky": lambda: nn.LeakyReLU(0.3),
    "prelu": lambda: nn.PReLU(4, 0.1),
    "sigmoid": lambda: nn.Sigmoid(),
    "softmax": lambda: nn.Softmax(1),
    "dropout": lambda: nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(0.5)),
    "residual": lambda: nn.Residual(nn.ReLU(), nn.Conv2d(4, 4, 1)),
    "concat": lambda: nn.Concat(nn.ReLU(), nn.Sequential(), nn.Conv2d(4, 4, 1)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(torch, to_torch, name):
    layer = LAYERS[name]()
    images = np.random.default_rng(0).standard_normal((2, 4, 8, 8), np.float32)
    if name == "double":
        images = images.astype(np.float64)
    if "drop" not in name:
        module = to_torch(layer, inplace=True)
        assert_close(layer(images), module(torch.tensor(images)), "in training")
    module = to_torch(layer.eval(), inplace=True)
    given = torch.tensor(images)
    expected = module(given)
    assert_close(layer(images), expected, "in evaluation", 1e-5)
    assert expected.detach().numpy().dtype == images.dtype
    assert np.array_equal(given.numpy(), images)
    assert list(module.state_dict()) == list(layer.state_dict())
    assert not any(part.training for part in module.modules() if type(part) is torch.nn.Dropout)


def test_every_layer_is_tried(to_torch):
    def kinds(layer):
        yield type(layer)
        for _, child in layer._children():
            yield from kinds(child)

    tried = {kind for make in LAYERS.values() for kind in kinds(make())}
    layers = {kind for kind in vars(nn).values() if isinstance(kind, type)}
    assert tried == {kind for kind in layers if issubclass(kind, nn.Layer)} - {nn.Layer}


def test_weights_are_copies_and_shared_layers_stay_shared(torch, to_torch):
    layer = nn.Conv2d(4, 4, 1)
    layer.weight.data = layer.weight.data[::-1]
    module = to_torch(nn.Sequential(layer, nn.ReLU(), layer))
    assert module[0] is module[2]
    before = layer.weight.data.copy()
    with torch.no_grad():
        module[0].weight.zero_()
    assert np.array_equal(layer.weight.data, before)


def test_what_torch_has_not(to_torch):
    class Own(nn.ReLU):
        pass

    with pytest.raises(TypeError, match=r"layer must be a convkern\.nn\.Layer, got 3"):
        to_torch(3)
    with pytest.raises(TypeError, match=r"made of the layers of convkern\.nn, got Own"):
        to_torch(nn.Sequential(Own()))
    with pytest.raises(ValueError, match="padding must be the same on both sides"):
        to_torch(nn.Conv2d(1, 1, 3, padding=((0, 1), (0, 0))))
