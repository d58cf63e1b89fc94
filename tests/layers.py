"""Cases of every layer, and pairs of a layer here and in torch.nn with the same weights."""

from __future__ import annotations

import numpy as np

from convkern import nn

# The same arguments make the layer here and in torch.nn.
LAYERS = [
    ("Conv2d", (3, 8, 3), {}, (2, 3, 9, 8)),
    ("Conv2d", (3, 5, 2, 2, 1, 2, 1, False), {}, (2, 3, 9, 8)),
    ("Conv2d", (4, 6, 3, 2, 1, 1, 2, True, "reflect"), {}, (1, 4, 7, 7)),
    ("Conv2d", (4, 6, (3, 2)), {"stride": (2, 1), "padding": (1, 0), "groups": 2}, (2, 4, 8, 5)),
    ("Conv2d", (4, 4, 3), {"dilation": (1, 2), "groups": 4, "bias": False}, (1, 4, 6, 7)),
    *(
        ("Conv2d", (2, 3, kernel), {"padding": padding, "padding_mode": mode}, (2, 2, 5, 6))
        for mode in ("zeros", "reflect", "replicate", "circular")
        for kernel, padding in ((3, 2), ((4, 3), "same"), (2, "valid"), ((3, 5), (0, 3)))
    ),
    ("ConvTranspose2d", (3, 4, 3), {}, (2, 3, 4, 5)),
    ("ConvTranspose2d", (4, 6, (3, 2), 2, 1, 1, 2, False), {}, (2, 4, 5, 3)),
    ("ConvTranspose2d", (2, 3, 3), {"stride": (1, 3), "dilation": (2, 1)}, (1, 2, 3, 4)),
    ("Linear", (7, 4), {}, (3, 7)),
    ("Linear", (7, 4, False), {}, (2, 5, 7)),
    ("MaxPool2d", (3, 2), {}, (2, 5, 8, 9)),
    ("MaxPool2d", ((2, 3),), {"padding": (1, 0), "dilation": (2, 1)}, (2, 3, 8, 9)),
    ("MaxPool2d", (3,), {"stride": 2, "padding": 1, "ceil_mode": True}, (1, 3, 8, 7)),
    ("AvgPool2d", (3, 2), {}, (2, 5, 8, 9)),
    ("AvgPool2d", ((2, 3), None, (1, 0), True, False), {}, (2, 3, 8, 10)),
    ("AvgPool2d", (3,), {"stride": 2, "ceil_mode": True, "divisor_override": 5}, (1, 3, 8, 6)),
    ("LPPool2d", (2, 3), {"stride": 2}, (2, 3, 7, 8)),
    ("LPPool2d", (4.0, (2, 3)), {"ceil_mode": True}, (2, 3, 7, 8)),
    ("AdaptiveAvgPool2d", (6,), {}, (2, 3, 6, 6)),
    ("AdaptiveAvgPool2d", ((3, 5),), {}, (2, 3, 10, 7)),
    ("AdaptiveAvgPool2d", ((None, 4),), {}, (2, 3, 5, 9)),
    ("LocalResponseNorm", (5,), {"alpha": 0.3, "beta": 0.75, "k": 2.0}, (2, 9, 4, 3)),
    ("LocalResponseNorm", (2, 1.0, 0.5), {}, (1, 3, 4, 3)),
    ("BatchNorm2d", (3,), {}, (4, 3, 5, 6)),
    ("BatchNorm2d", (3, 1e-2, None, False), {}, (2, 3, 5, 6)),
    ("BatchNorm2d", (5,), {"momentum": 0.5, "track_running_stats": False}, (2, 5, 3, 1)),
    ("ReLU", (), {}, (2, 3, 4, 5)),
    ("LeakyReLU", (), {}, (2, 3, 4, 5)),
    ("LeakyReLU", (0.3,), {}, (2, 7)),
    ("PReLU", (), {}, (2, 3, 4, 5)),
    ("PReLU", (3, 0.1), {}, (2, 3, 4, 5)),
    ("PReLU", (7,), {}, (2, 7)),
    ("Sigmoid", (), {}, (2, 3, 4, 5)),
    ("Softmax", (), {"dim": 1}, (4, 10)),
    ("Softmax", (), {"dim": -1}, (2, 3, 4)),
    ("Dropout", (0.3,), {}, (2, 3, 4, 5)),
    ("Dropout2d", (0.3,), {}, (2, 3, 4, 5)),
    ("Flatten", (), {}, (2, 3, 4, 5)),
    ("Flatten", (2,), {}, (2, 3, 4, 5)),
]

LEARNING = ("Conv2d", "ConvTranspose2d", "Linear", "BatchNorm2d", "PReLU")


def layer_pair(torch, name, args, options, dtype):
    """Return torch's layer and ours, with the same random parameters and statistics."""
    rng = np.random.default_rng(0)
    theirs = getattr(torch.nn, name)(*args, **options).to(getattr(torch, dtype.__name__))
    with torch.no_grad():
        for array in (*theirs.parameters(), *theirs.buffers()):
            if array.dtype.is_floating_point:
                array.copy_(torch.from_numpy(rng.uniform(0.5, 1.5, tuple(array.shape))))
    learns = {"dtype": dtype} if name in LEARNING else {}
    ours = getattr(nn, name)(*args, **options, **learns)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def is_channels_last(array):
    return np.moveaxis(array, -3, -1).flags.c_contiguous


def all_layers(layer):
    yield layer
    for _, child in layer._children():
        yield from all_layers(child)


def make_double(net):
    """Turn a net to float64, in which only a wrong net differs from torch's."""
    for layer in all_layers(net):
        for parameter in vars(layer).values():
            if isinstance(parameter, nn.Parameter):
                parameter.data = parameter.data.astype(np.float64)
        for name in layer.buffers:
            array = getattr(layer, name)
            if array is not None and array.dtype == np.float32:
                setattr(layer, name, array.astype(np.float64))
    return net
