# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Convolution of images that lie side by side, and its gradients: a lane is an image.

The arrays are (N, C, H, W) in name and (C, H, W, N) in memory, with N a multiple of the
lanes.  Few channels and filters then fill whole vectors, a weight meets all of a vector,
and a window is a walk through memory.  The gradient of the input is the same walk, with
the weight turned round, one phase of the stride after the other.

A place is a vector of images of one pixel.  Without a stride the places of a row, one after
the other, are all treated alike, as if there were a pixel for each.
"""

from libc.string cimport memcpy, memset

cimport numpy as cnp

from convkern._kernels.core cimport (
    Axis,
    Span,
    axis,
    ceil_div,
    ck_kernels,
    ck_lanes,
    ck_lanes_outer,
    data_of,
    give,
    kernels_of,
    moved,
    new_spans,
    run,
    take,
    transpose,
)

cnp.import_array()

cdef enum:
    CHUNK = 256     # products of one chain of additions
    POSITIONS = 96  # the same of the gradient of a weight: what stays in the nearest cache
    ITEMS = 8       # wanted for the threads' sake
    NARROW = 4      # columns: with fewer, the gradient of the weight goes down them
    VECTOR = 16     # images: what the longest vectors hold
    MOST_IMAGES = 64

cdef struct Stretch:
    # Outputs out, out + step, ..., `count` of them, whose windows hold `taps` taps of one axis.
    Py_ssize_t out, step, count
    # Where in the source the first tap of the first output is, and how far on that of the next is.
    Py_ssize_t source, source_step
    # The first tap in the weight, and the step to the next.
    Py_ssize_t tap, tap_step, taps
    # Of a single line, of which `count` are left: how many of its stretch lie before it.
    Py_ssize_t before

cdef struct LanesJob:
    const ck_kernels *kernels
    ck_lanes layout
    const char *x
    const char *weight
    const char *bias
    char *out
    # Elements between rows: of the source, of the weight and of the output.
    Py_ssize_t x_row, w_row, out_row
    const Stretch *rows      # one for each row of the output
    const Stretch *columns
    Py_ssize_t images, stretches, row_count, filters
    # The filters are cut into blocks, of a tile each, and those are shared by `parts` items.
    Py_ssize_t blocks, parts


cdef Py_ssize_t cut_forward(const Axis *a, Stretch *stretches) except -1:
    """Cut an axis where its windows begin or cease to hang over an edge."""
    cdef Py_ssize_t i, count
    cdef Span *spans = new_spans(a, &count)
    for i in range(count):
        stretches[i] = Stretch(
            spans[i].start, 1, spans[i].stop - spans[i].start,
            spans[i].start * a.stride - a.pad + spans[i].first, a.stride,
            spans[i].first, 1, spans[i].last - spans[i].first, 0)
    give(spans)
    return count


cdef Py_ssize_t cut_backward(const Axis *a, Stretch *stretches) except -1:
    """Cut the input's axis: each phase of the stride meets every stride-th tap, the last first."""
    cdef Axis phase
    cdef Span *spans
    cdef Py_ssize_t p, i, first_tap, taps, count, total = 0
    for p in range(min(a.stride, a.size)):
        first_tap = (p + a.pad) % a.stride
        taps = max(0, ceil_div(a.kernel - first_tap, a.stride))
        phase = Axis(a.out, ceil_div(a.size - p, a.stride), taps, 1,
                     taps - 1 - (p + a.pad) // a.stride, 1)
        spans = new_spans(&phase, &count)
        for i in range(count):
            stretches[total + i] = Stretch(
                p + spans[i].start * a.stride, a.stride, spans[i].stop - spans[i].start,
                spans[i].start - phase.pad + spans[i].first, 1,
                first_tap + (taps - 1 - spans[i].first) * a.stride, -a.stride,
                spans[i].last - spans[i].first, 0)
        give(spans)
        total += count
    return total


cdef Py_ssize_t stretches_of(const Axis *a, bint backward, Stretch *stretches) except -1:
    return cut_backward(a, stretches) if backward else cut_forward(a, stretches)


cdef Py_ssize_t lines_of(const Axis *a, bint backward, Stretch *lines) except -1:
    """Cut an axis into its single outputs, at `lines`; return how many."""
    cdef Py_ssize_t i, j, stretch_count, count = 0, most = a.size if backward else a.out
    cdef Stretch *stretches = <Stretch *>take(<size_t>most * sizeof(Stretch))
    try:
        stretch_count = stretches_of(a, backward, stretches)
        for i in range(stretch_count):
            for j in range(stretches[i].count):
                lines[count] = stretches[i]
                lines[count].out += j * stretches[i].step
                lines[count].source += j * stretches[i].source_step
                lines[count].count, lines[count].before = stretches[i].count - j, j
                count += 1
    finally:
        give(stretches)
    return count


cdef inline Py_ssize_t places_of(const Stretch *stretch, Py_ssize_t vectors) noexcept nogil:
    """Return how many places of a stretch can be passed through in even steps, for one pixel 1."""
    return vectors if stretch.step == stretch.source_step == 1 else 1


cdef Py_ssize_t blocks_of(const ck_kernels *kernels, Py_ssize_t filters, const Stretch *stretches,
                          Py_ssize_t count, Py_ssize_t vectors) noexcept nogil:
    """Return into how many blocks the filters are best cut: those with the fewest tiles.

    A tile lies along the places of a stretch, or with no vectors along its taps.
    """
    cdef Py_ssize_t most = kernels.max_lanes_filters, i, blocks, widest, tiles, along
    cdef Py_ssize_t least = 0, best = 0
    while most > 0:
        blocks = ceil_div(filters, most)
        widest = kernels.max_lanes_pixels[ceil_div(filters, blocks)]
        tiles = 0
        for i in range(count):
            if vectors:
                along = stretches[i].count * places_of(stretches + i, vectors)
                tiles += blocks * ceil_div(along, widest) * vectors // places_of(
                    stretches + i, vectors)
            else:
                tiles += blocks * ceil_div(stretches[i].taps, widest)
        if best == 0 or tiles < least:
            best, least = blocks, tiles
        most -= 1
    return best


