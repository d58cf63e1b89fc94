"""Fully connected layers, and the flattening before them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from convkern import functional
from convkern.arrays import is_channels_last
from convkern.geometry import integer
from convkern.nn.base import Array, Layer, Shape
from convkern.nn.common import add_grads, initial_weights, options


class Linear(Layer):
    """A linear map of the last axis, ``input @ weight.T + bias``, with learned weights.

    Weights and bias start uniform in ``±1 / sqrt(in_features)``, as in torch.

    Parameters
    ----------
    in_features, out_features : int
        Length of the last axis of the input and of the output.
    bias : bool
        Add a learned number to every output feature.
    rng : numpy.random.Generator, optional
        Where the initial weights come from; a fresh one by default.
    dtype : dtype
        float32 or float64.

    Attributes
    ----------
    weight : Parameter
        ``(out_features, in_features)``.
    bias : Parameter or None
        ``(out_features,)``.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Linear
    >>> Linear(784, 10)(np.zeros((2, 784), np.float32)).shape
    (2, 10)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rng: np.random.Generator | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.in_features = integer(in_features, "in_features", 1)
        self.out_features = integer(out_features, "out_features", 1)
        self.weight, self.bias = initial_weights(
            (self.out_features, self.in_features), self.out_features if bias else None, rng, dtype
        )

    def forward(self, input: Array) -> Array:
        """Return the linear map of `input`, as `convkern.linear`."""
        bias = None if self.bias is None else self.bias.data
        return functional.linear(input, self.weight.data, bias)

    def gradient(
        self, grad_output: Array, kept: Array, input_gradient: bool = True
    ) -> Array | None:
        """Return the gradient of the input, as `convkern.linear_backward`."""
        mask = (input_gradient, True, self.bias is not None)
        grad_input, grad_weight, grad_bias = functional.linear_backward(
            grad_output, kept, self.weight.data, output_mask=mask
        )
        add_grads((self.weight, self.bias), (grad_weight, grad_bias))
        return grad_input

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return `input_shape` with its last axis replaced."""
        if not input_shape or input_shape[-1] != self.in_features:
            raise ValueError(
                f"expected a last axis of {self.in_features} features, got shape {input_shape}"
            )
        return (*input_shape[:-1], self.out_features)

    def _multiply_adds(self, input_shape: Shape) -> int:
        """Return one per output element and input feature."""
        return math.prod(self.output_shape(input_shape)) * self.in_features

    def _arguments(self) -> list[str]:
        """Return the sizes, and the bias where there is none."""
        sizes = f"{self.in_features}, {self.out_features}"
        return [sizes, "bias=False"] if self.bias is None else [sizes]


class Flatten(Layer):
    """All axes from `start_dim` on made into one.

    Parameters
    ----------
    start_dim : int
        The first of the joined axes.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Flatten
    >>> Flatten()(np.zeros((2, 256, 6, 6))).shape
    (2, 9216)
    """

    def __init__(self, start_dim: int = 1) -> None:
        self.start_dim = start_dim

    def forward(self, input: Array) -> Array:
        """Return `input` with fewer axes, as `convkern.functional.flatten`."""
        return functional.flatten(input, self.start_dim)

    def record(self, input: Array) -> tuple[Array, tuple[Shape, bool]]:
        """Return `input` with fewer axes, its shape, and whether it is channels-last."""
        output, array = self.forward(input), np.asarray(input)
        return output, (array.shape, array.ndim == 4 and is_channels_last(array))

    def gradient(
        self, grad_output: Array, kept: tuple[Shape, bool], input_gradient: bool = True
    ) -> Array:
        """Return the gradient with the input's axes and memory layout."""
        shape, channels_last = kept
        grad_input = grad_output.reshape(shape)
        return functional.to_channels_last(grad_input) if channels_last else grad_input

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return `input_shape` with fewer axes."""
        start, ndim = self.start_dim, len(input_shape)
        if not -ndim <= start < ndim:
            raise ValueError(f"start_dim must be from {-ndim} to {ndim - 1}, got {start}")
        return (*input_shape[:start], math.prod(input_shape[start:]))

    def _arguments(self) -> list[str]:
        """Return the first axis if it is not the default."""
        return options(self, start_dim=1)
