"""The layer shapes of well-known networks, named once for tests, benchmarks and docs.

A shape describes one image: the batch is chosen by whoever reads the list.
Every network lists its *distinct* layers, so a geometry is never measured
twice; the name is that of the first layer which has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar, overload

from convkern.geometry import conv_output_size


@dataclass(frozen=True)
class LayerShape:
    """What every shape has: the network, the layer, and a label made of both.

    Attributes
    ----------
    network, name : str
        The network and the layer, in lower case.
    """

    network: str
    name: str

    @property
    def label(self) -> str:
        """The name that `select` knows, ``network/name``."""
        return f"{self.network}/{self.name}"


@dataclass(frozen=True)
class ConvShape(LayerShape):
    """One convolution: ``C x H x W`` in, `OC` filters of ``C/groups x KH x KW``.

    Attributes
    ----------
    C, H, W : int
        Channels, rows and columns of the input.
    OC, KH, KW : int
        Filters, and rows and columns of each.
    stride, padding, groups, dilation : int
        As in `convkern.conv2d`, the same on both axes.

    Examples
    --------
    >>> [shape] = select("alexnet/conv1")
    >>> shape.output_size, shape.multiply_adds
    ((55, 55), 105415200)
    """

    C: int
    H: int
    W: int
    OC: int
    KH: int
    KW: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    dilation: int = 1

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        return self.C, self.H, self.W

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """``(OC, C / groups, KH, KW)``."""
        return self.OC, self.C // self.groups, self.KH, self.KW

    @property
    def arguments(self) -> dict[str, int]:
        """The keywords of `convkern.conv2d`."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def output_size(self) -> tuple[int, int]:
        """``(OH, OW)``."""
        return conv_output_size(
            (self.H, self.W), (self.KH, self.KW), self.stride, self.padding, self.dilation
        )

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the direct algorithm on one image, padding included."""
        rows, columns = self.output_size
        return rows * columns * self.OC * (self.C // self.groups) * self.KH * self.KW

    @property
    def flops(self) -> int:
        """Two operations for each of the `multiply_adds`."""
        return 2 * self.multiply_adds


@dataclass(frozen=True)
class PoolShape(LayerShape):
    """One max pooling with a square window.

    Attributes
    ----------
    C, H, W : int
        Channels, rows and columns of the input.
    kernel_size, stride, padding : int
        As in `convkern.max_pool2d`, the same on both axes.

    Examples
    --------
    >>> [shape] = select("alexnet/pool1", POOL_SHAPES)
    >>> shape.output_size
    (27, 27)
    """

    C: int
    H: int
    W: int
    kernel_size: int
    stride: int
    padding: int = 0

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        return self.C, self.H, self.W

    @property
    def arguments(self) -> dict[str, int]:
        """The keywords of `convkern.max_pool2d`."""
        return {"kernel_size": self.kernel_size, "stride": self.stride, "padding": self.padding}

    @property
    def output_size(self) -> tuple[int, int]:
        """``(OH, OW)``."""
        return conv_output_size((self.H, self.W), self.kernel_size, self.stride, self.padding)

    @property
    def flops(self) -> int:
        """Zero: pooling compares, it does not calculate."""
        return 0


@dataclass(frozen=True)
class LinearShape(LayerShape):
    """One fully connected layer.

    Attributes
    ----------
    in_features, out_features : int
        As in `convkern.nn.Linear`.

    Examples
    --------
    >>> select("alexnet/fc8", LINEAR_SHAPES)[0].multiply_adds
    4096000
    """

    in_features: int
    out_features: int

    @property
    def input_shape(self) -> tuple[int]:
        """``(in_features,)``."""
        return (self.in_features,)

    @property
    def weight_shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        return self.out_features, self.in_features

    @property
    def arguments(self) -> dict[str, int]:
        """The keywords of `convkern.linear`: none."""
        return {}

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds on one row."""
        return self.in_features * self.out_features

    @property
    def flops(self) -> int:
        """Two operations for each of the `multiply_adds`."""
        return 2 * self.multiply_adds


S = TypeVar("S", bound=LayerShape)


def _distinct(shapes: Iterable[S]) -> tuple[S, ...]:
    """Keep the first shape of each geometry in a network."""
    first: dict[S, S] = {}
    for shape in shapes:
        first.setdefault(replace(shape, name=""), shape)
    return tuple(first.values())


