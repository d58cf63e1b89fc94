# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Convolution: the direct algorithm, depthwise, and the way to Winograd's."""

cimport cython
from libc.string cimport memset

cimport numpy as cnp

from convkern._kernels.bands cimport convolve_bands, fits_bands
from convkern._kernels.channels cimport Arrivals, ImageMoments, arrivals_of, outputs_came
from convkern._kernels.core cimport (
    CK_AHEAD,
    CK_CLAIM,
    CK_DEPTHWISE_EDGES,
    CK_FIRST,
    CK_LAST,
    CK_ONCE,
    CK_STREAM,
    Axis,
    Block,
    Images,
    Span,
    axis,
    block_of,
    ceil_div,
    ck_chunk,
    ck_kernels,
    ck_tile_layout,
    ck_window,
    data_of,
    give,
    images_of,
    kernels_of,
    new_spans,
    packed_images,
    run,
    take,
    transpose,
)
from convkern._kernels.packing cimport PackedConv, own_copy
from convkern._kernels.planes cimport convolve_planes
from convkern._kernels.strips cimport Planes, Region, area, gather_strip, place_strip, strip_of
from convkern._kernels.winograd cimport winograd_images

cnp.import_array()


cdef enum:
    # Products summed in registers before they are added to the output: longer chains lose digits,
    # and this many steps of weights stay in the cache while the tiles of an item pass over them.
    CHUNK = 256
    # Where few tiles share a chunk of weights, they fetch the next one meanwhile; where they are
    # too few for that, the first one also fetches its own some kilobytes ahead.
    FEW_TILES = 32
    FEWEST_TILES = 6
    STRIP_BYTES = 768 << 10  # of pixels and outputs that an item of planes copies,
    FEWEST_STRIP = 64        # but so many outputs
    DEPTHWISE_BYTES = 256 << 10  # and rather fewer, of so many channels, where each has a filter
    DEPTHWISE_CHANNELS = 64      # of its own


