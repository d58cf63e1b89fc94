"""Ways in which a call can be invalid, each with the exception that it must meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .draws import Array

Arguments: TypeAlias = dict[str, Any]
Change: TypeAlias = Callable[[Arguments], Any]


class Fault(NamedTuple):
    """One way of being invalid: new arguments, or functions of the old ones that give them.

    The argument that is wrong comes first; the others only make sure that nothing else is.
    """

    error: type[Exception]
    changes: Arguments
    #: Whether torch takes it, always or now and then.
    torch_accepts: bool = False
    #: What the message matches, where it does not name the argument and its value.
    says: str = ""

    def spoil(self, given: Arguments) -> Arguments:
        """Return the arguments with the fault in them."""
        changes = {k: v(given) if callable(v) else v for k, v in self.changes.items()}
        return given | changes


Faults: TypeAlias = dict[str, Fault]


def value_error(**changes: Any) -> Fault:
    return Fault(ValueError, changes)


def type_error(**changes: Any) -> Fault:
    return Fault(TypeError, changes)


def ours(faults: Faults) -> Faults:
    """Return faults of what torch takes, perhaps as something else than it looks like."""
    return {label: fault._replace(torch_accepts=True) for label, fault in faults.items()}


# Changes of an array


def resized(name: str, axis: int, size: Callable[[int], int]) -> Change:
    """Return a change of an array: one axis takes another length."""

    def change(given: Arguments) -> Array:
        shape = list(given[name].shape)
        shape[axis] = size(shape[axis])
        return np.zeros(shape, given[name].dtype)

    return change


def longer(name: str, axis: int) -> Change:
    """Return a change of an array: one axis becomes longer by one."""
    return resized(name, axis, lambda n: n + 1)


def shorter(name: str, axis: int) -> Change:
    """Return a change of an array: one axis becomes shorter by one."""
    return resized(name, axis, lambda n: n - 1)


def empty(name: str, axis: int) -> Change:
    """Return a change of an array: one axis has no elements."""
    return resized(name, axis, lambda n: 0)


def reshaped(name: str, shape: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Change:
    """Return a change of an array's shape."""
    return lambda given: given[name].reshape(shape(given[name].shape))


def cast(name: str, dtype: type) -> Change:
    """Return a change of an array's dtype."""
    return lambda given: np.where(np.isfinite(given[name]), given[name], 0).astype(dtype)


def other_float(name: str) -> Change:
    """Return a change from float32 to float64 and back."""

    def change(given: Arguments) -> Array:
        array: Array = given[name]
        return array.astype(np.float32 if array.dtype == np.float64 else np.float64)

    return change


def last_element(name: str, value: Change) -> Change:
    """Return a change of an array's last element."""

    def change(given: Arguments) -> Array:
        array = np.array(given[name], order="C")
        array.reshape(-1)[-1] = value(given)
        return array

    return change


# Faults of one kind of argument


