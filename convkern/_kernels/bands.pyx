# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Convolution of contiguous NCHW images whose rows of outputs fill vectors: pixels in the lanes.

As in planes.pyx, filters are multiplied with packed windows.  But a vector holds outputs of one
row, and a row of the input is packed once, with the taps of all channels that lie in it, for all
rows of outputs whose windows meet it: one below the other, packed rows are the windows, and those
of the next row of outputs begin so many rows further down as the stride is.
"""

from libc.string cimport memcpy, memset

cimport numpy as cnp

from convkern._kernels.core cimport (
    CK_AHEAD,
    CK_CLAIM,
    CK_FIRST,
    CK_LAST,
    CK_MAX_VECTORS,
    Axis,
    ceil_div,
    ck_chunk,
    ck_kernels,
    ck_tile_layout,
    give,
    moved,
    run,
    take,
)
from convkern._kernels.planes cimport Fetch, Panel, aim, cut_panel

cnp.import_array()

cdef enum:
    CHUNK = 256               # products summed in registers, as in the direct algorithm
    PACKED_BYTES = 320 << 10  # of a band of rows: they stay in the L2 cache
    FEWEST_ROWS = 4           # of outputs in a band
    FILTERS = 24              # that pass over a band together: a multiple of most tiles

# Of their vectors, how much rows of outputs fill at least.
cdef double FULL = 0.85


cdef Py_ssize_t rows_of_input(Axis h, Py_ssize_t rows) noexcept nogil:
    """Return how many rows the windows of some rows of outputs span."""
    return (rows - 1) * h.stride + h.kernel


cdef Py_ssize_t row_bytes(const ck_kernels *kernels, Py_ssize_t channels, Axis w) noexcept:
    """Return what a packed row takes."""
    return channels * w.kernel * ceil_div(w.out, kernels.lanes) * kernels.lanes * kernels.itemsize


cdef bint fits_bands(const ck_kernels *kernels, Py_ssize_t channels, Axis h, Axis w) noexcept:
    """Tell whether rows of outputs are better convolved one by one than all pixels of a plane."""
    cdef Py_ssize_t rows = rows_of_input(h, min(h.out, <Py_ssize_t>FEWEST_ROWS))
    return (channels > 0 and h.dilation == 1 and h.stride <= h.kernel and h.kernel * w.kernel > 1
            and w.out >= FULL * kernels.lanes * ceil_div(w.out, kernels.lanes)
            and rows * row_bytes(kernels, channels, w) <= PACKED_BYTES)


cdef void pack_taps(const BandsJob *job, const char *line, Panel panel, char *packed) noexcept nogil:
    """Pack the taps of a panel's windows in one row of a channel."""
    cdef Axis w = job.w
    cdef Py_ssize_t size = job.kernels.itemsize, start = panel.column * w.stride - w.pad, s
    cdef Py_ssize_t begin, end
    for s in range(w.kernel):
        begin, end = 0, panel.count
        if start < 0:
            begin = min(end, ceil_div(-start, w.stride))
        if start + (end - 1) * w.stride >= w.size:
            end = max(begin, ceil_div(max(<Py_ssize_t>0, w.size - start), w.stride))
        job.kernels.gather_row(line + start * size, w.stride, begin, end, packed, panel.width)
        packed += panel.width * size
        start += w.dilation


cdef void pack_band(const BandsJob *job, const char *x, Py_ssize_t y, Py_ssize_t rows,
                    Panel panel, char *packed) noexcept nogil:
    """Pack the taps of a panel's windows from rows y .. y+rows-1 of the input."""
    cdef Py_ssize_t size = job.kernels.itemsize, step = job.w.kernel * panel.width * size, i, c
    for i in range(y, y + rows):
        for c in range(job.channels):
            if 0 <= i < job.h.size:
                pack_taps(job, x + (c * job.h.size + i) * job.w.size * size, panel, packed)
            else:
                memset(packed, 0, <size_t>step)
            packed += step


