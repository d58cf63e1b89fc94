# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Winograd's convolution: windows of 3x3 to 5x5 with stride 1, or of 3x3 with stride 2.

A tile of m x m outputs needs (m + r - 1)^2 products per pair of channels instead of
m^2 r^2, or (2m + 1)^2 with stride 2.  Tiles of the input are transformed into elements V, these are multiplied with
the packed elements U of the weight, one matrix product per element, and the products M
are transformed back:

    x --input--> V[element][tile][channel]
                   x U[element][channel][filter]  --register tile-->  M[element][tile][filter]
                                                                        --output--> y

A group of tiles goes through all of it while its V and M are in the cache.  Pixels of planes,
contiguous NCHW images, come and go through strips.
"""

from libc.string cimport memset

from convkern._kernels.channels cimport Arrivals, outputs_came
from convkern._kernels.core cimport (
    CK_AHEAD,
    CK_ALSO,
    CK_FIRST,
    CK_LAST,
    Axis,
    Block,
    Images,
    block_of,
    ceil_div,
    ck_chunk,
    ck_kernels,
    ck_patch,
    ck_prefetch,
    ck_prefetch_next,
    ck_target,
    ck_tile_layout,
    ck_winograd,
    give,
    opens_share,
    run,
    take,
)
from convkern._kernels.packing cimport PackedConv, Weights, element_rows, own_copy
from convkern._kernels.strips cimport Planes, Region, area, gather_strip, place_strip, strip_of

cdef enum:
    CHUNK = 256             # products summed in registers, as in the direct algorithm,
    LARGE = 7               # but half as many of tiles so large, whose transforms
                            # make much of every rounding
    CACHE_BYTES = 1 << 20   # of V and M that a group of tiles fills,
    FEWEST = 48             # but so many tiles share what is read of U,
    FEWEST_CACHED = 12      # or so many where U, too, stays in the cache
    CACHED_BYTES = 1 << 19
    # Where groups are few, the threads share V for so many bytes of U, or so many times those of V,
    # or fewer tiles a thread.
    SHARED_BYTES = 10 << 20
    SHARED_RATIO = 8
    FEWEST_SPLIT = 8
    MOST = 128
    TILES = 4               # transformed by one item where the threads share V
    FETCHED = 4             # tiles whose pixels are asked for before the first one is transformed
    STRIP_CHANNELS = 64     # of a strip of the input

cdef struct WinogradJob:
    const ck_kernels *kernels
    const ck_winograd *tile
    Weights weights       # (group, block, element, channel, filter)
    const char *bias
    const char *zeros     # as many as a group has channels, or a block filters
    char *v               # of all tiles, where the threads share it
    Images x, out
    bint x_planes, planes # x, and out, are contiguous NCHW, and their pixels one element
    bint x_dense, dense   # or their pixels follow each other without gaps
    Axis h, w
    Py_ssize_t channels, out_channels, groups, vectors, blocks
    # Tiles across and in an image, and of all images.  Groups consist of so many units of tiles,
    # or a unit is cut into pieces.
    Py_ssize_t across, per_image, tiles, tile_groups, unit, pieces
    bint shared           # whether the threads share V
    const Arrivals *arrivals
    Py_ssize_t first_image
    int threads
    # Tiles and channels of the input that are transformed at a time, of how many such strips.
    Py_ssize_t input_tiles, strip_channels, strips
    # V: from one tile to the next, from one element to the next; M: the latter.
    Py_ssize_t v_tile, v_element, m_element
    int activation
    double slope


cdef inline Py_ssize_t tiles_before(const WinogradJob *job, Py_ssize_t group) noexcept nogil:
    """Return the number of the first tile of a group of tiles."""
    cdef Py_ssize_t units = job.tiles // job.unit, piece = group % job.pieces
    group //= job.pieces
    return (units * group // (job.tile_groups // job.pieces) * job.unit
            + job.unit * piece // job.pieces)


cdef Region region_of(Py_ssize_t across, Py_ssize_t per_image, Py_ssize_t begin, Py_ssize_t end,
                      Py_ssize_t step, Py_ssize_t size, Py_ssize_t top, Py_ssize_t left,
                      Py_ssize_t height, Py_ssize_t width) noexcept nogil:
    """Return the pixels of height x width that tiles begin .. end-1 of one image meet.

    A tile begins `step` rows or columns after the last one, the first one at -top and -left, and has
    size x size of them.
    """
    cdef Py_ssize_t first_row = begin % per_image // across
    cdef Py_ssize_t last_row = (end - 1) % per_image // across
    cdef Py_ssize_t first = 0, last = across - 1
    cdef Region region
    if first_row == last_row:
        first, last = begin % across, (end - 1) % across
    region.top = max(0, first_row * step - top)
    region.bottom = max(region.top, min(height, last_row * step + size - top))
    # Padding below zero, of a gradient, crops the columns of whole rows of tiles, too.
    region.left = max(0, first * step - left)
    region.right = max(region.left, min(width, last * step + size - left))
    return region


cdef void transform_inputs(const WinogradJob *job, Py_ssize_t begin, Py_ssize_t end,
                           Py_ssize_t group, Py_ssize_t first, Py_ssize_t channels,
                           ck_prefetch *pixels, char *v, char *strip) noexcept nogil:
    """Transform some channels of a group of them, of tiles begin .. end-1 of one image.

    Meanwhile pixels are fetched that are wanted next.
    """
    cdef Py_ssize_t size = job.kernels.itemsize, c = group * job.channels + first, tile
    cdef Py_ssize_t top, left, step = job.tile.outputs * job.tile.stride
    cdef Images x = job.x
    cdef Planes planes
    cdef Region region
    cdef ck_patch patch
    x.data += begin // job.per_image * x.image * size
    if job.x_planes:
        region = region_of(job.across, job.per_image, begin, end, step, job.tile.size, job.h.pad,
                           job.w.pad, job.h.size, job.w.size)
        planes = Planes(x.data, job.h.size * job.w.size, job.w.size)
        gather_strip(job.kernels, &planes, &region, c, channels, strip)
        x = strip_of(strip, &region, channels, size)
    else:
        x.data += c * size
    for tile in range(begin, end):
        top = tile % job.per_image // job.across * step - job.h.pad
        left = tile % job.per_image % job.across * step - job.w.pad
        patch_of(&x, x.data, size, job.h.size, job.w.size, top, left, job.tile.size, job.zeros,
                 &patch)
        ck_prefetch_next(pixels)
        job.tile.input(&patch, channels, v + ((tile - begin) * job.v_tile + first) * size,
                       job.v_element, job.kernels.lanes)


cdef ck_prefetch pixels_coming(const WinogradJob *job, Py_ssize_t begin,
                               Py_ssize_t end) noexcept nogil:
    """Return the pixels that tiles begin .. end-1 meet and those before do not."""
    return rows_coming(&job.x, job.x_dense, job.kernels.itemsize, job.across, job.per_image,
                       job.h.size, job.tile.size - job.h.pad, job.tile.outputs * job.tile.stride,
                       begin, end)


cdef ck_prefetch outputs_coming(const WinogradJob *job, Py_ssize_t begin, Py_ssize_t end,
                                Py_ssize_t first, Py_ssize_t filters) noexcept nogil:
    """Return some filters' outputs of tiles begin .. end-1."""
    cdef Py_ssize_t size = job.kernels.itemsize
    cdef ck_prefetch coming = rows_coming(
        &job.out, job.dense, size, job.across, job.per_image, job.h.out, job.tile.outputs,
        job.tile.outputs, begin, end)
    coming.at += first * size
    coming.step, coming.bytes, coming.write = job.out.column * size, filters * size, 1
    return coming


