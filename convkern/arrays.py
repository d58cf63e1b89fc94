"""What every operator asks of its arrays: type, dtype, rank and memory layout.

Logical order is always NCHW.  The kernels read two layouts directly,
contiguous NCHW and channels-last; anything else is copied into one of them.
Those of small convolutions also read images-last, (C, H, W, N) in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from convkern import _kernels
from convkern.threads import get_num_threads

#: dtypes that the kernels compute in.
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))

#: What `as_array` takes where any number of axes will do.
ANY_NDIM = tuple(range(65))


def as_array(
    value: Any, name: str, ndims: tuple[int, ...], like: np.ndarray | None = None
) -> np.ndarray:
    """Return `value` as a native float32 or float64 array of an accepted rank, or raise.

    With `like`, the dtype must be that array's.
    """
    if _kernels.is_operand(value, like) and value.ndim in ndims:
        operand: np.ndarray = value
        return operand
    if not isinstance(value, np.ndarray):
        if not hasattr(value, "__array__"):
            raise TypeError(f"{name} must be a NumPy array, got {type(value).__name__}")
        value = np.asarray(value)
    check_plain(value, name)
    if value.dtype not in DTYPES:
        if value.dtype.newbyteorder("=") not in DTYPES:
            raise TypeError(f"{name} must be float32 or float64, got dtype {value.dtype}")
        value = value.astype(value.dtype.newbyteorder("="))
    if like is not None and value.dtype != like.dtype:
        raise TypeError(f"{name} must have the input's dtype {like.dtype}, got {value.dtype}")
    if value.ndim not in ndims:
        accepted = " or ".join(f"{n}-D" for n in ndims)
        raise ValueError(f"{name} must be {accepted}, got {value.ndim}-D of shape {value.shape}")
    return np.asarray(value)


def check_plain(value: Any, name: str) -> None:
    """Raise for a masked array, whose mask nothing here would see."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, got a masked array; fill it first")


def as_contiguous(array: np.ndarray) -> np.ndarray:
    """Return the array itself or a copy that is C-contiguous and aligned."""
    if _kernels.is_contiguous(array):
        return array
    return array.copy(order="C")


def is_channels_last(x: np.ndarray) -> bool:
    """Tell whether the strides of a 4-D array are those of an NHWC buffer, gaps allowed.

    Where a shape leaves it open (one channel, or one pixel), the strides
    themselves decide, as in torch.
    """
    return _kernels.layout_of(x)[0]


def is_images(x: np.ndarray, channels_last: bool) -> bool:
    """Tell whether the kernels can read and write a 4-D array in the given layout as it is."""
    found, readable = _kernels.layout_of(x)
    if found and not channels_last:
        return bool(x.size and x.flags.c_contiguous and x.flags.aligned)
    return bool(x.size and found == channels_last and readable)


