"""Convolutions as the gradients use them: parts that fill an output."""

from convkern._kernels.channels cimport Arrivals
from convkern._kernels.core cimport Axis, Images, Span, ck_kernels
from convkern._kernels.packing cimport PackedConv, Weights

cdef enum:
    GROUP_BYTES = 8 << 20  # channels-last copies that an NCHW operator holds at a time

cdef class Part:
    cdef PackedConv packed
    cdef Axis h, w
    cdef Py_ssize_t first_row, first_column, row_step, column_step

cdef struct ConvJob:
    const ck_kernels *kernels
    const char *x
    Weights weights
    const char *bias
    char *out
    Axis h, w
    Span *rows
    Span *columns
    Py_ssize_t row_spans, column_spans
    # Strides between images, rows and columns; channels are contiguous, or `x_plane` apart.
    Py_ssize_t x_image, x_row, x_column, x_plane, out_image, out_row, out_column
    # Channels of one group; vectors and blocks of output channels.
    Py_ssize_t channels, out_channels, groups, vectors, blocks
    # How the output is cut into items: `positions` row and column blocks of images times groups'
    # blocks of filters, or with `all_filters` positions alone.
    Py_ssize_t row_blocks, column_blocks, positions
    bint all_filters
    int activation
    double slope
    const Arrivals *arrivals  # who is told of outputs that are there, or NULL
    Py_ssize_t first_image    # of theirs
