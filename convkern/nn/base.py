"""What every layer has: parameters, a mode, a state to save, and a summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from convkern.arrays import ANY_NDIM, DTYPES, as_array
from convkern.nn.summary import Summary, Window, join_names, summarize

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]


class Parameter:
    """An array that training adjusts, and its gradient.

    Parameters
    ----------
    data : ndarray
        The values, float32 or float64.

    Attributes
    ----------
    data : ndarray
        The values; an optimiser changes them in place.
    grad : ndarray
        Their gradient, of the shape and dtype of `data`.  `Layer.backward` adds to
        it, `zero_grad` makes it zero.  It is zeros, and takes no memory until it
        is asked for, as long as nothing was added.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Parameter
    >>> parameter = Parameter(np.zeros((2, 3)))
    >>> parameter
    Parameter(shape=(2, 3), dtype=float64)
    >>> parameter.add_grad(np.ones((2, 3)))
    >>> parameter.add_grad(np.ones((2, 3)))
    >>> parameter.grad
    array([[2., 2., 2.],
           [2., 2., 2.]])
    """

    def __init__(self, data: Array) -> None:
        self.data: Array = as_array(data, "data", ANY_NDIM)
        self._grad: Array | None = None

    def __repr__(self) -> str:
        return f"Parameter(shape={self.data.shape}, dtype={self.data.dtype})"

    @property
    def grad(self) -> Array:
        """The gradient; zeros as long as nothing was added."""
        if self._grad is None:
            self._grad = np.zeros_like(self.data)
        return self._grad

    @grad.setter
    def grad(self, gradient: Array) -> None:
        self._grad = self._checked(gradient)

    @property
    def has_grad(self) -> bool:
        """Whether there is a gradient since `zero_grad`: one that was added, set or read."""
        return self._grad is not None

    def add_grad(self, gradient: Array, *, fresh: bool = False) -> None:
        """Add to the gradient.

        Parameters
        ----------
        gradient : ndarray
            Of the shape and dtype of `data`.
        fresh : bool
            Nobody else uses the array, so that it may become `grad` without a copy.

        Raises
        ------
        TypeError, ValueError
            If `gradient` is not such an array.
        """
        gradient = self._checked(gradient)
        self.take_grad(gradient if fresh or self._grad is not None else gradient.copy())

    def take_grad(self, gradient: Array) -> None:
        """Add a gradient that fits, in an array that nobody else uses."""
        if self._grad is None:
            self._grad = gradient
        else:
            self._grad += gradient

    def zero_grad(self) -> None:
        """Make the gradient zero: the array is given up, not filled."""
        self._grad = None

    def _checked(self, gradient: Array) -> Array:
        """Return an array of the shape and dtype of `data`, or raise."""
        return _as_gradient(gradient, "gradient", "parameter", self.data.shape, self.data.dtype)


class _Call(NamedTuple):
    """What a call in training mode leaves for `Layer.backward`."""

    shape: Shape
    dtype: np.dtype[Any]
    kept: Any


class Layer:
    """The base of all layers: define `forward`, and `output_shape` if it changes the shape.

    A layer that training goes through also defines `gradient`, and `record` if
    its gradient needs more than the input.  None of them keeps anything in the
    layer, so a layer may stand in a net several times.

    Every attribute that is a `Parameter` or a `Layer` belongs to the layer and
    gives its name to the entries of `state_dict`.

    Attributes
    ----------
    training : bool
        True in a new layer; set it by `train` and `eval`.
    buffers : tuple of str
        Names of the attributes that are arrays to save, but not to train.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Layer, Parameter
    >>> class Scale(Layer):
    ...     def __init__(self):
    ...         self.factor = Parameter(np.array(2.0))
    ...     def forward(self, input):
    ...         return input * self.factor.data
    ...     def gradient(self, grad_output, kept, input_gradient=True):
    ...         self.factor.add_grad(np.sum(grad_output * kept))
    ...         return grad_output * self.factor.data
    >>> scale = Scale()
    >>> scale(np.arange(3.0))
    array([0., 2., 4.])
    >>> scale.backward(np.ones(3))
    array([2., 2., 2.])
    >>> scale.factor.grad
    array(3.)
    >>> scale.state_dict()
    {'factor': array(2.)}
    """

    training: bool = True
    buffers: ClassVar[tuple[str, ...]] = ()
    _last: _Call | None = None

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Refuse a layer that cannot be called."""
        # An abstract base class would say so as well, but its isinstance takes several times as
        # long, and a small net asks it hundreds of times a step.
        if cls.forward is Layer.forward:
            raise TypeError(f"{cls.__name__} must define forward")
        return super().__new__(cls)

    def __init_subclass__(cls, **options: Any) -> None:
        """Part a new `forward` from an inherited gradient, which would be wrong."""
        super().__init_subclass__(**options)
        if "forward" in vars(cls):
            for name in {"record", "gradient"} - vars(cls).keys():
                setattr(cls, name, getattr(Layer, name))

    def __call__(self, input: Array) -> Array:
        """Return the output for `input`.

        In training mode the layer keeps what `backward` needs, until that, the
        next call or `eval`.
        """
        if not self.training:
            return self.forward(input)
        self._last = None  # the memory of the call before may serve this one
        output, kept = self.record(input)
        self._last = _Call(output.shape, output.dtype, kept)
        return output

    def forward(self, input: Array) -> Array:
        """Return the output for `input`, keeping nothing."""
        raise NotImplementedError

    def record(self, input: Array) -> tuple[Array, Any]:
        """Return the output for `input` and whatever `gradient` needs: here, the input."""
        return self.forward(input), input

    def gradient(self, grad_output: Array, kept: Any, input_gradient: bool = True) -> Array | None:
        """Return the gradient of the input and add to those of the parameters.

        Parameters
        ----------
        grad_output : ndarray
            The gradient of the output; it must not be changed.
        kept : object
            What `record` returned, which is used up.
        input_gradient : bool
            Whether the gradient of the input is wanted.

        Returns
        -------
        ndarray or None
            None only where it is not wanted.
        """
        raise RuntimeError(
            f"{type(self).__name__} defines forward but no gradient, so training cannot go "
            "through it"
        )

    def backward(self, grad_output: Array, *, input_gradient: bool = True) -> Array | None:
        """Go back through the last call: the chain rule from the output to the input.

        Gradients are added to ``grad`` of every parameter; start a step with
        `zero_grad`.  What the call kept is given up, so that one call allows one
        `backward`.

        Parameters
        ----------
        grad_output : ndarray
            The gradient of a loss by the output of the last call, of its shape and dtype.
        input_gradient : bool
            Whether to compute the gradient of the input.  A training loop has no
            use for it and saves a part of the first layer's work with False.

        Returns
        -------
        ndarray or None
            The gradient of the loss by the input of the last call, None if not wanted.

        Raises
        ------
        RuntimeError
            If there was no call in training mode since the last `backward`, or a
            layer has no gradient.
        TypeError, ValueError
            If `grad_output` is not an array of the output's dtype and shape.

        Examples
        --------
        >>> import numpy as np
        >>> from convkern.nn import Linear, ReLU, Sequential
        >>> net = Sequential(Linear(2, 1, bias=False, dtype=np.float64), ReLU())
        >>> net[0].weight.data[...] = [[3.0, 4.0]]
        >>> net(np.array([[1.0, 2.0]]))
        array([[11.]])
        >>> net.backward(np.array([[1.0]]))
        array([[3., 4.]])
        >>> net[0].weight.grad
        array([[1., 2.]])
        """
        if self._last is None:
            raise RuntimeError(
                f"backward of {type(self).__name__} must follow a call of the same layer in "
                "training mode, once; inside a net, call the net and its backward"
            )
        shape, dtype, kept = self._last
        grad_output = _as_gradient(grad_output, "grad_output", "output", shape, dtype)
        self._last = None
        result = self.gradient(grad_output, kept, input_gradient)
        return result if input_gradient else None

    def zero_grad(self) -> None:
        """Make the gradients of all parameters zero."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy gets: all but what calls have left."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_last")}

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

    def _inside(self) -> list[Layer]:
        """Return the layers of `_children` without the names, which take longer to make."""
        return [value for value in vars(self).values() if isinstance(value, Layer)]

    def _chains(self) -> list[list[tuple[str, Layer]]]:
        """Return the layers that run in place of this one: chains side by side, or none."""
        return []

    def _all_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield every parameter with its full name, a shared one under each of its names."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield name, value
        for child_name, child in self._children():
            for name, parameter in child._all_parameters():
                yield join_names(child_name, name), parameter

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

    def _learns(self) -> bool:
        """Tell whether there is a parameter."""
        for value in vars(self).values():
            if isinstance(value, Parameter):
                return True
        return any(layer._learns() for layer in self._inside())

    def generators(self) -> list[np.random.Generator]:
        """Return the random generators of the layers inside, each once.

        Their states belong to those of a training run, as those of the optimiser do.

        Examples
        --------
        >>> import numpy as np
        >>> from convkern.nn import Dropout, Sequential
        >>> rng = np.random.default_rng(0)
        >>> Sequential(Dropout(rng=rng), Dropout(rng=rng)).generators() == [rng]
        True
        """
        own = [value for value in vars(self).values() if isinstance(value, np.random.Generator)]
        inside = [generator for _, child in self._children() for generator in child.generators()]
        return list({id(generator): generator for generator in own + inside}.values())

    def num_parameters(self) -> int:
        """Return how many numbers the parameters hold together."""
        return sum(parameter.data.size for parameter in self.parameters())

    def _entries(self) -> Iterator[tuple[str, Any, str]]:
        """Yield the arrays to save: name, owner and the owner's attribute, in torch's order."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield name, value, "data"
        for name in self.buffers:
            if getattr(self, name) is not None:
                yield name, self, name
        for child_name, child in self._children():
            for name, owner, attribute in child._entries():
                yield join_names(child_name, name), owner, attribute

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """Yield ``(name, array)`` of what is saved but not trained, such as running statistics.

        Examples
        --------
        >>> from convkern.nn import BatchNorm2d
        >>> [name for name, _ in BatchNorm2d(3).named_buffers()]
        ['running_mean', 'running_var', 'num_batches_tracked']
        """
        for name, owner, attribute in self._entries():
            if not isinstance(owner, Parameter):
                yield name, getattr(owner, attribute)

    def state_dict(self) -> dict[str, Array]:
        """Return all parameters and buffers by name, as ``torch.nn.Module`` names them.

        The arrays are copies: training the net further does not change them.
        """
        return {
            name: getattr(owner, attribute).copy() for name, owner, attribute in self._entries()
        }

    def load_state_dict(
        self, state: Mapping[str, npt.ArrayLike], strict: bool = True
    ) -> tuple[list[str], list[str]]:
        """Copy the arrays of `state` into the parameters and buffers of the same names.

        Everything is checked first: a `state` that does not fit changes nothing.

        Parameters
        ----------
        state : mapping of str to array
            Float32 or float64 arrays for parameters, cast to their dtype; integers
            for buffers that count, which may be missing and then keep their values.
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
            If the shape of an array differs from that of its place.
        TypeError
            If `state` is not a mapping or an array has another type.

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
        places = {name: (owner, attribute) for name, owner, attribute in self._entries()}
        # As in torch: files from before version 0.4.1 have no counters of batches.
        missing = [
            name
            for name, place in places.items()
            if name not in state and getattr(*place).dtype.kind == "f"
        ]
        unexpected = [name for name in state if name not in places]
        if strict and (missing or unexpected):
            found = {"missing": missing, "unexpected": unexpected}
            raise KeyError(
                "state does not fit the net: "
                + "; ".join(f"{kind} {', '.join(map(str, n))}" for kind, n in found.items() if n)
            )
        present = {name: getattr(*place) for name, place in places.items() if name in state}
        arrays = {name: np.asarray(state[name]) for name in present}
        wrong_shapes = []
        for name, old in present.items():
            array = arrays[name]
            if old.dtype.kind == "f" and array.dtype.newbyteorder("=") not in DTYPES:
                raise TypeError(f"state[{name!r}] must be float32 or float64, got {array.dtype}")
            if old.dtype.kind == "i" and array.dtype.kind not in "iu":
                raise TypeError(f"state[{name!r}] must be integers, got {array.dtype}")
            if array.shape != old.shape:
                wrong_shapes.append(f"{name} is {array.shape}, not {old.shape}")
        if wrong_shapes:
            raise ValueError(f"state has arrays of the wrong shape: {'; '.join(wrong_shapes)}")
        # All conversions precede the first change, as one of them may still fail.
        copies = {
            name: np.array(arrays[name], dtype=old.dtype, order="C")
            for name, old in present.items()
        }
        for name, copy in copies.items():
            setattr(*places[name], copy)
        return missing, unexpected

    def train(self, mode: bool = True) -> Self:
        """Switch this layer and all layers inside to training mode and return it."""
        self.training = bool(mode)
        if not mode:
            self._last = None
        for _, child in self._children():
            child.train(mode)
        return self

    def eval(self) -> Self:
        """Switch this layer and all layers inside to evaluation mode and return it.

        What a call in training mode has kept is given up.
        """
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


def _as_gradient(value: Any, name: str, of: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """Return `value` as an array of this shape and dtype, or raise."""
    array: Array = as_array(value, name, ANY_NDIM)
    if array.dtype != dtype:
        raise TypeError(f"{name} must have the {of}'s dtype {dtype}, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{name} must have the {of}'s shape {shape}, got {array.shape}")
    return array
