"""Random arrays, shapes and argument forms for the calls that the tests compare."""
# N, C, H, W are the names of the field.

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Pair: TypeAlias = tuple[int, int]
_T = TypeVar("_T")

# How much


def cases(most: int) -> int:
    """Return how many random cases a test tries: usually `most`.

    CONVKERN_TEST_SHAPES is a smaller limit, or, above 10,000, what stands for every 10,000.
    """
    limit = int(os.environ.get("CONVKERN_TEST_SHAPES", 10_000))
    return min(most, limit) if limit <= 10_000 else most * limit // 10_000


# Layouts


def random_layout(rng: Generator, array: Array, kind: str) -> Array:
    """Return an equal array with the memory layout `kind`, one of ``LAYOUTS``."""
    array = np.asarray(array)  # NumPy makes scalars of arrays without axes
    result = LAYOUTS[kind](rng, array)
    assert result.shape == array.shape and result.dtype == array.dtype
    return result


def _contiguous(rng: Generator, array: Array) -> Array:
    return np.array(array, order="C")


def _channels_last(rng: Generator, array: Array) -> Array:
    """Put the channels, third from the end, innermost."""
    if array.ndim < 3:
        return _contiguous(rng, array)
    return np.moveaxis(np.moveaxis(array, -3, -1).copy(order="C"), -1, -3)


def _fortran(rng: Generator, array: Array) -> Array:
    return np.array(array, order="F")


def _permuted(rng: Generator, array: Array) -> Array:
    """Store the axes in a random order."""
    order = rng.permutation(array.ndim)
    return array.transpose(order).copy(order="C").transpose(np.argsort(order))


def _negative(rng: Generator, array: Array) -> Array:
    """Store the elements backwards along every axis, or along some."""
    steps = rng.choice([-1, -1, 1], array.ndim) if rng.random() < 0.5 else [-1] * array.ndim
    backwards = tuple(slice(None, None, int(step)) for step in steps)
    return array[(*backwards, ...)].copy(order="C")[(*backwards, ...)]


def _gaps(rng: Generator, array: Array) -> Array:
    """Slice a larger array of NaN: every axis has a start, an end and a step."""
    starts, steps = rng.integers(0, 3, array.ndim), rng.integers(1, 4, array.ndim)
    ends = starts + steps * array.shape
    # Half of the time the innermost axis stays dense, as that of a cropped image.
    if array.ndim and rng.random() < 0.5:
        steps[-1], ends[-1] = 1, starts[-1] + array.shape[-1]
    fill = math.nan if array.dtype.kind in "fc" else 0
    around = np.full(ends + rng.integers(0, 3, array.ndim), fill, array.dtype)
    view = around[(*map(slice, starts, ends, steps), ...)]
    view[...] = array
    return view


def _broadcast(rng: Generator, array: Array) -> Array:
    """Use stride 0 along every axis on which the array is constant."""
    kept = array
    for axis in range(array.ndim):
        first = kept[(slice(None),) * axis + (slice(0, 1),)]
        if np.broadcast_to(first, kept.shape).tobytes() == kept.tobytes():
            kept = first
    return np.broadcast_to(kept.copy(order="C"), array.shape)


def _unaligned(rng: Generator, array: Array) -> Array:
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    view: Array = np.ndarray(array.shape, array.dtype, buffer.data, offset=1)
    view[...] = array
    return view


def _read_only(rng: Generator, array: Array) -> Array:
    result = np.array(array, order="C")
    result.flags.writeable = False
    return result


LAYOUTS: dict[str, Callable[[Generator, Array], Array]] = {
    "contiguous": _contiguous,
    "channels_last": _channels_last,
    "fortran": _fortran,
    "permuted": _permuted,
    "negative": _negative,
    "gaps": _gaps,
    "broadcast": _broadcast,
    "unaligned": _unaligned,
    "read_only": _read_only,
}


def integers(rng: Generator, shape: tuple[int, ...], dtype: type) -> Array:
    """Draw integers whose sums of products, up to 2**14 of them, are exact in float32."""
    bound = int(rng.choice([2, 8, 32]))
    return rng.integers(-bound, bound + 1, shape).astype(dtype)


def real(rng: Generator, shape: tuple[int, ...], dtype: type) -> Array:
    return rng.standard_normal(shape).astype(dtype)


def ties(rng: Generator, shape: tuple[int, ...], dtype: type) -> Array:
    return rng.integers(-1, 2, shape).astype(dtype)


