"""Winograd's convolution."""

from convkern._kernels.channels cimport Arrivals
from convkern._kernels.core cimport Axis, Images, ck_patch
from convkern._kernels.packing cimport PackedConv

cdef int winograd_images(PackedConv packed, const Axis *h, const Axis *w, const Images *x,
                         const Images *out, Py_ssize_t images, bint x_planes, bint planes, int activation,
                         double slope, const Arrivals *arrivals, Py_ssize_t first_image,
                         int threads) except -1


cdef inline void patch_of(const Images *images, const char *origin, Py_ssize_t itemsize,
                          Py_ssize_t height, Py_ssize_t width, Py_ssize_t top, Py_ssize_t left,
                          int size, const char *zeros, ck_patch *patch) noexcept nogil:
    """Describe the size x size pixels from (top, left) on; zeros outside height x width."""
    cdef Py_ssize_t i, y
    patch.first = <int>min(max(0, -left), <Py_ssize_t>size)
    patch.last = <int>max(0, min(<Py_ssize_t>size, width - left))
    for i in range(size):
        y = top + i
        if 0 <= y < height:
            patch.row[i] = origin + (y * images.row + left * images.column) * itemsize
            patch.step[i] = images.column
        else:
            patch.row[i], patch.step[i] = zeros, 0
