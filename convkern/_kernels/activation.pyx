# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Activations, sums and softmax, on elements in memory order."""

from libc.string cimport memcpy

cimport numpy as cnp

from convkern._kernels.core cimport (
    CK_LEAKY_RELU,
    CK_SOFTMAX_COLUMNS,
    CK_WORK_OF_ELEMENT,
    ceil_div,
    ck_kernels,
    data_of,
    kernels_of,
    moved,
    run,
)

cnp.import_array()

cdef enum:
    BLOCK = 16384  # elements of an item
    PIECE = 2048   # elements that stay in the first-level cache between two kernels


# ---------------------------------------------------------------- element by element

cdef struct MapJob:
    const ck_kernels *kernels
    const char *x
    const char *g
    char *y
    Py_ssize_t length
    int activation
    double slope


cdef void activate_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef const MapJob *job = <const MapJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, start = item * BLOCK * size
    cdef Py_ssize_t length = min(<Py_ssize_t>BLOCK, job.length - item * BLOCK)
    if job.g == NULL:
        job.kernels.activate(job.x + start, job.y + start, length, job.activation, job.slope)
    else:
        job.kernels.activate_backward(job.g + start, job.x + start, job.y + start, length,
                                      job.activation, job.slope)


def activate(cnp.ndarray x, cnp.ndarray y, int activation, double slope, int threads,
             cnp.ndarray grad=None):
    """Apply an activation to x, or its derivative to a gradient.

    All arrays are laid out alike; the derivative is taken from the activation's
    output (ReLU, sigmoid) or input (leaky ReLU).
    """
    cdef MapJob job
    job.kernels = kernels_of(x)
    job.x, job.y = <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(y)
    job.g = data_of(grad)
    job.length, job.activation, job.slope = x.size, activation, slope
    run(activate_item, &job, ceil_div(job.length, BLOCK), CK_WORK_OF_ELEMENT * BLOCK, threads, 0)


cdef void add_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef const MapJob *job = <const MapJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, i = item * BLOCK, length
    cdef Py_ssize_t end = min(i + BLOCK, job.length)
    while i < end:
        length = min(<Py_ssize_t>PIECE, end - i)
        if job.x != job.y:
            memcpy(job.y + i * size, job.x + i * size, <size_t>(length * size))
        job.kernels.add(job.g + i * size, job.y + i * size, length)
        if job.activation:
            job.kernels.activate(job.y + i * size, job.y + i * size, length, job.activation,
                                 job.slope)
        i += length


def add(cnp.ndarray a, cnp.ndarray b, cnp.ndarray y, int activation, double slope, int threads):
    """Compute y = activation(a + b); all arrays are laid out alike, and y may be a, but not b."""
    cdef MapJob job
    job.kernels = kernels_of(a)
    job.x, job.g = <const char *>cnp.PyArray_DATA(a), <const char *>cnp.PyArray_DATA(b)
    job.y = <char *>cnp.PyArray_DATA(y)
    job.length, job.activation, job.slope = a.size, activation, slope
    run(add_item, &job, ceil_div(job.length, BLOCK), CK_WORK_OF_ELEMENT * BLOCK, threads, 0)


# ---------------------------------------------------------------- one slope per channel

cdef struct PreluJob:
    const ck_kernels *kernels
    const char *x
    const char *g
    const double *slopes
    const char *weight
    char *y
    Py_ssize_t outer, channels, inner, block


cdef void prelu_pixels_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef const PreluJob *job = <const PreluJob *>job_
    cdef Py_ssize_t first = item * job.block, size = job.kernels.itemsize
    cdef Py_ssize_t start = first * job.channels * size
    cdef const char *g = job.g
    if g == NULL:
        g = job.x
    job.kernels.prelu_pixels(job.x + start, g + start, job.weight, job.y + start,
                             min(job.block, job.outer - first), job.channels)


