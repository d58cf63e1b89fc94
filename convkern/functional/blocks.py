"""Strided convolutions as dense ones: blocks of pixels become channels.

A window of 11 x 11 that moves by 4 over 3 channels is a window of 3 x 3 that moves by 1
over 48: those of 4 x 4 pixels.  Dense windows have Winograd's algorithm.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convkern import _kernels
from convkern.arrays import empty_images
from convkern.functional.algorithm import Problem
from convkern.threads import get_num_threads

#: More channels than this in a block would rather be convolved directly.
MOST_CHANNELS = 64

Axis = tuple[int, int, int, int]


class Blocks(NamedTuple):
    """Blocks of `side` x `side` pixels, and a window of `taps` x `taps` of them."""

    side: int
    taps: int
    kernel: int
    padding: tuple[int, int]

    @classmethod
    def of(cls, channels: int, rows: Axis, columns: Axis, groups: int) -> Blocks | None:
        """Return the blocks for a window, or None where they would not help.

        rows and columns are (kernel, stride, leading padding, dilation).
        """
        kernel, side, top, dilation = rows
        if (kernel, side, dilation) != (columns[0], columns[1], columns[3]):
            return None
        if side == 1 or dilation > 1 or groups > 1 or channels * side * side > MOST_CHANNELS:
            return None
        return cls(side, -(-kernel // side), kernel, (top, columns[2]))

    def problem(self, direct: Problem) -> Problem:
        """Return the dense convolution that does the same work."""
        channels = direct.channels * self.side**2
        return direct.made_dense(channels=channels, kernel=(self.taps, self.taps))

    def axes(self) -> tuple[Axis, Axis]:
        """Return (kernel, stride, leading padding, dilation) of the dense window."""
        return (self.taps, 1, 0, 1), (self.taps, 1, 0, 1)

    def images(self, x: np.ndarray, out_size: tuple[int, ...], channels_last: bool) -> np.ndarray:
        """Return images as blocks, channels-last, as many as the outputs need.

        The channels of a block are (row, column, channel) where the images are
        channels-last, and (channel, row, column) where they are contiguous NCHW.
        """
        size = tuple(n + self.taps - 1 for n in out_size)
        blocks = empty_images((len(x), x.shape[1] * self.side**2, *size), x.dtype, True)
        if channels_last and x.strides[3] != x.shape[1] * x.itemsize:
            x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        rows, columns = ((self.side, pad) for pad in self.padding)
        _kernels.gather_blocks(x, blocks, rows, columns, channels_last, get_num_threads())
        return blocks

    def weight(self, weight: np.ndarray, channels_last: bool) -> np.ndarray:
        """Return a weight for blocks of such images, contiguous."""
        size = self.taps * self.side
        padded = np.zeros((*weight.shape[:2], size, size), weight.dtype)
        padded[:, :, : self.kernel, : self.kernel] = weight
        split = padded.reshape(*weight.shape[:2], self.taps, self.side, self.taps, self.side)
        # To (filter, [channel], row, column, [channel], tap row, tap column).
        order = (0, 3, 5, 1, 2, 4) if channels_last else (0, 1, 3, 5, 2, 4)
        ordered = split.transpose(order)
        return np.ascontiguousarray(ordered).reshape(len(weight), -1, self.taps, self.taps)

    def weight_gradient(
        self, gradient: np.ndarray, channels: int, channels_last: bool
    ) -> np.ndarray:
        """Return the gradient of a weight from that of the weight for blocks."""
        side, taps = (self.side, self.side), (self.taps, self.taps)
        if channels_last:
            split = gradient.reshape(-1, *side, channels, *taps)
            ordered = split.transpose(0, 3, 4, 1, 5, 2)
        else:
            split = gradient.reshape(-1, channels, *side, *taps)
            ordered = split.transpose(0, 1, 4, 2, 5, 3)
        size = self.taps * self.side
        padded = ordered.reshape(len(gradient), channels, size, size)
        return np.ascontiguousarray(padded[:, :, : self.kernel, : self.kernel])
