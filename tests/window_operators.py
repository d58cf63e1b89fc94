"""What is drawn for the operators that slide windows over images."""
# N, C, H, W, OC are the names of the field.

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator

from convkern import functional

from . import draws, faults
from .draws import Array, Pair, chance, form, image_shape, integers, length, pick, real, two
from .faults import Arguments, Faults, type_error, value_error
from .registry import Arrays, Draw, Values, operator

#: Multiplications in a convolution, and elements of columns: more would only be slower.
LARGEST_WORK = 200_000


# Convolutions


class _Sliding(NamedTuple):
    """A window that slides over an image."""

    kernel: Pair
    stride: Pair
    extent: Pair
    #: How much the padding adds to each axis.
    added: Pair
    #: Stride, padding and dilation as they are passed.
    arguments: Arguments

    @classmethod
    def draw(cls, rng: Generator, *paddings: str) -> _Sliding:
        kernel, dilation = two(rng, [1, 1, 2, 3, 3, 3, 4, 5, 7, 11]), two(rng, [1, 1, 1, 2, 3])
        extent = dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1
        padding, added = draws.padding(rng, list(paddings), (4, 4), extent)
        stride = (1, 1) if padding == "same" else two(rng, [1, 1, 2, 3, 4])
        given = {"stride": form(rng, stride), "padding": padding, "dilation": form(rng, dilation)}
        return cls(kernel, stride, extent, added, given)

    @property
    def smallest(self) -> list[int]:
        """The smallest image that has room for the window."""
        return [max(1, e - a) for e, a in zip(self.extent, self.added, strict=True)]

    def count(self, size: tuple[int, ...]) -> float:
        """Return about how many windows there are over (H, W)."""
        axes = zip(size, self.added, self.stride, strict=True)
        return math.prod((n + a) / s for n, a, s in axes)


