"""Pooling over channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from convkern.arrays import as_array, as_images, in_layout
from convkern.functional.avg_pool import avg_pool2d, avg_pool2d_backward
from convkern.functional.max_pool import max_pool2d, max_pool2d_backward
from convkern.functional.pool_shapes import checked_output_gradient, sizes_of
from convkern.geometry import integer


class _ChannelPooling(NamedTuple):
    """A pooling over channels as one over images that have the channels on a spatial axis."""

    channels_last: bool
    batch: tuple[int, ...]
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]

    @classmethod
    def of(
        cls, like: np.ndarray, channels: int, kernel_size: int, stride: int | None
    ) -> _ChannelPooling:
        """Check a pooling of so many channels, in the layout of an array."""
        width = integer(kernel_size, "kernel_size", 1)
        step = width if stride is None else integer(stride, "stride", 1)
        if width > channels:
            raise ValueError(f"kernel_size must be at most the {channels} channels, got {width}")
        *batch, _, height, columns = like.shape
        last = as_images(like)[1]
        return cls(
            last,
            tuple(batch),
            (channels - width) // step + 1,
            (height, columns),
            (1, width) if last else (width, 1),
            (1, step) if last else (step, 1),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the output."""
        return (*self.batch, self.outputs, *self.size)

    def images(self, x: np.ndarray) -> np.ndarray:
        """Return images to pool: each pixel a row, or each pixel a channel with rows of channels.

        In both cases their memory is that of `x`.
        """
        x = in_layout(x, self.channels_last)
        if self.channels_last:
            return x.transpose(0, 2, 3, 1).reshape(1, 1, -1, x.shape[1])
        return x.reshape(len(x), x.shape[1], 1, -1).transpose(0, 3, 1, 2)

    def back(self, images: np.ndarray) -> np.ndarray:
        """Undo `images`."""
        if self.channels_last:
            pixels = images.reshape(*self.batch, *self.size, -1)
            return np.moveaxis(pixels, -1, -3)
        return images.transpose(0, 2, 3, 1).reshape(*self.batch, -1, *self.size)


def max_pool_channels(input: np.ndarray, kernel_size: int, stride: int | None = None) -> np.ndarray:
    """Take the maximum over windows of neighbouring channels; NaN propagates.

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Images; any strides.
    kernel_size : int
        Channels in a window.
    stride : int, optional
        Step of the window; by default the window itself.

    Returns
    -------
    ndarray, (N, OC, H, W) or (OC, H, W), dtype of `input`
        ``OC = (C - kernel_size) // stride + 1``; channels-last in memory where `input` is.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If no window fits or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import max_pool_channels
    >>> max_pool_channels(np.array([1.0, 4.0, 3.0, 2.0]).reshape(4, 1, 1), 2).ravel()
    array([4., 3.])
    """
    input = as_array(input, "input", (3, 4))
    if 0 in input.shape[-3:]:
        raise ValueError(f"input must have no empty channel or spatial axis, got {input.shape}")
    pooling = _ChannelPooling.of(input, input.shape[-3], kernel_size, stride)
    if not input.size:
        return np.empty(pooling.shape, input.dtype)
    output = max_pool2d(pooling.images(input), pooling.kernel, pooling.stride)
    assert isinstance(output, np.ndarray)
    return pooling.back(output)


