# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Convolution of contiguous NCHW images where they lie: pixels in the lanes.

The output planes of an image are a matrix product of the weight, (filters, channels * taps)
as it is given, with the windows as columns.  A block of pixels of those, a *panel*, is packed
at a time; the register tile then holds filters x vectors of pixels, and writes whole pieces
of the output planes.  With a 1x1 window it is the product of two matrices, which is what the
gradients of linear layers are too.
"""

from libc.string cimport memset

cimport numpy as cnp

from convkern._kernels.core cimport (
    CK_AHEAD,
    CK_FIRST,
    CK_LAST,
    CK_MAX_VECTORS,
    Axis,
    ceil_div,
    ck_chunk,
    ck_kernels,
    ck_tile_layout,
    moved,
    run,
)

cnp.import_array()

cdef enum:
    CHUNK = 256                # products summed in registers, as in the direct algorithm
    DIRECT_CHUNK = 32          # where x is read in place: rows long enough for the prefetcher
    PACKED_BYTES = 384 << 10   # of panels that an item packs at a time
    ROWS = 240                 # filters of an item: a multiple of most tiles
    TOGETHER = 8               # rows of x that all panels of an item copy in turn

# Where pixels fill less of a plane's vectors, those of several images are joined.
cdef double MOST_FULL = 0.85


cdef void set_windows(PlanesJob *job, const ck_kernels *kernels, const char *x, Py_ssize_t groups,
                      Py_ssize_t channels, Py_ssize_t out_channels, Axis h, Axis w) noexcept:
    """Describe the windows of a convolution; channels are those of a group."""
    memset(job, 0, sizeof(job[0]))
    job.kernels, job.x, job.groups, job.h, job.w = kernels, x, groups, h, w
    job.channels, job.out_channels = channels, out_channels
    job.taps = h.kernel * w.kernel
    job.length, job.pixels = channels * job.taps, h.out * w.out
    job.plain = (job.taps == 1 and h.stride == 1 and w.stride == 1 and h.pad == 0 and w.pad == 0
                 and h.out == h.size and w.out == w.size)


cdef Py_ssize_t line_of_windows(const PlanesJob *job, Py_ssize_t pixels) noexcept:
    """Return the longest line of input that the windows of so many pixels meet."""
    cdef const Axis *w = &job.w
    return (min(w.out, pixels) - 1) * w.stride + (w.kernel - 1) * w.dilation + 1


cdef void pack_taps(const PlanesJob *job, const char *x, Py_ssize_t column, Py_ssize_t length,
                    Py_ssize_t s, Py_ssize_t taps, char *packed, Py_ssize_t width,
                    char *line) noexcept nogil:
    """Copy taps s, s+1, ... of windows in one row of the output, from the row x of the input."""
    cdef Py_ssize_t size = job.kernels.itemsize
    cdef Py_ssize_t start = column * job.w.stride - job.w.pad + s * job.w.dilation
    cdef Py_ssize_t span = (length - 1) * job.w.stride + (taps - 1) * job.w.dilation + 1
    cdef Py_ssize_t begin = min(span, max(0, -start))
    cdef Py_ssize_t end = max(begin, min(span, job.w.size - start))
    x += start * size
    if end - begin < span:
        # A window hangs over the edge: take them from a copy with zeros around it.
        job.kernels.gather_row(x, 1, begin, end, line, span)
        x = line
    job.kernels.gather_taps(x, job.w.stride, job.w.dilation, taps, packed, width, length)


cdef void pack_windows(const PlanesJob *job, const char *x, Py_ssize_t pixel, Py_ssize_t count,
                       Py_ssize_t width, Py_ssize_t k, Py_ssize_t taps, char *packed,
                       char *line) noexcept nogil:
    """Copy taps k, k+1, ... of one channel and row of the windows of some pixels."""
    cdef Py_ssize_t size = job.kernels.itemsize, tap = k % job.taps, done = 0, i
    cdef Py_ssize_t r = tap // job.w.kernel, s = tap % job.w.kernel
    cdef Py_ssize_t row = pixel // job.w.out, column = pixel % job.w.out, length, y
    x += k // job.taps * job.h.size * job.w.size * size
    while done < count:
        length = min(count - done, job.w.out - column)
        y = row * job.h.stride + r * job.h.dilation - job.h.pad
        if 0 <= y < job.h.size:
            pack_taps(job, x + y * job.w.size * size, column, length, s, taps, packed + done * size,
                      width, line)
        else:
            for i in range(taps):
                memset(packed + (i * width + done) * size, 0, <size_t>(length * size))
        done += length
        row, column = row + 1, 0
    if count < width:
        for i in range(taps):
            memset(packed + (i * width + count) * size, 0, <size_t>((width - count) * size))


cdef void pack_panel(const PlanesJob *job, const char *x, Py_ssize_t pixel, Py_ssize_t width,
                     Py_ssize_t k, Py_ssize_t length, char *packed, char *line) noexcept nogil:
    """Pack rows k .. k+length-1 of a panel, zeros beyond the last pixel."""
    cdef Py_ssize_t size = job.kernels.itemsize, count = min(width, job.pixels - pixel)
    cdef Py_ssize_t stop = k + length, taps
    if job.plain:
        job.kernels.copy_rows(x + (k * job.pixels + pixel) * size, job.pixels, length, count, packed,
                              width)
        return
    while k < stop:
        taps = min(job.w.kernel - k % job.w.kernel, stop - k)
        pack_windows(job, x, pixel, count, width, k, taps, packed, line)
        packed += taps * width * size
        k += taps


cdef void planes_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A block of filters times a group of panels of one image."""
    cdef const PlanesJob *job = <const PlanesJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, lanes = kernels.lanes, k = 0, length, row, stop, tile
    cdef Py_ssize_t block = item % job.row_blocks, first = item // job.row_blocks % job.panel_groups
    cdef Py_ssize_t part = item // job.row_blocks // job.panel_groups, group = part % job.groups
    cdef Py_ssize_t last = job.panels * (first + 1) // job.panel_groups, panel, column, vectors
    cdef Py_ssize_t begin = job.out_channels * block // job.row_blocks, tiles, done, part_rows
    cdef Py_ssize_t rows = job.out_channels * (block + 1) // job.row_blocks - begin
    cdef const char *x = job.x + part * job.channels * job.h.size * job.w.size * size
    cdef const char *weight = job.weight + (group * job.out_channels + begin) * job.length * size
    cdef char *out = job.out + (part * job.out_channels + begin) * job.pixels * size
    cdef char *zeros = scratch + job.group * job.chunk * job.width * size
    cdef const char *b
    cdef ck_tile_layout layout
    cdef ck_chunk chunk
    first = job.panels * first // job.panel_groups
    memset(&layout, 0, sizeof(layout))
    memset(zeros, 0, <size_t>(job.width * size))
    layout.out_pixel, layout.x_pixel, layout.x_row = job.pixels, job.length, 1
    layout.activation, layout.slope = job.activation, job.slope
    cdef const char *bias = moved(job.bias, (group * job.out_channels + begin) * size)
    layout.bias_by_pixel = bias != NULL
    chunk.flags = CK_FIRST
    chunk.columns = 1
    while True:
        length = min(job.chunk, job.length - k)
        if k + length == job.length:
            chunk.flags |= CK_LAST
        # Rows of x are read in long pieces, those of the next chunk fetched meanwhile.
        done = 0
        while done < length:
            part_rows = min(length - done, <Py_ssize_t>TOGETHER if job.plain else length)
            for panel in range(first, last):
                column = job.vectors * panel // job.panels * lanes
                vectors = job.vectors * (panel + 1) // job.panels - column // lanes
                if not job.direct or column + vectors * lanes > job.pixels:
                    pack_panel(job, x, column, vectors * lanes, k + done, part_rows,
                               scratch + ((panel - first) * job.chunk * job.width
                                          + done * vectors * lanes) * size,
                               zeros + job.width * size)
            done += part_rows
        chunk.ahead, chunk.ahead_step = x, 0
        chunk.x_ahead, chunk.x_ahead_step = x, 0
        if job.plain and job.panel_groups == 1:
            chunk.ahead, chunk.ahead_step = x + (k + length) * job.pixels * size, CK_AHEAD
        for panel in range(first, last):
            column = job.vectors * panel // job.panels * lanes
            vectors = job.vectors * (panel + 1) // job.panels - column // lanes
            layout.tail = <int>min(lanes, job.pixels - column - (vectors - 1) * lanes)
            if job.direct and column + vectors * lanes <= job.pixels:
                # One step of the sum is one row of x where it lies.
                b = x + (k * job.pixels + column) * size
                chunk.rows, chunk.run, layout.w_row = length, 1, job.pixels
            else:
                b = scratch + (panel - first) * job.chunk * job.width * size
                chunk.rows, chunk.run = 1, length
            # The panel stays in the first-level cache while the filters pass over it.
            tiles = ceil_div(rows, kernels.max_pixels[vectors])
            for tile in range(tiles):
                row, stop = rows * tile // tiles, rows * (tile + 1) // tiles
                kernels.tile[vectors][stop - row](
                    &layout, &chunk, weight + (row * job.length + k) * size, b,
                    moved(bias, row * size) if layout.bias_by_pixel else zeros,
                    out + (row * job.pixels + column) * size)
                chunk.ahead += length // 4 * chunk.ahead_step
        k += length
        if chunk.flags & CK_LAST:
            return
        chunk.flags = 0


