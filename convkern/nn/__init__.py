"""Layers and containers, with the names and arguments of ``torch.nn``.

A layer is called on an array and returns one, ``y = layer(x)``; a net is a
`Sequential` of layers.  A new layer is in training mode: after a call,
``layer.backward(grad)`` returns the gradient of the input and adds to those of the
parameters.  In evaluation mode a call keeps no state, so one net may serve many
threads at once.

A step of training is ``value = loss(net(x), target)``, ``net.backward(loss.backward())``,
``optimizer.step()``, ``optimizer.zero_grad()``.
"""

from convkern.nn import init
from convkern.nn.activation import LeakyReLU, PReLU, ReLU, Sigmoid, Softmax
from convkern.nn.base import Layer, Parameter
from convkern.nn.clip import clip_grad_norm_, clip_grad_value_
from convkern.nn.concat import Concat
from convkern.nn.containers import Residual, Sequential, Step
from convkern.nn.conv import Conv2d, ConvTranspose2d
from convkern.nn.dropout import Dropout, Dropout2d
from convkern.nn.linear import Flatten, Linear
from convkern.nn.loss import BCEWithLogitsLoss, CrossEntropyLoss, Loss, MSELoss
from convkern.nn.norm import BatchNorm2d, LocalResponseNorm
from convkern.nn.optim import SGD, Adam, AdamW, Optimizer
from convkern.nn.pool import AdaptiveAvgPool2d, AvgPool2d, LPPool2d, MaxPool2d
from convkern.nn.schedule import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR
from convkern.nn.summary import Row, Summary

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BCEWithLogitsLoss",
    "BatchNorm2d",
    "Concat",
    "Conv2d",
    "ConvTranspose2d",
    "CosineAnnealingLR",
    "CrossEntropyLoss",
    "Dropout",
    "Dropout2d",
    "Flatten",
    "LPPool2d",
    "LRScheduler",
    "Layer",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "Loss",
    "MSELoss",
    "MaxPool2d",
    "MultiStepLR",
    "Optimizer",
    "PReLU",
    "Parameter",
    "ReLU",
    "Residual",
    "Row",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Step",
    "StepLR",
    "Summary",
    "clip_grad_norm_",
    "clip_grad_value_",
    "init",
]
