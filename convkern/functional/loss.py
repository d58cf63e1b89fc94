"""Losses and their gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from convkern import _kernels
from convkern.arrays import (
    ANY_NDIM,
    as_array,
    as_contiguous,
    check_plain,
    cut_at,
    from_memory,
    memory_order,
    to_memory,
)
from convkern.functional.activation import sigmoid
from convkern.geometry import LIMIT, integer, number
from convkern.threads import get_num_threads

REDUCTIONS = ("none", "mean", "sum")


class CrossEntropy(NamedTuple):
    """The checked arguments of a cross entropy, cut as memory is: (outer, C, inner).

    Class `c` has the share ``weights[c] * ((1 - smoothing) * target[c] + smoothing / C)`` of a
    sample's sum, where a target that names a class stands for a one there.
    """

    scores: np.ndarray
    #: Axes of the input from the slowest to the fastest in memory.
    order: tuple[int, ...]
    #: Shape of the losses.
    samples: tuple[int, ...]
    #: Classes, (outer, inner); or probabilities, (outer, C, inner).
    target: np.ndarray
    #: Weight of every class, float64; None: 1.
    weight: np.ndarray | None
    ignored: int
    smoothing: float

    @property
    def names(self) -> bool:
        """Whether targets name classes."""
        return self.target.dtype.kind != "f"

    @property
    def total(self) -> float:
        """What the mean divides by: the samples, if they name classes by their weights."""
        outer, _, inner = cut = self.scores.shape
        if self.names:
            total: float = _kernels.class_weights(self.target, self.weight, cut, self.ignored)
            return total
        return float(outer * inner)

    def shares(self) -> np.ndarray:
        """Return the share of every class where targets are probabilities."""
        target = (1 - self.smoothing) * self.target + self.smoothing / self.scores.shape[1]
        if self.weight is not None:
            target = target * self.weight[:, None]
        shares: np.ndarray = target.astype(self.scores.dtype, copy=False)
        return shares

    def value(self, reduction: str) -> np.ndarray | np.floating[Any]:
        """Return the loss."""
        x = self.scores
        logs: np.ndarray = _kernels.empty(x.shape, x.dtype)
        if x.size:
            _kernels.softmax(x, logs, x.shape, get_num_threads(), None, None, True)
        if self.names and reduction != "none":
            mean = reduction == "mean"
            value: np.floating[Any] = x.dtype.type(
                _kernels.class_loss(logs, *self._classes(), mean)
            )
            return value
        losses = self._losses(logs).reshape(self.samples)
        return _reduced(losses, reduction, self.total if reduction == "mean" else 1, x.dtype)

    def gradient(self, grad_output: Any, reduction: str) -> np.ndarray:
        """Return the gradient of the loss by the scores."""
        x = self.scores
        grad = _spread(grad_output, reduction, self.samples, self.total, x)
        factors = np.empty(self.samples)
        factors[...] = grad
        out = self._gradient(factors.reshape(x.shape[0], x.shape[2]))
        sizes = list(self.samples)
        sizes.insert(min(1, len(sizes)), x.shape[1])
        return from_memory(out.reshape([sizes[axis] for axis in self.order]), self.order)

    def _losses(self, logs: np.ndarray) -> np.ndarray:
        """Return what each sample costs, from the logarithms of its probabilities."""
        losses: np.ndarray
        if self.names:
            losses = np.empty(self.target.shape)
            _kernels.class_losses(logs, *self._classes(), losses)
            return losses
        shares = self.shares()
        # A class of no share adds nothing, however improbable (0 * inf is NaN).
        terms = np.multiply(logs, shares, out=np.zeros(logs.shape), where=shares != 0)
        losses = -terms.sum(axis=1)
        return losses

    def _gradient(self, factors: np.ndarray) -> np.ndarray:
        """Return the gradient of the samples' losses times a factor each, (outer, inner)."""
        x = self.scores
        out: np.ndarray = _kernels.empty(x.shape, x.dtype)
        if not x.size:
            return out
        # Softmax times the sum of all shares, less each share.
        if self.names:
            sums = np.empty(factors.shape, x.dtype)
            _kernels.shares_of_samples(*self._classes(), factors, sums)
            _softmax_into(out, x, sums)
            _kernels.subtract_shares(out, *self._classes(), factors)
        else:
            shares = self.shares()
            sums = factors * shares.sum(axis=1, dtype=np.float64)
            _softmax_into(out, x, as_contiguous(sums.astype(x.dtype)))
            out -= shares * factors[:, None].astype(x.dtype)
        return out

    def _classes(
        self,
    ) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int, int], int, float]:
        """Return what the kernels take where targets name classes."""
        outer, classes, inner = self.scores.shape
        return self.target, self.weight, (outer, classes, inner), self.ignored, self.smoothing

    @classmethod
    def of(
        cls,
        input: Any,
        target: Any,
        weight: Any,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
    ) -> CrossEntropy:
        """Check the arguments of `cross_entropy`."""
        x = as_array(input, "input", ANY_NDIM[1:])
        axis = min(1, x.ndim - 1)
        classes, samples = x.shape[axis], x.shape[:axis] + x.shape[axis + 1 :]
        check_reduction(reduction)
        smoothing = number(label_smoothing, "label_smoothing")
        if not 0 <= smoothing <= 1:
            raise ValueError(f"label_smoothing must be from 0 to 1, got {label_smoothing}")
        ignored = integer(ignore_index, "ignore_index", -LIMIT)
        if classes == 0:
            raise ValueError(f"input must have at least one class, got shape {x.shape}")
        if weight is not None:
            weight = as_array(weight, "weight", (1,), like=x).astype(np.float64, order="C")
            if weight.shape != (classes,):
                raise ValueError(f"weight must have shape ({classes},), got {weight.shape}")
        check_plain(target, "target")
        if not isinstance(target, np.ndarray):
            raise TypeError(f"target must be a NumPy array, got {type(target).__name__}")
        # Samples stay in their order: classes are where they are, or last in channels-last scores.
        order = memory_order(x)
        if order != (0, *range(2, x.ndim), 1):
            order = tuple(range(x.ndim))
        scores = to_memory(x, order)
        outer, _, inner = cut = cut_at(x, axis, order)
        if target.dtype.kind == "f":
            target = as_array(target, "target", (x.ndim,), like=x)
            if target.shape != x.shape:
                raise ValueError(f"target must have shape {x.shape}, got {target.shape}")
            if ignored >= 0:
                raise ValueError(f"probabilities have no ignore_index, got {ignore_index}")
            target = to_memory(target, order).reshape(cut)
        else:
            target = _as_classes(target, samples, classes, ignored).reshape(outer, inner)
        return cls(scores.reshape(cut), order, samples, target, weight, ignored, smoothing)