class Broken:
    """Neither an array nor a number: converting it fails in a way of its own."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        raise KeyError("mine")

    def __index__(self) -> int:
        raise KeyError("mine")


class Sparse:
    """A matrix that does not pretend to be an array, like those of SciPy."""

    shape, dtype = (3, 4), np.dtype(np.float32)


def bad_array(name: str) -> Faults:
    """Return faults of an array of floats."""
    return {
        **bad_type(name, lambda given: given[name]),
        **ours(
            {
                f"{name} of integers": type_error(**{name: cast(name, np.int64)}),
                f"{name} cannot be converted": Fault(KeyError, {name: Broken()}),
            }
        ),
        f"no {name}": type_error(**{name: None}),
    }


def bad_type(name: str, array: Change) -> Faults:
    """Return faults of the type or dtype of what could be `array`: no array of numbers."""

    def of(dtype: Any) -> Change:
        return lambda given: np.zeros(np.shape(array(given)), dtype)

    return {
        f"{name} is a list": type_error(**{name: [[[0.5]]]}),
        f"{name} of objects": type_error(**{name: of(object)}),
        f"{name} of text": type_error(**{name: of(str)}),
        f"{name} of dates": type_error(**{name: of("datetime64[s]")}),
        f"{name} of records": type_error(**{name: of([("value", np.float32)])}),
        **ours(
            {
                f"{name} is text": type_error(**{name: "array"}),
                f"{name} is a number": type_error(**{name: 0.5}),
                f"{name} is a ragged list": type_error(**{name: [[0.5], [0.5, 0.5]]}),
                f"{name} is a dict": type_error(**{name: {}}),
                f"{name} is sparse": type_error(**{name: Sparse()}),
                f"{name} is masked": type_error(
                    **{name: lambda given: np.ma.masked_array(np.array(array(given)))}
                ),
                f"{name} of complex numbers": type_error(**{name: of(np.complex64)}),
                f"{name} of bools": type_error(**{name: of(np.bool_)}),
                f"{name} of half floats": type_error(**{name: of(np.float16)}),
                f"{name} of long doubles": type_error(**{name: of(np.longdouble)}),
            }
        ),
    }


def bad_images(name: str = "input") -> Faults:
    return bad_array(name) | {
        f"{name} of no axes": value_error(**{name: lambda a: np.zeros((), a[name].dtype)}),
        f"{name} of one axis": value_error(**{name: reshaped(name, lambda s: (-1,))}),
        f"{name} of two axes": value_error(**{name: reshaped(name, lambda s: (-1, s[-1]))}),
        f"{name} of five axes": value_error(
            **{name: reshaped(name, lambda s: (1, -1, 1, *s[-2:]))}
        ),
    }


def empty_images(**rest: Any) -> Faults:
    """Return images without channels, rows or columns; `rest` makes other arguments harmless."""
    return {
        "no channels": value_error(input=empty("input", -3)),
        "no rows": value_error(input=empty("input", -2), **rest),
        "no columns": value_error(input=empty("input", -1), **rest),
    }


def bad_gradient() -> Faults:
    """Return gradients of other shapes than the output of an operator on images."""
    return bad_images("grad_output") | {
        "a row too many": value_error(grad_output=longer("grad_output", -2)),
        "a column too many": value_error(grad_output=longer("grad_output", -1)),
        "a channel too many": value_error(grad_output=longer("grad_output", -3)),
        "a row too few": value_error(grad_output=shorter("grad_output", -2)),
        "a column too few": value_error(grad_output=shorter("grad_output", -1)),
        "another image or channel": value_error(grad_output=longer("grad_output", 0)),
        "an empty gradient": value_error(grad_output=empty("grad_output", -1)),
    }


#: An argument may be read-only itself.
_SHARED = "out must not overlap an input, got memory of|out must be writeable, got a read-only"


def bad_out(shape: Callable[[Arguments], tuple[int, ...]]) -> Faults:
    """Return faults of an array for the result, of a shape; it is all that differs from a call."""

    def of(change: Callable[[Array, Arguments], Any]) -> Change:
        def make(given: Arguments) -> Any:
            return change(np.zeros(shape(given), given["input"].dtype), given)

        return make

    def read_only(out: Array, given: Arguments) -> Array:
        out.flags.writeable = False
        return out

    def within(name: str) -> Callable[[Array, Arguments], Array]:
        """Return what starts in an argument's memory, which becomes long enough for both."""

        def share(out: Array, given: Arguments) -> Array:
            memory = np.zeros(max(out.size, given[name].size), out.dtype)
            copy = memory[: given[name].size].reshape(given[name].shape)
            copy[...] = given[name]
            given[name] = copy
            return memory[: out.size].reshape(out.shape)

        return share

    return ours(
        {
            "out is a list": type_error(out=[0.5]),
            "out is masked": type_error(out=of(lambda out, given: np.ma.masked_array(out))),
            "out of integers": type_error(out=of(lambda out, given: out.astype(np.int64))),
            "out of the other float": type_error(
                out=of(lambda out, given: other_float("out")({"out": out}))
            ),
            "out of swapped bytes": type_error(
                out=of(lambda out, given: out.astype(out.dtype.newbyteorder()))
            ),
            "out is read-only": value_error(out=of(read_only)),
            "out of an axis more": value_error(out=of(lambda out, given: out[None])),
            "out of a column more": value_error(
                out=of(lambda out, given: np.zeros((*out.shape[:-1], out.shape[-1] + 1), out.dtype))
            ),
            "out of a column less": value_error(out=of(lambda out, given: out[..., 1:])),
            "out in the input": value_error(out=of(within("input")))._replace(says=_SHARED),
            "out in the weight": value_error(out=of(within("weight")))._replace(says=_SHARED),
            "out in itself": value_error(
                out=of(
                    lambda out, given: as_strided(
                        np.zeros(sum(out.shape) + 2, out.dtype),
                        (2, *out.shape[1:]) if out.ndim == 4 else out.shape,
                        (out.itemsize,) * out.ndim,
                    )
                )
            ),
        }
    )


