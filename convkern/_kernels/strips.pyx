# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Pixels of planes, a strip at a time, in channels-last order.

Kernels whose lanes are channels read contiguous NCHW images, planes, through strips: some rows
of some channels, brought into channels-last order by the thread that needs them, small enough
to stay in its cache.  Outputs take the same way back.
"""

cimport numpy as cnp

from convkern._kernels.core cimport ck_kernels

cnp.import_array()


cdef void gather_strip(const ck_kernels *kernels, const Planes *planes, const Region *region,
                       Py_ssize_t first, Py_ssize_t channels, char *strip) noexcept nogil:
    """Copy a region of some planes, `first` and the following ones, into a strip of pixels."""
    cdef Py_ssize_t size = kernels.itemsize, plane = planes.plane, y
    cdef Py_ssize_t width = region.right - region.left
    cdef const char *src = planes.data + (
        first * plane + region.top * planes.row + region.left) * size
    if area(region) <= 0:
        return
    if width == planes.row:
        kernels.transpose(src, plane, strip, channels, channels, area(region))
        return
    for y in range(region.bottom - region.top):
        kernels.transpose(src + y * planes.row * size, plane, strip + y * width * channels * size,
                          channels, channels, width)


cdef void place_strip(const ck_kernels *kernels, const char *strip, Py_ssize_t pixel,
                      const Planes *planes, const Region *region, Py_ssize_t first,
                      Py_ssize_t channels) noexcept nogil:
    """Copy a strip whose pixels are `pixel` elements apart into a region of some planes."""
    cdef Py_ssize_t size = kernels.itemsize, plane = planes.plane, y
    cdef Py_ssize_t width = region.right - region.left
    cdef char *dst = planes.data + (first * plane + region.top * planes.row + region.left) * size
    if width == planes.row:
        kernels.transpose(strip, pixel, dst, plane, area(region), channels)
        return
    for y in range(region.bottom - region.top):
        kernels.transpose(strip + y * width * pixel * size, pixel, dst + y * planes.row * size,
                          plane, width, channels)
