# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""What is done to whole channels: sums over them, normalisation.

Channels lie in memory as (outer, channels, inner): an `inner` of 1 means pixels of
neighbouring channels, otherwise planes of one channel each.
"""

cimport numpy as cnp
import numpy as np

from convkern._kernels.core cimport (
    CK_NEGATIVE_PRODUCTS,
    CK_PRODUCTS,
    CK_SQUARES,
    CK_SUM,
    ceil_div,
    ck_kernels,
    data_of,
    give,
    kernels_of,
    moved,
    run,
    take,
)

cnp.import_array()

cdef enum:
    BLOCK = 16384    # elements of an item, more or less
    CHANNELS = 512   # channels of an item


# ---------------------------------------------------------------- sums

# What is summed up: one or two sums per channel.
cdef enum Sums:
    MOMENTS           # x, then (x - mean)^2 with the mean of the piece
    GRADIENTS         # g, then g * (x - center)
    TOTAL             # x
    NEGATIVE          # x * g where x is not positive

cdef struct SumsJob:
    const ck_kernels *kernels
    const char *x
    const char *g
    const double *center
    double *partial          # (2, pieces, channels)
    double *sums             # (2, channels)
    Py_ssize_t outer, channels, inner
    Sums what
    # A piece is `images` x `part` elements of every channel, an item `group` channels of it.
    Py_ssize_t images, part, group, parts, pieces, groups


cdef inline Py_ssize_t piece_count(const SumsJob *job, Py_ssize_t piece) noexcept nogil:
    """Count the elements of a channel in one piece."""
    cdef Py_ssize_t n = piece // job.parts * job.images, p = piece % job.parts * job.part
    return min(job.images, job.outer - n) * min(job.part, job.inner - p)


cdef double planes_sum(const SumsJob *job, int term, const char *x, const char *g, double center,
                       Py_ssize_t images, Py_ssize_t length) noexcept nogil:
    """Sum the terms of one channel over the images of a piece."""
    cdef Py_ssize_t n, step = job.channels * job.inner * job.kernels.itemsize
    cdef double total = 0
    for n in range(images):
        total += job.kernels.plane_sum(term, x + n * step, g + n * step, center, length)
    return total


cdef void sums_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A group of channels of one piece."""
    cdef const SumsJob *job = <const SumsJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t c0 = item % job.groups * job.group, piece = item // job.groups, c, start
    cdef Py_ssize_t channels = min(job.group, job.channels - c0)
    cdef Py_ssize_t n0 = piece // job.parts * job.images, p0 = piece % job.parts * job.part
    cdef Py_ssize_t images = min(job.images, job.outer - n0), length = min(job.part, job.inner - p0)
    cdef double *first = job.partial + piece * job.channels + c0
    cdef double *second = first + job.pieces * job.channels
    cdef double *mean = <double *>scratch
    cdef double count = images * length
    cdef const char *x
    cdef const char *g
    start = ((n0 * job.channels + c0) * job.inner + p0) * kernels.itemsize
    x = job.x + start
    g = moved(job.g, start)
    if g == NULL:
        g = x
    if job.inner == 1:
        if job.what == NEGATIVE:
            kernels.pixel_sums(CK_NEGATIVE_PRODUCTS, x, g, NULL, images, job.channels, channels,
                               first)
            return
        kernels.pixel_sums(CK_SUM, g if job.what == GRADIENTS else x, NULL, NULL, images,
                           job.channels, channels, first)
        if job.what == MOMENTS:
            for c in range(channels):
                mean[c] = first[c] / count
            kernels.pixel_sums(CK_SQUARES, x, NULL, mean, images, job.channels, channels, second)
        elif job.what == GRADIENTS:
            kernels.pixel_sums(CK_PRODUCTS, x, g, job.center + c0, images, job.channels, channels,
                               second)
        return
    for c in range(channels):
        if job.what == NEGATIVE:
            first[c] = planes_sum(job, CK_NEGATIVE_PRODUCTS, x, g, 0, images, length)
        else:
            first[c] = planes_sum(job, CK_SUM, g if job.what == GRADIENTS else x, g, 0, images,
                                  length)
        if job.what == MOMENTS:
            second[c] = planes_sum(job, CK_SQUARES, x, x, first[c] / count, images, length)
        elif job.what == GRADIENTS:
            second[c] = planes_sum(job, CK_PRODUCTS, x, g, job.center[c0 + c], images, length)
        x += job.inner * kernels.itemsize
        g += job.inner * kernels.itemsize


