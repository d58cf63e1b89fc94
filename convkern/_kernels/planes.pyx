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
    CK_ALSO,
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
    # Of panels that an item packs at a time: they, what is fetched for the next ones meanwhile and
    # some of the weights and outputs stay in an L2 cache of 1 MiB.
    PACKED_BYTES = 320 << 10
    FEWEST_PANELS = 4          # among them, where a plane has so many
    ROWS = 256                 # filters that make it worth while to pack a panel
    FILTERS = 24               # that pass over the panels together: a multiple of most tiles
    TOGETHER = 8               # rows of x that all panels of an item copy in turn
    # So many filters do not make up for packing.  The tile reads x in place, from the second-level
    # cache if need be; outputs that pass by together stay in the first one.
    DIRECT_FILTERS = 192
    DIRECT_TOGETHER = 128
    DIRECT_CHUNK = 192

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


cdef inline Panel panel_of(const PlanesJob *job, Py_ssize_t index) noexcept nogil:
    return cut_panel(job.kernels, job.vectors, job.panels,
                     job.joined if job.joined else job.pixels, index)


cdef inline bint in_place(const PlanesJob *job, const char *x, Panel panel) noexcept nogil:
    """Tell whether the tile reads a panel of the image x from the planes.

    Where one ends amid a vector, its last lanes are pixels of the next one, and are not stored; but
    none may lie beyond the last image.
    """
    return job.direct and (x - job.x) // job.kernels.itemsize + (
        (job.length - 1) * job.pixels + panel.column + panel.width) <= job.elements


cdef void pack_panels(const PlanesJob *job, const char *x, Py_ssize_t first, Py_ssize_t last,
                      Py_ssize_t k, Py_ssize_t length, char *packed, char *line) noexcept nogil:
    """Pack rows k .. k+length-1 of some panels, each `job.depth` rows from the next."""
    cdef Py_ssize_t size = job.kernels.itemsize, start = panel_of(job, first).column
    cdef Py_ssize_t done = 0, rows, index
    cdef Panel panel
    cdef char *place
    # Rows of x are read in long pieces.
    while done < length:
        rows = min(length - done, <Py_ssize_t>TOGETHER if job.plain else length)
        for index in range(first, last):
            panel = panel_of(job, index)
            place = packed + ((panel.column - start) * job.depth + done * panel.width) * size
            if job.joined:
                if panel.count < panel.width:
                    memset(place, 0, <size_t>(rows * panel.width * size))
                copy_pieces(job, <char *>x + (k + done) * job.pixels * size,
                            job.channels * job.pixels, rows, panel.column, panel.count, place,
                            panel.width, False)
            elif not in_place(job, x, panel):
                pack_panel(job, x, panel.column, panel.width, k + done, rows, place, line)
        done += rows