cdef void prelu_planes_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef const PreluJob *job = <const PreluJob *>job_
    cdef Py_ssize_t plane, start, first = item * job.block, size = job.kernels.itemsize
    for plane in range(first, min(first + job.block, job.outer * job.channels)):
        start = plane * job.inner * size
        if job.g == NULL:
            job.kernels.activate(job.x + start, job.y + start, job.inner, CK_LEAKY_RELU,
                                 job.slopes[plane % job.channels])
        else:
            job.kernels.activate_backward(job.g + start, job.x + start, job.y + start, job.inner,
                                          CK_LEAKY_RELU, job.slopes[plane % job.channels])


def prelu(cnp.ndarray x, cnp.ndarray weight, cnp.ndarray y, tuple cut, int threads,
          cnp.ndarray grad=None):
    """Scale what is not positive by its channel's slope: x itself, or a gradient.

    `cut` says how the memory of the arrays is divided: (outer, channels, inner).
    """
    cdef PreluJob job
    cdef cnp.ndarray slopes = weight.astype("f8")
    job.kernels = kernels_of(x)
    job.x, job.y = <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(y)
    job.g = data_of(grad)
    job.weight = <const char *>cnp.PyArray_DATA(weight)
    job.slopes = <const double *>cnp.PyArray_DATA(slopes)
    job.outer, job.channels, job.inner = cut
    if job.inner == 1:
        job.block = max(1, BLOCK // job.channels)
        run(prelu_pixels_item, &job, ceil_div(job.outer, job.block),
            CK_WORK_OF_ELEMENT * job.block * job.channels, threads, 0)
    else:
        job.block = max(1, BLOCK // job.inner)
        run(prelu_planes_item, &job, ceil_div(job.outer * job.channels, job.block),
            CK_WORK_OF_ELEMENT * job.block * job.inner, threads, 0)


# ---------------------------------------------------------------- softmax

cdef struct SoftmaxJob:
    const ck_kernels *kernels
    const char *x
    const char *g
    const char *scale
    char *y
    Py_ssize_t length, inner, columns, block, blocks
    int logs


cdef void softmax_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A block of neighbouring columns."""
    cdef const SoftmaxJob *job = <const SoftmaxJob *>job_
    cdef Py_ssize_t outer = item // job.blocks, first = item % job.blocks * job.block
    cdef Py_ssize_t size = job.kernels.itemsize, columns = min(job.block, job.columns - first)
    cdef Py_ssize_t start = (outer * job.columns * job.length
                             + first * (job.length if job.inner == 1 else 1)) * size
    if job.g != NULL:
        job.kernels.softmax_backward(job.g + start, job.x + start, job.y + start, job.length,
                                     job.inner, columns)
    else:
        job.kernels.softmax(
            job.x + start, job.y + start, job.length, job.inner, columns,
            moved(job.scale, (outer * job.columns + first) * size),
            job.logs)


def softmax(cnp.ndarray x, cnp.ndarray y, tuple cut, int threads, cnp.ndarray grad=None,
            cnp.ndarray scale=None, bint logs=False):
    """Write the softmax of x, its logarithm, or (from the softmax x) its gradient into y.

    `cut` is (outer, length, inner): elements `inner` apart in memory belong
    together.  `scale` has one factor for each of the outer * inner results.
    """
    cdef SoftmaxJob job
    cdef Py_ssize_t outer
    job.kernels = kernels_of(x)
    job.x, job.y = <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(y)
    job.g, job.scale, job.logs = data_of(grad), data_of(scale), logs
    outer, job.length, job.inner = cut
    if job.inner == 1:
        job.columns, outer = outer, 1
        job.block = max(1, BLOCK // 4 // job.length)
    else:
        job.columns, job.block = job.inner, CK_SOFTMAX_COLUMNS
    job.blocks = ceil_div(job.columns, job.block)
    run(softmax_item, &job, outer * job.blocks, 40.0 * job.block * job.length, threads, 0)
