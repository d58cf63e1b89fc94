"""Gradients kept small, in place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from convkern import _kernels
from convkern.arrays import memory_order, to_memory
from convkern.nn.base import Array, Parameter
from convkern.nn.common import as_parameters, real
from convkern.threads import get_num_threads

_BLOCK = 1 << 16  # elements that a power is taken of at once


def clip_grad_norm_(
    parameters: Parameter | Iterable[Parameter],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> float:
    """Scale all gradients so that together their norm is at most `max_norm`.

    They are multiplied by ``min(1, max_norm / (norm + 1e-6))``, in place; a step keeps its
    direction (Pascanu et al., *On the difficulty of training recurrent neural networks*, 2013).

    Parameters
    ----------
    parameters : Parameter or iterable of Parameter
        Those without a gradient are passed over.
    max_norm : float
        Not negative.
    norm_type : float
        The exponent of the norm, above 0; ``math.inf`` is the largest absolute value.
    error_if_nonfinite : bool
        Raise if the norm is infinite or NaN, and change nothing; otherwise NaN spreads.

    Returns
    -------
    float
        The norm of all gradients together, before.

    Raises
    ------
    TypeError, ValueError
        If an argument is not accepted.
    RuntimeError
        If the norm is not finite and that is an error.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Parameter, clip_grad_norm_
    >>> parameter = Parameter(np.zeros(2))
    >>> parameter.grad = np.array([30.0, 40.0])
    >>> clip_grad_norm_([parameter], max_norm=5.0)
    50.0
    >>> parameter.grad.round(3)
    array([3., 4.])
    """
    max_norm = real(max_norm, "max_norm", 0)
    if norm_type != math.inf:
        norm_type = real(norm_type, "norm_type")
        if norm_type <= 0:
            raise ValueError(f"norm_type must be above 0, got {norm_type}")
    gradients = [p.grad for p in as_parameters(parameters) if p.has_grad]
    norm = _norm(gradients, norm_type)
    if error_if_nonfinite and not math.isfinite(norm):
        raise RuntimeError(f"the gradients have the norm {norm}, so they cannot be clipped")
    factor = max_norm / (norm + 1e-6)
    if not factor >= 1:
        with np.errstate(invalid="ignore"):  # an infinite norm makes infinite elements NaN
            for gradient in gradients:
                gradient *= factor
    return norm


def clip_grad_value_(parameters: Parameter | Iterable[Parameter], clip_value: float) -> None:
    """Move every element of the gradients into ``[-clip_value, clip_value]``, in place.

    Parameters
    ----------
    parameters : Parameter or iterable of Parameter
        Those without a gradient are passed over.
    clip_value : float
        Not negative.

    Raises
    ------
    TypeError, ValueError
        If an argument is not accepted.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Parameter, clip_grad_value_
    >>> parameter = Parameter(np.zeros(3))
    >>> parameter.grad = np.array([-3.0, 0.5, 40.0])
    >>> clip_grad_value_([parameter], 1.0)
    >>> parameter.grad
    array([-1. ,  0.5,  1. ])
    """
    clip_value = real(clip_value, "clip_value", 0)
    for parameter in as_parameters(parameters):
        if parameter.has_grad:
            np.clip(parameter.grad, -clip_value, clip_value, out=parameter.grad)


def _norm(arrays: list[Array], exponent: float) -> float:
    """Return the norm of all elements together, added up in float64."""
    if exponent == math.inf:
        return float(np.max([abs(b).max() for a in arrays for b in _blocks(a)], initial=0.0))
    if exponent == 2:
        memory = [to_memory(array, memory_order(array)) for array in arrays]
        return math.sqrt(_kernels.squares(memory, get_num_threads()))
    total = 0.0
    with np.errstate(over="ignore"):
        for array in arrays:
            for block in _blocks(array):
                total += float((abs(block).astype(np.float64) ** exponent).sum())
    return float(total ** (1 / exponent))


def _blocks(array: Array) -> Iterator[Array]:
    """Yield the elements of an array a block at a time, in the order of its memory."""
    flat = array.ravel(order="K")
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]
