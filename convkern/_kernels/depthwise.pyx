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
    # Of the copy: elements of a phase and of a row; and how many rows of the output it is for.
    Py_ssize_t phase, row, out_rows


cdef void depthwise_rows(const DepthwiseJob *job, const char *x, Py_ssize_t row, Py_ssize_t count,
                         const char *weight, double bias, char *out, char *copy) noexcept nogil:
    """Some rows of an output plane, from a copy of the rows of x that their windows meet.

    What is not copied over is zero already.
    """
    cdef Py_ssize_t size = job.kernels.itemsize, top = row * job.h.stride - job.h.pad
    cdef Py_ssize_t rows = (count - 1) * job.h.stride + (job.h.kernel - 1) * job.h.dilation + 1
    cdef Py_ssize_t begin = min(rows, max(0, -top)), end = max(begin, min(rows, job.h.size - top))
    cdef ck_plane plane = job.plane
    memset(copy, 0, <size_t>(begin * job.row * size))
    memset(copy + end * job.row * size, 0, <size_t>((rows - end) * job.row * size))
    job.kernels.split_plane(x + (top + begin) * job.w.size * size, job.w.size, job.w.size,
                            end - begin, job.w.stride, job.w.pad, copy + begin * job.row * size,
                            job.row, job.phase)
    plane.rows = count
    job.kernels.depthwise_plane(&plane, copy, weight, bias, out + row * job.w.out * size)


cdef void depthwise_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Some planes of the output."""
    cdef const DepthwiseJob *job = <const DepthwiseJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, plane, channel, row
    cdef double bias = 0
    memset(scratch, 0, <size_t>(copied_rows(job) * job.row * size))
    for plane in range(item * job.per_item, min((item + 1) * job.per_item, job.planes)):
        channel, row = plane % job.channels, 0
        if job.bias != NULL:
            bias = (<const float *>job.bias)[channel] if size == 4 else (
                <const double *>job.bias)[channel]
        while row < job.h.out:
            depthwise_rows(job, job.x + plane // job.per_input * job.h.size * job.w.size * size,
                           row, min(job.out_rows, job.h.out - row),
                           job.weight + channel * job.plane.tap_rows * job.plane.taps * size, bias,
                           job.out + plane * job.h.out * job.w.out * size, scratch)
            row += job.out_rows


cdef inline Py_ssize_t copied_rows(const DepthwiseJob *job) noexcept nogil:
    """Return how many rows the copy has."""
    return (job.out_rows - 1) * job.h.stride + (job.h.kernel - 1) * job.h.dilation + 1


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
            <size_t>(copied_rows(&job) * job.row * size))
    finally:
        give(offsets)
