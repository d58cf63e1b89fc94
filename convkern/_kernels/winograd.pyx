# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=False
"""Winograd's convolution: stride 1, windows of 3x3 or 5x5.

A tile of m x m outputs needs (m + r - 1)^2 products per pair of channels instead of
m^2 r^2.  Tiles of the input are transformed into elements V, these are multiplied with
the packed elements U of the weight, one matrix product per element, and the products M
are transformed back:

    x --input--> V[element][tile][channel]
                   x U[element][channel][filter]  --register tile-->  M[element][tile][filter]
                                                                        --output--> y

A group of tiles goes through all of it while its V and M are in the cache.
"""

from libc.string cimport memset

from convkern._kernels.core cimport (
    CK_AHEAD,
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
    ck_target,
    ck_tile_layout,
    ck_winograd,
    give,
    run,
    take,
)
from convkern._kernels.packing cimport PackedConv

cdef enum:
    CHUNK = 256             # products summed in registers, as in the direct algorithm
    CACHE_BYTES = 1 << 20   # of V and M that a group of tiles fills,
    FEWEST = 48             # but so many tiles share what is read of U,
    FEWEST_CACHED = 12      # or so many where U, too, stays in the cache
    CACHED_BYTES = 1 << 19
    MOST = 128
    TILES = 4               # transformed by one item where the threads share V

cdef struct WinogradJob:
    const ck_kernels *kernels
    const ck_winograd *tile
    const char *weight    # (group, block, element, channel, filter)
    const char *bias
    const char *zeros     # as many as a group has channels, or a block filters
    char *v               # of all tiles, where the threads share it
    Images x, out
    Axis h, w
    Py_ssize_t channels, out_channels, groups, vectors, blocks
    # Tiles across and in an image, of all images, and how they are grouped.
    Py_ssize_t across, per_image, tiles, tile_groups
    # V: from one tile to the next, from one element to the next; M: the latter.
    Py_ssize_t v_tile, v_element, m_element
    int activation
    double slope


cdef void transform_input(const WinogradJob *job, Py_ssize_t tile, Py_ssize_t group,
                          char *v) noexcept nogil:
    """Transform the input of one tile and group of channels."""
    cdef Py_ssize_t size = job.kernels.itemsize, image = tile // job.per_image
    cdef Py_ssize_t top = tile % job.per_image // job.across * job.tile.outputs - job.h.pad
    cdef Py_ssize_t left = tile % job.per_image % job.across * job.tile.outputs - job.w.pad
    cdef ck_patch patch
    patch_of(&job.x, job.x.data + (image * job.x.image + group * job.channels) * size, size,
             job.h.size, job.w.size, top, left, job.tile.size, job.zeros, &patch)
    job.tile.input(&patch, job.channels, v, job.v_element, job.kernels.lanes)


cdef void multiply(const WinogradJob *job, const char *v, Py_ssize_t tiles, const char *weight,
                   Py_ssize_t vectors, char *m) noexcept nogil:
    """Multiply the elements of some tiles with those of a block of filters."""
    cdef const ck_kernels *kernels = job.kernels
    cdef Py_ssize_t size = kernels.itemsize, width = vectors * kernels.lanes
    cdef Py_ssize_t pieces = ceil_div(job.channels, CHUNK), piece, element, i, start, stop
    cdef Py_ssize_t rows = ceil_div(tiles, kernels.max_pixels[vectors]), c, c_stop
    cdef ck_tile_layout layout
    cdef ck_chunk chunk
    cdef const char *ahead
    memset(&layout, 0, sizeof(layout))
    layout.x_pixel, layout.out_pixel, layout.tail = job.v_tile, width, kernels.lanes
    chunk.rows = chunk.columns = 1
    for element in range(job.tile.size * job.tile.size):
        c = 0
        for piece in range(pieces):
            c_stop = job.channels
            if piece < pieces - 1:
                c_stop = job.channels * (piece + 1) // pieces & ~3
            chunk.run, chunk.flags = c_stop - c, 0 if piece else CK_FIRST
            start = 0
            # While the tiles pass over one panel of weights, the next one is fetched.
            ahead = weight + (element * job.channels + c_stop) * width * size
            chunk.ahead_step = CK_AHEAD
            for i in range(rows):
                stop = tiles * (i + 1) // rows
                chunk.ahead = ahead
                ahead += chunk.run // 4 * CK_AHEAD
                kernels.tile[vectors][stop - start](
                    &layout, &chunk, v + (element * job.v_element + start * job.v_tile + c) * size,
                    weight + (element * job.channels + c) * width * size, job.zeros,
                    m + (element * job.m_element + start * width) * size)
                start = stop
            c = c_stop