cdef void lanes_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Some filters of a row of the output: what a tile reads is read by all of them in turn.

    Tiles lie along the row, but those of narrow stretches down its columns, over so many rows whose
    windows are cut alike; the first of these rows has them.
    """
    cdef const LanesJob *job = <const LanesJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t part = item % job.parts, i, tile, tiles, first, count, vector, x, out
    cdef Py_ssize_t vectors = job.images // kernels.lanes, places, length
    cdef Py_ssize_t widest = kernels.max_lanes_pixels[ceil_div(job.filters, job.blocks)]
    cdef const Stretch *row = job.rows + item // job.parts
    cdef const Stretch *stretch
    cdef ck_lanes layout = job.layout
    layout.rows, layout.w_row = row.taps, row.tap_step * job.w_row
    for i in range(job.stretches):
        stretch = job.columns + i
        layout.columns, layout.w_column = stretch.taps, stretch.tap_step
        if goes_down(job, stretch, widest):
            if row.before % widest == 0:
                layout.x_pixel = row.source_step * job.x_row
                layout.out_pixel = row.step * job.out_row
                for vector in range(stretch.count * vectors):
                    x = row.source * job.x_row + (
                        stretch.source + vector // vectors * stretch.source_step) * job.images
                    out = row.out * job.out_row + (
                        stretch.out + vector // vectors * stretch.step) * job.images
                    add_filters(job, &layout, min(widest, row.count), part,
                                x + vector % vectors * kernels.lanes,
                                row.tap * job.w_row + stretch.tap,
                                out + vector % vectors * kernels.lanes)
            continue
        places = places_of(stretch, vectors)
        layout.x_pixel = stretch.source_step * (job.images // places)
        layout.out_pixel = stretch.step * (job.images // places)
        length = stretch.count * places
        tiles = ceil_div(length, widest)
        for tile in range(tiles):
            first = length * tile // tiles
            count = length * (tile + 1) // tiles - first
            x = row.source * job.x_row + stretch.source * job.images + first * layout.x_pixel
            out = row.out * job.out_row + stretch.out * job.images + first * layout.out_pixel
            for vector in range(vectors // places):
                add_filters(job, &layout, count, part, x + vector * kernels.lanes,
                            row.tap * job.w_row + stretch.tap, out + vector * kernels.lanes)


cdef inline bint goes_down(const LanesJob *job, const Stretch *stretch,
                           Py_ssize_t widest) noexcept nogil:
    """Tell whether a stretch is so narrow that tiles had better lie down its columns."""
    return stretch.count * places_of(stretch, job.images // job.kernels.lanes) <= widest // 2


cdef void add_filters(const LanesJob *job, const ck_lanes *layout, Py_ssize_t pixels,
                      Py_ssize_t part, Py_ssize_t x, Py_ssize_t w, Py_ssize_t out) noexcept nogil:
    """Compute one tile of pixels, of one vector of images, for a part of the filters."""
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, block, filter, filters
    for block in range(job.blocks * part // job.parts, job.blocks * (part + 1) // job.parts):
        filter = job.filters * block // job.blocks
        filters = job.filters * (block + 1) // job.blocks - filter
        kernels.lanes_tile[filters][pixels](
            layout, job.x + x * size, job.weight + (w + filter * layout.w_filter) * size,
            moved(job.bias, filter * size), job.out + (out + filter * layout.out_filter) * size)


cdef int convolve(LanesJob *job, const Axis *h, const Axis *w, bint backward, Py_ssize_t images,
                  int threads) except -1:
    """Run a job whose layout knows its channels and weight, forwards or backwards."""
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t rows = h.size if backward else h.out, columns = w.size if backward else w.out
    cdef Stretch *stretches = <Stretch *>take(<size_t>(rows + columns) * sizeof(Stretch))
    cdef double work
    job.layout.chunk = max(1, CHUNK // (h.kernel * w.kernel))
    job.x_row, job.out_row = images * (w.out if backward else w.size), images * columns
    job.layout.x_column, job.layout.x_row = images, job.x_row
    job.layout.x_channel = job.x_row * (h.out if backward else h.size)
    job.layout.out_filter = job.out_row * rows
    job.w_row = w.kernel
    job.images = images
    try:
        job.rows, job.columns = stretches, stretches + rows
        job.row_count = lines_of(h, backward, stretches)
        job.stretches = stretches_of(w, backward, stretches + rows)
        job.blocks = blocks_of(kernels, job.filters, job.columns, job.stretches,
                               images // kernels.lanes)
        job.parts = min(job.blocks, ceil_div(ITEMS, rows))
        # Each output of the convolution meets each weight once.
        work = 2.0 * images * h.out * w.out * h.kernel * w.kernel
        work *= <double>job.layout.channels * job.filters
        return run(lanes_item, job, rows * job.parts, work / (rows * job.parts), threads, 0)
    finally:
        give(stretches)


def lanes_conv2d(cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias, cnp.ndarray out, tuple rows,
                 tuple columns, int activation, double slope, int threads):
    """Convolve images-last arrays; weight (OC, C, KH, KW) is contiguous, dilations are 1."""
    cdef LanesJob job
    cdef Axis h = axis(x.shape[2], out.shape[2], rows), w = axis(x.shape[3], out.shape[3], columns)
    job.kernels, job.x, job.weight = kernels_of(x), data_of(x), data_of(weight)
    job.bias, job.out = data_of(bias), <char *>cnp.PyArray_DATA(out)
    job.layout.activation, job.layout.slope = activation, slope
    job.layout.channels, job.filters = x.shape[1], out.shape[1]
    job.layout.w_channel = h.kernel * w.kernel
    job.layout.w_filter = x.shape[1] * job.layout.w_channel
    convolve(&job, &h, &w, False, x.shape[0], threads)


def lanes_input_gradient(cnp.ndarray grad, cnp.ndarray weight, cnp.ndarray grad_input, tuple rows,
                         tuple columns, int threads):
    """Write the gradient of such a convolution's input."""
    cdef LanesJob job
    cdef Axis h = axis(grad_input.shape[2], grad.shape[2], rows)
    cdef Axis w = axis(grad_input.shape[3], grad.shape[3], columns)
    job.kernels, job.x, job.weight = kernels_of(grad), data_of(grad), data_of(weight)
    job.bias, job.out = NULL, <char *>cnp.PyArray_DATA(grad_input)
    job.layout.activation, job.layout.slope = 0, 0.0
    job.layout.channels, job.filters = grad.shape[1], grad_input.shape[1]
    job.layout.w_filter = h.kernel * w.kernel
    job.layout.w_channel = grad_input.shape[1] * job.layout.w_filter
    convolve(&job, &h, &w, True, grad.shape[0], threads)


