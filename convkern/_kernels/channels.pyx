# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""What is done to whole channels: sums over them, normalisation.

Channels lie in memory as (outer, channels, inner): an `inner` of 1 means pixels of
neighbouring channels, otherwise planes of one channel each.
"""

cimport cython
from libc.math cimport isfinite, sqrt
from libc.stdint cimport int64_t
from libc.string cimport memcpy

cimport numpy as cnp
import numpy as np

from convkern._kernels.core cimport (
    CK_NEGATIVE_PRODUCTS,
    CK_RELU,
    CK_SUM,
    CK_WORK_OF_ELEMENT,
    ceil_div,
    ck_affine,
    ck_kernels,
    data_of,
    give,
    kernels_of,
    moved,
    run,
    take,
)

cnp.import_array()

cdef extern from *:
    """
    #include <stdint.h>
    /* Returns what is left; all that other threads wrote before is seen by the last one. */
    static inline int64_t ck_missing(int64_t *missing, int64_t count)
    {
        return __atomic_sub_fetch(missing, count, __ATOMIC_ACQ_REL);
    }
    """
    int64_t ck_missing(int64_t *missing, int64_t count) nogil

cdef enum:
    BLOCK = 16384    # elements of an item, more or less
    CHANNELS = 512   # channels of an item


# ---------------------------------------------------------------- sums

cdef inline Py_ssize_t piece_count(const SumsJob *job, Py_ssize_t piece) noexcept nogil:
    """Count the elements of a channel in one piece."""
    cdef Py_ssize_t n = piece // job.parts % job.per_unit * job.images
    cdef Py_ssize_t p = piece % job.parts * job.part
    return min(job.images, job.unit - n) * min(job.part, job.inner - p)


cdef double planes_sum(const SumsJob *job, int term, const char *x, const char *g,
                       Py_ssize_t images, Py_ssize_t length) noexcept nogil:
    """Sum the terms of one channel over the images of a piece."""
    cdef Py_ssize_t n, step = job.channels * job.inner * job.kernels.itemsize
    cdef double total = 0
    for n in range(images):
        total += job.kernels.plane_sum(term, x + n * step, g + n * step, length)
    return total


cdef void planes_pairs(const SumsJob *job, const char *x, const char *g, double center,
                       const char *map, Py_ssize_t images, Py_ssize_t length, double *first,
                       double *second) noexcept nogil:
    """Make the two sums of one channel over the images of a piece."""
    cdef Py_ssize_t n, step = job.channels * job.inner * job.kernels.itemsize
    first[0] = second[0] = 0
    for n in range(images):
        job.kernels.plane_pairs(x + n * step, moved(g, n * step), center, map, job.channels, length,
                                first, second)


cdef void sums_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A group of channels of one piece."""
    cdef const SumsJob *job = <const SumsJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t c0 = item % job.groups * job.group, piece = item // job.groups, c, start
    cdef Py_ssize_t channels = min(job.group, job.channels - c0)
    cdef Py_ssize_t n0 = piece // job.parts % job.per_unit * job.images
    cdef Py_ssize_t p0 = piece % job.parts * job.part
    cdef Py_ssize_t images = min(job.images, job.unit - n0), length = min(job.part, job.inner - p0)
    cdef double *first = job.partial + piece * job.channels + c0
    cdef double *second = first + job.pieces * job.channels
    cdef double *mean = <double *>scratch
    cdef double count = images * length
    cdef const char *x
    cdef const char *g
    cdef const char *map = moved(job.rectified, c0 * kernels.itemsize)
    n0 += piece // job.parts // job.per_unit * job.unit
    start = ((n0 * job.channels + c0) * job.inner + p0) * kernels.itemsize
    x = job.x + start
    g = moved(job.g, start)
    if g == NULL:
        g = x
    if job.inner == 1:
        if job.what == NEGATIVE:
            kernels.pixel_sums(CK_NEGATIVE_PRODUCTS, x, g, images, job.channels, channels, first)
            return
        if job.what == GRADIENTS:
            kernels.pixel_pairs(x, g, job.center + c0, map, job.channels, images, job.channels,
                                channels, first, second)
            return
        kernels.pixel_sums(CK_SUM, x, NULL, images if job.what == TOTAL else 1, job.channels,
                           channels, first)
        if job.what == TOTAL:
            return
        # About the first pixel, which is among them, squares lose nothing that matters.
        for c in range(channels):
            mean[c] = first[c] if isfinite(first[c]) else 0
        kernels.pixel_pairs(x, NULL, mean, NULL, 0, images, job.channels, channels, first, second)
        for c in range(channels):
            second[c] -= first[c] * first[c] / count
            first[c] += count * mean[c]
        return
    for c in range(channels):
        if job.what == NEGATIVE:
            first[c] = planes_sum(job, CK_NEGATIVE_PRODUCTS, x, g, images, length)
        elif job.what == TOTAL:
            first[c] = planes_sum(job, CK_SUM, x, x, images, length)
        elif job.what == GRADIENTS:
            planes_pairs(job, x, g, job.center[c0 + c], moved(map, c * kernels.itemsize), images,
                         length, first + c, second + c)
        else:  # about the first element, as above
            kernels.pixel_sums(CK_SUM, x, NULL, 1, 1, 1, mean)
            mean[0] = mean[0] if isfinite(mean[0]) else 0
            planes_pairs(job, x, NULL, mean[0], NULL, images, length, first + c, second + c)
            second[c] -= first[c] * first[c] / count
            first[c] += count * mean[0]
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


