"""Activations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from convkern import functional
from convkern.geometry import integer
from convkern.nn.base import Array, Layer, Parameter
from convkern.nn.common import add_grads, as_dtype, options


class ReLU(Layer):
    """The larger of each element and zero.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import ReLU
    >>> ReLU()(np.array([-1.0, 2.0]))
    array([0., 2.])
    """

    def forward(self, input: Array) -> Array:
        """Return the positive part, as `convkern.functional.relu`."""
        return functional.relu(input)

    def record(self, input: Array) -> tuple[Array, Array]:
        """Return the positive part twice: it tells where the input was positive."""
        output = self.forward(input)
        return output, output

    def gradient(self, grad_output: Array, kept: Array, input_gradient: bool = True) -> Array:
        """Return the gradient of the input."""
        return functional.relu_backward(grad_output, kept)


class LeakyReLU(Layer):
    """Each element where it is not negative, and times `negative_slope` elsewhere.

    Parameters
    ----------
    negative_slope : float
        Factor below zero.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import LeakyReLU
    >>> LeakyReLU(0.5)(np.array([-1.0, 2.0]))
    array([-0.5,  2. ])
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = float(negative_slope)

    def forward(self, input: Array) -> Array:
        """Return the activations, as `convkern.functional.leaky_relu`."""
        return functional.leaky_relu(input, self.negative_slope)

    def gradient(self, grad_output: Array, kept: Array, input_gradient: bool = True) -> Array:
        """Return the gradient of the input."""
        return functional.leaky_relu_backward(grad_output, kept, self.negative_slope)

    def _arguments(self) -> list[str]:
        """Return the slope if it is not the default."""
        return options(self, negative_slope=0.01)


class PReLU(Layer):
    """`LeakyReLU` with learned slopes.

    Parameters
    ----------
    num_parameters : int
        1, or the number of channels, axis 1 of the input, to have a slope for each.
    init : float
        The slopes at first.
    dtype : dtype
        float32 or float64.

    Attributes
    ----------
    weight : Parameter
        ``(num_parameters,)``.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import PReLU
    >>> PReLU(dtype=np.float64)(np.array([-1.0, 2.0]))
    array([-0.25,  2.  ])
    """

    def __init__(
        self, num_parameters: int = 1, init: float = 0.25, *, dtype: npt.DTypeLike = np.float32
    ) -> None:
        count = integer(num_parameters, "num_parameters", 1)
        self.init = float(init)
        self.weight = Parameter(np.full(count, self.init, as_dtype(dtype)))

    def forward(self, input: Array) -> Array:
        """Return the activations, as `convkern.functional.prelu`."""
        return functional.prelu(input, self.weight.data)

    def gradient(self, grad_output: Array, kept: Array, input_gradient: bool = True) -> Array:
        """Return the gradient of the input."""
        grad_input, grad_weight = functional.prelu_backward(grad_output, kept, self.weight.data)
        add_grads((self.weight,), (grad_weight,))
        return grad_input

    def _arguments(self) -> list[str]:
        """Return whatever differs from its default."""
        count = self.weight.data.size
        return [str(count)] * (count > 1) + options(self, init=0.25)


class Sigmoid(Layer):
    """``1 / (1 + exp(-x))`` of each element.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Sigmoid
    >>> Sigmoid()(np.zeros(2))
    array([0.5, 0.5])
    """

    def forward(self, input: Array) -> Array:
        """Return the sigmoid, as `convkern.functional.sigmoid`."""
        return functional.sigmoid(input)

    def record(self, input: Array) -> tuple[Array, Array]:
        """Return the sigmoid twice: the gradient is a function of it."""
        output = self.forward(input)
        return output, output

    def gradient(self, grad_output: Array, kept: Array, input_gradient: bool = True) -> Array:
        """Return the gradient of the input."""
        return functional.sigmoid_backward(grad_output, kept)


class Softmax(Layer):
    """Exponentials along one axis, divided by their sum.

    Parameters
    ----------
    dim : int
        The axis; the classes of ``(N, classes)`` by default.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Softmax
    >>> Softmax()(np.zeros((1, 4)))
    array([[0.25, 0.25, 0.25, 0.25]])
    """

    def __init__(self, dim: int = 1) -> None:
        self.dim = dim

    def forward(self, input: Array) -> Array:
        """Return the shares, as `convkern.functional.softmax`."""
        return functional.softmax(input, self.dim)

    def record(self, input: Array) -> tuple[Array, Array]:
        """Return the shares twice: the gradient is a function of them."""
        output = self.forward(input)
        return output, output

    def gradient(self, grad_output: Array, kept: Array, input_gradient: bool = True) -> Array:
        """Return the gradient of the input."""
        return functional.softmax_backward(grad_output, kept, self.dim)

    def _arguments(self) -> list[str]:
        """Return the axis if it is not the default."""
        return options(self, dim=1)