cdef void transform_output(const WinogradJob *job, Py_ssize_t tile, const char *m, Py_ssize_t first,
                           Py_ssize_t filters) noexcept nogil:
    """Transform the products of one tile with some filters, `first` and the following ones."""
    cdef Py_ssize_t size = job.kernels.itemsize, image = tile // job.per_image
    cdef Py_ssize_t top = tile % job.per_image // job.across * job.tile.outputs
    cdef Py_ssize_t left = tile % job.per_image % job.across * job.tile.outputs
    cdef ck_target target
    target.out = job.out.data + (image * job.out.image + top * job.out.row + left * job.out.column
                                 + first) * size
    target.row, target.column = job.out.row, job.out.column
    target.rows = <int>min(<Py_ssize_t>job.tile.outputs, job.h.out - top)
    target.columns = <int>min(<Py_ssize_t>job.tile.outputs, job.w.out - left)
    target.activation, target.slope = job.activation, job.slope
    target.bias = job.bias
    job.tile.output(m, job.m_element, filters, &target)


cdef void convolve_block(const WinogradJob *job, const char *v, Py_ssize_t begin, Py_ssize_t end,
                         Py_ssize_t group, Py_ssize_t block, char *m) noexcept nogil:
    """From V to the outputs of one block of filters, for tiles begin .. end-1."""
    cdef Py_ssize_t size = job.kernels.itemsize, tile
    cdef Block part = block_of(job.kernels, job.vectors, job.blocks, block)
    cdef Py_ssize_t padded = group * job.vectors * job.kernels.lanes + part.first
    cdef Py_ssize_t elements = job.tile.size * job.tile.size
    cdef WinogradJob here = job[0]
    here.bias += padded * size
    multiply(job, v, end - begin, job.weight + padded * job.channels * elements * size,
             part.vectors, m)
    for tile in range(begin, end):
        transform_output(&here, tile, m + (tile - begin) * part.width * size,
                         group * job.out_channels + part.first,
                         min(part.width, job.out_channels - part.first))


cdef void winograd_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A group of tiles and of channels, from the input to all its outputs."""
    cdef const WinogradJob *job = <const WinogradJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, tile, block, group = item % job.groups
    cdef Py_ssize_t begin = job.tiles * (item // job.groups) // job.tile_groups
    cdef Py_ssize_t end = job.tiles * (item // job.groups + 1) // job.tile_groups
    cdef char *m = scratch + job.tile.size * job.tile.size * job.v_element * size
    for tile in range(begin, end):
        transform_input(job, tile, group, scratch + (tile - begin) * job.v_tile * size)
    for block in range(job.blocks):
        convolve_block(job, scratch, begin, end, group, block, m)


cdef void input_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A few tiles and a group of channels, into the V that the threads share."""
    cdef const WinogradJob *job = <const WinogradJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, group = item % job.groups, tile
    cdef Py_ssize_t elements = job.tile.size * job.tile.size, begin = item // job.groups * TILES
    cdef char *v = job.v + group * elements * job.v_element * size
    for tile in range(begin, min(begin + TILES, job.tiles)):
        transform_input(job, tile, group, v + tile * job.v_tile * size)