def _as_classes(
    target: np.ndarray, samples: tuple[int, ...], classes: int, ignored: int
) -> np.ndarray:
    """Return targets that name classes as the kernels read them."""
    if target.dtype.kind not in "iu":
        raise TypeError(
            "target must be integer classes or probabilities of the input's dtype, got "
            f"{target.dtype}"
        )
    if target.shape != samples:
        raise ValueError(f"target must have shape {samples}, got {target.shape}")
    if target.dtype.kind == "u":
        target = np.minimum(target, target.dtype.type(min(LIMIT, np.iinfo(target.dtype).max)))
    indices = as_contiguous(target.astype(np.intp, order="C", copy=False))
    wrong = _kernels.wrong_class(indices, classes, ignored)
    if wrong >= 0:
        found = indices.flat[wrong]
        raise ValueError(f"target must name classes from 0 to {classes - 1}, got {found}")
    return indices


def check_reduction(reduction: Any) -> None:
    """Raise unless `reduction` is one of the three."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def _reduced(
    losses: np.ndarray, reduction: str, total: float, dtype: np.dtype[Any]
) -> np.ndarray | np.floating[Any]:
    """Return the losses, their sum, or that by `total`; sums are made in float64."""
    if reduction == "none":
        return losses.astype(dtype, copy=False)
    with np.errstate(all="ignore"):  # the mean over nothing is NaN; a sum may be infinite
        value = losses.sum(dtype=np.float64)
        if reduction == "mean":
            value = value / np.float64(total) if total else np.nan
        result: np.floating[Any] = dtype.type(value)
    return result


def _spread(
    grad_output: Any, reduction: str, shape: tuple[int, ...], total: float, like: np.ndarray
) -> np.ndarray:
    """Return the gradient of every single loss, in float64: undo `_reduced`."""
    if type(grad_output) is float and reduction != "none" and total:
        return np.array(grad_output / total if reduction == "mean" else grad_output)
    if reduction == "none":
        grad = as_array(grad_output, "grad_output", (len(shape),), like=like)
    else:
        grad = np.asarray(grad_output)
        if grad.dtype.kind not in "fiu":
            raise TypeError(f"grad_output must be a number, got {grad_output!r}")
    expected = shape if reduction == "none" else ()
    if grad.shape != expected:
        raise ValueError(f"grad_output must have the loss's shape {expected}, got {grad.shape}")
    grad = grad.astype(np.float64)
    if reduction == "mean":
        with np.errstate(divide="ignore", invalid="ignore"):
            grad = grad / np.float64(total)
    return grad


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
        A class that contributes nothing; negative where targets are probabilities.
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
    terms = CrossEntropy.of(input, target, weight, ignore_index, reduction, label_smoothing)
    return terms.value(reduction)


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
    terms = CrossEntropy.of(input, target, weight, ignore_index, reduction, label_smoothing)
    return terms.gradient(grad_output, reduction)


def _softmax_into(out: np.ndarray, scores: np.ndarray, scale: np.ndarray) -> None:
    """Write every sample's softmax times its scale, a contiguous array of the scores' dtype."""
    _kernels.softmax(scores, out, scores.shape, get_num_threads(), None, scale)


@np.errstate(all="ignore")
def mse_loss(
    input: np.ndarray, target: np.ndarray, *, reduction: str = "mean"
) -> np.ndarray | np.floating[Any]:
    """Return the squared error, ``(input - target) ** 2``.

    Parameters
    ----------
    input : ndarray, any shape, float32 or float64
        What was computed.
    target : ndarray, shape and dtype of `input`
        What was wanted.
    reduction : {"mean", "sum", "none"}
        Of the elements.

    Returns
    -------
    NumPy scalar, or ndarray of the shape of `input` with ``"none"``

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If the shapes differ or `reduction` is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import mse_loss
    >>> mse_loss(np.array([1.0, 2.0]), np.array([1.0, 5.0]))
    np.float64(4.5)
    """
    x, t = _elements(input, target, reduction)
    difference = np.asarray(x - t)
    difference *= difference
    return _reduced(difference, reduction, x.size, x.dtype)


@np.errstate(all="ignore")
def mse_loss_backward(
    grad_output: np.ndarray | float,
    input: np.ndarray,
    target: np.ndarray,
    *,
    reduction: str = "mean",
) -> np.ndarray:
    """Return the gradient of `mse_loss` by its input.

    Parameters
    ----------
    grad_output : float or ndarray, shape of the loss
        Gradient of the loss.
    input, target, reduction
        As given to `mse_loss`.

    Returns
    -------
    ndarray, shape and dtype of `input`
        ``2 * (input - target)`` times the gradient of every element's loss.

    Raises
    ------
    TypeError, ValueError
        As `mse_loss`.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import mse_loss_backward
    >>> mse_loss_backward(1.0, np.array([1.0, 2.0]), np.array([1.0, 5.0]))
    array([ 0., -3.])
    """
    x, t = _elements(input, target, reduction)
    factor = 2 * _spread(grad_output, reduction, x.shape, x.size, x)
    gradient = np.asarray(x - t)
    gradient *= factor.astype(x.dtype)
    return gradient


@np.errstate(all="ignore")
def binary_cross_entropy_with_logits(
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    reduction: str = "mean",
    pos_weight: np.ndarray | None = None,
) -> np.ndarray | np.floating[Any]:
    r"""Return the cross entropy of independent yes-or-no questions.

    .. math:: -w \left(p\, t \log \sigma(x) + (1 - t) \log (1 - \sigma(x))\right)

    of every element, from scores :math:`x` that the sigmoid :math:`\sigma` makes
    probabilities; computed without overflow from :math:`\log(1 + e^{-|x|})`.

    Parameters
    ----------
    input : ndarray, any shape, float32 or float64
        Scores (logits) :math:`x`.
    target : ndarray, shape and dtype of `input`
        Probabilities :math:`t`, mostly 0 or 1.
    weight : ndarray, broadcast to the shape of `input`, its dtype, optional
        A factor :math:`w` of the loss.
    reduction : {"mean", "sum", "none"}
        Of the elements; the mean is not weighted.
    pos_weight : ndarray, broadcast to the shape of `input`, its dtype, optional
        A factor :math:`p` of what a yes costs.

    Returns
    -------
    NumPy scalar, or ndarray of the shape of `input` with ``"none"``

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If the shapes do not fit or `reduction` is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import binary_cross_entropy_with_logits
    >>> binary_cross_entropy_with_logits(np.zeros(3), np.array([0.0, 1.0, 1.0])) / np.log(2.0)
    np.float64(1.0)
    """
    x, t = _elements(input, target, reduction)
    # -log(sigmoid(x)); that of -x is larger by x.
    yes = np.log1p(np.exp(-abs(x))) - np.minimum(x, 0)
    if pos_weight is not None:
        yes *= 1 + (_factor(pos_weight, "pos_weight", x) - 1) * t
    losses = np.asarray((1 - t) * x + yes)
    if weight is not None:
        losses *= _factor(weight, "weight", x)
    return _reduced(losses, reduction, x.size, x.dtype)


@np.errstate(all="ignore")
def binary_cross_entropy_with_logits_backward(
    grad_output: np.ndarray | float,
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    reduction: str = "mean",
    pos_weight: np.ndarray | None = None,
) -> np.ndarray:
    """Return the gradient of `binary_cross_entropy_with_logits` by its input.

    Parameters
    ----------
    grad_output : float or ndarray, shape of the loss
        Gradient of the loss.
    input, target, weight, reduction, pos_weight
        As given to `binary_cross_entropy_with_logits`.

    Returns
    -------
    ndarray, shape and dtype of `input`
        ``w * ((p * t + 1 - t) * sigmoid(x) - p * t)`` times the gradient of every element's loss.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy_with_logits`.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import binary_cross_entropy_with_logits_backward
    >>> binary_cross_entropy_with_logits_backward(1.0, np.zeros(2), np.array([0.0, 1.0]))
    array([ 0.25, -0.25])
    """
    x, t = _elements(input, target, reduction)
    factor = _spread(grad_output, reduction, x.shape, x.size, x).astype(x.dtype)
    gradient: np.ndarray = sigmoid(x)
    if pos_weight is None:
        gradient -= t
    else:
        yes = _factor(pos_weight, "pos_weight", x) * t
        gradient *= yes + (1 - t)
        gradient -= yes
    if weight is not None:
        gradient *= _factor(weight, "weight", x)
    gradient *= factor
    return gradient


def _elements(input: Any, target: Any, reduction: str) -> tuple[np.ndarray, np.ndarray]:
    """Check an input and a target of the same shape."""
    check_reduction(reduction)
    x = as_array(input, "input", ANY_NDIM)
    t = as_array(target, "target", ANY_NDIM, like=x)
    if t.shape != x.shape:
        raise ValueError(f"target must have shape {x.shape}, got {t.shape}")
    return x, t


def _factor(value: Any, name: str, x: np.ndarray) -> np.ndarray:
    """Check an array that is broadcast to the shape of `x`."""
    factor = as_array(value, name, ANY_NDIM[: x.ndim + 1], like=x)
    try:
        return np.broadcast_to(factor, x.shape)
    except ValueError:
        raise ValueError(
            f"{name} must be broadcast to shape {x.shape}, got {factor.shape}"
        ) from None
