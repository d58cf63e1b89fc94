"""What is drawn for linear maps, normalisation, losses and activations."""
# N, C, OC are the names of the field.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator

from convkern import functional

from . import draws, faults
from .draws import Array, chance, image_shape, integers, length, pick, real
from .faults import Arguments, Faults, type_error, value_error
from .registry import Arrays, Draw, Values, operator

# Linear maps

_LINEAR = {
    **faults.bad_array("input"),
    **faults.bad_array("weight"),
    "scalar input": value_error(input=lambda a: a["input"].ravel()[:1].reshape(())),
    "twice the features": value_error(input=faults.resized("input", -1, lambda n: 2 * n)),
    "weight of three axes": value_error(weight=lambda a: np.atleast_2d(a["weight"])[None]),
    "weight of the other float": type_error(weight=faults.other_float("weight")),
}


def _mapping(rng: Generator, *kinds: Values) -> tuple[Arguments, Arrays]:
    """Draw the input, of one to four axes, and the weight of a linear map."""
    C, OC, arrays = length(rng), length(rng), Arrays(rng, *kinds)
    outer = [int(n) for n in rng.choice([0, 1, 1, 2, 2, 3, 4, 7], rng.integers(4))]
    return {"input": arrays(*outer, C), "weight": arrays.tame(OC, C)}, arrays


@operator(
    {
        **_LINEAR,
        "bias too long": value_error(
            bias=lambda a: np.zeros(3, a["input"].dtype),
            weight=lambda a: np.zeros((2, a["input"].shape[-1]), a["input"].dtype),
        ),
        "bias of the other float": type_error(
            bias=lambda a: faults.other_float("weight")(a)[..., 0]
        ),
    },
    torch_accepts=("bias of the other float",),
)
def _linear(rng: Generator) -> Draw:
    """Draw a linear map, now and then to a single feature."""
    given, arrays = _mapping(rng, integers, integers, real, real, draws.special)
    given["bias"] = arrays.maybe(len(given["weight"]))
    if chance(rng, 0.1):
        given |= {"weight": arrays.tame(given["input"].shape[-1]), "bias": None}
    return Draw(given, exact=arrays.are_integers)


@operator(
    {
        **_LINEAR,
        **faults.bad_backward(),
        **faults.bad_array("grad_output"),
        "weight of one axis": value_error(weight=lambda a: a["weight"][0])._replace(
            says=r"grad_output must be .-D, got .-D"  # that of a single feature
        ),
        "a feature too many": value_error(grad_output=faults.longer("grad_output", -1)),
        "a row or feature too many": value_error(grad_output=faults.longer("grad_output", 0)),
        "an empty gradient": value_error(grad_output=faults.empty("grad_output", -1)),
        "an axis too many": value_error(grad_output=lambda a: a["grad_output"][None]),
    },
    torch_accepts=("gradient of the other float", "no grad_output"),
)
def _linear_backward(rng: Generator) -> Draw:
    given, arrays = _mapping(rng, integers, real)
    shape = (*given["input"].shape[:-1], len(given["weight"]))
    given |= {"grad_output": arrays(*shape), "output_mask": draws.mask(rng)}
    return Draw(given, exact=arrays.are_integers)


@operator(
    {
        "no input": type_error(input=None),
        "input is a list": type_error(input=[[0.5]]),
        "start_dim 9": value_error(start_dim=9),
        "start_dim -9": value_error(start_dim=-9),
        "start_dim 0.5": type_error(start_dim=0.5),
        "start_dim of text": type_error(start_dim="1"),
    }
)
def _flatten(rng: Generator) -> Draw:
    x = Arrays(rng, real, draws.special)(*_any_shape(rng, least=1))
    return Draw({"input": x, "start_dim": _axis(rng, x)}, exact=True)


def _any_shape(rng: Generator, least: int = 0) -> tuple[int, ...]:
    """Draw a shape of `least` to five axes, some of which may be empty."""
    sizes = rng.choice([0, 1, 2, 3, 4, 7, 9], rng.integers(least, 6), p=[0.02, *[0.98 / 6] * 6])
    return tuple(int(n) for n in sizes)


# Normalisation

_STATISTICS = ("weight", "bias", "running_mean", "running_var")


def _bad_statistics(*names: str) -> Faults:
    """Return faults of a batch normalisation with these numbers of every channel."""
    vectors = [faults.bad_vector(name, "input", lambda a: a["input"].shape[1]) for name in names]
    return {
        **faults.bad_array("input"),
        **{label: fault for vector in vectors for label, fault in vector.items()},
        **faults.bad_number("eps"),
        "eps -1": value_error(eps=-1.0),
        "input of one axis": value_error(input=lambda a: a["input"].ravel()),
        "no mean": value_error(running_mean=None, training=False),
        "no variance": value_error(running_var=None, training=False),
    }