cdef void block_item(const void *job_, Py_ssize_t item, char *scratch) noexcept nogil:
    """A group of tiles and a block of filters, from the V that the threads share."""
    cdef const WinogradJob *job = <const WinogradJob *>job_
    cdef Py_ssize_t size = job.kernels.itemsize, elements = job.tile.size * job.tile.size
    cdef Py_ssize_t block = item % job.blocks, group = item // job.blocks % job.groups
    cdef Py_ssize_t tile_group = item // job.blocks // job.groups
    cdef Py_ssize_t begin = job.tiles * tile_group // job.tile_groups
    cdef Py_ssize_t end = job.tiles * (tile_group + 1) // job.tile_groups
    cdef const char *v = job.v + (group * elements * job.v_element + begin * job.v_tile) * size
    convolve_block(job, v, begin, end, group, block, scratch)


cdef int winograd_images(PackedConv packed, const Axis *h, const Axis *w, const Images *x,
                         const Images *out, Py_ssize_t images, int activation, double slope,
                         int threads) except -1:
    """Convolve channels-last images; the axes have stride and dilation 1."""
    cdef WinogradJob job
    cdef const ck_kernels *kernels = packed.kernels
    cdef Py_ssize_t size = kernels.itemsize, lanes = kernels.lanes
    cdef Py_ssize_t width = ceil_div(packed.vectors, packed.blocks) * lanes, most
    cdef Py_ssize_t elements = packed.winograd.size * packed.winograd.size
    job.kernels, job.tile, job.weight, job.bias = kernels, packed.winograd, packed.weight, packed.bias
    job.channels, job.out_channels = packed.channels, packed.out_channels
    job.groups, job.vectors, job.blocks = packed.groups, packed.vectors, packed.blocks
    job.x, job.out, job.h, job.w = x[0], out[0], h[0], w[0]
    job.activation, job.slope = activation, slope
    job.across = ceil_div(w.out, packed.winograd.outputs)
    job.per_image = job.across * ceil_div(h.out, packed.winograd.outputs)
    job.tiles = images * job.per_image
    job.v_tile = ceil_div(packed.channels, lanes) * lanes
    most = CACHE_BYTES // (elements * size * (job.v_tile + width))
    most = max(<Py_ssize_t>FEWEST, min(most, <Py_ssize_t>MOST))
    job.tile_groups = ceil_div(job.tiles, most)
    if elements * packed.channels * packed.vectors * lanes * size <= CACHED_BYTES:
        most = ceil_div(4 * threads, packed.groups)
        job.tile_groups = max(job.tile_groups, min(most, job.tiles // FEWEST_CACHED))
    # Too few groups for the threads: they share V, and the blocks of filters.
    cdef bint shared = threads > 1 and job.tile_groups * packed.groups < 2 * threads
    if not shared:
        job.tile_groups = ceil_div(job.tile_groups, threads) * threads
    cdef Py_ssize_t group_tiles = ceil_div(job.tiles, job.tile_groups)
    # A line more between elements, so that they do not all fall into the same cache sets.
    job.v_element = (job.tiles if shared else group_tiles) * job.v_tile + 64 // size
    job.m_element = group_tiles * width + 64 // size
    cdef size_t v_bytes = <size_t>(elements * job.v_element * size)
    cdef size_t m_bytes = <size_t>(elements * job.m_element * size)
    cdef Py_ssize_t zeros = max(job.v_tile, width) * size
    cdef double transform = 4.0 * elements * job.v_tile
    cdef double product = 2.0 * group_tiles * elements * packed.channels * width
    cdef char *memory = take(<size_t>zeros + (v_bytes * packed.groups if shared else 0))
    job.zeros, job.v = memory, memory + zeros
    memset(memory, 0, <size_t>zeros)
    try:
        if shared:
            # It takes longer than its operations: V is large, and its pages may be new.
            run(input_item, &job, ceil_div(job.tiles, TILES) * packed.groups,
                4.0 * transform * TILES, threads, 0)
            run(block_item, &job, job.tile_groups * packed.groups * packed.blocks, product, threads,
                m_bytes)
        else:
            run(winograd_item, &job, job.tile_groups * packed.groups,
                product * packed.blocks + transform * group_tiles, threads, v_bytes + m_bytes)
    finally:
        give(memory)
    return 0