cdef void convolve_rows(const BandsJob *job, const char *weight, const char *bias, const char *zeros,
                        const char *packed, Panel panel, Py_ssize_t rows, Py_ssize_t filters,
                        Fetch *fetch, char *out) noexcept nogil:
    """Convolve some rows of a panel's windows with some filters."""
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, row, tile, k, first, last
    cdef Py_ssize_t tiles = ceil_div(filters, kernels.max_pixels[panel.vectors])
    cdef ck_tile_layout layout
    cdef ck_chunk chunk
    memset(&layout, 0, sizeof(layout))
    layout.x_pixel, layout.out_pixel = job.length, job.h.out * job.w.out
    layout.tail = <int>(panel.count - (panel.vectors - 1) * kernels.lanes)
    layout.activation, layout.slope, layout.bias_by_pixel = job.activation, job.slope, bias != NULL
    chunk.rows = chunk.columns = 1
    chunk.ahead, chunk.ahead_step = weight, 0
    for row in range(rows):
        k = 0
        while k < job.length:
            chunk.run = min(job.chunk, job.length - k)
            chunk.flags = ((CK_FIRST | CK_CLAIM if k == 0 else 0)
                           | (CK_LAST if k + chunk.run == job.length else 0))
            for tile in range(tiles):
                first, last = filters * tile // tiles, filters * (tile + 1) // tiles
                aim(&chunk, fetch)
                kernels.tile[panel.vectors][last - first](
                    &layout, &chunk, weight + (first * job.length + k) * size,
                    packed + k * panel.width * size, zeros if bias == NULL else bias + first * size,
                    out + first * layout.out_pixel * size)
            k += chunk.run
        packed += job.h.stride * job.channels * job.w.kernel * panel.width * size
        out += job.w.out * size


cdef inline Band band_of(const BandsJob *job, Py_ssize_t item) noexcept nogil:
    """Tell which rows of which image an item has."""
    cdef Py_ssize_t row = job.h.out * (item % job.bands) // job.bands
    cdef Py_ssize_t rows = job.h.out * (item % job.bands + 1) // job.bands - row
    return Band(item // job.bands, row, rows, row * job.h.stride - job.h.pad,
                rows_of_input(job.h, rows))