cdef void multiply(const WinogradJob *job, const char *v, Py_ssize_t tiles, const char *weight,
                   Py_ssize_t vectors, ck_prefetch *pixels, ck_prefetch *outputs,
                   char *m) noexcept nogil:
    """Multiply the elements of some tiles with those of a block of filters.

    Meanwhile pixels and outputs are fetched that are wanted next.
    """
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, width = vectors * kernels.lanes
    cdef Py_ssize_t chunk_length = CHUNK if job.tile.size < LARGE else CHUNK // 2
    cdef Py_ssize_t pieces = ceil_div(job.channels, chunk_length), piece, element, i, start, stop
    cdef Py_ssize_t rows = ceil_div(tiles, kernels.max_pixels[vectors]), c, c_stop
    cdef Py_ssize_t w_element = element_rows(job.channels)
    cdef Py_ssize_t turns = job.tile.size * job.tile.size * pieces * rows
    cdef ck_tile_layout layout
    cdef ck_chunk chunk
    cdef const char *ahead
    cdef const char *also
    memset(&layout, 0, sizeof(layout))
    layout.x_pixel, layout.out_pixel, layout.tail = job.v_tile, width, kernels.lanes
    chunk.rows = chunk.columns = 1
    share_out(pixels, turns)
    share_out(outputs, turns)
    for element in range(job.tile.size * job.tile.size):
        also = v + (element + 1) * job.v_element * size
        c = 0
        for piece in range(pieces):
            c_stop = job.channels
            if piece < pieces - 1:
                c_stop = job.channels * (piece + 1) // pieces & ~3
            chunk.run, chunk.flags = c_stop - c, CK_ALSO | (0 if piece else CK_FIRST)
            start = 0
            # While the tiles pass over one panel of weights, the next one is fetched.
            ahead = weight + (element * w_element + c_stop) * width * size
            chunk.ahead_step = CK_AHEAD
            for i in range(rows):
                stop = tiles * (i + 1) // rows
                ck_prefetch_next(outputs)
                ck_prefetch_next(pixels)
                chunk.ahead = ahead
                # And so is V of the next element.
                chunk.also = also
                also += chunk.run // 4 * CK_AHEAD
                ahead += chunk.run // 4 * CK_AHEAD
                kernels.tile[vectors][stop - start](
                    &layout, &chunk, v + (element * job.v_element + start * job.v_tile + c) * size,
                    weight + (element * w_element + c) * width * size, job.zeros,
                    m + (element * job.m_element + start * width) * size)
                start = stop
            c = c_stop


