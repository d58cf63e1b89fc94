"""Layers and containers, with the names and arguments of ``torch.nn``.

A layer is called on an array and returns one, ``y = layer(x)``; a net is a
`Sequential` of layers.  A new layer is in training mode; in evaluation mode a
call keeps no state, so one net may serve many threads at once.
"""

from convkern.nn.base import Layer, Parameter
from convkern.nn.containers import Sequential, Step
from convkern.nn.layers import (
    AdaptiveAvgPool2d,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Sigmoid,
    Softmax,
)
from convkern.nn.summary import Row, Summary

__all__ = [
    "AdaptiveAvgPool2d",
    "Conv2d",
    "Dropout",
    "Flatten",
    "Layer",
    "Linear",
    "LocalResponseNorm",
    "MaxPool2d",
    "Parameter",
    "ReLU",
    "Row",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Step",
    "Summary",
]
