# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Gradient of a weight from contiguous NCHW images where they lie: sums along the planes.

Every weight is the dot product of one plane of output gradients with the windows' pixels
that its tap meets, all images one after the other.  The windows are packed as for the
convolution; a register tile holds the dot products of some planes with some taps.
"""

from libc.string cimport memcpy, memset

cimport numpy as cnp

from convkern._kernels.core cimport (
    CK_DOT_COLUMNS,
    CK_FIRST,
    CK_LAST,
    axis,
    ceil_div,
    ck_dot_layout,
    ck_kernels,
    give,
    kernels_of,
    run,
    take,
)
from convkern._kernels.planes cimport PlanesJob, line_of_windows, pack_panel, set_windows

cnp.import_array()

cdef enum:
    PIXELS = 512     # of a panel
    TAPS = 64        # and its rows: taps of channels
    FILTERS = 96     # planes of gradients of an item
    ITEMS = 32       # wanted for the threads' sake

cdef struct GradientJob:
    PlanesJob windows
    const char *g
    char *sums       # (slice, group, filter, tap)
    # How items are cut: slices of all chunks of pixels, with sums of their own, blocks of taps and
    # of filters.
    Py_ssize_t chunks, total, slices, tap_blocks, filter_blocks


cdef void add_dots(const GradientJob *job, const char *g, const char *b, Py_ssize_t b_row,
                   Py_ssize_t filters, Py_ssize_t taps, Py_ssize_t length, int flags, char *partial,
                   char *out) noexcept nogil:
    """Add the dot products of some planes and taps over `length` pixels."""
    cdef const ck_kernels *kernels = job.windows.kernels
    cdef Py_ssize_t size = kernels.itemsize, vector = size * kernels.lanes, i = 0, j, rows, columns
    cdef ck_dot_layout layout
    layout.length, layout.x_row, layout.w_row = length, job.windows.pixels, b_row
    layout.out_row, layout.flags = job.windows.length, flags
    while i < filters:
        rows = min(<Py_ssize_t>kernels.max_dot_rows, filters - i)
        j = 0
        while j < taps:
            columns = CK_DOT_COLUMNS if taps - j >= CK_DOT_COLUMNS else 1
            kernels.dot[rows][columns](
                &layout, g + i * job.windows.pixels * size, b + j * b_row * size, NULL,
                partial + (i * taps + rows * j) * vector, out + (i * job.windows.length + j) * size)
            j += columns
        i += rows


cdef void gradient_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One slice of the pixels, block of taps and of filters of a group."""
    cdef const GradientJob *job = <const GradientJob *>job_
    cdef const PlanesJob *windows = &job.windows
    cdef Py_ssize_t size = windows.kernels.itemsize, vector = size * windows.kernels.lanes
    cdef Py_ssize_t tap_block = item % job.tap_blocks
    item //= job.tap_blocks
    cdef Py_ssize_t filter_block = item % job.filter_blocks
    item //= job.filter_blocks
    cdef Py_ssize_t group = item % windows.groups, part = item // windows.groups
    cdef Py_ssize_t tap = windows.length * tap_block // job.tap_blocks
    cdef Py_ssize_t taps = windows.length * (tap_block + 1) // job.tap_blocks - tap
    cdef Py_ssize_t filter = windows.out_channels * filter_block // job.filter_blocks
    cdef Py_ssize_t filters = windows.out_channels * (filter_block + 1) // job.filter_blocks - filter
    cdef Py_ssize_t first = job.total * part // job.slices, chunk, image, pixel, count
    cdef Py_ssize_t last = job.total * (part + 1) // job.slices - 1
    cdef char *panel = scratch
    cdef char *partial = panel + TAPS * PIXELS * size
    cdef char *line = partial + FILTERS * TAPS * vector
    cdef char *out = job.sums + (
        ((part * windows.groups + group) * windows.out_channels + filter) * windows.length + tap) * size
    cdef const char *x
    cdef const char *g
    cdef int flags
    for chunk in range(first, last + 1):
        image = chunk // job.chunks
        pixel = windows.pixels * (chunk % job.chunks) // job.chunks
        count = windows.pixels * (chunk % job.chunks + 1) // job.chunks - pixel
        x = windows.x + (image * windows.groups + group) * (
            windows.channels * windows.h.size * windows.w.size * size)
        g = job.g + ((image * windows.groups + group) * windows.out_channels + filter) * (
            windows.pixels * size) + pixel * size
        flags = (CK_FIRST if chunk == first else 0) | (CK_LAST if chunk == last else 0)
        if windows.plain:
            add_dots(job, g, x + (tap * windows.pixels + pixel) * size, windows.pixels, filters,
                     taps, count, flags, partial, out)
        else:
            pack_panel(windows, x, pixel, count, tap, taps, panel, line)
            add_dots(job, g, panel, count, filters, taps, count, flags, partial, out)


