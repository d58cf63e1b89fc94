"""Pooling."""

from __future__ import annotations

import numpy as np

from convkern import _kernels
from convkern.arrays import as_array, as_images, empty_images
from convkern.geometry import IntPair, integer, output_size, pair, window_extent
from convkern.threads import get_num_threads


def max_pool2d(
    input: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    *,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Take the maximum of every window.

    The first maximum wins a tie, NaN propagates (the last one of a window gives
    the index) and padding counts as -inf.

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Images; any strides.
    kernel_size : int or pair of int
        The window.
    stride : int or pair of int, optional
        Step of the window; by default the window itself.
    padding : int or pair of int
        Rows and columns of -inf around the image, at most half the window's extent.
    dilation : int or pair of int
        Step between the taps of the window.
    ceil_mode : bool
        Also take a last window that hangs over the edge, unless it would start
        in the padding.
    return_indices : bool
        Also return where each maximum was found.

    Returns
    -------
    output : ndarray, (N, C, OH, OW) or (C, OH, OW), dtype of `input`
        Channels-last in memory where `input` is.
    indices : ndarray of int64, shape of `output`
        Flat position of each maximum in its H * W plane; only with `return_indices`.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If no window fits or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import max_pool2d
    >>> x = np.array([[[1, 3, 2, 4], [5, 6, 1, 0]]], np.float32)
    >>> values, indices = max_pool2d(x, 2, return_indices=True)
    >>> values
    array([[[6., 4.]]], dtype=float32)
    >>> indices
    array([[[5, 3]]])
    """
    input = as_array(input, "input", (3, 4))
    kernel = pair(kernel_size, "kernel_size")
    steps = kernel if stride is None else pair(stride, "stride")
    pads = pair(padding, "padding", 0)
    gaps = pair(dilation, "dilation")
    for pad, k, d in zip(pads, kernel, gaps, strict=True):
        if pad > window_extent(k, d) // 2:
            raise ValueError(
                f"padding must be at most half the window's extent ({window_extent(k, d)} for "
                f"kernel_size {k} and dilation {d}), got {pad}"
            )
    if 0 in input.shape[-3:]:
        raise ValueError(f"input must have no empty channel or spatial axis, got {input.shape}")
    out_size = tuple(
        output_size(
            input.shape[i - 2], kernel[i], steps[i], (pads[i], pads[i]), gaps[i], bool(ceil_mode)
        )
        for i in (0, 1)
    )
    if (window_extent(kernel[0], gaps[0]) + 1) * input.shape[-1] >= 2**31:
        raise ValueError(
            f"a window of {kernel} on rows of {input.shape[-1]} spans more than 2**31 elements"
        )
    x, channels_last = as_images(input)
    shape = (*x.shape[:2], *out_size)
    values = empty_images(shape, x.dtype, channels_last)
    indices = empty_images(shape, np.dtype(np.int64), channels_last) if return_indices else None
    if values.size:
        rows, columns = zip(kernel, steps, pads, gaps, strict=True)
        _kernels.max_pool2d(x, values, indices, rows, columns, channels_last, get_num_threads())
    if input.ndim == 3:
        values = values[0]
        indices = None if indices is None else indices[0]
    return values if indices is None else (values, indices)


def adaptive_avg_pool2d(
    input: np.ndarray, output_size: IntPair | tuple[int | None, ...]
) -> np.ndarray:
    """Average over windows that divide the image into `output_size` parts.

    Window `i` of `OH` covers the rows from ``floor(i * H / OH)`` up to, not
    including, ``ceil((i + 1) * H / OH)``; columns likewise.

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Images; any strides.
    output_size : int or pair of int or None
        ``(OH, OW)``; None keeps the input's size on that axis.

    Returns
    -------
    ndarray, (N, C, OH, OW) or (C, OH, OW), dtype of `input`
        Channels-last in memory where `input` is.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If a size is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import adaptive_avg_pool2d
    >>> adaptive_avg_pool2d(np.array([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]), (1, 2))
    array([[[3., 4.]]])
    """
    input = as_array(input, "input", (3, 4))
    if 0 in input.shape[-3:]:
        raise ValueError(f"input must have no empty channel or spatial axis, got {input.shape}")
    sizes = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    if len(sizes) != 2:
        raise ValueError(f"output_size must be an integer or a pair, got {output_size!r}")
    height, width = input.shape[-2:]
    rows, columns = (
        size if wanted is None else integer(wanted, "output_size", 1)
        for wanted, size in zip(sizes, (height, width), strict=True)
    )
    x, channels_last = as_images(input)
    out = empty_images((*x.shape[:2], rows, columns), x.dtype, channels_last)
    for i in range(rows):
        top, bottom = i * height // rows, -(-(i + 1) * height // rows)
        for j in range(columns):
            left, right = j * width // columns, -(-(j + 1) * width // columns)
            x[:, :, top:bottom, left:right].mean(axis=(2, 3), out=out[:, :, i, j])
    return out[0] if input.ndim == 3 else out
