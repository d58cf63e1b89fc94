"""Winograd's convolution, and what the gradient of its weight shares: tiles and prefetching."""

from convkern._kernels.channels cimport Arrivals
from convkern._kernels.core cimport Axis, Images, ceil_div, ck_patch, ck_prefetch
from convkern._kernels.packing cimport PackedConv
from convkern._kernels.strips cimport Region

cdef int winograd_images(PackedConv packed, const Axis *h, const Axis *w, const Images *x,
                         const Images *out, Py_ssize_t images, bint x_planes, bint planes, int activation,
                         double slope, const Arrivals *arrivals, Py_ssize_t first_image,
                         int threads) except -1

cdef Region region_of(Py_ssize_t across, Py_ssize_t per_image, Py_ssize_t begin, Py_ssize_t end,
                      Py_ssize_t step, Py_ssize_t size, Py_ssize_t top, Py_ssize_t left,
                      Py_ssize_t height, Py_ssize_t width) noexcept nogil


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


cdef inline bint is_dense(const Images *images, Py_ssize_t height, Py_ssize_t width,
                          Py_ssize_t channels) noexcept nogil:
    """Tell whether channels-last images have no gaps."""
    return (images.column == channels and images.row == width * images.column
            and images.image == height * images.row)


cdef inline Py_ssize_t rows_before(Py_ssize_t tile, Py_ssize_t across, Py_ssize_t per_image,
                                   Py_ssize_t rows, Py_ssize_t first,
                                   Py_ssize_t step) noexcept nogil:
    """Count the rows of images that tiles before `tile` meet.

    An image has so many rows; its first tiles meet `first` of them, the next ones `step` more.
    """
    if tile == 0:
        return 0
    return (tile - 1) // per_image * rows + max(<Py_ssize_t>0, min(
        rows, first + (tile - 1) % per_image // across * step))


cdef inline ck_prefetch rows_coming(const Images *images, bint dense, Py_ssize_t itemsize,
                                    Py_ssize_t across, Py_ssize_t per_image, Py_ssize_t rows,
                                    Py_ssize_t first, Py_ssize_t step, Py_ssize_t begin,
                                    Py_ssize_t end) noexcept nogil:
    """Return the rows that tiles begin .. end-1 meet and those before do not; none with gaps."""
    cdef ck_prefetch coming
    cdef Py_ssize_t row = images.row * itemsize
    coming.at = coming.end = images.data
    if dense:
        coming.at += rows_before(begin, across, per_image, rows, first, step) * row
        coming.end += rows_before(end, across, per_image, rows, first, step) * row
    coming.step = coming.bytes = 64  # a cache line
    coming.count = coming.write = 0
    return coming


cdef inline void share_out(ck_prefetch *coming, Py_ssize_t turns) noexcept nogil:
    """Let so many turns fetch what is coming."""
    cdef Py_ssize_t steps = ceil_div(coming.end - coming.at, coming.step)
    coming.count = ceil_div(max(<Py_ssize_t>0, steps), turns)
