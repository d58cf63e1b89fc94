"""Dropout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convkern.arrays import ANY_NDIM, as_array
from convkern.nn.base import Array, Layer, Shape
from convkern.nn.common import as_generator, map_shape


class Dropout(Layer):
    """In training, zeros with probability `p` and everything else times ``1 / (1 - p)``.

    The scaling keeps the mean, so evaluation passes its input through (Srivastava
    et al., *Dropout*, 2014, in its inverted form).

    Parameters
    ----------
    p : float
        The probability of a zero, 0 to 1.
    rng : numpy.random.Generator, optional
        Where the choices come from; a fresh one by default.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Dropout
    >>> Dropout(0.5, rng=np.random.default_rng(0))(np.ones(6, np.float32))
    array([2., 2., 2., 0., 0., 0.], dtype=float32)
    """

    def __init__(self, p: float = 0.5, *, rng: np.random.Generator | None = None) -> None:
        self.p = float(p)
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must be between 0 and 1, got {p}")
        self._rng = as_generator(rng)

    def forward(self, input: Array) -> Array:
        """Return `input` with a random part zeroed, or in evaluation `input` itself."""
        return self.record(input)[0]

    def record(self, input: Array) -> tuple[Array, Array | None]:
        """Return what is left of `input`, and where that is; None is everywhere."""
        input = as_array(input, "input", ANY_NDIM)
        shape = self._choices(input.shape)
        if not self.training or self.p == 0:
            return input, None
        left = self._rng.random(shape, dtype=np.float32) >= self.p
        return self._scaled(input, left), left

    def gradient(
        self, grad_output: Array, kept: Array | None, input_gradient: bool = True
    ) -> Array:
        """Return the gradient with the same part zeroed."""
        return grad_output if kept is None else self._scaled(grad_output, kept)

    def _choices(self, shape: Shape) -> Shape:
        """Return of which shape the random choices are for an input of `shape`."""
        return shape

    def _scaled(self, values: Array, left: Array) -> Array:
        """Return the `values` that are left, scaled, and zeros in place of the others."""
        # The output is allocated first: a product would choose the layout of `left`.
        output = np.empty_like(values)
        np.multiply(values, left, out=output)
        output *= 1 / (1 - self.p) if self.p < 1 else 0
        return output

    def _arguments(self) -> list[str]:
        """Return the probability."""
        return [f"p={self.p}"]


class Dropout2d(Dropout):
    """`Dropout` of whole channels: neighbouring pixels of one are too alike to drop alone.

    Source: Tompson et al., *Efficient object localization using convolutional
    networks*, 2015.

    Parameters
    ----------
    p : float
        The probability that a channel of an image becomes zeros, 0 to 1.
    rng : numpy.random.Generator, optional
        Where the choices come from; a fresh one by default.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Dropout2d
    >>> Dropout2d(0.5, rng=np.random.default_rng(0))(np.ones((1, 4, 1, 2)))[0, :, 0]
    array([[2., 2.],
           [2., 2.],
           [2., 2.],
           [0., 0.]])
    """

    def _choices(self, shape: Shape) -> Shape:
        """Return one choice per image and channel."""
        return (*map_shape(shape)[:-2], 1, 1)

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return `input_shape`."""
        return map_shape(input_shape)
