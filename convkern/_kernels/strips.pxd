"""Pixels of planes, a strip at a time, in channels-last order."""

from convkern._kernels.core cimport Images, ck_kernels

cdef struct Region:
    # Rows top .. bottom-1 and columns left .. right-1 of planes.
    Py_ssize_t top, bottom, left, right

cdef struct Planes:
    # Of one image: the first one, and how far it is to the next plane and row.
    char *data
    Py_ssize_t plane, row


cdef inline Py_ssize_t area(const Region *region) noexcept nogil:
    return (region.bottom - region.top) * (region.right - region.left)


cdef inline Images strip_of(char *strip, const Region *region, Py_ssize_t channels,
                            Py_ssize_t itemsize) noexcept nogil:
    """Describe a strip that holds a region: pixels keep the coordinates they have in the planes."""
    cdef Py_ssize_t row = (region.right - region.left) * channels
    return Images(strip - (region.top * row + region.left * channels) * itemsize, 0, row, channels)


cdef void gather_strip(const ck_kernels *kernels, const Planes *planes, const Region *region,
                       Py_ssize_t first, Py_ssize_t channels, char *strip) noexcept nogil
cdef void place_strip(const ck_kernels *kernels, const char *strip, Py_ssize_t pixel,
                      const Planes *planes, const Region *region, Py_ssize_t first,
                      Py_ssize_t channels) noexcept nogil