@operator(
    {
        **_bad_statistics(*_STATISTICS),
        "eps 0": value_error(eps=0, training=True),
        "one value of a channel": value_error(
            input=lambda a: np.zeros((1, a["input"].shape[1]), a["input"].dtype), training=True
        )._replace(says="input must have more than one value per channel in training, got one of"),
        "momentum of text": type_error(
            momentum="0.5",
            input=lambda a: np.zeros((3, a["input"].shape[1]), a["input"].dtype),
            training=True,
        ),
    },
    torch_accepts=("weight of two axes", "bias of two axes"),
)
def _batch_norm(rng: Generator) -> Draw:
    given, arrays = _normalisation(rng, integers, real, draws.special)
    given |= {
        "bias": arrays.maybe(given["input"].shape[1]),
        "momentum": pick(rng, [0.1, 0.0, 1.0, np.float64(0.3)]),
    }
    return Draw(given, exact=False)


def _normalisation(rng: Generator, *kinds: Values) -> tuple[Arguments, Arrays]:
    """Draw a batch normalisation, in training of at least two values of a channel."""
    training, tracked = chance(rng), chance(rng, 0.8)
    arrays, C = Arrays(rng, *kinds), length(rng)
    N = int(rng.integers(2 if training else 0, 5))
    x = arrays(N, C, *(int(n) for n in rng.integers(1, 8, rng.integers(4))))
    # What is written to cannot be read-only.
    layouts = ["contiguous", "negative", "gaps", "unaligned"]
    mean, var = (
        draws.random_layout(rng, real(rng, (C,), arrays.dtype), pick(rng, layouts))
        for _ in range(2)
    )
    np.abs(var, out=var)
    given = {
        "input": x,
        "running_mean": mean if tracked or not training else None,
        "running_var": var if tracked or not training else None,
        "weight": arrays.maybe(C),
        "training": training,
        "eps": pick(rng, [1e-5, 1e-5, 0.1, np.float64(1e-3)]),
    }
    return given, arrays


@operator(
    {
        **_bad_statistics("weight"),
        **faults.bad_backward(),
        **faults.bad_array("grad_output"),
        "an axis too many": value_error(grad_output=lambda a: a["grad_output"][None]),
        "a channel too many": value_error(grad_output=faults.longer("grad_output", 1)),
        "a sample too many": value_error(grad_output=faults.longer("grad_output", 0)),
    },
    torch_accepts=("gradient of the other float", "no grad_output", "weight of two axes"),
)
def _batch_norm_backward(rng: Generator) -> Draw:
    given, arrays = _normalisation(rng, integers, real)
    given |= {"grad_output": arrays(*given["input"].shape), "output_mask": draws.mask(rng)}
    return Draw(given, exact=False)


_LOCAL_RESPONSE = {
    **faults.bad_array("input"),
    **faults.bad_number("alpha"),
    **faults.bad_number("beta"),
    **faults.bad_number("k"),
    "input of two axes": value_error(input=lambda a: a["input"].reshape(-1, 1)),
    "size 0": value_error(size=0),
    "size -1": value_error(size=-1),
    "size 1.5": type_error(size=1.5),
}


@operator(_LOCAL_RESPONSE)
def _local_response_norm(rng: Generator) -> Draw:
    given, _ = _local_response(rng)
    return Draw(given, exact=False)


@operator(
    {**_LOCAL_RESPONSE, **faults.bad_gradient()},
    torch_accepts=("no grad_output",),
)
def _local_response_norm_backward(rng: Generator) -> Draw:
    given, arrays = _local_response(rng)
    return Draw(given | {"grad_output": arrays(*given["input"].shape)}, exact=False)


def _local_response(rng: Generator) -> tuple[Arguments, Arrays]:
    """Draw a local response normalisation whose base is positive."""
    size, arrays = int(rng.integers(1, 10)), Arrays(rng, integers, real)
    given = {
        "input": arrays(*image_shape(rng)),
        "size": pick(rng, [size, np.int64(size)]),
        "alpha": pick(rng, [1e-4, 1.0, 0, np.float64(0.3)]),
        "beta": pick(rng, [0.75, 0.75, 0.5, 1, 2.0, 0.3]),
        "k": pick(rng, [1.0, 2, 0.5]),
    }
    return given, arrays


# Losses


def _positions(x: Array) -> tuple[int, ...]:
    """Return the shape of a target that names one class for each position of the input."""
    return x.shape[:1] + x.shape[2:] if x.ndim > 1 else ()


def _classes(given: Arguments) -> int:
    """Return the number of classes that a loss is about."""
    classes: int = given["input"].shape[min(1, given["input"].ndim - 1)]
    return classes


