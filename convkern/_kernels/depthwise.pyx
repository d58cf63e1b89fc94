# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Depthwise convolution of contiguous NCHW images where they lie: lanes along the rows.

A plane is copied with zeros around it, its rows split into the phases of the stride:
then every tap reads pixels that lie side by side.
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
    PIXELS = 4096  # of an item

cdef struct DepthwiseJob:
    const ck_kernels *kernels
    const char *x
    const char *weight
    const char *bias
    char *out
    Axis h, w
    ck_plane plane
    Py_ssize_t planes, per_input, channels, per_item
    # Of the copy: rows above the first of the image, rows in all, elements of a phase and of a row.
    Py_ssize_t top, rows, phase, row


cdef void split_plane(const DepthwiseJob *job, const char *x, char *copy) noexcept nogil:
    """Copy a plane with zeros around it, phase by phase."""
    cdef Py_ssize_t size = job.kernels.itemsize, row, y, p, first, begin, end
    for row in range(job.rows):
        y = row - job.top
        if not 0 <= y < job.h.size:
            memset(copy, 0, <size_t>(job.row * size))
            copy += job.row * size
            continue
        for p in range(job.w.stride):
            # Element i is pixel i*stride + p - pad.
            first = p - job.w.pad
            begin = 0 if first >= 0 else ceil_div(-first, job.w.stride)
            end = 0 if job.w.size <= first else ceil_div(job.w.size - first, job.w.stride)
            begin = min(begin, job.phase)
            end = max(begin, min(end, job.phase))
            job.kernels.gather_row(x + (y * job.w.size + first) * size, job.w.stride, begin, end,
                                   copy, job.phase)
            copy += job.phase * size


cdef void depthwise_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Some planes of the output."""
    cdef const DepthwiseJob *job = <const DepthwiseJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, index, plane, source, copied = -1, channel
    cdef double bias = 0
    for index in range(job.per_item):
        plane = item * job.per_item + index
        if plane >= job.planes:
            return
        channel, source = plane % job.channels, plane // job.per_input
        if source != copied:
            split_plane(job, job.x + source * job.h.size * job.w.size * size, scratch)
            copied = source
        if job.bias != NULL:
            bias = (<const float *>job.bias)[channel] if size == 4 else (
                <const double *>job.bias)[channel]
        kernels.depthwise_plane(
            &job.plane, scratch, job.weight + channel * job.plane.tap_rows * job.plane.taps * size,
            bias, job.out + plane * job.plane.rows * job.plane.columns * size)


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
    job.top = max(0, job.h.pad)
    job.rows = (job.h.out - 1) * job.h.stride + (job.h.kernel - 1) * job.h.dilation + 1
    job.rows += job.top - job.h.pad
    job.plane.rows, job.plane.columns = job.h.out, job.w.out
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
        job.rows * job.row + job.h.out * job.w.out * job.h.kernel * job.w.kernel)
    try:
        run(depthwise_item, &job, ceil_div(job.planes, job.per_item), work, threads,
            <size_t>(job.rows * job.row * size))
    finally:
        give(offsets)
