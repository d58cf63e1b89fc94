# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Max pooling with indices."""

from libc.stdint cimport int32_t, int64_t

cimport numpy as cnp

from convkern._kernels.core cimport (
    Axis,
    Span,
    axis,
    ceil_div,
    ck_kernels,
    ck_window,
    give,
    kernels_of,
    new_spans,
    run,
    take,
)

cnp.import_array()


cdef struct PoolJob:
    const ck_kernels *kernels
    const char *x
    char *out
    int64_t *indices
    Axis h, w
    Span *rows
    Span *columns
    Py_ssize_t row_spans, column_spans
    Py_ssize_t channels, x_image, x_row, x_column
    # Contiguous planes only: how rows are split into phases of the stride, and how many output
    # rows make an item.
    Py_ssize_t phases, phase, row_blocks
    ptrdiff_t *starts
    int32_t *first


cdef inline Py_ssize_t first_tap(const Axis *a, Py_ssize_t o, Py_ssize_t tap) noexcept nogil:
    """Input position of a window's tap, moved inside where the whole window is in the padding."""
    return min(o * a.stride - a.pad + tap * a.dilation, a.size - 1)


cdef void max_pool_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One image and output row, channels-last."""
    cdef const PoolJob *job = <const PoolJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, image = item // job.h.out, row = item % job.h.out
    cdef Py_ssize_t i, at_row, at_column, out_at
    cdef const Span *rows = job.rows
    cdef const Span *columns
    cdef ck_window window
    while rows.stop <= row:
        rows += 1
    at_row = first_tap(&job.h, row, rows.first)
    window.channels = window.out_pixel = job.channels
    window.rows = rows.last - rows.first
    window.x_pixel = job.w.stride * job.x_column
    window.x_row, window.x_column = job.h.dilation * job.x_row, job.w.dilation * job.x_column
    window.index_pixel = job.w.stride
    window.index_row, window.index_column = (
        <int32_t>(job.h.dilation * job.w.size), <int32_t>job.w.dilation)
    for i in range(job.column_spans):
        columns = &job.columns[i]
        at_column = first_tap(&job.w, columns.start, columns.first)
        window.pixels = columns.stop - columns.start
        window.columns = columns.last - columns.first
        window.index = at_row * job.w.size + at_column
        out_at = ((image * job.h.out + row) * job.w.out + columns.start) * job.channels
        job.kernels.max_pool(
            &window,
            job.x + (image * job.x_image + at_row * job.x_row + at_column * job.x_column) * size,
            job.out + out_at * size, NULL if job.indices == NULL else job.indices + out_at)


cdef void max_pool_plane_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A block of output rows of one contiguous plane.

    Input rows are split into the phases of the stride, edges filled with -inf,
    so that every tap of a row of windows is a contiguous load.
    """
    cdef const PoolJob *job = <const PoolJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, plane = item // job.row_blocks
    cdef Py_ssize_t block = item % job.row_blocks, row, out_at, split = job.phases * job.phase, top_row
    cdef Py_ssize_t begin = job.h.out * block // job.row_blocks
    cdef Py_ssize_t end = job.h.out * (block + 1) // job.row_blocks
    cdef Py_ssize_t top = max(0, begin * job.h.stride - job.h.pad)
    cdef Py_ssize_t bottom = min(job.h.size, (end - 1) * job.h.stride - job.h.pad
                                 + (job.h.kernel - 1) * job.h.dilation + 1)
    cdef const char *x = job.x + plane * job.h.size * job.w.size * size
    cdef const Span *rows = job.rows
    cdef ck_window window
    for row in range(top, bottom):
        kernels.split_row(x + row * job.w.size * size, job.w.size, job.w.stride, job.phases,
                          job.w.pad, scratch + (row - top) * split * size, job.phase)
    window.pixels, window.columns = job.w.out, job.w.kernel
    window.x_row = job.h.dilation * split
    window.index_pixel = job.w.stride
    window.index_row, window.index_column = (
        <int32_t>(job.h.dilation * job.w.size), <int32_t>job.w.dilation)
    for row in range(begin, end):
        while rows.stop <= row:
            rows += 1
        top_row = first_tap(&job.h, row, rows.first)
        window.rows = rows.last - rows.first
        window.index = top_row * job.w.size - job.w.pad
        out_at = (plane * job.h.out + row) * job.w.out
        kernels.max_pool_row(&window, scratch + (top_row - top) * split * size, job.starts,
                             job.first, job.out + out_at * size,
                             NULL if job.indices == NULL else job.indices + out_at)