def _conv(
    network: str,
    name: str,
    channels: int,
    size: int,
    filters: int,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> ConvShape:
    """Return a convolution of square images with square filters."""
    return ConvShape(
        network, name, channels, size, size, filters, kernel, kernel, stride, padding, groups
    )


def _pool(
    network: str, name: str, channels: int, size: int, kernel: int, stride: int, padding: int = 0
) -> PoolShape:
    """Return a pooling of square images."""
    return PoolShape(network, name, channels, size, size, kernel, stride, padding)


def _resnet50() -> Iterable[ConvShape]:
    """Yield the convolutions of ResNet-50, the stride in each block's 3x3 layer ("v1.5")."""
    yield _conv("resnet50", "conv1", 3, 224, 64, 7, stride=2, padding=3)
    stages = ((64, 56, 64, 1), (256, 56, 128, 2), (512, 28, 256, 2), (1024, 14, 512, 2))
    for stage, (channels, size, width, stride) in enumerate(stages, start=1):
        first, second = f"layer{stage}.0", f"layer{stage}.1"
        after = size // stride
        yield _conv("resnet50", f"{first}.conv1", channels, size, width, 1)
        yield _conv("resnet50", f"{first}.conv2", width, size, width, 3, stride, padding=1)
        yield _conv("resnet50", f"{first}.conv3", width, after, 4 * width, 1)
        yield _conv("resnet50", f"{first}.downsample", channels, size, 4 * width, 1, stride)
        yield _conv("resnet50", f"{second}.conv1", 4 * width, after, width, 1)
        yield _conv("resnet50", f"{second}.conv2", width, after, width, 3, padding=1)


# Szegedy et al., "Going deeper with convolutions" (2015), table 1: the input of each inception
# block and the filters of its 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 and pool projection.
_INCEPTION = (
    ("3a", 28, 192, 64, 96, 128, 16, 32, 32),
    ("3b", 28, 256, 128, 128, 192, 32, 96, 64),
    ("4a", 14, 480, 192, 96, 208, 16, 48, 64),
    ("4b", 14, 512, 160, 112, 224, 24, 64, 64),
    ("4c", 14, 512, 128, 128, 256, 24, 64, 64),
    ("4d", 14, 512, 112, 144, 288, 32, 64, 64),
    ("4e", 14, 528, 256, 160, 320, 32, 128, 128),
    ("5a", 7, 832, 256, 160, 320, 32, 128, 128),
    ("5b", 7, 832, 384, 192, 384, 48, 128, 128),
)


def _googlenet() -> Iterable[ConvShape]:
    """Yield the convolutions of GoogLeNet."""
    yield _conv("googlenet", "conv1", 3, 224, 64, 7, stride=2, padding=3)
    yield _conv("googlenet", "conv2.reduce", 64, 56, 64, 1)
    yield _conv("googlenet", "conv2", 64, 56, 192, 3, padding=1)
    for block, size, channels, one, reduce3, three, reduce5, five, projection in _INCEPTION:
        yield _conv("googlenet", f"{block}.1x1", channels, size, one, 1)
        yield _conv("googlenet", f"{block}.3x3.reduce", channels, size, reduce3, 1)
        yield _conv("googlenet", f"{block}.3x3", reduce3, size, three, 3, padding=1)
        yield _conv("googlenet", f"{block}.5x5.reduce", channels, size, reduce5, 1)
        yield _conv("googlenet", f"{block}.5x5", reduce5, size, five, 5, padding=2)
        yield _conv("googlenet", f"{block}.projection", channels, size, projection, 1)


def _mobilenet() -> Iterable[ConvShape]:
    """Yield the convolutions of MobileNet v1: depthwise 3x3, then pointwise."""
    yield _conv("mobilenet", "conv1", 3, 224, 32, 3, stride=2, padding=1)
    blocks = (
        (32, 112, 64, 1),
        (64, 112, 128, 2),
        (128, 56, 128, 1),
        (128, 56, 256, 2),
        (256, 28, 256, 1),
        (256, 28, 512, 2),
        (512, 14, 512, 1),
        (512, 14, 1024, 2),
        (1024, 7, 1024, 1),
    )
    for index, (channels, size, filters, stride) in enumerate(blocks, start=1):
        yield _conv(
            "mobilenet", f"depthwise{index}", channels, size, channels, 3, stride, 1, channels
        )
        yield _conv("mobilenet", f"pointwise{index}", channels, size // stride, filters, 1)


#: Every convolution, network by network.
CONV_SHAPES: tuple[ConvShape, ...] = (
    _conv("alexnet", "conv1", 3, 227, 96, 11, stride=4),
    _conv("alexnet", "conv2", 96, 27, 256, 5, padding=2),
    _conv("alexnet", "conv3", 256, 13, 384, 3, padding=1),
    _conv("alexnet", "conv4", 384, 13, 384, 3, padding=1),
    _conv("alexnet", "conv5", 384, 13, 256, 3, padding=1),
    _conv("vgg19", "conv1_1", 3, 224, 64, 3, padding=1),
    _conv("vgg19", "conv1_2", 64, 224, 64, 3, padding=1),
    _conv("vgg19", "conv2_1", 64, 112, 128, 3, padding=1),
    _conv("vgg19", "conv2_2", 128, 112, 128, 3, padding=1),
    _conv("vgg19", "conv3_1", 128, 56, 256, 3, padding=1),
    _conv("vgg19", "conv3_2", 256, 56, 256, 3, padding=1),
    _conv("vgg19", "conv4_1", 256, 28, 512, 3, padding=1),
    _conv("vgg19", "conv4_2", 512, 28, 512, 3, padding=1),
    _conv("vgg19", "conv5_1", 512, 14, 512, 3, padding=1),
    *_distinct(_resnet50()),
    *_distinct(_googlenet()),
    *_mobilenet(),
    _conv("resnet20", "conv1", 3, 32, 16, 3, padding=1),
    _conv("resnet20", "layer1", 16, 32, 16, 3, padding=1),
    _conv("resnet20", "layer2.first", 16, 32, 32, 3, stride=2, padding=1),
    _conv("resnet20", "layer2.downsample", 16, 32, 32, 1, stride=2),
    _conv("resnet20", "layer2", 32, 16, 32, 3, padding=1),
    _conv("resnet20", "layer3.first", 32, 16, 64, 3, stride=2, padding=1),
    _conv("resnet20", "layer3.downsample", 32, 16, 64, 1, stride=2),
    _conv("resnet20", "layer3", 64, 8, 64, 3, padding=1),
    _conv("cifar_basic", "conv1", 3, 28, 5, 6, stride=2),
    _conv("cifar_basic", "conv2", 5, 12, 7, 6, stride=2),
    _conv("cifar_basic", "conv3", 7, 4, 10, 4),
    _conv("mnist_cnn", "conv1", 1, 28, 32, 3),
    _conv("mnist_cnn", "conv2", 32, 26, 64, 3),
    _conv("mnist_cnn", "conv3", 64, 8, 100, 3),
)

#: Max poolings.
POOL_SHAPES: tuple[PoolShape, ...] = (
    _pool("alexnet", "pool1", 96, 55, 3, 2),
    _pool("alexnet", "pool2", 256, 27, 3, 2),
    _pool("alexnet", "pool5", 256, 13, 3, 2),
    _pool("vgg19", "pool1", 64, 224, 2, 2),
    _pool("vgg19", "pool2", 128, 112, 2, 2),
    _pool("vgg19", "pool3", 256, 56, 2, 2),
    _pool("vgg19", "pool4", 512, 28, 2, 2),
    _pool("vgg19", "pool5", 512, 14, 2, 2),
    _pool("resnet50", "maxpool", 64, 112, 3, 2, padding=1),
    *_distinct(
        _pool("googlenet", f"{block}.pool", channels, size, 3, 1, padding=1)
        for block, size, channels, *_ in _INCEPTION
    ),
)

#: Fully connected layers.
LINEAR_SHAPES: tuple[LinearShape, ...] = (
    LinearShape("alexnet", "fc6", 9216, 4096),
    LinearShape("alexnet", "fc7", 4096, 4096),
    LinearShape("alexnet", "fc8", 4096, 1000),
)


@overload
def select(pattern: str) -> list[ConvShape]: ...
@overload
def select(pattern: str, shapes: Sequence[S]) -> list[S]: ...
def select(pattern: str, shapes: Sequence[Any] = CONV_SHAPES) -> list[Any]:
    """Return the shapes of a network, or one layer of it.

    Parameters
    ----------
    pattern : str
        ``network`` or ``network/name``, in any case, with the wildcards of `fnmatch`.
    shapes : sequence of LayerShape
        Where to look: `CONV_SHAPES`, `POOL_SHAPES` or `LINEAR_SHAPES`.

    Returns
    -------
    list of LayerShape
        In the order of `shapes`; never empty.

    Raises
    ------
    ValueError
        If nothing matches; the message lists what there is.

    Examples
    --------
    >>> [shape.name for shape in select("AlexNet")]
    ['conv1', 'conv2', 'conv3', 'conv4', 'conv5']
    >>> len(select("vgg19/conv4_*"))
    2
    """
    wanted = pattern.lower()
    found = [
        shape
        for shape in shapes
        if fnmatchcase(shape.network, wanted) or fnmatchcase(shape.label, wanted)
    ]
    if not found:
        network = wanted.partition("/")[0]
        layers = [shape.label for shape in shapes if shape.network == network]
        known = layers or list(dict.fromkeys(shape.network for shape in shapes))
        raise ValueError(f"no shape is named {pattern!r}; known are {', '.join(known)}")
    return found
