"""Random calls of the operators: one generator for every comparison.

``generate(name, n, seed)`` yields `n` calls.  ``torch_call`` and
``reference_call`` answer one; a test compares what it gets from elsewhere.
About one call in ten is invalid and says so by its `error`: the exception that
convkern must raise (torch raises too, of whatever type).

A further operator is one function here, registered by ``@_operator``, which
draws the arguments, and one in ``_TORCH`` if torch spells them differently.
"""
# N, C, H, W, OC are the names of the field.

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from convkern import reference

Array: TypeAlias = NDArray[Any]
Arguments: TypeAlias = dict[str, Any]
_Pair: TypeAlias = tuple[int, int]
_T = TypeVar("_T")

INVALID_SHARE = 0.1
#: Multiplications in a convolution: more would only be slower.
LARGEST_WORK = 4_000_000


@dataclass(frozen=True)
class Call:
    """One call of a public operator."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: What is called, for the message of a failure.
    note: str
    #: The exception that must be raised, or None.
    error: type[Exception] | None = None
    #: Whether every correct float32 or float64 result is the same to the last bit.
    exact: bool = False


class Draw(NamedTuple):
    """What an operator's function draws: arguments by name, and whether results are exact."""

    arguments: Arguments
    exact: bool


class Fault(NamedTuple):
    """One way of being invalid: new arguments, or functions of the old ones that give them."""

    error: type[Exception]
    changes: Arguments

    def spoil(self, given: Arguments) -> Arguments:
        """Return the arguments with the fault in them."""
        changes = {k: v(given) if callable(v) else v for k, v in self.changes.items()}
        return given | changes


_Drawer: TypeAlias = Callable[[Generator], Draw]
_OPERATORS: dict[str, tuple[_Drawer, dict[str, Fault]]] = {}


def generate(name: str, n: int, seed: int) -> Iterator[Call]:
    """Yield `n` random calls of the operator `name`; call `i` depends on `seed` and `i` alone."""
    draw, faults = _OPERATORS[name]
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        given, exact = draw(rng)
        label = "valid"
        error: type[Exception] | None = None
        # An empty batch would hide some faults from torch.
        if given["input"].size and rng.random() < INVALID_SHARE:
            label = _pick(rng, list(faults))
            error = faults[label].error
            given = faults[label].spoil(given)
        args, kwargs = _spelt(rng, name, given)
        note = f"{name} call {i} of seed {seed} ({label}): {_described(given)}"
        yield Call(name, args, kwargs, note, error, exact)


def _operator(faults: dict[str, Fault]) -> Callable[[_Drawer], _Drawer]:
    """Register a function that draws the arguments of the operator it is named after."""

    def register(draw: _Drawer) -> _Drawer:
        _OPERATORS[draw.__name__.lstrip("_")] = draw, faults
        return draw

    return register


def _spelt(rng: Generator, name: str, given: Arguments) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pass some arguments by position, the rest by keyword in any order, few that are defaults."""
    parameters = inspect.signature(getattr(reference, name)).parameters
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    cut = int(rng.integers(len(positional) + 1))
    args = tuple(given[p] for p in positional[:cut])
    names = rng.permutation([p for p in given if p not in positional[:cut]])
    kwargs = {
        str(p): given[p]
        for p in names
        if not _same(given[p], parameters[p].default) or rng.random() < 0.2
    }
    return args, kwargs


def _same(value: Any, default: Any) -> bool:
    """Tell whether an argument is its default, type and all."""
    return type(value) is type(default) and not isinstance(value, np.ndarray) and value == default


def _described(given: Arguments) -> str:
    """Return the arguments as text, arrays by dtype, shape and strides."""
    return ", ".join(
        f"{name}={value.dtype}{value.shape}@{value.strides}"
        if isinstance(value, np.ndarray)
        else f"{name}={value!r}"
        for name, value in given.items()
    )


# The two that answer a call


def reference_call(call: Call) -> Any:
    """Return what :mod:`convkern.reference` says."""
    return getattr(reference, call.name)(*call.args, **call.kwargs)


def torch_call(call: Call) -> Any:
    """Return what torch says, as NumPy arrays; it may raise."""
    given = {name: _for_torch(value) for name, value in arguments(call).items()}
    result = torch_function(call.name)(**given)
    return tuple(r.numpy() for r in result) if isinstance(result, tuple) else result.numpy()


def torch_function(name: str) -> Callable[..., Any]:
    """Return torch's operator as a function of tensors with convkern's arguments, by keyword."""
    import torch

    return _TORCH.get(name) or getattr(torch.nn.functional, name)


def arguments(call: Call) -> Arguments:
    """Return the call's arguments by name; those that were left out are not among them."""
    signature = inspect.signature(getattr(reference, call.name))
    return signature.bind(*call.args, **call.kwargs).arguments


