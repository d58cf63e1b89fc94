"""Losses."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from convkern.arrays import as_array
from convkern.geometry import integer

REDUCTIONS = ("none", "mean", "sum")


class _Shares(NamedTuple):
    """What a cross entropy weighs: ``share[c]`` of every class, and what a mean divides by."""

    share: np.ndarray
    total: float
    log_probabilities: np.ndarray
    axis: int

    @classmethod
    def of(
        cls,
        input: Any,
        target: Any,
        weight: Any,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
    ) -> _Shares:
        """Check the arguments of `cross_entropy` and compute both factors of its sum."""
        x = as_array(input, "input", tuple(range(1, 33)))
        axis = min(1, x.ndim - 1)
        classes = x.shape[axis]
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be from 0 to 1, got {label_smoothing}")
        if classes == 0:
            raise ValueError(f"input must have at least one class, got shape {x.shape}")
        per_class = (classes, *(1,) * (x.ndim - axis - 1))
        scale = np.ones(per_class, x.dtype)
        if weight is not None:
            weights = as_array(weight, "weight", (1,), like=x)
            if weights.shape != (classes,):
                raise ValueError(f"weight must have shape ({classes},), got {weights.shape}")
            scale = weights.reshape(per_class)
        if not isinstance(target, np.ndarray):
            raise TypeError(f"target must be a NumPy array, got {type(target).__name__}")
        total = x.size / classes
        if target.dtype.kind == "f":
            share = as_array(target, "target", (x.ndim,), like=x)
            if share.shape != x.shape:
                raise ValueError(f"target must have shape {x.shape}, got {share.shape}")
            counted = np.ones((), bool)
        else:
            counted, share = _named_classes(target, x, axis, ignore_index)
            total = float((share * scale).sum(dtype=np.float64))
        smooth = (1 - label_smoothing) * share + label_smoothing / classes
        share = (smooth * scale * counted).astype(x.dtype, copy=False)
        shifted = x - x.max(axis=axis, keepdims=True) if x.size else x
        sums = np.exp(shifted).sum(axis=axis, keepdims=True, dtype=np.float64)
        return cls(share, total, shifted - np.log(sums).astype(x.dtype), axis)


def _named_classes(
    target: np.ndarray, x: np.ndarray, axis: int, ignore_index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return which targets count, and 1 where a target names the class."""
    if target.dtype.kind not in "iu":
        raise TypeError(
            f"target must be integer classes or probabilities of the input's dtype, got "
            f"{target.dtype}"
        )
    ignore_index = integer(ignore_index, "ignore_index", -(2**63))
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    if target.shape != shape:
        raise ValueError(f"target must have shape {shape}, got {target.shape}")
    counted = target != ignore_index
    classes = x.shape[axis]
    named = target[counted]
    wrong = named[(named < 0) | (named >= classes)]
    if wrong.size:
        raise ValueError(f"target must name classes from 0 to {classes - 1}, got {int(wrong[0])}")
    known = np.arange(classes).reshape(classes, *(1,) * (x.ndim - axis - 1))
    counted = np.expand_dims(counted, axis)
    return counted, (np.expand_dims(target, axis) == known) & counted


def cross_entropy(
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> np.ndarray | np.floating[Any]:
    r"""Return the cross entropy of the classes that scores imply.

    .. math:: -\sum_c w_c t_c \log \operatorname{softmax}(x)_c

    over the classes, axis 1 (axis 0 of a 1-D input).

    Parameters
    ----------
    input : ndarray, (C,), (N, C) or (N, C, ...), float32 or float64
        Scores (logits).
    target : ndarray of integers, shape of `input` without C, or of floats, its whole shape
        The class of each sample, or the probability of every class.
    weight : ndarray, (C,), dtype of `input`, optional
        Weight of each class.
    ignore_index : int
        A class that contributes nothing.
    reduction : {"mean", "sum", "none"}
        The mean of class targets is weighted by ``weight[target]``.
    label_smoothing : float
        Share of every target that is spread evenly over the classes.

    Returns
    -------
    NumPy scalar, or ndarray of the shape of `input` without C with ``"none"``

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If shapes do not fit, a class does not exist or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import cross_entropy
    >>> cross_entropy(np.zeros((2, 4)), np.array([0, 3])) / np.log(4.0)
    np.float64(1.0)
    """
    shares = _Shares.of(input, target, weight, ignore_index, reduction, label_smoothing)
    share, costs = shares.share, -shares.log_probabilities
    # A class of no share costs nothing, however improbable: 0 * inf would be NaN.
    terms = np.multiply(share, costs, out=np.zeros_like(costs), where=share != 0)
    losses: np.ndarray = terms.sum(axis=shares.axis)
    if reduction == "none":
        return losses
    total = losses.sum(dtype=np.float64)
    with np.errstate(invalid="ignore"):  # the mean over no target at all is NaN
        value = total / np.float64(shares.total) if reduction == "mean" else total
    result: np.floating[Any] = costs.dtype.type(value)
    return result


def cross_entropy_backward(
    grad_output: np.ndarray | float,
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> np.ndarray:
    """Return the gradient of `cross_entropy` by its input.

    Parameters
    ----------
    grad_output : float or ndarray, shape of the loss
        Gradient of the loss.
    input, target, weight, ignore_index, reduction, label_smoothing
        As given to `cross_entropy`.

    Returns
    -------
    ndarray, shape and dtype of `input`
        ``softmax(input) * sum(share) - share``, by sample, where `share` is
        the weight of each class in the sum.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import cross_entropy_backward
    >>> cross_entropy_backward(1.0, np.zeros((1, 2)), np.array([1]))
    array([[ 0.5, -0.5]])
    """
    shares = _Shares.of(input, target, weight, ignore_index, reduction, label_smoothing)
    share, dtype = shares.share, shares.log_probabilities.dtype
    grad = np.asarray(grad_output, dtype)
    losses = share.shape[: shares.axis] + share.shape[shares.axis + 1 :]
    if grad.shape != (losses if reduction == "none" else ()):
        raise ValueError(f"grad_output must have the loss's shape, got {grad.shape}")
    if reduction == "none":
        grad = np.expand_dims(grad, shares.axis)
    weights = share.sum(axis=shares.axis, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):  # the mean over no target at all is NaN
        if reduction == "mean":
            grad = grad / dtype.type(shares.total)
        result: np.ndarray = (np.exp(shares.log_probabilities) * weights - share) * grad
    return result.astype(dtype, copy=False)