cdef Fetch next_band(const BandsJob *job, Py_ssize_t item) noexcept nogil:
    """Tell what is packed after an item's band."""
    cdef Py_ssize_t line = job.w.size * job.kernels.itemsize, y, index, tiles = 0
    cdef Band band = band_of(job, item), following
    cdef Fetch fetch
    memset(&fetch, 0, sizeof(fetch))
    if item + 1 == job.items:
        return fetch
    following = band_of(job, item + 1)
    y = max(<Py_ssize_t>0, following.y)
    if following.part == band.part:
        y = max(y, band.y + band.met)  # those before are there already
    fetch.x = job.x + (following.part * job.channels * job.h.size + y) * line
    fetch.rows = ceil_div(max(<Py_ssize_t>0, following.y + following.met - y) * line, CK_AHEAD)
    fetch.row = CK_AHEAD
    fetch.columns, fetch.column = job.channels, job.h.size * line
    for index in range(job.panels):
        tiles += ceil_div(FILTERS, job.kernels.max_pixels[
            cut_panel(job.kernels, job.vectors, job.panels, job.w.out, index).vectors])
    fetch.done = min(<Py_ssize_t>0, fetch.rows * fetch.columns - (
        job.out_channels // FILTERS * band.rows * tiles * (job.length // 4)))
    return fetch


cdef void bands_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """All filters of a group times a band of rows of one image."""
    cdef const BandsJob *job = <const BandsJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Band band = band_of(job, item)
    cdef Py_ssize_t size = kernels.itemsize, group = band.part % job.groups
    cdef Py_ssize_t depth = band.met * job.channels * job.w.kernel, filter = 0, filters, index
    cdef const char *x = job.x + band.part * job.channels * job.h.size * job.w.size * size
    cdef const char *weight = job.weight + group * job.out_channels * job.length * size
    cdef const char *bias = moved(job.bias, group * job.out_channels * size)
    cdef char *out = job.out + (
        band.part * job.out_channels * job.h.out + band.row) * job.w.out * size
    cdef char *zeros = scratch
    cdef char *packed = scratch + CK_MAX_VECTORS * kernels.lanes * size
    cdef Fetch fetch = next_band(job, item)
    cdef Panel panel
    memset(zeros, 0, <size_t>(packed - zeros))
    for index in range(job.panels):
        panel = cut_panel(kernels, job.vectors, job.panels, job.w.out, index)
        pack_band(job, x, band.y, band.met, panel, packed + panel.column * depth * size)
    while filter < job.out_channels:
        filters = min(job.out_channels - filter, <Py_ssize_t>FILTERS)
        for index in range(job.panels):
            panel = cut_panel(kernels, job.vectors, job.panels, job.w.out, index)
            convolve_rows(job, weight + filter * job.length * size, moved(bias, filter * size), zeros,
                          packed + panel.column * depth * size, panel, band.rows, filters, &fetch,
                          out + (filter * job.h.out * job.w.out + panel.column) * size)
        filter += filters


cdef void sort_taps(const BandsJob *job, const char *weight, char *sorted_) noexcept nogil:
    """Copy a weight with the taps of a row of all channels together, as they are packed."""
    cdef Py_ssize_t taps = job.w.kernel * job.kernels.itemsize, i, r, c
    for i in range(job.groups * job.out_channels):
        for r in range(job.h.kernel):
            for c in range(job.channels):
                memcpy(sorted_, weight + ((i * job.channels + c) * job.h.kernel + r) * taps,
                       <size_t>taps)
                sorted_ += taps


cdef int convolve_bands(const ck_kernels *kernels, const char *weight, const char *bias,
                        const char *x, char *out, Py_ssize_t images, Py_ssize_t groups,
                        Py_ssize_t channels, Py_ssize_t out_channels, Axis h, Axis w,
                        int activation, double slope, int threads) except -1:
    """Convolve contiguous NCHW images; channels are those of a group, bias may be NULL."""
    cdef BandsJob job
    cdef Py_ssize_t widest = CK_MAX_VECTORS, rows = 1, packed_row = row_bytes(kernels, channels, w)
    if images == 0 or out_channels == 0 or h.out == 0 or w.out == 0:
        return 0
    while kernels.max_pixels[widest] == 0:
        widest -= 1
    job.kernels, job.bias, job.x, job.out = kernels, bias, x, out
    job.h, job.w, job.activation, job.slope = h, w, activation, slope
    job.channels, job.out_channels, job.groups = channels, out_channels, groups
    job.length = channels * h.kernel * w.kernel
    job.chunk = ceil_div(job.length, ceil_div(job.length, CHUNK))
    job.vectors = ceil_div(w.out, kernels.lanes)
    job.panels = ceil_div(job.vectors, widest)
    while rows < h.out and rows_of_input(h, rows + 1) * packed_row <= PACKED_BYTES:
        rows += 1
    job.bands = ceil_div(h.out, rows)
    # Items enough for the threads.
    while images * groups * job.bands < 4 * threads and 2 * job.bands * FEWEST_ROWS <= h.out:
        job.bands *= 2
    rows = ceil_div(h.out, job.bands)
    cdef char *weights = take(<size_t>(groups * out_channels * job.length * kernels.itemsize))
    try:
        sort_taps(&job, weight, weights)
        job.weight = weights
        job.items = images * groups * job.bands
        return run(bands_item, &job, job.items,
                   (2.0 * out_channels + 8) * job.length * rows * w.out, threads,
                   <size_t>(CK_MAX_VECTORS * kernels.lanes * kernels.itemsize
                            + rows_of_input(h, rows) * packed_row))
    finally:
        give(weights)
