"""Layers and containers, with the names and arguments of ``torch.nn``.

A layer is called on an array and returns one, ``y = layer(x)``; a net is a
`Sequential` of layers.  A new layer is in training mode: after a call,
``layer.backward(grad)`` returns the gradient of the input and adds to those of the
parameters.  In evaluation mode a call keeps no state, so one net may serve many
threads at once.
"""

from convkern.nn.activation import LeakyReLU, PReLU, ReLU, Sigmoid, Softmax
from convkern.nn.base import Layer, Parameter
from convkern.nn.containers import Concat, Residual, Sequential, Step
from convkern.nn.conv import Conv2d, ConvTranspose2d
from convkern.nn.dropout import Dropout, Dropout2d
from convkern.nn.linear import Flatten, Linear
from convkern.nn.norm import BatchNorm2d, LocalResponseNorm
from convkern.nn.pool import AdaptiveAvgPool2d, AvgPool2d, LPPool2d, MaxPool2d
from convkern.nn.summary import Row, Summary

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm2d",
    "Concat",
    "Conv2d",
    "ConvTranspose2d",
    "Dropout",
    "Dropout2d",
    "Flatten",
    "LPPool2d",
    "Layer",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "MaxPool2d",
    "PReLU",
    "Parameter",
    "ReLU",
    "Residual",
    "Row",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Step",
    "Summary",
]