cdef void cut_sums(SumsJob *job, tuple cut, Py_ssize_t unit) noexcept:
    """Cut (outer, channels, inner) into pieces and groups."""
    job.outer, job.channels, job.inner = cut
    job.unit = unit or job.outer
    job.part = min(job.inner, <Py_ssize_t>BLOCK)
    job.group = min(job.channels, max(1, min(<Py_ssize_t>CHANNELS, BLOCK // job.part)))
    job.images = max(1, BLOCK // (job.part * job.group))
    job.parts = ceil_div(job.inner, job.part)
    job.per_unit = ceil_div(job.unit, job.images)
    job.pieces = job.outer // job.unit * job.per_unit * job.parts
    job.groups = ceil_div(job.channels, job.group)


cdef cnp.ndarray channel_sums(Sums what, cnp.ndarray x, cnp.ndarray grad, cnp.ndarray center,
                              tuple cut, int threads, cnp.ndarray rectified=None,
                              Py_ssize_t unit=0):
    """Return the sums of every channel as a float64 array (2, channels)."""
    cdef SumsJob job
    cdef cnp.ndarray sums = np.empty((2, cut[1]))
    job.kernels, job.what = kernels_of(x), what
    job.x, job.g = <const char *>cnp.PyArray_DATA(x), data_of(grad)
    job.center = <const double *>data_of(center)
    job.rectified, job.sums = data_of(rectified), <double *>cnp.PyArray_DATA(sums)
    cut_sums(&job, cut, unit)
    cdef double work = CK_WORK_OF_ELEMENT * job.images * job.part * job.group
    job.partial = <double *>take(<size_t>(2 * job.pieces * job.channels) * sizeof(double) + 1)
    try:
        run(sums_item, &job, job.pieces * job.groups, work, threads,
            <size_t>job.group * sizeof(double))
        combine(&job, threads)
    finally:
        give(job.partial)
    return sums


cdef int combine(const SumsJob *job, int threads) except -1:
    """Add up all pieces."""
    return run(combine_item, job, ceil_div(job.channels, CHANNELS), 4.0 * job.pieces * CHANNELS,
               threads, 0)


def moments(cnp.ndarray x, tuple cut, int threads, Py_ssize_t unit=0):
    """Return the mean and the biased variance of every channel, in float64.

    Pieces of the sum end where `unit` outer elements do, if that is not 0.
    """
    mean, squares = channel_sums(MOMENTS, x, None, None, cut, threads, None, unit)
    squares /= cut[0] * cut[2]
    return mean, squares


@cython.final
cdef class ImageMoments:
    """The `moments` of channels-last images, of pieces that end with an image, made while a
    convolution writes them: by the thread that completes an image, from its cache."""

    def __cinit__(self, cnp.ndarray x):
        """Expect all outputs of dense images, (N, C, H, W)."""
        cdef Py_ssize_t pixels = x.shape[2] * x.shape[3], n
        self.images, self.first = x.shape[0], 0
        self.job.kernels, self.job.what = kernels_of(x), MOMENTS
        self.job.x = <const char *>cnp.PyArray_DATA(x)
        self.job.g = self.job.rectified = NULL
        self.job.center = NULL
        self.sums = np.empty((2, x.shape[1]))
        self.job.sums = <double *>cnp.PyArray_DATA(self.sums)
        cut_sums(&self.job, (self.images * pixels, x.shape[1], 1), pixels)
        self.job.partial = <double *>take(
            <size_t>(2 * self.job.pieces * self.job.channels) * sizeof(double) + 1)
        self.scratch = take(<size_t>(self.images * self.job.group) * sizeof(double) + 1)
        self.missing = <int64_t *>take(<size_t>self.images * sizeof(int64_t) + 1)
        for n in range(self.images):
            self.missing[n] = pixels * self.job.channels

    def __dealloc__(self):
        give(self.job.partial)
        give(self.scratch)
        give(self.missing)

    def begin(self, Py_ssize_t image):
        """Say which image is the first of the next call."""
        self.first = image

    def result(self, int threads):
        """Return mean and biased variance, or None if not all outputs have come."""
        cdef Py_ssize_t n
        for n in range(self.images):
            if self.missing[n]:
                return None
        combine(&self.job, threads)
        mean, squares = self.sums
        squares /= self.job.outer
        return mean, squares


cdef Arrivals arrivals_of(ImageMoments moments) noexcept:
    """Return what the threads need, or NULLs for None."""
    if moments is None:
        return Arrivals(NULL, NULL, NULL)
    return Arrivals(&moments.job, moments.missing, moments.scratch)


cdef void outputs_came(const Arrivals *arrivals, Py_ssize_t image, int64_t count) noexcept nogil:
    """Note that so many outputs of an image are there; whoever brings the last ones adds up."""
    cdef const SumsJob *job = arrivals.job
    cdef Py_ssize_t items = job.per_unit * job.groups, item
    if ck_missing(&arrivals.missing[image], count) == 0:
        for item in range(image * items, (image + 1) * items):
            sums_item(job, item, arrivals.scratch + image * job.group * sizeof(double))


def gradient_sums(cnp.ndarray grad, cnp.ndarray x, cnp.ndarray center, tuple cut, int threads,
                  cnp.ndarray rectified=None):
    """Return sum grad and sum grad * (x - center) of every channel, in float64.

    `rectified` are the coefficients of an affine map of x, (4, channels), if grad is the
    gradient behind the ReLU that follows that.
    """
    return channel_sums(GRADIENTS, x, grad, center, cut, threads, rectified)


def totals(cnp.ndarray x, tuple cut, int threads):
    """Return the sum of every channel, in float64."""
    return channel_sums(TOTAL, x, None, None, cut, threads)[0]


def rounded_totals(cnp.ndarray x, tuple cut, int threads):
    """Return the same sums in the dtype of x."""
    cdef cnp.ndarray sums = channel_sums(TOTAL, x, None, None, cut, threads)
    cdef cnp.npy_intp channels = cnp.PyArray_DIM(sums, 1), c
    cdef const double *exact = <const double *>cnp.PyArray_DATA(sums)
    cdef cnp.ndarray rounded = cnp.PyArray_SimpleNew(1, &channels, cnp.PyArray_TYPE(x))
    for c in range(channels):
        if cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE:
            (<double *>cnp.PyArray_DATA(rounded))[c] = exact[c]
        else:
            (<float *>cnp.PyArray_DATA(rounded))[c] = <float>exact[c]
    return rounded


def negative_products(cnp.ndarray x, cnp.ndarray grad, tuple cut, int threads):
    """Return the sum of x * grad of every channel where x is not positive, in float64."""
    return channel_sums(NEGATIVE, x, grad, None, cut, threads)[0]


# ---------------------------------------------------------------- affine maps

cdef struct AffineJob:
    const ck_kernels *kernels
    ck_affine affine
    const char *x
    const char *g
    char *y
    Py_ssize_t outer, inner, block


cdef void affine_pixels_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef const AffineJob *job = <const AffineJob *>job_
    cdef Py_ssize_t first = item * job.block
    cdef Py_ssize_t start = first * job.affine.channels * job.kernels.itemsize
    job.kernels.affine_pixels(&job.affine, job.x + start, moved(job.g, start), job.y + start,
                              min(job.block, job.outer - first))


cdef void affine_planes_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    cdef const AffineJob *job = <const AffineJob *>job_
    cdef Py_ssize_t first = item * job.block, channels = job.affine.channels, plane, start
    for plane in range(first, min(first + job.block, job.outer * channels)):
        start = plane * job.inner * job.kernels.itemsize
        job.kernels.affine_plane(&job.affine, plane % channels, job.x + start,
                                 moved(job.g, start), job.y + start, job.inner)


def affine(cnp.ndarray x, cnp.ndarray grad, cnp.ndarray y, cnp.ndarray coefficients, tuple cut,
           int threads, bint relu=False, cnp.ndarray rectified=None, bint after_relu=False):
    """Compute y = (x - center) * scale + shift + grad * gain per channel; grad may be None.

    `coefficients` is (4, channels): center, scale, shift, gain.  With `relu` no y is negative;
    `rectified` is as for `gradient_sums`.  With `after_relu` y is 0 where x is not positive: the
    gradient of the ReLU whose output x is.
    """
    cdef AffineJob job
    cdef Py_ssize_t items, length, channels
    cdef size_t bytes = <size_t>coefficients.nbytes
    cdef char *rows
    job.kernels = kernels_of(x)
    job.x, job.y = <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(y)
    job.g = data_of(grad)
    job.outer, channels, job.inner = cut
    length = channels if job.inner == 1 else job.inner
    job.block = max(1, BLOCK // length)
    items = ceil_div(job.outer if job.inner == 1 else job.outer * channels, job.block)
    # A copy begins with a cache line, an array mostly does not, and vectors that cross lines are
    # loaded twice.
    rows = take(2 * bytes)
    memcpy(rows, cnp.PyArray_DATA(coefficients), bytes)
    job.affine = ck_affine(rows, NULL, channels, CK_RELU if relu else 0, after_relu)
    if rectified is not None:
        job.affine.rectified = memcpy(rows + bytes, cnp.PyArray_DATA(rectified), bytes)
    try:
        run(affine_pixels_item if job.inner == 1 else affine_planes_item, &job, items,
            CK_WORK_OF_ELEMENT * job.block * length, threads, 0)
    finally:
        give(rows)


# ---------------------------------------------------------------- batch normalisation

ctypedef fused real:
    float
    double


cdef void normalising(const double *mean, const double *var, const real *weight, const real *bias,
                      double eps, double gain, Py_ssize_t channels, real *rows) noexcept nogil:
    cdef Py_ssize_t c
    cdef double scale
    for c in range(channels):
        scale = 1 / sqrt(var[c] + eps)
        if weight != NULL:
            scale *= weight[c]
        rows[c], rows[channels + c] = <real>mean[c], <real>scale
        rows[2 * channels + c] = bias[c] if bias != NULL else 0
        rows[3 * channels + c] = <real>gain


def normalising_rows(cnp.ndarray mean, cnp.ndarray var, cnp.ndarray weight, cnp.ndarray bias,
                     double eps, double gain, dtype):
    """Return the coefficients of `affine` that normalise, (4, channels) of a dtype.

    Mean and variance are float64; weight and bias are contiguous, of that dtype, or None.
    """
    cdef Py_ssize_t channels = mean.shape[0]
    cdef cnp.ndarray rows = np.empty((4, channels), dtype)
    cdef const double *m = <const double *>cnp.PyArray_DATA(mean)
    cdef const double *v = <const double *>cnp.PyArray_DATA(var)
    if cnp.PyArray_TYPE(rows) == cnp.NPY_DOUBLE:
        normalising[double](m, v, <const double *>data_of(weight), <const double *>data_of(bias),
                            eps, gain, channels, <double *>cnp.PyArray_DATA(rows))
    else:
        normalising[float](m, v, <const float *>data_of(weight), <const float *>data_of(bias), eps,
                           gain, channels, <float *>cnp.PyArray_DATA(rows))
    return rows


cdef void move(const real *running, const double *batch, double momentum, double factor,
               Py_ssize_t channels, real *moved) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(channels):
        moved[c] = <real>((1 - momentum) * running[c] + momentum * (factor * batch[c]))


def moved_statistics(cnp.ndarray running, cnp.ndarray batch, double momentum, double factor):
    """Return running statistics, contiguous, moved towards a factor of a batch's float64 ones."""
    cdef cnp.ndarray moved = np.empty(running.shape[0], running.dtype)
    cdef const double *b = <const double *>cnp.PyArray_DATA(batch)
    if cnp.PyArray_TYPE(running) == cnp.NPY_DOUBLE:
        move[double](<const double *>cnp.PyArray_DATA(running), b, momentum, factor,
                     batch.shape[0], <double *>cnp.PyArray_DATA(moved))
    else:
        move[float](<const float *>cnp.PyArray_DATA(running), b, momentum, factor,
                    batch.shape[0], <float *>cnp.PyArray_DATA(moved))
    return moved


cdef void gradient_of(const double *mean, const double *var, const double *sums,
                      const real *weight, double eps, double count, Py_ssize_t channels,
                      real *rows, real *grad_weight, real *grad_bias) noexcept nogil:
    cdef Py_ssize_t c
    cdef double inverse, gain, step
    cdef const double *products = sums + channels
    for c in range(channels):
        inverse = 1 / sqrt(var[c] + eps)
        gain = inverse * weight[c] if weight != NULL else inverse
        # The mean and the variance move with every element.
        step = -gain / count
        rows[c], rows[channels + c] = <real>mean[c], <real>(step * (inverse * inverse) * products[c])
        rows[2 * channels + c], rows[3 * channels + c] = <real>(step * sums[c]), <real>gain
        grad_weight[c], grad_bias[c] = <real>(products[c] * inverse), <real>sums[c]


def normalising_gradient(cnp.ndarray mean, cnp.ndarray var, cnp.ndarray sums, cnp.ndarray weight,
                         double eps, double count, dtype):
    """Return the coefficients of the input's gradient, (4, channels), and those of weight and bias.

    `sums` are those of `gradient_sums`, over `count` elements.
    """
    cdef Py_ssize_t channels = mean.shape[0]
    cdef cnp.ndarray rows = np.empty((4, channels), dtype)
    cdef cnp.ndarray grad_weight = np.empty(channels, dtype), grad_bias = np.empty(channels, dtype)
    cdef const double *m = <const double *>cnp.PyArray_DATA(mean)
    cdef const double *v = <const double *>cnp.PyArray_DATA(var)
    cdef const double *s = <const double *>cnp.PyArray_DATA(sums)
    if cnp.PyArray_TYPE(rows) == cnp.NPY_DOUBLE:
        gradient_of[double](m, v, s, <const double *>data_of(weight), eps, count, channels,
                            <double *>cnp.PyArray_DATA(rows),
                            <double *>cnp.PyArray_DATA(grad_weight),
                            <double *>cnp.PyArray_DATA(grad_bias))
    else:
        gradient_of[float](m, v, s, <const float *>data_of(weight), eps, count, channels,
                           <float *>cnp.PyArray_DATA(rows),
                           <float *>cnp.PyArray_DATA(grad_weight),
                           <float *>cnp.PyArray_DATA(grad_bias))
    return rows, grad_weight, grad_bias


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
