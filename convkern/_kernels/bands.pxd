"""Convolution of bands of rows of planes."""

from convkern._kernels.core cimport Axis, ck_kernels

cdef struct BandsJob:
    const ck_kernels *kernels
    const char *weight
    const char *bias       # may be NULL
    const char *x
    char *out
    Axis h, w
    # A filter has `length` products, of which `chunk` are summed in registers.
    Py_ssize_t channels, out_channels, groups, length, chunk
    Py_ssize_t vectors, panels, bands  # of a row of outputs; of its vectors; of rows of a plane
    Py_ssize_t items
    int activation
    double slope

cdef struct Band:
    # Its image and group, the first of its rows of outputs and their number, and of those that they
    # meet.
    Py_ssize_t part, row, rows, y, met

cdef bint fits_bands(const ck_kernels *kernels, Py_ssize_t channels, Axis h, Axis w) noexcept
cdef int convolve_bands(const ck_kernels *kernels, const char *weight, const char *bias,
                        const char *x, char *out, Py_ssize_t images, Py_ssize_t groups,
                        Py_ssize_t channels, Py_ssize_t out_channels, Axis h, Axis w,
                        int activation, double slope, int threads) except -1
