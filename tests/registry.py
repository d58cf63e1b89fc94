"""The register of the operators that calls are generated for.

A further operator is one function in ``window_operators.py`` or
``dense_operators.py``, registered by ``@operator``, and one in
``torch_calls.py`` if torch spells it differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.random import Generator

from . import draws
from .draws import Array, chance, integers, pick, real
from .faults import Arguments, Faults

Values: TypeAlias = Callable[[Generator, tuple[int, ...], type], Array]


class Draw(NamedTuple):
    """Arguments by name, and whether every correct result is the same to the last bit."""

    arguments: Arguments
    exact: bool


class Operator(NamedTuple):
    """How to draw the arguments of an operator, and what can be wrong with them."""

    draw: Callable[[Generator], Draw]
    faults: Faults
    #: How the names of those faults begin that torch takes, always or now and then.
    torch_accepts: tuple[str, ...]


OPERATORS: dict[str, Operator] = {}


def operator(faults: Faults, torch_accepts: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Register a function that draws the arguments of the operator it is named after."""

    def register(draw: Callable[[Generator], Draw]) -> Callable[[Generator], Draw]:
        OPERATORS[draw.__name__.lstrip("_")] = Operator(draw, faults, torch_accepts)
        return draw

    return register


class Arrays:
    """Draws the arrays of one call: all of one dtype and one kind of values."""

    def __init__(self, rng: Generator, *kinds: Values) -> None:
        self.rng = rng
        self.dtype = pick(rng, [np.float32, np.float64])
        self.values = pick(rng, kinds)

    def __call__(self, *shape: int) -> Array:
        return draws.random_array(self.rng, shape, self.dtype, self.values)

    def tame(self, *shape: int) -> Array:
        """Return an array without the special values, for weights."""
        values = integers if self.are_integers else real
        return draws.random_array(self.rng, shape, self.dtype, values)

    def maybe(self, *shape: int) -> Array | None:
        """Return an array without special values, or None."""
        return self.tame(*shape) if chance(self.rng) else None

    @property
    def are_integers(self) -> bool:
        return self.values is integers