cdef void transform_outputs(const WinogradJob *job, Py_ssize_t begin, Py_ssize_t end,
                            const char *m, Py_ssize_t width, const char *bias, Py_ssize_t first,
                            Py_ssize_t filters, char *strip) noexcept nogil:
    """Transform the products of tiles begin .. end-1 of one image with some filters."""
    cdef Py_ssize_t size = job.kernels.itemsize, top, left, tile
    cdef char *image = job.out.data + begin // job.per_image * job.out.image * size
    cdef Images out = Images(image + first * size, 0, job.out.row, job.out.column)
    cdef Planes planes
    cdef Region region
    cdef ck_target target
    if job.planes:
        region = region_of(job.across, job.per_image, begin, end, job.tile.outputs,
                           job.tile.outputs, 0, 0, job.h.out, job.w.out)
        out = strip_of(strip, &region, width, size)
    target.row, target.column = out.row, out.column
    target.activation, target.slope, target.bias = job.activation, job.slope, bias
    for tile in range(begin, end):
        top = tile % job.per_image // job.across * job.tile.outputs
        left = tile % job.per_image % job.across * job.tile.outputs
        target.out = out.data + (top * out.row + left * out.column) * size
        target.rows = <int>min(<Py_ssize_t>job.tile.outputs, job.h.out - top)
        target.columns = <int>min(<Py_ssize_t>job.tile.outputs, job.w.out - left)
        job.tile.output(m + (tile - begin) * width * size, job.m_element, filters, &target)
    if job.planes:
        planes = Planes(image, job.h.out * job.w.out, job.w.out)
        place_strip(job.kernels, strip, width, &planes, &region, first, filters)


