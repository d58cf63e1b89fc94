"""Normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from convkern import functional
from convkern.arrays import as_array
from convkern.functional.max_pool import Windows, lie_apart, max_pool2d_gradient
from convkern.functional.norm import (
    Statistics,
    normalise,
    normalise_and_pool,
    normalise_and_pool_backward,
    normalise_backward,
)
from convkern.geometry import integer
from convkern.nn.base import Array, Layer, Parameter, Shape
from convkern.nn.common import add_grads, as_dtype, check_channels, check_same_ways, options


class _Pooling(NamedTuple):
    """A max pooling that took a normalisation's output, which is not kept."""

    windows: Windows
    maxima: Array
    indices: Array


class _Call(NamedTuple):
    """What one call of `BatchNorm2d` normalised, and by what."""

    input: Array
    statistics: Statistics
    training: bool
    after_relu: bool = False  #: whether the gradient is to be taken through the ReLU before it too
    pooled: _Pooling | None = None  #: what followed


class BatchNorm2d(Layer):
    """Each channel shifted and scaled to mean zero and variance one, then by learned numbers.

    In training the statistics are those of the batch, and the running ones move
    towards them; in evaluation the running ones are used (Ioffe and Szegedy, *Batch
    normalization: accelerating deep network training by reducing internal covariate
    shift*, 2015).

    Parameters
    ----------
    num_features : int
        ``C`` of the input.
    eps : float
        Added to the variance.
    momentum : float or None
        How far the running statistics move at a batch; None for the plain mean of all batches.
    affine : bool
        Learn a weight and a bias per channel.
    track_running_stats : bool
        Have running statistics; without them evaluation, too, uses the batch's.
    dtype : dtype
        float32 or float64.

    Attributes
    ----------
    weight, bias : Parameter or None
        ``(C,)``, ones and zeros at first.
    running_mean, running_var : ndarray or None
        ``(C,)``, zeros and ones at first; the variance is the unbiased one.
    num_batches_tracked : ndarray of int64 or None
        How many batches have moved them, an array without axes.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import BatchNorm2d
    >>> layer = BatchNorm2d(1, dtype=np.float64)
    >>> x = np.array([1.0, 3.0]).reshape(2, 1, 1, 1)
    >>> layer(x).ravel().round(4)
    array([-1.,  1.])
    >>> list(layer.state_dict())
    ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """

    buffers = ("running_mean", "running_var", "num_batches_tracked")

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.num_features = C = integer(num_features, "num_features", 1)
        self.eps = float(eps)
        self.momentum = None if momentum is None else float(momentum)
        kind = as_dtype(dtype)
        self.weight = Parameter(np.ones(C, kind)) if affine else None
        self.bias = Parameter(np.zeros(C, kind)) if affine else None
        self.running_mean: Array | None = np.zeros(C, kind) if track_running_stats else None
        self.running_var: Array | None = np.ones(C, kind) if track_running_stats else None
        self.num_batches_tracked: Array | None = (
            np.zeros((), np.int64) if track_running_stats else None
        )

    def forward(
        self, input: Array, *, plus: Array | None = None, activation: str | None = None
    ) -> Array:
        """Return the normalised input, as `convkern.batch_norm`.

        An array of its shape may be added, and the sum be rectified with ``"relu"``.
        """
        return self.record(input, plus=plus, activation=activation)[0]

    def record(
        self,
        input: Array,
        *,
        plus: Array | None = None,
        activation: str | None = None,
        moments: tuple[Array, Array] | None = None,
    ) -> tuple[Array, _Call]:
        """Return the same, and the input with the statistics, of which `moments` may be known."""
        input = as_array(input, "input", (3, 4))
        check_channels(input.shape, self.num_features)
        images = input if input.ndim == 4 else input[None]
        if plus is not None:
            check_same_ways(input.shape, plus.shape)
            plus = plus if plus.ndim == 4 else plus[None]
        training = self.takes_moments()
        output, statistics = normalise(
            images,
            self.running_mean,
            self.running_var,
            *self._learned(),
            training,
            self._momentum(),
            self.eps,
            relu=activation == "relu",
            plus=plus,
            moments=moments,
        )
        self._count_batch()
        return output if input.ndim == 4 else output[0], _Call(images, statistics, training)

    def record_maxima(
        self,
        input: Array,
        windows: Windows,
        *,
        activation: str | None = None,
        moments: tuple[Array, Array] | None = None,
    ) -> tuple[Array, _Call]:
        """Return the maxima of the output, which is not kept, and what `gradient` needs.

        The input is dense channels-last images, and the batch's own moments are used.
        """
        check_channels(input.shape, self.num_features)
        maxima, indices, statistics = normalise_and_pool(
            input,
            (self.running_mean, self.running_var),
            self._learned(),
            self._momentum(),
            self.eps,
            windows,
            relu=activation == "relu",
            moments=moments,
        )
        self._count_batch()
        pooled = _Pooling(windows, maxima, indices)
        return maxima, _Call(input, statistics, True, pooled=pooled)

    def _learned(self) -> tuple[Array | None, Array | None]:
        """Return weight and bias, if there are any."""
        weight, bias = self.weight, self.bias
        return None if weight is None else weight.data, None if bias is None else bias.data

    def _momentum(self) -> float:
        """Return how far the running statistics move at this batch."""
        if self.momentum is not None:
            return self.momentum
        if self.num_batches_tracked is None:
            return 1.0
        return 1 / (float(self.num_batches_tracked) + 1)

    def _count_batch(self) -> None:
        """Note that the running statistics have moved."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1

    def takes_moments(self) -> bool:
        """Tell whether it is the batch's own mean and variance that are used."""
        return self.training or self.running_mean is None

    def gradient(
        self, grad_output: Array, kept: _Call, input_gradient: bool = True
    ) -> Array | None:
        """Return the gradient of the input."""
        learns = self.weight is not None
        mask = input_gradient, learns, learns
        weight, _ = self._learned()
        grad = grad_output if grad_output.ndim == 4 else grad_output[None]
        pooled = kept.pooled
        if pooled is not None and not lie_apart(*pooled.windows[1:]):
            grad = max_pool2d_gradient(grad, pooled.indices, kept.input.shape, pooled.windows)
            pooled = None
        if pooled is not None:
            grad_input, *grads = normalise_and_pool_backward(
                grad,
                kept.input,
                kept.statistics,
                weight,
                self.eps,
                mask,
                kept.after_relu,
                *pooled,
            )
        else:
            grad_input, *grads = normalise_backward(
                grad,
                kept.input,
                kept.statistics,
                weight,
                kept.training,
                self.eps,
                mask,
                kept.after_relu,
            )
        add_grads((self.weight, self.bias), tuple(grads))
        return grad_input if grad_input is None or grad_output.ndim == 4 else grad_input[0]

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return `input_shape`."""
        return check_channels(input_shape, self.num_features)

    def _arguments(self) -> list[str]:
        """Return the channels and whatever differs from its default."""
        return [
            str(self.num_features),
            *options(self, eps=1e-5, momentum=0.1),
            *(["affine=False"] if self.weight is None else []),
            *(["track_running_stats=False"] if self.running_mean is None else []),
        ]


class LocalResponseNorm(Layer):
    """Each element divided by a power of the mean square of `size` neighbouring channels.

    Parameters
    ----------
    size : int
        How many channels count.
    alpha, beta, k : float
        As in `convkern.local_response_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import LocalResponseNorm
    >>> LocalResponseNorm(1, alpha=1.0, beta=1.0)(np.full((1, 1, 1, 1), 3.0))
    array([[[[0.3]]]])
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        self.size = integer(size, "size", 1)
        self.alpha, self.beta, self.k = float(alpha), float(beta), float(k)

    def forward(self, input: Array) -> Array:
        """Return the normalised input, as `convkern.local_response_norm`."""
        return functional.local_response_norm(input, self.size, self.alpha, self.beta, self.k)

    def gradient(self, grad_output: Array, kept: Array, input_gradient: bool = True) -> Array:
        """Return the gradient of the input."""
        return functional.local_response_norm_backward(
            grad_output, kept, self.size, self.alpha, self.beta, self.k
        )

    def _arguments(self) -> list[str]:
        """Return the size and whatever differs from its default."""
        return [str(self.size), *options(self, alpha=1e-4, beta=0.75, k=1.0)]
