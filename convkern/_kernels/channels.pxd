"""Sums over channels, for the drivers that make them while they write the channels."""

from libc.stdint cimport int64_t

cimport numpy as cnp

from convkern._kernels.core cimport ck_kernels

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
    # Coefficients of the affine map before the ReLU that g is behind, or NULL: to compute that
    # map once more from x is cheaper than to read its output again.
    const char *rectified
    double *partial          # (2, pieces, channels)
    double *sums             # (2, channels)
    Py_ssize_t outer, channels, inner
    Sums what
    # A piece is `images` x `part` elements of every channel, an item `group` channels of it.
    # Pieces end where `unit` outer elements do, an image of pixels: then one is done at a time.
    Py_ssize_t images, part, group, unit, per_unit, parts, pieces, groups

cdef class ImageMoments:
    cdef SumsJob job
    cdef object sums
    cdef Py_ssize_t images
    cdef int64_t *missing    # outputs of each image that are still to come
    cdef char *scratch       # of each image
    cdef Py_ssize_t first    # image of the next call

cdef struct Arrivals:
    const SumsJob *job
    int64_t *missing
    char *scratch

cdef Arrivals arrivals_of(ImageMoments moments) noexcept
cdef void outputs_came(const Arrivals *arrivals, Py_ssize_t image, int64_t count) noexcept nogil