cdef void convolve_block(const WinogradJob *job, const char *v, Py_ssize_t begin, Py_ssize_t end,
                         Py_ssize_t group, Py_ssize_t block, ck_prefetch *pixels, char *m,
                         char *strip) noexcept nogil:
    """From V to the outputs of one block of filters, for tiles begin .. end-1."""
    cdef Py_ssize_t size = job.kernels.itemsize, tile = begin, stop
    cdef Block part = block_of(job.kernels, job.vectors, job.blocks, block)
    cdef Py_ssize_t padded = group * job.vectors * job.kernels.lanes + part.first
    cdef Py_ssize_t elements = job.tile.size * job.tile.size
    cdef Py_ssize_t first = group * job.out_channels + part.first
    cdef Py_ssize_t filters = min(part.width, job.out_channels - part.first)
    cdef ck_prefetch outputs = outputs_coming(job, begin, end, first, filters)
    multiply(job, v, end - begin,
             own_copy(&job.weights) + padded * element_rows(job.channels) * elements * size, part.vectors,
             pixels, &outputs, m)
    while tile < end:
        stop = min(end, (tile // job.per_image + 1) * job.per_image)
        transform_outputs(job, tile, stop, m + (tile - begin) * part.width * size, part.width,
                          job.bias + padded * size, first, filters, strip)
        if job.arrivals != NULL:
            outputs_came(job.arrivals, job.first_image + tile // job.per_image,
                         pixels_of(job, tile, stop) * filters)
        tile = stop


cdef Py_ssize_t pixels_of(const WinogradJob *job, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Count the outputs of tiles begin .. end-1 of one image."""
    cdef Py_ssize_t tile, top, left, outputs = job.tile.outputs, pixels = 0
    for tile in range(begin, end):
        top = tile % job.per_image // job.across * outputs
        left = tile % job.per_image % job.across * outputs
        pixels += min(outputs, job.h.out - top) * min(outputs, job.w.out - left)
    return pixels


cdef void winograd_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A group of tiles and of channels, from the input to all its outputs."""
    cdef const WinogradJob *job = <const WinogradJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, block, group = item % job.groups, first, stop, i
    cdef Py_ssize_t begin = tiles_before(job, item // job.groups), tile = begin
    cdef Py_ssize_t end = tiles_before(job, item // job.groups + 1)
    cdef char *m = scratch + job.tile.size * job.tile.size * job.v_element * size
    cdef char *strip = m + job.tile.size * job.tile.size * job.m_element * size
    cdef bint opens = group == 0 and opens_share(item // job.groups, job.tile_groups, job.threads)
    cdef ck_prefetch pixels = pixels_coming(job, begin, end if opens else begin)
    share_out(&pixels, end - begin)
    for i in range(FETCHED):
        ck_prefetch_next(&pixels)
    while tile < end:
        stop = min(end, (tile // job.per_image + 1) * job.per_image)
        for i in range(job.strips):
            first = i * job.strip_channels
            transform_inputs(job, tile, stop, group, first,
                             min(job.strip_channels, job.channels - first), &pixels,
                             scratch + (tile - begin) * job.v_tile * size, strip)
        tile = stop
    # The last group of channels fetches pixels of the next tiles, every block of filters its share.
    if group == job.groups - 1 and item < job.tile_groups * job.groups - 1:
        stop = tiles_before(job, item // job.groups + 2)
    else:
        stop = end
    for block in range(job.blocks):
        pixels = pixels_coming(job, end + (stop - end) * block // job.blocks,
                               end + (stop - end) * (block + 1) // job.blocks)
        convolve_block(job, scratch, begin, end, group, block, &pixels, m, strip)


cdef void input_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A few tiles and channels, into the V that the threads share."""
    cdef const WinogradJob *job = <const WinogradJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, first = item % job.strips * job.strip_channels
    cdef Py_ssize_t group = item // job.strips % job.groups, stop
    cdef Py_ssize_t tile = item // job.strips // job.groups * job.input_tiles
    cdef Py_ssize_t end = min(job.tiles, tile + job.input_tiles)
    cdef char *v = job.v + group * job.tile.size * job.tile.size * job.v_element * size
    # What is fetched is for the next item but one.
    cdef Py_ssize_t later = min(job.tiles, tile + 2 * job.input_tiles)
    cdef ck_prefetch pixels = pixels_coming(
        job, later, min(job.tiles, later + (job.input_tiles if group == 0 and first == 0 else 0)))
    share_out(&pixels, end - tile)
    while tile < end:
        stop = min(end, (tile // job.per_image + 1) * job.per_image)
        transform_inputs(job, tile, stop, group, first,
                         min(job.strip_channels, job.channels - first), &pixels,
                         v + tile * job.v_tile * size, scratch)
        tile = stop


cdef void block_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A group of tiles and a block of filters, from the V that the threads share."""
    cdef const WinogradJob *job = <const WinogradJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, elements = job.tile.size * job.tile.size
    cdef Py_ssize_t tiles = item % job.tile_groups, group = item // job.tile_groups // job.blocks
    cdef Py_ssize_t block = item // job.tile_groups % job.blocks
    cdef Py_ssize_t begin = tiles_before(job, tiles), end = tiles_before(job, tiles + 1)
    cdef const char *v = job.v + (group * elements * job.v_element + begin * job.v_tile) * size
    cdef ck_prefetch pixels = pixels_coming(job, 0, 0)
    convolve_block(job, v, begin, end, group, block, &pixels, scratch,
                   scratch + elements * job.m_element * size)


cdef Py_ssize_t group_tiles(WinogradJob *job, Py_ssize_t width, int threads) noexcept nogil:
    """Cut the tiles into groups; return how many the largest one has."""
    cdef Py_ssize_t elements = job.tile.size * job.tile.size, size = job.kernels.itemsize
    cdef Py_ssize_t most = CACHE_BYTES // (elements * size * (job.v_tile + width)), units, per_group
    cdef double u_bytes = <double>(elements * size) * job.channels * job.vectors * job.kernels.lanes
    cdef double v_bytes = <double>(elements * size) * job.tiles * job.v_tile
    most = max(<Py_ssize_t>FEWEST, min(most, <Py_ssize_t>MOST))
    # Strips are rows of tiles, or parts of one row.
    job.unit = job.across if job.x_planes or job.planes else 1
    units = job.tiles // job.unit
    job.pieces = ceil_div(job.unit, 2 * MOST)
    per_group = max(1, (most + job.unit // 2) // job.unit)
    # The nearest number: all of U is read for a second group, however few tiles it has.
    job.tile_groups = max(1, (units + per_group // 2) // per_group) * job.pieces
    if u_bytes <= CACHED_BYTES:
        most = min(ceil_div(4 * threads, job.groups), job.tiles // FEWEST_CACHED)
        job.tile_groups = max(job.tile_groups, min(units, most))
    if job.pieces == 1:
        job.tile_groups = max(job.tile_groups, min(min(2 * threads, units), job.tiles // FEWEST))
    # Too few groups for the threads: they share V, and the blocks of filters.  Half of V then goes
    # from one processor to another, which takes longer than to read a small U once more for each.
    job.shared = (threads > 1 and job.tile_groups * job.groups < 2 * threads
                  and (u_bytes * job.groups > SHARED_BYTES or u_bytes > SHARED_RATIO * v_bytes
                       or job.tiles * job.groups < FEWEST_SPLIT * threads
                       or units * job.groups < threads))
    # As many items for each.
    while (job.shared and job.tile_groups < min(units, <Py_ssize_t>threads)
           and job.tile_groups * job.groups * job.blocks % threads):
        job.tile_groups += job.pieces
    if not job.shared:
        job.tile_groups = max(job.tile_groups,
                              min(units, ceil_div(job.tile_groups, threads) * threads))
    return ceil_div(ceil_div(units, job.tile_groups // job.pieces) * job.unit, job.pieces)


cdef Py_ssize_t strip_pixels(const WinogradJob *job, Py_ssize_t tiles, Py_ssize_t step,
                             Py_ssize_t size, Py_ssize_t width) noexcept nogil:
    """Return how many pixels a strip of planes has at most for so many tiles; see `region_of`."""
    cdef Py_ssize_t margin = size - step
    if tiles < job.across:  # they are parts of one row
        width = min(width, tiles * step + margin)
    return (ceil_div(tiles, job.across) * step + margin) * width


cdef int winograd_images(PackedConv packed, const Axis *h, const Axis *w, const Images *x,
                         const Images *out, Py_ssize_t images, bint x_planes, bint planes,
                         int activation, double slope, const Arrivals *arrivals,
                         Py_ssize_t first_image, int threads) except -1:
    """Convolve images; the axes have the tile's stride, and dilation 1.

    They are channels-last, or contiguous NCHW, the output where it is `planes`.  `arrivals` are told of outputs, of
    `first_image` and so on, unless they are NULL.
    """
    cdef WinogradJob job
    cdef const ck_kernels *kernels = packed.kernels
    cdef Py_ssize_t size = kernels.itemsize, lanes = kernels.lanes
    cdef Py_ssize_t width = ceil_div(packed.vectors, packed.blocks) * lanes
    cdef Py_ssize_t elements = packed.winograd.size * packed.winograd.size, most
    cdef Py_ssize_t outputs = packed.winograd.outputs
    job.kernels, job.tile, job.weights, job.bias = kernels, packed.winograd, packed.weights, packed.bias
    job.channels, job.out_channels = packed.channels, packed.out_channels
    job.groups, job.vectors, job.blocks = packed.groups, packed.vectors, packed.blocks
    job.x, job.out, job.h, job.w = x[0], out[0], h[0], w[0]
    job.x_planes, job.planes = x_planes, planes
    job.x_dense = not x_planes and is_dense(x, h.size, w.size, packed.groups * packed.channels)
    job.dense = not planes and is_dense(out, h.out, w.out, packed.groups * packed.out_channels)
    job.activation, job.slope = activation, slope
    job.arrivals, job.first_image, job.threads = arrivals, first_image, threads
    job.across = ceil_div(w.out, packed.winograd.outputs)
    job.per_image = job.across * ceil_div(h.out, packed.winograd.outputs)
    job.tiles = images * job.per_image
    job.v_tile = ceil_div(packed.channels, lanes) * lanes
    most = group_tiles(&job, width, threads)
    job.input_tiles = job.unit if x_planes else <Py_ssize_t>TILES
    job.strip_channels = (min(job.channels, <Py_ssize_t>STRIP_CHANNELS) if x_planes
                          else job.channels)
    job.strips = ceil_div(job.channels, job.strip_channels)
    # A line more between elements, so that they do not all fall into the same cache sets.
    job.v_element = (job.tiles if job.shared else most) * job.v_tile + 64 // size
    job.m_element = most * width + 64 // size
    cdef size_t v_bytes = <size_t>(elements * job.v_element * size)
    cdef size_t m_bytes = <size_t>(elements * job.m_element * size)
    cdef size_t in_bytes = 0, out_bytes = 0
    if x_planes:
        in_bytes = <size_t>(
            strip_pixels(&job, job.input_tiles if job.shared else most, outputs * job.tile.stride,
                         job.tile.size, w.size) * job.strip_channels * size)
    if planes:
        out_bytes = <size_t>(strip_pixels(&job, most, outputs, outputs, w.out) * width * size)
    cdef Py_ssize_t zeros = max(job.v_tile, width) * size
    cdef double transform = 4.0 * elements * job.strip_channels
    cdef double product = 2.0 * most * elements * packed.channels * width
    cdef char *memory = take(<size_t>zeros + (v_bytes * packed.groups if job.shared else 0))
    job.zeros, job.v = memory, memory + zeros
    memset(memory, 0, <size_t>zeros)
    try:
        if job.shared:
            # It takes longer than its operations: V is large, and its pages may be new.
            run(input_item, &job, ceil_div(job.tiles, job.input_tiles) * job.groups * job.strips,
                4.0 * transform * job.input_tiles, threads, in_bytes)
            run(block_item, &job, job.tile_groups * packed.groups * packed.blocks, product, threads,
                m_bytes + out_bytes)
        else:
            run(winograd_item, &job, job.tile_groups * packed.groups,
                product * packed.blocks + transform * job.strips * most, threads,
                v_bytes + m_bytes + max(in_bytes, out_bytes))
    finally:
        give(memory)
    return 0
