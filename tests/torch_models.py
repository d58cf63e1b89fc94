"""The networks of `convkern.models` in torch.nn, with the names of torchvision."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

# Outputs of the hidden linear layers of AlexNet and VGG.
HIDDEN = 4096


class Block(nn.Module):
    """A residual block of two 3x3 convolutions, or with `expansion` 4 of 1x1, 3x3 and 1x1."""

    def __init__(self, channels, width, stride, expansion):
        super().__init__()
        out = expansion * width
        if expansion == 1:
            shapes = [(channels, width, 3, stride), (width, out, 3, 1)]
        else:
            shapes = [(channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
        self.count = len(shapes)
        for i, (inputs, outputs, size, step) in enumerate(shapes, start=1):
            conv = nn.Conv2d(inputs, outputs, size, step, size // 2, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(outputs))
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.count:
                y = torch.relu(y)
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, blocks, width, expansion, classes, large):
        super().__init__()
        size, stride, padding = (7, 2, 3) if large else (3, 1, 1)
        self.conv1 = nn.Conv2d(3, width, size, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        channels = width
        self.stages = len(blocks)
        for stage, count in enumerate(blocks):
            parts = []
            for i in range(count):
                stride = 2 if stage and not i else 1
                parts.append(Block(channels, width, stride, expansion))
                channels = expansion * width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*parts))
            width *= 2
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


class VGG(nn.Module):
    def __init__(self, layers):
        super().__init__()
        parts, channels = [], 3
        for layer in layers:
            if layer == "M":
                parts.append(nn.MaxPool2d(2))
            else:
                parts += [nn.Conv2d(channels, layer, 3, padding=1), nn.ReLU()]
                channels = layer
        self.features = nn.Sequential(*parts)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(25088, HIDDEN),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(HIDDEN, 1000),
        )

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class BasicConv(nn.Module):
    def __init__(self, inputs, outputs, size, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    def __init__(self, inputs, one, reduce3, three, reduce5, five, projection):
        super().__init__()
        self.branch1 = BasicConv(inputs, one, 1)
        self.branch2 = nn.Sequential(
            BasicConv(inputs, reduce3, 1), BasicConv(reduce3, three, 3, padding=1)
        )
        self.branch3 = nn.Sequential(
            BasicConv(inputs, reduce5, 1), BasicConv(reduce5, five, 3, padding=1)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, 1, 1, ceil_mode=True), BasicConv(inputs, projection, 1)
        )

    def forward(self, x):
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


def alexnet(variant="article"):
    def norm():
        return [nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2)] if variant == "2012" else []

    widths = (64, 192, 384, 256, 256) if variant == "torchvision" else (96, 256, 384, 384, 256)
    padding = 2 if variant == "torchvision" else 0
    groups = 2 if variant == "2012" else 1
    features = nn.Sequential(
        nn.Conv2d(3, widths[0], 11, stride=4, padding=padding),
        nn.ReLU(),
        *norm(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(widths[0], widths[1], 5, padding=2, groups=groups),
        nn.ReLU(),
        *norm(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(widths[1], widths[2], 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(widths[2], widths[3], 3, padding=1, groups=groups),
        nn.ReLU(),
        nn.Conv2d(widths[3], widths[4], 3, padding=1, groups=groups),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
    )
    classifier = nn.Sequential(
        nn.Dropout(),
        nn.Linear(9216, HIDDEN),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, 1000),
    )
    parts = OrderedDict(features=features, flatten=nn.Flatten(), classifier=classifier)
    if variant == "torchvision":
        parts["avgpool"] = nn.AdaptiveAvgPool2d((6, 6))
        for name in ("flatten", "classifier"):
            parts.move_to_end(name)
    return nn.Sequential(parts)


def googlenet():
    return nn.Sequential(
        OrderedDict(
            conv1=BasicConv(3, 64, 7, 2, 3),
            maxpool1=nn.MaxPool2d(3, 2, ceil_mode=True),
            conv2=BasicConv(64, 64, 1),
            conv3=BasicConv(64, 192, 3, padding=1),
            maxpool2=nn.MaxPool2d(3, 2, ceil_mode=True),
            inception3a=Inception(192, 64, 96, 128, 16, 32, 32),
            inception3b=Inception(256, 128, 128, 192, 32, 96, 64),
            maxpool3=nn.MaxPool2d(3, 2, ceil_mode=True),
            inception4a=Inception(480, 192, 96, 208, 16, 48, 64),
            inception4b=Inception(512, 160, 112, 224, 24, 64, 64),
            inception4c=Inception(512, 128, 128, 256, 24, 64, 64),
            inception4d=Inception(512, 112, 144, 288, 32, 64, 64),
            inception4e=Inception(528, 256, 160, 320, 32, 128, 128),
            maxpool4=nn.MaxPool2d(2, 2, ceil_mode=True),
            inception5a=Inception(832, 256, 160, 320, 32, 128, 128),
            inception5b=Inception(832, 384, 192, 384, 48, 128, 128),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(0.2),
            fc=nn.Linear(1024, 1000),
        )
    )


def cifar_basic():
    return nn.Sequential(
        nn.Conv2d(3, 5, 6, 2),
        nn.ReLU(),
        nn.Conv2d(5, 7, 6, 2),
        nn.ReLU(),
        nn.Conv2d(7, 10, 4),
        nn.Flatten(),
    )


def cifar_advanced():
    return nn.Sequential(
        nn.Conv2d(3, 16, 4),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 4),
        nn.ReLU(),
        nn.BatchNorm2d(32),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 10, 5),
        nn.Flatten(),
    )


def cs231n_convnet():
    return nn.Sequential(
        nn.Conv2d(3, 12, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3072, 10),
    )


def digits_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(256, 10),
    )


def mnist_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Conv2d(64, 100, 3),
        nn.BatchNorm2d(100),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(900, 80),
        nn.ReLU(),
        nn.Linear(80, 10),
    )


def resnet20():
    return ResNet([3, 3, 3], 16, 1, 10, large=False)


def resnet32():
    return ResNet([5, 5, 5], 16, 1, 10, large=False)


def resnet56():
    return ResNet([9, 9, 9], 16, 1, 10, large=False)


def resnet18():
    return ResNet([2, 2, 2, 2], 64, 1, 1000, large=True)


def resnet50():
    return ResNet([3, 4, 6, 3], 64, 4, 1000, large=True)


def vgg11():
    return VGG([64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"])


def vgg16():
    triple = [512, 512, 512, "M"]
    return VGG([64, 64, "M", 128, 128, "M", 256, 256, 256, "M", *triple, *triple])


def vgg19():
    four = [512, 512, 512, 512, "M"]
    return VGG([64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", *four, *four])