cdef inline Share share_of(const PlanesJob *job, Py_ssize_t item) noexcept nogil:
    """Tell which panels and filters of which image an item has."""
    cdef Py_ssize_t block = item % job.row_blocks, group = item // job.row_blocks % job.panel_groups
    return Share(item // job.row_blocks // job.panel_groups,
                 job.panels * group // job.panel_groups,
                 job.panels * (group + 1) // job.panel_groups,
                 job.out_channels * block // job.row_blocks,
                 job.out_channels * (block + 1) // job.row_blocks)


cdef inline const char *pixels_of(const PlanesJob *job, Share share, Py_ssize_t k) noexcept nogil:
    """Return where channel k of an item's image begins."""
    return job.x + (share.part * job.channels + k) * job.h.size * job.w.size * job.kernels.itemsize


cdef Fetch next_panels(const PlanesJob *job, Py_ssize_t item, Py_ssize_t k) noexcept nogil:
    """Tell what is packed when rows up to k of an item's panels have been multiplied."""
    cdef Py_ssize_t size = job.kernels.itemsize, tiles = 0, index, steps, bytes
    cdef Share share = share_of(job, item)
    cdef Panel first, last
    cdef Fetch fetch
    memset(&fetch, 0, sizeof(fetch))
    if not job.plain or job.length == 0:
        return fetch
    for index in range(share.first, share.last):
        tiles += ceil_div(job.filters, job.kernels.max_pixels[panel_of(job, index).vectors])
    steps = (share.end - share.begin) // job.filters * tiles * (((k - 1) % job.depth + 1) // 4)
    if k == job.length:
        if item + 1 == job.items or (item + 1) % job.row_blocks:
            return fetch  # nothing, or the same panels
        share, k = share_of(job, item + 1), 0
    first, last = panel_of(job, share.first), panel_of(job, share.last - 1)
    bytes = (last.column + last.count - first.column) * size
    fetch.x = pixels_of(job, share, k) + first.column * size
    fetch.row, fetch.column = job.pixels * size, CK_AHEAD
    fetch.rows, fetch.columns = min(job.depth, job.length - k), ceil_div(bytes, CK_AHEAD)
    if job.joined:
        # Whole images, but the first one if the item before had its first pixels.
        index = ceil_div(first.column, job.pixels)
        fetch.x = job.x + index * job.length * fetch.row
        fetch.rows = (ceil_div(last.column + last.count, job.pixels) - index) * job.length
    if job.joined or bytes == fetch.row:
        # In one piece.
        fetch.rows, fetch.columns = ceil_div(fetch.rows * fetch.row, CK_AHEAD), 1
        fetch.row = CK_AHEAD
    # Just in time, so that the weights of many filters do not drive it out of the cache again.
    fetch.done = min(<Py_ssize_t>0, fetch.rows * fetch.columns - steps)
    return fetch


cdef void planes_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A block of filters times a group of panels of one image, or of all of them."""
    cdef const PlanesJob *job = <const PlanesJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, k = 0, depth, row, rows, index
    cdef Share share = share_of(job, item)
    cdef Py_ssize_t group = share.part % job.groups
    cdef Py_ssize_t start = panel_of(job, share.first).column, width = job.group * job.width
    cdef const char *x = pixels_of(job, share, 0)
    cdef const char *weight = job.weight + group * job.out_channels * job.length * size
    cdef const char *bias = moved(job.bias, group * job.out_channels * size)
    cdef char *out = job.out + share.part * job.out_channels * job.pixels * size
    cdef char *zeros = scratch + job.depth * width * size
    cdef char *sums = zeros + job.width * size  # of joined planes; otherwise a line of windows
    cdef Panel panel
    cdef ck_tile_layout layout
    cdef ck_chunk chunk
    cdef Fetch fetch
    memset(&layout, 0, sizeof(layout))
    memset(zeros, 0, <size_t>(job.width * size))
    layout.out_pixel = width if job.joined else job.pixels
    layout.x_pixel = job.length
    layout.activation, layout.slope = job.activation, job.slope
    layout.bias_by_pixel = bias != NULL
    chunk.rows = chunk.columns = 1
    while True:
        depth = min(job.depth, job.length - k)
        pack_panels(job, x, share.first, share.last, k, depth, scratch, sums)
        fetch = next_panels(job, item, k + depth)
        chunk.ahead, chunk.ahead_step = weight, 0
        # Some filters at a time pass over all panels: so they write long pieces of few planes.
        row = share.begin
        while row < share.end:
            rows = min(share.end - row, job.filters)
            # The next weights are fetched while these pass over the first panel.
            chunk.also = weight + ((row + rows) * job.length + k) * size
            for index in range(share.first, share.last):
                panel = panel_of(job, index)
                layout.tail = <int>(kernels.lanes if job.joined
                                    else panel.count - (panel.vectors - 1) * kernels.lanes)
                layout.w_step = job.pixels if in_place(job, x, panel) else 0
                multiply(job, &layout, &chunk, &fetch, panel, rows, k, depth,
                         weight + row * job.length * size,
                         x + (k * job.pixels + panel.column) * size if layout.w_step
                         else scratch + (panel.column - start) * job.depth * size,
                         moved(bias, row * size) if layout.bias_by_pixel else zeros,
                         sums + (panel.column - start) * size if job.joined
                         else out + (row * job.pixels + panel.column) * size)
                chunk.also = NULL
            if job.joined:
                copy_pieces(job, out + row * job.pixels * size, job.out_channels * job.pixels, rows,
                            start, panel.column + panel.count - start, sums, width, True)
            row += rows
        k += depth
        if k == job.length:
            return


cdef void multiply(const PlanesJob *job, const ck_tile_layout *layout, ck_chunk *chunk, Fetch *fetch,
                   Panel panel, Py_ssize_t rows, Py_ssize_t k, Py_ssize_t depth, const char *weight,
                   const char *b, const char *bias, char *out) noexcept nogil:
    """Add rows k .. k+depth-1 of a panel b, times the weights of some filters, to their outputs."""
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, stop = k + depth, length, row, row_stop, tile
    cdef Py_ssize_t tiles = ceil_div(rows, kernels.max_pixels[panel.vectors])
    while True:
        length = min(job.chunk, stop - k)
        chunk.run = length
        chunk.flags = (CK_FIRST if k == 0 else 0) | (CK_LAST if k + length == job.length else 0)
        if chunk.also != NULL:
            chunk.flags |= CK_ALSO
        for tile in range(tiles):
            row, row_stop = rows * tile // tiles, rows * (tile + 1) // tiles
            aim(chunk, fetch)
            kernels.tile[panel.vectors][row_stop - row](
                layout, chunk, weight + (row * job.length + k) * size, b,
                moved(bias, row * size) if layout.bias_by_pixel else bias,
                out + row * layout.out_pixel * size)
            if chunk.also != NULL:
                chunk.also += chunk.run // 4 * CK_AHEAD
        b += length * (layout.w_step if layout.w_step else panel.width) * size
        k += length
        if k == stop:
            return


cdef int convolve_planes(const ck_kernels *kernels, const char *weight, const char *bias,
                         const char *x, char *out, Py_ssize_t images, Py_ssize_t groups,
                         Py_ssize_t channels, Py_ssize_t out_channels, Axis h, Axis w,
                         int activation, double slope, int threads) except -1:
    """Convolve contiguous NCHW images; channels are those of a group, bias may be NULL."""
    cdef PlanesJob job
    cdef Py_ssize_t widest = CK_MAX_VECTORS, length
    cdef bint full
    if images == 0 or out_channels == 0 or h.out == 0 or w.out == 0:
        return 0
    while kernels.max_pixels[widest] == 0:
        widest -= 1
    set_windows(&job, kernels, x, groups, channels, out_channels, h, w)
    job.weight, job.bias, job.out = weight, bias, out
    job.activation, job.slope = activation, slope
    job.vectors = ceil_div(job.pixels, kernels.lanes)
    job.elements = images * groups * job.length * job.pixels
    full = job.pixels >= MOST_FULL * job.vectors * kernels.lanes
    # One image is convolved like many, because chunks of sums have a say in how these are rounded.
    job.direct = job.plain and (full or groups > 1) and out_channels <= DIRECT_FILTERS
    if job.plain and not full and groups == 1 and images > 1 and job.length > 0:
        job.joined = images * job.pixels
        job.vectors = ceil_div(job.joined, kernels.lanes)
    job.filters = DIRECT_TOGETHER if job.direct else FILTERS
    job.panels = ceil_div(job.vectors, widest)
    job.width = ceil_div(job.vectors, job.panels) * kernels.lanes
    job.chunk = max(1, min(job.length, <Py_ssize_t>(DIRECT_CHUNK if job.direct else CHUNK)))
    job.chunk = max(1, ceil_div(job.length, max(1, ceil_div(job.length, job.chunk))))
    # All rows of the panels are packed at once, where they are not too many.
    cdef Py_ssize_t row_bytes = job.width * kernels.itemsize
    job.depth = job.length
    if not job.joined:
        length = min(<Py_ssize_t>FEWEST_PANELS, job.panels) * job.chunk * row_bytes
        job.depth = min(job.length, max(<Py_ssize_t>1, PACKED_BYTES // length) * job.chunk)
    job.group = max(1, min(job.panels, PACKED_BYTES // (max(1, job.depth) * row_bytes)))
    # Items enough for the threads: of fewer filters if these are many, then of fewer pixels.
    cdef Py_ssize_t others = (1 if job.joined else images) * groups
    job.row_blocks = 1
    while (out_channels >= 2 * ROWS * job.row_blocks
           and others * job.row_blocks * ceil_div(job.panels, job.group) < 8 * threads):
        job.row_blocks *= 2
    others *= job.row_blocks
    while job.group > 1 and others * ceil_div(job.panels, job.group) < 4 * threads:
        job.group //= 2
    job.panel_groups = ceil_div(job.panels, job.group)
    length = FILTERS * job.group * job.width if job.joined else line_of_windows(&job, job.width)
    cdef double rows = ceil_div(out_channels, job.row_blocks)
    job.items = others * job.panel_groups
    return run(planes_item, &job, job.items,
               (2.0 * rows + 8) * job.length * job.group * job.width, threads,
               <size_t>(((job.group * job.depth + 1) * job.width + length) * kernels.itemsize))
