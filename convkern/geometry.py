"""Window arithmetic: argument forms, output sizes and their errors.

Everything here is about integers and shapes; no array is touched.  The
functions are the only place where ``stride``, ``padding`` and friends are
read, so every operator accepts the same forms and refuses with the same words.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeAlias, overload

IntPair: TypeAlias = int | Sequence[int]
#: One pair per spatial axis: ``((top, bottom), (left, right))``.
PaddingPairs: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
Padding: TypeAlias = int | Sequence[int] | str | Sequence[Sequence[int]]

#: Windows, steps and paddings stay below this, so that no product of sizes overflows 64 bits.
LIMIT = 2**31


def integer(value: Any, name: str, minimum: int) -> int:
    """Return `value` as an int of at least `minimum`; booleans and floats are not integers."""
    # An exact int needs no question.
    plain = type(value) is int
    if not plain and (isinstance(value, bool) or not hasattr(type(value), "__index__")):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
    number = operator.index(value)
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    if number >= LIMIT:
        raise ValueError(f"{name} must be below 2**31, got {number}")
    return number


def number(value: Any, name: str) -> float:
    """Return a real number as a float; booleans and text are not numbers."""
    # An exact float needs no question, which takes a microsecond.
    plain = type(value) is float
    if not plain and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    return float(value)


def pair(value: Any, name: str, minimum: int = 1) -> tuple[int, int]:
    """Return an int or a pair of ints as a pair, each at least `minimum`."""
    if _is_sequence(value):
        if len(value) == 1:
            value = (value[0], value[0])
        if len(value) != 2:
            raise ValueError(f"{name} must be an integer or a pair of integers, got {value!r}")
        return integer(value[0], name, minimum), integer(value[1], name, minimum)
    number = integer(value, name, minimum)
    return number, number


def padding_pairs(
    padding: Any,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> PaddingPairs:
    """Return any form of `padding` as ``((top, bottom), (left, right))``.

    Accepted are an int, a pair ``(rows, columns)``, ``"valid"``, ``"same"``
    (stride 1 only; an odd element goes to the bottom and the right) and the
    explicit ``((top, bottom), (left, right))``.
    """
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0), (0, 0)
        if padding != "same":
            raise ValueError(
                f"padding must be 'same', 'valid', integers or pairs of them, got {padding!r}"
            )
        if stride != (1, 1):
            raise ValueError(f"padding='same' needs stride 1, got stride {stride}")
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)
    if _is_sequence(padding) and len(padding) == 2 and all(map(_is_sequence, padding)):
        if any(len(side) != 2 for side in padding):
            raise ValueError(f"padding must be ((top, bottom), (left, right)), got {padding!r}")
        (top, bottom), (left, right) = padding
        return (
            (integer(top, "padding", 0), integer(bottom, "padding", 0)),
            (integer(left, "padding", 0), integer(right, "padding", 0)),
        )
    rows, columns = pair(padding, "padding", 0)
    return (rows, rows), (columns, columns)


def window_extent(kernel: int, dilation: int) -> int:
    """Return how many input elements a window spans: ``dilation * (kernel - 1) + 1``."""
    return dilation * (kernel - 1) + 1


def output_size(
    size: int,
    kernel: int,
    stride: int,
    padding: tuple[int, int],
    dilation: int,
    ceil_mode: bool = False,
) -> int:
    """Return how many windows fit on one axis; raise ValueError where none does."""
    padded = size + sum(padding)
    extent = window_extent(kernel, dilation)
    steps, rest = divmod(padded - extent, stride)
    # A last partial window counts only if it starts inside the input or its leading padding.
    if ceil_mode and rest and (steps + 1) * stride < size + padding[0]:
        steps += 1
    if steps < 0:
        raise ValueError(
            f"the window must not be larger than the padded input ({size} elements with padding "
            f"{padding}), got kernel size {kernel} and dilation {dilation}: {extent} elements"
        )
    return steps + 1


@overload
def conv_output_size(
    input_size: int,
    kernel_size: int,
    stride: int = 1,
    padding: Padding = 0,
    dilation: int = 1,
    ceil_mode: bool = False,
) -> int: ...
@overload
def conv_output_size(
    input_size: Sequence[int],
    kernel_size: IntPair,
    stride: IntPair = 1,
    padding: Padding = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> tuple[int, int]: ...
def conv_output_size(
    input_size: IntPair,
    kernel_size: IntPair,
    stride: IntPair = 1,
    padding: Padding = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> int | tuple[int, int]:
    r"""Return the output size of a convolution or pooling window.

    .. math:: \left\lfloor \frac{H + p - d (K - 1) - 1}{s} \right\rfloor + 1

    with `p` the padding of both sides together (Dumoulin and Visin, *A guide
    to convolution arithmetic for deep learning*, 2016, relation 15).

    Parameters
    ----------
    input_size : int or pair of int
        ``H``, or ``(H, W)``.
    kernel_size, stride, dilation : int or pair of int
        The window, its step, and the step between its taps.
    padding : int, pair of int, "same", "valid" or ((top, bottom), (left, right))
        Zeros added around the input.
    ceil_mode : bool
        Round up, as pooling may, without a window that would start in the
        trailing padding.

    Returns
    -------
    int or (int, int)
        An int where `input_size` and `kernel_size` are ints, otherwise ``(OH, OW)``.

    Raises
    ------
    TypeError
        If an argument is not made of integers.
    ValueError
        If a value is out of range or no window fits.

    Examples
    --------
    >>> from convkern import conv_output_size
    >>> conv_output_size(227, kernel_size=11, stride=4)
    55
    >>> conv_output_size((32, 48), kernel_size=3, padding="same")
    (32, 48)
    """
    size = pair(input_size, "input_size", 0)
    kernel = pair(kernel_size, "kernel_size")
    steps = pair(stride, "stride")
    gaps = pair(dilation, "dilation")
    pads = padding_pairs(padding, kernel, steps, gaps)
    rows, columns = (
        output_size(size[i], kernel[i], steps[i], pads[i], gaps[i], ceil_mode) for i in (0, 1)
    )
    scalar = not _is_sequence(input_size) and not _is_sequence(kernel_size)
    return rows if scalar else (rows, columns)


def _is_sequence(value: Any) -> bool:
    """Tell a tuple, list or 1-D array of integers from a scalar or a string."""
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes, dict, set))
