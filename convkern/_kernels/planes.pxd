"""Products of weights with planes."""

from convkern._kernels.core cimport Axis, ck_chunk, ck_kernels

cdef struct PlanesJob:
    const ck_kernels *kernels
    const char *weight
    const char *bias       # may be NULL
    const char *x
    char *out
    Axis h, w
    Py_ssize_t channels, out_channels, groups, taps, length, pixels
    # Pixels are cut into panels as wide as the widest tile; an item has a group of them, of which it
    # packs `depth` rows, and some filters.  A sum in registers has `chunk` products.
    Py_ssize_t vectors, panels, width, group, panel_groups, row_blocks, depth, chunk
    Py_ssize_t filters   # that pass over the panels together
    Py_ssize_t items
    Py_ssize_t elements  # of x
    Py_ssize_t joined  # pixels of all images, whose panels are cut from them together; or 0
    bint plain   # the windows are the pixels
    bint direct  # and are not packed
    int activation
    double slope

cdef struct Panel:
    # Its first pixel, width with padding, number of vectors, and of pixels that there are.
    Py_ssize_t column, width, vectors, count

cdef inline Panel cut_panel(const ck_kernels *kernels, Py_ssize_t vectors, Py_ssize_t panels,
                            Py_ssize_t pixels, Py_ssize_t index) noexcept nogil:
    """Share out the vectors of some pixels among panels."""
    cdef Py_ssize_t lanes = kernels.lanes, first = vectors * index // panels
    cdef Py_ssize_t count = vectors * (index + 1) // panels - first
    return Panel(first * lanes, count * lanes, count,
                 min(count * lanes, pixels - first * lanes))

cdef struct Share:
    # Of an item: its image and group, its panels and its filters.
    Py_ssize_t part, first, last, begin, end

cdef struct Fetch:
    # What is packed next: rows and columns of pieces of CK_AHEAD bytes, how far they are from the
    # next one, and how many have been fetched; it is negative where that is still to begin.
    const char *x
    Py_ssize_t rows, columns, row, column, done

cdef inline void aim(ck_chunk *chunk, Fetch *fetch) noexcept nogil:
    """Have the next tile fetch some of it."""
    cdef Py_ssize_t done = fetch.done
    if 0 <= done < fetch.rows * fetch.columns:
        chunk.ahead = fetch.x + done // fetch.rows * fetch.column + done % fetch.rows * fetch.row
        chunk.ahead_step = fetch.row
    else:
        chunk.ahead_step = 0
    fetch.done += chunk.run // 4

cdef void set_windows(PlanesJob *job, const ck_kernels *kernels, const char *x, Py_ssize_t groups,
                      Py_ssize_t channels, Py_ssize_t out_channels, Axis h, Axis w) noexcept
cdef Py_ssize_t line_of_windows(const PlanesJob *job, Py_ssize_t pixels) noexcept
cdef void pack_panel(const PlanesJob *job, const char *x, Py_ssize_t pixel, Py_ssize_t width,
                     Py_ssize_t k, Py_ssize_t length, char *packed, char *line) noexcept nogil
cdef int convolve_planes(const ck_kernels *kernels, const char *weight, const char *bias,
                         const char *x, char *out, Py_ssize_t images, Py_ssize_t groups,
                         Py_ssize_t channels, Py_ssize_t out_channels, Axis h, Axis w,
                         int activation, double slope, int threads) except -1
