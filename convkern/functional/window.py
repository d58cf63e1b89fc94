"""What all convolutions share: arguments, windows, and the ways of computing them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from convkern import _kernels
from convkern.arrays import as_array, empty_images, in_layout
from convkern.functional import lanes
from convkern.functional.algorithm import Problem
from convkern.functional.blocks import Blocks
from convkern.geometry import (
    IntPair,
    Padding,
    PaddingPairs,
    integer,
    output_size,
    padding_pairs,
    pair,
)
from convkern.threads import get_num_threads

#: Calls whose shapes and arguments are remembered with all that follows from them.
REMEMBERED = 4096


def one_of(value: Any, name: str, accepted: Any) -> Any:
    """Return `value` if it is among the accepted ones."""
    if (value is None or isinstance(value, str)) and value in accepted:
        return value
    choices = ", ".join(map(repr, accepted))
    raise ValueError(f"{name} must be one of {choices}, got {value!r}")


class Window(NamedTuple):
    """A convolution's window, every argument in its one full form."""

    in_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: PaddingPairs
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(
        cls, weight: np.ndarray, stride: IntPair, padding: Padding, dilation: IntPair, groups: int
    ) -> Window:
        """Check a convolution's arguments against its weight, (OC, C / groups, KH, KW)."""
        # Only plain integers: as a key 1.0 and True are the same as 1.
        if _kernels.are_plain((stride, padding, dilation, groups)):
            return _plain_window(weight.shape, stride, padding, dilation, groups)
        return cls.checked(weight.shape, stride, padding, dilation, groups)

    @classmethod
    def checked(
        cls,
        shape: tuple[int, ...],
        stride: IntPair,
        padding: Padding,
        dilation: IntPair,
        groups: int,
    ) -> Window:
        """Check a convolution's arguments against its weight's shape."""
        if 0 in shape:
            raise ValueError(f"weight must have no empty axis, got shape {shape}")
        out_channels, group_channels, *size = shape
        groups = integer(groups, "groups", 1)
        if out_channels % groups:
            raise ValueError(f"groups must divide the {out_channels} output channels, got {groups}")
        kernel = pair(size, "kernel size")
        steps, gaps = pair(stride, "stride"), pair(dilation, "dilation")
        pads = padding_pairs(padding, kernel, steps, gaps)
        return cls(group_channels * groups, kernel, steps, pads, gaps, groups)

    def output_size(self, input_shape: Sequence[int]) -> tuple[int, int]:
        """Check the input's shape, (..., C, H, W), and return (OH, OW)."""
        channels, *size = input_shape[-3:]
        if channels != self.in_channels:
            raise ValueError(
                f"input must have {self.in_channels} channels for this weight and "
                f"groups={self.groups}, got {channels} in shape {input_shape}"
            )
        if 0 in size:
            raise ValueError(f"input must have no empty spatial axis, got shape {input_shape}")
        axes = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        rows, columns = (output_size(*axis) for axis in axes)
        return rows, columns

    def axes(self) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        """Return (kernel, stride, leading padding, dilation) of rows and of columns."""
        (height, width), (down, right), (row, column) = self.kernel, self.stride, self.dilation
        (top, _), (left, _) = self.padding
        return (height, down, top, row), (width, right, left, column)

    @property
    def is_product(self) -> bool:
        """Whether the convolution is a product of two matrices."""
        dense = self.kernel == self.stride == (1, 1) and self.groups == 1
        return dense and self.padding == ((0, 0), (0, 0))

    def covers(self, size: Sequence[int]) -> bool:
        """Whether the window is a whole image of several pixels: then the layer is a linear one."""
        whole = self.kernel == tuple(size) != (1, 1) and self.dilation == (1, 1)
        return whole and self.groups == 1 and self.padding == ((0, 0), (0, 0))

    @property
    def skips(self) -> bool:
        """Whether the window is one pixel that steps over others of the image."""
        inside = self.kernel == (1, 1) and self.padding == ((0, 0), (0, 0))
        return inside and self.stride != (1, 1)

    def of_steps(self) -> Window:
        """Return the window that does the same on the pixels of every step alone."""
        return self._replace(stride=(1, 1))

    def blocks(self) -> Blocks | None:
        """Return the blocks of pixels that make the convolution a dense one, if they may help."""
        return Blocks.of(self.in_channels, *self.axes(), self.groups)

    def problem(
        self,
        dtype: np.dtype[Any],
        filters: int,
        images: int,
        out_size: tuple[int, ...],
        *,
        transposed: bool = False,
    ) -> Problem:
        """Describe the work on so many images with outputs of a size.

        With `transposed` the output is the gradient of the input.
        """
        rows, columns = out_size
        channels, out_channels = self.in_channels // self.groups, filters // self.groups
        if transposed:
            channels, out_channels = out_channels, channels
        return Problem(
            dtype,
            images,
            channels,
            out_channels,
            self.groups,
            self.kernel,
            self.stride,
            self.dilation,
            (rows, columns),
        )


@lru_cache(REMEMBERED)
def _plain_window(
    shape: tuple[int, ...], stride: Any, padding: Any, dilation: Any, groups: int
) -> Window:
    """Remember `Window.checked`."""
    return Window.checked(shape, stride, padding, dilation, groups)


@lru_cache(REMEMBERED)
def output_size_of(window: Window, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Remember `Window.output_size` for the shape of an array."""
    return window.output_size(input_shape)


def checked_bias(bias: Any, weight: np.ndarray, channels: int) -> np.ndarray | None:
    """Return a bias for so many output channels, or None."""
    if bias is None:
        return None
    checked = as_array(bias, "bias", (1,), like=weight)
    if checked.shape != (channels,):
        raise ValueError(f"bias must have shape ({channels},), got {checked.shape}")
    return checked


def checked_gradient(grad: Any, like: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the gradient of an output of this shape."""
    checked = as_array(grad, "grad_output", (len(shape),), like=like)
    if checked.shape != shape:
        raise ValueError(f"grad_output must have the output's shape {shape}, got {checked.shape}")
    return checked


class Route(NamedTuple):
    """What a convolution of given shapes takes: how it is computed."""

    #: Size of the output.
    size: tuple[int, int]
    axes: tuple[tuple[int, int, int, int], tuple[int, int, int, int]]
    #: Outputs of the Winograd tile, 0: directly.
    tile: int
    #: Of pixels, where these are what is convolved.
    blocks: Blocks | None
    #: Which kernel for contiguous NCHW: "squares", "rows" or "planes"; for channels-last pixels
    #: "turned", a gradient of a weight whose vectors hold channels; for both "linear", that of
    #: linear layers; else "channels".
    direct: str
    #: Whether contiguous NCHW images go by way of images-last ones.
    by_lanes: bool = False


def in_lanes(x: np.ndarray, window: Window, algorithm: str) -> bool:
    """Tell whether images lie so, and the window is such, that they are convolved in the lanes."""
    return (
        algorithm != "winograd"
        and x.ndim == 4
        and _kernels.is_images_last(x)
        and lanes.can_convolve(window.kernel, window.dilation, window.groups)
    )


def met_pixels(x: np.ndarray, window: Window, out_size: tuple[int, ...]) -> np.ndarray:
    """Return the pixels that a window which skips some meets, contiguous NCHW."""
    x = in_layout(x, False)
    steps = empty_images((*x.shape[:2], *out_size), x.dtype, False)
    _kernels.take_steps(x, steps, window.stride, get_num_threads())
    return steps