cdef void combine_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Add up the pieces of a group of channels, in their order.

    Squares about the means of the pieces become squares about the mean of all:
    sum (x - mean)^2 = sum over pieces of (squares + count * (piece's mean - mean)^2).
    """
    cdef const SumsJob *job = <const SumsJob *>job_
    cdef Py_ssize_t begin = item * CHANNELS, end = min(begin + CHANNELS, job.channels), c, piece
    cdef const double *first = job.partial
    cdef const double *second = first + job.pieces * job.channels
    cdef double *mean = job.sums
    cdef double *other = mean + job.channels
    cdef double count, shift, total = job.outer * job.inner
    for c in range(begin, end):
        mean[c] = other[c] = 0
    for piece in range(job.pieces):
        for c in range(begin, end):
            mean[c] += first[piece * job.channels + c]
    if job.what == MOMENTS:
        for c in range(begin, end):
            mean[c] /= total
    if job.what != MOMENTS and job.what != GRADIENTS:
        return
    for piece in range(job.pieces):
        count = piece_count(job, piece)
        for c in range(begin, end):
            other[c] += second[piece * job.channels + c]
            if job.what == MOMENTS:
                shift = first[piece * job.channels + c] / count - mean[c]
                other[c] += count * shift * shift


cdef cnp.ndarray channel_sums(Sums what, cnp.ndarray x, cnp.ndarray grad, cnp.ndarray center,
                              tuple cut, int threads):
    """Return the sums of every channel as a float64 array (2, channels)."""
    cdef SumsJob job
    cdef cnp.ndarray sums = np.empty((2, cut[1]))
    job.kernels, job.what = kernels_of(x), what
    job.x, job.g = <const char *>cnp.PyArray_DATA(x), data_of(grad)
    job.center = <const double *>data_of(center)
    job.sums = <double *>cnp.PyArray_DATA(sums)
    job.outer, job.channels, job.inner = cut
    job.part = min(job.inner, <Py_ssize_t>BLOCK)
    job.group = min(job.channels, max(1, min(<Py_ssize_t>CHANNELS, BLOCK // job.part)))
    job.images = max(1, BLOCK // (job.part * job.group))
    job.parts = ceil_div(job.inner, job.part)
    job.pieces = ceil_div(job.outer, job.images) * job.parts
    job.groups = ceil_div(job.channels, job.group)
    cdef double work = 8.0 * job.images * job.part * job.group
    job.partial = <double *>take(<size_t>(2 * job.pieces * job.channels) * sizeof(double) + 1)
    try:
        run(sums_item, &job, job.pieces * job.groups, work, threads,
            <size_t>job.group * sizeof(double))
        run(combine_item, &job, ceil_div(job.channels, CHANNELS), 4.0 * job.pieces * CHANNELS,
            threads, 0)
    finally:
        give(job.partial)
    return sums


def moments(cnp.ndarray x, tuple cut, int threads):
    """Return the mean and the biased variance of every channel, in float64."""
    mean, squares = channel_sums(MOMENTS, x, None, None, cut, threads)
    squares /= cut[0] * cut[2]
    return mean, squares


def gradient_sums(cnp.ndarray grad, cnp.ndarray x, cnp.ndarray center, tuple cut, int threads):
    """Return sum grad and sum grad * (x - center) of every channel, in float64."""
    return channel_sums(GRADIENTS, x, grad, center, cut, threads)


def totals(cnp.ndarray x, tuple cut, int threads):
    """Return the sum of every channel, in float64."""
    return channel_sums(TOTAL, x, None, None, cut, threads)[0]


def negative_products(cnp.ndarray x, cnp.ndarray grad, tuple cut, int threads):
    """Return the sum of x * grad of every channel where x is not positive, in float64."""
    return channel_sums(NEGATIVE, x, grad, None, cut, threads)[0]


# ---------------------------------------------------------------- affine maps

cdef struct AffineJob:
    const ck_kernels *kernels
    const char *x
    const char *g
    const char *coefficients
    char *y
    Py_ssize_t outer, channels, inner, block


cdef void affine_pixels_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef const AffineJob *job = <const AffineJob *>job_
    cdef Py_ssize_t first = item * job.block
    cdef Py_ssize_t start = first * job.channels * job.kernels.itemsize
    job.kernels.affine_pixels(job.x + start, moved(job.g, start),
                              job.y + start, min(job.block, job.outer - first), job.coefficients,
                              job.channels)


cdef void affine_planes_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef const AffineJob *job = <const AffineJob *>job_
    cdef Py_ssize_t first = item * job.block, size = job.kernels.itemsize, plane, start
    for plane in range(first, min(first + job.block, job.outer * job.channels)):
        start = plane * job.inner * size
        job.kernels.affine_plane(job.x + start, moved(job.g, start),
                                 job.y + start, job.inner,
                                 job.coefficients + plane % job.channels * size, job.channels)


def affine(cnp.ndarray x, cnp.ndarray grad, cnp.ndarray y, cnp.ndarray coefficients, tuple cut,
           int threads):
    """Compute y = (x - center) * scale + shift + grad * gain per channel; grad may be None.

    `coefficients` is (4, channels): center, scale, shift, gain.
    """
    cdef AffineJob job
    job.kernels = kernels_of(x)
    job.x, job.y = <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(y)
    job.g, job.coefficients = data_of(grad), <const char *>cnp.PyArray_DATA(coefficients)
    job.outer, job.channels, job.inner = cut
    if job.inner == 1:
        job.block = max(1, BLOCK // job.channels)
        run(affine_pixels_item, &job, ceil_div(job.outer, job.block),
            8.0 * job.block * job.channels, threads, 0)
    else:
        job.block = max(1, BLOCK // job.inner)
        run(affine_planes_item, &job, ceil_div(job.outer * job.channels, job.block),
            8.0 * job.block * job.inner, threads, 0)


# ---------------------------------------------------------------- local response normalisation

cdef struct ResponseJob:
    const ck_kernels *kernels
    const char *x
    const char *g
    char *y
    Py_ssize_t pixels, channels, window
    double alpha, beta, k

cdef enum:
    PIXELS = 16  # of an item


cdef void local_response_norm_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A block of channels-last pixels."""
    cdef const ResponseJob *job = <const ResponseJob *>job_
    cdef Py_ssize_t pixel, start
    for pixel in range(item * PIXELS, min((item + 1) * PIXELS, job.pixels)):
        start = pixel * job.channels * job.kernels.itemsize
        if job.g == NULL:
            job.kernels.local_response_norm(job.x + start, job.y + start, job.channels, job.window,
                                            job.alpha, job.beta, job.k, scratch)
        else:
            job.kernels.local_response_norm_backward(
                job.g + start, job.x + start, job.y + start, job.channels, job.window, job.alpha,
                job.beta, job.k, scratch)


def local_response_norm(cnp.ndarray x, cnp.ndarray y, Py_ssize_t channels, Py_ssize_t window,
                        double alpha, double beta, double k, int threads, cnp.ndarray grad=None):
    """Normalise pixels of `channels` contiguous elements, or compute the gradient from `grad`."""
    cdef ResponseJob job
    job.kernels = kernels_of(x)
    job.x, job.y = <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(y)
    job.g = data_of(grad)
    job.pixels, job.channels, job.window = x.size // channels, channels, window
    job.alpha, job.beta, job.k = alpha, beta, k
    run(local_response_norm_item, &job, ceil_div(job.pixels, PIXELS), 30.0 * channels * PIXELS,
        threads, <size_t>(2 * (channels + window) * job.kernels.itemsize))