def _no_class(beyond: int) -> faults.Fault:
    """Return the fault of a target that is everywhere so much beyond the last class."""
    return value_error(
        target=lambda a: np.full(_positions(a["input"]), _classes(a) + beyond), ignore_index=-100
    )


_CROSS_ENTROPY = {
    **faults.bad_array("input"),
    **faults.bad_type("target", lambda a: np.zeros(_positions(a["input"]))),
    "no target": type_error(target=None),
    **faults.bad_vector("weight", "input", _classes),
    **faults.bad_number("label_smoothing"),
    "scalar input": value_error(input=lambda a: a["input"].ravel()[:1].reshape(())),
    "class C": _no_class(0),
    "class -1000": _no_class(-1000),
    "class beyond 32 bits": _no_class(2**32),
    "two axes too many": value_error(target=lambda a: a["target"][..., None, None]),
    "a position too many": value_error(
        target=np.zeros((2, 5), np.int64),
        input=lambda a: np.zeros((2, 3, 4), a["input"].dtype),
        weight=None,
    ),
    "unknown reduction": value_error(reduction="all"),
    "smoothing 1.5": value_error(label_smoothing=1.5),
    "smoothing -0.1": value_error(label_smoothing=-0.1),
}
_LENIENT = ("weight of the other float", "weight of two axes", "smoothing -0.1")


@operator(_CROSS_ENTROPY, torch_accepts=_LENIENT)
def _cross_entropy(rng: Generator) -> Draw:
    return Draw(_loss(rng), exact=False)


@operator(
    {
        **_CROSS_ENTROPY,
        "no gradient": type_error(grad_output=None),
        "gradient of text": type_error(grad_output="1"),
        "gradient of two axes too many": value_error(
            grad_output=lambda a: np.ones((*_positions(a["input"]), 1, 1), a["input"].dtype)
        ),
    },
    torch_accepts=(*_LENIENT, "no gradient"),
)
def _cross_entropy_backward(rng: Generator) -> Draw:
    given = _loss(rng)
    x = given["input"]
    shape = _positions(x) if given["reduction"] == "none" else ()
    grad_output = draws.random_array(rng, shape, x.dtype.type, real)
    number = given["reduction"] != "none" and chance(rng)
    given["grad_output"] = float(grad_output) if number else grad_output
    return Draw(given, exact=False)


def _loss(rng: Generator) -> Arguments:
    """Draw a loss over one to four axes, some targets of which are ignored."""
    arrays, C = Arrays(rng, integers, real), int(rng.integers(1, 12))
    sizes = [int(n) for n in rng.integers(1, 6, rng.integers(3))]
    x = arrays(C) if chance(rng, 0.15) else arrays(int(rng.integers(6)), C, *sizes)
    given: Arguments = {
        "input": x,
        "weight": np.maximum(0, 1 + real(rng, (C,), arrays.dtype)) if chance(rng) else None,
        "reduction": pick(rng, ["mean", "mean", "sum", "none"]),
        "label_smoothing": pick(rng, [0.0, 0.0, 0.1, 1, np.float64(0.3)]),
    }
    if chance(rng, 0.4):
        given["target"] = draws.random_array(rng, x.shape, arrays.dtype, draws.shares)
        return given
    ignored = int(pick(rng, [-100, -1, rng.integers(C), 255]))
    target = rng.integers(0, C, _positions(x))
    target = np.where(rng.random(target.shape) < 0.2, ignored, target)
    kinds = list(draws.LAYOUTS) if target.ndim else ["contiguous"]
    given["target"] = draws.random_layout(rng, target, pick(rng, kinds))
    given["ignore_index"] = ignored
    return given


# Activations

_ELEMENTS = faults.bad_array("input")
_SLOPE = faults.bad_number("negative_slope")


def _element_gradient(other: str) -> Faults:
    """Return faults of a gradient of the shape of the array `other`."""
    return {
        **faults.bad_array("grad_output"),
        **faults.bad_array(other),
        "gradient of the other float": type_error(grad_output=faults.other_float("grad_output")),
        "a gradient of another shape": value_error(grad_output=lambda a: _with_axis(a[other], 2)),
        "a gradient of an axis more": value_error(grad_output=lambda a: _with_axis(a[other], 1)),
    }


def _with_axis(x: Array, size: int) -> Array:
    """Return zeros of the shape of `x` with one more axis."""
    return np.zeros((*x.shape, size), x.dtype)


#: What torch makes of a gradient by broadcasting and promotion.
_PROMOTED = ("gradient of the other float", "a gradient of an", "no grad_output")


@operator(_ELEMENTS)
def _relu(rng: Generator) -> Draw:
    return Draw({"input": Arrays(rng, real, draws.special)(*_any_shape(rng))}, exact=True)