cdef void add_slices_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Add up the slices of one group and block of filters."""
    cdef const GradientJob *job = <const GradientJob *>job_
    cdef const PlanesJob *windows = &job.windows
    cdef Py_ssize_t size = windows.kernels.itemsize, part
    cdef Py_ssize_t group = item // job.filter_blocks, block = item % job.filter_blocks
    cdef Py_ssize_t begin = windows.out_channels * block // job.filter_blocks
    cdef Py_ssize_t end = windows.out_channels * (block + 1) // job.filter_blocks
    cdef Py_ssize_t slice_ = windows.groups * windows.out_channels * windows.length * size
    cdef char *sums = job.sums + (group * windows.out_channels + begin) * windows.length * size
    for part in range(1, job.slices):
        windows.kernels.add(sums + part * slice_, sums, (end - begin) * windows.length)


def planes_weight_gradient(cnp.ndarray x, cnp.ndarray grad, cnp.ndarray grad_weight, tuple rows,
                           tuple columns, Py_ssize_t groups, int threads):
    """Write the gradient of a convolution's weight; all arrays are contiguous NCHW."""
    cdef GradientJob job
    cdef const ck_kernels *kernels = kernels_of(x)
    cdef Py_ssize_t size = kernels.itemsize
    cdef size_t bytes = <size_t>(grad_weight.size * size), scratch
    cdef char *sums = NULL
    set_windows(&job.windows, kernels, <const char *>cnp.PyArray_DATA(x), groups,
                x.shape[1] // groups, grad.shape[1] // groups,
                axis(x.shape[2], grad.shape[2], rows), axis(x.shape[3], grad.shape[3], columns))
    job.g = <const char *>cnp.PyArray_DATA(grad)
    job.chunks = ceil_div(job.windows.pixels, PIXELS)
    job.total = x.shape[0] * job.chunks
    job.tap_blocks = ceil_div(job.windows.length, TAPS)
    job.filter_blocks = ceil_div(job.windows.out_channels, FILTERS)
    cdef Py_ssize_t others = groups * job.tap_blocks * job.filter_blocks
    job.slices = min(job.total, ceil_div(ITEMS, others))
    scratch = <size_t>(TAPS * PIXELS * size + FILTERS * TAPS * kernels.lanes * size
                       + line_of_windows(&job.windows, PIXELS) * size)
    try:
        job.sums = <char *>cnp.PyArray_DATA(grad_weight)
        if job.slices > 1:
            sums = job.sums = take(bytes * <size_t>job.slices)
        run(gradient_item, &job, job.slices * others,
            2.0 * x.shape[0] * job.windows.pixels * grad_weight.size / (job.slices * others),
            threads, scratch)
        if job.slices > 1:
            run(add_slices_item, &job, groups * job.filter_blocks,
                <double>grad_weight.size * job.slices / (groups * job.filter_blocks), threads, 0)
            memcpy(cnp.PyArray_DATA(grad_weight), sums, bytes)
    finally:
        give(sums)