# ---------------------------------------------------------------- gradient of the weight

cdef struct GradientJob:
    const ck_kernels *kernels
    const char *x
    const char *g
    char *grad_weight
    Axis h, w
    const Stretch *columns
    Py_ssize_t stretches, images, channels, filters, blocks
    # The rows of taps are shared by `parts` items.
    Py_ssize_t parts


cdef void add_rows(const GradientJob *job, const char *x, const char *g, Py_ssize_t begin,
                   Py_ssize_t end, Py_ssize_t r, bint narrow, Py_ssize_t filters,
                   Py_ssize_t sums_filter, char *sums) noexcept nogil:
    """Add the products of one row of taps and some rows of outputs, in narrow stretches or others.

    The positions of a narrow stretch go down its columns.
    """
    cdef const ck_kernels *kernels = job.kernels
    cdef const Axis *h = &job.h
    cdef const Stretch *stretch
    cdef Py_ssize_t size = kernels.itemsize, vectors = job.images // kernels.lanes
    cdef Py_ssize_t i, tile, tiles, first, taps, piece, places, length, line, lines, at_x, at_g
    cdef ck_lanes_outer layout
    # Only outputs whose windows have these taps inside the image.
    begin = max(begin, ceil_div(max(<Py_ssize_t>0, h.pad - r), h.stride))
    end = min(end, ceil_div(max(<Py_ssize_t>0, h.size + h.pad - r), h.stride))
    if begin >= end:
        return
    layout.x_column = job.images
    layout.x_row, layout.g_row = h.stride * job.w.size * job.images, job.w.out * job.images
    layout.g_filter = h.out * layout.g_row
    layout.sums_filter = sums_filter
    x += (begin * h.stride - h.pad + r) * job.w.size * job.images * size
    g += begin * job.w.out * job.images * size
    for i in range(job.stretches):
        stretch = job.columns + i
        if is_narrow(stretch) != narrow:
            continue
        if narrow:
            places, length, lines = 1, end - begin, stretch.count * vectors
            layout.rows, layout.x_pixel, layout.g_pixel = 1, layout.x_row, layout.g_row
        else:
            places = places_of(stretch, vectors)
            length, lines, layout.rows = stretch.count * places, vectors // places, end - begin
            layout.x_pixel = stretch.source_step * (job.images // places)
            layout.g_pixel = job.images // places
        tiles = ceil_div(stretch.taps, kernels.max_lanes_pixels[filters])
        for tile in range(tiles):
            first = stretch.taps * tile // tiles
            taps = stretch.taps * (tile + 1) // tiles - first
            for piece in range(ceil_div(length, POSITIONS) * lines):
                line = piece % lines
                piece = piece // lines * POSITIONS
                layout.pixels = min(<Py_ssize_t>POSITIONS, length - piece)
                at_x = (stretch.source + first) * job.images + piece * layout.x_pixel
                at_g = stretch.out * job.images + piece * layout.g_pixel
                if narrow:
                    at_x += line // vectors * stretch.source_step * job.images
                    at_g += line // vectors * job.images
                    line = line % vectors
                kernels.lanes_outer[filters][taps](
                    &layout, x + (at_x + line * kernels.lanes) * size,
                    g + (at_g + line * kernels.lanes) * size,
                    sums + (stretch.tap + first) * kernels.lanes * size)


cdef inline bint is_narrow(const Stretch *stretch) noexcept nogil:
    """Tell whether a stretch is too narrow to fill the loop over positions of a row."""
    return stretch.count < NARROW


cdef void gradient_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """The weights of a block of filters in some rows of taps of a channel."""
    cdef const GradientJob *job = <const GradientJob *>job_
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, lanes = kernels.lanes, band, r, f, row
    cdef Py_ssize_t part = item % job.parts, channel = item // job.parts % job.channels
    cdef Py_ssize_t block = item // job.parts // job.channels
    cdef Py_ssize_t filter = job.filters * block // job.blocks
    cdef Py_ssize_t filters = job.filters * (block + 1) // job.blocks - filter
    cdef Py_ssize_t first = job.h.kernel * part // job.parts
    cdef Py_ssize_t last = job.h.kernel * (part + 1) // job.parts
    cdef Py_ssize_t taps = (last - first) * job.w.kernel
    cdef Py_ssize_t step = max(<Py_ssize_t>1, POSITIONS * lanes // (job.w.out * job.images))
    cdef const char *x = job.x + channel * job.h.size * job.w.size * job.images * size
    cdef const char *g = job.g + filter * job.h.out * job.w.out * job.images * size
    cdef char *sums = scratch
    cdef char *totals = sums + sums_of(job) * lanes * size
    memset(sums, 0, <size_t>(sums_of(job) * lanes * size))
    for r in range(first, last):
        add_rows(job, x, g, 0, job.h.out, r, True, filters, taps,
                 sums + (r - first) * job.w.kernel * lanes * size)
    for band in range(ceil_div(job.h.out, step)):
        for r in range(first, last):
            add_rows(job, x, g, band * step, min((band + 1) * step, job.h.out), r, False, filters,
                     taps, sums + (r - first) * job.w.kernel * lanes * size)
    kernels.sum_lanes(sums, filters * taps, totals)
    for f in range(filters):
        row = ((filter + f) * job.channels + channel) * job.h.kernel + first
        memcpy(job.grad_weight + row * job.w.kernel * size, totals + f * taps * size,
               <size_t>(taps * size))


cdef Py_ssize_t sums_of(const GradientJob *job) noexcept nogil:
    """Return how many vectors of sums an item has, up to a multiple of the lanes."""
    cdef Py_ssize_t lanes = job.kernels.lanes
    cdef Py_ssize_t rows = ceil_div(job.h.kernel, job.parts)
    return ceil_div(
        ceil_div(job.filters, job.blocks) * rows * job.w.kernel, lanes) * lanes


def lanes_weight_gradient(cnp.ndarray x, cnp.ndarray grad, cnp.ndarray grad_weight, tuple rows,
                          tuple columns, int threads):
    """Write the gradient of such a convolution's weight, (OC, C, KH, KW) and contiguous."""
    cdef GradientJob job
    cdef const ck_kernels *kernels = kernels_of(x)
    cdef Py_ssize_t items
    cdef Stretch *stretches
    job.kernels, job.x, job.g = kernels, data_of(x), data_of(grad)
    job.grad_weight = <char *>cnp.PyArray_DATA(grad_weight)
    job.h = axis(x.shape[2], grad.shape[2], rows)
    job.w = axis(x.shape[3], grad.shape[3], columns)
    job.images, job.channels, job.filters = x.shape[0], x.shape[1], grad.shape[1]
    stretches = <Stretch *>take(<size_t>job.w.out * sizeof(Stretch))
    try:
        job.columns, job.stretches = stretches, cut_forward(&job.w, stretches)
        job.blocks = blocks_of(kernels, job.filters, stretches, job.stretches, 0)
        job.parts = min(job.h.kernel, ceil_div(ITEMS, job.blocks * job.channels))
        items = job.blocks * job.channels * job.parts
        run(gradient_item, &job, items,
            2.0 * job.images * job.h.out * job.w.out * grad_weight.size / items, threads,
            <size_t>(sums_of(&job) * (kernels.lanes + 1) * kernels.itemsize))
    finally:
        give(stretches)


# ---------------------------------------------------------------- layout

def is_images_last(cnp.ndarray x):
    """Tell whether a 4-D array lies in memory as (C, H, W, N), with 16, 32, 48 or 64 images."""
    cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(x)
    cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(x)
    cdef Py_ssize_t step = cnp.PyArray_ITEMSIZE(x) * shape[0]
    cdef int axis
    if (shape[0] % VECTOR or not 0 < shape[0] <= MOST_IMAGES
            or strides[0] != cnp.PyArray_ITEMSIZE(x)
            or not cnp.PyArray_CHKFLAGS(x, cnp.NPY_ARRAY_ALIGNED)):
        return False
    for axis in (3, 2, 1):
        if shape[axis] != 1 and strides[axis] != step:
            return False
        step *= shape[axis]
    # One pixel of one channel is contiguous as well.
    return step > cnp.PyArray_ITEMSIZE(x) * shape[0]


def to_images_last(cnp.ndarray x, cnp.ndarray out, int threads):
    """Copy a contiguous NCHW array into an images-last one."""
    transpose(kernels_of(x), data_of(x), <char *>cnp.PyArray_DATA(out), 1, x.shape[0],
              x.size // x.shape[0], threads)


def from_images_last(cnp.ndarray x, cnp.ndarray out, int threads):
    """Copy an images-last array into a contiguous NCHW one."""
    transpose(kernels_of(x), data_of(x), <char *>cnp.PyArray_DATA(out), 1, x.size // x.shape[0],
              x.shape[0], threads)