@operator(_element_gradient("output"), torch_accepts=_PROMOTED)
def _relu_backward(rng: Generator) -> Draw:
    given, _ = _output_and_gradient(rng, functional.relu, real, draws.special)
    return Draw(given, exact=True)


def _output_and_gradient(
    rng: Generator, function: Callable[[Array], Array], *kinds: Values
) -> tuple[Arguments, Arrays]:
    """Draw the output of a function of one array, and a gradient of that."""
    arrays = Arrays(rng, *kinds)
    x = arrays(*_any_shape(rng))
    output = draws.random_layout(rng, function(x), pick(rng, list(draws.LAYOUTS)))
    return {"grad_output": arrays(*x.shape), "output": output}, arrays


def _sloped(rng: Generator) -> tuple[Arguments, Arrays]:
    """Draw an input and a slope for the negative numbers."""
    arrays = Arrays(rng, integers, real, draws.special)
    slope = pick(rng, [0.01, 0.01, 0, 0.25, 1, np.float64(0.3), -0.5])
    return {"input": arrays(*_any_shape(rng)), "negative_slope": slope}, arrays


@operator({**_ELEMENTS, **_SLOPE})
def _leaky_relu(rng: Generator) -> Draw:
    given, _ = _sloped(rng)
    return Draw(given, exact=False)


@operator({**_element_gradient("input"), **_SLOPE}, torch_accepts=_PROMOTED)
def _leaky_relu_backward(rng: Generator) -> Draw:
    given, arrays = _sloped(rng)
    return Draw(given | {"grad_output": arrays(*given["input"].shape)}, exact=False)


_PRELU = {
    "no weight": type_error(weight=None),
    "weight of the other float": type_error(weight=faults.other_float("weight")),
    "weight of two axes": value_error(weight=lambda a: np.zeros((1, 1), a["weight"].dtype)),
    "weight too long": value_error(weight=lambda a: np.zeros(11, a["weight"].dtype)),
}


def _prelu_arguments(rng: Generator, *kinds: Values) -> tuple[Arguments, Arrays]:
    """Draw an input and the slopes of all its channels, or of each."""
    arrays = Arrays(rng, *kinds)
    shape = _any_shape(rng)
    shapes = [(), (1,), shape[1:2] if len(shape) > 1 and shape[1] else (1,)]
    return {"input": arrays(*shape), "weight": arrays.tame(*pick(rng, shapes))}, arrays


@operator({**_ELEMENTS, **_PRELU}, torch_accepts=("weight of the other float",))
def _prelu(rng: Generator) -> Draw:
    given, _ = _prelu_arguments(rng, integers, real, draws.special)
    return Draw(given, exact=False)


@operator(
    {**_element_gradient("input"), **_PRELU},
    torch_accepts=("weight of the other float", *_PROMOTED),
)
def _prelu_backward(rng: Generator) -> Draw:
    given, arrays = _prelu_arguments(rng, integers, real)
    return Draw(given | {"grad_output": arrays(*given["input"].shape)}, exact=False)


@operator(_ELEMENTS)
def _sigmoid(rng: Generator) -> Draw:
    kinds = [integers, real, draws.special, draws.tiny]
    return Draw({"input": Arrays(rng, *kinds)(*_any_shape(rng))}, exact=False)


@operator(_element_gradient("output"), torch_accepts=_PROMOTED)
def _sigmoid_backward(rng: Generator) -> Draw:
    given, _ = _output_and_gradient(rng, functional.sigmoid, integers, real)
    return Draw(given, exact=False)


_AXIS = {
    "axis 9": value_error(axis=9),
    "axis -9": value_error(axis=-9),
    "axis 0.5": type_error(axis=0.5),
    "axis of text": type_error(axis="1"),
}


def _axis(rng: Generator, x: Array) -> Any:
    """Draw an axis of an array in one of its forms, often the default."""
    axis = int(rng.integers(-x.ndim, x.ndim))
    return 1 if x.ndim > 1 and chance(rng) else pick(rng, [axis, np.int64(axis)])


@operator({**_ELEMENTS, **_AXIS})
def _softmax(rng: Generator) -> Draw:
    x = Arrays(rng, integers, real, draws.special)(*_any_shape(rng, least=1))
    return Draw({"input": x, "axis": _axis(rng, x)}, exact=False)


@operator({**_element_gradient("output"), **_AXIS}, torch_accepts=_PROMOTED)
def _softmax_backward(rng: Generator) -> Draw:
    arrays = Arrays(rng, integers, real)
    x = arrays(*_any_shape(rng, least=1))
    axis = _axis(rng, x)
    output = draws.random_layout(rng, functional.softmax(x, axis), pick(rng, list(draws.LAYOUTS)))
    return Draw({"grad_output": arrays(*x.shape), "output": output, "axis": axis}, exact=False)
