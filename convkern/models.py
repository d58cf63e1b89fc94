"""Networks of the literature: functions that return a `Sequential` with fresh weights.

Initial weights are the layers' own, torch's defaults.  Where torchvision has a net, the
names of the parameters are torchvision's, so that its published weights load:
``net.load_state_dict(load_weights("resnet18.pth"))``, see `convkern.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from convkern.nn import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    Softmax,
)
from convkern.nn.common import as_generator

#: Channels, height and width of the images that each network takes.
INPUT_SHAPE = {
    "alexnet": (3, 227, 227),
    "cifar_basic": (3, 28, 28),
    "cifar_advanced": (3, 32, 32),
    "cs231n_convnet": (3, 32, 32),
    "digits_cnn": (1, 8, 8),
    "mnist_cnn": (1, 28, 28),
    "resnet20": (3, 32, 32),
    "resnet32": (3, 32, 32),
    "resnet56": (3, 32, 32),
    "resnet18": (3, 224, 224),
    "resnet50": (3, 224, 224),
    "vgg11": (3, 224, 224),
    "vgg16": (3, 224, 224),
    "vgg19": (3, 224, 224),
    "googlenet": (3, 224, 224),
}

#: Outputs of the hidden linear layers of AlexNet and VGG.
_HIDDEN = 4096

# ---------------------------------------------------------------- AlexNet


class _AlexNet(NamedTuple):
    """What distinguishes one form of AlexNet from the others."""

    input_size: int
    channels: tuple[int, int, int, int, int]
    first_padding: int = 0
    groups: int = 1
    local_response_norm: bool = False
    average_pool: bool = False


_ALEXNETS = {
    "article": _AlexNet(227, (96, 256, 384, 384, 256)),
    "torchvision": _AlexNet(224, (64, 192, 384, 256, 256), first_padding=2, average_pool=True),
    "2012": _AlexNet(227, (96, 256, 384, 384, 256), groups=2, local_response_norm=True),
}

#: The variants of `alexnet`.
ALEXNET_VARIANTS = tuple(_ALEXNETS)

#: Height and width of the images that each network and each variant of `alexnet` takes.
INPUT_SIZE = {name: shape[1] for name, shape in INPUT_SHAPE.items()} | {
    variant: form.input_size for variant, form in _ALEXNETS.items()
}

#: What may follow the last linear layer of a net.
_OUTPUTS: dict[str, type[Layer] | None] = {"logits": None, "sigmoid": Sigmoid, "softmax": Softmax}


def alexnet(
    num_classes: int = 1000,
    variant: str = "article",
    output: str = "logits",
    *,
    rng: np.random.Generator | None = None,
) -> Sequential:
    """Return AlexNet: five convolutions and three linear layers.

    Source: Krizhevsky, Sutskever and Hinton, *ImageNet classification with deep
    convolutional neural networks*, 2012.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    variant : {"article", "torchvision", "2012"}
        ``"article"`` is the net in one tower, for images of 227x227 and with
        62,378,344 parameters.  ``"torchvision"`` is the narrower net of
        torchvision, for 224x224, with 61,100,840 parameters and their names
        there.  ``"2012"`` is the original net for 227x227: convolutions 2, 4
        and 5 in two groups, and local response normalisation after the first
        two, with the paper's numbers in the convention of
        `convkern.local_response_norm`; 60,965,224 parameters.
    output : {"logits", "sigmoid", "softmax"}
        What becomes of the last layer's numbers.
    rng : numpy.random.Generator, optional
        Where the initial weights and the choices of dropout come from.

    Returns
    -------
    Sequential
        A net from ``(N, 3, H, W)``, with ``H = W = INPUT_SIZE[variant]``, to
        ``(N, num_classes)``; its parts are ``features``, ``avgpool``
        (torchvision only), ``flatten``, ``classifier`` and, after logits, ``output``.

    Raises
    ------
    ValueError
        If `variant` or `output` is none of those above.

    Examples
    --------
    >>> from convkern.models import alexnet
    >>> net = alexnet(variant="2012")
    >>> net.num_parameters()
    60965224
    >>> net.output_shape((16, 3, 227, 227))
    (16, 1000)
    """
    for name, value, accepted in (("variant", variant, _ALEXNETS), ("output", output, _OUTPUTS)):
        if value not in accepted:
            raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")
    rng = as_generator(rng)
    form = _ALEXNETS[variant]
    c1, c2, c3, c4, c5 = form.channels
    groups = form.groups

    def norm() -> list[Layer]:
        return (
            [LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2)] if form.local_response_norm else []
        )

    features = Sequential(
        Conv2d(3, c1, 11, stride=4, padding=form.first_padding, rng=rng),
        ReLU(),
        *norm(),
        MaxPool2d(3, stride=2),
        Conv2d(c1, c2, 5, padding=2, groups=groups, rng=rng),
        ReLU(),
        *norm(),
        MaxPool2d(3, stride=2),
        Conv2d(c2, c3, 3, padding=1, rng=rng),
        ReLU(),
        Conv2d(c3, c4, 3, padding=1, groups=groups, rng=rng),
        ReLU(),
        Conv2d(c4, c5, 3, padding=1, groups=groups, rng=rng),
        ReLU(),
        MaxPool2d(3, stride=2),
    )
    classifier = Sequential(
        Dropout(rng=rng),
        Linear(c5 * 6 * 6, _HIDDEN, rng=rng),
        ReLU(),
        Dropout(rng=rng),
        Linear(_HIDDEN, _HIDDEN, rng=rng),
        ReLU(),
        Linear(_HIDDEN, num_classes, rng=rng),
    )
    parts: list[tuple[str, Layer]] = [("features", features)]
    if form.average_pool:
        parts.append(("avgpool", AdaptiveAvgPool2d(6)))
    parts += [("flatten", Flatten()), ("classifier", classifier)]
    if last := _OUTPUTS[output]:
        parts.append(("output", last()))
    return Sequential(*parts)


# ---------------------------------------------------------------- small images


def cifar_basic(num_classes: int = 10, *, rng: np.random.Generator | None = None) -> Sequential:
    """Return three convolutions that take a 28x28 crop of a CIFAR image down to one pixel.

    5, 7 and `num_classes` filters of 6x6, 6x6 and 4x4 with strides 2, 2 and 1, so that the
    last has one output for each class and no linear layer is needed.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    rng : numpy.random.Generator, optional
        Where the initial weights come from.

    Returns
    -------
    Sequential
        A net from ``(N, 3, 28, 28)`` to ``(N, num_classes)``.

    Raises
    ------
    TypeError, ValueError
        If `num_classes` is not a positive integer or `rng` no Generator.

    Examples
    --------
    >>> from convkern.models import cifar_basic
    >>> cifar_basic().num_parameters()
    2942
    """
    return Sequential(
        Conv2d(3, 5, 6, stride=2, rng=rng),
        ReLU(),
        Conv2d(5, 7, 6, stride=2, rng=rng),
        ReLU(),
        Conv2d(7, num_classes, 4, rng=rng),
        Flatten(),
    )


def cifar_advanced(num_classes: int = 10, *, rng: np.random.Generator | None = None) -> Sequential:
    """Return a convolutional net with batch normalisation for CIFAR images.

    Twice a convolution of 4x4, ReLU, batch normalisation and max pooling, with 16 and
    32 filters; a convolution of 5x5 then sees all that is left.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    rng : numpy.random.Generator, optional
        Where the initial weights come from.

    Returns
    -------
    Sequential
        A net from ``(N, 3, 32, 32)`` to ``(N, num_classes)``.

    Raises
    ------
    TypeError, ValueError
        If `num_classes` is not a positive integer or `rng` no Generator.

    Examples
    --------
    >>> from convkern.models import cifar_advanced
    >>> cifar_advanced().num_parameters()
    17114
    """
    return Sequential(
        Conv2d(3, 16, 4, rng=rng),
        ReLU(),
        BatchNorm2d(16),
        MaxPool2d(2),
        Conv2d(16, 32, 4, rng=rng),
        ReLU(),
        BatchNorm2d(32),
        MaxPool2d(2),
        Conv2d(32, num_classes, 5, rng=rng),
        Flatten(),
    )


def cs231n_convnet(num_classes: int = 10, *, rng: np.random.Generator | None = None) -> Sequential:
    """Return the smallest net with all four kinds of layers: convolution, ReLU, pooling, linear.

    Source: the example of the Stanford course CS231n, *Convolutional neural networks
    for visual recognition*: 12 filters, here of 5x5, on CIFAR images.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    rng : numpy.random.Generator, optional
        Where the initial weights come from.

    Returns
    -------
    Sequential
        A net from ``(N, 3, 32, 32)`` to ``(N, num_classes)``.

    Raises
    ------
    TypeError, ValueError
        If `num_classes` is not a positive integer or `rng` no Generator.

    Examples
    --------
    >>> from convkern.models import cs231n_convnet
    >>> [row.output_shape for row in cs231n_convnet().summary((3, 32, 32)).rows]
    [(12, 32, 32), (12, 32, 32), (12, 16, 16), (3072,), (10,)]
    """
    return Sequential(
        Conv2d(3, 12, 5, padding=2, rng=rng),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Linear(12 * 16 * 16, num_classes, rng=rng),
    )


def digits_cnn(num_classes: int = 10, *, rng: np.random.Generator | None = None) -> Sequential:
    """Return three convolutions and a linear layer for digits of 8x8 pixels.

    The convolutions have 32, 32 and 64 filters of 3x3, each followed by batch
    normalisation and ReLU; pooling twice by 2 leaves maps of 2x2.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    rng : numpy.random.Generator, optional
        Where the initial weights and the choices of dropout come from.

    Returns
    -------
    Sequential
        A net from ``(N, 1, 8, 8)`` to ``(N, num_classes)``.

    Raises
    ------
    TypeError, ValueError
        If `num_classes` is not a positive integer or `rng` no Generator.

    Examples
    --------
    >>> from convkern.models import digits_cnn
    >>> digits_cnn().num_parameters()
    30890
    """
    rng = as_generator(rng)
    return Sequential(
        Conv2d(1, 32, 3, padding=1, rng=rng),
        BatchNorm2d(32),
        ReLU(),
        Conv2d(32, 32, 3, padding=1, rng=rng),
        BatchNorm2d(32),
        ReLU(),
        MaxPool2d(2),
        Conv2d(32, 64, 3, padding=1, rng=rng),
        BatchNorm2d(64),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Dropout(rng=rng),
        Linear(64 * 2 * 2, num_classes, rng=rng),
    )


def mnist_cnn(num_classes: int = 10, *, rng: np.random.Generator | None = None) -> Sequential:
    """Return three convolutions and two linear layers for the digits of MNIST.

    The convolutions have 32, 64 and 100 filters of 3x3, each followed by batch
    normalisation and ReLU; pooling by 3 and by 2 leaves maps of 3x3.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    rng : numpy.random.Generator, optional
        Where the initial weights and the choices of dropout come from.

    Returns
    -------
    Sequential
        A net from ``(N, 1, 28, 28)`` to ``(N, num_classes)``.

    Raises
    ------
    TypeError, ValueError
        If `num_classes` is not a positive integer or `rng` no Generator.

    Examples
    --------
    >>> from convkern.models import mnist_cnn
    >>> mnist_cnn().num_parameters()
    149798
    """
    rng = as_generator(rng)
    return Sequential(
        Conv2d(1, 32, 3, rng=rng),
        BatchNorm2d(32),
        ReLU(),
        Conv2d(32, 64, 3, rng=rng),
        BatchNorm2d(64),
        ReLU(),
        MaxPool2d(3),
        Conv2d(64, 100, 3, rng=rng),
        BatchNorm2d(100),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Dropout(rng=rng),
        Linear(100 * 3 * 3, 80, rng=rng),
        ReLU(),
        Linear(80, num_classes, rng=rng),
    )


# ---------------------------------------------------------------- residual nets


def _residual_block(
    channels: int, width: int, stride: int, expansion: int, rng: np.random.Generator
) -> Sequential:
    """Return a residual block and the ReLU after it, from `channels` to ``expansion * width``."""
    outputs = expansion * width

    def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> Conv2d:
        return Conv2d(inputs, outputs, size, stride, size // 2, bias=False, rng=rng)

    if expansion == 1:
        convs = [conv(channels, width, 3, stride), conv(width, width, 3)]
    else:
        # The stride is in the 3x3 convolution as in torchvision, not in the first 1x1.
        convs = [conv(channels, width, 1), conv(width, width, 3, stride), conv(width, outputs, 1)]
    body: dict[str, Layer] = {}
    for number, layer in enumerate(convs, start=1):
        body |= {f"conv{number}": layer, f"bn{number}": BatchNorm2d(layer.out_channels)}
        if number < len(convs):
            body[f"relu{number}"] = ReLU()
    shortcut = None
    if stride > 1 or channels != outputs:
        shortcut = Sequential(conv(channels, outputs, 1, stride), BatchNorm2d(outputs))
    block = Residual(body, shortcut=shortcut, names=("", "downsample"))
    return Sequential(("", block), ("relu", ReLU()))


def _resnet(
    stem: dict[str, Layer],
    blocks: Sequence[int],
    width: int,
    expansion: int,
    num_classes: int,
    rng: np.random.Generator,
) -> Sequential:
    """Return a residual net: stages of `blocks`, each twice as wide and half as large."""
    parts = dict(stem)
    channels = width
    for stage, count in enumerate(blocks):
        stage_blocks = []
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            stage_blocks.append(_residual_block(channels, width, stride, expansion, rng))
            channels = expansion * width
        parts[f"layer{stage + 1}"] = Sequential(*stage_blocks)
        width *= 2
    parts |= {
        "avgpool": AdaptiveAvgPool2d(1),
        "flatten": Flatten(),
        "fc": Linear(channels, num_classes, rng=rng),
    }
    return Sequential(parts)


def _cifar_resnet(depth: int, num_classes: int, rng: np.random.Generator | None) -> Sequential:
    """Return a residual net for CIFAR of ``6 n + 2`` layers."""
    rng = as_generator(rng)
    stem: dict[str, Layer] = {
        "conv1": Conv2d(3, 16, 3, padding=1, bias=False, rng=rng),
        "bn1": BatchNorm2d(16),
        "relu": ReLU(),
    }
    return _resnet(stem, [(depth - 2) // 6] * 3, 16, 1, num_classes, rng)


def _imagenet_resnet(
    blocks: Sequence[int], expansion: int, num_classes: int, rng: np.random.Generator | None
) -> Sequential:
    """Return a residual net for ImageNet."""
    rng = as_generator(rng)
    stem: dict[str, Layer] = {
        "conv1": Conv2d(3, 64, 7, stride=2, padding=3, bias=False, rng=rng),
        "bn1": BatchNorm2d(64),
        "relu": ReLU(),
        "maxpool": MaxPool2d(3, stride=2, padding=1),
    }
    return _resnet(stem, blocks, 64, expansion, num_classes, rng)


def resnet20(num_classes: int = 10, *, rng: np.random.Generator | None = None) -> Sequential:
    """Return the residual net of 20 layers for CIFAR images.

    Source: He, Zhang, Ren and Sun, *Deep residual learning for image recognition*,
    2015, section 4.2.

    Where a stage begins, the shortcut is a 1x1 convolution of stride 2 with batch
    normalisation (option B of the paper, and the usual one today; with the paper's option A,
    zeros for the new channels, the net has 269,722 parameters).  The parameters
    have the names that torchvision gives to those of its residual nets.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    rng : numpy.random.Generator, optional
        Where the initial weights come from.

    Returns
    -------
    Sequential
        A net from ``(N, 3, 32, 32)`` to ``(N, num_classes)``.

    Raises
    ------
    TypeError, ValueError
        If `num_classes` is not a positive integer or `rng` no Generator.

    Examples
    --------
    >>> from convkern.models import resnet20
    >>> resnet20().num_parameters()
    272474
    """
    return _cifar_resnet(20, num_classes, rng)


def resnet32(num_classes: int = 10, *, rng: np.random.Generator | None = None) -> Sequential:
    """Return the residual net of 32 layers for CIFAR images; see `resnet20`.

    Source: He, Zhang, Ren and Sun, *Deep residual learning for image recognition*,
    2015, section 4.2.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    rng : numpy.random.Generator, optional
        Where the initial weights come from.

    Returns
    -------
    Sequential
        A net from ``(N, 3, 32, 32)`` to ``(N, num_classes)``.

    Raises
    ------
    TypeError, ValueError
        If `num_classes` is not a positive integer or `rng` no Generator.

    Examples
    --------
    >>> from convkern.models import resnet32
    >>> resnet32().num_parameters()
    466906
    """
    return _cifar_resnet(32, num_classes, rng)


def resnet56(num_classes: int = 10, *, rng: np.random.Generator | None = None) -> Sequential:
    """Return the residual net of 56 layers for CIFAR images; see `resnet20`.

    Source: He, Zhang, Ren and Sun, *Deep residual learning for image recognition*,
    2015, section 4.2.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    rng : numpy.random.Generator, optional
        Where the initial weights come from.

    Returns
    -------
    Sequential
        A net from ``(N, 3, 32, 32)`` to ``(N, num_classes)``.

    Raises
    ------
    TypeError, ValueError
        If `num_classes` is not a positive integer or `rng` no Generator.

    Examples
    --------
    >>> from convkern.models import resnet56
    >>> resnet56().num_parameters()
    855770
    """
    return _cifar_resnet(56, num_classes, rng)


def resnet18(num_classes: int = 1000, *, rng: np.random.Generator | None = None) -> Sequential:
    """Return the residual net of 18 layers.

    Source: He, Zhang, Ren and Sun, *Deep residual learning for image recognition*,
    2015.

    Layers and names are torchvision's.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    rng : numpy.random.Generator, optional
        Where the initial weights come from.

    Returns
    -------
    Sequential
        A net from ``(N, 3, 224, 224)`` to ``(N, num_classes)``.

    Raises
    ------
    TypeError, ValueError
        If `num_classes` is not a positive integer or `rng` no Generator.

    Examples
    --------
    >>> from convkern.models import resnet18
    >>> resnet18().num_parameters()
    11689512
    """
    return _imagenet_resnet((2, 2, 2, 2), 1, num_classes, rng)


def resnet50(num_classes: int = 1000, *, rng: np.random.Generator | None = None) -> Sequential:
    """Return the residual net of 50 layers, in blocks of 1x1, 3x3 and 1x1.

    Source: He, Zhang, Ren and Sun, *Deep residual learning for image recognition*,
    2015.

    Layers and names are torchvision's, which halves the size in the 3x3 convolutions
    ("version 1.5"), not in the 1x1 before them.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    rng : numpy.random.Generator, optional
        Where the initial weights come from.

    Returns
    -------
    Sequential
        A net from ``(N, 3, 224, 224)`` to ``(N, num_classes)``.

    Raises
    ------
    TypeError, ValueError
        If `num_classes` is not a positive integer or `rng` no Generator.

    Examples
    --------
    >>> from convkern.models import resnet50
    >>> resnet50().num_parameters()
    25557032
    """
    return _imagenet_resnet((3, 4, 6, 3), 4, num_classes, rng)


# ---------------------------------------------------------------- VGG


def _vgg(
    convolutions: Sequence[int], num_classes: int, rng: np.random.Generator | None
) -> Sequential:
    """Return a VGG net: stages of so many 3x3 convolutions, each followed by a pooling."""
    rng = as_generator(rng)
    features: list[Layer] = []
    channels = 3
    for count, width in zip(convolutions, (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            features += [Conv2d(channels, width, 3, padding=1, rng=rng), ReLU()]
            channels = width
        features.append(MaxPool2d(2))
    classifier = Sequential(
        Linear(channels * 7 * 7, _HIDDEN, rng=rng),
        ReLU(),
        Dropout(rng=rng),
        Linear(_HIDDEN, _HIDDEN, rng=rng),
        ReLU(),
        Dropout(rng=rng),
        Linear(_HIDDEN, num_classes, rng=rng),
    )
    return Sequential(
        ("features", Sequential(*features)),
        ("avgpool", AdaptiveAvgPool2d(7)),
        ("flatten", Flatten()),
        ("classifier", classifier),
    )


def vgg11(num_classes: int = 1000, *, rng: np.random.Generator | None = None) -> Sequential:
    """Return the VGG net of eight convolutions and three linear layers.

    Source: Simonyan and Zisserman, *Very deep convolutional networks for large-scale
    image recognition*, 2014, configuration A.  Layers and names are torchvision's.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    rng : numpy.random.Generator, optional
        Where the initial weights and the choices of dropout come from.

    Returns
    -------
    Sequential
        A net from ``(N, 3, 224, 224)`` to ``(N, num_classes)``.

    Raises
    ------
    TypeError, ValueError
        If `num_classes` is not a positive integer or `rng` no Generator.

    Examples
    --------
    >>> from convkern.models import vgg11
    >>> vgg11().num_parameters()
    132863336
    """
    return _vgg((1, 1, 2, 2, 2), num_classes, rng)


def vgg16(num_classes: int = 1000, *, rng: np.random.Generator | None = None) -> Sequential:
    """Return the VGG net of 13 convolutions and three linear layers.

    Source: Simonyan and Zisserman, *Very deep convolutional networks for large-scale
    image recognition*, 2014, configuration D.  Layers and names are torchvision's.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    rng : numpy.random.Generator, optional
        Where the initial weights and the choices of dropout come from.

    Returns
    -------
    Sequential
        A net from ``(N, 3, 224, 224)`` to ``(N, num_classes)``.

    Raises
    ------
    TypeError, ValueError
        If `num_classes` is not a positive integer or `rng` no Generator.

    Examples
    --------
    >>> from convkern.models import vgg16
    >>> vgg16().num_parameters()
    138357544
    """
    return _vgg((2, 2, 3, 3, 3), num_classes, rng)


def vgg19(num_classes: int = 1000, *, rng: np.random.Generator | None = None) -> Sequential:
    """Return the VGG net of 16 convolutions and three linear layers.

    Source: Simonyan and Zisserman, *Very deep convolutional networks for large-scale
    image recognition*, 2014, configuration E.  Layers and names are torchvision's.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    rng : numpy.random.Generator, optional
        Where the initial weights and the choices of dropout come from.

    Returns
    -------
    Sequential
        A net from ``(N, 3, 224, 224)`` to ``(N, num_classes)``.

    Raises
    ------
    TypeError, ValueError
        If `num_classes` is not a positive integer or `rng` no Generator.

    Examples
    --------
    >>> from convkern.models import vgg19
    >>> vgg19().num_parameters()
    143667240
    """
    return _vgg((2, 2, 4, 4, 4), num_classes, rng)


# ---------------------------------------------------------------- GoogLeNet

# Input channels of each inception block and the filters of its 1x1, 3x3 reduce, 3x3, 5x5 reduce,
# 5x5 and pool projection; None stands for a pooling.
_INCEPTIONS: dict[str, tuple[int, int, int, int, int, int, int] | None] = {
    "inception3a": (192, 64, 96, 128, 16, 32, 32),
    "inception3b": (256, 128, 128, 192, 32, 96, 64),
    "maxpool3": None,
    "inception4a": (480, 192, 96, 208, 16, 48, 64),
    "inception4b": (512, 160, 112, 224, 24, 64, 64),
    "inception4c": (512, 128, 128, 256, 24, 64, 64),
    "inception4d": (512, 112, 144, 288, 32, 64, 64),
    "inception4e": (528, 256, 160, 320, 32, 128, 128),
    "maxpool4": None,
    "inception5a": (832, 256, 160, 320, 32, 128, 128),
    "inception5b": (832, 384, 192, 384, 48, 128, 128),
}


def _conv_norm_relu(
    channels: int, filters: int, size: int, rng: np.random.Generator, stride: int = 1
) -> Sequential:
    """Return a convolution, batch normalisation and ReLU, as GoogLeNet has them in torchvision."""
    return Sequential(
        ("conv", Conv2d(channels, filters, size, stride, size // 2, bias=False, rng=rng)),
        ("bn", BatchNorm2d(filters, eps=0.001)),
        ("relu", ReLU()),
    )


def inception_block(
    channels: int,
    filters: tuple[int, int, int, int, int, int],
    *,
    rng: np.random.Generator | None = None,
) -> Concat:
    """Return an inception block: four branches whose outputs are joined along the channels.

    Source: Szegedy et al., *Going deeper with convolutions*, 2015, with batch
    normalisation and the names of torchvision.

    Parameters
    ----------
    channels : int
        Channels of the input.
    filters : tuple of six int
        Of the 1x1 convolution; of the 1x1 before the 3x3, and the 3x3; of the 1x1
        before what is a 5x5 in the paper and a 3x3 in torchvision and here, and of
        that; and of the 1x1 after the pooling.
    rng : numpy.random.Generator, optional
        Where the initial weights come from.

    Returns
    -------
    Concat
        A layer from ``(N, channels, H, W)`` to as many channels as the four have together.

    Raises
    ------
    TypeError, ValueError
        If `channels` or `filters` are not positive integers or `rng` is no Generator.

    Examples
    --------
    >>> from convkern.models import inception_block
    >>> inception_block(192, (64, 96, 128, 16, 32, 32)).output_shape((1, 192, 28, 28))
    (1, 256, 28, 28)
    """
    rng = as_generator(rng)
    one, reduce3, three, reduce5, five, projection = filters
    return Concat(
        ("branch1", _conv_norm_relu(channels, one, 1, rng)),
        (
            "branch2",
            Sequential(
                _conv_norm_relu(channels, reduce3, 1, rng), _conv_norm_relu(reduce3, three, 3, rng)
            ),
        ),
        (
            "branch3",
            Sequential(
                _conv_norm_relu(channels, reduce5, 1, rng), _conv_norm_relu(reduce5, five, 3, rng)
            ),
        ),
        (
            "branch4",
            Sequential(
                MaxPool2d(3, stride=1, padding=1), _conv_norm_relu(channels, projection, 1, rng)
            ),
        ),
    )


def googlenet(num_classes: int = 1000, *, rng: np.random.Generator | None = None) -> Sequential:
    """Return GoogLeNet: inception blocks, without the auxiliary classifiers.

    Source: Szegedy et al., *Going deeper with convolutions*, 2015.  Layers and names are
    torchvision's: with batch normalisation, and with 3x3 convolutions for the paper's 5x5.
    Its published weights hold the auxiliary classifiers as well, so they need
    ``load_state_dict(weights, strict=False)``, and they are for images scaled to -1 ... 1.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    rng : numpy.random.Generator, optional
        Where the initial weights and the choices of dropout come from.

    Returns
    -------
    Sequential
        A net from ``(N, 3, 224, 224)`` to ``(N, num_classes)``.

    Raises
    ------
    TypeError, ValueError
        If `num_classes` is not a positive integer or `rng` no Generator.

    Examples
    --------
    >>> from convkern.models import googlenet
    >>> googlenet().num_parameters()
    6624904
    """
    rng = as_generator(rng)
    parts: dict[str, Layer] = {
        "conv1": _conv_norm_relu(3, 64, 7, rng, stride=2),
        "maxpool1": MaxPool2d(3, stride=2, ceil_mode=True),
        "conv2": _conv_norm_relu(64, 64, 1, rng),
        "conv3": _conv_norm_relu(64, 192, 3, rng),
        "maxpool2": MaxPool2d(3, stride=2, ceil_mode=True),
    }
    for name, block in _INCEPTIONS.items():
        if block is None:
            size = 3 if name == "maxpool3" else 2
            parts[name] = MaxPool2d(size, stride=2, ceil_mode=True)
        else:
            parts[name] = inception_block(block[0], block[1:], rng=rng)
    parts |= {
        "avgpool": AdaptiveAvgPool2d(1),
        "flatten": Flatten(),
        "dropout": Dropout(0.2, rng=rng),
        "fc": Linear(1024, num_classes, rng=rng),
    }
    return Sequential(parts)
