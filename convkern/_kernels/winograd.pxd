"""Winograd's convolution."""

from convkern._kernels.core cimport Axis, Images
from convkern._kernels.packing cimport PackedConv

cdef int winograd_images(PackedConv packed, const Axis *h, const Axis *w, const Images *x,
                         const Images *out, Py_ssize_t images, int activation, double slope,
                         int threads) except -1
