"""Losses: how far an output is from its target, and the gradient that training starts from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from convkern import functional
from convkern.functional.loss import CrossEntropy, check_reduction
from convkern.nn.base import Array
from convkern.nn.common import real


class Loss(ABC):
    """The base of the losses: define `forward` and `gradient`.

    A call returns the loss and keeps its arguments, until `backward` or the next call.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        What becomes of the single losses.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import MSELoss, Linear
    >>> net, loss = Linear(2, 1, bias=False, dtype=np.float64), MSELoss()
    >>> net.weight.data[...] = [[1.0, 2.0]]
    >>> loss(net(np.array([[3.0, 4.0]])), np.array([[10.0]]))
    1.0
    >>> net.backward(loss.backward())
    array([[2., 4.]])
    >>> net.weight.grad
    array([[6., 8.]])
    """

    _last: Any = None

    def __init__(self, reduction: str = "mean") -> None:
        check_reduction(reduction)
        self.reduction = reduction

    def __init_subclass__(cls, **options: Any) -> None:
        """Part a new `forward` or `gradient` from inherited shortcuts, which would pass it over."""
        super().__init_subclass__(**options)
        if {"forward", "gradient"} & vars(cls).keys():
            for name in {"record", "gradient_of"} - vars(cls).keys():
                setattr(cls, name, getattr(Loss, name))

    def __call__(self, input: Array, target: Array) -> float | Array:
        """Return the loss of `input`: a float, or with ``"none"`` an array."""
        self._last = None
        value, kept = self.record(input, target)
        self._last = kept
        return value if isinstance(value, np.ndarray) else float(value)

    def backward(self, grad_output: float | Array = 1.0) -> Array:
        """Return the gradient by the input of the last call, and forget the call.

        Parameters
        ----------
        grad_output : float or ndarray
            The gradient of the loss, if it is a part of something else; for ``"none"`` an
            array of its shape.

        Returns
        -------
        ndarray
            Of the input's shape and dtype: what ``net.backward`` takes.

        Raises
        ------
        RuntimeError
            If there was no call since the last `backward`.
        TypeError, ValueError
            If `grad_output` does not fit.
        """
        if self._last is None:
            raise RuntimeError(f"backward of {type(self).__name__} must follow a call, once")
        gradient = self.gradient_of(grad_output, self._last)
        self._last = None
        return gradient

    def record(self, input: Array, target: Array) -> tuple[Array | np.floating[Any], Any]:
        """Return the loss, and whatever `gradient_of` needs: here, the arguments."""
        return self.forward(input, target), (input, target)

    def gradient_of(self, grad_output: float | Array, kept: Any) -> Array:
        """Return the gradient of the loss by its input, from what `record` returned."""
        return self.gradient(grad_output, *kept)

    @abstractmethod
    def forward(self, input: Array, target: Array) -> Array | np.floating[Any]:
        """Return the loss, keeping nothing."""

    @abstractmethod
    def gradient(self, grad_output: float | Array, input: Array, target: Array) -> Array:
        """Return the gradient of the loss by its input."""

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy gets: all but the last call."""
        return {name: value for name, value in vars(self).items() if name != "_last"}


class CrossEntropyLoss(Loss):
    """The cross entropy of the classes that scores imply, as `convkern.cross_entropy`.

    Parameters
    ----------
    weight : ndarray, (C,), optional
        Weight of each class, in the dtype of the scores.
    ignore_index : int
        A class that contributes nothing.
    reduction : {"mean", "sum", "none"}
        The mean of class targets is weighted.
    label_smoothing : float
        Share of every target that is spread evenly over the classes.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import CrossEntropyLoss
    >>> loss = CrossEntropyLoss()
    >>> round(loss(np.zeros((1, 2)), np.array([1])), 6)
    0.693147
    >>> loss.backward()
    array([[ 0.5, -0.5]])
    """

    def __init__(
        self,
        weight: Array | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(reduction)
        self.weight = weight
        self.ignore_index = ignore_index
        self.label_smoothing = real(label_smoothing, "label_smoothing", 0)

    def forward(self, input: Array, target: Array) -> Array | np.floating[Any]:
        """Return the loss of scores, (N, C) or (N, C, ...), and of classes or probabilities."""
        return functional.cross_entropy(input, target, self.weight, **self._options())

    def gradient(self, grad_output: float | Array, input: Array, target: Array) -> Array:
        """Return the gradient by the scores."""
        return functional.cross_entropy_backward(
            grad_output, input, target, self.weight, **self._options()
        )

    def record(self, input: Array, target: Array) -> tuple[Array | np.floating[Any], CrossEntropy]:
        """Return the loss, and the arguments as they have been checked."""
        terms = CrossEntropy.of(input, target, self.weight, **self._options())
        return terms.value(self.reduction), terms

    def gradient_of(self, grad_output: float | Array, kept: CrossEntropy) -> Array:
        """Return the gradient by the scores."""
        return kept.gradient(grad_output, self.reduction)

    def _options(self) -> dict[str, Any]:
        """Return the keywords of both functions."""
        return {
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
            "label_smoothing": self.label_smoothing,
        }


class MSELoss(Loss):
    """The squared error, as `convkern.functional.mse_loss`.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        Of the elements.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import MSELoss
    >>> loss = MSELoss()
    >>> loss(np.array([1.0, 2.0]), np.array([1.0, 5.0]))
    4.5
    >>> loss.backward()
    array([ 0., -3.])
    """

    def forward(self, input: Array, target: Array) -> Array | np.floating[Any]:
        """Return the loss of an array and a target of its shape."""
        return functional.mse_loss(input, target, reduction=self.reduction)

    def gradient(self, grad_output: float | Array, input: Array, target: Array) -> Array:
        """Return the gradient by the input."""
        return functional.mse_loss_backward(grad_output, input, target, reduction=self.reduction)


class BCEWithLogitsLoss(Loss):
    """The cross entropy of yes-or-no questions.

    As `convkern.functional.binary_cross_entropy_with_logits`.

    Parameters
    ----------
    weight : ndarray, broadcast to the input, optional
        A factor of the loss, in the dtype of the input.
    reduction : {"mean", "sum", "none"}
        Of the elements.
    pos_weight : ndarray, broadcast to the input, optional
        A factor of what a yes costs.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import BCEWithLogitsLoss
    >>> loss = BCEWithLogitsLoss()
    >>> round(loss(np.zeros(2), np.array([0.0, 1.0])), 6)
    0.693147
    >>> loss.backward()
    array([ 0.25, -0.25])
    """

    def __init__(
        self,
        weight: Array | None = None,
        *,
        reduction: str = "mean",
        pos_weight: Array | None = None,
    ) -> None:
        super().__init__(reduction)
        self.weight = weight
        self.pos_weight = pos_weight

    def forward(self, input: Array, target: Array) -> Array | np.floating[Any]:
        """Return the loss of scores and of a target of their shape."""
        return functional.binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )

    def gradient(self, grad_output: float | Array, input: Array, target: Array) -> Array:
        """Return the gradient by the scores."""
        return functional.binary_cross_entropy_with_logits_backward(
            grad_output,
            input,
            target,
            self.weight,
            reduction=self.reduction,
            pos_weight=self.pos_weight,
        )
