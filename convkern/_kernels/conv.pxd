"""Convolutions as the gradients use them: packed weights, and parts that fill an output."""

cimport numpy as cnp

from convkern._kernels.core cimport Axis, Span, ck_kernels

cdef enum:
    GROUP_BYTES = 8 << 20  # channels-last copies that an NCHW operator holds at a time

cdef struct Taps:
    # Taps of one axis of a window: first, first + step, ... (count of them).
    Py_ssize_t first, step, count

cdef struct Images:
    # Channels-last pixels; strides in elements, channels are contiguous.
    char *data
    Py_ssize_t image, row, column

cdef class PackedConv:
    cdef char *weight
    cdef char *bias
    cdef const ck_kernels *kernels
    cdef Py_ssize_t out_channels, channels, groups, kh, kw, vectors, blocks
    cdef bint depthwise

cdef class Part:
    cdef PackedConv packed
    cdef Axis h, w
    cdef Py_ssize_t first_row, first_column, row_step, column_step

cdef struct ConvJob:
    const ck_kernels *kernels
    const char *x
    const char *weight
    const char *bias
    char *out
    Axis h, w
    Span *rows
    Span *columns
    Py_ssize_t row_spans, column_spans
    # Strides between images, rows and columns; channels are contiguous.
    Py_ssize_t x_image, x_row, x_column, out_image, out_row, out_column
    # Channels of one group; vectors and blocks of output channels.
    Py_ssize_t channels, out_channels, groups, vectors, blocks
    # How the output is cut into items: `positions` row and column blocks of images times groups'
    # blocks of filters; the one whose data is smaller varies faster.
    Py_ssize_t row_blocks, column_blocks, positions
    bint filters_fastest
    int activation
    double slope

cdef Images images_of(cnp.ndarray a) noexcept
cdef Images packed_images(char *data, cnp.ndarray a) noexcept
