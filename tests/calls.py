"""Random calls of the operators: one generator for every comparison.

``generate(name, n, seed)`` yields `n` calls, ``answer(module, call)`` carries
one out.  About one call in ten is invalid and says so by its `error`: the
exception that convkern must raise (torch raises too, of whatever type).

What is drawn for an operator and what can be wrong with it stands in
``window_operators.py`` and ``dense_operators.py``, its spelling in torch in
``torch_calls.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.random import Generator

from convkern import functional, reference

from . import dense_operators, window_operators  # noqa: F401 - they register the operators
from .draws import Array, pick
from .faults import Arguments
from .registry import OPERATORS

Answer: TypeAlias = tuple[Any, ...]

INVALID_SHARE = 0.12
#: Arguments that an operator changes in place: they are part of its answer.
STATE = dict.fromkeys(("batch_norm", "batch_norm_backward"), ("running_mean", "running_var"))


@dataclass(frozen=True)
class Call:
    """One call of a public operator."""

    name: str
    args: tuple[Any, ...]
    kwargs: Arguments
    #: What is called, for the message of a failure.
    note: str
    #: The exception that must be raised, or None.
    error: type[Exception] | None = None
    #: Whether torch may take what convkern must refuse.
    torch_accepts: bool = False
    #: Whether every correct float32 or float64 result is the same to the last bit.
    exact: bool = False


def generate(name: str, n: int, seed: int) -> Iterator[Call]:
    """Yield `n` random calls of the operator `name`; call `i` depends on `seed` and `i` alone."""
    operator = OPERATORS[name]
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        given, exact = operator.draw(rng)
        label, fault = "valid", None
        # An empty batch would hide some faults from torch.
        empty = any(isinstance(v, np.ndarray) and not v.size for v in given.values())
        if not empty and rng.random() < INVALID_SHARE:
            label = pick(rng, list(operator.faults))
            fault = operator.faults[label]
            given = fault.spoil(given)
        args, kwargs = _spelt(rng, name, given)
        note = f"{name} call {i} of seed {seed} ({label}): {_described(given)}"
        if fault is None:
            yield Call(name, args, kwargs, note, exact=exact)
        else:
            accepted = fault.torch_accepts or label.startswith(operator.torch_accepts)
            yield Call(name, args, kwargs, note, fault.error, accepted)


@cache
def _signature(name: str) -> inspect.Signature:
    """Return the operator's signature, from the reference where it has a twin there."""
    return inspect.signature(getattr(reference, name, None) or getattr(functional, name))


def _spelt(rng: Generator, name: str, given: Arguments) -> tuple[tuple[Any, ...], Arguments]:
    """Pass some arguments by position, the rest by keyword in any order, few that are defaults."""
    parameters = _signature(name).parameters
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    present = next((i for i, p in enumerate(positional) if p not in given), len(positional))
    cut = int(rng.integers(present + 1))
    args = tuple(given[p] for p in positional[:cut])
    keywords = rng.permutation([p for p in given if p not in positional[:cut]])
    kwargs = {
        str(p): given[p]
        for p in keywords
        if not _same(given[p], parameters[p].default) or rng.random() < 0.2
    }
    return args, kwargs


def _same(value: Any, default: Any) -> bool:
    """Tell whether an argument is its default, type and all."""
    return type(value) is type(default) and not isinstance(value, np.ndarray) and value == default


def _described(given: Arguments) -> str:
    """Return the arguments as text, arrays by dtype, shape and strides."""
    return ", ".join(
        f"{name}={value.dtype}{value.shape}@{value.strides}"
        if isinstance(value, np.ndarray)
        else f"{name}={value!r}"
        for name, value in given.items()
    )


# What is done with a call


def answer(module: ModuleType, call: Call) -> Answer:
    """Return the results of the module's operator, and the arguments that it changes."""
    result = getattr(module, call.name)(*call.args, **call.kwargs)
    results = result if isinstance(result, tuple) else (result,)
    return results + state(call.name, arguments(call))


def state(name: str, given: Arguments) -> Answer:
    """Return the arguments that the operator changes, as far as they are given."""
    changed = (given.get(argument) for argument in STATE.get(name, ()))
    return tuple(array for array in changed if array is not None)


def arguments(call: Call) -> Arguments:
    """Return the call's arguments by name; those that were left out are not among them."""
    return _signature(call.name).bind(*call.args, **call.kwargs).arguments


def floating(call: Call) -> list[Array]:
    """Return the call's floating arrays."""
    return [value for value in arguments(call).values() if _is_floating(value)]


def in_float64(call: Call) -> Call:
    """Return the call with copies of its floating arrays, values unchanged, in float64."""
    return _mapped(call, lambda array: array.astype(np.float64))


def in_magnitude(call: Call) -> Call:
    """Return the call with the magnitudes of its floating arrays, in float64, unactivated."""
    kwargs = {k: v for k, v in call.kwargs.items() if k not in ("activation", "out")}
    return _mapped(replace(call, kwargs=kwargs), lambda array: abs(array.astype(np.float64)))


def _mapped(call: Call, change: Callable[[Array], Array]) -> Call:
    """Return the call with its floating arrays changed."""
    args = tuple(change(v) if _is_floating(v) else v for v in call.args)
    kwargs = {k: change(v) if _is_floating(v) else v for k, v in call.kwargs.items()}
    return replace(call, args=args, kwargs=kwargs)


def _is_floating(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"