def max_pool2d(cnp.ndarray x, cnp.ndarray out, cnp.ndarray indices, tuple rows, tuple columns,
               bint channels_last, int threads):
    """Pool x into out and indices (or None); rows, columns: (kernel, stride, padding, dilation).

    `out` and `indices` have the layout of x: channels-last (x may have gaps
    between its rows, columns and images) or contiguous NCHW.
    """
    cdef PoolJob job
    cdef const ck_kernels *kernels = kernels_of(x)
    cdef Py_ssize_t size = kernels.itemsize, lanes = kernels.lanes, s, o, block, split_rows
    cdef double work
    job.kernels, job.x = kernels, <const char *>cnp.PyArray_DATA(x)
    job.out = <char *>cnp.PyArray_DATA(out)
    job.indices = NULL if indices is None else <int64_t *>cnp.PyArray_DATA(indices)
    job.h = axis(x.shape[2], out.shape[2], rows)
    job.w = axis(x.shape[3], out.shape[3], columns)
    job.channels = x.shape[1]
    job.rows, job.columns, job.starts, job.first = NULL, NULL, NULL, NULL
    cdef Py_ssize_t taps = job.h.kernel * job.w.kernel
    try:
        job.rows = new_spans(&job.h, &job.row_spans)
        if channels_last:
            job.columns = new_spans(&job.w, &job.column_spans)
            job.x_image, job.x_row, job.x_column = (
                x.strides[0] // size, x.strides[2] // size, x.strides[3] // size)
            work = 2.0 * job.w.out * job.channels * taps
            run(max_pool_item, &job, x.shape[0] * job.h.out, work, threads, 0)
            return
        job.starts = <ptrdiff_t *>take(<size_t>job.w.kernel * sizeof(ptrdiff_t))
        job.first = <int32_t *>take(<size_t>job.w.out * sizeof(int32_t))
        job.phases = min(job.w.stride, (job.w.kernel - 1) * job.w.dilation + 1)
        job.phase = (ceil_div(job.w.out, lanes) * lanes
                     + (job.w.kernel - 1) * job.w.dilation // job.w.stride)
        for s in range(job.w.kernel):
            job.starts[s] = (s * job.w.dilation % job.w.stride * job.phase
                             + s * job.w.dilation // job.w.stride)
        for o in range(job.w.out):
            s = max(0, ceil_div(job.w.pad - o * job.w.stride, job.w.dilation))
            job.first[o] = <int32_t>(first_tap(&job.w, o, s) - o * job.w.stride + job.w.pad)
        # Rows whose split copies stay in the first-level cache.
        block = max(1, (24 << 10) // (job.h.stride * job.phases * job.phase * size))
        job.row_blocks = ceil_div(job.h.out, block)
        block = ceil_div(job.h.out, job.row_blocks)
        split_rows = min(job.h.size,
                         (block - 1) * job.h.stride + (job.h.kernel - 1) * job.h.dilation + 1)
        work = 2.0 * block * job.phase * taps
        run(max_pool_plane_item, &job, x.shape[0] * job.channels * job.row_blocks, work, threads,
            <size_t>(split_rows * job.phases * job.phase * size))
    finally:
        give(job.rows)
        give(job.columns)
        give(job.starts)
        give(job.first)


cdef struct ScatterJob:
    const ck_kernels *kernels
    const char *grad
    const int64_t *indices
    char *out
    # Outputs and inputs per plane; channels of a pixel; channels and blocks of them in an item.
    Py_ssize_t outputs, inputs, channels, block, blocks


cdef void scatter_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A block of channels of one image, or one plane where `channels` is 1: its only owner."""
    cdef const ScatterJob *job = <const ScatterJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, image = item // job.blocks
    cdef Py_ssize_t first = item % job.blocks * job.block
    cdef Py_ssize_t at = image * job.outputs * job.channels + first
    job.kernels.scatter_add(
        job.grad + at * size, job.indices + at, job.outputs,
        min(job.block, job.channels - first), job.channels,
        job.out + (image * job.inputs * job.channels + first) * size)


def max_pool2d_backward(cnp.ndarray grad, cnp.ndarray indices, cnp.ndarray out, int threads):
    """Add gradients to zeroed `out` where the indices say.

    All three are dense: (images, pixels, channels) for channels-last arrays,
    (planes, pixels, 1) for contiguous NCHW.
    """
    cdef ScatterJob job
    job.kernels = kernels_of(grad)
    job.grad, job.out = <const char *>cnp.PyArray_DATA(grad), <char *>cnp.PyArray_DATA(out)
    job.indices = <const int64_t *>cnp.PyArray_DATA(indices)
    job.outputs, job.inputs, job.channels = grad.shape[1], out.shape[1], grad.shape[2]
    job.block = 32
    job.blocks = ceil_div(job.channels, job.block)
    run(scatter_item, &job, grad.shape[0] * job.blocks,
        4.0 * job.outputs * min(job.block, job.channels), threads, 0)
