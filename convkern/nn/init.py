"""Initial weights, drawn in place from a NumPy `Generator`, with the names of ``torch.nn.init``.

Examples
--------
>>> import numpy as np
>>> from convkern.nn import Conv2d, init
>>> layer = Conv2d(64, 64, 3)
>>> weight = init.kaiming_normal_(layer.weight, nonlinearity="relu", rng=np.random.default_rng(0))
>>> round(float(weight.data.std()), 3), round((2 / (64 * 9)) ** 0.5, 3)
(0.059, 0.059)
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np

from convkern.arrays import check_writeable
from convkern.nn.base import Array, Parameter
from convkern.nn.common import as_generator, fill_normal, fill_uniform, real

__all__ = [
    "calculate_gain",
    "kaiming_normal_",
    "kaiming_uniform_",
    "xavier_normal_",
    "xavier_uniform_",
]

#: A `Parameter`, or an array.
T = TypeVar("T", Parameter, Array)

_GAINS = {"linear": 1.0, "conv2d": 1.0, "conv_transpose2d": 1.0, "sigmoid": 1.0, "tanh": 5 / 3}
_GAINS |= {"relu": math.sqrt(2), "selu": 3 / 4}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Return by how much weights are scaled for what follows them.

    Parameters
    ----------
    nonlinearity : str
        ``"linear"``, ``"conv2d"``, ``"conv_transpose2d"``, ``"sigmoid"``: 1; ``"tanh"``: 5/3;
        ``"relu"``: sqrt(2); ``"leaky_relu"``: sqrt(2 / (1 + param**2)); ``"selu"``: 3/4.
    param : float, optional
        The negative slope of ``"leaky_relu"``, 0.01 by default.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If an argument is not accepted.

    Examples
    --------
    >>> from convkern.nn.init import calculate_gain
    >>> calculate_gain("leaky_relu", 1.0)
    1.0
    """
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else real(param, "param")
        return math.sqrt(2 / (1 + slope**2))
    if nonlinearity not in _GAINS:
        known = ", ".join([*_GAINS, "leaky_relu"])
        raise ValueError(f"nonlinearity must be one of {known}, got {nonlinearity!r}")
    return _GAINS[nonlinearity]


def kaiming_uniform_(
    tensor: T,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    rng: np.random.Generator | None = None,
) -> T:
    """Draw weights evenly from ``±gain * sqrt(3 / fan)``.

    The variance of the signal (or with ``"fan_out"`` of the gradient) then stays the same from
    layer to layer (He et al., *Delving deep into rectifiers*, 2015).

    Parameters
    ----------
    tensor : Parameter or ndarray, (OC, C, ...)
        What to fill, in place.
    a : float
        The negative slope of ``"leaky_relu"``.
    mode : {"fan_in", "fan_out"}
        The fan is ``C`` or ``OC`` times the size of the window.
    nonlinearity : str
        What follows, see `calculate_gain`.
    rng : numpy.random.Generator, optional
        Where the numbers come from; a fresh one by default.

    Returns
    -------
    Parameter or ndarray
        `tensor`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not accepted, or `tensor` has fewer than two axes.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Linear, init
    >>> weight = init.kaiming_uniform_(Linear(600, 50).weight)
    >>> bool(abs(weight.data).max() <= np.float32(0.1))
    True
    """
    std = _kaiming_std(tensor, a, mode, nonlinearity)
    fill_uniform(_writeable(tensor), math.sqrt(3) * std, as_generator(rng))
    return tensor


def kaiming_normal_(
    tensor: T,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    rng: np.random.Generator | None = None,
) -> T:
    """Draw weights from a normal distribution of deviation ``gain / sqrt(fan)``.

    Source, arguments and errors as of `kaiming_uniform_`.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Linear, init
    >>> weight = init.kaiming_normal_(Linear(200, 50).weight, rng=np.random.default_rng(0))
    >>> round(float(weight.data.std()), 2)
    0.1
    """
    std = _kaiming_std(tensor, a, mode, nonlinearity)
    fill_normal(_writeable(tensor), std, as_generator(rng))
    return tensor


def xavier_uniform_(tensor: T, gain: float = 1.0, *, rng: np.random.Generator | None = None) -> T:
    """Draw weights evenly from ``±gain * sqrt(6 / (fan_in + fan_out))``.

    A compromise between the signal and the gradient (Glorot and Bengio, *Understanding the
    difficulty of training deep feedforward neural networks*, 2010).

    Parameters
    ----------
    tensor : Parameter or ndarray, (OC, C, ...)
        What to fill, in place.
    gain : float
        A further factor, see `calculate_gain`.
    rng : numpy.random.Generator, optional
        Where the numbers come from; a fresh one by default.

    Returns
    -------
    Parameter or ndarray
        `tensor`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not accepted, or `tensor` has fewer than two axes.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Linear, init
    >>> weight = init.xavier_uniform_(Linear(400, 200).weight)
    >>> bool(abs(weight.data).max() <= np.float32(0.1))
    True
    """
    fill_uniform(_writeable(tensor), math.sqrt(3) * _xavier_std(tensor, gain), as_generator(rng))
    return tensor


def xavier_normal_(tensor: T, gain: float = 1.0, *, rng: np.random.Generator | None = None) -> T:
    """Draw weights from a normal distribution of deviation ``gain * sqrt(2 / (fan_in + fan_out))``.

    Source, arguments and errors as of `xavier_uniform_`.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Linear, init
    >>> weight = init.xavier_normal_(Linear(150, 50).weight, rng=np.random.default_rng(0))
    >>> round(float(weight.data.std()), 2)
    0.1
    """
    fill_normal(_writeable(tensor), _xavier_std(tensor, gain), as_generator(rng))
    return tensor


def _writeable(tensor: Parameter | Array) -> Array:
    """Return the array of a Parameter or an array itself, if it can be filled."""
    array: Array = tensor.data if isinstance(tensor, Parameter) else tensor
    check_writeable(array, "tensor")
    return array


def _fans(tensor: Any) -> dict[str, int]:
    """Return from how many inputs an output comes, and to how many outputs an input goes."""
    shape = _writeable(tensor).shape
    if len(shape) < 2:
        raise ValueError(f"tensor must have at least two axes, got shape {shape}")
    window = math.prod(shape[2:])
    return {"fan_in": shape[1] * window, "fan_out": shape[0] * window}


def _kaiming_std(tensor: Any, a: float, mode: str, nonlinearity: str) -> float:
    """Return the standard deviation of He et al."""
    fans = _fans(tensor)
    if mode not in fans:
        raise ValueError(f"mode must be 'fan_in' or 'fan_out', got {mode!r}")
    return calculate_gain(nonlinearity, a) / math.sqrt(max(fans[mode], 1))


def _xavier_std(tensor: Any, gain: float) -> float:
    """Return the standard deviation of Glorot and Bengio."""
    fans = _fans(tensor)
    return real(gain, "gain") * math.sqrt(2 / max(fans["fan_in"] + fans["fan_out"], 1))
