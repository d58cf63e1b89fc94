"""Products of weights with planes."""

cimport numpy as cnp

from convkern._kernels.core cimport Axis, ck_kernels

cdef int convolve_planes(const ck_kernels *kernels, const char *weight, const char *bias,
                         const char *x, char *out, Py_ssize_t images, Py_ssize_t groups,
                         Py_ssize_t channels, Py_ssize_t out_channels, Axis h, Axis w,
                         int activation, double slope, int threads) except -1