def tiny(rng: Generator, shape: tuple[int, ...], dtype: type) -> Array:
    """Draw zeros of both signs and subnormals."""
    smallest = np.finfo(dtype).smallest_subnormal
    values: Array = np.copysign(smallest * ties(rng, shape, dtype), real(rng, shape, dtype))
    return values


def special(rng: Generator, shape: tuple[int, ...], dtype: type) -> Array:
    """Draw real numbers among NaN, infinities of both signs and negative zeros."""
    values = real(rng, shape, dtype)
    specials: Array = np.array([math.nan, math.inf, -math.inf, -0.0], dtype)
    return np.where(rng.random(shape) < rng.random(), rng.choice(specials, shape), values)


def mostly_minus_inf(rng: Generator, shape: tuple[int, ...], dtype: type) -> Array:
    values = real(rng, shape, dtype)
    values[rng.random(shape) < 0.9] = -math.inf
    return values


def shares(rng: Generator, shape: tuple[int, ...], dtype: type) -> Array:
    return rng.random(shape).astype(dtype)


_ODD_LAYOUTS = sorted(set(LAYOUTS) - {"contiguous", "channels_last"})


def random_array(
    rng: Generator, shape: tuple[int, ...], dtype: type, values: Callable[..., Array]
) -> Array:
    """Draw an array: a third each contiguous, channels-last and of an odd layout."""
    kind = pick(rng, ["contiguous", "channels_last", pick(rng, _ODD_LAYOUTS)])
    if kind == "broadcast" and shape:
        axis = int(rng.integers(len(shape)))
        once = values(rng, (*shape[:axis], 1, *shape[axis + 1 :]), dtype)
        return random_layout(rng, np.broadcast_to(once, shape), kind)
    return random_layout(rng, values(rng, shape, dtype), kind)


# Numbers


def length(rng: Generator) -> int:
    """Draw a number of channels: about the vector lengths, sometimes many."""
    return int(rng.integers(64, 101) if rng.random() < 0.15 else rng.integers(1, 34))


def batch(rng: Generator) -> tuple[int, ...]:
    """Draw (N,) with N from 0 to 4, or () for one unbatched image."""
    return () if rng.random() < 0.25 else (int(rng.choice([0, 1, 1, 2, 3, 4])),)


def two(rng: Generator, choices: list[int]) -> Pair:
    """Draw a pair of numbers, equal ones half of the time."""
    first, second = (int(k) for k in rng.choice(choices, 2))
    return (first, first) if rng.random() < 0.5 else (first, second)


def form(rng: Generator, numbers: Pair) -> Any:
    """Spell a pair in one of the forms an argument may have."""
    forms: list[Any] = [numbers, list(numbers), tuple(map(np.int64, numbers))]
    if numbers[0] == numbers[1]:
        forms += [numbers[0], numbers[0], np.int32(numbers[0])]
    return pick(rng, forms)


def padding(rng: Generator, kinds: list[str], largest: Pair, extent: Pair) -> tuple[Any, Pair]:
    """Draw a padding of one of the `kinds`; return it and how much it adds to each axis."""
    kind = pick(rng, kinds)
    if kind == "same":
        return kind, (extent[0] - 1, extent[1] - 1)
    if kind == "valid":
        return kind, (0, 0)
    top, bottom, left, right = (int(rng.integers(p + 1)) for p in np.repeat(largest, 2))
    if kind == "sides":
        sides = pick(rng, [((top, bottom), (left, right)), [[top, bottom], [left, right]]])
        return sides, (top + bottom, left + right)
    if rng.random() < 0.5:
        top = left = min(top, left)
    return form(rng, (top, left)), (2 * top, 2 * left)


def image_shape(
    rng: Generator, smallest: Sequence[int] = (1, 1), channels: int = 0
) -> tuple[int, ...]:
    """Draw (N, C, H, W) or (C, H, W), of at most 12 rows and 40 columns if that is enough."""
    H, W = int(rng.integers(1, 13)), int(rng.integers(1, 41))
    return (*batch(rng), channels or length(rng), max(H, smallest[0]), max(W, smallest[1]))


def chance(rng: Generator, share: float = 0.5) -> bool:
    """Return True with a probability of `share`."""
    return bool(rng.random() < share)


def pick(rng: Generator, choices: Sequence[_T]) -> _T:
    """Choose one of anything."""
    return choices[int(rng.integers(len(choices)))]


def mask(rng: Generator) -> Sequence[bool]:
    """Draw which of three gradients are wanted: mostly all of them."""
    every = (True, True, True)
    return pick(rng, [every, every, every, (False, True, True), (True, False, False), [False] * 3])
