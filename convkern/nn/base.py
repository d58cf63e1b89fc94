"""What every layer has: parameters, a mode, a state to save, and a summary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from convkern.nn.summary import Summary, Window, summarize

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]


@dataclass(eq=False, repr=False)
class Parameter:
    """An array that training adjusts.

    Parameters
    ----------
    data : ndarray
        The values, float32 or float64.
    grad : ndarray, optional
        Their gradient, of the shape and dtype of `data`; None before there is one.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Parameter
    >>> Parameter(np.zeros((64, 3)))
    Parameter(shape=(64, 3), dtype=float64)
    """

    data: Array
    grad: Array | None = None

    def __repr__(self) -> str:
        return f"Parameter(shape={self.data.shape}, dtype={self.data.dtype})"


class Layer(ABC):
    """The base of all layers: define `forward`, and `output_shape` if it changes the shape.

    Every attribute that is a `Parameter` or a `Layer` belongs to the layer and
    gives its name to the entries of `state_dict`.

    Attributes
    ----------
    training : bool
        True in a new layer; set it by `train` and `eval`.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Layer, Parameter
    >>> class Scale(Layer):
    ...     def __init__(self):
    ...         self.factor = Parameter(np.array([2.0]))
    ...     def forward(self, input):
    ...         return input * self.factor.data
    >>> scale = Scale()
    >>> scale(np.arange(3.0))
    array([0., 2., 4.])
    >>> scale.state_dict()
    {'factor': array([2.])}
    """

    training: bool = True

    @abstractmethod
    def forward(self, input: Array) -> Array:
        """Return the output for `input`; a call of the layer ends here."""

    def __call__(self, input: Array) -> Array:
        """Return ``forward(input)``."""
        return self.forward(input)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._arguments())})"

    def _arguments(self) -> list[str]:
        """Return the constructor arguments that a reader wants to see."""
        return []

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape of the output for an input of `input_shape`, without computing it.

        Raises
        ------
        ValueError
            If the layer does not take this shape.
        """
        return tuple(input_shape)

    def _multiply_adds(self, input_shape: Shape) -> int:
        """Return how many multiplications with an addition one call takes."""
        return 0

    def _window(self, input_shape: Shape) -> Window | None:
        """Return the window that slides over the input, if there is one."""
        return None

    def _children(self) -> Iterator[tuple[str, Layer]]:
        """Yield the layers directly inside this one, with their names."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Layer))

    def _leaves(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """Yield the layers that a forward pass runs one after another, with full names."""
        yield prefix or type(self).__name__, self

    def _all_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield every parameter with its full name, a shared one under each of its names."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield name, value
        for child_name, child in self._children():
            for name, parameter in child._all_parameters():
                yield f"{child_name}.{name}", parameter

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield ``(name, parameter)``, each parameter once, also if layers share it."""
        seen = set()
        for name, parameter in self._all_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parameters(self) -> list[Parameter]:
        """Return the parameters, each once, in the order of `named_parameters`."""
        return [parameter for _, parameter in self.named_parameters()]

    def num_parameters(self) -> int:
        """Return how many numbers the parameters hold together."""
        return sum(parameter.data.size for parameter in self.parameters())

    def state_dict(self) -> dict[str, Array]:
        """Return the values of all parameters by name, as ``torch.nn.Module`` names them.

        The arrays are copies: training the net further does not change them.
        """
        return {name: parameter.data.copy() for name, parameter in self._all_parameters()}

    def load_state_dict(
        self, state: Mapping[str, npt.ArrayLike], strict: bool = True
    ) -> tuple[list[str], list[str]]:
        """Copy the arrays of `state` into the parameters of the same names.

        Everything is checked first: a `state` that does not fit changes nothing.

        Parameters
        ----------
        state : mapping of str to array
            Float32 or float64 arrays, cast to the dtype of their parameter.
        strict : bool
            Refuse missing and unexpected names; otherwise only what matches is loaded.

        Returns
        -------
        (list of str, list of str)
            The missing and the unexpected names.

        Raises
        ------
        KeyError
            If `strict` and the names differ; the message lists them.
        ValueError
            If the shape of an array differs from its parameter's.
        TypeError
            If `state` is not a mapping or an array is neither float32 nor float64.

        Examples
        --------
        >>> import numpy as np
        >>> from convkern.nn import Linear
        >>> layer = Linear(2, 1)
        >>> layer.load_state_dict({"weight": np.array([[3.0, 4.0]]), "bias": np.zeros(1)})
        ([], [])
        >>> layer.weight.data
        array([[3., 4.]], dtype=float32)
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must map names to arrays, got {type(state).__name__}")
        parameters = dict(self._all_parameters())
        missing = [name for name in parameters if name not in state]
        unexpected = [name for name in state if name not in parameters]
        if strict and (missing or unexpected):
            found = {"missing": missing, "unexpected": unexpected}
            raise KeyError(
                "state does not fit the net: "
                + "; ".join(f"{kind} {', '.join(map(str, n))}" for kind, n in found.items() if n)
            )
        arrays = {name: np.asarray(state[name]) for name in parameters if name in state}
        wrong_shapes = []
        for name, array in arrays.items():
            if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
                raise TypeError(f"state[{name!r}] must be float32 or float64, got {array.dtype}")
            if array.shape != parameters[name].data.shape:
                wrong_shapes.append(f"{name} is {array.shape}, not {parameters[name].data.shape}")
        if wrong_shapes:
            raise ValueError(f"state has arrays of the wrong shape: {'; '.join(wrong_shapes)}")
        # All conversions precede the first change, as one of them may still fail.
        copies = {
            name: np.array(array, dtype=parameters[name].data.dtype, order="C")
            for name, array in arrays.items()
        }
        for name, copy in copies.items():
            parameters[name].data = copy
        return missing, unexpected

    def train(self, mode: bool = True) -> Self:
        """Switch this layer and all layers inside to training mode and return it."""
        self.training = bool(mode)
        for _, child in self._children():
            child.train(mode)
        return self

    def eval(self) -> Self:
        """Switch this layer and all layers inside to evaluation mode and return it."""
        return self.train(False)

    def summary(self, input_shape: Sequence[int]) -> Summary:
        """Return a table of the layers, computed from shapes alone.

        Parameters
        ----------
        input_shape : sequence of int
            ``(C, H, W)`` or ``(N, C, H, W)`` for images, ``(F,)`` or ``(N, F)`` for vectors.

        Returns
        -------
        Summary
            One row a layer; ``str()`` gives the table.

        Raises
        ------
        TypeError
            If `input_shape` is not made of integers.
        ValueError
            If a layer does not take the shape that reaches it.

        Examples
        --------
        >>> from convkern.nn import Conv2d, MaxPool2d, Sequential
        >>> summary = Sequential(Conv2d(3, 8, 3), MaxPool2d(2)).summary((3, 32, 32))
        >>> [row.output_shape for row in summary.rows]
        [(8, 30, 30), (8, 15, 15)]
        >>> summary.parameters, summary.multiply_adds
        (224, 194400)
        """
        return summarize(self, input_shape)
