"""What the layers share: initial weights, shapes, and how arguments are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
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


def real(value: Any, name: str, least: float = -math.inf, *, below: float = math.inf) -> float:
    """Return `value` as a float, ``least <= value < below`` and finite, or raise."""
    # An exact float needs no question, which takes a microsecond.
    plain = type(value) is float
    if not plain and (isinstance(value, bool | np.bool_) or not isinstance(value, Real)):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    number = float(value)
    if not (math.isfinite(number) and least <= number < below):
        accepted = "finite"
        if least > -math.inf:
            accepted += f", at least {least}"
        if below < math.inf:
            accepted += f", below {below}"
        raise ValueError(f"{name} must be {accepted}, got {value}")
    return number


def flag(value: Any, name: str) -> bool:
    """Return `value` as a bool, or raise if it is anything else."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def as_parameters(parameters: Any) -> list[Parameter]:
    """Return a Parameter or an iterable of them as a list, or raise."""
    if isinstance(parameters, Parameter):
        return [parameters]
    if not isinstance(parameters, Iterable) or isinstance(parameters, Mapping):
        raise TypeError(f"parameters must be Parameters, got {type(parameters).__name__}")
    found = list(parameters)
    for parameter in found:
        if not isinstance(parameter, Parameter):
            raise TypeError(f"parameters must be Parameters, got {type(parameter).__name__}")
    return found


def as_state(state: Any) -> dict[str, Any]:
    """Return a copy of a state by name, from which to `take`, or raise."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state must map names to values, got {type(state).__name__}")
    return dict(state)


def take(state: dict[str, Any], name: str) -> Any:
    """Return an entry of a state and remove it, or raise."""
    if name not in state:
        raise KeyError(f"state lacks {name}")
    return state.pop(name)


def refuse_rest(state: dict[str, Any]) -> None:
    """Raise if anything was not taken from a state."""
    if state:
        raise KeyError(f"state has unexpected entries: {', '.join(map(str, state))}")


def fill_uniform(array: Array, bound: float, generator: np.random.Generator) -> None:
    """Draw an array from -bound to bound, in place where its memory is one piece."""
    _fill(array, lambda out: generator.random(out=out, dtype=out.dtype))
    array -= 0.5
    array *= 2 * bound


def fill_normal(array: Array, std: float, generator: np.random.Generator) -> None:
    """Draw an array from a normal distribution of mean 0, in place as `fill_uniform`."""
    _fill(array, lambda out: generator.standard_normal(out=out, dtype=out.dtype))
    array *= std


def _fill(array: Array, draw: Callable[[Array], object]) -> None:
    """Let a generator fill an array, in C order; it writes to contiguous ones only."""
    if array.flags.carray:
        draw(array)
    else:
        draw(copy := np.empty(array.shape, array.dtype))
        array[...] = copy


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
        data = np.empty(shape, kind)
        fill_uniform(data, bound, generator)
        return Parameter(data)

    return uniform(shape), None if bias is None else uniform((bias,))


def add_grads(
    parameters: tuple[Parameter | None, ...], gradients: tuple[Array | None, ...]
) -> None:
    """Add to the gradients of the parameters that there are what `functional` has just made."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter is not None and gradient is not None:
            parameter.take_grad(gradient)


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


def check_same_ways(shape: Shape, around: Shape) -> None:
    """Raise if the two ways of a `Residual` end in different shapes."""
    if shape != around:
        raise ValueError(f"the body gives shape {shape}, but its shortcut {around}")


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