cdef void copy_pieces(const PlanesJob *job, char *planes, Py_ssize_t image, Py_ssize_t rows,
                      Py_ssize_t first, Py_ssize_t count, char *panel, Py_ssize_t width,
                      bint back) noexcept nogil:
    """Copy rows of a panel of some images' pixels, numbered through, from their planes or back.

    `planes` is a row of the first image, `image` how far it is to that of the next.
    """
    cdef Py_ssize_t size = job.kernels.itemsize, done = 0, pixel, length
    cdef char *plane
    while done < count:
        pixel = (first + done) % job.pixels
        length = min(count - done, job.pixels - pixel)
        plane = planes + ((first + done) // job.pixels * image + pixel) * size
        if back:
            job.kernels.split_plane(panel + done * size, width, length, rows, 1, 0, plane,
                                    job.pixels, length)
        else:
            job.kernels.split_plane(plane, job.pixels, length, rows, 1, 0, panel + done * size,
                                    width, length)
        done += length


cdef void joined_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A block of filters times a panel of pixels of several images."""
    cdef const PlanesJob *job = <const PlanesJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, lanes = kernels.lanes, k = 0, length, row, stop, tile
    cdef Py_ssize_t panel = item % job.panels, block = item // job.panels
    cdef Py_ssize_t column = job.vectors * panel // job.panels * lanes
    cdef Py_ssize_t vectors = job.vectors * (panel + 1) // job.panels - column // lanes
    cdef Py_ssize_t width = vectors * lanes, count = min(width, job.joined - column)
    cdef Py_ssize_t begin = job.out_channels * block // job.row_blocks
    cdef Py_ssize_t rows = job.out_channels * (block + 1) // job.row_blocks - begin
    cdef Py_ssize_t tiles = ceil_div(rows, kernels.max_pixels[vectors])
    cdef const char *weight = job.weight + begin * job.length * size
    cdef const char *bias = moved(job.bias, begin * size)
    cdef char *zeros = scratch + job.chunk * job.width * size
    cdef char *sums = zeros + job.width * size
    cdef ck_tile_layout layout
    cdef ck_chunk chunk
    memset(&layout, 0, sizeof(layout))
    memset(scratch, 0, <size_t>((job.chunk + 1) * job.width * size))
    layout.out_pixel, layout.x_pixel, layout.tail = width, job.length, <int>lanes
    layout.activation, layout.slope = job.activation, job.slope
    layout.bias_by_pixel = bias != NULL
    chunk.flags, chunk.columns, chunk.rows = CK_FIRST, 1, 1
    chunk.ahead, chunk.ahead_step = job.x, 0
    chunk.x_ahead, chunk.x_ahead_step = job.x, 0
    while k < job.length:
        length = chunk.run = min(job.chunk, job.length - k)
        if k + length == job.length:
            chunk.flags |= CK_LAST
        copy_pieces(job, <char *>job.x + k * job.pixels * size, job.channels * job.pixels, length,
                    column, count, scratch, width, False)
        for tile in range(tiles):
            row, stop = rows * tile // tiles, rows * (tile + 1) // tiles
            kernels.tile[vectors][stop - row](
                &layout, &chunk, weight + (row * job.length + k) * size, scratch,
                moved(bias, row * size) if layout.bias_by_pixel else zeros,
                sums + row * width * size)
        k += length
        chunk.flags = 0
    copy_pieces(job, job.out + begin * job.pixels * size, job.out_channels * job.pixels, rows,
                column, count, sums, width, True)


cdef int convolve_planes(const ck_kernels *kernels, const char *weight, const char *bias,
                         const char *x, char *out, Py_ssize_t images, Py_ssize_t groups,
                         Py_ssize_t channels, Py_ssize_t out_channels, Axis h, Axis w,
                         int activation, double slope, int threads) except -1:
    """Convolve contiguous NCHW images; channels are those of a group, bias may be NULL."""
    cdef PlanesJob job
    cdef Py_ssize_t widest = CK_MAX_VECTORS, length
    if images == 0 or out_channels == 0 or h.out == 0 or w.out == 0:
        return 0
    while kernels.max_pixels[widest] == 0:
        widest -= 1
    set_windows(&job, kernels, x, groups, channels, out_channels, h, w)
    job.weight, job.bias, job.out = weight, bias, out
    job.activation, job.slope = activation, slope
    job.vectors = ceil_div(job.pixels, kernels.lanes)
    job.panels = ceil_div(job.vectors, widest)
    job.width = ceil_div(job.vectors, job.panels) * kernels.lanes
    # The tiles of a few filters read x once: a packed copy would not be read again.
    job.direct = job.plain and (
        out_channels <= kernels.max_pixels[ceil_div(job.vectors, job.panels)])
    job.row_blocks = ceil_div(out_channels, ROWS)
    job.chunk = max(1, min(job.length, <Py_ssize_t>(DIRECT_CHUNK if job.direct else CHUNK)))
    job.chunk = max(1, ceil_div(job.length, max(1, ceil_div(job.length, job.chunk))))
    if (job.plain and not job.direct and groups == 1 and images > 1 and job.length > 0
            and job.pixels < MOST_FULL * job.vectors * kernels.lanes):
        job.joined = images * job.pixels
        job.vectors = ceil_div(job.joined, kernels.lanes)
        job.panels = ceil_div(job.vectors, widest)
        job.width = ceil_div(job.vectors, job.panels) * kernels.lanes
        length = ceil_div(out_channels, job.row_blocks)
        return run(joined_item, &job, job.row_blocks * job.panels,
                   (2.0 * length + 8) * job.length * job.width, threads,
                   <size_t>((job.chunk + 1 + length) * job.width * kernels.itemsize))
    job.group = PACKED_BYTES // (job.chunk * job.width * kernels.itemsize)
    job.group = max(1, min(job.group, job.panels))
    cdef Py_ssize_t others = images * groups * job.row_blocks
    while job.group > 1 and others * ceil_div(job.panels, job.group) < 4 * threads:
        job.group //= 2
    job.panel_groups = ceil_div(job.panels, job.group)
    cdef Py_ssize_t line = line_of_windows(&job, job.width)
    cdef double rows = min(out_channels, <Py_ssize_t>ROWS)
    return run(planes_item, &job, others * job.panel_groups,
               (2.0 * rows + 8) * job.length * job.group * job.width, threads,
               <size_t>(((job.group * job.chunk + 1) * job.width + line) * kernels.itemsize))