cdef void conv_box(const ConvJob *job, Py_ssize_t vectors, int tail, const char *x,
                   const char *weight, const char *bias, char *out, const Span *rows,
                   const Span *columns, bint cold) noexcept nogil:
    """Compute the output pixels of one row span x column span, which all see the same taps.

    `cold`: these pixels have not been read lately.
    """
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, width = vectors * kernels.lanes
    cdef Py_ssize_t height = rows.stop - rows.start, breadth = columns.stop - columns.start
    cdef Py_ssize_t widest = kernels.max_pixels[vectors]
    cdef Py_ssize_t lines = height, length = breadth, tiles, line, tile, start, stop
    cdef Py_ssize_t x_line = job.h.stride * job.x_row, out_line = job.out_row
    cdef Py_ssize_t tap_rows = rows.last - rows.first, tap_columns = columns.last - columns.first
    cdef Py_ssize_t run_length = job.channels, row_step, column_step, pieces, r, c, piece, e0, e1
    cdef ck_tile_layout layout
    cdef ck_chunk chunk
    cdef int stream
    cdef const char *tile_x
    cdef const char *tile_w
    cdef char *tile_out

    layout.x_pixel = job.w.stride * job.x_column
    layout.out_pixel = job.out_column
    # Tiles lie along the rows, or down the columns where that takes fewer of them.
    if breadth * ceil_div(height, widest) < height * ceil_div(breadth, widest):
        lines, length = breadth, height
        x_line, layout.x_pixel = layout.x_pixel, x_line
        out_line, layout.out_pixel = layout.out_pixel, out_line
    tiles = ceil_div(length, widest)
    layout.x_row = job.h.dilation * job.x_row
    layout.x_column = job.w.dilation * job.x_column
    layout.w_row, layout.w_step = job.w.kernel * job.channels * width, 0
    layout.tail, layout.bias_by_pixel = tail, 0
    layout.activation, layout.slope = job.activation, job.slope

    # Taps of a row that are contiguous with their channels form one run.
    if layout.x_column == job.channels:
        run_length *= tap_columns
        tap_columns = 1
    # One tap of a few channels: so short a sum waits for pixels and outputs, not for weights.
    cdef bint brief = (job.h.kernel == job.w.kernel == 1 and job.channels <= CHUNK
                       and layout.x_pixel == job.channels)
    # What is more is fetched: the pixels of the next tile, or the weights of the next chunk.
    cdef bint fetch_pixels = brief and cold and height * breadth > width
    row_step, column_step, pieces = 1, tap_columns, 1
    if run_length * tap_columns * tap_rows == 0:
        tap_rows = 0
    elif run_length * tap_columns <= CHUNK:
        row_step = CHUNK // (run_length * tap_columns)
    elif run_length <= CHUNK:
        column_step = CHUNK // run_length
    else:
        column_step, pieces = 1, ceil_div(run_length, CHUNK)

    chunk.flags = CK_FIRST | (CK_CLAIM if brief else 0)
    chunk.ahead, chunk.ahead_step = weight, 0
    r = c = piece = 0
    while True:
        chunk.rows = min(row_step, tap_rows - r)
        chunk.columns = min(column_step, tap_columns - c)
        e0 = run_length * piece // pieces & ~3
        e1 = run_length if piece == pieces - 1 else run_length * (piece + 1) // pieces & ~3
        chunk.run = e1 - e0
        tile_x = x + (((rows.first + r) * job.h.dilation + rows.start * job.h.stride - job.h.pad)
                      * job.x_row
                      + ((columns.first + c) * job.w.dilation + columns.start * job.w.stride
                         - job.w.pad) * job.x_column + e0) * size
        tile_w = weight + (((rows.first + r) * job.w.kernel + columns.first + c) * job.channels
                           + e0) * width * size
        # The next chunk, innermost first.
        piece += 1
        if piece == pieces:
            piece, c = 0, c + column_step
        if c >= tap_columns:
            c, r = 0, r + row_step
        if r >= tap_rows:
            chunk.flags |= CK_LAST
        stream, chunk.ahead_step = 0, 0
        if lines * tiles <= FEW_TILES:
            chunk.ahead = tile_w + chunk.rows * chunk.columns * chunk.run * width * size
            chunk.ahead_step = CK_AHEAD
        if lines * tiles <= FEWEST_TILES:
            stream = CK_STREAM
        # A single tile that is the whole output: each weight is read once, by one call, from memory.
        if lines * tiles == job.positions == job.row_spans == job.column_spans == 1:
            stream = CK_ONCE
        tile_out = out + (rows.start * job.out_row + columns.start * job.out_column) * size
        for line in range(lines):
            start = 0
            for tile in range(tiles):
                stop = length * (tile + 1) // tiles
                if fetch_pixels:
                    chunk.ahead = tile_x + stop * layout.x_pixel * size
                    chunk.ahead_step = 4 * (stop - start) * size
                chunk.flags = chunk.flags & ~CK_STREAM | (0 if line or tile else stream)
                kernels.tile[vectors][stop - start](
                    &layout, &chunk, tile_x + start * layout.x_pixel * size, tile_w, bias,
                    tile_out + start * layout.out_pixel * size)
                chunk.ahead += chunk.rows * chunk.columns * (chunk.run // 4) * chunk.ahead_step
                start = stop
            tile_x += x_line * size
            tile_out += out_line * size
        if chunk.flags & CK_LAST:
            return
        chunk.flags = 0


cdef inline bint clip(const Span *span, Py_ssize_t start, Py_ssize_t stop, Span *part) noexcept nogil:
    """Intersect a span with start .. stop-1; tell whether anything is left."""
    part[0] = span[0]
    part.start, part.stop = max(span.start, start), min(span.stop, stop)
    return part.start < part.stop


cdef inline Region region_at(Py_ssize_t position, Py_ssize_t height, Py_ssize_t row_blocks,
                             Py_ssize_t width, Py_ssize_t column_blocks) noexcept nogil:
    """Return the block of rows and columns at a position."""
    cdef Py_ssize_t i = position // column_blocks % row_blocks, j = position % column_blocks
    return Region(height * i // row_blocks, height * (i + 1) // row_blocks,
                  width * j // column_blocks, width * (j + 1) // column_blocks)


cdef void conv_block(const ConvJob *job, const char *x, char *out, const Region *region,
                     Py_ssize_t group, const Block *block, bint cold) noexcept nogil:
    """A region of an image's outputs, one block of filters of a group.

    x and out are the image's first pixels, of the group and of the block.
    """
    cdef Py_ssize_t size = job.kernels.itemsize, lanes = job.kernels.lanes, i, j
    cdef int tail = <int>min(lanes, job.out_channels - block.first - (block.vectors - 1) * lanes)
    cdef const char *weight = own_copy(&job.weights) + (group * job.vectors * lanes + block.first) * (
        job.h.kernel * job.w.kernel * job.channels * size)
    cdef const char *bias = job.bias + (group * job.vectors * lanes + block.first) * size
    cdef Span rows, columns
    for i in range(job.row_spans):
        if clip(&job.rows[i], region.top, region.bottom, &rows):
            for j in range(job.column_spans):
                if clip(&job.columns[j], region.left, region.right, &columns):
                    conv_box(job, block.vectors, tail, x, weight, bias, out, &rows, &columns,
                             cold)


cdef void conv_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One block of filters at one position, or all of them there: then no two threads write next
    to each other, and the position's pixels are read once."""
    cdef const ConvJob *job = <const ConvJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, position = item % job.positions, index, group
    cdef Py_ssize_t first = 0, last = job.groups * job.blocks
    cdef Py_ssize_t image = position // job.column_blocks // job.row_blocks
    cdef Py_ssize_t filters = 0
    cdef Region region = region_at(position, job.h.out, job.row_blocks, job.w.out,
                                   job.column_blocks)
    cdef Block block
    if not job.all_filters:
        first = item // job.positions
        last = first + 1
    for index in range(first, last):
        group = index // job.blocks
        block = block_of(job.kernels, job.vectors, job.blocks, index % job.blocks)
        filters += min(block.width, job.out_channels - block.first)
        conv_block(job, job.x + (image * job.x_image + group * job.channels) * size,
                   job.out + (image * job.out_image + group * job.out_channels + block.first) * size,
                   &region, group, &block, index == first)
    if job.arrivals != NULL:
        outputs_came(job.arrivals, job.first_image + image, filters * area(&region))


cdef inline Py_ssize_t rows_seen(const Axis *h, Py_ssize_t count) noexcept nogil:
    """Return how many rows so many windows extend over, one after the other."""
    return max(0, (count - 1) * h.stride + (h.kernel - 1) * h.dilation + 1)


cdef inline Region seen_by(const Axis *h, const Axis *w, const Region *out) noexcept nogil:
    """Return the pixels of the input that the windows of a region of the output meet."""
    cdef Region region
    region.top = max(0, out.top * h.stride - h.pad)
    region.bottom = min(h.size, out.top * h.stride - h.pad + rows_seen(h, out.bottom - out.top))
    region.left = max(0, out.left * w.stride - w.pad)
    region.right = min(w.size, out.left * w.stride - w.pad + rows_seen(w, out.right - out.left))
    region.bottom, region.right = max(region.top, region.bottom), max(region.left, region.right)
    return region


cdef struct StripPart:
    # A convolution that gives every `step`-th row and column of an output, from `first` on.
    ConvJob job
    Py_ssize_t first_row, first_column, row_step, column_step

cdef struct StripsJob:
    # The convolutions that fill an output of planes, which is cut into positions.
    const StripPart *parts
    Py_ssize_t count, height, width, row_blocks, column_blocks, positions


cdef Region outputs_of(const StripPart *part, const Region *out) noexcept nogil:
    """Return which of a part's outputs lie in a region of the whole one."""
    cdef Region region
    region.top = ceil_div(out.top - part.first_row, part.row_step)
    region.bottom = ceil_div(out.bottom - part.first_row, part.row_step)
    region.left = ceil_div(out.left - part.first_column, part.column_step)
    region.right = ceil_div(out.right - part.first_column, part.column_step)
    return region


cdef Region pixels_for(const StripsJob *job, const Region *out) noexcept nogil:
    """Return the pixels that all parts need for a region of the output."""
    cdef const StripPart *part
    cdef Region all_ = Region(0, 0, 0, 0), region
    cdef Py_ssize_t i
    for i in range(job.count):
        part = &job.parts[i]
        region = outputs_of(part, out)
        if part.job.h.kernel * part.job.w.kernel == 0 or area(&region) == 0:
            continue
        region = seen_by(&part.job.h, &part.job.w, &region)
        if area(&region) == 0:
            continue
        if area(&all_) == 0:
            all_ = region
        all_.top, all_.bottom = min(all_.top, region.top), max(all_.bottom, region.bottom)
        all_.left, all_.right = min(all_.left, region.left), max(all_.right, region.right)
    return all_


cdef void strip_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """All filters of a group at one position of planes: the pixels there pass through a strip, and
    the outputs of each block of filters through another one."""
    cdef const StripsJob *job = <const StripsJob *>job_
    cdef ConvJob here = job.parts[0].job
    cdef const StripPart *part
    cdef const ck_kernels *kernels = here.kernels
    cdef Py_ssize_t size = kernels.itemsize, position = item % job.positions, index, i
    cdef Py_ssize_t group = item // job.positions, blocks = here.blocks
    cdef Py_ssize_t image = position // job.column_blocks // job.row_blocks
    cdef Region out = region_at(position, job.height, job.row_blocks, job.width, job.column_blocks)
    cdef Region in_ = pixels_for(job, &out), region
    cdef Planes from_ = Planes(<char *>here.x + image * here.x_image * size, here.x_plane, here.x_row)
    cdef Planes to = Planes(here.out + image * here.out_image * size, job.height * job.width,
                            job.width)
    cdef Images x = strip_of(scratch, &in_, here.channels, size), y
    cdef char *strip = scratch + area(&in_) * here.channels * size
    cdef Block block
    gather_strip(kernels, &from_, &in_, group * here.channels, here.channels, scratch)
    for index in range(blocks):
        block = block_of(kernels, here.vectors, blocks, index)
        y = strip_of(strip, &out, block.width, size)
        for i in range(job.count):
            part = &job.parts[i]
            here = part.job
            here.x_row, here.x_column = x.row, x.column
            here.out_row, here.out_column = part.row_step * y.row, part.column_step * y.column
            region = outputs_of(part, &out)
            conv_block(&here, x.data,
                       y.data + (part.first_row * y.row + part.first_column * y.column) * size,
                       &region, group, &block, False)
        place_strip(kernels, strip, block.width, &to, &out, group * here.out_channels + block.first,
                    min(block.width, here.out_channels - block.first))


cdef inline Py_ssize_t beyond(const Axis *a) noexcept nogil:
    """Return by how much the last window hangs over the end of an axis, if it is positive."""
    return (a.out - 1) * a.stride - a.pad + a.kernel - a.size


cdef inline bint spans_edges(const Axis *w) noexcept nogil:
    """Tell whether the kernel itself leaves out what windows have beyond the edges of a row."""
    return (w.dilation == 1 and CK_DEPTHWISE_EDGES(w.kernel, w.stride) and w.pad < w.kernel
            and beyond(w) < w.kernel)


cdef void depthwise_span(const ConvJob *job, ck_window *window, const Span *columns,
                         const char *x, const char *weight, const char *bias,
                         char *out) noexcept nogil:
    """Some windows of a row; x is the row's first pixel, weight the window's first tap."""
    cdef Py_ssize_t size = job.kernels.itemsize
    cdef Py_ssize_t first = columns.start * job.w.stride - job.w.pad + columns.first * job.w.dilation
    window.pixels, window.columns = columns.stop - columns.start, columns.last - columns.first
    job.kernels.depthwise(window, x + first * job.x_column * size,
                          weight + columns.first * job.groups * size, bias,
                          out + columns.start * job.out_column * size)


cdef void depthwise_row(const ConvJob *job, const char *x, char *out, Py_ssize_t row,
                        Py_ssize_t first, Py_ssize_t channels) noexcept nogil:
    """One output row of some channels; x and out are the first pixels of these."""
    cdef Py_ssize_t size = job.kernels.itemsize, i
    cdef const Span *rows = job.rows
    cdef const char *weight = own_copy(&job.weights)
    cdef const char *bias = job.bias + first * size
    cdef Span columns = Span(0, job.w.out, 0, job.w.kernel)
    cdef ck_window window
    while rows.stop <= row:
        rows += 1
    window.channels, window.left, window.right = channels, 0, 0
    window.x_pixel, window.out_pixel = job.w.stride * job.x_column, job.out_column
    window.x_row, window.x_column = job.h.dilation * job.x_row, job.w.dilation * job.x_column
    window.w_row, window.w_column = job.w.kernel * job.groups, job.groups
    window.activation, window.slope = job.activation, job.slope
    window.rows = rows.last - rows.first
    weight += (rows.first * job.w.kernel * job.groups + first) * size
    x += (row * job.h.stride - job.h.pad + rows.first * job.h.dilation) * job.x_row * size
    out += row * job.out_row * size
    if spans_edges(&job.w):
        window.left = max(<Py_ssize_t>0, job.w.pad)
        window.right = max(<Py_ssize_t>0, beyond(&job.w))
        depthwise_span(job, &window, &columns, x, weight, bias, out)
        return
    for i in range(job.column_spans):
        depthwise_span(job, &window, &job.columns[i], x, weight, bias, out)


cdef void depthwise_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One image and output row, all channels."""
    cdef const ConvJob *job = <const ConvJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, image = item // job.h.out
    depthwise_row(job, job.x + image * job.x_image * size, job.out + image * job.out_image * size,
                  item % job.h.out, 0, job.groups)
    if job.arrivals != NULL:
        outputs_came(job.arrivals, job.first_image + image, job.w.out * job.groups)


cdef void depthwise_parts_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """One image, and a row of each part: together they fill whole rows of the output."""
    cdef const StripsJob *job = <const StripsJob *>job_
    cdef const ConvJob *part
    cdef Py_ssize_t image = item // job.row_blocks, row = item % job.row_blocks, size, i
    for i in range(job.count):
        part = &job.parts[i].job
        size = part.kernels.itemsize
        if row < part.h.out:
            depthwise_row(part, part.x + image * part.x_image * size,
                          part.out + image * part.out_image * size, row, 0, part.groups)


cdef void depthwise_strip_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """Some rows of some planes, through a strip each of the input and the output."""
    cdef const ConvJob *job = <const ConvJob *>job_
    cdef ConvJob here = job[0]
    cdef Py_ssize_t size = job.kernels.itemsize, row_block = item % job.row_blocks, row
    cdef Py_ssize_t part = item // job.row_blocks % job.blocks, first = part * DEPTHWISE_CHANNELS
    cdef Py_ssize_t image = item // job.row_blocks // job.blocks
    cdef Py_ssize_t channels = min(<Py_ssize_t>DEPTHWISE_CHANNELS, job.groups - first)
    cdef Region out = Region(job.h.out * row_block // job.row_blocks,
                             job.h.out * (row_block + 1) // job.row_blocks, 0, job.w.out)
    cdef Region in_ = seen_by(&job.h, &job.w, &out)
    cdef Planes from_ = Planes(<char *>job.x + image * job.x_image * size, job.x_plane, job.x_row)
    cdef Planes to = Planes(job.out + image * job.out_image * size, job.h.out * job.w.out, job.w.out)
    cdef char *strip = scratch + area(&in_) * channels * size
    cdef Images x = strip_of(scratch, &in_, channels, size)
    cdef Images y = strip_of(strip, &out, channels, size)
    gather_strip(job.kernels, &from_, &in_, first, channels, scratch)
    here.x_row, here.x_column, here.out_row, here.out_column = x.row, x.column, y.row, y.column
    for row in range(out.top, out.bottom):
        depthwise_row(&here, x.data, y.data, row, first, channels)
    place_strip(job.kernels, strip, channels, &to, &out, first, channels)


cdef void cut_output(ConvJob *job, Py_ssize_t images, int threads) noexcept:
    """Choose the items: what one reads and writes stays in the second-level cache, and there are
    enough of them for the threads.  Where the cuts lie changes no sum."""
    cdef Py_ssize_t per_pixel = job.kernels.itemsize * (
        job.groups * (job.channels * min(job.h.stride, job.h.kernel)
                      * min(job.w.stride, job.w.kernel) + job.out_channels))
    cdef Py_ssize_t pixels = max(64, (320 << 10) // per_pixel)
    cdef Py_ssize_t others = images * job.groups * job.blocks
    # A few items cannot be shared out evenly; fewer than 64 pixels reuse weights too little.
    while pixels > 64 and others * ceil_div(job.h.out * job.w.out, pixels) < 4 * threads:
        pixels = max(64, pixels // 2)
    job.column_blocks = ceil_div(job.w.out, pixels)
    if job.column_blocks == 1:
        job.row_blocks = ceil_div(job.h.out, max(1, pixels // job.w.out))
    else:
        job.row_blocks = job.h.out
    job.positions = images * job.row_blocks * job.column_blocks
    cdef Py_ssize_t filter_bytes = job.kernels.itemsize * (
        ceil_div(job.out_channels, job.blocks) * job.channels * job.h.kernel * job.w.kernel)
    job.all_filters = filter_bytes < pixels * per_pixel and job.positions >= 4 * threads


cdef size_t cut_strips(StripsJob *strips, Py_ssize_t images, int threads) noexcept:
    """Cut the output of planes into positions whose strips stay in the second-level cache; return
    the bytes of both strips."""
    cdef const ConvJob *job = &strips.parts[0].job
    cdef Py_ssize_t size = job.kernels.itemsize, position, most = 0
    cdef Py_ssize_t width = ceil_div(job.vectors, job.blocks) * job.kernels.lanes
    cdef Py_ssize_t per_pixel = size * (width + job.channels * min(job.h.stride, job.h.kernel)
                                        * min(job.w.stride, job.w.kernel))
    cdef Py_ssize_t pixels = max(<Py_ssize_t>FEWEST_STRIP, STRIP_BYTES // per_pixel)
    cdef Region out, in_
    while (pixels > FEWEST_STRIP and images * job.groups
           * ceil_div(strips.height * strips.width, pixels) < 4 * threads):
        pixels = max(<Py_ssize_t>FEWEST_STRIP, pixels // 2)
    strips.column_blocks = ceil_div(strips.width, pixels)
    strips.row_blocks = strips.height
    if strips.column_blocks == 1:
        strips.row_blocks = ceil_div(strips.height, max(1, pixels // strips.width))
    strips.positions = images * strips.row_blocks * strips.column_blocks
    for position in range(strips.row_blocks * strips.column_blocks):
        out = region_at(position, strips.height, strips.row_blocks, strips.width,
                        strips.column_blocks)
        in_ = pixels_for(strips, &out)
        most = max(most, area(&in_) * job.channels + area(&out) * width)
    return <size_t>(size * most)


cdef int conv_strips(const StripPart *parts, Py_ssize_t count, Py_ssize_t height, Py_ssize_t width,
                     Py_ssize_t images, int threads) except -1:
    """Convolve planes of this size through strips, by parts whose spans are set."""
    cdef StripsJob strips
    cdef const ConvJob *job = &parts[0].job
    cdef Py_ssize_t i
    cdef double flops = 0
    strips.parts, strips.count, strips.height, strips.width = parts, count, height, width
    cdef size_t scratch = cut_strips(&strips, images, threads)
    for i in range(count):
        flops += 2.0 * parts[i].job.h.out * parts[i].job.w.out * (
            parts[i].job.h.kernel * parts[i].job.w.kernel)
    flops *= <double>job.channels * job.out_channels / (strips.row_blocks * strips.column_blocks)
    return run(strip_item, &strips, strips.positions * job.groups, flops, threads, scratch)


cdef void step_outputs(ConvJob *job, Py_ssize_t first_row, Py_ssize_t first_column,
                       Py_ssize_t row_step, Py_ssize_t column_step) noexcept:
    """Let a job write every `step`-th pixel of its output, from the first one on."""
    job.out += (first_row * job.out_row + first_column * job.out_column) * job.kernels.itemsize
    job.out_row *= row_step
    job.out_column *= column_step


cdef int conv_depthwise_parts(StripPart *parts, Py_ssize_t count, Py_ssize_t images,
                              int threads) except -1:
    """Convolve channels-last images by depthwise parts whose spans are set."""
    cdef StripsJob job
    cdef ConvJob *part
    cdef Py_ssize_t i
    cdef double flops = 0
    job.parts, job.count, job.row_blocks = parts, count, 0
    for i in range(count):
        part = &parts[i].job
        step_outputs(part, parts[i].first_row, parts[i].first_column, parts[i].row_step,
                     parts[i].column_step)
        job.row_blocks = max(job.row_blocks, part.h.out)
        flops += 8.0 * part.w.out * part.groups * max(<Py_ssize_t>1, part.h.kernel * part.w.kernel)
    return run(depthwise_parts_item, &job, images * job.row_blocks, flops, threads, 0)


cdef size_t strip_bytes(const ConvJob *job, Py_ssize_t channels, Py_ssize_t width) noexcept:
    """Return the bytes of the strips of one item, with so many channels and outputs of a pixel."""
    cdef Py_ssize_t rows = ceil_div(job.h.out, job.row_blocks)
    cdef Py_ssize_t columns = ceil_div(job.w.out, job.column_blocks)
    return <size_t>(job.kernels.itemsize * (
        rows * columns * width + channels * min(job.h.size, rows_seen(&job.h, rows))
        * min(job.w.size, rows_seen(&job.w, columns))))


cdef int conv_images(ConvJob *job, Py_ssize_t images, bint depthwise, bint planes,
                     int threads) except -1:
    """Convolve images, channels-last or planes; the job's weights, axes and strides are set."""
    cdef Py_ssize_t taps = job.h.kernel * job.w.kernel
    cdef double flops
    cdef StripPart part
    # A window of one row meets every stride-th row: those are the rows.
    job.x_plane = job.h.size * job.w.size
    if job.h.kernel == 1 and job.h.pad == 0 and (job.h.out - 1) * job.h.stride < job.h.size:
        job.x_row *= job.h.stride
        job.h.size, job.h.stride = job.h.out, 1
    # A 1x1 window over contiguous pixels is one long row of them: a matrix product.
    if (taps == 1 and job.h.stride == 1 and job.w.stride == 1 and job.h.pad == 0
            and job.w.pad == 0 and job.h.out == job.h.size and job.w.out == job.w.size
            and job.x_row == job.w.size * job.x_column
            and job.out_row == job.w.out * job.out_column):
        job.w.size = job.w.out = job.h.size * job.w.size
        job.h.size = job.h.out = 1
        if (not planes and job.arrivals == NULL and job.x_image == job.w.size * job.x_column
                and job.out_image == job.w.out * job.out_column):
            job.w.size = job.w.out = images * job.w.size
            images = 1
    job.rows = new_spans(&job.h, &job.row_spans)
    try:
        job.columns = new_spans(&job.w, &job.column_spans)
        if depthwise and planes:
            job.blocks, job.column_blocks = ceil_div(job.groups, DEPTHWISE_CHANNELS), 1
            job.row_blocks = ceil_div(job.h.out, max(1, DEPTHWISE_BYTES // (
                job.kernels.itemsize * DEPTHWISE_CHANNELS * job.w.size * job.h.stride)))
            flops = 8.0 * ceil_div(job.h.out, job.row_blocks) * job.w.out * DEPTHWISE_CHANNELS * taps
            return run(depthwise_strip_item, job, images * job.blocks * job.row_blocks, flops,
                       threads, strip_bytes(job, DEPTHWISE_CHANNELS, DEPTHWISE_CHANNELS))
        if depthwise:
            flops = 8.0 * job.w.out * job.groups * taps
            return run(depthwise_item, job, images * job.h.out, flops, threads, 0)
        if planes:
            part = StripPart(job[0], 0, 0, 1, 1)
            return conv_strips(&part, 1, job.h.out, job.w.out, images, threads)
        cut_output(job, images, threads)
        flops = 2.0 * ceil_div(job.h.out, job.row_blocks) * ceil_div(job.w.out, job.column_blocks)
        flops *= ceil_div(job.out_channels, job.blocks) * job.channels * taps
        if job.all_filters:
            return run(conv_item, job, job.positions, flops * job.groups * job.blocks, threads, 0)
        return run(conv_item, job, job.positions * job.groups * job.blocks, flops, threads, 0)
    finally:
        give(job.rows)
        give(job.columns)


@cython.final
cdef class Part:
    """A convolution that gives every `step`-th pixel of an output, from `first` on."""

    def __init__(self, PackedConv packed, tuple h, tuple w, tuple first=(0, 0), tuple step=(1, 1)):
        """h, w: (input size, output size, kernel, stride, leading padding, dilation)."""
        self.packed = packed
        self.h, self.w = axis(h[0], h[1], h[2:]), axis(w[0], w[1], w[2:])
        self.first_row, self.first_column = first
        self.row_step, self.column_step = step


cdef ConvJob job_of(Part part, const Images *x, const Images *out, int activation, double slope,
                    const Arrivals *arrivals, Py_ssize_t first_image) noexcept:
    """Describe the direct convolution of a part."""
    cdef ConvJob job
    cdef PackedConv packed = part.packed
    memset(&job, 0, sizeof(job))
    job.arrivals, job.first_image = arrivals, first_image
    job.kernels, job.weights, job.bias = packed.kernels, packed.weights, packed.bias
    job.channels, job.out_channels = packed.channels, packed.out_channels
    job.groups, job.vectors, job.blocks = packed.groups, packed.vectors, packed.blocks
    job.activation, job.slope = activation, slope
    job.h, job.w = part.h, part.w
    job.x, job.x_image, job.x_row, job.x_column = x.data, x.image, x.row, x.column
    job.out, job.out_image, job.out_row, job.out_column = out.data, out.image, out.row, out.column
    return job


cdef int convolve_part(Part part, const Images *x, const Images *out, Py_ssize_t images,
                       bint x_planes, bint planes, int activation, double slope,
                       const Arrivals *arrivals, Py_ssize_t first_image, int threads) except -1:
    """Run one part on images, channels-last or planes; both alike, but for Winograd's algorithm."""
    cdef ConvJob job
    cdef PackedConv packed = part.packed
    if packed.winograd != NULL:
        return winograd_images(packed, &part.h, &part.w, x, out, images, x_planes, planes, activation,
                               slope, arrivals, first_image, threads)
    job = job_of(part, x, out, activation, slope, arrivals, first_image)
    step_outputs(&job, part.first_row, part.first_column, part.row_step, part.column_step)
    return conv_images(&job, images, packed.depthwise, planes, threads)


cdef int convolve_parts(list parts, const Images *x, const Images *out, Py_ssize_t height,
                        Py_ssize_t width, Py_ssize_t images, bint planes, int activation,
                        double slope, int threads) except -1:
    """Run several parts of an output of this size together.

    They are depthwise and channels-last, or their images are planes, which pass through strips.
    """
    cdef Py_ssize_t count = len(parts), i
    cdef StripPart *jobs = <StripPart *>take(<size_t>(count * sizeof(StripPart)))
    cdef Part part
    memset(jobs, 0, <size_t>(count * sizeof(StripPart)))
    try:
        for i in range(count):
            part = parts[i]
            jobs[i] = StripPart(job_of(part, x, out, activation, slope, NULL, 0), part.first_row,
                                part.first_column, part.row_step, part.column_step)
            jobs[i].job.x_plane = part.h.size * part.w.size
            jobs[i].job.rows = new_spans(&part.h, &jobs[i].job.row_spans)
            jobs[i].job.columns = new_spans(&part.w, &jobs[i].job.column_spans)
        if planes:
            return conv_strips(jobs, count, height, width, images, threads)
        return conv_depthwise_parts(jobs, count, images, threads)
    finally:
        for i in range(count):
            give(jobs[i].job.rows)
            give(jobs[i].job.columns)
        give(jobs)


cdef bint takes_strips(Part part, Py_ssize_t images, int threads) noexcept:
    """Tell whether a part convolves planes through strips rather than through whole copies.

    That needs work for all threads, as strips hold all filters of a group.  The groups of a strip
    are summed in longer runs than those of a copy, so they have strips for any number of images.
    """
    cdef PackedConv packed = part.packed
    if packed.winograd != NULL:
        return True
    return packed.groups > 1 or (
        images * ceil_div(part.h.out * part.w.out * part.row_step * part.column_step, FEWEST_STRIP)
        >= 4 * threads)


def convolve(cnp.ndarray x, cnp.ndarray out, list parts, int activation, double slope,
             bint channels_last, int threads, ImageMoments moments=None, bint turned=False):
    """Convolve x into out, which the parts fill between them.

    `moments` are those of channels-last images that out is a part of.

    Both arrays are channels-last (contiguous channels, any other strides) or
    both contiguous NCHW; the latter pass through channels-last strips, or copies of
    a few images at a time.  Winograd's algorithm can have out `turned`, in the other layout.
    """
    cdef Images from_, to
    cdef Py_ssize_t images = x.shape[0], n, count
    cdef Part part
    cdef Arrivals arrivals
    if channels_last:
        from_, to = images_of(x), images_of(out)
        arrivals = arrivals_of(moments)
        if len(parts) > 1 and (<Part>parts[0]).packed.depthwise:
            convolve_parts(parts, &from_, &to, out.shape[2], out.shape[3], images, False, activation,
                           slope, threads)
            return
        for part in parts:
            convolve_part(part, &from_, &to, images, False, turned, activation, slope,
                          NULL if moments is None else &arrivals,
                          0 if moments is None else moments.first, threads)
        return
    part = parts[0]
    if takes_strips(part, images, threads) and (len(parts) == 1 or not part.packed.depthwise):
        from_, to = images_of(x), images_of(out)
        if len(parts) == 1:
            convolve_part(part, &from_, &to, images, True, not turned, activation, slope, NULL, 0,
                          threads)
        else:
            convolve_parts(parts, &from_, &to, out.shape[2], out.shape[3], images, True, activation,
                           slope, threads)
        return
    cdef const ck_kernels *kernels = kernels_of(x)
    cdef Py_ssize_t x_plane = x.shape[2] * x.shape[3], out_plane = out.shape[2] * out.shape[3]
    cdef Py_ssize_t x_bytes = x.shape[1] * x_plane * kernels.itemsize
    cdef Py_ssize_t out_bytes = out.shape[1] * out_plane * kernels.itemsize
    cdef Py_ssize_t group = max(1, min(images, GROUP_BYTES // (x_bytes + out_bytes)))
    cdef char *copies = take(<size_t>((x_bytes + out_bytes) * group))
    from_, to = packed_images(copies, x), packed_images(copies + x_bytes * group, out)
    try:
        n = 0
        while n < images:
            count = min(group, images - n)
            transpose(kernels, <const char *>cnp.PyArray_DATA(x) + n * x_bytes, from_.data, count,
                      x.shape[1], x_plane, threads)
            for part in parts:
                convolve_part(part, &from_, &to, count, False, False, activation, slope, NULL, 0,
                              threads)
            transpose(kernels, to.data, <char *>cnp.PyArray_DATA(out) + n * out_bytes, count,
                      out_plane, out.shape[1], threads)
            n += count
    finally:
        give(copies)


def conv2d(cnp.ndarray x, PackedConv packed, cnp.ndarray out, tuple rows, tuple columns,
           int activation, double slope, bint channels_last, int threads,
           ImageMoments moments=None, bint turned=False):
    """Convolve x into out; rows and columns are (kernel, stride, leading padding, dilation)."""
    part = Part(packed, (x.shape[2], out.shape[2], *rows), (x.shape[3], out.shape[3], *columns))
    convolve(x, out, [part], activation, slope, channels_last, threads, moments, turned)


def conv2d_planes(cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias, cnp.ndarray out, tuple rows,
                  tuple columns, Py_ssize_t groups, int activation, double slope, int threads):
    """Convolve contiguous NCHW images with a contiguous weight, without copies of either."""
    cdef const ck_kernels *kernels = kernels_of(x)
    cdef Axis h = axis(x.shape[2], out.shape[2], rows), w = axis(x.shape[3], out.shape[3], columns)
    (convolve_bands if fits_bands(kernels, weight.shape[1], h, w) else convolve_planes)(
        kernels, <const char *>cnp.PyArray_DATA(weight), data_of(bias),
        <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(out), x.shape[0], groups,
        weight.shape[1], weight.shape[0] // groups, h, w, activation, slope, threads)
