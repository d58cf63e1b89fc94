# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""The gradient of a depthwise convolution's weight, on channels-last pixels."""

from libc.string cimport memcpy, memset

cimport numpy as cnp

from convkern._kernels.conv cimport GROUP_BYTES
from convkern._kernels.core cimport (
    Axis,
    Images,
    Span,
    ceil_div,
    ck_kernels,
    ck_lines,
    ck_window,
    give,
    images_of,
    kernels_of,
    new_spans,
    packed_images,
    run,
    take,
    transpose,
)

cnp.import_array()

cdef enum:
    # Of gradients that pass by before what they gave is added up.
    CHUNK_BYTES = 64 << 10
    CHUNK_PIXELS = 512
    SLICES = 16

cdef struct DepthwiseJob:
    const ck_kernels *kernels
    Images x, g
    char *dw                  # (slice, tap, channel), and sums of all gradients as one more tap
    bint bias                 # if these are wanted
    Axis h, w
    Span *rows
    Span *columns
    Py_ssize_t row_spans, column_spans
    # Chunks are some rows of an image; each slice of all chunks has sums of its own.
    Py_ssize_t channels, chunks, chunk_rows, slices


cdef void depthwise_lines(const DepthwiseJob *job, Py_ssize_t image, Py_ssize_t row, Py_ssize_t stop,
                          const Span *taps, char *dw) noexcept nogil:
    """Add the products of some rows of gradients, whose windows hold the same rows of taps."""
    cdef Py_ssize_t size = job.kernels.itemsize, i
    cdef char *sums = dw + job.h.kernel * job.w.kernel * job.channels * size if job.bias else NULL
    cdef const Span *columns
    cdef ck_lines lines = ck_lines(stop - row, job.h.stride * job.x.row, job.g.row)
    cdef ck_window window
    cdef const char *x = job.x.data + (image * job.x.image + (
        row * job.h.stride - job.h.pad + taps.first * job.h.dilation) * job.x.row) * size
    cdef const char *g = job.g.data + (image * job.g.image + row * job.g.row) * size
    window.channels, window.rows = job.channels, taps.last - taps.first
    window.x_pixel, window.out_pixel = job.w.stride * job.x.column, job.g.column
    window.x_row, window.x_column = job.h.dilation * job.x.row, job.w.dilation * job.x.column
    window.w_row, window.w_column = job.w.kernel * job.channels, job.channels
    for i in range(job.column_spans):
        columns = &job.columns[i]
        window.pixels, window.columns = columns.stop - columns.start, columns.last - columns.first
        job.kernels.depthwise_outer(
            &window, &lines,
            x + (columns.start * job.w.stride - job.w.pad + columns.first * job.w.dilation)
            * job.x.column * size,
            g + columns.start * job.g.column * size,
            dw + (taps.first * job.w.kernel + columns.first) * job.channels * size, sums)


cdef void depthwise_weight_item(const void *job_, Py_ssize_t part, char *scratch) noexcept nogil:
    """One slice of the chunks, all channels."""
    cdef const DepthwiseJob *job = <const DepthwiseJob *>job_
    cdef Py_ssize_t per_image = ceil_div(job.h.out, job.chunk_rows), chunk, first, i, row, stop
    cdef char *dw = job.dw + (part * (job.h.kernel * job.w.kernel + job.bias) * job.channels
                              * job.kernels.itemsize)
    for chunk in range(job.chunks * part // job.slices, job.chunks * (part + 1) // job.slices):
        first = chunk % per_image * job.chunk_rows
        for i in range(job.row_spans):
            row = max(first, job.rows[i].start)
            stop = min(first + job.chunk_rows, job.rows[i].stop)
            if row < stop:
                depthwise_lines(job, chunk // per_image, row, stop, &job.rows[i], dw)


cdef int depthwise_weight_gradient(cnp.ndarray x, cnp.ndarray grad, cnp.ndarray grad_weight,
                                   cnp.ndarray grad_bias, Axis h, Axis w, bint channels_last,
                                   int threads) except -1:
    """Write it, and that of the bias unless it is None.

    It comes from channels-last images or copies of contiguous NCHW in that order.
    """
    cdef DepthwiseJob job
    cdef const ck_kernels *kernels = kernels_of(x)
    cdef Py_ssize_t size = kernels.itemsize, images = x.shape[0], channels = x.shape[1], count, k
    cdef Py_ssize_t taps = h.kernel * w.kernel, n = 0
    cdef Py_ssize_t x_image = channels * h.size * w.size, g_image = channels * h.out * w.out
    # Copies are so few at a time that they stay in the second-level cache.
    cdef Py_ssize_t held = 16 * GROUP_BYTES if channels_last else GROUP_BYTES // 8
    cdef Py_ssize_t group = max(1, min(images, held // ((x_image + g_image) * size)))
    cdef Py_ssize_t slice_bytes = (taps + (grad_bias is not None)) * channels * size
    cdef char *sums = NULL
    cdef char *copies = NULL
    cdef double work
    job.kernels, job.h, job.w, job.channels = kernels, h, w, channels
    job.rows, job.columns, job.bias = NULL, NULL, grad_bias is not None
    # All of it follows from the shape, as slices are added up in order.
    job.chunk_rows = min(CHUNK_PIXELS // w.out, CHUNK_BYTES // (w.out * channels * size))
    job.chunk_rows = max(1, min(h.out, job.chunk_rows))
    job.slices = min(SLICES, group * ceil_div(h.out, job.chunk_rows))
    try:
        job.rows = new_spans(&h, &job.row_spans)
        job.columns = new_spans(&w, &job.column_spans)
        job.dw = sums = take(<size_t>(job.slices * slice_bytes))
        memset(sums, 0, <size_t>(job.slices * slice_bytes))
        job.x, job.g = images_of(x), images_of(grad)
        if not channels_last:
            copies = take(<size_t>(group * (x_image + g_image) * size))
            job.x = packed_images(copies, x)
            job.g = packed_images(copies + group * x_image * size, grad)
        while n < images:
            count = min(group, images - n)
            if channels_last:
                job.x.data = <char *>cnp.PyArray_DATA(x) + n * x.strides[0]
                job.g.data = <char *>cnp.PyArray_DATA(grad) + n * grad.strides[0]
            else:
                transpose(kernels, <const char *>cnp.PyArray_DATA(x) + n * x_image * size,
                          job.x.data, count, channels, h.size * w.size, threads)
                transpose(kernels, <const char *>cnp.PyArray_DATA(grad) + n * g_image * size,
                          job.g.data, count, channels, h.out * w.out, threads)
            job.chunks = count * ceil_div(h.out, job.chunk_rows)
            work = 4.0 * count * h.out * w.out * channels * taps / job.slices
            run(depthwise_weight_item, &job, job.slices, work, threads, 0)
            n += count
        for k in range(1, job.slices):
            kernels.add(sums + k * slice_bytes, sums, slice_bytes // size)
        kernels.transpose(sums, channels, cnp.PyArray_DATA(grad_weight), taps, taps, channels)
        if grad_bias is not None:
            memcpy(cnp.PyArray_DATA(grad_bias), sums + taps * channels * size,
                   <size_t>(channels * size))
    finally:
        give(job.rows)
        give(job.columns)
        give(sums)
        give(copies)
    return 0
