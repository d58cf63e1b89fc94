"""What the layers share: initial weights, shapes, and how arguments are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from convkern.arrays import DTYPES
from convkern.geometry import window_extent
from convkern.nn.base import Array, Layer, Parameter, Shape


def as_generator(rng: Any) -> np.random.Generator:
    """Return `rng`, or a fresh Generator for None."""
    if rng is None:
        return np.random.default_rng()
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator or None, got {type(rng).__name__}")
    return rng


def as_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return a dtype that layers compute in, or raise."""
    kind: np.dtype[Any] = np.dtype(dtype)
    if kind not in DTYPES:
        raise TypeError(f"dtype must be float32 or float64, got {kind}")
    return kind


def initial_weights(
    shape: Shape,
    bias: int | None,
    rng: np.random.Generator | None,
    dtype: npt.DTypeLike,
) -> tuple[Parameter, Parameter | None]:
    """Draw a weight of `shape` and a bias of that length (He et al. 2015 with a = sqrt(5))."""
    generator = as_generator(rng)
    kind = as_dtype(dtype)
    bound = 1 / math.sqrt(math.prod(shape[1:]))

    def uniform(shape: Shape) -> Parameter:
        # In place, as the largest layers have tens of millions of weights.
        data = generator.random(shape, dtype=kind)
        data -= 0.5
        data *= 2 * bound
        return Parameter(data)

    return uniform(shape), None if bias is None else uniform((bias,))


def add_grads(
    parameters: tuple[Parameter | None, ...], gradients: tuple[Array | None, ...]
) -> None:
    """Add to the gradients of the parameters that there are what nobody else uses."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter is not None and gradient is not None:
            parameter.add_grad(gradient, fresh=True)


def map_shape(shape: Sequence[int]) -> Shape:
    """Return the shape of one image or a batch of them as a tuple."""
    if len(shape) not in (3, 4):
        raise ValueError(f"expected (N, C, H, W) or (C, H, W), got shape {tuple(shape)}")
    return tuple(shape)


def check_channels(shape: Sequence[int], channels: int) -> Shape:
    """Return the shape of images as a tuple if they have so many channels, or raise."""
    if map_shape(shape)[-3] != channels:
        raise ValueError(f"expected {channels} channels, got shape {tuple(shape)}")
    return tuple(shape)


def extents(kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    """Return how many rows and columns a window spans."""
    return window_extent(kernel[0], dilation[0]), window_extent(kernel[1], dilation[1])


def options(layer: Layer, **defaults: object) -> list[str]:
    """Write those constructor options of `layer` that differ from their defaults."""
    return [
        f"{name}={short(getattr(layer, name))!r}"
        for name, default in defaults.items()
        if getattr(layer, name) != default
    ]


def short(value: Any) -> Any:
    """Return a pair of equal integers as one integer."""
    is_square = isinstance(value, tuple) and isinstance(value[0], int) and len(set(value)) == 1
    return value[0] if is_square else value
