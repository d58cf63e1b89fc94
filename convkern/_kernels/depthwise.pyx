# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Depthwise convolution of contiguous NCHW images where they lie: lanes along the rows.

Some rows of a plane at a time are copied with zeros around them, each split into the phases of
the stride: then every tap reads pixels that lie side by side, in the first-level cache.
"""

from libc.string cimport memset

cimport numpy as cnp

from convkern._kernels.core cimport (
    Axis,
    axis,
    ceil_div,
    ck_kernels,
    ck_plane,
    data_of,
    give,
    kernels_of,
    run,
    take,
)

cnp.import_array()

cdef enum:
    PIXELS = 4096              # of an item
    COPY_BYTES = 16 << 10      # of a plane that are copied at a time,
    FEWEST_ROWS = 8            # but for so many rows of the output

cdef struct DepthwiseJob:
    const ck_kernels *kernels
    const char *x
    const char *weight
    const char *bias
    char *out
    Axis h, w
    ck_plane plane
    Py_ssize_t planes, per_input, channels, per_item
    # Of the copy: elements of a phase and of a row; and how many rows of
    # the output it is for, of how many planes at a time.
    Py_ssize_t phase, row, out_rows, together


cdef inline Py_ssize_t copied_rows(const DepthwiseJob *job) noexcept nogil:
    """Return how many rows the copy has."""
    return (job.out_rows - 1) * job.h.stride + (job.h.kernel - 1) * job.h.dilation + 1


cdef void copy_rows(const DepthwiseJob *job, const char *x, Py_ssize_t row, Py_ssize_t count,
                    char *copy) noexcept nogil:
    """Copy the rows of x that the windows of some output rows meet, between zeros."""
    cdef Py_ssize_t size = job.kernels.itemsize, top = row * job.h.stride - job.h.pad
    cdef Py_ssize_t rows = (count - 1) * job.h.stride + (job.h.kernel - 1) * job.h.dilation + 1
    cdef Py_ssize_t begin = min(rows, max(0, -top)), end = max(begin, min(rows, job.h.size - top))
    memset(copy, 0, <size_t>(begin * job.row * size))
    memset(copy + end * job.row * size, 0, <size_t>((rows - end) * job.row * size))
    # Left and right of the image there are zeros already.
    job.kernels.split_plane(x + (top + begin) * job.w.size * size, job.w.size, job.w.size,
                            end - begin, job.w.stride, job.w.pad, copy + begin * job.row * size,
                            job.row, job.phase)


cdef void depthwise_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Some planes of the output."""
    cdef const DepthwiseJob *job = <const DepthwiseJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, plane = item * job.per_item, stop, i, row
    cdef Py_ssize_t last = min(plane + job.per_item, job.planes), channel
    cdef Py_ssize_t copy = copied_rows(job) * job.row * size
    cdef ck_plane rows = job.plane
    cdef double bias = 0
    memset(scratch, 0, <size_t>(job.together * copy))
    while plane < last:
        stop, row = min(plane + job.together, last), 0
        while row < job.h.out:
            rows.rows = min(job.out_rows, job.h.out - row)
            # All are copied before the first is read: stores have reached the cache by then.
            for i in range(plane, stop):
                copy_rows(job, job.x + i // job.per_input * job.h.size * job.w.size * size, row,
                          rows.rows, scratch + (i - plane) * copy)
            for i in range(plane, stop):
                channel = i % job.channels
                if job.bias != NULL:
                    bias = (<const float *>job.bias)[channel] if size == 4 else (
                        <const double *>job.bias)[channel]
                job.kernels.depthwise_plane(
                    &rows, scratch + (i - plane) * copy,
                    job.weight + channel * job.plane.tap_rows * job.plane.taps * size, bias,
                    job.out + (i * job.h.out + row) * job.w.out * size)
            row += job.out_rows
        plane = stop


def depthwise_planes(cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias, cnp.ndarray out,
                     tuple rows, tuple columns, int activation, double slope, int threads):
    """Convolve contiguous NCHW images, each channel by filters of its own; weight (OC, 1, KH, KW)."""
    cdef DepthwiseJob job
    cdef const ck_kernels *kernels = kernels_of(x)
    cdef Py_ssize_t size = kernels.itemsize, lanes = kernels.lanes, s, reach
    cdef ptrdiff_t *offsets
    cdef double work
    job.kernels, job.x, job.weight = kernels, data_of(x), data_of(weight)
    job.bias, job.out = data_of(bias), <char *>cnp.PyArray_DATA(out)
    job.h, job.w = axis(x.shape[2], out.shape[2], rows), axis(x.shape[3], out.shape[3], columns)
    job.channels = out.shape[1]
    job.planes, job.per_input = out.shape[0] * out.shape[1], out.shape[1] // x.shape[1]
    reach = (job.w.kernel - 1) * job.w.dilation
    job.phase = ceil_div(job.w.out, lanes) * lanes + reach // job.w.stride + 1
    job.row = job.phase * job.w.stride
    job.out_rows = max(<Py_ssize_t>FEWEST_ROWS, COPY_BYTES // (job.row * job.h.stride * size))
    job.out_rows = ceil_div(job.h.out, ceil_div(job.h.out, job.out_rows))
    job.together = max(1, COPY_BYTES // (copied_rows(&job) * job.row * size))
    job.plane.columns = job.w.out
    job.plane.tap_rows, job.plane.taps = job.h.kernel, job.w.kernel
    job.plane.x_step, job.plane.x_tap = job.h.stride * job.row, job.h.dilation * job.row
    job.plane.activation, job.plane.slope = activation, slope
    job.per_item = max(1, PIXELS // (job.h.out * job.w.out))
    offsets = <ptrdiff_t *>take(<size_t>job.w.kernel * sizeof(ptrdiff_t))
    for s in range(job.w.kernel):
        offsets[s] = s * job.w.dilation % job.w.stride * job.phase + (
            s * job.w.dilation // job.w.stride)
    job.plane.offsets = offsets
    work = 2.0 * job.per_item * (
        job.h.size * job.w.size + job.h.out * job.w.out * job.h.kernel * job.w.kernel)
    try:
        run(depthwise_item, &job, ceil_div(job.planes, job.per_item), work, threads,
            <size_t>(job.together * copied_rows(&job) * job.row * size))
    finally:
        give(offsets)