def as_images(x: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return a 4-D view or copy of a 3-D or 4-D array that the kernels read, and its layout.

    The layout is True for channels-last, False for contiguous NCHW.
    """
    if x.ndim == 3:
        x = x[None]
    channels_last, readable = _kernels.layout_of(x)
    if channels_last and x.size:
        return x if readable else x.copy(order="K"), True
    return to_contiguous(x), False


def in_layout(x: np.ndarray, channels_last: bool) -> np.ndarray:
    """Return a 4-D view or copy of a 3-D or 4-D array in the given layout."""
    images, found = as_images(x)
    if found == channels_last:
        return images
    return to_channels_last(images) if channels_last else to_contiguous(images)


def empty_images(shape: tuple[int, ...], dtype: np.dtype[Any], channels_last: bool) -> np.ndarray:
    """Return a new NCHW-shaped array in one of the two layouts."""
    result: np.ndarray = _kernels.empty(shape, dtype, channels_last)
    return result


def to_channels_last(input: np.ndarray) -> np.ndarray:
    """Return an equal array whose memory is channels-last.

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Any strides.

    Returns
    -------
    ndarray
        `input` itself where it is channels-last already, otherwise a copy.

    Raises
    ------
    TypeError, ValueError
        If `input` is not such an array.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.zeros((1, 3, 4, 5), np.float32)
    >>> to_channels_last(x).strides
    (240, 4, 60, 12)
    """
    input = as_array(input, "input", (3, 4))
    x, channels_last = as_images(input)
    if channels_last:
        return input
    out = empty_images(x.shape, x.dtype, True)
    _kernels.to_channels_last(x, out, get_num_threads())
    return out[0] if input.ndim == 3 else out


def is_dense_channels_last(x: np.ndarray) -> bool:
    """Tell whether images are channels-last in memory without gaps."""
    return is_channels_last(x) and x.transpose(0, 2, 3, 1).flags.c_contiguous


def dense_channels_last(x: np.ndarray) -> np.ndarray:
    """Return equal images whose memory is channels-last without gaps."""
    x = to_channels_last(x)
    return x if is_dense_channels_last(x) else x.copy(order="K")


def is_images_last(x: np.ndarray) -> bool:
    """Tell whether the memory of a 4-D array is (C, H, W, N) with 16, 32, 48 or 64 images."""
    return _kernels.is_images_last(x)


def fills_lanes(shape: tuple[int, ...]) -> bool:
    """Tell whether images of a shape, (N, C, H, W), are as many as may lie images-last."""
    return len(shape) == 4 and shape[0] % 16 == 0 and shape[0] <= 64 and math.prod(shape) > 0


def empty_images_last(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Return a new NCHW-shaped array whose memory is images-last."""
    return _kernels.empty_images_last(shape, dtype)


def to_images_last(x: np.ndarray) -> np.ndarray:
    """Return an equal array whose memory is images-last, of a 4-D array with images."""
    if _kernels.is_images_last(x):
        return x
    x = in_layout(x, False)
    out = empty_images_last(x.shape, x.dtype)
    if x.size:
        _kernels.to_images_last(x, out, get_num_threads())
    return out


def to_contiguous(x: np.ndarray) -> np.ndarray:
    """Return an equal C-contiguous array, by a transpose kernel where memory has another order."""
    if x.ndim != 4 or x.dtype not in DTYPES or x.flags.c_contiguous or not x.flags.aligned:
        return as_contiguous(x)
    if is_images_last(x):
        out: np.ndarray = _kernels.empty(x.shape, x.dtype)
        _kernels.from_images_last(x, out, get_num_threads())
        return out
    if not x.transpose(0, 2, 3, 1).flags.c_contiguous:
        return as_contiguous(x)
    out = empty_images(x.shape, x.dtype, False)
    _kernels.to_contiguous(x, out, get_num_threads())
    return out


def memory_order(x: np.ndarray) -> tuple[int, ...]:
    """Return the axes from the slowest to the fastest in memory; C order where that is unclear."""
    return _kernels.memory_order(x)


def to_memory(x: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Return `x` with its axes in `order`, C-contiguous: a view where its memory is so already."""
    memory = _kernels.memory_view(x, order)
    if memory is not None:
        return memory
    view = x.transpose(order)
    if x.ndim != 4:
        return as_contiguous(view)
    if order == (0, 1, 2, 3):
        return to_contiguous(x)
    if order == (0, 2, 3, 1):
        return as_contiguous(to_channels_last(x).transpose(order))
    if order == (1, 2, 3, 0) and x.dtype in DTYPES:
        return to_images_last(x).transpose(order)
    return as_contiguous(view)


def from_memory(memory: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Undo the permutation of `to_memory`."""
    return _kernels.from_memory(memory, order)


def cut_at(x: np.ndarray, axis: int, order: tuple[int, ...]) -> tuple[int, int, int]:
    """Return how an axis cuts the memory of `x`: (slower elements, its length, faster ones)."""
    shape, place = x.shape, order.index(axis)
    slower = faster = 1
    for i in order[:place]:
        slower *= shape[i]
    for i in order[place + 1 :]:
        faster *= shape[i]
    return slower, shape[axis], faster


def checked_mask(output_mask: Any) -> tuple[bool, bool, bool]:
    """Return the three bools that say which gradients are wanted."""
    if type(output_mask) is not tuple and (
        not isinstance(output_mask, Sequence) or isinstance(output_mask, str)
    ):
        raise TypeError(f"output_mask must be three bools, got {output_mask!r}")
    if len(output_mask) != 3:
        raise ValueError(f"output_mask must be three bools, got {output_mask!r}")
    first, second, third = output_mask
    return bool(first), bool(second), bool(third)


def check_writeable(array: Any, name: str) -> None:
    """Raise unless an array can be written element by element, by the kernels or by NumPy."""
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}")
    if array.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be float32 or float64 in native byte order, got dtype {array.dtype}"
        )
    if not array.flags.writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array")
    if _overlaps_itself(array):
        raise ValueError(f"{name} must not overlap itself, got strides {array.strides}")


def check_out(out: Any, shape: tuple[int, ...], inputs: tuple[np.ndarray | None, ...]) -> None:
    """Raise unless `out` can take a result of this shape and of the first input's dtype."""
    dtype = inputs[0].dtype if inputs[0] is not None else None
    check_writeable(out, "out")
    if out.dtype != dtype:
        raise TypeError(f"out must have dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    for array in inputs:
        if array is not None and _share_memory(out, array):
            raise ValueError(
                f"out must not overlap an input, got memory of an array of shape {array.shape}"
            )


def _overlaps_itself(a: np.ndarray) -> bool:
    """Tell whether two elements may share memory: axes by stride, each must step over the last."""
    if a.flags.c_contiguous:
        return False
    reach = a.itemsize
    for stride, size in sorted(
        (abs(stride), size) for stride, size in zip(a.strides, a.shape, strict=True) if size > 1
    ):
        if stride < reach:
            return a.size > 1
        reach += stride * (size - 1)
    return False


def _share_memory(a: np.ndarray, b: np.ndarray) -> bool:
    """Tell whether two arrays overlap; yes where finding out takes too long."""
    try:
        return bool(np.shares_memory(a, b, max_work=10_000))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True