def bad_shape(**rest: Any) -> Faults:
    """Return faults of an `input_shape`; `rest` makes other arguments harmless."""

    def with_rows(rows: Any) -> Change:
        return lambda given: (*given["input_shape"][:-2], rows, given["input_shape"][-1])

    return {
        "input of no rows": value_error(input_shape=with_rows(0), **rest),
        "input of 1.5 rows": type_error(input_shape=with_rows(1.5)),
        "input without a shape": type_error(input_shape=4),
        "input of two axes": value_error(input_shape=lambda given: given["input_shape"][-2:]),
        **ours(
            {
                "input of -1 rows": value_error(input_shape=with_rows(-1)),
                "input of True rows": type_error(input_shape=with_rows(True)),
                "input of 2**62 rows": value_error(input_shape=with_rows(2**62)),
                "input of 2**64 rows": value_error(input_shape=with_rows(2**64)),
                "input shape of text": type_error(input_shape="1111"),
            }
        ),
    }


def bad_pair(name: str, least: int) -> Faults:
    """Return faults of one or two integers, `least` or more."""
    return {
        f"{name} {least - 1}": value_error(**{name: least - 1}),
        f"second {name} {least - 1}": value_error(**{name: (least, least - 1)}),
        f"first {name} -5": value_error(**{name: (-5, least)}),
        f"{name} 1.5": type_error(**{name: 1.5}),
        f"{name} of three": value_error(**{name: (least,) * 3}),
        f"{name} of text": type_error(**{name: ("1", "1")}),
        **bad_integer(name),
    }


def bad_integer(name: str) -> Faults:
    """Return what is no integer although it may look like one, and integers beyond all use."""
    return ours(
        {
            f"{name} True": type_error(**{name: True}),
            f"{name} 2.0": type_error(**{name: np.float64(2.0)}),
            f"{name} 1j": type_error(**{name: 1j}),
            f"{name} is a dict": type_error(**{name: {}}),
            f"{name} cannot be converted": Fault(KeyError, {name: Broken()}),
            f"{name} 2**31": value_error(**{name: 2**31}),
            f"{name} 2**62": value_error(**{name: 2**62}),
            f"{name} 2**63-5": value_error(**{name: 2**63 - 5}),
            f"{name} 2**64": value_error(**{name: 2**64}),
        }
    )


def bad_number(name: str) -> Faults:
    """Return faults of a real number."""
    return {
        f"no {name}": type_error(**{name: None}),
        f"{name} of text": type_error(**{name: "0.5"}),
        **ours(
            {f"{name} True": type_error(**{name: True}), f"{name} 1j": type_error(**{name: 1j})}
        ),
        f"{name} is a list": type_error(**{name: [0.5, 0.5]}),
    }


def bad_vector(name: str, like: str, size: Callable[[Arguments], int]) -> Faults:
    """Return faults of an optional vector of the dtype of another array."""

    def zeros(*shape: int) -> Change:
        """Return zeros of a shape in which -1 stands for the right length, -2 for one more."""

        def change(given: Arguments) -> Array:
            sizes = {-1: size(given), -2: size(given) + 1}
            return np.zeros([sizes.get(n, n) for n in shape], given[like].dtype)

        return change

    return {
        f"{name} too long": value_error(**{name: zeros(-2)}),
        f"{name} of two axes": value_error(**{name: zeros(1, -1)}),
        f"{name} of the other float": type_error(
            **{name: lambda given: other_float("it")({"it": zeros(-1)(given)})}
        ),
        **ours({f"{name} cannot be converted": Fault(KeyError, {name: Broken()})}),
        **bad_type(name, zeros(-1)),
    }


def bad_indices(plane: Callable[[Arguments], int]) -> Faults:
    """Return faults of indices into planes of so many elements."""
    return bad_type("indices", lambda given: given["indices"]) | {
        "no indices": type_error(indices=None),
        "index -1": value_error(indices=last_element("indices", lambda given: -1)),
        "index of H * W": value_error(indices=last_element("indices", plane)),
        "index beyond 32 bits": value_error(
            indices=last_element("indices", lambda given: 2**32 + 3)
        ),
        "float indices": type_error(indices=cast("indices", np.float64)),
        "int32 indices": type_error(indices=cast("indices", np.int32)),
        "a column of indices too many": value_error(indices=longer("indices", -1)),
        "a row of indices too few": value_error(indices=resized("indices", -2, lambda n: n - 1)),
    }


def bad_backward() -> Faults:
    """Return faults of what every function of three gradients takes."""
    return {
        "gradient of the other float": type_error(grad_output=other_float("grad_output")),
        "two of a mask": value_error(output_mask=(True, True)),
        "a mask of text": type_error(output_mask="no"),
    }