def in_float64(call: Call) -> Call:
    """Return the call with its floating arrays, values unchanged, in float64."""

    def wide(value: Any) -> Any:
        floating = isinstance(value, np.ndarray) and value.dtype.kind == "f"
        return value.astype(np.float64) if floating else value

    kwargs = {name: wide(value) for name, value in call.kwargs.items()}
    return replace(call, args=tuple(map(wide, call.args)), kwargs=kwargs)


def _for_torch(value: Any) -> Any:
    """Return an array as a fresh tensor, anything else unchanged."""
    import torch

    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value, order="C"))
    return value


def _torch_conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
    activation: str | None = None,
    algorithm: str = "auto",
) -> Any:
    """Convolve; padding of four numbers is done beforehand, the activation afterwards."""
    from torch.nn import functional as F  # noqa: N812

    sides = _four_sides(padding)
    if sides:
        input, padding = F.pad(input, sides), 0
    with warnings.catch_warnings():
        # torch warns that an even kernel with "same" costs it a copy.
        warnings.filterwarnings("ignore", "Using padding='same'")
        result = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return result if activation is None else getattr(F, activation)(result)


_TORCH: dict[str, Callable[..., Any]] = {
    "conv2d": _torch_conv2d,
}


def _both(value: Any) -> list[int]:
    """Return an int, one in a sequence, or a pair as two ints."""
    values = [int(v) for v in value] if hasattr(value, "__len__") else [int(value)]
    return values * (2 // len(values))


def _four_sides(padding: Any) -> tuple[int, int, int, int] | None:
    """Return ((top, bottom), (left, right)) in torch's order, None for another form."""
    nested = isinstance(padding, (tuple, list)) and isinstance(padding[0], (tuple, list))
    if not nested:
        return None
    (top, bottom), (left, right) = padding
    return left, right, top, bottom


# Arrays


def random_layout(rng: Generator, array: Array, kind: str) -> Array:
    """Return an equal array with the memory layout `kind`, one of ``LAYOUTS``."""
    result = LAYOUTS[kind](rng, array)
    assert result.shape == array.shape and result.dtype == array.dtype
    return result


def _contiguous(rng: Generator, array: Array) -> Array:
    return np.array(array, order="C")


def _channels_last(rng: Generator, array: Array) -> Array:
    """Put the channels, third from the end, innermost."""
    if array.ndim < 3:
        return _contiguous(rng, array)
    return np.moveaxis(np.moveaxis(array, -3, -1).copy(order="C"), -1, -3)


def _fortran(rng: Generator, array: Array) -> Array:
    return np.array(array, order="F")


def _permuted(rng: Generator, array: Array) -> Array:
    """Store the axes in a random order."""
    order = rng.permutation(array.ndim)
    return array.transpose(order).copy(order="C").transpose(np.argsort(order))


def _negative(rng: Generator, array: Array) -> Array:
    """Store the elements backwards along every axis, or along some."""
    steps = rng.choice([-1, -1, 1], array.ndim) if rng.random() < 0.5 else [-1] * array.ndim
    backwards = tuple(slice(None, None, int(step)) for step in steps)
    return array[backwards].copy(order="C")[backwards]


def _gaps(rng: Generator, array: Array) -> Array:
    """Slice a larger array of NaN: every axis has a start, an end and a step."""
    starts, steps = rng.integers(0, 3, array.ndim), rng.integers(1, 4, array.ndim)
    ends = starts + steps * array.shape
    # Half of the time the innermost axis stays dense, as that of a cropped image.
    if array.ndim and rng.random() < 0.5:
        steps[-1], ends[-1] = 1, starts[-1] + array.shape[-1]
    fill = math.nan if array.dtype.kind in "fc" else 0
    around = np.full(ends + rng.integers(0, 3, array.ndim), fill, array.dtype)
    view = around[tuple(map(slice, starts, ends, steps))]
    view[...] = array
    return view


def _broadcast(rng: Generator, array: Array) -> Array:
    """Use stride 0 along every axis on which the array is constant."""
    kept = array
    for axis in range(array.ndim):
        first = kept[(slice(None),) * axis + (slice(0, 1),)]
        if np.broadcast_to(first, kept.shape).tobytes() == kept.tobytes():
            kept = first
    return np.broadcast_to(kept.copy(order="C"), array.shape)


def _unaligned(rng: Generator, array: Array) -> Array:
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    view: Array = np.ndarray(array.shape, array.dtype, buffer.data, offset=1)
    view[...] = array
    return view


def _read_only(rng: Generator, array: Array) -> Array:
    result = np.array(array, order="C")
    result.flags.writeable = False
    return result


LAYOUTS: dict[str, Callable[[Generator, Array], Array]] = {
    "contiguous": _contiguous,
    "channels_last": _channels_last,
    "fortran": _fortran,
    "permuted": _permuted,
    "negative": _negative,
    "gaps": _gaps,
    "broadcast": _broadcast,
    "unaligned": _unaligned,
    "read_only": _read_only,
}


def _integers(rng: Generator, shape: tuple[int, ...], dtype: type) -> Array:
    """Draw integers whose sums of products, up to 2**14 of them, are exact in float32."""
    bound = int(rng.choice([2, 8, 32]))
    return rng.integers(-bound, bound + 1, shape).astype(dtype)


def _real(rng: Generator, shape: tuple[int, ...], dtype: type) -> Array:
    return rng.standard_normal(shape).astype(dtype)


def _ties(rng: Generator, shape: tuple[int, ...], dtype: type) -> Array:
    return rng.integers(-1, 2, shape).astype(dtype)


def _tiny(rng: Generator, shape: tuple[int, ...], dtype: type) -> Array:
    """Draw zeros of both signs and subnormals."""
    smallest = np.finfo(dtype).smallest_subnormal
    values: Array = np.copysign(smallest * _ties(rng, shape, dtype), _real(rng, shape, dtype))
    return values


def _special(rng: Generator, shape: tuple[int, ...], dtype: type) -> Array:
    """Draw real numbers among NaN, infinities of both signs and negative zeros."""
    values = _real(rng, shape, dtype)
    specials: Array = np.array([math.nan, math.inf, -math.inf, -0.0], dtype)
    return np.where(rng.random(shape) < rng.random(), rng.choice(specials, shape), values)


def _mostly_minus_inf(rng: Generator, shape: tuple[int, ...], dtype: type) -> Array:
    values = _real(rng, shape, dtype)
    values[rng.random(shape) < 0.9] = -math.inf
    return values


_ODD_LAYOUTS = sorted(set(LAYOUTS) - {"contiguous", "channels_last"})


def _array(
    rng: Generator, shape: tuple[int, ...], dtype: type, values: Callable[..., Array]
) -> Array:
    """Draw an array: a third each contiguous, channels-last and of an odd layout."""
    kind = _pick(rng, ["contiguous", "channels_last", _pick(rng, _ODD_LAYOUTS)])
    if kind == "broadcast" and shape:
        axis = int(rng.integers(len(shape)))
        once = values(rng, (*shape[:axis], 1, *shape[axis + 1 :]), dtype)
        return random_layout(rng, np.broadcast_to(once, shape), kind)
    return random_layout(rng, values(rng, shape, dtype), kind)


# Numbers


def _length(rng: Generator) -> int:
    """Draw a number of channels: about the vector lengths, sometimes many."""
    return int(rng.integers(64, 101) if rng.random() < 0.15 else rng.integers(1, 34))


def _batch(rng: Generator) -> tuple[int, ...]:
    """Draw (N,) with N from 0 to 4, or () for one unbatched image."""
    return () if rng.random() < 0.25 else (int(rng.choice([0, 1, 1, 2, 3, 4])),)


def _two(rng: Generator, choices: list[int]) -> _Pair:
    """Draw a pair of numbers, equal ones half of the time."""
    first, second = (int(k) for k in rng.choice(choices, 2))
    return (first, first) if rng.random() < 0.5 else (first, second)


def _form(rng: Generator, numbers: _Pair) -> Any:
    """Spell a pair in one of the forms an argument may have."""
    forms: list[Any] = [numbers, list(numbers), tuple(map(np.int64, numbers))]
    if numbers[0] == numbers[1]:
        forms += [numbers[0], numbers[0], np.int32(numbers[0])]
    return _pick(rng, forms)


def _padding(rng: Generator, forms: list[str], largest: _Pair, extent: _Pair) -> tuple[Any, _Pair]:
    """Draw a padding in one of the `forms`; return it and how much it adds to each axis."""
    form = _pick(rng, forms)
    if form == "same":
        return form, (extent[0] - 1, extent[1] - 1)
    if form == "valid":
        return form, (0, 0)
    top, bottom, left, right = (int(rng.integers(p + 1)) for p in np.repeat(largest, 2))
    if form == "sides":
        sides = _pick(rng, [((top, bottom), (left, right)), [[top, bottom], [left, right]]])
        return sides, (top + bottom, left + right)
    if rng.random() < 0.5:
        top = left = min(top, left)
    return _form(rng, (top, left)), (2 * top, 2 * left)


def _image_size(rng: Generator, smallest: list[int]) -> _Pair:
    """Draw H of at most 12 and W of at most 40, unless that is too small."""
    H, W = int(rng.integers(1, 13)), int(rng.integers(1, 41))
    return max(H, smallest[0]), max(W, smallest[1])


def _pick(rng: Generator, choices: Sequence[_T]) -> _T:
    """Choose one of anything."""
    return choices[int(rng.integers(len(choices)))]


# Faults


def _value_error(**changes: Any) -> Fault:
    return Fault(ValueError, changes)


def _type_error(**changes: Any) -> Fault:
    return Fault(TypeError, changes)


def _resized(name: str, axis: int, length: Callable[[Array], int]) -> Callable[[Arguments], Array]:
    """Return a change of an array: one axis takes another length."""

    def change(given: Arguments) -> Array:
        shape = list(given[name].shape)
        shape[axis] = length(given[name])
        return np.zeros(shape, given[name].dtype)

    return change


def _overlong(axis: int) -> Callable[[Arguments], Array]:
    """Return a change of the weight: its window is one element larger than the image."""

    def change(given: Arguments) -> Array:
        kernel = [1, 1]
        kernel[axis] = given["input"].shape[axis] + 1
        return np.zeros((*given["weight"].shape[:2], *kernel), given["weight"].dtype)

    return change


def _cast(name: str, dtype: type) -> Callable[[Arguments], Array]:
    """Return a change of an array's dtype."""
    return lambda a: np.nan_to_num(a[name]).astype(dtype)


def _other_float(name: str) -> Callable[[Arguments], Array]:
    """Return a change from float32 to float64 and back."""
    return lambda a: a[name].astype(np.float32 if a[name].dtype == np.float64 else np.float64)


_IMAGE_FAULTS = {
    "no input": _type_error(input=None),
    "two axes": _value_error(input=lambda a: a["input"].reshape(-1, a["input"].shape[-1])),
    "five axes": _value_error(
        input=lambda a: a["input"].reshape(-1, 1, *a["input"].shape[-3:])[None]
    ),
    "no channels": _value_error(input=_resized("input", -3, lambda x: 0)),
    "no rows": _value_error(input=_resized("input", -2, lambda x: 0), padding=0),
    "no columns": _value_error(input=_resized("input", -1, lambda x: 0), padding=0),
    "stride 0": _value_error(stride=0),
    "stride -1": _value_error(stride=(1, -1)),
    "stride 1.5": _type_error(stride=1.5),
    "three strides": _value_error(stride=(1, 1, 1)),
    "padding -1": _value_error(padding=-1),
    "padding of columns -1": _value_error(padding=(0, -1)),
    "padding 0.5": _type_error(padding=0.5),
    "dilation 0": _value_error(dilation=0),
    "dilation -1": _value_error(dilation=(-1, 1)),
}
_CONV2D_FAULTS = _IMAGE_FAULTS | {
    "twice the channels": _value_error(input=_resized("input", -3, lambda x: 2 * x.shape[-3])),
    "no weight": _type_error(weight=None),
    "weight of three axes": _value_error(weight=lambda a: a["weight"][0]),
    "window too high": _value_error(weight=_overlong(-2), padding=0),
    "window too wide": _value_error(weight=_overlong(-1), padding=0),
    "empty kernel": _value_error(weight=_resized("weight", 2, lambda w: 0)),
    "no output channels": _value_error(weight=_resized("weight", 0, lambda w: 0)),
    "groups 0": _value_error(groups=0),
    "groups -1": _value_error(groups=-1),
    "groups not a divisor": _value_error(groups=lambda a: a["input"].shape[-3] + 1),
    "groups 1.5": _type_error(groups=1.5),
    "bias too long": _value_error(
        bias=lambda a: np.zeros(a["weight"].shape[0] + 1, a["weight"].dtype)
    ),
    "bias of two axes": _value_error(
        bias=lambda a: np.zeros((1, a["weight"].shape[0]), a["weight"].dtype)
    ),
    "float16 input": _type_error(input=_cast("input", np.float16)),
    "integer input": _type_error(input=_cast("input", np.int64)),
    "weight of the other float": _type_error(weight=_other_float("weight")),
    "same with stride 2": _value_error(padding="same", stride=2),
    "unknown padding": _value_error(padding="full"),
    "unknown activation": _value_error(activation="swish"),
}
_MAX_POOL2D_FAULTS = _IMAGE_FAULTS | {
    "bool input": _type_error(input=_cast("input", np.bool_)),
    "kernel 0": _value_error(kernel_size=0),
    "kernel -1": _value_error(kernel_size=(2, -1)),
    "kernel 1.5": _type_error(kernel_size=1.5),
    "three kernel sizes": _value_error(kernel_size=(2, 2, 2)),
    "window too high": _value_error(
        kernel_size=lambda a: (a["input"].shape[-2] + 1, 1), stride=1, padding=0, dilation=1
    ),
    "window too wide": _value_error(
        kernel_size=lambda a: (1, a["input"].shape[-1] + 1), stride=1, padding=0, dilation=1
    ),
    "padding same": _type_error(padding="same"),
    "padding of four sides": _type_error(padding=((0, 0), (0, 0))),
    "padding more than half": _value_error(
        padding=lambda a: max(_both(a["kernel_size"])) // 2 + 1, dilation=1
    ),
}
_LINEAR_FAULTS = {
    "no input": _type_error(input=None),
    "no weight": _type_error(weight=None),
    "scalar input": _value_error(input=lambda a: a["input"].ravel()[:1].reshape(())),
    "twice the features": _value_error(input=_resized("input", -1, lambda x: 2 * x.shape[-1])),
    "weight of three axes": _value_error(weight=lambda a: np.atleast_2d(a["weight"])[None]),
    "bias too long": _value_error(
        weight=lambda a: np.zeros((2, a["input"].shape[-1]), a["input"].dtype),
        bias=lambda a: np.zeros(3, a["input"].dtype),
    ),
    "weight of the other float": _type_error(weight=_other_float("weight")),
    "integer input": _type_error(input=_cast("input", np.int64)),
    "float16 input": _type_error(input=_cast("input", np.float16)),
}


# The operators


@_operator(_CONV2D_FAULTS)
def _conv2d(rng: Generator) -> Draw:
    """Draw a convolution; its window may exceed the image, but not the padded image."""
    dtype, values = _pick(rng, [np.float32, np.float64]), _pick(rng, [_integers, _real])
    kernel, dilation = _two(rng, [1, 1, 2, 3, 3, 3, 4, 5, 7, 11]), _two(rng, [1, 1, 1, 2, 3])
    extent = (dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1)
    padding, added = _padding(rng, ["pair", "pair", "sides", "same", "valid"], (4, 4), extent)
    stride = (1, 1) if padding == "same" else _two(rng, [1, 1, 2, 3, 4])
    H, W = _image_size(rng, [e - p for e, p in zip(extent, added, strict=True)])
    groups = _pick(rng, [1, 1, int(rng.integers(2, 5)), 0])
    if groups:
        C, OC = -(-_length(rng) // groups), -(-_length(rng) // groups) * groups
    else:  # depthwise
        C, groups = 1, _length(rng)
        OC = groups * int(rng.integers(1, 4))
    batch = _batch(rng)
    pixels = math.prod((n + p) / s for n, p, s in zip((H, W), added, stride, strict=True))
    if math.prod((*batch, OC, C, *kernel)) * pixels > LARGEST_WORK:
        return _conv2d(rng)
    activation = _pick(rng, [None, None, None, "relu", "relu6", "leaky_relu"])
    given = {
        "input": _array(rng, (*batch, C * groups, H, W), dtype, values),
        "weight": _array(rng, (OC, C, *kernel), dtype, values),
        "bias": _pick(rng, [None, _array(rng, (OC,), dtype, values)]),
        "stride": _form(rng, stride),
        "padding": padding,
        "dilation": _form(rng, dilation),
        "groups": _pick(rng, [groups, np.int64(groups)]),
        "activation": activation,
        "algorithm": _pick(rng, ["auto", "auto", "auto", "direct"]),
    }
    # The slope 0.01 of the leaky one is not a short binary fraction.
    return Draw(given, exact=values is _integers and activation != "leaky_relu")


@_operator(_MAX_POOL2D_FAULTS)
def _max_pool2d(rng: Generator) -> Draw:
    """Draw a max pooling of which every window meets the image: torch has no index otherwise."""
    dtype = _pick(rng, [np.float32, np.float64])
    kernel, dilation = _two(rng, [1, 2, 2, 3, 3, 4, 5, 7]), _two(rng, [1, 1, 1, 2, 3])
    extent = (dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1)
    padding, added = _padding(rng, ["pair"], (kernel[0] // 2, kernel[1] // 2), extent)
    stride = None if rng.random() < 0.3 else _two(rng, [1, 1, 2, 3, 4])
    ceil_mode = bool(rng.random() < 0.5)
    values = _pick(rng, [_integers, _real, _ties, _tiny, _special, _special, _mostly_minus_inf])
    # In ceil mode one window may overhang by less than its stride.
    overhang = [s - 1 if ceil_mode else 0 for s in stride or kernel]
    # A window that starts in the padding meets the image if that is not narrower than a step.
    smallest = [
        max(e - p - o, d) for e, p, o, d in zip(extent, added, overhang, dilation, strict=True)
    ]
    given = {
        "input": _array(
            rng, (*_batch(rng), _length(rng), *_image_size(rng, smallest)), dtype, values
        ),
        "kernel_size": _form(rng, kernel),
        "stride": None if stride is None else _form(rng, stride),
        "padding": padding,
        "dilation": _form(rng, dilation),
        "ceil_mode": ceil_mode,
        "return_indices": bool(rng.random() < 0.5),
    }
    return Draw(given, exact=True)


@_operator(_LINEAR_FAULTS)
def _linear(rng: Generator) -> Draw:
    """Draw a linear map of inputs with one to four axes, now and then to a single feature."""
    dtype, values = _pick(rng, [np.float32, np.float64]), _pick(rng, [_integers, _real])
    C, OC = _length(rng), _length(rng)
    outer = [int(n) for n in rng.choice([0, 1, 1, 2, 2, 3, 4, 7], rng.integers(4))]
    given = {
        "input": _array(rng, (*outer, C), dtype, values),
        "weight": _array(rng, (OC, C), dtype, values),
        "bias": _pick(rng, [None, _array(rng, (OC,), dtype, values)]),
    }
    if rng.random() < 0.1:
        given |= {"weight": _array(rng, (C,), dtype, values), "bias": None}
    return Draw(given, exact=values is _integers)