def _group_sizes(rng: Generator) -> tuple[int, int, int]:
    """Draw the number of groups, input channels of one group and output channels of all."""
    groups = pick(rng, [1, 1, int(rng.integers(2, 5)), 0])
    if groups:
        return groups, -(-length(rng) // groups), -(-length(rng) // groups) * groups
    groups = length(rng)  # depthwise
    return groups, 1, groups * int(rng.integers(1, 4))


def _convolution(rng: Generator, *kinds: Values) -> tuple[Arguments, Arrays]:
    """Draw a convolution; its window may exceed the image, but not the padded image."""
    slide = _Sliding.draw(rng, "pair", "pair", "sides", "same", "valid")
    groups, C, OC = _group_sizes(rng)
    shape = image_shape(rng, slide.smallest, C * groups)
    if math.prod((*shape[:-3], OC, C, *slide.kernel)) * slide.count(shape[-2:]) > LARGEST_WORK:
        return _convolution(rng, *kinds)
    arrays = Arrays(rng, *kinds)
    given = {
        "input": arrays(*shape),
        "weight": arrays.tame(OC, C, *slide.kernel),
        **slide.arguments,
        "groups": pick(rng, [groups, np.int64(groups)]),
    }
    return given, arrays


_GROUPS = {
    "groups 0": value_error(groups=0),
    "groups -1": value_error(groups=-1),
    "groups not a divisor": value_error(groups=lambda a: a["weight"].shape[0] + 1),
    "groups 1.5": type_error(groups=1.5),
    **faults.bad_integer("groups"),
}


def winograd_window(given: Arguments) -> bool:
    """Tell whether Winograd's algorithm may compute a convolution."""
    stride, dilation = _both(given.get("stride", 1)), _both(given.get("dilation", 1))
    weight = given["weight"]
    fits = weight.dtype == np.float32 and weight.shape[-2:] in {(3, 3), (4, 4), (5, 5)}
    return fits and stride == dilation == [1, 1]


def _algorithm(rng: Generator, given: Arguments) -> str:
    """Draw the name of an algorithm that can compute a convolution at every precision."""
    able = winograd_window(given) and given["weight"].shape[-1] == 3
    return pick(rng, ["auto", "auto", "direct", "winograd" if able else "auto"])


def _convolved(given: Arguments) -> tuple[int, ...]:
    """Return the shape of a convolution's output."""
    x, w = given["input"], given["weight"]
    window = {name: given[name] for name in ("stride", "padding", "dilation")}
    size = functional.conv_output_size(x.shape[-2:], w.shape[-2:], **window)
    return (*x.shape[:-3], len(w), *size)


def _overlong(axis: int) -> faults.Change:
    """Return a change of the weight: its window is one element larger than the image."""

    def change(given: Arguments) -> Array:
        kernel = [1, 1]
        kernel[axis] = given["input"].shape[axis] + 1
        return np.zeros((*given["weight"].shape[:2], *kernel), given["weight"].dtype)

    return change


_CONVOLUTION = {
    **faults.bad_images(),
    **faults.empty_images(padding=0),
    **faults.bad_array("weight"),
    **faults.bad_pair("stride", 1),
    **faults.bad_pair("padding", 0),
    **faults.bad_pair("dilation", 1),
    **_GROUPS,
    "twice the channels": value_error(input=faults.resized("input", -3, lambda C: 2 * C)),
    "weight of three axes": value_error(weight=lambda a: a["weight"][0]),
    "window too high": value_error(weight=_overlong(-2), padding=0),
    "window too wide": value_error(weight=_overlong(-1), padding=0),
    "empty kernel": value_error(weight=faults.empty("weight", 2)),
    "no output channels": value_error(weight=faults.empty("weight", 0)),
    "weight of the other float": type_error(weight=faults.other_float("weight")),
    "same with stride 2": value_error(padding="same", stride=2),
    "unknown padding": value_error(padding="full"),
}


@operator(
    {
        **_CONVOLUTION,
        **faults.bad_vector("bias", "weight", lambda a: len(a["weight"])),
        **faults.bad_out(lambda a: _convolved(a)),
        "unknown activation": value_error(activation="swish"),
        "unknown algorithm": value_error(algorithm="fast"),
        "Winograd's of stride 3": value_error(
            algorithm="winograd", stride=3, padding=0, out=None
        )._replace(says=r'^algorithm="winograd" .* window of stride 2, got \d+x\d+ of others'),
    },
    torch_accepts=("bias of the other float", "unknown algorithm", "Winograd's of stride 3"),
)
def _conv2d(rng: Generator) -> Draw:
    given, arrays = _convolution(rng, integers, integers, real, real, draws.special)
    activation = pick(rng, [None, None, None, "relu", "relu6", "leaky_relu"])
    given |= {
        "bias": arrays.maybe(len(given["weight"])),
        "activation": activation,
        "algorithm": _algorithm(rng, given),
    }
    if arrays.values is draws.special and winograd_window(given):
        # There, a number that is not finite reaches the whole of its tile.
        given["algorithm"] = "direct"
    if chance(rng, 0.2):
        kinds = sorted(set(draws.LAYOUTS) - {"broadcast", "read_only"})
        out = np.full(_convolved(given), np.nan, arrays.dtype)
        given["out"] = draws.random_layout(rng, out, pick(rng, kinds))
    # The slope 0.01 of the leaky one is not a short binary fraction.
    return Draw(given, exact=arrays.are_integers and activation != "leaky_relu")


@operator(
    {**_CONVOLUTION, **faults.bad_gradient(), **faults.bad_backward()},
    torch_accepts=("gradient of the other float", "no grad_output"),
)
def _conv2d_backward(rng: Generator) -> Draw:
    given, arrays = _convolution(rng, integers, real)
    given |= {
        "grad_output": arrays(*_convolved(given)),
        "output_mask": draws.mask(rng),
        "algorithm": _algorithm(rng, given),
    }
    return Draw(given, exact=arrays.are_integers)


_TRANSPOSED = {
    **faults.bad_images(),
    **faults.empty_images(padding=0),
    **faults.bad_array("weight"),
    **faults.bad_pair("stride", 1),
    **faults.bad_pair("padding", 0),
    **faults.bad_pair("output_padding", 0),
    **faults.bad_pair("dilation", 1),
    **_GROUPS,
    "a channel of the input too many": value_error(input=faults.longer("input", -3)),
    "weight of three axes": value_error(weight=lambda a: a["weight"][0]),
    "empty kernel": value_error(weight=faults.empty("weight", 2)),
    "no output channels": value_error(weight=faults.empty("weight", 1)),
    "weight of the other float": type_error(weight=faults.other_float("weight")),
    "padding same": type_error(padding="same"),
    "nothing left": value_error(
        padding=lambda a: a["input"].shape[-2] + 3 * max(a["weight"].shape[2:]),
        stride=1,
        output_padding=0,
    ),
    "output padding of a stride": value_error(stride=2, dilation=1, output_padding=(0, 2)),
}


def _transposed(rng: Generator) -> tuple[Arguments, Arrays]:
    """Draw a transposed convolution of which at least one pixel is left."""
    slide = _Sliding.draw(rng, "pair", "pair", "sides")
    groups, C, OC = _group_sizes(rng)
    steps = slide.stride, _both(slide.arguments["dilation"])
    extra = [int(rng.integers(max(step))) for step in zip(*steps, strict=True)]
    axes = zip(slide.added, slide.extent, extra, slide.stride, strict=True)
    shape = image_shape(rng, [max(1, 1 - (e + x - a - 1) // s) for a, e, x, s in axes], OC)
    if math.prod((*shape, C, *slide.kernel)) > LARGEST_WORK:
        return _transposed(rng)
    arrays = Arrays(rng, integers, real)
    given = {
        "input": arrays(*shape),
        "weight": arrays(OC, C, *slide.kernel),
        **slide.arguments,
        "output_padding": form(rng, (extra[0], extra[1])),
        "groups": pick(rng, [groups, np.int64(groups)]),
    }
    return given, arrays


@operator(
    {
        **_TRANSPOSED,
        **faults.bad_vector("bias", "weight", lambda a: a["weight"].shape[1] * int(a["groups"])),
    },
    torch_accepts=("bias of the other float", "dilation 0", "second dilation 0"),
)
def _conv_transpose2d(rng: Generator) -> Draw:
    given, arrays = _transposed(rng)
    given["bias"] = arrays.maybe(given["weight"].shape[1] * int(given["groups"]))
    return Draw(given, exact=arrays.are_integers)


@operator(
    {**_TRANSPOSED, **faults.bad_gradient(), **faults.bad_backward()},
    torch_accepts=(
        "gradient of the other float",
        "no grad_output",
        "dilation 0",
        "second dilation 0",
    ),
)
def _conv_transpose2d_backward(rng: Generator) -> Draw:
    given, arrays = _transposed(rng)
    empty = np.zeros((0, *given["input"].shape[-3:]), arrays.dtype)
    shape = functional.conv_transpose2d(**given | {"input": empty}).shape[1:]
    given |= {
        "grad_output": arrays(*given["input"].shape[:-3], *shape),
        "output_mask": draws.mask(rng),
    }
    return Draw(given, exact=arrays.are_integers)


def _both(value: Any) -> list[int]:
    """Return an int or a pair as two ints."""
    return [int(v) for v in value] if hasattr(value, "__len__") else [int(value)] * 2


_WINDOW = {
    **faults.bad_pair("kernel_size", 1),
    **faults.bad_pair("stride", 1),
    **faults.bad_pair("padding", 0),
    **faults.bad_pair("dilation", 1),
}
_PADDING = {
    "padding same": type_error(padding="same"),
    "padding of four sides": type_error(padding=((0, 0), (0, 0))),
}


def _too_large(**rest: Any) -> Faults:
    """Return windows larger than `input`; `rest` makes the other arguments harmless."""
    return {
        "window too high": value_error(
            kernel_size=lambda a: (a["input"].shape[-2] + 1, 1), stride=1, **rest
        ),
        "window too wide": value_error(
            kernel_size=lambda a: (1, a["input"].shape[-1] + 1), stride=1, **rest
        ),
    }


@operator(
    {
        **faults.bad_images(),
        **faults.empty_images(padding=0),
        **_WINDOW,
        **_PADDING,
        **_too_large(padding=0, dilation=1),
    }
)
def _im2col(rng: Generator) -> Draw:
    slide = _Sliding.draw(rng, "pair")
    shape = image_shape(rng, slide.smallest)
    if math.prod((*shape[:-2], *slide.kernel)) * slide.count(shape[-2:]) > LARGEST_WORK / 4:
        return _im2col(rng)
    x = Arrays(rng, integers, real, draws.special)(*shape)
    return Draw({"input": x, "kernel_size": form(rng, slide.kernel), **slide.arguments}, exact=True)


@operator(
    {
        **faults.bad_array("input"),
        **_WINDOW,
        **_PADDING,
        **faults.bad_pair("output_size", 1),
        "input of one axis": value_error(input=lambda a: a["input"].reshape(-1)),
        "input of four axes": value_error(input=lambda a: a["input"].reshape(1, -1, 1, 1)),
        "a column too many": value_error(input=faults.longer("input", -1)),
        "no columns": value_error(input=faults.empty("input", -1)),
        "no rows": value_error(input=faults.empty("input", -2)),
        "rows of half a window": value_error(
            input=np.zeros((7, 1)), kernel_size=(2, 1), output_size=(2, 1), padding=0, dilation=1
        ),
    }
)
def _col2im(rng: Generator) -> Draw:
    slide = _Sliding.draw(rng, "pair")
    *outer, C, H, W = image_shape(rng, slide.smallest)
    rows = C * math.prod(slide.kernel)
    if math.prod((*outer, rows)) * slide.count((H, W)) > LARGEST_WORK / 4:
        return _col2im(rng)
    columns = math.prod(functional.conv_output_size((H, W), slide.kernel, **slide.arguments))
    arrays = Arrays(rng, integers, real)
    given = {
        "input": arrays(*outer, rows, columns),
        "output_size": form(rng, (H, W)),
        "kernel_size": form(rng, slide.kernel),
        **slide.arguments,
    }
    return Draw(given, exact=arrays.are_integers)


@operator(
    {
        **_WINDOW,
        "input size of three": value_error(input_size=(9, 9, 9)),
        "input size 9.5": type_error(input_size=9.5),
        "unknown padding": value_error(padding="full", ceil_mode=False),
        "window too large": value_error(
            kernel_size=6, input_size=5, padding=0, dilation=1, ceil_mode=False
        ),
    }
)
def _conv_output_size(rng: Generator) -> Draw:
    """Draw a window of a convolution, or in ceil mode of a pooling: the mode exists for that."""
    ceil_mode = chance(rng)
    if ceil_mode:
        given, smallest = _pooling(rng, dilated=True)
        given["stride"] = given["kernel_size"] if given["stride"] is None else given["stride"]
    else:
        slide = _Sliding.draw(rng, "pair", "pair", "sides", "same", "valid")
        given, smallest = {"kernel_size": form(rng, slide.kernel)} | slide.arguments, slide.smallest
    H, W = (least + int(rng.integers(60)) for least in smallest)
    return Draw(given | {"input_size": form(rng, (H, W)), "ceil_mode": ceil_mode}, exact=True)


# Pooling


def _pooling(
    rng: Generator, dilated: bool = False, padded: bool = True
) -> tuple[Arguments, list[int]]:
    """Draw a pooling and the smallest image of which every window meets a part."""
    kernel = two(rng, [1, 2, 2, 3, 3, 4, 5, 7])
    dilation = two(rng, [1, 1, 1, 2, 3]) if dilated else (1, 1)
    extent = dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1
    largest = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
    padding, added = draws.padding(rng, ["pair"], largest, extent)
    stride = None if chance(rng, 0.3) else two(rng, [1, 1, 2, 3, 4])
    ceil_mode = chance(rng)
    # In ceil mode one window may overhang by less than its stride.
    overhang = [s - 1 if ceil_mode else 0 for s in stride or kernel]
    # A window that starts in the padding meets the image if that is not narrower than a step.
    axes = zip(extent, added, overhang, dilation, strict=True)
    given = {
        "kernel_size": form(rng, kernel),
        "stride": None if stride is None else form(rng, stride),
        "ceil_mode": ceil_mode,
    }
    given |= {"padding": padding} if padded else {}
    given |= {"dilation": form(rng, dilation)} if dilated else {}
    return given, [max(e - a - o, d) for e, a, o, d in axes]


_MORE_THAN_HALF = {
    "padding more than half": value_error(
        padding=lambda a: max(_both(a["kernel_size"])) // 2 + 1, dilation=1
    )
}


@operator(
    {
        **faults.bad_images(),
        **faults.empty_images(padding=0),
        **_WINDOW,
        **_PADDING,
        **_MORE_THAN_HALF,
        **_too_large(padding=0, dilation=1),
    }
)
def _max_pool2d(rng: Generator) -> Draw:
    """Draw a max pooling of which every window meets the image: torch has no index otherwise."""
    given, smallest = _pooling(rng, dilated=True)
    kinds = [draws.ties, draws.tiny, draws.special, draws.special, draws.mostly_minus_inf]
    x = Arrays(rng, integers, real, *kinds)(*image_shape(rng, smallest))
    return Draw(given | {"input": x, "return_indices": chance(rng)}, exact=True)


def _pooled(rng: Generator, given: Arguments, smallest: list[int]) -> tuple[Pair, Array]:
    """Return (H, W) of an image and what max pooling says of it: its indices, or any valid ones."""
    x = Arrays(rng, real, draws.ties, draws.special)(*image_shape(rng, smallest))
    _, indices = functional.max_pool2d(x, **given, return_indices=True)
    if chance(rng, 0.3):
        indices = rng.integers(0, math.prod(x.shape[-2:]), indices.shape)
    return x.shape[-2:], draws.random_layout(rng, indices, pick(rng, list(draws.LAYOUTS)))


@operator(
    {
        **faults.bad_gradient(),
        **faults.bad_indices(lambda a: math.prod(a["input_shape"][-2:])),
        **faults.bad_shape(),
    },
    torch_accepts=("int32 indices",),
)
def _max_pool2d_backward(rng: Generator) -> Draw:
    size, indices = _pooled(rng, *_pooling(rng, dilated=True))
    arrays = Arrays(rng, integers, real, draws.special)
    shape = (*indices.shape[:-2], *size)
    given = {
        "grad_output": arrays(*indices.shape),
        "indices": indices,
        "input_shape": pick(rng, [shape, list(shape), tuple(map(np.int64, shape))]),
    }
    return Draw(given, exact=arrays.are_integers)


def _unpooled_size(given: Arguments) -> list[int]:
    """Return (H, W) of a max unpooling that is not told its output's size."""
    kernel, padding = _both(given["kernel_size"]), _both(given["padding"])
    stride = kernel if given["stride"] is None else _both(given["stride"])
    axes = zip(given["input"].shape[-2:], kernel, stride, padding, strict=True)
    return [(n - 1) * s - 2 * p + k for n, k, s, p in axes]


@operator(
    {
        **faults.bad_images(),
        **faults.bad_indices(lambda a: math.prod((a["output_size"] or _unpooled_size(a))[-2:])),
        **faults.bad_pair("kernel_size", 1),
        **faults.bad_pair("stride", 1),
        **faults.bad_pair("padding", 0),
        "another image or channel": value_error(input=faults.longer("input", 0)),
        "output a stride too high": value_error(
            output_size=lambda a: [_unpooled_size(a)[0] + 9, _unpooled_size(a)[1]]
        ),
        "output of one axis": value_error(output_size=(9,)),
        "output without a size": type_error(output_size=9),
    },
    torch_accepts=("kernel_size", "stride", "padding", "first", "second"),
)
def _max_unpool2d(rng: Generator) -> Draw:
    """Draw an unpooling back to the size of what was pooled."""
    given, smallest = _pooling(rng)
    size, indices = _pooled(rng, given, smallest)
    del given["ceil_mode"]
    given |= {
        "input": Arrays(rng, integers, real, draws.special)(*indices.shape),
        "indices": indices,
    }
    sizes: list[Any] = [size, list(size)]
    sizes += [(*indices.shape[:2], *size)] if indices.ndim == 4 else []
    usual = tuple(_unpooled_size(given)) == size
    given["output_size"] = None if usual and chance(rng) else pick(rng, sizes)
    return Draw(given, exact=True)


_AVERAGE = {
    **faults.bad_pair("kernel_size", 1),
    **faults.bad_pair("stride", 1),
    **faults.bad_pair("padding", 0),
    **_PADDING,
    "padding more than half": value_error(padding=lambda a: max(_both(a["kernel_size"])) // 2 + 1),
    "divisor 0": value_error(divisor_override=0),
    "divisor 1.5": type_error(divisor_override=1.5),
    "divisor of text": type_error(divisor_override="2"),
}


def _averaging(rng: Generator) -> tuple[Arguments, list[int]]:
    """Draw an average pooling and the smallest image for it."""
    given, smallest = _pooling(rng)
    given |= {
        "count_include_pad": chance(rng),
        "divisor_override": pick(rng, [None, None, None, 1, 4, -2, np.int64(3)]),
    }
    return given, smallest


@operator(
    {
        **faults.bad_images(),
        **faults.empty_images(padding=0),
        **_AVERAGE,
        **_too_large(padding=0),
    }
)
def _avg_pool2d(rng: Generator) -> Draw:
    given, smallest = _averaging(rng)
    arrays = Arrays(rng, integers, real, draws.special)
    given["input"] = arrays(*image_shape(rng, smallest))
    return Draw(given, exact=arrays.are_integers)


@operator({**faults.bad_gradient(), **_AVERAGE, **faults.bad_shape(padding=0)})
def _avg_pool2d_backward(rng: Generator) -> Draw:
    given, smallest = _averaging(rng)
    shape = image_shape(rng, smallest)
    window = {k: given[k] for k in ("kernel_size", "stride", "padding", "ceil_mode")}
    if window["stride"] is None:
        window["stride"] = window["kernel_size"]
    arrays = Arrays(rng, integers, real)
    grad_output = arrays(*shape[:-2], *functional.conv_output_size(shape[-2:], **window))
    if arrays.are_integers:
        # Whatever a window of at most 7 x 7 divides by leaves an integer, of which 49 have a sum.
        grad_output = np.sign(grad_output) * grad_output.dtype.type(420**2)
    given |= {"grad_output": grad_output, "input_shape": pick(rng, [shape, list(shape)])}
    return Draw(given, exact=arrays.are_integers)


@operator(
    {
        **faults.bad_images(),
        **faults.empty_images(),
        **faults.bad_pair("kernel_size", 1),
        **faults.bad_pair("stride", 1),
        **_too_large(),
        **faults.bad_number("norm_type"),
        "norm 0": value_error(norm_type=0),
    }
)
def _lp_pool2d(rng: Generator) -> Draw:
    given, exact = _norm_pooling(rng, draws.ties, real, draws.special)
    return Draw(given, exact)


def _norm_pooling(rng: Generator, *kinds: Values) -> tuple[Arguments, bool]:
    """Draw a norm whose sum of powers does not cancel, but of integers and then to the bit."""
    given, smallest = _pooling(rng, padded=False)
    arrays = Arrays(rng, *kinds)
    x = arrays(*image_shape(rng, smallest))
    norm_type = pick(rng, [1, 2, 2.0, 3, np.float64(4.0), 1.5, 0.5, -1.0, math.inf, -math.inf])
    exact = math.isinf(norm_type)
    if arrays.values is not draws.ties and norm_type not in (2, 4) and not exact:
        x = abs(x)
    return given | {"input": x, "norm_type": norm_type}, exact


@operator(
    {
        **faults.bad_images(),
        **faults.bad_gradient(),
        **faults.empty_images(),
        **faults.bad_pair("kernel_size", 1),
        **faults.bad_pair("stride", 1),
        **_too_large(),
        **faults.bad_number("norm_type"),
        "norm 0": value_error(norm_type=0),
        "another output": value_error(output=faults.longer("output", -1)),
        "output of the other float": type_error(output=faults.other_float("output")),
    },
    torch_accepts=("another output", "output of the other float", "gradient of the other float"),
)
def _lp_pool2d_backward(rng: Generator) -> Draw:
    """Draw the gradient of a norm; of windows of zeros it is taken to be zero."""
    given, exact = _norm_pooling(rng, draws.ties, real)
    if given["norm_type"] not in (1, 2, 4, math.inf, -math.inf):
        # A root of a negative number is NaN, and the slope at zero may be infinite or NaN.
        given["input"] = abs(given["input"]) + 1
    given["output"] = functional.lp_pool2d(**given)
    arrays = Arrays(rng, integers, real)
    grad_output = arrays(*given["output"].shape).astype(given["input"].dtype)
    return Draw(given | {"grad_output": grad_output}, exact and arrays.are_integers)


@operator(
    {
        **faults.bad_images(),
        **faults.empty_images(),
        "output 0": value_error(output_size=0),
        "output -1": value_error(output_size=(2, -1)),
        "output 1.5": type_error(output_size=1.5),
        "output of three": value_error(output_size=(1, 1, 1)),
        "output of text": type_error(output_size=("1", "1")),
    },
    # Of two axes it takes those that happen to be a batch or a channel of one size.
    torch_accepts=("output 0", "no channels", "no rows", "no columns", "input of"),
)
def _adaptive_avg_pool2d(rng: Generator) -> Draw:
    OH, OW = two(rng, [1, 1, 2, 3, 5, 7, 9])
    given = {
        "input": Arrays(rng, integers, real, draws.special)(*image_shape(rng)),
        "output_size": pick(rng, [form(rng, (OH, OW)), (None, OW), [OH, None]]),
    }
    return Draw(given, exact=False)


@operator(
    {
        **faults.bad_images("grad_output"),
        **faults.bad_shape(),
        "another image or channel": value_error(grad_output=faults.longer("grad_output", 0)),
        "an empty gradient": value_error(grad_output=faults.empty("grad_output", -1)),
    },
    torch_accepts=("grad_output of", "an empty gradient", "input of no rows"),
)
def _adaptive_avg_pool2d_backward(rng: Generator) -> Draw:
    shape = image_shape(rng)
    given = {
        "grad_output": Arrays(rng, integers, real)(*shape[:-2], *two(rng, [1, 1, 2, 3, 5, 7, 9])),
        "input_shape": pick(rng, [shape, list(shape)]),
    }
    return Draw(given, exact=False)


_CHANNEL_POOLING = {
    **faults.bad_images(),
    **faults.empty_images(),
    "kernel 0": value_error(kernel_size=0),
    "kernel 1.5": type_error(kernel_size=1.5),
    "kernel of two": type_error(kernel_size=(1, 1)),
    "window too deep": value_error(kernel_size=lambda a: a["input"].shape[-3] + 1),
    "stride 0": value_error(stride=0),
    "stride -1": value_error(stride=-1),
    "stride 1.5": type_error(stride=1.5),
}


def _channel_pooling(rng: Generator, *kinds: Values) -> tuple[Arguments, bool]:
    """Draw a pooling of channels, and whether of integers."""
    kernel, arrays = int(rng.choice([1, 2, 2, 3, 4, 5])), Arrays(rng, *kinds)
    given = {
        "input": arrays(*image_shape(rng, channels=kernel - 1 + length(rng))),
        "kernel_size": pick(rng, [kernel, np.int64(kernel)]),
        "stride": pick(rng, [None, 1, 2, np.int32(3)]),
    }
    return given, arrays.are_integers


@operator(_CHANNEL_POOLING)
def _max_pool_channels(rng: Generator) -> Draw:
    given, _ = _channel_pooling(rng, integers, real, draws.special, draws.mostly_minus_inf)
    return Draw(given, exact=True)


@operator(_CHANNEL_POOLING, torch_accepts=("kernel 0",))
def _avg_pool_channels(rng: Generator) -> Draw:
    return Draw(*_channel_pooling(rng, integers, real, draws.special))