def max_pool_channels_backward(
    grad_output: np.ndarray, input: np.ndarray, kernel_size: int, stride: int | None = None
) -> np.ndarray:
    """Return the gradient of `max_pool_channels` by its input; the first maximum gets it.

    Parameters
    ----------
    grad_output : ndarray, (N, OC, H, W) or (OC, H, W), dtype of `input`
        Gradient of the output.
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        What `max_pool_channels` was given.
    kernel_size, stride
        As given to `max_pool_channels`.

    Returns
    -------
    ndarray, shape and dtype of `input`
        Channels-last in memory where `input` is.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If shapes do not fit each other or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import max_pool_channels_backward
    >>> x, grad = np.array([1.0, 4.0, 3.0]), np.array([5.0, 6.0])
    >>> max_pool_channels_backward(grad.reshape(2, 1, 1), x.reshape(3, 1, 1), 2, 1).ravel()
    array([ 0., 11.,  0.])
    """
    input = as_array(input, "input", (3, 4))
    if 0 in input.shape[-3:]:
        raise ValueError(f"input must have no empty channel or spatial axis, got {input.shape}")
    pooling = _ChannelPooling.of(input, input.shape[-3], kernel_size, stride)
    grad_output = checked_output_gradient(grad_output, pooling.shape, input)
    if not input.size:
        return np.empty_like(input)
    images = pooling.images(input)
    _, indices = max_pool2d(images, pooling.kernel, pooling.stride, return_indices=True)
    return pooling.back(max_pool2d_backward(pooling.images(grad_output), indices, images.shape))


def avg_pool_channels(input: np.ndarray, kernel_size: int, stride: int | None = None) -> np.ndarray:
    """Average over windows of neighbouring channels.

    Parameters
    ----------
    input : ndarray, (N, C, H, W) or (C, H, W), float32 or float64
        Images; any strides.
    kernel_size : int
        Channels in a window.
    stride : int, optional
        Step of the window; by default the window itself.

    Returns
    -------
    ndarray, (N, OC, H, W) or (OC, H, W), dtype of `input`
        ``OC = (C - kernel_size) // stride + 1``; channels-last in memory where `input` is.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If no window fits or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern import avg_pool_channels
    >>> avg_pool_channels(np.array([1.0, 4.0, 3.0, 2.0]).reshape(4, 1, 1), 2).ravel()
    array([2.5, 2.5])
    """
    input = as_array(input, "input", (3, 4))
    if 0 in input.shape[-3:]:
        raise ValueError(f"input must have no empty channel or spatial axis, got {input.shape}")
    pooling = _ChannelPooling.of(input, input.shape[-3], kernel_size, stride)
    if not input.size:
        return np.empty(pooling.shape, input.dtype)
    return pooling.back(avg_pool2d(pooling.images(input), pooling.kernel, pooling.stride))


def avg_pool_channels_backward(
    grad_output: np.ndarray,
    input_shape: Sequence[int],
    kernel_size: int,
    stride: int | None = None,
) -> np.ndarray:
    """Return the gradient of `avg_pool_channels` by its input.

    Parameters
    ----------
    grad_output : ndarray, (N, OC, H, W) or (OC, H, W), float32 or float64
        Gradient of the output.
    input_shape : sequence of int
        Shape of the input, (N, C, H, W) or (C, H, W).
    kernel_size, stride
        As given to `avg_pool_channels`.

    Returns
    -------
    ndarray, `input_shape`, dtype of `grad_output`
        Channels-last in memory where `grad_output` is.

    Raises
    ------
    TypeError
        If an argument has a type or dtype that is not accepted.
    ValueError
        If shapes do not fit each other or a value is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.functional import avg_pool_channels_backward
    >>> avg_pool_channels_backward(np.array([4.0, 8.0]).reshape(2, 1, 1), (3, 1, 1), 2, 1).ravel()
    array([2., 6., 4.])
    """
    grad_output = as_array(grad_output, "grad_output", (3, 4))
    shape = sizes_of(input_shape)
    if len(shape) != grad_output.ndim:
        raise ValueError(f"input_shape must be {grad_output.ndim}-D as grad_output, got {shape}")
    pooling = _ChannelPooling.of(grad_output, shape[-3], kernel_size, stride)
    checked_output_gradient(grad_output, (*shape[:-3], pooling.outputs, *shape[-2:]))
    if not grad_output.size:
        return np.empty(shape, grad_output.dtype)
    images = pooling.images(grad_output)
    size = (images.shape[2], shape[-3]) if pooling.channels_last else (shape[-3], 1)
    return pooling.back(
        avg_pool2d_backward(images, (*images.shape[:2], *size), pooling.kernel, pooling.stride)
    )
